# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a SQLite database one question that cannot change it; see ``_sql_session.py``.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import shlex
import sqlite3
import time
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._sql_session import (
    BYTES,
    ROWS,
    WIDTH,
    Answer,
    Session,
    Unasked,
)
from ansible_collections.runbook.deploy.plugins.module_utils._sqlite import LOCKED, uri

# Instructions of SQLite's machine between two looks at the clock; about a millisecond.
STEPS = 10000
# What a statement may do (https://www.sqlite.org/c3ref/c_alter_table.html). Python 3.9 has no name for SQLITE_RECURSIVE.
ALLOWED = frozenset((sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, getattr(sqlite3, "SQLITE_FUNCTION", 31), 33))
# Pragmas that only tell something; with an argument some would set it, but query_only and the file's mode are in their way.
PRAGMAS = frozenset(
    (
        *("table_info", "table_xinfo", "index_list", "index_info", "index_xinfo", "foreign_key_list", "foreign_key_check"),
        *("integrity_check", "quick_check", "database_list", "table_list", "collation_list", "compile_options"),
        *("user_version", "schema_version", "application_id", "page_count", "page_size", "freelist_count"),
        *("journal_mode", "encoding", "auto_vacuum", "data_version"),
    )
)  # fmt: skip
# Those whose argument says what is asked; of all others an argument is a new value.
ARGUMENTS = frozenset(name for name in PRAGMAS if name.endswith(("_info", "_xinfo", "_list", "_check")))


def _authorize(action: int, first: Any, second: Any, _database: Any, _trigger: Any) -> int:
    if action in ALLOWED:
        return sqlite3.SQLITE_OK
    name = str(first).lower()
    if action == sqlite3.SQLITE_UPDATE and name == "sqlite_master":
        # What SQLite itself says when a table-valued function such as json_each is used first; the file stays read-only.
        return sqlite3.SQLITE_OK
    tells = action == sqlite3.SQLITE_PRAGMA and name in (PRAGMAS if second is None else ARGUMENTS)
    return sqlite3.SQLITE_OK if tells else sqlite3.SQLITE_DENY


class SqliteSession(Session):
    """The file of a SQLite database, by the standard library."""

    engine = "sqlite"

    def __init__(self, path: str) -> None:
        self.path = path

    def place(self) -> str:
        """See :meth:`Session.place`."""
        return f"SQLite database {self.path}"

    def ask(self, sql: str, timeout: float) -> Answer:
        """See :meth:`Session.ask`."""
        begun = time.monotonic()
        limit = begun + timeout
        if not os.path.isfile(self.path):
            raise Unasked("there is no such file", "connection")
        try:
            connection = sqlite3.connect(
                uri(self.path, mode="ro"), uri=True, timeout=timeout, isolation_level=None
            )
        except sqlite3.Error as error:
            raise Unasked(str(error), "connection") from error
        opened = False
        try:
            connection.text_factory = lambda value: value.decode("utf-8", "replace")
            connection.execute("PRAGMA query_only = ON")
            # Reads the file's head, so that what is no database is told from a wrong statement.
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            opened = True
            connection.set_authorizer(_authorize)
            connection.set_progress_handler(lambda: int(time.monotonic() >= limit), STEPS)
            cursor = connection.execute(sql)
            columns = [column[0] for column in cursor.description or ()]
            rows: list[list[Any]] = []
            size = 0
            for row in cursor:
                if len(rows) == ROWS:
                    return Answer(columns, rows, True, time.monotonic() - begun)
                rows.append([_plain(value) for value in row])
                size += sum(len(str(value)) for value in row)
                if size > BYTES:
                    raise Unasked(f"the answer has more than {BYTES} bytes", "size")
            return Answer(columns, rows, False, time.monotonic() - begun)
        except (sqlite3.Error, sqlite3.Warning) as error:
            if "interrupted" in str(error) or LOCKED.search(str(error)):
                why = "another process holds its lock" if LOCKED.search(str(error)) else "it was not done"
                raise Unasked(f"no answer within {timeout:.1f} s: {why}", "time") from error
            raise Unasked(str(error), "statement" if opened else "connection") from error
        finally:
            connection.close()

    def repeat(self, sql: str) -> str:
        """See :meth:`Session.repeat`."""
        return shlex.join(["sqlite3", "-readonly", self.path, sql])


def _plain(value: Any) -> Any:
    """Return *value* as JSON has it; of bytes their number is all that can be shown."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return value[:WIDTH] if isinstance(value, str) else value
