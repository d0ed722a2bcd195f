# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inside a Django application: its connections go to the scratch database, and each is asked whether it does.

Runs in the application's Python (3.8 and up, Django 3.2 and up), loaded by ``_agent_runtime.py`` before
``_agent_django.py``; imports nothing of the collection, and Django only inside functions.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import copy
import os
import sys
from typing import Any

# Members of OPTIONS that name a database and would win over NAME: libpq's, and those of the drivers for MySQL.
NAMING_OPTIONS = ("dbname", "database", "db")
# What a connection is asked: which database it is on.
SQL_WHERE = {"postgresql": "SELECT current_database()", "mysql": "SELECT DATABASE()"}
# What tells two servers, and two databases of a server, apart. Asked one by one: each may be unknown or forbidden.
# pg_control_system() and pg_database.oid are the same for every way to the same database; @@server_uuid is MySQL's,
# MariaDB has @@server_uid since 10.10 and before that nothing but where it runs.
SQL_IDENTITY = {
    "postgresql": {
        "server": ("SELECT system_identifier::text FROM pg_control_system()",),
        "oid": ("SELECT oid::text FROM pg_database WHERE datname = current_database()",),
    },
    "mysql": {
        "server": (
            "SELECT @@server_uuid",
            "SELECT CONCAT(@@hostname, ':', @@datadir, ':', @@port)",
        ),
    },
}


class ScratchRefusal(Exception):
    """The application cannot be kept away from live data; its text is the sentence for the operator."""


def vendor_of(settings_dict: dict[str, Any]) -> str:
    """Return ``postgresql``, ``mysql``, ``sqlite``, …: what the backend says of itself, so that wrappers count.

    ``django_prometheus.db.backends.postgresql``, ``psqlextra.backend`` and PostGIS all derive from Django's own.
    """
    engine = str(settings_dict.get("ENGINE") or "")
    if not engine or engine == "django.db.backends.dummy":
        return ""
    from django.db.utils import load_backend

    return str(load_backend(engine).DatabaseWrapper.vendor)


def described(settings_dict: dict[str, Any]) -> dict[str, str]:
    """Return engine, name, host and port of a connection: no user, no password, no options."""
    return {key.lower(): str(settings_dict.get(key) or "") for key in ("ENGINE", "NAME", "HOST", "PORT")}


def point_to_scratch(context: Any, configured: dict[str, Any], database: dict[str, Any]) -> list[str]:
    """Replace the default connection in place, before any model exists that could use it.

    Other connections are switched off, except those to a database of the same name (a second way to it, or a replica
    of it): the code under test has no business with live data. Returns the names of those that are off.

    :param database: the scratch ``{engine, path}``, or ``{engine, name}`` with ``host`` and ``port`` where the server
        is another than that of the settings. User and password stay those of the settings, where it has none.
    """
    default = configured.get("default") or {}
    vendor = vendor_of(default)
    if vendor != database["engine"]:
        raise ScratchRefusal(
            f"the scratch database is one of {database['engine']}, but the application's settings use "
            f"{default.get('ENGINE')!r}: app_database.engine must name the engine of the settings"
        )
    before = copy.deepcopy(described(default))
    _replace(default, database)
    disabled = []
    for alias, settings_dict in configured.items():
        if alias == "default":
            continue
        if _is_same(settings_dict, before, vendor):
            test = settings_dict.get("TEST")
            settings_dict.clear()
            settings_dict.update(copy.deepcopy(default))
            if test is not None:
                settings_dict["TEST"] = test
        elif settings_dict.get("ENGINE"):
            settings_dict["ENGINE"] = "django.db.backends.dummy"
            disabled.append(alias)
    _guard(context, database)
    return disabled


def _is_same(settings_dict: dict[str, Any], default: dict[str, str], vendor: str) -> bool:
    other = described(settings_dict)
    if other == default:
        return True
    mirror = (settings_dict.get("TEST") or {}).get("MIRROR")
    if mirror == "default":
        return True
    return (
        vendor in SQL_WHERE
        and bool(other["name"])
        and other["name"] == default["name"]
        and (vendor_of(settings_dict) == vendor)
    )


def _replace(settings_dict: dict[str, Any], database: dict[str, Any]) -> None:
    settings_dict["NAME"] = database.get("path") or database["name"]
    for key in ("host", "port", "user", "password"):
        if database.get(key):
            settings_dict[key.upper()] = str(database[key])
    if database.get("host") and not database.get("port"):
        # Another server's: the usual one.
        settings_dict["PORT"] = ""
    options = settings_dict.get("OPTIONS")
    if isinstance(options, dict):
        for key in NAMING_OPTIONS:
            options.pop(key, None)


# --- every connection is asked ---


def _guard(context: Any, database: dict[str, Any]) -> None:
    """See that every connection that is ever opened in this process is one to the scratch, before it is used.

    At the class, because each thread has connections of its own, and some are copies that no handler has made.
    """
    from django.db.backends.base.base import BaseDatabaseWrapper

    original = BaseDatabaseWrapper.connect

    def connect(connection: Any) -> None:
        if "get_new_connection" not in vars(connection):
            _watch(context, connection, database)
        original(connection)

    BaseDatabaseWrapper.connect = connect


def _watch(context: Any, connection: Any, database: dict[str, Any]) -> None:
    """Wrap ``get_new_connection`` of *connection*, which every backend has for itself."""
    opened = connection.get_new_connection

    def get_new_connection(parameters: Any) -> Any:
        raw = opened(parameters)
        problem = _misplaced(connection, raw, database)
        if problem:
            raw.close()
            stop(context, problem)
        return raw

    connection.get_new_connection = get_new_connection


def stop(context: Any, message: str) -> None:
    """Answer the present request with *message* and end the process: the application could catch an exception."""
    describe = sys.modules["_runbook_runtime"].describe_error
    context.channel.send({"error": describe(ScratchRefusal(message))})
    os._exit(1)


def _misplaced(connection: Any, raw: Any, database: dict[str, Any]) -> str:
    """Return a sentence when the driver's connection *raw* is not one to the scratch, else ""."""
    vendor = connection.vendor
    if vendor == "sqlite":
        rows = raw.execute("PRAGMA database_list").fetchall()
        found = {row[1]: row[2] for row in rows if row[2] and row[1] != "temp"}
        wanted = os.path.realpath(database.get("path") or "")
        fine = {os.path.realpath(path) for path in found.values()} == {wanted}
    elif vendor in SQL_WHERE:
        wanted = database.get("name")
        found = ask(raw, SQL_WHERE[vendor])
        fine = found == wanted
        for key, statements in SQL_IDENTITY[vendor].items():
            expected = (database.get("identity") or {}).get(key)
            if fine and expected:
                present = _first_answer(raw, statements)
                fine = present in (None, str(expected))
                found = found if fine else f"{found} of another server ({present})"
    else:
        wanted, found, fine = database.get("path") or database.get("name"), f"a database of {vendor}", False
    if fine:
        return ""
    return (
        f"the connection {connection.alias!r} has {found or 'a database in memory'} open instead of the scratch copy "
        f"{wanted}: the application replaces its database settings while it loads, so its new code cannot be tried "
        "without touching live data"
    )


def ask(raw: Any, statement: str) -> str | None:
    """Return the only value that *statement* gives on the driver's connection *raw*, as text; no transaction is left."""
    cursor = raw.cursor()
    try:
        cursor.execute(statement)
        row = cursor.fetchone()
    finally:
        cursor.close()
        raw.rollback()
    value = row[0] if row else None
    return value.decode() if isinstance(value, bytes) else None if value is None else str(value)


def _first_answer(raw: Any, statements: Any) -> str | None:
    for statement in statements:
        try:
            found = ask(raw, statement)
        except Exception:
            # Forbidden, or a variable that only the other maker's server has.
            raw.rollback()
            continue
        if found:
            return found
    return None


def prove_scratch(context: Any, connections: Any, database: dict[str, Any]) -> None:
    """Ask every open or possible connection where it is; anything but the scratch stops the process."""
    for alias in connections:
        connection = connections[alias]
        if connection.vendor not in ("sqlite", *SQL_WHERE):
            continue
        # A connection object made while the application was loading has copied its settings before.
        if connection.connection is None:
            _replace(connection.settings_dict, database)
        connection.ensure_connection()
        problem = _misplaced(connection, connection.connection, database)
        if problem:
            stop(context, problem)


# --- which database is it? ---


def where(context: Any) -> dict[str, Any]:
    """Return ``{name, server, oid}`` of the default connection as its server says; "" where it does not say."""
    from django.db import connections

    connection = connections[context.memory["alias"]]
    answer = {"name": "", "server": "", "oid": ""}
    if connection.vendor not in SQL_WHERE:
        return answer
    connection.ensure_connection()
    raw = connection.connection
    answer["name"] = ask(raw, SQL_WHERE[connection.vendor]) or ""
    for key, statements in SQL_IDENTITY[connection.vendor].items():
        answer[key] = _first_answer(raw, statements) or ""
    return answer


OPERATIONS = {"where": where}
