# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Visitors of the application: somebody reads pages and somebody reports signals while a deployment goes on."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import threading
import time
from dataclasses import dataclass, field
from typing import Any

# Longer than the application waits for a locked database.
TIMEOUT = 25


@dataclass
class Answer:
    """What one request got; `status` is 0 where no answer came."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def version(self) -> str:
        """The version that answered, in the application's own words."""
        titled = re.search(rb"<h1>Leadbook (\S+)</h1>", self.body)
        return titled.group(1).decode() if titled else self.headers.get("x-goexplorer-version", "")


def ask(
    address: str, path: str, method: str = "GET", body: Any = None, host: str = "", token: str = ""
) -> Answer:
    """Send one request over a connection of its own, as a new visitor does; nothing is tried twice."""
    connection = http.client.HTTPConnection(address, 80, timeout=TIMEOUT)
    headers = {"Host": host or address, "Connection": "close"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if body is not None:
        body = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return Answer(
            answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        )
    except (OSError, http.client.HTTPException) as error:
        return Answer(0, error=f"{type(error).__name__}: {error}")
    finally:
        connection.close()


class Ledger:
    """What the application acknowledged, over the whole life of its database."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self.sent: set[str] = set()
        self.acknowledged: dict[int, str] = {}

    def report(self, address: str) -> Answer:
        """Report one signal and remember it when the application says that it is stored."""
        with self._lock:
            details = f"ledger {next(self._numbers)}"
            self.sent.add(details)
        body = {"risk_type": "EXPIRING", "severity": "INFO", "details": details}
        answer = ask(address, "/signals/report/", "POST", body)
        if answer.status == 201:
            with self._lock:
                self.acknowledged[json.loads(answer.body)["id"]] = details
        return answer


class Traffic:
    """Requests in the background, several a second, from entering to leaving the context."""

    def __init__(self, address: str, ledger: Ledger, pause: float = 0.1) -> None:
        self.address = address
        self.ledger = ledger
        self.pause = pause
        self.answers: list[tuple[str, Answer]] = []
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._go, args=("write", lambda: ledger.report(address))),
            threading.Thread(target=self._go, args=("read", lambda: ask(address, "/"))),
        ]

    def _go(self, what: str, request: Any) -> None:
        while not self._over.is_set():
            self.answers.append((what, request()))
            self._over.wait(self.pause)

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        # The first answers are from before anything happens.
        until = time.monotonic() + TIMEOUT
        while {what for what, _answer in list(self.answers)} != {
            "read",
            "write",
        } and time.monotonic() < until:
            time.sleep(0.05)
        return self

    def __exit__(self, *_error: object) -> None:
        time.sleep(1)
        self._over.set()
        for thread in self._threads:
            thread.join()

    def count(self, what: str) -> int:
        """How many requests of this kind were sent."""
        return sum(1 for kind, _answer in self.answers if kind == what)

    @property
    def failed(self) -> list[str]:
        """Requests that did not get what they came for, in words."""
        wanted = {"read": 200, "write": 201}
        return [
            f"{what}: {answer.status} {answer.error or answer.body[:80]!r}"
            for what, answer in self.answers
            if answer.status != wanted[what]
        ]

    @property
    def versions(self) -> list[str]:
        """The versions that answered pages, each once, in order of their first answer."""
        found = [answer.version for what, answer in self.answers if what == "read" and answer.version]
        return list(dict.fromkeys(found))
