# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what a person reads at the end of a run."""

from __future__ import annotations

from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._report import (
    failure_lines,
    host_sentence,
    markdown,
    rehearsed,
    status,
    terminal,
)


def service(name: str = "web", **fields: Any) -> dict[str, Any]:
    kind = {"running": True, "answers": True, "foreign": None, "release": "r1", "deployment": "d1", "pid": 7}
    return {"name": name, "instances": [{"deployment": "d1"}], **kind, **fields}


def state(*services: dict[str, Any], **fields: Any) -> dict[str, Any]:
    current = {"release": "r1", "deployment": "d1", "version": "v1", "commit": "c" * 40}
    return {"current": current, "services": list(services), "problems": [], "warnings": [], **fields}


def shown(found: dict[str, Any] | None) -> str:
    facts = {"application": "shop", "stage": "test", "root": "/srv/shop", "primary": "web1"}
    return "\n".join(status({**facts, "states": {"web1": found}}))


def test_only_a_web_service_answers_the_others_run() -> None:
    words = host_sentence(state(service(), service("worker", answers=None)))
    assert words.endswith("web answers, worker runs")
    words = host_sentence(state(service(answers=False), service("worker", answers=None, running=False)))
    assert words.endswith("web does not answer, worker does not run")


def test_a_stranger_at_the_address_is_no_answer_of_ours() -> None:
    found = service(foreign="pid 9: nc -l", running=False, release=None)
    assert "the address of web is held by pid 9: nc -l" in host_sentence(state(found))
    assert shown(state(found)).splitlines()[2].split()[-4:] == ["no", "-", "d1", "7"]


def test_nothing_needs_attention_only_when_all_is_as_it_should_be() -> None:
    assert "nothing needs attention." in shown(state(service(), service("worker", answers=None)))


def test_what_is_down_needs_attention() -> None:
    text = shown(state(service(answers=False, running=False), service("worker", answers=None, running=False)))
    assert "nothing needs attention." not in text
    assert "web1: web does not answer; worker does not run: playbooks/rollback.yml --tags restart" in text


def test_a_lost_link_current_needs_attention() -> None:
    text = shown(state(service(), current=None))
    assert "the link current names no release" in text
    assert "nothing needs attention." in shown(state(service(running=False, answers=False), current=None))


def ended(failure: dict[str, Any]) -> str:
    facts = {"application": "shop", "stage": "test", "verdict": "refused", "states": {"web1": None}}
    return "\n".join(terminal({**facts, "failures": [{"host": "web1", "phase": "preflight", **failure}]}))


def test_a_host_that_refused_is_not_called_silent() -> None:
    assert "does not answer" not in ended({"reason": "app_version 'v9' is no tag.", "unreachable": False})
    assert "unknown: it does not answer" in ended({"reason": "no route", "unreachable": True})


def test_a_held_lock_names_the_playbooks_that_go_on() -> None:
    text = shown(state(service(), lock={"message": "The lock is held; take over with -e x=true."}))
    assert "take over with -e x=true. With it, playbooks/rollback.yml takes that run back" in text


def test_the_adopted_installation_serves_where_nothing_of_ours_does() -> None:
    old = {"service": "old.service", "path": "/opt/shop", "active": True}
    quiet = service(running=False, answers=False, release=None, deployment=None, pid=None)
    found = state(quiet, current=None, adopted=old)
    assert host_sentence(found) == "serves the adopted installation"
    assert "web1  the adopted installation  old.service  yes  -     adopted" in shown(found)
    assert "nothing needs attention." in shown(found)
    stopped = state(quiet, current=None, adopted={**old, "active": False})
    assert "serves nothing" in host_sentence(stopped)


def told(kind: str = "done", **result: Any) -> tuple[str, str]:
    """The terminal's lines and the report of a rollback whose restore answered *result*."""
    phases = [{"phase": "restore", "state": kind, "result": result, "begun": "t"}]
    facts = {
        "application": "shop",
        "stage": "test",
        "verdict": "success",
        "record": {"id": "r", "phases": phases},
    }
    return "\n".join(terminal(facts)), markdown(facts)


def test_a_restore_says_what_it_lost_and_where_the_former_database_is() -> None:
    lost = {"notes": {"inserts": 3, "updates": 1, "deletes": 0}}
    for text in told(restored="b1", kept="shop_broken_1", safety="b2", lost=lost):
        assert "backup b1" in text
        assert "notes: 3 inserts, 1 update" in text
        assert "the database before, as shop_broken_1, and as backup b2" in text
    assert "no write: there was none" in told(restored="b1", kept=None, safety=None, lost={})[0]


def test_without_a_restore_nothing_is_said_of_one() -> None:
    for text in (*told("failed"), *told("failed", restored="b1", lost={})):
        assert "kept" not in text
        assert "backup b1" not in text


def test_what_a_rehearsal_found_is_a_cell() -> None:
    found = {"forward_seconds": 1.23, "backward_seconds": 0.5, "schema": [], "rows": []}
    assert rehearsed({}) == "not rehearsed"
    assert rehearsed({"rehearsed": found}) == "forward 1.2 s, back 0.5 s: all as before"
    lost = {**found, "rows": ["table notes: 1 rows, was 2 rows"]}
    assert (
        rehearsed({"rehearsed": lost})
        == "forward 1.2 s, back 0.5 s: differs (table notes: 1 rows, was 2 rows)"
    )
    assert rehearsed({"rehearsed": {**found, "backward_seconds": None}}) == "forward 1.2 s, back: not tried"
    failed = {**found, "backward_seconds": None, "failed": "no way back"}
    assert rehearsed({"rehearsed": failed}) == "forward 1.2 s, back: no way back"
    migration = {"app": "a", "name": "b", "reversible": "no", "compatible": "yes", "destructive": "yes"}
    facts = {"verdict": "success", "application": "shop", "stage": "test"}
    text = markdown({**facts, "record": {"plan": {"migrations": [{**migration, "rehearsed": lost}]}}})
    assert "differs (table notes: 1 rows, was 2 rows)" in text


def test_sign_offs_have_blanks_and_who_could_not_be_told_is_there() -> None:
    record = {
        "id": "20261121T013700-ab12",
        "outside_window": "the shop is down",
        "approvals": [
            {"role": "tech_lead", "name": "ann", "at": "2026-11-21T01:36:58Z"},
            {"role": "dba", "name": None, "at": None},
        ],
        "notifications": [
            {
                "event": "start",
                "sent": ["ops"],
                "unsent": [{"name": "on call", "message": "It was not sent."}],
            }
        ],
    }
    text = markdown({"verdict": "success", "application": "shop", "stage": "test", "record": record})
    assert "| tech_lead | ann | 2026-11-21T01:36:58Z |" in text
    assert "| dba | ______________ | ______________ |" in text
    assert "| outside the window | the shop is down |" in text
    assert "| start | ops | sent |" in text
    assert "| start | on call | It was not sent. |" in text
    bare = markdown({"verdict": "success", "application": "shop", "stage": "test", "record": {}})
    assert "Sign-offs" not in bare
    assert "Notifications" not in bare
    assert "window" not in bare


def test_the_copy_of_a_backup_is_named_and_so_is_that_there_is_none() -> None:
    facts = {"application": "shop", "stage": "test", "verdict": "success"}
    store = {
        "location": "s3://backups/shop/test/b1/db.dump",
        "endpoint": "https://s3.example.org",
        "verified_at": "t",
    }
    record = {"id": "r", "backup": {"id": "b1", "store": store}}
    assert "s3://backups/shop/test/b1/db.dump" in markdown({**facts, "record": record})
    record = {"id": "r", "backup": {"id": "b1", "store": None, "degraded": "The bucket is full."}}
    assert "DEGRADED: there is no copy" in markdown({**facts, "record": record})
    assert "  DEGRADED  no copy of the backup: The bucket is full." in terminal({**facts, "record": record})


def test_a_task_that_is_overdue_needs_attention_until_it_is_done() -> None:
    task = {"name": "look", "due": "2026-01-01T00:00:00Z", "state": "open", "command": [], "note": ""}
    record = {
        "id": "r",
        "verdict": "success",
        "due": [task, {**task, "due": "2999-01-01T00:00:00Z", "name": "later"}],
    }
    text = shown(state(service(), record=record))
    assert "look: OVERDUE since 2026-01-01T00:00:00Z; mark it with playbooks/due.yml." in text
    assert "later" not in text
    done = {**record, "due": [{**task, "state": "done"}]}
    assert "nothing needs attention." in shown(state(service(), record=done))


def test_evidence_that_the_reason_quotes_is_not_shown_a_second_time():
    failure = {
        "phase": "smoke_test",
        "host": "web1",
        "reason": "The gate did not pass. Check 'health' failed: 404.",
    }
    evidence = "Check 'health' failed: 404.\nits log: KeyError"
    assert failure_lines([{**failure, "evidence": evidence}]) == [
        "smoke_test on web1: The gate did not pass. Check 'health' failed: 404.",
        "    its log: KeyError",
    ]
