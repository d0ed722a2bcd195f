# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A process with all that it has started: what /proc says of their memory, CPU time, handles and connections.

What may not be looked into is None, never 0.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from ansible_collections.runbook.deploy.plugins.module_utils._processes import PROC

# Column `st` of /proc/net/tcp: TCP_ESTABLISHED of the kernel's tcp_states.h; of /proc/net/unix: SS_CONNECTED of net.h.
TCP_ESTABLISHED = "01"
UNIX_CONNECTED = "03"
# A share of all looks in which a child that is no fork of its parent was there: less often, and it is a helper.
ALWAYS = 0.8
# Looks after which that share means something.
LOOKS = 4
# Seconds after which a process is no more between fork and exec, also on a busy machine; and those after which a new one is
# looked at again.
SETTLED = 0.5
MOMENT = 0.05
# So many that were gone by then are workers that die at once.
OFTEN = 3


class Entry(NamedTuple):
    """A living process, from proc_pid_stat(5): ``started`` in ticks since boot, ``ticks`` of CPU time with that of children
    that ended, ``rss`` in pages."""

    pid: int
    ppid: int
    session: int
    started: int
    ticks: int
    threads: int
    rss: int
    comm: str

    @property
    def identity(self) -> tuple[int, int]:
        """What no other process has."""
        return self.pid, self.started


def parse_entry(text: str) -> Entry | None:
    """Return the process in the text of /proc/<pid>/stat; None for a zombie.

    :raises ValueError: when *text* is cut short.
    """
    head, _bracket, tail = text.rpartition(")")
    pid, _space, comm = head.partition(" (")
    rest = tail.split()
    if len(rest) < 22:
        raise ValueError(f"incomplete stat line: {text!r}")
    if rest[0] in "ZX":
        return None
    ticks = sum(map(int, rest[11:15]))
    return Entry(
        int(pid), int(rest[1]), int(rest[3]), int(rest[19]), ticks, int(rest[17]), int(rest[21]), comm
    )


def scan() -> dict[int, Entry]:
    """Return all living processes by PID."""
    found = {}
    for pid in _processes.pids():
        try:
            with open(f"{PROC}/{pid}/stat", encoding="utf-8", errors="replace") as stream:
                entry = parse_entry(stream.read())
        except (OSError, ValueError):
            continue
        if entry is not None:
            found[pid] = entry
    return found


def descendants(entries: Mapping[int, Entry], main: int) -> list[Entry]:
    """Return *main*, its children, their children and so on, of those in *entries*, by PID."""
    children: dict[int, list[int]] = {}
    for entry in entries.values():
        children.setdefault(entry.ppid, []).append(entry.pid)
    found: dict[int, Entry] = {}
    waiting = [main]
    while waiting:
        pid = waiting.pop()
        if pid in entries and pid not in found:
            found[pid] = entries[pid]
            waiting += children.get(pid, [])
    return [found[pid] for pid in sorted(found)]


def members(entries: Mapping[int, Entry], main: int, belongs: Callable[[int], bool]) -> list[Entry]:
    """Return the descendants of *main*, who shares its session, and who else *belongs*: daemons of its own."""
    found = {entry.pid: entry for entry in descendants(entries, main)}
    for pid, entry in entries.items():
        if pid not in found and (entry.session == main or belongs(pid)):
            found[pid] = entry
    return [found[pid] for pid in sorted(found)]


def program(pid: int) -> str:
    """Return the file that *pid* executes, or "" where that may not be seen."""
    try:
        return os.readlink(f"{PROC}/{pid}/exe")
    except OSError:
        return ""


def name_of(pid: int) -> str:
    """Return the file that *pid* executes, or the process's name where that may not be seen; "" where it is gone."""
    found = program(pid)
    if not found:
        with (
            contextlib.suppress(OSError),
            open(f"{PROC}/{pid}/comm", encoding="utf-8", errors="replace") as stream,
        ):
            found = stream.read().rstrip("\n")
    return found


class Workers:
    """Which children of a service ended and were replaced, while the service itself lives.

    A process that executes the same program as its parent is a worker that it forked: one that ended and one that is new
    make a replacement. Between fork(2) and execve(2) any other child is the same, so that a new one is looked at twice. Other
    children are mostly helpers, which come and go; where one with the same command is always there (a wrapper that starts a
    program again and again), each one after the first is a replacement.
    """

    def __init__(self, wait: Callable[[float], None] = time.sleep) -> None:
        self._wait = wait
        self._first: set[tuple[int, int]] | None = None
        self._before: set[tuple[int, int]] = set()
        self._died: set[tuple[int, int]] = set()
        self._born: set[tuple[int, int]] = set()
        # Gone before they were looked at again: workers only where there are many.
        self._brief: set[tuple[int, int]] = set()
        self._groups: dict[tuple[int, str], dict[str, Any]] = {}
        self._looks = 0

    def look(
        self,
        tree: Iterable[Entry],
        name_of: Callable[[int], str] = name_of,
        command_of: Callable[[int], str] = _processes.command,
        age_of: Callable[[int], float] | None = None,
    ) -> None:
        """Take one look at the *tree*, the service's main process and its descendants."""
        listed = {entry.pid: entry for entry in tree}
        forked = set()
        new: dict[tuple[int, int], str] = {}
        others: dict[tuple[int, str], set[tuple[int, int]]] = {}
        for entry in listed.values():
            parent = listed.get(entry.ppid)
            if parent is None:
                continue
            own, its = name_of(entry.pid), name_of(parent.pid)
            if own and own == its:
                if entry.identity in self._before or (age_of or age)(entry.started) >= SETTLED:
                    forked.add(entry.identity)
                else:
                    new[entry.identity] = its
                continue
            command = command_of(entry.pid)
            # Waiting is no work: a shell's loop sleeps anew each time.
            if command and os.path.basename(command.split(" ", 1)[0]) != "sleep":
                others.setdefault((entry.ppid, command), set()).add(entry.identity)
        forked |= self._settled(new, name_of)
        if self._first is None:
            self._first = set(forked)
        self._born |= forked - self._first
        self._died |= self._before - forked
        self._before = forked
        self._looks += 1
        for key, found in others.items():
            group = self._groups.setdefault(key, {"seen": set(), "looks": 0, "most": 0})
            group["seen"] |= found
            group["looks"] += 1
            group["most"] = max(group["most"], len(found))

    def _settled(
        self, new: Mapping[tuple[int, int], str], name_of: Callable[[int], str]
    ) -> set[tuple[int, int]]:
        """Return those of *new* that execute their parent's program still, a moment later."""
        if not new:
            return set()
        self._wait(MOMENT)
        now = {identity: name_of(identity[0]) for identity in new}
        self._brief |= {identity for identity, name in now.items() if not name}
        return {identity for identity, name in now.items() if name == new[identity]}

    @property
    def count(self) -> int:
        """How many workers the last look found; children that are no forks where there are none such."""
        return len(self._before)

    @property
    def all_gone(self) -> bool:
        """Whether there were workers, and none is left."""
        return bool(self._first or self._born) and not self._before

    @property
    def replaced(self) -> int:
        """How many ended and were replaced."""
        brief = len(self._brief) if len(self._brief) >= OFTEN else 0
        forked = min(len(self._died), len(self._born)) + brief
        others = sum(
            len(group["seen"]) - group["most"]
            for group in self._groups.values()
            if self._looks >= LOOKS and group["looks"] >= ALWAYS * self._looks
        )
        return forked + others


def parse_pss(text: str) -> int | None:
    """Return the bytes in the line ``Pss:`` of /proc/<pid>/smaps_rollup (proc_pid_smaps(5)); None where there is none."""
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[0] == "Pss:" and fields[2] == "kB":
            return int(fields[1]) * 1024
    return None


def memory(tree: Iterable[Entry]) -> tuple[int, bool]:
    """Return the bytes that the processes of *tree* take, and whether that is exact.

    Exact is the proportional set size, which divides what is shared; without the right to read it, or on Linux before
    4.14, the resident set stands for it, which counts shared pages again for each process: never too little.
    """
    total = 0
    exact = True
    for entry in tree:
        found = None
        try:
            with open(f"{PROC}/{entry.pid}/smaps_rollup", encoding="ascii") as stream:
                found = parse_pss(stream.read())
        except (FileNotFoundError, ProcessLookupError):
            if not os.path.isdir(f"{PROC}/{entry.pid}"):
                continue
        except OSError:
            pass
        if found is None:
            exact = False
            found = entry.rss * os.sysconf("SC_PAGE_SIZE")
        total += found
    return total, exact


def handles(tree: Iterable[Entry]) -> dict[int, list[str]] | None:
    """Return what the open descriptors of each process of *tree* lead to; None where one may not be looked into."""
    found = {}
    for entry in tree:
        directory = f"{PROC}/{entry.pid}/fd"
        try:
            names = os.listdir(directory)
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError:
            return None
        found[entry.pid] = targets = []
        for name in names:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                try:
                    targets.append(os.readlink(f"{directory}/{name}"))
                except PermissionError:
                    return None
    return found


def parse_file_limit(text: str) -> int | None:
    """Return the soft limit of open files in the text of /proc/<pid>/limits; None for no limit."""
    for line in text.splitlines():
        if line.startswith("Max open files"):
            value = line.split()[3]
            return int(value) if value.isdigit() else None
    return None


def fullest(opened: Mapping[int, Collection[str]]) -> float | None:
    """Return the percentage of its own limit of open files that the fullest of the processes has; None: none has a limit."""
    shares = []
    for pid, targets in opened.items():
        with contextlib.suppress(OSError), open(f"{PROC}/{pid}/limits", encoding="ascii") as stream:
            limit = parse_file_limit(stream.read())
            if limit:
                shares.append(100 * len(targets) / limit)
    return max(shares) if shares else None


def parse_established(text: str) -> set[str]:
    """Return the inodes of established connections in the text of /proc/net/tcp or tcp6 (proc_pid_net(5))."""
    rows = (line.split() for line in text.splitlines()[1:])
    return {fields[9] for fields in rows if len(fields) > 9 and fields[3] == TCP_ESTABLISHED}


def parse_accepted(text: str) -> set[str]:
    """Return the inodes of connections that were accepted on a Unix socket, from the text of /proc/net/unix.

    They carry the name of the socket they were accepted on. The other end has none, and neither has the connection to
    the journal that every unit has.
    """
    rows = (line.split(None, 7) for line in text.splitlines()[1:])
    return {fields[6] for fields in rows if len(fields) == 8 and fields[5] == UNIX_CONNECTED}


def connections(main: int, opened: Mapping[int, Iterable[str]]) -> int | None:
    """Return how many connections the processes with the handles *opened* have, in the network of *main*.

    Counted are established TCP connections, in both directions, and those accepted on Unix sockets; one that several
    processes share counts once. None where they cannot be read.
    """
    inodes: set[str] = set()
    for name, parse in (("tcp", parse_established), ("tcp6", parse_established), ("unix", parse_accepted)):
        try:
            with open(f"{PROC}/{main}/net/{name}", encoding="utf-8", errors="replace") as stream:
                inodes |= parse(stream.read())
        except FileNotFoundError:
            # A kernel without IPv6 has no tcp6.
            if not os.path.exists(f"{PROC}/{main}/net"):
                return None
        except OSError:
            return None
    held = {target for targets in opened.values() for target in targets}
    return sum(f"socket:[{inode}]" in held for inode in inodes)


def parse_unix_listeners(text: str, paths: Collection[str]) -> set[int]:
    """Return the inodes of the sockets that listen on one of *paths*, from the text of /proc/net/unix.

    Flag ``__SO_ACCEPTCON`` (00010000) of the kernel's net.h says that a socket listens.
    """
    rows = (line.split(None, 7) for line in text.splitlines()[1:])
    return {
        int(fields[6])
        for fields in rows
        if len(fields) == 8 and fields[7] in paths and int(fields[3], 16) & 0x10000
    }


def unix_listeners(path: str) -> set[int]:
    """Return the inodes of the sockets that listen on *path*, whether it is written with links or without."""
    with open(f"{PROC}/net/unix", encoding="utf-8", errors="replace") as stream:
        return parse_unix_listeners(stream.read(), {path, os.path.realpath(path)})


def holds(opened: Mapping[int, Iterable[str]], inodes: Iterable[int]) -> bool:
    """Return whether one of the handles *opened* is a socket of *inodes*."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    return any(target in wanted for targets in opened.values() for target in targets)


def age(started: int) -> float:
    """Return for how many seconds the process that started at *started* (ticks since boot) has been running."""
    with open(f"{PROC}/uptime", encoding="ascii") as stream:
        return float(stream.read().split()[0]) - started / os.sysconf("SC_CLK_TCK")


def runs_from(pid: int) -> list[str] | None:
    """Return the paths by which one can see what *pid* runs: its directory, its program, absolute words of its command.

    None where they may not be seen.
    """
    try:
        found = [os.readlink(f"{PROC}/{pid}/cwd"), os.readlink(f"{PROC}/{pid}/exe")]
        with open(f"{PROC}/{pid}/cmdline", "rb") as stream:
            words = os.fsdecode(stream.read()).split("\0")
    except OSError:
        return None
    return [*found, *(word for word in words if word.startswith("/"))]


def is_release(wanted: str, variables: Mapping[str, str], paths: Iterable[str] | None) -> bool | None:
    """Return whether a process runs the release *wanted*, a name or an absolute path; None where nothing tells.

    What its environment says counts; without ``RUNBOOK_RELEASE``, the first of *paths* that lies in the release, or in
    another one beside it: below the same directory, or one called ``releases``.
    """
    name = os.path.basename(wanted.rstrip("/"))
    # A link, such as "current", says where it leads now, not where it led when the process began.
    place = os.path.realpath(wanted) if wanted.startswith("/") else ""
    if place:
        name = os.path.basename(place)
    named = variables.get("RUNBOOK_RELEASE")
    if named:
        return named == name
    for path in paths or ():
        parts = path.replace(" (deleted)", "").split("/")
        if place:
            beside = place.split("/")[:-1]
            if len(parts) > len(beside) and parts[: len(beside)] == beside:
                return parts[len(beside)] == name
        elif name in parts:
            return True
        elif "releases" in parts[:-1]:
            return False
    return None
