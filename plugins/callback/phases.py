# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show a run as an operator follows it: a line for each phase, what it changed, and what failed."""

from __future__ import annotations

DOCUMENTATION = r"""
name: phases
type: stdout
short_description: Show phases, changes and failures, and leave out the tasks between
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Prints a line with the time for each phase that runs, one for each change, and one sentence for each failure.
  - Tasks that change nothing or are skipped are left out, and so is the detail of an answer.
  - With C(-v) it is P(ansible.builtin.default#callback).
extends_documentation_fragment:
  - default_callback
  - result_format_callback
requirements:
  - It is set as C(stdout_callback) in the configuration.
"""

import time
from typing import Any

from ansible import context
from ansible_collections.runbook.deploy.plugins.plugin_utils._brief import SILENT, Brief
from ansible_collections.runbook.deploy.plugins.plugin_utils._typed import with_playbooks


def reason(result: dict[str, Any]) -> list[str]:
    """Return why a task failed, as lines: its sentence, and the end of what an unexpected end left."""
    lines = str(result.get("msg") or "it failed without a message").strip().splitlines()
    unexpected = str(result.get("module_stderr") or "").strip()
    typed = context.CLIARGS.get("args") or ()
    return [with_playbooks(line, typed) for line in lines] + unexpected.splitlines()[-20:]


class CallbackModule(Brief):
    """See the documentation above."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "runbook.deploy.phases"

    def _phase(self, name: str) -> None:
        self._show(f"{time.strftime('%H:%M:%S')}  {name}")

    def v2_runner_on_ok(self, result: Any) -> None:
        if not self._brief:
            super().v2_runner_on_ok(result)
            return
        answer = result.result
        self._handle_warnings(answer)
        if answer.get("changed"):
            self._show(f"          changed on {result.host.get_name()}: {self._name(result)}", "yellow")
        elif result.task.action in ("debug", "ansible.builtin.debug"):
            # A text of several lines, such as a table, keeps its columns.
            self._show("\n".join(f"          {line}" for line in str(answer.get("msg", "")).splitlines()))

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        if not self._brief:
            super().v2_runner_on_failed(result, ignore_errors)
            return
        answer = result.result
        self._handle_warnings(answer)
        if ignore_errors or result.task.action in SILENT:
            return
        first, *rest = reason(answer)
        self._show(f"          failed on {result.host.get_name()}: {first}", "red")
        for line in rest:
            self._show(f"            {line}", "red")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        if not self._brief:
            super().v2_runner_on_unreachable(result)
            return
        message = reason(result.result)[0]
        self._show(f"          no answer from {result.host.get_name()}: {message}", "bright red")

    def v2_runner_item_on_ok(self, result: Any) -> None:
        if not self._brief:
            super().v2_runner_item_on_ok(result)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        if not self._brief:
            super().v2_runner_item_on_failed(result)
            return
        self._show(f"          failed on {result.host.get_name()}: {reason(result.result)[0]}", "red")

    @staticmethod
    def _name(result: Any) -> str:
        """Return the task's name without that of its role."""
        return result.task.get_name().rpartition(" : ")[2]
