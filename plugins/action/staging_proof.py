# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Refuse on the controller a commit that staging has not proved."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._staging_proof import perform


class ActionModule(ActionBase):
    """See the documentation of the module ``runbook.deploy.staging_proof``."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _validated, args = self.validate_argument_spec(
            argument_spec={
                "proof": {"type": "dict", "required": True},
                "application": {"type": "str", "required": True},
                "commit": {"type": "str", "required": True},
                "version": {"type": "str", "default": ""},
                "waivers": {"type": "list", "elements": "dict", "default": []},
            }
        )
        try:
            gate = perform(args)
        except Problem as problem:
            result.update(failed=True, changed=False, **problem.answer())
            return result
        result.update(changed=False, **gate)
        messages = " ".join(check["message"] for check in gate["checks"] if check["message"])
        if not gate["passed"]:
            result.update(failed=True, msg=messages, evidence="")
        elif messages:
            Display().warning(messages)
        return result
