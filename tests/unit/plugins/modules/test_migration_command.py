# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests for plugins/modules/migration.py with an application that initialises its SQLite database by a command of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils._initialise import filled
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.modules.migration import main
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.alembic_project import AlembicProject

DEPLOYMENT = "20261121T013700-ab12"
SECRET = "word-that-nobody-may-see"
INIT = """\
import os
import sqlite3

connection = sqlite3.connect(os.environ["BOT_DATABASE"])
connection.execute("CREATE TABLE IF NOT EXISTS chats (id INTEGER PRIMARY KEY, name TEXT)")
{more}
connection.commit()
print("initialised with", os.environ.get("BOT_KEY"))
"""
COLUMN = """\
if "muted" not in [row[1] for row in connection.execute("PRAGMA table_info(chats)")]:
    connection.execute("ALTER TABLE chats ADD COLUMN muted INTEGER")
"""
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AlembicProject:
    # Nothing of Alembic is used but the directories.
    monkeypatch.setenv("RUNBOOK_TEST_ALEMBIC_PYTHON", "python3")
    made = AlembicProject(tmp_path / "srv")
    made.write("init.py", INIT.format(more=""))
    return made


@pytest.fixture
def run(project: AlembicProject, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(**options: Any) -> dict[str, Any]:
        arguments = {
            "root": str(project.root),
            "release": project.name,
            "framework": "command",
            "command": ["init.py"],
            "command_environment": json.dumps({"BOT_DATABASE": "{path}", "BOT_KEY": SECRET}),
            "environment_path": str(project.environment),
            "environment": json.dumps({"BOT_DATABASE": str(project.database)}),
            "live_database": project.app_database,
            "record": {"id": DEPLOYMENT, "token": "t" * 16, "host": "web1", "primary": False, "about": {}},
            **options,
        }
        capsys.readouterr()
        with patch_module_args(arguments), pytest.raises(SystemExit):
            main()
        text = capsys.readouterr().out
        assert SECRET not in text
        return {"failed": False, **json.loads(text)}

    return call


def journal(project: AlembicProject) -> dict[str, Any]:
    return json.loads((project.root / "deployments" / f"{DEPLOYMENT}.json").read_text())


def test_it_is_tried_on_the_copy_and_then_run(project: AlembicProject, run: Run) -> None:
    found = run(state="verified", database=project.scratch())
    (entry,) = found["plan"]["migrations"]
    assert (entry["reversible"], entry["compatible"], entry["destructive"]) == ("unknown",) * 3
    assert "table chats was not there" in entry["operations"][0]["description"], entry
    assert not project.database.exists() and found["applied"] is None
    assert journal(project)["applied_before"] is None
    done = run(state="applied", plan=found["plan"]["migrations"])
    assert done["changed"] and project.columns("chats") == ["id", "name"]
    assert done["plan"]["migrations"] == found["plan"]["migrations"]
    assert journal(project)["applied_before"] == []
    # The second time nothing is pending, which the copy and an empty database have proved; it runs all the same.
    found = run(state="verified", database=project.scratch())
    assert found["plan"]["migrations"] == [] and found["notes"] == []
    assert run(state="applied", plan=[])["changed"] is False
    project.write("init.py", INIT.format(more=COLUMN))
    found = run(state="verified", database=project.scratch())
    assert (
        "column chats.muted was not there" in found["plan"]["migrations"][0]["operations"][0]["description"]
    )
    assert project.columns("chats") == ["id", "name"]


def test_nothing_is_proved_by_a_command_that_goes_elsewhere(project: AlembicProject, run: Run) -> None:
    run(state="applied")
    project.write("init.py", "print('nothing')\n")
    found = run(state="verified", database=project.scratch())
    assert found["plan"]["reversible"] == "unknown" and "nothing proves" in found["notes"][0]


def test_without_a_way_to_the_copy_it_is_not_tried(project: AlembicProject, run: Run) -> None:
    run(state="applied")
    project.write("init.py", INIT.format(more=COLUMN))
    found = run(state="verified", database=project.scratch(), command_environment="{}")
    assert found["plan"]["compatible"] == "unknown" and "was not tried" in found["notes"][0]
    assert project.columns("chats") == ["id", "name"]


def test_failures(project: AlembicProject, run: Run) -> None:
    project.write("init.py", INIT.format(more="raise SystemExit('no right to do that')"))
    failed = run(state="verified", database=project.scratch())
    assert failed["failed"] and "ended with exit code 1 on the copy" in failed["msg"]
    assert "no right" in failed["evidence"] and not project.database.exists()
    failed = run(state="applied", plan=[["command", "init.py"]])
    assert failed["failed"] and failed["live_changed"] is True and failed["applied"] is None
    failed = run(state="reversed", applied=[])
    assert failed["failed"] and "nobody knows its way back" in failed["msg"]
    failed = run(state="verified", database=project.scratch(), command=[])
    assert failed["failed"] and "app_migrate_command" in failed["msg"]


def test_placeholders() -> None:
    server = {"engine": "mysql", "name": "scratch", "host": "db", "port": 3306, "user": "app"}
    given = {"URL": "mysql://{user}@{host}:{port}/{name}", "OTHER": "{braces}"}
    assert filled(given, server) == {"URL": "mysql://app@db:3306/scratch", "OTHER": "{braces}"}
    with pytest.raises(Problem, match=r"has no \{name\} in any"):
        filled({"HOST": "{host}"}, server)
    with pytest.raises(Problem, match=r"use \{name\}"):
        filled({"FILE": "{path}"}, server)
    with pytest.raises(Problem, match=r"has no \{path\} in any"):
        filled({"A": "1"}, {"engine": "sqlite", "path": "/x"})
