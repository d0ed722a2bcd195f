# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values from a log: how many entries of which kind come in a minute, and which share of all they are.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils import _log_files, _log_tail
from ansible_collections.runbook.deploy.plugins.module_utils._bounded import KILL_GRACE, TERM_GRACE
from ansible_collections.runbook.deploy.plugins.module_utils._conditions import compile_pattern
from ansible_collections.runbook.deploy.plugins.module_utils._gate_spec import (
    choice,
    common,
    keys,
    mapping,
    strings,
)
from ansible_collections.runbook.deploy.plugins.module_utils._log_entries import Entry
from ansible_collections.runbook.deploy.plugins.module_utils._log_files import Unread
from ansible_collections.runbook.deploy.plugins.module_utils._log_spec import (
    LEVELS,
    Check,
    Count,
    Tally,
    parse_log,
)
from ansible_collections.runbook.deploy.plugins.module_utils._metrics_source import Source, Unsampled
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._thresholds import NAME, Reading

KEYS = ("kind", "path", "unit", "directory", "begins", "allow", "patterns", "levels")
EXAMPLE = "{kind: log, path: /var/log/shop/web.log, levels: [errors]}"
ALL, SHARE = "entries", "_share"
MINUTE = 60.0
SHORTEST = 0.05
# Kept of the time for journalctl to end.
ENDING = TERM_GRACE + KILL_GRACE
# Whatever is counted meets it: the conditions are the gate's, on values.
ANY_NUMBER = ">= 0"
PENDING = Reading(None, "it takes two samples", pending=True)


class Counted(NamedTuple):
    """What came between two samples: ``entries`` that are new; ``looked``, these and those that have become of another kind since they were
    counted, which the ``numbers`` of each kind are a share of."""

    entries: int
    looked: int
    numbers: list[int]


class Growth(Tally):
    """Counts entries from sample to sample, each once for each kind that it is of; it keeps nothing of their text.

    An entry that may go on is counted with the sample that sees it: of a log that ends with an error, nothing that follows would tell.
    Where a traceback comes with a later sample, the error counts there.
    """

    def __init__(self, check: Check) -> None:
        super().__init__(check)
        self._looked = 0
        # Entries that were counted and may go on, with the kinds that they were counted for.
        self._known: dict[Entry, set[int]] = {}

    def take(self, entry: Entry) -> None:
        """See :meth:`Tally.take`."""
        before = self._known.pop(entry, None)
        fresh = set(self.kinds(entry)) - (before or set())
        self.entries += before is None
        self._looked += before is None or bool(fresh)
        for index in fresh:
            self.numbers[index] += 1

    def since(self, pending: Sequence[Entry]) -> Counted:
        """Return what has come since this was last called, and begin anew.

        :param pending: entries that may go on.
        """
        for entry in pending:
            kinds = self._known.get(entry, set()) | set(self.kinds(entry))
            self.take(entry)
            self._known[entry] = kinds
        found = Counted(self.entries, self._looked, self.numbers)
        self.entries, self._looked, self.numbers = 0, 0, [0] * len(self.numbers)
        return found


class LogSource(Source):
    """Entries of a log file or a journal per minute, by pattern and level, and their share of all."""

    kind = "log"
    differs = True

    def __init__(self, item: Mapping[str, Any], where: str) -> None:
        keys(item, KEYS, where, EXAMPLE)
        path, journal = parse_log(item, where, "unit", EXAMPLE)
        begins = item.get("begins")
        self.check = Check(
            common({}, where, self.kind),
            path,
            journal,
            False,
            None if begins is None else compile_pattern(str(begins), f"{where}.begins"),
            [
                compile_pattern(text, f"{where}.allow")
                for text in strings(item.get("allow"), f"{where}.allow")
            ],
            [
                *_levels(item.get("levels"), f"{where}.levels"),
                *_patterns(item.get("patterns"), f"{where}.patterns"),
            ],
        )
        labels = [count.label for count in self.check.counts]
        self.names: tuple[str, ...] = names_of(labels)
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise Problem(
                f"{where} has two values with the name {twice[0]!r}: name each level once, and each pattern otherwise."
            )
        self._tail: _log_tail.Tail | None = None
        self._growth = Growth(self.check)
        # Since when entries are counted (``time.monotonic()``), and where that is in the log.
        self._since = 0.0
        self._from: Mapping[str, Any] | None = None

    def unit(self, name: str) -> str:
        """See :meth:`Source.unit`."""
        # A pattern may itself have a name that ends so.
        rates = (ALL, *(count.label for count in self.check.counts))
        return "share" if name in self.names and name not in rates else ""

    def sample(self, timeout: float) -> dict[str, Reading]:
        """See :meth:`Source.sample`."""
        limit = time.monotonic() + max(SHORTEST, timeout - ENDING)
        if self._tail is None:
            self._begin(limit)
            return dict.fromkeys(self.names, PENDING)
        tail, lines = self._tail, self._tail.lines
        self._from = tail.cursor
        try:
            missing = tail.read(limit, False)
        except Unread as error:
            if tail.lines != lines:
                # Its mark is still before them: they would be counted again.
                self._begin_anew(limit)
            raise Unsampled(error.text) from error
        if missing:
            # How many entries there were is not known, nor for which time those stand that were read.
            self._begin_anew(limit)
            raise Unsampled(missing)
        at = time.monotonic()
        counted = self._growth.since(tail.pending())
        seconds, self._since = at - self._since, at
        return figures([count.label for count in self.check.counts], counted, seconds)

    def _begin(self, limit: float) -> None:
        """Mark the log, so that the next sample counts from here on.

        :raises Unsampled: when it cannot be read; where there is no file yet, all that comes into it will be counted.
        """
        self._tail, self._growth = None, Growth(self.check)
        try:
            cursor = _log_tail.mark(self.check, limit)
        except Unread as error:
            if self.check.path is not None and _absent(self.check.path):
                with contextlib.suppress(Unread):
                    self._count_from(_log_files.mark(self.check.path, True))
            raise Unsampled(error.text) from error
        self._count_from(cursor)

    def _begin_anew(self, limit: float) -> None:
        with contextlib.suppress(Unsampled):
            self._begin(limit)

    def _count_from(self, cursor: Mapping[str, Any]) -> None:
        self._tail = _log_tail.Tail(self.check, self._growth, cursor)
        self._since, self._from = time.monotonic(), cursor

    def place(self) -> str:
        """See :meth:`Source.place`."""
        return self.check.place

    def repeat(self) -> str:
        """See :meth:`Source.repeat`."""
        return _log_tail.repeat(self.check, self._from)


def names_of(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the values where *labels* are counted."""
    return (ALL, *labels, *(f"{label}{SHARE}" for label in labels))


def figures(labels: Sequence[str], counted: Counted, seconds: float) -> dict[str, Reading]:
    """Return the values of what was *counted* in *seconds*: entries per minute, and shares from 0 to 1.

    Nothing written is a rate of 0, since the log was read; of nothing there is no share.
    """
    if seconds <= 0:
        return dict.fromkeys(names_of(labels), PENDING)
    nothing = Reading(None, "no entry was written since the sample before")
    found = {ALL: Reading(counted.entries * MINUTE / seconds)}
    for label, number in zip(labels, counted.numbers):
        found[label] = Reading(number * MINUTE / seconds)
        found[f"{label}{SHARE}"] = Reading(number / counted.looked) if counted.looked else nothing
    return found


def _absent(path: str) -> bool:
    """Return whether nothing is at *path*; what may not be looked at may be there."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _levels(value: Any, where: str) -> list[Count]:
    known = [name for name in LEVELS if name != ALL]
    names = [choice(name, known, where) for name in strings(value, where)]
    return [Count(name, LEVELS[name], None, ANY_NUMBER, True) for name in names]


def _patterns(value: Any, where: str) -> list[Count]:
    found = []
    for name, pattern in mapping(value, where).items():
        if not re.fullmatch(NAME, name):
            raise Problem(
                f"{where} has the name {name!r}, which no condition can begin with: use letters, digits and underscores."
            )
        if not isinstance(pattern, str) or not pattern:
            raise Problem(f"{where}.{name} must be a regular expression, found {pattern!r}.")
        found.append(Count(name, None, compile_pattern(pattern, f"{where}.{name}"), ANY_NUMBER, True))
    return found
