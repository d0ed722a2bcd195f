# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the journal of systemd from where it was marked, by journalctl.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._bounded import Unrunnable, excerpt, run_bounded
from ansible_collections.runbook.deploy.plugins.module_utils._command import base_environment
from ansible_collections.runbook.deploy.plugins.module_utils._log_entries import (
    CRITICAL,
    DEBUG,
    ERROR,
    INFO,
    NOTICE,
    PIECE,
    WARNING,
    Line,
    Splitter,
)
from ansible_collections.runbook.deploy.plugins.module_utils._log_files import Pass, Unread
from ansible_collections.runbook.deploy.plugins.module_utils._systemd import parse_show

# Bytes of one entry as JSON; journald itself takes less of one line (LineMax=48K in journald.conf(5)).
ENTRY = 1024 * 1024
# Priorities of syslog(3).
PRIORITIES = {
    "0": CRITICAL,
    "1": CRITICAL,
    "2": CRITICAL,
    "3": ERROR,
    "4": WARNING,
    "5": NOTICE,
    "6": INFO,
    "7": DEBUG,
}
FIELDS = "MESSAGE,PRIORITY,_PID"
# What journalctl says to somebody who sees only what is his own.
BLIND = "not seeing messages from"
# What it says of a pattern that is no unit's; the journal is there all the same.
NO_UNITS = "Failed to add filter for units: No data available"
LOOK = 0.05
SHORTEST = 0.1


class Journal(NamedTuple):
    """Which entries are meant: of ``units`` (names or patterns), in ``directory`` (None: this host's journal)."""

    units: tuple[str, ...]
    directory: str | None

    def argv(self, *words: str, units: bool = True) -> list[str]:
        """Return a command of journalctl with *words*."""
        found = [
            "journalctl",
            "--no-pager",
            *([f"--directory={self.directory}"] if self.directory else []),
            *words,
        ]
        return [*found, *(f"--unit={unit}" for unit in self.units if units)]

    @property
    def place(self) -> str:
        """What it is called in messages."""
        return f"the journal of {', '.join(self.units)}"


def _first(argv: Sequence[str], limit: float) -> dict[str, Any] | None:
    """Return the first entry that *argv* prints; None where there is none.

    :raises Unread: when it cannot be asked.
    """
    try:
        ended = run_bounded(argv, timeout=max(SHORTEST, limit - time.monotonic()))
    except Unrunnable as error:
        raise Unread(error.text) from error
    said = ended.stderr.text()
    if ended.timed_out:
        raise Unread("journalctl had no answer in time")
    _require_sight(said)
    line = ended.stdout.text().split("\n", 1)[0]
    if not line:
        if said.strip() and ended.rc != 0 and NO_UNITS not in said:
            raise Unread(f"journalctl says: {excerpt(said, 1)}")
        return None
    try:
        found = json.loads(line)
    except ValueError as error:
        raise Unread(f"journalctl printed no JSON: {line[:80]!r}") from error
    return found if isinstance(found, dict) else None


def _require_sight(said: str) -> None:
    if BLIND in said:
        raise Unread(
            f"uid {os.geteuid()} may not see the system's journal: put the user into the group systemd-journal, or become root"
        )


def mark(journal: Journal, limit: float) -> dict[str, Any]:
    """Return a cursor for the end of the journal; it is that of its last entry, of whatever unit.

    :raises Unread: when the journal cannot be read, or has no entry.
    """
    found = _first(journal.argv("--lines=1", "--output=json", "--output-fields=MESSAGE", units=False), limit)
    if found is None or not isinstance(found.get("__CURSOR"), str):
        raise Unread("the journal has no entry, or none that may be read")
    return {"kind": "journal", "cursor": found["__CURSOR"], "at": time.time()}


def require_cursor(value: Any, where: str) -> dict[str, Any]:
    """Return *value*, a cursor of a journal.

    :raises Unread: when it is none.
    """
    if (
        not isinstance(value, Mapping)
        or value.get("kind") != "journal"
        or not isinstance(value.get("cursor"), str)
    ):
        raise Unread(f"{where} is no cursor of a journal: mark it again")
    return dict(value)


def read_since(
    journal: Journal,
    cursor: Mapping[str, Any],
    limit: float,
    take: Callable[[Line, str, str, str | None], None],
) -> Pass:
    """Hand every line that came since *cursor* to *take*, with its place, its process and its level.

    :param limit: the reading of ``time.monotonic()`` at which to stop.
    :raises Unread: when the journal cannot be read.
    """
    missing = ""
    begin = _first(
        journal.argv(
            f"--cursor={cursor['cursor']}",
            "--lines=1",
            "--output=json",
            "--output-fields=MESSAGE",
            units=False,
        ),
        limit,
    )
    if begin is None or begin.get("__CURSOR") != cursor["cursor"]:
        missing = "the entry that was marked is no longer in the journal: what came between is not known"
    lost = bool(missing)
    reader = _Reader(cursor["cursor"], take)
    # Not --after-cursor: where the marked entry is none of these units, it leaves out the first one that is (systemd 252).
    argv = journal.argv("--output=json", "--all", f"--output-fields={FIELDS}", f"--cursor={cursor['cursor']}")
    rc, said, whole = _stream(argv, limit, reader.feed)
    _require_sight(said)
    if not whole:
        missing = missing or "there was no time to read the journal to its end"
    elif rc != 0 and said.strip() and NO_UNITS not in said:
        raise Unread(f"journalctl says: {excerpt(said, 1)}")
    if reader.unread:
        missing = missing or f"{reader.unread} entries of the journal could not be read"
    if not reader.entries and not missing:
        _require_known(journal, limit)
    return Pass({**cursor, "cursor": reader.cursor}, missing, reader.size, lost)


def _require_known(journal: Journal, limit: float) -> None:
    """Refuse units that nobody knows: of a name that was mistyped there is nothing, and that is no good sign."""
    if _first(journal.argv("--lines=1", "--output=json", "--output-fields=MESSAGE"), limit) is not None:
        return
    plain = [unit for unit in journal.units if not set("*?[") & set(unit)]
    if plain:
        with contextlib.suppress(Unrunnable):
            argv = ["systemctl", "--no-pager", "show", "-p", "LoadState", "--", *plain]
            ended = run_bounded(argv, timeout=max(SHORTEST, limit - time.monotonic()))
            states = [parse_show(text).get("LoadState") for text in ended.stdout.text().split("\n\n")]
            if ended.rc == 0 and "loaded" in states:
                return
    raise Unread(
        f"there is no unit {' or '.join(journal.units)} on this host, and no entry of it in the journal"
    )


class _Reader:
    """Takes the output of ``journalctl --output=json`` apart; ``cursor`` is that of the last entry."""

    def __init__(self, cursor: str, take: Callable[[Line, str, str, str | None], None]) -> None:
        self.cursor = self._begin = cursor
        self.entries = self.unread = self.size = 0
        self._take = take
        self._splitter = Splitter(piece=ENTRY)

    def feed(self, data: bytes) -> None:
        self.size += len(data)
        for line in self._splitter.feed(data):
            if line.continued:
                continue
            self._entry(line.text)

    def _entry(self, text: str) -> None:
        if not text:
            return
        try:
            entry = json.loads(text)
            if entry["__CURSOR"] == self._begin:
                return
            self.cursor = str(entry["__CURSOR"])
        except (ValueError, TypeError, KeyError):
            # The first piece of an entry that is longer than any that is read.
            self.unread += 1
            return
        self.entries += 1
        message = entry.get("MESSAGE")
        if isinstance(message, list) and all(isinstance(byte, int) for byte in message):
            # What is no text is written as its bytes; several values of the field as a list of texts.
            message = bytes(byte & 255 for byte in message).decode("utf-8", "replace")
        elif isinstance(message, list):
            message = "\n".join(map(str, message))
        if not isinstance(message, str):
            self.unread += 1
            return
        pid = str(entry.get("_PID", ""))
        level = PRIORITIES.get(str(entry.get("PRIORITY", "")))
        for line in message.split("\n"):
            for begin in range(0, max(1, len(line)), PIECE):
                self._take(Line(line[begin : begin + PIECE], 0, begin > 0), self.cursor, pid, level)


def _stream(argv: Sequence[str], limit: float, take: Callable[[bytes], None]) -> tuple[int, str, bool]:
    """Run *argv* and hand its output to *take* as it comes; return its exit code, what it said of errors, and whether it ended in time.

    :raises Unread: when it cannot be run.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=base_environment(None),
            start_new_session=True,
        )
    except OSError as error:
        raise Unread(f"{argv[0]} cannot be run: {(error.strerror or str(error)).lower()}") from error
    said = b""
    whole = False
    try:
        with selectors.DefaultSelector() as selector:
            for stream in (process.stdout, process.stderr):
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map() and time.monotonic() < limit:
                for key, _events in selector.select(LOOK):
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is process.stdout:
                        take(data)
                    else:
                        said = (said + data)[-4096:]
            whole = not selector.get_map()
    finally:
        if not whole:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for stream in (process.stdout, process.stderr):
            stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
    return (
        process.returncode if process.returncode is not None else -9,
        said.decode("utf-8", "replace"),
        whole,
    )
