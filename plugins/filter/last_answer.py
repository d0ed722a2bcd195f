# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find what a host answered last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DOCUMENTATION = r"""
name: last_answer
short_description: What a host answered last
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Takes the variables of a host and the names of registered results, the latest first, and returns the C(state) of the first that was made.
  - Returns null when the host did not answer that task, whatever it had answered before.
positional: names
options:
  _input:
    description: Variables of the host.
    type: dict
    required: true
  names:
    description: Names of registered results, the latest first.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
state: "{{ hostvars['web1'] | runbook.deploy.last_answer(['rollback_finished', 'preflight_state']) }}"
"""

RETURN = r"""
_value:
  description: The state as M(runbook.deploy.deployment_state) measured it, or null.
  type: dict
"""


def last_answer(variables: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Return the ``state`` of the first of *names* that *variables* has; None when the host did not answer it."""
    for name in names:
        try:
            result = variables[name]
        except KeyError:
            continue
        if result.get("unreachable") or result.get("unreachable_host"):
            return None
        if result.get("state"):
            return result["state"]
    return None


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"last_answer": last_answer}
