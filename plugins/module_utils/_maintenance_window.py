# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The flag that a web server tests at each request, and which is over by itself when its time is.

nginx knows the time and whether a file exists, and can compare neither with a number. So the flag is a directory with an empty
file for each 10 s, and for each whole 1000 s, of the maintenance, named by the time. When the time has no file any more there is
no maintenance, whatever became of whoever put it on, of the host's other processes, and through a reboot.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from ansible_collections.runbook.deploy.plugins.module_utils._layout import fsync_directory, replace_link

FLAG = "on"
SMALL, LARGE = 10, 1000
# A clock that is put back by this much does not end the maintenance.
BACK = 1000


def names(begin: float, end: float) -> list[str]:
    """Return the names of the files for the seconds since 1970 from *begin* to *end*; what they cover ends within 10 s after *end*.

    >>> names(2000, 3010)
    ['k2', 't300']
    """
    found = []
    # The first 10 s that are not covered any more.
    last = math.ceil(end / SMALL)
    tens = int(begin) // SMALL
    per = LARGE // SMALL
    while tens < last:
        if tens % per == 0 and tens + per <= last:
            found.append(f"k{tens // per}")
            tens += per
        else:
            found.append(f"t{tens}")
            tens += 1
    return found


def covers(listed: Iterable[str], moment: float) -> bool:
    """Say whether the flag with the files *listed* is up at *moment*: what nginx asks at each request."""
    files = set(listed)
    return f"t{int(moment) // SMALL}" in files or f"k{int(moment) // LARGE}" in files


def listed(directory: Path) -> list[str] | None:
    """Return the files of the flag in *directory*, None where there is no flag."""
    try:
        return os.listdir(directory / FLAG)
    except (FileNotFoundError, NotADirectoryError):
        return None


def raise_flag(directory: Path, identifier: str, begin: float, end: float) -> None:
    """Put the flag up, or give the one that is up another end: one rename, so that no request meets a gap."""
    own = directory / f".{FLAG}.{identifier}"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(mode=0o755)
    os.chmod(own, 0o755)
    for name in names(begin - BACK, end):
        os.close(os.open(own / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    fsync_directory(own)
    replace_link(directory / FLAG, own.name)
    _sweep(directory, own.name)


def lower_flag(directory: Path) -> bool:
    """Take the flag down, and what killed runs left of others; say whether there was one."""
    link = directory / FLAG
    was = os.path.lexists(link)
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
        fsync_directory(directory)
    with contextlib.suppress(FileNotFoundError):
        _sweep(directory, "")
    return was


def _sweep(directory: Path, keep: str) -> None:
    """Remove every directory of a flag but *keep*, and links that were not renamed."""
    for name in os.listdir(directory):
        if name.startswith(f".{FLAG}.") and name != keep:
            path = directory / name
            if path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)
