# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``killer.py PID SECONDS controller|all``: kill a run from outside, SECONDS from now.

``controller`` is ansible-playbook and its workers: what they have started on the host goes on, as it does behind a
connection that broke. ``all`` is everything below them too, as when the host itself goes down.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time


def parents() -> dict[int, int]:
    """Return the parent of each process."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stream:
                found[int(name)] = int(stream.read().rpartition(b")")[2].split()[1])
    return found


def words(pid: int) -> bytes:
    """Return the command line of *pid*."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as stream:
        return stream.read()
    return b""


def tree(top: int, whom: str) -> list[int]:
    """Return *top* and what is below it, without this process: workers have the command line that *top* has."""
    known = parents()
    found = [top] if top in known else []
    for pid in found:
        found += [child for child, parent in known.items() if parent == pid and child != os.getpid()]
    return [pid for pid in found if whom == "all" or words(pid) == words(top)]


def send(pids: list[int], number: int) -> None:
    """Send a signal to each that still lives."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def main() -> None:
    """Stop them first, so that none is born unseen; then kill."""
    top, seconds, whom = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    begun = parents().get(top)
    time.sleep(seconds)
    # The number may be another's by now: the run's parent is the same as before as long as it lives.
    if begun is None or parents().get(top) != begun:
        return
    stopped: list[int] = []
    while True:
        found = tree(top, whom)
        if set(found) <= set(stopped):
            break
        send(found, signal.SIGSTOP)
        stopped = found
    send(stopped, signal.SIGKILL)


if __name__ == "__main__":
    main()
