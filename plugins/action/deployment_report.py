# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""End a run on the controller: show the verdict, store record and report, fail when the deployment failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.module_utils._layout import DEPLOYMENT_ID, write_atomic
from ansible_collections.runbook.deploy.plugins.module_utils._report import (
    GOOD,
    TITLES,
    markdown,
    paths,
    terminal,
)
from ansible_collections.runbook.deploy.plugins.plugin_utils._typed import with_inventory, with_playbooks


def keep_copies(directory: Path, records: list[dict[str, Any]]) -> None:
    """Write those of *records* that *directory* lacks: of runs that were killed before they could."""
    for record in records:
        path = directory / f"{record.get('id')}.json"
        if DEPLOYMENT_ID.match(str(record.get("id"))) and not path.exists():
            write_atomic(path, json.dumps(record, indent=2, sort_keys=True) + "\n", 0o640)


class ActionModule(ActionBase):
    """See the documentation of the module ``runbook.deploy.deployment_report``."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _validated, args = self.validate_argument_spec(
            argument_spec={
                "verdict": {"type": "str", "required": True, "choices": list(TITLES)},
                "kind": {"type": "str", "default": "deployment", "choices": ["deployment", "rollback"]},
                "application": {"type": "str", "required": True},
                "stage": {"type": "str", "required": True},
                "root": {"type": "path", "required": True},
                "record": {"type": "dict", "default": {}},
                "states": {"type": "dict", "default": {}},
                "primary": {"type": "str", "default": ""},
                "failures": {"type": "list", "elements": "dict", "default": []},
                "plan": {"type": "dict", "default": {}},
                "forecast": {"type": "list", "elements": "dict", "default": []},
                "url": {"type": "str", "default": ""},
                "store": {"type": "str", "default": ""},
                "notifications": {"type": "list", "elements": "dict", "default": []},
                "release_tag": {"type": "dict", "default": {}},
                "before": {"type": "dict", "default": {}},
                "unstored": {"type": "list", "elements": "dict", "default": []},
                "contacts": {"type": "list", "elements": "dict", "default": []},
                "incident": {
                    "type": "str",
                    "default": "",
                    "choices": ["", "security", "data_integrity", "performance", "system_failure"],
                },
            }
        )
        facts = dict(args)
        sources = context.CLIARGS.get("inventory") or ()
        commands = [with_inventory(command, sources) for command in args["plan"].get("commands") or []]
        facts["plan"] = {**args["plan"], "commands": commands}
        identifier = args["record"].get("id")
        # Of the end people are told when the host's record is closed: this copy is the one that has all.
        told = [answer for answer in args["notifications"] if answer.get("event")]
        facts["record"] = {**args["record"], **({"notifications": told} if told and identifier else {})}
        if args["release_tag"] and identifier:
            facts["record"]["release_tag"] = args["release_tag"]
        facts.update(paths(args))
        result["changed"] = False
        if self._task.check_mode:
            facts.pop("report_path", None)
        if facts.get("report_path"):
            directory = Path(facts["report_path"]).parent
            try:
                directory.mkdir(parents=True, exist_ok=True)
                write_atomic(
                    directory / f"{identifier}.json",
                    json.dumps(facts["record"], indent=2, sort_keys=True) + "\n",
                    0o640,
                )
                write_atomic(directory / f"{identifier}.md", markdown(facts), 0o640)
                keep_copies(directory, args["unstored"])
            except Exception as error:
                # The deployment is what it is; neither a full disk on the controller nor a report of it must turn its verdict.
                del facts["report_path"]
                why = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
                Display().warning(f"The report could not be written to {directory}: {why}.")
        lines = [with_playbooks(line, context.CLIARGS.get("args") or ()) for line in terminal(facts)]
        Display().display("\n" + "\n".join(lines), color="green" if args["verdict"] in GOOD else "red")
        if args["verdict"] not in GOOD:
            # Everything has been shown; a failed task's answer would be shown once more.
            result.update(failed=True, msg=lines[0])
            return result
        result.update(text="\n".join(lines), report=facts.get("report_path"))
        return result
