# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell people of a deployment, all at the same time, within seconds, and never at the deployment's cost.

Whatever goes wrong here is a sentence in the answer; nothing is raised, and nothing is waited for longer than asked.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import email.message
import email.utils
import json
import smtplib
import socket
import ssl
import threading
import time
import urllib.error
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.urls import ConnectionError as UrlConnectionError
from ansible.module_utils.urls import NoSSLError, SSLValidationError, open_url
from ansible_collections.runbook.deploy.plugins.module_utils._command import redact
from ansible_collections.runbook.deploy.plugins.module_utils._http_transport import USER_AGENT
from ansible_collections.runbook.deploy.plugins.module_utils._notify_spec import (
    EVENTS,
    FIELDS,
    Notification,
    fill,
    parse_notifications,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._report import TITLES, visitors

# A reason is a sentence or a few; what is longer belongs into the report.
LONGEST_REASON = 1500
# Verdicts of which nobody is told: nothing happened.
QUIET = ("no_change", "checked")


class Untold(Exception):
    """Why somebody could not be told, a part of a sentence."""


def event_of(kind: str, verdict: str) -> str | None:
    """Return the event of a run of *kind* (deployment or rollback) with *verdict*; "" is its begin, None: no event."""
    if not verdict:
        return "start"
    if verdict in QUIET:
        return None
    if verdict in ("rolled_back", "flags_off") or (kind == "rollback" and verdict == "success"):
        return "rollback"
    return "success" if verdict == "success" else "failure"


def fields_of(facts: Mapping[str, Any], event: str) -> dict[str, str]:
    """Return a text for each placeholder of a template.

    :param facts: ``kind``, ``verdict``, ``application``, ``stage``, ``record`` (its header is enough), ``failures``,
        ``plan`` (the decision), ``primary``, ``url``, ``record_path``, ``report_path``.
    """
    record = facts.get("record") or {}
    failures = facts.get("failures") or []
    reasons = [
        f"{one.get('phase', '?')} on {one.get('host', '?')}: {str(one.get('reason', '')).strip()}"
        for one in failures
    ]
    plan = facts.get("plan") or {}
    if plan.get("level") and plan.get("reason"):
        reasons.append(f"decision: {plan['level']}: {plan['reason']}")
    shown = visitors(record)
    found = {
        "event": event,
        "verdict": TITLES.get(facts.get("verdict") or "", ""),
        "kind": facts.get("kind"),
        "id": record.get("id"),
        "application": facts.get("application"),
        "stage": facts.get("stage"),
        "version": record.get("version"),
        "commit": (record.get("commit") or "")[:12],
        "host": failures[0].get("host") if failures else facts.get("primary"),
        "operator": record.get("operator"),
        "controller": record.get("controller"),
        "reason": " ".join(reasons)[:LONGEST_REASON],
        "maintenance": f"visitors {shown}" if shown else "",
        "url": facts.get("url"),
        "report": facts.get("report_path"),
        "record": facts.get("record_path"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return {name: str(found[name] or "") for name in FIELDS}


def tell(items: Sequence[Any], event: str | None, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Tell everybody in *items* who wants to know of *event*, and return who was told and who was not.

    :param items: ``app_notifications``; :param facts: see :func:`fields_of`.
    :returns: ``{event, sent: [name], unsent: [{name, message}]}``; ``unsent`` has a sentence for each.
    """
    answer: dict[str, Any] = {"event": event, "sent": [], "unsent": []}
    if event not in EVENTS:
        return answer
    try:
        found = parse_notifications(items)
    except Problem as problem:
        answer["unsent"].append(
            {"name": "app_notifications", "message": f"Nobody was told: {problem.message}"}
        )
        return answer
    fields = fields_of(facts, event)
    wanted = [one for one in found if event in one.events]
    for one, failure in zip(wanted, _in_parallel(wanted, event, fields)):
        if failure is None:
            answer["sent"].append(one.name)
        else:
            message = (
                f"Notification {one.name!r} of the event {event} was not sent to {one.place}: {failure}."
            )
            answer["unsent"].append({"name": one.name, "message": redact(message, one.secrets)})
    return answer


def _in_parallel(wanted: Sequence[Notification], event: str, fields: Mapping[str, str]) -> list[str | None]:
    """Return for each of *wanted* why it could not be told, or None; each has its own time limit."""
    begun = time.monotonic()
    results: dict[int, str | None] = {}
    changed = threading.Condition()

    def work(index: int, one: Notification) -> None:
        try:
            send(one, event, fields)
            result = None
        except Untold as reason:
            result = str(reason)
        except Exception as error:  # a deployment never fails because of a notification
            result = f"{type(error).__name__}: {error}"
        with changed:
            results[index] = result
            changed.notify()

    # Daemons: the resolution of a name cannot be interrupted, nor a server that sends a byte a second.
    for index, one in enumerate(wanted):
        threading.Thread(target=work, args=(index, one), daemon=True).start()
    with changed:
        for index, one in enumerate(wanted):
            left = begun + one.timeout - time.monotonic()
            changed.wait_for(lambda index=index: index in results, max(0.0, left))
        return [
            results.get(index, f"there was no answer in {one.timeout:g} s")
            if index not in results
            else results[index]
            for index, one in enumerate(wanted)
        ]


def send(one: Notification, event: str, fields: Mapping[str, str]) -> None:
    """Send one notification.

    :raises Untold: when it was not taken; :raises Exception: for what nobody thought of.
    """
    texts = one.templates[event]
    subject = " ".join(fill(texts["subject"], fields).split())
    body = fill(texts["body"], fields)
    if one.kind == "mail":
        _mail(one, subject, body)
        return
    text = f"{subject}\n{body}"
    _post(one, {"text": text} if one.kind == "slack" else {**fields, "subject": subject, "text": text})


def _post(one: Notification, document: Mapping[str, str]) -> None:
    try:
        open_url(
            one.url,
            method="POST",
            data=json.dumps(document).encode(),
            headers={"Content-Type": "application/json", **one.headers},
            timeout=one.timeout,
            # A redirect would take the document, and what its headers carry, to a place that nobody named.
            follow_redirects="none",
            ca_path=one.ca_path,
            http_agent=USER_AGENT,
            use_netrc=False,
        ).close()
    except urllib.error.HTTPError as error:
        if 300 <= error.code < 400:
            raise Untold(
                f"it answered {error.code}, a redirect, which is not followed: give the final address"
            ) from error
        raise Untold(
            f"it answered {error.code}, expected 200 to 299: see what it says of that in its log"
        ) from error
    except (SSLValidationError, NoSSLError) as error:
        raise Untold(
            "its certificate is refused: name the authority's file in ca_path, or repair it"
        ) from error
    except (urllib.error.URLError, UrlConnectionError, OSError) as error:
        raise Untold(_reason(getattr(error, "reason", None) or error, one)) from error


def _mail(one: Notification, subject: str, body: str) -> None:
    message = email.message.EmailMessage()
    message["Subject"] = subject
    message["From"] = one.sender
    message["To"] = ", ".join(one.to)
    message["Date"] = email.utils.formatdate(localtime=False)
    message["Message-ID"] = email.utils.make_msgid(domain=one.sender.rpartition("@")[2])
    # RFC 3834: nobody's holiday is answered to a program.
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(body)
    try:
        with _session(one) as session:
            if one.password:
                session.login(one.user, one.password)
            refused = session.send_message(message)
    except smtplib.SMTPAuthenticationError as error:
        raise Untold(
            f"the login of user {one.user!r} is refused ({error.smtp_code}): correct user and password"
        ) from error
    except smtplib.SMTPRecipientsRefused as error:
        raise Untold(f"every recipient is refused: {_refusals(error.recipients)}") from error
    except smtplib.SMTPNotSupportedError as error:
        raise Untold(f"{_sentence(error)}: choose another tls, or leave out user and password") from error
    except smtplib.SMTPResponseException as error:
        raise Untold(f"it answered {error.smtp_code} {_decoded(error.smtp_error)}") from error
    except (smtplib.SMTPException, OSError) as error:
        raise Untold(_reason(error, one)) from error
    if refused:
        raise Untold(
            f"{len(one.to) - len(refused)} of {len(one.to)} recipients have it, refused are {_refusals(refused)}"
        )


def _session(one: Notification) -> smtplib.SMTP:
    """Return a session that is encrypted as asked: where the server offers no STARTTLS, nothing is sent in the open."""
    # What a host without a domain says of itself; its full name would have to be asked for, which may take long.
    name = socket.gethostname()
    name = name if "." in name else "[127.0.0.1]"
    if one.tls == "none":
        return smtplib.SMTP(one.host, one.port, name, one.timeout)
    try:
        context = ssl.create_default_context(cafile=one.ca_path)
    except OSError as error:
        raise Untold(f"ca_path {one.ca_path!r} cannot be read: {error.strerror or error}") from error
    if one.tls == "implicit":
        return smtplib.SMTP_SSL(one.host, one.port, name, timeout=one.timeout, context=context)
    session = smtplib.SMTP(one.host, one.port, name, one.timeout)
    try:
        session.starttls(context=context)
    except BaseException:
        session.close()
        raise
    return session


def _decoded(text: Any) -> str:
    words = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    return _sentence(words)


def _sentence(text: Any) -> str:
    return " ".join(str(text).split()).rstrip(".")[:200]


def _refusals(refused: Mapping[str, Any]) -> str:
    return ", ".join(f"{who} ({code} {_decoded(text)})" for who, (code, text) in refused.items())


def _reason(error: Any, one: Notification) -> str:
    """Return in words why *one* could not be reached."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused ({error.verify_message}): name the authority's file in ca_path, or repair it"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or _sentence(error)}): is its port one for that?"
    # smtplib makes a silence of the server a disconnection.
    late = (socket.timeout, TimeoutError)
    if isinstance(error, late) or isinstance(getattr(error, "__context__", None), late):
        return f"there was no answer in {one.timeout:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, socket.gaierror):
        return f"its name is not known here ({error.strerror or error})"
    if isinstance(error, smtplib.SMTPServerDisconnected):
        return "it ended the connection without an answer"
    return _sentence(getattr(error, "strerror", None) or error)
