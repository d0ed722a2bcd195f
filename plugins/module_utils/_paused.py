# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Workers that live, but were told to take no more tasks: known by a file, which outlives whoever told them.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import json

from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, read_regular, write_json


def pause(layout: Layout, service: str, deployment: str, pid: int, started: int) -> None:
    """Write down that the main process *pid* of a worker, which started at *started*, is told to take no more tasks."""
    write_json(layout.paused_file(service, deployment), {"pid": pid, "start_time": started}, 0o644)


def is_paused(layout: Layout, service: str, deployment: str, pid: int) -> bool:
    """Return whether the living process *pid* is the one that the file speaks of; a damaged file speaks of none."""
    try:
        found = json.loads(read_regular(layout.paused_file(service, deployment)))
        return int(found["pid"]) == pid and _processes.is_same(pid, int(found["start_time"]))
    except (OSError, ValueError, TypeError, KeyError):
        return False


def forget(layout: Layout, service: str, deployment: str) -> None:
    """Remove what :func:`pause` wrote."""
    with contextlib.suppress(FileNotFoundError):
        layout.paused_file(service, deployment).unlink()
