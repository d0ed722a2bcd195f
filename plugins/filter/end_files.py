# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say with which files of tasks a way back ends, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DOCUMENTATION = r"""
name: end_files
short_description: With which files of tasks a way back ends
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Takes the hosts that do not answer and returns the files of the role P(runbook.deploy.rollback#role) that come after those of
    P(runbook.deploy.step_files#filter), in their order. Of one host what was not asked for is left out; several take part in all of them, as said there.
options:
  _input:
    description: Hosts that do not answer.
    type: list
    elements: str
    required: true
  hosts:
    description: All hosts of the run.
    type: list
    elements: str
    required: true
  primary:
    description: Host that keeps the record.
    type: str
    required: true
  page:
    description: Whether visitors can be told.
    type: bool
    default: false
  proof:
    description: Whether anything is asked afterwards.
    type: bool
    default: false
  balanced:
    description: Whether what an earlier run left out is put back into a load balancer.
    type: bool
    default: false
"""

EXAMPLES = r"""
files: "{{ rollback_plan_result.plan.unknown | runbook.deploy.end_files(hosts=groups['app'], primary='web1', page=true) }}"
"""

RETURN = r"""
_value:
  description: C(file) and C(hosts), as P(runbook.deploy.step_files#filter) returns them.
  type: list
  elements: dict
  sample: [{file: close.yml, hosts: [web1, web2]}]
"""


def end_files(
    unknown: Sequence[str],
    hosts: Sequence[str],
    primary: str,
    page: bool = False,
    proof: bool = False,
    balanced: bool = False,
) -> list[dict[str, Any]]:
    """Return ``[{file, hosts}]``; see the documentation of the filter."""
    alone = len(hosts) == 1
    found = ["maintenance.yml"] if page or not alone else []
    # No page is in front of what is asked.
    found += ["prove.yml"] if proof or not alone else []
    found += ["close_host.yml" if alone and primary not in unknown else "close.yml"]
    found += ["balanced.yml"] if balanced or not alone else []
    found += ["maintenance_again.yml"] if page or not alone else []
    return [{"file": file, "hosts": list(hosts)} for file in found]


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"end_files": end_files}
