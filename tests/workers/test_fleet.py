# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A thousand tasks during a deployment and a rollback of two hosts, by the playbooks: each ran once, and one beat ran at most."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import played_site
import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from celery_host import APP, Shop

TASKS = int(os.environ.get("RUNBOOK_TASKS", "1000"))


class Fleet:
    """Two application roots on this machine, as two hosts with a connection of their own; the beat is on the second."""

    def __init__(self, shop: Shop, directory: Path) -> None:
        self.shop = shop
        self.directory = directory
        self.roots = {name: directory / name for name in ("one", "two")}
        self.repository = directory / "shop.git"
        python = f"{sys.executable} -m celery -A shop"
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "setup_manage_user": False,
            "app_name": "shop",
            "app_stage": "test",
            "app_root": str(directory) + "/{{ inventory_hostname }}",
            "app_user": "",
            "app_repository": str(self.repository),
            "app_framework": "none",
            "app_requirements": [],
            "app_shared": [],
            "app_health_checks": [],
            "app_environment": shop.variables,
            "app_drain_timeout": 300,
            "app_start_timeout": 120,
            "app_stay_up": 1,
            "app_batch": 1,
            "app_services": [
                # The nodes have other names although both hosts are this machine.
                {
                    "name": "worker",
                    "kind": "worker",
                    "manager": "process",
                    "stop_timeout": 120,
                    "command": f"{python} worker -n worker@{{root}} -c 2 --without-gossip --without-mingle",
                },
                {
                    "name": "beat",
                    "kind": "beat",
                    "manager": "process",
                    "groups": ["timers"],
                    "command": f"{python} beat -s {{root}}/run/schedule --pidfile=",
                },
            ],
        }
        local = {
            "all": {
                "vars": variables,
                "children": {"app": {"hosts": {"one": {}, "two": {}}}, "timers": {"hosts": {"two": {}}}},
            }
        }
        (directory / "hosts.json").write_text(json.dumps(local), encoding="utf-8")

    def git(self, *words: str, cwd: Path | None = None) -> None:
        identity = [
            "-c",
            "user.name=test",
            "-c",
            "user.email=test@example.org",
            "-c",
            "init.defaultBranch=main",
        ]
        subprocess.run(
            ["git", *identity, *words], cwd=cwd or self.repository, check=True, capture_output=True
        )

    def versions(self, **faults: str) -> None:
        """Make a repository with a tag for each of *faults*."""
        self.repository.mkdir()
        self.git("init", "-q")
        for version, fault in faults.items():
            (self.repository / "shop.py").write_text(APP, encoding="utf-8")
            (self.repository / "fault").write_text(fault, encoding="utf-8")
            (self.repository / "version").write_text(version, encoding="utf-8")
            self.git("add", "-A")
            self.git("commit", "-q", "-m", version)
            self.git("tag", version)

    def play(self, name: str, *words: str, fails: bool = False) -> str:
        """Run a playbook of the collection; return what it says."""
        run = played_site.play(self.directory, name, *words)
        assert bool(run.code) == fails, run.output[-6000:]
        return run.output

    def processes(self) -> list[tuple[str, str, str]]:
        """Return (host, service, version's release) of what runs."""
        return sorted(
            (host, entry.service, entry.release)
            for host, root in self.roots.items()
            for entry in _processes.tree_roots(_processes.application_processes(root))
            if entry.service
        )

    def close(self) -> None:
        for root in self.roots.values():
            other = Shop.__new__(Shop)
            other.root = root
            other.close()


class Watch:
    """Looks all the time which beats run, and which workers, of both hosts."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.most = 0
        # What ran when, without repetitions: (beats, workers) as sets of (host, release).
        self.seen: list[tuple[frozenset[Any], frozenset[Any]]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        while not self._end.wait(0.05):
            found = self.fleet.processes()
            beats = frozenset((host, release) for host, service, release in found if service == "beat")
            workers = frozenset((host, release) for host, service, release in found if service == "worker")
            self.most = max(self.most, len(beats))
            if not self.seen or self.seen[-1] != (beats, workers):
                self.seen.append((beats, workers))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._end.set()
        self._thread.join()

    def ordered(self) -> None:
        """See that no worker went while a beat ran, and no beat came before all workers were new."""
        assert self.most == 1, self.seen
        for (_beats, before), (beats, after) in zip(self.seen, self.seen[1:]):
            gone = before - after
            assert not (gone and beats), self.seen
        assert len({release for _host, release in self.seen[-1][1]}) == 1 and len(self.seen[-1][1]) == 2


class Client:
    """Submits tasks at a constant rate, so that they last as long as what is done meanwhile."""

    def __init__(self, shop: Shop, number: int) -> None:
        self.shop, self.number = shop, number
        self.sent = 0
        self._thread = threading.Thread(target=self._work)
        self.done = threading.Event()

    def _work(self) -> None:
        from celery import Celery

        with Celery("client", broker=self.shop.broker, set_as_current=False) as app:
            app.conf.task_default_queue = "shop"
            while self.sent < self.number and not (self.done.is_set() and self.sent >= TASKS):
                # Some take a while, so that there is always one to be waited for.
                app.send_task("shop.note", [f"k{self.sent}", 0.4 if self.sent % 10 == 0 else 0.02])
                self.sent += 1
                time.sleep(0.04)

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self.done.set()
        self._thread.join()


@pytest.fixture
def fleet(shop, tmp_path):
    directory = shop.root.parent
    made = Fleet(shop, directory)
    yield made
    made.close()


def exactly_once(shop: Shop, sent: int) -> None:
    shop.until(lambda: len(set(shop.noted())) and len({key for key, _r in shop.noted()}) >= sent, "all tasks")
    counted = Counter(key for key, _release in shop.noted())
    twice = {key: number for key, number in counted.items() if number != 1}
    assert not twice and set(counted) == {f"k{number}" for number in range(sent)}
    print(f"{sent} tasks were submitted, {len(counted)} ran, each once: {not twice}")


def test_thousand_tasks(fleet, shop):
    fleet.versions(v1="", v2="", broken="elsewhere")
    fleet.play("setup")
    fleet.play("deploy", "-e", "version=v1")
    assert [entry[:2] for entry in fleet.processes()] == [
        ("one", "worker"),
        ("two", "beat"),
        ("two", "worker"),
    ]
    with Client(shop, 20 * TASKS) as client:
        shop.until(lambda: client.sent > 20, "tasks that come in")
        with Watch(fleet) as watch:
            fleet.play("deploy", "-e", "version=v2")
        watch.ordered()
        (new,) = {release for _host, _service, release in fleet.processes()}
        with Watch(fleet) as watch:
            fleet.play("rollback", "--tags", "code", "-e", "rollback_reason=practice")
        watch.ordered()
        (old,) = {release for _host, _service, release in fleet.processes()}
        assert new != old and ("two", "beat", old) in fleet.processes()
        before = client.sent
    assert before > 50 and client.sent >= TASKS
    exactly_once(shop, client.sent)
    ran = Counter(release for _key, release in shop.noted())
    assert ran[new] and ran[old]
    print(f"by release: {dict(ran)}")


def test_release_whose_workers_are_silent_is_taken_back_everywhere(fleet, shop):
    fleet.versions(v1="", broken="elsewhere")
    fleet.play("setup")
    fleet.play("deploy", "-e", "version=v1")
    served = fleet.processes()
    with Client(shop, 200) as client, Watch(fleet) as watch:
        said = fleet.play("deploy", "-e", "version=broken", "-e", '{"app_start_timeout": 15}', fails=True)
        client.done.set()
    assert "127.0.0.1:9" in said and watch.most == 1
    assert fleet.processes() == served
    shop.until(lambda: len(shop.noted()) >= client.sent, "all tasks")
    exactly_once(shop, client.sent)
