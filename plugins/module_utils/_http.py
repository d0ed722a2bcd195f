# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask an application over HTTP and judge its answers; what a check may say is in ``_http_spec.py``.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._conditions import holds
from ansible_collections.runbook.deploy.plugins.module_utils._gate import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    check_result,
)
from ansible_collections.runbook.deploy.plugins.module_utils._http_judge import (
    judge_certificate,
    judge_cookies,
)
from ansible_collections.runbook.deploy.plugins.module_utils._http_repeat import repeat
from ansible_collections.runbook.deploy.plugins.module_utils._http_samples import judge_samples, take
from ansible_collections.runbook.deploy.plugins.module_utils._http_spec import (
    READING,
    REDIRECTS,
    Check,
    Values,
    parse_check,
)
from ansible_collections.runbook.deploy.plugins.module_utils._http_transport import (
    Answer,
    Route,
    Target,
    Unanswered,
    exchange,
)
from ansible_collections.runbook.deploy.plugins.module_utils._http_upload import multipart
from ansible_collections.runbook.deploy.plugins.module_utils._parallel import MARGIN, in_parallel
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# As browsers do (Firefox and Chromium: 20), but a healthy page needs far fewer.
REDIRECT_LIMIT = 10
# Of the answer's text, in messages.
SHOWN = 200
# Of its time; a request that had less when the gate ended was cut short.
NEARLY = 0.9
_MARKUP = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^>]*>", re.DOTALL | re.IGNORECASE)


class Jar:
    """What a request of a flow adds (cookies, Referer) and keeps; this one does nothing."""

    def headers(self, route: Route) -> dict[str, str]:
        """Return the headers to add to a request on *route*."""
        return {}

    def keep(self, route: Route, answer: Answer) -> None:
        """Take the cookies of *answer*."""


class Reply(NamedTuple):
    """The last answer of a request: its way, the redirects before it, and the seconds of all together."""

    answer: Answer
    route: Route
    hops: list[str]
    seconds: float


class Findings(NamedTuple):
    """What was judged: ``wrong`` are pairs of what was expected and what was found; ``unknown`` likewise,
    where the answer does not allow a judgement."""

    expected: list[str]
    wrong: list[tuple[str, str]]
    unknown: list[tuple[str, str]]


def run_checks(
    checks: Sequence[Mapping[str, Any] | Check],
    target: Target,
    *,
    placeholders: Mapping[str, Any] | None = None,
    secrets: Mapping[str, str] | None = None,
    timeout: float = 10.0,
    deadline: float = 60.0,
) -> list[dict[str, Any]]:
    """Ask all *checks* at the same time and return a ``check_result`` for each, in their order.

    :param checks: as people write them, or as ``parse_check`` returns them.
    :param placeholders: values of ``{commit}``, ``{release}``, ``{version}`` and ``{deployment}``.
    :param secrets: values of ``{secret.name}``.
    :param timeout: seconds for each check with its redirects, unless it has its own.
    :param deadline: seconds for all of them.
    :raises Problem: when a check is not well written, or a placeholder has no value.
    """
    parsed = [
        check if isinstance(check, Check) else parse_check(check, f"checks[{index}]")
        for index, check in enumerate(checks)
    ]
    values = Values(placeholders, secrets)
    for check in parsed:
        verify_placeholders(check, values)

    def task(check: Check) -> Callable[[float], dict[str, Any]]:
        return lambda limit: run_check(check, target, values, timeout, limit)

    limit = time.monotonic() + deadline
    names = [(check.name, check.severity) for check in parsed]
    return in_parallel([task(check) for check in parsed], names, limit)


def verify_placeholders(check: Check, values: Values) -> None:
    """Fill every text of *check* once.

    :raises Problem: when a placeholder or a secret has no value, or an assertion uses a secret.
    """
    sent = [text for file in check.files.values() for text in (file.content, file.row)]
    for text in (check.url, check.body or "", *check.headers.values(), *(check.form or {}).values(), *sent):
        values.fill(text, check.where, secret=True)
    asserted = check.asserted()
    values.fill(asserted, check.where)
    if "{secret." in asserted:
        # Not replaced there, so that "absent" would always be true.
        raise Problem(f"{check.where} compares the answer with a secret: secrets are only for what is sent.")


def run_check(check: Check, target: Target, values: Values, timeout: float, limit: float) -> dict[str, Any]:
    """Ask one check and judge it.

    :param timeout: seconds, unless the check has its own; :param limit: the latest end (``time.monotonic()``).
    """

    def one() -> dict[str, Any]:
        allowed = min(check.timeout or timeout, limit - time.monotonic())
        headers = {name: values.fill(text, check.where, True) for name, text in check.headers.items()}
        if check.form is not None:
            filled = {name: values.fill(text, check.where, True) for name, text in check.form.items()}
            body, kind = encoded(check, filled, values)
            headers.setdefault("Content-Type", kind)
        else:
            body = payload(check, values)
        url = busted(values.fill(check.url, check.where, True), check)
        return ask(check, target, values, check.method, url, headers, body, allowed)[0]

    if check.samples is None:
        return one()

    def sampled() -> dict[str, Any]:
        result = one()
        # A request that the end of the gate cut short says nothing about the application; one that had its time does.
        ended = time.monotonic() >= limit - MARGIN and result["seconds"] < NEARLY * (check.timeout or timeout)
        late = ended and result["verdict"] == FAIL and result.get("status") is None
        return {**result, "verdict": INCONCLUSIVE} if late else result

    results, elapsed, unfinished = take(check.samples, sampled, limit)
    asked = f"{check.method} {target.resolve(values.fill(check.url, check.where)).url}"
    again = repeat(check, target, values, check.method)
    return judge_samples(
        check.name, check.severity, check.samples, results, elapsed, unfinished, asked, again
    )


def encoded(check: Check, fields: Mapping[str, str], values: Values) -> tuple[bytes, str]:
    """Return the body that sends *fields* and the files of *check*, and its content type."""
    if not check.files:
        return urllib.parse.urlencode(fields).encode(), "application/x-www-form-urlencoded"
    return multipart(fields, check.files, lambda text: values.fill(text, check.where, True))


def payload(check: Check, values: Values) -> bytes | None:
    """Return the body to send; what is put into JSON is quoted for it, so that no secret can break it."""
    if check.body is None:
        return None
    quote = _within_json if check.json_body else str
    return values.fill(check.body, check.where, True, quote).encode()


def _within_json(text: str) -> str:
    return json.dumps(text)[1:-1]


def busted(url: str, check: Check) -> str:
    """Return *url* with a random query where the check wants to get past a cache; a constant one would not."""
    if not check.bust_cache:
        return url
    return f"{url}{'&' if '?' in url else '?'}_={os.urandom(6).hex()}"


def ask(
    check: Check,
    target: Target,
    values: Values,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | None,
    allowed: float,
    jar: Jar | None = None,
) -> tuple[dict[str, Any], Reply | None]:
    """Send one request and judge its answer; return the ``check_result`` and the answer, if there is one."""
    begun = time.monotonic()
    first = target.resolve(url)
    shown_url = target.resolve(values.fill(check.url, check.where)).url
    asked = f"{method} {shown_url} ({first.place})"
    # One step of a flow cannot be repeated alone: it needs the cookies of the steps before it.
    again = repeat(check, target, values, method) if jar is None else ""
    advice = f" Repeat: {again}" if again else ""
    extra: dict[str, Any] = {"asked": asked, "repeat": again}
    try:
        reply = send(target, values, method, url, headers, body, check.follow, allowed, jar or Jar())
    except Unanswered as error:
        seconds = time.monotonic() - begun
        found = values.hide(error.text)
        verdict = FAIL if error.asked else INCONCLUSIVE
        end = "failed" if error.asked else "could not be asked"
        expected = "; ".join(judge(check, None, values).expected)
        message = f"Check {check.name!r} {end}: {asked}: {found}; expected {expected}.{advice}"
        return check_result(
            check.name, verdict, check.severity, found, expected, message, seconds, status=None, **extra
        ), None
    findings = judge(check, reply, values, target.verify)
    observed = described(reply, values)
    expected = "; ".join(findings.expected)
    extra["status"] = reply.answer.status
    if findings.wrong or findings.unknown:
        pairs = findings.wrong or findings.unknown
        verdict = FAIL if findings.wrong else INCONCLUSIVE
        end = "failed" if findings.wrong else "cannot be judged"
        found = "; ".join(f"expected {wish}, but {fact}" for wish, fact in pairs)
        message = (
            f"Check {check.name!r} {end}: {asked}: {found}. Answer: {observed}.{hint(first, reply)}{advice}"
        )
    else:
        verdict, message = PASS, ""
        extra["proves_release"] = check.proves_release()
    return (
        check_result(
            check.name, verdict, check.severity, observed, expected, message, reply.seconds, **extra
        ),
        reply,
    )


def send(
    target: Target,
    values: Values,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | None,
    follow: bool,
    allowed: float,
    jar: Jar,
) -> Reply:
    """Send a request, and the ones that its redirects ask for when *follow* is set, in *allowed* seconds.

    :raises Unanswered: when there is no answer, redirects do not end, or they lead away from a socket.
    """
    begun = time.monotonic()
    hops: list[str] = []
    own = dict(headers)
    while True:
        route = target.resolve(url)
        if target.socket is not None and not route.target:
            raise Unanswered(f"the way leads to {route.url}, away from socket {target.socket}")
        # Headers and secrets are for the application, not for where it may send us.
        shared = {name: values.fill(text, "headers", True) for name, text in target.headers.items()}
        sent = {**shared, **own, **jar.headers(route)} if route.target else {} if hops else own
        left = allowed - (time.monotonic() - begun)
        if left <= 0:
            raise Unanswered(f"no complete answer in {allowed:.1f} s ({len(hops)} redirects)")
        answer = exchange(target, route, method=method, headers=sent, body=body, timeout=left)
        jar.keep(route, answer)
        location = answer.headers.get("location", "").split("\n")[0]
        if not (follow and answer.status in REDIRECTS and location):
            return Reply(answer, route, hops, time.monotonic() - begun)
        hops.append(location)
        if len(hops) > REDIRECT_LIMIT:
            raise Unanswered(f"more than {REDIRECT_LIMIT} redirects, the last one to {location}")
        url = urllib.parse.urljoin(route.url, location)
        if answer.status == 303 or (answer.status in (301, 302) and method == "POST"):
            # As browsers do (Fetch standard, HTTP-redirect fetch, step 12).
            method, body = ("GET" if method != "HEAD" else method), None
            own = {name: text for name, text in own.items() if not name.lower().startswith("content-")}
        if body is not None and not target.resolve(url).target:
            raise Unanswered(f"it wants the request repeated elsewhere, at {url}")


def judge(check: Check, reply: Reply | None, values: Values, verified: bool = True) -> Findings:
    """Compare *reply* with what *check* expects; without a reply only say what that is.

    :param verified: whether certificates are verified.
    """
    found = Findings([], [], [])
    answer = reply.answer if reply else Answer(0, {}, "", False, 0.0, {})

    def expect(wish: str, true: bool, fact: str, known: bool = True) -> None:
        found.expected.append(wish)
        if reply is not None and not (true and known):
            (found.wrong if known else found.unknown).append((wish, values.hide(fact)))

    def fill(text: str) -> str:
        return values.fill(text, check.where)

    statuses = " or ".join(map(str, check.status))
    expect(f"status {statuses}", answer.status in check.status, f"it was {answer.status}")
    if check.redirect_to is not None:
        place = fill(check.redirect_to)
        location = answer.headers.get("location", "")
        expect(f"a redirect to {place}", _leads_to(location, place), f"it led to {location or 'nothing'}")
    now = time.time()
    beside = judge_cookies(check.cookies, answer.headers.get("set-cookie", ""), now)
    if check.tls_days is not None:
        secured = bool(reply and reply.route.scheme == "https")
        beside.append(judge_certificate(check.tls_days, answer.certificate, secured, verified, now))
    for wish, true, fact in beside:
        expect(wish, bool(true), fact, true is not None)
    for name, text in check.header.items():
        value = answer.headers.get(name.lower())
        wish = fill(text)
        fact = "it is absent" if value is None else f"it is {_short(value)}"
        expect(f"header {name} with {wish!r}", value is not None and wish in value, fact)
    if check.max_seconds is not None:
        seconds = reply.seconds if reply else 0.0
        expect(
            f"an answer within {check.max_seconds:g} s",
            seconds <= check.max_seconds,
            f"it took {seconds:.2f} s",
        )
    partial = " in the part that was read" if answer.cut else ""
    for text in map(fill, check.contains):
        there = text in answer.text
        expect(f"the text {_short(text)}", there, f"it is not there{partial}", there or not answer.cut)
    for text in map(fill, check.absent):
        there = text in answer.text
        expect(f"no text {_short(text)}", not there, f"it is there{partial}", there or not answer.cut)
    if check.matches is not None:
        pattern = values.fill(check.matches, check.where, quote=re.escape)
        there = re.search(pattern, answer.text, re.MULTILINE) is not None
        expect(f"a match of {pattern!r}", there, f"there is none{partial}", there or not answer.cut)
    if check.json:
        _judge_json(check, answer, fill, expect)
    return found


def _judge_json(
    check: Check, answer: Answer, fill: Callable[[str], str], expect: Callable[[str, bool, str, bool], None]
) -> None:
    document: Any = None
    trouble = ""
    try:
        document = json.loads(answer.text)
    except (ValueError, RecursionError) as error:
        trouble = (
            f"the answer is no JSON ({error})" if not answer.cut else "the answer is too long to be read"
        )
    for path, value in check.json.items():
        wish = fill(value) if isinstance(value, str) else json.dumps(value)
        true, fact = holds(document, path, value, fill) if not trouble else (False, trouble)
        subject = "" if trouble else f"{path} "
        expect(f"{path} in JSON {wish}", true, f"{subject}{fact}", not (trouble and answer.cut))


def _leads_to(location: str, place: str) -> bool:
    """Return whether *location* is *place*, which may leave out the host and the query."""
    if not location:
        return False
    wanted, found = urllib.parse.urlsplit(place), urllib.parse.urlsplit(location)
    if (wanted.scheme or wanted.netloc) and (wanted.scheme, wanted.netloc) != (found.scheme, found.netloc):
        return False
    return wanted.path == found.path and (not wanted.query or wanted.query == found.query)


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")


def described(reply: Reply, values: Values) -> str:
    """Return *reply* in one line: status, seconds, redirects, the first characters of the text; no secret."""
    answer = reply.answer
    # Hidden before it is cut: half a secret is one too.
    text = values.hide(answer.text)
    if text.lstrip().startswith("<"):
        # What a person would read of a page; its head alone fills what is shown.
        text = _MARKUP.sub(" ", text)
    text = " ".join(text.split())
    parts = [f"status {answer.status} in {reply.seconds:.2f} s"]
    if reply.hops:
        parts.append(f"after {len(reply.hops)} redirects, the last one to {values.hide(reply.hops[-1])}")
    elif "location" in answer.headers:
        parts.append(f"to {values.hide(answer.headers['location'])}")
    if answer.cut:
        parts.append(f"more than {len(answer.text)} characters, the rest was not read")
    if text:
        parts.append(f"text {_short(text)}")
    return ", ".join(parts)


def hint(first: Route, reply: Reply) -> str:
    """Return what is probably the cause, for the two refusals that an application gives to a plain request."""
    location = reply.answer.headers.get("location", "") or (reply.hops[-1] if reply.hops else "")
    if first.scheme == "http" and reply.answer.status in REDIRECTS and location.startswith("https://"):
        return " It insists on https: send the header X-Forwarded-Proto with the value https."
    if reply.answer.status == 400 and first.host:
        return f" Does it accept the Host {first.host!r} (ALLOWED_HOSTS)?"
    return ""


def reads_only(check: Check) -> bool:
    """Return whether *check* may be asked in check mode."""
    return check.method in READING
