# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask from the controller without a process and a module archive of its own; from any other host by the module."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action.normal import ActionModule as NormalAction
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.module_utils._http_gate import OPTIONS, RULES, perform
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem


class ActionModule(NormalAction):
    """See the documentation of the module ``runbook.deploy.http_gate``."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        if not self._stays_here():
            return super().run(tmp, task_vars)
        _validated, options = self.validate_argument_spec(argument_spec=OPTIONS, **RULES)
        # No "invocation" in the answer: it would show the secrets.
        try:
            answer = perform(options, self._task.check_mode, Display().warning)
        except Problem as problem:
            return {"failed": True, "changed": False, **problem.answer()}
        return {"changed": False, **answer}

    def _stays_here(self) -> bool:
        """Return whether the module would be run on this machine, as this user, with this environment, and waited for."""
        return (
            self._connection.transport == "local"
            and self._connection.become is None
            and not any(self._task.environment or [])
            and not self._task.async_val
        )
