# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A snapshot of a PostgreSQL database: every definition and the fingerprint of every table's rows.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_catalog import (
    TABLES,
    read_catalog,
    shown,
)
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_client import Session
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_losses import Table, fingerprint

# The place of a column does not count: PostgreSQL adds one at the end only, also where it was in the middle before.
COLUMNS = """SELECT n.nspname || '.' || c.relname AS place, a.attname AS name,
 format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ', not null' ELSE ', null' END
 || ', default ' || coalesce(pg_get_expr(d.adbin, d.adrelid), 'none') || ', identity ' || a.attidentity::text
 || ', generated ' || a.attgenerated::text || ', collation ' || a.attcollation::text AS text
 FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
 AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' ORDER BY 1, 2"""


def snapshot(session: Session) -> dict[str, Any]:
    """Return the snapshot (see ``_compare.py``) of the session's database."""
    schema = dict(read_catalog(session))
    for row in session.rows(COLUMNS):
        schema[f"column {row['place']}.{row['name']}"] = row["text"]
    rows = {}
    for row in session.rows(TABLES):
        schema[f"table {row['schema']}.{row['name']}"] = "table"
        table = Table(session, row["schema"], row["name"])
        columns = sorted(table.columns)
        number, total = fingerprint(session, table, columns) if columns else (0, "0")
        rows[shown(row["schema"], row["name"])] = f"{number} rows, {total}"
    return {"schema": schema, "rows": rows}
