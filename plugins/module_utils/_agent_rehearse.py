# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations inside a Django application before its migrations are rehearsed: no mail, no network, locks are told.

Runs in the application's Python (3.8 and up, Django 3.2 and up), loaded by ``_agent_runtime.py`` after
``_agent_offline.py``; imports nothing of the collection, and Django only inside functions.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterable, Sequence
from typing import Any

# Weakest first (https://www.postgresql.org/docs/current/explicit-locking.html, table-level lock modes). The first
# three are what reading and writing rows takes, and keep nobody from doing the same.
MODES = (
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)
ORDINARY = MODES[:3]
SQL_LOCKS = (
    "SELECT n.nspname AS place, c.relname AS name, l.mode AS mode FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
    "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE l.granted "
    "AND c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
)


def isolate(context: Any) -> dict[str, Any]:
    """Send mail and tasks into memory and let nobody connect to anything but the database.

    :return: ``{off, network}``: what was switched off, and how the network was, see ``_agent_offline.cut_off``.
    """
    from django.db import connections

    offline = sys.modules["_runbook_offline"]
    off = [name for name, done in (("mail", offline.mail_off()), ("broker", offline.broker_off())) if done]
    connection = connections[context.memory["alias"]]
    network = offline.cut_off(context, _allowed(connection), by_socket=_by_socket(connection))
    return {"off": [*off, "network"], "network": network}


def _allowed(connection: Any) -> set[tuple[str, int]]:
    """Return the addresses of the scratch database, for drivers that connect in Python."""
    settings_dict = connection.settings_dict
    host, port = str(settings_dict.get("HOST") or "localhost"), settings_dict.get("PORT")
    found = {(host, int(port))} if port else {(host, 3306), (host, 5432)}
    for name, number in list(found):
        with contextlib.suppress(OSError):
            found |= {entry[4][:2] for entry in socket.getaddrinfo(name, number, type=socket.SOCK_STREAM)}
    return found


def _by_socket(connection: Any) -> bool:
    """Return whether the database is reached without any network, so that further connections are possible, too."""
    settings_dict = connection.settings_dict
    if connection.vendor == "postgresql":
        # Asked, because libpq takes the host from many places.
        with connection.cursor() as cursor:
            cursor.execute("SELECT inet_server_addr() IS NULL")
            return bool(cursor.fetchone()[0])
    if connection.vendor == "mysql":
        options = settings_dict.get("OPTIONS") or {}
        return str(settings_dict.get("HOST") or "").startswith("/") or bool(options.get("unix_socket"))
    return bool(connection.vendor == "sqlite")


def tell_locks(context: Any) -> dict[str, Any]:
    """Have each migration of PostgreSQL tell, before its transaction ends, which tables it has locked how."""
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor

    enter = BaseDatabaseSchemaEditor.__enter__

    def entered(editor: Any) -> Any:
        result = enter(editor)
        if editor.connection.vendor == "postgresql" and getattr(editor, "atomic_migration", False):
            leave = editor.atomic.__exit__

            def left(kind: Any, value: Any, trace: Any) -> Any:
                if kind is None:
                    context.emit(event="locks", locks=_locks(editor.connection))
                return leave(kind, value, trace)

            editor.atomic.__exit__ = left
        return result

    BaseDatabaseSchemaEditor.__enter__ = entered
    return {}


def _locks(connection: Any) -> list[dict[str, str]]:
    with connection.cursor() as cursor:
        cursor.execute(f"{SQL_LOCKS} AND l.pid = pg_backend_pid()")
        return strongest(cursor.fetchall())


def strongest(rows: Iterable[Sequence[str]]) -> list[dict[str, str]]:
    """Return the strongest lock of each table as ``[{table, lock}]``, without those that keep nobody waiting.

    :param rows: schema, name and mode, the columns of ``SQL_LOCKS``.
    """
    found: dict[str, str] = {}
    for schema, name, mode in rows:
        table = name if schema == "public" else f"{schema}.{name}"
        if mode not in ORDINARY and mode in MODES:
            found[table] = max(found.get(table, mode), mode, key=MODES.index)
    return [{"table": table, "lock": mode} for table, mode in sorted(found.items())]


OPERATIONS = {"isolate": isolate, "tell_locks": tell_locks}
