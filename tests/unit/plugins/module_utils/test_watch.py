# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What triggers and what does not, over sequences of answers, and against a server that breaks while it is watched."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _watch
from ansible_collections.runbook.deploy.plugins.module_utils._gate import check_result
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.faulty_server import FaultyServer
from hypothesis import given, settings
from hypothesis import strategies as st

WORDS = {"p": "pass", "f": "fail", "i": "inconclusive"}


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def run(answers: str, severity: str = "critical", **more: Any) -> dict[str, Any]:
    """Watch one check that gives *answers*, a letter each round, ten seconds apart."""
    clock, left = Clock(), list(answers)

    def probe(seconds: float) -> list[dict[str, Any]]:
        verdict = WORDS[left.pop(0)]
        return [
            check_result(
                "home", verdict, severity, "seen", "wished", "" if verdict == "pass" else "Home is wrong."
            )
        ]

    numbers = {
        "duration": 10.0 * (len(answers) - 1) + 1,
        "interval": 10.0,
        "failures": 3,
        "unknowns": 4,
        **more,
    }
    return _watch.watch(probe, clock=clock, sleep=clock.sleep, **numbers)


@pytest.mark.parametrize(
    ("answers", "verdict", "rounds"),
    [
        ("pppppp", "pass", 6),
        ("pffpffp", "pass", 7),
        ("pfffpp", "fail", 4),
        ("fff", "fail", 3),
        # What could not be asked neither ends a row of failures nor is one.
        ("pfifipf", "fail", 7),
        ("ffifpp", "fail", 4),
        ("ffipp", "pass", 5),
        ("iiipiiip", "pass", 8),
        ("piiiipp", "inconclusive", 5),
        # The window does not close over what just began.
        ("ppppf", "fail", 5),
        ("pppi", "inconclusive", 4),
    ],
)
def test_what_triggers(answers, verdict, rounds):
    found = run(answers)
    assert (found["verdict"], found["attempts"]) == (verdict, rounds), found
    assert found["passed"] == (verdict == "pass")


@settings(max_examples=300, deadline=None)
@given(st.text("pfi", min_size=1, max_size=25), st.integers(1, 5), st.integers(1, 5))
def test_against_a_plain_reference(answers, failures, unknowns):
    """Triggered at the first round that ends a row of failures (without the silent ones) or of silence."""
    expected, rounds = "", len(answers)
    for end in range(1, len(answers) + 1):
        told = answers[:end].replace("i", "")
        if len(told) - len(told.rstrip("f")) >= failures and answers[:end].rstrip("i").endswith("f"):
            # The row counts when its last failure comes, not in the silence after it.
            expected, rounds = "fail", len(answers[:end].rstrip("i"))
            break
        if len(answers[:end]) - len(answers[:end].rstrip("i")) >= unknowns:
            expected, rounds = "inconclusive", end
            break
    found = run(answers, failures=failures, unknowns=unknowns)
    assert found["attempts"] == rounds
    assert found["verdict"] == (expected or WORDS[answers[-1]])


def test_a_trigger_says_since_when_and_what():
    found = run("ppfff")
    assert found["checks"][0]["message"] == "Home is wrong. It failed 3 times in a row, for 20 s."
    assert found["reason"] == "Triggered after 40 s of 41 s."
    assert found["rows"] == [
        {"name": "home", "asked": 5, "failed": 3, "inconclusive": 0, "longest_failure": 3, "share": 0.4}
    ]


def test_lower_severities_trigger_nothing():
    found = run("ffffff", severity="degraded")
    assert (found["passed"], found["attempts"], found["degraded"]) == (True, 6, ["home"])


def test_the_share_of_what_was_never_asked_is_unknown():
    assert run("iii")["rows"][0]["share"] is None
    assert run("ppfp")["rows"][0]["share"] == 0.75


@pytest.mark.parametrize("number", ["duration", "interval", "failures", "unknowns", "timeout"])
def test_numbers_that_make_no_sense(number):
    with pytest.raises(Problem, match=number):
        run("p", **{number: 0})


@pytest.fixture
def server():
    with FaultyServer() as running:
        yield running


def perform(server: FaultyServer, **given: Any) -> dict[str, Any]:
    options = {name: spec.get("default") for name, spec in _watch.OPTIONS.items()}
    options.update(address=server.address, duration=1.2, interval=0.1, timeout=0.5, failures=3, unknowns=3)
    return _watch.perform({**options, **given}, False, lambda message: None)


def test_a_healthy_server_is_watched_to_the_end(server):
    found = perform(
        server, checks=[{"url": "/ok"}], gates=[{"disk": "/", "free": "> 1KB", "moments": ["watch"]}]
    )
    assert found["passed"] and found["attempts"] >= 5
    assert [row["name"] for row in found["rows"]] == ["GET /ok", "disk /"]
    assert all(row["failed"] == 0 for row in found["rows"])


def test_a_server_that_dies_while_it_is_watched(server):
    threading.Timer(0.4, server.__exit__).start()
    begun = time.monotonic()
    with pytest.raises(Problem) as ended:
        perform(server, checks=[{"url": "/ok"}], duration=30.0)
    assert time.monotonic() - begun < 5
    assert "It failed 3 times in a row" in ended.value.message


def test_a_server_that_hangs_does_not_hold_up_the_watch(server):
    begun = time.monotonic()
    with pytest.raises(Problem, match="in a row"):
        perform(server, checks=[{"url": "/hang"}], duration=30.0, timeout=0.3)
    assert time.monotonic() - begun < 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "nothing to watch"),
        ({"checks": [{"url": "/ok", "method": "POST"}]}, "may only read"),
        ({"checks": [{"url": "/ok"}], "address": None}, "give app_url"),
        ({"gates": [{"disk": "/"}]}, "expects nothing"),
        ({"checks": [{"url": "/ok", "contains": "{release}"}]}, "no release was given"),
    ],
)
def test_what_cannot_be_watched_is_refused(server, given, said):
    with pytest.raises(Problem) as refused:
        perform(server, **given)
    assert said in refused.value.message
