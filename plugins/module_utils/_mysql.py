# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""MySQL and MariaDB: a dump whose rows are counted while it is written, a trial restore into a database of random name.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._database import (
    ALEMBIC,
    Contents,
    Damaged,
    trial_server,
)
from ansible_collections.runbook.deploy.plugins.module_utils._mysql_client import (
    Client,
    Login,
    advice,
    first_error,
    identifier,
    literal,
    may_create,
    said_version,
    version,
)
from ansible_collections.runbook.deploy.plugins.module_utils._mysql_dump import (
    TRAILER,
    Counter,
    feed,
    packing,
    quiet,
    receive,
    unpacked,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._server import (
    ServerEngine,
    definition_differences,
)

# The names of which the application's user may be granted databases, so that scratch and restored ones can be made.
PATTERN = r"runbook\_%"
COMPRESSED, PLAIN = "database.sql.zst", "database.sql.gz"
# Engines whose tables a transaction sees as they were at its begin.
TRANSACTIONAL = ("InnoDB", "RocksDB", "ROCKSDB", "TokuDB")
# What is compared beside rows. Each as (kind, name, text), from the schema of the present database.
CATALOG = """SELECT 'column' k, CONCAT(TABLE_NAME, '.', COLUMN_NAME) n, CONCAT_WS('|', COLUMN_TYPE, IS_NULLABLE, COALESCE(COLUMN_DEFAULT, 'none'),
 EXTRA, COALESCE(COLLATION_NAME, ''), COALESCE(GENERATION_EXPRESSION, '')) t FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE()
 UNION ALL SELECT 'index', CONCAT(TABLE_NAME, '.', INDEX_NAME), GROUP_CONCAT(CONCAT_WS('|', NON_UNIQUE, COLUMN_NAME, COALESCE(SUB_PART, ''), INDEX_TYPE)
 ORDER BY SEQ_IN_INDEX) FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = DATABASE() GROUP BY TABLE_NAME, INDEX_NAME
 UNION ALL SELECT 'foreign key', CONCAT(r.TABLE_NAME, '.', r.CONSTRAINT_NAME), CONCAT_WS('|', r.UPDATE_RULE, r.DELETE_RULE, r.REFERENCED_TABLE_NAME,
 GROUP_CONCAT(CONCAT(k.COLUMN_NAME, '>', k.REFERENCED_COLUMN_NAME) ORDER BY k.ORDINAL_POSITION), IF(k.REFERENCED_TABLE_SCHEMA = DATABASE(), '', 'elsewhere'))
 FROM information_schema.REFERENTIAL_CONSTRAINTS r JOIN information_schema.KEY_COLUMN_USAGE k ON k.CONSTRAINT_SCHEMA = r.CONSTRAINT_SCHEMA
 AND k.CONSTRAINT_NAME = r.CONSTRAINT_NAME AND k.TABLE_NAME = r.TABLE_NAME WHERE r.CONSTRAINT_SCHEMA = DATABASE()
 GROUP BY r.TABLE_NAME, r.CONSTRAINT_NAME, r.UPDATE_RULE, r.DELETE_RULE, r.REFERENCED_TABLE_NAME, k.REFERENCED_TABLE_SCHEMA
 UNION ALL SELECT 'table', TABLE_NAME, CONCAT_WS('|', TABLE_TYPE, COALESCE(ENGINE, ''), COALESCE(TABLE_COLLATION, '')) FROM information_schema.TABLES
 WHERE TABLE_SCHEMA = DATABASE()
 UNION ALL SELECT 'view', TABLE_NAME, REPLACE(VIEW_DEFINITION, CONCAT('`', DATABASE(), '`.'), '') FROM information_schema.VIEWS WHERE TABLE_SCHEMA = DATABASE()
 UNION ALL SELECT 'trigger', TRIGGER_NAME, CONCAT_WS('|', ACTION_TIMING, EVENT_MANIPULATION, EVENT_OBJECT_TABLE, ACTION_STATEMENT)
 FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = DATABASE()
 UNION ALL SELECT 'routine', ROUTINE_NAME, CONCAT_WS('|', ROUTINE_TYPE, DTD_IDENTIFIER, ROUTINE_DEFINITION) FROM information_schema.ROUTINES
 WHERE ROUTINE_SCHEMA = DATABASE()
 UNION ALL SELECT 'event', EVENT_NAME, CONCAT_WS('|', EVENT_TYPE, INTERVAL_VALUE, INTERVAL_FIELD, EVENT_DEFINITION) FROM information_schema.EVENTS
 WHERE EVENT_SCHEMA = DATABASE()"""


def logins(
    database: Mapping[str, Any], admin: Mapping[str, Any] | None, user: str | None
) -> tuple[Login, Login | None]:
    """Return how the application's user logs in, and the administrator's, None where there is none."""
    password = str(database.get("password") or "")
    by_socket = not database.get("host") and not password
    own = Login(str(database.get("user") or ""), password, user if by_socket else None)
    if not admin:
        return own, None
    name = str(admin.get("user") or admin.get("os_user") or "")
    return own, Login(name, str(admin.get("password") or ""), admin.get("os_user") or None)


class Mysql(ServerEngine):
    """The engine ``mysql``: MySQL and MariaDB; ``app_database`` has name, user and, for a server elsewhere, host and port."""

    name = "mysql"

    def __init__(
        self, database: Mapping[str, Any], admin: Mapping[str, Any] | None = None, user: str | None = None
    ) -> None:
        super().__init__(database, admin, user)
        if not database.get("name"):
            raise Problem("app_database.name is missing: name the database of the application.")
        own, administrator = logins(database, admin, user)
        self.client = Client(database, own)
        self.maker = Client(database, administrator) if administrator else self.client
        self.has_admin = administrator is not None
        elsewhere = trial_server(database, "information_schema")
        #: where copies are tried
        self.trial = Mysql(elsewhere, None, user) if elsewhere else self
        self.taken: Contents | None = None

    # What is

    @property
    def dump_name(self) -> str:  # type: ignore[override]
        """The dump's name: compressed by zstd where the host has it."""
        return COMPRESSED if shutil.which("zstd") else PLAIN

    def tables(self, database: str | None = None, client: Client | None = None) -> dict[str, str]:
        """Return the engine of each ordinary table."""
        found = (client or self.client).rows(
            {"n": "TABLE_NAME", "e": "ENGINE"},
            "FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') ORDER BY TABLE_NAME",
            database,
        )
        return {row["n"]: row["e"] or "" for row in found}

    def exists(self) -> bool:
        """Return whether the database holds a table."""
        return bool(self.tables())

    def size(self) -> int:
        """See :meth:`Engine.size`: what the server estimates; a compressed dump is smaller."""
        sql = "SELECT COALESCE(SUM(DATA_LENGTH + INDEX_LENGTH), 0) FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()"
        return int(float(self.client.value(sql)))

    def server_version(self) -> str:
        """Return what the server says its version is."""
        return self.client.value("SELECT VERSION()")

    def tools(self) -> dict[str, str]:
        """See :meth:`Engine.tools`."""
        return {"server": self.server_version(), "mysqldump": self._dump_version()}

    def _dump_version(self) -> str:
        return ".".join(str(part) for part in version(said_version(self.client.program("dump"))))

    def require_tools(self) -> None:
        """Refuse a client that is older than the server, or of the other maker: what it would leave out nobody knows.

        :raises Problem: naming both.
        """
        server, client = self.server_version(), self._dump_version()
        old = version(client)[:2] < version(server)[:2]
        # Each counts for himself: a client of the other maker is never "newer".
        other = ("MariaDB" in server) != ("MariaDB" in said_version(self.client.program("dump")))
        if old or other:
            maker = "MariaDB" if ("MariaDB" in server) != other else "MySQL"
            raise Problem(
                f"mysqldump on this host is {maker}'s {client}, but the server at {self.client.address()} is {server}: install the client "
                "of the server's maker, of its version or newer, on this host."
            )

    def identity(self) -> dict[str, str]:
        """See :meth:`Engine.identity`."""
        for sql in ("SELECT @@server_uuid", "SELECT CONCAT(@@hostname, ':', @@datadir, ':', @@port)"):
            with contextlib.suppress(Problem):
                return {"server": self.client.value(sql), "oid": ""}
        return {}

    def applied(self, framework: str) -> list[list[str]] | None:
        """See :func:`_database.applied`."""
        return self.read_applied(framework, None)

    def read_applied(self, framework: str, database: str | None) -> list[list[str]] | None:
        """Return the applied migrations in the *database*; None for no such table."""
        table = {"django": "django_migrations", ALEMBIC: "alembic_version"}.get(framework)
        if table is None or table not in self.tables(database):
            return None
        if framework == "django":
            found = self.client.rows(
                {"a": "app", "n": "name"}, "FROM django_migrations ORDER BY id", database
            )
            return [[row["a"], row["n"]] for row in found]
        found = self.client.rows({"n": "version_num"}, "FROM alembic_version ORDER BY version_num", database)
        return [[ALEMBIC, row["n"]] for row in found]

    def count_rows(self, database: str | None) -> dict[str, int]:
        """Return the rows of each table of the *database*."""
        names = list(self.tables(database))
        result: dict[str, int] = {}
        for start in range(0, len(names), 100):
            parts = [
                f"SELECT JSON_OBJECT('t', {literal(name)}, 'n', COUNT(*)) FROM {identifier(name)}"
                for name in names[start : start + 100]
            ]
            for line in self.client.statements(parts, database).split("\n"):
                if not line.strip():
                    continue
                row = json.loads(line)
                result[row["t"]] = row["n"]
        return result

    def read_catalog(self, database: str | None) -> dict[str, str]:
        """Return the digest of every definition, by ``kind name``."""
        rows = self.maker.rows(
            {"k": "k", "n": "n", "t": "t"}, f"FROM ({CATALOG}) AS found ORDER BY k, n", database
        )
        # MD5 as ever, so that older manifests can be compared; MySQL 9.6 has taken that function away.
        return {
            f"{row['k']} {row['n']}": hashlib.md5(
                (row["t"] or "").encode("utf-8", "surrogatepass"), usedforsecurity=False
            ).hexdigest()
            for row in rows
        }

    def live_violations(self) -> list[list[Any]]:
        """See :meth:`Engine.live_violations`."""
        return []

    def warnings(self) -> list[str]:
        """See :meth:`Engine.warnings`."""
        found = []
        if self.trial is not self and not may_create(self.trial.client.statements(["SHOW GRANTS"])):
            found.append(self.trial._no_rights("app_database.scratch"))
        if not self.has_admin and not may_create(self.client.statements(["SHOW GRANTS"])):
            found.append(self._no_rights())
        found += self._logged()
        other = self._not_transactional()
        if other and self.database.get("nontransactional") != "lock":
            found.append(self._mixed(other))
        return found

    def _logged(self) -> list[str]:
        """Return that triggers and functions cannot be made again: with a binary log, MySQL's default, that takes an administrator.

        Reference manual, "Stored Program Binary Logging".
        """
        if self.has_admin or self.client.value("SELECT @@log_bin > @@log_bin_trust_function_creators") != "1":
            return []
        rows = self.client.rows(
            {"n": "n"},
            "FROM (SELECT TRIGGER_NAME n FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = DATABASE() UNION ALL SELECT ROUTINE_NAME "
            "FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = DATABASE() AND ROUTINE_TYPE = 'FUNCTION') AS found LIMIT 5",
        )
        grants = self.client.statements(["SHOW GRANTS"])
        if not rows or re.search(r"GRANT (?:ALL PRIVILEGES|[^\n]*\bSUPER\b[^\n]*) ON \*\.\*", grants):
            return []
        return [
            f"The database {self.place()} has triggers or functions ({', '.join(row['n'] for row in rows)}), and with the server's binary log "
            "only an administrator may make them, so that no backup can be proved by a restore and none restored: name one in "
            "app_database_admin, or set log_bin_trust_function_creators on the server."
        ]

    def _no_rights(self, variable: str = "app_database") -> str:
        user = self.client.login.user or f"of {variable}"
        lost, instead = "no backup can be proved by a restore and none restored", "app_database_admin"
        if variable != "app_database":
            lost, instead = "no backup can be proved by a restore there", variable
        elif self.trial is not self:
            lost = "none can be restored"
        account = f"{user}@…"
        with contextlib.suppress(Problem):
            account = self._account()
        return (
            f"The user {user} may not create databases at {self.client.address()}, so that {lost}: allow it for the names that are used "
            f"(GRANT ALL ON `{PATTERN}`.* TO {account}), or name a user that may in {instead}."
        )

    def _not_transactional(self) -> list[str]:
        return [f"{name} ({engine})" for name, engine in self.tables().items() if engine not in TRANSACTIONAL]

    @staticmethod
    def _mixed(tables: list[str]) -> str:
        return (
            f"The tables {', '.join(tables[:5])} have engines without transactions, of which no consistent copy can be taken while they are "
            "written: convert them to InnoDB, or accept that writers wait for the backup with app_database.nontransactional: lock."
        )

    # The dump

    def dump(self, target: Path) -> dict[str, Any]:
        """See :meth:`Engine.dump`: rows are counted in what is written, so that the counts are the dump's own."""
        self.require_tools()
        mixed = self._not_transactional()
        if mixed and self.database.get("nontransactional") != "lock":
            raise Problem(self._mixed(mixed))
        before = self.read_catalog(None)
        counter = Counter()
        self._write(
            target, counter, ["--lock-tables"] if mixed else ["--single-transaction", "--skip-lock-tables"]
        )
        if self.read_catalog(None) != before:
            raise Problem(
                f"The schema of {self.place()} was changed while it was dumped, so that the dump may lack tables: nothing of it was kept; end "
                "what changes it and try again."
            )
        self.taken = Contents(counter.counts, None, "none", [])
        self.rows = {name: self.read_applied(name, None) for name in ("django", ALEMBIC)}
        return {"catalog": before, "nontransactional": mixed, "engine_version": self.server_version()}

    def dump_command(self, options: str, database: str, *more: str) -> list[str]:
        """Return the command that dumps *database*; nothing in the dump names it."""
        return [
            self.maker.program("dump"), options, "--quick", "--routines", "--events", "--triggers", "--hex-blob",
            "--default-character-set=utf8mb4", "--no-tablespaces", *self.dump_options(), *more, database,
        ]  # fmt: skip

    def dump_options(self) -> list[str]:
        """Return what MySQL's own mysqldump has to be told, and MariaDB's does not know.

        Without the first a dump sets the server's GTIDs when it is restored, which needs an administrator and is refused where
        the server has any; without the second that of 8.0 asks for histograms, which needs rights, too.
        """
        if "MariaDB" in said_version(self.maker.program("dump")):
            return []
        return ["--set-gtid-purged=OFF", "--loose-column-statistics=0"]

    def _write(self, target: Path, counter: Counter, more: list[str]) -> None:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with self.maker.options() as options, packing(target, handle) as packed:
                command = self.dump_command(options, self.client.name, *more)
                errors = receive(command, self.maker.login.os_user, counter, packed)
            os.fsync(handle)
        except OSError as error:
            raise Problem(
                f"The backup of {self.place()} could not be written to {target.parent}: {error.strerror}; "
                f"{shutil.disk_usage(target.parent).free} bytes are free there: make room and try again; nothing live was changed."
            ) from error
        finally:
            os.close(handle)
        if errors or not counter.complete:
            said = first_error(errors or "the dump has no end")
            raise Problem(
                f"The backup of {self.place()} failed in mysqldump: {said.rstrip('.')}; nothing of it was kept and nothing live was "
                f"changed; {advice(said)}.",
                "\n".join(errors.splitlines()[-20:]),
            )

    def contents(self, dump: Path, framework: str, *, integrity_check: bool) -> Contents:
        """See :meth:`Engine.contents`: of the dump that this object has just made."""
        if integrity_check:
            counts = self.read_whole(dump)
            if self.taken is not None and counts != self.taken.counts:
                raise Damaged(
                    f"The dump {dump} does not hold the rows that were written to it: check the disk, and take the backup again."
                )
        if self.taken is None:
            raise Problem(
                f"What the dump {dump} holds is known from its manifest only: restore it to compare."
            )
        return self.taken._replace(
            applied=self.rows.get(framework), integrity="full" if integrity_check else "none"
        )

    def read_whole(self, dump: Path) -> dict[str, int]:
        """Read the whole *dump*; return the rows of each table in it.

        :raises Damaged: when it cannot be read to its end, or has none.
        """
        counter = Counter()
        for line in unpacked(dump):
            counter.line(line)
        if not counter.complete:
            raise Damaged(
                f"The dump {dump} has no end ({TRAILER.decode()!r} is missing): choose another, or take the backup again."
            )
        return counter.counts

    # Scratch databases

    def require_as_new(self) -> None:
        """See :meth:`ServerEngine.require_as_new`: one of the other maker is none."""
        there, live = self.trial.server_version(), self.server_version()
        other = ("MariaDB" in there) != ("MariaDB" in live)
        if other or version(there)[:2] < version(live)[:2]:
            raise Problem(
                f"The server of app_database.scratch at {self.trial.client.address()} is {there}, but the live one at {self.client.address()} is "
                f"{live}, whose backups it cannot be trusted to take: name one of the same maker, of that version or newer."
            )

    def shape(self) -> dict[str, str]:
        """See :meth:`ServerEngine.shape`: its character set ``s`` and collation ``c``."""
        return self.client.rows(
            {"s": "DEFAULT_CHARACTER_SET_NAME", "c": "DEFAULT_COLLATION_NAME"},
            "FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = DATABASE()",
        )[0]

    def create(self, name: str, shape: Mapping[str, Any] | None = None) -> None:
        """See :meth:`ServerEngine.create`: open to the application's user."""
        if not self.has_admin and not may_create(self.client.statements(["SHOW GRANTS"])):
            raise Problem(self._no_rights("app_database.scratch" if shape else "app_database"))
        shape = shape or self.shape()
        statements = [f"CREATE DATABASE {identifier(name)} CHARACTER SET {shape['s']} COLLATE {shape['c']}"]
        if self.has_admin:
            statements.append(
                f"GRANT ALL ON {identifier(name.replace('_', chr(92) + '_'))}.* TO {self._account()}"
            )
        self.maker.statements(statements, "")

    def _account(self) -> str:
        """Return the account that the application's user is on the server, quoted."""
        user, _at, host = self.client.value("SELECT CURRENT_USER()").rpartition("@")
        return f"{literal(user)}@{literal(host)}"

    def load_trial(self, dump: Path, name: str) -> None:
        """See :meth:`ServerEngine.load_trial`."""
        self.load(dump, name)

    def load(self, dump: Path, name: str) -> set[bytes]:
        """Restore *dump* into the empty database *name*; its events are disabled, and those that were not are returned.

        :raises Problem: at the first error.
        """
        if name == self.client.name:
            raise Problem(
                f"A backup is never restored into the live database {name}: this is an error of the collection, report it."
            )
        silenced: set[bytes] = set()
        with self.maker.options() as options:
            argv = [
                self.maker.program("client"),
                options,
                "--default-character-set=utf8mb4",
                "--comments",
                "--init-command=SET SESSION unique_checks=0",
                name,
            ]
            errors = feed(argv, self.maker.login.os_user, quiet(unpacked(dump), silenced))
        if errors:
            said = first_error(errors)
            raise Problem(
                f"The backup {dump.parent.name.lstrip('.')} could not be restored into the database {name} at {self.client.address()}: "
                f"{said.rstrip('.')}; the live database was not touched; {advice(said)}.",
                "\n".join(errors.splitlines()[-20:]),
            )
        return silenced

    def run_sql(self, sql: bytes, name: str) -> None:
        """Run the script *sql*, as a dump holds it, in the database *name*.

        :raises Problem: at the first error.
        """
        with self.maker.options() as options:
            argv = [
                self.maker.program("client"),
                options,
                "--default-character-set=utf8mb4",
                "--comments",
                name,
            ]
            errors = feed(argv, self.maker.login.os_user, sql.splitlines(keepends=True))
        if errors:
            raise self.maker.problem(name, errors)

    def database_contents(self, name: str, framework: str) -> Contents:
        """Return what the database *name* of this server holds."""
        return Contents(self.count_rows(name), self.read_applied(framework, name), "full", [])

    def differences(self, scratch: Mapping[str, str], manifest: Mapping[str, Any]) -> list[str]:
        """See :meth:`Engine.differences`: columns, indexes, foreign keys, views, triggers, routines, events."""
        return self.trial.catalog_differences(scratch["name"], manifest)

    def catalog_differences(self, name: str, manifest: Mapping[str, Any]) -> list[str]:
        """Return in words how the definitions in the database *name* differ from those in *manifest*."""
        return definition_differences(self.read_catalog(name), manifest)

    def snapshot(self, scratch: Mapping[str, str]) -> dict[str, Any]:
        """See :meth:`Engine.snapshot`."""
        from ansible_collections.runbook.deploy.plugins.module_utils import _mysql_losses

        name = scratch["name"]
        rows = {}
        shapes = _mysql_losses.tables_of(self.client, name)
        for table in self.tables(name):
            number, total = _mysql_losses.fingerprint(self.client, name, table, shapes[table])
            rows[table] = f"{number} rows, {total}"
        return {"schema": self.read_catalog(name), "rows": rows}

    def drop(self, name: str) -> None:
        """Remove the database *name*, and what was granted for it."""
        statements = [f"DROP DATABASE IF EXISTS {identifier(name)}"]
        self.maker.statements(statements, "")
        if self.has_admin:
            with contextlib.suppress(Problem):
                # Rights outlive their database.
                self.maker.statements(
                    [
                        f"REVOKE ALL ON {identifier(name.replace('_', chr(92) + '_'))}.* FROM {self._account()}"
                    ],
                    "",
                )
