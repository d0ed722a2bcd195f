# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tag on the controller the commit that was deployed; whatever goes wrong is a warning and a part of the answer."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.module_utils._release_tag import FAILED, tag


class ActionModule(ActionBase):
    """See the documentation of the module ``runbook.deploy.release_tag``."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _validated, args = self.validate_argument_spec(
            argument_spec={
                "tag": {"type": "dict", "required": True},
                "repository": {"type": "str", "default": ""},
                "record": {"type": "dict", "required": True},
            }
        )
        if self._task.check_mode:
            result.update(changed=False, tag={})
            return result
        answer = tag(args["tag"], args["repository"], args["record"])
        if answer["state"] == FAILED:
            Display().warning(answer["message"])
        result.update(changed=answer["state"] == "pushed", tag=answer)
        return result
