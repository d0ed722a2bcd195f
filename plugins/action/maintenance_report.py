# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Around a maintenance, on the controller: tell monitoring, look at the public address, show what every host has."""

from __future__ import annotations

import math
import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.module_utils._lock import timestamp
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_options import lasts
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_probe import ask
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_told import lines, tell


class ActionModule(ActionBase):
    """See the documentation of the module ``runbook.deploy.maintenance_report``."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _validated, args = self.validate_argument_spec(
            argument_spec={
                "application": {"type": "str", "required": True},
                "stage": {"type": "str", "required": True},
                "monitoring": {"type": "list", "elements": "dict", "default": [], "no_log": True},
                "event": {"type": "str", "default": "", "choices": ["", "begin", "end"]},
                "deployment": {"type": "str", "default": ""},
                "operator": {"type": "str", "default": ""},
                "reason": {"type": "str", "default": ""},
                "expires": {"type": "int", "default": 3600},
                "expected": {"type": "float", "default": 0},
                "afterwards": {"type": "int", "default": 0},
                "answers": {"type": "dict", "default": {}},
                "failures": {"type": "dict", "default": {}},
                "url": {"type": "str", "default": ""},
                "reached": {"type": "bool", "default": False},
                "show": {"type": "bool", "default": False},
            }
        )
        result["changed"] = False
        told: dict[str, Any] = {"event": args["event"], "sent": [], "unsent": []}
        if args["event"] and not self._task.check_mode:
            told = tell(args["monitoring"], args["event"], self._fields(args))
            for failure in told["unsent"]:
                Display().warning(failure["message"])
        result["told"] = told
        seen = ask(args["url"], "") if args["url"] and (args["show"] or args["reached"]) else None
        result["outside"] = seen.told() if seen else {}
        if args["show"]:
            words = f"{args['url']} gives {seen.words()}" if seen else ""
            text = lines(args["application"], args["stage"], args["answers"], args["failures"], words)
            Display().display("\n" + "\n".join(text))
            result["text"] = "\n".join(text)
        if args["reached"] and seen is not None and seen.status == 503:
            result.update(
                failed=True,
                msg=(
                    f"The controller gets the maintenance page at {args['url']} (503), expected the application, as the smoke tests go there while the "
                    "page is on: add the controller's address, as the web server sees it, to app_maintenance.allow, or for kind file and command let "
                    "the application answer it."
                ),
            )
        return result

    @staticmethod
    def _fields(args: dict[str, Any]) -> dict[str, str]:
        """Return a text for each placeholder of a call."""
        seconds = [
            answer["downtime"]["seconds"]
            for answer in args["answers"].values()
            if (answer or {}).get("downtime")
        ]
        now = time.time()
        longest = lasts(args["expires"], args["expected"], args["afterwards"])
        return {
            "event": args["event"],
            "application": args["application"],
            "stage": args["stage"],
            "id": args["deployment"],
            "operator": args["operator"],
            "reason": args["reason"],
            "time": timestamp(now),
            "until": timestamp(now + longest) if args["event"] == "begin" else timestamp(now),
            "expected": str(math.ceil(args["expected"])) if args["expected"] else "",
            "seconds": f"{max(seconds):g}" if seconds else "",
        }
