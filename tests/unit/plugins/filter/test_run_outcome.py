# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a run ended, from what each host remembers of it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.filter.run_outcome import run_outcome

RECORD = {"id": "20260101T000000-0000", "about": {"version": "v2.7"}}
PLAN = {
    "level": "code",
    "verdict": "rolled_back",
    "reason": "No migration was applied.",
    "again": ["a command"],
}


def failure(host: str, phase: str = "migrate") -> dict[str, Any]:
    return {"host": host, "phase": phase, "reason": f"{phase} failed on {host}"}


def ended(*remembered: dict[str, Any], **given: Any) -> dict[str, Any]:
    """The outcome of a run over hosts web1, web2, … that remember what is given."""
    hosts = [
        {"inventory_hostname": f"web{number}", **memory}
        for number, memory in enumerate(remembered or ({},), 1)
    ]
    return run_outcome(hosts, **{"primary": "web1", **given})


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({}, "no_change"),
        ({"check_mode": True}, "checked"),
        ({"record": RECORD}, "success"),
        ({"failures": [failure("web1", "preflight")]}, "refused"),
        ({"failures": [failure("web1")], "record": RECORD, "plan": PLAN}, "rolled_back"),
        # Without a plan nobody knows what is live.
        ({"failures": [failure("web1")], "record": RECORD}, "stopped"),
        (
            {
                "failures": [failure("web1")],
                "record": RECORD,
                "plan": {**PLAN, "level": "flags", "verdict": "success"},
            },
            "flags_off",
        ),
    ],
)
def test_the_verdict(given, verdict) -> None:
    assert ended(**given)["verdict"] == verdict


def test_a_way_back_that_failed_needs_a_person_and_shows_how_to_go_on() -> None:
    own = failure("web2", "rollback: code")
    found = ended({}, {"rollback_failure": own}, failures=[failure("web1")], record=RECORD, plan=PLAN)
    assert found["verdict"] == "stopped"
    assert found["failures"] == [failure("web1"), own]
    assert found["plan"]["commands"] == ["a command"]


def test_a_host_that_is_silent_after_its_own_failure_is_told_once() -> None:
    silent = [{"rollback_silent": failure(name, "rollback: measure")} for name in ("web1", "web2")]
    found = ended(*silent, failures=[failure("web1")], record=RECORD, plan=PLAN)
    assert [entry["host"] for entry in found["failures"]] == ["web1", "web2"]


def test_all_hosts_refuse_the_same_and_it_is_said_once() -> None:
    refusals = [{"rollback_refused": failure(name, "rollback: plan")} for name in ("web1", "web2")]
    found = ended(*refusals, plan=PLAN)
    assert found["failures"] == [failure("web1", "rollback: plan")]
    assert found["verdict"] == "refused" and "commands" not in found["plan"]


@pytest.mark.parametrize(
    ("counted", "reason"),
    [
        ({"lost": 3, "msg": "3 rows would be lost."}, "No migration was applied. 3 rows would be lost."),
        ({"lost": 3, "msg": "It broke.", "failed": True}, "No migration was applied."),
        ({"skipped": True, "msg": ""}, "No migration was applied."),
    ],
)
def test_what_would_be_lost_is_part_of_the_reason(counted, reason) -> None:
    plan = ended({"rollback_counted": counted}, plan=PLAN, omitted=["no drain"])["plan"]
    assert plan["reason"] == reason and plan["left_out"] == ["no drain"]


def test_the_record_is_the_primarys_or_what_the_run_knows_itself() -> None:
    kept = {"id": RECORD["id"], "verdict": "success"}
    assert ended({"rollback_finished": {"record": kept}}, record=RECORD)["record"] == kept
    assert ended({}, {"rollback_finished": {"record": kept}}, record={})["record"] == {}
    lost = ended({}, record=RECORD, plan=PLAN, failures=[failure("web1")])["record"]
    assert lost == {
        "version": "v2.7",
        "id": RECORD["id"],
        "host": "web1",
        "primary": True,
        "verdict": None,
        "failures": [failure("web1")],
        "decision": {"level": "code", "reason": "No migration was applied."},
    }


def test_hosts_that_are_out_of_the_load_balancer_are_told() -> None:
    undrained, still = failure("web1", "load balancer"), failure("web2", "load balancer")
    found = ended({"rollback_undrained": undrained, "restart_left_out": {}}, {"restart_left_out": still})
    assert found["left_out"] == [undrained, still] and found["verdict"] == "no_change"
