# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The result that every gate answers with, and waiting until one passes.

The contract is in docs/internals.md, "The gate contract".

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

PASS = "pass"
FAIL = "fail"
INCONCLUSIVE = "inconclusive"
VERDICTS = (PASS, FAIL, INCONCLUSIVE)
SEVERITIES = ("critical", "degraded", "minor")
# A gate may outlive its deadline by one second; a probe is abandoned before that is used up.
GRACE = 0.5
# A probe that answers at once must not become a busy loop, whatever interval was asked for.
SHORTEST_PAUSE = 0.01


def check_result(
    name: str,
    verdict: str,
    severity: str = "critical",
    observed: str = "",
    expected: str = "",
    message: str = "",
    seconds: float = 0.0,
    **extra: Any,
) -> dict[str, Any]:
    """Return one entry of a gate's ``checks``.

    :param verdict: ``pass``, ``fail``, or ``inconclusive`` when the probe could not run.
    :param severity: ``critical``, ``degraded`` or ``minor``.
    :param message: one sentence for the operator; "" for a check that passed.
    :param seconds: how long the check took.
    :param extra: further keys, such as ``repeat``; ``final=True`` says that asking again would change nothing,
        ``cut_short=True`` that the gate's time was up before this was done.
    :raises ValueError: for a verdict or severity outside the contract: a typing error must never pass.
    """
    if verdict not in VERDICTS:
        raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}, found {verdict!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be one of {', '.join(SEVERITIES)}, found {severity!r}")
    return {
        "name": name,
        "verdict": verdict,
        "severity": severity,
        "observed": observed,
        "expected": expected,
        "message": message,
        "seconds": round(seconds, 3),
        **extra,
    }


def gate_result(checks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Judge *checks* together.

    A critical check that failed fails the gate; a critical one that could not be asked leaves it
    inconclusive, and so does a gate without checks, or with none that could be asked. Checks of lower
    severity that did not pass are named in ``degraded`` and stop nothing.

    :return: ``{passed, verdict, checks, failing: [names], degraded: [names]}``; ``failing`` names the
        critical checks that did not pass, inconclusive ones included.
    """
    wrong = [check for check in checks if check["verdict"] != PASS]
    critical = [check for check in wrong if check["severity"] == "critical"]
    if any(check["verdict"] == FAIL for check in critical):
        verdict = FAIL
    elif critical or all(check["verdict"] == INCONCLUSIVE for check in checks):
        # all() of nothing is true: no checks, no proof.
        verdict = INCONCLUSIVE
    else:
        verdict = PASS
    return {
        "passed": verdict == PASS,
        "verdict": verdict,
        "checks": list(checks),
        # Not "failed": a module that answers with that key at its top would count as failed.
        "failing": [check["name"] for check in critical],
        "degraded": [check["name"] for check in wrong if check["severity"] != "critical"],
    }


def until(
    probe: Callable[[float], Sequence[dict[str, Any]]],
    *,
    successes: int = 1,
    interval: float = 1.0,
    deadline: float = 60.0,
    patience: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Ask *probe* until it passed *successes* times in a row, for at most *deadline* seconds.

    One success is no health: an application that answers now and then passes a single try by luck. When time
    runs out, the checks of the last attempt that did not pass are answered, because they are the reason
    (the last whole attempt, where there is one).

    :param probe: called with the seconds left; returns a list of :func:`check_result`. One that does not
        return in that time is abandoned (its thread is a daemon) and counts as inconclusive.
    :param interval: seconds from the end of an attempt to the next one.
    :param deadline: seconds for everything; outlived by at most one second.
    :param patience: seconds after which a failed attempt is the last one; None: the deadline. What could not be
        asked is asked again until the deadline all the same.
    :return: the :func:`gate_result`, with ``attempts``, ``streak`` (successes in a row at the end),
        ``seconds`` and ``reason`` (one sentence, "" when it passed).
    :raises Problem: when *successes* or *deadline* is not positive; what *probe* raises is raised here.
    """
    if successes < 1:
        raise Problem(f"A gate needs at least 1 success, found {successes}: asking nothing proves nothing.")
    if not (math.isfinite(deadline) and deadline > 0 and math.isfinite(interval) and interval >= 0):
        raise Problem(
            f"A gate needs a deadline above 0 seconds and an interval of at least 0, "
            f"found {deadline} and {interval}."
        )
    begun = clock()
    attempts = streak = 0
    last: dict[str, Any] = gate_result([])
    wrong: dict[str, Any] | None = None
    quickest = 0.0
    while True:
        asked = clock()
        left = deadline - (asked - begun)
        if left <= 0 or left < quickest:
            # Less than any attempt has taken: it would only fail for want of time.
            break
        attempts += 1
        last = gate_result(once(probe, left))
        over = clock() - begun > deadline
        quickest = min(quickest or deadline, clock() - asked)
        if not last["passed"]:
            streak = 0
            # What the deadline cut short says less than an attempt that was whole.
            cut = over or any(check.get("cut_short") for check in last["checks"])
            wrong = wrong if wrong is not None and cut else last
            if final(last):
                break
            if patience is not None and last["verdict"] == FAIL and clock() - begun >= patience:
                deadline = patience
                break
        elif not over:
            streak += 1
        if streak >= successes:
            break
        sleep(max(0.0, min(max(interval, SHORTEST_PAUSE), deadline - (clock() - begun))))
    answer, reason = last, ""
    if streak < successes and wrong is not None:
        answer = wrong
        # Of one attempt that had no second, or of what is not asked again, there is nothing to say but what it found.
        reason = (
            f"It did not pass {f'{successes} times in a row ' if successes > 1 else ''}within {deadline:g} s ({attempts} attempts)."
            if (attempts > 1 or successes > 1) and not final(wrong)
            else ""
        )
    elif streak < successes:
        # Never a failure, and never enough successes either.
        answer = {**last, "passed": False, "verdict": INCONCLUSIVE}
        reason = (
            f"Only {streak} of {successes} successes in a row fitted into {deadline:g} s: "
            "raise the deadline, or lower the interval or the successes."
        )
    return {
        **answer,
        "attempts": attempts,
        "streak": streak,
        "seconds": round(clock() - begun, 3),
        "reason": reason,
    }


def final(gate: dict[str, Any]) -> bool:
    """Return whether asking again would change nothing: what keeps *gate* from passing is ``final``.

    A command is run once, because it may write.
    """
    wrong = [check for check in gate["checks"] if check["verdict"] != PASS]
    critical = [check for check in wrong if check["severity"] == "critical"]
    return bool(wrong) and all(check.get("final") for check in critical or wrong)


def once(probe: Callable[[float], Sequence[dict[str, Any]]], left: float) -> Sequence[dict[str, Any]]:
    """Ask *probe* once; return what it answers within *left* seconds, else one inconclusive check.

    :raises Exception: what *probe* raises.
    """
    answers: list[Sequence[dict[str, Any]]] = []
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            answers.append(probe(left))
        except BaseException as error:  # handed to the caller below
            errors.append(error)

    # A daemon, because name resolution cannot be interrupted and must not hold up the end either.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(left + GRACE)
    if errors:
        raise errors[0]
    if answers:
        return answers[0]
    return [
        check_result(
            "probe",
            INCONCLUSIVE,
            observed=f"no result after {left + GRACE:.1f} s",
            expected="a result in time",
            message=f"The probe did not return within {left:.1f} s: look at what it waits for.",
            seconds=left + GRACE,
        )
    ]
