# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge changes of a column: what its attributes mean for going back, for the old code, and for the data. Pure.

Sources: ``DatabaseSchemaEditor._alter_field`` of Django 4.2 to 5.2 (NULLs are replaced by the default before NOT NULL is
set, a longer or shorter column gets another type); PostgreSQL, "Character Types" (too long a value is an error) and
"Numeric Types"; SQLite, "Datatypes In SQLite" (the length of a varchar is not enforced); MySQL, "Server SQL Modes" (without
strict mode a value is cut).

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

YES, NO, UNKNOWN = "yes", "no", "unknown"
# Attributes of which no column has anything: they decide what Django writes.
PYTHON_ONLY = ("default", "auto_now", "auto_now_add", "db_comment")
# From a type to those that hold every value of it, by the classes of Django's fields.
WIDER = {
    "SmallIntegerField": ("IntegerField", "BigIntegerField"),
    "IntegerField": ("BigIntegerField",),
    "CharField": ("TextField",),
}
ORDERS = ((YES, UNKNOWN, NO), (YES, UNKNOWN, NO), (NO, UNKNOWN, YES))
Answer = tuple[str, str, str]


def judge_alter_field(facts: Mapping[str, Any], vendor: str) -> Answer:
    """Return (reversible, compatible, destructive) for an AlterField.

    :param facts: as ``_agent_migrate._describe_operation`` returns them; :param vendor: ``postgresql``, ``mysql``,
        ``sqlite`` or "" for what holds in all of them.
    """
    altered, old, new = facts["altered"], facts["old"], facts["new"]
    if altered is None or old is None or new is None:
        return (UNKNOWN, UNKNOWN, UNKNOWN)
    if any(field["many_to_many"] or field["primary_key"] or field["generated"] for field in (old, new)):
        # Another table, or columns elsewhere that point here; nothing is changed where nothing differs.
        return (YES, YES, NO) if altered == [] else (UNKNOWN, UNKNOWN, UNKNOWN)
    answers = [_judge_attribute(name, old, new, vendor, altered) for name in altered]
    return tuple(
        max((answer[position] for answer in answers), key=order.index, default=order[0])
        for position, order in enumerate(ORDERS)
    )


def _judge_attribute(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any], vendor: str, altered: list[str]
) -> Answer:
    if name in PYTHON_ONLY or name == "db_index":
        return (YES, YES, NO)
    if name == "null":
        return _judge_null(old, new)
    if name == "unique":
        # The old code may write rows that clash; without the constraint rows may come that it refuses on the way back.
        return (YES, UNKNOWN, NO) if new["unique"] else (UNKNOWN, YES, NO)
    if name == "db_default":
        # A default that is there harms nobody. The old code that knows one relies on it, on its value too.
        return (YES, YES if new["db_default"] and not old["db_default"] else UNKNOWN, NO)
    if name == "max_length":
        return _judge_length(old, new, vendor, altered)
    if name == "type":
        return _judge_type(old, new, vendor)
    return (UNKNOWN, UNKNOWN, UNKNOWN)


def _judge_null(old: Mapping[str, Any], new: Mapping[str, Any]) -> Answer:
    if new["null"] and not old["null"]:
        # NULLs that are written from now on fail on the way back, or get the default.
        return (UNKNOWN, YES, NO)
    # Django gives the rows with NULL the default first, and which they were is gone.
    fills = new["default"] or new["db_default"]
    return (YES, NO, UNKNOWN if fills else NO)


def _judge_length(old: Mapping[str, Any], new: Mapping[str, Any], vendor: str, altered: list[str]) -> Answer:
    if "type" in altered:
        # Counted with the type: a TextField has no length.
        return (YES, YES, NO)
    if vendor == "sqlite":
        return (YES, YES, NO)
    before, after = old["max_length"], new["max_length"]
    wider = after is None or (before is not None and after > before)
    if wider:
        return (UNKNOWN, YES, NO)
    return (YES, NO, NO if vendor == "postgresql" else UNKNOWN)


def _judge_type(old: Mapping[str, Any], new: Mapping[str, Any], vendor: str) -> Answer:
    if new["type"] not in WIDER.get(old["type"], ()) or vendor not in ("postgresql", "sqlite"):
        return (UNKNOWN, UNKNOWN, UNKNOWN)
    # SQLite takes any length and any integer up to 64 bits in either type.
    return (YES if vendor == "sqlite" else UNKNOWN, YES, NO)
