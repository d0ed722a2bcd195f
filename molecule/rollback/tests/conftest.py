# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each level on SQLite and on PostgreSQL, with somebody writing all the time; at the end, how long each way back took."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[3]
SCENARIO = Path(__file__).resolve().parents[1]
CONTAINERS = PROJECT / "build" / "containers-rollback"
sys.path.insert(0, str(PROJECT / "molecule" / "support"))
pytest.register_assert_rewrite("machine", "recorded", "steps")

from machine import Machine
from postgresql import SIGNALS, Server
from runs import Run, run_playbook
from traffic import Traffic
from writes import Book

TIMES = pytest.StashKey[list]()
SHORT = os.environ.get("RUNBOOK_ROLLBACK") == "short"
QUICK = ("-e", f"@{SCENARIO / 'vars' / 'quick.yml'}")
# How the application's role and database are made, as an operator does.
ROLE = """
CREATE ROLE goexplorer LOGIN CREATEDB PASSWORD '{password}';
CREATE DATABASE goexplorer OWNER goexplorer TEMPLATE template0 ENCODING 'UTF8';
"""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TIMES] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list) -> None:
    """With RUNBOOK_ROLLBACK=short keep what is marked so, on SQLite."""
    if SHORT:
        kept = [item for item in items if item.get_closest_marker("short") and "postgresql" not in item.name]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[TIMES]:
        terminalreporter.section("how long the ways back took")
        for engine, name, seconds, limit, load in config.stash[TIMES]:
            terminalreporter.write_line(
                f"{seconds:7.1f} s of {limit:4d} s  {name} on {engine}, load {load:.1f} of {os.cpu_count()} cores"
            )


class Site(Machine):
    """One host, with its database, those who write to it, and every write that was acknowledged."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        source = "default" if engine == "sqlite" else engine
        super().__init__(
            f"{engine}1", (self._alone(f"{engine}1"), PROJECT / "molecule" / source / "inventory")
        )
        self.book = Book()
        self.server = Server(self) if engine == "postgresql" else None

    def playbook(self, name: str, *words: str, verbosity: int = 0) -> Run:
        """Run one of the collection's playbooks; a way back that is cut off says nothing of how long it takes."""
        return run_playbook(name, *words, inventories=self.inventories, verbosity=verbosity, limit=1800)

    @staticmethod
    def _alone(host: str) -> Path:
        """An inventory of this host alone, made from that of both."""
        document = yaml.safe_load((CONTAINERS / "inventory.yml").read_text(encoding="utf-8"))
        (found,) = [
            group["hosts"][host] for group in document["all"]["children"].values() if host in group["hosts"]
        ]
        document["all"]["children"] = {"app": {"hosts": {host: found}}}
        path = CONTAINERS / f"{host}.yml"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return path

    def prepare(self) -> None:
        if self.server:
            variables = (PROJECT / "molecule/postgresql/inventory/group_vars/app.yml").read_text(
                encoding="utf-8"
            )
            password = yaml.safe_load(variables)["test_secrets"]["database"]
            self.run("systemctl", "enable", "--now", "postgresql.service")
            known = self.server.sql(
                "SELECT count(*) FROM pg_database WHERE datname = 'goexplorer'", "postgres"
            )
            text = ROLE.format(password=password) if known == "0" else ""
            self.run(
                "psql",
                "-X",
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                user="postgres",
                text=text,
            )
        for name, *words in (("setup",), ("deploy", "-e", "version=v2.6")):
            done = self.playbook(name, *QUICK, *words)
            assert done.code == 0, str(done)

    def copies(self) -> list[set[str]]:
        """The marks of the writes in the live database, then in each that a restore has put aside."""
        if self.server:
            statement = f"SELECT details FROM {SIGNALS} WHERE details LIKE 'writer %'"
            found = [self.server.sql(statement, name).splitlines() for name in ("", *self.server.kept())]
        else:
            path = self.database_path
            kept = self.run(
                "sh", "-c", f"ls {path}.broken-* 2>/dev/null | grep -v -e -wal -e -shm || true"
            ).split()
            found = [list(self.probe("database", each, user="root")["signals"].values()) for each in kept]
            found.insert(0, list(self.database()["signals"].values()))
        return [{text.split()[1] for text in texts if text.startswith("writer ")} for texts in found]

    def migrations(self) -> list[str]:
        """Names of the migrations of the application that the database has."""
        if self.server:
            return self.server.migrations()
        return [" ".join(row) if isinstance(row, list) else row for row in self.database()["migrations"]]

    def records(self) -> list[dict]:
        """The records on the host, newest first, as files and by nobody's interpretation."""
        names = sorted(self.run("sh", "-c", f"ls {self.root}/deployments/*-????.json").split(), reverse=True)
        return [json.loads(self.run("cat", name)) for name in names]


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A host that serves v2.6."""
    found = Site(request.param)
    found.prepare()
    yield found


@pytest.fixture(scope="session")
def step(site: Site) -> Callable[..., SimpleNamespace]:
    """Run a playbook while somebody writes and reads; return what was seen."""

    def run(name: str, *words: str) -> SimpleNamespace:
        before = set(site.book.acknowledged)
        with Traffic(site.address, site.book) as traffic:
            done = site.playbook(name, *QUICK, *words)
        print(f"\n[{done.seconds:.1f} s, exit code {done.code}] {done.command}\n{done.report}")
        return SimpleNamespace(run=done, traffic=traffic, written=len(set(site.book.acknowledged) - before))

    return run


@pytest.fixture
def timed(request: pytest.FixtureRequest, site: Site) -> Callable[[str, float, int], None]:
    """Note how long a way back took against what a runbook allows for it, in seconds."""

    def note(name: str, seconds: float, limit: int) -> None:
        request.config.stash[TIMES].append((site.engine, name, seconds, limit, os.getloadavg()[0]))
        assert seconds < limit

    return note


@pytest.fixture
def after(site: Site) -> Callable[..., None]:
    """What holds after every step: the release serves, from outside; every acknowledged write is somewhere, live where nothing was restored."""

    def check(done: SimpleNamespace, serving: str, restored: bool = False) -> None:
        assert site.wrong_soon(serving) == [], str(done.run)
        assert done.written > 3
        live, *kept = site.copies()
        acknowledged = set(site.book.acknowledged)
        assert acknowledged - live.union(*kept) == set()
        if restored:
            site.gone = acknowledged - live
        assert acknowledged - live - getattr(site, "gone", set()) == set()

    return check
