"""The domain of a lead, with no way back"""

import sqlalchemy as sa
from alembic import op

revision = "0005_domain"
down_revision = "0004"


def upgrade():
    op.add_column("leads", sa.Column("domain", sa.String(200), nullable=True))
    op.execute("UPDATE leads SET domain = company")


def downgrade():
    raise NotImplementedError("nobody has written a way back")
