# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show on the controller what is due after a deployment, and keep the copy of its record as the host's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.module_utils._layout import write_atomic
from ansible_collections.runbook.deploy.plugins.module_utils._report import paths

# Written on the controller alone.
OWN = ("notifications", "release_tag")


class ActionModule(ActionBase):
    """See the documentation of the module ``runbook.deploy.due_report``."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _validated, args = self.validate_argument_spec(
            argument_spec={
                "application": {"type": "str", "required": True},
                "stage": {"type": "str", "required": True},
                "answer": {"type": "dict", "required": True},
                "store": {"type": "str", "default": ""},
            }
        )
        answer = args["answer"]
        if "tasks" not in answer:
            result.update(failed=True, msg=answer.get("msg") or "The host did not say which tasks are due.")
            return result
        lines = [f"tasks of {answer['deployment']} of {args['application']} ({args['stage']})"]
        lines += [f"  {task['words']}" for task in answer["tasks"]] or ["  none: app_due_tasks was empty"]
        output = str(answer.get("output") or answer.get("evidence") or "")
        lines += [f"    {line}" for line in output.splitlines()[-20:]]
        if answer.get("changed") and not self._task.check_mode:
            self._copy(args, answer["record"])
        Display().display("\n" + "\n".join(lines))
        result.update(changed=bool(answer.get("changed")), text="\n".join(lines))
        if answer.get("msg"):
            result.update(failed=True, msg=answer["msg"])
        return result

    @staticmethod
    def _copy(args: dict[str, Any], record: dict[str, Any]) -> None:
        """Write the tasks into the copy of *record*, where there is one; the host's record is what counts."""
        path = paths({**args, "record": record}).get("report_path")
        if not path:
            return
        copy = Path(path).with_suffix(".json")
        try:
            kept = json.loads(copy.read_text(encoding="utf-8"))
            own = {key: kept[key] for key in OWN if key in kept}
            write_atomic(copy, json.dumps({**record, **own}, indent=2, sort_keys=True) + "\n", 0o640)
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError) as error:
            Display().warning(f"The copy {copy} of the record was left as it is: {error}.")
