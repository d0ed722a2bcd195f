# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The session in which a Django application migrates, and what is told of each migration while it runs.

Runs in the application's Python (3.8 and up, Django 3.2 and up), loaded by ``_agent_runtime.py`` before
``_agent_apply.py``; imports nothing of the collection, and Django only inside functions.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

# Statements of an operation that are told to the host, and how much of each.
TOLD_STATEMENTS = 40
LONGEST_STATEMENT = 300
# What is read does not change anything, and what is begun or ended is no statement of the migration's.
SILENT = re.compile(
    r"\s*(?:SELECT|SHOW|PRAGMA|SAVEPOINT|RELEASE|ROLLBACK|BEGIN|COMMIT|EXPLAIN)\b", re.IGNORECASE
)
LITERAL = re.compile(r"'(?:[^']|'')*'")
SPACE = re.compile(r"\s+")


# --- the session ---


def _part(name: str) -> Any:
    """Return another part of the agent."""
    return sys.modules["_runbook_" + name]


def _refusal(text: str) -> Exception:
    return _part("migrate").MigrationRefusal(text)


def _query(connection: Any) -> Any:
    """Return a query of ``_agent_session.py`` on the Django *connection*."""

    def query(statement: str, parameters: Any = ()) -> Any:
        with connection.cursor() as cursor:
            cursor.execute(statement, tuple(parameters) or None)
            return cursor.fetchall() if cursor.description else []

    return query


def _second(connection: Any) -> Any:
    """Return what opens another session with the settings of *connection*."""

    def second() -> Any:
        # A wrapper of its own: Django's are bound to the thread that made them.
        other = type(connection)(dict(connection.settings_dict), connection.alias)
        other.ensure_connection()
        return _query(other), other.close

    return second


class Session:
    """The migrating session, as a context manager: prepared, locked, watched.

    :param lock_timeout: seconds that a statement may wait for a lock.
    """

    def __init__(self, connection: Any, lock_timeout: float) -> None:
        self.connection = connection
        self.vendor = connection.vendor
        self.lock_timeout = lock_timeout
        self.query = _query(connection)
        self.parts = _part("session")
        self.watcher: Any = None
        self.invalid: list[str] = []

    def __enter__(self) -> Any:
        if self.vendor == "sqlite":
            # One writer and one host: the deployment's own lock is enough.
            return self
        if self.vendor not in ("postgresql", "mysql"):
            raise _refusal(f"migrations of the engine {self.vendor!r} are not supported")
        from django.db.backends.signals import connection_created

        self.connection.ensure_connection()
        if self.vendor == "postgresql":
            self.parts.refuse_pooler(self.query, _second(self.connection))
        self.parts.take_lock(self.vendor, self.query)
        self.parts.limit_waiting(self.vendor, self.query, self.lock_timeout)
        # A migration may close the connection; what is opened then must not wait for ever either.
        connection_created.connect(self._connected, weak=False, dispatch_uid="runbook")
        self.invalid = self.parts.invalid_indexes(self.vendor, self.query)
        if self.vendor == "postgresql":
            pid = self.query("SELECT pg_backend_pid()")[0][0]
            self.watcher = self.parts.Watcher(pid, _second(self.connection))
            self.watcher.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self.vendor == "sqlite":
            return
        from django.db.backends.signals import connection_created

        connection_created.disconnect(dispatch_uid="runbook")
        if self.watcher is not None:
            self.watcher.stop()
        # The end of the session gives the lock back where this does not reach the server any more.
        with contextlib.suppress(Exception):
            if self.connection.connection is not None and not self.connection.in_atomic_block:
                self.parts.release_lock(self.vendor, self.query)

    def _connected(self, connection: Any, **_facts: Any) -> None:
        if connection is self.connection:
            self.parts.limit_waiting(self.vendor, self.query, self.lock_timeout)

    def check(self) -> None:
        """See, before a migration begins, that the lock is still this session's."""
        if not self.parts.holds_lock(self.vendor, self.query):
            raise _refusal(
                "the session has lost the lock of the migrations, because the migration before it closed the "
                "connection or the server did: nothing further was done, so begin the deployment again"
            )

    def new_invalid(self) -> list[str]:
        """Return the invalid indexes that were not there at the begin."""
        try:
            found = self.parts.invalid_indexes(self.vendor, self.query)
        except Exception:
            return []
        return [text for text in found if text not in self.invalid]

    def blockers(self) -> list[str]:
        """Return who kept the session waiting, or else the oldest transactions of others."""
        if self.watcher is not None and self.watcher.blockers:
            return list(self.watcher.blockers)
        return self.parts.long_transactions(self.vendor, self.query)


# --- progress ---


class Progress:
    """Tells the host about each begin and end: of migrations, of their operations, of statements that stay."""

    def __init__(self, context: Any, session: Any) -> None:
        self.context = context
        self.session = session
        self.connection = session.connection
        self.begun = 0.0
        self.key: dict[str, str] = {}
        self.running = False
        self.undone = False
        self.told = 0

    def __call__(self, action: str, migration: Any = None) -> None:
        if migration is None:
            return
        self.key = {"app": migration.app_label, "name": migration.name}
        if action in ("apply_start", "unapply_start"):
            self.session.check()
            # Whether nothing of it remains when it fails: MySQL cannot roll back changes of the schema.
            self.undone = bool(migration.atomic and self.connection.features.can_rollback_ddl)
            self.running = True
            self.context.emit(event=action, atomic=self.undone, **self.key)
            self.begun = time.monotonic()
        elif action in ("apply_success", "unapply_success"):
            self.running = False
            seconds = round(time.monotonic() - self.begun, 3)
            self.context.emit(event=action, seconds=seconds, **self.key)

    @contextlib.contextmanager
    def operations(self) -> Iterator[None]:
        """Report each operation of each migration, and the statements that cannot be rolled back."""
        from django.db.migrations.migration import Migration

        originals = {name: getattr(Migration, name) for name in ("apply", "unapply")}
        progress = self

        def wrap(name: str) -> Any:
            def run(migration: Any, project_state: Any, schema_editor: Any, collect_sql: bool = False) -> Any:
                if collect_sql or schema_editor.connection is not progress.connection:
                    return originals[name](migration, project_state, schema_editor, collect_sql)
                with progress._watched(migration, name):
                    return originals[name](migration, project_state, schema_editor, collect_sql)

            return run

        self.connection.execute_wrappers.append(self._statement)
        for name in originals:
            setattr(Migration, name, wrap(name))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(Migration, name, original)
            self.connection.execute_wrappers.remove(self._statement)

    @contextlib.contextmanager
    def _watched(self, migration: Any, name: str) -> Iterator[None]:
        """Wrap the operations of *migration* while it runs; an instance's attribute hides the method of its class."""
        method = "database_forwards" if name == "apply" else "database_backwards"
        operations = list(migration.operations)
        for position, operation in enumerate(operations, 1):
            self._announce(operation, method, position, len(operations))
        try:
            yield
            # What the schema editor has put off runs when it is closed, after this.
            self._begin(len(operations), len(operations), "the statements put off to the end", True)
        finally:
            for operation in operations:
                vars(operation).pop(method, None)

    def _announce(self, operation: Any, method: str, position: int, total: int) -> None:
        original = getattr(operation, method)

        def database(*arguments: Any, **named: Any) -> Any:
            self._begin(position, total, str(operation.describe()))
            return original(*arguments, **named)

        setattr(operation, method, database)

    def _begin(self, position: int, total: int, description: str, deferred: bool = False) -> None:
        self.told = 0
        self.tell(event="operation", index=position, of=total, description=description, deferred=deferred)

    def tell(self, **event: Any) -> None:
        """Tell a detail. A host that is gone must not stop a migration in its middle, but before the next one."""
        with contextlib.suppress(OSError):
            self.context.emit(**event, **self.key)

    def _statement(self, execute: Any, sql: Any, parameters: Any, many: bool, context: Any) -> Any:
        result = execute(sql, parameters, many, context)
        if (
            self.running
            and not self.undone
            and "django_migrations" not in str(sql)
            and not SILENT.match(str(sql))
            and self.told < TOLD_STATEMENTS
        ):
            self.told += 1
            text = SPACE.sub(" ", LITERAL.sub("'…'", str(sql))).strip()[:LONGEST_STATEMENT]
            self.tell(event="statement", sql=text)
        return result


OPERATIONS: dict[str, Any] = {}
