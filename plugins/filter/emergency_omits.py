# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say what a rollback in an emergency leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DOCUMENTATION = r"""
name: emergency_omits
short_description: What a rollback in an emergency leaves out
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Says in words what a planned rollback would do and one in an emergency does not, for the terminal and the record.
options:
  _input:
    description: Paths or addresses that must be gone afterwards, as C(app_rollback_absent).
    type: list
    elements: str
    required: true
  gates:
    description: Whether there are gates of the moment C(rollback).
    type: bool
    required: true
  balancer:
    description: Whether hosts stand behind a load balancer.
    type: bool
    required: true
  drain:
    description: Seconds that what is stopped is given to end.
    type: int
    required: true
  planned:
    description: Seconds that it would be given otherwise.
    type: int
    required: true
"""

EXAMPLES = r"""
left_out: "{{ ['/reports/new/'] | runbook.deploy.emergency_omits(gates=false, balancer=true, drain=2, planned=30) }}"
"""

RETURN = r"""
_value:
  description: One clause for each thing.
  type: list
  elements: str
"""


def emergency_omits(
    absent: Sequence[str], gates: bool, balancer: bool, drain: int, planned: int
) -> list[str]:
    """Return what is left out, a clause each; *drain* and *planned* are seconds."""
    omitted = []
    if balancer:
        omitted.append("no host is taken out of the load balancer first")
    if int(planned) > int(drain):
        omitted.append(f"what is stopped gets {drain} s to end instead of {planned}")
    if absent:
        omitted.append(f"what must be absent is not asked: {', '.join(absent)}")
    if gates:
        omitted.append("gates of the moment rollback are not asked")
    return omitted


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"emergency_omits": emergency_omits}
