# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say what failed in a run, from what its hosts remember."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DOCUMENTATION = r"""
name: run_failures
short_description: What failed in a run
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Takes the variables of all hosts of a run, in their order, and returns what failed before anything was taken back, then what the role
    P(runbook.deploy.rollback#role) leaves with each host, C(rollback_silent), C(rollback_failure) and C(rollback_refused).
positional: failures
options:
  _input:
    description: Variables of each host.
    type: list
    elements: dict
    required: true
  failures:
    description: What failed before anything was taken back.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
failures: "{{ groups['app'] | map('extract', hostvars) | runbook.deploy.run_failures([]) }}"
"""

RETURN = r"""
_value:
  description: C(host), C(phase), C(task), C(reason), C(evidence) and C(unreachable) of each.
  type: list
  elements: dict
"""


def remembered(hosts: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """Return the values of the variable *name* of those *hosts* that have one."""
    return [value for value in (host[name] for host in hosts if name in host) if value]


def run_failures(
    hosts: Sequence[Mapping[str, Any]], failures: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Return *failures*, then the hosts that are silent and had not failed before, what failed on the way back, and the first refusal.

    Most often every host refuses the same.
    """
    known = {failure["host"] for failure in failures}
    silent = [failure for failure in remembered(hosts, "rollback_silent") if failure["host"] not in known]
    refused = remembered(hosts, "rollback_refused")
    return [*failures, *silent, *remembered(hosts, "rollback_failure"), *refused[:1]]


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"run_failures": run_failures}
