# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge what an answer says beside its text: its cookies, and the certificate it came with.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import email.utils
import re
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._comparison import OPERATORS
from ansible_collections.runbook.deploy.plugins.module_utils._conditions import number
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

DAY = 86400
FLAGS = ("secure", "httponly", "partitioned")
_AGE = re.compile(r"^max_age\s*(<=|>=|<|>)\s*(\d+)$")
_ATTRIBUTE = re.compile(r"^(samesite|path|domain)\s*=\s*(\S+)$")
COOKIE_WISHES = (
    "secure, httponly, partitioned, session, absent, samesite=lax, path=/, domain=…, max_age <= 3600"
)


class Finding(NamedTuple):
    """What was expected, whether it is so (None: it cannot be known), and what was found."""

    wish: str
    true: bool | None
    fact: str


def parse_cookies(value: Any, where: str) -> dict[str, list[str]]:
    """Return what a check expects of each cookie, in lower case.

    :param value: a mapping of a cookie's name to a text or a list of texts (see ``COOKIE_WISHES``), or None.
    :raises Problem: for anything else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise Problem(f"{where} must be a mapping of cookies to flags, found {value!r}.")
    result = {}
    for name, item in value.items():
        wishes = [str(text).strip() for text in (item if isinstance(item, list) else [item])]
        for index, wish in enumerate(wishes):
            lowered = wish.lower()
            known = (
                lowered in (*FLAGS, "session", "absent") or _AGE.match(lowered) or _ATTRIBUTE.match(lowered)
            )
            if not known or (lowered == "absent" and len(wishes) > 1):
                raise Problem(f"{where}.{name} has {wish!r}: expected some of {COOKIE_WISHES}.")
            wishes[index] = lowered
        if not wishes:
            raise Problem(f"{where}.{name} is empty: expected some of {COOKIE_WISHES}.")
        result[str(name)] = wishes
    return result


def read_cookies(header: str, now: float) -> dict[str, dict[str, str]]:
    """Return the attributes, in lower case, of each cookie of *header* (Set-Cookie lines joined by newlines).

    :return: by name; an attribute without a value is "". ``max-age`` is worked out from Expires where only that is
        given (RFC 6265, 5.3). A cookie that is deleted has a ``max-age`` of at most 0.
    """
    found: dict[str, dict[str, str]] = {}
    for line in filter(None, header.split("\n")):
        first, *rest = line.split(";")
        attributes = {}
        for item in rest:
            key, _equals, text = item.partition("=")
            attributes[key.strip().lower()] = text.strip()
        moment = email.utils.parsedate_tz(attributes.get("expires", ""))
        if moment is not None and "max-age" not in attributes:
            attributes["max-age"] = str(int(email.utils.mktime_tz(moment) - now))
        found[first.partition("=")[0].strip()] = attributes
    return found


def judge_cookies(wishes: Mapping[str, Sequence[str]], header: str, now: float) -> list[Finding]:
    """Compare the cookies that *header* sets with what is wished for; *now* in seconds since the epoch."""
    findings = []
    cookies = read_cookies(header, now)
    for name, wanted in wishes.items():
        attributes = cookies.get(name)
        if attributes is not None and (number(attributes.get("max-age", "1")) or 0) <= 0:
            attributes = None
        if wanted == ["absent"]:
            findings.append(Finding(f"no cookie {name}", attributes is None, "it is set"))
            continue
        others = ", ".join(sorted(cookies)) or "none"
        for wish in wanted:
            text = f"cookie {name} with {wish}"
            if attributes is None:
                findings.append(Finding(text, False, f"it is not set (set are: {others})"))
                break
            findings.append(Finding(text, *_judge_cookie(wish, attributes)))
    return findings


def _judge_cookie(wish: str, attributes: Mapping[str, str]) -> tuple[bool, str]:
    described = (
        "; ".join(f"{key}={text}" if text else key for key, text in attributes.items()) or "no attribute"
    )
    fact = f"it has {described}"
    age = _AGE.match(wish)
    if age:
        found = number(attributes.get("max-age", ""))
        limit = float(age.group(2))
        if found is None:
            return False, f"{fact}: it ends with the browser"
        return OPERATORS[age.group(1)](found, limit), fact
    pair = _ATTRIBUTE.match(wish)
    if pair:
        return attributes.get(pair.group(1), "").lower() == pair.group(2), fact
    if wish == "session":
        return "max-age" not in attributes, fact
    return wish in attributes, fact


def judge_certificate(
    days: float, certificate: Mapping[str, Any], secured: bool, verified: bool, now: float
) -> Finding:
    """Say whether *certificate* (as ``ssl.SSLSocket.getpeercert`` returns it) is valid for *days* more days.

    :param secured: the answer came over TLS; :param verified: certificates are verified (only then Python reads them).
    """
    wish = f"a certificate that is valid for {days:g} more days"
    if not secured:
        return Finding(wish, False, "the answer came without TLS")
    if not verified:
        return Finding(wish, None, "nothing is known of a certificate that is not verified (validate_certs)")
    try:
        end = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    except (KeyError, ValueError) as error:
        return Finding(wish, None, f"its end cannot be read ({error})")
    left = (end - now) / DAY
    return Finding(wish, left >= days, f"it ends in {left:.1f} days, on {certificate['notAfter']}")
