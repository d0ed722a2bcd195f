"""The queue of leads that wait for review"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade():
    op.add_column(
        "leads", sa.Column("requires_human_review", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column("leads", sa.Column("review_type", sa.String(40), nullable=True))
    op.add_column("leads", sa.Column("review_reason", sa.Text(), nullable=True))
    op.create_index("ix_leads_review", "leads", ["requires_human_review", "review_type"])


def downgrade():
    op.drop_index("ix_leads_review", "leads")
    op.drop_column("leads", "review_reason")
    op.drop_column("leads", "review_type")
    op.drop_column("leads", "requires_human_review")
