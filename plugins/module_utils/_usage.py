# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a process and all that it has started use of memory and processors, read from /proc.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._processes import PROC, pids


class Usage(NamedTuple):
    """A process and its descendants at one moment.

    ``main`` is its PID with its start time (ticks since boot); ``memory`` is in bytes: the proportional share (PSS) where all of them may be
    looked into (``shared`` is False), else the resident size, in which memory that several share is counted for each.
    ``cpu`` is the processor time in seconds that they, and those of their children that have ended, have used. ``files`` is None where the
    open files may not be counted.
    """

    main: tuple[int, int]
    processes: int
    threads: int
    memory: int
    shared: bool
    cpu: float
    files: int | None


class Stat(NamedTuple):
    """What is used of a line of proc_pid_stat(5): ``ticks`` are utime, stime, cutime and cstime together; ``pages`` are resident."""

    state: str
    ppid: int
    ticks: int
    threads: int
    started: int
    pages: int


def parse_stat(text: str) -> Stat:
    """Return the fields of the text of /proc/<pid>/stat.

    :raises ValueError: when it is cut short.
    """
    fields = text.rpartition(")")[2].split()
    if len(fields) < 22:
        raise ValueError(f"incomplete stat line: {text!r}")
    # Field 3 of the manual page is the first one after the name.
    return Stat(
        fields[0],
        int(fields[1]),
        sum(int(field) for field in fields[11:15]),
        int(fields[17]),
        int(fields[19]),
        int(fields[21]),
    )


def descendants(main: int, parents: Iterable[tuple[int, int]]) -> set[int]:
    """Return *main* and all that descend from it, by pairs of a PID and its parent's."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents:
        children.setdefault(parent, []).append(pid)
    found, waiting = set(), [main]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return found


def usage(main: int) -> Usage | None:
    """Return what *main* and its descendants use now; None when there is no such living process."""
    stats: dict[int, Stat] = {}
    for pid in pids():
        with (
            contextlib.suppress(OSError, ValueError),
            open(f"{PROC}/{pid}/stat", encoding="utf-8", errors="replace") as stream,
        ):
            stats[pid] = parse_stat(stream.read())
    if main not in stats or stats[main].state in "ZX":
        return None
    tree = descendants(main, [(pid, stat.ppid) for pid, stat in stats.items()])
    page = os.sysconf("SC_PAGE_SIZE")
    alive = [pid for pid in tree if stats[pid].state not in "ZX"]
    shares = [_pss(pid) for pid in alive]
    exact = all(share is not None for share in shares)
    counts = [_files(pid) for pid in alive]
    return Usage(
        (main, stats[main].started),
        len(alive),
        sum(stats[pid].threads for pid in alive),
        sum(share or 0 for share in shares) if exact else sum(stats[pid].pages for pid in alive) * page,
        not exact,
        sum(stats[pid].ticks for pid in tree) / os.sysconf("SC_CLK_TCK"),
        None if any(count is None for count in counts) else sum(count or 0 for count in counts),
    )


def _pss(pid: int) -> int | None:
    """Return the proportional memory of *pid* in bytes; None where that may not be seen; 0 for one that has ended meanwhile."""
    try:
        with open(f"{PROC}/{pid}/smaps_rollup", encoding="ascii") as stream:
            for line in stream:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        # It has ended meanwhile; a kernel before 4.14 has no such file for anybody.
        return 0 if os.path.exists(f"{PROC}/self/smaps_rollup") else None
    except OSError:
        return None
    return None


def _files(pid: int) -> int | None:
    try:
        return len(os.listdir(f"{PROC}/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except OSError:
        return None
