# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The session in which a revision of Alembic runs: locked, limited, watched; one for each run of env.py.

Runs in the application's Python (3.8 and up, SQLAlchemy 1.4 and up), loaded by ``_agent_runtime.py``; imports nothing of
the collection, and SQLAlchemy only inside functions.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import re
import sys
from typing import Any

PARAMETER = re.compile(r"%s")


def _part(name: str) -> Any:
    """Return another part of the agent."""
    return sys.modules["_runbook_" + name]


def query_of(connection: Any) -> Any:
    """Return a query of ``_agent_session.py`` on the *connection* of SQLAlchemy."""
    from sqlalchemy import text

    def query(statement: str, parameters: Any = ()) -> Any:
        values = {f"p{position}": value for position, value in enumerate(parameters)}
        if values:
            numbers = iter(range(len(values)))
            statement = PARAMETER.sub(lambda _match: f":p{next(numbers)}", statement)
        result = connection.execute(text(statement), values)
        return [tuple(row) for row in result] if result.returns_rows else []

    return query


def second_of(connection: Any) -> Any:
    """Return what opens another session of the same engine, outside any transaction."""
    engine = connection.engine

    def second() -> Any:
        other = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        return query_of(other), other.close

    return second


class Session:
    """The session of one revision: locked, limited, watched. As a context manager.

    :param lock_timeout: seconds that a statement may wait for a lock; :param first: whether it is the first of a series.
    """

    def __init__(self, migration: Any, lock_timeout: float, first: bool) -> None:
        self.migration = migration
        self.connection = migration.connection
        self.vendor = _part("alembic").vendor_of(migration.dialect)
        self.lock_timeout = lock_timeout
        self.first = first
        self.query = query_of(self.connection)
        self.second = second_of(self.connection)
        self.parts = _part("session")
        self.watcher: Any = None
        self.invalid: list[str] = []

    def begin(self) -> None:
        """Prepare the session before the first statement of the revision."""
        if self.vendor == "sqlite":
            return
        if self.vendor not in ("postgresql", "mysql"):
            raise _part("alembic").AlembicRefusal(
                f"migrations of the engine {self.vendor!r} are not supported"
            )
        if self.vendor == "postgresql" and self.first:
            probe, close = self.second()
            try:
                self.parts.refuse_pooler(probe, self.second)
            finally:
                close()
        self.parts.take_lock(self.vendor, self.query)
        self.parts.limit_waiting(self.vendor, self.query, self.lock_timeout)
        self.invalid = self.parts.invalid_indexes(self.vendor, self.query)
        pid = self.query("SELECT pg_backend_pid()")[0][0] if self.vendor == "postgresql" else None
        self._see_the_present()
        if pid is not None:
            self.watcher = self.parts.Watcher(pid, self.second)
            self.watcher.start()

    def _see_the_present(self) -> None:
        """End the view of the data that was taken before the lock: in MySQL a transaction sees what was there at its begin."""
        transaction = getattr(self.connection, "get_transaction", lambda: None)()
        managed = self.migration._transaction is not None or self.migration._in_external_transaction
        if self.vendor == "mysql" and transaction is not None and not managed:
            transaction.rollback()

    def end(self) -> None:
        """Stop looking, and end the session where a pool would keep it: its end gives the lock back."""
        if self.watcher is not None:
            self.watcher.stop()
        if self.vendor != "sqlite":
            with contextlib.suppress(Exception):
                self.connection.engine.dispose()

    def blockers(self) -> list[str]:
        """Return who kept the session waiting, or else the oldest transactions of others."""
        if self.watcher is not None and self.watcher.blockers:
            return list(self.watcher.blockers)
        with contextlib.suppress(Exception):
            look, close = self.second()
            try:
                return self.parts.long_transactions(self.vendor, look)
            finally:
                close()
        return []

    def new_invalid(self) -> list[str]:
        """Return the invalid indexes that were not there at the begin."""
        with contextlib.suppress(Exception):
            look, close = self.second()
            try:
                found = self.parts.invalid_indexes(self.vendor, look)
            finally:
                close()
            return [text for text in found if text not in self.invalid]
        return []


OPERATIONS: dict[str, Any] = {}
