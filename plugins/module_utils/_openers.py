# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which processes have a file open, and how those of the application are stopped.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# What the kernel appends to the name of a file that was removed or replaced (proc_pid_fd(5)).
DELETED = " (deleted)"
POLL = 0.05
# Seconds for the kernel to take away a process that was killed.
KILL_WAIT = 5.0


class Opener(NamedTuple):
    """A process with the file open; ``started`` in clock ticks since boot; ``ours``: it belongs to the application."""

    pid: int
    started: int
    command: str
    ours: bool


def belongs(pid: int, root: Path) -> bool:
    """Return whether *pid* carries ``RUNBOOK_ROOT`` of the application below *root*."""
    found = _processes.variables(pid).get("RUNBOOK_ROOT")
    return found is not None and os.path.realpath(found) == os.path.realpath(root)


def openers(files: list[Path], root: Path, former: Iterable[str] = ()) -> list[Opener]:
    """Return the processes that have one of *files* open, by PID, without this one.

    :param former: names that *files* had when they may have been opened.

    Files are told by device and inode; names are compared first, so that no descriptor on a network file system
    that hangs is touched. Processes that this user may not look into are invisible.
    """
    wanted = {}
    for path in files:
        with contextlib.suppress(OSError):
            entry = os.stat(path)
            wanted[(entry.st_dev, entry.st_ino)] = path.name
    names = {path.name for path in files} | set(former)
    result = []
    for pid in _processes.pids():
        if pid != os.getpid() and wanted and _has_open(pid, set(wanted), names):
            started = _processes.start_time(pid)
            if started is not None:
                command = _processes.command(pid)
                result.append(Opener(pid, started, command, belongs(pid, root)))
    return result


def _has_open(pid: int, wanted: set[tuple[int, int]], names: set[str]) -> bool:
    try:
        handles = os.listdir(f"{_processes.PROC}/{pid}/fd")
    except OSError:
        return False
    for handle in handles:
        path = f"{_processes.PROC}/{pid}/fd/{handle}"
        with contextlib.suppress(OSError):
            name = os.path.basename(os.readlink(path))
            if name in names or (name.endswith(DELETED) and name[: -len(DELETED)] in names):
                entry = os.stat(path)
                if (entry.st_dev, entry.st_ino) in wanted:
                    return True
    return False


def with_main_process(opener: Opener, root: Path) -> list[tuple[int, int]]:
    """Return (pid, start time) of *opener* and of those above it that belong to the application.

    A master that is left alone would start its worker again.
    """
    result = [(opener.pid, opener.started)]
    found = _processes.process(opener.pid)
    while found is not None and found.ppid > 1 and belongs(found.ppid, root):
        found = _processes.process(found.ppid)
        if found is not None:
            result.append((found.pid, found.start_time))
    return result


def describe(found: Iterable[Opener]) -> str:
    """Return the processes as text, each with its PID and the beginning of its command."""
    return ", ".join(f"pid {entry.pid} ({' '.join(entry.command.split())[:80]})" for entry in found)


def require_ours(found: Iterable[Opener], file: Path) -> None:
    """Raise a Problem that names those of *found* that do not belong to the application."""
    others = [entry for entry in found if not entry.ours]
    if others:
        raise Problem(
            f"The database {file} is open in processes that do not belong to this application: {describe(others)}; "
            "nothing was restored; end them, and try again."
        )


def stop_openers(files: list[Path], root: Path, timeout: float, former: Iterable[str] = ()) -> list[Opener]:
    """Stop the processes of the application that have one of *files* open: TERM, *timeout* seconds, KILL.

    None is stopped when there is one that is not the application's, which is looked for first.

    :returns: the processes that were stopped.
    :raises Problem: when others have the file open, one may not be stopped, or a manager starts them again.
    """
    found = openers(files, root, former)
    require_ours(found, files[0])
    stopped = {(entry.pid, entry.started): entry for entry in found}
    deadline = time.monotonic() + timeout
    signalled: set[tuple[int, int]] = set()
    killing = False
    while found:
        for pid, started in {pair for entry in found for pair in with_main_process(entry, root)}:
            if killing or (pid, started) not in signalled:
                signalled.add((pid, started))
                send(pid, started, signal.SIGKILL if killing else signal.SIGTERM, files[0])
        time.sleep(POLL)
        if time.monotonic() > deadline:
            if killing:
                raise Problem(
                    f"The database {files[0]} is still open after its processes were stopped: {describe(found)}; something "
                    "starts them again; nothing was restored; stop the services first, and try again."
                )
            killing, deadline = True, time.monotonic() + KILL_WAIT
        found = openers(files, root, former)
        require_ours(found, files[0])
        stopped.update({(entry.pid, entry.started): entry for entry in found})
    # A master without the file open ends a little after its workers; until then it could start them again.
    deadline = max(deadline, time.monotonic() + KILL_WAIT)
    while any(_processes.is_same(*pair) for pair in signalled):
        if time.monotonic() > deadline:
            for pid, started in signalled:
                send(pid, started, signal.SIGKILL, files[0])
            break
        time.sleep(POLL)
    return sorted(stopped.values())


def send(pid: int, started: int, number: int, file: Path) -> None:
    """Send a signal to *pid* when it still is the process that started at *started*.

    :raises Problem: when we may not.
    """
    if not _processes.is_same(pid, started):
        return
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise Problem(
            f"The process {pid} has the database {file} open and belongs to another user, so it cannot be stopped; "
            "nothing was restored; set ansible_become to true, or stop the services first."
        ) from error
