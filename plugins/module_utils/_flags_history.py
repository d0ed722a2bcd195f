# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The history of feature flags: ``deployments/flags.jsonl``, one line when a switch begins and one when it ends.

Lines are only ever added, each by one write(2) and flushed to the disk: a kill leaves the line or a part of it that no
reader takes for one. Whoever switches holds the file by flock(2), which the kernel gives back when its holder dies.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    Layout,
    fsync_directory,
    lock_within,
    open_regular,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

FILE = "flags.jsonl"
SCHEMA = 1
# Of a switch that is in the file without an end: it was killed, so that it may be half done.
INTERRUPTED = "interrupted"


def history_file(layout: Layout) -> Path:
    """Return the file of the history."""
    return layout.deployments / FILE


def folded(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Return the switches in *lines*, oldest first, begin and end in one; what cannot be read is left out. Pure."""
    switches: dict[str, dict[str, Any]] = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            continue
        if entry.get("state") == "begun":
            switches[entry["id"]] = {**entry, "verdict": INTERRUPTED, "finished": None}
            switches[entry["id"]].pop("state")
        elif entry.get("state") == "ended" and entry["id"] in switches:
            switches[entry["id"]].update({key: value for key, value in entry.items() if key != "state"})
    return list(switches.values())


class History:
    """The history, held against others who switch; see :func:`held_history`."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self.handle = handle

    def switches(self) -> list[dict[str, Any]]:
        """Return all switches, oldest first."""
        os.lseek(self.handle, 0, os.SEEK_SET)
        chunks = []
        while chunk := os.read(self.handle, 1 << 20):
            chunks.append(chunk)
        return folded(b"".join(chunks).decode("utf-8", "replace").split("\n"))

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add *entry* as a line; what is left of a killed writer's line before it is ended first.

        :raises Problem: when it is not on the disk; the file is as it was then.
        """
        size = os.fstat(self.handle).st_size
        torn = size > 0 and os.pread(self.handle, 1, size - 1) != b"\n"
        data = b"\n" * torn + json.dumps({"schema": SCHEMA, **entry}, sort_keys=True).encode() + b"\n"
        try:
            if os.write(self.handle, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self.handle)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self.handle, size)
            raise Problem(
                f"The history of the flags {str(self.path)!r} cannot be written ({error.strerror}): make room there, then switch "
                "again."
            ) from error


def read_switches(layout: Layout) -> list[dict[str, Any]]:
    """Return all switches on this host, oldest first; [] where there is no history. It waits for nobody.

    :raises Problem: when the file cannot be read.
    """
    path = history_file(layout)
    try:
        with os.fdopen(open_regular(path), "rb") as stream:
            return folded(stream.read().decode("utf-8", "replace").split("\n"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Problem(
            f"The history of the flags {str(path)!r} cannot be read ({error.strerror or error}): correct its owner and mode, or "
            "set ansible_become to true."
        ) from error


@contextlib.contextmanager
def held_history(layout: Layout, timeout: float) -> Iterator[History]:
    """Hold the history, made 0640 on the first switch, until the context ends.

    :param timeout: seconds to wait for another switch on this host.
    :raises Problem: when that has not ended by then, or the file cannot be made.
    """
    path = history_file(layout)
    layout.require_root()
    try:
        layout.deployments.mkdir(mode=0o750, exist_ok=True)
        new = not path.exists()
        handle = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        if new:
            fsync_directory(layout.deployments)
    except OSError as error:
        raise Problem(
            f"The history of the flags {str(path)!r} cannot be opened ({error.strerror or error}), and no switch goes unrecorded: "
            "correct that, then switch again."
        ) from error
    try:
        try:
            lock_within(handle, timeout)
        except TimeoutError as error:
            raise Problem(
                f"Another switch of flags has held {str(path)!r} for {timeout:g} s: see who it is with "
                f"fuser -v {path}, and switch again when it has ended."
            ) from error
        yield History(path, handle)
    finally:
        os.close(handle)
