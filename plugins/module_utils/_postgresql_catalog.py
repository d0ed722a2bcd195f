# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a PostgreSQL database holds, asked of its own catalog: tables, rows, migrations, definitions, rights.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._database import ALEMBIC
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_client import (
    Client,
    Session,
    identifier,
    literal,
)

# Schemas that a restore has put aside or made beside the live ones; the same for pg_dump, whose patterns are not those of SQL.
ASIDE = "_(restore_[0-9a-f]{8}|broken_[0-9]{8}t[0-9]{6})$"
ASIDE_PATTERNS = ("*_restore_" + "[0-9a-f]" * 8, "*_broken_" + "[0-9]" * 8 + "t" + "[0-9]" * 6)
# Tables of users, without those that belong to an extension: pg_dump leaves their rows out.
_OF_USERS = f"n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' AND n.nspname !~ '{ASIDE}'"
TABLES = f"""SELECT n.nspname AS schema, c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND {_OF_USERS}
 AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
 ORDER BY 1, 2"""


def _rights(owner: str, acl: str, kind: str) -> str:
    """Return SQL for an object's owner and rights; without a list of its own an object has the default ones."""
    granted = f"SELECT string_agg(a::text, ',' ORDER BY a::text) FROM unnest(coalesce({acl}, acldefault(({kind})::\"char\", {owner}))) a"
    return f"pg_get_userbyid({owner}) || ' ' || coalesce(({granted}), '')"


# What there is beside rows, each as (kind, name, digest of its definition).
CATALOG = f"""SELECT kind, name, md5(text) AS digest FROM (
 SELECT 'extension' AS kind, extname::text AS name, '' AS text FROM pg_extension
 UNION ALL SELECT 'view', n.nspname || '.' || c.relname, pg_get_viewdef(c.oid) FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('v', 'm') AND {_OF_USERS}
  AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
 UNION ALL SELECT 'trigger', n.nspname || '.' || c.relname || '.' || t.tgname, pg_get_triggerdef(t.oid) FROM pg_trigger t
  JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT t.tgisinternal AND {_OF_USERS}
 UNION ALL SELECT 'routine', n.nspname || '.' || p.oid::regprocedure::text, p.prosrc FROM pg_proc p
  JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {_OF_USERS}
  AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
 UNION ALL SELECT 'index', n.nspname || '.' || c.relname, pg_get_indexdef(c.oid) FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'i' AND {_OF_USERS}
 UNION ALL SELECT 'constraint', n.nspname || '.' || coalesce(c.relname, '') || '.' || k.conname, pg_get_constraintdef(k.oid)
  FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace LEFT JOIN pg_class c ON c.oid = k.conrelid WHERE {_OF_USERS}
 UNION ALL SELECT 'sequence', n.nspname || '.' || c.relname, '' FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'S' AND {_OF_USERS}
 UNION ALL SELECT 'rights', n.nspname || '.' || c.relname, {_rights("relowner", "relacl", "CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END")}
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND {_OF_USERS}
  AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
 UNION ALL SELECT 'rights', n.nspname || '.' || p.oid::regprocedure::text, {_rights("proowner", "proacl", "'f'")}
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {_OF_USERS}
  AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
 UNION ALL SELECT 'rights', n.nspname, {_rights("nspowner", "nspacl", "'n'")} FROM pg_namespace n WHERE {_OF_USERS}
) AS found ORDER BY 1, 2"""
# What CREATE DATABASE must be told to make another like the database {name}. The provider of its collations is known since
# version 15, and has had its locale under another name before 17: read by name, so that one query serves all of them.
SHAPE = """SELECT pg_encoding_to_char(d.encoding) AS encoding, d.datcollate AS collate, d.datctype AS ctype,
 pg_get_userbyid(d.datdba) AS owner, d.oid::text AS oid, d.datconnlimit AS connections, t.spcname AS tablespace,
 shobj_description(d.oid, 'pg_database') AS comment, to_jsonb(d) ->> 'datlocprovider' AS provider,
 coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale') AS locale, to_jsonb(d) ->> 'daticurules' AS rules
 FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace WHERE d.datname = {name}"""
# Extensions of this database that only a superuser may create, as their control files say.
CLOSED = """SELECT e.extname AS name FROM pg_extension e JOIN pg_available_extension_versions v
 ON v.name = e.extname AND v.version = e.extversion
 WHERE e.extname <> 'plpgsql' AND v.superuser AND NOT coalesce((to_jsonb(v) ->> 'trusted')::boolean, false) ORDER BY 1"""
PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}


def locale_clause(shape: Mapping[str, Any]) -> str:
    """Return what CREATE DATABASE must be told of the provider of collations; "" for a server that has but one.

    >>> locale_clause({"provider": "c"})
    ' LOCALE_PROVIDER libc'
    """
    provider = PROVIDERS.get(shape.get("provider") or "")
    if provider is None:
        return ""
    result = f" LOCALE_PROVIDER {provider}"
    if shape.get("locale"):
        result += f" {provider.upper()}_LOCALE {literal(shape['locale'])}"
    if shape.get("rules"):
        result += f" ICU_RULES {literal(shape['rules'])}"
    return result


def read_applied(session: Client | Session, framework: str) -> list[list[str]] | None:
    """Return the applied migrations; None for a framework without a table, or when the table is missing."""
    table = {"django": "django_migrations", ALEMBIC: "alembic_version"}.get(framework)
    if table is None:
        return None
    found = session.rows(
        f"SELECT n.nspname AS schema FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relname = "
        f"{literal(table)} AND c.relkind IN ('r', 'p', 'v') AND {_OF_USERS} ORDER BY n.nspname = 'public' DESC, 1 LIMIT 1"
    )
    if not found:
        return None
    place = f"{identifier(found[0]['schema'])}.{identifier(table)}"
    columns, order = (
        ("app, name", "id")
        if framework == "django"
        else (f"'{ALEMBIC}' AS app, version_num AS name", "version_num")
    )
    rows = session.rows(f"SELECT {columns} FROM {place} ORDER BY {order}")
    return [[str(row["app"]), str(row["name"])] for row in rows]


def shown(schema: str, name: str) -> str:
    """Return a table's name for people: without the schema that everybody uses."""
    return name if schema == "public" else f"{schema}.{name}"


def count_rows(session: Client | Session, batch: int = 100) -> dict[str, int]:
    """Return the rows of each table of users."""
    result: dict[str, int] = {}
    tables = session.rows(TABLES)
    for start in range(0, len(tables), batch):
        parts = [
            f"SELECT {literal(shown(row['schema'], row['name']))} AS t, count(*) AS n "
            f"FROM {identifier(row['schema'])}.{identifier(row['name'])}"
            for row in tables[start : start + batch]
        ]
        found = session.rows(" UNION ALL ".join(parts))
        result.update({row["t"]: row["n"] for row in found})
    return result


def read_catalog(session: Client | Session) -> dict[str, str]:
    """Return the digest of the definition of everything that a database has beside rows, by ``kind name``."""
    return {f"{row['kind']} {row['name']}": row["digest"] for row in session.rows(CATALOG)}
