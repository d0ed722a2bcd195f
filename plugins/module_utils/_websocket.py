# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A WebSocket client, RFC 6455, that trusts no server: bounded in time and memory, and strict.

It offers no extensions. Sections in comments are those of RFC 6455.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._http_transport import left_until

# Section 1.3.
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
# Of a message, in bytes; more is never needed to judge it.
MESSAGE_LIMIT = 1024 * 1024
HEAD_LIMIT = 64 * 1024
# Section 5.5: a control frame's payload.
CONTROL_LIMIT = 125
_STATUS = re.compile(rb"^HTTP/1\.[01] ([1-5]\d\d)(?: [^\r\n]*)?$")


class Fault(Exception):
    """The server broke the protocol, ended the connection, or sent too much.

    :param text: what was seen, a part of a sentence; :param kind: ``protocol``, ``lost`` (ended without a close frame) or
        ``size``.
    """

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.text = text
        self.kind = kind


class Message(NamedTuple):
    """A whole message; of a ``CLOSE`` also its code (1005 where it has none, section 7.1.5)."""

    opcode: int
    data: bytes
    code: int = 0

    @property
    def text(self) -> str:
        """Its data as a text."""
        return self.data.decode("utf-8", "replace")


class Handshake(NamedTuple):
    """The server's answer to the opening handshake; ``headers`` by lower-case name, ``rest`` what came after them."""

    status: int
    headers: dict[str, str]
    rest: bytes


def accept_of(key: str) -> str:
    """Return the value of Sec-WebSocket-Accept that answers *key* (section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(f"{key}{GUID}".encode()).digest()).decode()


def new_key() -> str:
    """Return a new value of Sec-WebSocket-Key: sixteen random bytes (section 4.1)."""
    return base64.b64encode(os.urandom(16)).decode()


def request(path: str, headers: Mapping[str, str]) -> bytes:
    """Return the opening request.

    :raises ValueError: when a header or the path would end its line.
    """
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    if any(re.search(r"[\r\n\0]", line) for line in lines) or " " in path:
        raise ValueError("a header or the path holds the end of a line")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Return status and headers of *head*, the lines before the empty one; repeated headers are joined by commas.

    :raises Fault: when it is no HTTP/1 answer.
    """
    first, *lines = head.split(b"\r\n")
    found = _STATUS.match(first)
    if not found:
        raise Fault(f"no valid HTTP answer, but {first[:60].decode('latin-1')!r}", "protocol")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or not name.strip() or name != name.strip():
            raise Fault(f"no valid header of HTTP, but {line[:60].decode('latin-1')!r}", "protocol")
        key = name.lower()
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    return int(found.group(1)), headers


def handshake_faults(headers: Mapping[str, str], key: str, offered: Sequence[str]) -> list[str]:
    """Return what is wrong with an answer 101 (section 4.1); pure.

    :param key: the Sec-WebSocket-Key that was sent; :param offered: the subprotocols.
    """
    wrong = []
    if headers.get("upgrade", "").lower() != "websocket":
        wrong.append(f"Upgrade is {headers.get('upgrade')!r}, not 'websocket'")
    if "upgrade" not in [part.strip().lower() for part in headers.get("connection", "").split(",")]:
        wrong.append(f"Connection is {headers.get('connection')!r}, not 'Upgrade'")
    if headers.get("sec-websocket-accept") != accept_of(key):
        wrong.append(
            "Sec-WebSocket-Accept is not the answer to our key: what answers is no WebSocket server, or a cache"
        )
    if headers.get("sec-websocket-extensions"):
        wrong.append(f"it uses extensions that nobody offered: {headers['sec-websocket-extensions'][:60]!r}")
    chosen = headers.get("sec-websocket-protocol")
    if chosen is not None and chosen not in offered:
        wrong.append(f"it chose the subprotocol {chosen[:60]!r}, which nobody offered")
    return wrong


def frame(opcode: int, payload: bytes, mask: bytes | None = None) -> bytes:
    """Return a frame of a client: final and masked (section 5.2)."""
    mask = os.urandom(4) if mask is None else mask
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    pattern = (mask * (size // 4 + 1))[:size]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(pattern, "big")
    return head + mask + masked.to_bytes(size, "big")


class Stream:
    """The two ways of an open connection.

    :param connection: the socket; :param limit: the reading of ``time.monotonic()`` at which all is over.
    """

    def __init__(self, connection: socket.socket, limit: float) -> None:
        self.connection = connection
        self.limit = limit
        self._buffer = bytearray()
        self._parts: list[bytes] = []
        self._size = 0
        self._kind = 0

    def send(self, data: bytes) -> None:
        """Send *data* as it is; :raises OSError: when that fails or takes too long."""
        self.connection.settimeout(left_until(self.limit))
        self.connection.sendall(data)

    def send_message(self, opcode: int, payload: bytes) -> None:
        """Send one frame."""
        self.send(frame(opcode, payload))

    def handshake(self) -> Handshake:
        """Return the answer to the opening request; informational ones before it are passed over.

        :raises Fault: for what is no HTTP, or an end of the connection; :raises OSError: as the socket does.
        """
        while True:
            while b"\r\n\r\n" not in self._buffer:
                if len(self._buffer) > HEAD_LIMIT:
                    raise Fault(f"no end of the headers in {HEAD_LIMIT} bytes", "protocol")
                # What does not begin like HTTP will not become it: no need to wait for an empty line.
                if len(self._buffer) >= 5 and not self._buffer.startswith(b"HTTP/"):
                    raise Fault(f"no valid HTTP answer, but {bytes(self._buffer[:60])!r}", "protocol")
                self._more(self.limit, "before it had answered the handshake")
            head, _empty, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            self._buffer = bytearray(rest)
            status, headers = parse_head(head)
            if status == 101 or status >= 200:
                return Handshake(status, headers, rest)

    def body(self, most: int, limit: float) -> str:
        """Return what comes of a refusal's body until *limit*, at most *most* bytes."""
        try:
            while len(self._buffer) < most:
                self._more(limit, "")
        except (Fault, OSError):
            pass
        return bytes(self._buffer[:most]).decode("utf-8", "replace")

    def receive(self, limit: float) -> Message:
        """Return the next message, pong or close; pings are answered on the way.

        :param limit: the reading of ``time.monotonic()`` at which a timeout is raised; what has come is kept.
        :raises Fault: when the server breaks the protocol, is gone, or sends a message above ``MESSAGE_LIMIT``.
        """
        while True:
            final, opcode, payload = self._frame(limit)
            if opcode == PING:
                self.send_message(PONG, payload)
            elif opcode == PONG:
                return Message(PONG, payload)
            elif opcode == CLOSE:
                return self._closed(payload)
            elif self._join(final, opcode, payload):
                data = b"".join(self._parts)
                kind, self._parts, self._size, self._kind = self._kind, [], 0, 0
                if kind == TEXT:
                    try:
                        data.decode("utf-8")
                    except UnicodeDecodeError as error:
                        raise Fault("it sent a text that is no UTF-8", "protocol") from error
                return Message(kind, data)

    def _join(self, final: bool, opcode: int, payload: bytes) -> bool:
        """Take a frame of data; return whether its message is whole (section 5.4)."""
        if opcode == CONTINUATION and not self._kind:
            raise Fault("it continued a message that it had not begun", "protocol")
        if opcode != CONTINUATION and self._kind:
            raise Fault("it began a message within another", "protocol")
        self._kind = self._kind or opcode
        if payload:
            self._parts.append(payload)
            self._size += len(payload)
        if self._size > MESSAGE_LIMIT:
            raise Fault(f"it sent a message of more than {MESSAGE_LIMIT} bytes", "size")
        return final

    def _closed(self, payload: bytes) -> Message:
        if len(payload) == 1:
            raise Fault("it sent a close frame with half a code", "protocol")
        code = struct.unpack("!H", payload[:2])[0] if payload else 1005
        if payload and not valid_code(code):
            raise Fault(f"it closed with the code {code}, which nobody may send", "protocol")
        return Message(CLOSE, payload[2:], code)

    def _frame(self, limit: float) -> tuple[bool, int, bytes]:
        """Return the next frame: whether it is final, its opcode and payload (section 5.2)."""
        first, second = self._peek(2, limit)
        opcode, size = first & 0x0F, second & 0x7F
        if first & 0x70:
            raise Fault("it set reserved bits, which no extension allows", "protocol")
        if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            raise Fault(f"it sent a frame with the reserved opcode {opcode}", "protocol")
        if second & 0x80:
            raise Fault("it masked a frame, which only a client does", "protocol")
        control = opcode >= CLOSE
        if control and (size > CONTROL_LIMIT or not first & 0x80):
            raise Fault("it sent a control frame that is too long or fragmented", "protocol")
        begin = 2
        if size >= 126:
            begin = 4 if size == 126 else 10
            least = 126 if size == 126 else 1 << 16
            size = int.from_bytes(self._peek(begin, limit)[2:], "big")
            if size < least or size >= 1 << 63:
                raise Fault("it wrote a length in a way that is not allowed", "protocol")
        if size > MESSAGE_LIMIT:
            raise Fault(f"it sent a frame of {size} bytes, and at most {MESSAGE_LIMIT} are read", "size")
        payload = bytes(self._peek(begin + size, limit)[begin:])
        # Only now: what a timeout cut short is read again from its beginning.
        del self._buffer[: begin + size]
        return bool(first & 0x80), opcode, payload

    def _peek(self, count: int, limit: float) -> bytearray:
        """Return the first *count* bytes that are left, without taking them."""
        while len(self._buffer) < count:
            self._more(limit, "")
        return self._buffer[:count]

    def _more(self, limit: float, when: str) -> None:
        self.connection.settimeout(left_until(min(limit, self.limit)))
        data = self.connection.recv(65536)
        if not data:
            raise Fault(f"it ended the connection {when or 'without a word (code 1006)'}", "lost")
        self._buffer += data


def valid_code(code: int) -> bool:
    """Return whether *code* may stand in a close frame (section 7.4 and its registry at IANA)."""
    return 1000 <= code <= 1014 and code not in (1004, 1005, 1006) or 3000 <= code <= 4999
