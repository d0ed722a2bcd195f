# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL: a dump and the counts of one snapshot, a trial restore into a database of random name.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._backup import owner_of, working_directory
from ansible_collections.runbook.deploy.plugins.module_utils._database import (
    ALEMBIC,
    LOCAL,
    Contents,
    Damaged,
    trial_server,
)
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_catalog import (
    ASIDE_PATTERNS,
    CLOSED,
    SHAPE,
    TABLES,
    count_rows,
    locale_clause,
    read_applied,
    read_catalog,
)
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_client import (
    LOCK_SECONDS,
    SEARCH_PATH,
    SESSIONS,
    Client,
    Login,
    Stage,
    exit_words,
    failure_advice,
    first_error,
    identifier,
    literal,
    pipeline,
    tool,
    version,
)
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_load import (
    COMPRESSED,
    LONGEST,
    PLAIN,
    prepare,
    unpack,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._server import (
    ServerEngine,
    definition_differences,
)

# Measured on 576 MB: level 3 took 0.38 of the time of pg_dump's own compression, and the file was smaller.
ZSTD = ["--quiet", "-3", "-T2", "--stdout"]
# Two jobs: what a small host has to spare (a restore of 576 MB took 3.3 s with two, 5 s with one).
JOBS = 2


def logins(
    database: Mapping[str, Any], admin: Mapping[str, Any] | None, user: str | None
) -> tuple[Login, Login | None]:
    """Return how the application's role logs in, and the administrator's, None where there is none.

    :param user: the application's user, who logs in by the socket's peer where neither host nor password is given.
    """
    password = str(database.get("password") or "")
    by_peer = not database.get("host") and not password
    own = Login(str(database.get("user") or ""), password, user if by_peer else None)
    if not admin:
        return own, None
    role = str(admin.get("user") or admin.get("os_user") or "")
    return own, Login(role, str(admin.get("password") or ""), admin.get("os_user") or None)


def may_create(facts: Mapping[str, Any]) -> bool:
    """Return whether the role of *facts* (``{createdb, superuser}``) may create databases."""
    return bool(facts.get("superuser") or facts.get("createdb"))


class Postgresql(ServerEngine):
    """The engine ``postgresql``: ``app_database`` has name, user and, for a server elsewhere, host and port."""

    name = "postgresql"

    def __init__(
        self, database: Mapping[str, Any], admin: Mapping[str, Any] | None = None, user: str | None = None
    ) -> None:
        super().__init__(database, admin, user)
        if not database.get("name"):
            raise Problem("app_database.name is missing: name the PostgreSQL database of the application.")
        own, administrator = logins(database, admin, user)
        self.client = Client(database, own)
        #: who makes and removes databases
        self.maker = Client(database, administrator) if administrator else self.client
        self.has_admin = administrator is not None
        elsewhere = trial_server(database, "postgres")
        #: where copies are tried
        self.trial = Postgresql(elsewhere, None, user) if elsewhere else self
        self.taken: Contents | None = None

    # What is

    @property
    def dump_name(self) -> str:  # type: ignore[override]
        """The dump's name: compressed by zstd where the host has it."""
        return COMPRESSED if shutil.which("zstd") else PLAIN

    def identity(self) -> dict[str, str]:
        """See :meth:`Engine.identity`: the cluster's system identifier, and the number of the database in it."""
        row = self.client.rows(
            "SELECT oid::text AS oid, (SELECT system_identifier FROM pg_control_system())::text AS server "
            "FROM pg_database WHERE datname = current_database()"
        )[0]
        return {"server": row["server"], "oid": row["oid"]}

    def exists(self) -> bool:
        """Return whether the database holds a table of users."""
        return bool(self.client.rows(f"{TABLES} LIMIT 1"))

    def size(self) -> int:
        """See :meth:`Engine.size`; a dump has no indexes and is compressed, so that it is smaller."""
        return int(self.client.query("SELECT pg_database_size(current_database())"))

    def server_space(self, size: int) -> list[tuple[Path, int]]:
        """See :meth:`Engine.server_space`: a trial restore that fills the server's disk would stop the live database, too."""
        if self.client.host not in LOCAL and not self.client.host.startswith("/"):
            return []
        with self.client.session() as session:
            # A server process works in its data directory, which only administrators may ask it for. Another host's, or a
            # container's, process of that number is no PostgreSQL.
            process = Path("/proc") / str(session.query("SELECT pg_backend_pid()"))
            try:
                place = Path(os.readlink(process / "cwd"))
                is_server = (process / "comm").read_text().strip() == "postgres" and (
                    place / "PG_VERSION"
                ).is_file()
            except OSError:
                return []
        return [(place, size)] if is_server else []

    def tools(self) -> dict[str, str]:
        """See :meth:`Engine.tools`."""
        return {"server": self.server_version(), "pg_dump": self._pg_dump_version()}

    def server_version(self) -> str:
        """Return what the server says its version is.

        :raises Problem: when a pooler stands before it that drops what a session begins with (``ignore_startup_parameters``).
        """
        asked = "SELECT json_build_array(current_setting('server_version'), current_setting('search_path'))"
        found, path = self.client.query(asked)
        if path != SEARCH_PATH:
            raise Problem(
                f"At {self.client.address()} is a pooler that forgets with which settings a session begins (search_path is {path!r}, not "
                f"{SEARCH_PATH!r}), so that neither a backup nor a restore is safe; nothing was changed: name the server itself in "
                "app_database.host and app_database.port."
            )
        return str(found)

    def _pg_dump_version(self) -> str:
        done = subprocess.run(
            [tool("pg_dump", "postgresql-client"), "--version"], capture_output=True, text=True, check=False
        )
        return ".".join(str(part) for part in version(done.stdout))

    def require_tools(self) -> None:
        """Refuse a client that is older than the server: it cannot know what it would leave out.

        :raises Problem: naming both versions and the package.
        """
        server, client = self.server_version(), self._pg_dump_version()
        if version(client)[:1] < version(server)[:1]:
            raise Problem(
                f"pg_dump on this host is {client}, but the PostgreSQL server at {self.client.address()} is {server}, and an older "
                f"client cannot dump a newer server: install postgresql-client-{version(server)[0]} on this host."
            )

    def applied(self, framework: str) -> list[list[str]] | None:
        """See :func:`_database.applied`."""
        return read_applied(self.client, framework)

    def live_violations(self) -> list[list[Any]]:
        """See :meth:`Engine.live_violations`; the server lets no foreign key point nowhere."""
        return []

    def warnings(self) -> list[str]:
        """See :meth:`Engine.warnings`."""
        found = []
        if self.trial is not self and not may_create(self.trial._rights()):
            found.append(self.trial._no_rights("app_database.scratch"))
        if self.has_admin:
            return found
        rights = self._rights()
        if not may_create(rights):
            found += [self._no_rights()] if self.trial is self else []
            found.append(self._by_schemas())
        closed = [] if rights.get("superuser") else [row["name"] for row in self.client.rows(CLOSED)]
        if closed:
            found.append(
                f"The database {self.place()} has extensions that only a superuser may create ({', '.join(closed)}), so that no backup of it "
                "can be proved or restored: name an administrator in app_database_admin (os_user: postgres), or drop those that "
                "the application does not use."
            )
        return found

    def _rights(self, database: str | None = None) -> dict[str, Any]:
        found = self.client.rows(
            "SELECT rolcreatedb AS createdb, rolsuper AS superuser FROM pg_roles WHERE rolname = current_user",
            database,
        )
        return found[0] if found else {}

    def may_make_databases(self) -> bool:
        """Return whether a restore can go into a database of its own."""
        if self.has_admin:
            return True
        try:
            # From where they are made; the live one may be closed by a restore that was cut short.
            return may_create(self._rights(self.lobby()))
        except Problem:
            return may_create(self._rights())

    def _by_schemas(self) -> str:
        """Return what becomes of a restore where nobody of ours may make databases."""
        from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_schemas import SchemaRestorer

        found = SchemaRestorer(self).obstacles()
        if found:
            return (
                f"No backup of {self.place()} can be restored: the role of app_database may make no databases, and not exchange the schemas "
                f"either: {'; '.join(found)}; name an administrator in app_database_admin."
            )
        return (
            f"A restore of {self.place()} would exchange its schemas one transaction long, because the role of app_database may make no "
            "databases: what belongs to no schema (extensions, publications) would stay as it is."
        )

    def _no_rights(self, variable: str = "app_database") -> str:
        role = self.client.login.user or f"of {variable}"
        lost, instead = (
            "no backup can be proved by a restore",
            "app_database_admin, or another server in app_database.scratch",
        )
        if variable != "app_database":
            lost, instead = "no backup can be proved by a restore there", variable
        return (
            f"The role {role} may not create databases at {self.client.address()}, so that {lost}: allow it (ALTER ROLE {identifier(role)} "
            f"CREATEDB), or name a role that may in {instead}."
        )

    # The dump

    def dump(self, target: Path) -> dict[str, Any]:
        """See :meth:`Engine.dump`: the counts are those of the very snapshot that is dumped."""
        self.require_tools()
        # The administrator sees every row, whatever row security shows the application.
        with self.maker.session() as session:
            snapshot = session.ask(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT pg_export_snapshot()"
            ).strip()
            self._write(target, snapshot)
            counts = count_rows(session)
            self.taken = Contents(counts, None, "none", [])
            rows = {name: read_applied(session, name) for name in ("django", ALEMBIC)}
            self.rows = {name: found for name, found in rows.items() if found is not None}
            catalog = read_catalog(session)
            shape = session.rows(SHAPE.format(name=literal(self.client.name)))[0]
        return {
            "catalog": catalog,
            "extensions": sorted(name.split(" ", 1)[1] for name in catalog if name.startswith("extension ")),
            "owner": shape["owner"],
            "encoding": shape["encoding"],
            "collate": shape["collate"],
        }

    def _write(self, target: Path, snapshot: str) -> None:
        compress = target.name.endswith(".zst")
        dump = [
            tool("pg_dump", "postgresql-client"), *self.maker.arguments(), "--format=custom", f"--snapshot={snapshot}",
            f"--lock-wait-timeout={LOCK_SECONDS}s", f"--compress={0 if compress else 6}",
            *(f"--exclude-schema={pattern}" for pattern in ASIDE_PATTERNS),
        ]  # fmt: skip
        stages = [Stage(dump, self._plain_environment(self.maker), self.maker.login.os_user)]
        if compress:
            stages.append(Stage([tool("zstd", "zstd"), *ZSTD], {}))
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            done = pipeline(stages, target=handle, timeout=LONGEST, secrets=self.maker.secrets)
            if all(code == 0 for code, _errors in done):
                os.fsync(handle)
        finally:
            os.close(handle)
        # The compressor fails first where there is no room, and pg_dump then only says that nobody listens.
        for stage, (code, errors) in sorted(
            zip(stages, done), key=lambda pair: "zstd" not in pair[0].argv[0]
        ):
            if code != 0:
                name = Path(stage.argv[0]).name
                said = first_error(errors)
                raise Problem(
                    f"The backup of {self.place()} failed: {name} ended with {exit_words(code)}: {said.rstrip('.')}; nothing of it was kept "
                    f"and nothing live was changed; {failure_advice(said, target, shutil.disk_usage(target.parent).free)}.",
                    "\n".join(errors.splitlines()[-20:]),
                )

    @staticmethod
    def _plain_environment(client: Client) -> dict[str, str]:
        """Return the environment for pg_dump and pg_restore, which set their own session up."""
        return {key: value for key, value in client.environment().items() if key != "PGOPTIONS"}

    def contents(self, dump: Path, framework: str, *, integrity_check: bool) -> Contents:
        """See :meth:`Engine.contents`: of the dump that this object has just made, from its snapshot."""
        if integrity_check:
            self.read_whole(dump)
        if self.taken is None:
            raise Problem(
                f"What the dump {dump} holds is known from its manifest only: restore it to compare."
            )
        return self.taken._replace(
            applied=self.rows.get(framework), integrity="full" if integrity_check else "none"
        )

    def read_whole(self, dump: Path) -> None:
        """Read every byte of *dump* as a restore would: listing it passes a dump that was cut in half.

        :raises Damaged: when it cannot be read to its end.
        """
        stages = [Stage([tool("pg_restore", "postgresql-client"), "--file=/dev/null"], {})]
        if dump.name.endswith(".zst"):
            stages.insert(0, Stage([tool("zstd", "zstd"), "--quiet", "--decompress", "--stdout"], {}))
        with open(dump, "rb") as source:
            done = pipeline(stages, source=source, timeout=LONGEST)
        for stage, (code, errors) in zip(stages, done):
            if code != 0:
                raise Damaged(
                    f"The dump {dump} cannot be read whole: {Path(stage.argv[0]).name} ended with {exit_words(code)}: {first_error(errors)}; "
                    "check the disk, and take the backup again.",
                    "\n".join(errors.splitlines()[-20:]),
                )

    # Scratch databases

    def shape(self) -> dict[str, Any]:
        """See :meth:`ServerEngine.shape`: encoding and locale; also the owner and the disk, which are of this server."""
        return self.client.rows(SHAPE.format(name=literal(self.client.name)))[0]

    def require_as_new(self) -> None:
        """See :meth:`ServerEngine.require_as_new`."""
        there, live = self.trial.server_version(), self.server_version()
        if version(there)[:1] < version(live)[:1]:
            raise Problem(
                f"The server of app_database.scratch at {self.trial.client.address()} is PostgreSQL {there}, but the live one at "
                f"{self.client.address()} is {live}, whose backups an older one cannot take: name one of version {version(live)[0]} or newer."
            )

    def create(self, name: str, shape: Mapping[str, Any] | None = None) -> None:
        """See :meth:`ServerEngine.create`: with its encoding and locale, here its owner and disk, too."""
        foreign = shape is not None
        if not self.has_admin and not may_create(self._rights()):
            raise Problem(self._no_rights("app_database.scratch" if foreign else "app_database"))
        shape = shape or self.shape()
        owner = "" if not self.has_admin else f" OWNER {identifier(shape['owner'])}"
        allowed = f"SELECT to_json(has_tablespace_privilege({literal(shape['tablespace'])}, 'CREATE'))"
        # The disk that the administrator has given to it, where the role may use it.
        tablespace = (
            f" TABLESPACE {identifier(shape['tablespace'])}"
            if not foreign and self.maker.query(allowed, self.lobby())
            else ""
        )
        self.maker.statements(
            [
                f"CREATE DATABASE {identifier(name)}{owner} TEMPLATE template0 ENCODING {literal(shape['encoding'])} "
                f"LC_COLLATE {literal(shape['collate'])} LC_CTYPE {literal(shape['ctype'])}{locale_clause(shape)}{tablespace}"
            ],
            self.lobby(),
        )

    def lobby(self) -> str:
        """Return a database to be connected to while databases are made, renamed and removed: never the live one."""
        return "postgres" if self.client.name != "postgres" else "template1"

    def role(self) -> str:
        """Return the role of ``app_database``, as the server knows it."""
        return str(self.client.query("SELECT to_json(current_user::text)"))

    def require_other(self, name: str) -> None:
        """See :meth:`ServerEngine.require_other`: a pooler may lead elsewhere than it says.

        :raises Problem: when it is not, or is not where the live one is.
        """
        query = "SELECT oid::text || ' ' || (SELECT system_identifier FROM pg_control_system()) FROM pg_database WHERE datname = current_database()"
        here = self.trial.client.statements([query], name).strip()
        live = self.client.statements([query], self.client.name).strip()
        strange = self.trial is self and here.split()[-1] != live.split()[-1]
        if here == live or strange:
            raise Problem(
                f"The scratch database {name} at {self.trial.client.address()} is not a second database beside {self.client.name} (found "
                f"{here}, the live one is {live}): a pooler may lead elsewhere; name the server itself in app_database."
            )

    def load_trial(self, dump: Path, name: str) -> None:
        """See :meth:`ServerEngine.load_trial`."""
        self.load(dump, name, faithful=False)

    def load(self, dump: Path, name: str, *, faithful: bool) -> None:
        """Restore *dump* into the empty database *name*.

        :param faithful: keep the owners and rights of the objects; otherwise all belongs to the application's role.
        :raises Problem: at the first error.
        """
        client = self.maker if faithful else self.client
        # Not in backups/, which is closed to everybody else.
        with working_directory(dump.parents[2] / "scratch") as directory:
            path = unpack(dump, directory)
            # A schema goes back to its owner only where an administrator restores.
            owner = None if faithful and self.has_admin else self.role()
            listing = prepare(path, name, self.maker, owner)
            for mine in (path, directory):
                os.chown(mine, *owner_of(client.login.os_user))
            argv = [
                tool("pg_restore", "postgresql-client"), *client.arguments(name), "--exit-on-error", f"--jobs={JOBS}",
                f"--use-list={listing}",
            ]  # fmt: skip
            if not faithful:
                argv += ["--no-owner", "--no-acl"]
            elif not self.has_admin:
                # Only an administrator gives objects away; what the role owns it makes, and grants to others as before.
                argv.append("--no-owner")
            environment = self._plain_environment(client)
            # A trial that a crash of the server throws away is no loss; what is meant to stay is written as ever.
            environment["PGOPTIONS"] = "-c synchronous_commit=" + ("on" if faithful else "off")
            if version(self.server_version())[:1] >= (14,):
                # One job waits for another; the limits that are older pg_restore lifts itself.
                environment["PGOPTIONS"] += " -c idle_session_timeout=0"
            argv.append(str(path))
            done = pipeline(
                [Stage(argv, environment, client.login.os_user)], timeout=LONGEST, secrets=client.secrets
            )[0]
        if done[0] != 0:
            said = first_error(done[1])
            raise Problem(
                f"The backup {dump.parent.name.lstrip('.')} could not be restored into the database {name} at {self.client.address()}: pg_restore ended with "
                f"{exit_words(done[0])}: {said.rstrip('.')}; the live database was not touched; {failure_advice(said)}.",
                "\n".join(done[1].splitlines()[-20:]),
            )

    def database_contents(self, name: str, framework: str, client: Client | None = None) -> Contents:
        """Return what the database *name* of this server holds, as the application's role or *client* sees it."""
        with (client or self.client).session(name) as session:
            return Contents(count_rows(session), read_applied(session, framework), "full", [])

    def differences(self, scratch: Mapping[str, str], manifest: Mapping[str, Any]) -> list[str]:
        """See :meth:`Engine.differences`: extensions, views, triggers, routines, indexes and constraints; a scratch has no rights."""
        return self.trial.catalog_differences(scratch["name"], manifest, rights=False)

    def catalog_differences(
        self, name: str, manifest: Mapping[str, Any], *, rights: bool = True
    ) -> list[str]:
        """Return in words how the definitions in the database *name*, with *rights* owners and rights too, differ from those in *manifest*."""
        with self.client.session(name) as session:
            found = definition_differences(read_catalog(session), manifest)
        return [text for text in found if rights or not text.startswith("rights ")]

    def snapshot(self, scratch: Mapping[str, str]) -> dict[str, Any]:
        """See :meth:`Engine.snapshot`."""
        from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_compare import snapshot

        with self.client.session(scratch["name"]) as session:
            return snapshot(session)

    def drop(self, name: str) -> None:
        """Remove the database *name*, whoever is connected to it."""
        self.maker.statements(
            [
                f"SELECT count(pg_terminate_backend(pid)) FROM {SESSIONS} AND datname = {literal(name)}",
                f"DROP DATABASE IF EXISTS {identifier(name)}",
            ],
            self.lobby(),
        )
