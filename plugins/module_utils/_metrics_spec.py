# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the checks of a gate of metrics as people write them.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._gate_spec import (
    COMMON,
    Common,
    choice,
    common,
    keys,
    mapping,
)
from ansible_collections.runbook.deploy.plugins.module_utils._metrics_log import LogSource
from ansible_collections.runbook.deploy.plugins.module_utils._metrics_prometheus import (
    PageSource,
    QuerySource,
)
from ansible_collections.runbook.deploy.plugins.module_utils._metrics_source import VALUE, Source
from ansible_collections.runbook.deploy.plugins.module_utils._metrics_sources import (
    CommandSource,
    ProcessSource,
    RedisSource,
    SqlSource,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._thresholds import (
    Threshold,
    parse_duration,
    parse_threshold,
    parse_unit,
    require_fit,
)

SOURCES: dict[str, Callable[[Mapping[str, Any], str], Source]] = {
    source.kind: source
    for source in (PageSource, QuerySource, SqlSource, CommandSource, RedisSource, ProcessSource, LogSource)
}
LIMITS = {"failure_limit": 0, "error_limit": 0, "inconclusive_limit": 0, "minimum_samples": 1}
KEYS = (*COMMON, "source", "require", "trigger", "units", "initial_delay", "interval", "window", *LIMITS)
EXAMPLE = "{source: {kind: redis}, require: hit_rate > 80%}"
INTERVAL = 5.0
SHORTEST_INTERVAL = 0.01


class Limits(NamedTuple):
    """How many samples may have failed, could not be asked, or had no data, and how many must have been judged."""

    failure: int
    error: int
    inconclusive: int
    minimum: int


class Check(NamedTuple):
    """One source and what is expected of its values.

    ``required`` are judged at each sample, or on all of them where they have a statistic; ``triggers`` fail when they have held;
    both name values as the source does. Times are in seconds; ``window`` is None where none is given.
    """

    common: Common
    source: Source
    required: list[Threshold]
    triggers: list[Threshold]
    units: dict[str, str]
    initial_delay: float
    interval: float
    window: float | None
    limits: Limits

    @property
    def name(self) -> str:
        """Its name."""
        return self.common.name

    def unit(self, name: str) -> str:
        """Return the unit that the value *name* is measured in."""
        return self.units.get(name) or self.source.unit(name)

    def wanted(self) -> list[str]:
        """Return the names of the values that are judged, each once."""
        return list(dict.fromkeys(item.name for item in (*self.required, *self.triggers)))

    def longest(self) -> float:
        """Return the longest time for which a trigger must have held."""
        return max((item.hold or 0.0 for item in self.triggers), default=0.0)


def parse_check(item: Any, where: str, judged: bool = True) -> Check:
    """Return one check.

    :param judged: whether something must be expected of the values; not where they are only measured.
    :raises Problem: when it is not well written.
    """
    keys(item, KEYS, where, EXAMPLE)
    given = item.get("source")
    if not isinstance(given, Mapping) or given.get("kind") is None:
        raise Problem(
            f"{where}.source must be a mapping with a kind ({', '.join(SOURCES)}), such as {EXAMPLE}."
        )
    kind = choice(given["kind"], tuple(SOURCES), f"{where}.source.kind")
    source = SOURCES[kind](given, f"{where}.source")
    known = common(item, where, kind)
    units = {
        name: parse_unit(unit, f"{where}.units.{name}")
        for name, unit in mapping(item.get("units"), f"{where}.units").items()
    }
    for name in units:
        if source.names is not None and name not in source.names:
            raise Problem(f"{where}.units names {name!r}, but the values are {', '.join(source.names)}.")
        if source.unit(name) and kind in ("redis", "process", "log"):
            raise Problem(f"{where}.units names {name!r}, whose unit is known: it is {source.unit(name)}.")
    required = [
        _named(one, source, known.name) for one in _thresholds(item.get("require"), f"{where}.require")
    ]
    triggers = [
        _named(one, source, known.name) for one in _thresholds(item.get("trigger"), f"{where}.trigger")
    ]
    if judged and not required and not triggers:
        raise Problem(f"{where} expects nothing: give require, trigger or both.")
    for one in required:
        if one.hold is not None:
            raise Problem(
                f"{where}.require is {one.text!r}: what fails when it has held for a time is a trigger; "
                "write it under trigger, or leave the time out."
            )
    for one in triggers:
        if one.statistic:
            raise Problem(
                f"{where}.trigger is {one.text!r}: a trigger is judged at each sample and has no {one.statistic}()."
            )
    window = item.get("window")
    check = Check(
        known,
        source,
        required,
        triggers,
        units,
        parse_duration(item.get("initial_delay", 0), f"{where}.initial_delay"),
        parse_duration(item.get("interval", INTERVAL), f"{where}.interval"),
        None if window is None else parse_duration(window, f"{where}.window"),
        Limits(*(_count(item.get(name, least), name, where) for name, least in LIMITS.items())),
    )
    if check.interval < SHORTEST_INTERVAL:
        raise Problem(
            f"{where}.interval must be at least {SHORTEST_INTERVAL} seconds, found {check.interval:g}."
        )
    if window is not None and check.longest() > (check.window or 0.0):
        raise Problem(
            f"{where}.window is {check.window:g} s, but a trigger holds only after {check.longest():g} s: make the window as long."
        )
    for one in (*required, *triggers):
        require_fit(one, check.unit(one.name), where)
    return check


def _thresholds(value: Any, where: str) -> list[Threshold]:
    given = value if isinstance(value, list) else [] if value is None else [value]
    return [parse_threshold(one, where) for one in given]


def _named(threshold: Threshold, source: Source, check: str) -> Threshold:
    """Return *threshold* with the name that *source* has for its value.

    :raises Problem: when there is no such value, or none is named of several.
    """
    name = threshold.name
    names = source.names
    if names is None:
        return threshold._replace(name=name or VALUE)
    if name in names:
        return threshold
    # Of one value it is clear which is meant; its check's name is as good a name.
    if len(names) == 1 and name in ("", VALUE, check):
        return threshold._replace(name=names[0])
    known = ", ".join(names)
    if not name:
        raise Problem(
            f"The condition {threshold.text!r} does not say which value of {source.kind!r} it is on: {known}."
        )
    raise Problem(f"The condition {threshold.text!r} is on {name!r}, but the values are {known}.")


def _count(value: Any, name: str, where: str) -> int:
    least = LIMITS[name] if name == "minimum_samples" else 0
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise Problem(f"{where}.{name} must be a whole number of at least {least}, found {value!r}.")
    return value
