# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When the application need not be started to migrate nothing, and when it has to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.modules import migration
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.counted_project import CountedProject

APPS = """\
from django.apps import AppConfig
from django.db.models.signals import post_migrate


class OrdersConfig(AppConfig):
    name = "orders"

    def ready(self):
        post_migrate.connect(roles)


def roles(**_facts):
    pass
"""
COMMAND = """\
from django.core.management.commands.migrate import Command as Migrate


class Command(Migrate):
    pass
"""
ALONE = "from django.db import models\n\n\nclass Alone(models.Model):\n    pass\n"
MANAGEMENT = "from django.db.models.signals import pre_migrate\n\n\ndef note(**_facts):\n    pass\n\n\npre_migrate.connect(note)\n"


class Host(CountedProject):
    """The module ``migration`` in such a project."""

    def migrate(self, **options: Any) -> dict[str, Any]:
        return self.run(migration, **{"live_database": self.live, **options})

    def verified(self, **options: Any) -> dict[str, Any]:
        found = self.migrate(state="verified", database=self.scratch(), **options)
        assert not found["failed"], found
        return found

    def applied(self, found: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Apply what was verified, as the role does where it was not found current."""
        return self.migrate(state="applied", plan=found["plan"]["migrations"], **options)


@pytest.fixture
def host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Host:
    return Host(tmp_path / "srv", capsys)


RECORD = {"id": "20261121T013700-ab12", "token": "t" * 16, "host": "web1", "primary": False, "about": {}}


def test_where_nothing_is_pending_the_record_says_what_migrate_would_have_written(host: Host) -> None:
    found = host.verified(record=RECORD)
    assert found["current"] is True
    story = json.loads((host.project.root / "deployments" / f"{RECORD['id']}.json").read_text())
    shown = [(phase["phase"], phase["state"], phase["result"]) for phase in story["phases"]]
    assert shown == [
        ("verify", "done", {"notes": found["notes"], "pending": 0}),
        ("migrate", "done", {"seconds": [], "pending": 0}),
    ]
    other = {**RECORD, "id": "20261121T013800-ab12"}
    applied = host.migrate(state="applied", plan=[], record=other)
    asked = json.loads((host.project.root / "deployments" / f"{other['id']}.json").read_text())
    for name in ("applied_before", "heads_before", "heads_after"):
        assert story[name] == asked[name], name
    assert [phase["result"] for phase in asked["phases"]] == [{"seconds": []}]
    assert (applied["changed"], applied["applied"], applied["heads"]) == (
        False,
        found["applied"],
        found["heads"],
    )


def test_something_pending_is_applied(host: Host) -> None:
    host.project.note()
    found = host.verified(record=RECORD)
    assert found["current"] is False
    story = json.loads((host.project.root / "deployments" / f"{RECORD['id']}.json").read_text())
    assert ([phase["phase"] for phase in story["phases"]], story["applied_before"]) == (["verify"], None)
    done = host.applied(found)
    assert (done["changed"], done["started"]) == (True, 1)


@pytest.mark.parametrize(
    "files",
    [
        {"orders/apps.py": APPS},
        {"orders/management/__init__.py": MANAGEMENT},
        {"orders/management/commands/migrate.py": COMMAND, "orders/management/__init__.py": ""},
    ],
    ids=["receiver", "receiver beside the commands", "own command"],
)
def test_an_application_that_may_do_something_at_every_migrate_is_started(
    host: Host, files: dict[str, str]
) -> None:
    for path, text in files.items():
        host.project.write(path, text)
    if "orders/management/commands/migrate.py" in files:
        host.project.write("orders/management/commands/__init__.py", "")
    found = host.verified()
    assert (found["current"], found["plan"]["migrations"]) == (False, [])
    done = host.applied(found)
    assert (done["failed"], done["started"]) == (False, 1)


def test_models_without_migrations_get_their_content_types(host: Host) -> None:
    host.project.write("alone/__init__.py", "")
    host.project.write("alone/models.py", ALONE)
    host.project.add_apps("alone")
    found = host.verified()
    assert found["current"] is False
    assert host.applied(found)["started"] == 1
    rows = host.project.rows("select count(*) from django_content_type where app_label = 'alone'")
    assert rows == [(1,)]


def test_a_live_database_that_is_not_as_the_copy_is_not_current(host: Host) -> None:
    live = host.project.database
    assert host.verified()["current"]
    for statement in (
        "insert into django_migrations (app, name, applied) values ('orders', '0002_note', '2026-01-01')",
        "delete from django_migrations where app = 'orders'",
        "delete from django_migrations",
    ):
        kept = live.read_bytes()
        scratch = host.scratch()
        host.project.rows(statement)
        assert host.migrate(state="verified", database=scratch)["current"] is False, statement
        live.write_bytes(kept)
    assert host.verified()["current"]


def test_without_a_live_database_nobody_knows(host: Host) -> None:
    assert host.verified(live_database={})["current"] is False


def test_an_initial_command_that_is_due_is_run(host: Host) -> None:
    marker = host.project.root / "shared" / "initial"
    assert host.verified(initial_command=["x.py"])["current"]
    host.project.write("x.py", f"open({str(marker)!r}, 'w')\n")
    # As a first deployment leaves it whose initial command failed.
    host.project.write("x.py", "raise SystemExit(1)")
    empty = host.project.database.rename(host.project.database.with_suffix(".kept"))
    assert host.migrate(state="applied", initial_command=["x.py"])["failed"]
    assert empty.exists()
    host.project.write("x.py", f"open({str(marker)!r}, 'w')\n")
    assert host.verified(initial_command=["x.py"])["current"] is False
    done = host.migrate(state="applied", plan=[], initial_command=["x.py"])
    assert (done["failed"], done["initial_command"]) == (False, True)
    assert marker.exists()
