# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a module of this collection, and make a host that does not answer a failure of the task.

Named by ``meta/runtime.yml`` as the action of the modules that work on hosts. Ansible neither rescues an unreachable
host nor, where a play says ``ignore_unreachable``, stops its next task; a failure it rescues. The answer says
``unreachable_host``, as ``unreachable`` would make it no failure again.
"""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action.normal import ActionModule as NormalAction
from ansible_collections.runbook.deploy.plugins.plugin_utils._archives import reused
from ansible_collections.runbook.deploy.plugins.plugin_utils._lost import lost_because


class ActionModule(NormalAction):
    """The normal action; where the play goes on without unreachable hosts, their tasks fail."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            with reused():
                return super().run(tmp, task_vars)
        except AnsibleConnectionFailure as error:
            if not self._task.ignore_unreachable:
                raise
            own = (task_vars or {}).get("inventory_hostname", "The host")
            host = self._task.delegate_to or own
            return {
                "changed": False,
                "failed": True,
                # Of a task for another host, such as a web server in front, this one is not known to be gone.
                "unreachable_host": host == own,
                "msg": f"{host} does not answer: {lost_because(error)}. Its state is unknown.",
            }
