# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A live migration takes minutes: nobody else deploys, goes back or takes over meanwhile, and it is applied once.

The process that migrates is stopped by SIGSTOP while somebody's transaction keeps it waiting for the database, so that
it lasts as long as the test wants.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _proc_tree
from kill_site import TAKE_OVER, Site
from played_site import RUN_SECONDS, Run, play

# Two renewals of the lock, and some.
SECONDS = 150
# A date long before every lease.
LONG_AGO = "2020-01-01T00:00:00Z"


class Paused:
    """A deployment whose migration stands still, between *stop* and *go_on*."""

    def __init__(self, site: Site, version: str, pool: ThreadPoolExecutor) -> None:
        self.site = site
        self.deployment: Future[Run] = pool.submit(site.play, "deploy", "-e", f"version={version}")
        self.worker = 0
        self.pids: list[int] = []
        self.begun = 0.0

    def stop(self) -> None:
        """Keep the database from the migration until its processes are found and stopped."""
        with contextlib.closing(sqlite3.connect(self.site.database, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            until = time.monotonic() + RUN_SECONDS
            while not self._found():
                assert time.monotonic() < until, "the migration did not begin"
                time.sleep(0.05)
            connection.execute("ROLLBACK")
        self.begun = time.monotonic()

    def _found(self) -> bool:
        assert not self.deployment.done(), self.deployment.result().output[-6000:]
        for path in (self.site.root / "deployments").glob("*.work/migrate.json"):
            with contextlib.suppress(ValueError, KeyError, OSError):
                self.worker = int(json.loads(path.read_text(encoding="utf-8"))["process"]["pid"])
                self.pids = [entry.pid for entry in _proc_tree.scan().values() if entry.ppid == self.worker]
                for pid in self.pids:
                    os.kill(pid, signal.SIGSTOP)
        return bool(self.pids)

    def go_on(self) -> None:
        """Let the migration come to its end; at the end of a test that failed, too."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One host that serves v2.6."""
    made = Site(tmp_path_factory.mktemp("lock"))
    try:
        made.prepare()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def elsewhere(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where somebody else works, with the same inventory."""
    directory = tmp_path_factory.mktemp("elsewhere")
    (directory / "hosts.json").write_bytes((site.directory / "hosts.json").read_bytes())
    return directory


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def lock_of(site: Site) -> dict:
    """The lock as it lies on the host."""
    (path,) = (site.root / "deployment.lock").glob("*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def words_of(run: Run) -> str:
    return " ".join(run.output.split())


def test_for_minutes_nobody_else_gets_in(site, elsewhere, pool):
    paused = Paused(site, "v2.7", pool)
    try:
        paused.stop()
        lock = lock_of(site)
        renewals = {lock["renewed"]}
        for name, words in (
            ("deploy", ("-e", "version=v2.8")),
            ("deploy", ("-e", "version=v2.8", *TAKE_OVER)),
            ("rollback", ()),
        ):
            refused = play(elsewhere, name, *words)
            said = words_of(refused)
            assert refused.code != 0, said[-3000:]
            assert lock["deployment"] in said and lock["owner"] in said, said[-3000:]
            assert site.get().version == "v2.6" and not paused.deployment.done()
            renewals.add(lock_of(site)["renewed"])
        # As after a clock that jumped: the lease is past, and the process works.
        (path,) = (site.root / "deployment.lock").glob("*.json")
        path.write_text(json.dumps({**lock_of(site), "renewed": LONG_AGO}), encoding="utf-8")
        refused = play(elsewhere, "deploy", "-e", "version=v2.8")
        assert refused.code != 0 and str(paused.worker) in words_of(refused), words_of(refused)[-3000:]
        while time.monotonic() < paused.begun + SECONDS:
            time.sleep(1)
            renewals.add(lock_of(site)["renewed"])
        assert len(renewals - {LONG_AGO}) >= 3, renewals
        assert lock_of(site)["token"] == lock["token"]
    finally:
        paused.go_on()
    run = paused.deployment.result()
    assert run.code == 0, run.output[-6000:]
    assert site.get().version == "v2.7"
    assert site.rows("SELECT count(*) FROM django_migrations WHERE name = '0004_adminnote'") == [1]
    # Nobody who was refused left a record.
    assert [record["version"] for record in site.records()] == ["v2.6", "v2.7"]
    assert not (site.root / "deployment.lock").exists()
