# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of all unit tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _record
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.record_schema import faults

# See django_servers.py: files of new database servers, which are made once for all files of tests and all workers.
PATTERNS = "RUNBOOK_TEST_SERVERS"


def pytest_configure(config: pytest.Config) -> None:
    """Make the directory of the patterns; workers inherit the variable."""
    if hasattr(config, "workerinput"):
        return
    made = tempfile.mkdtemp(prefix="rb-servers-", dir="/tmp")
    if not os.geteuid():
        # No server starts as root, nor does what makes its files (ordinary_user).
        shutil.chown(made, "nobody")
    os.environ[PATTERNS] = made


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove them."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(PATTERNS, ""), ignore_errors=True)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose name leaves room for a socket's path, of which the kernel takes 107 bytes; pytest's own may not."""
    made = Path(tempfile.mkdtemp(prefix="rb-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(autouse=True)
def records_as_published(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hold every record that the collection writes in this process against docs/record.schema.json.

    Tests whose records are made up leave it out with the mark ``made_up_records``.
    """
    if request.node.get_closest_marker("made_up_records"):
        yield
        return
    found: list[str] = []
    write = _record.write_record

    def judged(layout: _record.Layout, record: Mapping[str, Any]) -> None:
        write(layout, record)
        found.extend(faults(_record.plain(record)))

    monkeypatch.setattr(_record, "write_record", judged)
    yield
    if found:
        pytest.fail("docs/record.schema.json does not allow what was written:\n" + "\n".join(found[:5]))
