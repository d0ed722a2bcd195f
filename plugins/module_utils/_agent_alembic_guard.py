# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inside an application with SQLAlchemy: connections go to the scratch, and each is asked whether it does.

At the events of SQLAlchemy's classes, so that every engine counts: those of ``create_engine``, ``engine_from_config`` and
their asynchronous likes, those made before, and those of Flask-SQLAlchemy. Their URLs stay as the application wrote them.

Runs in the application's Python (3.8 and up, SQLAlchemy 1.4 and up), loaded by ``_agent_runtime.py``; imports nothing of
the collection, and SQLAlchemy only inside functions. Source: "Core Events" of SQLAlchemy's documentation
(``DialectEvents.do_connect``, ``PoolEvents.connect``), "Transactions with SQLite and the sqlite3 driver".

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import sys
from typing import Any
from urllib.parse import unquote

# What the drivers call the database.
NAMES = ("dbname", "database", "db")
SERVERS = ("postgresql", "mysql")


def _part(name: str) -> Any:
    return sys.modules["_runbook_" + name]


def guard(context: Any, scratch: dict[str, Any] | None, live: dict[str, Any]) -> None:
    """Watch every connection of the process; with *scratch* those to *live* go there, and all others end the process.

    :param scratch: ``{engine, path}``, or ``{engine, name}`` with ``host``, ``port`` and ``identity`` where they are to be
        used; None: connections go where the application says. :param live: ``app_database``.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine
    from sqlalchemy.pool import Pool

    context.memory["scratch"] = scratch
    guarded = _Guard(context, scratch, live)
    if scratch:
        event.listen(Engine, "do_connect", guarded.redirect)
        sys.addaudithook(guarded.audit)
    event.listen(Engine, "do_connect", guarded.note_dialect)
    event.listen(Pool, "connect", guarded.connected)


class _Guard:
    def __init__(self, context: Any, scratch: dict[str, Any] | None, live: dict[str, Any]) -> None:
        self.context = context
        self.scratch = scratch or {}
        self.live = live
        self.vendors: dict[int, str] = {}

    # --- before a connection is opened ---

    def note_dialect(self, dialect: Any, record: Any, arguments: Any, named: Any) -> None:
        """Remember of which engine a connection will be: the pool's event does not say it."""
        del arguments, named
        self.vendors[id(record)] = _part("alembic").vendor_of(dialect)

    def redirect(self, dialect: Any, _record: Any, arguments: list[Any], named: dict[str, Any]) -> None:
        """Change the arguments of a connection to the live database, so that it is one to the scratch."""
        vendor = _part("alembic").vendor_of(dialect)
        if vendor == "sqlite":
            self._redirect_file(arguments, named)
        elif vendor in SERVERS:
            self._redirect_server(arguments, named)

    def _redirect_file(self, arguments: list[Any], named: dict[str, Any]) -> None:
        given = arguments[0] if arguments else named.get("database")
        path = file_of(given)
        if path is None or not self.scratch.get("path"):
            return
        if os.path.realpath(path) != os.path.realpath(self.live.get("path") or ""):
            return
        named.pop("uri", None)
        if arguments:
            arguments[0] = self.scratch["path"]
        else:
            named["database"] = self.scratch["path"]

    def _redirect_server(self, arguments: list[Any], named: dict[str, Any]) -> None:
        if not self.scratch.get("name"):
            return
        key = next((key for key in NAMES if named.get(key)), None)
        if key is None or str(named[key]) != str(self.live.get("name") or named[key]):
            return
        named[key] = self.scratch["name"]
        if self.scratch.get("host") and not self.scratch.get("port"):
            # Another server's: the usual one.
            named.pop("port", None)
        if self.scratch.get("password"):
            # What mysqlclient calls it.
            named.pop("passwd", None)
        for member in ("host", "port", "user", "password"):
            if self.scratch.get(member):
                named[member] = int(self.scratch[member]) if member == "port" else self.scratch[member]

    def audit(self, name: str, arguments: Any) -> None:
        """End the process before SQLite opens the live file for code that does not use SQLAlchemy."""
        if name != "sqlite3.connect" or not self.live.get("path"):
            return
        path = file_of(arguments[0])
        if path is not None and os.path.realpath(path) == os.path.realpath(self.live["path"]):
            self._stop(f"something in the application opens the live database {path} by itself")

    # --- after it was opened, before it is used ---

    def connected(self, raw: Any, record: Any) -> None:
        """Ask the driver's connection where it is; elsewhere than the scratch, the process ends."""
        vendor = self.vendors.pop(id(record), "")
        if self.scratch:
            problem = self._misplaced(vendor, raw)
            if problem:
                self._stop(problem)
        self._remember(vendor, raw)

    def _misplaced(self, vendor: str, raw: Any) -> str:
        ask = _part("scratch")
        if vendor in ("", "sqlite") and _is_sqlite(raw):
            found = _files(raw)
            wanted = self.scratch.get("path")
            if not found or {os.path.realpath(path) for path in found} == {os.path.realpath(wanted or "")}:
                return ""
            return f"a connection has {', '.join(found)} open instead of the scratch copy {wanted}" + WHY
        if vendor not in SERVERS or vendor != self.scratch["engine"]:
            return (
                f"a connection to a database of {vendor or 'an unknown kind'} was opened, which has no scratch copy"
                + WHY
            )
        found = ask.ask(raw, ask.SQL_WHERE[vendor])
        if found != self.scratch.get("name"):
            return (
                f"a connection is on {found!r} instead of the scratch copy {self.scratch.get('name')!r}" + WHY
            )
        for key, statements in ask.SQL_IDENTITY[vendor].items():
            expected = (self.scratch.get("identity") or {}).get(key)
            present = ask._first_answer(raw, statements) if expected else None
            if present not in (None, str(expected)):
                return f"a connection is on {found!r} of another server ({present})" + WHY
        return ""

    def _remember(self, vendor: str, raw: Any) -> None:
        place = self.context.memory["place"]
        if vendor not in SERVERS or place["name"]:
            return
        ask = _part("scratch")
        place["name"] = ask.ask(raw, ask.SQL_WHERE[vendor]) or ""
        for key, statements in ask.SQL_IDENTITY[vendor].items():
            place[key] = ask._first_answer(raw, statements) or ""

    def _stop(self, message: str) -> None:
        _part("scratch").stop(self.context, message)


WHY = ": the new code cannot be tried without touching other data"


def file_of(name: Any) -> str | None:
    """Return the file that the *name* given to sqlite3.connect means; None for a database in memory."""
    text = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else ""
    if text.startswith("file:"):
        path, _mark, query = text[5:].partition("?")
        text = unquote(path)
        if text.startswith("//"):
            text = "/" + text.lstrip("/")
        if "mode=memory" in query:
            return None
    return None if text in ("", ":memory:") else text


def _is_sqlite(raw: Any) -> bool:
    return "sqlite" in type(raw).__module__ + type(raw).__name__.lower()


def _files(raw: Any) -> list[str]:
    cursor = raw.cursor()
    try:
        cursor.execute("PRAGMA database_list")
        return [row[2] for row in cursor.fetchall() if row[2] and row[1] != "temp"]
    finally:
        cursor.close()


# --- transactions of SQLite ---


def driver_connection(connection: Any) -> Any:
    """Return the driver's connection below SQLAlchemy's *connection*, with the usual interface also where it is asynchronous."""
    proxied = connection.connection
    return getattr(proxied, "dbapi_connection", None) or proxied.connection


def begin_sqlite(connection: Any) -> None:
    """Begin what SQLAlchemy calls a transaction: Python's driver begins none before a change of the schema.

    Without it, what a revision did before it failed would stay, though SQLite can take it back. Where the application has
    switched the driver's own transactions off, it does this itself or means it so.
    """
    if connection.dialect.name != "sqlite":
        return
    raw = driver_connection(connection)
    if getattr(raw, "isolation_level", None) is not None and not getattr(raw, "in_transaction", True):
        cursor = raw.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        cursor.close()


OPERATIONS: dict[str, Any] = {}
