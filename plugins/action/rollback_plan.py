# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide on the controller, from what the hosts answered, how a deployment is taken back."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.module_utils._decision import (
    decide,
    forecast,
    forecast_lines,
    through_unproven,
    towards,
)
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_spec import page_words
from ansible_collections.runbook.deploy.plugins.module_utils._policy import check_policy
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._rolling import batches
from ansible_collections.runbook.deploy.plugins.module_utils._steps import refusal, steps_of, verdict_of


class ActionModule(ActionBase):
    """See the documentation of the module ``runbook.deploy.rollback_plan``."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _validated, args = self.validate_argument_spec(
            argument_spec={
                "record": {"type": "dict", "default": {}},
                "states": {"type": "dict", "default": {}},
                "primary": {"type": "str", "default": ""},
                "failures": {"type": "list", "elements": "dict", "default": []},
                "level": {
                    "type": "str",
                    "default": "",
                    "choices": ["", "abandon", "code", "migrations", "restore", "stop"],
                },
                "consent": {"type": "bool", "default": False},
                "to": {"type": "str", "default": ""},
                "records": {"type": "list", "elements": "dict", "default": []},
                "batch": {"type": "raw"},
                "beats_apart": {"type": "bool", "default": False},
                "by_hand": {"type": "bool", "default": False},
                "mode": {"type": "str", "default": ""},
                "reason": {"type": "str", "default": ""},
                "policy": {"type": "list", "elements": "dict", "default": []},
                "cures": {"type": "list", "elements": "str", "default": []},
                "watched": {"type": "bool", "default": False},
                "forecast": {"type": "bool", "default": False},
                "plan": {"type": "dict", "default": {}},
                "page": {"type": "str", "default": ""},
                "target": {"type": "dict", "default": {}},
                "backup": {"type": "bool", "default": True},
            }
        )
        result["changed"] = False
        errors = check_policy(args["policy"], "policy")
        if errors:
            result.update(failed=True, msg="\n".join(errors))
            return result
        if args["forecast"]:
            result["forecast"] = forecast(
                args["plan"],
                args["target"] or None,
                args["backup"],
                args["policy"],
                args["cures"],
                args["watched"],
            )
            result["page"] = page_words(args["page"], args["plan"])
            shown = forecast_lines(result["forecast"]) + ([result["page"]] if result["page"] else [])
            Display().display("\n".join(shown))
            return result
        refused = (
            refusal(args["mode"], args["reason"], args["primary"], args["states"]) if args["by_hand"] else ""
        )
        if refused:
            result.update(failed=True, msg=refused)
            return result
        undone = args["record"]
        if args["to"]:
            state = args["states"].get(args["primary"]) or {}
            complete = [release["name"] for release in state.get("releases", []) if release["complete"]]
            try:
                undone = towards(args["records"], args["to"], complete)
            except Problem as problem:
                result.update(failed=True, msg=problem.message)
                return result
        plan = self._decide(undone, args)
        if plan["revert"] and (undone.get("previous") or {}).get("proven") is False:
            # It has replaced what was never proved itself, so that this is nothing to go back to.
            undone = through_unproven(undone, args["records"])
            plan = self._decide(undone, args)
        plan["batches"] = [list(args["states"])]
        if args["batch"] is not None:
            others = [host for host in args["states"] if host not in plan["revert"]]
            plan["batches"] = [group for group in (others, *batches(plan["revert"], args["batch"])) if group]
        plan["targets"], plan["steps"] = steps_of(
            plan,
            args["states"],
            args["primary"],
            undone,
            named=bool(args["to"]),
            beats_apart=args["beats_apart"],
        )
        plan["verdict"] = verdict_of(plan, args["by_hand"])
        result.update(undone=undone, plan=plan)
        return result

    @staticmethod
    def _decide(record: dict[str, Any], args: dict[str, Any]) -> dict[str, Any]:
        return decide(
            record=record,
            states=args["states"],
            primary=args["primary"],
            failures=args["failures"],
            level=args["level"],
            consent=args["consent"],
            policy=args["policy"],
            cures=args["cures"],
        )
