# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say why a deployment needs the maintenance page."""

from __future__ import annotations

from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_spec import wanted

DOCUMENTATION = r"""
name: maintenance_needed
short_description: Why a deployment needs the maintenance page
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Takes the plan of the pending migrations, and says why it needs the maintenance page; the text is empty where it does not.
  - With C(migrations) that is a migration that the old code is not proved to run with, one that copies a table of SQLite, and one that
    took 5 seconds or more on the copy under a lock for which the site waits.
positional: when, first
options:
  _input:
    description: The plan, as M(runbook.deploy.migration) returned it.
    type: dict
    required: true
  when:
    description: C(app_maintenance_when).
    type: str
    choices: [never, migrations, always]
    required: true
  first:
    description: Whether nothing served before.
    type: bool
    default: false
"""

EXAMPLES = r"""
reason: "{{ migrate_verified.plan | runbook.deploy.maintenance_needed('migrations') }}"
"""

RETURN = r"""
_value:
  description: Why, or an empty text.
  type: str
"""


def maintenance_needed(plan: Any, when: str, first: bool = False) -> str:
    """Return why the page is needed, "" where it is not."""
    return wanted(when, plan or {}, first)


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"maintenance_needed": maintenance_needed}
