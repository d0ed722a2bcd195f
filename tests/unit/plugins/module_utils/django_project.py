# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tiny real Django project in a temporary directory, for the tests that need one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

SECRET = "s3cret-value-of-the-application"

MANAGE = """\
import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
    from django.core.management import execute_from_command_line
    execute_from_command_line(sys.argv)
"""
SETTINGS = """\
import os
BASE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SECRET_KEY = os.environ["SHOP_SECRET"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["SHOP_DATABASE"]}}
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.staticfiles", "orders"]
ROOT_URLCONF = "shop.urls"
STATIC_URL = "/static/"
STATIC_ROOT = os.path.join(BASE, "staticfiles")
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"},
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
"""
MODELS = """\
from django.db import models


class Order(models.Model):
    number = models.CharField(max_length=20)
"""
INITIAL = """\
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("number", models.CharField(max_length=20)),
            ],
        ),
    ]
"""
MIGRATION = """\
from django.db import migrations, models


{code}
class Migration(migrations.Migration):
    dependencies = [{dependencies}]
    atomic = {atomic}
    replaces = {replaces}
    operations = [{operations}]
"""
NOTE = (
    'migrations.CreateModel(name="Note", fields=[("id", models.BigAutoField(auto_created=True, primary_key=True, '
    'serialize=False, verbose_name="ID")), ("text", models.TextField())])'
)


def django_python() -> str:
    """Return an interpreter that has Django: the variable RUNBOOK_TEST_DJANGO_PYTHON, or the tests' own."""
    named = os.environ.get("RUNBOOK_TEST_DJANGO_PYTHON")
    if named:
        return named
    if importlib.util.find_spec("django") is None:
        pytest.skip("Django is not installed beside pytest; install requirements-dev.txt")
    return sys.executable


class DjangoProject:
    """A release of the application ``shop`` with its app ``orders``, and an environment with Django beside it.

    ``root`` is app_root; ``release`` the release's directory; ``database`` the live SQLite file.
    """

    name = "0123456789ab-01234567"
    # Live databases as `fill` made them, below the numbers.
    filled: ClassVar[dict[tuple[str, ...], bytes]] = {}

    def __init__(self, root: Path) -> None:
        self.root = root
        self.release = root / "releases" / self.name
        self.environment = root / "environments" / "abc"
        self.database = root / "shared" / "db.sqlite3"
        for directory in (self.release, self.environment / "bin", root / "shared", root / "deployments"):
            directory.mkdir(parents=True)
        python = self.environment / "bin" / "python"
        # Not a link: the place of the link decides which packages an interpreter finds.
        python.write_text(f'#!/bin/sh\nexec {django_python()} "$@"\n')
        python.chmod(0o755)
        (self.release / ".built").write_text("")
        self.write("manage.py", MANAGE)
        self.write("shop/__init__.py", "")
        self.write("shop/settings.py", SETTINGS)
        self.write("shop/urls.py", "urlpatterns = []\n")
        self.write("orders/__init__.py", "")
        self.write("orders/models.py", MODELS)
        self.write("orders/migrations/__init__.py", "")
        self.write("orders/migrations/0001_initial.py", INITIAL)
        self.write("orders/static/orders/site.css", "body { background: url(logo.svg) }\n")
        self.write("orders/static/orders/logo.svg", "<svg/>\n")

    def write(self, path: str, text: str) -> Path:
        """Write a file of the release."""
        target = self.release / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def append_settings(self, text: str) -> None:
        """Add lines to the settings."""
        path = self.release / "shop" / "settings.py"
        path.write_text(path.read_text() + text)

    def add_apps(self, *names: str) -> None:
        """Install further apps, which make the project slower to start."""
        self.append_settings(f"INSTALLED_APPS = [*{list(names)!r}, *INSTALLED_APPS]\n")

    def migration(
        self,
        name: str,
        after: str | None,
        operations: str,
        *,
        code: str = "",
        atomic: bool = True,
        replaces: str = "[]",
    ) -> None:
        """Write the migration *name* of ``orders`` that depends on *after*."""
        dependencies = f'("orders", "{after}")' if after else ""
        text = MIGRATION.format(
            code=code, dependencies=dependencies, operations=operations, atomic=atomic, replaces=replaces
        )
        self.write(f"orders/migrations/{name}.py", text)

    def note(self, name: str = "0002_note") -> None:
        """Add the model ``Note`` with its migration."""
        self.migration(name, "0001_initial", NOTE)
        self.write(
            "orders/models.py", MODELS + "\n\nclass Note(models.Model):\n    text = models.TextField()\n"
        )

    @property
    def variables(self) -> dict[str, str]:
        """``app_environment``."""
        return {"SHOP_SECRET": SECRET, "SHOP_DATABASE": str(self.database)}

    def manage(self, *arguments: str) -> str:
        """Run manage.py as a person would, and return what it printed."""
        environment = {**self.variables, "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
        argv = [str(self.environment / "bin" / "python"), "manage.py", *arguments]
        done = subprocess.run(
            argv, cwd=self.release, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @staticmethod
    def insert(*numbers: str) -> str:
        """Return the statement that writes orders with *numbers*."""
        return f"insert into orders_order (number) values {', '.join(f'({number!r})' for number in numbers)}"

    def fill(self, *numbers: str) -> None:
        """Give the live database the first migrations and orders with *numbers*; made once by Django, and copied."""
        if numbers in self.filled:
            self.database.write_bytes(self.filled[numbers])
            return
        self.manage("migrate", "--verbosity", "0")
        self.rows(self.insert(*numbers))
        self.filled[numbers] = self.database.read_bytes()

    def rows(self, statement: str, database: Path | None = None) -> list[Any]:
        """Return the rows of *statement* on the live database."""
        connection = sqlite3.connect(database or self.database)
        try:
            with connection:
                return connection.execute(statement).fetchall()
        finally:
            connection.close()

    def applied(self, app: str = "orders") -> list[str]:
        """Return the names of the applied migrations of *app*, in the order of their rows."""
        return [
            row[0] for row in self.rows(f"select name from django_migrations where app = '{app}' order by id")
        ]

    def scratch(self) -> Path:
        """Return a copy of the live database in the scratch directory."""
        directory = self.root / "scratch" / "x"
        directory.mkdir(parents=True, exist_ok=True)
        if self.database.exists():
            shutil.copy(self.database, directory / "db.sqlite3")
        return directory / "db.sqlite3"
