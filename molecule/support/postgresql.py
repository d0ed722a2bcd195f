# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The PostgreSQL server of a test host, asked with its own clients by its own administrator."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

from machine import Machine, until_empty
from writes import Copy

SIGNALS = "owner_agreements_agreementrisksignal"
# What a database has beside the rows of the application's tables, each with what it says.
OBJECTS = """SELECT coalesce(json_object_agg(name, text), '{}') FROM (
 SELECT 'table ' || oid::regclass::text || ' of ' || relowner::regrole::text AS name, coalesce(relacl::text, '') AS text
  FROM pg_class WHERE relkind IN ('r', 'v') AND relnamespace = 'public'::regnamespace
 UNION ALL SELECT 'view ' || viewname, definition FROM pg_views WHERE schemaname = 'public'
 UNION ALL SELECT 'index ' || indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
 UNION ALL SELECT 'column ' || table_name || '.' || column_name, data_type || ' ' || is_nullable || coalesce(' ' || column_default, '')
  FROM information_schema.columns WHERE table_schema = 'public'
 UNION ALL SELECT 'constraint ' || conrelid::regclass::text || '.' || conname, pg_get_constraintdef(oid)
  FROM pg_constraint WHERE connamespace = 'public'::regnamespace
 UNION ALL SELECT 'trigger ' || tgrelid::regclass::text || '.' || tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
 UNION ALL SELECT 'routine ' || p.oid::regprocedure::text, prosrc FROM pg_proc p WHERE pronamespace = 'public'::regnamespace
  AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = p.oid AND deptype = 'e')
 UNION ALL SELECT 'extension ' || extname, extversion FROM pg_extension
) AS found"""
ITSELF = """SELECT pg_get_userbyid(datdba) || ' ' || pg_encoding_to_char(encoding) || ' ' || datcollate || ' ' || coalesce(datacl::text, '')
 || ' ' || coalesce((SELECT setconfig::text FROM pg_db_role_setting s WHERE s.setdatabase = d.oid AND setrole = 0), '')
 FROM pg_database d WHERE datname = '{name}'"""


class Server:
    """The server in the host `site`; `name` is the application's database."""

    def __init__(self, site: Machine, name: str = "goexplorer") -> None:
        self.site = site
        self.name = name

    def sql(self, statement: str, database: str = "") -> str:
        """What psql prints; the statement has to succeed."""
        words = ("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database or self.name)
        return self.site.run(*words, user="postgres", text=statement).strip()

    def json(self, statement: str, database: str = "") -> Any:
        """The JSON value that `statement` answers with."""
        return json.loads(self.sql(statement, database))

    def databases(self) -> set[str]:
        """Every database, without those that each server has."""
        listed = self.sql("SELECT datname FROM pg_database", "postgres").split()
        return set(listed) - {"postgres", "template0", "template1"}

    def kept(self) -> list[str]:
        """The former databases that restores have put aside, oldest first."""
        return sorted(name for name in self.databases() if name.startswith(f"{self.name}_broken_"))

    def strangers(self) -> list[str]:
        """Databases that nobody should have left behind: scratch ones, halves of restores."""
        return sorted(self.databases() - {self.name, *self.kept()})

    def migrations(self) -> list[str]:
        """The applied migrations, in order."""
        return self.sql("SELECT app || '.' || name FROM django_migrations ORDER BY id").splitlines()

    def objects(self, database: str = "") -> dict[str, str]:
        """Everything that is no row: tables, columns, views, indexes, triggers, routines, with their owners and rights."""
        found = self.json(OBJECTS, database)
        found["database"] = self.sql(ITSELF.format(name=database or self.name), "postgres")
        return found

    def counts(self, *tables: str) -> dict[str, int]:
        """The rows of `tables`; -1 for one that is not there."""
        present = set(self.sql("SELECT tablename FROM pg_tables").split())
        return {
            table: int(self.sql(f"SELECT count(*) FROM {table}")) if table in present else -1
            for table in tables
        }

    def copy(self, database: str = "") -> Copy:
        """What the writers left in a database."""
        name = database or self.name
        query = "SELECT coalesce(json_agg(details), '[]') FROM {} WHERE details LIKE 'writer %'"
        return Copy(
            name,
            *(self.json(query.format(table), name) for table in (SIGNALS, "writer_deletions")),
        )

    def backup(self, path: str) -> Copy:
        """What the writers left in the dump in the directory `path`, restored by the server's own programs."""
        name = "test_of_a_backup"
        self.sql(f"CREATE DATABASE {name} TEMPLATE template0", "postgres")
        try:
            load = f"zstd -q -d -c {path}/*.zst | runuser -u postgres -- pg_restore --exit-on-error -d {name}"
            self.site.run("bash", "-c", f"set -e -o pipefail; {load}")
            return self.copy(name)._replace(name=path)
        finally:
            self.sql(f"DROP DATABASE {name}", "postgres")

    @contextlib.contextmanager
    def locked(self, table: str) -> Iterator[None]:
        """Hold a table so that nobody, not even a dump, can read it."""
        words = [
            "docker",
            "exec",
            "--interactive",
            "--user=postgres",
            self.site.container,
            "psql",
            "-X",
            "-q",
            "-d",
            self.name,
        ]
        holder = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
        )
        try:
            holder.stdin.write(f"BEGIN; LOCK TABLE {table};\n")
            holder.stdin.flush()
            held = f"SELECT 'held' FROM pg_locks WHERE relation = '{table}'::regclass AND mode = 'AccessExclusiveLock' AND granted"
            assert until_empty(lambda: [] if self.sql(held) else ["not held"], 10) == []
            yield
        finally:
            holder.kill()
            holder.communicate()
