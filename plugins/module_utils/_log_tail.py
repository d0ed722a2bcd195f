# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a log on from a mark, whether file or journal, and put its lines together to entries that are counted.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import shlex
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _log_files, _log_journal
from ansible_collections.runbook.deploy.plugins.module_utils._log_entries import Assembler, Entry, Line
from ansible_collections.runbook.deploy.plugins.module_utils._log_spec import Check, Tally

# Processes whose entries of a journal are put together at the same time.
WRITERS = 256


def mark(check: Check, limit: float) -> dict[str, Any]:
    """Return a cursor for the end of the log of *check*; *limit* is the latest end (``time.monotonic()``).

    :raises Unread: when it cannot be read.
    """
    if check.path is not None:
        return _log_files.mark(check.path, check.absent)
    return _log_journal.mark(check.entries_of(), limit)


def repeat(check: Check, cursor: Any) -> str:
    """Return the command that shows by hand what the log of *check* has since *cursor*, which may be none at all."""
    found = cursor if isinstance(cursor, Mapping) else {}
    if check.path is not None:
        offset = found.get("offset", 0)
        return shlex.join(["tail", "-c", f"+{offset + 1 if isinstance(offset, int) else 1}", check.path])
    since = [f"--cursor={found['cursor']}"] if isinstance(found.get("cursor"), str) else ["--since=-1h"]
    return shlex.join(check.entries_of().argv(*since))


class Tail:
    """What comes after a mark.

    :param tally: counts it; :param cursor: the mark.
    :ivar cursor: where the next reading begins; :ivar lines: how many lines were read.
    """

    def __init__(self, check: Check, tally: Tally, cursor: Mapping[str, Any]) -> None:
        self.check = check
        self.tally = tally
        self.cursor = dict(cursor)
        self.lines = 0
        self._writers: OrderedDict[str, Assembler] = OrderedDict()

    def read(self, limit: float, final: bool) -> str:
        """Count what has come, and return what could not be read of it, a part of a sentence, "" for nothing.

        :param limit: the reading of ``time.monotonic()`` at which to stop; :param final: whether a last line without an end is a line.
        :raises Unread: when the log cannot be read.
        """
        if self.check.path is not None:
            done = _log_files.read_since(
                self.cursor, limit, lambda line, where: self._take(line, where, "", None), final
            )
        else:
            done = _log_journal.read_since(self.check.entries_of(), self.cursor, limit, self._take)
        self.cursor = done.cursor
        return done.missing

    def pending(self) -> list[Entry]:
        """Return the entries that may still go on; they are not counted yet."""
        return [entry for entry in (one.entry for one in self._writers.values()) if entry is not None]

    def end(self) -> None:
        """Count the entries that may go on; a line that comes later begins another one."""
        for name in list(self._writers):
            self._end(name)

    def _take(self, line: Line, where: str, writer: str, level: str | None) -> None:
        """Count one line; the lines of several processes may alternate in a journal."""
        self.lines += 1
        assembler = self._writers.get(writer)
        if assembler is None and not line.text.strip():
            return
        if assembler is None:
            if len(self._writers) >= WRITERS:
                self._end(next(iter(self._writers)))
            assembler = self._writers[writer] = Assembler(self.check.begins)
        self._writers.move_to_end(writer)
        entry, done = assembler.add(line, where, level)
        if done is not None:
            self.tally.take(done)
        self.tally.look(entry, line.text)

    def _end(self, writer: str) -> None:
        done: Entry | None = self._writers.pop(writer).end()
        if done is not None:
            self.tally.take(done)
