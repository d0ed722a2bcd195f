# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests for plugins/module_utils/_plan_fields.py: changes of columns, engine by engine."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._plan_fields import judge_alter_field

FIELD = {
    "type": "CharField",
    "null": False,
    "max_length": 20,
    "default": False,
    "db_default": False,
    "generated": False,
    "many_to_many": False,
    "primary_key": False,
    "unique": False,
}


def judged(vendor: str, altered: list[str] | None, old: dict[str, Any], new: dict[str, Any]) -> str:
    facts = {"altered": altered, "old": {**FIELD, **old}, "new": {**FIELD, **new}}
    return " ".join(judge_alter_field(facts, vendor))


# attributes, old, new, then reversible, compatible, destructive on PostgreSQL, MySQL and SQLite
CASES = [
    ([], {}, {}, "yes yes no", "yes yes no", "yes yes no"),
    (["default"], {}, {"default": True}, "yes yes no", "yes yes no", "yes yes no"),
    (["max_length"], {}, {"max_length": 40}, "unknown yes no", "unknown yes no", "yes yes no"),
    (["max_length"], {}, {"max_length": None}, "unknown yes no", "unknown yes no", "yes yes no"),
    (["max_length"], {}, {"max_length": 10}, "yes no no", "yes no unknown", "yes yes no"),
    (["null"], {}, {"null": True}, "unknown yes no", "unknown yes no", "unknown yes no"),
    (["null"], {"null": True}, {}, "yes no no", "yes no no", "yes no no"),
    (["null"], {"null": True}, {"default": True}, "yes no unknown", "yes no unknown", "yes no unknown"),
    (["unique"], {}, {"unique": True}, "yes unknown no", "yes unknown no", "yes unknown no"),
    (["unique"], {"unique": True}, {}, "unknown yes no", "unknown yes no", "unknown yes no"),
    (["db_index"], {}, {}, "yes yes no", "yes yes no", "yes yes no"),
    (["db_default"], {}, {"db_default": True}, "yes yes no", "yes yes no", "yes yes no"),
    (["db_default"], {"db_default": True}, {}, "yes unknown no", "yes unknown no", "yes unknown no"),
    (
        ["max_length", "type"],
        {},
        {"type": "TextField", "max_length": None},
        "unknown yes no",
        "unknown unknown unknown",
        "yes yes no",
    ),
    (
        ["type"],
        {"type": "IntegerField"},
        {"type": "BigIntegerField"},
        "unknown yes no",
        "unknown unknown unknown",
        "yes yes no",
    ),
    (
        ["type"],
        {"type": "BigIntegerField"},
        {"type": "IntegerField"},
        "unknown unknown unknown",
        "unknown unknown unknown",
        "unknown unknown unknown",
    ),
    # The worst of several.
    (
        ["max_length", "null"],
        {},
        {"null": True, "max_length": 10},
        "unknown no no",
        "unknown no unknown",
        "unknown yes no",
    ),
    (
        ["db_collation"],
        {},
        {},
        "unknown unknown unknown",
        "unknown unknown unknown",
        "unknown unknown unknown",
    ),
    (
        ["max_length"],
        {"primary_key": True},
        {"primary_key": True, "max_length": 40},
        "unknown unknown unknown",
        "unknown unknown unknown",
        "unknown unknown unknown",
    ),
]


@pytest.mark.parametrize(("altered", "old", "new", "postgresql", "mysql", "sqlite"), CASES)
def test_alter_field(
    altered: list[str], old: dict[str, Any], new: dict[str, Any], postgresql: str, mysql: str, sqlite: str
) -> None:
    assert judged("postgresql", altered, old, new) == postgresql
    assert judged("mysql", altered, old, new) == mysql
    assert judged("sqlite", altered, old, new) == sqlite


def test_what_is_not_known() -> None:
    assert judged("postgresql", None, {}, {}) == "unknown unknown unknown"
    assert (
        " ".join(judge_alter_field({"altered": [], "old": None, "new": FIELD}, ""))
        == "unknown unknown unknown"
    )
