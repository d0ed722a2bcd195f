# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge variables such as ``app_load_balancer``: mappings whose keys depend on their ``kind``, and which name a host or a group.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def check_kinds(
    variable: str,
    value: Mapping[str, Any],
    kinds: Mapping[str, Mapping[str, str]],
    needed: Mapping[str, Sequence[str]],
    fits: Callable[[Any, str], bool],
) -> list[str]:
    """Return what is wrong with the mapping *value* of *variable*, a sentence each; nothing where it is empty.

    :param kinds: what each key of each kind must be, in words; :param needed: the keys that a kind cannot do without.
    :param fits: says whether a value is what such words say.
    """
    if not value:
        return []
    kind = value.get("kind")
    if kind not in kinds:
        return [f"{variable}.kind is {kind!r}, expected one of {', '.join(kinds)}."]
    known = kinds[str(kind)]
    errors = []
    for key, found in value.items():
        if key == "kind":
            continue
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
            errors.append(f"{variable}.{key} is not known for kind {kind}: {hint}")
        elif not fits(found, known[key]):
            errors.append(f"{variable}.{key} must be {known[key]}, found {found!r}.")
    return errors + [
        f"{variable} has no {key}, which kind {kind} needs: add it."
        for key in needed[str(kind)]
        if not value.get(key)
    ]


def check_place(
    variable: str, name: str | None, what: str, hosts: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return what is wrong with *name*, given as *variable*: it must be a host, or a group with hosts, of the inventory.

    :param what: what runs there, in words; :param hosts: all hosts of the inventory; :param groups: the hosts of each group.
    """
    if not name or name in hosts or name == "localhost" or groups.get(name):
        return []
    if name in groups:
        return [f"{variable} is the group {name!r}, which has no host: add the {what} to it."]
    return [
        f"{variable} is {name!r}, which is neither a host nor a group of this inventory: add it, or correct the name."
    ]
