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
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ansible_collections.runbook.deploy.plugins.module_utils._database import Damaged
from ansible_collections.runbook.deploy.plugins.module_utils._mysql_client import first_error, tool

CHUNK = 1 << 20
TRAILER = b"-- Dump completed"
INSERT = re.compile(
    rb"^(?:INSERT|REPLACE) (?:IGNORE )?INTO `((?:[^`]|``)+)`(?: \((?:`(?:[^`]|``)*`(?:, ?)?)*\))? VALUES"
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

    def line(self, line: bytes) -> None:
        """Take the next *line*."""
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
