"""Addresses in lower case"""

import sqlalchemy as sa
from alembic import op

revision = "0005_lower_case"
down_revision = "0004"

leads = sa.table("leads", sa.column("id", sa.Integer), sa.column("email", sa.String))


def upgrade():
    connection = op.get_bind()
    for number, email in connection.execute(sa.select(leads.c.id, leads.c.email)).all():
        connection.execute(leads.update().where(leads.c.id == number).values(email=email.lower()))


def downgrade():
    # The code before reads lower case as well.
    pass
