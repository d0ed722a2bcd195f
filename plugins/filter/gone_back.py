# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say from the records whether what serves was gone back to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DOCUMENTATION = r"""
name: gone_back
short_description: Whether what serves was gone back to
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Looks in the records for the newest run that changed what serves. What must be absent after a rollback is asked only where that was one.
options:
  _input:
    description: The records of the primary, newest first, as RV(runbook.deploy.deployment_record#module:records).
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
went_back: "{{ rollback_records.records | runbook.deploy.gone_back }}"
"""

RETURN = r"""
_value:
  description: Whether the newest run that changed what serves was a rollback, by hand or by itself.
  type: bool
"""


def gone_back(records: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the newest of *records* that changed what serves is of a rollback: by hand, or of a deployment that failed."""
    for record in records:
        if record.get("kind") == "rollback":
            return True
        verdict = record.get("verdict")
        # Where nothing live was changed, the runs before say what serves.
        if verdict in (None, "abandoned"):
            continue
        # A deployment that was taken back by a run which itself did not end well is followed by that run's record.
        return verdict == "rolled_back"
    return False


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"gone_back": gone_back}
