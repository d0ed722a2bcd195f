# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read HTTP checks and flows as people write them; a typing error is found before anything is asked.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import html
import json
import re
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._conditions import (
    compile_pattern,
    parse_condition,
    parse_path,
)
from ansible_collections.runbook.deploy.plugins.module_utils._gate import SEVERITIES
from ansible_collections.runbook.deploy.plugins.module_utils._gate_spec import (
    choice,
    flag,
    items,
    keys,
    mapping,
    seconds,
    strings,
    texts,
)
from ansible_collections.runbook.deploy.plugins.module_utils._http_judge import parse_cookies
from ansible_collections.runbook.deploy.plugins.module_utils._http_samples import Samples, parse_samples
from ansible_collections.runbook.deploy.plugins.module_utils._http_upload import Upload, parse_files
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

PLACEHOLDERS = ("commit", "release", "version", "deployment")
# An answer that holds one of these proves which release gave it; a version can be kept by two releases.
PROOFS = ("{commit}", "{release}", "{deployment}")
REDIRECTS = (301, 302, 303, 307, 308)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
READING = ("GET", "HEAD")
EXTRACTORS = ("json", "regex", "header")
_PLACEHOLDER = re.compile(r"\{(secret\.[^{}]*|[A-Za-z_][A-Za-z0-9_]*)\}")
_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


class Check(NamedTuple):
    """One request and what its answer must be; ``where`` names it in messages about the specification."""

    where: str
    name: str
    url: str
    method: str
    headers: dict[str, str]
    body: str | None
    json_body: bool
    form: dict[str, str] | None
    status: list[int]
    contains: list[str]
    absent: list[str]
    matches: str | None
    json: dict[str, Any]
    header: dict[str, str]
    redirect_to: str | None
    follow: bool
    bust_cache: bool
    max_seconds: float | None
    timeout: float | None
    severity: str
    extract: dict[str, dict[str, str]]
    files: dict[str, Upload]
    cookies: dict[str, list[str]]
    tls_days: float | None
    samples: Samples | None
    compare: bool
    wait: float | None

    def asserted(self) -> str:
        """Return all texts that the answer is compared with."""
        texts = [self.contains, self.absent, self.matches, self.json, self.header, self.redirect_to]
        return json.dumps(texts)

    def proves_release(self) -> bool:
        """Return whether an answer that passes names the release, its commit or the deployment."""
        positive = [value for value in self.json.values() if not str(value).lstrip().startswith("!=")]
        texts = json.dumps([self.contains, self.matches, positive, self.header])
        return any(proof in texts for proof in PROOFS)


class Flow(NamedTuple):
    """Steps that share cookies; the first that does not pass ends it. ``timeout`` is for the whole flow."""

    where: str
    name: str
    steps: list[Check]
    timeout: float | None
    severity: str


class Values:
    """What placeholders stand for.

    :param placeholders: ``commit``, ``release``, ``version``, ``deployment`` and what a flow has extracted.
    :param secrets: what ``{secret.name}`` stands for; replaced in requests, hidden in everything that is shown.
    """

    def __init__(
        self, placeholders: Mapping[str, Any] | None = None, secrets: Mapping[str, str] | None = None
    ) -> None:
        self.placeholders = {k: str(v) for k, v in (placeholders or {}).items() if v not in (None, "")}
        self.secrets = dict(secrets or {})
        forms: set[str] = set()
        for value in filter(None, self.secrets.values()):
            # As it can come back: in a page, in an address, in JSON.
            forms |= {value, html.escape(value), json.dumps(value)[1:-1]}
            forms |= {urllib.parse.quote(value), urllib.parse.quote_plus(value)}
        self._hidden = sorted(forms, key=len, reverse=True)

    def also(self, extracted: Mapping[str, str]) -> Values:
        """Return the same with further placeholders."""
        return Values({**self.placeholders, **extracted}, self.secrets)

    def fill(self, text: str, where: str, secret: bool = False, quote: Callable[[str], str] = str) -> str:
        """Return *text* with its placeholders replaced, all at once: what is put in is not looked at again.

        :param secret: ``{secret.name}`` too; only for what is sent.
        :param quote: applied to each value, for patterns.
        :raises Problem: for a placeholder without a value: an empty text would be found in every answer.
        """

        def value(found: re.Match[str]) -> str:
            name = found.group(1)
            if name.startswith("secret."):
                if not secret:
                    return found.group(0)
                if name[7:] not in self.secrets:
                    known = ", ".join(sorted(self.secrets)) or "none"
                    raise Problem(f"{where} uses {{{name}}}, but secrets has only: {known}.")
                return quote(self.secrets[name[7:]])
            if name in self.placeholders:
                return quote(self.placeholders[name])
            if name in PLACEHOLDERS:
                raise Problem(f"{where} uses {{{name}}}, but no {name} was given: add it to placeholders.")
            return found.group(0)

        return _PLACEHOLDER.sub(value, text)

    def hide(self, text: str) -> str:
        """Return *text*, which came from a server, without any secret, however short it is."""
        for value in self._hidden:
            text = text.replace(value, "********")
        return text


def parse_checks(checks: Any, where: str = "checks") -> list[Check]:
    """Return *checks* read and completed with defaults.

    :param where: the name of the option, for messages.
    :raises Problem: for anything that is not a list of well-written checks.
    """
    return [parse_check(item, f"{where}[{index}]") for index, item in enumerate(items(checks, where))]


def parse_flows(flows: Any, where: str = "flows") -> list[Flow]:
    """Return *flows* read.

    :raises Problem: for anything that is not a list of well-written flows.
    """
    return [parse_flow(item, f"{where}[{index}]") for index, item in enumerate(items(flows, where))]


def parse_flow(item: Any, where: str) -> Flow:
    """Return one flow; in its steps redirects are followed, unless they say otherwise.

    :raises Problem: when it is not well written, or has no steps.
    """
    keys(item, ("name", "steps", "timeout", "severity"), where)
    steps = [
        parse_check(step, f"{where}.steps[{index}]", flow=True)
        for index, step in enumerate(items(item.get("steps"), f"{where}.steps"))
    ]
    if not steps:
        raise Problem(f"{where}.steps is empty: a flow needs at least one step.")
    return Flow(
        where,
        str(item.get("name") or where),
        steps,
        seconds(item.get("timeout"), f"{where}.timeout"),
        choice(item.get("severity", "critical"), SEVERITIES, f"{where}.severity"),
    )


def parse_check(item: Any, where: str, flow: bool = False) -> Check:
    """Return one check, or with *flow* one step of a flow.

    :raises Problem: when it is not well written.
    """
    single = ("samples", "compare")
    only = (*single, "where") if flow else ("where", "extract", "wait")
    keys(item, [*(name for name in Check._fields if name not in only), "bearer"], where)
    bodies = [name for name in ("body", "json_body", "form") if item.get(name) is not None]
    if len(bodies) > 1:
        raise Problem(f"{where} has {' and '.join(bodies)}: give only one of body, json_body and form.")
    files = parse_files(item.get("files"), f"{where}.files")
    if files and bodies and bodies != ["form"]:
        raise Problem(f"{where} has files and {bodies[0]}: files are sent with the fields of a form.")
    if files:
        bodies = ["form"]
    url = item.get("url")
    if not isinstance(url, str) or not url:
        raise Problem(f"{where}.url is missing: expected a path such as /healthz/, or a whole address.")
    method = choice(
        str(item.get("method") or ("POST" if bodies else "GET")).upper(), METHODS, f"{where}.method"
    )
    if bodies and method in READING:
        raise Problem(f"{where} sends {bodies[0]} with {method}: use POST, PUT or PATCH.")
    headers = texts(item.get("headers"), f"{where}.headers")
    if item.get("bearer") is not None:
        if not isinstance(item["bearer"], str) or any(name.lower() == "authorization" for name in headers):
            raise Problem(f"{where}.bearer must be a token as text, and the only Authorization of the check.")
        headers["Authorization"] = f"Bearer {item['bearer']}"
    body = item.get("body")
    if "json_body" in bodies:
        body = json.dumps(item["json_body"])
        if not any(name.lower() == "content-type" for name in headers):
            headers["Content-Type"] = "application/json"
    elif body is not None and not isinstance(body, str):
        raise Problem(f"{where}.body must be a text, found {type(body).__name__}: use json_body for JSON.")
    redirect_to = item.get("redirect_to")
    status = _status(item.get("status"), f"{where}.status", list(REDIRECTS) if redirect_to else [200])
    expected = mapping(item.get("json"), f"{where}.json")
    for path, value in expected.items():
        parse_path(path)
        parse_condition(value, f"{where}.json[{path!r}]")
    if item.get("matches") is not None:
        compile_pattern(str(item["matches"]), f"{where}.matches")
    follow = flag(item.get("follow", flow and not redirect_to), f"{where}.follow")
    if follow and redirect_to:
        raise Problem(f"{where} has follow and redirect_to: a redirect is either followed or judged.")
    return Check(
        where,
        str(item.get("name") or f"{method} {url}"),
        url,
        method,
        headers,
        body,
        "json_body" in bodies,
        texts(item.get("form"), f"{where}.form") if "form" in bodies else None,
        status,
        strings(item.get("contains"), f"{where}.contains"),
        strings(item.get("absent"), f"{where}.absent"),
        None if item.get("matches") is None else str(item["matches"]),
        expected,
        texts(item.get("header"), f"{where}.header"),
        None if redirect_to is None else str(redirect_to),
        follow,
        flag(item.get("bust_cache", False), f"{where}.bust_cache"),
        seconds(item.get("max_seconds"), f"{where}.max_seconds"),
        seconds(item.get("timeout"), f"{where}.timeout"),
        choice(item.get("severity", "critical"), SEVERITIES, f"{where}.severity"),
        _extract(item.get("extract"), f"{where}.extract"),
        files,
        parse_cookies(item.get("cookies"), f"{where}.cookies"),
        seconds(item.get("tls_days"), f"{where}.tls_days", "days"),
        parse_samples(item.get("samples"), f"{where}.samples"),
        flag(item.get("compare", False), f"{where}.compare"),
        seconds(item.get("wait"), f"{where}.wait"),
    )


def _status(value: Any, where: str, default: list[int]) -> list[int]:
    if value is None:
        return default
    result = []
    for item in value if isinstance(value, list) else [value]:
        try:
            number = 0 if isinstance(item, bool) else int(item)
        except (TypeError, ValueError):
            number = 0
        if not 100 <= number <= 599:
            raise Problem(f"{where} must be HTTP status codes such as [200], found {value!r}.")
        result.append(number)
    if not result:
        raise Problem(f"{where} is an empty list: no answer could pass.")
    return result


def _extract(value: Any, where: str) -> dict[str, dict[str, str]]:
    result = {}
    for name, item in mapping(value, where).items():
        here = f"{where}.{name}"
        if not _NAME.match(name) or name in PLACEHOLDERS or name == "secret":
            raise Problem(f"{here}: choose a name of letters, digits and _ that is no placeholder of ours.")
        source = texts(item, here)
        keys(source, EXTRACTORS, here)
        if len(source) != 1:
            raise Problem(f"{here} must have exactly one of {', '.join(EXTRACTORS)}, found {len(source)}.")
        if "regex" in source:
            compile_pattern(source["regex"], here)
        parse_path(source.get("json", ""))
        result[name] = source
    return result
