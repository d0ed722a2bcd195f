# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gate of WebSockets: a handshake, messages sent and expected, a ping, the end.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket as sockets
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._bounded import plain
from ansible_collections.runbook.deploy.plugins.module_utils._command import parse_environment
from ansible_collections.runbook.deploy.plugins.module_utils._gate import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    check_result,
)
from ansible_collections.runbook.deploy.plugins.module_utils._gating import GATE_OPTIONS, Probe, conduct
from ansible_collections.runbook.deploy.plugins.module_utils._http_spec import Values
from ansible_collections.runbook.deploy.plugins.module_utils._http_transport import (
    USER_AGENT,
    Route,
    Target,
    Unanswered,
    connect,
    explained,
    whole_addresses,
)
from ansible_collections.runbook.deploy.plugins.module_utils._parallel import in_parallel
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._websocket import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    Fault,
    Handshake,
    Stream,
    handshake_faults,
    new_key,
    request,
)
from ansible_collections.runbook.deploy.plugins.module_utils._websocket_spec import (
    SHOWN,
    Check,
    Expect,
    expected_of,
    forbidden,
    matches,
    parse_check,
    verify_values,
    wanted,
)

__all__ = ["OPTIONS", "RULES", "parse_check", "perform", "prober"]

OPTIONS: dict[str, Any] = {
    **GATE_OPTIONS,
    "checks": {"type": "list", "elements": "dict", "required": True},
    "address": {"type": "str"},
    "socket": {"type": "path"},
    "host": {"type": "str"},
    "headers": {"type": "dict", "default": {}},
    "validate_certs": {"type": "bool", "default": True},
    "ca_path": {"type": "path"},
    "placeholders": {"type": "dict", "default": {}},
    "secrets": {"type": "str", "no_log": True},
    "timeout": {"type": "float", "default": 10.0},
}
RULES: dict[str, Any] = {
    "mutually_exclusive": [("address", "socket")],
    "required_one_of": [("address", "socket")],
}
# Bytes of a refusal's body, and the seconds that are waited for it.
BODY = 2048
BODY_SECONDS = 0.3
# Seconds for the server's close frame after ours, where its code does not matter.
CLOSING = 0.2
# A check that had nearly all of its time is at fault; with less, the gate is.
NEARLY = 0.9


# Headers whose values are not shown.
SENSITIVE = re.compile(r"auth|cookie|token|secret|passw|pwd|session|credential|api-?key", re.IGNORECASE)


class Finding(Exception):
    """The end of a check that does not pass: what was found, as a part of a sentence."""

    def __init__(self, text: str, verdict: str = FAIL) -> None:
        super().__init__(text)
        self.text = text
        self.verdict = verdict


class Around(NamedTuple):
    """What all checks share; ``timeout`` is in seconds."""

    target: Target
    values: Values
    timeout: float


def plain_http(url: str) -> str:
    """Return *url* with the scheme of HTTP that its scheme of WebSockets stands for (RFC 6455, section 3)."""
    for scheme, other in (("ws://", "http://"), ("wss://", "https://")):
        if url.startswith(scheme):
            return other + url[len(scheme) :]
    return url


def prober(options: Mapping[str, Any], check_mode: bool) -> Probe:
    """Return what asks all checks of *options*; it is given the seconds that are left.

    :param check_mode: leave out what sends messages.
    :raises Problem: when a check is not well written, or a placeholder or secret has no value.
    """
    secrets = parse_environment(options["secrets"], "secrets")
    checks = [parse_check(item, f"checks[{index}]") for index, item in enumerate(options["checks"])]
    if not options["address"] and not options["socket"]:
        whole_addresses(check.url for check in checks)
    target = Target(
        plain_http(options["address"] or ("" if options["socket"] else "ws://localhost")),
        options["socket"],
        options["host"],
        options["headers"],
        options["validate_certs"],
        options["ca_path"],
    )
    if not options["timeout"] > 0:
        raise Problem(f"timeout must be a number of seconds above 0, found {options['timeout']}.")
    around = Around(target, Values(options["placeholders"], secrets), options["timeout"])
    for check in checks:
        verify_values(check, around.values)
        route_of(check, around)
    not_asked = [check.name for check in checks if check_mode and not check.reads_only]
    checks = [check for check in checks if check.reads_only or not check_mode]

    def task(check: Check) -> Callable[[float], dict[str, Any]]:
        return lambda limit: run_check(check, around, limit)

    def probe(left: float) -> list[dict[str, Any]]:
        names = [(check.name, check.common.severity) for check in checks]
        return in_parallel([task(check) for check in checks], names, time.monotonic() + left)

    return Probe(probe, not_asked, bool(checks))


def route_of(check: Check, around: Around, secret: bool = True) -> Route:
    """Return the way of a check's connection; without *secret* as it can be shown."""
    url = plain_http(check.url)
    return around.target.resolve(around.values.fill(url, check.common.where, secret=secret))


def opening(check: Check, around: Around, route: Route, key: str) -> dict[str, str]:
    """Return the headers of the opening request (RFC 6455, section 4.1), with placeholders as they are written.

    The origin is that of the application itself, as a browser that shows its page would send, unless the check has another.
    """
    own = around.target.headers if route.target else {}
    forwarded = next((value for name, value in own.items() if name.lower() == "x-forwarded-proto"), "")
    scheme = forwarded if forwarded in ("http", "https") else route.scheme
    origin = check.origin if check.origin is not None else f"{scheme}://{route.host}"
    headers = {
        "Host": route.host,
        "User-Agent": USER_AGENT,
        "Cache-Control": "no-store",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
    }
    if origin:
        headers["Origin"] = origin
    if check.subprotocols:
        headers["Sec-WebSocket-Protocol"] = ", ".join(check.subprotocols)
    if check.cookies:
        headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in check.cookies.items())
    if check.bearer is not None:
        headers["Authorization"] = f"Bearer {check.bearer}"
    names = {name.lower() for name in check.headers}
    headers.update({name: value for name, value in own.items() if name.lower() not in names})
    return {**headers, **check.headers}


def run_check(check: Check, around: Around, limit: float) -> dict[str, Any]:
    """Open one connection, do its steps and judge them.

    :param limit: the reading of ``time.monotonic()`` at which it must be over.
    """
    begun = time.monotonic()
    own = check.common.timeout or around.timeout
    allowed = max(0.01, min(own, limit - begun))
    route = route_of(check, around)
    talk = Talk(check, around, route, begun + allowed, allowed)
    verdict, found = PASS, ""
    cut = False
    try:
        talk.whole()
        taken = time.monotonic() - begun
        if check.max_seconds is not None and taken > check.max_seconds:
            raise Finding(f"it took {taken:.2f} s, more than {check.max_seconds:g} s")
    except Finding as finding:
        verdict, found = finding.verdict, finding.text
    except Fault as fault:
        verdict, found = (INCONCLUSIVE if fault.kind == "size" else FAIL), f"{fault.text} ({talk.stage[0]})"
    except Unanswered as error:
        verdict, found = (FAIL if error.asked else INCONCLUSIVE), error.text
        late = isinstance(error.__cause__, sockets.timeout) or time.monotonic() - begun >= allowed
        if late and verdict == FAIL and allowed < NEARLY * own:
            verdict, cut = INCONCLUSIVE, True
    values = around.values
    expected = values.hide(expected_of(check))
    place = route_of(check, around, secret=False)
    asked = f"{'wss' if place.scheme == 'https' else 'ws'}://{place.host}{place.path} ({place.place})"
    again = repeat(check, around, place)
    observed = values.hide("; ".join(filter(None, [*talk.seen, found])) or "all of it")
    message = ""
    if verdict != PASS:
        end = "failed" if verdict == FAIL else "could not be asked"
        message = f"Check {check.name!r} {end}: {asked}: expected {expected}, but {values.hide(found)}."
        message += f" Seen: {values.hide('; '.join(talk.seen))}." if talk.seen else ""
        message += f" Repeat: {again}"
    return check_result(
        check.name,
        verdict,
        check.common.severity,
        observed,
        expected,
        message,
        time.monotonic() - begun,
        asked=asked,
        status=talk.status,
        repeat=again,
        **({"cut_short": True} if cut else {}),
    )


class Talk:
    """One connection; ``seen`` is what the server said, ``stage`` what is being done, ``status`` that of its handshake."""

    def __init__(self, check: Check, around: Around, route: Route, limit: float, allowed: float) -> None:
        self.check = check
        self.around = around
        self.route = route
        self.limit = limit
        self.allowed = allowed
        self.stage = ["connecting"]
        self.seen: list[str] = []
        self.status: int | None = None

    def whole(self) -> None:
        """Do all of the check.

        :raises Finding: for what is otherwise than expected; :raises Fault: for what no server may do; :raises Unanswered:
            where there is no answer.
        """
        connection: sockets.socket | None = None
        try:
            with explained(self.route, self.allowed, self.stage):
                connection = connect(self.route, self.around.target, self.limit)
                stream = Stream(connection, self.limit)
                self._open(stream)
                if 101 in self.check.status:
                    self._steps(stream)
                    self._end(stream)
        finally:
            if connection is not None:
                connection.close()

    def _open(self, stream: Stream) -> None:
        self.stage[0] = "waiting for the handshake"
        key = new_key()
        try:
            headers = opening(self.check, self.around, self.route, key)
            where = self.check.common.where
            filled = {
                name: self.around.values.fill(value, where, secret=True) for name, value in headers.items()
            }
            opened = request(self.route.path, filled)
        except ValueError as error:
            raise Problem(f"{self.check.common.where} cannot be sent: {error}.") from error
        stream.send(opened)
        answer = stream.handshake()
        self.status = answer.status
        if answer.status not in self.check.status:
            raise Finding(self._refused(stream, answer))
        if answer.status != 101:
            self.seen.append(f"status {answer.status}")
            return
        wrong = handshake_faults(answer.headers, key, self.check.subprotocols)
        if wrong:
            raise Finding("; ".join(wrong))
        if self.check.subprotocols and "sec-websocket-protocol" not in answer.headers:
            raise Finding("the server chose none of the subprotocols")
        chosen = answer.headers.get("sec-websocket-protocol")
        self.seen.append(f"a handshake{f' for {chosen}' if chosen else ''}")

    def _refused(self, stream: Stream, answer: Handshake) -> str:
        if answer.status == 101:
            return "the handshake was accepted"
        led = (
            f", which leads to {answer.headers['location'][:SHOWN]!r}" if "location" in answer.headers else ""
        )
        body = stream.body(BODY, min(self.limit, time.monotonic() + BODY_SECONDS))
        said = short(body)
        hint = {
            403: " (the origin may be refused: see the key origin)",
            426: " (what answers may be no WebSocket server)",
        }.get(answer.status, "")
        return (
            f"the handshake was answered with status {answer.status}{led}{hint}{f': {said}' if said else ''}"
        )

    def _steps(self, stream: Stream) -> None:
        for number, step in enumerate(self.check.steps, 1):
            self.stage[0] = f"in step {number}"
            if step.send is not None:
                quote = (lambda text: json.dumps(text)[1:-1]) if step.json else str
                text = self.around.values.fill(step.send, self.check.common.where, True, quote)
                stream.send_message(TEXT, text.encode())
            if step.expect is not None:
                self._await(stream, step.expect, number)
        if self.check.ping:
            self.stage[0] = "waiting for a pong"
            token = os.urandom(8)
            stream.send_message(PING, token)
            # Whatever else comes is passed over, as long as time is left.
            while True:
                message = stream.receive(self.limit)
                if message.opcode == CLOSE:
                    raise Finding(f"the server closed with the code {message.code}{_reason(message.text)}")
                if message.opcode == PONG and message.data == token:
                    self.seen.append("a pong")
                    break
        if self.check.stays_open:
            self.stage[0] = "waiting whether it stays open"
            self._stay(stream, time.monotonic() + self.check.stays_open)

    def _stay(self, stream: Stream, until: float) -> None:
        """Read until the reading *until* of ``time.monotonic()``; only the end of the connection matters."""
        try:
            while time.monotonic() < until:
                message = stream.receive(until)
                if message.opcode == CLOSE:
                    raise Finding(f"the server closed with the code {message.code}{_reason(message.text)}")
        except sockets.timeout:
            # The check's own time, which was less, proves nothing.
            if self.limit < until:
                raise

    def _await(self, stream: Stream, expect: Expect, number: int) -> None:
        """Read until what *expect* wants has come."""
        begun = time.monotonic()
        own = min(self.limit, begun + expect.within) if expect.within else self.limit
        others = 0
        while True:
            try:
                message = stream.receive(own)
            except sockets.timeout:
                if own >= self.limit:
                    raise
                waited = time.monotonic() - begun
                raise Finding(
                    f"{wanted(expect)} did not come within {waited:.1f} s (step {number})"
                ) from None
            if message.opcode == PONG:
                continue
            if message.opcode == CLOSE:
                if expect.close == message.code:
                    self.seen.append(f"a close with the code {message.code}")
                    return
                raise Finding(
                    f"the server closed with the code {message.code}{_reason(message.text)} (step {number})"
                )
            self._note(message.text)
            bad = forbidden(expect, message, self.around.values)
            if bad:
                raise Finding(f"a message has {bad!r} (step {number})")
            if expect.close is None and matches(expect, message, self.around.values):
                return
            others += 1
            if others > expect.skip:
                raise Finding(f"{others} other messages came before {wanted(expect)} (step {number})")

    def _note(self, text: str) -> None:
        """Keep a message to be shown: the first ones, and the last."""
        if len(self.seen) > 5:
            self.seen.pop()
        self.seen.append(f"message {short(text)!r}")

    def _end(self, stream: Stream) -> None:
        """Close; what the server answers counts only where the check has its code."""
        code = self.check.close_code
        if any(step.expect and step.expect.close is not None for step in self.check.steps):
            return
        self.stage[0] = "closing"
        limit = self.limit if code is not None else min(self.limit, time.monotonic() + CLOSING)
        try:
            stream.send_message(CLOSE, (1000).to_bytes(2, "big"))
            while True:
                message = stream.receive(limit)
                if message.opcode == CLOSE:
                    break
        except (Fault, OSError):
            if code is not None:
                raise
            return
        if code is not None and message.code != code:
            raise Finding(f"the server closed with the code {message.code}{_reason(message.text)}")


def _reason(text: str) -> str:
    return f" ({short(text)!r})" if text else ""


def short(text: str) -> str:
    """Return *text* as one line of at most ``SHOWN`` characters."""
    line = " ".join(plain(text).split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


def repeat(check: Check, around: Around, route: Route) -> str:
    """Return the command that opens the same by hand; secrets stay ``{secret.name}`` in it, curl shows the handshake."""
    url = route.url
    words = ["curl", "-sS", "-i", "-N", "--http1.1", "--max-time", "5"]
    if route.socket:
        words += ["--unix-socket", route.socket]
    else:
        if route.scheme == "https":
            words += [] if around.target.verify else ["-k"]
            words += ["--cacert", around.target.ca] if around.target.ca else []
        named = urllib.parse.urlsplit(f"//{route.host}")
        port = named.port or (443 if route.scheme == "https" else 80)
        if (named.hostname, port) != (route.name, route.port):
            words += ["--connect-to", f"{named.hostname}:{port}:{route.name}:{route.port}"]
    # The key of RFC 6455, section 1.3.
    for name, value in opening(check, around, route, "dGhlIHNhbXBsZSBub25jZQ==").items():
        if name in ("User-Agent", "Cache-Control") or (
            name == "Host" and url.startswith(f"{route.scheme}://{value}/")
        ):
            continue
        hidden = SENSITIVE.search(name) and "{secret." not in value
        words += ["-H", f"{name}: {'…' if hidden else value}"]
    return shlex.join([*words, url])


def perform(options: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    """Run the gate that *options* (see ``OPTIONS``) describe and return it.

    :raises Problem: when it does not pass, or an option is wrong.
    """
    secrets = parse_environment(options["secrets"], "secrets")
    return conduct(
        options,
        prober(options, check_mode),
        options["address"] or options["socket"],
        check_mode=check_mode,
        warn=warn,
        secrets=secrets.values(),
    )
