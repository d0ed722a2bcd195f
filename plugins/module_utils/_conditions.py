# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find a value in JSON by a dotted path and compare it with what is expected; no library is needed on a host.

A path is ``data.items[0].name`` (a dot in front is allowed, as in jq),
``items[-1]``, ``["a.b"].c`` for a key with a dot, or ``.`` for the whole.

What is expected is a plain value, or one of these texts::

    < 500    <= 500    > 5    >= 5    == ok    != broken
    length > 3                    the number of characters, items or keys
    contains text                 part of a text, an item of a list, or a key
    matches ^v2\\.                 a regular expression, searched for
    exists    absent

A text that looks like a condition and is meant literally is written ``== exists``.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._comparison import OPERATORS
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

_STEP = re.compile(r"""\.?(?:([^.\[\]"']+)|\[(-?\d+)\]|\["([^"]*)"\]|\['([^']*)'\])""")
_CONDITION = re.compile(r"^(length\s+)?(<=|>=|==|!=|<|>)\s*(.*)$", re.DOTALL)
_WORD = re.compile(r"^(contains|matches)\s+(.+)$", re.DOTALL)
# Enough to recognise a value in a message.
SHOWN = 80


class Condition(NamedTuple):
    """What is expected: ``operator`` and ``operand``; ``length`` says that the size is compared."""

    operator: str
    operand: Any
    length: bool = False


def parse_path(path: str) -> list[str | int]:
    """Return the keys and indexes of *path*.

    :raises Problem: when *path* is not written as the text at the head of this file says.
    """
    if path in ("", "."):
        return []
    steps: list[str | int] = []
    position = 0
    while position < len(path):
        found = _STEP.match(path, position)
        if not found:
            raise Problem(
                f"The JSON path {path!r} cannot be read at character {position + 1}: "
                'write it like data.items[0].name, or ["a.b"] for a key with a dot.'
            )
        key, index, double, single = found.groups()
        steps.append(
            int(index) if index is not None else next(x for x in (key, double, single) if x is not None)
        )
        position = found.end()
    return steps


def lookup(document: Any, path: str) -> tuple[bool, Any]:
    """Return ``(True, value)`` for what *document* has at *path*, or ``(False, why)`` with a sentence part.

    :raises Problem: when *path* cannot be read.
    """
    value = document
    walked = ""
    for step in parse_path(path):
        here = walked or "the answer"
        if isinstance(value, list):
            number = step if isinstance(step, int) else int(step) if step.isdecimal() else None
            if number is None or not -len(value) <= number < len(value):
                return False, f"{here} is a list of {len(value)} without [{step}]"
            value = value[number]
        elif isinstance(value, dict):
            if str(step) not in value:
                names = ", ".join(sorted(map(str, value))[:12]) or "nothing"
                return False, f"{here} has no {step!r}, only: {names}"
            value = value[str(step)]
        else:
            return False, f"{here} is {shown(value)}, which has no {step!r}"
        walked += f"[{step}]" if isinstance(step, int) else f".{step}" if walked else step
    return True, value


def parse_condition(expected: Any, where: str) -> Condition:
    """Return *expected* as a :class:`Condition`; plain values are compared for equality.

    :param where: names the option in messages.
    :raises Problem: when an order is asked of something that is no number, or a pattern cannot be compiled.
    """
    if not isinstance(expected, str):
        return Condition("==", expected)
    text = expected.strip()
    if text in ("exists", "absent"):
        return Condition(text, None)
    found = _CONDITION.match(text)
    if found:
        length, operator, operand = bool(found.group(1)), found.group(2), found.group(3).strip()
        if (length or operator in ("<", "<=", ">", ">=")) and number(operand) is None and "{" not in operand:
            raise Problem(f"{where} is {expected!r}: expected a number after {operator}, found {operand!r}.")
        return Condition(operator, operand, length)
    found = _WORD.match(text)
    if found:
        if found.group(1) == "matches":
            compile_pattern(found.group(2), where)
        return Condition(found.group(1), found.group(2))
    return Condition("is", expected)


def compile_pattern(pattern: str, where: str) -> re.Pattern[str]:
    """Return *pattern* compiled; ``^`` and ``$`` match at lines, because answers have many.

    :raises Problem: when it is no regular expression.
    """
    try:
        return re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise Problem(f"{where} is no regular expression: {pattern!r} ({error}).") from error


def number(value: Any) -> float | None:
    """Return *value* as a finite number, or None; texts count when they are decimal numbers, booleans never."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def shown(value: Any) -> str:
    """Return *value* as short JSON for a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def holds(
    document: Any, path: str, expected: Any, replace: Callable[[str], str] = str, where: str = "json"
) -> tuple[bool, str]:
    """Return whether *document* has what is *expected* at *path*, and what was found, in words.

    A path that leads nowhere satisfies ``absent`` and nothing else: no data is never a pass.

    :param replace: applied to the operand after the condition was read, so that a value cannot become one.
    :raises Problem: when *path* or *expected* cannot be read.
    """
    condition = parse_condition(expected, where)
    present, value = lookup(document, path)
    if condition.operator == "absent":
        return not present, "is absent" if not present else f"is {shown(value)}"
    if not present:
        return False, f"is missing ({value})"
    if condition.operator == "exists":
        return True, f"is {shown(value)}"
    operand = replace(condition.operand) if isinstance(condition.operand, str) else condition.operand
    if condition.length:
        if not isinstance(value, (str, list, dict)):
            return False, f"is {shown(value)}, which has no length"
        return _compare(condition.operator, len(value), operand), f"has the length {len(value)}"
    return _compare(condition.operator, value, operand), f"is {shown(value)}"


def _compare(operator: str, value: Any, operand: Any) -> bool:
    """Return whether *value* stands in the relation *operator* to *operand*; what cannot be compared does not."""
    if operator in ("is", "=="):
        return _equal(value, operand, quoted=operator == "==")
    if operator == "!=":
        return not _equal(value, operand, quoted=True)
    if operator == "contains":
        if isinstance(value, list):
            return any(_equal(item, operand) for item in value)
        return isinstance(value, (str, dict)) and operand in value
    if operator == "matches":
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return re.search(operand, text, re.MULTILINE) is not None
    left, right = number(value), number(operand)
    if left is None or right is None:
        return False
    return OPERATORS[operator](left, right)


def _equal(value: Any, operand: Any, quoted: bool = False) -> bool:
    """Return whether the two are the same; a text operand also stands for the number or word it spells.

    Python takes True for 1; JSON and people do not.
    """
    if isinstance(value, bool) != isinstance(operand, bool) and not isinstance(operand, str):
        return False
    if not isinstance(operand, str):
        return bool(value == operand)
    if isinstance(value, str):
        if quoted and len(operand) >= 2 and operand[0] == operand[-1] and operand[0] in "\"'":
            operand = operand[1:-1]
        return value == operand
    if value is None or isinstance(value, bool):
        return operand == json.dumps(value)
    left, right = number(value), number(operand)
    return left is not None and left == right
