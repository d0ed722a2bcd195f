# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell people of a deployment, from the controller; whatever goes wrong is a warning and a part of the answer."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.module_utils._notify import event_of, tell
from ansible_collections.runbook.deploy.plugins.module_utils._report import TITLES, paths


class ActionModule(ActionBase):
    """See the documentation of the module ``runbook.deploy.notification``."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _validated, args = self.validate_argument_spec(
            argument_spec={
                "notifications": {"type": "list", "elements": "dict", "required": True, "no_log": True},
                "application": {"type": "str", "required": True},
                "stage": {"type": "str", "required": True},
                "kind": {"type": "str", "default": "deployment", "choices": ["deployment", "rollback"]},
                "verdict": {"type": "str", "default": "", "choices": ["", *TITLES]},
                "record": {"type": "dict", "default": {}},
                "failures": {"type": "list", "elements": "dict", "default": []},
                "plan": {"type": "dict", "default": {}},
                "primary": {"type": "str", "default": ""},
                "root": {"type": "path", "default": ""},
                "url": {"type": "str", "default": ""},
                "store": {"type": "str", "default": ""},
            }
        )
        event = None if self._task.check_mode else event_of(args["kind"], args["verdict"])
        answer = tell(args["notifications"], event, {**args, **paths(args)})
        for failure in answer["unsent"]:
            Display().warning(failure["message"])
        result.update(changed=False, **answer)
        return result
