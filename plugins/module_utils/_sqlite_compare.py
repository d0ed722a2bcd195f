# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A snapshot of an SQLite database: every definition and the fingerprint of every table's rows.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._compare import fingerprint
from ansible_collections.runbook.deploy.plugins.module_utils._sqlite import identifier, reading, table_names

SPACE = re.compile(r"\s+")


def clauses(sql: str, word: str) -> list[str]:
    """Return the clauses of the table definition *sql* that begin with *word* and a parenthesis, sorted."""
    found = []
    for match in re.finditer(rf"\b{word}\s*\(", sql, re.IGNORECASE):
        depth = 0
        for position in range(match.end() - 1, len(sql)):
            depth += {"(": 1, ")": -1}.get(sql[position], 0)
            if depth == 0:
                found.append(SPACE.sub(" ", sql[match.start() : position + 1]).replace('"', ""))
                break
    return sorted(found)


def table_schema(connection: sqlite3.Connection, table: str) -> dict[str, str]:
    """Return the definitions that belong to *table*, by readable name. The order of columns does not count: copying
    a table, which SQLite needs for many changes, may alter it."""
    result = {}
    quoted = identifier(table)
    for _cid, name, kind, notnull, default, key, hidden in connection.execute(
        f"PRAGMA table_xinfo({quoted})"
    ):
        words = [
            kind.lower(),
            "not null" if notnull else "null",
            f"default {default}",
            f"key {key}",
            f"hidden {hidden}",
        ]
        result[f"column {table}.{name}"] = ", ".join(words)
    for _number, name, unique, origin, partial in connection.execute(f"PRAGMA index_list({quoted})"):
        columns = [row[2] for row in connection.execute(f"PRAGMA index_info({identifier(name)})")]
        text = connection.execute(
            "SELECT sql FROM sqlite_master WHERE type = 'index' AND name = ?", (name,)
        ).fetchone()
        where = (
            re.search(r"\bWHERE\b.*", text[0], re.IGNORECASE | re.DOTALL)
            if text and text[0] and partial
            else None
        )
        shown = name if origin == "c" else f"of {table} ({', '.join(map(str, columns))})"
        result[f"index {shown}"] = (
            f"{'unique ' if unique else ''}on {columns} {SPACE.sub(' ', where.group(0)) if where else ''}".strip()
        )
    keys = [tuple(map(str, row[2:])) for row in connection.execute(f"PRAGMA foreign_key_list({quoted})")]
    result[f"foreign keys of {table}"] = str(sorted(keys))
    sql = connection.execute(
        "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)
    ).fetchone()[0]
    result[f"checks of {table}"] = str(clauses(sql, "CHECK"))
    return result


def snapshot(path: Path) -> dict[str, Any]:
    """Return the snapshot (see ``_compare.py``) of the database file *path*, which nobody writes."""
    schema: dict[str, str] = {}
    rows: dict[str, str] = {}
    with reading(path, mode="ro") as connection:
        for table in table_names(connection):
            schema[f"table {table}"] = "table"
            schema.update(table_schema(connection, table))
            # By name, because the order of columns does not count.
            columns = sorted(
                row[1]
                for row in connection.execute(f"PRAGMA table_xinfo({identifier(table)})")
                if row[6] == 0
            )
            listed = ", ".join(identifier(name) for name in columns)
            rows[table] = fingerprint(
                connection.execute(f"SELECT {listed} FROM {identifier(table)} NOT INDEXED")
            )
        for kind, name, sql in connection.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE type IN ('view', 'trigger')"
        ):
            schema[f"{kind} {name}"] = SPACE.sub(" ", sql or "")
    return {"schema": schema, "rows": rows}
