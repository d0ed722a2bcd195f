# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do what a user does: several requests with the same cookies, forms found on pages and sent back filled in.

A page's form is sent as a browser would: with its hidden fields (the CSRF token among them), its defaults, to
its own action. Cookies are kept per host, by the rules of RFC 6265 that matter to one application: path,
Secure, Max-Age and Expires; a Domain attribute is not widened.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import email.utils
import json
import re
import time
import urllib.parse
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._conditions import lookup
from ansible_collections.runbook.deploy.plugins.module_utils._gate import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    check_result,
    gate_result,
)
from ansible_collections.runbook.deploy.plugins.module_utils._http import (
    Jar,
    Reply,
    ask,
    busted,
    encoded,
    payload,
)
from ansible_collections.runbook.deploy.plugins.module_utils._http_spec import READING, Check, Flow, Values
from ansible_collections.runbook.deploy.plugins.module_utils._http_transport import Answer, Route, Target

# Django's names (settings CSRF_COOKIE_NAME and CSRF_HEADER_NAME), for requests that send no form.
CSRF_COOKIE = "csrftoken"
CSRF_HEADER = "X-CSRFToken"


class Cookie(NamedTuple):
    """A cookie's value, and where it may be sent."""

    value: str
    path: str
    secure: bool


class CookieJar(Jar):
    """The cookies of one flow, and the address of its last page."""

    def __init__(self, target: Target) -> None:
        forwarded = {name.lower(): value for name, value in target.headers.items()}.get(
            "x-forwarded-proto", ""
        )
        self.forwarded = forwarded.lower()
        self.cookies: dict[tuple[str, str], Cookie] = {}
        self.referer = ""

    def address(self, route: Route) -> str:
        """Return the address that a browser in front of the proxy would show for *route*."""
        scheme = self.forwarded if self.forwarded and route.target else route.scheme
        return f"{scheme}://{route.host}{route.path}"

    def headers(self, route: Route) -> dict[str, str]:
        """Return Cookie and Referer for a request on *route*."""
        path = route.path.split("?")[0]
        # Where nothing can listen in, a Secure cookie may go: browsers do the same for localhost.
        safe = self.address(route).startswith("https://") or route.socket is not None
        sent = [
            f"{name}={cookie.value}"
            for (host, name), cookie in self.cookies.items()
            if host == _host(route) and _below(path, cookie.path) and (safe or not cookie.secure)
        ]
        result = {"Referer": self.referer} if self.referer else {}
        if sent:
            result["Cookie"] = "; ".join(sent)
        return result

    def keep(self, route: Route, answer: Answer) -> None:
        """Take the cookies that *answer* sets, and forget those that it deletes."""
        for line in filter(None, answer.headers.get("set-cookie", "").split("\n")):
            first, *rest = line.split(";")
            name, _equals, value = (part.strip() for part in first.partition("="))
            attributes = {}
            for item in rest:
                key, _equals, text = item.partition("=")
                attributes[key.strip().lower()] = text.strip()
            path = attributes.get("path", "")
            if not path.startswith("/"):
                path = route.path.split("?")[0].rpartition("/")[0] or "/"
            if _expired(attributes):
                self.cookies.pop((_host(route), name), None)
            elif name:
                self.cookies[(_host(route), name)] = Cookie(value, path, "secure" in attributes)
        self.referer = self.address(route)

    def value(self, name: str) -> str | None:
        """Return the value of the cookie *name* of any host, or None."""
        return next((cookie.value for (_host, key), cookie in self.cookies.items() if key == name), None)


def _host(route: Route) -> str:
    return urllib.parse.urlsplit(f"//{route.host}").hostname or route.host


def _below(path: str, prefix: str) -> bool:
    """Return whether *path* matches the cookie path *prefix* (RFC 6265, 5.1.4)."""
    return path == prefix or path.startswith(prefix if prefix.endswith("/") else prefix + "/")


def _expired(attributes: dict[str, str]) -> bool:
    age = attributes.get("max-age", "")
    if re.fullmatch(r"-?\d+", age):
        return int(age) <= 0
    moment = email.utils.parsedate_tz(attributes.get("expires", ""))
    return moment is not None and email.utils.mktime_tz(moment) <= time.time()


class Form(NamedTuple):
    """A form of a page: where it is sent, and its fields with the values that they have at first.

    ``names`` are all fields, those that send nothing at first (an unticked box) too.
    """

    action: str
    method: str
    fields: dict[str, str]
    names: set[str]


class _Forms(HTMLParser):
    """Collects the forms of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.forms: list[Form] = []
        self.open: Form | None = None
        self.select = ""
        self.area = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.open = Form(given.get("action", ""), given.get("method", "get").upper(), {}, set())
            self.forms.append(self.open)
            return
        if self.open is None or "disabled" in given:
            return
        name = given.get("name", "")
        if tag == "input" and name:
            kind = given.get("type", "text").lower()
            self.open.names.add(name)
            if kind in ("checkbox", "radio"):
                if "checked" in given:
                    self.open.fields[name] = given.get("value", "on")
            elif kind not in ("submit", "button", "image", "reset", "file"):
                self.open.fields[name] = given.get("value", "")
        elif tag == "textarea" and name:
            self.area = name
            self.open.names.add(name)
            self.open.fields[name] = ""
        elif tag == "select" and name:
            self.select = name
            self.open.names.add(name)
        elif tag == "option" and self.select:
            if "selected" in given or self.select not in self.open.fields:
                self.open.fields[self.select] = given.get("value", "")
        elif tag == "button" and name:
            self.open.names.add(name)

    def handle_data(self, data: str) -> None:
        if self.open is not None and self.area:
            self.open.fields[self.area] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self.open = None
        elif tag == "textarea" and self.open is not None and self.area:
            # The line break after <textarea> is no part of the value (HTML standard, 13.1.2.5).
            self.open.fields[self.area] = re.sub(r"^\r?\n", "", self.open.fields[self.area])
            self.area = ""
        elif tag == "select":
            self.select = ""


def find_forms(text: str) -> list[Form]:
    """Return the forms of the page *text*, in their order."""
    parser = _Forms()
    parser.feed(text)
    parser.close()
    return parser.forms


def choose_form(forms: Sequence[Form], names: Sequence[str]) -> Form | None:
    """Return the first form that has all fields *names*, or None."""
    return next((form for form in forms if form.names.issuperset(names)), None)


def run_flow(flow: Flow, target: Target, values: Values, timeout: float, limit: float) -> dict[str, Any]:
    """Do the steps of *flow* in their order, until one of severity critical does not pass.

    :param timeout: seconds for each step that has none of its own; :param limit: the latest end.
    :return: one ``check_result``, with the results of the steps that were done in ``steps``.
    :raises Problem: when a step uses a placeholder that has no value.
    """
    begun = time.monotonic()
    if flow.timeout is not None:
        limit = min(limit, begun + flow.timeout)
    jar = CookieJar(target)
    page: Reply | None = None
    results: list[dict[str, Any]] = []
    for step in flow.steps:
        if step.wait is not None:
            # Such as until a session has run out.
            time.sleep(max(0.0, min(step.wait, limit - time.monotonic())))
        allowed = min(step.timeout or timeout, limit - time.monotonic())
        if allowed <= 0:
            results.append(
                check_result(
                    step.name,
                    INCONCLUSIVE,
                    observed="not asked",
                    expected="an answer in time",
                    message=f"Step {step.name!r} was not asked, because the time was up: raise the timeout.",
                )
            )
            break
        result, reply = _step(step, target, values, jar, page, allowed)
        if result["verdict"] == PASS and reply is not None:
            page = reply
            extracted, missing = extract(step, reply.answer)
            values = values.also(extracted)
            if missing:
                result.update(verdict=FAIL, message=f"Step {step.name!r} failed: {missing}.")
        results.append(result)
        if result["verdict"] != PASS and result["severity"] == "critical":
            break
    judged = gate_result(results)
    last = results[-1]
    left = len(flow.steps) - len(results)
    message = ""
    if not judged["passed"]:
        wrong = next(
            result for result in results if result["name"] in judged["failing"] or not judged["failing"]
        )
        message = f"Flow {flow.name!r}, step {len(results)} of {len(flow.steps)}: {wrong['message']}"
        message += f" {left} further steps were not done." if left else ""
    return check_result(
        flow.name,
        judged["verdict"],
        flow.severity,
        f"{len(results)} of {len(flow.steps)} steps done, the last one: {last['observed']}",
        f"all {len(flow.steps)} steps to pass",
        message,
        time.monotonic() - begun,
        steps=results,
        degraded_steps=judged["degraded"],
        proves_release=any(result.get("proves_release") for result in results),
    )


def _step(
    step: Check, target: Target, values: Values, jar: CookieJar, page: Reply | None, allowed: float
) -> tuple[dict[str, Any], Reply | None]:
    """Send one step, and before it, for a form, the request for the page that has the form."""
    begun = time.monotonic()
    url = busted(values.fill(step.url, step.where, True), step)
    headers = {name: values.fill(text, step.where, True) for name, text in step.headers.items()}
    body = payload(step, values)
    method = step.method
    if step.form is not None:
        fields = {name: values.fill(text, step.where, True) for name, text in step.form.items()}
        address = target.resolve(url)
        wanted = [*fields, *step.files]
        form = _form_for(address, page, wanted)
        if form is None:
            opening = step._replace(
                name=f"{step.name} (the page with the form)",
                method="GET",
                form=None,
                files={},
                cookies={},
                status=[200],
                contains=[],
                absent=[],
                matches=None,
                json={},
                header={},
                redirect_to=None,
                max_seconds=None,
                follow=True,
            )
            result, page = ask(opening, target, values, "GET", url, headers, None, allowed, jar)
            if result["verdict"] != PASS or page is None:
                return result, None
            form = choose_form(find_forms(page.answer.text), wanted)
        if form is None or page is None:
            return _no_form(step, page, wanted, time.monotonic() - begun), None
        url = urllib.parse.urljoin(page.route.url, form.action or page.route.url)
        method = form.method if form.method in ("GET", "POST") else "POST"
        body, kind = encoded(step, {**form.fields, **fields}, values)
        if method == "GET":
            url, body = f"{url.split('?')[0]}?{body.decode()}", None
        else:
            headers.setdefault("Content-Type", kind)
    elif method not in READING:
        token = jar.value(CSRF_COOKIE)
        if token:
            headers.setdefault(CSRF_HEADER, token)
    left = allowed - (time.monotonic() - begun)
    result, reply = ask(step, target, values, method, url, headers, body, left, jar)
    result["seconds"] = round(time.monotonic() - begun, 3)
    return result, reply


def _form_for(address: Route, page: Reply | None, fields: Sequence[str]) -> Form | None:
    """Return the form of the last *page* that the step means: the page is at its url, or the form goes there."""
    if page is None:
        return None
    form = choose_form(find_forms(page.answer.text), fields)
    if form is None:
        return None
    action = urllib.parse.urljoin(page.route.url, form.action or page.route.url)
    return form if address.url in (page.route.url, action) else None


def _no_form(step: Check, page: Reply | None, fields: Sequence[str], seconds: float) -> dict[str, Any]:
    forms = find_forms(page.answer.text) if page is not None else []
    found = "; ".join(", ".join(sorted(form.names)) or "a form without fields" for form in forms) or "no form"
    wish = f"a form with the fields {', '.join(fields)}"
    place = page.route.url if page is not None else step.url
    message = f"Step {step.name!r} failed: expected {wish} on {place}, found: {found}."
    return check_result(step.name, FAIL, step.severity, found, wish, message, seconds)


def extract(step: Check, answer: Answer) -> tuple[dict[str, str], str]:
    """Return the values that *step* takes from *answer*, and a sentence part about the first that is not there."""
    values: dict[str, str] = {}
    for name, source in step.extract.items():
        (kind, how), *_rest = source.items()
        value: Any = None
        why = "it is absent"
        if kind == "header":
            value = answer.headers.get(how.lower())
        elif kind == "regex":
            found = re.search(how, answer.text, re.MULTILINE)
            value = found and found.group(1 if found.re.groups else 0)
        else:
            try:
                present, value = lookup(json.loads(answer.text), how)
            except (ValueError, RecursionError):
                present, value = False, "the answer is no JSON"
            if not present:
                why, value = str(value), None
        if value is None:
            return values, f"{name!r} was to be taken from {kind} {how!r}, but {why}"
        values[name] = value if isinstance(value, str) else json.dumps(value)
    return values, ""
