# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the checks of gates as people write them: what the kinds have in common.

Every function takes *where*, the name of what it reads, and raises a Problem with one sentence for what is not
well written.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._conditions import parse_condition, parse_path
from ansible_collections.runbook.deploy.plugins.module_utils._gate import SEVERITIES
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# The keys that every check has.
COMMON = ("name", "severity", "timeout")
_PERCENT = re.compile(r"^(\s*(?:<=|>=|==|!=|<|>)\s*-?\d+(?:\.\d+)?)\s*%\s*$")


class Common(NamedTuple):
    """What every check has; ``where`` names it in messages about the specification, ``timeout`` is in seconds."""

    where: str
    name: str
    severity: str
    timeout: float | None


def common(item: Mapping[str, Any], where: str, name: str) -> Common:
    """Return what *item* has in common with every check; *name* is what it is called where it has none."""
    return Common(
        where,
        str(item.get("name") or name),
        choice(item.get("severity", "critical"), SEVERITIES, f"{where}.severity"),
        seconds(item.get("timeout"), f"{where}.timeout"),
    )


def condition(value: Any, where: str) -> Any:
    """Return the condition *value* as ``_conditions.holds`` takes it.

    Percent are compared with percent: the sign after a number is left out.
    """
    if isinstance(value, (list, dict)):
        raise Problem(f"{where} must be a value or a condition such as '< 5', found {value!r}.")
    found = _PERCENT.match(value) if isinstance(value, str) else None
    value = found.group(1).strip() if found else value
    parse_condition(value, where)
    return value


def json_conditions(value: Any, where: str) -> dict[str, Any]:
    """Return a mapping of JSON paths to what is expected there."""
    found = mapping(value, where)
    for path, expected in found.items():
        try:
            parse_path(path)
        except Problem as problem:
            raise Problem(f"{where}: {problem.message}") from problem
        parse_condition(expected, f"{where}[{path!r}]")
    return found


def keys(item: Any, known: Iterable[str], where: str, example: str = "{url: /healthz/}") -> None:
    """Refuse an *item* that is no mapping, or has a key that nobody reads.

    :param example: what it looks like, for the message.
    """
    if not isinstance(item, Mapping):
        raise Problem(f"{where} must be a mapping such as {example}, found {item!r}.")
    names = list(known)
    for key in item:
        if key not in names:
            raise Problem(f"{where} has the unknown key {key!r}{nearest(str(key), names)}")


def nearest(word: str, known: Sequence[str]) -> str:
    """Return the end of a sentence about an unknown *word*: the one that was meant, or all *known*."""
    import difflib  # only needed to explain an error

    found = difflib.get_close_matches(word, known, 1, 0.6)
    return f": did you mean {found[0]!r}?" if found else f": known are {', '.join(sorted(known))}."


def items(value: Any, where: str) -> list[Any]:
    """Return the list *value*; nothing is an empty one."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise Problem(f"{where} must be a list, found {type(value).__name__}.")
    return value


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Return the mapping *value* with texts as keys; nothing is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise Problem(f"{where} must be a mapping, found {type(value).__name__}.")
    return {str(name): item for name, item in value.items()}


def texts(value: Any, where: str) -> dict[str, str]:
    """Return a mapping of texts; true and false become the words that YAML has for them."""
    result = {}
    for name, item in mapping(value, where).items():
        if item is None or isinstance(item, (list, dict)):
            raise Problem(f"{where}.{name} must be a text, found {type(item).__name__}.")
        result[name] = str(item).lower() if isinstance(item, bool) else str(item)
    return result


def strings(value: Any, where: str) -> list[str]:
    """Return *value*, a text or a list of texts, as a list; an empty text would be found everywhere."""
    result = []
    for item in value if isinstance(value, list) else [] if value is None else [value]:
        text = str(item)
        if isinstance(item, (dict, list)) or item is None or not text:
            raise Problem(f"{where} must be a text or a list of texts that are not empty, found {value!r}.")
        result.append(text)
    return result


def seconds(value: Any, where: str, unit: str = "seconds") -> float | None:
    """Return the positive number *value*, or None where nothing is given."""
    if value is None:
        return None
    try:
        number = 0.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < float("inf"):
        raise Problem(f"{where} must be a number of {unit} above 0, found {value!r}.")
    return number


def flag(value: Any, where: str) -> bool:
    """Return *value*, which must be true or false."""
    if not isinstance(value, bool):
        raise Problem(f"{where} must be true or false, found {value!r}.")
    return value


def choice(value: Any, choices: Sequence[str], where: str) -> str:
    """Return *value*, which must be one of *choices*."""
    if value not in choices:
        raise Problem(f"{where} must be one of {', '.join(choices)}, found {value!r}.")
    return str(value)
