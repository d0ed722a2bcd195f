# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge the samples of a window: four kinds of outcomes, each with a limit of its own.

A sample is good, has failed, could not be asked (an error of the probe), or had no data. What could not be asked and what had no data
say nothing about the application: too many of them leave the check inconclusive, and none of them is a pass.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._gate import FAIL, INCONCLUSIVE, PASS
from ansible_collections.runbook.deploy.plugins.module_utils._metrics_spec import Check
from ansible_collections.runbook.deploy.plugins.module_utils._thresholds import (
    Reading,
    Threshold,
    judge,
    written,
)
from ansible_collections.runbook.deploy.plugins.module_utils._window import held_for, percentile

GOOD, FAILED, ERROR, NO_DATA, PENDING = "good", "failed", "error", "no data", "pending"


class Sample(NamedTuple):
    """What was found at ``at`` (seconds of any clock): values, or why the source could not be asked."""

    at: float
    readings: Mapping[str, Reading]
    error: str = ""


class Judgement(NamedTuple):
    """The ``verdict``, what was ``found`` otherwise than expected (parts of sentences), the last values in words, how many samples had
    which outcome, the median of each value, and whether another sample could still change it."""

    verdict: str
    found: list[str]
    observed: str
    counts: dict[str, int]
    values: dict[str, float]
    settled: bool


def reading_of(sample: Sample, name: str) -> Reading:
    """Return the value *name* of *sample*."""
    if sample.error:
        return Reading(None, sample.error)
    found = sample.readings.get(name)
    if found is not None:
        return found
    known = ", ".join(sorted(sample.readings)[:12]) or "nothing"
    return Reading(None, f"there is no value {name!r}, only: {known}")


def outcome(sample: Sample, check: Check, baseline: Mapping[str, float]) -> tuple[str, str]:
    """Return which outcome *sample* has, and why, in words."""
    if sample.error:
        return ERROR, sample.error
    unknown = ""
    pending = False
    for item in (*check.required, *check.triggers):
        reading = reading_of(sample, item.name)
        if reading.pending:
            pending = True
            continue
        unit, before = check.unit(item.name), baseline.get(item.name)
        state = judge(item, reading, unit, before)
        if state is None and not (item.statistic and reading.value is not None):
            unknown = unknown or f"{item.name}: {_unjudged(item, reading, unit)}"
        elif state is False and not item.statistic and item in check.required:
            return FAILED, f"{item.name} is {told(reading, unit)}, expected {described(item, unit, before)}"
    return (NO_DATA, unknown) if unknown else (PENDING, "") if pending else (GOOD, "")


def _unjudged(item: Threshold, reading: Reading, unit: str) -> str:
    if reading.value is None:
        return reading.why
    if item.baseline:
        return "no baseline was measured for it"
    return f"it is {told(reading, unit)}, which does not tell whether it is {item.text}"


def told(reading: Reading, unit: str) -> str:
    """Return *reading* in words."""
    return f"{'at least ' if reading.at_least else ''}{written(reading.value, unit)}"


def described(item: Threshold, unit: str, baseline: float | None) -> str:
    """Return what *item* expects, with the baseline's value where it has one."""
    return (
        f"{item.text} (baseline {written(baseline, unit)})"
        if item.baseline and baseline is not None
        else item.text
    )


def statistic(item: Threshold, readings: Sequence[Reading]) -> Reading:
    """Return the statistic that *item* asks for of the *readings* that have a value."""
    values = [reading.value for reading in readings if reading.value is not None]
    if not values:
        return Reading(None, "no sample had a value")
    if item.statistic == "mean":
        found = sum(values) / len(values)
    elif item.statistic in ("min", "max"):
        found = min(values) if item.statistic == "min" else max(values)
    else:
        found = percentile(values, float(item.statistic[1:]) / 100)
    return Reading(found, at_least=any(reading.at_least for reading in readings))


def judge_samples(
    samples: Sequence[Sample],
    check: Check,
    baseline: Mapping[str, float],
    whole: bool,
    history: Sequence[Sample] | None = None,
) -> Judgement:
    """Return what *samples*, in the order of their times, come to.

    :param baseline: values before the deployment by name; :param whole: whether these are all, so that what takes all is judged, too.
    :param history: what triggers are judged on, where it goes further back than *samples*.
    """
    history = samples if history is None else history
    found: dict[str, list[str]] = {kind: [] for kind in (GOOD, FAILED, ERROR, NO_DATA, PENDING)}
    for sample in samples:
        kind, why = outcome(sample, check, baseline)
        found[kind].append(why)
    counts = {kind: len(reasons) for kind, reasons in found.items() if kind != PENDING}
    wrong: list[str] = []
    for item in check.triggers:
        unit, before = check.unit(item.name), baseline.get(item.name)
        states = [(sample.at, judge(item, reading_of(sample, item.name), unit, before)) for sample in history]
        held = held_for(states)
        if held is not None and held >= (item.hold or 0.0):
            last = next(
                reading_of(sample, item.name)
                for sample, (_at, state) in zip(reversed(history), reversed(states))
                if state is not None
            )
            since = f" and has been so for {held:.0f} s" if item.hold else ""
            wrong.append(f"{item.name} is {told(last, unit)}{since} ({described(item, unit, before)})")
    if counts[FAILED] > check.limits.failure:
        wrong.append(_limited(found[FAILED], len(samples), check.limits.failure, "failed"))
    unknown: list[str] = []
    if counts[ERROR] > check.limits.error:
        unknown.append(_limited(found[ERROR], len(samples), check.limits.error, "could not be asked"))
    if counts[NO_DATA] > check.limits.inconclusive:
        unknown.append(_limited(found[NO_DATA], len(samples), check.limits.inconclusive, "had no data"))
    settled = bool(wrong or unknown)
    if whole:
        judged = counts[GOOD] + counts[FAILED]
        if judged < check.limits.minimum and not unknown:
            unknown.append(
                f"only {judged} of {len(samples)} samples could be judged, expected at least {check.limits.minimum}"
            )
        for item in check.required:
            if not item.statistic:
                continue
            unit, before = check.unit(item.name), baseline.get(item.name)
            reading = statistic(item, [reading_of(sample, item.name) for sample in samples])
            state = judge(item, reading, unit, before)
            shown = f"{item.statistic} of {item.name} over {judged} samples is {told(reading, unit)}"
            if state is False:
                wrong.append(f"{shown}, expected {described(item, unit, before)}")
            elif state is None:
                unknown.append(f"{item.statistic} of {item.name}: {_unjudged(item, reading, unit)}")
    values = medians(samples, check.wanted())
    verdict = FAIL if wrong else INCONCLUSIVE if unknown or not samples else PASS
    return Judgement(verdict, wrong or unknown, _observed(samples, check, counts), counts, values, settled)


def _limited(reasons: Sequence[str], count: int, limit: int, word: str) -> str:
    """Return the last of *reasons*, with how many samples of *count* it was so."""
    last = reasons[-1]
    if count == 1:
        return last
    return f"{last} ({len(reasons)} of {count} samples {word}, allowed are {limit})"


def medians(samples: Sequence[Sample], names: Sequence[str]) -> dict[str, float]:
    """Return the median of each value that at least one of *samples* has."""
    result = {}
    for name in names:
        values = [
            reading.value
            for reading in (reading_of(sample, name) for sample in samples)
            if reading.value is not None
        ]
        if values:
            result[name] = percentile(values, 0.5)
    return result


def _observed(samples: Sequence[Sample], check: Check, counts: Mapping[str, int]) -> str:
    if not samples:
        return "nothing was asked"
    parts = []
    for name in check.wanted():
        known = [
            reading
            for reading in (reading_of(sample, name) for sample in samples)
            if reading.value is not None
        ]
        parts.append(f"{name} {told(known[-1], check.unit(name)) if known else 'no data'}")
    if len(samples) > 1:
        outcomes = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        parts.append(f"{len(samples)} samples: {outcomes or 'none judged'}")
    return "; ".join(parts)
