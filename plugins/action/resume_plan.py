# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide on the controller, from what the hosts answered, whether a run that was cut off is finished or undone."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.module_utils._resume import ASKED, decide, sentence


class ActionModule(ActionBase):
    """See the documentation of the module ``runbook.deploy.resume_plan``."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _validated, args = self.validate_argument_spec(
            argument_spec={
                "states": {"type": "dict", "required": True},
                "primary": {"type": "str", "required": True},
                "asked": {"type": "str", "default": "", "choices": list(ASKED)},
                "inputs": {"type": "dict", "default": {}},
                "framework": {"type": "str", "default": "django"},
            }
        )
        plan = decide(**args)
        text = sentence(plan)
        result.update(changed=False, plan=plan, sentence=text)
        if plan["way"] == "refuse":
            result.update(failed=True, msg=text)
        else:
            Display().display(text)
        return result
