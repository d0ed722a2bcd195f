# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tiny real project with Alembic in a temporary directory, for the tests that need one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sqlite3
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

SECRET = "s3cret-value-of-the-application"
INI = "[alembic]\nscript_location = %(here)s/alembic\n"
ENV = """\
import os

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from shop.models import metadata

engine = create_engine(os.environ["SHOP_URL"], poolclass=NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()
"""
MODELS = """\
import sqlalchemy as sa

metadata = sa.MetaData()
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("number", sa.String(20), nullable=False),
)
"""
REVISION = '''\
"""{name}"""

import sqlalchemy as sa
from alembic import op

revision = {name!r}
down_revision = {after!r}
{more}

def upgrade():
{upgrade}


{downgrade}
'''
ORDERS = (
    'op.create_table("orders", sa.Column("id", sa.Integer(), primary_key=True), '
    'sa.Column("number", sa.String(20), nullable=False))'
)
ADD_NOTE = 'op.add_column("orders", sa.Column("note", sa.String(40), nullable=True))'
DROP_NOTE = 'op.drop_column("orders", "note")'


def alembic_python(*packages: str) -> str:
    """Return an interpreter that has Alembic and *packages*: RUNBOOK_TEST_ALEMBIC_PYTHON, or the tests' own."""
    named = os.environ.get("RUNBOOK_TEST_ALEMBIC_PYTHON")
    if named:
        return named
    for package in ("alembic", *packages):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed beside pytest; install requirements-dev.txt")
    return sys.executable


class AlembicProject:
    """A release of the application ``shop``, and an environment with Alembic beside it.

    ``root`` is app_root; ``release`` the release's directory; ``database`` the live SQLite file.
    """

    name = "0123456789ab-01234567"

    def __init__(self, root: Path, *packages: str) -> None:
        self.root = root
        self.release = root / "releases" / self.name
        self.environment = root / "environments" / "abc"
        self.database = root / "shared" / "db.sqlite3"
        for directory in (self.release, self.environment / "bin", root / "shared", root / "deployments"):
            directory.mkdir(parents=True)
        python = self.environment / "bin" / "python"
        # Not a link: the place of the link decides which packages an interpreter finds.
        python.write_text(f'#!/bin/sh\nexec {alembic_python(*packages)} "$@"\n')
        python.chmod(0o755)
        (self.release / ".built").write_text("")
        self.url = f"sqlite:///{self.database}"

    def fill(self) -> None:
        """Write the files of a project with one revision."""
        self.write("alembic.ini", INI)
        self.write("alembic/env.py", ENV)
        self.write("shop/__init__.py", "")
        self.write("shop/models.py", MODELS)
        self.revision("r1", None, ORDERS, 'op.drop_table("orders")')

    def write(self, path: str, text: str) -> Path:
        """Write a file of the release."""
        target = self.release / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def revision(
        self, name: str, after: Any, upgrade: str, downgrade: str | None = "pass", more: str = ""
    ) -> Path:
        """Write the revision *name* that follows *after*; without *downgrade* it has no such function."""
        back = "" if downgrade is None else f"def downgrade():\n{textwrap.indent(downgrade, '    ')}"
        forward = textwrap.indent(upgrade, "    ")
        text = REVISION.format(name=name, after=after, upgrade=forward, downgrade=back, more=more)
        return self.write(f"alembic/versions/{name}.py", text)

    def add_note(self) -> None:
        """Add a column with its revision ``r2``."""
        self.revision("r2", "r1", ADD_NOTE, DROP_NOTE)
        self.write("shop/models.py", MODELS.replace("\n)\n", '\n    sa.Column("note", sa.String(40)),\n)\n'))

    @property
    def variables(self) -> dict[str, str]:
        """``app_environment``."""
        return {"SHOP_SECRET": SECRET, "SHOP_URL": self.url}

    @property
    def app_database(self) -> dict[str, Any]:
        """``app_database``."""
        return {"engine": "sqlite", "path": str(self.database)}

    def rows(self, statement: str, database: Path | None = None) -> list[Any]:
        """Return the rows of *statement* on the live database."""
        connection = sqlite3.connect(database or self.database)
        try:
            with connection:
                return connection.execute(statement).fetchall()
        finally:
            connection.close()

    def columns(self, table: str = "orders") -> list[str]:
        """Return the names of the columns of *table* in the live database."""
        return [row[1] for row in self.rows(f"pragma table_info({table})")]

    def heads(self) -> list[str]:
        """Return what is applied to the live database."""
        return [row[0] for row in self.rows("select version_num from alembic_version order by 1")]

    def scratch(self) -> dict[str, str]:
        """Return a copy of the live database, as database_backup does."""
        directory = self.root / "scratch" / "x"
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "db.sqlite3"
        path.unlink(missing_ok=True)
        if self.database.exists():
            shutil.copy(self.database, path)
        else:
            path.touch()
        return {"engine": "sqlite", "path": str(path)}
