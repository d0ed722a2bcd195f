# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import sys

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _lock as lock
from ansible_collections.runbook.deploy.plugins.module_utils._due import due_of
from ansible_collections.runbook.deploy.plugins.modules import due_task as module
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.deployed_host import (
    D1,
    D2,
    R1,
    R2,
    deployed_host,
    run_module,
)

TASKS = [
    {"name": "look", "after": 0, "note": "the page of metrics"},
    {
        "name": "good",
        "after": "1 week",
        "command": [sys.executable, "-c", "import os; print(os.environ['RUNBOOK_RELEASE'])"],
    },
    {
        "name": "bad",
        "after": "1 day",
        "command": [sys.executable, "-c", "import os; print(os.environ['WORD']); raise SystemExit(3)"],
    },
]


@pytest.fixture
def host():
    with deployed_host() as made:
        made.release(R1)
        made.record(D1, R1, due=due_of(TASKS, 0.0))
        made.switch(R1, D1)
        yield made


@pytest.fixture
def ask(host, capsys):
    def run(**params) -> dict:
        return run_module(module, capsys, root=str(host.root), operator="ann", **params)

    return run


def kept(host, name: str, deployment: str = D1) -> dict:
    """The task as it is on the disk."""
    found = json.loads(host.layout.record(deployment).read_text())["due"]
    return next(entry for entry in found if entry["name"] == name)


def test_shown_changes_nothing(host, ask) -> None:
    before = host.tree()
    answer = ask()
    assert (answer["changed"], answer["deployment"]) == (False, D1)
    assert [task["name"] for task in answer["tasks"]] == ["look", "bad", "good"]
    assert answer["tasks"][0]["overdue"]
    assert "token" not in answer["record"]
    assert host.tree() == before


def test_a_task_is_marked_once_and_the_mark_taken_back(host, ask) -> None:
    assert ask(task="look", state="done", remark="all calm")["changed"]
    assert (kept(host, "look")["state"], kept(host, "look")["done_by"], kept(host, "look")["remark"]) == (
        "done",
        "ann",
        "all calm",
    )
    assert kept(host, "good")["state"] == "open"
    assert not ask(task="look", state="done")["changed"]
    assert kept(host, "look")["remark"] == "all calm"
    assert ask(task="look", state="open")["changed"]
    assert kept(host, "look")["done_at"] is None


def test_check_mode_writes_nothing_and_runs_nothing(host, ask) -> None:
    before = host.tree()
    assert ask(task="look", state="done", _ansible_check_mode=True)["changed"]
    assert ask(task="bad", state="run", _ansible_check_mode=True)["changed"]
    assert host.tree() == before


def test_a_command_runs_in_the_live_release_and_marks_by_its_end(host, ask) -> None:
    answer = ask(task="good", state="run")
    assert answer["output"] == R1
    assert (kept(host, "good")["state"], kept(host, "good")["done_by"]) == ("done", "ann")
    answer = ask(task="bad", state="run", environment=json.dumps({"WORD": "hush-hush"}))
    assert answer["failed"]
    assert "exit code 3" in answer["msg"]
    assert "hush-hush" not in json.dumps({**answer, "invocation": None})
    assert kept(host, "bad")["state"] == "failed"
    assert "exit code 3" in kept(host, "bad")["remark"]


def test_a_task_without_a_command_cannot_be_run(host, ask) -> None:
    assert "has no command" in ask(task="look", state="run")["msg"]
    assert kept(host, "look")["state"] == "open"


def test_what_is_unknown_is_refused(host, ask) -> None:
    assert "no task 'lok'" in ask(task="lok", state="done")["msg"]
    assert "no record of the deployment" in ask(task="look", state="done", deployment=D2)["msg"]


def test_nothing_is_marked_while_a_deployment_runs(host, ask) -> None:
    lock.acquire(host.layout, deployment=D2, token="t", owner="bob")
    before = host.layout.record(D1).read_bytes()
    assert "held by bob" in ask(task="look", state="done")["msg"]
    assert host.layout.record(D1).read_bytes() == before
    assert not ask().get("failed")


def test_no_command_is_run_beside_a_deployment(host, ask, tmp_path) -> None:
    trace = tmp_path / "ran"
    command = [sys.executable, "-c", f"open({str(trace)!r}, 'w')"]
    host.record(D1, R1, due=due_of([{"name": "touch", "after": 0, "command": command}], 0.0))
    lock.acquire(host.layout, deployment=D2, token="t", owner="bob")
    assert "held by bob" in ask(task="touch", state="run")["msg"]
    assert not trace.exists()


def test_what_was_taken_back_has_no_tasks_by_itself(host, ask) -> None:
    host.record(D2, R2, undone_by="x", due=due_of(TASKS[:1], 0.0))
    assert ask()["deployment"] == D1
    assert ask(deployment=D2)["deployment"] == D2


def test_without_a_deployment_nothing_is_due(ask, host) -> None:
    host.layout.record(D1).unlink()
    assert "no task is due" in ask()["msg"]
