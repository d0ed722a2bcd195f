# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show on the controller what every host answered, in one table."""

from __future__ import annotations

from typing import Any

from ansible import context
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.module_utils._report import status
from ansible_collections.runbook.deploy.plugins.plugin_utils._typed import with_playbooks


class ActionModule(ActionBase):
    """See the documentation of the module ``runbook.deploy.deployment_status``."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _validated, args = self.validate_argument_spec(
            argument_spec={
                "application": {"type": "str", "required": True},
                "stage": {"type": "str", "required": True},
                "root": {"type": "path", "required": True},
                "states": {"type": "dict", "required": True},
                "primary": {"type": "str", "required": True},
                "url": {"type": "str", "default": ""},
            }
        )
        lines = [with_playbooks(line, context.CLIARGS.get("args") or ()) for line in status(args)]
        Display().display("\n" + "\n".join(lines))
        result.update(changed=False, text="\n".join(lines))
        return result
