# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives: which commit one is, and its content written where nothing can leave the directory.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

SHA256 = re.compile(r"^[0-9a-f]{64}$")
COMMIT = re.compile(r"^[0-9a-f]{40}$")
# Only what the standard library reads on every supported Python.
UNPACKABLE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError)
try:
    from lzma import LZMAError
except ImportError:
    # A Python made without liblzma; tarfile refuses tar.xz there by itself.
    pass
else:
    UNPACKABLE = (*UNPACKABLE, LZMAError)


class Member(NamedTuple):
    """One entry: ``kind`` is file, directory, link, hard or other; ``target`` is a link's; ``mtime`` in seconds."""

    name: str
    kind: str
    executable: bool
    mtime: float
    target: str
    stream: IO[bytes] | None


def archive_commit(archive: Mapping[str, Any]) -> str:
    """Return the commit of which ``archive["path"]`` was made, after its sha256 was compared.

    ``git archive`` writes the commit into the archive (git-archive(1): a global pax header, the comment of a
    zip); for any other archive the first 40 digits of the sha256 take its place.

    :raises Problem: naming app_archive, for a missing file, another sha256, or something that is no archive.
    """
    path = Path(archive.get("path") or "")
    wanted = str(archive.get("sha256") or "").lower()
    if not SHA256.match(wanted):
        raise Problem(
            f"app_archive.sha256 must be 64 hexadecimal digits, found {wanted!r}: take them from sha256sum."
        )
    if not path.is_file():
        raise Problem(f"The archive {str(path)!r} (app_archive) is not on this host: is its path right?")
    found = sha256_of(path)
    if found != wanted:
        raise Problem(
            f"The archive {str(path)!r} has the sha256 {found}, app_archive.sha256 is {wanted}: it was damaged "
            "on its way, or it is another one; make it again or correct the sum."
        )
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as opened:
                comment = opened.comment.decode("ascii", "replace")
        else:
            with tarfile.open(path, "r:*") as opened_tar:
                opened_tar.next()
                comment = opened_tar.pax_headers.get("comment", "")
    except UNPACKABLE as error:
        raise unpackable(path, error) from error
    return comment if COMMIT.match(comment) else wanted[:40]


def sha256_of(path: Path) -> str:
    """Return the sha256 of the file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def unpack(path: Path, destination: Path, directory: str = "") -> None:
    """Write the content of the archive *path* into the empty directory *destination*.

    A single directory at the top (as in ``shop-2.7/``) is left out, unless *directory*, the place of the
    application inside the archive, begins with it.

    :raises Problem: for an archive that is damaged or has an entry that would leave the directory.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as opened:
                prefix = common_top((entry.filename for entry in opened.infolist()), directory)
                write_members(zip_members(opened), destination, f"app_archive {str(path)!r}", prefix)
            return
        with tarfile.open(path, "r:*") as listing:
            prefix = common_top(
                (entry.name + ("/" if entry.isdir() else "") for entry in listing.getmembers()), directory
            )
        with tarfile.open(path, "r:*") as content:
            write_members(tar_members(content), destination, f"app_archive {str(path)!r}", prefix)
    except OSError as error:
        if error.errno is not None and not isinstance(error, tarfile.TarError):
            raise
        raise unpackable(path, error) from error
    except UNPACKABLE as error:
        raise unpackable(path, error) from error


def unpackable(path: Path, error: BaseException) -> Problem:
    """Return the Problem for something that is no complete tar or zip archive."""
    return Problem(
        f"The archive {str(path)!r} (app_archive) cannot be read: {error}; expected a complete tar, tar.gz, "
        "tar.bz2, tar.xz or zip."
    )


def common_top(names: Iterator[str], directory: str) -> str:
    """Return the one directory that everything lies in, or "".

    >>> common_top(iter(["shop-2.7/", "shop-2.7/manage.py"]), "")
    'shop-2.7'
    >>> common_top(iter(["src/", "src/manage.py"]), "src")
    ''
    """
    tops = set()
    for name in names:
        first, slash, _rest = (
            name.lstrip("./").partition("/") if name.startswith("./") else name.partition("/")
        )
        if not slash and first:
            return ""
        tops.add(first)
    tops.discard("")
    if len(tops) != 1:
        return ""
    top = tops.pop()
    return "" if top in ("..", directory.split("/", 1)[0]) else top


def tar_members(opened: tarfile.TarFile) -> Iterator[Member]:
    """Yield the members of *opened* in order (it may be a pipe)."""
    for entry in opened:
        kind = "other"
        for name, found in (
            ("file", entry.isreg()),
            ("directory", entry.isdir()),
            ("link", entry.issym()),
            ("hard", entry.islnk()),
        ):
            if found:
                kind = name
        stream = opened.extractfile(entry) if kind == "file" else None
        yield Member(entry.name, kind, bool(entry.mode & 0o111), entry.mtime, entry.linkname, stream)


def zip_members(opened: zipfile.ZipFile) -> Iterator[Member]:
    """Yield the members of *opened*; a link's target is its content."""
    for entry in opened.infolist():
        mode = entry.external_attr >> 16
        # The zip's time has no zone and steps of 2 s: the archive's own is as good, and the same on all hosts.
        if entry.is_dir():
            yield Member(entry.filename, "directory", True, 0, "", None)
        elif stat.S_ISLNK(mode):
            yield Member(entry.filename, "link", False, 0, os.fsdecode(opened.read(entry)), None)
        elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
            with opened.open(entry) as stream:
                yield Member(entry.filename, "file", bool(mode & 0o111), 0, "", stream)
        else:
            yield Member(entry.filename, "other", False, 0, "", None)


def write_members(
    members: Iterator[Member], destination: Path, origin: str, prefix: str = "", links_may_leave: bool = False
) -> int:
    """Write *members* below *destination* and return how many there were.

    Files get 0644 or 0755, directories 0755, whatever the archive says.

    :param origin: what the members come from, for messages.
    :param prefix: a directory at the top that is left out.
    :param links_may_leave: a link out of the tree is kept (from a repository), not refused (from an archive).
    :raises Problem: for a name that is absolute or has ``..``, a link that leaves, a device.
    """
    count = 0
    made = {""}
    for member in members:
        parts = safe_parts(member.name, origin)
        if prefix:
            parts = parts[1:] if parts[:1] == [prefix] else parts
        if not parts:
            continue
        count += 1
        make_parents(destination, parts[:-1], made, origin)
        path = destination.joinpath(*parts)
        if member.kind == "directory":
            make_parents(destination, parts, made, origin)
            continue
        if path.is_symlink() or path.exists():
            raise Problem(f"{origin} holds {'/'.join(parts)!r} more than once: make it again.")
        if member.kind == "link":
            if not links_may_leave:
                refuse_leaving(parts, member.target, origin)
            os.symlink(member.target, path)
        elif member.kind == "hard":
            copy_hard(destination, parts, member.target, prefix, origin)
        elif member.kind == "file" and member.stream is not None:
            with path.open("xb") as written:
                shutil.copyfileobj(member.stream, written, 1 << 18)
                os.fchmod(written.fileno(), 0o755 if member.executable else 0o644)
            # The same on every host: web servers make their ETag of it.
            os.utime(path, (member.mtime, member.mtime))
        else:
            raise Problem(f"{origin} holds {'/'.join(parts)!r}, a device or a pipe: only files are deployed.")
    return count


def safe_parts(name: str, origin: str) -> list[str]:
    """Return the components of *name*.

    :raises Problem: when it is absolute or goes up.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name or "\\" in name[:3]:
        raise Problem(
            f"{origin} holds the name {name!r}, which leaves the release: make the archive again without it."
        )
    return parts


def make_parents(destination: Path, parts: list[str], made: set[str], origin: str) -> None:
    """Make the directories *parts*, one in the other; *made* remembers those that are real directories."""
    for length in range(1, len(parts) + 1):
        name = "/".join(parts[:length])
        if name in made:
            continue
        path = destination / name
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise Problem(f"{origin} holds something below {name!r}, which is no directory: make it again.")
        path.mkdir(exist_ok=True)
        path.chmod(0o755)
        made.add(name)


def refuse_leaving(parts: list[str], target: str, origin: str) -> None:
    """Refuse a link at *parts* whose *target* lies outside the tree.

    :raises Problem: when it does.
    """
    resolved = os.path.normpath(os.path.join("/".join(parts[:-1]), target))
    if target.startswith("/") or resolved == ".." or resolved.startswith("../"):
        raise Problem(
            f"{origin} holds the link {'/'.join(parts)!r} to {target!r}, outside the release: "
            "name such a path in app_shared instead."
        )


def copy_hard(destination: Path, parts: list[str], target: str, prefix: str, origin: str) -> None:
    """Write a hard link of the archive as a copy of the file that it names, which came before it."""
    names = safe_parts(target, origin)
    names = names[1:] if prefix and names[:1] == [prefix] else names
    original = destination.joinpath(*names)
    if (
        original.is_symlink()
        or not original.is_file()
        or os.path.realpath(original) != str(Path(os.path.realpath(destination)).joinpath(*names))
    ):
        raise Problem(f"{origin} holds {'/'.join(parts)!r} as a link to {target!r}, which is not in it.")
    shutil.copy2(original, destination.joinpath(*parts))
