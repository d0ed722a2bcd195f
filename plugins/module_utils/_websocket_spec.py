# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the checks of a WebSocket gate as people write them, and judge messages.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._conditions import compile_pattern, holds
from ansible_collections.runbook.deploy.plugins.module_utils._gate_spec import (
    COMMON,
    Common,
    common,
    flag,
    items,
    json_conditions,
    keys,
    seconds,
    strings,
    texts,
)
from ansible_collections.runbook.deploy.plugins.module_utils._http_spec import Values
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._websocket import Message, valid_code

KEYS = (
    *COMMON,
    *("url", "headers", "origin", "subprotocol", "cookies", "bearer", "status", "send", "expect", "steps"),
    *("ping", "stays_open", "close_code", "max_seconds"),
)
EXPECT_KEYS = ("text", "contains", "absent", "matches", "json", "close", "within", "skip")
EXAMPLE = "{url: /ws/, send: {type: hello}, expect: {json: {type: welcome}}}"
# Other messages that may come before the one that is expected.
SKIP = 20
# Seconds: some applications accept whoever comes, and close a moment later on those who may not.
STAYS_OPEN = 0.25
# Of a message, in messages of ours.
SHOWN = 200
# Written by the handshake itself.
RESERVED = ("connection", "upgrade", "host", "origin", "cookie", "sec-websocket-key", "sec-websocket-version")
_TOKEN = re.compile(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")


class Expect(NamedTuple):
    """What is expected of a message, or with ``close`` of the server's end of the connection.

    ``within`` is in seconds, ``skip`` how many other messages may come first.
    """

    text: str | None
    contains: list[str]
    absent: list[str]
    matches: str | None
    json: dict[str, Any]
    close: int | None
    within: float | None
    skip: int


class Step(NamedTuple):
    """A text to send, ``json`` when it was given as JSON, and what is to come then; each may be missing."""

    send: str | None
    json: bool
    expect: Expect | None


class Check(NamedTuple):
    """One connection and what has to happen on it; ``status`` is that of the handshake, 101 unless it is to be refused;
    ``stays_open`` is in seconds."""

    common: Common
    url: str
    headers: dict[str, str]
    origin: str | None
    subprotocols: list[str]
    cookies: dict[str, str]
    bearer: str | None
    status: list[int]
    steps: list[Step]
    ping: bool
    stays_open: float | None
    close_code: int | None
    max_seconds: float | None

    @property
    def name(self) -> str:
        """Its name."""
        return self.common.name

    @property
    def reads_only(self) -> bool:
        """Whether it sends nothing that the application might act on."""
        return not any(step.send is not None for step in self.steps)


def parse_check(item: Any, where: str) -> Check:
    """Return one check.

    :raises Problem: when it is not well written.
    """
    keys(item, KEYS, where, EXAMPLE)
    url = item.get("url")
    if not isinstance(url, str) or not re.match(r"/|wss?://", url):
        raise Problem(
            f"{where}.url must be a path such as /ws/, or begin with ws:// or wss://, found {url!r}."
        )
    headers = texts(item.get("headers"), f"{where}.headers")
    for name in headers:
        if name.lower() in RESERVED or not _TOKEN.match(name):
            raise Problem(f"{where}.headers has {name!r}, which is no header that can be chosen.")
    bearer = item.get("bearer")
    if bearer is not None and (not isinstance(bearer, str) or "authorization" in map(str.lower, headers)):
        raise Problem(f"{where}.bearer must be a token as text, and the only Authorization of the check.")
    origin = item.get("origin")
    if origin is not None and not isinstance(origin, str):
        raise Problem(f"{where}.origin must be a text such as https://shop.example.org, found {origin!r}.")
    offered = strings(item.get("subprotocol"), f"{where}.subprotocol")
    for name in offered:
        if not _TOKEN.match(name):
            raise Problem(f"{where}.subprotocol must be names without spaces, found {name!r}.")
    status = _statuses(item.get("status", 101), f"{where}.status")
    steps = _steps(item, where)
    refused = 101 not in status
    for key in ("send", "expect", "steps", "ping", "stays_open", "close_code"):
        if refused and item.get(key) is not None:
            raise Problem(f"{where} has {key}, but expects to be refused by status.")
    return Check(
        common(item, where, f"WebSocket {url}"),
        url,
        headers,
        origin,
        offered,
        texts(item.get("cookies"), f"{where}.cookies"),
        bearer,
        status,
        steps,
        flag(item.get("ping", not steps and not refused), f"{where}.ping"),
        seconds(item.get("stays_open", None if steps or refused else STAYS_OPEN), f"{where}.stays_open"),
        _code(item.get("close_code"), f"{where}.close_code"),
        seconds(item.get("max_seconds"), f"{where}.max_seconds"),
    )


def _statuses(value: Any, where: str) -> list[int]:
    found = value if isinstance(value, list) else [value]
    for status in found:
        if isinstance(status, bool) or not isinstance(status, int) or not 101 <= status <= 599:
            raise Problem(
                f"{where} must be 101, or HTTP statuses of a refusal such as [401, 403], found {value!r}."
            )
    if not found or (101 in found and len(found) > 1):
        raise Problem(f"{where} must be either 101 or those of a refusal, found {value!r}.")
    return list(found)


def _code(value: Any, where: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not (valid_code(value) or value == 1005):
        raise Problem(f"{where} must be a code such as 1000 or 4001, or 1005 for none, found {value!r}.")
    return value


def _steps(item: Mapping[str, Any], where: str) -> list[Step]:
    if item.get("steps") is not None:
        if item.get("send") is not None or item.get("expect") is not None:
            raise Problem(f"{where} has steps, and send or expect besides: put them into a step.")
        found = [
            _step(step, f"{where}.steps[{index}]")
            for index, step in enumerate(items(item["steps"], f"{where}.steps"))
        ]
        if not found:
            raise Problem(f"{where}.steps is empty: give at least one.")
        return found
    if item.get("send") is None and item.get("expect") is None:
        return []
    return [_step({key: item.get(key) for key in ("send", "expect")}, where)]


def _step(item: Any, where: str) -> Step:
    keys(item, ("send", "expect"), where, "{send: hello, expect: welcome}")
    send = item.get("send")
    expect = None if item.get("expect") is None else _expect(item["expect"], f"{where}.expect")
    if send is None and expect is None:
        raise Problem(f"{where} neither sends nor expects anything.")
    if send is None or isinstance(send, str):
        return Step(send, False, expect)
    if not isinstance(send, (Mapping, list)):
        raise Problem(
            f"{where}.send must be a text, or a mapping or list to be sent as JSON, found {send!r}."
        )
    return Step(json.dumps(send), True, expect)


def _expect(value: Any, where: str) -> Expect:
    """Return what is expected; a text alone has to be in the message."""
    if isinstance(value, str):
        value = {"contains": value}
    keys(value, EXPECT_KEYS, where, "{json: {type: welcome}}")
    if not {"text", "contains", "absent", "matches", "json", "close"} & {
        key for key in value if value[key] is not None
    }:
        raise Problem(f"{where} expects nothing: add contains, text, matches, json or close.")
    if value.get("close") is not None and set(value) - {"close", "within", "skip"}:
        raise Problem(f"{where} has close, which is no message: it goes with within and skip only.")
    text = value.get("text")
    if text is not None and not isinstance(text, str):
        raise Problem(f"{where}.text must be a text, found {text!r}.")
    if value.get("matches") is not None:
        compile_pattern(str(value["matches"]), f"{where}.matches")
    skip = value.get("skip", SKIP)
    if isinstance(skip, bool) or not isinstance(skip, int) or not 0 <= skip <= 10000:
        raise Problem(f"{where}.skip must be a number of messages from 0 to 10000, found {skip!r}.")
    return Expect(
        text,
        strings(value.get("contains"), f"{where}.contains"),
        strings(value.get("absent"), f"{where}.absent"),
        None if value.get("matches") is None else str(value["matches"]),
        json_conditions(value.get("json"), f"{where}.json"),
        _code(value.get("close"), f"{where}.close"),
        seconds(value.get("within"), f"{where}.within"),
        skip,
    )


def verify_values(check: Check, values: Values) -> None:
    """Fill every text of *check* once.

    :raises Problem: when a placeholder or secret has no value, or something is compared with a secret.
    """
    where = check.common.where
    sent = [
        check.url,
        check.origin or "",
        check.bearer or "",
        *check.headers.values(),
        *check.cookies.values(),
    ]
    for text in (*sent, *(step.send or "" for step in check.steps)):
        values.fill(text, where, secret=True)
    for expect in (step.expect for step in check.steps if step.expect):
        asserted = json.dumps([expect.text, expect.contains, expect.absent, expect.matches, expect.json])
        values.fill(asserted, where)
        if "{secret." in asserted:
            raise Problem(f"{where} compares a message with a secret: secrets are only for what is sent.")


def wanted(expect: Expect) -> str:
    """Return in words what *expect* wants."""
    if expect.close is not None:
        return f"a close with the code {expect.close}"
    found = [f"that is {expect.text!r}"] if expect.text is not None else []
    found += [f"containing {text!r}" for text in expect.contains]
    found += [f"matching {expect.matches!r}"] if expect.matches else []
    found += [
        f"with {path} {value if isinstance(value, str) else json.dumps(value, default=str)}"
        for path, value in expect.json.items()
    ]
    found += [f"without {text!r}" for text in expect.absent]
    return f"a message {' and '.join(found)}"


def expected_of(check: Check) -> str:
    """Return in words what *check* expects."""
    if 101 not in check.status:
        return f"a refusal by status {' or '.join(map(str, check.status))}"
    found = ["a handshake"]
    found += [f"one of the subprotocols {', '.join(check.subprotocols)}"] if check.subprotocols else []
    found += [wanted(step.expect) for step in check.steps if step.expect]
    found += ["a pong"] if check.ping else []
    found += [f"no end within {check.stays_open:g} s"] if check.stays_open else []
    found += [f"the close code {check.close_code}"] if check.close_code is not None else []
    found += [f"all in {check.max_seconds:g} s"] if check.max_seconds else []
    return "; ".join(found)


def matches(expect: Expect, message: Message, values: Values) -> bool:
    """Return whether *message* is the one that *expect* waits for; pure."""
    where = "expect"
    text = message.text
    if expect.text is not None and text != values.fill(expect.text, where):
        return False
    if not all(values.fill(part, where) in text for part in expect.contains):
        return False
    if expect.matches:
        pattern = values.fill(expect.matches, where, quote=re.escape)
        if not re.search(pattern, text, re.MULTILINE):
            return False
    if expect.json:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            return False
        for path, value in expect.json.items():
            if not holds(document, path, value, lambda operand: values.fill(operand, where))[0]:
                return False
    return True


def forbidden(expect: Expect, message: Message, values: Values) -> str:
    """Return the first text of ``absent`` that *message* has, or ""."""
    return next((text for text in expect.absent if values.fill(text, "expect") in message.text), "")
