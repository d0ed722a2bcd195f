# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where everything lies on a host, and the file operations that survive a kill.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# sun_path of Linux has 108 bytes, the last one for NUL (unix(7)).
SOCKET_PATH_LIMIT = 107
DEPLOYMENT_ID = re.compile(r"^\d{8}T\d{6}-[0-9a-f]{4}$")
# The instance that stands for an installation adopted with app_adopt.
ADOPTED = "adopted"


class Layout:
    """The paths below ``app_root``; nothing here touches the disk."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.mirror = self.root / "repository.git"
        self.releases = self.root / "releases"
        self.environments = self.root / "environments"
        self.current = self.root / "current"
        self.shared = self.root / "shared"
        self.static = self.shared / "static"
        self.instances = self.shared / "env"
        self.run = self.root / "run"
        self.logs = self.shared / "log"
        self.backups = self.root / "backups"
        self.deployments = self.root / "deployments"
        self.lock = self.root / "deployment.lock"
        self.scratch = self.root / "scratch"
        self.tools = self.root / "tools"
        # The web server reads it, and its workers are another user's.
        self.maintenance = self.root / "maintenance"
        # There from before the first migration until migrate_initial_command has run to its end.
        self.initial_command = self.shared / ".initial-command.pending"

    def release(self, name: str) -> Path:
        """Return the directory of the release called *name* (``<commit12>-<inputs8>``)."""
        return self.releases / name

    def environment(self, digest: str) -> Path:
        """Return the directory of the Python environment with this hash."""
        return self.environments / digest

    def require_root(self) -> None:
        """Refuse a host that was never set up.

        :raises Problem: where ``app_root`` is not there.
        """
        if not self.root.is_dir():
            raise Problem(
                f"app_root {str(self.root)!r} does not exist on this host: run playbooks/setup.yml first."
            )

    def record(self, deployment: str) -> Path:
        """Return the file of the record of *deployment*."""
        return self.deployments / f"{deployment}.json"

    def backup(self, backup: str) -> Path:
        """Return the directory of the backup with this id."""
        return self.backups / backup

    def environment_file(self, deployment: str) -> Path:
        """Return the file with the instance's environment variables (0640, secret)."""
        return self.instances / f"{deployment}.env"

    def instance_file(self, deployment: str) -> Path:
        """Return the file that describes the instance: release, environment, services (0640)."""
        return self.instances / f"{deployment}.json"

    def described_instances(self) -> list[str]:
        """Return the deployments whose instance has its description; none where the directory cannot be read."""
        try:
            names = [os.path.splitext(name) for name in os.listdir(self.instances)]
        except OSError:
            return []
        return [
            deployment
            for deployment, extension in names
            if extension == ".json" and DEPLOYMENT_ID.match(deployment)
        ]

    def launcher(self, deployment: str, service: str) -> Path:
        """Return the script that becomes the service's process."""
        return self.instances / f"{deployment}.{service}.sh"

    def release_instance(self, release: str) -> Path:
        """Return the link that names the deployment which serves *release* (read at boot)."""
        return self.instances / f"{release}.deployment"

    def socket(self, service: str, deployment: str | None = None) -> Path:
        """Return the socket of an instance, or the public link to it when *deployment* is None."""
        return self.run / (f"{service}.{deployment}.sock" if deployment else f"{service}.sock")

    def pid_file(self, service: str, deployment: str) -> Path:
        """Return the PID file of an instance under the manager ``process``."""
        return self.run / f"{service}.{deployment}.pid"

    def paused_file(self, service: str, deployment: str) -> Path:
        """What says that the worker *service* of an instance was told to take no more tasks."""
        return self.run / f"{service}.{deployment}.paused"

    def log(self, service: str, deployment: str) -> Path:
        """Return the log file of an instance under the manager ``process``."""
        return self.logs / f"{service}.{deployment}.log"


def write_atomic(path: Path, text: str, mode: int, owner: int = -1, group: int = -1) -> None:
    """Write *text* to *path* so that a reader, or a host after a crash, sees the old or the new file.

    :param mode: permission bits of the new file, set before it gets its name.
    :param owner: numeric user id, -1 to leave it; :param group: numeric group id, -1 to leave it.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            if owner != -1 or group != -1:
                os.fchown(stream.fileno(), owner, group)
            os.fsync(stream.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    fsync_directory(path.parent)


def write_json(path: Path, document: Any, mode: int, owner: int = -1, group: int = -1) -> None:
    """Write *document* as sorted, indented JSON with :func:`write_atomic`."""
    write_atomic(path, json.dumps(document, indent=2, sort_keys=True) + "\n", mode, owner, group)


def open_regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY, *, follow: bool = False) -> int:
    """Return a descriptor of the regular file *path*, made with mode 0640 where *flags* say so.

    Where the application may write, anything can lie: opening a FIFO would wait for its other end, a device does what
    it does, a link leads elsewhere.

    :param follow: follow a symbolic link as the last part of *path*.
    :raises OSError: for anything but a regular file.
    """
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    handle = os.open(path, flags, 0o640)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    # A child that inherits the descriptor does not expect the flag.
    os.set_blocking(handle, True)
    return handle


def read_regular(path: str | os.PathLike[str], *, follow: bool = False) -> str:
    """Return the text of the regular file *path*; see :func:`open_regular`."""
    with os.fdopen(open_regular(path, follow=follow), encoding="utf-8") as stream:
        return stream.read()


def read_json(path: Path) -> Any:
    """Return the document in *path*, or None where there is no such file.

    :raises ValueError: when the file is not JSON.
    :raises OSError: when it is no regular file, or cannot be read.
    """
    try:
        return json.loads(read_regular(path, follow=True))
    except FileNotFoundError:
        return None


def replace_link(link: Path, target: str) -> None:
    """Point the symbolic link *link* to *target* by rename(2): there is no moment without the link."""
    temporary = link.parent / f".{link.name}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    os.symlink(target, temporary)
    try:
        os.rename(temporary, link)
    except BaseException:
        os.unlink(temporary)
        raise
    fsync_directory(link.parent)


def fsync_directory(path: Path) -> None:
    """Make the names in the directory *path* survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def current_release(layout: Layout) -> str | None:
    """Return the name of the release that ``current`` points to, or None where there is none."""
    try:
        return Path(os.readlink(layout.current)).name
    except (FileNotFoundError, OSError):
        return None


def lock_within(handle: int, timeout: float, interval: float = 0.05) -> None:
    """Take the kernel's lock of the open file *handle*, trying again every *interval* seconds.

    :raises TimeoutError: when somebody else has it for longer than *timeout* seconds.
    :raises OSError: where the file system has no such locks.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"locked for {timeout:g} s") from None
        time.sleep(interval)


@contextlib.contextmanager
def held(directory: Path, timeout: float) -> Iterator[None]:
    """Hold *directory* against others who hold it; the lock is the kernel's, so a kill releases it.

    :raises TimeoutError: when somebody else has it for longer than *timeout* seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(str(directory)) from None
            else:
                # A holder may have put another directory in its place: a lock on what it removed would hold nobody.
                if os.path.samestat(os.fstat(handle), os.stat(directory)):
                    yield
                    return
        finally:
            os.close(handle)
        time.sleep(0.1)


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[None]:
    """Let the owner write names into *directory* for a moment, then give it its mode back.

    Where the application's user is also the one who deploys, releases and environments carry no write bits.
    """
    mode = stat.S_IMODE(directory.stat().st_mode)
    if mode & stat.S_IWUSR or os.geteuid() == 0:
        yield
        return
    directory.chmod(mode | stat.S_IWUSR)
    try:
        yield
    finally:
        directory.chmod(mode)


def remove_tree(path: Path) -> None:
    """Remove the release or environment *path*, without write bits or not; nothing where it does not exist.

    The marker files go first: after a kill what is left counts as neither built nor complete.
    """
    if path.is_symlink() or not path.is_dir():
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return
    path.chmod(0o700)
    for marker in (".complete", ".built"):
        with contextlib.suppress(FileNotFoundError):
            (path / marker).unlink()
    fsync_directory(path)
    for directory, names, _files in os.walk(path):
        for name in names:
            child = Path(directory, name)
            if not child.is_symlink():
                child.chmod(0o700)
    shutil.rmtree(path)
