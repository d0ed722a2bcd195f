# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Around a maintenance, on the controller: monitoring is told that it begins and ends, and the operator what every host has.

Whatever goes wrong with a call is a sentence in the answer, and never a reason to end a deployment.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.error
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ansible.module_utils.urls import ConnectionError as UrlConnectionError
from ansible.module_utils.urls import NoSSLError, SSLValidationError, open_url
from ansible_collections.runbook.deploy.plugins.module_utils._command import redact
from ansible_collections.runbook.deploy.plugins.module_utils._http_transport import USER_AGENT
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_spec import lasted
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

EVENTS = ("begin", "end")
ITEM = ("name", "begin", "end", "headers", "timeout", "ca_path")
CALL = ("url", "method", "body")
METHODS = ("POST", "PUT", "PATCH", "GET", "DELETE")
TIMEOUT = 10.0
LONGEST_TIMEOUT = 60.0
PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
FIELDS = ("event", "application", "stage", "id", "operator", "reason", "time", "until", "expected", "seconds")


class Call(NamedTuple):
    """One request. ``body`` is a text, or what is sent as JSON; None for none."""

    url: str
    method: str
    body: Any


class Monitor(NamedTuple):
    """One who is told; ``calls`` has a request for each event that it wants, ``timeout`` is in seconds."""

    name: str
    calls: dict[str, Call]
    headers: dict[str, str]
    timeout: float
    ca_path: str | None

    @property
    def secrets(self) -> list[str]:
        """The texts that must not appear in what is said of it."""
        words = [word for value in self.headers.values() for word in (value, *value.split())]
        for call in self.calls.values():
            parts = urlsplit(call.url)
            words += [call.url, parts.path, parts.query, parts.password or ""]
        return [word for word in words if word and word != "/"]


def parse_monitoring(items: Sequence[Any], where: str = "app_maintenance_monitoring") -> list[Monitor]:
    """Return *items* read; no message has a value that may be secret.

    :raises Problem: with one sentence for the first thing that is wrong.
    """
    return [_parse(item, f"{where}[{index}]") for index, item in enumerate(items)]


def _parse(item: Any, where: str) -> Monitor:
    if not isinstance(item, Mapping):
        raise Problem(f"{where} must be a mapping with name, begin and end, found {type(item).__name__}.")
    unknown = [str(key) for key in item if key not in ITEM]
    if unknown:
        raise Problem(f"{where}.{unknown[0]} is not known: there are {', '.join(ITEM)}.")
    if not isinstance(item.get("name"), str) or not item["name"]:
        raise Problem(f"{where} has no name: give one, by which it is called in messages.")
    calls = {event: _call(item[event], f"{where}.{event}") for event in EVENTS if item.get(event)}
    if not calls:
        raise Problem(f"{where} has neither begin nor end: say what is to be called.")
    headers = item.get("headers") or {}
    if not isinstance(headers, Mapping) or not all(isinstance(value, str) for value in headers.values()):
        raise Problem(f"{where}.headers must be a mapping of names to texts.")
    timeout = item.get("timeout", TIMEOUT)
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, (int, float))
        or not 0 < timeout <= LONGEST_TIMEOUT
    ):
        raise Problem(f"{where}.timeout must be seconds up to {LONGEST_TIMEOUT:g}, found {timeout!r}.")
    ca_path = item.get("ca_path")
    if ca_path is not None and not isinstance(ca_path, str):
        raise Problem(f"{where}.ca_path must be a path, found {type(ca_path).__name__}.")
    return Monitor(item["name"], calls, dict(headers), float(timeout), ca_path or None)


def _call(call: Any, where: str) -> Call:
    if not isinstance(call, Mapping):
        raise Problem(f"{where} must be a mapping with url, found {type(call).__name__}.")
    unknown = [str(key) for key in call if key not in CALL]
    if unknown:
        raise Problem(f"{where}.{unknown[0]} is not known: there are {', '.join(CALL)}.")
    url, method = call.get("url"), call.get("method", "POST")
    if (
        not isinstance(url, str)
        or urlsplit(url).scheme not in ("http", "https")
        or not urlsplit(url).hostname
    ):
        raise Problem(f"{where}.url must be an address with http or https, and a host.")
    if method not in METHODS:
        raise Problem(f"{where}.method must be one of {', '.join(METHODS)}, found {method!r}.")
    for name in sorted({*_names(url), *_names(call.get("body"))}):
        if name not in FIELDS:
            raise Problem(f"{where} names {{{name}}}, which there is not: there are {', '.join(FIELDS)}.")
    return Call(url, method, call.get("body"))


def _names(thing: Any) -> set[str]:
    if isinstance(thing, str):
        return set(PLACEHOLDER.findall(thing))
    if isinstance(thing, Mapping):
        return {name for part in thing.values() for name in _names(part)}
    if isinstance(thing, (list, tuple)):
        return {name for part in thing for name in _names(part)}
    return set()


def filled(thing: Any, fields: Mapping[str, str]) -> Any:
    """Return *thing* with the placeholders of all its texts replaced, none inside what was put in."""
    if isinstance(thing, str):
        return PLACEHOLDER.sub(lambda found: fields.get(found[1], found[0]), thing)
    if isinstance(thing, Mapping):
        return {key: filled(part, fields) for key, part in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [filled(part, fields) for part in thing]
    return thing


def tell(items: Sequence[Any], event: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """Make the calls of *event*, all at the same time, each within its own limit; return ``{event, sent, unsent}``.

    :param fields: a text for each of ``FIELDS``.
    """
    answer: dict[str, Any] = {"event": event, "sent": [], "unsent": []}
    try:
        found = parse_monitoring(items)
    except Problem as problem:
        answer["unsent"].append({"name": "app_maintenance_monitoring", "message": problem.message})
        return answer
    wanted = [one for one in found if event in one.calls]
    results: dict[int, str] = {}

    def work(index: int, one: Monitor) -> None:
        try:
            results[index] = _send(one, one.calls[event], fields)
        except Exception as error:  # nothing that is wrong here may end a deployment
            results[index] = f"{type(error).__name__}: {error}"

    begun = time.monotonic()
    # Daemons: the resolution of a name cannot be interrupted.
    threads = [
        threading.Thread(target=work, args=(index, one), daemon=True) for index, one in enumerate(wanted)
    ]
    for thread in threads:
        thread.start()
    for index, one in enumerate(wanted):
        threads[index].join(max(0.0, begun + one.timeout - time.monotonic()))
        wrong = results.get(index, f"there was no answer in {one.timeout:g} s")
        if not wrong:
            answer["sent"].append(one.name)
            continue
        parts = urlsplit(one.calls[event].url)
        message = f"Monitoring {one.name!r} was not told of the {event} of the maintenance at {parts.scheme}://{parts.hostname}: {wrong}; tell it by hand."
        answer["unsent"].append({"name": one.name, "message": redact(message, one.secrets)})
    return answer


def _send(one: Monitor, call: Call, fields: Mapping[str, str]) -> str:
    """Make one call; return "" or what went wrong, a part of a sentence."""
    body = filled(call.body, fields)
    headers = dict(one.headers)
    if body is not None and not isinstance(body, str):
        body = json.dumps(body)
        headers.setdefault("Content-Type", "application/json")
    try:
        open_url(
            filled(call.url, fields),
            method=call.method,
            data=None if body is None else body.encode(),
            headers=headers,
            timeout=one.timeout,
            # A redirect would take what the headers carry to a place that nobody named.
            follow_redirects="none",
            ca_path=one.ca_path,
            http_agent=USER_AGENT,
            use_netrc=False,
        ).close()
    except urllib.error.HTTPError as error:
        return f"it answered {error.code}, expected 200 to 299"
    except (SSLValidationError, NoSSLError):
        return "its certificate is refused: name the authority's file in ca_path, or repair it"
    except (urllib.error.URLError, UrlConnectionError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        return " ".join(str(getattr(reason, "strerror", None) or reason).split()).rstrip(".")[:200]
    return ""


def host_words(found: Mapping[str, Any] | None) -> str:
    """Return what ``maintenance`` answered for a host in words; None: it was not asked, or did not answer."""
    if not found:
        return "unknown"
    about = found.get("maintenance") or {}
    if about.get("on"):
        words = ["on"]
        if about.get("since"):
            words.append(f"since {about['since']}")
        if about.get("expires"):
            words.append(f"ends by itself at {about['expires']}")
        if about.get("expected"):
            words.append(f"was expected to last {about['expected']} s")
        who = about.get("by") and f"deployment {about['by']}" or about.get("operator")
        words += [f"by {who}"] if who else []
        words += [about["reason"]] if about.get("reason") else []
        words += ["not put on by this tool"] if about.get("unknown") else []
    elif about.get("over"):
        words = [f"off: it ended by itself at {about['expires']}"]
    else:
        words = ["off"]
    if found.get("downtime"):
        words.append(f"visitors had the page for {lasted(found['downtime'])}")
    visitor = (found.get("seen") or {}).get("visitor")
    if visitor:
        words.append(f"a visitor gets {visitor['status'] or 'no answer'}")
    return ", ".join(words)


def lines(
    application: str, stage: str, answers: Mapping[str, Any], failures: Mapping[str, str], outside: str
) -> list[str]:
    """Return what ``playbooks/maintenance.yml`` shows.

    :param answers: what each host answered; :param failures: why it failed, by host; :param outside: what ``app_url`` says here.
    """
    width = max((len(host) for host in answers), default=0)
    shown = [f"maintenance of {application} ({stage})"]
    shown += [f"  {host:<{width}}  {host_words(answers[host])}" for host in sorted(answers)]
    shown += [f"  {host}: {failures[host]}" for host in sorted(failures)]
    return shown + ([f"  from here {outside}"] if outside else [])
