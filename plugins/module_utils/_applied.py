# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a deployment has applied, from what the database says before and after, and how that is judged. Pure.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Migration = Sequence[str]


def difference(now: Iterable[Migration], before: Iterable[Migration]) -> list[list[str]]:
    """Return the migrations ``[app, name]`` in *now* that are not in *before*, in the order of *now*."""
    known = {tuple(row) for row in before}
    return [list(row) for row in now if tuple(row) not in known]


def applied_since(
    now: Iterable[Migration], before: Iterable[Migration], plan: Mapping[str, Any]
) -> list[list[str]]:
    """Return what of *plan* was applied since *before*, in the order in which it was applied.

    Rows of Alembic are heads: the revisions below them, down to what was applied before, are applied, too. Of a command
    no table says anything: once it has begun, it is applied.
    """
    before = [tuple(row) for row in before]
    found = difference(now, before)
    listed = [(m["app"], m["name"]) for m in plan.get("migrations", [])]
    down = {(m["app"], m["name"]): m.get("down") or [] for m in plan.get("migrations", [])}
    reached = {tuple(row) for row in found}
    waiting = [row for row in found if row[0] == "alembic"]
    while waiting:
        for name in down.get(tuple(waiting.pop()), []):
            below = ("alembic", name)
            # What is not in the plan either was applied before.
            if below in down and below not in reached and below not in before:
                reached.add(below)
                waiting.append(list(below))
    reached |= {key for key in listed if key[0] == "command"}
    strange = [row for row in found if tuple(row) not in down]
    if not any(app in ("alembic", "command") for app, _name in reached):
        return found
    return strange + [list(key) for key in listed if key in reached]


def worst(applied: Iterable[Migration], plan: Mapping[str, Any], key: str) -> str:
    """Return the worst judgement of *key* over the migrations in *applied*.

    :param plan: ``{"migrations": [{"app", "name", "reversible", "compatible", "destructive"}]}``.
    :return: ``yes``, ``no`` or ``unknown``; for ``destructive`` a ``yes`` is the worst. A migration that the
        plan does not know is ``unknown``.
    """
    judged = {(m["app"], m["name"]): m.get(key, "unknown") for m in plan.get("migrations", [])}
    found = {judged.get(tuple(row), "unknown") for row in applied} or {
        "no" if key == "destructive" else "yes"
    }
    order = ("yes", "unknown", "no") if key == "destructive" else ("no", "unknown", "yes")
    return next(value for value in order if value in found)
