# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Count the tasks of a run, and kill the controller at one of them, as a machine that loses its power does.

Of each task that starts, a line ``<number> <seconds of the monotonic clock> <role> | <task>`` goes to the file in
RUNBOOK_KILL_LOG. At the task with the number RUNBOOK_KILL_AT, or with the name RUNBOOK_KILL_TASK (``2 <role> | <task>``:
the second of that name), the controller's process group is killed, before anything of the task is
done; with RUNBOOK_KILL_AFTER a process of its own does it so many seconds later, inside the task.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: kill_at
type: aggregate
short_description: Kill the controller at a task
description: Logs each task that starts, and kills the controller's process group at the one that the environment names.
"""

KILLER = Path(__file__).parents[1] / "killer.py"


class CallbackModule(CallbackBase):
    """Asked in the controller's main process each time a task starts."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "kill_at"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.log = os.open(os.environ["RUNBOOK_KILL_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.at = int(os.environ.get("RUNBOOK_KILL_AT") or 0)
        times, _space, self.name = os.environ.get("RUNBOOK_KILL_TASK", "").partition(" ")
        self.times = int(times or 0)
        self.after = float(os.environ.get("RUNBOOK_KILL_AFTER") or 0)

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Count *task*; where it is the one, this call does not return, or starts the one who kills."""
        self.count += 1
        role = (getattr(getattr(task, "_role", None), "_role_name", "") or "play").rpartition(".")[2]
        # Tasks of a role are called "<role> : <task>".
        name = " ".join(str(task.get_name()).split()).rpartition(" : ")[2]
        title = f"{role} | {name}"
        os.write(self.log, f"{self.count} {time.monotonic():.3f} {title}\n".encode())
        self.times -= title == self.name
        here = self.name and title == self.name and self.times == 0
        if self.count != self.at and not here:
            return
        if not self.after:
            os.killpg(os.getpgrp(), signal.SIGKILL)
        command = [sys.executable, "-S", str(KILLER), str(os.getpid()), str(self.after)]
        command.append(os.environ.get("RUNBOOK_KILL_WHOM") or "controller")
        subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
