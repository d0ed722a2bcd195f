# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put another SQLite file in the place of the live one: nobody writes meanwhile, nothing is thrown away.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._backup import differences, digest, owner_of
from ansible_collections.runbook.deploy.plugins.module_utils._layout import fsync_directory, open_regular
from ansible_collections.runbook.deploy.plugins.module_utils._openers import Opener, openers, stop_openers
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._restore import Restorer
from ansible_collections.runbook.deploy.plugins.module_utils._sqlite import (
    COMPANIONS,
    LOCK_TIMEOUT,
    Sqlite,
    begin_reading,
    copy_file,
    reading,
    uri,
)
from ansible_collections.runbook.deploy.plugins.module_utils._sqlite_losses import losses

# Where SQLite locks a file: PENDING_BYTE, RESERVED_BYTE and the 510 bytes of SHARED follow each other (os.h of
# SQLite; https://www.sqlite.org/fileformat2.html, "The Lock-Byte Page"). Readers and writers of every journal
# mode take one of them, a WAL connection for as long as it lives.
LOCK_START = 0x40000000
LOCK_LENGTH = 512
POLL = 0.05
# The file change counter in the header (https://www.sqlite.org/fileformat2.html, 1.3.9), and the header of a WAL.
CHANGE_COUNTER = (24, 4)
WAL_HEADER = (0, 32)
# For a database that does not exist at the time of its restore.
DEFAULT_MODE = 0o640


class SqliteRestorer(Restorer):
    """The engine ``sqlite``: a new file beside the live one takes its name."""

    engine: Sqlite

    def __init__(self, engine: Sqlite) -> None:
        super().__init__(engine)
        self.path = engine.path
        self.staged = self.path.parent / f".{self.path.name}.restoring"

    def files(self) -> list[Path]:
        """Return the live file and the files that SQLite keeps beside it, whether they exist or not."""
        return [self.path, *(Path(f"{self.path}{suffix}") for suffix in COMPANIONS)]

    def space(self, size: int) -> list[tuple[Path, int]]:
        """See :meth:`Restorer.space`."""
        return [(self.path.parent, size)]

    def losses(self, backup: Path, present: Path | None, framework: str) -> dict[str, dict[str, Any]]:
        """See :meth:`Restorer.losses`."""
        now = uri(self.path, mode="ro") if present is None else uri(present, mode="ro", immutable="1")
        return losses(now, uri(backup, mode="ro", immutable="1"), framework)

    def tidy(self, backups: Path | None = None) -> None:
        """Remove what a killed restore has left: its new file, and a second name of the live one."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.staged)
        for path in self.path.parent.glob(f"{self.path.name}.broken-*"):
            if not path.is_symlink() and self.path.exists() and path.samefile(self.path):
                path.unlink()

    def stage(self, dump: Path, user: str | None) -> Path:
        """See :meth:`Restorer.stage`: the new file lies beside the live one, with its owner and mode."""
        if self.path.exists():
            entry = self.path.stat()
            uid = entry.st_uid if entry.st_uid != os.geteuid() else -1
            gid = entry.st_gid if entry.st_gid != os.getegid() else -1
            copy_file(dump, self.staged, entry.st_mode, (uid, gid))
        else:
            copy_file(dump, self.staged, DEFAULT_MODE, owner_of(user))
        return self.staged

    def staged_differences(self, staged: Path, manifest: Mapping[str, Any]) -> list[str]:
        """See :meth:`Restorer.staged_differences`."""
        contents = self.engine.contents(staged, manifest.get("framework", "none"), integrity_check=True)
        found = differences(manifest, contents)
        if digest(staged) != manifest["sha256"]:
            found.append("its sha256 is another")
        return found

    def discard(self) -> None:
        """See :meth:`Restorer.discard`."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.staged)

    def settle(self) -> None:
        """Bring what is in the WAL, or half written, into the live file, as the next user of it would do.

        The last connection that closes removes ``-wal`` and ``-shm``. A damaged database stays as it is.
        """
        if not self.engine.present():
            return
        try:
            with reading(self.path, mode="ro") as connection:
                begin_reading(connection)
        except sqlite3.OperationalError:
            # A lock, or a transaction to be rolled back: for the connection below.
            pass
        except sqlite3.DatabaseError:
            return
        with contextlib.suppress(sqlite3.Error), reading(self.path, mode="rw") as connection:
            begin_reading(connection)
            connection.execute("COMMIT")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def mark(self) -> Any:
        """Return a value that every write to the live database changes; call it with no lock held."""
        try:
            handle = open_regular(self.path, follow=True)
        except FileNotFoundError:
            return None
        try:
            return self._mark(handle)
        finally:
            os.close(handle)

    def _mark(self, handle: int) -> Any:
        """As :meth:`mark`, by a descriptor: to close another one would drop this process's locks on the file."""
        entry = os.fstat(handle)
        result: list[Any] = [entry.st_ino, entry.st_size, entry.st_mtime_ns]
        result.append(os.pread(handle, CHANGE_COUNTER[1], CHANGE_COUNTER[0]))
        for suffix in ("-wal", "-journal"):
            # An empty one says nothing, and comes and goes with connections that write nothing.
            with (
                contextlib.suppress(FileNotFoundError),
                os.fdopen(open_regular(f"{self.path}{suffix}"), "rb") as stream,
            ):
                entry = os.fstat(stream.fileno())
                if entry.st_size:
                    result.append((suffix, entry.st_size, entry.st_mtime_ns, stream.read(WAL_HEADER[1])))
        return result

    def stop(self, root: Path, timeout: float) -> list[Opener]:
        """See :meth:`Restorer.stop`."""
        return stop_openers(self.files(), root, timeout)

    @contextlib.contextmanager
    def locked(self) -> Iterator[int | None]:
        """Keep everybody out of the live file, readers too; yield its descriptor, None when there is no file.

        The lock is SQLite's own, so that one who comes now waits as for any writer, and it ends with this process.

        :raises Problem: when another process, which may be invisible to this user, keeps a lock.
        """
        try:
            handle = open_regular(self.path, os.O_RDWR, follow=True)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            raise Problem(
                f"The database {self.path} cannot be opened for writing: {error.strerror}; nothing was restored; run this "
                "as its owner or as root."
            ) from error
        try:
            deadline = time.monotonic() + LOCK_TIMEOUT
            while True:
                try:
                    fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, LOCK_LENGTH, LOCK_START)
                    break
                except OSError as error:
                    if time.monotonic() >= deadline:
                        raise Problem(
                            f"A process has kept the database {self.path} locked for {LOCK_TIMEOUT:g} s; nothing was "
                            f"restored; find it with 'fuser {self.path}' as root, end it, and try again."
                        ) from error
                    time.sleep(POLL)
            yield handle
        finally:
            os.close(handle)

    def swap(
        self, mark: Any, root: Path, timeout: float, *, lost: dict[str, Any], consent: bool
    ) -> tuple[bool, str | None, list[Opener]]:
        """See :meth:`Restorer.swap`; the *mark* says that nobody has written since *lost* was counted."""
        del lost, consent
        with self.locked() as handle:
            if (None if handle is None else self._mark(handle)) != mark:
                return False, None, []
            kept = self._kept_name()
            # After settle only a damaged database still has companions. They must not meet the new file.
            for path in self.files()[1:]:
                with contextlib.suppress(FileNotFoundError):
                    os.rename(path, f"{kept}{path.name[len(self.path.name) :]}")
            if handle is not None:
                # A second name first: there is no moment without a database, in which one who comes would make an
                # empty one. File systems without links have that moment.
                try:
                    os.link(self.path, kept)
                except OSError:
                    os.rename(self.path, kept)
            os.rename(self.staged, self.path)
            fsync_directory(self.path.parent)
            if handle is None:
                return True, None, []
            # One who opened the old file while it was exchanged would go on writing into it.
            old = [kept, *(Path(f"{kept}{suffix}") for suffix in COMPANIONS)]
            former = [path.name for path in self.files()]
            late = openers(old, root, former)
            if late and all(entry.ours for entry in late):
                with contextlib.suppress(Problem):
                    stop_openers(old, root, timeout, former)
            return True, str(kept), late

    def _kept_name(self) -> Path:
        moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        number, result = 1, self.path.parent / f"{self.path.name}.broken-{moment}"
        while any(os.path.lexists(f"{result}{suffix}") for suffix in ("", *COMPANIONS)):
            number += 1
            result = self.path.parent / f"{self.path.name}.broken-{moment}-{number}"
        return result
