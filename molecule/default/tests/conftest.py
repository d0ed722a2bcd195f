# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host, the visitors and the secrets that all steps share; at the end, how long each step took."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[3]
SCENARIO = Path(__file__).resolve().parents[1]
CONTAINERS = PROJECT / "build" / "containers"
sys.path.insert(0, str(PROJECT / "molecule" / "support"))
pytest.register_assert_rewrite("machine", "disclosure", "recorded")

from machine import Machine
from seen import backups
from traffic import Ledger, Traffic

TIMES = pytest.StashKey[list]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TIMES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    times = config.stash[TIMES]
    if times:
        terminalreporter.section("how long the steps took")
        for name, seconds in [*times, ("together", sum(seconds for _name, seconds in times))]:
            terminalreporter.write_line(f"{seconds:7.1f} s  {name}")


@pytest.fixture(scope="session")
def timed(request: pytest.FixtureRequest) -> Callable[[str], contextlib.AbstractContextManager]:
    """A context that notes how long a step took."""

    @contextlib.contextmanager
    def note(name: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        request.config.stash[TIMES].append((name, time.monotonic() - begun))

    return note


@pytest.fixture(scope="session")
def site() -> Machine:
    """The host that the converge has set up, seen from outside."""
    return Machine("web1", (CONTAINERS / "inventory.yml", SCENARIO / "inventory"))


@pytest.fixture(scope="session")
def ledger() -> Ledger:
    """Every report that the application has acknowledged, over all steps."""
    return Ledger()


@pytest.fixture(scope="session")
def secrets() -> dict[str, str]:
    """The secrets of the inventory by name."""
    text = (SCENARIO / "inventory" / "group_vars" / "app.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["test_secrets"]


@pytest.fixture(scope="session")
def reports() -> Path:
    """Where the controller stores records and reports."""
    return CONTAINERS / "reports"


@pytest.fixture(scope="session")
def reboot(site: Machine, timed: Callable) -> Callable[[str], list[str]]:
    """Restart the host; say what contradicts that exactly one instance of a release serves after it."""

    def restart(tag: str) -> list[str]:
        with timed("reboot"):
            site.reboot()
            return site.wrong_soon(tag)

    return restart


@pytest.fixture(scope="session")
def step(site: Machine, ledger: Ledger, timed: Callable) -> Callable[..., SimpleNamespace]:
    """Run a playbook under traffic and return all that was seen meanwhile."""

    def run(name: str, *words: str, verbosity: int = 0) -> SimpleNamespace:
        before = SimpleNamespace(backups=backups(site), database=site.database())
        with Traffic(site.address, ledger) as traffic, timed(" ".join((name, *words))):
            done = site.playbook(name, *words, verbosity=verbosity)
        return SimpleNamespace(run=done, traffic=traffic, before=before)

    return run
