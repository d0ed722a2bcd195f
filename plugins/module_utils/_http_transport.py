# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One HTTP request over a Unix socket, TCP or TLS that ends in time, whatever the server does.

The time limit is for the whole exchange: a server that sends one byte a second keeps a limit per read alive
for ever. So the time that is left is set anew before each call that waits.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import socket as sockets
import ssl
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

USER_AGENT = "runbook.deploy"
# More is never needed to judge an answer, and a log or a dump that is served must not fill the memory.
BODY_LIMIT = 1024 * 1024
# What is kept in a path as it is: RFC 3986 reserved characters, and % of what is already quoted.
_KEPT = "/?&=:@!$'()*+,;%~[]-._"


class Unanswered(Exception):
    """A request without a usable answer.

    :param text: what was seen, a part of a sentence; :param asked: False when the request could not even be
        made (the probe is at fault: nothing is known about the application).
    """

    def __init__(self, text: str, asked: bool = True) -> None:
        super().__init__(text)
        self.text = text
        self.asked = asked


class Target:
    """Where requests go.

    :param address: ``https://shop.example.org``, ``http://10.0.0.5:8000`` or ``127.0.0.1:8000`` (plain HTTP).
    :param socket: path of a Unix socket, instead of *address*.
    :param host: the Host header; with TLS also the name that the certificate must carry. A URL with this name
        is asked for at the target too (with a socket and no *host*: any URL), so that the instance is proved
        and not what answers in public.
    :param headers: sent with every request to the target, such as ``X-Forwarded-Proto: https``.
    :param verify: whether certificates are verified; :param ca: a file with the authorities to trust instead.
    :raises Problem: when there is not exactly one of *address* and *socket*, or *address* cannot be read.
    """

    def __init__(
        self,
        address: str | None = None,
        socket: str | os.PathLike[str] | None = None,
        host: str | None = None,
        headers: Mapping[str, str] | None = None,
        verify: bool = True,
        ca: str | None = None,
    ) -> None:
        if bool(address) == bool(socket):
            raise Problem(
                f"A gate asks either an address or a socket, found address {address!r} and socket {socket!r}."
            )
        self.socket = os.fspath(socket) if socket else None
        # Behind a socket there is no address; a request has to name a host all the same.
        place = address or "localhost"
        self.base = parse_url(place if "://" in place else f"http://{place}")
        self.host = host
        self.headers = {str(name): str(value) for name, value in (headers or {}).items()}
        self.verify = verify
        self.ca = ca
        self._context: ssl.SSLContext | None = None

    def resolve(self, url: str) -> Route:
        """Return how *url*, a path or an absolute address, is reached.

        :raises Problem: when *url* cannot be read.
        """
        if "://" not in url:
            if not url.startswith("/"):
                raise Problem(f"The url {url!r} must begin with / or with http:// or https://.")
            path = urllib.parse.quote(url.split("#")[0], safe=_KEPT)
            if self.socket is not None:
                return Route("http", None, 0, self.socket, self.host or self.base.netloc, path, True)
            return self._by_address(self.base, self.host or self.base.netloc, path, True)
        wanted = parse_url(url)
        path = urllib.parse.quote(wanted.path or "/", safe=_KEPT)
        if wanted.query:
            path += "?" + urllib.parse.quote(wanted.query, safe=_KEPT)
        named = self.host is not None and wanted.hostname == self._host_name()
        if self.socket is not None:
            if self.host is None or named:
                return Route("http", None, 0, self.socket, self.host or wanted.netloc, path, True)
            return self._by_address(wanted, wanted.netloc, path, False)
        if named or _origin(wanted) == _origin(self.base):
            return self._by_address(self.base, self.host or self.base.netloc, path, True)
        # Another scheme or port of the same name is another server, and http:// that leads to https:// has to
        # get there; it is the same application all the same.
        upgraded = wanted.scheme == "https" and wanted.hostname == self.base.hostname
        return self._by_address(wanted, wanted.netloc, path, upgraded)

    @staticmethod
    def _by_address(place: urllib.parse.SplitResult, host: str, path: str, target: bool) -> Route:
        return Route(place.scheme, place.hostname, _port(place), None, host, path, target)

    def _host_name(self) -> str | None:
        return urllib.parse.urlsplit(f"//{self.host}").hostname if self.host else None

    def context(self) -> ssl.SSLContext:
        """Return the TLS settings, made once: reading the authorities takes tens of milliseconds.

        :raises Unanswered: when the file with the authorities cannot be read.
        """
        if self._context is None:
            try:
                context = ssl.create_default_context(cafile=self.ca)
            except OSError as error:
                raise Unanswered(
                    f"the authorities in {self.ca!r} cannot be read: {error}", asked=False
                ) from error
            if not self.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            self._context = context
        return self._context


def whole_addresses(urls: Iterable[str]) -> None:
    """Require that each of *urls* says itself where it is asked, as there is nothing else that does.

    :raises Problem: for the first that is only a path.
    """
    for index, url in enumerate(urls):
        if "://" not in url:
            raise Problem(
                f"checks[{index}].url is {url!r}, and there is no address that the path belongs to: give app_url, or a whole address."
            )


class Route(NamedTuple):
    """A request's way: *name* and *port* (or *socket*), the Host header, the path with its query, and whether
    it goes to the target (only there headers, cookies and secrets belong)."""

    scheme: str
    name: str | None
    port: int
    socket: str | None
    host: str
    path: str
    target: bool

    @property
    def url(self) -> str:
        """The address as the application sees it."""
        return f"{self.scheme}://{self.host}{self.path}"

    @property
    def place(self) -> str:
        """Where the connection goes, for messages."""
        return f"socket {self.socket}" if self.socket else f"{self.name}:{self.port}"


class Answer(NamedTuple):
    """What came back: ``headers`` by lower-case name (repeated ones joined by newlines), ``text`` decoded,
    ``cut`` when there was more than ``BODY_LIMIT`` bytes, ``seconds`` from the first byte sent to the last
    one read, ``certificate`` as ``ssl.SSLSocket.getpeercert`` returns it ({} without TLS)."""

    status: int
    headers: dict[str, str]
    text: str
    cut: bool
    seconds: float
    certificate: Mapping[str, Any]


def parse_url(url: str) -> urllib.parse.SplitResult:
    """Return the parts of an absolute *url*.

    :raises Problem: when it is not http or https, has no host or port that can be read, or carries a password.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        _port(parts)
    except ValueError as error:
        raise Problem(f"The address {url!r} cannot be read: {error}.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Problem(f"The address {url!r} must be like https://shop.example.org or http://127.0.0.1:8000.")
    if parts.username or parts.password:
        hidden = url.replace(f"{parts.username or ''}:{parts.password or ''}@", "********@")
        raise Problem(
            f"The address {hidden!r} carries a password: send it as a header, with {{secret.name}}."
        )
    return parts


def _port(parts: urllib.parse.SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _origin(parts: urllib.parse.SplitResult) -> tuple[str, str, int]:
    return parts.scheme, (parts.hostname or "").lower(), _port(parts)


class _Limited(io.RawIOBase):
    """Reads from a socket, each time for at most what is left of the whole."""

    def __init__(self, connection: sockets.socket, limit: float) -> None:
        super().__init__()
        self.connection = connection
        self.limit = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.connection.settimeout(left_until(self.limit))
        return self.connection.recv_into(buffer)


class _Connection:
    """What ``http.client`` needs of a socket: ``sendall``, ``makefile`` and ``close``."""

    def __init__(self, connection: sockets.socket, limit: float) -> None:
        self.connection = connection
        self.limit = limit

    def sendall(self, data: bytes) -> None:
        self.connection.settimeout(left_until(self.limit))
        self.connection.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return the one stream that ``http.client.HTTPResponse`` reads from.

        :raises ValueError: for a *mode* that it does not ask for.
        """
        if mode != "rb":
            raise ValueError(f"mode must be rb, found {mode!r}")
        return io.BufferedReader(_Limited(self.connection, self.limit))

    def close(self) -> None:
        """Do nothing: ``http.client`` closes before the body is read, ``exchange`` when all is done."""


def left_until(limit: float) -> float:
    """Return the seconds until *limit*, a reading of ``time.monotonic()``; :raises TimeoutError: when there are none."""
    left = limit - time.monotonic()
    if left <= 0:
        raise sockets.timeout("time limit")
    return left


def connect(route: Route, target: Target, limit: float) -> sockets.socket:
    """Return a connection; TLS is begun where the scheme says so.

    :raises Unanswered: with ``asked=False`` when the name is unknown, or the socket may not be opened.
    :raises OSError: when nobody answers.
    """
    if route.socket is not None:
        connection = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        try:
            connection.settimeout(left_until(limit))
            connection.connect(route.socket)
        except BaseException:
            connection.close()
            raise
        return connection
    try:
        places = sockets.getaddrinfo(route.name, route.port, type=sockets.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unanswered(f"the name {route.name!r} is not known here ({error})", asked=False) from error
    failure: OSError = OSError("the name has no address")
    for family, kind, protocol, _name, place in places:
        connection = sockets.socket(family, kind, protocol)
        try:
            connection.settimeout(left_until(limit))
            connection.connect(place)
            if route.scheme != "https":
                return connection
            name = urllib.parse.urlsplit(f"//{route.host}").hostname or route.name
            connection.settimeout(left_until(limit))
            return target.context().wrap_socket(connection, server_hostname=name)
        except OSError as error:
            connection.close()
            failure = error
            if isinstance(error, ssl.SSLError):
                break
        except BaseException:
            connection.close()
            raise
    raise failure


def exchange(
    target: Target,
    route: Route,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    timeout: float = 10.0,
) -> Answer:
    """Send one request and return its answer; redirects are not followed, compression is not asked for.

    :param headers: sent as they are, after Host, User-Agent and Cache-Control; they may replace these.
    :param timeout: seconds for everything from the connection to the last byte.
    :raises Unanswered: when there is no whole answer in that time.
    """
    begun = time.monotonic()
    limit = begun + timeout
    stage = ["connecting"]
    connection: sockets.socket | None = None
    try:
        with explained(route, timeout, stage):
            connection = connect(route, target, limit)
            stage[0] = "waiting for the answer"
            certificate = connection.getpeercert() if isinstance(connection, ssl.SSLSocket) else {}
            client = http.client.HTTPConnection("unused")
            client.sock = _Connection(connection, limit)  # type: ignore[assignment]
            client.putrequest(method, route.path, skip_host=True, skip_accept_encoding=True)
            for name, value in _headers(route, headers or {}, body).items():
                # http.client takes latin-1 texts only; bytes it sends as they are.
                client.putheader(name, value.encode())
            client.endheaders(body)
            response = client.getresponse()
            stage[0] = "reading the answer"
            data, cut = _read(response)
        return Answer(
            response.status,
            _folded(response),
            _decoded(data, response.headers.get_content_charset()),
            cut,
            time.monotonic() - begun,
            certificate or {},
        )
    except ValueError as error:
        raise Problem(f"The request {method} {route.path!r} cannot be sent: {error}.") from error
    finally:
        if connection is not None:
            connection.close()


@contextlib.contextmanager
def explained(route: Route, timeout: float, stage: Sequence[str]) -> Iterator[None]:
    """Turn whatever keeps an answer from coming into :class:`Unanswered`.

    :param timeout: seconds that the whole may take; :param stage: its first item says what is being done.
    """
    try:
        yield
    except sockets.timeout as error:
        raise Unanswered(f"no complete answer in {timeout:.1f} s ({stage[0]})") from error
    except ssl.SSLCertVerificationError as error:
        raise Unanswered(f"the certificate is refused: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise Unanswered(f"TLS failed: {error.reason or error}") from error
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise Unanswered(f"nothing listens at {route.place}") from error
    except PermissionError as error:
        raise Unanswered(f"uid {os.geteuid()} may not open {route.place}", asked=False) from error
    except http.client.HTTPException as error:
        raise Unanswered(f"no valid HTTP answer ({type(error).__name__}: {error})") from error
    except OSError as error:
        raise Unanswered(f"{(error.strerror or str(error)).lower()} ({stage[0]})") from error


def _headers(route: Route, given: Mapping[str, str], body: bytes | None) -> dict[str, str]:
    """Return the headers to send; those *given* win over ours, whatever their case."""
    headers = {
        "Host": route.host,
        "User-Agent": USER_AGENT,
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Cache-Control": "no-store",
        "Connection": "close",
    }
    if body is not None:
        headers["Content-Length"] = str(len(body))
    names = {name.lower(): name for name in headers}
    for name, value in given.items():
        headers.pop(names.get(name.lower(), name), None)
        headers[name] = value
    return headers


def _decoded(data: bytes, encoding: str | None) -> str:
    try:
        return data.decode(encoding or "utf-8", "replace")
    except LookupError:
        # An encoding that Python does not know says nothing about the application's health.
        return data.decode("latin-1")


def _folded(response: http.client.HTTPResponse) -> dict[str, str]:
    result: dict[str, str] = {}
    for name, value in response.getheaders():
        key = name.lower()
        result[key] = f"{result[key]}\n{value}" if key in result else value
    return result


def _read(response: http.client.HTTPResponse) -> tuple[bytes, bool]:
    """Return at most ``BODY_LIMIT`` bytes, and whether there were more.

    :raises http.client.IncompleteRead: when the server announced more than it sent.
    """
    data = bytearray()
    while len(data) <= BODY_LIMIT:
        piece = response.read(min(65536, BODY_LIMIT + 1 - len(data)))
        if not piece:
            break
        data += piece
    cut = len(data) > BODY_LIMIT
    if not cut and response.length:
        # read(n) of Python before 3.12 ends silently where the connection does.
        raise http.client.IncompleteRead(bytes(data[:0]), response.length)
    return bytes(data[:BODY_LIMIT]), cut
