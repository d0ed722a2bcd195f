"""Outreach: the second statement fails, after the first has changed the schema"""

import sqlalchemy as sa
from alembic import op

revision = "0005_outreach"
down_revision = "0004"


def upgrade():
    op.add_column("leads", sa.Column("outreach_at", sa.DateTime(), nullable=True))
    op.create_index("ix_leads_outreach", "leads", ["outreach_on"])


def downgrade():
    op.drop_index("ix_leads_outreach", "leads")
    op.drop_column("leads", "outreach_at")
