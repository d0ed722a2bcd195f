# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say how a run ended, from what its hosts remember."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.filter.run_failures import remembered, run_failures

DOCUMENTATION = r"""
name: run_outcome
short_description: How a run ended
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Takes the variables of all hosts of a run, in their order, and returns its verdict, what failed, the plan of the way back and the record.
  - Reads what the role P(runbook.deploy.rollback#role) leaves with each host, C(rollback_silent), C(rollback_failure), C(rollback_refused),
    C(rollback_undrained) and C(restart_left_out), and of the primary C(rollback_finished) and C(rollback_counted).
options:
  _input:
    description: Variables of each host.
    type: list
    elements: dict
    required: true
  primary:
    description: Name of the host that keeps the record.
    type: str
    required: true
  failures:
    description: What failed before anything was taken back.
    type: list
    elements: dict
    default: []
  record:
    description: Where the run writes its record, with C(id) and C(about); empty for a run that began none.
    type: dict
    default: {}
  plan:
    description: The way back as M(runbook.deploy.rollback_plan) decided it; empty for none.
    type: dict
    default: {}
  omitted:
    description: What an emergency left out.
    type: list
    elements: str
    default: []
  check_mode:
    description: Whether nothing was to be changed.
    type: bool
    default: false
"""

EXAMPLES = r"""
outcome: "{{ groups['app'] | map('extract', hostvars) | runbook.deploy.run_outcome(primary='web1', record=deploy_journal) }}"
"""

RETURN = r"""
_value:
  description:
    - C(verdict), C(failures), C(plan), C(record), and C(left_out), the hosts that were not taken out of the load balancer or are still out of it.
  type: dict
"""


def verdict_of(
    failed: bool, back_failed: bool, record: bool, plan: Mapping[str, Any], check_mode: bool
) -> str:
    """Return the verdict: of a run that failed without a ``record`` ``refused``, of one that could not go back ``stopped``.

    The record of a release that passes with its features off is a success; the run is none.

    :param failed: whether anything failed; :param back_failed: whether the way back did; :param record: whether the run began one.
    """
    if not failed:
        return "checked" if check_mode else "success" if record else "no_change"
    if not record:
        return "refused"
    verdict = "stopped" if back_failed else plan.get("verdict", "stopped")
    return "flags_off" if plan.get("level") == "flags" and verdict == "success" else verdict


def run_outcome(
    hosts: Sequence[Mapping[str, Any]],
    primary: str,
    failures: Sequence[Mapping[str, Any]] = (),
    record: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    omitted: Sequence[str] = (),
    check_mode: bool = False,
) -> dict[str, Any]:
    """Return ``{verdict, failures, plan, left_out, record}``; see the documentation of the filter."""
    hosts, record, plan = list(hosts), record or {}, plan or {}
    found = run_failures(hosts, failures)
    back_failed = remembered(hosts, "rollback_failure")
    own: Mapping[str, Any] = next((host for host in hosts if host["inventory_hostname"] == primary), {})
    shown: dict[str, Any] = {}
    if plan:
        counted = own.get("rollback_counted", {})
        lost = f" {counted['msg']}" if "lost" in counted and not counted.get("failed") else ""
        shown = {**plan, "reason": plan["reason"] + lost, "left_out": list(omitted)}
        if back_failed:
            shown["commands"] = plan["again"]
    finished = own.get("rollback_finished", {})
    kept = finished.get("record")
    if not kept and record:
        # The record lies on a primary that does not answer: this is what the run knows itself.
        kept = {
            **(record.get("about") or {}),
            "id": record["id"],
            "host": primary,
            "primary": True,
            "verdict": None,
            "failures": found,
            "decision": {"level": plan.get("level", ""), "reason": plan.get("reason", "")},
        }
    return {
        "verdict": verdict_of(bool(found), bool(back_failed), bool(record), plan, check_mode),
        "failures": found,
        "plan": shown,
        "left_out": [*remembered(hosts, "rollback_undrained"), *remembered(hosts, "restart_left_out")],
        "record": kept or {},
    }


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"run_outcome": run_outcome}
