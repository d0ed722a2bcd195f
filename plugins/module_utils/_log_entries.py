# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take a log apart: lines of any length, entries of several lines such as tracebacks, levels.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._bounded import plain

# Bytes of a line that are looked at together, and that are looked at again with the next ones: what is sought is shorter.
PIECE = 64 * 1024
OVERLAP = 1024
# Lines of an entry that are kept to be shown: the first ones, and the last ones.
HEAD, TAIL = 3, 3
# Lines that an entry may have; what is longer is no entry but a log without beginnings that we know.
LONGEST = 2000
WIDTH = 200

CRITICAL, ERROR, WARNING, NOTICE, INFO, DEBUG = "critical", "error", "warning", "notice", "info", "debug"
_WORDS = {
    **dict.fromkeys(("emerg", "emergency", "panic", "alert", "crit", "critical", "fatal"), CRITICAL),
    **dict.fromkeys(("err", "error", "severe"), ERROR),
    **dict.fromkeys(("warn", "warning"), WARNING),
    "notice": NOTICE,
    **dict.fromkeys(("info", "information"), INFO),
    **dict.fromkeys(("debug", "trace"), DEBUG),
}
# Levels as loggers write them (Celery: WARNING/MainProcess): level=error and "level": "error"; [error] and [core:error] as web servers do; ERROR in capitals.
_FIELD = re.compile(
    r"""["']?\b(?:level|levelname|loglevel|severity|lvl)\b["']?\s*[=:]\s*["']?([A-Za-z]+)""", re.IGNORECASE
)
_BRACKETS = re.compile(r"\[(?:[a-z_]+:)?([A-Za-z]+)\s*\]")
_CAPITALS = re.compile(
    r"(?<![A-Za-z0-9_./-])("
    + "|".join(sorted(map(str.upper, _WORDS), key=len, reverse=True))
    + r")(?![A-Za-z0-9_-]|/(?!MainProcess|ForkPoolWorker))"
)
# A level stands near the beginning of a line; further on it is a word like any other.
NEAR = 200
_TRACEBACK = re.compile(r"^(?:Traceback \(most recent call last\):|Exception Group Traceback)")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?::\s|$)")
_CHAINED = re.compile(r"^(?:During handling of the above exception|The above exception was the direct cause)")
# What looks like a secret in a log of others: it is not repeated in ours.
_SECRETS = (
    re.compile(
        r"""(?i)\b((?:[\w-]*(?:password|passwd|passphrase|secret|token|api[_-]?key|private[_-]?key|credential)[\w-]*)["']?\s*[:=]\s*["']?)([^\s"',;&}\])]+)"""
    ),
    re.compile(
        r"(?i)\b((?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token|digest)?\s*)([^\s\"',;]+)"
    ),
    re.compile(r"(?i)\b(bearer\s+)([\w.~+/=-]{8,})"),
    re.compile(r"(?i)\b((?:set-)?cookie[\"']?\s*[:=]\s*[\"']?)([^\r\n\"']+)"),
    re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*:)([^\s@/]+)(?=@)"),
)


class Line(NamedTuple):
    """A line, or a part of a long one: ``offset`` of its first byte, ``continued``: it is not the beginning of its line."""

    text: str
    offset: int
    continued: bool


class Splitter:
    """Divides bytes into lines, however long these are, with little memory.

    :param piece: bytes of a line that are looked at together.
    """

    def __init__(self, offset: int = 0, piece: int = PIECE) -> None:
        self._piece = piece
        self._rest = b""
        # Where the rest begins, and how much of it was in the part before.
        self._at = offset
        self._seen = 0
        self._continued = False

    @property
    def begun(self) -> int:
        """Where what has no end yet begins, and has not been returned."""
        return self._at

    def feed(self, data: bytes) -> Iterator[Line]:
        """Return the lines that *data* ends, and parts of those that are long."""
        pieces = data.split(b"\n")
        for index, part in enumerate(pieces):
            self._rest += part
            while len(self._rest) > self._piece:
                yield self._part(self._piece)
            if index < len(pieces) - 1:
                yield self._line()

    def _part(self, size: int) -> Line:
        line = Line(_decoded(self._rest[:size]), self._at, self._continued)
        keep = min(OVERLAP, size // 2)
        self._rest = self._rest[size - keep :]
        self._at += size - keep
        self._continued = True
        return line

    def _line(self) -> Line:
        line = Line(_decoded(self._rest), self._at, self._continued)
        self._at += len(self._rest) + 1
        self._rest, self._continued = b"", False
        return line

    def rest(self) -> Line | None:
        """Return what has no end, as a line; None where there is nothing."""
        if not self._rest:
            return None
        line = Line(_decoded(self._rest), self._at, self._continued)
        self._at += len(self._rest)
        self._rest, self._continued = b"", True
        return line


def _decoded(data: bytes) -> str:
    # The rest of a hole in a file that was truncated is nothing of a line.
    return data.lstrip(b"\0").decode("utf-8", "replace").rstrip("\r")


def level_of(text: str) -> str | None:
    """Return the level that the line *text* names, or None."""
    begin = text[:NEAR]
    found = _FIELD.search(begin)
    if found and found.group(1).lower() in _WORDS:
        return _WORDS[found.group(1).lower()]
    for match in _BRACKETS.finditer(begin):
        if match.group(1).lower() in _WORDS:
            return _WORDS[match.group(1).lower()]
    capitals = _CAPITALS.search(begin)
    return _WORDS[capitals.group(1).lower()] if capitals else None


class Entry:
    """One entry of a log: a line and those that belong to it.

    :param where: the place of its first line, for people; :param level: of whoever carried it, where its text names none.
    """

    def __init__(self, where: str, level: str | None = None) -> None:
        self.where = where
        self.named: str | None = None
        self.traceback = False
        self.carried = level
        self.count = 0
        self.head: list[str] = []
        self.tail: deque[str] = deque(maxlen=TAIL)
        # Which patterns were found in it; whoever counts keeps them here.
        self.matched: set[int] = set()
        self.allowed = False

    @property
    def level(self) -> str | None:
        """Its level: what its first line says, at least ``error`` for a traceback without one, else what it was carried with."""
        if self.traceback and self.named not in (CRITICAL, ERROR, WARNING):
            return ERROR
        return self.named or self.carried

    def add(self, text: str, continued: bool = False) -> None:
        """Take a line of it; the parts of a long line are one line."""
        if not self.count:
            self.named = level_of(text)
        if continued and self.count:
            return
        self.count += 1
        short = text[: WIDTH * 2]
        if len(self.head) < HEAD:
            self.head.append(short)
        elif text.strip():
            self.tail.append(short)

    def shown(self) -> list[str]:
        """Return the lines to be shown: the first, and for a traceback the last ones, which say what happened."""
        lines = self.head[:1] if self.traceback and self.tail else self.head[:]
        lines += list(self.tail) if self.traceback else []
        left = self.count - len(lines)
        if left > 0 and not self.traceback:
            lines.append(f"[… {left} more lines …]")
        return [_short(masked(line)) for line in lines]


def _short(text: str) -> str:
    line = " ".join(plain(text).split("\n")).rstrip()
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"


def masked(text: str) -> str:
    """Return *text* without what looks like a password, a token, a cookie or a password in an address."""
    for pattern in _SECRETS:
        text = pattern.sub(lambda found: f"{found.group(1)}********", text)
    return text


class Assembler:
    """Puts the lines of one writer together to entries.

    :param begins: what the first line of each entry has; None: lines that are indented, and tracebacks, belong to the line before.
    """

    def __init__(self, begins: re.Pattern[str] | None = None) -> None:
        self._begins = begins
        self._entry: Entry | None = None
        # Within a traceback: "frames" before its exception, "chain" where another one follows.
        self._state = ""

    def add(self, line: Line, where: str, level: str | None = None) -> tuple[Entry, Entry | None]:
        """Return the entry that *line* belongs to, and the one that is complete with it."""
        text = line.text
        done: Entry | None = None
        if self._entry is None or not (line.continued or self._belongs(text)):
            done, self._entry, self._state = self._entry, Entry(where, level), ""
        if not line.continued:
            self._follow(text)
        self._entry.add(text, line.continued)
        return self._entry, done

    @property
    def entry(self) -> Entry | None:
        """The entry that may still go on."""
        return self._entry

    def end(self) -> Entry | None:
        """Return the last entry."""
        done, self._entry, self._state = self._entry, None, ""
        return done

    def _belongs(self, text: str) -> bool:
        entry = self._entry
        if entry is None or entry.count >= LONGEST:
            return False
        if self._begins is not None:
            return not self._begins.search(text)
        begun = _TRACEBACK.match(text.lstrip(" +|"))
        if not begun and (not text.strip() or text[0] in " \t"):
            return True
        if self._state == "frames" and not begun:
            # The exception; a traceback that was cut off is not gone on with by the next entry.
            return bool(_EXCEPTION.match(text)) or level_of(text) is None
        if _CHAINED.match(text):
            return entry.traceback
        if begun:
            # After a line of an access log it is a fault of its own, and must not be allowed with that line.
            inside = text[0] in " \t" and entry.traceback
            return (
                inside
                or self._state == "chain"
                or (not entry.traceback and entry.level in (CRITICAL, ERROR, WARNING))
            )
        return False

    def _follow(self, text: str) -> None:
        if _TRACEBACK.match(text.lstrip(" +|")):
            # Groups of exceptions are indented as a whole, and have no line for their exception that is not.
            self._state = "frames" if text[0] not in " \t" else ""
            self._entry.traceback = True  # type: ignore[union-attr]
        elif _CHAINED.match(text):
            self._state = "chain"
        elif self._state == "frames" and text.strip() and text[0] not in " \t":
            self._state = ""
