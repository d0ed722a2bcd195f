# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask the same many times, several at once, and judge the times and the share of wrong answers.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._comparison import Bound
from ansible_collections.runbook.deploy.plugins.module_utils._gate import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    check_result,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._window import percentile

# Threads of one probe; above it Python itself, and not the application, makes answers late.
CONCURRENCY_LIMIT = 200
REQUESTS_LIMIT = 100_000
TIMES = ("p50", "p90", "p95", "p99", "mean", "max")
FIGURES = (*TIMES, "error_rate", "throughput")
# Seconds for times, a share for error_rate, requests a second for throughput.
UNITS = {"ms": 0.001, "s": 1.0, "%": 0.01, "/s": 1.0, "": 1.0}
_LIMIT = re.compile(r"^(<=|>=|==|<|>)\s*(\d+(?:\.\d+)?)\s*(ms|s|%|/s)?$")


class Samples(NamedTuple):
    """How often is asked (``requests``, or for ``duration`` seconds), how many at once, and what is expected."""

    requests: int
    concurrency: int
    duration: float | None
    bounds: dict[str, Bound]


def parse_samples(value: Any, where: str) -> Samples | None:
    """Return how a check is sampled; None where it is not.

    :param value: a mapping such as ``{requests: 100, concurrency: 10, p95: "< 500ms", error_rate: "< 1%"}``, or None.
    :raises Problem: for anything else.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise Problem(
            f"{where} must be a mapping such as {{requests: 100, concurrency: 10}}, found {value!r}."
        )
    known = ("requests", "concurrency", "duration", *FIGURES)
    for key in value:
        if key not in known:
            raise Problem(f"{where} has the unknown key {key!r}: known are {', '.join(known)}.")
    duration = value.get("duration")
    if duration is not None and (
        isinstance(duration, bool) or not isinstance(duration, (int, float)) or duration <= 0
    ):
        raise Problem(f"{where}.duration must be a number of seconds above 0, found {duration!r}.")
    requests = _count(
        value.get("requests", REQUESTS_LIMIT if duration else 100), REQUESTS_LIMIT, f"{where}.requests"
    )
    concurrency = _count(value.get("concurrency", 10), CONCURRENCY_LIMIT, f"{where}.concurrency")
    bounds = {name: _bound(name, value[name], f"{where}.{name}") for name in FIGURES if name in value}
    # Without a word about errors, none is allowed.
    bounds.setdefault("error_rate", Bound("==", 0.0, "== 0%"))
    return Samples(requests, concurrency, duration, bounds)


def _count(value: Any, limit: int, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
        raise Problem(f"{where} must be a whole number from 1 to {limit}, found {value!r}.")
    return value


def _bound(name: str, value: Any, where: str) -> Bound:
    text = str(value).strip()
    found = _LIMIT.match(text)
    allowed = ("ms", "s") if name in TIMES else ("%", "") if name == "error_rate" else ("/s", "")
    unit = (found.group(3) or "") if found else ""
    if not found or unit not in allowed:
        raise Problem(
            f"{where} must be a comparison with a number and one of the units {', '.join(filter(None, allowed))}, "
            f"such as {'< 500ms' if name in TIMES else '< 1%' if name == 'error_rate' else '> 50/s'}, found {value!r}."
        )
    return Bound(found.group(1), float(found.group(2)) * UNITS[unit], text)


def figures(seconds: Sequence[float], errors: int, elapsed: float) -> dict[str, float]:
    """Return the figures of requests that took *seconds* each, of which *errors* were answered wrong.

    :param elapsed: seconds that all together took. :raises ValueError: when there are none.
    """
    return {
        "p50": percentile(seconds, 0.50),
        "p90": percentile(seconds, 0.90),
        "p95": percentile(seconds, 0.95),
        "p99": percentile(seconds, 0.99),
        "mean": sum(seconds) / len(seconds),
        "max": max(seconds),
        "error_rate": errors / len(seconds),
        "throughput": len(seconds) / elapsed if elapsed > 0 else float(len(seconds)),
    }


def written(name: str, value: float) -> str:
    """Return a figure as a person would write it: ``p95 312 ms``, ``error_rate 1.00 %``, ``throughput 48.1/s``."""
    if name == "error_rate":
        return f"{name} {value * 100:.2f} %"
    return f"{name} {value:.1f}/s" if name == "throughput" else f"{name} {value * 1000:.0f} ms"


def take(
    samples: Samples, one: Callable[[], dict[str, Any]], limit: float
) -> tuple[list[dict[str, Any]], float, int]:
    """Ask *one* as often as *samples* say, until *limit* (``time.monotonic()``).

    :param one: asks once and returns a ``check_result``.
    :return: the results, the seconds that all took, and how many requests had not ended at the limit.
    :raises Exception: the first that *one* raised.
    """
    begun = time.monotonic()
    end = min(limit, begun + samples.duration) if samples.duration else limit
    results: list[dict[str, Any]] = []
    errors: list[BaseException] = []
    state = {"asked": 0, "ended": 0}
    changed = threading.Condition()

    def work() -> None:
        while True:
            with changed:
                if state["asked"] >= samples.requests or errors or time.monotonic() >= end:
                    return
                state["asked"] += 1
            try:
                answer = one()
            except BaseException as error:  # handed to the caller below
                with changed:
                    errors.append(error)
                    changed.notify_all()
                return
            with changed:
                results.append(answer)
                state["ended"] += 1
                changed.notify_all()

    threads = [
        threading.Thread(target=work, daemon=True)
        for _number in range(min(samples.concurrency, samples.requests))
    ]
    for thread in threads:
        thread.start()

    def done() -> bool:
        over = state["asked"] >= samples.requests or time.monotonic() >= end
        return bool(errors) or (over and state["ended"] >= state["asked"])

    with changed:
        while not done() and time.monotonic() < limit:
            changed.wait(max(0.01, min(limit, end if time.monotonic() < end else limit) - time.monotonic()))
        if errors:
            raise errors[0]
        return list(results), time.monotonic() - begun, state["asked"] - state["ended"]


def judge_samples(
    name: str,
    severity: str,
    samples: Samples,
    results: Sequence[Mapping[str, Any]],
    elapsed: float,
    unfinished: int,
    asked: str,
    again: str,
) -> dict[str, Any]:
    """Return the ``check_result`` of *results*, with ``figures`` and ``requests`` beside the usual keys.

    Requests that could not be asked say nothing about the application, so that with any of them the check is
    inconclusive, unless what was asked is wrong enough by itself.

    :param elapsed: as :func:`take` returned it; so is *unfinished*. :param asked: what was asked; *again*: the command
        that asks it once.
    """
    wish = ", ".join(f"{key} {bound.text}" for key, bound in samples.bounds.items())
    expected = f"{samples.requests} requests, {samples.concurrency} at a time, with {wish}"
    if samples.duration:
        expected = f"{samples.concurrency} requests at a time for {samples.duration:g} s, with {wish}"
    told = [result for result in results if result["verdict"] != INCONCLUSIVE]
    wrong = [result for result in told if result["verdict"] == FAIL]
    silent = len(results) - len(told)
    extra: dict[str, Any] = {"asked": asked, "repeat": again, "requests": len(results), "figures": {}}
    first = (wrong or [result for result in results if result["verdict"] != PASS] or [{"message": ""}])[0][
        "message"
    ]
    if not told:
        what = f"none of {len(results) + unfinished} requests was answered or could be asked"
        message = f"Check {name!r} cannot be judged: {asked}: {what}. {first}".strip()
        return check_result(name, INCONCLUSIVE, severity, what, expected, message, elapsed, **extra)
    found = figures([result["seconds"] for result in told], len(wrong), elapsed)
    extra["figures"] = {key: round(value, 4) for key, value in found.items()}
    observed = f"{len(results)} requests in {elapsed:.1f} s: " + ", ".join(
        written(key, found[key]) for key in ("p50", "p95", "p99", "max", "error_rate", "throughput")
    )
    missed = [
        f"expected {key} {bound.text}, found {written(key, found[key])}"
        for key, bound in samples.bounds.items()
        if not bound.holds(found[key])
    ]
    lacking = len(results) < samples.requests and not samples.duration
    gaps = [f"{silent} could not be asked"] if silent else []
    gaps += [f"{samples.requests - len(results)} had not ended when the time was up"] if lacking else []
    if missed:
        verdict, end, why = FAIL, "failed", [*missed, *gaps]
    elif gaps:
        verdict, end, why = INCONCLUSIVE, "cannot be judged", gaps
    else:
        return check_result(name, PASS, severity, observed, expected, "", elapsed, **extra)
    message = f"Check {name!r} {end}: {asked}: {'; '.join(why)} ({observed}). {first}".strip()
    return check_result(name, verdict, severity, observed, expected, message, elapsed, **extra)
