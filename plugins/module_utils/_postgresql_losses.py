# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restore would throw away: the rows that differ between two databases of a PostgreSQL server.

Whatever cannot be told is ``unknown``, and unknown counts as a loss.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any, BinaryIO

from ansible_collections.runbook.deploy.plugins.module_utils._database import MIGRATION_TABLES
from ansible_collections.runbook.deploy.plugins.module_utils._losses import DJANGO_OWN, compare
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_catalog import TABLES, shown
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_client import (
    Session,
    identifier,
    literal,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

IN_SCHEMAS = """SELECT n.nspname AS schema, c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND n.nspname IN ({schemas})"""
COLUMNS = """SELECT a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type, a.attgenerated <> '' AS generated,
 pg_get_expr(d.adbin, d.adrelid) AS default
 FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attrelid = {place}::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""
KEY = """SELECT a.attname AS name FROM pg_index i CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS k(number, position)
 JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
 WHERE i.indrelid = {place}::regclass AND i.indisprimary ORDER BY k.position"""


class Table:
    """A table of one of the two databases: ``columns`` (name to type and default, generated ones left out), ``key``."""

    def __init__(self, session: Session, schema: str, name: str) -> None:
        self.place = f"{identifier(schema)}.{identifier(name)}"
        place = literal(self.place)
        rows = session.rows(COLUMNS.format(place=place))
        self.columns = {row["name"]: row for row in rows if not row["generated"]}
        self.key = [row["name"] for row in session.rows(KEY.format(place=place))]


def fingerprint(session: Session, table: Table, columns: list[str]) -> Any:
    """Return the number of rows and the sum of their hashes over *columns*: equal ones are taken for the same rows.

    A sum of 64-bit hashes does not depend on the order; two different sets of rows have the same one by an accident of
    one in 2^64.
    """
    row = f"ROW({', '.join(f't.{identifier(name)}' for name in columns)})::text"
    return session.query(
        f"SELECT json_build_array(count(*), coalesce(sum(hashtextextended({row}, 0)::numeric), 0)::text) FROM {table.place} t"
    )


def write_rows(session: Session, table: Table, columns: list[str], target: BinaryIO) -> None:
    """Write a line for each row to *target*: the digest of its key and the digest of *columns*, sorted by the first."""
    key = f"md5(ROW({', '.join(f't.{identifier(name)}' for name in table.key)})::text)"
    row = f"md5(ROW({', '.join(f't.{identifier(name)}' for name in columns)})::text)"
    # By a cursor, so that neither psql nor this process holds a large table in memory.
    session.ask("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    session.ask(
        f"DECLARE found NO SCROLL CURSOR FOR SELECT {key} || ' ' || {row} FROM {table.place} t "
        f'ORDER BY {key} COLLATE "C"'
    )
    while True:
        lines = session.ask("FETCH 50000 FROM found")
        if not lines.strip():
            break
        target.write(lines.encode() + b"\n")
    session.ask("COMMIT")


def table_losses(
    present: Session, backup: Session, schema: str, name: str, places: Mapping[str, str]
) -> dict[str, Any]:
    """Return ``{inserts, updates, deletes}`` of a table that both have, or ``{"unknown": reason}``."""
    new, old = Table(present, schema, name), Table(backup, places.get(schema, schema), name)
    both = [column for column in new.columns if column in old.columns]
    changed = [
        column for column in both if new.columns[column]["type"] != _live(old.columns[column]["type"], places)
    ]
    if changed:
        return {"unknown": f"the type of {', '.join(changed)} changed"}
    for column in (column for column in new.columns if column not in old.columns):
        # A column that a migration has added holds its default; anything else may be somebody's work.
        default = new.columns[column]["default"]
        other = f"{identifier(column)} IS NOT NULL AND {identifier(column)}::text NOT IN ('', '0', 'false')"
        if default:
            other += f" AND {identifier(column)}::text IS DISTINCT FROM ({default})::text"
        found = present.query(f"SELECT count(*) FROM {new.place} WHERE {other}")
        if found:
            return {"unknown": f"{found} rows have a value in the column {column}, which the backup lacks"}
    if not both:
        return {"unknown": "it has no column in common with the backup's"}
    if fingerprint(present, new, both) == fingerprint(backup, old, both):
        return {}
    if not new.key or new.key != old.key:
        return {"unknown": "its rows differ, and it has no key by which they could be told apart"}
    with tempfile.TemporaryFile() as now, tempfile.TemporaryFile() as then:
        write_rows(present, new, both, now)
        write_rows(backup, old, both, then)
        for stream in (now, then):
            stream.seek(0, os.SEEK_SET)
        lines = [(line for line in stream if line.strip()) for stream in (now, then)]
        return compare(lines[0], lines[1])


def _live(text: str, places: Mapping[str, str]) -> str:
    """Return the type *text* with the schemas' names of the live database.

    >>> _live("public_restore_0a1b2c3d.mood", {"public": "public_restore_0a1b2c3d"})
    'public.mood'
    """
    for name, other in places.items():
        text = text.replace(f"{other}.", f"{name}.").replace(f"{identifier(other)}.", f"{identifier(name)}.")
    return text


def _held(backup: Session, places: Mapping[str, str]) -> set[tuple[str, str]]:
    """Return the tables in the schemas *places*, under the names of the live ones."""
    names = {other: name for name, other in places.items()}
    if not names:
        return set()
    found = backup.rows(IN_SCHEMAS.format(schemas=", ".join(literal(other) for other in names)))
    return {(names[row["schema"]], row["name"]) for row in found}


def losses(
    present: Session, backup: Session, framework: str, places: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Return what going from the database of *present* back to that of *backup* would lose, by table.

    :param places: where both are one database: the live schemas' names to those of the schemas that hold the backup.
    :param framework: with ``django`` the rows that migrations themselves write are left out.
    :returns: ``{table: {inserts, updates, deletes}}`` or ``{table: {"unknown": reason}}``, for tables with losses. A table that
        exists in the backup only loses nothing; every row of one that exists now only is an insert.
    """
    known = (
        {(row["schema"], row["name"]) for row in backup.rows(TABLES)}
        if places is None
        else _held(backup, places)
    )
    result: dict[str, dict[str, Any]] = {}
    for row in present.rows(TABLES):
        schema, name = row["schema"], row["name"]
        if name in MIGRATION_TABLES:
            continue
        try:
            if (schema, name) in known:
                found: Mapping[str, Any] = table_losses(present, backup, schema, name, places or {})
            else:
                rows = present.query(f"SELECT count(*) FROM {identifier(schema)}.{identifier(name)}")
                found = {"inserts": rows, "updates": 0, "deletes": 0}
        except Problem as problem:
            found = {"unknown": f"it cannot be compared: {problem.message}"}
        entry = dict(found)
        if framework == "django" and name in DJANGO_OWN and "inserts" in entry:
            entry["inserts"] = 0
        if any(entry.values()):
            result[shown(schema, name)] = entry
    return result
