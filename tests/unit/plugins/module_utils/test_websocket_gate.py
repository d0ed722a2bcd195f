# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gate of WebSockets against a real server (the library websockets) and one that breaks the protocol in each way."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils import _websocket as protocol
from ansible_collections.runbook.deploy.plugins.module_utils import _websocket_gate as gate
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.modules import websocket_gate
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.faulty_server import make_certificate
from hypothesis import given, settings
from hypothesis import strategies as st

websockets = pytest.importorskip(
    "websockets", reason="the library websockets is not installed; install requirements-dev.txt"
)
TOKEN = "word-that-nobody-may-see"


# A real server


def application(connection: Any) -> None:
    """Echoes, and does what a message asks for."""
    if connection.request.path == "/closes":
        connection.close(4401, "log in first")
        return
    for message in connection:
        if message == "close":
            connection.close(4000, "as you wish")
        elif message == "noise":
            for number in range(5):
                connection.send(f"noise {number}")
            connection.send('{"type": "result", "n": 7}')
        elif message == "headers":
            connection.send(
                json.dumps({name.lower(): value for name, value in connection.request.headers.raw_items()})
            )
        elif message == "fragments":
            connection.send(iter(["frag", "men", "ted é"]))
        elif message == "binary":
            connection.send(b"\x00\xff binary")
        elif message == "huge":
            connection.send("x" * (3 * 1024 * 1024))
        elif message == "silence":
            time.sleep(0.1)
        else:
            connection.send(message)


def guard(connection: Any, request: Any) -> Any:
    if request.path == "/private" and request.headers.get("Authorization") != f"Bearer {TOKEN}":
        return connection.respond(403, "who are you?\n")
    if request.path == "/own" and request.headers.get("Origin") != "https://shop.example.org":
        return connection.respond(403, "another origin\n")
    return None


@contextlib.contextmanager
def running(**options: Any) -> Iterator[Any]:
    from websockets.sync.server import serve, unix_serve

    def choose(_connection: Any, offered: Any) -> Any:
        return "chat.v2" if "chat.v2" in offered else None

    options = {"process_request": guard, "select_subprotocol": choose, **options}
    server = (
        unix_serve(application, options.pop("path"), **options)
        if "path" in options
        else serve(application, "127.0.0.1", 0, **options)
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running() as server:
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"


def options(**given: Any) -> dict[str, Any]:
    return {**{name: spec.get("default") for name, spec in gate.OPTIONS.items()}, **given}


def ask(check: dict[str, Any], seconds: float = 10.0, **given: Any) -> dict[str, Any]:
    (found,) = gate.prober(options(checks=[check], **given), False)(seconds)
    return found


SECRETS = json.dumps({"token": TOKEN})
ECHO = {"type": "hello", "items": [1, 2]}


@pytest.mark.parametrize(
    ("check", "verdict", "said"),
    [
        ({}, "pass", ""),
        ({"ping": False}, "pass", ""),
        ({"send": "hello", "expect": "hell"}, "pass", ""),
        ({"send": "hello", "expect": {"text": "hello"}, "ping": True, "close_code": 1000}, "pass", ""),
        ({"send": "hello", "expect": {"text": "hell", "within": 0.2}}, "fail", "did not come within"),
        ({"send": ECHO, "expect": {"json": {"type": "hello", "items": "length > 1"}}}, "pass", ""),
        ({"send": ECHO, "expect": {"json": {"type": "bye"}, "within": 0.2}}, "fail", "did not come within"),
        ({"send": "build 12", "expect": {"matches": r"^build \d+$"}}, "pass", ""),
        ({"send": "no json", "expect": {"json": {"a": 1}, "within": 0.2}}, "fail", "did not come within"),
        ({"send": "noise", "expect": {"json": {"type": "result", "n": "< 8"}}}, "pass", ""),
        ({"send": "noise", "expect": {"json": {"type": "result"}, "skip": 5}}, "pass", ""),
        ({"send": "noise", "expect": {"json": {"type": "result"}, "skip": 4}}, "fail", "5 other messages"),
        ({"send": "noise", "expect": {"json": {"n": 7}, "absent": "noise 3"}}, "fail", "has 'noise 3'"),
        ({"send": "fragments", "expect": {"text": "fragmented é"}}, "pass", ""),
        ({"send": "binary", "expect": "binary"}, "pass", ""),
        ({"send": "huge", "expect": "x"}, "inconclusive", "at most 1048576 are read"),
        ({"send": "silence", "expect": {"contains": "x", "within": 0.3}}, "fail", "did not come within"),
        ({"send": "silence", "expect": "x", "timeout": 0.4}, "fail", "no complete answer"),
        ({"send": "close", "expect": {"close": 4000}}, "pass", ""),
        ({"send": "close", "expect": {"close": 4001}}, "fail", "closed with the code 4000 ('as you wish')"),
        ({"send": "close", "expect": "x"}, "fail", "closed with the code 4000"),
        ({"send": "x" * 200000, "expect": {"text": "x" * 200000}}, "pass", ""),
        ({"steps": [{"send": "a", "expect": "a"}, {"send": "b"}, {"expect": {"text": "b"}}]}, "pass", ""),
        (
            {"steps": [{"send": "a", "expect": "a"}, {"expect": {"text": "b", "within": 0.2}}]},
            "fail",
            "(step 2)",
        ),
        ({"url": "/closes"}, "fail", "closed with the code 4401 ('log in first')"),
        ({"url": "/closes", "expect": {"close": 4401}}, "pass", ""),
        ({"url": "/private"}, "fail", "status 403"),
        ({"url": "/private", "status": [401, 403]}, "pass", ""),
        ({"url": "/private", "status": 401}, "fail", "status 403"),
        ({"url": "/private", "bearer": "{secret.token}"}, "pass", ""),
        ({"status": 403}, "fail", "the handshake was accepted"),
        ({"subprotocol": "chat.v2"}, "pass", ""),
        ({"subprotocol": ["chat.v1", "chat.v2"]}, "pass", ""),
        ({"subprotocol": "chat.v1"}, "fail", "chose none"),
        ({"url": "/own", "origin": "https://shop.example.org"}, "pass", ""),
        ({"url": "/own"}, "fail", "see the key origin"),
        ({"url": "/own", "origin": ""}, "fail", "status 403"),
        ({"close_code": 1000}, "pass", ""),
        ({"close_code": 1001}, "fail", "closed with the code 1000"),
        ({"max_seconds": 0.000001}, "fail", "more than 1e-06 s"),
        ({"url": "ws://no-such-name.invalid/"}, "inconclusive", "not known here"),
    ],
)
def test_a_real_server(address, check, verdict, said):
    found = ask({"url": "/", **check}, address=address, secrets=SECRETS)
    assert found["verdict"] == verdict, found
    assert said in found["message"]
    assert bool(found["message"]) is (verdict != "pass")
    assert TOKEN not in json.dumps(found)
    assert len(json.dumps(found)) < 8000 or "x" * 1000 in json.dumps(check)


def test_a_whole_address_needs_no_other(address):
    """As in app_gates of an application without a public address; a path is refused, and never asked of this host."""
    found = ask({"url": f"{address}/"})
    assert found["verdict"] == "pass", found
    with pytest.raises(Problem) as refused:
        ask({"url": "/"})
    assert "give app_url, or a whole address" in refused.value.message


def test_headers_as_a_browser_behind_a_proxy_sends_them(address):
    check = {
        "url": "/?a=b c",
        "cookies": {"sessionid": "{secret.token}", "lang": "de"},
        "headers": {"X-Own": "{commit}"},
        "send": "headers",
        "expect": {
            "json": {
                "host": "shop.example.org",
                "origin": "https://shop.example.org",
                "cookie": f"sessionid={TOKEN}; lang=de",
                "x-own": "abc123",
                "x-forwarded-proto": "https",
                "sec-websocket-version": "13",
            }
        },
    }
    given_ = {
        "address": address,
        "host": "shop.example.org",
        "headers": {"X-Forwarded-Proto": "https"},
        "secrets": SECRETS,
        "placeholders": {"commit": "abc123"},
    }
    found = ask(check, **given_)
    assert found["verdict"] == "pass", found
    assert TOKEN not in json.dumps(found)
    assert "{secret.token}" in found["repeat"]
    found = ask({**check, "cookies": {"sessionid": "plain-cookie-value"}}, **given_)
    assert found["verdict"] == "fail"
    assert "plain-cookie-value" not in found["repeat"]


def test_a_secret_in_json_cannot_break_it(address):
    secrets = json.dumps({"token": 'a"b\\c'})
    check = {"url": "/", "send": {"token": "{secret.token}"}, "expect": {"json": {"token": "length == 5"}}}
    found = ask(check, address=address, secrets=secrets)
    assert found["verdict"] == "pass", found


def test_tls_and_a_unix_socket(tmp_path):
    certificate = make_certificate(str(tmp_path))
    if certificate is None:
        pytest.skip("openssl is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with running(ssl=context) as server:
        place = f"wss://127.0.0.1:{server.socket.getsockname()[1]}"
        assert ask({"url": "/"}, address=place, ca_path=f"{certificate}.crt")["verdict"] == "pass"
        assert ask({"url": "/"}, address=place, validate_certs=False)["verdict"] == "pass"
        found = ask({"url": "/"}, address=place)
        assert (found["verdict"], "certificate is refused" in found["message"]) == ("fail", True)
        found = ask({"url": "/"}, address=place, ca_path=f"{certificate}.crt", host="other.example.org")
        assert (found["verdict"], "certificate is refused" in found["message"]) == ("fail", True)
        found = ask({"url": "/"}, address=place, ca_path="/no/such/file")
        assert found["verdict"] == "inconclusive"
        found = ask({"url": "/"}, address=place.replace("wss", "ws"))
        assert found["verdict"] == "fail"
    # Not pytest's directory: a socket's path may have 107 bytes.
    with tempfile.TemporaryDirectory(dir="/tmp") as place, running(path=f"{place}/s") as server:
        check = {"url": "/", "send": "a", "expect": "a", "close_code": 1000}
        found = ask(check, socket=f"{place}/s", host="shop.example.org")
        assert found["verdict"] == "pass", found
        assert f"--unix-socket {place}/s" in found["repeat"]
        assert ask(check, socket=f"{place}/none")["verdict"] == "fail"


# A server that breaks the protocol


class Raw:
    """Answers each connection by *handle*, called with the connection and the accepted key, after reading the request."""

    def __init__(self, handle: Callable[[socket.socket, str], None]) -> None:
        self.handle = handle
        self.over = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._one, args=(self.listener.accept()[0],), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            key = next(
                line.split(b":")[1].strip().decode()
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"sec-websocket-key")
            )
            self.handle(connection, key)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *details: object) -> None:
        self.over.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def accepted(key: str, **changes: str | None) -> bytes:
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": protocol.accept_of(key),
    }
    headers.update({name.replace("_", "-"): value for name, value in changes.items()})
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return ("HTTP/1.1 101 Switching Protocols\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()


def says(*pieces: Any, hold: float = 3.0, **changes: Any) -> Callable[[socket.socket, str], None]:
    """A server that accepts and then sends *pieces*; numbers are pauses."""

    def handle(connection: socket.socket, key: str) -> None:
        connection.sendall(accepted(key, **changes))
        for piece in pieces:
            if isinstance(piece, float):
                time.sleep(piece)
            else:
                connection.sendall(piece)
        connection.settimeout(hold)
        with contextlib.suppress(OSError):
            while connection.recv(4096):
                pass

    return handle


def answers(data: bytes) -> Callable[[socket.socket, str], None]:
    def handle(connection: socket.socket, _key: str) -> None:
        connection.sendall(data)

    return handle


def resets(connection: socket.socket, _key: str) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def resets_after(connection: socket.socket, key: str) -> None:
    connection.sendall(accepted(key))
    resets(connection, key)


def drips(connection: socket.socket, key: str) -> None:
    for byte in accepted(key) * 10:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def drips_a_frame(connection: socket.socket, key: str) -> None:
    connection.sendall(accepted(key) + b"\x81\x7e\x40\x00")
    for _number in range(200):
        connection.sendall(b"x")
        time.sleep(0.05)


def floods(frame: bytes) -> Callable[[socket.socket, str], None]:
    def handle(connection: socket.socket, key: str) -> None:
        connection.sendall(accepted(key))
        while True:
            connection.sendall(frame * 1000)

    return handle


def endless(connection: socket.socket, _key: str) -> None:
    connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n")
    while True:
        connection.sendall(b"X-A: " + b"y" * 1000 + b"\r\n")


def hangs(connection: socket.socket, _key: str) -> None:
    time.sleep(3)


def closes(connection: socket.socket, _key: str) -> None:
    connection.close()


def closes_after(connection: socket.socket, key: str) -> None:
    connection.sendall(accepted(key))


REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: https://login.example.org/\r\nContent-Length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 12\r\n\r\n<b>Hello</b>"
HELLO = b"\x81\x05hello"
ECHOED: dict[str, Any] = {"expect": "hello"}
PING_IN_BETWEEN = b"\x01\x02he" + b"\x89\x01x" + b"\x80\x03llo"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


def interim(connection: socket.socket, key: str) -> None:
    connection.sendall(INTERIM)
    says(HELLO)(connection, key)


FAULTS: list[tuple[str, Any, dict[str, Any], str, str]] = [
    ("hangs", hangs, {}, "fail", "no complete answer in 0.8 s (waiting for the handshake)"),
    ("closes", closes, {}, "fail", "before it had answered"),
    ("resets", resets, {}, "fail", "reset"),
    ("drips the handshake", drips, {}, "fail", "no complete answer"),
    ("endless headers", endless, {}, "fail", "no end of the headers"),
    ("200", answers(OK), {}, "fail", "status 200: <b>Hello</b>"),
    ("403", answers(b"HTTP/1.1 403 Forbidden\r\n\r\nno"), {}, "fail", "status 403"),
    ("403 expected", answers(b"HTTP/1.1 403 Forbidden\r\n\r\nno"), {"status": 403}, "pass", ""),
    ("redirect", answers(REDIRECT), {}, "fail", "leads to 'https://login.example.org/'"),
    ("redirect to where refusal is wanted", answers(REDIRECT), {"status": 403}, "fail", "status 302"),
    ("500", answers(b"HTTP/1.1 500 Oops\r\n\r\nTraceback: it broke"), {}, "fail", "Traceback: it broke"),
    ("garbage", answers(b"\x00\xff\x13 nothing that is known\r\n"), {}, "fail", "no valid HTTP answer"),
    ("another protocol", answers(b"SSH-2.0-OpenSSH_9.2p1\r\n"), {}, "fail", "no valid HTTP answer"),
    ("bad status", answers(b"HTTP/1.1 abc\r\n\r\n"), {}, "fail", "no valid HTTP answer"),
    ("bad header", answers(b"HTTP/1.1 101 OK\r\nno colon\r\n\r\n"), {}, "fail", "no valid header"),
    ("wrong accept", says(HELLO, Sec_WebSocket_Accept="x" * 28), {}, "fail", "Sec-WebSocket-Accept"),
    ("no accept", says(HELLO, Sec_WebSocket_Accept=None), {}, "fail", "Sec-WebSocket-Accept"),
    ("no upgrade", says(HELLO, Upgrade=None), {}, "fail", "Upgrade is None"),
    ("no connection", says(HELLO, Connection="close"), {}, "fail", "Connection is 'close'"),
    ("extension", says(HELLO, Sec_WebSocket_Extensions="permessage-deflate"), {}, "fail", "nobody offered"),
    ("subprotocol", says(HELLO, Sec_WebSocket_Protocol="chat"), {}, "fail", "nobody offered"),
    ("interim answer", interim, ECHOED, "pass", ""),
    ("frame with the handshake", says(HELLO), ECHOED, "pass", ""),
    ("connection in a list", says(HELLO, Connection="keep-alive, Upgrade"), ECHOED, "pass", ""),
    ("fragments and a ping", says(PING_IN_BETWEEN), ECHOED, "pass", ""),
    ("slow frame", says(b"\x81", 0.1, b"\x05he", 0.1, b"llo"), ECHOED, "pass", ""),
    ("no pong", says(HELLO), {}, "fail", "no complete answer in 0.8 s (waiting for a pong)"),
    ("another pong", says(b"\x8a\x08aaaaaaaa"), {}, "fail", "waiting for a pong"),
    ("closes after", closes_after, {}, "fail", ""),
    ("closes after, read", closes_after, ECHOED, "fail", "without a word (code 1006)"),
    ("resets after", resets_after, ECHOED, "fail", ""),
    ("half a frame", lambda c, k: c.sendall(accepted(k) + b"\x81\x05he"), ECHOED, "fail", "1006"),
    ("close frame", says(b"\x88\x06\x03\xe9gone"), ECHOED, "fail", "code 1001 ('gone')"),
    ("empty close", says(b"\x88\x00"), {"expect": {"close": 1005}}, "pass", ""),
    ("masked", says(b"\x81\x85abcdhello"), ECHOED, "fail", "it masked a frame"),
    ("reserved bit", says(b"\xc1\x05hello"), ECHOED, "fail", "reserved bits"),
    ("reserved opcode", says(b"\x83\x05hello"), ECHOED, "fail", "reserved opcode 3"),
    ("continuation of nothing", says(b"\x80\x05hello"), ECHOED, "fail", "had not begun"),
    ("message in a message", says(b"\x01\x02he\x81\x03llo"), ECHOED, "fail", "within another"),
    ("long ping", says(b"\x89\x7e\x00\x7e" + b"x" * 126), ECHOED, "fail", "control frame"),
    ("fragmented ping", says(b"\x09\x01x"), ECHOED, "fail", "control frame"),
    ("long way of a length", says(b"\x81\x7e\x00\x05hello"), ECHOED, "fail", "length in a way"),
    ("negative length", says(b"\x81\x7f" + b"\xff" * 8), ECHOED, "fail", "length in a way"),
    ("huge length", says(b"\x81\x7f\x00\x00\x00\xff\x00\x00\x00\x00"), ECHOED, "inconclusive", "are read"),
    ("no utf-8", says(b"\x81\x02\xff\xff"), ECHOED, "fail", "no UTF-8"),
    ("half a code", says(b"\x88\x01\x03"), ECHOED, "fail", "half a code"),
    ("bad code", says(b"\x88\x02\x03\xed"), ECHOED, "fail", "nobody may send"),
    ("drips a frame", drips_a_frame, ECHOED, "fail", "no complete answer"),
    ("endless pings", floods(b"\x89\x00"), ECHOED, "fail", ""),
    ("endless pongs", floods(b"\x8a\x00"), ECHOED, "fail", "no complete answer"),
    (
        "endless empty fragments",
        lambda c, k: (c.sendall(accepted(k) + b"\x01\x00"), floods(b"\x00\x00")(c, k)),
        ECHOED,
        "fail",
        "",
    ),
    ("endless messages", floods(b"\x81\x01x"), ECHOED, "fail", "21 other messages"),
    ("endless fragment", floods(b"\x01\x00" + b"\x00\x7e\xff\xff" + b"x" * 65535), ECHOED, "fail", ""),
    ("no close in answer", says(HELLO), {**ECHOED, "close_code": 1000}, "fail", "(closing)"),
    ("no close, not asked for", says(HELLO), ECHOED, "pass", ""),
]


@pytest.mark.parametrize(
    ("handle", "check", "verdict", "said"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS]
)
def test_each_fault_has_its_verdict(handle, check, verdict, said):
    with Raw(handle) as server:
        begun = time.monotonic()
        found = ask({"url": "/ws/", "timeout": 0.8, **check}, address=server.address)
        assert time.monotonic() - begun < 0.8 + 1.0
        assert found["verdict"] == verdict, found
        assert said in found["message"]
        assert len(json.dumps(found)) < 6000


def test_a_fragmented_message_has_a_bound():
    def handle(connection: socket.socket, key: str) -> None:
        connection.sendall(accepted(key) + b"\x01\x00")
        piece = b"\x00\x7e\xff\xff" + b"x" * 65535
        for _number in range(100):
            connection.sendall(piece)

    with Raw(handle) as server:
        found = ask({"url": "/", "expect": "y", "timeout": 5}, address=server.address)
        assert (found["verdict"], "message of more than 1048576" in found["message"]) == (
            "inconclusive",
            True,
        ), found


def test_nobody_listens_and_nobody_may():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    found = ask({"url": "/"}, address=f"127.0.0.1:{port}")
    assert (found["verdict"], "nothing listens" in found["message"]) == ("fail", True)
    # A backlog that is full: the connection is never accepted.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        begun = time.monotonic()
        results = gate.prober(
            options(checks=[{"url": "/", "name": str(n), "timeout": 0.5} for n in range(4)], address=place),
            False,
        )(5)
        assert {found["verdict"] for found in results} == {"fail"}
        assert time.monotonic() - begun < 1.5


def test_a_gate_does_not_outlive_its_deadline():
    with Raw(hangs) as server:
        checks = [{"url": "/", "name": str(n)} for n in range(20)]
        begun = time.monotonic()
        with pytest.raises(Problem) as raised:
            gate.perform(options(checks=checks, address=server.address, deadline=0.8), False, print)
        assert time.monotonic() - begun < 1.8
        # The gate's time was less than the checks' own: nothing is known.
        assert {check["verdict"] for check in raised.value.results["checks"]} == {"inconclusive"}


# The protocol


def test_the_example_of_the_standard():
    # RFC 6455, section 1.3 and 5.7.
    assert protocol.accept_of("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    masked = bytes([0x81, 0x85, 0x37, 0xFA, 0x21, 0x3D, 0x7F, 0x9F, 0x4D, 0x51, 0x58])
    assert protocol.frame(protocol.TEXT, b"Hello", b"\x37\xfa\x21\x3d") == masked


class Fed:
    """A socket that gives what it was fed, in pieces, and then ends."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.data = data
        self.sizes = sizes or [1]
        self.sent = b""
        self.turn = 0

    def settimeout(self, seconds: float) -> None:
        pass

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def recv(self, most: int) -> bytes:
        size = min(most, self.sizes[self.turn % len(self.sizes)])
        self.turn += 1
        piece, self.data = self.data[:size], self.data[size:]
        return piece


def of_server(opcode: int, payload: bytes, final: bool = True) -> bytes:
    size = len(payload)
    head = bytes([(0x80 if final else 0) | opcode])
    if size < 126:
        return head + bytes([size]) + payload
    if size < 1 << 16:
        return head + b"\x7e" + struct.pack("!H", size) + payload
    return head + b"\x7f" + struct.pack("!Q", size) + payload


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=4), max_size=5),
    st.lists(st.integers(1, 700), min_size=1, max_size=5),
    st.booleans(),
)
def test_messages_come_out_as_they_went_in(messages, sizes, pings):
    """However they are fragmented, wherever pings come between, in whatever pieces they arrive."""
    data = b""
    for parts in messages:
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            data += of_server(protocol.BINARY if number == 0 else protocol.CONTINUATION, part, last)
            data += of_server(protocol.PING, b"p") if pings else b""
    stream = protocol.Stream(Fed(data, sizes), time.monotonic() + 60)
    for parts in messages:
        assert stream.receive(time.monotonic() + 60).data == b"".join(parts)
    with pytest.raises(protocol.Fault, match="1006"):
        stream.receive(time.monotonic() + 60)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_comes_ends_in_a_message_or_a_fault(data):
    stream = protocol.Stream(Fed(data, [7]), time.monotonic() + 60)
    with pytest.raises(protocol.Fault):
        for _number in range(len(data) + 2):
            stream.receive(time.monotonic() + 60)
    with contextlib.suppress(protocol.Fault):
        protocol.Stream(Fed(data, [7]), time.monotonic() + 60).handshake()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=70000), st.binary(min_size=4, max_size=4))
def test_our_frames_are_unmasked_to_what_they_hold(payload, mask):
    found = protocol.frame(protocol.BINARY, payload, mask)
    body = found[-len(payload) :] if payload else b""
    assert bytes(value ^ mask[place % 4] for place, value in enumerate(body)) == payload
    assert found[1] & 0x80


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({}, "url must be a path"),
        ({"url": "http://x/"}, "url must be a path"),
        ({"url": "/", "sends": "x"}, "did you mean 'send'"),
        ({"url": "/", "send": 5}, "send must be a text"),
        ({"url": "/", "expect": {}}, "expects nothing"),
        ({"url": "/", "expect": {"within": 2}}, "expects nothing"),
        ({"url": "/", "expect": {"containing": "x"}}, "did you mean 'contains'"),
        ({"url": "/", "expect": {"matches": "("}}, "regular expression"),
        ({"url": "/", "expect": {"json": {"a..b": 1}}}, "JSON path"),
        ({"url": "/", "expect": {"close": 4000, "contains": "x"}}, "no message"),
        ({"url": "/", "expect": {"close": 5}}, "must be a code"),
        ({"url": "/", "expect": {"contains": "x", "skip": -1}}, "skip must be"),
        ({"url": "/", "steps": []}, "steps is empty"),
        ({"url": "/", "steps": [{}]}, "neither sends nor expects"),
        ({"url": "/", "steps": [{"send": "x"}], "send": "y"}, "put them into a step"),
        ({"url": "/", "status": 100}, "status must be"),
        ({"url": "/", "status": [101, 403]}, "either 101"),
        ({"url": "/", "status": 403, "send": "x"}, "expects to be refused"),
        ({"url": "/", "headers": {"Upgrade": "x"}}, "no header that can be chosen"),
        ({"url": "/", "headers": {"A b": "x"}}, "no header that can be chosen"),
        ({"url": "/", "headers": {"Authorization": "x"}, "bearer": "y"}, "only Authorization"),
        ({"url": "/", "subprotocol": "a b"}, "without spaces"),
        ({"url": "/", "send": "{secret.other}"}, "secrets has only"),
        ({"url": "/", "expect": "{secret.token}"}, "compares a message with a secret"),
        ({"url": "/", "expect": "{commit}"}, "no commit was given"),
        ({"url": "/", "ping": "yes"}, "true or false"),
    ],
)
def test_a_typing_error_is_found_before_anything_is_asked(check, said):
    with pytest.raises(Problem, match=r"^checks\[0\]") as raised:
        gate.prober(options(checks=[check], address="127.0.0.1:1", secrets=SECRETS), False)
    assert said in raised.value.message


def test_a_header_cannot_end_its_line(address):
    check = {"url": "/", "headers": {"X-Own": "a\r\nX-Other: b"}}
    with pytest.raises(Problem, match=r"checks\[0\] cannot be sent"):
        ask(check, address=address)


# The gate


def run_module(capsys: Any, check_mode: bool = False, **given_: Any) -> dict[str, Any]:
    arguments = {
        "interval": 0.02,
        "deadline": 3,
        "patience": 0.1,
        **given_,
        "_ansible_check_mode": check_mode,
    }
    with patch_module_args(arguments), pytest.raises(SystemExit) as ended:
        websocket_gate.main()
    answer = json.loads(capsys.readouterr().out)
    assert bool(ended.value.code) is bool(answer.get("failed"))
    return answer


def test_the_module(address, capsys):
    checks = [{"url": "/"}, {"name": "echo", "url": "/", "send": "a", "expect": "a"}]
    answer = run_module(capsys, address=address, checks=checks, successes=2)
    assert (answer["passed"], answer["attempts"], answer["changed"], answer["not_asked"]) == (
        True,
        2,
        False,
        [],
    )
    answer = run_module(capsys, check_mode=True, address=address, checks=checks)
    assert (answer["passed"], answer["not_asked"], len(answer["checks"])) == (True, ["echo"], 1)
    answer = run_module(capsys, check_mode=True, address=address, checks=checks[1:])
    assert (answer["passed"], answer["verdict"], answer.get("failed", False)) == (
        False,
        "inconclusive",
        False,
    )
    answer = run_module(
        capsys,
        address=address,
        secrets=SECRETS,
        checks=[
            {"url": "/?{secret.token}", "send": "{secret.token}", "expect": {"text": "b", "within": 0.1}}
        ],
    )
    assert (answer["failed"], answer["verdict"]) == (True, "fail")
    assert TOKEN not in json.dumps(answer)
    assert "********" in answer["msg"]
    assert "curl" in answer["msg"]
