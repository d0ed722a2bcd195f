# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations inside a Django application before its migrations are rehearsed: no mail, no network, locks are told.

Runs in the application's Python (3.8 and up, Django 3.2 and up), loaded by ``_agent_runtime.py``; imports nothing of
the collection, and Django only inside functions.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import socket
import sys
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
    "SELECT n.nspname, c.relname, l.mode FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
    "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE l.pid = pg_backend_pid() AND l.granted "
    "AND c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
)
MAIL = "django.core.mail.backends.locmem.EmailBackend"


def isolate(context: Any) -> dict[str, Any]:
    """Send mail into memory and let nobody connect to anything but the database; return what was switched off.

    Connections are refused where Python makes them: mail, HTTP, Redis, message brokers. A driver that connects by
    itself in C, as that of PostgreSQL does, is not seen, which is why its connections are asked where they lead.
    """
    from django.conf import settings

    off = []
    if settings.EMAIL_BACKEND != MAIL:
        settings.EMAIL_BACKEND = MAIL
        off.append("mail")
    _refuse_connections(context, _allowed(context))
    off.append("network")
    return {"off": off}


def _allowed(context: Any) -> set[tuple[str, int]]:
    """Return the addresses of the scratch database, for drivers that connect in Python."""
    from django.db import connections

    settings_dict = connections[context.memory["alias"]].settings_dict
    host, port = str(settings_dict.get("HOST") or "localhost"), settings_dict.get("PORT")
    found = {(host, int(port))} if port else {(host, 3306), (host, 5432)}
    for name, number in list(found):
        with contextlib.suppress(OSError):
            found |= {entry[4][:2] for entry in socket.getaddrinfo(name, number, type=socket.SOCK_STREAM)}
    return found


def _refuse_connections(context: Any, allowed: set[tuple[str, int]]) -> None:
    def guarded(original: Any) -> Any:
        def connect(self: Any, address: Any) -> Any:
            if self.family != socket.AF_UNIX and tuple(address[:2]) not in allowed:
                place = ":".join(str(part) for part in address[:2])
                context.emit(event="refused", address=place)
                raise ConnectionRefusedError(f"connections to {place} are off while migrations are rehearsed")
            return original(self, address)

        return connect

    class Guarded(socket.socket):
        connect = guarded(socket.socket.connect)
        connect_ex = guarded(socket.socket.connect_ex)

    # socket.create_connection, http.client and the clients built on them look the class up in the module.
    socket.socket = Guarded  # type: ignore[misc]
    ssl = sys.modules.get("ssl")
    if ssl is not None and hasattr(ssl, "SSLSocket"):
        ssl.SSLSocket.connect = guarded(ssl.SSLSocket.connect)


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
        cursor.execute(SQL_LOCKS)
        rows = cursor.fetchall()
    strongest: dict[str, str] = {}
    for schema, name, mode in rows:
        table = name if schema == "public" else f"{schema}.{name}"
        if mode not in ORDINARY and mode in MODES:
            known = strongest.get(table, MODES[0])
            strongest[table] = max(known, mode, key=MODES.index)
    return [{"table": table, "lock": mode} for table, mode in sorted(strongest.items())]


OPERATIONS = {"isolate": isolate, "tell_locks": tell_locks}
