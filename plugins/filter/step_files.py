# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say which files of tasks a way back has, in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DOCUMENTATION = r"""
name: step_files
short_description: Which files of tasks a way back has
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Takes the steps of a plan and returns the files of the role P(runbook.deploy.rollback#role) that carry them out, in their order.
  - A step that few rollbacks have is left out instead of being skipped, task by task, in each of them.
  - Several hosts all take part in each file, which then asks for itself whether it is the host's turn. Were those left out that have nothing to
    do, the files would come in the order in which the hosts happened to answer.
options:
  _input:
    description: Steps of the plan, as M(runbook.deploy.rollback_plan) returns them.
    type: dict
    required: true
  hosts:
    description: All hosts of the run.
    type: list
    elements: str
    required: true
  page:
    description: Whether visitors are told first.
    type: bool
    default: false
  balanced:
    description: Whether hosts are taken out of a load balancer meanwhile, or are out.
    type: bool
    default: false
  stopped:
    description: Whether something failed before, or the time is up, so that nothing may begin.
    type: bool
    default: false
"""

EXAMPLES = r"""
files: "{{ rollback_plan_result.plan.steps | runbook.deploy.step_files(hosts=groups['app']) }}"
"""

RETURN = r"""
_value:
  description: C(file), and C(hosts) whose turn it is.
  type: list
  elements: dict
  sample: [{file: before_start.yml, hosts: [web1]}, {file: turn.yml, hosts: [web1]}]
"""
BEFORE = ("beats_stopped", "migrations_first", "restore")
AFTER = ("beats_started", "stop", "migrations_after")


def step_files(
    steps: Mapping[str, Mapping[str, Any]],
    hosts: Sequence[str],
    page: bool = False,
    balanced: bool = False,
    stopped: bool = False,
) -> list[dict[str, Any]]:
    """Return ``[{file, hosts}]``; see the documentation of the filter."""
    alone = len(hosts) == 1
    before = [host for name in BEFORE for host in steps[name]["hosts"]]
    after = [host for name in AFTER for host in steps[name]["hosts"]]
    # turn.yml asks whether it is the host's turn, and whether anything stands against it; what comes before takes its time.
    start = "start.yml" if alone and not (page or before or balanced or stopped) else "turn.yml"
    found = [("page_on.yml", hosts)] if page or not alone else []
    found += [("before_start.yml", before)] if before else []
    found += [(start, batch) for batch in steps["start"]["batches"]]
    found += [("after_start.yml", after)] if after else []
    return [{"file": file, "hosts": list(turn)} for file, turn in found]


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"step_files": step_files}
