# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a Redis server (or Valkey) something and get an answer in time, whatever listens there; no library is needed.

The protocol is RESP2, which every server speaks until a client asks for another (redis.io, "Redis serialization
protocol specification").

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
import urllib.parse
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Union

from ansible_collections.runbook.deploy.plugins.module_utils._command import redact
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

PORT = 6379
TIMEOUT = 5.0
# INFO with everything is some 10 KiB; whatever listens there must not fill the memory.
ANSWER_LIMIT = 1024 * 1024
# An answer of ours has at most lists of lists (COMMAND, CONFIG GET).
DEPTH = 8
SCHEMES = ("redis", "rediss", "unix")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,17})(\.\d+)?\Z")
_BEGINS = b"+-:$*"

Answer = Union[str, int, None, list[Any]]


class Unanswered(Exception):
    """A question without a usable answer.

    :param text: what was seen, a part of a sentence without secrets.
    :param kind: ``probe`` (it could not be asked from here: nothing is known of the server), ``connection`` (nothing answers
        there), ``time``, ``protocol`` (what answers is no Redis), ``login`` (the password is missing or wrong), or
        ``refused`` (the server answered with another error, such as ``LOADING`` or ``WRONGTYPE``).
    """

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.text = text
        self.kind = kind


class Address(NamedTuple):
    """Where a server is: ``host`` and ``port``, or ``path`` of a Unix socket; ``database`` is its number."""

    host: str
    port: int
    path: str | None
    database: int
    tls: bool

    @property
    def place(self) -> str:
        """What it is called in messages."""
        if self.path:
            return f"socket {self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, tls: bool = False) -> Address:
    """Return the parts of ``cache``, ``cache:6379``, ``[::1]:6379``, ``/run/redis.sock`` or an URL ``rediss://cache:6380/2``.

    :param tls: speak TLS also where the scheme does not say so.
    :raises Problem: when it cannot be read, or carries a password.
    """
    example = "expected host:port, /path/of/a/socket or redis://host:port/0"
    scheme, separator, rest = text.partition("://")
    if not separator:
        if text.startswith("/"):
            return Address("", 0, text, 0, False)
        scheme, rest = "redis", text
    if "@" in rest:
        hidden = rest.rpartition("@")[2]
        raise Problem(
            f"The address ********@{hidden} of Redis carries a password: give it as an option of its own."
        )
    if scheme not in SCHEMES:
        raise Problem(f"The address {text!r} of Redis cannot be read: {example}.")
    if scheme == "unix":
        path, _question, query = rest.partition("?")
        number = urllib.parse.parse_qs(query).get("db", ["0"])[0]
        if not path.startswith("/") or not number.isdecimal():
            raise Problem(f"The address {text!r} of Redis cannot be read: {example}.")
        return Address("", 0, path, int(number), False)
    try:
        parts = urllib.parse.urlsplit(f"//{rest}")
        host, port, number = parts.hostname, parts.port, parts.path.strip("/")
    except ValueError as error:
        raise Problem(f"The address {text!r} of Redis cannot be read ({error}): {example}.") from error
    if not host or not (number == "" or number.isdecimal()) or parts.query or parts.fragment:
        raise Problem(f"The address {text!r} of Redis cannot be read: {example}.")
    return Address(host, port or PORT, None, int(number or 0), tls or scheme == "rediss")


class Connection:
    """A connection that ends in time; a context manager.

    :param address: see :func:`parse_address`, or an :class:`Address`.
    :param password: sent with AUTH, with *username* where the server knows users (Redis 6 and later).
    :param tls: True, or the address says ``rediss://``; :param ca: a file with the authorities to trust instead of the
        system's; :param verify: whether the certificate is verified.
    :param timeout: seconds for everything, from the connection to the last answer.
    :raises Problem: when *address* cannot be read.
    :raises Unanswered: when it cannot be reached, or lets nobody in; also by every question.
    """

    def __init__(
        self,
        address: str | Address,
        password: str | None = None,
        username: str | None = None,
        tls: bool = False,
        timeout: float = TIMEOUT,
        ca: str | None = None,
        verify: bool = True,
    ) -> None:
        self.address = parse_address(address, tls) if isinstance(address, str) else address
        self.timeout = timeout
        self.limit = time.monotonic() + timeout
        self._secrets = [password] if password else []
        self._data = bytearray()
        self._taken = 0
        self._stage = "connecting"
        self._socket: socket.socket | None = None
        try:
            self._socket = self._guarded(lambda: self._connect(ca, verify))
            if password:
                self.ask("AUTH", *([username] if username else []), password)
            if self.address.database:
                self.ask("SELECT", self.address.database)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a second time does nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ask(self, *words: str | int | bytes) -> Answer:
        """Return the answer to one command: a text, a number, None (nothing there) or a list of them.

        :raises Unanswered: for an error too.
        """
        answer = self._guarded(lambda: self._exchange(words))
        if isinstance(answer, _Error):
            raise _refused(redact(answer.text, self._secrets), str(words[0]))
        return answer

    def _open(self) -> socket.socket:
        """Return the connection, which waits for at most what is left."""
        if self._socket is None:
            raise Unanswered("the connection was closed before", "connection")
        self._socket.settimeout(self._left())
        return self._socket

    def _left(self) -> float:
        left = self.limit - time.monotonic()
        if left <= 0:
            raise socket.timeout("time limit")
        return left

    def _guarded(self, call: Any) -> Any:
        """Return what *call* does; every fault of the system becomes an :class:`Unanswered`."""
        place = self.address.place
        try:
            return call()
        except socket.timeout as error:
            raise Unanswered(
                f"no whole answer from {place} in {self.timeout:.1f} s ({self._stage})", "time"
            ) from error
        except ssl.SSLCertVerificationError as error:
            raise Unanswered(
                f"the certificate of {place} is refused: {error.verify_message}", "connection"
            ) from error
        except ssl.SSLError as error:
            raise Unanswered(f"TLS with {place} failed: {error.reason or error}", "connection") from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise Unanswered(f"nothing listens at {place}", "connection") from error
        except PermissionError as error:
            raise Unanswered(f"uid {os.geteuid()} may not open {place}", "probe") from error
        except OSError as error:
            raise Unanswered(
                f"{(error.strerror or str(error)).lower()} ({self._stage} at {place})", "connection"
            ) from error

    def _connect(self, ca: str | None, verify: bool) -> socket.socket:
        if self.address.path:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.settimeout(self._left())
                connection.connect(self.address.path)
            except BaseException:
                connection.close()
                raise
            return connection
        context = _context(ca, verify) if self.address.tls else None
        try:
            places = socket.getaddrinfo(self.address.host, self.address.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Unanswered(
                f"the name {self.address.host!r} is not known here ({error})", "probe"
            ) from error
        failure: OSError = OSError("the name has no address")
        for family, kind, protocol, _name, place in places:
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(self._left())
                connection.connect(place)
                if context is None:
                    return connection
                self._stage = "beginning TLS"
                connection.settimeout(self._left())
                return context.wrap_socket(connection, server_hostname=self.address.host)
            except OSError as error:
                connection.close()
                failure = error
                if isinstance(error, ssl.SSLError):
                    break
            except BaseException:
                connection.close()
                raise
        raise failure

    def _exchange(self, words: Sequence[str | int | bytes]) -> Any:
        self._stage = f"waiting for the answer to {words[0]!s}"
        # What is left of an answer belongs to no question.
        del self._data[:]
        self._taken = 0
        self._open().sendall(encode(words))
        return self._answer(0)

    def _answer(self, depth: int) -> Any:
        line = self._line()
        begin, rest = line[:1], line[1:]
        if begin == b"+":
            return _text(rest)
        if begin == b"-":
            return _Error(_text(rest))
        if begin not in (b":", b"$", b"*") or depth > DEPTH:
            raise self._garbage(line)
        if not re.fullmatch(rb"-?\d{1,19}", rest):
            raise self._garbage(line)
        size = int(rest)
        if begin == b":":
            return size
        if size == -1:
            return None
        if size < 0 or size > ANSWER_LIMIT:
            raise self._garbage(line)
        if begin == b"$":
            data = self._exactly(size + 2)
            if data[-2:] != b"\r\n":
                raise self._garbage(line)
            return _text(data[:-2])
        return [self._answer(depth + 1) for _number in range(size)]

    def _line(self) -> bytes:
        looked = 0
        while True:
            end = self._data.find(b"\r\n", max(0, looked - 1))
            if end >= 0:
                line = bytes(self._data[:end])
                del self._data[: end + 2]
                return line
            # Another server is known by its first byte; waiting for the end of its line could take all our time.
            if self._data and self._data[0] not in _BEGINS:
                raise self._garbage(bytes(self._data))
            looked = len(self._data)
            self._receive()

    def _exactly(self, size: int) -> bytes:
        while len(self._data) < size:
            self._receive()
        data = bytes(self._data[:size])
        del self._data[:size]
        return data

    def _receive(self) -> None:
        if self._taken > ANSWER_LIMIT:
            raise Unanswered(
                f"{self.address.place} answers with more than {ANSWER_LIMIT} bytes: ask for less", "protocol"
            )
        piece = self._open().recv(65536)
        if not piece:
            raise Unanswered(
                f"{self.address.place} closed the connection ({self._stage}): "
                + ("it may speak TLS only, or " if not self.address.tls else "")
                + "it has no connection left, or is no Redis",
                "connection",
            )
        self._data += piece
        self._taken += len(piece)

    def _garbage(self, line: bytes) -> Unanswered:
        shown = redact(_text(line[:60]), self._secrets)
        return Unanswered(f"what answers at {self.address.place} is no Redis: it says {shown!r}", "protocol")


class _Error(NamedTuple):
    text: str


def _refused(text: str, command: str) -> Unanswered:
    """Return the Unanswered for the error *text*, whose first word says what it is."""
    first = text.split(" ", 1)[0]
    login = first in ("NOAUTH", "WRONGPASS") or (command == "AUTH" and first == "ERR")
    return Unanswered(f"{command} was answered with {text[:200]!r}", "login" if login else "refused")


def _context(ca: str | None, verify: bool) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise Unanswered(f"the authorities in {ca!r} cannot be read: {error}", "probe") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def encode(words: Sequence[str | int | bytes]) -> bytes:
    """Return the bytes of one command: a list of strings with their lengths, so that no value can become another word."""
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def command(
    address: str | Address,
    *words: str | int | bytes,
    password: str | None = None,
    username: str | None = None,
    tls: bool = False,
    timeout: float = TIMEOUT,
    ca: str | None = None,
    verify: bool = True,
) -> Answer:
    """Return the answer to one command on a connection of its own; see :class:`Connection`."""
    with Connection(address, password, username, tls, timeout, ca, verify) as connection:
        return connection.ask(*words)


def info(
    address: str | Address,
    password: str | None = None,
    username: str | None = None,
    tls: bool = False,
    timeout: float = TIMEOUT,
    ca: str | None = None,
    verify: bool = True,
) -> dict[str, str | int | float]:
    """Return the fields of INFO, such as ``used_memory`` (bytes), ``connected_clients`` and ``db0``.

    :raises Problem: when *address* cannot be read.
    :raises Unanswered: when there is no answer with at least one field: no data is never nothing.
    """
    with Connection(address, password, username, tls, timeout, ca, verify) as connection:
        answer = connection.ask("INFO")
        fields = parse_info(answer) if isinstance(answer, str) else {}
        if not fields:
            raise Unanswered(f"{connection.address.place} answered INFO without any field", "protocol")
        return fields


def parse_info(text: str) -> dict[str, str | int | float]:
    """Return the lines ``field:value`` of *text*; values that are decimal numbers become such."""
    result: dict[str, str | int | float] = {}
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if not separator or line.startswith("#"):
            continue
        found = _NUMBER.match(value)
        result[name] = value if not found else float(value) if found.group(1) else int(value)
    return result
