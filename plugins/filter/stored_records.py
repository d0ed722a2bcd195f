# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which records the controller has a copy of."""

from __future__ import annotations

import os
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._layout import DEPLOYMENT_ID

DOCUMENTATION = r"""
name: stored_records
short_description: Deployments whose record the controller has
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Looks on the controller which deployments have a copy of their record in C(app_report_store), for O(runbook.deploy.deployment_record#module:stored_records).
  - Answers null where nothing is stored, and an empty list where the directory is not there or cannot be read.
positional: application, stage
options:
  _input:
    description: C(app_report_store); empty for none.
    type: str
    required: true
  application:
    description: C(app_name).
    type: str
    required: true
  stage:
    description: C(app_stage).
    type: str
    required: true
"""

EXAMPLES = r"""
stored: "{{ '/var/lib/deployments' | runbook.deploy.stored_records('shop', 'production') }}"
"""

RETURN = r"""
_value:
  description: Ids of the deployments, the newest 2000, newest first; null where nothing is stored.
  type: list
  elements: str
"""

# About 50 KB for each host; hosts keep far fewer.
MOST = 2000


def stored_records(store: str, application: str, stage: str) -> list[str] | None:
    """Return the ids of the deployments whose record lies in *store*, newest first, None where that is empty."""
    if not store:
        return None
    try:
        names = os.listdir(os.path.join(store, application, stage))
    except OSError:
        return []
    found = [name[:-5] for name in names if name.endswith(".json")]
    return sorted((name for name in found if DEPLOYMENT_ID.match(name)), reverse=True)[:MOST]


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"stored_records": stored_records}
