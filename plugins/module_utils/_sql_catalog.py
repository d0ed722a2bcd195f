# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an SQL gate asks a database of itself: tables, indexes, connections, slow queries; one statement each.

PostgreSQL: system catalogues and pg_stat_activity. MySQL and MariaDB: information_schema, and SHOW GLOBAL STATUS, which
both have and everybody may read. SQLite: sqlite_master and the table-valued pragmas.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from ansible_collections.runbook.deploy.plugins.module_utils import _mysql_client, _postgresql_client

# Sessions of clients, except for our own. Of other users' sessions an ordinary role sees no kind, but whose they are; the
# server's own workers are nobody's.
_OTHERS = (
    "usesysid IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend' AND pid <> pg_catalog.pg_backend_pid() "
    f"AND application_name IS DISTINCT FROM '{_postgresql_client.APPLICATION}'"
)


def parts(name: str) -> tuple[str, str]:
    """Return schema ("" where none is named) and table of *name*."""
    schema, _dot, table = name.rpartition(".")
    return schema, table


def literal(engine: str, text: str) -> str:
    """Return *text* quoted as a string."""
    if engine == "postgresql":
        return _postgresql_client.literal(text)
    if engine == "mysql":
        return _mysql_client.literal(text)
    return "'" + text.replace("'", "''") + "'"


def table_facts(engine: str, name: str) -> str:
    """Return the statement that answers rows of ``kind`` (table, column, index), ``name`` and ``detail``.

    The detail of a table is its quoted name; of an index ``invalid`` where queries cannot use it.
    """
    schema, table = parts(name)
    wanted = literal(engine, table)
    if engine == "postgresql":
        place = (
            f"n.nspname = {literal(engine, schema)}" if schema else "pg_catalog.pg_table_is_visible(c.oid)"
        )
        return f"""WITH found AS (
  SELECT c.oid, c.relkind, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) AS called
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relname = {wanted} AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND {place})
SELECT 'table' AS kind, relkind::text AS name, called AS detail FROM found
UNION ALL SELECT 'column', a.attname::text, '' FROM pg_catalog.pg_attribute a JOIN found ON a.attrelid = found.oid
  WHERE a.attnum > 0 AND NOT a.attisdropped
UNION ALL SELECT 'index', i.relname::text, CASE WHEN x.indisvalid THEN '' ELSE 'invalid' END
  FROM pg_catalog.pg_index x JOIN found ON x.indrelid = found.oid JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid"""
    if engine == "mysql":
        place = literal(engine, schema) if schema else "DATABASE()"
        where = f"WHERE TABLE_SCHEMA = {place} AND TABLE_NAME = {wanted}"
        called = ".".join(_mysql_client.identifier(part) for part in (schema, table) if part)
        return (
            f"SELECT 'table' AS kind, TABLE_TYPE AS name, {literal(engine, called)} AS detail FROM information_schema.TABLES {where} "
            f"UNION ALL SELECT 'column', COLUMN_NAME, '' FROM information_schema.COLUMNS {where} "
            f"UNION ALL SELECT DISTINCT 'index', INDEX_NAME, '' FROM information_schema.STATISTICS {where}"
        )
    wanted = literal(engine, name)
    called = literal(engine, '"' + name.replace('"', '""') + '"')
    return (
        f"SELECT 'table' AS kind, type AS name, {called} AS detail FROM sqlite_master "
        f"WHERE type IN ('table', 'view') AND name = {wanted} COLLATE NOCASE "
        f"UNION ALL SELECT 'column', name, '' FROM pragma_table_info({wanted}) "
        f"UNION ALL SELECT 'index', name, '' FROM pragma_index_list({wanted})"
    )


def index_facts(engine: str, name: str) -> str:
    """Return the statement that answers rows of the table that has the index *name*, and ``invalid`` or ""."""
    schema, index = parts(name)
    wanted = literal(engine, index)
    if engine == "postgresql":
        place = (
            f"n.nspname = {literal(engine, schema)}" if schema else "pg_catalog.pg_table_is_visible(i.oid)"
        )
        return (
            "SELECT t.relname, CASE WHEN x.indisvalid THEN '' ELSE 'invalid' END FROM pg_catalog.pg_index x "
            "JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid JOIN pg_catalog.pg_class t ON t.oid = x.indrelid "
            f"JOIN pg_catalog.pg_namespace n ON n.oid = i.relnamespace WHERE i.relname = {wanted} AND {place}"
        )
    if engine == "mysql":
        place = literal(engine, schema) if schema else "DATABASE()"
        return f"SELECT DISTINCT TABLE_NAME, '' FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = {place} AND INDEX_NAME = {wanted}"
    return (
        "SELECT tbl_name, '' FROM sqlite_master "
        f"WHERE type = 'index' AND name = {literal(engine, name)} COLLATE NOCASE"
    )


# MySQL's figures are asked for one by one, as MySQL and MariaDB keep them in different places.
CONNECTED = "SHOW GLOBAL STATUS LIKE 'Threads_connected'"
MOST_CONNECTIONS = "SELECT @@GLOBAL.max_connections"
POSTGRESQL_CONNECTIONS = (
    f"SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE datname = current_database() AND {_OTHERS}"
)
# What is kept for superusers is no room for the application.
POSTGRESQL_POOL = (
    "SELECT count(*), current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int "
    f"FROM pg_catalog.pg_stat_activity WHERE {_OTHERS}"
)


def slow_queries(engine: str, seconds: float) -> str:
    """Return the statement that answers how many queries have run longer than *seconds*, in which sessions, and:

    PostgreSQL: how many sessions hide what they do; MySQL: how many sessions this user sees, itself included.
    """
    if engine == "postgresql":
        slow = f"state = 'active' AND query_start < clock_timestamp() - make_interval(secs => {seconds})"
        return (
            f"SELECT count(*) FILTER (WHERE {slow}), string_agg(pid::text, ', ') FILTER (WHERE {slow}), "
            "count(*) FILTER (WHERE state IS NULL) "
            f"FROM pg_catalog.pg_stat_activity WHERE datname = current_database() AND {_OTHERS}"
        )
    # Whole seconds, rounded down.
    slow = f"COMMAND IN ('Query', 'Execute') AND TIME >= {seconds} AND ID <> CONNECTION_ID()"
    return (
        f"SELECT COUNT(CASE WHEN {slow} THEN 1 END), GROUP_CONCAT(CASE WHEN {slow} THEN ID END), "
        "COUNT(CASE WHEN COMMAND <> 'Daemon' AND USER NOT IN ('system user', 'event_scheduler') THEN 1 END) "
        "FROM information_schema.PROCESSLIST"
    )
