# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The MariaDB server of a test host, asked with its own clients by its own administrator."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from machine import Machine, until_empty
from writes import Copy

# What a database has beside rows, each with what it says; AUTO_INCREMENT is left out, because rows move it.
OBJECTS = (
    "SELECT CONCAT('table ', TABLE_NAME), CONCAT_WS(' ', TABLE_TYPE, ENGINE, TABLE_COLLATION) FROM information_schema.TABLES "
    "WHERE TABLE_SCHEMA = '{0}'",
    "SELECT CONCAT('column ', TABLE_NAME, '.', COLUMN_NAME), CONCAT_WS(' ', ORDINAL_POSITION, COLUMN_TYPE, IS_NULLABLE, COLUMN_DEFAULT, "
    "EXTRA, COLLATION_NAME) FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = '{0}'",
    "SELECT CONCAT('index ', TABLE_NAME, '.', INDEX_NAME, '.', SEQ_IN_INDEX), CONCAT_WS(' ', COLUMN_NAME, NON_UNIQUE) "
    "FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = '{0}'",
    "SELECT CONCAT('constraint ', TABLE_NAME, '.', CONSTRAINT_NAME), CONSTRAINT_TYPE FROM information_schema.TABLE_CONSTRAINTS "
    "WHERE TABLE_SCHEMA = '{0}'",
    "SELECT CONCAT('trigger ', TRIGGER_NAME), CONCAT_WS(' ', ACTION_TIMING, EVENT_MANIPULATION, EVENT_OBJECT_TABLE, ACTION_STATEMENT) "
    "FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = '{0}'",
    "SELECT CONCAT('view ', TABLE_NAME), REPLACE(VIEW_DEFINITION, '{0}', 'DATABASE') FROM information_schema.VIEWS WHERE TABLE_SCHEMA = '{0}'",
    "SELECT CONCAT('routine ', ROUTINE_NAME), CONCAT_WS(' ', DEFINER, ROUTINE_DEFINITION) FROM information_schema.ROUTINES "
    "WHERE ROUTINE_SCHEMA = '{0}'",
    "SELECT CONCAT('event ', EVENT_NAME), CONCAT_WS(' ', STATUS, EVENT_DEFINITION) FROM information_schema.EVENTS WHERE EVENT_SCHEMA = '{0}'",
    "SELECT CONCAT('database'), CONCAT_WS(' ', DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME) FROM information_schema.SCHEMATA "
    "WHERE SCHEMA_NAME = '{0}'",
)
OWN = {"information_schema", "mysql", "performance_schema", "sys"}


class Server:
    """The server in the host `site`; `name` is the application's database."""

    def __init__(self, site: Machine, name: str = "leadbook") -> None:
        self.site = site
        self.name = name

    def rows(self, statement: str, database: str = "") -> list[list[str]]:
        """The rows that the server's client prints; the statement has to succeed."""
        words = ("mariadb", "--batch", "--raw", "--skip-column-names", database or self.name)
        out = self.site.run(*words, text=statement)
        return [line.split("\t") for line in out.splitlines()]

    def sql(self, statement: str, database: str = "") -> str:
        """The first value of the first row, "" for none."""
        found = self.rows(statement, database)
        return found[0][0] if found else ""

    def databases(self) -> set[str]:
        """Every database, without those that each server has."""
        return {row[0] for row in self.rows("SHOW DATABASES", "mysql")} - OWN

    def kept(self) -> list[str]:
        """The former databases that restores have put aside, oldest first."""
        return sorted(name for name in self.databases() if name.startswith(f"{self.name}_broken_"))

    def granted(self) -> set[str]:
        """The databases that accounts have rights on: as in a grant, so that the server's `\\_` is a `_` here."""
        return {row[0].replace("\\_", "_") for row in self.rows("SELECT DISTINCT Db FROM mysql.db", "mysql")}

    def strangers(self) -> list[str]:
        """What nobody should have left behind: scratch databases, halves of restores, rights on what is gone."""
        present = self.databases()
        gone = [f"{name}, of which only rights are left" for name in self.granted() - present]
        return sorted([*(present - {self.name, *self.kept()}), *gone])

    def forget(self, name: str, account: str) -> None:
        """Drop a former database as its operator does, with the rights on it, which outlive it."""
        self.rows(f"DROP DATABASE {name}", "mysql")
        pattern = name.replace("_", "\\_")
        self.rows(f"REVOKE ALL ON `{pattern}`.* FROM {account}", "mysql")

    def revisions(self) -> list[str]:
        """The revisions that Alembic says are applied."""
        return [row[0] for row in self.rows("SELECT version_num FROM alembic_version ORDER BY version_num")]

    def tables(self, database: str = "") -> set[str]:
        """The tables of a database."""
        return {row[0] for row in self.rows("SHOW FULL TABLES WHERE Table_type = 'BASE TABLE'", database)}

    def objects(self, database: str = "") -> dict[str, str]:
        """Everything that is no row: tables, columns, indexes, triggers, views, routines, events."""
        name = database or self.name
        return {
            row[0]: "\t".join(row[1:]) for query in OBJECTS for row in self.rows(query.format(name), "mysql")
        }

    def counts(self, *tables: str) -> dict[str, int]:
        """The rows of `tables`; -1 for one that is not there."""
        present = self.tables()
        return {
            table: int(self.sql(f"SELECT COUNT(*) FROM {table}")) if table in present else -1
            for table in tables
        }

    def copy(self, database: str = "") -> Copy:
        """What the writers left in a database."""
        name = database or self.name
        present = self.tables(name)
        queries = {
            "leads": "SELECT email FROM leads WHERE email LIKE 'writer %'",
            "writer_deletions": "SELECT details FROM writer_deletions",
        }
        found = [
            [row[0] for row in self.rows(query, name)] if table in present else []
            for table, query in queries.items()
        ]
        return Copy(name, *found)

    def backup(self, path: str) -> Copy:
        """What the writers left in the dump in the directory `path`, restored by the server's own programs."""
        name = "test_of_a_backup"
        self.rows(f"CREATE DATABASE {name}", "mysql")
        try:
            self.site.run("bash", "-c", f"set -e -o pipefail; zstd -q -d -c {path}/*.zst | mariadb {name}")
            return self.copy(name)._replace(name=path)
        finally:
            self.rows(f"DROP DATABASE {name}", "mysql")

    @contextlib.contextmanager
    def locked(self, table: str) -> Iterator[None]:
        """Hold a table so that nobody, not even a dump, can read it."""
        words = ["docker", "exec", "--interactive", self.site.container, "mariadb", "--unbuffered", self.name]
        holder = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
        )
        try:
            holder.stdin.write(f"LOCK TABLES {table} WRITE;\n")
            holder.stdin.flush()
            held = f"SET lock_wait_timeout = 0; SELECT COUNT(*) FROM {table}"
            words = ("mariadb", "--batch", self.name)

            def readable() -> list[str]:
                refused = "1205" in self.site.attempt(*words, text=held).stderr
                return [] if refused else [f"{table} can be read"]

            assert until_empty(readable, 10) == []
            yield
        finally:
            holder.kill()
            holder.communicate()
