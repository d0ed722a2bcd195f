# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the archives that ansible-core makes of modules from one run to the next.

For each module ansible-core reads and parses everything that it imports, and packs it: 0.2 to 0.4 s of the controller's
time, as much as the module's work on a host, and the same in every run. ansible-core keeps the result until the end of the
run, in the directory ``ansiballz_cache`` of its temporary directory. Here it is kept in ``~/.ansible``, below a key of all
that it depends on, and with bytecode for hosts that have the controller's Python. An ansible-core that keeps it elsewhere makes its archives as ever.

This is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ansible import constants
from ansible.release import __version__ as core_version
from ansible_collections.runbook.deploy.plugins.plugin_utils._bytecode import enrich

COLLECTION = Path(__file__).resolve().parents[2]
# What ansible-core calls its files; those of other collections are none of our business.
OURS = "ansible_collections.runbook.deploy."
UNFINISHED = ("-part", ".lock", ".new")
# Archives of other versions, of the collection or of ansible-core, go when nobody used them for so long.
KEPT_SECONDS = 7 * 86400


def run_directory() -> Path:
    """Where ansible-core keeps archives during this run."""
    return Path(constants.DEFAULT_LOCAL_TMP) / "ansiballz_cache"


def store() -> Path:
    """Where archives are kept from one run to the next."""
    return Path(constants.ANSIBLE_HOME) / "runbook.deploy" / "archives"


def key(collection: Path = COLLECTION) -> str:
    """Return a digest of what an archive depends on: every file it may hold, and who makes it of them."""
    paths = constants.DEFAULT_MODULE_UTILS_PATH or []
    parts = ["bytecode 1", core_version, sys.version, os.fspath(collection), *map(str, paths)]
    files = [*collection.glob("plugins/module_utils/*.py"), *collection.glob("plugins/modules/*.py")]
    for path in sorted(files):
        found = path.stat()
        parts.append(f"{path.name} {found.st_size} {found.st_mtime_ns} {found.st_ino}")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def private(directory: Path) -> bool:
    """Return whether nobody but this user could have put anything into *directory*, which is made where it is missing."""
    directory.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # One after the other: what is made on the way gets the mode of the user's umask, which may let a group write.
    directory.parent.mkdir(mode=0o700, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    for path in (directory, directory.parent, directory.parent.parent):
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            return False
    return True


def finished(directory: Path) -> dict[str, Path]:
    """Return the whole archives in *directory*, by name."""
    if not directory.is_dir():
        return {}
    names = [name for name in os.listdir(directory) if name.startswith(OURS)]
    return {name: directory / name for name in names if not name.endswith(UNFINISHED)}


def bring(content: bytes, target: Path) -> None:
    """Write an archive so that nobody sees half of it."""
    new = target.with_name(f"{target.name}.{os.getpid()}.new")
    try:
        new.write_bytes(content)
        os.replace(new, target)
    finally:
        new.unlink(missing_ok=True)


def forget(directory: Path, present: Path) -> None:
    """Remove the archives in *directory* that were last used long ago; never those in *present*."""
    for other in directory.iterdir():
        if other != present and time.time() - other.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(other, ignore_errors=True)


@contextlib.contextmanager
def reused() -> Iterator[None]:
    """Give this run the archives of earlier ones, and later runs those that are made in the block."""
    before: dict[str, Path] = {}
    kept = None
    # This saves time. A full disk, or a home that cannot be written, must not fail a deployment.
    with contextlib.suppress(OSError):
        directory = store()
        kept = directory / key()
        if not private(directory):
            kept = None
        else:
            here = run_directory()
            before = finished(here)
            for name, path in finished(kept).items():
                if name not in before:
                    here.mkdir(mode=0o700, parents=True, exist_ok=True)
                    bring(path.read_bytes(), here / name)
                    before[name] = here / name
    yield
    with contextlib.suppress(OSError):
        made = {name: path for name, path in finished(run_directory()).items() if name not in before}
        if kept is not None and made:
            kept.mkdir(mode=0o700, exist_ok=True)
            for name, path in made.items():
                bring(enrich(path), kept / name)
            os.utime(kept)
            forget(store(), kept)
