# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which processes belong to the application, and who listens where: read from /proc, never from PID files.

Every process of an instance carries ``RUNBOOK_ROOT``, ``RUNBOOK_SERVICE``, ``RUNBOOK_DEPLOYMENT`` and
``RUNBOOK_RELEASE`` in its environment; its children inherit them. A PID alone is no identity, since the
kernel gives it out again: it is always taken together with the start time.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

PROC = "/proc"
# struct ucred of SO_PEERCRED (unix(7)): pid_t, uid_t, gid_t.
UCRED = struct.Struct("3i")
# Column `st` of /proc/net/tcp, TCP_LISTEN of the kernel's tcp_states.h.
TCP_LISTEN = "0A"
# accept(2) queues a connection at once; only a full backlog makes connect(2) wait.
CONNECT_TIMEOUT = 2.0


class Process(NamedTuple):
    """A process of the application.

    ``start_time`` is in clock ticks since boot, field 22 of proc_pid_stat(5).
    """

    pid: int
    ppid: int
    start_time: int
    service: str
    deployment: str
    release: str
    command: str


def parse_stat(text: str) -> tuple[str, int, int]:
    """Return (state, parent's PID, start time in ticks) from the text of /proc/<pid>/stat.

    The name of the program stands in parentheses and may itself hold spaces and parentheses, so that the
    fields are counted from the last ``)``.

    :raises ValueError: when *text* is cut short.
    """
    rest = text.rpartition(")")[2].split()
    if len(rest) < 20:
        raise ValueError(f"incomplete stat line: {text!r}")
    return rest[0], int(rest[1]), int(rest[19])


def _stat(pid: int) -> tuple[str, int, int] | None:
    """Return what :func:`parse_stat` returns for *pid*, or None when there is no such process."""
    try:
        with open(f"{PROC}/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            return parse_stat(stream.read())
    except (OSError, ValueError):
        return None


def start_time(pid: int) -> int | None:
    """Return when the process *pid* started, in clock ticks since boot; None when it is gone or a zombie."""
    found = _stat(pid)
    return None if found is None or found[0] in "ZX" else found[2]


def is_same(pid: int, started: int) -> bool:
    """Return whether *pid* still is the living process that started at *started* (clock ticks since boot)."""
    return start_time(pid) == started


def parse_variables(content: bytes) -> dict[str, str]:
    """Return the variables in *content*, the bytes of /proc/<pid>/environ; the first of a name counts."""
    result: dict[str, str] = {}
    for entry in content.split(b"\0"):
        name, separator, value = entry.partition(b"=")
        if separator:
            result.setdefault(os.fsdecode(name), os.fsdecode(value))
    return result


def variables(pid: int) -> dict[str, str]:
    """Return the environment that *pid* was started with; {} when it is gone or belongs to somebody else."""
    try:
        with open(f"{PROC}/{pid}/environ", "rb") as stream:
            return parse_variables(stream.read())
    except OSError:
        return {}


def readable(pid: int) -> bool:
    """Return whether we may see the environment of *pid*: it is ours, or we are root."""
    try:
        with open(f"{PROC}/{pid}/environ", "rb") as stream:
            stream.read(1)
    except OSError:
        return False
    return True


def command(pid: int) -> str:
    """Return the command line of *pid* with spaces between its words, or "" when it is gone."""
    try:
        with open(f"{PROC}/{pid}/cmdline", "rb") as stream:
            return os.fsdecode(stream.read().rstrip(b"\0").replace(b"\0", b" "))
    except OSError:
        return ""


def pids() -> list[int]:
    """Return the PIDs that exist now, in ascending order."""
    return sorted(int(name) for name in os.listdir(PROC) if name.isdigit())


def _same_root(found: str | None, wanted: str, resolved: str) -> bool:
    return found is not None and (found.rstrip("/") == wanted or os.path.realpath(found) == resolved)


def process(pid: int) -> Process | None:
    """Return what the process *pid* says of itself; None when it is gone, a zombie or not ours."""
    stat = _stat(pid)
    if stat is None or stat[0] in "ZX":
        return None
    found = variables(pid)
    if "RUNBOOK_ROOT" not in found:
        return None
    return Process(
        pid,
        stat[1],
        stat[2],
        found.get("RUNBOOK_SERVICE", ""),
        found.get("RUNBOOK_DEPLOYMENT", ""),
        found.get("RUNBOOK_RELEASE", ""),
        command(pid),
    )


def carries(pid: int, service: str, deployment: str) -> bool:
    """Return whether *pid* has the names of *service* and its *deployment* in its environment."""
    entry = process(pid)
    return entry is not None and (entry.service, entry.deployment) == (service, deployment)


def application_processes(root: str | os.PathLike[str]) -> list[Process]:
    """Return the living processes of the application below *root*, by PID; one scan of /proc.

    The processes of other users are invisible to an ordinary user and are skipped, as is the caller itself.
    """
    wanted = os.fspath(root).rstrip("/")
    resolved = os.path.realpath(wanted)
    result = []
    for pid in pids():
        if pid == os.getpid():
            continue
        try:
            with open(f"{PROC}/{pid}/environ", "rb") as stream:
                content = stream.read()
        except OSError:
            continue
        # Most processes of a host are not ours: look before anything is taken apart.
        if b"RUNBOOK_ROOT=" not in content:
            continue
        if not _same_root(parse_variables(content).get("RUNBOOK_ROOT"), wanted, resolved):
            continue
        found = process(pid)
        if found is not None:
            result.append(found)
    return result


def tree_roots(processes: Iterable[Process]) -> list[Process]:
    """Return those of *processes* whose parent is not among them: the main process of each service."""
    listed = list(processes)
    known = {entry.pid for entry in listed}
    return [entry for entry in listed if entry.ppid not in known]


def peer_pid(path: str | os.PathLike[str]) -> int | None:
    """Return the PID of the process that called listen(2) on the unix socket *path*; None: nobody listens.

    With a server that forks workers that is its main process. 0: a process of another PID namespace.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT_TIMEOUT)
        try:
            connection.connect(os.fspath(path))
            answer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        except OSError:
            return None
    return UCRED.unpack(answer)[0]


def parse_listeners(text: str, port: int, column: int = 9) -> set[int]:
    """Return a column, by default the inodes, of the sockets that listen on TCP *port*, from the text of /proc/net/tcp or tcp6."""
    found = set()
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == TCP_LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
            found.add(int(fields[column]))
    return found


def listener_inodes(port: int) -> set[int]:
    """Return the inodes of the sockets that listen on TCP *port* in our network namespace, IPv4 and IPv6.

    An inode is seen even when its process belongs to another user, whose PID is not.
    """
    inodes: set[int] = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"{PROC}/net/{name}", encoding="ascii") as stream:
            inodes |= parse_listeners(stream.read(), port)
    return inodes


def listener_owners(port: int) -> set[int]:
    """Return the user ids of the sockets that listen on TCP *port*; they are seen where the processes are not."""
    owners: set[int] = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"{PROC}/net/{name}", encoding="ascii") as stream:
            owners |= parse_listeners(stream.read(), port, column=7)
    return owners


def listener_pids(port: int) -> list[int]:
    """Return the PIDs of the processes that hold a socket listening on TCP *port*, in ascending order.

    A forking server's workers hold it too. Empty when nobody listens, or only processes of other users that
    may not be looked into: :func:`listener_inodes` tells these cases apart.
    """
    wanted = {f"socket:[{inode}]" for inode in listener_inodes(port)}
    if not wanted:
        return []
    result = []
    for pid in pids():
        try:
            handles = os.listdir(f"{PROC}/{pid}/fd")
        except OSError:
            continue
        for handle in handles:
            with contextlib.suppress(OSError):
                if os.readlink(f"{PROC}/{pid}/fd/{handle}") in wanted:
                    result.append(pid)
                    break
    return result
