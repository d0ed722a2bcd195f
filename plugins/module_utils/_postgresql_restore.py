# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put a restored PostgreSQL database in the place of the live one: two renames in one transaction, nobody connected.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._backup import differences
from ansible_collections.runbook.deploy.plugins.module_utils._openers import Opener
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql import Postgresql
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_catalog import SHAPE
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_client import (
    SESSIONS,
    Session,
    grants,
    identifier,
    literal,
    named,
)
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_losses import losses
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._restore import ServerRestorer

# Databases of restores.
STAGED = re.compile(r"_restore_[0-9a-f]{8}$")
# Seconds for sessions to end after they were told to.
GONE = 15.0
POLL = 0.1
# Rights and settings that belong to the database itself and are in no dump of it.
RIGHTS = """SELECT coalesce(json_agg(json_build_array(pg_get_userbyid(nullif(a.grantee, 0)), a.privilege_type, a.is_grantable)
 ORDER BY 1::text), '[]') FROM pg_database d CROSS JOIN aclexplode(d.datacl) a WHERE d.datname = {name}"""
SETTINGS = """SELECT coalesce(json_agg(json_build_array(CASE s.setrole WHEN 0 THEN NULL ELSE pg_get_userbyid(s.setrole) END, c)), '[]')
 FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase CROSS JOIN unnest(s.setconfig) c WHERE d.datname = {name}"""


class PostgresqlRestorer(ServerRestorer):
    """The engine ``postgresql``: a new database beside the live one takes its name."""

    engine: Postgresql

    def __init__(self, engine: Postgresql) -> None:
        super().__init__(engine)
        self.live = engine.client.name
        self.staged: str | None = None
        self.framework = "none"

    def space(self, size: int) -> list[tuple[Path, int]]:
        """See :meth:`Restorer.space`: it lies with the server, and is as large as the present one; the dump is small."""
        return self.engine.server_space(max(size, self.engine.size()))

    def names(self, kind: str) -> str:
        """Return a new name made of the live database's, for a ``restore`` or a ``broken`` one."""
        ending = f"_restore_{secrets.token_hex(4)}"
        if kind == "broken":
            ending = f"_broken_{time.strftime('%Y%m%dt%H%M%S', time.gmtime())}"
        return named(self.live, ending)

    def losses(self, backup: Path, present: Path | None, framework: str) -> dict[str, dict[str, Any]]:
        """See :meth:`Restorer.losses`: the backup is restored for it, and compared with the live database."""
        del present
        self.framework = framework
        staged = self.stage(backup, None)
        with self.engine.maker.session(self.live) as now, self.engine.maker.session(staged) as then:
            return losses(now, then, framework)

    def tidy(self, backups: Path | None = None) -> None:
        """See :meth:`Restorer.tidy`: half-made databases go, and a live one that was closed is opened again."""
        maker, lobby = self.engine.maker, self.engine.lobby()
        found = maker.rows("SELECT datname AS name, datallowconn AS open FROM pg_database", lobby)
        stem = self.names("restore").rsplit("_restore_", 1)[0]
        for row in found:
            if row["name"] == self.live and not row["open"]:
                maker.statements([f"ALTER DATABASE {identifier(self.live)} ALLOW_CONNECTIONS true"], lobby)
            elif STAGED.sub("", row["name"]) == stem and STAGED.search(row["name"]):
                self.engine.drop(row["name"])

    def stage(self, dump: Path, user: str | None) -> str:
        """See :meth:`Restorer.stage`; the same database is answered when it was made before."""
        del user
        if self.staged is not None:
            return self.staged
        name = self.names("restore")
        self.staged = name
        self.engine.create(name)
        self._settle_like_live(name)
        self.engine.load(dump, name, faithful=True)
        return name

    def _settle_like_live(self, name: str) -> None:
        """Give the database *name* the rights and settings of the live one."""
        client, maker = self.engine.client, self.engine.maker
        statements = []
        shape = client.rows(SHAPE.format(name=literal(self.live)))[0]
        acl = client.query(
            f"SELECT to_json(datacl IS NOT NULL) FROM pg_database WHERE datname = {literal(self.live)}"
        )
        place = identifier(name)
        if acl:
            statements += [
                f"REVOKE ALL ON DATABASE {place} FROM PUBLIC",
                f"REVOKE ALL ON DATABASE {place} FROM {identifier(shape['owner'])}",
            ]
            statements += grants(f"DATABASE {place}", client.query(RIGHTS.format(name=literal(self.live))))
        for role, setting in client.query(SETTINGS.format(name=literal(self.live))):
            key, _equals, value = setting.partition("=")
            target = f"ROLE {identifier(role)} IN DATABASE {place}" if role else f"DATABASE {place}"
            statements.append(f"ALTER {target} SET {key} TO {literal(value)}")
        if shape["connections"] != -1:
            statements.append(f"ALTER DATABASE {place} CONNECTION LIMIT {shape['connections']}")
        if shape["comment"] is not None:
            statements.append(f"COMMENT ON DATABASE {place} IS {literal(shape['comment'])}")
        if statements:
            maker.statements(statements, self.engine.lobby())

    def staged_differences(self, staged: Any, manifest: Mapping[str, Any]) -> list[str]:
        """See :meth:`Restorer.staged_differences`; the database's own rights and settings are compared with the live one's."""
        # The administrator reads objects of other roles, too.
        contents = self.engine.database_contents(staged, manifest.get("framework", "none"), self.engine.maker)
        found = differences(manifest, contents) + self.engine.catalog_differences(staged, manifest)
        client = self.engine.client
        for what, query in (("rights", RIGHTS), ("settings", SETTINGS)):
            new, old = (
                sorted(map(str, client.query(query.format(name=literal(each)))))
                for each in (staged, self.live)
            )
            if new != old:
                found.append(f"the {what} of the database itself are {new}, expected {old}")
        shapes = [client.rows(SHAPE.format(name=literal(each)))[0] for each in (staged, self.live)]
        found += [
            f"the {key} of the database is {shapes[0][key]}, expected {shapes[1][key]}"
            for key in (
                "owner",
                "encoding",
                "collate",
                "ctype",
                "provider",
                "locale",
                "rules",
                "connections",
                "comment",
            )
            if shapes[0][key] != shapes[1][key]
        ]
        return found

    def discard(self) -> None:
        """See :meth:`Restorer.discard`."""
        if self.staged is not None:
            with contextlib.suppress(Problem):
                self.engine.drop(self.staged)
            self.staged = None

    def swap(
        self, mark: Any, root: Path, timeout: float, *, lost: dict[str, Any], consent: bool
    ) -> tuple[bool, str | None, list[Opener]]:
        """See :meth:`Restorer.swap`."""
        del mark, root
        if self.staged is None:
            raise Problem(
                "Nothing was staged, so nothing can be exchanged: this is an error of the collection, report it."
            )
        maker, lobby = self.engine.maker, self.engine.lobby()
        live, staged, kept = identifier(self.live), identifier(self.staged), self.names("broken")
        limit = max(timeout, GONE)
        # Opened before the door is closed, and the last one to leave.
        with contextlib.ExitStack() as stack:
            present = stack.enter_context(maker.session(self.live))
            present.ask("SELECT 1")
            maker.statements([f"ALTER DATABASE {live} ALLOW_CONNECTIONS false"], lobby)
            stack.callback(self._open_again, self.live)
            self._end_sessions(self.live, limit, except_for=present)
            with maker.session(self.staged) as restored:
                again = losses(present, restored, self.framework)
            if again != lost and again and not consent:
                return False, None, []
            lost.clear()
            lost.update(again)
            present.close()
            self._end_sessions(self.live, limit)
            self._end_sessions(self.staged, limit)
            maker.statements(
                [
                    f"BEGIN; ALTER DATABASE {live} RENAME TO {identifier(kept)}; ALTER DATABASE {staged} RENAME TO {live}; COMMIT"
                ],
                lobby,
            )
            self.staged = None
            self._open_again(kept)
        return True, kept, []

    def _open_again(self, name: str) -> None:
        self.engine.maker.statements(
            [f"ALTER DATABASE {identifier(name)} ALLOW_CONNECTIONS true"], self.engine.lobby()
        )

    def _end_sessions(self, name: str, limit: float, except_for: Session | None = None) -> None:
        """End every session of the database *name* but one of ours.

        :raises Problem: when some are still there after *limit* seconds.
        """
        own = int(except_for.query("SELECT pg_backend_pid()")) if except_for else 0
        where = f"{SESSIONS} AND datname = {literal(name)} AND pid <> {own}"
        deadline = time.monotonic() + limit
        while True:
            self.engine.maker.statements(
                [f"SELECT count(pg_terminate_backend(pid)) FROM {where}"],
                self.engine.lobby(),
            )
            left = self.engine.maker.rows(
                f"SELECT pid, application_name AS who, usename::text AS role FROM {where}",
                self.engine.lobby(),
            )
            if not left:
                return
            if time.monotonic() >= deadline:
                who = ", ".join(f"{row['pid']} ({row['role']} {row['who']})" for row in left[:5])
                raise Problem(
                    f"Sessions of the database {name} did not end within {limit:g} s: {who}; nothing was restored; end them by hand "
                    "(pg_terminate_backend) and try again."
                )
            time.sleep(POLL)
