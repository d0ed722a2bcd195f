# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask the host's own web server what a visitor gets: the maintenance page, or the application.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_pages import HEADER

# Seconds for one answer, and between two questions.
ANSWER = 5.0
LOOK = 0.1
# Of an answer's body; the page is small.
MOST = 65536


class Seen(NamedTuple):
    """One answer. ``status`` is 0 where there was none, and ``error`` says why."""

    status: int
    retry_after: str = ""
    kind: str = ""
    mark: str = ""
    body: bytes = b""
    error: str = ""

    def told(self) -> dict[str, Any]:
        """Return it as the module answers it."""
        return {
            "status": self.status,
            "retry_after": self.retry_after,
            "content_type": self.kind,
            "error": self.error,
        }

    def words(self) -> str:
        """Return it in words."""
        if not self.status:
            return f"no answer ({self.error})"
        return f"{self.status}{f' with Retry-After {self.retry_after}' if self.retry_after else ''}"


def ask(address: str, host: str, accept: str = "text/html", source: str = "") -> Seen:
    """Ask *address* once, as a visitor of *host*; *source* is the address of this host that it comes from, "" for any.

    A certificate is not looked at: it is the host's own server, and what it is asked for is no secret.
    """
    parts = urlsplit(address)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    client = http.client.HTTPConnection(parts.hostname or "", port, timeout=ANSWER)
    try:
        client.sock = socket.create_connection(
            (parts.hostname, port), timeout=ANSWER, source_address=(source, 0) if source else None
        )
        if secure:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            client.sock = context.wrap_socket(client.sock, server_hostname=host or parts.hostname)
        headers = {"Host": host or parts.netloc, "Accept": accept, "Connection": "close"}
        client.request(
            "GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), headers=headers
        )
        answer = client.getresponse()
        return Seen(
            answer.status,
            answer.getheader("Retry-After") or "",
            (answer.getheader("Content-Type") or "").partition(";")[0].strip(),
            answer.getheader(HEADER) or "",
            answer.read(MOST),
        )
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Seen(0, error=str(getattr(error, "strerror", None) or error) or type(error).__name__)
    finally:
        client.close()


def sources(address: str, allowed: Sequence[Any], proxies: Sequence[Any] = ()) -> tuple[str, str]:
    """Return two addresses of this host to ask *address* from: of a visitor, and of one who is let through; "" where there is none.

    Every address of 127.0.0.0/8 is this host's own (ip(7)), so one can be found that no network of *allowed* or *proxies* has.
    """
    host = urlsplit(address).hostname or ""
    try:
        loopback = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback
    except ValueError:
        loopback = False
    if not loopback or ":" in host:
        return "", ""
    own = ipaddress.ip_network("127.0.0.0/8")
    through = ""
    for network in allowed:
        if network.version == 4 and network.overlaps(own):
            first = max(network, own, key=lambda each: each.prefixlen)
            through = str(first[1] if first.num_addresses > 2 else first[0])
            break
    visitor = next(
        (
            text
            for text in ("127.0.0.1", *(f"127.{second}.0.1" for second in range(1, 255)))
            if not any(ipaddress.ip_address(text) in network for network in (*allowed, *proxies))
        ),
        "",
    )
    return visitor, through


def is_page(seen: Seen, name: str, strict: bool) -> str:
    """Return "" where *seen* is the maintenance page, else what is wrong with it.

    :param name: what our header says; "" where the page is the application's own.
    :param strict: a page of ours says when to come back.
    """
    if seen.status != 503:
        return f"{seen.words()}, expected 503"
    if strict and not seen.retry_after.isdigit():
        return "503 without Retry-After, expected one"
    if name and seen.mark != name:
        return f"503 of something else ({HEADER} is {seen.mark!r}, expected {name!r})"
    return ""


def is_document(seen: Seen, name: str) -> str:
    """Return "" where *seen* is the page for programs, else what is wrong with it."""
    wrong = is_page(seen, name, True)
    if wrong:
        return wrong
    try:
        found = json.loads(seen.body)
    except ValueError:
        found = None
    if seen.kind != "application/json" or not isinstance(found, dict) or found.get("error") != "maintenance":
        return f"{seen.kind or 'no type'} for Accept: application/json, expected a JSON object"
    return ""


def is_gone(seen: Seen, name: str) -> str:
    """Return "" where *seen* is not the maintenance page any more; whether the application is well is not asked here."""
    if not seen.status:
        return seen.words()
    if name:
        return f"{seen.words()}, still the maintenance page" if seen.mark == name else ""
    return "still 503" if seen.status == 503 else ""


def until(look: Any, seconds: float) -> str:
    """Call *look* until it returns "", for *seconds* at most; return what it said last."""
    deadline = time.monotonic() + seconds
    while True:
        wrong = look()
        if not wrong or time.monotonic() > deadline:
            return wrong
        time.sleep(LOOK)
