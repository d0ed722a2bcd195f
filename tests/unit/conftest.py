# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of all unit tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose name leaves room for a socket's path, of which the kernel takes 107 bytes; pytest's own may not."""
    made = Path(tempfile.mkdtemp(prefix="rb-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)
