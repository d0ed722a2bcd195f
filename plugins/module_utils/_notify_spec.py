# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``app_notifications`` may say: who is told of a deployment, by what, of which events, in which words.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

EVENTS = ("start", "success", "failure", "rollback")
KINDS = ("webhook", "slack", "mail")
COMMON = ("name", "kind", "events", "templates", "timeout", "ca_path")
KEYS = {
    "webhook": (*COMMON, "url", "headers"),
    "slack": (*COMMON, "url", "headers"),
    "mail": (*COMMON, "host", "port", "tls", "user", "password", "from", "to"),
}
# RFC 8314: implicit TLS on 465; RFC 6409: submission with STARTTLS on 587; RFC 5321: 25.
PORTS = {"implicit": 465, "starttls": 587, "none": 25}
TIMEOUT = 10.0
LONGEST_TIMEOUT = 60.0
# Where a password that is not encrypted does not leave the controller.
LOOPBACK = ("localhost", "127.0.0.1", "::1")
PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
# What a template may name: {placeholder: its meaning}.
FIELDS = {
    "event": "start, success, failure or rollback",
    "verdict": "the verdict in words; empty at the start",
    "kind": "deployment or rollback",
    "id": "the deployment's id",
    "application": "app_name",
    "stage": "app_stage",
    "version": "what was asked for",
    "commit": "its first twelve digits",
    "host": "the host that failed, else the primary",
    "operator": "who started it",
    "controller": "where it was started",
    "reason": "what failed, and what was decided",
    "maintenance": "what visitors had of the maintenance page, and what was expected; empty at the start and where there was none",
    "url": "app_url",
    "report": "path of the report on the controller",
    "record": "path of the record on the primary",
    "time": "now, in UTC",
}
BODY = """{application} {version} ({commit}) on {stage}
{verdict}
{reason}
by: {operator} on {controller}
host: {host}
maintenance: {maintenance}
{kind}: {id}
address: {url}
report: {report}
record: {record}
at: {time}
"""
TEMPLATES = {
    "start": {"subject": "{application} on {stage}: {kind} of {version} has begun", "body": BODY},
    "success": {"subject": "{application} on {stage}: {version} is deployed", "body": BODY},
    "failure": {"subject": "{application} on {stage}: {kind} of {version} failed", "body": BODY},
    "rollback": {"subject": "{application} on {stage}: taken back to the release before", "body": BODY},
}


# What an item of another kind has.
OTHER_KINDS: dict[str, Any] = {
    "url": "",
    "headers": {},
    "host": "",
    "port": 0,
    "tls": "",
    "user": "",
    "password": "",
    "sender": "",
    "to": (),
}


class Notification(NamedTuple):
    """One who is told. ``templates`` has subject and body of every event; ``timeout`` is in seconds."""

    name: str
    kind: str
    events: tuple[str, ...]
    templates: dict[str, dict[str, str]]
    timeout: float
    ca_path: str | None
    # Of webhooks.
    url: str
    headers: dict[str, str]
    # Of mail.
    host: str
    port: int
    tls: str
    user: str
    password: str
    sender: str
    to: tuple[str, ...]

    @property
    def place(self) -> str:
        """Where it goes, for messages: the path of a webhook is as good as a password, and is left out."""
        if self.kind == "mail":
            return f"{self.host}:{self.port}"
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}"

    @property
    def secrets(self) -> list[str]:
        """The texts that must not appear in anything that is said about it."""
        parts = urlsplit(self.url)
        words = [
            self.url,
            parts.path,
            parts.query,
            parts.password or "",
            self.password,
            *self.headers.values(),
        ]
        # What a header carries behind its scheme, as in "Bearer abc".
        words += [word for value in self.headers.values() for word in value.split()]
        return [word for word in words if word and word != "/"]


def parse_notifications(items: Sequence[Any], where: str = "app_notifications") -> list[Notification]:
    """Return *items* read; no message has a value that may be secret.

    :raises Problem: with one sentence for the first thing that is wrong.
    """
    found = [_parse(item, f"{where}[{index}]") for index, item in enumerate(items)]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise Problem(f"{where} names {name!r} twice: give each its own name.")
    return found


def _parse(item: Any, where: str) -> Notification:
    if not isinstance(item, Mapping):
        raise Problem(f"{where} must be a mapping with name and kind, found {type(item).__name__}.")
    kind = item.get("kind")
    if kind not in KINDS:
        raise Problem(f"{where}.kind must be one of {', '.join(KINDS)}, found {kind!r}.")
    for key in item:
        if key not in KEYS[kind]:
            raise Problem(
                f"{where} has the unknown key {key!r}: {kind} knows {', '.join(KEYS[kind])}{_nearest(str(key), KEYS[kind])}."
            )
    name = item.get("name")
    if not isinstance(name, str) or not name.strip():
        raise Problem(f"{where} has no name: give it one, by which warnings and the report call it.")
    timeout = item.get("timeout", TIMEOUT)
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, (int, float))
        or not 0 < timeout <= LONGEST_TIMEOUT
    ):
        raise Problem(
            f"{where}.timeout must be a number of seconds above 0 and of at most {LONGEST_TIMEOUT:.0f}, found {timeout!r}."
        )
    of_kind = _mail(item, where) if kind == "mail" else _webhook(item, where)
    return Notification(
        name=name.strip(),
        kind=kind,
        events=_events(item.get("events", EVENTS), where),
        templates=_templates(item.get("templates", {}), where),
        timeout=float(timeout),
        ca_path=_text(item, "ca_path", where) or None,
        **{
            **OTHER_KINDS,
            **of_kind,
        },
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean {found[0]}?)" if found else ""


def _text(item: Mapping[str, Any], key: str, where: str, required: bool = False) -> str:
    value = item.get(key, "")
    if not isinstance(value, str) or (required and not value.strip()):
        found = "nothing" if value in ("", None) else type(value).__name__
        raise Problem(f"{where}.{key} must be a text, found {found}.")
    if "\n" in value or "\r" in value:
        raise Problem(f"{where}.{key} must be one line.")
    return value.strip()


def _events(value: Any, where: str) -> tuple[str, ...]:
    known = isinstance(value, (list, tuple)) and all(event in EVENTS for event in value)
    if not known or not value:
        raise Problem(f"{where}.events must be a list of some of {', '.join(EVENTS)}, found {value!r}.")
    return tuple(value)


def _templates(value: Any, where: str) -> dict[str, dict[str, str]]:
    """Return subject and body of every event: the given ones, else ours."""
    if not isinstance(value, Mapping):
        raise Problem(f"{where}.templates must be a mapping of events to subject and body, found {value!r}.")
    for event, texts in value.items():
        place = f"{where}.templates.{event}"
        if event not in EVENTS:
            raise Problem(f"{place} is no event, expected one of {', '.join(EVENTS)}.")
        if not isinstance(texts, Mapping) or not set(texts) <= {"subject", "body"}:
            raise Problem(f"{place} must be a mapping with subject, body or both, found {texts!r}.")
        for part, text in texts.items():
            if not isinstance(text, str) or not text.strip():
                raise Problem(f"{place}.{part} must be a text, found {text!r}.")
            for name in PLACEHOLDER.findall(text):
                if name not in FIELDS:
                    raise Problem(
                        f"{place}.{part} has {{{name}}}, which nothing is put in for{_nearest(name, list(FIELDS))}: "
                        f"known are {', '.join(FIELDS)}."
                    )
    return {event: {**TEMPLATES[event], **value.get(event, {})} for event in EVENTS}


def _webhook(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    url = _text(item, "url", where, required=True)
    try:
        parts = urlsplit(url)
        readable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        readable = False
    if not readable or any(char.isspace() for char in url):
        raise Problem(
            f"{where}.url must be an address such as https://hooks.example.org/…; what it is is not shown."
        )
    headers = item.get("headers", {})
    if not isinstance(headers, Mapping):
        raise Problem(f"{where}.headers must be a mapping of names to texts, found {type(headers).__name__}.")
    for name in headers:
        _text(headers, name, f"{where}.headers", required=True)
    return {"url": url, "headers": {str(name): value.strip() for name, value in headers.items()}}


def _mail(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    tls = item.get("tls", "starttls")
    if tls not in PORTS:
        raise Problem(f"{where}.tls must be one of {', '.join(PORTS)}, found {tls!r}.")
    port = item.get("port", PORTS[tls])
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
        raise Problem(f"{where}.port must be a number from 1 to 65535, found {port!r}.")
    to = item.get("to", [])
    to = [to] if isinstance(to, str) else to
    if not isinstance(to, (list, tuple)) or not to or not all(_address(one) for one in to):
        raise Problem(f"{where}.to must be a list of addresses such as ops@example.org, found {to!r}.")
    if not _address(item.get("from")):
        raise Problem(
            f"{where}.from must be an address such as deploy@example.org, found {item.get('from')!r}."
        )
    found = {
        "host": _text(item, "host", where, required=True),
        "port": port,
        "tls": tls,
        "user": _text(item, "user", where),
        "password": _text(item, "password", where),
        "sender": item["from"].strip(),
        "to": tuple(one.strip() for one in to),
    }
    if bool(found["user"]) != bool(found["password"]):
        raise Problem(f"{where} has only one of user and password: give both, or neither.")
    if found["password"] and tls == "none" and found["host"] not in LOOPBACK:
        raise Problem(
            f"{where} would send its password to {found['host']} unencrypted: use tls: starttls or tls: implicit."
        )
    return found


def _address(value: Any) -> bool:
    """Say whether *value* can be put into a header and an SMTP command as an address."""
    return isinstance(value, str) and re.fullmatch(r"[^\s@<>,;]+@[^\s@<>,;]+", value.strip()) is not None


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Return *template* with its placeholders replaced; a line of which all placeholders are empty is left out.

    :param fields: a text for each of ``FIELDS``.
    """
    lines = []
    for line in template.splitlines():
        names = PLACEHOLDER.findall(line)
        if names and not any(fields.get(name) for name in names):
            continue
        lines.append(PLACEHOLDER.sub(lambda found: fields.get(found.group(1), ""), line))
    return "\n".join(lines)
