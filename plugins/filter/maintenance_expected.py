# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say how long the maintenance page of a deployment is expected to be on."""

from __future__ import annotations

from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_spec import expected

DOCUMENTATION = r"""
name: maintenance_expected
short_description: How long the migrations under the maintenance page are expected to take
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Takes the plan of the pending migrations, and says how many seconds all of them took on the copy; V(0) where one was not rehearsed.
options:
  _input:
    description: The plan, as M(runbook.deploy.migration) returned it.
    type: dict
    required: true
"""

EXAMPLES = r"""
seconds: "{{ migrate_verified.plan | runbook.deploy.maintenance_expected }}"
"""

RETURN = r"""
_value:
  description: Seconds, 0 where nobody knows.
  type: float
"""


def maintenance_expected(plan: Any) -> float:
    """Return how many seconds the migrations of *plan* are expected to take."""
    return expected(plan or {})


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"maintenance_expected": maintenance_expected}
