# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What serves when a deployment begins, and whether that was ever proved.

What a killed or stopped run left live is no release to go back to: nobody knows whether it works. A deployment over
it that fails before it changes anything leaves it as it is; one that has replaced it goes back further, to what was
proved (``_decision.through_unproven``).

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._installed import measure_current
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout


def is_proven(records: Iterable[Mapping[str, Any]], deployment: str | None) -> bool:
    """Say whether the instance of *deployment* ever succeeded; one without a record is taken to have."""
    record = next((record for record in records if record["id"] == deployment), None)
    return record is None or record.get("verdict") == "success"


def live_before(layout: Layout, records: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return ``{release, deployment, commit, version}`` of what would serve after a reboot; None: nothing.

    With ``proven: False`` where its deployment never succeeded.
    """
    current = measure_current(layout)
    if current is None or is_proven(records, current["deployment"]):
        return current
    return {**current, "proven": False}
