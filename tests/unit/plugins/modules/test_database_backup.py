# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module database_backup, run whole."""

from __future__ import annotations

import json
import os
import sqlite3

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.modules import database_backup
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.sqlite_tools import (
    execute,
    make_database,
)

RECORD = {
    "id": "20261121T013700-ab12",
    "token": "t",
    "host": "web1",
    "primary": False,
    "about": {"kind": "deployment"},
}


@pytest.fixture
def run(tmp_path, capsys):
    """Return a function that runs the module on an application in a temporary directory."""
    root = tmp_path / "app"
    (root / "shared").mkdir(parents=True)

    def execute_module(check=False, **options):
        database = {"engine": "sqlite", "path": str(root / "shared" / "db.sqlite3")}
        arguments = {"root": str(root), "database": database, **options}
        with (
            patch_module_args({**arguments, "_ansible_check_mode": check}),
            pytest.raises(SystemExit) as caught,
        ):
            database_backup.main()
        answer = json.loads(capsys.readouterr().out)
        assert bool(caught.value.code) == bool(answer.get("failed"))
        return answer

    execute_module.root = root
    execute_module.path = root / "shared" / "db.sqlite3"
    return execute_module


def tree(root):
    return sorted(
        os.path.relpath(os.path.join(place, name), root)
        for place, _directories, names in os.walk(root)
        for name in names
    )


def test_a_deployment_gets_a_backup_a_scratch_and_an_entry_in_its_record(run):
    make_database(run.path)
    answer = run(record=RECORD, application="shop")
    assert answer["changed"] is True
    backup = answer["backup"]
    assert backup["id"] == RECORD["id"]
    assert backup["kind"] == "deployment"
    assert backup["empty"] is False
    assert backup["path"] == str(run.root / "backups" / RECORD["id"])
    assert backup["counts"]["note"] == 3
    assert backup["heads"] == {"auth": ["0001_initial"], "shop": ["0002_notes"]}
    assert answer["scratch"] == {
        "engine": "sqlite",
        "path": str(run.root / "scratch" / RECORD["id"] / "db.sqlite3"),
    }
    record = json.loads((run.root / "deployments" / f"{RECORD['id']}.json").read_text())
    assert record["backup"] == backup
    phase = record["phases"][0]
    assert (phase["phase"], phase["state"], phase["result"]["scratch"]) == (
        "backup",
        "done",
        answer["scratch"],
    )


def test_a_resumed_deployment_keeps_its_first_backup(run):
    make_database(run.path)
    run(record=RECORD)
    assert run(record=RECORD)["backup"]["id"] == f"{RECORD['id']}-2"
    assert (run.root / "backups" / RECORD["id"] / "manifest.json").exists()


def test_a_first_deployment_has_nothing_to_save(run):
    answer = run(record=RECORD)
    assert answer["changed"] is False
    assert answer["backup"]["empty"] is True
    assert answer["backup"]["id"] is None
    assert not os.path.exists(answer["scratch"]["path"])
    assert os.path.isdir(os.path.dirname(answer["scratch"]["path"]))
    assert not run.path.exists()
    # A file without a table is no database yet either.
    run.path.touch()
    assert run(record=RECORD)["backup"]["empty"] is True


@pytest.mark.parametrize("record", [None, RECORD])
def test_check_mode_says_what_it_would_do_and_writes_nothing(run, record):
    make_database(run.path)
    before = tree(run.root)
    answer = run(check=True, record=record)
    assert answer["changed"] is True
    assert answer["backup"]["size"] == run.path.stat().st_size
    assert answer["scratch"] is None
    assert f"{run.path.stat().st_size} bytes would be taken" in answer["msg"]
    assert tree(run.root) == before


def test_when_says_whether_a_backup_is_needed(run):
    make_database(run.path)
    for options in ({"when": "never"}, {"when": "migrations", "pending": False}):
        answer = run(**options)
        assert (answer["changed"], answer["backup"], answer["scratch"]) == (False, None, None)
    assert not (run.root / "backups").exists()
    assert run(when="migrations", pending=True)["changed"] is True


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"when": "never"}, 0),
        ({"when": "migrations", "pending": False}, 0),
        ({"verify": "none"}, 1),
        ({"verify": "read"}, 1),
    ],
)
def test_the_new_code_gets_a_copy_also_where_less_is_asked_for(run, options, kept):
    make_database(run.path)
    answer = run(scratch="copy", **options)
    connection = sqlite3.connect(answer["scratch"]["path"])
    tables = connection.execute("select count(*) from sqlite_master where type = 'table'").fetchone()[0]
    connection.close()
    assert tables > 0
    assert answer["scratch"]["path"] != str(run.path)
    assert len([name for name in os.listdir(run.root / "backups") if name != ".lock"]) == kept


def test_backups_by_hand_leave_no_scratch_and_only_the_newest_stay(run):
    make_database(run.path)
    names = [run(id=f"b{number}")["backup"]["id"] for number in range(2)]
    answer = run(id="b2", keep=2)
    assert names == ["b0", "b1"]
    assert answer["removed"] == ["b0"]
    assert answer["scratch"] is None
    assert os.listdir(run.root / "scratch") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"database": {"engine": "oracle", "name": "shop", "password": "secret-word"}},
            "supports sqlite and postgresql and mysql only",
        ),
        ({"database": {"engine": "sqlite"}}, "app_database.path is None"),
        ({"id": "../x"}, "The option id is '../x'"),
        ({"scratch": "a/b"}, "The option scratch is 'a/b'"),
        ({"user": "nobody-here"}, "'nobody-here' (app_user) does not exist"),
        ({"root": "/nonexistent/app"}, "app_root '/nonexistent/app' does not exist"),
    ],
)
def test_bad_input_is_one_sentence_that_names_the_variable(run, options, message):
    make_database(run.path)
    answer = run(**options)
    assert answer["failed"] is True
    assert message in answer["msg"]
    assert "secret-word" not in json.dumps(answer)
    assert not (run.root / "backups").exists() or os.listdir(run.root / "backups") == [".lock"]


def test_a_failure_is_in_the_record(run):
    make_database(run.path)
    execute(run.path, "DELETE FROM django_migrations")
    answer = run(record=RECORD)
    assert "tables without migration rows" in answer["msg"]
    record = json.loads((run.root / "deployments" / f"{RECORD['id']}.json").read_text())
    assert record["phases"][0]["state"] == "failed"
    assert "tables without migration rows" in record["phases"][0]["message"]
