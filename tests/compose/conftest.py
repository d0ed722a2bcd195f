# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One application in containers for all tests; helpers are found beside the tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parent / "applications")]
pytest.register_assert_rewrite("compose_site", "played_site")

import compose_site  # noqa: E402 - found by the path above


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[compose_site.Site]:
    """The application, set up, nothing deployed."""
    made = compose_site.Site(tmp_path_factory.mktemp("compose"))
    try:
        run = made.play("setup")
        assert run.code == 0, run.output[-4000:]
        yield made
    finally:
        made.clean()
