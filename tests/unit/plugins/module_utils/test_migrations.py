# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests for plugins/module_utils/_migrations.py: what is said of migrations that stopped half way."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _migrations
from ansible_collections.runbook.deploy.plugins.module_utils._agent import AgentProblem
from ansible_collections.runbook.deploy.plugins.module_utils._migrations import Progress, explain
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

ONE, TWO = ["shop", "0001_initial"], ["shop", "0002_more"]


class Process:
    """An agent that answers what is applied, or fails."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.finished = False

    def call(self, operation: str) -> dict[str, Any]:
        assert operation == "applied"
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise AgentProblem("no connection", "", "application")
        return {"applied": answer}


class Journal:
    """What is written into the record."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def update(self, **changes: Any) -> None:
        self.found.update(changes)


def told(*events: dict[str, Any]) -> Progress:
    progress = Progress(Journal(), [ONE])
    for event in events:
        progress({"app": "shop", "name": "0002_more", **event})
    return progress


def said(process: Process, progress: Progress, verb: str = "applied") -> Problem:
    return explain(process, None, "django", [ONE], progress, AgentProblem("It ended.", "", "died"), verb)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_migrations, "READ_PAUSE", 0.0)


START = {"event": "apply_start", "atomic": True}
HALF = {"event": "apply_start", "atomic": False}


def operation(index: int, deferred: bool = False) -> dict[str, Any]:
    return {"event": "operation", "index": index, "of": 3, "description": "Add field", "deferred": deferred}


def test_a_transaction_that_was_rolled_back() -> None:
    problem = said(Process([ONE]), told(START, operation(2)))
    assert "shop.0002_more could not be applied" in problem.message
    assert "nothing of it remains" in problem.message
    assert problem.results["live_changed"] is False
    assert problem.results["failed_migration"] == TWO


def test_a_migration_that_ended_before_the_process_could_say_so() -> None:
    progress = told(START, operation(3))
    problem = said(Process([ONE, TWO]), progress)
    assert "rolled back" not in problem.message
    assert "applied before that in this run: shop.0002_more" in problem.message
    assert problem.results["failed_migration"] is None
    assert problem.results["live_changed"] is True
    assert progress.journal.found["heads_after"] == {"shop": ["0002_more"]}


def test_nothing_is_claimed_of_what_could_not_be_read() -> None:
    problem = said(Process(None), told(START, operation(1)))
    assert "what is applied now could not be read" in problem.message
    assert "unless it had just ended" in problem.message
    assert problem.results["applied"] is None
    assert problem.results["live_changed"] is True


def test_a_server_that_comes_back_is_asked_again() -> None:
    problem = said(Process(None, None, [ONE]), told(START))
    assert problem.results["applied"] == [ONE]


def test_half_a_migration_is_told_operation_by_operation() -> None:
    statement = {"event": "statement", "sql": "ALTER TABLE t ADD c int"}
    problem = said(Process([ONE]), told(HALF, operation(1), statement, operation(2), statement))
    assert "its operation 2 of 3 (Add field), of which the 1 before remain done" in problem.message
    assert "in it were executed: ALTER TABLE t ADD c int;" in problem.message
    assert problem.results["failed_operation"]["statements"] == ["ALTER TABLE t ADD c int"]
    assert problem.results["live_changed"] is True


def test_what_was_put_off_to_the_end() -> None:
    problem = said(Process([ONE]), told(HALF, operation(3), operation(3, deferred=True)))
    assert "all of its 3 operations were executed" in problem.message


def test_before_the_first_operation() -> None:
    assert "stopped before its first operation" in said(Process([ONE]), told(HALF)).message


def test_who_was_waited_for() -> None:
    events = ({"event": "retry", "attempt": 1}, {"event": "blocked", "by": ["session 7 (role app)"]})
    problem = said(Process([ONE]), told(START, *events))
    assert "not given in 2 attempts, because of session 7 (role app)" in problem.message


def test_a_reversal() -> None:
    problem = said(
        Process([ONE, TWO]), told({"event": "unapply_start", "atomic": True}, operation(1)), "reversed"
    )
    assert "shop.0002_more could not be reversed" in problem.message
    assert problem.results["failed_migration"] == TWO
