# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show on the controller the past deployments of every host, in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible import context
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.module_utils._history import (
    chosen,
    document,
    merged,
    one,
    table,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import write_atomic
from ansible_collections.runbook.deploy.plugins.plugin_utils._typed import with_playbooks


class ActionModule(ActionBase):
    """See the documentation of the module ``runbook.deploy.deployment_history``."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _validated, args = self.validate_argument_spec(
            argument_spec={
                "application": {"type": "str", "required": True},
                "stage": {"type": "str", "required": True},
                "answers": {"type": "dict", "required": True},
                "primary": {"type": "str", "required": True},
                "deployment": {"type": "str", "default": ""},
                "limit": {"type": "int", "default": 20},
                "format": {"type": "str", "default": "table", "choices": ["table", "json"]},
                "path": {"type": "path"},
            }
        )
        if args["limit"] < 1:
            raise AnsibleActionFail(
                f"history_limit must be a number of at least 1, found {args['limit']}; nothing is shown."
            )
        title = f"{args['application']} ({args['stage']})"
        found = merged(args["answers"], args["primary"], args["application"], args["stage"])
        shown = found
        if args["deployment"]:
            entry = chosen(found, args["deployment"])
            if entry is None:
                known = ", ".join(entry["id"] for entry in found["deployments"][:5]) or "none"
                raise AnsibleActionFail(
                    f"history_of is {args['deployment']!r}, which is not the id of one deployment whose record is kept on the hosts; the "
                    f"newest are: {known}."
                )
            shown = {**found, "deployments": [entry]}
        answer = document(shown, args["limit"])
        if args["format"] == "json":
            lines = json.dumps(answer, indent=2, sort_keys=True).splitlines()
        elif args["deployment"]:
            lines = one(title, shown["deployments"][0], found["problems"])
        else:
            lines = table(title, found, args["limit"])
        if args["path"] and not self._task.check_mode:
            try:
                write_atomic(Path(args["path"]).absolute(), "\n".join(lines) + "\n", 0o640)
            except OSError as error:
                raise AnsibleActionFail(
                    f"history_to is {args['path']!r}, which cannot be written on this controller ({error.strerror}): name another file."
                ) from error
        lines = [with_playbooks(line, context.CLIARGS.get("args") or ()) for line in lines]
        Display().display("\n" + "\n".join(lines))
        result.update(changed=False, text="\n".join(lines), history=answer)
        return result
