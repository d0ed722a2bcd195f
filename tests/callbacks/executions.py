# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Count module executions: a line ``<host> <module>`` for each is added to the file in RUNBOOK_EXECUTIONS.

A module execution is what costs time (0.25 s each); a task of the controller's own is not. Callbacks see only tasks, so
the one method that every execution goes through is wrapped.
"""

from __future__ import annotations

import os
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: executions
type: aggregate
short_description: Count module executions
description: Adds a line for each module execution to the file named by the environment variable E(RUNBOOK_EXECUTIONS).
"""


def counted(execute: Any) -> Any:
    """Return *execute* (``ActionBase._execute_module``) with a line written before each call."""

    def wrapper(self: ActionBase, *args: Any, **kwargs: Any) -> Any:
        name = kwargs.get("module_name") or (args[0] if args else None) or self._task.action
        variables = kwargs.get("task_vars") or (args[2] if len(args) > 2 else {}) or {}
        line = f"{variables.get('inventory_hostname', '?')} {name}\n"
        # One short write in append mode is atomic among the forks.
        handle = os.open(os.environ["RUNBOOK_EXECUTIONS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)
        return execute(self, *args, **kwargs)

    return wrapper


class CallbackModule(CallbackBase):
    """Loaded once, in the parent of all workers, which is where the method has to be wrapped."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "executions"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        if os.environ.get("RUNBOOK_EXECUTIONS"):
            ActionBase._execute_module = counted(ActionBase._execute_module)
