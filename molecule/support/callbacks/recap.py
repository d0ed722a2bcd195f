# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the recap, the names of the changed tasks and what gates found as JSON to the file in RUNBOOK_RECAP."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: recap
type: aggregate
short_description: Write the recap as JSON
description: Writes each host's counts, the changed tasks and the checks of gates to the file named by the environment variable E(RUNBOOK_RECAP).
"""


class CallbackModule(CallbackBase):
    """Collects what changed while the run goes on; writes at its end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "recap"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.changed: list[str] = []
        self.checks: list[dict[str, Any]] = []

    def v2_runner_on_ok(self, result: Any) -> None:
        if result.result.get("changed"):
            self.changed.append(result.task.get_name())
        self.gate(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self.gate(result)

    def gate(self, result: Any) -> None:
        """Keep the checks of a gate, of which a passing one shows nothing."""
        checks = result.result.get("checks")
        self.checks += checks if isinstance(checks, list) else []

    def v2_playbook_on_stats(self, stats: Any) -> None:
        document = {
            "hosts": {host: stats.summarize(host) for host in sorted(stats.processed)},
            "changed": self.changed,
            "checks": self.checks,
        }
        Path(os.environ["RUNBOOK_RECAP"]).write_text(json.dumps(document), encoding="utf-8")
