# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real server that speaks S3 (moto's or Ceph's, a process of its own), and a proxy before it with faults to choose."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ansible_collections.runbook.deploy.tests.ceph import gateway

DEADLINE = 60.0
# Of the one who may do everything; moto lets everybody in.
KEYS = {"access_key": "AKIDEXAMPLE", "secret_key": "thesecretofthekey"}


class Asked(NamedTuple):
    """A request that came in; ``query`` with its blank values, such as ``uploads``."""

    method: str
    path: str
    query: dict[str, list[str]]
    body: bytes

    @property
    def is_part(self) -> bool:
        return self.method == "PUT" and "partNumber" in self.query


class Fault(NamedTuple):
    """What the proxy does: ``answer`` (with status, code and date), ``cut`` or ``flip`` what goes "up" or "down", ``hold``."""

    kind: str
    way: str = "up"
    status: int = 0
    code: str = ""
    date: float | None = None


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until *condition* holds, a minute at most."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """Run moto's server, or Ceph's where ``RADOSGW_BIN`` names it (make test-store); give its port."""
    found = gateway.programs()
    if found:
        with gateway.running(found, KEYS) as running:
            yield running.port
        return
    port = free_port()
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            eventually(lambda: process.poll() is not None or answers(port), "moto's server does not answer")
            assert process.poll() is None
            yield port
        finally:
            process.kill()


def answers(port: int) -> bool:
    """Say whether something accepts connections on *port*."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


class Handler(http.server.BaseHTTPRequestHandler):
    """Passes a request on, unless ``server.fault`` says otherwise."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""

    def handle_expect_100(self) -> bool:
        self.send_response_only(100)
        self.end_headers()
        return True

    def do(self) -> None:
        path, _mark, query = self.path.partition("?")
        length = int(self.headers.get("Content-Length") or 0)
        asked = Asked(self.command, path, urllib.parse.parse_qs(query, keep_blank_values=True), b"")
        fault = self.server.fault(asked)
        if fault and (fault.kind, fault.way) == ("cut", "up"):
            self.rfile.read(length // 2)
            self.end()
            return
        body = self.rfile.read(length)
        self.server.asked.append(asked._replace(body=body[:100_000]))
        if fault and fault.kind == "hold":
            self.server.over.wait(DEADLINE)
            self.end()
            return
        if fault and fault.kind == "answer":
            self.say(fault)
            return
        if fault and (fault.kind, fault.way) == ("flip", "up"):
            body = flipped(body)
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=DEADLINE)
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in ("expect", "connection")
        }
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        size = int(answer.getheader("Content-Length") or len(data)) if self.command == "HEAD" else len(data)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if fault and (fault.kind, fault.way) == ("cut", "down"):
            self.wfile.write(data[: len(data) // 2])
            self.end()
            return
        self.wfile.write(flipped(data) if fault and fault.kind == "flip" and fault.way == "down" else data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do

    def say(self, fault: Fault) -> None:
        """Answer with an error as S3 writes it."""
        text = (
            f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>no</Message></Error>"
            if fault.code
            else ""
        )
        self.send_response_only(fault.status)
        self.send_header("Date", self.date_time_string(fault.date))
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    def end(self) -> None:
        """Close the connection in the middle."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def flipped(data: bytes) -> bytes:
    """Return *data* with one bit in its middle turned over."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else data


class Proxy(http.server.ThreadingHTTPServer):
    """Listens on ``port``; ``fault`` is asked for each request, ``asked`` has what came in."""

    daemon_threads = True

    def __init__(self, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = upstream
        self.port = self.server_address[1]
        self.over = threading.Event()
        self.clear()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, *_arguments: object) -> None:
        """A client that has gone is no error here."""

    def clear(self) -> None:
        """Pass everything on again."""
        self.asked: list[Asked] = []
        self.fault: Callable[[Asked], Fault | None] = lambda asked: None

    def close(self) -> None:
        """Stop, and let go of who is held."""
        self.over.set()
        self.shutdown()
        self.server_close()
