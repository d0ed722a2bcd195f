# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _due as due
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem


@pytest.mark.parametrize(
    ("after", "seconds"),
    [
        (0, 0),
        (90, 90),
        ("15 minutes", 900),
        ("1h", 3600),
        ("1 hour", 3600),
        ("4 hours", 14400),
        ("24h", 86400),
    ]
    + [
        ("1 day", 86400),
        ("1 week", 604800),
        ("2w", 1209600),
        ("1.5 h", 5400),
        ("30 s", 30),
        ("5 min", 300),
        ("3d", 259200),
    ],
)
def test_a_duration_is_read(after, seconds) -> None:
    assert due.parse_tasks([{"name": "x", "after": after}])[0].after == seconds


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("look", "must be a mapping"),
        ({"after": 5}, "has no name"),
        ({"name": "x"}, "either after"),
        ({"name": "x", "after": 5, "at": "2026-12-01T09:00:00Z"}, "either after"),
        ({"name": "x", "after": "soon"}, "after must be"),
        ({"name": "x", "after": "1 month"}, "after must be"),
        ({"name": "x", "after": True}, "after must be"),
        ({"name": "x", "after": -1}, "after must be"),
        ({"name": "x", "at": "tomorrow"}, "at must be"),
        ({"name": "x", "after": 5, "command": "rm -rf x"}, "list of words"),
        ({"name": "x", "after": 5, "note": 5}, "note must be"),
        ({"name": "x", "after": 5, "who": "ann"}, "unknown key 'who'"),
    ],
)
def test_what_is_no_task_is_refused_in_a_sentence(item, said) -> None:
    with pytest.raises(Problem, match=said):
        due.parse_tasks([item])


def test_two_tasks_of_one_name_are_refused() -> None:
    with pytest.raises(Problem, match="twice"):
        due.parse_tasks([{"name": "x", "after": 1}, {"name": "x", "after": 2}])


def test_tasks_are_in_the_order_in_which_they_are_due() -> None:
    items = [
        {"name": "week", "after": "1 week"},
        {"name": "hour", "after": "1 hour"},
        {"name": "day", "at": "1970-01-01T12:00:00Z"},
    ]
    found = due.due_of(items, 0.0)
    assert [(entry["name"], entry["due"]) for entry in found] == [
        ("hour", "1970-01-01T01:00:00Z"),
        ("day", "1970-01-01T12:00:00Z"),
        ("week", "1970-01-08T00:00:00Z"),
    ]
    assert {entry["state"] for entry in found} == {"open"}


def test_overdue_is_what_nobody_did_in_time() -> None:
    (entry,) = due.due_of([{"name": "x", "after": 60, "command": ["manage.py", "check it"]}], 0.0)
    assert not due.is_overdue(entry, 59.0)
    assert due.is_overdue(entry, 60.0)
    assert "OVERDUE since 1970-01-01T00:01:00Z" in due.words(entry, 60.0)
    assert "command: manage.py 'check it'" in due.words(entry, 60.0)
    (failed,) = due.marked([entry], "x", state="failed", by="ann", remark="exit code 1", at="t")
    assert due.is_overdue(failed, 60.0)
    (done,) = due.marked([entry], "x", state="done", by="ann", remark="looked at it", at="t")
    assert not due.is_overdue(done, 60.0)
    assert due.words(done, 60.0) == "x: done at t by ann; looked at it"
    (again,) = due.marked([done], "x", state="open", by="ann", remark="", at="t")
    assert (again["state"], again["done_at"], again["done_by"]) == ("open", None, None)


def test_only_a_task_that_is_there_can_be_marked() -> None:
    entries = due.due_of([{"name": "x", "after": 60}], 0.0)
    with pytest.raises(Problem, match="no task 'y'; its tasks are: 'x'"):
        due.marked(entries, "y", state="done", by="", remark="", at="t")


@pytest.mark.parametrize("record", [None, {}, {"due": None}, {"due": "soon"}, {"due": [1, "x"]}])
def test_a_record_without_tasks_has_none(record) -> None:
    assert due.entries_of(record) == []
