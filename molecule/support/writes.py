# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every write that was acknowledged, and where it is found afterwards."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from machine import Machine
from traffic import Answer, ask

WRITER = Path(__file__).with_name("writer.py").read_text(encoding="utf-8")
WORD = "writer"


class Copy(NamedTuple):
    """What one copy of the database holds: the texts of the writers' rows, and those of the rows that were deleted."""

    name: str
    rows: list[str]
    deleted: list[str]

    @property
    def marks(self) -> set[str]:
        """The marks of the writes that are in this copy."""
        return {mark for text in (*self.rows, *self.deleted) for mark in text.split()[1:]}


def contradictions(copy: Copy, sent: set[str]) -> list[str]:
    """What no history of writes can have left: a row that is there and deleted, twice, or written by nobody."""
    firsts = Counter(text.split()[1] for text in (*copy.rows, *copy.deleted))
    wrong = [
        f"{copy.name}: the row of {first} is there {times} times"
        for first, times in firsts.items()
        if times > 1
    ]
    return wrong + [f"{copy.name}: nobody sent {mark}" for mark in sorted(copy.marks - sent)]


def missing(acknowledged: Iterable[str], copies: Iterable[Copy]) -> list[str]:
    """The acknowledged writes that are in none of the copies."""
    found = set().union(*(copy.marks for copy in copies))
    return [mark for mark in acknowledged if mark not in found]


class Book:
    """What was sent and what was acknowledged; takes the place of a `traffic.Ledger`, whose numbers a restore gives again."""

    def __init__(self) -> None:
        # No mark of an earlier run is given again: a backup of that time would be taken for a copy of a lost write.
        self.first = int(time.time()) * 100_000
        self._numbers = itertools.count(self.first)
        self._lock = threading.Lock()
        self.sent: set[str] = set()
        #: the kind of each acknowledged write, by its mark
        self.acknowledged: dict[str, str] = {}

    def send(self, address: str, text: str) -> Answer:
        """Have the application insert a row with this text."""
        body = {"risk_type": "EXPIRING", "severity": "INFO", "details": text}
        return ask(address, "/signals/report/", "POST", body)

    def report(self, address: str) -> Answer:
        """Insert a row through the application."""
        with self._lock:
            mark = f"h{next(self._numbers)}"
            self.sent.add(mark)
        answer = self.send(address, f"{WORD} {mark}")
        if answer.status == 201 and "id" in json.loads(answer.body):
            with self._lock:
                self.acknowledged[mark] = "http"
        return answer

    def heard(self, line: str) -> None:
        """Take a line of writer.py."""
        word, mark, *kind = line.split()
        with self._lock:
            if word == "sent":
                self.sent.add(mark)
            else:
                self.acknowledged[mark] = kind[0]

    def next_statement(self) -> int:
        """The number of the next mark of writer.py."""
        with self._lock:
            return max((int(mark[1:]) for mark in self.sent if mark[0] == "s"), default=self.first) + 1

    def kinds(self) -> Counter[str]:
        """How many writes of each kind were acknowledged."""
        return Counter(self.acknowledged.values())


class Writer:
    """writer.py in the host, from entering to leaving the context."""

    def __init__(
        self, site: Machine, book: Book, command: tuple[str, ...], user: str, pause: float = 0.02
    ) -> None:
        self.book = book
        first = book.next_statement()
        self.words = ["docker", "exec", "--interactive", f"--user={user}", site.container]
        self.words += ["python3", "-c", WRITER, str(first), str(pause), *command]

    def __enter__(self) -> Writer:
        self.process = subprocess.Popen(self.words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        return self

    def _read(self) -> None:
        for line in self.process.stdout:
            self.book.heard(line)

    def __exit__(self, *_error: object) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.reader.join()
