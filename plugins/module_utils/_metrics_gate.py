# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gate of measured values: from sources, against thresholds, for a time.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._command import parse_environment, secret
from ansible_collections.runbook.deploy.plugins.module_utils._conditions import number
from ansible_collections.runbook.deploy.plugins.module_utils._database import OPTIONAL_DATABASE, named
from ansible_collections.runbook.deploy.plugins.module_utils._gate import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    check_result,
)
from ansible_collections.runbook.deploy.plugins.module_utils._gating import (
    GATE_OPTIONS,
    Probe,
    conduct,
    hidden,
)
from ansible_collections.runbook.deploy.plugins.module_utils._metrics_judge import (
    Judgement,
    Sample,
    judge_samples,
    medians,
    reading_of,
)
from ansible_collections.runbook.deploy.plugins.module_utils._metrics_source import Means, Unsampled
from ansible_collections.runbook.deploy.plugins.module_utils._metrics_spec import Check, parse_check
from ansible_collections.runbook.deploy.plugins.module_utils._parallel import in_parallel
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._thresholds import written

__all__ = ["OPTIONS", "RULES", "parse_check", "perform", "prober"]

OPTIONS: dict[str, Any] = {
    **GATE_OPTIONS,
    "checks": {"type": "list", "elements": "dict", "required": True},
    "measure": {"type": "bool", "default": False},
    "baseline": {"type": "dict", "default": {}},
    "accumulate": {"type": "bool", "default": False},
    "secrets": {"type": "str", "no_log": True},
    "database": OPTIONAL_DATABASE,
    "user": {"type": "str"},
    "chdir": {"type": "path"},
    "environment": {"type": "str", "no_log": True},
    "ca_path": {"type": "path"},
    "timeout": {"type": "float", "default": 10.0},
}
RULES: dict[str, Any] = {}
# Samples that a window may have; more are a typing error, and would fill the memory.
SAMPLES = 5000
# A sample is not begun with less time than this.
SHORTEST = 0.05


class Watched:
    """One check with the samples that were taken of it."""

    def __init__(
        self, check: Check, options: Mapping[str, Any], means: Means, baseline: Mapping[str, float]
    ) -> None:
        self.check = check
        self.baseline = baseline
        self.measure = bool(options["measure"])
        self.accumulate = bool(options["accumulate"])
        self.late = False
        self.timeout = check.common.timeout or float(options["timeout"])
        self.window = (
            check.window if check.window is not None else 0.0 if self.accumulate else check.longest()
        )
        self.samples: list[Sample] = []
        self.begun: float | None = None
        check.source.open(means)

    def needs(self) -> float:
        """Return the seconds that an answer takes at least, besides the asking."""
        return 0.0 if self.accumulate else self.check.initial_delay + self.window

    def names(self) -> list[str]:
        """Return the names of the values that are judged or measured."""
        wanted = self.check.wanted()
        if wanted or not self.measure:
            return wanted
        return list(self.check.source.names or (self.samples[-1].readings if self.samples else ()))

    def take(self, limit: float) -> None:
        """Take one sample, which is over at *limit* (``time.monotonic()``)."""
        at = time.monotonic()
        allowed = min(self.timeout, limit - at)
        try:
            if allowed < SHORTEST:
                raise Unsampled("no time was left to ask: raise the deadline")
            sample = Sample(at, self.check.source.sample(allowed))
            wanted = self.check.wanted()
            # INFO of Redis has two hundred fields.
            kept = {name: reading_of(sample, name) for name in wanted} if wanted else sample.readings
            self.samples.append(Sample(at, kept))
        except Unsampled as error:
            self.samples.append(Sample(at, {}, error.text))
            self.late = self.late or limit - at < self.timeout

    def _pending(self) -> bool:
        last = self.samples[-1]
        return not last.error and any(reading_of(last, name).pending for name in self.names())

    def ask(self, limit: float) -> dict[str, Any]:
        """Take the samples of one attempt and judge them; *limit* as for :meth:`take`."""
        asked = time.monotonic()
        if self.begun is None:
            self.begun = asked
            _sleep(self.check.initial_delay, limit)
        if not self.accumulate:
            # A difference to a sample of an earlier attempt would span the pause between them: the source keeps it, and
            # that is what is wanted; the samples that are judged are those of this attempt.
            self.samples = []
        self.late = False
        cut = self._sample(limit)
        if self.accumulate:
            self._forget(max(self.window, self.check.longest()))
        judgement = self._judge(whole=True)
        if cut and judgement.verdict != FAIL:
            found = [
                f"the gate's time was up {cut:.0f} s before the window of {self.window:g} s: raise the deadline"
            ]
            judgement = judgement._replace(verdict=INCONCLUSIVE, found=[*found, *judgement.found])
        result = self._result(judgement, time.monotonic() - asked)
        # What the gate's own end cut short says less than an attempt before it that was whole.
        return (
            {**result, "cut_short": True}
            if (cut or self.late) and judgement.verdict == INCONCLUSIVE
            else result
        )

    def _sample(self, limit: float) -> float:
        """Take the samples of one attempt; return how many seconds of the window are missing."""
        self.take(limit)
        # What is a difference has a value from the second sample on.
        if self._pending() and (self.accumulate or not self.window) and self._pause(limit):
            self.take(limit)
        if self.accumulate or not self.window:
            return 0.0
        end = self.samples[0].at + self.window
        due = self.samples[0].at
        while len(self.samples) < SAMPLES and not self._judge(whole=False).settled:
            now = time.monotonic()
            if now >= end:
                return 0.0
            # A source that takes longer than the interval is not asked twice at once, nor is what was missed made up for.
            due = max(due + self.check.interval, now)
            due = min(due, end)
            if due > limit - SHORTEST:
                return max(0.01, end - now)
            _sleep(due - now, limit)
            self.take(limit)
        return 0.0

    def _pause(self, limit: float) -> bool:
        """Wait for the interval, or for half of what is left where that is less; return whether another sample fits."""
        pause = min(self.check.interval, (limit - time.monotonic()) / 2)
        if pause < SHORTEST:
            return False
        time.sleep(pause)
        return True

    def _forget(self, horizon: float) -> None:
        """Drop the samples from before the *horizon*; the newest stays, and one at its edge."""
        edge = self.samples[-1].at - horizon
        keep = next(
            index
            for index, sample in enumerate(self.samples)
            if index + 1 == len(self.samples) or self.samples[index + 1].at > edge
        )
        self.samples = self.samples[keep:] if horizon else self.samples[-1:]

    def _judge(self, whole: bool) -> Judgement:
        if self.measure:
            return self._measured()
        samples = self.samples
        if self.accumulate:
            # Triggers look back as far as they have to hold; everything else as far as the window goes.
            edge = self.samples[-1].at - self.window
            samples = [sample for sample in self.samples if sample.at >= edge]
            samples = samples if self.window else samples[-1:]
        return judge_samples(samples, self.check, self.baseline, whole, self.samples)

    def _measured(self) -> Judgement:
        """Return the values without a judgement; one that no sample has leaves the check inconclusive."""
        names = self.names()
        values = medians(self.samples, names)
        last = self.samples[-1] if self.samples else Sample(0.0, {}, "nothing was asked")
        missing = [f"{name}: {reading_of(last, name).why}" for name in names if name not in values]
        if last.error and not values:
            missing = [last.error]
        if not names and not missing:
            missing = ["the source has no values"]
        shown = "; ".join(
            f"{name} {written(values[name], self.check.unit(name))}" for name in names if name in values
        )
        # Of a source that tells all that it has, such as Redis, not everything is a number.
        if values and self.check.source.names is None and not self.check.wanted():
            missing = []
        return Judgement(INCONCLUSIVE if missing else PASS, missing, shown, {}, values, False)

    def expected(self) -> str:
        """Return in words what is expected."""
        if self.measure:
            return "values"
        triggers = [f"not {item.text}" for item in self.check.triggers]
        return ", ".join([*(item.text for item in self.check.required), *triggers])

    def _result(self, judgement: Judgement, seconds: float) -> dict[str, Any]:
        check, source = self.check, self.check.source
        message = ""
        if judgement.verdict != PASS:
            end = "failed" if judgement.verdict == FAIL else "cannot be judged"
            found = "; ".join(judgement.found) or "nothing was found"
            message = (
                f"Check {check.name!r} {end}: asked {source.place()}: expected {self.expected()}, but {found}. "
                f"Repeat: {source.repeat()}"
            )
        # A window is over: another one would be asked until one passes.
        final = judgement.verdict == FAIL and self.window > 0
        unmeasured = any(
            item.baseline and item.name not in self.baseline for item in (*check.required, *check.triggers)
        )
        return check_result(
            check.name,
            judgement.verdict,
            check.common.severity,
            judgement.observed or "; ".join(judgement.found),
            self.expected(),
            message,
            seconds,
            repeat=source.repeat(),
            measured=judgement.values,
            samples=judgement.counts,
            **(
                {"final": True}
                if final or (unmeasured and not self.measure and judgement.verdict != PASS)
                else {}
            ),
        )


def _sleep(seconds: float, limit: float) -> None:
    left = min(seconds, limit - time.monotonic())
    if left > 0:
        time.sleep(left)


def parse_baseline(given: Any, checks: Sequence[Check]) -> list[dict[str, float]]:
    """Return the baseline of each of *checks*, by the names of its values.

    :param given: numbers by ``value`` or ``check.value``, where several checks have a value of that name; or the ``measured`` that this
        gate returned when it measured.
    :raises Problem: when one is no finite number, or belongs to nothing.
    """
    found: list[dict[str, float]] = [{} for _number in checks]
    for key, value in (given or {}).items():
        parsed = number(value)
        if parsed is None:
            raise Problem(f"baseline.{key} must be a number, found {value!r}.")
        for own, check in zip(found, checks):
            prefix = f"{check.name}."
            if str(key).startswith(prefix):
                own[str(key)[len(prefix) :]] = parsed
            elif str(key) == check.name and check.source.names is not None and len(check.source.names) == 1:
                own.setdefault(check.source.names[0], parsed)
            else:
                own.setdefault(str(key), parsed)
    return found


def prober(options: Mapping[str, Any], check_mode: bool) -> Probe:
    """Return what samples all sources of *options*, each in a thread of its own; it is given the seconds that are left.

    With ``accumulate`` each call takes one sample and judges it with those before; a watch asks so. Without it, each call takes the
    samples of the whole window.

    :param check_mode: leave out commands that are not declared harmless.
    :raises Problem: when a check is not well written, or does not fit into the deadline.
    """
    checks = [
        parse_check(item, f"checks[{index}]", not options["measure"])
        for index, item in enumerate(options["checks"])
    ]
    if not (math.isfinite(options["timeout"]) and options["timeout"] > 0):
        raise Problem(f"timeout must be a number of seconds above 0, found {options['timeout']}.")
    names: set[str] = set()
    for index, check in enumerate(checks):
        if check.name in names:
            raise Problem(
                f"checks[{index}].name {check.name!r} is that of another check: give each a name of its own."
            )
        names.add(check.name)
    baselines = parse_baseline(options["baseline"], checks)
    secrets = parse_environment(options["secrets"], "secrets")
    environment = parse_environment(options["environment"], "environment")
    database = named(options["database"])
    means = Means(secrets, database, options["user"], environment, options["chdir"], options["ca_path"])
    not_asked = [check.name for check in checks if check_mode and not check.source.harmless]
    watched = [
        Watched(check, options, means, baseline)
        for check, baseline in zip(checks, baselines)
        if check.source.harmless or not check_mode
    ]
    for one in watched:
        if one.needs() >= options["deadline"]:
            raise Problem(
                f"{one.check.common.where} takes {one.needs():g} s (initial_delay and window, or the time of a trigger), but the deadline "
                f"is {options['deadline']:g} s: raise the deadline."
            )
        if one.window / one.check.interval > SAMPLES:
            raise Problem(f"{one.check.common.where} has more than {SAMPLES} samples: raise its interval.")
    concealed = [
        *secrets.values(),
        str((database or {}).get("password") or ""),
        *secret(environment.values(), [options["chdir"] or ""]),
    ]

    def task(one: Watched) -> Callable[[float], dict[str, Any]]:
        return lambda limit: hidden(one.ask(limit), concealed)

    def probe(left: float) -> list[dict[str, Any]]:
        known = [(one.check.name, one.check.common.severity) for one in watched]
        return in_parallel(
            [task(one) for one in watched], known, time.monotonic() + left, max(1, len(watched))
        )

    return Probe(probe, not_asked, bool(watched))


def values_of(checks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the values in the results *checks*, by ``check.value``, as ``baseline`` takes them."""
    return {
        f"{check['name']}.{name}": value
        for check in checks
        for name, value in check.get("measured", {}).items()
    }


def perform(options: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    """Run the gate that *options* (see ``OPTIONS``) describe and return it, with ``measured`` by ``check.value``.

    :raises Problem: when it does not pass, or an option is wrong.
    """
    hidden = [*parse_environment(options["secrets"], "secrets").values()]
    hidden += parse_environment(options["environment"], "environment").values()
    hidden += [str((named(options["database"]) or {}).get("password") or "")]
    gate = conduct(
        options,
        prober(options, check_mode),
        "measured values",
        check_mode=check_mode,
        warn=warn,
        secrets=hidden,
    )
    return {**gate, "measured": values_of(gate["checks"])}
