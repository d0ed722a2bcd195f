# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a log file from where it was marked, whatever was done to it since: renamed, copied and truncated, compressed.

A cursor is a mapping that JSON can carry: device and inode of the file, the offset, and digests of what lies at its beginning and before
the offset, by which a copy is recognised, and a file that took the place of another. It has nothing of the log in it.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import re
import stat
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._log_entries import Line, Splitter

# Bytes that the digests are taken of.
HEAD_SIZE = 1024
TAIL_SIZE = 256
# How far back the end of a line is looked for when a file is marked.
BACK = 64 * 1024
CHUNK = 64 * 1024
# Seconds by which the kernel's time of a write may be behind the clock.
CLOCK = 0.05
# What rotation adds to a name: .1, -20261121, -20261121-1763712000, .2026-11-21_10.
_ADDED = r"[.-]\d[\dT:_.-]*?"


class Unread(Exception):
    """A log cannot be read; ``text`` says why, as a part of a sentence."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Pass(NamedTuple):
    """What came of reading: the ``cursor`` to go on from, what is ``missing`` (a part of a sentence, "" for nothing), how many bytes
    were read, and whether what is missing is lost for good."""

    cursor: dict[str, Any]
    missing: str
    size: int
    lost: bool


class Part(NamedTuple):
    """A file to be read from ``offset``; ``current``: it is the log itself and not what was rotated away."""

    path: str
    stream: IO[bytes]
    offset: int
    current: bool


def _open(path: str) -> IO[bytes]:
    """Return the regular file *path*.

    :raises Unread: when there is none, or it may not be read.
    """
    try:
        # Without O_NONBLOCK a FIFO would wait for somebody who writes.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError as error:
        raise Unread(f"there is no file {path}") from error
    except OSError as error:
        raise Unread(
            f"{path} cannot be read by uid {os.geteuid()}: {(error.strerror or str(error)).lower()}"
        ) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Unread(f"{path} is no regular file")
    # Not buffered: holes are sought behind the back of the stream.
    return os.fdopen(handle, "rb", buffering=0)


def _digest(stream: IO[bytes], begin: int, size: int) -> str:
    stream.seek(begin)
    return hashlib.sha256(stream.read(size)).hexdigest()


def _cursor(path: str, stream: IO[bytes], offset: int) -> dict[str, Any]:
    found = os.fstat(stream.fileno())
    head, tail = min(offset, HEAD_SIZE), min(offset, TAIL_SIZE)
    return {
        "kind": "file",
        "path": path,
        "device": found.st_dev,
        "inode": found.st_ino,
        "offset": offset,
        "head": _digest(stream, 0, head),
        "tail": _digest(stream, offset - tail, tail),
        "at": time.time(),
    }


def mark(path: str, absent: bool = False) -> dict[str, Any]:
    """Return a cursor for the end of *path*; a line that has no end yet comes after it.

    :param absent: whether the file may not be there yet.
    :raises Unread: when it cannot be read.
    """
    if absent and not os.path.lexists(path):
        return {"kind": "file", "path": path, "absent": True, "at": time.time()}
    with _open(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        begin = max(0, size - BACK)
        stream.seek(begin)
        last = stream.read(size - begin).rfind(b"\n")
        # A line without an end that is longer than that is cut.
        return _cursor(path, stream, begin + last + 1 if last >= 0 else size if begin else 0)


def generations(path: str) -> list[str]:
    """Return the files that rotation made of *path*, the one written last at the end."""
    directory, base = os.path.split(path)
    stem, ending = os.path.splitext(base)
    names = re.compile(
        rf"^(?:{re.escape(base)}{_ADDED}|{re.escape(stem)}{_ADDED}{re.escape(ending)})(?:\.gz)?$"
    )
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(directory or "."):
            with contextlib.suppress(OSError):
                if names.match(entry.name) and entry.is_file(follow_symlinks=False):
                    found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.path))
    return [name for _at, name in sorted(found)]


def _plain(path: str, stream: IO[bytes]) -> IO[bytes]:
    """Return what *stream* holds, decompressed."""
    return gzip.GzipFile(fileobj=stream, mode="rb") if path.endswith(".gz") else stream  # type: ignore[return-value]


def _same_beginning(cursor: Mapping[str, Any], stream: IO[bytes]) -> bool:
    size = min(int(cursor["offset"]), HEAD_SIZE)
    try:
        stream.seek(0)
        data = stream.read(size)
    except (OSError, EOFError, zlib.error):
        return False
    return len(data) == size and hashlib.sha256(data).hexdigest() == cursor["head"]


def _goes_on(cursor: Mapping[str, Any], stream: IO[bytes]) -> bool:
    """Return whether the plain file *stream* has before the offset of *cursor* what it had."""
    offset = int(cursor["offset"])
    if os.fstat(stream.fileno()).st_size < offset or not _same_beginning(cursor, stream):
        return False
    tail = min(offset, TAIL_SIZE)
    return _digest(stream, offset - tail, tail) == cursor["tail"]


def parts_since(cursor: Mapping[str, Any], stack: contextlib.ExitStack) -> tuple[list[Part], str]:
    """Return what has to be read of the log that *cursor* marks, in order, and what is missing of it ("" for nothing).

    All files are open: a rotation meanwhile changes nothing of what is read.

    :param stack: closes them.
    :raises Unread: when the log itself is not there.
    """
    path = str(cursor["path"])
    current = stack.enter_context(_open(path))
    found = os.fstat(current.fileno())
    offset = 0 if cursor.get("absent") else int(cursor["offset"])
    same = (found.st_dev, found.st_ino) == (cursor.get("device"), cursor.get("inode"))
    if same and _goes_on(cursor, current):
        return [Part(path, current, offset, True)], ""
    names = generations(path)
    origin: Part | None = None
    since = float(cursor["at"]) - CLOCK
    if offset == 0:
        # Everything that was written since; the file itself, renamed, is among it.
        later = [name for name in names if _written(name) >= since]
    else:
        origin, later = _origin(cursor, names, since, stack)
    parts = [origin] if origin else []
    missing = ""
    for name in later:
        try:
            stream = stack.enter_context(_open(name))
            parts.append(Part(name, _plain(name, stream), 0, False))
        except Unread as error:
            missing = error.text
    parts.append(Part(path, current, 0, True))
    if origin is None and offset:
        what = "is another file" if not same else "was truncated or written anew"
        missing = f"{path} {what} since it was marked, and what it held then is in no file beside it: what was written between is not known"
    return parts, missing


def _written(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _origin(
    cursor: Mapping[str, Any], names: list[str], since: float, stack: contextlib.ExitStack
) -> tuple[Part | None, list[str]]:
    """Return which of *names* (see :func:`generations`) is, or is a copy of, what *cursor* marks, and those written later.

    Two logs may begin alike: first comes the file itself under another name, then the oldest copy that was made since, so that rather too
    much is read than too little.
    """
    fresh = [name for name in names if _written(name) >= since]
    old = [name for name in reversed(names) if name not in fresh]
    for same_file in (True, False):
        for name in [*fresh, *old]:
            try:
                stream = stack.enter_context(_open(name))
            except Unread:
                continue
            found = os.fstat(stream.fileno())
            if same_file and (found.st_dev, found.st_ino) != (cursor["device"], cursor["inode"]):
                continue
            inner = _plain(name, stream)
            # What lies before the offset in a compressed file is compared when it is read, since it is decompressed only then.
            if _same_beginning(cursor, inner) if inner is not stream else _goes_on(cursor, stream):
                return Part(name, inner, int(cursor["offset"]), False), names[names.index(name) + 1 :]
    return None, []


def _chunks(part: Part, cursor: Mapping[str, Any], limit: float) -> Iterator[bytes]:
    """Return what *part* holds from its offset on.

    :raises Unread: when the time is up, it is damaged, or it is not what *cursor* marks.
    """
    try:
        if part.path.endswith(".gz") and part.offset:
            part.stream.seek(0)
            tail, left = b"", part.offset
            while left:
                if time.monotonic() >= limit:
                    raise Unread(f"there was no time to decompress {part.path} up to where it was marked")
                data = part.stream.read(min(CHUNK, left))
                if not data:
                    raise Unread(f"{part.path} ends before the place that was marked")
                tail, left = (tail + data)[-TAIL_SIZE:], left - len(data)
            if hashlib.sha256(tail).hexdigest() != cursor["tail"]:
                raise Unread(f"{part.path} is not what was marked")
        else:
            part.stream.seek(_data_from(part))
        while True:
            if time.monotonic() >= limit:
                raise Unread(f"there was no time to read {part.path} to its end")
            data = part.stream.read(CHUNK)
            if not data:
                return
            yield data
    except (OSError, EOFError, zlib.error) as error:
        raise Unread(f"{part.path} cannot be read to its end: {error}") from error


def _data_from(part: Part) -> int:
    """Return where *part* has data from its offset on: whoever writes on behind a truncation leaves a hole, which is no log."""
    if part.path.endswith(".gz"):
        return part.offset
    try:
        return os.lseek(part.stream.fileno(), part.offset, os.SEEK_DATA)
    except OSError:
        return part.offset


def read_since(
    cursor: Mapping[str, Any], limit: float, take: Callable[[Line, str], None], final: bool = True
) -> Pass:
    """Hand every line that was written since *cursor* to *take*, with its place.

    :param limit: the reading of ``time.monotonic()`` at which to stop.
    :param final: whether a last line without an end is a line; else the next cursor lies before it.
    :raises Unread: when the log is not there or may not be read.
    """
    read = 0
    with contextlib.ExitStack() as stack:
        parts, missing = parts_since(cursor, stack)
        lost = bool(missing)
        after = dict(cursor)
        for part in parts:
            splitter = Splitter(part.offset)
            try:
                for data in _chunks(part, cursor, limit):
                    read += len(data)
                    for line in splitter.feed(data):
                        take(line, f"{part.path}, byte {line.offset}")
            except Unread as error:
                missing = missing or error.text
                if part.current:
                    after = _cursor(part.path, part.stream, splitter.begun)
                continue
            rest = splitter.rest() if final or not part.current else None
            if rest is not None:
                take(rest, f"{part.path}, byte {rest.offset}")
            if part.current:
                after = _cursor(part.path, part.stream, splitter.begun)
        return Pass(after, missing, read, lost)


def require_cursor(value: Any, where: str) -> dict[str, Any]:
    """Return *value*, a cursor of a file.

    :raises Unread: when it is none.
    """
    known = isinstance(value, Mapping) and value.get("kind") == "file" and isinstance(value.get("path"), str)
    whole = known and isinstance(value.get("at"), (int, float))
    if not whole or not (
        value.get("absent") is True
        or (
            all(isinstance(value.get(name), int) for name in ("device", "inode", "offset"))
            and all(isinstance(value.get(name), str) for name in ("head", "tail"))
        )
    ):
        raise Unread(f"{where} is no cursor of a file: mark the log again")
    return dict(value)
