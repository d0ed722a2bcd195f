# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet on which the real setup ran; the modules deploy to it, one after the other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("fleet")

from fleet import Fleet, Single


def serving(site: Fleet) -> Fleet:
    """Return *site* with some version on all its hosts; v2.6 at first."""
    if not site.deployed():
        site.good("setup")
        site.good("deploy", "-e", "version=v2.6")
    return site


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Four hosts that serve some version."""
    return serving(Fleet(tmp_path_factory.mktemp("fleet")))


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Single:
    """One host that stands alone and serves some version."""
    return serving(Single(tmp_path_factory.mktemp("single")))
