# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the checks of a gate of logs as people write them, and count what they ask for.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._conditions import (
    compile_pattern,
    holds,
    number,
    parse_condition,
)
from ansible_collections.runbook.deploy.plugins.module_utils._gate_spec import (
    COMMON,
    Common,
    common,
    condition,
    flag,
    keys,
    strings,
)
from ansible_collections.runbook.deploy.plugins.module_utils._log_entries import (
    CRITICAL,
    ERROR,
    WARNING,
    Entry,
)
from ansible_collections.runbook.deploy.plugins.module_utils._log_journal import Journal
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Which levels each count has.
LEVELS: dict[str, tuple[str, ...] | None] = {
    "critical": (CRITICAL,),
    "errors": (CRITICAL, ERROR),
    "warnings": (WARNING,),
    "entries": None,
}
KEYS = (
    *COMMON,
    "path",
    "journal",
    "directory",
    "absent",
    "begins",
    "forbidden",
    "required",
    "allow",
    *LEVELS,
)
EXAMPLE = "{path: /var/log/shop/web.log, errors: '< 1'}"
# Entries of one kind that are shown, and lines of all.
SHOWN_ENTRIES = 3
SHOWN_LINES = 16


class Count(NamedTuple):
    """What is counted: entries of ``levels`` (None: of any), or those with a ``pattern``; ``condition`` is what their number must meet.

    ``allowing``: entries that are allowed do not count.
    """

    label: str
    levels: tuple[str, ...] | None
    pattern: re.Pattern[str] | None
    condition: Any
    allowing: bool


class Check(NamedTuple):
    """One log and what is expected in it; ``absent``: the file may not be there when it is marked."""

    common: Common
    path: str | None
    journal: Journal | None
    absent: bool
    begins: re.Pattern[str] | None
    allow: list[re.Pattern[str]]
    counts: list[Count]

    @property
    def name(self) -> str:
        """Its name."""
        return self.common.name

    @property
    def place(self) -> str:
        """What the log is called in messages."""
        return self.path or self.entries_of().place

    def entries_of(self) -> Journal:
        """Return the journal.

        :raises ValueError: when it is a file.
        """
        if self.journal is None:
            raise ValueError(f"{self.path} is no journal")
        return self.journal


def parse_check(item: Any, where: str) -> Check:
    """Return one check.

    :raises Problem: when it is not well written.
    """
    keys(item, KEYS, where, EXAMPLE)
    path, journal = parse_log(item, where, "journal", EXAMPLE)
    counts = [
        Count(name, levels, None, _bound(item[name], f"{where}.{name}"), True)
        for name, levels in LEVELS.items()
        if item.get(name) is not None
    ]
    counts += _patterns(item.get("forbidden"), f"{where}.forbidden", "== 0", True)
    counts += _patterns(item.get("required"), f"{where}.required", ">= 1", False)
    if not counts:
        raise Problem(f"{where} expects nothing: give forbidden, required, {' or '.join(LEVELS)}.")
    begins = item.get("begins")
    return Check(
        common(item, where, path or ", ".join(journal.units if journal else ())),
        path,
        journal,
        flag(item.get("absent", False), f"{where}.absent"),
        None if begins is None else compile_pattern(str(begins), f"{where}.begins"),
        [compile_pattern(text, f"{where}.allow") for text in strings(item.get("allow"), f"{where}.allow")],
        counts,
    )


def parse_log(
    item: Mapping[str, Any], where: str, key: str, example: str
) -> tuple[str | None, Journal | None]:
    """Return which log *item* names: the ``path`` of a file, or the journal of the units under *key*, perhaps in a ``directory``.

    :raises Problem: when it names none or both, or not well.
    """
    path, units = item.get("path"), strings(item.get(key), f"{where}.{key}")
    if (path is None) == (not units):
        raise Problem(f"{where} must have either path or {key}, such as {example}.")
    if path is not None and (not isinstance(path, str) or not os.path.isabs(path) or "\0" in path):
        raise Problem(f"{where}.path must be an absolute path, found {path!r}.")
    for unit in units:
        if unit.startswith("-") or not re.fullmatch(r"[\w:.@\\*?\[\]-]+", unit):
            raise Problem(f"{where}.{key} must name units of systemd, such as shop.service, found {unit!r}.")
    directory = item.get("directory")
    if directory is not None and (path or not isinstance(directory, str) or not os.path.isabs(directory)):
        raise Problem(
            f"{where}.directory must be an absolute path and belongs to a journal, found {directory!r}."
        )
    return path, Journal(tuple(units), directory) if units else None


def _bound(value: Any, where: str) -> Any:
    """Return a condition on a number of entries; a bare number is exactly as many."""
    found = condition(value, where)
    parsed = parse_condition(found, where)
    if (
        parsed.operator not in ("<", "<=", ">", ">=", "==", "!=", "is")
        or parsed.length
        or number(parsed.operand) is None
    ):
        raise Problem(f"{where} must be a condition on a number of entries, such as '< 1', found {value!r}.")
    return found


def _patterns(value: Any, where: str, default: str, allowing: bool) -> list[Count]:
    given = value if isinstance(value, Mapping) else dict.fromkeys(strings(value, where), default)
    found = []
    for text, expected in given.items():
        if not isinstance(text, str) or not text:
            raise Problem(
                f"{where} must be patterns, or a mapping of patterns to conditions, found {text!r}."
            )
        bound = _bound(default if expected is None else expected, f"{where}[{text!r}]")
        found.append(Count(repr(text), None, compile_pattern(text, where), bound, allowing))
    return found


class Tally:
    """What was counted in a log."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self.numbers = [0] * len(check.counts)
        self.examples: list[list[Entry]] = [[] for _pattern in check.counts]
        self.entries = 0
        self.allowed = 0

    def look(self, entry: Entry, text: str) -> None:
        """Look for the patterns in one line of *entry*."""
        for index, count in enumerate(self.check.counts):
            if count.pattern is not None and index not in entry.matched and count.pattern.search(text):
                entry.matched.add(index)
        entry.allowed = entry.allowed or any(pattern.search(text) for pattern in self.check.allow)

    def kinds(self, entry: Entry) -> list[int]:
        """Return which counts *entry* belongs to."""
        return [
            index
            for index, count in enumerate(self.check.counts)
            if not (count.allowing and entry.allowed)
            and (
                index in entry.matched
                if count.pattern is not None
                else count.levels is None or entry.level in count.levels
            )
        ]

    def take(self, entry: Entry) -> None:
        """Count an entry that is complete."""
        self.entries += 1
        self.allowed += entry.allowed
        for index in self.kinds(entry):
            self.numbers[index] += 1
            if len(self.examples[index]) < SHOWN_ENTRIES:
                self.examples[index].append(entry)

    def wrong(self, whole: bool, pending: Sequence[Entry] = ()) -> list[int]:
        """Return which counts are not as expected; not *whole*: those only that more entries cannot make right.

        :param pending: entries that may still go on.
        """
        numbers = list(self.numbers)
        for entry in pending:
            for index in self.kinds(entry):
                numbers[index] += 1
        return [
            index
            for index, count in enumerate(self.check.counts)
            if not holds(numbers[index], ".", count.condition)[0]
            and (whole or _too_many(numbers[index], count.condition))
        ]

    def open(self) -> list[int]:
        """Return which counts more entries could make wrong, or are needed for."""
        return [
            index
            for index, count in enumerate(self.check.counts)
            if not (holds(self.numbers[index], ".", count.condition)[0] and _never_too_many(count.condition))
        ]

    def described(self) -> str:
        """Return the numbers in words."""
        parts = [f"{count.label} {found}" for count, found in zip(self.check.counts, self.numbers)]
        allowed = f", {self.allowed} of them allowed" if self.allowed else ""
        return f"{', '.join(parts)} ({self.entries} entries{allowed})"

    def evidence(self, indexes: list[int]) -> list[str]:
        """Return the first lines of the first entries that were counted for *indexes*."""
        lines: list[str] = []
        shown: set[int] = set()
        for index in indexes:
            for entry in self.examples[index]:
                if id(entry) in shown or len(lines) >= SHOWN_LINES:
                    continue
                shown.add(id(entry))
                own = entry.shown()
                lines.append(f"{entry.where}: {own[0]}")
                lines += [f"  {line}" for line in own[1:]]
        return lines[:SHOWN_LINES]


def _too_many(found: int, expected: Any) -> bool:
    """Return whether *found* is wrong, and would be with any greater number."""
    parsed = parse_condition(expected, "count")
    limit = number(parsed.operand) or 0.0
    return {
        "<": found >= limit,
        "<=": found > limit,
        "==": found > limit,
        "is": found > limit,
    }.get(parsed.operator, False)


def _never_too_many(expected: Any) -> bool:
    return parse_condition(expected, "count").operator in (">", ">=")


def expected_of(check: Check) -> str:
    """Return in words what *check* expects."""
    return ", ".join(f"{count.label} {_worded(count.condition)}" for count in check.counts)


def _worded(expected: Any) -> str:
    return str(expected) if isinstance(expected, str) and not expected.isdecimal() else f"== {expected}"
