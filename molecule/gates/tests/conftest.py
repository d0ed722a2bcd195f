# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host with everything that gates ask."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[3]
SCENARIO = Path(__file__).resolve().parents[1]
CONTAINERS = PROJECT / "build" / "containers-gates"
sys.path.insert(0, str(PROJECT / "molecule" / "support"))
pytest.register_assert_rewrite("machine", "disclosure", "gated")

from gated import Host, Visitors
from machine import Machine


@pytest.fixture(scope="session")
def variables() -> dict:
    """The variables of the inventory, as they are written."""
    text = (SCENARIO / "inventory" / "group_vars" / "app.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


@pytest.fixture(scope="session")
def secrets(variables: dict) -> dict[str, str]:
    """The secrets of the inventory by name."""
    return variables["test_secrets"]


@pytest.fixture(scope="session")
def site() -> Machine:
    """The host that the converge has set up, seen from outside."""
    inventories = (CONTAINERS / "inventory.yml", SCENARIO / "inventory")
    return Machine("gates1", inventories, "parcels", health="/healthz")


@pytest.fixture(scope="session")
def reports() -> Path:
    """Where the controller stores records and reports."""
    return CONTAINERS / "reports"


@pytest.fixture(scope="session")
def host(site: Machine, variables: dict) -> Iterator[Host]:
    """The host with its visitors."""
    with Visitors(site.address) as visitors:
        # Of a log only the mark is set before a deployment; that has a verdict, too.
        names = {gate["name"] for gate in variables["app_gates"]}
        yield Host(site, visitors, names, variables["test_secrets"]["broker"])
