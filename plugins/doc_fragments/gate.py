# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that every gate has."""

from __future__ import annotations


class ModuleDocFragment:
    """``GATE_OPTIONS`` of ``_gating.py``, described."""

    DOCUMENTATION = r"""
options:
  successes:
    description: How often in a row all critical checks must pass.
    type: int
    default: 1
  interval:
    description: Seconds from the end of an attempt to the next one.
    type: float
    default: 1
  deadline:
    description: Seconds for everything. The gate outlives them by at most one second.
    type: float
    default: 60
  patience:
    description:
      - Seconds after which an attempt that failed is the last one; by default O(deadline).
      - What could not be asked at all is asked again until O(deadline).
    type: float
  on_no_data:
    description:
      - What happens when the gate is inconclusive, because something could not be asked or there is nothing to ask.
      - V(fail) fails the task; V(inconclusive) returns RV(passed=false) and leaves it to the caller.
    type: str
    choices: [fail, inconclusive]
    default: fail
  waivers:
    description:
      - Checks that may fail, each with C(check) (its name), C(reason), C(approver) and C(until), the last day on which that holds.
      - They are asked all the same; what they answer is V(degraded) and has the waiver in it.
    type: list
    elements: dict
    default: []
  root:
    description: The application's directory on the host, C(app_root); without it no journal is kept.
    type: path
  phase:
    description: Name of the phase in the journal.
    type: str
    default: gate
  record:
    description: The deployment whose journal is kept, as returned by M(runbook.deploy.deployment_record).
    type: dict
"""
