# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lend directories of a release to the application's user for the time of its commands, and take them back.

A release is readable, not writable, by the application. While its static files are made, before it ever serves, its
user has to write. Everything here goes through descriptors and follows no symbolic link, because the user may
rearrange the tree while it is lent.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.runbook.deploy.plugins.module_utils._command import identity
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# What the collection writes at the top of a release, and the user may not change.
OWN_FILES = (
    ".built",
    ".collected.json",
    ".complete",
    ".release.json",
    ".staticfiles-before.json",
    "REVISION",
)
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Borrower:
    """The application's user seen from the present one.

    ``uid``, ``gid``: -1 where the present user is the application's; then only mode bits are changed, and what
    comes back is writable by nobody, as the module ``release`` leaves it.
    """

    def __init__(self, user: str | None) -> None:
        other = identity(user)
        self.same = not other
        self.uid = other.get("user", -1)
        self.gid = other.get("group", -1)
        self.owner = (os.geteuid(), os.getegid())

    @property
    def name(self) -> str:
        """The name of the user, for messages."""
        return pwd.getpwuid(os.geteuid() if self.same else self.uid).pw_name

    def give(self, tree: Path) -> None:
        """Make everything below *tree*, and *tree*, the user's.

        A file with several names gets a copy of its own first: the other name is a published one.
        """
        for _top, _names, files, handle in os.fwalk(tree, follow_symlinks=False):
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
            os.fchmod(handle, mode | stat.S_IRWXU)
            for name in files:
                self.give_file(name, handle)
            if not self.same:
                os.fchown(handle, self.uid, self.gid)

    def give_file(self, name: str, directory: int) -> None:
        """Make the regular file *name* in the open *directory* the user's; leave anything else as it is."""
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            return
        if found.st_nlink > 1:
            separate(name, directory)
        self._change(name, directory, self.uid, self.gid, stat.S_IMODE(found.st_mode) | stat.S_IWUSR)

    def take_back(self, tree: Path) -> None:
        """Make everything below *tree*, and *tree*, the present user's again: readable by all.

        :raises Problem: for a second name of somebody else's file, which must not become readable.
        """
        write = 0 if self.same else stat.S_IWUSR
        for top, _names, files, handle in os.fwalk(tree, follow_symlinks=False):
            self._check_owner(os.fstat(handle), Path(top))
            for name in files:
                found = os.stat(name, dir_fd=handle, follow_symlinks=False)
                if stat.S_ISLNK(found.st_mode):
                    if not self.same:
                        os.chown(name, *self.owner, dir_fd=handle, follow_symlinks=False)
                elif stat.S_ISREG(found.st_mode):
                    execute = 0o111 if found.st_mode & stat.S_IXUSR else 0
                    self._change(name, handle, *self._new_owner(), 0o444 | write | execute, Path(top, name))
            if not self.same:
                os.fchown(handle, *self.owner)
            os.fchmod(handle, 0o555 | write)

    def _new_owner(self) -> tuple[int, int]:
        return (-1, -1) if self.same else self.owner

    def _check_owner(self, found: os.stat_result, path: Path) -> None:
        if not self.same and found.st_uid not in (self.uid, self.owner[0]):
            raise Problem(
                f"{str(path)!r} belongs to the user id {found.st_uid}, expected {self.name!r} or the one who deploys: "
                "a command of the application has put it there; remove it."
            )

    def _change(
        self, name: str, directory: int, uid: int, gid: int, mode: int, path: Path | None = None
    ) -> None:
        """Change owner and mode of the file *name*, through a descriptor, so that it is the file that was judged."""
        handle = os.open(name, OPEN_FILE, dir_fd=directory)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                return
            if path is not None:
                self._check_owner(found, path)
            if uid != -1:
                os.fchown(handle, uid, gid)
            os.fchmod(handle, mode)
        finally:
            os.close(handle)


def separate(name: str, directory: int) -> None:
    """Replace the file *name* in the open *directory* by a copy of its own, so that its other names stay as they are."""
    parent = os.readlink(f"/proc/self/fd/{directory}")
    handle, temporary = tempfile.mkstemp(prefix=".separate.", dir=parent)
    try:
        with (
            os.fdopen(handle, "wb") as target,
            open(os.open(name, OPEN_FILE, dir_fd=directory), "rb") as source,
        ):
            shutil.copyfileobj(source, target)
            found = os.fstat(source.fileno())
            os.fchmod(target.fileno(), stat.S_IMODE(found.st_mode))
            os.utime(target.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))
        os.rename(os.path.basename(temporary), name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def lent(tree: Path, user: str | None) -> Iterator[None]:
    """Lend *tree* to *user* for the time of the block; it is taken back whatever happens."""
    borrower = Borrower(user)
    borrower.give(tree)
    try:
        yield
    finally:
        borrower.take_back(tree)


@contextlib.contextmanager
def lent_release(release: Path, user: str | None) -> Iterator[None]:
    """Lend everything in the directory *release* to *user*, who may also add to it.

    The markers of the release stay ours: the directory itself is lent with the sticky bit, so that the user can make
    names there but not remove those of others (inode(7)).
    """
    borrower = Borrower(user)
    for entry in list(os.scandir(release)):
        if entry.is_dir(follow_symlinks=False):
            borrower.give(Path(entry.path))
    handle = os.open(release, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchmod(handle, 0o755)
        for name in os.listdir(handle):
            if name not in OWN_FILES:
                borrower.give_file(name, handle)
        if not borrower.same:
            os.fchown(handle, -1, borrower.gid)
            os.fchmod(handle, 0o1775)
    finally:
        os.close(handle)
    try:
        yield
    finally:
        borrower.take_back(release)
