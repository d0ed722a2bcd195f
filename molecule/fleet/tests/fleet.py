# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet as its operator has it, and what must hold of all its hosts together."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fleet_tools import (
    CONTAINERS,
    HOSTS,
    PROJECT,
    ROOT,
    SCENARIO,
    WEBS,
    Load,
    Run,
    Running,
    hosts,
    inventory_of_one,
    own_environment,
    until,
)

TAKE_OVER = ("-e", "deployment_take_over=true")
UNITS = "systemctl list-units --plain --no-legend --all 'goexplorer-fleet-*@*.service'"


class Fleet:
    """Playbooks against all hosts, and all hosts looked at from outside; *directory* takes what runs print.

    `names`: the application's hosts, the first one first; `webs`: those that visitors reach; `servers`: what the load calls them.
    """

    names, webs, servers = HOSTS, WEBS, WEBS
    # What the host that visitors ask answers by itself.
    own = "/alive"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.number = 0
        self.all = hosts()
        self.members = [self.all[name] for name in self.names]
        self.front, self.data = self.all["front1"], self.all["data1"]
        self.sources = (CONTAINERS / "inventory.yml", SCENARIO / "inventory")

    # --- as an operator ---

    def start(self, playbook: str, *words: str) -> Running:
        """Start a playbook."""
        self.number += 1
        log = self.directory / f"{self.number:02d}-{playbook}.log"
        return Running(playbook, *words, sources=self.sources, log=log)

    def play(self, playbook: str, *words: str) -> Run:
        """Run a playbook to its end."""
        return self.start(playbook, *words).wait()

    def good(self, playbook: str, *words: str) -> Run:
        """Run a playbook that has to succeed."""
        run = self.play(playbook, *words)
        assert run.code == 0, run.output[-6000:]
        return run

    def leave_out(self, name: str) -> None:
        """Take a host out of the balancer, as a run does that dies before it puts the host back."""
        options = {"state": "drained", "kind": "haproxy", "backend": "goexplorer", "server": name}
        options["socket"] = "/run/haproxy/admin.sock"
        program = str(Path(sys.executable).with_name("ansible"))
        sources = [word for source in self.sources for word in ("-i", str(source))]
        module = ["-m", "runbook.deploy.load_balancer", "-a", json.dumps(options)]
        done = subprocess.run(
            [program, "front1", *sources, *module],
            cwd=PROJECT,
            env=own_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def load(self) -> Load:
        """A constant load through the address that visitors use."""
        self.number += 1
        return Load(self.front.address, self.directory / f"{self.number:02d}-load.jsonl", own=self.own)

    def next(self, run: Run) -> tuple[str, ...]:
        """The playbook and the words of the first command that a run names for people, without the inventory."""
        for line in run.block.splitlines():
            if "ansible-playbook " in line:
                words = shlex.split(line[line.index("ansible-playbook ") :], comments=True)[1:]
                kept, skip = [], False
                for word in words:
                    if not skip and word != "-i":
                        kept.append(word)
                    skip = word == "-i"
                (book,) = [word for word in kept if word.startswith("playbooks/")]
                return (Path(book).stem, *(word for word in kept if word != book))
        raise AssertionError(f"no command for a person:\n{run.block}")

    def reboot(self, name: str) -> None:
        """Restart a host as a machine reboots."""
        done = subprocess.run(
            [sys.executable, str(PROJECT / "tests" / "containers" / "hosts.py"), "reboot", name],
            env={**os.environ, "RUNBOOK_HOSTS": "fleet"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    # --- seen from outside ---

    def deployed(self) -> bool:
        """Whether anything was ever deployed."""
        return any(member.sh(f"readlink {ROOT}/current", check=False) for member in self.members)

    def answer(self) -> dict[str, str]:
        """The version with which each host answers."""
        with ThreadPoolExecutor() as pool:
            return dict(zip(self.names, pool.map(lambda member: member.version(), self.members)))

    def balanced(self) -> dict[str, str]:
        """The state of each web server in the balancer, in HAProxy's own words."""
        text = self.front.sh(
            "printf 'show stat\\n' | python3 -c \"import socket, sys; s = socket.socket(socket.AF_UNIX); "
            "s.connect('/run/haproxy/admin.sock'); s.sendall(sys.stdin.buffer.read()); "
            "print(b''.join(iter(lambda: s.recv(65536), b'')).decode())\""
        )
        rows = csv.DictReader(io.StringIO(text.lstrip("# ")))
        return {row["svname"]: row["status"] for row in rows if row["svname"] in WEBS}

    def in_balance(self) -> bool:
        """Whether every web server gets requests."""
        return self.balanced() == dict.fromkeys(WEBS, "UP")

    def migrations(self) -> list[str]:
        """Applied migrations of the application, in order."""
        query = "SELECT name FROM django_migrations WHERE app = 'owner_agreements' ORDER BY id"
        return self.sql(query).splitlines()

    def sql(self, statement: str) -> str:
        """What the database answers, asked on its own server."""
        return self.data.sh(f'runuser -u postgres -- psql -X -q -A -t -d goexplorer -c "{statement}"')

    def whole(self, version: str) -> None:
        """See that every host serves *version* from one instance, is in the balancer, and has nothing left to do."""
        until(
            lambda: self.answer() == dict.fromkeys(self.names, version),
            f"{version} everywhere: {self.answer()}",
            30,
        )
        for member in self.members:
            assert len(member.instances()) == 1, (member.name, member.instances())
            units = [line.split() for line in member.sh(UNITS).splitlines()]
            assert [unit[2] for unit in units if unit[2] != "inactive"] == ["active"], (member.name, units)
        until(self.in_balance, f"all servers up: {self.balanced()}", 30)
        run = self.good("status")
        assert "nothing needs attention." in run.block, run.block
        # One table has all hosts.
        rows = [line.split() for line in run.block.splitlines()]
        for name in self.names:
            assert [row for row in rows if row[:1] == [name] and "yes" in row], run.block

    def started(self, host: str) -> float:
        """When the unit that runs on a host was started, on the clock of `time.time`."""
        unit = self.all[host].sh(f"{UNITS} | awk '$3 == \"active\" {{print $1}}'")
        moment = self.all[host].sh(f"systemctl show -P InactiveExitTimestampMonotonic {unit}")
        return int(moment) / 1e6 + time.time() - time.monotonic()

    def asked(self, host: str) -> list[tuple[str, str, str]]:
        """Who asked the instance that runs on a host since its start, in order: (path, status, program)."""
        unit = self.all[host].sh(f"{UNITS} | awk '$3 == \"active\" {{print $1}}'")
        started = self.all[host].sh(f"systemctl show -P InvocationID {unit}")
        lines = self.all[host].sh(f"journalctl -q -o cat _SYSTEMD_INVOCATION_ID={started}").splitlines()
        return [tuple(line.split(maxsplit=3)[1:]) for line in lines if line.startswith("asked ")]

    def tried(self, deployment: str) -> list[str]:
        """The hosts on which a service of a deployment was ever started."""
        # Its exit code is 1 where no such unit was ever heard of.
        look = f"journalctl -q -o cat -u 'goexplorer-fleet-*@{deployment}.service' 2>/dev/null || test $? = 1"
        return [name for name in self.names if self.all[name].sh(look)]


class Single(Fleet):
    """One host with no balancer before it, which switches by blue-green alone: an application and an inventory of its own."""

    names, webs, servers = ("single1",), ("single1",), ("",)
    # Its nginx looks for the file, and asks nobody.
    own = "/static/none.css"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.front = self.all["single1"]
        self.sources = (inventory_of_one(), SCENARIO / "inventory_single")

    def in_balance(self) -> bool:
        return True

    def balanced(self) -> dict[str, str]:
        return {}


def assert_unnoticed(fleet: Fleet, load: Load, before: str, after: str, proved_before: bool = False) -> None:
    """No visitor noticed the switch from one version to the other; *proved_before*: the other one is gone back to."""
    print(load)
    assert load.failed == []
    assert load.steady()
    begun = {host: fleet.started(host) for host in fleet.names}
    # Before its start a host is taken out of the balancer, after it the old instance ends.
    assert load.slow_by_switch(min(begun.values()) - 20, max(begun.values()) + 20) == []
    for server in fleet.servers:
        # Each host answers with the one, then with the other, and never again with the first.
        assert load.versions[server] == [before, after]
    for host in fleet.webs:
        requests = fleet.asked(host)
        programs = [program for _path, _status, program in requests]
        gate = requests[: programs.index("visitor")]
        passed = [(path, status) for path, status, program in gate if program not in ("-", "visitor")]
        # Each check passed twice in a row before the first visitor came.
        assert passed.count(("/healthz/", "200")) >= 2 and passed.count(("/", "200")) >= 2, (host, gate)
    for host in fleet.balanced():
        # It was out of the balancer before its new instance began, although the old one would have answered.
        asked = [row for row in load.answers if row.server == host and row.version == before]
        assert [row for row in asked if row.at > begun[host]] == [], (host, begun)
    # The first host stood alone until it had passed, was in the balancer, and answered visitors.
    first = min(row.at for row in load.answers if row.version == after)
    assert begun[fleet.names[0]] < first
    # A worker goes back without waiting for it: its release has passed before.
    others = fleet.webs[1:] if proved_before else fleet.names[1:]
    assert all(begun[host] > first for host in others), (first, begun)
