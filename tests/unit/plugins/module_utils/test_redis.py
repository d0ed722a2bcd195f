# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking Redis: a real server by TCP, socket and TLS, and servers that are none."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._redis import (
    ANSWER_LIMIT,
    Address,
    Connection,
    Unanswered,
    command,
    encode,
    info,
    parse_address,
    parse_info,
)
from faulty_server import make_certificate
from hypothesis import given, settings
from hypothesis import strategies as st
from redis_server import RedisServer, free_port, needs_redis

PASSWORD = "pa ss\r\nword-7f3"


class Speaker:
    """A server that says *data* to whoever comes and, with *drip*, a piece of it every 0.05 s; then it waits or *closes*."""

    def __init__(self, data: bytes, drip: int = 0, closes: bool = False) -> None:
        self.data, self.drip, self.closes = data, drip, closes
        self.over = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                connection, _peer = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.speak, args=(connection,), daemon=True).start()

    def speak(self, connection: socket.socket) -> None:
        size = self.drip or len(self.data) or 1
        try:
            for begin in range(0, len(self.data), size):
                connection.sendall(self.data[begin : begin + size])
                if self.drip and self.over.wait(0.05):
                    break
            if not self.closes:
                self.over.wait(20)
        except OSError:
            pass
        connection.close()

    def __enter__(self) -> Speaker:
        return self

    def __exit__(self, *_error: object) -> None:
        self.over.set()
        self.listener.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as found:
        yield found


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("locked"), requirepass=PASSWORD) as found:
        yield found


@needs_redis
def test_every_kind_of_answer(server):
    for address in (
        server.address,
        f"redis://{server.address}/3",
        str(server.socket),
        f"unix://{server.socket}",
    ):
        with Connection(address) as connection:
            assert connection.ask("PING") == "PONG"
            assert connection.ask("DEL", "a", "list") in (0, 1, 2)
            assert connection.ask("GET", "a") is None
            assert connection.ask("SET", "a", "two\r\nlines é") == "OK"
            assert connection.ask("GET", "a") == "two\r\nlines é"
            assert connection.ask("RPUSH", "list", "", "x", 3) == 3
            assert connection.ask("LRANGE", "list", 0, -1) == ["", "x", "3"]
            assert connection.ask("LLEN", "list") == 3
            with pytest.raises(Unanswered, match="WRONGTYPE") as refused:
                connection.ask("LLEN", "a")
            assert refused.value.kind == "refused"
            # The connection is of use afterwards.
            assert connection.ask("PING") == "PONG"
    assert command(f"{server.address}/3", "EXISTS", "a") == 1
    assert command(f"redis://{server.address}/5", "EXISTS", "a") == 0


@needs_redis
def test_info(server):
    command(server.address, "SET", "some", "thing")
    found = info(server.address)
    assert found["tcp_port"] == server.port and isinstance(found["used_memory"], int)
    assert found["connected_clients"] >= 1 and isinstance(found["redis_version"], str)
    assert found["db0"].startswith("keys=") and isinstance(found["mem_fragmentation_ratio"], float)


@needs_redis
def test_password(locked):
    for word in (None, "wrong-pass", PASSWORD[:-1]):
        with pytest.raises(Unanswered) as refused:
            info(locked.address, word)
        assert refused.value.kind == "login" and (word or "?") not in refused.value.text
    assert info(locked.address, PASSWORD)["tcp_port"] == locked.port
    assert command(locked.address, "PING", password=PASSWORD, username="default") == "PONG"
    with pytest.raises(Unanswered) as refused:
        command(locked.address, "PING", password=PASSWORD, username="nobody")
    assert refused.value.kind == "login"


@needs_redis
def test_password_where_none_is_wanted(server):
    with pytest.raises(Unanswered) as refused:
        command(server.address, "PING", password=PASSWORD)
    assert refused.value.kind == "login" and PASSWORD not in refused.value.text


@needs_redis
def test_no_connection_left(tmp_path):
    with RedisServer(tmp_path, maxclients="1") as small, Connection(small.address):
        with pytest.raises(Unanswered, match="max number of clients") as refused:
            command(small.address, "PING")
        assert refused.value.kind in ("refused", "login")


@needs_redis
def test_tls(tmp_path):
    pem = make_certificate(str(tmp_path), names="DNS:localhost,IP:127.0.0.1")
    other = make_certificate(str(tmp_path), names="DNS:other.example.org")
    if pem is None or other is None:
        pytest.skip("there is no openssl to make a certificate with")
    port = free_port()
    with RedisServer(
        tmp_path,
        tls_port=str(port),
        tls_cert_file=pem,
        tls_key_file=pem,
        tls_ca_cert_file=pem,
        tls_auth_clients="no",
    ) as server:
        assert command(f"rediss://127.0.0.1:{port}/1", "PING", ca=pem) == "PONG"
        assert command(f"127.0.0.1:{port}", "PING", tls=True, ca=pem) == "PONG"
        assert command(f"127.0.0.1:{port}", "PING", tls=True, verify=False) == "PONG"
        for trusted in (None, other):
            with pytest.raises(Unanswered, match="certificate") as refused:
                command(f"127.0.0.1:{port}", "PING", tls=True, ca=trusted)
            assert refused.value.kind == "connection"
        with pytest.raises(Unanswered) as refused:
            command(f"127.0.0.1:{port}", "PING", tls=True, ca="/nowhere.pem")
        assert refused.value.kind == "probe"
        # The wrong protocol in both directions.
        for address, tls in ((f"127.0.0.1:{port}", False), (server.address, True)):
            with pytest.raises(Unanswered):
                command(address, "PING", tls=tls, ca=pem, timeout=2.0)


@needs_redis
def test_stopped_server(tmp_path):
    import os
    import signal

    with RedisServer(tmp_path) as server:
        os.kill(server.process.pid, signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(Unanswered) as late:
            info(server.address, timeout=0.5)
        assert late.value.kind == "time" and 0.4 < time.monotonic() - begun < 1.0
        os.kill(server.process.pid, signal.SIGCONT)
        assert info(server.address)
        server.stop()
        with pytest.raises(Unanswered, match="nothing listens") as gone:
            info(server.address)
        assert gone.value.kind == "connection"
        with pytest.raises(Unanswered) as gone:
            info(str(server.socket))
        assert gone.value.kind == "connection"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "time"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "protocol"),
        (b"220 mail.example.org ESMTP", "protocol"),
        (b"\x00\xff\xfe garbage", "protocol"),
        (b"$12\r\nshort", "time"),
        (b"$3\r\nlonger\r\n", "protocol"),
        (b"$-5\r\n", "protocol"),
        (b"$99999999999999\r\n", "protocol"),
        (b"*99999999999999\r\n", "protocol"),
        (b"$x\r\n", "protocol"),
        (b":" + b"9" * 5000 + b"\r\n", "protocol"),
        (b"*1\r\n" * 50, "protocol"),
        (b"*1\r\n" * 100_000, "protocol"),
        (b"+" + b"x" * (3 * ANSWER_LIMIT), "protocol"),
        (b"*1000000\r\n" + b":1\r\n" * 600_000, "protocol"),
        (b"%1\r\n+a\r\n+b\r\n", "protocol"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "refused"),
        (b"-NOAUTH Authentication required.\r\n", "login"),
        (b"+PONG\r\n", "protocol"),
        (b"$0\r\n\r\n", "protocol"),
        (b"$-1\r\n", "protocol"),
    ],
)
def test_what_is_no_redis(data, kind):
    # What is no Redis is seen from what it says, however slowly this machine reads it.
    timeout = 0.6 if kind == "time" else 20.0
    with Speaker(data) as server:
        begun = time.monotonic()
        with pytest.raises(Unanswered) as found:
            info(server.address, timeout=timeout)
        assert found.value.kind == kind, found.value.text
        assert time.monotonic() - begun < timeout + 5 and len(found.value.text) < 400


def test_one_byte_after_the_other_ends_in_time():
    with Speaker(b"+" + b"x" * 1000, drip=1) as server:
        begun = time.monotonic()
        with pytest.raises(Unanswered, match="waiting for the answer to INFO") as found:
            info(server.address, timeout=0.6)
        assert found.value.kind == "time" and time.monotonic() - begun < 1.0


@pytest.mark.parametrize("data", [b"", b"$12\r\nshort"])
def test_closed_connection(data):
    with Speaker(data, closes=True) as server, pytest.raises(Unanswered) as found:
        info(server.address, timeout=1.0)
    assert found.value.kind == "connection"


def test_unreachable():
    for address, kind in (
        (f"127.0.0.1:{free_port()}", "connection"),
        ("no-such-host.invalid:6379", "probe"),
        ("/nowhere/redis.sock", "connection"),
    ):
        with pytest.raises(Unanswered) as found:
            command(address, "PING", timeout=2.0)
        assert found.value.kind == kind


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("cache", Address("cache", 6379, None, 0, False)),
        ("cache:6400", Address("cache", 6400, None, 0, False)),
        ("[::1]:6379", Address("::1", 6379, None, 0, False)),
        ("redis://cache", Address("cache", 6379, None, 0, False)),
        ("rediss://cache:6380/2", Address("cache", 6380, None, 2, True)),
        ("/run/redis.sock", Address("", 0, "/run/redis.sock", 0, False)),
        ("unix:///run/redis.sock?db=4", Address("", 0, "/run/redis.sock", 4, False)),
    ],
)
def test_addresses(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "http://cache", "cache:port", "cache:99999", "redis://cache/x", "redis:///0", "unix://run", "[::1"],
)
def test_addresses_that_are_none(text):
    with pytest.raises(Problem, match="cannot be read"):
        parse_address(text)


def test_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(Problem) as found:
        parse_address("redis://:s3cret-word@cache:6379/0")
    assert "s3cret-word" not in found.value.message and "cache:6379" in found.value.message


def test_no_value_becomes_another_word():
    assert (
        encode(["SET", "a\r\n$4\r\nQUIT", 5]) == b"*3\r\n$3\r\nSET\r\n$11\r\na\r\n$4\r\nQUIT\r\n$1\r\n5\r\n"
    )


def test_parse_info():
    text = "# Server\r\nredis_version:7.0.15\r\nuptime:12\r\n\r\n# Memory\r\nratio:1.50\r\nneg:-3\r\nsha:00000000\r\npath:/a:b\r\nempty:\r\n"
    found = {
        "redis_version": "7.0.15",
        "uptime": 12,
        "ratio": 1.5,
        "neg": -3,
        "sha": "00000000",
        "path": "/a:b",
    }
    assert parse_info(text) == {**found, "empty": ""}


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_is_said_ends_in_one_way(data):
    left, right = socket.socketpair(socket.AF_UNIX)
    connection = Connection.__new__(Connection)
    connection.address = Address("", 0, str(Path("/run/x")), 0, False)
    connection.timeout, connection.limit = 1.0, time.monotonic() + 1.0
    connection._secrets, connection._data, connection._taken = [], bytearray(), 0
    connection._socket, connection._stage = left, "asking"
    right.sendall(data)
    right.shutdown(socket.SHUT_WR)
    try:
        answer = connection.ask("PING")
        assert answer is None or isinstance(answer, (str, int, list))
    except Unanswered as error:
        assert error.kind in ("connection", "protocol", "login", "refused")
    finally:
        left.close()
        right.close()
