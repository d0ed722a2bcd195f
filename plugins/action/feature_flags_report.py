# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show on the controller the feature flags of every host, in one table."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.module_utils._flags_report import report
from ansible_collections.runbook.deploy.plugins.module_utils._flags_spec import parse_flags
from ansible_collections.runbook.deploy.plugins.module_utils._layout import write_atomic
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem


def keep(path: Path, answers: Mapping[str, Mapping[str, Any]]) -> None:
    """Add the switches that the hosts told of to the file *path*, ``{host: [switch]}``, oldest first; a fault is a warning."""
    try:
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            kept = {}
        for host, answer in answers.items():
            told = answer.get("recorded") or answer.get("switches") or []
            known = {switch["id"]: switch for switch in [*kept.get(host, []), *told]}
            if known:
                kept[host] = [known[identifier] for identifier in sorted(known)]
        if kept:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(kept, indent=2, sort_keys=True) + "\n", 0o640)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        # The flags are what they are, and the hosts have their history.
        Display().warning(
            f"The history of the flags could not be kept in {path}: {error}; move that file away if it is damaged."
        )


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
                "store": {"type": "str", "default": ""},
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
        if args["store"] and not self._task.check_mode:
            keep(Path(args["store"]) / args["application"] / args["stage"] / "flags.json", args["answers"])
        Display().display("\n" + "\n".join(lines))
        result.update(changed=False, text="\n".join(lines), seconds=round(seconds, 3))
        return result
