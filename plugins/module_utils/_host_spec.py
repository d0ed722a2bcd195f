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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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
# Decimal and binary units as IEC 80000-13 has them; a space before them is allowed.
SIZES = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_BOUND = re.compile(r"^(<=|>=|==|<|>)\s*(\d+(?:\.\d+)?)\s*([A-Za-z%]*)$")
_VERSION = re.compile(r"^(<=|>=|==|<|>)\s*(\d+(?:\.\d+)*)$")
_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
DEFAULT_TIMEOUT = 10.0


class Bound(NamedTuple):
    """What a figure is held against, in its base unit, and as it was written."""

    operator: str
    value: float
    text: str

    def holds(self, found: float) -> bool:
        """Return whether *found* is within the bound."""
        return {
            "<": found < self.value,
            "<=": found <= self.value,
            ">": found > self.value,
            ">=": found >= self.value,
            "==": found == self.value,
        }[self.operator]


class Check(NamedTuple):
    """One check as it was read: its ``subject``, the subject's ``value``, and the subject's own ``keys``."""

    where: str
    name: str
    severity: str
    timeout: float
    subject: str
    value: Any
    keys: dict[str, Any]


def parse_bound(value: Any, where: str, units: Mapping[str, float]) -> Bound:
    """Return a comparison such as ``> 2GB``.

    :param units: factor of each unit, in capitals; "" for a bare number.
    :raises Problem: when it is none.
    """
    text = str(value).strip()
    found = _BOUND.match(text)
    if not found or found.group(3).upper() not in units:
        known = ", ".join(unit for unit in units if unit) or "none"
        raise Problem(
            f"{where} must be a comparison with a number, such as '> 5', with one of the units {known}; found {value!r}."
        )
    return Bound(found.group(1), float(found.group(2)) * units[found.group(3).upper()], text)


def parse_version(value: Any, where: str) -> tuple[str, tuple[int, ...]]:
    """Return the operator and the numbers of a text such as ``>= 3.11``.

    :raises Problem: when it is none.
    """
    found = _VERSION.match(str(value).strip())
    if not found:
        raise Problem(f"{where} must be a comparison with a version, such as '>= 3.11', found {value!r}.")
    return found.group(1), tuple(int(part) for part in found.group(2).split("."))


def version_holds(operator: str, wanted: Sequence[int], found: Sequence[int]) -> bool:
    """Compare versions as far as *wanted* names them: 3.11.7 is ``== 3.11`` and not ``> 3.11``."""
    short = tuple(found[: len(wanted)]) + (0,) * (len(wanted) - len(found))
    want = tuple(wanted)
    return {
        "<": short < want,
        "<=": short <= want,
        ">": short > want,
        ">=": short >= want,
        "==": short == want,
    }[operator]


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
