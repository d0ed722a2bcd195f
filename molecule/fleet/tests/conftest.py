# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet on which the real setup ran; the modules deploy to it, one after the other."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("fleet")

from fleet import Fleet, Single


def pytest_collection_modifyitems(config: pytest.Config, items: list) -> None:
    """With RUNBOOK_FLEET=short leave out what is marked as long."""
    if os.environ.get("RUNBOOK_FLEET") == "short":
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Four hosts that serve some version; v2.6 at first."""
    found = Fleet(tmp_path_factory.mktemp("fleet"))
    if not found.deployed():
        found.good("setup")
        found.good("deploy", "-e", "version=v2.6")
    return found


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Single:
    """One host that stands alone and serves some version; v2.6 at first."""
    found = Single(tmp_path_factory.mktemp("single"))
    if not found.deployed():
        found.good("setup")
        found.good("deploy", "-e", "version=v2.6")
    return found
