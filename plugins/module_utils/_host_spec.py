# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the checks of a host as people write them: one subject (``disk``, ``clock``, …) and what is expected of it.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._comparison import (
    SIZES,
    Bound,
    parse_bound,
    parse_version,
)
from ansible_collections.runbook.deploy.plugins.module_utils._gate import SEVERITIES
from ansible_collections.runbook.deploy.plugins.module_utils._gate_spec import nearest
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

COMMON = ("name", "severity", "timeout")
SUBJECTS: dict[str, tuple[str, ...]] = {
    "disk": ("free", "free_percent", "inodes", "inodes_percent"),
    "memory": ("free", "free_percent"),
    "load": ("average",),
    "clock": (),
    "python": ("version",),
    "variables": ("example", "optional"),
    "dns": ("addresses",),
    "port": (),
    "tls": ("days", "host"),
}
_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
DEFAULT_TIMEOUT = 10.0


class Check(NamedTuple):
    """One check as it was read: its ``subject``, the subject's ``value``, and the subject's own ``keys``."""

    where: str
    name: str
    severity: str
    timeout: float
    subject: str
    value: Any
    keys: dict[str, Any]


def parse_check(item: Any, where: str) -> Check:
    """Return one check as people write it.

    :raises Problem: when it has no subject, two, or a key that nobody reads.
    """
    if not isinstance(item, Mapping):
        raise Problem(f"{where} must be a mapping such as {{disk: /srv, free: '> 2GB'}}, found {item!r}.")
    subjects = [key for key in item if key in SUBJECTS]
    if len(subjects) != 1:
        unknown = next((str(key) for key in item if key not in (*SUBJECTS, *COMMON)), "")
        hint = (
            nearest(unknown, list(SUBJECTS))
            if unknown and not subjects
            else f": expected one of {', '.join(SUBJECTS)}."
        )
        raise Problem(f"{where} has {len(subjects)} subjects{hint}")
    subject = subjects[0]
    known = (*COMMON, subject, *SUBJECTS[subject])
    for key in item:
        if key not in known:
            raise Problem(f"{where} has the unknown key {key!r}{nearest(str(key), known)}")
    severity = item.get("severity", "critical")
    if severity not in SEVERITIES:
        raise Problem(f"{where}.severity must be one of {', '.join(SEVERITIES)}, found {severity!r}.")
    timeout = item.get("timeout", DEFAULT_TIMEOUT)
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout <= 0:
        raise Problem(f"{where}.timeout must be a number of seconds above 0, found {timeout!r}.")
    keys = {key: item[key] for key in SUBJECTS[subject] if item.get(key) is not None}
    value = _value(subject, item[subject], f"{where}.{subject}")
    shown = ", ".join(map(str, value)) if isinstance(value, list) else value
    name = str(
        item.get("name") or f"{subject} {shown if not isinstance(shown, Bound) else shown.text}".strip()
    )
    return Check(where, name, severity, float(timeout), subject, value, _keys(subject, keys, where))


def _value(subject: str, value: Any, where: str) -> Any:
    if subject == "clock":
        return parse_bound(value, where, {"S": 1, "MS": 0.001})
    if subject == "variables":
        names = value if isinstance(value, list) else [] if value is None else [value]
        for name in names:
            if not isinstance(name, str) or not _NAME.match(name):
                raise Problem(f"{where} must be names of environment variables, found {name!r}.")
        return list(names)
    if subject in ("memory", "load"):
        return ""
    if not isinstance(value, str) or not value:
        raise Problem(f"{where} must be a text, found {value!r}.")
    if subject == "disk" and not os.path.isabs(value):
        raise Problem(f"{where} must be an absolute path, found {value!r}.")
    if subject in ("port", "tls"):
        place_of(value, where, 443 if subject == "tls" else None)
    return value


def _keys(subject: str, keys: dict[str, Any], where: str) -> dict[str, Any]:
    percent = {"%": 1.0, "": 1.0}
    readers: dict[str, Callable[[Any, str], Any]] = {
        "free": lambda value, here: parse_bound(value, here, SIZES),
        "free_percent": lambda value, here: parse_bound(value, here, percent),
        "inodes": lambda value, here: parse_bound(value, here, {"": 1}),
        "inodes_percent": lambda value, here: parse_bound(value, here, percent),
        "average": lambda value, here: parse_bound(value, here, {"": 1}),
        "version": parse_version,
        "days": lambda value, here: parse_bound(f">= {value}", here, {"": 1}).value,
    }
    result = {
        key: readers.get(key, lambda value, here: value)(value, f"{where}.{key}")
        for key, value in keys.items()
    }
    for key in ("addresses", "optional"):
        if key in result and not isinstance(result[key], list):
            raise Problem(f"{where}.{key} must be a list, found {result[key]!r}.")
    needed = {
        "disk": SUBJECTS["disk"],
        "memory": SUBJECTS["memory"],
        "load": ("average",),
        "python": ("version",),
    }
    if subject in needed and not any(key in result for key in needed[subject]):
        raise Problem(f"{where} expects nothing: give it {' or '.join(needed[subject])}.")
    return result


def place_of(text: str, where: str, default: int | None = None) -> tuple[str, int]:
    """Return host and port of ``host:port`` (``[::1]:443`` too).

    :raises Problem: when there is none and no *default*.
    """
    parts = urllib.parse.urlsplit(f"//{text}")
    try:
        port = parts.port or default
    except ValueError:
        port = None
    if not parts.hostname or not port:
        raise Problem(f"{where} must be like shop.example.org:443, found {text!r}.")
    return parts.hostname, port
