# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each fault of what is asked, and each kind of gate: one table of verdicts, asked as app_gates asks.

What a kind knows besides is in its own file. A line says of a fault how it shows there; where a kind has no such thing
(a file has no redirects), there is no entry.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import socket
import sqlite3
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _gates
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from faulty_server import HUGE, FaultyServer, make_certificate
from redis_server import free_port

RELEASE = "0123456789ab-00000000"
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# Attempts in which every second, every tenth, and each after the third goes wrong.
REPEATED = {"flapping": 2, "tenth": 12, "after": 6}
WRONG = {"flapping": lambda n: n % 2 == 0, "tenth": lambda n: n % 10 == 0, "after": lambda n: n > 3}


class Server(FaultyServer):
    """Answers ``/DIALECT/FAULT`` well, but for the fault."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("do_"):
            raise AttributeError(name)
        return functools.partial(self.answer, *name.split("_")[1:3])

    def answer(self, dialect: str, fault: str, connection: socket.socket, request: Any) -> None:
        wrong = WRONG.get(fault, lambda _number: False)(self.count)
        if fault == "slow":
            self.over.wait(0.6)
        if fault == "hangs":
            self.over.wait(60)
        elif fault == "resets":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif fault == "loop":
            self.send(connection, 302, "", f"Location: {request.path}")
        elif dialect == "websocket" and not wrong:
            self.talk(connection, request, fault)
        elif dialect == "http":
            text = "" if fault == "nothing" else "x" * HUGE if fault == "huge" else '{"value": 1}'
            self.send(connection, 500 if wrong else 200, text)
        elif dialect == "page":
            value = f"x {9 if wrong else 1}\n"
            self.send(
                connection, 200, "y 1\n" if fault == "nothing" else value + "# " * HUGE * (fault == "huge")
            )
        elif dialect == "query":
            rows = [] if fault == "nothing" else [{"metric": {}, "value": [0, "9" if wrong else "1"]}]
            document = {"status": "success", "data": {"resultType": "vector", "result": rows}}
            self.send(connection, 200, json.dumps(document) + " " * HUGE * (fault == "huge"))
        else:
            self.send(connection, 500, "it broke")

    def talk(self, connection: socket.socket, request: Any, fault: str) -> None:
        """Greet, and wait until the other side leaves (RFC 6455)."""
        key = (request.headers.get("sec-websocket-key", "") + GUID).encode()
        accepted = base64.b64encode(hashlib.sha1(key).digest()).decode()
        lines = ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accepted}")
        connection.sendall("\r\n".join(["HTTP/1.1 101 Switching", *lines, "", ""]).encode())
        if fault == "huge":
            with contextlib.suppress(OSError):
                connection.sendall(b"\x81\x7f" + struct.pack(">Q", HUGE) + b"x" * HUGE)
        elif fault != "nothing":
            connection.sendall(b"\x81\x05hello")
        connection.settimeout(60)
        connection.recv(1024)
        connection.sendall(b"\x88\x02\x03\xe8")


class Stranger:
    """A server that speaks no protocol: a context manager; ``fault`` is what it does with each connection."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.over = threading.Event()
        threading.Thread(target=self.serve, daemon=True).start()

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_error: object) -> None:
        self.over.set()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def serve(self) -> None:
        while True:
            try:
                connection, _address = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if self.fault == "hangs":
                self.over.wait(60)
            elif self.fault == "resets":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif self.fault == "garbage":
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n" * 3)
            elif self.fault == "huge":
                while not self.over.is_set():
                    connection.sendall(b"$" + b"9" * 65536)


class Place:
    """Where the gates look: servers, a directory, and how each kind asks for each fault there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stack = contextlib.ExitStack()
        self.options: dict[str, Any] = {}

    def url(self, dialect: str, fault: str, scheme: str = "http") -> str:
        if fault == "dead":
            return f"{scheme}://127.0.0.1:{free_port()}/"
        certificate = make_certificate(str(self.directory)) if fault == "tls" else None
        if fault == "tls" and not certificate:
            pytest.skip("there is no openssl to make a certificate with")
        # Of an authority that nobody has.
        server = self.stack.enter_context(Server(certificate=certificate))
        return f"{scheme}{'s' if certificate else ''}://127.0.0.1:{server.port}/{dialect}/{fault}"

    def port(self, fault: str) -> int:
        return free_port() if fault == "dead" else self.stack.enter_context(Stranger(fault)).port

    def http(self, fault: str) -> dict[str, Any]:
        more = {
            "slow": {"max_seconds": 0.3},
            "hangs": {"timeout": 0.5},
            "loop": {"follow": True},
            "huge": {"contains": "end"},
        }
        wanted = {"json": {"value": 1}} if fault not in ("huge", "loop") else {}
        return {"url": self.url("http", fault), **wanted, **more.get(fault, {})}

    def websocket(self, fault: str) -> dict[str, Any]:
        within = {"within": 0.5} if fault == "nothing" else {}
        more = {"slow": {"max_seconds": 0.3}, "hangs": {"timeout": 0.5}}.get(fault, {})
        return {"url": self.url("websocket", fault, "ws"), "expect": {"contains": "hello", **within}, **more}

    def page(self, fault: str) -> dict[str, Any]:
        source = {"kind": "prometheus_page", "url": self.url("page", fault), "values": {"x": "x"}}
        return {
            "kind": "metrics",
            "source": source,
            "require": "x < 5",
            **({"timeout": 0.3} if fault == "slow" else {}),
        }

    def query(self, fault: str) -> dict[str, Any]:
        source = {"kind": "prometheus_query", "url": self.url("query", fault), "query": "x"}
        return {
            "kind": "metrics",
            "source": source,
            "require": "value < 5",
            **({"timeout": 0.3} if fault == "slow" else {}),
        }

    def redis(self, fault: str) -> dict[str, Any]:
        source = {"kind": "redis", "address": f"127.0.0.1:{self.port(fault)}"}
        return {"kind": "metrics", "source": source, "require": "connected_clients >= 1"}

    def certificate(self, fault: str) -> dict[str, Any]:
        return {"kind": "host", "tls": f"127.0.0.1:{self.port(fault)}", "days": 1, "moments": ["smoke_test"]}

    def command(self, fault: str) -> dict[str, Any]:
        count = self.directory / "count"
        count.write_text("0")
        counting = f"n=$(($(cat {count}) + 1)); echo $n > {count}; "
        scripts = {
            "slow": "sleep 0.6",
            "flapping": counting + "exit $((n % 2 == 0))",
            "tenth": counting + "exit $((n % 10 == 0))",
            "after": counting + "exit $((n > 3))",
            "hangs": "sleep 60",
            "resets": "kill -9 $$",
            "huge": "head -c 3000000 /dev/zero | tr '\\0' x; echo middle; head -c 3000000 /dev/zero | tr '\\0' x",
            "nothing": "true",
            "well": "true",
        }
        # Commands run in the release that is current.
        release, environment = self.directory / "releases" / RELEASE, self.directory / "environments" / "e1"
        for made in (release, environment / "bin"):
            made.mkdir(parents=True)
        (release / ".built").touch()
        (release / ".release.json").write_text('{"environment": "e1"}')
        (environment / "bin" / "python").symlink_to(sys.executable)
        (self.directory / "current").symlink_to(f"releases/{RELEASE}")
        self.options["root"] = str(self.directory)
        words = ["/nowhere/at/all"] if fault == "dead" else ["sh", "-c", scripts[fault]]
        more = {
            "slow": {"max_seconds": 0.3},
            "hangs": {"timeout": 0.5},
            "huge": {"contains": "middle", "timeout": 15},
            "nothing": {"number": "< 5"},
        }
        return {"command": words, "retry": fault in REPEATED or fault == "well", **more.get(fault, {})}

    def sql(self, fault: str) -> dict[str, Any]:
        """A file; what changes from one attempt to the next changes with the clock."""
        path = self.directory / "shop.sqlite3"
        if fault != "dead":
            sqlite3.connect(path).execute("CREATE TABLE t (x)").connection.close()
        self.options["database"] = {"engine": "sqlite", "path": str(path)}
        tenths = "CAST(strftime('%f', 'now') * 10 AS INT)"
        endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n{}) SELECT count(*) FROM n"
        queries = {
            "flapping": f"SELECT {tenths} % 2",
            "tenth": f"SELECT {tenths} % 10 = 9",
            "hangs": endless.format(""),
            "slow": endless.format(" LIMIT 300000"),
            "huge": f"SELECT hex(zeroblob({HUGE}))",
            "nothing": "SELECT max(x) FROM t",
        }
        more = {"max_seconds": 0.01, "value": 300000} if fault == "slow" else {"value": 0}
        return {"query": queries.get(fault, "SELECT 0"), **more}

    def log(self, fault: str) -> dict[str, Any]:
        path = self.directory / "web.log"
        if fault != "dead":
            path.write_text("")
        return {"path": str(path), "required": "ready", "moments": ["smoke_test"]}

    def service(self, fault: str) -> dict[str, Any]:
        return {"pid_file": str(self.directory / "none.pid"), "duration": 0.1}


FAIL, UNKNOWN = "fail", "inconclusive"
TABLE: dict[str, dict[str, str]] = {
    "http": {
        **dict.fromkeys(
            ("slow", "flapping", "tenth", "after", "hangs", "resets", "loop", "tls", "nothing", "dead"), FAIL
        ),
        "huge": UNKNOWN,
    },
    "websocket": {
        **dict.fromkeys(
            ("slow", "flapping", "tenth", "after", "hangs", "resets", "loop", "tls", "nothing", "dead"), FAIL
        ),
        "huge": UNKNOWN,
    },
    # What measures is not what is measured: where it does not answer, nothing is known.
    **{
        kind: {
            **dict.fromkeys(("flapping", "tenth", "after"), FAIL),
            **dict.fromkeys(("slow", "hangs", "resets", "loop", "huge", "tls", "nothing", "dead"), UNKNOWN),
        }
        for kind in ("page", "query")
    },
    "redis": dict.fromkeys(("hangs", "resets", "garbage", "huge", "nothing", "dead"), UNKNOWN),
    # Bad TLS is `garbage` here: somebody answers, and it is no certificate.
    "certificate": {
        **dict.fromkeys(("garbage", "huge", "nothing"), FAIL),
        **dict.fromkeys(("hangs", "resets", "dead"), UNKNOWN),
    },
    "command": {
        # Its own limit ends it.
        **dict.fromkeys(("slow", "flapping", "tenth", "after", "resets", "hangs"), FAIL),
        **dict.fromkeys(("huge", "nothing", "dead"), UNKNOWN),
    },
    "sql": {
        **dict.fromkeys(("slow", "flapping", "tenth"), FAIL),
        **dict.fromkeys(("hangs", "huge", "nothing", "dead"), UNKNOWN),
    },
    # What was never marked cannot be judged.
    "log": dict.fromkeys(("nothing", "dead"), UNKNOWN),
    "service": {"dead": UNKNOWN},
    # Of celery, which needs an application and a broker: test_celery_gate.py and test_celery_gate_amqp.py.
}
CASES = [(kind, fault, verdict) for kind, faults in TABLE.items() for fault, verdict in faults.items()]
# What it is named by in app_gates, where that is not its name here.
KINDS = {"page": "metrics", "query": "metrics", "redis": "metrics", "certificate": "host"}


class Stalls:
    """How long this process was not run although it wanted to: what a busy machine adds to every time."""

    def __enter__(self) -> Stalls:
        self.seconds = 0.0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.count, daemon=True)
        self.thread.start()
        return self

    def count(self) -> None:
        before = time.monotonic()
        while not self.over.wait(0.01):
            now = time.monotonic()
            self.seconds += max(0.0, now - before - 0.02)
            before = now

    def __exit__(self, *_error: object) -> None:
        self.over.set()
        self.thread.join()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    with found.stack:
        yield found


def ask(
    place: Place, kind: str, fault: str, check: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """Return the gate over one check, with what *check* adds to it; one that did not pass with ``told``."""
    check = {"kind": KINDS.get(kind, kind), "name": "it", **getattr(place, kind)(fault), **(check or {})}
    options = {name: spec.get("default") for name, spec in _gates.OPTIONS.items()}
    asked = {"moment": "smoke_test", "patience": 0.0, "interval": 0.02, "gates": [check]}
    options.update({**asked, **place.options, **more})
    try:
        return _gates.perform(options, False, lambda text: None)
    except Problem as problem:
        return {**problem.results, "told": problem.message}


@pytest.mark.parametrize(("kind", "fault", "verdict"), CASES)
def test_each_fault_has_its_verdict_and_its_time(place: Place, kind: str, fault: str, verdict: str) -> None:
    """And no gate outlives its deadline by more than a second, on a machine that has time for it."""
    repeated = fault in REPEATED
    # What fails ends at once, and what cannot be asked is asked until the deadline.
    deadline = 30.0 if verdict == FAIL else 1.0
    successes = REPEATED.get(fault, 1) if kind != "sql" else 100
    began = time.monotonic()
    with Stalls() as stalls:
        gate = ask(place, kind, fault, deadline=deadline, successes=successes if repeated else 1)
        took = time.monotonic() - began
    assert gate["verdict"] == verdict and not gate["passed"] and "told" in gate, gate
    assert took < deadline + 1 + 3 * stalls.seconds, (took, stalls.seconds)
    (check,) = gate["checks"]
    # Some are cut short before anything can be said to be repeated.
    assert check["message"] and check["observed"] and check["expected"], check


@pytest.mark.parametrize(
    "kind", ["http", "websocket", "page", "query", "redis", "certificate", "command", "sql"]
)
def test_no_gate_outlives_its_deadline(place: Place, kind: str) -> None:
    """Whatever a check's own limit is."""
    began = time.monotonic()
    with Stalls() as stalls:
        gate = ask(place, kind, "hangs", deadline=0.7, check={"timeout": 60})
        took = time.monotonic() - began
    assert not gate["passed"] and "told" in gate, gate
    assert took < 0.7 + 1 + 3 * stalls.seconds, (took, stalls.seconds)


@pytest.mark.parametrize("kind", ["http", "websocket", "page", "query", "command", "sql"])
def test_what_is_well_passes_as_often_as_it_is_asked(place: Place, kind: str) -> None:
    """The same checks on the same servers, or the table above would prove nothing."""
    found = ask(place, kind, "well", deadline=30.0, successes=3)
    assert found["passed"] and found["streak"] == 3, found


@pytest.mark.parametrize("kind", ["http", "websocket", "page", "query", "command", "sql"])
def test_successes_have_to_follow_each_other(place: Place, kind: str) -> None:
    """One in two is no health, however long it is asked for."""
    # A file cannot count its readers: it changes ten times in a second.
    successes = 100 if kind == "sql" else 2
    gate = ask(place, kind, "flapping", deadline=2.0, successes=successes, patience=None)
    assert (gate["verdict"], gate["passed"]) == ("fail", False) and gate["attempts"] > 1, gate
    assert gate["streak"] < successes and f"{successes} times in a row" in gate["reason"]


@pytest.mark.parametrize("on_no_data", ["fail", "inconclusive"])
@pytest.mark.parametrize("kind", ["page", "sql", "command", "redis", "service", "log"])
def test_no_data_stops_unless_it_was_said_that_it_may_not(place: Place, kind: str, on_no_data: str) -> None:
    """And never is a pass."""
    fault = "dead" if kind == "service" else "nothing"
    gate = ask(place, kind, fault, deadline=0.6, on_no_data=on_no_data)
    assert (gate["passed"], gate["verdict"]) == (False, "inconclusive")
    assert ("told" in gate) is (on_no_data == "fail")
