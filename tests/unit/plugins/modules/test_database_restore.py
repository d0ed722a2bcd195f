# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module database_restore, run whole."""

from __future__ import annotations

import json
import os

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.modules import database_backup, database_restore
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.sqlite_tools import (
    ask,
    execute,
    make_database,
)

RECORD = {
    "id": "20261121T013700-ab12",
    "token": "t",
    "host": "web1",
    "primary": False,
    "about": {"kind": "rollback"},
}


@pytest.fixture
def run(tmp_path, capsys):
    """Return a function that runs a module on an application of which there is a backup called b1."""
    root = tmp_path / "app"
    (root / "shared").mkdir(parents=True)
    path = make_database(root / "shared" / "db.sqlite3")

    def execute_module(module=database_restore, check=False, **options):
        arguments = {"root": str(root), "database": {"engine": "sqlite", "path": str(path)}, **options}
        with (
            patch_module_args({**arguments, "_ansible_check_mode": check}),
            pytest.raises(SystemExit) as caught,
        ):
            module.main()
        answer = json.loads(capsys.readouterr().out)
        assert bool(caught.value.code) == bool(answer.get("failed"))
        return answer

    execute_module.root = root
    execute_module.path = path
    execute_module(database_backup, id="b1")
    execute(path, "INSERT INTO note (customer_id, text) VALUES (1, 'new')")
    return execute_module


LOST = {"note": {"inserts": 1, "updates": 0, "deletes": 0}}


def test_without_consent_the_answer_says_what_would_be_lost(run):
    answer = run(backup="b1")
    assert answer["failed"] is True
    assert answer["lost"] == LOST
    assert "note: 1 insert" in answer["msg"]
    assert "-e rollback_consent=true" in answer["msg"]
    assert ask(run.path, "SELECT count(*) FROM note") == [(4,)]


def test_with_consent_everything_is_answered_and_recorded(run):
    answer = run(backup="b1", consent=True, record=RECORD)
    assert answer["changed"] is True
    assert answer["restored"] == "b1"
    assert answer["lost"] == LOST
    assert ask(run.path, "SELECT count(*) FROM note") == [(3,)]
    assert ask(answer["kept"], "SELECT count(*) FROM note") == [(4,)]
    manifest = json.loads((run.root / "backups" / answer["safety"] / "manifest.json").read_text())
    assert (manifest["kind"], manifest["deployment"], manifest["counts"]["note"]) == (
        "safety",
        RECORD["id"],
        4,
    )
    record = json.loads((run.root / "deployments" / f"{RECORD['id']}.json").read_text())
    assert record["phases"][0]["phase"] == "restore"
    assert record["phases"][0]["result"]["safety"] == answer["safety"]


def test_check_mode_counts_only(run):
    before = sorted(os.listdir(run.root / "backups"))
    answer = run(backup="b1", consent=True, check=True, record=RECORD)
    assert (answer["changed"], answer["lost"], answer["kept"], answer["safety"]) == (True, LOST, None, None)
    assert "would be restored" in answer["msg"]
    assert sorted(os.listdir(run.root / "backups")) == before
    assert not (run.root / "deployments").exists()
    assert ask(run.path, "SELECT count(*) FROM note") == [(4,)]


def test_a_backup_that_does_not_exist_is_named_with_those_that_do(run):
    answer = run(backup="b9")
    assert "There is no backup 'b9'" in answer["msg"]
    assert "newest: b1" in answer["msg"]
