# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SQLite: reading a live database without disturbing it, copying it while it is written, judging a copy.

A live database is never opened by anything but SQLite itself while this process has a connection to it:
closing any other descriptor of the file would drop the locks of the whole process
(https://www.sqlite.org/howtocorrupt.html, 2.2).

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ansible_collections.runbook.deploy.plugins.module_utils._database import ALEMBIC, Engine
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Seconds to wait for a lock that the application holds; Django's own default is 5.
BUSY_TIMEOUT = 10.0
# Above this many bytes a database that is not in WAL mode is first copied in steps, because one step keeps its
# writers waiting: 485 MB were copied in 0.6 s, and Django gives up waiting after 5 s.
LARGEST_STEP = 1024 * 1024 * 1024
# A writer makes a copy in steps start again; so often it may, before one step is taken.
RESTARTS = 2
# Files that SQLite keeps beside a database (https://www.sqlite.org/tempfiles.html).
COMPANIONS = ("-wal", "-shm", "-journal")
SQL_APPLIED = {
    "django": "SELECT app, name FROM django_migrations ORDER BY id",
    "alembic": f"SELECT '{ALEMBIC}', version_num FROM alembic_version ORDER BY version_num",
}
# A check that needs a function, a collation or a module of the application's, which only its own code defines.
FOREIGN_CODE = (
    "no such collation",
    "no such function",
    "no such module",
    "unknown function",
    "unknown tokenizer",
)


def uri(path: str | os.PathLike[str], **parameters: str) -> str:
    """Return the URI of *path* for :func:`sqlite3.connect`, safe for any byte in it."""
    query = "&".join(f"{key}={value}" for key, value in parameters.items())
    return f"file:{quote(os.fsencode(path))}?{query}"


def identifier(name: str) -> str:
    """Return *name* quoted as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


@contextlib.contextmanager
def reading(path: Path, **parameters: str) -> Iterator[sqlite3.Connection]:
    """Open *path* with the URI *parameters*, in autocommit mode; close it at the end.

    Root needs no care for ``-wal`` and ``-shm``: SQLite gives files that it makes as root the owner of the
    database (``robustFchown`` in os_unix.c; there is a test for it).
    """
    connection = sqlite3.connect(
        uri(path, **parameters), uri=True, timeout=BUSY_TIMEOUT, isolation_level=None
    )
    try:
        # Bytes that are no UTF-8 in a text column must not end a backup.
        connection.text_factory = lambda value: value.decode("utf-8", "surrogateescape")
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def live(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the live database at *path* for reading.

    A transaction that a crash cut short has to be rolled back before anybody can read, which a read-only
    connection may not do ("hot journal"); then it is opened as the application would open it.

    :raises Problem: when it cannot be opened or is no database.
    """
    try:
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(reading(path, mode="ro"))
            try:
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            except sqlite3.OperationalError as error:
                if "readonly" not in str(error):
                    raise
                connection = stack.enter_context(reading(path, mode="rw"))
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            yield connection
    except sqlite3.Error as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: BaseException) -> Problem:
    """Return the Problem for a live database that SQLite refuses."""
    text = str(error)
    if "locked" in text or "busy" in text:
        advice = f"another process has held its lock for {BUSY_TIMEOUT:g} s; find it with 'fuser {path}'"
    elif "unable to open" in text or "readonly" in text:
        advice = "its file and directory must be readable and writable for the user who runs this"
    else:
        advice = "it is damaged or no SQLite database; restore a backup, or correct app_database.path"
    return Problem(f"The database at app_database.path ({path}) cannot be read: {text}; {advice}.")


def read_applied(connection: sqlite3.Connection, framework: str) -> list[list[str]] | None:
    """Return the applied migrations; None for a framework without a table, or when the table is missing."""
    if framework not in SQL_APPLIED:
        return None
    table = "django_migrations" if framework == "django" else "alembic_version"
    found = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type IN ('table', 'view') AND name = ?", (table,)
    )
    if found.fetchone() is None:
        return None
    return [[str(app), str(name)] for app, name in connection.execute(SQL_APPLIED[framework])]


class Sqlite(Engine):
    """The engine ``sqlite``: ``app_database.path`` is the absolute path of the file."""

    name = "sqlite"
    dump_name = "database.sqlite3"

    def __init__(self, database: Mapping[str, Any]) -> None:
        super().__init__(database)
        path = database.get("path")
        if not path or not os.path.isabs(str(path)):
            raise Problem(
                f"app_database.path is {path!r}, but the engine sqlite needs the absolute path of the database "
                "file: set app_database.path to a path outside the releases."
            )
        # The file itself: a link stays a link, and companions lie beside the file.
        self.path = Path(os.path.realpath(str(path)))
        if self.path.exists() and not self.path.is_file():
            raise Problem(
                f"app_database.path ({path}) is no file: set it to the file of the SQLite database."
            )

    def present(self) -> bool:
        """Return whether there is a file that is not empty (an empty one is what opening a new one makes)."""
        try:
            return self.path.stat().st_size > 0
        except FileNotFoundError:
            return False
        except OSError as error:
            raise unreadable(self.path, error) from error

    def applied(self, framework: str) -> list[list[str]] | None:
        """See :func:`_database.applied`."""
        if framework not in SQL_APPLIED or not self.present():
            return None
        with live(self.path) as connection:
            return read_applied(connection, framework)
