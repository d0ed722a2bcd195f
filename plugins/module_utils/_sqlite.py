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
import re
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ansible_collections.runbook.deploy.plugins.module_utils._database import (
    ALEMBIC,
    Contents,
    Damaged,
    Engine,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Seconds to wait for a lock that the application holds, and between two tries; Django's own limit is 5.
LOCK_TIMEOUT = 30.0
LOCK_WAIT = 0.001
LOCKED = re.compile(r"locked|busy")
# Above this many bytes a database that is not in WAL mode is first copied in steps, because one step keeps its
# writers waiting: 485 MB were copied in 0.6 s, and Django gives up waiting after 5 s.
LARGEST_STEP = 1024 * 1024 * 1024
STEP = 16 * 1024 * 1024
# A writer makes a copy in steps start again; so often it may, before one step is taken.
RESTARTS = 2
STALLED = 5.0
# Files that SQLite keeps beside a database (https://www.sqlite.org/tempfiles.html).
COMPANIONS = ("-wal", "-shm", "-journal")
SQL_APPLIED = {
    "django": "SELECT app, name FROM django_migrations ORDER BY id",
    "alembic": f"SELECT '{ALEMBIC}', version_num FROM alembic_version ORDER BY version_num",
}
# What SQLite says of functions and collations that only the application's own code defines.
FOREIGN_CODE = re.compile(r"(?:no such|unknown) (collation sequence|function): (.+?)(?:\(\))?$")
# SQLITE_FULL, and SQLITE_IOERR, which is what a file size limit or a quota looks like.
NO_ROOM = re.compile(r"is full|disk I/O|No space|quota|too large", re.IGNORECASE)


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
        uri(path, **parameters), uri=True, timeout=LOCK_TIMEOUT, isolation_level=None
    )
    try:
        # Bytes that are no UTF-8 in a text column must not end a backup.
        connection.text_factory = lambda value: value.decode("utf-8", "surrogateescape")
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def live(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the live database at *path* for reading, in a read transaction.

    A transaction that a crash cut short has to be rolled back before anybody can read, which a read-only
    connection may not do ("hot journal"); then it is opened as the application would open it.

    :raises Problem: when it cannot be opened or is no database.
    """
    try:
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(reading(path, mode="ro"))
            try:
                begin_reading(connection)
            except sqlite3.OperationalError as error:
                if "readonly" not in str(error):
                    raise
                connection = stack.enter_context(reading(path, mode="rw"))
                begin_reading(connection)
            yield connection
    except sqlite3.Error as error:
        raise unreadable(path, error) from error


def begin_reading(connection: sqlite3.Connection) -> None:
    """Begin a read transaction, waiting up to ``LOCK_TIMEOUT`` seconds for its lock.

    SQLite itself waits longer and longer between its tries, and misses the short gaps of a constant writer
    (seen: 5 s for a lock that polling gets in 0.1 s).
    """
    connection.execute("PRAGMA busy_timeout = 0")
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            # BEGIN alone takes no lock: the first read does.
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return
        except sqlite3.OperationalError as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if not LOCKED.search(str(error)) or time.monotonic() >= deadline:
                raise
        time.sleep(LOCK_WAIT)


def unreadable(path: Path, error: BaseException) -> Problem:
    """Return the Problem for a live database that SQLite refuses."""
    text = str(error)
    if LOCKED.search(text):
        advice = f"another process has held its lock for {LOCK_TIMEOUT:g} s; find it with 'fuser {path}'"
    elif "unable to open" in text or "readonly" in text:
        advice = "its file and directory must be readable and writable for the user who runs this"
    else:
        advice = "it is damaged or no SQLite database; restore a backup with playbooks/rollback.yml --tags restore, or correct app_database.path"
        return Damaged(f"The database at app_database.path ({path}) cannot be read: {text}; {advice}.")
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


def table_names(connection: sqlite3.Connection, schema: str = "main") -> list[str]:
    """Return the ordinary tables, sorted: no views, no virtual tables (their shadow tables are ordinary), none of
    SQLite's own."""
    rows = connection.execute(
        f"SELECT name FROM {schema}.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' "
        "AND sql NOT LIKE 'CREATE VIRTUAL %' ORDER BY name"
    )
    return [name for (name,) in rows]


def add_stand_ins(connection: sqlite3.Connection, names: set[tuple[str, str]]) -> None:
    """Define the functions and collations in *names*, as (kind, name), that only the application has.

    It has to be done before the first statement. With them statements can be prepared; an order or an index made
    with the real ones cannot be judged.
    """
    for kind, name in names:
        if kind == "function":
            connection.create_function(name, -1, lambda *_values: None, deterministic=True)
        else:
            connection.create_collation(name, lambda left, right: (left > right) - (left < right))


def integrity_faults(connection: sqlite3.Connection) -> list[str]:
    """Check every page and index; return what is wrong, at most 100 lines."""
    found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
    return [] if found == ["ok"] else found


def read_tables(connection: sqlite3.Connection, tables: list[str]) -> None:
    """Read every row of *tables*: what can be checked where indexes need the application's own code."""
    for table in tables:
        for _row in connection.execute(f"SELECT * FROM {identifier(table)} NOT INDEXED"):
            pass


def foreign_keys(connection: sqlite3.Connection) -> list[list[Any]]:
    """Return the rows of ``PRAGMA foreign_key_check``; a key whose definition is wrong counts as one row."""
    try:
        return [list(row) for row in connection.execute("PRAGMA foreign_key_check")]
    except sqlite3.OperationalError as error:
        if "foreign key mismatch" in str(error):
            return [[str(error), None, None, None]]
        raise


def copy_in_steps(source: sqlite3.Connection, target: sqlite3.Connection, step: int) -> bool:
    """Copy *source* to the empty *target*, *step* bytes under each lock; return whether it came to its end.

    The backup API starts again whenever another connection has written between two steps: after ``RESTARTS``
    of these, or ``STALLED`` seconds without a lock, it is given up and *target* is worthless.

    :param source: in a read transaction, which it is not in after a copy that came to its end.
    """
    page = source.execute("PRAGMA page_size").fetchone()[0]
    left: list[int] = []
    restarts = 0
    moved = time.monotonic()
    # Between two steps others may write: the transaction that begin_reading left must not be in their way.
    source.execute("COMMIT")

    def progress(_status: int, remaining: int, _total: int) -> None:
        nonlocal moved, restarts
        if left and remaining > left[0]:
            restarts += 1
        if not left or remaining != left[0]:
            moved = time.monotonic()
        left[:] = [remaining]
        if restarts > RESTARTS or time.monotonic() - moved > STALLED:
            raise InterruptedError

    try:
        source.backup(target, pages=max(1, step // page), progress=progress, sleep=LOCK_WAIT)
    except InterruptedError:
        begin_reading(source)
        return False
    return True


@contextlib.contextmanager
def new_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the new and empty database *path* (0600) for a copy; an older file of that name goes.

    A copy that was cut short is thrown away, so it needs no journal; :func:`sync_file` follows it.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with contextlib.closing(
        sqlite3.connect(uri(path, mode="rw"), uri=True, isolation_level=None)
    ) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        yield connection


class Sqlite(Engine):
    """The engine ``sqlite``: ``app_database.path`` is the absolute path of the file."""

    name = "sqlite"
    dump_name = "database.sqlite3"

    def __init__(
        self, database: Mapping[str, Any], admin: Mapping[str, Any] | None = None, user: str | None = None
    ) -> None:
        super().__init__(database, admin, user)
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

    def place(self) -> str:
        """Return the path of the file itself, links resolved."""
        return str(self.path)

    def exists(self) -> bool:
        """Return whether the file holds a table."""
        if not self.present():
            return False
        with live(self.path) as connection:
            return connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > 0

    def size(self) -> int:
        """Return the bytes of the file and its log; a copy is never larger."""
        return sum(
            os.path.getsize(f"{self.path}{suffix}")
            for suffix in ("", "-wal")
            if os.path.exists(f"{self.path}{suffix}")
        )

    def migration_space(self, size: int) -> list[tuple[Path, int]]:
        """See :meth:`Engine.migration_space`: tables are copied ("Making Other Kinds Of Table Schema Changes" of ALTER TABLE)."""
        return [(Path(self.path).resolve().parent, size)]

    def tools(self) -> dict[str, str]:
        """Return the version of the SQLite library."""
        return {"sqlite": sqlite3.sqlite_version}

    def dump(self, target: Path, largest_step: int = LARGEST_STEP) -> dict[str, Any]:
        """Copy the live database to the new file *target* (0600) with SQLite's backup API.

        In one step inside a read transaction: it cannot be made to start again, so that a constant writer does
        not starve it. In WAL mode writers do not notice; in the other modes they wait for it, so that a
        database larger than *largest_step* bytes is tried in steps first.
        """
        try:
            with live(self.path) as source:
                mode = source.execute("PRAGMA journal_mode").fetchone()[0]
                in_steps = mode != "wal" and self.size() > largest_step
                if in_steps:
                    with new_database(target) as copy:
                        in_steps = copy_in_steps(source, copy, min(STEP, largest_step))
                if not in_steps:
                    with new_database(target) as copy:
                        # One step within the transaction cannot be made to start again.
                        source.backup(copy, pages=-1)
            sync_file(target)
        except (Problem, OSError) as error:
            cause = error.__cause__ if isinstance(error, Problem) else error
            if not isinstance(cause, (OSError, sqlite3.OperationalError)) or not NO_ROOM.search(str(cause)):
                raise
            raise Problem(
                f"The backup of {self.path} could not be written to {target.parent}: {cause}; it needs "
                f"{self.size()} bytes and {shutil.disk_usage(target.parent).free} are free: make room and try again."
            ) from error
        return {"journal_mode": mode, "copied": "in steps" if in_steps else "at once"}

    def contents(self, dump: Path, framework: str, *, integrity_check: bool) -> Contents:
        """Read the copy at *dump*, which nobody writes: SQLite makes no files beside an ``immutable`` one."""
        stand_ins: set[tuple[str, str]] = set()
        try:
            while True:
                with reading(dump, mode="ro", immutable="1") as connection:
                    add_stand_ins(connection, stand_ins)
                    try:
                        return self._contents(connection, dump, framework, integrity_check, bool(stand_ins))
                    except sqlite3.OperationalError as error:
                        missing = FOREIGN_CODE.search(str(error))
                        if missing is None or missing.groups() in stand_ins:
                            raise
                        stand_ins.add(missing.groups())
        except sqlite3.Error as error:
            raise Damaged(
                f"The copy {dump} of the database {self.path} cannot be read: {error}; "
                "check the disk, and take the backup again."
            ) from error

    def _contents(
        self,
        connection: sqlite3.Connection,
        dump: Path,
        framework: str,
        integrity_check: bool,
        partial: bool,
    ) -> Contents:
        tables = table_names(connection)
        counts = {}
        # First, because a count names a collation that is missing, and "SELECT *" does not.
        for table in tables:
            # Of the table itself, not of an index that might be smaller and wrong.
            rows = connection.execute(f"SELECT count(*) FROM {identifier(table)} NOT INDEXED")
            counts[table] = rows.fetchone()[0]
        level = "none"
        if integrity_check and partial:
            level = "partial"
            read_tables(connection, tables)
        elif integrity_check:
            level = "full"
            faults = integrity_faults(connection)
            if faults:
                raise Damaged(
                    f"The copy {dump} of the database {self.path} fails SQLite's integrity_check with "
                    f"{len(faults)} faults, the first: {faults[0]}; expected: ok. Run 'PRAGMA integrity_check' "
                    "on the live database: when it fails too, repair it before anything is deployed.",
                    evidence="\n".join(faults[:20]),
                )
        violations = foreign_keys(connection) if integrity_check else []
        return Contents(counts, read_applied(connection, framework), level, violations)

    def live_violations(self) -> list[list[Any]]:
        """Return the foreign keys of the live database that point nowhere."""
        with live(self.path) as connection:
            return foreign_keys(connection)

    def is_live(self, path: str | os.PathLike[str]) -> bool:
        """Return whether *path* is the live file, by name or by inode, or a directory that holds it."""
        real = Path(os.path.realpath(path))
        if real == self.path or real in self.path.parents:
            return True
        with contextlib.suppress(FileNotFoundError):
            return os.path.samefile(path, self.path)
        return False

    def scratch(self, dump: Path | None, directory: Path, owner: tuple[int, int]) -> dict[str, str]:
        """Restore *dump* into the new *directory*, which then belongs to *owner* (uid, gid; -1: nobody else).

        The directory is handed over last: until then only this process may put anything into it.

        :param dump: None for a first deployment: the file does not exist, its directory does.
        :returns: an ``app_database`` for the code under trial.
        :raises Problem: when the scratch would be the live database.
        """
        target = directory / f"{self.path.stem}.sqlite3"
        if self.is_live(target) or self.is_live(directory):
            raise Problem(
                f"The scratch database {target} would be the live one ({self.path}): "
                "app_database.path must not lie below the directory scratch of app_root."
            )
        directory.mkdir(mode=0o700)
        if dump is not None:
            copy_file(dump, target, 0o600, owner)
        os.chmod(directory, 0o700)
        os.chown(directory, *owner)
        return {"engine": self.name, "path": str(target)}

    def scratch_contents(self, scratch: Mapping[str, str], framework: str) -> Contents:
        """Read and check the whole scratch database."""
        return self.contents(Path(scratch["path"]), framework, integrity_check=True)

    def snapshot(self, scratch: Mapping[str, str]) -> dict[str, Any]:
        """See :meth:`Engine.snapshot`."""
        # Imported here: a backup needs none of it.
        from ansible_collections.runbook.deploy.plugins.module_utils._sqlite_compare import snapshot

        return snapshot(Path(scratch["path"]))

    def drop_scratch(self, scratch: Mapping[str, str]) -> None:
        """Remove the directory of the scratch database."""
        if not self.is_live(scratch["path"]):
            shutil.rmtree(os.path.dirname(scratch["path"]))


def sync_file(path: Path) -> None:
    """Make the contents of *path* survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def copy_file(source: Path, target: Path, mode: int, owner: tuple[int, int]) -> None:
    """Copy *source* to the new file *target* with *mode* and *owner* (uid, gid; -1: as it is), and sync it.

    :raises Problem: when there is no room for it; *target* is removed then.
    """
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(source, "rb") as reader, os.fdopen(handle, "wb") as writer:
            shutil.copyfileobj(reader, writer, 1024 * 1024)
            writer.flush()
            if owner != (-1, -1):
                os.fchown(writer.fileno(), *owner)
            os.fchmod(writer.fileno(), stat.S_IMODE(mode))
            os.fsync(writer.fileno())
    except OSError as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        raise Problem(
            f"Copying {source} to {target} failed: {error.strerror}; make room there and try again."
        ) from error
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        raise
