# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restore would throw away: the rows that differ between two databases of a MySQL or MariaDB server.

Whatever cannot be told is ``unknown``, and unknown counts as a loss.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._command import run
from ansible_collections.runbook.deploy.plugins.module_utils._database import MIGRATION_TABLES
from ansible_collections.runbook.deploy.plugins.module_utils._losses import DJANGO_OWN, compare
from ansible_collections.runbook.deploy.plugins.module_utils._mysql_client import Client, identifier, literal
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Types whose values are bytes: written as hexadecimal digits. The others are compared as texts.
BYTES = (
    "binary",
    "varbinary",
    "tinyblob",
    "blob",
    "mediumblob",
    "longblob",
    "bit",
    "geometry",
    "point",
    "linestring",
    "polygon",
    "multipoint",
    "multilinestring",
    "multipolygon",
    "geometrycollection",
    "geomcollection",
    "vector",
)
TABLES = "FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') ORDER BY TABLE_NAME"


class Table(NamedTuple):
    """The ordinary columns of a table (name to type, bytes, default), and the columns of its primary key."""

    columns: dict[str, dict[str, Any]]
    key: list[str]


def tables_of(client: Client, database: str) -> dict[str, Table]:
    """Return what the tables and views of *database* are made of."""
    rows = client.rows(
        {"r": "TABLE_NAME", "n": "COLUMN_NAME", "t": "COLUMN_TYPE", "d": "DATA_TYPE", "v": "COLUMN_DEFAULT", "k": "COLUMN_KEY"},
        "FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() AND COALESCE(GENERATION_EXPRESSION, '') = '' "
        "ORDER BY TABLE_NAME, ORDINAL_POSITION",
        database,
    )  # fmt: skip
    result: dict[str, Table] = {}
    for row in rows:
        table = result.setdefault(row["r"], Table({}, []))
        table.columns[row["n"]] = {"type": row["t"], "bytes": row["d"] in BYTES, "default": row["v"]}
        if row["k"] == "PRI":
            table.key.append(row["n"])
    return result


def text(names: Sequence[str], columns: dict[str, dict[str, Any]]) -> str:
    """Return the expression that writes the columns *names* of a row as one text, different for different rows."""
    parts = []
    for name in names:
        quoted = identifier(name)
        parts.append(
            f"IFNULL(HEX({quoted}), 'NULL')"
            if columns[name]["bytes"]
            else f"QUOTE(CAST({quoted} AS CHAR CHARACTER SET utf8mb4))"
        )
    return f"CONCAT_WS('|', {', '.join(parts)})"


def fingerprint(
    client: Client, database: str, table: str, shape: Table, names: Sequence[str] | None = None
) -> tuple[int, str]:
    """Return the number of rows of *table* and the sum of the first 48 bits of their digests over *names* (None: all columns).

    SHA2 as MySQL has no MD5 since 9.6.
    """
    row = text(sorted(shape.columns) if names is None else names, shape.columns)
    found = client.rows(
        {
            "n": "COUNT(*)",
            "s": f"COALESCE(CAST(SUM(CAST(CONV(LEFT(SHA2({row}, 256), 12), 16, 10) AS UNSIGNED)) AS CHAR), '0')",
        },
        f"FROM {identifier(table)}",
        database,
    )[0]
    return int(found["n"]), str(found["s"])


def write_rows(
    client: Client, database: str, table: str, shape: Table, names: Sequence[str], target: BinaryIO
) -> None:
    """Write a line for each row to *target*: the digest of its key and the digest of *names*, sorted by the first."""
    columns, key = shape
    sql = f"SELECT SHA2({text(key, columns)}, 256) COLLATE utf8mb4_bin AS k, SHA2({text(names, columns)}, 256) FROM {identifier(table)} ORDER BY k"
    with client.options() as options:
        done = run(
            [*client.mysql(options), "-e", sql, database],
            cwd="/",
            user=client.login.os_user,
            timeout=3600,
            secrets=client.secrets,
        )
    if done.rc != 0:
        raise client.problem(database, done.stderr, done.timed_out)
    target.write(done.stdout.encode())


def table_losses(
    client: Client, present: str, backup: str, table: str, shapes: tuple[Table, Table]
) -> dict[str, Any]:
    """Return ``{inserts, updates, deletes}`` of a table that both databases have, or ``{"unknown": reason}``.

    :param shapes: the table in *present*, and in *backup*.
    """
    (new, key), (old, old_key) = shapes
    both = [name for name in new if name in old]
    changed = [name for name in both if new[name]["type"] != old[name]["type"]]
    if changed:
        return {"unknown": f"the type of {', '.join(changed)} changed"}
    for name in (name for name in new if name not in old):
        quoted = identifier(name)
        # A column that a migration has added holds its default; anything else may be somebody's work.
        default = str(new[name]["default"] or "").strip("'")
        count = client.value(
            f"SELECT COUNT(*) FROM {identifier(table)} WHERE {quoted} IS NOT NULL AND CAST({quoted} AS CHAR) NOT IN ('', '0', {literal(default)})",
            present,
        )
        if count != "0":
            return {"unknown": f"{count} rows have a value in the column {name}, which the backup lacks"}
    if not both:
        return {"unknown": "it has no column in common with the backup's"}
    if fingerprint(client, present, table, shapes[0], both) == fingerprint(
        client, backup, table, shapes[1], both
    ):
        return {}
    if not key or key != old_key:
        return {"unknown": "its rows differ, and it has no key by which they could be told apart"}
    with tempfile.TemporaryFile() as now, tempfile.TemporaryFile() as then:
        write_rows(client, present, table, shapes[0], both, now)
        write_rows(client, backup, table, shapes[1], both, then)
        for stream in (now, then):
            stream.seek(0, os.SEEK_SET)
        lines = [(line for line in stream if line.strip()) for stream in (now, then)]
        return dict(compare(lines[0], lines[1]))


def losses(client: Client, present: str, backup: str, framework: str) -> dict[str, dict[str, Any]]:
    """Return what going from the database *present* back to *backup* would lose, by table; see ``_losses.py``."""
    known = {row["n"] for row in client.rows({"n": "TABLE_NAME"}, TABLES, backup)}
    new, old = tables_of(client, present), tables_of(client, backup)
    nothing = Table({}, [])
    result: dict[str, dict[str, Any]] = {}
    for row in client.rows({"n": "TABLE_NAME"}, TABLES, present):
        table = row["n"]
        if table in MIGRATION_TABLES:
            continue
        try:
            if table in known:
                shapes = new.get(table, nothing), old.get(table, nothing)
                found = table_losses(client, present, backup, table, shapes)
            else:
                count = int(client.value(f"SELECT COUNT(*) FROM {identifier(table)}", present))
                found = {"inserts": count, "updates": 0, "deletes": 0}
        except Problem as problem:
            found = {"unknown": f"it cannot be compared: {problem.message}"}
        if framework == "django" and table in DJANGO_OWN and "inserts" in found:
            found["inserts"] = 0
        if any(found.values()):
            result[table] = found
    return result
