# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Conditions on measured values, as operators write them, with units, baselines and durations.

    < 500ms    > 80%    <= 1.5    > 10k    < 512MB    == 0
    p95 < 500ms                  with the name of the value in front
    mean(response) < 2s          of all samples: mean, min, max, p50 … p99.9
    approved between 70% and 80%
    orders within 20% of baseline        orders < baseline
    orders not below baseline by 20%     errors not above baseline by 50%
    error_rate > 5% for 15m      a trigger only: it has been so for that long

A value that has a unit is only compared with a number that has one: ``p95 < 500`` could mean milliseconds or seconds, and one of the two
would always hold.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._comparison import OPERATORS
from ansible_collections.runbook.deploy.plugins.module_utils._conditions import number
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

TIME, SIZE, SHARE, COUNT = "time", "size", "share", "count"
# Kind and factor of each unit; sizes as IEC 80000-13 has them. `share` is a number from 0 to 1, as Prometheus has ratios.
UNITS: dict[str, tuple[str, float]] = {
    "": (COUNT, 1.0),
    "k": (COUNT, 1e3),
    "M": (COUNT, 1e6),
    "G": (COUNT, 1e9),
    "%": (SHARE, 0.01),
    "share": (SHARE, 1.0),
    "us": (TIME, 1e-6),
    "ms": (TIME, 1e-3),
    "s": (TIME, 1.0),
    "m": (TIME, 60.0),
    "min": (TIME, 60.0),
    "h": (TIME, 3600.0),
    "d": (TIME, 86400.0),
    "B": (SIZE, 1.0),
    **{f"{prefix}B": (SIZE, 10.0 ** (3 * power)) for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}iB": (SIZE, 2.0 ** (10 * power)) for power, prefix in enumerate("KMGT", 1)},
}
NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
UNIT = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True) if unit not in ("", "share"))
VALUE = rf"({NUMBER})\s*({UNIT})?"
NAME = r"[A-Za-z_][A-Za-z0-9_.:]*"
_OPERATOR = r"(<=|>=|==|!=|<|>)"
_HOLD = re.compile(r"^(.*\S)\s+for\s+(\S.*)$", re.DOTALL)
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d)$")
_SUBJECT = re.compile(
    rf"^(?:(mean|min|max|p\d\d?(?:\.\d+)?)\(\s*({NAME})?\s*\)|({NAME}))\s*(?=[\s<>=!])(.*)$", re.DOTALL
)
_WORDS = ("not", "within", "below", "above", "between")
_COMPARED = re.compile(rf"^{_OPERATOR}\s*(?:(baseline)|{VALUE})$")
_WITHIN = re.compile(r"^(not\s+)?within\s+(\d+(?:\.\d+)?)\s*%\s+of\s+baseline$")
_BEYOND = re.compile(r"^(not\s+)?(below|above)\s+baseline\s+by\s+(\d+(?:\.\d+)?)\s*%$")
_BETWEEN = re.compile(rf"^(not\s+)?between\s+{VALUE}\s+and\s+{VALUE}$")
EXAMPLES = "'p95 < 500ms', 'hit_rate > 80%', 'orders not below baseline by 20%', 'error_rate > 5% for 15m'"
# 0.1 + 20 % is not exactly 0.12 in binary; nobody means that difference.
TOLERANCE = 1e-9


class Reading(NamedTuple):
    """One value of one sample, in the unit that it is measured in.

    ``value`` is None where there is none, and ``why`` says so; ``at_least``: it may be more; ``pending``: a later sample will have it,
    because it is a difference between two.
    """

    value: float | None
    why: str = ""
    at_least: bool = False
    pending: bool = False


class Threshold(NamedTuple):
    """What is expected of the value ``name`` ("" for the only one), or of the ``statistic`` ("" for each sample) of it.

    ``relation`` is an operator, or ``within``, ``below``, ``above`` (``percent`` of the baseline) or ``between``; ``limits`` are numbers
    with their units; ``baseline`` says that it is needed; ``hold`` is in seconds, None where no duration is given.
    """

    text: str
    statistic: str
    name: str
    negated: bool
    relation: str
    limits: tuple[tuple[float, str], ...]
    percent: float
    baseline: bool
    hold: float | None


def parse_duration(value: Any, where: str) -> float:
    """Return the seconds of *value*, a number of seconds or a text such as ``90s``, ``15m`` or ``1h``.

    :raises Problem: when it is none, or negative.
    """
    found = _DURATION.match(value.strip()) if isinstance(value, str) else None
    seconds = float(found.group(1)) * UNITS[found.group(2)][1] if found else number(value)
    if seconds is None or seconds < 0:
        raise Problem(
            f"{where} must be a number of seconds or a duration such as 30s, 15m or 1h, found {value!r}."
        )
    return seconds


def parse_unit(value: Any, where: str) -> str:
    """Return *value*, a unit that values can be measured in.

    :raises Problem: when it is none.
    """
    if value not in UNITS or value in ("k", "M", "G"):
        known = ", ".join(unit for unit in UNITS if unit not in ("", "k", "M", "G"))
        raise Problem(f"{where} must be one of {known}, found {value!r}.")
    return str(value)


def parse_threshold(value: Any, where: str) -> Threshold:
    """Return the condition *value*; see the text at the head of this file.

    :raises Problem: when it cannot be read.
    """
    if not isinstance(value, str) or not value.strip():
        raise Problem(f"{where} must be a condition such as {EXAMPLES}, found {value!r}.")
    text = " ".join(value.split())
    held = _HOLD.match(text)
    body = held.group(1) if held else text
    hold = parse_duration(held.group(2), f"{where}: the time after 'for'") if held else None
    subject = _SUBJECT.match(body)
    statistic = name = ""
    if subject and subject.group(3) not in _WORDS:
        statistic, name = subject.group(1) or "", subject.group(2) or subject.group(3) or ""
        body = subject.group(4).strip()
    threshold = Threshold(text, statistic, name, False, "", (), 0.0, False, hold)
    found = _COMPARED.match(body)
    if found:
        if found.group(2):
            return threshold._replace(relation=found.group(1), baseline=True)
        return threshold._replace(
            relation=found.group(1), limits=((float(found.group(3)), found.group(4) or ""),)
        )
    found = _WITHIN.match(body)
    if found:
        return threshold._replace(
            relation="within", negated=bool(found.group(1)), percent=float(found.group(2)), baseline=True
        )
    found = _BEYOND.match(body)
    if found:
        return threshold._replace(
            relation=found.group(2),
            negated=bool(found.group(1)),
            percent=float(found.group(3)),
            baseline=True,
        )
    found = _BETWEEN.match(body)
    if found:
        limits = (
            (float(found.group(2)), found.group(3) or ""),
            (float(found.group(4)), found.group(5) or ""),
        )
        return threshold._replace(relation="between", negated=bool(found.group(1)), limits=limits)
    raise Problem(f"{where} is {value!r}: expected a condition such as {EXAMPLES}.")


def require_fit(threshold: Threshold, unit: str, where: str) -> None:
    """Refuse a *threshold* whose numbers cannot be compared with a value that is measured in *unit*.

    :raises Problem: then, with what to write.
    """
    kind = UNITS[unit][0]
    for limit, own in threshold.limits:
        theirs = UNITS[own][0]
        if theirs == kind or (not limit and not own):
            continue
        name = threshold.name or "the value"
        if kind == COUNT:
            raise Problem(
                f"{where} is {threshold.text!r}, but it is not known in which unit {name!r} is measured: say so in units, "
                f"such as units: {{{threshold.name or 'value'}: {own}}}."
            )
        known = ", ".join(
            name for name, (other, _factor) in UNITS.items() if other == kind and name != "share"
        )
        raise Problem(
            f"{where} is {threshold.text!r}, but {name!r} is measured in {unit}: write the number with one of the units {known}."
        )
    if threshold.relation == "between" and _base(*threshold.limits[0], unit) > _base(
        *threshold.limits[1], unit
    ):
        raise Problem(f"{where} is {threshold.text!r}: the first number must be the smaller one.")


def _base(limit: float, own: str, unit: str) -> float:
    """Return *limit*, written in the unit *own*, in the base of *unit*; a bare number of a plain value stays what it is."""
    return limit * UNITS[own or unit][1]


def judge(
    threshold: Threshold, reading: Reading, unit: str = "", baseline: float | None = None
) -> bool | None:
    """Return whether *reading* is as *threshold* says; None where that is not known.

    :param unit: what *reading* and *baseline* are measured in.
    """
    if reading.value is None or (threshold.baseline and baseline is None):
        return None
    value = reading.value * UNITS[unit][1]
    if threshold.baseline:
        center = float(baseline) * UNITS[unit][1]  # type: ignore[arg-type]
        room = abs(center) * threshold.percent / 100
        slack = abs(center) * TOLERANCE
    else:
        center, room, slack = 0.0, 0.0, 0.0
    limits = [_base(limit, own, unit) for limit, own in threshold.limits] or [center]

    def state(found: float) -> bool:
        if threshold.relation == "within":
            held = abs(found - center) <= room + slack
        elif threshold.relation == "below":
            held = found < center - room - slack
        elif threshold.relation == "above":
            held = found > center + room + slack
        elif threshold.relation == "between":
            held = limits[0] <= found <= limits[1]
        else:
            held = OPERATORS[threshold.relation](found, limits[0])
        return held != threshold.negated

    if not reading.at_least:
        return state(value)
    # It is this or more: known only where nothing that is more would change the answer.
    edges = [*limits, center - room, center + room] if threshold.baseline else limits
    beyond = max([value, *edges])
    answers = {
        state(value),
        *(state(edge) for edge in edges if edge >= value),
        state(beyond + abs(beyond) + 1),
    }
    return answers.pop() if len(answers) == 1 else None


def written(value: float | None, unit: str) -> str:
    """Return *value*, measured in *unit*, as a person would write it."""
    if value is None:
        return "no data"
    kind, factor = UNITS[unit]
    base = value * factor
    if kind == SHARE:
        return f"{base * 100:.4g} %"
    if kind == TIME:
        return f"{base * 1000:.4g} ms" if abs(base) < 1 else f"{base:.4g} s"
    if kind == SIZE:
        for name in ("TB", "GB", "MB", "KB"):
            if abs(base) >= UNITS[name][1]:
                return f"{base / UNITS[name][1]:.4g} {name}"
        return f"{base:.0f} B"
    return f"{value:.10g}"
