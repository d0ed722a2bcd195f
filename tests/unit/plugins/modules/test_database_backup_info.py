# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module database_backup_info, run whole on real backups."""

from __future__ import annotations

import json
import os

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.modules import database_backup, database_backup_info
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.sqlite_tools import make_database


@pytest.fixture
def root(tmp_path):
    directory = tmp_path / "app"
    (directory / "shared").mkdir(parents=True)
    make_database(directory / "shared" / "db.sqlite3")
    return directory


@pytest.fixture
def run(root, capsys):
    def execute(module, check=False, **options):
        database = {"engine": "sqlite", "path": str(root / "shared" / "db.sqlite3")}
        arguments = {"root": str(root), "database": database, **options}
        with (
            patch_module_args({**arguments, "_ansible_check_mode": check}),
            pytest.raises(SystemExit) as caught,
        ):
            module.main()
        answer = json.loads(capsys.readouterr().out)
        assert bool(caught.value.code) == bool(answer.get("failed"))
        return answer

    return execute


def flip(path):
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 0xFF]))


def test_none_is_a_state(run):
    answer = run(database_backup_info)
    assert answer["backups"] == []
    assert "playbooks/backup.yml" in answer["text"]


def test_a_list_says_what_there_is_and_changes_nothing(run, root):
    for name in ("first", "second"):
        run(database_backup, id=name)
    before = sorted(os.walk(root))
    answer = run(database_backup_info)
    assert answer["changed"] is False
    assert [entry["id"] for entry in answer["backups"]] == ["second", "first"]
    assert answer["backups"][0]["heads"] == {"auth": ["0001_initial"], "shop": ["0002_notes"]}
    assert "first" in answer["text"] and "second" in answer["text"]
    assert answer["states"] == {}
    assert sorted(os.walk(root)) == before


def test_a_backup_is_restored_for_a_trial_that_leaves_nothing(run, root):
    run(database_backup, id="first")
    answer = run(database_backup_info, verify="restore")
    assert answer["states"] == {"first": "restored"}
    assert os.listdir(root / "scratch") == []


def test_the_newest_one_is_meant_and_any_other_can_be_named(run):
    for name in ("first", "second"):
        run(database_backup, id=name)
    assert run(database_backup_info, verify="checksum")["states"] == {"second": "intact"}
    assert run(database_backup_info, verify="checksum", ids=["first"])["states"] == {"first": "intact"}
    assert set(run(database_backup_info, verify="restore", ids=["all"])["states"]) == {"first", "second"}


def test_a_damaged_one_fails_and_the_others_are_looked_at_all_the_same(run, root):
    for name in ("first", "second"):
        run(database_backup, id=name)
    flip(next((root / "backups" / "second").glob("database*")))
    answer = run(database_backup_info, verify="restore", ids=["all"])
    assert answer["failed"]
    assert answer["states"] == {"first": "restored", "second": "FAILED"}
    assert "second is damaged" in answer["msg"]


def test_a_manifest_that_says_something_else(run, root):
    run(database_backup, id="first")
    path = root / "backups" / "first" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["counts"]["note"] += 1
    path.write_text(json.dumps(manifest))
    assert run(database_backup_info, verify="checksum")["states"] == {"first": "intact"}
    answer = run(database_backup_info, verify="restore")
    assert answer["failed"] and "table note" in answer["msg"]
    assert os.listdir(root / "scratch") == []


def test_check_mode_restores_nothing(run, root):
    run(database_backup, id="first")
    assert run(database_backup_info, check=True, verify="restore")["states"] == {"first": "intact"}


def test_what_does_not_exist_is_named(run):
    answer = run(database_backup_info, verify="restore", ids=["nothing"])
    assert answer["failed"] and "There is no backup 'nothing'" in answer["msg"]
