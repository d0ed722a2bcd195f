# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The application's database, whatever engine it has: which migrations are applied, which engine answers.

An engine is a class with the interface of :class:`Engine`; ``engine_of`` is the only place that chooses one.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

ENGINES = ("sqlite", "postgresql", "mysql")
# In the directory of a scratch database that is on a server: what it is called there, written before it is made.
SCRATCH_NOTE = "database.json"
# The application name under which the rows of alembic_version are listed; Alembic has no apps.
ALEMBIC = "alembic"
# The frameworks that keep a table of what is applied, and the names of these tables.
FRAMEWORKS_WITH_TABLE = ("django", "alembic")
MIGRATION_TABLES = frozenset(("django_migrations", "alembic_version"))

# The option `database` of the modules. It takes all of app_database, so that what another engine needs is known
# and its password hidden before engine_of refuses it.
DATABASE_OPTION: dict[str, Any] = {
    "type": "dict",
    "required": True,
    "options": {
        "engine": {"type": "str", "required": True},
        "path": {"type": "path"},
        "shared": {"type": "bool"},
        "name": {"type": "str"},
        "host": {"type": "str"},
        "port": {"type": "int"},
        "user": {"type": "str"},
        "password": {"type": "str", "no_log": True},
        "nontransactional": {"type": "str", "choices": ["refuse", "lock"]},
        "scratch": {
            "type": "dict",
            "options": {
                "host": {"type": "str"},
                "port": {"type": "int"},
                "user": {"type": "str"},
                "password": {"type": "str", "no_log": True},
            },
        },
    },
}

# The same for modules that have something to do where there is no database, too; see named().
OPTIONAL_DATABASE: dict[str, Any] = {
    "type": "dict",
    "options": {**DATABASE_OPTION["options"], "engine": {"type": "str"}},
}

# The option `database_admin`: who may make, rename and remove databases.
ADMIN_OPTION: dict[str, Any] = {
    "type": "dict",
    "options": {
        "user": {"type": "str"},
        "password": {"type": "str", "no_log": True},
        "os_user": {"type": "str"},
    },
}

# How app_database names a server of this host.
LOCAL = ("", "localhost", "127.0.0.1", "::1")


def place_for(database: Mapping[str, Any], password: str, os_user: str | None) -> Mapping[str, Any]:
    """Return *database* as one who logs in has to reach it: an operating-system user without a password is known by the
    local socket alone, also where the application comes by TCP.
    """
    if os_user and not password and str(database.get("host") or "") in LOCAL:
        return {**database, "host": ""}
    return database


def trial_server(database: Mapping[str, Any], lobby: str) -> dict[str, Any] | None:
    """Return the server of ``app_database.scratch`` as an ``app_database`` of its own; None where copies are tried beside the live one.

    What it does not name is as for the live database.

    :param lobby: the database there that one is connected to while others are made.
    """
    given = {key: value for key, value in (database.get("scratch") or {}).items() if value not in (None, "")}
    if not given:
        return None
    # Another server's port and credentials are not those of the live one's by chance; a role's name and password go together.
    found = {
        "engine": database.get("engine"),
        "name": lobby,
        "host": given.get("host") or database.get("host"),
    }
    found["port"] = given.get("port") or (None if given.get("host") else database.get("port"))
    found["user"] = given.get("user") or database.get("user")
    found["password"] = given.get("password") or (None if given.get("user") else database.get("password"))
    return found


def on_scratch(live: Mapping[str, Any] | None, scratch: Mapping[str, Any]) -> dict[str, Any]:
    """Return an ``app_database`` that reaches the *scratch* of the database *live*, with the password that *scratch* never has."""
    database = dict(live or {})
    elsewhere = trial_server(database, "")
    if elsewhere and is_at(elsewhere, scratch):
        database.update(elsewhere)
    database.pop("scratch", None)
    return {**database, **scratch}


def is_at(server: Mapping[str, Any], note: Mapping[str, Any]) -> bool:
    """Return whether the scratch of *note* lies on *server*: the same host and port."""
    return all(str(server.get(key) or "") == str(note.get(key) or "") for key in ("host", "port"))


class Damaged(Problem):
    """The data itself cannot be trusted, live or copied; no lack of space, rights or patience."""


class Contents(NamedTuple):
    """What a database holds.

    ``counts``: rows of each ordinary table; ``applied``: as :func:`applied`; ``integrity``: ``full``, ``partial``
    (the engine lacks a function or collation of the application's, so indexes were not compared with their
    tables) or ``none`` (not asked for); ``violations``: foreign keys that point nowhere, each as
    ``[table, rowid, parent, number]``.
    """

    counts: dict[str, int]
    applied: list[list[str]] | None
    integrity: str
    violations: list[list[Any]]


class Engine:
    """What backup, restore and the measured state ask of an engine.

    :param database: ``app_database``; :param admin: ``app_database_admin``; :param user: the application's user, who
        logs in by a socket's peer where no password is given.
    """

    name = ""
    #: the dump's name in a backup's directory
    dump_name = ""

    def __init__(
        self, database: Mapping[str, Any], admin: Mapping[str, Any] | None = None, user: str | None = None
    ) -> None:
        self.database = database
        self.admin = admin
        self.user = user

    def place(self) -> str:
        """Return where the database is, for messages and manifests; without a password."""
        raise NotImplementedError

    def identity(self) -> dict[str, str]:
        """Return ``{server, oid}`` as the server says of itself, by which two ways to it are compared; {} for a file."""
        return {}

    def exists(self) -> bool:
        """Return whether there is a database with anything in it."""
        raise NotImplementedError

    def size(self) -> int:
        """Return the bytes that a copy of the database needs."""
        raise NotImplementedError

    def server_space(self, size: int) -> list[tuple[Path, int]]:
        """Return where on this host a second database of *size* bytes would lie with the server; [] where that is not known."""
        return []

    def scratch_space(self, size: int) -> list[tuple[Path, int]]:
        """Return the same for a scratch database, which may be on another server."""
        return self.server_space(size)

    def migration_space(self, size: int) -> list[tuple[Path, int]]:
        """Return where on this host migrations write a copy of the tables they change; [] where they do not, or it is not known."""
        return []

    def tools(self) -> dict[str, str]:
        """Return the versions of what makes and reads dumps."""
        raise NotImplementedError

    def applied(self, framework: str) -> list[list[str]] | None:
        """Return the applied migrations; see :func:`applied`."""
        raise NotImplementedError

    def dump(self, target: Path) -> dict[str, Any]:
        """Write a consistent copy of the live database to the new file *target*; return facts for the manifest."""
        raise NotImplementedError

    def contents(self, dump: Path, framework: str, *, integrity_check: bool) -> Contents:
        """Read the dump at *dump* and, with *integrity_check*, check all of it; raise :class:`Damaged`."""
        raise NotImplementedError

    def live_violations(self) -> list[list[Any]]:
        """Return the foreign keys of the live database that point nowhere, as in :class:`Contents`."""
        raise NotImplementedError

    def is_live(self, path: str | os.PathLike[str]) -> bool:
        """Return whether *path*, where a scratch is to be, is the live database or holds it."""
        raise NotImplementedError

    def scratch(self, dump: Path | None, directory: Path, owner: tuple[int, int]) -> dict[str, str]:
        """Restore *dump* (None: an empty database) for a trial; return an ``app_database`` that names it."""
        raise NotImplementedError

    def scratch_contents(self, scratch: Mapping[str, str], framework: str) -> Contents:
        """Read and check the whole of what :meth:`scratch` has made."""
        raise NotImplementedError

    def differences(self, scratch: Mapping[str, str], manifest: Mapping[str, Any]) -> list[str]:
        """Return in words how what :meth:`scratch` has made differs from *manifest*, rows and migrations apart."""
        return []

    def snapshot(self, scratch: Mapping[str, str]) -> dict[str, Any]:
        """Return what the scratch database holds, to be compared with another moment; see ``_compare.py``."""
        raise NotImplementedError

    def drop_scratch(self, scratch: Mapping[str, str]) -> None:
        """Remove what :meth:`scratch` has made."""
        raise NotImplementedError

    def warnings(self) -> list[str]:
        """Return what will keep backups or restores from working, a sentence each."""
        return []


def named(database: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the option *database* without what was not given; None where no engine is named."""
    found = {key: value for key, value in (database or {}).items() if value is not None}
    return found if found.get("engine") else None


def engine_of(
    database: Mapping[str, Any], admin: Mapping[str, Any] | None = None, user: str | None = None
) -> Engine:
    """Return the engine for ``database["engine"]``; the other parameters are those of :class:`Engine`.

    :raises Problem: for an engine that this version does not know.
    """
    name = database.get("engine")
    given = {key: value for key, value in (admin or {}).items() if value} or None
    # Imported here, because a host that asks for another engine may have a Python without sqlite3.
    if name == "sqlite":
        from ansible_collections.runbook.deploy.plugins.module_utils._sqlite import Sqlite

        return Sqlite(database, given, user)
    if name == "postgresql":
        from ansible_collections.runbook.deploy.plugins.module_utils._postgresql import Postgresql

        return Postgresql(database, given, user)
    if name == "mysql":
        from ansible_collections.runbook.deploy.plugins.module_utils._mysql import Mysql

        return Mysql(database, given, user)
    raise Problem(
        f"app_database.engine is {name!r}, but this version of runbook.deploy supports {' and '.join(ENGINES)} only: set "
    )


def applied(
    database: Mapping[str, Any],
    framework: str,
    admin: Mapping[str, Any] | None = None,
    user: str | None = None,
) -> list[list[str]] | None:
    """Return the applied migrations as ``[app, name]``, in the order in which they were applied.

    :param database: ``app_database``; the others as for :class:`Engine`.
    :param framework: ``django`` (rows of ``django_migrations``) or ``alembic`` (rows of ``alembic_version`` as
        ``["alembic", version]``); for any other the answer is None.
    :returns: None where there is no database or no such table; ``[]`` where the table is empty.
    :raises Problem: for a database that cannot be read, or an engine that is not supported.
    """
    return engine_of(database, admin, user).applied(framework)


def heads(rows: Iterable[Sequence[str]] | None) -> dict[str, list[str]]:
    """Return the last migration of each app in *rows*, the answer of :func:`applied`.

    Alembic's table holds nothing but heads, so that all of its rows count.
    """
    result: dict[str, list[str]] = {}
    for app, name in rows or ():
        if app == ALEMBIC:
            result.setdefault(app, []).append(name)
        else:
            result[app] = [name]
    return {app: sorted(names) for app, names in result.items()}
