"""Leads without their company: the way back makes the column, not what was in it"""

import sqlalchemy as sa
from alembic import op

revision = "0005_without_company"
down_revision = "0004"


def upgrade():
    with op.batch_alter_table("leads") as batch:
        batch.drop_column("company")


def downgrade():
    with op.batch_alter_table("leads") as batch:
        batch.add_column(sa.Column("company", sa.String(120), nullable=False, server_default=""))
