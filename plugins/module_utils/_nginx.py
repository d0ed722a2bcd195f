# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""nginx on this host: how it is called, which workers it has, and when they have read its configuration.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _proc_tree
from ansible_collections.runbook.deploy.plugins.module_utils._command import Finished, run
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._processes import PROC

# Seconds for nginx -t, for nginx -s reload, and until the new workers are there.
COMMAND = 30.0
# Seconds between two looks at its workers.
LOOK = 0.05
# What nginx calls its processes (ngx_setproctitle); the master only where the title could be set.
WORKER = "nginx: worker process"
LEAVING = "nginx: worker process is shutting down"


def title(pid: int) -> str:
    """Return what the process *pid* calls itself, "" when it is gone."""
    try:
        with open(f"{PROC}/{pid}/cmdline", encoding="utf-8", errors="replace") as stream:
            return stream.read().replace("\0", " ").strip()
    except OSError:
        return ""


class Nginx:
    """nginx, with the options ``nginx`` (its command) and ``pid_file``."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options
        self.argv = list(options["nginx"])

    def _nginx(self, *words: str) -> Finished:
        return run([*self.argv, *words], timeout=COMMAND)

    def _master(self) -> int:
        path = self.options["pid_file"]
        try:
            pid = int(Path(path).read_text(encoding="utf-8").strip())
        except FileNotFoundError:
            pid = 0
        except (OSError, ValueError) as error:
            raise Problem(
                f"nginx's PID file {path} cannot be read ({getattr(error, 'strerror', None) or 'it holds no number'}): give the path that nginx's "
                "directive pid has as pid_file."
            ) from error
        if not pid or not os.path.exists(f"{PROC}/{pid}"):
            raise Problem(
                f"nginx does not run: its PID file {path} {'names a process that is gone' if pid else 'does not exist'}; start nginx, or give the path "
                "of its directive pid as pid_file."
            )
        return pid

    def _workers(self, master: int) -> tuple[list[_proc_tree.Entry], list[_proc_tree.Entry]]:
        """Return the workers that accept connections, and those that are on their way out."""
        present, leaving = [], []
        for entry in _proc_tree.scan().values():
            name = title(entry.pid) if entry.ppid == master else ""
            if name.startswith(LEAVING):
                leaving.append(entry)
            elif name.startswith(WORKER):
                present.append(entry)
        return present, leaving

    def _behind(self, master: int, paths: Iterable[Path]) -> bool:
        """Say whether a worker that accepts began before one of *paths* was written: it knows what was in it before.

        Both times are seconds since boot; a worker's is in ticks of 1/100 s, rounded down.
        """
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME) - time.time()
        written = since_boot + max(path.stat().st_mtime for path in paths)
        tick = 1 / os.sysconf("SC_CLK_TCK")
        return any(entry.started * tick + tick < written for entry in self._workers(master)[0])

    def _reload(self, master: int, after: str) -> None:
        """Make nginx read its configuration, and wait until new workers have it.

        :param after: what became of the files, for the sentence of a failure.
        """
        old = {entry.identity for entry in self._workers(master)[0]}
        done = self._nginx("-s", "reload")
        if done.rc != 0:
            raise Problem(
                f"nginx could not be reloaded (exit code {done.rc}, expected 0){after}: see the evidence.",
                done.tail(),
            )
        deadline = time.monotonic() + COMMAND
        while True:
            present = {entry.identity for entry in self._workers(master)[0]}
            if present and not present & old:
                return
            if time.monotonic() > deadline:
                raise Problem(
                    f"nginx started no new workers within {COMMAND:g} s of the reload, so it goes on with its old configuration{after}: its "
                    "error log says why."
                )
            time.sleep(LOOK)
