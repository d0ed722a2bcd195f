# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore a PostgreSQL database schema by schema, for a role that may not make databases.

The backup is restored into schemas beside the live ones, in one transaction that nobody sees before it ends: the live schemas
take other names in it, the dump is run, and the new schemas take other names themselves. The swap is one transaction of renames.
What belongs to the database and to no schema (extensions, publications, casts) stays as it is.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._backup import (
    differences,
    owner_of,
    working_directory,
)
from ansible_collections.runbook.deploy.plugins.module_utils._database import Contents
from ansible_collections.runbook.deploy.plugins.module_utils._openers import Opener
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql import Postgresql
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_catalog import (
    ASIDE,
    count_rows,
    read_applied,
    read_catalog,
)
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_client import (
    SESSIONS,
    Session,
    grants,
    identifier,
    literal,
    named,
)
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_load import (
    LONGEST,
    in_schemas,
    unpack,
    write_script,
)
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_losses import losses
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._restore import ServerRestorer
from ansible_collections.runbook.deploy.plugins.module_utils._server import definition_differences

STAGED = re.compile(r"^(.*)_restore_[0-9a-f]{8}$")
# Schemas of users, without those that a restore has put aside: the extensions in each, and what else is there. What an
# extension consists of belongs to the server's first superuser, so that an ordinary role can never move it (commands/extension.c).
SCHEMAS = f"""SELECT n.nspname AS name, pg_get_userbyid(n.nspowner) AS owner, pg_has_role(n.nspowner, 'USAGE') AS mine,
 n.nspacl IS NOT NULL AS listed, obj_description(n.oid, 'pg_namespace') AS comment,
 (SELECT coalesce(json_agg(e.extname ORDER BY 1), '[]') FROM pg_extension e WHERE e.extnamespace = n.oid) AS extensions,
 EXISTS (SELECT 1 FROM (SELECT 'pg_class'::regclass AS kind, oid, relnamespace AS place FROM pg_class
   UNION ALL SELECT 'pg_proc'::regclass, oid, pronamespace FROM pg_proc UNION ALL SELECT 'pg_type'::regclass, oid, typnamespace FROM pg_type) o
  WHERE o.place = n.oid AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = o.kind AND d.objid = o.oid AND d.deptype IN ('e', 'i'))) AS used
 FROM pg_namespace n WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' AND n.nspname !~ '{ASIDE}' ORDER BY 1"""
GRANTS = """SELECT coalesce(json_agg(json_build_array(pg_get_userbyid(nullif(a.grantee, 0)), a.privilege_type, a.is_grantable)), '[]')
 FROM pg_namespace n CROSS JOIN aclexplode(n.nspacl) a WHERE n.nspname = {name}"""
OBSTACLES = """SELECT has_database_privilege(current_database(), 'CREATE') AS create,
 (SELECT count(*) FROM pg_largeobject_metadata) AS objects"""
# Kept from writing while what is lost is counted again; reading goes on.
LOCK = "LOCK TABLE {tables} IN EXCLUSIVE MODE"
TABLES = """SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND n.nspname = ANY (ARRAY[{schemas}]) ORDER BY 1"""


def exchanged(schemas: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return those of *schemas*, the rows of ``SCHEMAS``, that are exchanged: one that holds nothing but extensions stays."""
    return [row for row in schemas if row["used"] or not row["extensions"]]


def obstacles(schemas: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[str]:
    """Return why the schemas cannot be exchanged, each as the end of a sentence; [] when they can.

    :param schemas: the rows of ``SCHEMAS``; :param facts: the row of ``OBSTACLES``.
    """
    found = []
    foreign = [f"{row['name']} ({row['owner']})" for row in exchanged(schemas) if not row["mine"]]
    if foreign:
        found.append(f"it does not own the schemas {', '.join(foreign)}")
    if not facts["create"]:
        found.append("it may make no schemas in the database")
    if facts["objects"]:
        found.append(f"the database has {facts['objects']} large objects, which belong to no schema")
    fixed = [f"{name} in {row['name']}" for row in exchanged(schemas) for name in row["extensions"]]
    if fixed:
        found.append(
            f"it may not move the extensions {', '.join(fixed)}, which would have to be in a schema of their own"
        )
    return found


class SchemaRestorer(ServerRestorer):
    """The engine ``postgresql`` without the right to make databases: new schemas take the names of the live ones."""

    engine: Postgresql

    def __init__(self, engine: Postgresql) -> None:
        super().__init__(engine)
        #: name of a live schema to that of the one which is to replace it
        self.staged: dict[str, str] = {}
        self.contents: Contents | None = None
        self.applied: dict[str, list[list[str]] | None] = {}
        self.catalog: dict[str, str] = {}
        self.framework = "none"

    def space(self, size: int) -> list[tuple[Path, int]]:
        """See :meth:`Restorer.space`."""
        return self.engine.server_space(max(size, self.engine.size()))

    def obstacles(self) -> list[str]:
        """Return what :func:`obstacles` finds in the live database."""
        client = self.engine.client
        return obstacles(client.rows(SCHEMAS), client.rows(OBSTACLES)[0])

    def losses(self, backup: Path, present: Path | None, framework: str) -> dict[str, dict[str, Any]]:
        """See :meth:`Restorer.losses`: the backup is restored for it, and compared with the live schemas."""
        del present
        self.framework = framework
        self.stage(backup, None)
        return self._losses()

    def _losses(self) -> dict[str, dict[str, Any]]:
        client = self.engine.client
        with client.session() as now, client.session() as then:
            return losses(now, then, self.framework, self.staged)

    def tidy(self, backups: Path | None = None) -> None:
        """See :meth:`Restorer.tidy`: half-made schemas go."""
        client = self.engine.client
        names = [row["name"] for row in client.rows("SELECT nspname AS name FROM pg_namespace")]
        left = [name for name in names if STAGED.match(name)]
        if left:
            client.statements([f"DROP SCHEMA {identifier(name)} CASCADE" for name in left])

    def stage(self, dump: Path, user: str | None) -> str:
        """See :meth:`Restorer.stage`: in one transaction, so that a kill or an error leaves nothing."""
        del user
        client = self.engine.client
        if self.staged:
            return ", ".join(self.staged.values())
        found = self.obstacles()
        if found:
            role = client.login.user or "of app_database"
            raise Problem(
                f"The role {role} may make no databases at {client.address()}, and cannot restore into schemas either: {'; '.join(found)}; "
                "nothing was restored: name an administrator in app_database_admin."
            )
        mark = secrets.token_hex(4)
        with working_directory(dump.parents[2] / "scratch") as directory:
            staying = [row["name"] for row in client.rows(SCHEMAS) if row["extensions"]]
            script = write_script(unpack(dump, directory), lambda lines: in_schemas(lines, staying))
            for mine in (directory, *directory.iterdir()):
                os.chown(mine, *owner_of(client.login.os_user))
            with client.session() as session:
                self._stage(session, script, mark)
        return ", ".join(self.staged.values())

    def _stage(self, session: Session, script: Path, mark: str) -> None:
        live = exchanged(session.rows(SCHEMAS))
        # While this goes on, only this transaction sees the live schemas under other names.
        away = {row["name"]: named(row["name"], f"_restore_{mark}") for row in live}
        session.ask("BEGIN")
        for name, other in away.items():
            session.ask(f"ALTER SCHEMA {identifier(name)} RENAME TO {identifier(other)}")
        self._make_public(session, live, away)
        try:
            session.ask(f"\\i {literal(str(script))} \\\\ SELECT 1", LONGEST)
        except Problem as problem:
            raise Problem(
                f"The backup could not be restored into schemas of {self.engine.place()}: {problem.message.rstrip('.')}; nothing in the "
                "live schemas was changed.",
                problem.evidence,
            ) from None
        # The script has its own ideas of a session.
        session.ask("RESET ALL")
        self.contents = Contents(count_rows(session), None, "full", [])
        self.applied = {name: read_applied(session, name) for name in ("django", "alembic")}
        self.catalog = read_catalog(session)
        made = {
            row["name"]: named(row["name"], f"_restore_{secrets.token_hex(4)}")
            for row in exchanged(session.rows(SCHEMAS))
        }
        for name, other in made.items():
            session.ask(f"ALTER SCHEMA {identifier(name)} RENAME TO {identifier(other)}")
        for name, other in away.items():
            session.ask(f"ALTER SCHEMA {identifier(other)} RENAME TO {identifier(name)}")
        session.ask("COMMIT")
        self.staged = made

    def _make_public(
        self, session: Session, live: Sequence[Mapping[str, Any]], away: Mapping[str, str]
    ) -> None:
        """Make the schema ``public``, which a dump takes for given, with the owner, rights and comment of the live one."""
        row = next((row for row in live if row["name"] == "public"), None)
        if row is None:
            return
        session.ask("CREATE SCHEMA public")
        session.ask(f"ALTER SCHEMA public OWNER TO {identifier(row['owner'])}")
        if row["comment"] is not None:
            session.ask(f"COMMENT ON SCHEMA public IS {literal(row['comment'])}")
        if not row["listed"]:
            return
        session.ask(f"REVOKE ALL ON SCHEMA public FROM {identifier(row['owner'])}")
        rows = session.query(GRANTS.format(name=literal(away["public"])))
        for statement in grants("SCHEMA public", rows):
            session.ask(statement)

    def staged_differences(self, staged: Any, manifest: Mapping[str, Any]) -> list[str]:
        """See :meth:`Restorer.staged_differences`: what was seen before the new schemas were renamed."""
        if self.contents is None:
            return [f"nothing is known of {staged}"]
        contents = self.contents._replace(applied=self.applied.get(manifest.get("framework", "none")))
        return differences(manifest, contents) + definition_differences(self.catalog, manifest)

    def discard(self) -> None:
        """See :meth:`Restorer.discard`."""
        if self.staged:
            drop = [f"DROP SCHEMA IF EXISTS {identifier(name)} CASCADE" for name in self.staged.values()]
            with contextlib.suppress(Problem):
                self.engine.client.statements(drop)
            self.staged = {}

    def swap(
        self, mark: Any, root: Path, timeout: float, *, lost: dict[str, Any], consent: bool
    ) -> tuple[bool, str | None, list[Opener]]:
        """See :meth:`Restorer.swap`: nobody writes from the lock of all tables to the end of the transaction."""
        del mark, root
        if not self.staged:
            raise Problem(
                "Nothing was staged, so nothing can be exchanged: this is an error of the collection, report it."
            )
        ending = f"_broken_{time.strftime('%Y%m%dt%H%M%S', time.gmtime())}"
        client = self.engine.client
        with client.session() as session:
            live = [row["name"] for row in exchanged(session.rows(SCHEMAS))]
            kept = {name: named(name, ending) for name in live}
            self._end_others(session)
            session.ask(f"BEGIN; SET LOCAL lock_timeout = {max(1, int(timeout * 1000))}")
            schemas = ", ".join(literal(name) for name in live)
            tables = [row["name"] for row in session.rows(TABLES.format(schemas=schemas))] if live else []
            if tables:
                session.ask(LOCK.format(tables=", ".join(tables)), timeout + 10)
            again = self._losses()
            if again != lost and again and not consent:
                session.ask("ROLLBACK")
                return False, None, []
            lost.clear()
            lost.update(again)
            for name, other in kept.items():
                session.ask(f"ALTER SCHEMA {identifier(name)} RENAME TO {identifier(other)}")
            for name, other in self.staged.items():
                session.ask(f"ALTER SCHEMA {identifier(other)} RENAME TO {identifier(name)}")
            session.ask("COMMIT")
            self.staged = {}
            # What they have prepared is of the former tables.
            self._end_others(session)
        return True, ", ".join(f"schema {other}" for other in kept.values()) or None, []

    def _end_others(self, session: Session) -> None:
        """End the other sessions of this role in the live database; those of other roles it may not."""
        session.ask(
            f"SELECT count(pg_terminate_backend(pid)) FROM {SESSIONS} AND datname = {literal(self.engine.client.name)} "
            "AND pid <> pg_backend_pid() AND usename = current_user"
        )
