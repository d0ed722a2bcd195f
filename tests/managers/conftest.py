# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A site and its visitors are those of the killed deployments, supervisord that of the unit tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
UNIT = TESTS / "unit" / "plugins"
sys.path[:0] = [
    str(TESTS / "kill"),
    str(TESTS / "support"),
    str(UNIT / "modules"),
    str(UNIT / "module_utils"),
]
pytest.register_assert_rewrite("kill_site", "played_site")
