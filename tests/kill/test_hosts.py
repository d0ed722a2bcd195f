# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rollout over two hosts is cut off: what resume.yml finishes, what it undoes, and that nothing is done twice.

Two application roots on this machine, with a port each, are the hosts; their database is one file. What stands before them is told by
tasks of the inventory's own, each of which leaves a line. The tests go on from each other.
"""

from __future__ import annotations

import http.client
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from kill_site import SWITCH, TAKE_OVER, Site, play_and_kill

HOSTS = ("one", "two")
# Where the run dies: the first host serves the new release, the second is to be switched; and when both serve it.
BETWEEN = f"2 {SWITCH}"
PROOF = "1 smoke_test | Ask the application what a user would ask"


class Hosts(Site):
    """Both hosts; the records of the primary are those of ``one``."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.roots = {name: directory / name for name in HOSTS}
        self.root = self.roots["one"]
        self.database = directory / "data" / "goexplorer.sqlite3"
        self.database.parent.mkdir()
        self.ports = {"one": self.port}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.ports["two"] = free.getsockname()[1]
        self.variables.pop("demo_port")
        self.variables.update(
            app_root="{{ demo_directory }}/{{ inventory_hostname }}",
            app_database={"engine": "sqlite", "path": str(self.database), "shared": True},
            app_batch=1,
            app_load_balancer={"kind": "tasks", "drain": "out.yml", "ready": "in.yml"},
        )
        for where in ("out", "in"):
            command = f"echo {where} {{{{ inventory_hostname }}}} >> {directory / 'told'}"
            tasks = [{"name": f"The host is {where}", "ansible.builtin.shell": {"cmd": command}}]
            (directory / f"{where}.yml").write_text(json.dumps(tasks), encoding="utf-8")
        hosts = {name: {"demo_port": port} for name, port in self.ports.items()}
        inventory = {"app": {"hosts": hosts, "vars": self.variables}}
        (directory / "hosts.json").write_text(json.dumps(inventory), encoding="utf-8")

    def served(self) -> dict[str, str]:
        """The version that each host answers with."""
        found = {}
        for name, port in self.ports.items():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=25)
            try:
                connection.request("GET", "/healthz/")
                answer = connection.getresponse()
                body = json.loads(answer.read())
                version = answer.headers.get("X-Goexplorer-Version", "")
                assert (answer.status, body["commit"]) == (200, self.commits[version]), body
                found[name] = version
            finally:
                connection.close()
        return found

    def mains(self) -> dict[str, int]:
        """The main process of each host; one host has one."""
        found = {}
        for name, root in self.roots.items():
            services = [entry for entry in _processes.application_processes(root) if entry.service]
            (main,) = _processes.tree_roots(services)
            found[name] = main.pid
        return found

    def cut_off(self, version: str, where: str) -> str:
        """Deploy *version*, and kill the run there; return the id of its deployment."""
        run, _tasks = play_and_kill(self.directory, version, RUNBOOK_KILL_TASK=where)
        assert run.code == -signal.SIGKILL, run.output[-6000:]
        self.wait(lambda: not self.tools(), "the modules of the dead run to end")
        (record,) = (record for record in self.records() if record["verdict"] is None)
        return record["id"]

    def told(self) -> list[str]:
        """What the load balancer was told, ``out`` or ``in`` and the host, oldest first."""
        return (self.directory / "told").read_text(encoding="utf-8").splitlines()

    def verdicts(self, deployment: str) -> dict[str, Any]:
        """What each host's record of *deployment* says of it."""
        paths = {name: root / "deployments" / f"{deployment}.json" for name, root in self.roots.items()}
        return {name: json.loads(path.read_text(encoding="utf-8"))["verdict"] for name, path in paths.items()}

    def whole(self, version: str) -> None:
        """Every host serves *version*, also after a reboot, and gets requests; no run is open."""
        assert self.served() == dict.fromkeys(HOSTS, version)
        told = self.told()
        last = {host: where for where, host in map(str.split, told)}
        assert last == dict.fromkeys(HOSTS, "in"), told
        for root in self.roots.values():
            assert (root / "current" / "VERSION").read_text(encoding="utf-8").strip() == version
            assert not (root / "deployment.lock").exists()
            assert not list((root / "deployments").glob("*.work"))
        assert self.rows("PRAGMA integrity_check") == ["ok"]
        self.good("resume")
        assert self.served() == dict.fromkeys(HOSTS, version)
        assert self.told() == told

    def good(self, name: str, *words: str) -> str:
        """Run a playbook that has to succeed; return what it printed."""
        run = self.play(name, *words)
        assert run.code == 0, run.output[-6000:]
        return run.output

    def processes(self) -> list[_processes.Process]:
        return [entry for root in self.roots.values() for entry in _processes.application_processes(root)]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory) -> Iterator[Hosts]:
    made = Hosts(tmp_path_factory.mktemp("hosts"))
    try:
        made.good("setup")
        made.good("deploy", "-e", "version=v2.6")
        made.whole("v2.6")
        yield made
    finally:
        made.stop()


def test_what_every_host_serves_is_proved_and_closed(hosts):
    deployment = hosts.cut_off("v2.7", PROOF)
    assert hosts.served() == dict.fromkeys(HOSTS, "v2.7")
    before, told = hosts.mains(), hosts.told()
    hosts.good("resume", *TAKE_OVER)
    assert hosts.verdicts(deployment) == dict.fromkeys(HOSTS, "success")
    assert hosts.mains() == before and hosts.told() == told
    hosts.whole("v2.7")


def test_a_mixture_is_undone(hosts):
    deployment = hosts.cut_off("v2.8", BETWEEN)
    assert hosts.served() == {"one": "v2.8", "two": "v2.7"}
    before = hosts.mains()
    hosts.good("resume", *TAKE_OVER)
    assert "success" not in hosts.verdicts(deployment).values()
    assert hosts.mains()["two"] == before["two"] and hosts.mains()["one"] != before["one"]
    hosts.whole("v2.7")


def test_a_mixture_is_finished_where_a_person_asks_for_it(hosts):
    deployment = hosts.cut_off("v2.8", BETWEEN)
    assert hosts.served() == {"one": "v2.8", "two": "v2.7"}
    before, told = hosts.mains(), len(hosts.told())
    hosts.good("resume", *TAKE_OVER, "-e", "resume=finish")
    assert hosts.verdicts(deployment) == dict.fromkeys(HOSTS, "success")
    assert hosts.mains()["one"] == before["one"] and hosts.mains()["two"] != before["two"]
    # What serves it stays in.
    assert hosts.told()[told:] == ["out two", "in two"]
    hosts.whole("v2.8")
