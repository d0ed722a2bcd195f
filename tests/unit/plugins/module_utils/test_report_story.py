# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report as a whole, in the order in which it is read, and its parts."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _report_story as story
from ansible_collections.runbook.deploy.plugins.module_utils._due import due_of
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._report import markdown, terminal

CONTACTS = [
    {"role": "tech lead", "name": "Ann", "contact": "+49 30 1"},
    {"role": "owner", "name": "Bob", "contact": "bob@example.org"},
]


def check(name: str, observed: Any, verdict: str = "pass", **fields: Any) -> dict[str, Any]:
    found = {
        "name": name,
        "verdict": verdict,
        "severity": "critical",
        "observed": observed,
        "expected": "< 500",
    }
    return {**found, "message": "", "seconds": 0.1, **fields}


def phase(name: str, at: str, state: str = "done", seconds: float = 1.5) -> dict[str, Any]:
    moment = f"2026-11-21T02:{at}Z"
    return {
        "phase": name,
        "state": state,
        "begun": moment,
        "finished": moment,
        "seconds": seconds,
        "result": {},
        "message": "",
    }


def facts(verdict: str = "rolled_back", **changes: Any) -> dict[str, Any]:
    record = {
        "id": "20261121T020000-bbbb",
        "version": "v2",
        "commit": "b" * 40,
        "operator": "ann",
        "controller": "ci1",
        "begun": "2026-11-21T02:00:00Z",
        "traffic_taken": "2026-11-21T02:01:05Z",
        "finished": "2026-11-21T02:02:35Z",
        "verdict": verdict,
        "phases": [phase("backup", "00:30"), phase("restart", "01:10"), phase("watch", "02:00", "failed")],
        "approvals": [
            {"role": "tech_lead", "name": "ann", "at": "t"},
            {"role": "qa", "name": None, "at": None},
        ],
        "gates": {
            "preflight": [
                check("disk", 40),
                check("old", 1, "fail", waived={"approver": "eve", "until": "2026-12-31", "reason": "known"}),
            ],
            "watch": [check("p95 ms", 900, "fail")],
        },
        "backup": {"id": "b1", "sha256": "f" * 64, "path": "/srv/shop/backups/b1"},
        "notifications": [{"event": "start", "sent": ["ops"], "unsent": []}],
        "due": due_of([{"name": "look", "after": "1 day", "command": ["manage.py", "check"]}], 0.0),
        **changes.pop("record", {}),
    }
    return {
        "verdict": verdict,
        "kind": "deployment",
        "application": "shop",
        "stage": "production",
        "record": record,
        "failures": [{"host": "web1", "phase": "watch", "reason": "p95 is 900 ms."}],
        "plan": {"level": "code", "reason": "It helps."},
        "contacts": CONTACTS,
        "forecast": [{"phase": "watch", "level": "code", "reason": "The schema fits."}],
        "before": {"id": "20261120T020000-aaaa", "version": "v1", "gates": {"watch": {"p95 ms": "120"}}},
        **changes,
    }


def test_the_verdict_is_first_and_the_parts_are_in_their_order() -> None:
    text = markdown(facts())
    assert text.startswith("# Failed, and taken back: v2 of shop (production)\n")
    assert re.findall(r"^## (.*)$", text, re.M) == [
        "What failed",
        "Rollback decision",
        "Incident",
        "Escalation",
        "What would have been done, decided before the start",
        "Timeline",
        "Deployment log",
        "Gates",
        "Backup",
        "Due later",
        "Sign-offs",
        "Notifications",
    ]


def test_a_success_has_neither_an_incident_nor_contacts() -> None:
    text = markdown(facts("success", failures=[], plan={}))
    assert "## Incident" not in text and "## Escalation" not in text
    assert "- Issues: none" in text and "- Rollback: no" in text


def test_the_log_counts_from_the_switch() -> None:
    lines = story.log_lines(facts())
    listed = [line for line in lines if re.match(r"- T[+-]", line)]
    assert listed == [
        "- T-1:05 begin",
        "- T-0:35 backup done after 1.5 s",
        "- T+0:00 the new release takes traffic",
        "- T+0:05 restart done after 1.5 s",
        "- T+0:55 watch failed after 1.5 s",
        "- T+1:30 end: rolled_back",
    ]
    assert "- Date: 2026-11-21, 02:00:00 UTC" in lines
    assert "- [x] gates before the start: 1 of 2 checks passed, 1 waived" in lines
    assert "- [x] backup b1: /srv/shop/backups/b1" in lines
    assert "- [x] approved as tech_lead: ann" in lines
    assert "- [ ] approved as qa: ______________" in lines
    assert "- [x] told of the start: ops" in lines
    assert "- Issues: watch on web1: p95 is 900 ms." in lines
    assert "- Rollback: yes, level code: It helps." in lines


def test_without_a_switch_the_log_counts_to_the_end() -> None:
    found = facts("abandoned", record={"traffic_taken": None, "backup": {}})
    lines = story.log_lines(found)
    assert "- T-2:35 begin" in lines and "- T+0:00 end: abandoned" in lines
    assert "- [ ] backup: none was taken" in lines
    assert "- Rollback: no" in lines
    assert story.log_lines(facts(record={"begun": None})) == []


def test_values_stand_beside_those_of_the_deployment_before() -> None:
    lines = story.gate_lines(facts()["record"]["gates"], facts()["before"])
    assert "| when | check | verdict | severity | observed | in 20261120T020000-aaaa | expected |" in lines
    assert "| watch | p95 ms | fail | critical | 900 | 120 | < 500 |" in lines
    assert "| preflight | disk | pass | critical | 40 | - | < 500 |" in lines
    assert (
        "| preflight | old | fail, waived by eve until 2026-12-31: known | critical | 1 | - | < 500 |"
        in lines
    )
    assert "in 2026" not in "\n".join(story.gate_lines(facts()["record"]["gates"], {}))
    assert story.gate_lines({"watch": []}, {}) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "performance"),
        ({"failures": [{"phase": "restart"}], "record": {"phases": []}}, "system_failure"),
        ({"failures": [{"phase": "migrate"}], "record": {"phases": []}}, "data_integrity"),
        ({"failures": [{"phase": "rollback: reverse"}]}, "data_integrity"),
        ({"plan": {"level": "restore", "reason": "x"}}, "data_integrity"),
        ({"record": {"half_done": ["shop", "0002"]}}, "data_integrity"),
        ({"failures": [], "record": {"phases": []}}, ""),
    ],
)
def test_the_class_of_an_incident_is_suggested(changes: dict[str, Any], expected: str) -> None:
    assert story.incident_class(facts(**changes)) == expected


def test_an_incident_has_its_headings_and_what_is_known() -> None:
    text = "\n".join(story.incident_lines(facts()))
    assert "| class | performance (suggested; others: security, data integrity, system failure) |" in text
    assert (
        "| what was refused was live | 2026-11-21T02:01:05Z to 2026-11-21T02:02:35Z, 90 s at most |" in text
    )
    for heading in ("### Impact", "### Root cause", "### What is done so that it does not happen again"):
        assert heading in text
    assert "| class | security |" in "\n".join(story.incident_lines(facts(incident="security")))


@pytest.mark.parametrize("verdict", ["success", "no_change", "checked", "refused", "abandoned"])
def test_where_nothing_live_went_wrong_there_is_no_incident(verdict: str) -> None:
    assert story.incident_lines(facts(verdict)) == []


def test_a_rollback_by_hand_is_an_incident_and_names_what_it_took_back() -> None:
    found = facts(
        "success",
        kind="rollback",
        failures=[],
        record={"undoes": "20261120T020000-aaaa", "traffic_taken": None},
    )
    text = "\n".join(story.incident_lines(found))
    assert "| taken back deployment | 20261120T020000-aaaa |" in text
    assert "| service restored at | 2026-11-21T02:02:35Z |" in text
    assert story.contact_lines(found)


def test_contacts_are_in_the_order_of_calls_and_on_the_terminal_where_a_person_is_needed() -> None:
    lines = story.contact_lines(facts("stopped"))
    assert lines[-2:] == ["| 1 | tech lead | Ann | +49 30 1 |", "| 2 | owner | Bob | bob@example.org |"]
    assert "  call      tech lead: Ann, +49 30 1" in terminal(facts("stopped"))
    assert not any("call" in line for line in terminal(facts("rolled_back")))


def test_what_is_due_later_is_a_table() -> None:
    assert "| 1970-01-02T00:00:00Z | look | manage.py check | - | open |" in story.due_lines(
        facts()["record"]
    )
    assert story.due_lines({}) == []


def test_a_tag_that_was_not_pushed_is_said_at_the_end_and_in_the_report() -> None:
    failed = {
        "name": "deployed/v2",
        "state": "failed",
        "message": "The tag 'deployed/v2' was not pushed: a hook.",
    }
    found = facts("success", record={"release_tag": failed})
    assert "  TAG       The tag 'deployed/v2' was not pushed: a hook." in terminal(found)
    assert "| release tag | The tag 'deployed/v2' was not pushed: a hook. |" in markdown(found)
    there = facts("success", record={"release_tag": {**failed, "state": "there", "message": ""}})
    assert "  tag       deployed/v2" in terminal(there)
    assert "| release tag | deployed/v2, which was there already |" in markdown(there)
    assert "release tag" not in markdown(facts())


@pytest.mark.parametrize("verdict", ["success", "rolled_back", "stopped", "failed", "refused", "abandoned"])
def test_a_record_with_next_to_nothing_can_be_reported(verdict: str) -> None:
    bare = {"verdict": verdict, "application": "shop", "stage": "test", "contacts": CONTACTS}
    assert markdown({**bare, "record": {}})
    assert markdown(
        {
            **bare,
            "record": {
                "id": "x",
                "begun": "2026-11-21T02:00:00Z",
                "phases": [phase("backup", "00:30", seconds=None)],
            },
        }
    )
    assert markdown({**bare, "kind": "rollback", "record": {"id": "x", "begun": "2026-11-21T02:00:00Z"}})


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("ann", "must be a mapping"),
        ({"role": "x", "name": "y"}, "contact must be a text"),
        ({"role": "x", "name": "y", "contact": 5}, "contact must be a text"),
        ({"role": "x", "name": "y", "contact": "z", "phone": "1"}, "unknown key 'phone'"),
    ],
)
def test_what_is_no_contact_is_refused(item: Any, said: str) -> None:
    with pytest.raises(Problem, match=said):
        story.parse_contacts([item])
    assert story.parse_contacts(CONTACTS) == CONTACTS
