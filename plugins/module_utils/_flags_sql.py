# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Feature flags in a table of the application's database: one row each, all switched in one transaction.

Names and values are parameters of prepared statements, whatever they hold; the server makes them what the column is.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _mysql_client, _postgresql_client
from ansible_collections.runbook.deploy.plugins.module_utils._command import run
from ansible_collections.runbook.deploy.plugins.module_utils._flags_spec import text_of
from ansible_collections.runbook.deploy.plugins.module_utils._flags_store import Store, Values
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._sql_session import Session, Unasked, session_of

# Seconds that a row may be locked by somebody else.
LOCK = 5


def quoted(engine: str, name: str) -> str:
    """Return a name, with its schema or without, quoted for *engine*."""
    quote = _mysql_client.identifier if engine == "mysql" else _postgresql_client.identifier
    return ".".join(quote(part) for part in name.split("."))


def literal(engine: str, text: str) -> str:
    """Return *text* as a literal of *engine*; for MySQL by its bytes, which no SQL mode reads otherwise."""
    if engine == "mysql":
        return f"CONVERT(X'{text.encode().hex()}' USING utf8mb4)"
    if engine == "sqlite":
        return "'" + text.replace("'", "''") + "'"
    return _postgresql_client.literal(text).strip()


class SqlStore(Store):
    """The table."""

    atomic = True

    def __init__(
        self, store: Mapping[str, Any], database: Mapping[str, Any], user: str | None, timeout: float
    ) -> None:
        self.session: Session = session_of(database, user)
        self.engine = self.session.engine
        self.database = database
        self.table, self.name, self.value = (
            quoted(self.engine, store[key]) for key in ("table", "name_column", "value_column")
        )
        self.called = store["table"]
        self.values = Values(store)
        self.timeout = timeout

    def place(self) -> str:
        """See :meth:`Store.place`."""
        return f"table {self.called} of {self.session.place()}"

    def read(self, names: Sequence[str]) -> dict[str, str | None]:
        """See :meth:`Store.read`."""
        text = "char" if self.engine == "mysql" else "text"
        among = ", ".join(literal(self.engine, name) for name in names)
        sql = f"SELECT CAST({self.name} AS {text}), CAST({self.value} AS {text}) FROM {self.table} WHERE {self.name} IN ({among})"
        try:
            answer = self.session.ask(sql, self.timeout)
        except Unasked as error:
            raise Problem(
                f"The flags in {self.place()} cannot be read: {error.text.rstrip('.')}; correct app_flags.store or app_database."
            ) from error
        found: dict[str, str | None] = dict.fromkeys(names)
        seen = set()
        for name, value in answer.rows:
            if name in seen:
                raise Problem(
                    f"The flag {name!r} has several rows in {self.place()}, expected one: remove the others, or correct "
                    "app_flags.store.name_column."
                )
            seen.add(name)
            if name in found:
                found[name] = self.values.back(value)
        return found

    def write(self, changes: Mapping[str, str | None], go_on: bool = False) -> list[str]:
        """See :meth:`Store.write`: all in one transaction, so all or none."""
        del go_on
        rows = [(text_of(self.values.out(value), name), name) for name, value in changes.items()]
        update = f"UPDATE {self.table} SET {self.value} = {{}} WHERE {self.name} = {{}}"
        WRITERS[self.engine](self, update, rows)
        return []

    def _problem(self, said: str, advice: str, evidence: str = "") -> Problem:
        return Problem(
            f"The flags in {self.place()} cannot be switched: {said.rstrip('.')}; nothing was changed: {advice}.",
            evidence,
        )


def _postgresql(store: SqlStore, update: str, rows: Sequence[tuple[str, str]]) -> None:
    client = store.session.client  # type: ignore[attr-defined]
    milliseconds = int(store.timeout * 1000)
    statements = [
        "BEGIN",
        f"SET LOCAL statement_timeout = {milliseconds}",
        f"SET LOCAL lock_timeout = {min(LOCK * 1000, milliseconds)}",
        f"PREPARE runbook_flag AS {update.format('$1', '$2')}",
    ]
    statements += [
        f"EXECUTE runbook_flag ({literal('postgresql', value)}, {literal('postgresql', name)})"
        for value, name in rows
    ]
    # A pooler gives the connection to others afterwards.
    statements += ["DEALLOCATE runbook_flag", "COMMIT"]
    argv = [*client.psql(), *client.arguments()]
    for statement in statements:
        argv += ["-c", statement]
    environment = {
        "PGAPPNAME": _postgresql_client.APPLICATION,
        "PGCONNECT_TIMEOUT": str(_postgresql_client.CONNECT),
        "PGCLIENTENCODING": "UTF8",
    }
    if client.login.password:
        environment["PGPASSWORD"] = client.login.password
    done = run(
        argv,
        cwd="/",
        environment=environment,
        user=client.login.os_user,
        timeout=store.timeout + _postgresql_client.CONNECT,
        secrets=client.secrets,
    )
    if done.timed_out or done.rc != 0:
        said = "no answer in time" if done.timed_out else _postgresql_client.first_error(done.stderr)
        raise store._problem(said, _postgresql_client.advice(said), done.tail())


def _mysql(store: SqlStore, update: str, rows: Sequence[tuple[str, str]]) -> None:
    client = store.session.client  # type: ignore[attr-defined]
    text = update.format("?", "?")
    statements = [
        f"SET SESSION innodb_lock_wait_timeout = {LOCK}",
        f"SET @runbook_statement = {literal('mysql', text)}",
        "PREPARE runbook_flag FROM @runbook_statement",
        "START TRANSACTION",
    ]
    for value, name in rows:
        statements += [
            f"SET @runbook_value = {literal('mysql', value)}, @runbook_name = {literal('mysql', name)}",
            "EXECUTE runbook_flag USING @runbook_value, @runbook_name",
        ]
    statements.append("COMMIT")
    client.statements(statements, timeout=store.timeout + _mysql_client.CONNECT)


def _sqlite(store: SqlStore, update: str, rows: Sequence[tuple[str, str]]) -> None:
    import sqlite3  # a host that asks for another engine may have a Python without it

    from ansible_collections.runbook.deploy.plugins.module_utils._sqlite import uri

    try:
        connection = sqlite3.connect(
            uri(str(store.database["path"]), mode="rw"), uri=True, timeout=LOCK, isolation_level=None
        )
    except sqlite3.Error as error:
        raise store._problem(str(error), "correct app_database.path") from error
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(update.format("?", "?"), rows)
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        busy = "locked" in str(error) or "busy" in str(error)
        raise store._problem(
            str(error),
            f"another process has kept its lock for {LOCK} s: end it and switch again"
            if busy
            else "correct app_flags.store",
        ) from error
    finally:
        # What is not committed is rolled back.
        connection.close()


WRITERS = {"postgresql": _postgresql, "mysql": _mysql, "sqlite": _sqlite}
