# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make checks of HTTP out of what must be gone after a rollback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DOCUMENTATION = r"""
name: must_be_gone
short_description: Checks of HTTP for what must be gone after a rollback
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Makes a check for M(runbook.deploy.http_gate) of each address, which passes where the application answers 404 or 410.
options:
  _input:
    description: Paths or addresses, as C(app_rollback_absent).
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
checks: "{{ ['/reports/new/'] | runbook.deploy.must_be_gone }}"
"""

RETURN = r"""
_value:
  description: One check for each, with C(name), C(url) and C(status).
  type: list
  elements: dict
"""

# Not Found and Gone (RFC 9110, 15.5.5 and 15.5.11).
GONE = (404, 410)


def must_be_gone(addresses: Sequence[str]) -> list[dict[str, Any]]:
    """Return a check of HTTP for each of *addresses*, which passes where nothing is there any more."""
    return [{"name": address, "url": address, "status": list(GONE)} for address in addresses]


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"must_be_gone": must_be_gone}
