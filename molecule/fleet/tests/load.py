# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A constant load on a web site, by a program of its own, and what each request got.

    load.py ADDRESS[:PORT] RATE CONNECTIONS FILE OWN

Until it gets TERM it sends RATE requests a second over CONNECTIONS connections: every second one is kept open as a
browser keeps it, the others are new for each request. It asks for the home page, the style sheet that this page names,
and /healthz/ in turn. FILE gets one JSON list for each request, when its answer is there:

    [time of sending, seconds, kind, status, version, server, error]

`status` is 0 where no answer came; nothing is tried twice. Two kinds are no requests of visitors, and say how the machine is:
`balancer` is the path OWN, answered by the balancer (or the only web server) itself, ten times a second, and `late` is by how much this
program was waked too late.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import sys
import threading
import time
from typing import TextIO

# Far beyond every deadline of a balancer; an answer that takes longer is none.
TIMEOUT = 40
STYLE = re.compile(rb'href="(/static/[^"]+\.css)"')
PAGES = ("/", "style", "/healthz/")


class Client:
    """One connection's worth of requests."""

    def __init__(self, address: str, kept: bool, output: TextIO, lock: threading.Lock) -> None:
        self.address, self.kept, self.output, self.lock = address, kept, output, lock
        self.connection: http.client.HTTPConnection | None = None
        self.style = "/healthz/"

    def write(self, *row: object) -> None:
        """Write one row, whole."""
        with self.lock:
            self.output.write(json.dumps(row) + "\n")
            self.output.flush()

    def ask(self, path: str, kind: str) -> None:
        """Send one request and write down what came."""
        if self.connection is None:
            self.connection = http.client.HTTPConnection(self.address, timeout=TIMEOUT)
        headers = {"Host": self.address, "User-Agent": "visitor"}
        if not self.kept:
            headers["Connection"] = "close"
        at, begun = time.time(), time.monotonic()
        try:
            self.connection.request("GET", path, headers=headers)
            answer = self.connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.write(
                at, time.monotonic() - begun, kind, 0, "", "", f"{path} {type(error).__name__}: {error}"
            )
            self.connection.close()
            self.connection = None
            return
        found = answer.headers
        error = "" if answer.status == 200 else f"{path} {body[:80]!r}"
        version, server = found.get("X-Goexplorer-Version", ""), found.get("X-Answered-By", "")
        self.write(at, time.monotonic() - begun, kind, answer.status, version, server, error)
        if not self.kept or answer.will_close:
            self.connection.close()
            self.connection = None
        style = STYLE.search(body) if path == "/" and answer.status == 200 else None
        if style:
            self.style = style.group(1).decode()

    def go(self, offset: float, interval: float, over: threading.Event) -> None:
        """Ask for one page after the other; what is due while an answer is awaited is left out."""
        due, number = time.monotonic() + offset, 0
        while not over.wait(max(0.0, due - time.monotonic())):
            late = time.monotonic() - due
            if late > 0.1:
                self.write(time.time() - late, late, "late", 0, "", "", "")
            page = PAGES[number % len(PAGES)]
            self.ask(self.style if page == "style" else page, page)
            number += 1
            due = max(due + interval, time.monotonic())

    def go_balancer(self, path: str, over: threading.Event) -> None:
        """Ask the balancer itself."""
        while not over.wait(0.1):
            self.ask(path, "balancer")


def main() -> None:
    address, rate, connections, path = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    over, lock = threading.Event(), threading.Lock()
    # Visitors do not wait for the processors of the machine that deploys; only root may ask for that.
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    signal.signal(signal.SIGTERM, lambda _number, _frame: over.set())
    with open(path, "w", encoding="utf-8") as output:
        own = Client(address, True, output, lock).go_balancer
        threads = [threading.Thread(target=own, args=(sys.argv[5], over))]
        for number in range(connections):
            client = Client(address, number % 2 == 0, output, lock)
            work = (number / rate, connections / rate, over)
            threads.append(threading.Thread(target=client.go, args=work))
        for thread in threads:
            thread.start()
        while not over.wait(1):
            pass
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
