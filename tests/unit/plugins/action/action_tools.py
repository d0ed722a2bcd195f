# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run an action plugin as the task executor does, with no play around it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.plugins.action import ActionBase
from ansible.template import Templar


def act(
    plugin: type[ActionBase],
    args: dict[str, Any],
    variables: dict[str, Any] | None = None,
    check: bool = False,
) -> dict[str, Any]:
    """Return what *plugin* answers to *args*; an error that it raises is a failed answer, as the executor makes it."""
    loader = DataLoader()
    task = Task()
    task.action, task.args, task.check_mode = plugin.__module__.rpartition(".")[2], args, check
    # These actions stay on the controller; a connection that is used is a defect.
    connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir="unused"))
    templar = Templar(loader=loader, variables=variables or {})
    action = plugin(task, connection, PlayContext(), loader, templar, None)
    try:
        return action.run(task_vars=variables or {})
    except AnsibleError as error:
        return {"failed": True, "msg": error.message}
