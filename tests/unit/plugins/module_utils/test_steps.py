# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each host goes back to, and which steps that takes; what must never be taken, over all that can be decided."""

from __future__ import annotations

import itertools

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._steps import (
    STARTING,
    refusal,
    step_lines,
    steps_of,
    target_of,
    verdict_of,
)
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.deployed_host import (
    D1,
    D2,
    R1,
    R2,
    R3,
)

TARGET = {"release": R1, "deployment": D1, "version": "v1"}
UNDONE = {"id": D2, "release": R2}
HAS = {"releases": [{"name": R1}, {"name": R2}], "current": {"release": R2, "deployment": D2}}
NEW = {"releases": [{"name": R2}], "current": {"release": R2, "deployment": D2}}
# The record of a host that served something else before, as --limit left it out of the deployment of the target.
OTHER = {"release": R3, "deployment": "20260101T000000-0009"}
APART = {**NEW, "open_record": {"id": D2, "previous": OTHER}}
HERE = {"releases": [{"name": R3}], "current": OTHER}


@pytest.mark.parametrize(
    ("target", "state", "named", "expected"),
    [
        (TARGET, HAS, False, TARGET),
        (TARGET, NEW, False, {}),
        (TARGET, NEW, True, TARGET),
        (TARGET, APART, False, OTHER),
        (TARGET, {**APART, "open_record": {"id": D1, "previous": OTHER}}, False, {}),
        (TARGET, HERE, False, OTHER),
        (TARGET, {}, False, {}),
        ({"release": None, "deployment": "adopted"}, NEW, False, {"release": None, "deployment": "adopted"}),
        (None, HAS, False, {}),
        ({}, HERE, True, {}),
    ],
)
def test_what_a_host_goes_back_to(target, state, named, expected) -> None:
    assert target_of(target, state, UNDONE, named) == expected


def taken(level: str, states=None, target="before", code_first=False, **words):
    states = {"web1": HAS, "web2": HAS} if states is None else states
    plan = {
        "level": level,
        "target": TARGET if target == "before" else target,
        "unknown": [host for host, state in states.items() if not state],
        "code_first": code_first,
        "batches": words.pop("batches", [list(states)]),
    }
    targets, steps = steps_of(plan, states, "web1", UNDONE, **words)
    return targets, {name: step["hosts"] for name, step in steps.items() if step["hosts"]}, steps


def test_the_steps_come_in_the_order_in_which_they_are_taken() -> None:
    _targets, _hosts, steps = taken("code")
    assert list(steps) == [
        "beats_stopped",
        "migrations_first",
        "restore",
        "start",
        "beats_started",
        "stop",
        "migrations_after",
    ]
    assert all(bool(step["hosts"]) == bool(step["reason"]) for step in steps.values())


@pytest.mark.parametrize(
    ("level", "words", "expected"),
    [
        ("code", {}, {"start": ["web1", "web2"]}),
        (
            "code",
            {"beats_apart": True},
            {name: ["web1", "web2"] for name in ("beats_stopped", "start", "beats_started")},
        ),
        ("migrations", {}, {"migrations_first": ["web1"], "start": ["web1", "web2"]}),
        ("migrations", {"code_first": True}, {"start": ["web1", "web2"], "migrations_after": ["web1"]}),
        ("restore", {}, {"restore": ["web1", "web2"], "start": ["web1", "web2"]}),
        ("stop", {}, {}),
        ("flags", {"beats_apart": True}, {}),
        # A first deployment: nothing is left of it, whatever the level; with its features off it stays.
        ("abandon", {"target": None}, {"stop": ["web1", "web2"]}),
        ("stop", {"target": None}, {"stop": ["web1", "web2"]}),
        ("flags", {"target": None}, {}),
        ("code", {"states": {"web1": HAS, "web2": NEW}}, {"start": ["web1"], "stop": ["web2"]}),
        ("code", {"states": {"web1": HAS, "web2": None}}, {"start": ["web1"]}),
        # What is not known to stand still keeps the database: the step fails there.
        (
            "restore",
            {"states": {"web1": HAS, "web2": None}},
            {"restore": ["web1", "web2"], "start": ["web1"]},
        ),
    ],
)
def test_the_steps_of_a_level(level, words, expected) -> None:
    assert taken(level, **words)[1] == expected


def test_a_batch_is_of_hosts_that_start() -> None:
    steps = taken("code", {"web1": HAS, "web2": NEW, "web3": HAS}, batches=[["web2"], ["web1", "web3"]])[2]
    assert steps["start"]["batches"] == [["web1", "web3"]]
    assert taken("stop")[2]["start"]["batches"] == []


def test_with_its_features_off_the_release_stays_everywhere() -> None:
    targets = taken("flags", {"web1": HAS, "web2": NEW}, target=None)[0]
    assert targets == {host: {"release": R2, "deployment": D2} for host in ("web1", "web2")}


def test_what_is_never_done() -> None:
    levels = (*STARTING, "flags", "stop")
    kinds = (HAS, NEW, APART, HERE, None)
    for level, one, two, target, first, apart, named in itertools.product(
        levels, kinds, kinds, (TARGET, None), (True, False), (True, False), (True, False)
    ):
        states = {"web1": one, "web2": two}
        targets, hosts, _steps = taken(
            level, states, target, code_first=first, beats_apart=apart, named=named
        )
        silent = {host for host, state in states.items() if not state}
        assert not silent & {
            host for name, on in hosts.items() if name not in ("restore", "migrations_first") for host in on
        }
        assert not set(hosts.get("start", ())) & set(hosts.get("stop", ()))
        assert all(targets[host] for host in hosts.get("start", ()))
        assert not ({"migrations_first"} <= set(hosts) and "migrations_after" in hosts)
        assert ("restore" in hosts) == (level == "restore")
        assert bool({"migrations_first", "migrations_after"} & set(hosts)) <= (level == "migrations")
        # Nobody takes the schema away from under a host that may still serve what needs it.
        assert not (silent and "migrations_after" in hosts)
        if level == "flags" or (level == "stop" and target):
            assert hosts == {}
        if apart:
            assert set(hosts.get("beats_started", ())) == set(hosts.get("start", ()))
            assert set(hosts.get("beats_stopped", ())) >= set(hosts.get("start", ()))


@pytest.mark.parametrize(
    ("level", "unknown", "revert", "by_hand", "verdict"),
    [
        ("stop", [], ["web1"], False, "stopped"),
        ("stop", [], ["web1"], True, "stopped"),
        ("code", ["web2"], ["web1"], True, "stopped"),
        ("abandon", ["web2"], [], False, "stopped"),
        ("code", [], ["web1"], True, "success"),
        ("code", [], ["web1"], False, "rolled_back"),
        ("migrations", [], [], False, "rolled_back"),
        ("flags", [], ["web1"], False, "success"),
        ("abandon", [], [], False, "abandoned"),
        # Something was live, and goes.
        ("abandon", [], ["web1"], False, "rolled_back"),
    ],
)
def test_the_verdict_of_what_succeeds(level, unknown, revert, by_hand, verdict) -> None:
    assert verdict_of({"level": level, "unknown": unknown, "revert": revert}, by_hand) == verdict


@pytest.mark.parametrize(
    ("mode", "reason", "states", "said"),
    [
        ("", "", {"web1": HAS}, ""),
        ("emergency", "", {"web1": HAS, "web2": None}, ""),
        ("planned", "slow", {"web1": HAS}, ""),
        ("planned", "  ", {"web1": HAS}, "needs a reason"),
        ("quick", "", {"web1": HAS}, "expected planned or emergency"),
        ("", "", {"web1": None, "web2": HAS}, "The primary web1 does not answer"),
        ("", "", {}, "The primary web1 does not answer"),
    ],
)
def test_what_is_not_even_planned(mode, reason, states, said) -> None:
    found = refusal(mode, reason, "web1", states)
    assert said in found
    assert bool(found) == bool(said)
    assert not found or "nothing was changed" in found


def test_the_steps_in_words() -> None:
    assert step_lines(taken("code", batches=[["web1"], ["web2"]])[2]) == [
        "start the release before on web1, then web2: what was deployed is to serve no more"
    ]
    lines = step_lines(taken("migrations", beats_apart=True)[2])
    assert [line.split(" on ")[0] for line in lines] == [
        "stop the beats",
        "reverse the migrations",
        "start the release before",
        "start the beats",
    ]
    assert step_lines({}) == step_lines(taken("stop")[2]) == []
