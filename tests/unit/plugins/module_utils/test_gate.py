# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import itertools
import time

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._gate import (
    SEVERITIES,
    VERDICTS,
    check_result,
    gate_result,
    until,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem


def one(verdict: str, severity: str = "critical") -> list[dict]:
    return [check_result("a", verdict, severity)]


class Clock:
    """Time that only passes when somebody sleeps, or when a probe says that it took some."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_a_misspelt_verdict_or_severity_is_refused():
    with pytest.raises(ValueError, match="verdict"):
        check_result("a", "passed")
    with pytest.raises(ValueError, match="severity"):
        check_result("a", "pass", "warning")


@pytest.mark.parametrize(
    ("checks", "verdict", "degraded"),
    [
        ([], "inconclusive", 0),
        (["pass critical"], "pass", 0),
        (["pass minor"], "pass", 0),
        (["fail critical"], "fail", 0),
        (["pass critical", "fail critical"], "fail", 0),
        (["inconclusive critical"], "inconclusive", 0),
        (["pass critical", "inconclusive critical"], "inconclusive", 0),
        (["fail critical", "inconclusive critical"], "fail", 0),
        (["pass critical", "fail degraded", "fail minor"], "pass", 2),
        (["fail degraded"], "pass", 1),
        (["fail minor"], "pass", 1),
        (["pass critical", "inconclusive degraded"], "pass", 1),
        (["inconclusive degraded"], "inconclusive", 1),
        (["inconclusive minor", "inconclusive degraded"], "inconclusive", 2),
    ],
)
def test_the_verdict_of_checks_together(checks, verdict, degraded):
    made = [check_result(f"c{n}", *text.split()) for n, text in enumerate(checks)]
    found = gate_result(made)
    assert (found["verdict"], len(found["degraded"])) == (verdict, degraded)
    assert found["passed"] is (verdict == "pass")
    assert "failed" not in found, "a module that answers with this key would count as failed"


def test_no_set_of_checks_passes_with_a_critical_one_that_did_not():
    kinds = list(itertools.product(VERDICTS, SEVERITIES))
    for size in (1, 2, 3):
        for chosen in itertools.combinations_with_replacement(kinds, size):
            found = gate_result([check_result(f"c{n}", *kind) for n, kind in enumerate(chosen)])
            critical = [verdict for verdict, severity in chosen if severity == "critical"]
            if found["passed"]:
                assert set(critical) <= {"pass"}
                assert any(verdict != "inconclusive" for verdict, _severity in chosen)
            else:
                assert set(critical) - {"pass"} or all(verdict == "inconclusive" for verdict, _s in chosen)


@pytest.mark.parametrize(
    "pattern", ["p", "fp", "pfp", "ppf", "fffpfpp", "pfpfpf", "ipp", "ppp", "pipip", "f", "i"]
)
@pytest.mark.parametrize("successes", [1, 2, 3])
@pytest.mark.parametrize("interval", [0, 0.7, 2])
def test_successes_must_be_consecutive_and_in_time(pattern, successes, interval):
    """Compared with the plain meaning: some run of *successes* passes that ends before the deadline."""
    clock = Clock()
    verdicts = {"p": "pass", "f": "fail", "i": "inconclusive"}
    asked: list[str] = []
    deadline, took = 6.0, 0.2

    def probe(left: float) -> list[dict]:
        assert 0 < left <= deadline
        asked.append(pattern[len(asked) % len(pattern)])
        clock.now += took
        return one(verdicts[asked[-1]])

    found = until(
        probe, successes=successes, interval=interval, deadline=deadline, clock=clock, sleep=clock.sleep
    )
    text = "".join(asked)
    possible = (pattern * 400)[: int(deadline / (took + max(interval, 0.01))) + 1]
    assert found["passed"] is text.endswith("p" * successes)
    assert found["passed"] or "p" * successes not in text
    if found["passed"]:
        assert text.find("p" * successes) == len(text) - successes, "it must end as soon as it has passed"
    else:
        assert len(text) >= len(possible) - 1, "it must not give up early"
        assert found["checks"][0]["verdict"] != "pass" or found["verdict"] == "inconclusive"
        assert found["reason"]
    assert clock.now - 1000 <= deadline + took
    assert found["attempts"] == len(asked)


def test_an_attempt_cut_short_does_not_hide_the_reason():
    clock = Clock()

    def probe(left: float) -> list[dict]:
        if clock.now < 1001:
            clock.now += 0.5
            return [check_result("a", "fail", message="it answered 500")]
        clock.now += left + 0.1
        return [check_result("a", "inconclusive", message="no time left")]

    found = until(probe, interval=1, deadline=5, clock=clock, sleep=clock.sleep)
    assert (found["verdict"], found["checks"][0]["message"]) == ("fail", "it answered 500")
    assert found["attempts"] == 2


def test_no_attempt_is_begun_that_cannot_end_in_time():
    clock = Clock()
    lefts: list[float] = []

    def probe(left: float) -> list[dict]:
        lefts.append(left)
        clock.now += 2
        return one("pass")

    found = until(probe, successes=9, interval=0.5, deadline=6, clock=clock, sleep=clock.sleep)
    assert (len(lefts), found["verdict"]) == (2, "inconclusive")


def test_a_wrong_answer_is_not_asked_for_until_the_deadline():
    clock = Clock()
    asked = []
    answer = until(
        lambda left: asked.append(clock.now) or one("fail"),
        interval=1,
        deadline=300,
        patience=5,
        clock=clock,
        sleep=clock.sleep,
    )
    assert (answer["verdict"], answer["attempts"], len(asked)) == ("fail", 6, 6)
    assert "within 5 s" in answer["reason"]


def test_what_cannot_be_asked_yet_is_not_a_matter_of_patience():
    clock = Clock()
    answer = until(
        lambda left: one("pass" if clock.now >= 1030 else "inconclusive"),
        interval=1,
        deadline=60,
        patience=5,
        clock=clock,
        sleep=clock.sleep,
    )
    assert answer["passed"] and answer["attempts"] == 31


def test_a_pass_after_the_deadline_does_not_count():
    clock = Clock()

    def probe(left: float) -> list[dict]:
        clock.now += left + 0.1
        return one("pass")

    found = until(probe, deadline=5, clock=clock, sleep=clock.sleep)
    assert (found["passed"], found["verdict"], found["streak"]) == (False, "inconclusive", 0)


def test_too_few_successes_in_the_time_are_inconclusive_not_failed():
    found = until(lambda left: one("pass"), successes=100, interval=0.05, deadline=0.2)
    assert (found["passed"], found["verdict"]) == (False, "inconclusive")
    assert "raise the deadline" in found["reason"]


def test_a_probe_that_never_returns_is_abandoned_in_time():
    begun = time.monotonic()
    found = until(lambda left: time.sleep(5) or one("pass"), deadline=0.3)
    assert time.monotonic() - begun < 1.3
    assert (found["passed"], found["verdict"]) == (False, "inconclusive")
    assert "did not return" in found["checks"][0]["message"]


def test_a_gate_without_checks_never_passes():
    found = until(lambda left: [], interval=0.05, deadline=0.2)
    assert (found["passed"], found["verdict"]) == (False, "inconclusive")


def test_what_a_probe_raises_reaches_the_caller():
    def probe(left: float) -> list[dict]:
        raise Problem("the check is not well written")

    with pytest.raises(Problem, match="not well written"):
        until(probe, deadline=5)


@pytest.mark.parametrize(
    "numbers",
    [
        {"successes": 0},
        {"deadline": 0},
        {"deadline": float("nan")},
        {"deadline": float("inf")},
        {"interval": -1},
    ],
)
def test_numbers_that_would_prove_nothing_are_refused(numbers):
    with pytest.raises(Problem, match="A gate needs"):
        until(lambda left: one("pass"), **numbers)
