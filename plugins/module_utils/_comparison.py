# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Comparisons of figures and versions, as people write them: ``> 2GB``, ``>= 3.11``.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
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


class Bound(NamedTuple):
    """What a figure is held against, in its base unit, and as it was written."""

    operator: str
    value: float
    text: str

    def holds(self, found: float) -> bool:
        """Return whether *found* is within the bound."""
        return OPERATORS[self.operator](found, self.value)


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


def version_holds(relation: str, wanted: Sequence[int], found: Sequence[int]) -> bool:
    """Compare versions as far as *wanted* names them: 3.11.7 is ``== 3.11`` and not ``> 3.11``."""
    short = tuple(found[: len(wanted)]) + (0,) * (len(wanted) - len(found))
    want = tuple(wanted)
    return OPERATORS[relation](short, want)
