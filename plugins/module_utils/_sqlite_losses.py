# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restore would throw away: the rows that differ between two SQLite databases.

Whatever cannot be told is ``unknown``, and unknown counts as a loss.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._database import MIGRATION_TABLES
from ansible_collections.runbook.deploy.plugins.module_utils._sqlite import (
    LOCK_TIMEOUT,
    identifier,
    table_names,
)

# Rows that `migrate` itself adds for new models (create_contenttypes and create_permissions, handlers of Django's
# post_migrate signal): adding such rows is no write of a user's. Changing or removing one is.
DJANGO_OWN = frozenset(("django_content_type", "auth_permission"))
# The names of the row number, of which a column may take some (https://www.sqlite.org/rowidtable.html).
ROWID = ("rowid", "_rowid_", "oid")
# For messages: no table is concerned, but the whole.
DATABASE = "(database)"


class Table(NamedTuple):
    """``columns``: name to default expression (None: no default); ``key``: columns, or a name of the row number."""

    columns: dict[str, str | None]
    key: tuple[str, ...]


def table(connection: sqlite3.Connection, schema: str, name: str) -> Table:
    """Return the columns and the key of the table *name* in the attached database *schema*."""
    rows = connection.execute(f"PRAGMA {schema}.table_xinfo({identifier(name)})").fetchall()
    # hidden: 0 for ordinary columns; 2 and 3 for generated ones, which follow from the others.
    columns = {row[1]: row[4] for row in rows if row[6] == 0}
    primary = sorted((row for row in rows if row[5]), key=lambda row: row[5])
    key = tuple(row[1] for row in primary)
    if len(primary) == 1 and primary[0][2].upper() == "INTEGER":
        return Table(columns, key)
    if primary and all(row[3] for row in primary):
        return Table(columns, key)
    # A key whose columns may be NULL identifies nothing, the row number does.
    for alias in ROWID:
        if alias not in {column.lower() for column in columns}:
            with contextlib.suppress(sqlite3.OperationalError):
                connection.execute(f"SELECT {alias} FROM {schema}.{identifier(name)} LIMIT 1").fetchone()
                return Table(columns, (alias,))
    return Table(columns, key)


def count(connection: sqlite3.Connection, sql: str) -> int:
    """Return the number that *sql* answers."""
    return connection.execute(sql).fetchone()[0]


def table_losses(connection: sqlite3.Connection, name: str) -> dict[str, Any]:
    """Return ``{inserts, updates, deletes}`` of the table *name* from schema ``backup`` to schema ``present``.

    :returns: ``{"unknown": reason}`` where they cannot be counted.
    """
    old, new = table(connection, "backup", name), table(connection, "present", name)
    if old.key != new.key or not new.key:
        return {"unknown": f"its key changed from {', '.join(old.key)} to {', '.join(new.key)}"}
    quoted = identifier(name)
    present, backup = f"present.{quoted} AS p", f"backup.{quoted} AS b"
    same = " AND ".join(f"p.{identifier(part)} = b.{identifier(part)}" for part in new.key)
    both = f"FROM {present} CROSS JOIN {backup} ON {same}"
    inserts = count(
        connection, f"SELECT count(*) FROM {present} WHERE NOT EXISTS (SELECT 1 FROM {backup} WHERE {same})"
    )
    deletes = count(
        connection, f"SELECT count(*) FROM {backup} WHERE NOT EXISTS (SELECT 1 FROM {present} WHERE {same})"
    )
    # Bytes are compared, not meanings: a column's own collation may hold 'a' and 'A' to be equal, and 1 equals 1.0.
    changed = " OR ".join(
        f"p.{column} COLLATE BINARY IS NOT b.{column} OR typeof(p.{column}) IS NOT typeof(b.{column})"
        for column in (identifier(column) for column in new.columns if column in old.columns)
    )
    updates = count(connection, f"SELECT count(*) {both} WHERE {changed}") if changed else 0
    for column, default in new.columns.items():
        if column not in old.columns:
            # A column that a migration has added holds its default; anything else may be somebody's work.
            filled = f"p.{identifier(column)}"
            plain = f" AND {filled} IS NOT ({default})" if default else ""
            other = count(
                connection,
                f"SELECT count(*) {both} WHERE {filled} IS NOT NULL AND {filled} IS NOT '' AND {filled} IS NOT 0{plain}",
            )
            if other:
                return {
                    "unknown": f"{other} rows have a value in the column {column}, which the backup lacks"
                }
    return {"inserts": inserts, "updates": updates, "deletes": deletes}


def losses(present: str, backup: str, framework: str) -> dict[str, dict[str, Any]]:
    """Return what going from the database *present* back to *backup* would lose, for each table with losses.

    :param present: the URI of the database, or of a copy of it; :param backup: the URI of the backup.
    :param framework: with ``django`` the rows that migrations themselves write are left out.
    :returns: ``{table: {inserts, updates, deletes}}`` or ``{table: {"unknown": reason}}``. A table that exists in
        the backup only loses nothing; every row of one that exists now only is an insert.
    """
    connection = sqlite3.connect(":memory:", uri=True, timeout=LOCK_TIMEOUT, isolation_level=None)
    try:
        connection.text_factory = lambda value: value.decode("utf-8", "surrogateescape")
        connection.execute("ATTACH ? AS present", (present,))
        connection.execute("ATTACH ? AS backup", (backup,))
        # One view of a database that may be in use.
        connection.execute("BEGIN")
        known = set(table_names(connection, "backup"))
        result: dict[str, dict[str, Any]] = {}
        for name in table_names(connection, "present"):
            if name in MIGRATION_TABLES:
                continue
            try:
                if name in known:
                    found = table_losses(connection, name)
                else:
                    rows = count(connection, f"SELECT count(*) FROM present.{identifier(name)} NOT INDEXED")
                    found = {"inserts": rows, "updates": 0, "deletes": 0}
            except sqlite3.OperationalError as error:
                found = {"unknown": f"it cannot be compared: {error}"}
            if framework == "django" and name in DJANGO_OWN and "inserts" in found:
                found["inserts"] = 0
            if any(found.values()):
                result[name] = found
        return result
    except sqlite3.Error as error:
        return {DATABASE: {"unknown": f"it cannot be compared: {error}"}}
    finally:
        connection.close()
