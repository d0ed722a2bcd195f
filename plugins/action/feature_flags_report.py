# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show on the controller the feature flags of every host, in one table."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.module_utils._flags_report import report
from ansible_collections.runbook.deploy.plugins.module_utils._flags_spec import parse_flags
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem


class ActionModule(ActionBase):
    """See the documentation of the module ``runbook.deploy.feature_flags_report``."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _validated, args = self.validate_argument_spec(
            argument_spec={
                "application": {"type": "str", "required": True},
                "stage": {"type": "str", "required": True},
                "flags": {"type": "dict", "required": True},
                "answers": {"type": "dict", "required": True},
                "failures": {"type": "dict", "default": {}},
                "switched": {"type": "str", "default": ""},
                "left_out": {"type": "list", "elements": "str", "default": []},
                "begun": {"type": "float"},
            }
        )
        try:
            flags = parse_flags(args["flags"])
        except Problem as problem:
            raise AnsibleActionFail(problem.message) from problem
        if flags is None:
            raise AnsibleActionFail(
                "app_flags is empty: say where the feature flags are kept and what they are called."
            )
        seconds = max(0.0, time.time() - args["begun"]) if args["begun"] else 0.0
        lines = report(
            flags,
            f"{args['application']} ({args['stage']})",
            args["answers"],
            args["failures"],
            args["switched"],
            seconds,
            self._task.check_mode,
            args["left_out"],
        )
        Display().display("\n" + "\n".join(lines))
        result.update(changed=False, text="\n".join(lines), seconds=round(seconds, 3))
        return result
