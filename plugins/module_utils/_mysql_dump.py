# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file of a dump of MySQL or MariaDB: written compressed, read back line by line, its rows counted.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import subprocess
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from ansible_collections.runbook.deploy.plugins.module_utils._command import (
    base_environment,
    end_group,
    identity,
)
from ansible_collections.runbook.deploy.plugins.module_utils._database import Damaged
from ansible_collections.runbook.deploy.plugins.module_utils._mysql_client import first_error, tool

CHUNK = 1 << 20
TRAILER = b"-- Dump completed"
INSERT = re.compile(
    rb"^(?:INSERT|REPLACE) (?:IGNORE )?INTO `((?:[^`]|``)+)`(?: \((?:`(?:[^`]|``)*`(?:, ?)?)*\))? VALUES"
)
# How a dump begins an event that the server runs by itself; the state is what the server writes after the schedule.
EVENT = re.compile(
    rb"^(/\*!\d+ CREATE\*/ /\*!\d+ DEFINER=.*?\*/ /\*!\d+ EVENT `((?:[^`]|``)+)` ON SCHEDULE .*? ON COMPLETION (?:NOT )?PRESERVE) (ENABLE|DISABLE) "
)
STRING = re.compile(rb"'(?:[^'\\]|\\.|'')*'", re.DOTALL)


class Counter:
    """Counts the rows of each table in the lines of a dump, and sees whether it came to its end.

    A line never ends inside of a string: the dump writes newlines in values as ``\\n``.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.table: str | None = None
        self.complete = False
        self.in_body = False

    def line(self, line: bytes) -> None:
        """Take the next *line*."""
        if line.startswith(b"DELIMITER "):
            # Between two of these stands the body of a trigger, routine or event, with whatever lines its author wrote.
            self.in_body = line.strip() != b"DELIMITER ;"
        if self.in_body:
            return
        if self.table is None:
            if line.startswith(b"CREATE TABLE `"):
                # A table without rows has no INSERT.
                name = line[14 : line.index(b"` (", 14)] if b"` (" in line else line[14:].rstrip(b"` \n")
                self.counts.setdefault(name.replace(b"``", b"`").decode("utf-8", "surrogateescape"), 0)
            found = INSERT.match(line)
            if not found:
                self.complete = self.complete or line.startswith(TRAILER)
                return
            self.table = found.group(1).replace(b"``", b"`").decode("utf-8", "surrogateescape")
            line = line[found.end() :]
        bare = STRING.sub(b"", line)
        self.counts[self.table] = self.counts.get(self.table, 0) + bare.count(b"(")
        if bare.rstrip().endswith(b";"):
            self.table = None


def quiet(lines: Iterable[bytes], silenced: set[bytes]) -> Iterator[bytes]:
    """Yield *lines* with events disabled, their quoted names added to *silenced*: an event of a copy may change the live database."""
    for line in lines:
        found = EVENT.match(line)
        if found and found.group(3) == b"ENABLE":
            silenced.add(found.group(2))
            line = found.group(1) + b" DISABLE " + line[found.end() :]
        yield line


def awake(lines: Iterable[bytes], silenced: set[bytes]) -> Iterator[bytes]:
    """Yield *lines* with the events in *silenced* enabled: what :func:`quiet` did, undone."""
    for line in lines:
        found = EVENT.match(line)
        if found and found.group(2) in silenced:
            line = found.group(1) + b" ENABLE " + line[found.end() :]
        yield line


@contextlib.contextmanager
def packing(target: Path, handle: int) -> Iterator[BinaryIO]:
    """Yield a stream that compresses into the open file *handle*, by zstd where *target* is named so.

    :raises OSError: when there is no room for it.
    """
    if not target.name.endswith(".zst"):
        with (
            os.fdopen(os.dup(handle), "wb") as raw,
            gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6) as stream,
        ):
            yield stream  # type: ignore[misc]
        return
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [tool("zstd"), "--quiet", "-3", "-T2", "--stdout"],
            stdin=subprocess.PIPE,
            stdout=handle,
            stderr=errors,
            bufsize=CHUNK,
        )
        try:
            with contextlib.suppress(BrokenPipeError):
                yield process.stdin  # type: ignore[misc]
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        errors.seek(0)
        if code:
            said = errors.read().decode(errors="replace").strip() or f"zstd ended with exit code {code}"
            raise OSError(28 if "No space" in said else 5, said)


def unpacked(dump: Path) -> Iterator[bytes]:
    """Yield the lines of *dump*.

    :raises Damaged: when it cannot be decompressed to its end.
    """
    if not dump.name.endswith(".zst"):
        try:
            with gzip.open(dump, "rb") as stream:
                yield from stream
        except (OSError, EOFError, zlib.error) as error:
            raise Damaged(
                f"The dump {dump} cannot be read whole: {error}; check the disk, and take the backup again."
            ) from error
        return
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [tool("zstd"), "--quiet", "--decompress", "--stdout", str(dump)],
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=CHUNK,
        )
        try:
            yield from process.stdout
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()
        errors.seek(0)
        if code:
            said = first_error(errors.read().decode(errors="replace"))
            raise Damaged(
                f"The dump {dump} cannot be read whole: {said.rstrip('.')}; check the disk, and take the backup again."
            )


def ending(code: int, said: str) -> str:
    """Return why a client failed that ended with *code* and said *said*, "" for success; nobody who is killed says why."""
    if code < 0:
        return f"it was ended by signal {-code}"
    return "" if code == 0 else said or f"it ended with exit code {code}"


def receive(argv: list[str], user: str | None, counter: Counter, packed: BinaryIO) -> str:
    """Run *argv* as *user*, write its output to *packed*, line by line through *counter*; return its errors, "" for success."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            argv,
            cwd="/",
            env=base_environment(user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=CHUNK,
            start_new_session=True,
            **identity(user),
        )
        try:
            for line in process.stdout:
                counter.line(line)
                packed.write(line)
            code = process.wait()
        finally:
            if process.poll() is None:
                end_group(process)
            process.stdout.close()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    return ending(code, said)


def feed(argv: list[str], user: str | None, lines: Iterable[bytes]) -> str:
    """Run *argv* as *user* with *lines* as its input; return its errors, "" for success."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            argv,
            cwd="/",
            env=base_environment(user),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            bufsize=CHUNK,
            start_new_session=True,
            **identity(user),
        )
        try:
            with contextlib.suppress(BrokenPipeError):
                for line in lines:
                    process.stdin.write(line)
                process.stdin.close()
            code = process.wait()
        finally:
            if process.poll() is None:
                end_group(process)
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    return ending(code, said)
