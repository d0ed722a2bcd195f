# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The long form of what the unit tests show of Celery: the same helpers."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
UNIT = TESTS / "unit" / "plugins"
sys.path[:0] = [str(TESTS / "support"), str(UNIT / "modules"), str(UNIT / "module_utils")]

import test_app_service_workers  # noqa: E402 - found by the path above

redis, shop = test_app_service_workers.redis, test_app_service_workers.shop
