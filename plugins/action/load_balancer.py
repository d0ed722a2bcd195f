# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the module on the host of the balancer; one that does not answer is a failure, and not of the host that it is about."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action.normal import ActionModule as NormalAction
from ansible_collections.runbook.deploy.plugins.plugin_utils._archives import reused
from ansible_collections.runbook.deploy.plugins.plugin_utils._lost import lost_because


class ActionModule(NormalAction):
    """The normal action. The answer has no ``unreachable_host``: a rollback would take the application's host for lost."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        variables = task_vars or {}
        try:
            with reused():
                return super().run(tmp, variables)
        except AnsibleConnectionFailure as error:
            if not self._task.ignore_unreachable:
                raise
            balancer = self._task.delegate_to or variables.get("inventory_hostname", "")
            host = variables.get("inventory_hostname", "the host")
            return {
                "changed": False,
                "failed": True,
                "msg": f"The load balancer {balancer} does not answer: {lost_because(error)}. Nothing is known about {host} there: see "
                "that it runs, then run again.",
            }
