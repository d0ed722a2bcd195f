# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator of a fleet has, and what an observer sees of it: hosts from outside, and each visitor's answer."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

PROJECT = Path(__file__).resolve().parents[3]
SCENARIO = PROJECT / "molecule" / "fleet"
CONTAINERS = PROJECT / "build" / "containers-fleet"
LOAD = Path(__file__).with_name("load.py")
ROOT = "/srv/goexplorer"
WEBS = ("web1", "web2", "web3")
HOSTS = (*WEBS, "worker1")
# Far more than any of these runs takes; a run that hangs is a defect to be seen.
RUN_SECONDS = 1800
# Requests a second: sent where nothing is late, and those that are wanted.
RATE, CONNECTIONS = float(os.environ.get("RUNBOOK_RATE", "60")), 15
WANTED = min(50.0, RATE * 5 / 6)
# The environments of processes, without the shell that looks.
INSTANCES = r"""for p in /proc/[0-9]*; do tr '\0' '\n' < $p/environ 2>/dev/null | sed -n 's/^RUNBOOK_DEPLOYMENT=//p'; done"""
SERVING = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8001/healthz/', timeout=10).headers['X-Goexplorer-Version'])"


def until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Wait until a condition holds, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


class Host:
    """One host, looked at from outside."""

    def __init__(self, name: str, address: str, container: str, public: str) -> None:
        self.name, self.address, self.container, self.public = name, address, container, public

    def command(self, script: str) -> list[str]:
        return ["docker", "exec", self.container, "sh", "-c", script]

    def sh(self, script: str, check: bool = True) -> str:
        """What *script* prints, run by root inside."""
        done = subprocess.run(
            self.command(script), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise AssertionError(
                f"{self.name}: {script!r} ended with {done.returncode}: {done.stderr}{done.stdout}"
            )
        return done.stdout.strip()

    def version(self) -> str:
        """The version that answers on this host, or what came instead."""
        if self.name.startswith("worker"):
            return self.sh(f'python3 -c "{SERVING}"', check=False)
        # The name by which visitors ask; behind a balancer a host's own address is not one of its web server's names.
        get = f"curl -s -o /dev/null -D - -m 10 -H 'Host: {self.public}' http://127.0.0.1/healthz/"
        found = self.sh(get, check=False)
        named = re.search(r"^x-goexplorer-version: (\S+)", found, re.IGNORECASE | re.MULTILINE)
        return named.group(1) if named and " 200 " in found.splitlines()[0] else found[:200]

    def instances(self) -> set[str]:
        """The deployments whose processes run."""
        return set(self.sh(INSTANCES).split())

    def records(self) -> list[dict[str, Any]]:
        """The records, oldest first."""
        names = self.sh(f"ls {ROOT}/deployments/*-????.json", check=False).split()
        return [json.loads(self.sh(f"cat {name}")) for name in names]

    def cut(self) -> None:
        """Take the network away; nothing inside is told."""
        self.sh("ip link set eth0 down")

    def heal(self) -> None:
        """Give the network back and wait until ssh answers."""
        self.sh("ip link set eth0 up; systemctl start ssh")

        def answers() -> bool:
            with socket.socket() as stream:
                stream.settimeout(2)
                return stream.connect_ex((self.address, 22)) == 0

        until(answers, f"{self.name} answers on port 22")

    @contextmanager
    def when(self, condition: str, action: str):
        """Run *action* inside the moment that the shell's *condition* is true; heal the host at the end.

        It is watched from inside, so that nothing lies between what is seen and what is done.
        """
        mark = f"/tmp/.watch-{time.monotonic_ns()}"
        loop = f"touch {mark}; while [ -e {mark} ]; do if {condition}; then {action}; exit 0; fi; sleep 0.02; done; exit 3"
        with subprocess.Popen(self.command(loop), stdin=subprocess.DEVNULL) as watcher:
            try:
                yield watcher
                assert watcher.poll() == 0, f"{self.name}: {condition} did not come true"
            finally:
                self.sh(f"rm -f {mark}", check=False)
                watcher.wait(60)
                self.heal()


def phase_runs(phase: str) -> str:
    """A shell condition: the newest record of this host says that *phase* has begun and not ended."""
    running = f'"phase":"{phase}","result":{{}},"seconds":null,"state":"running"'
    return f"cat $(ls {ROOT}/deployments/*-????.json | tail -1) 2>/dev/null | tr -d ' \\n' | grep -qF '{running}'"


def hosts() -> dict[str, Host]:
    """Every host of the scenario by name."""
    groups = yaml.safe_load((CONTAINERS / "inventory.yml").read_text(encoding="utf-8"))["all"]["children"]
    found = {name: about for group in groups.values() for name, about in group["hosts"].items()}
    front = found["front1"]["ansible_host"]
    return {
        name: Host(
            name,
            about["ansible_host"],
            about["test_container"],
            front if name in HOSTS else about["ansible_host"],
        )
        for name, about in found.items()
    }


def inventory_of_one() -> Path:
    """An inventory in which the host that stands alone is the only one of its application; where it was written."""
    document = yaml.safe_load((CONTAINERS / "inventory.yml").read_text(encoding="utf-8"))
    document["all"]["children"] = {"app": document["all"]["children"]["single"]}
    path = CONTAINERS / "single.yml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


class Run(NamedTuple):
    """What a playbook left."""

    title: str
    code: int
    output: str
    begun: float
    ended: float

    @property
    def block(self) -> str:
        """The block that a person reads, from the verdict on."""
        found = list(
            re.finditer(
                r"^(?:(?:deployment|rollback) (?:\S+ )?of )?goexplorer \(fleet\).*", self.output, re.MULTILINE
            )
        )
        text = self.output[found[-1].start() :] if found else self.output[-3000:]
        return re.split(r"\n(?: +failed on |PLAY RECAP|TASK \[|\[ERROR)", text)[0].rstrip()

    def __str__(self) -> str:
        return f"[{self.ended - self.begun:5.1f} s, exit code {self.code}] {self.title}\n{self.block}"


def own_environment() -> dict[str, str]:
    """What a login of the operator has; molecule's own settings are not part of it."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "MOLECULE_"))
    }


class Running:
    """A playbook that runs, as an operator has started it."""

    def __init__(self, playbook: str, *words: str, sources: tuple[Path, ...], log: Path) -> None:
        self.title = " ".join((playbook, *words))
        self.log = log
        command = [str(Path(sys.executable).with_name("ansible-playbook")), f"playbooks/{playbook}.yml"]
        command += [*(word for source in sources for word in ("-i", str(source))), *words]
        kept = own_environment()
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        self.begun = time.time()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=PROJECT,
                env={**kept, "PATH": path, "ANSIBLE_NOCOLOR": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def begins(self, phase: str) -> None:
        """Wait until its output says that a phase begins."""
        line = re.compile(rf"^\d\d:\d\d:\d\d  {phase}\b", re.MULTILINE)
        until(
            lambda: line.search(self.log.read_text(errors="replace")) or self.process.poll() is not None,
            f"{self.title} comes to {phase}",
            RUN_SECONDS,
        )
        assert line.search(self.log.read_text(errors="replace")), (
            f"{self.title} ended before {phase}:\n{self.log.read_text()[-3000:]}"
        )

    def wait(self) -> Run:
        """Wait for its end, and print what a person reads."""
        try:
            code = self.process.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"{self.title} hung:\n{self.log.read_text()[-3000:]}") from None
        text = self.log.read_text(encoding="utf-8", errors="replace")
        run = Run(self.title, code, text, self.begun, time.time())
        print(f"\n{run}", flush=True)
        return run


# Where the kernel keeps how much of the processors a control group gets beside others, what one process has, and its unit (cgroups(7)).
WEIGHTS = (
    (re.compile(r"^\d+:[^:]*\bcpu\b[^:]*:(.*)$", re.MULTILINE), "/sys/fs/cgroup/cpu{}/cpu.shares", 1024),
    (re.compile(r"^0::(.*)$", re.MULTILINE), "/sys/fs/cgroup{}/cpu.weight", 100),
)


@contextmanager
def processors_of_their_own():
    """Let each container weigh as much as one process of this machine, as if hosts had processors of their own.

    All containers together are one group, which gets no more than any single process beside them: visitors of the hosts would
    wait for Ansible and for whatever else this machine does. Nothing is done where that is not so, or for who may not.
    """
    names = subprocess.run(["docker", "ps", "-q"], capture_output=True, text=True, check=True).stdout.split()
    command = ["docker", "inspect", "-f", "{{.State.Pid}}", *names[:1]]
    pid = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    told = Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii")
    for pattern, place, unit in WEIGHTS:
        found = pattern.search(told)
        path = Path(place.format(Path(found.group(1)).parent)) if found else None
        if path and path.parent.name == "docker" and os.access(path, os.W_OK):
            before = path.read_text(encoding="ascii")
            path.write_text(str(unit * len(names)), encoding="ascii")
            try:
                yield
            finally:
                path.write_text(before, encoding="ascii")
            return
    yield


class Answer(NamedTuple):
    """What one request got; see load.py."""

    at: float
    seconds: float
    kind: str
    status: int
    version: str
    server: str
    error: str


class Load:
    """A constant load on the site, and what was seen of it.

    *before*: seconds of it before anything else is done. *own*: what the server at *address* answers itself.
    """

    def __init__(self, address: str, path: Path, before: float = 8, own: str = "/alive") -> None:
        self.address, self.path, self.before, self.own = address, path, before, own
        self.rows: list[Answer] = []
        self.processors = processors_of_their_own()

    def __enter__(self) -> Load:
        self.processors.__enter__()
        words = [str(LOAD), self.address, str(RATE), str(CONNECTIONS), str(self.path), self.own]
        self.begun = time.time()
        self.process = subprocess.Popen([sys.executable, *words])
        # The same load for some seconds without a deployment: what the machine does by itself.
        time.sleep(self.before)
        self.read()
        assert self.answers, f"no answer within {self.before} s"
        self.switched = time.time()
        return self

    def __exit__(self, *_error: object) -> None:
        time.sleep(2)
        self.process.terminate()
        self.process.wait(60)
        self.processors.__exit__(None, None, None)
        self.ended = time.time()
        self.read()

    def read(self) -> None:
        """Take what was written so far; a row that is being written waits."""
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1] if self.path.exists() else []
        self.rows = [Answer(*json.loads(line)) for line in lines]

    @property
    def answers(self) -> list[Answer]:
        """What visitors got, in the order of sending."""
        return sorted(row for row in self.rows if row.kind not in ("balancer", "late"))

    @property
    def failed(self) -> list[str]:
        """Requests that did not get their page."""
        return [
            f"{row.at - self.begun:.1f} s: {row.server or 'nobody'} {row.status} {row.error}"
            for row in self.answers
            if row.status != 200
        ]

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.answers) / (self.ended - self.begun)

    def slow_by_switch(self, begun: float, ended: float) -> list[Answer]:
        """Answers over 1 s to what was sent while hosts were switched, between the two moments, that the switch caused.

        On a busy machine answers take long without any switch, as long as the slowest of those that were sent outside of
        it; and nobody causes what is late because this program was waked late, or the balancer's own answer was.
        """
        within = [row for row in self.answers if begun <= row.at <= ended]
        limit = max([1.0, *(row.seconds for row in self.answers if not begun <= row.at <= ended)])
        stalls = [row for row in self.rows if row.kind in ("balancer", "late") and row.seconds > 0.25]
        over = [row for row in within if row.seconds > limit]
        found = [
            row
            for row in over
            if not any(
                stall.at < row.at + row.seconds and row.at < stall.at + stall.seconds for stall in stalls
            )
        ]
        print(
            f"  in the {ended - begun:.0f} s of the switch {len(within)} requests were sent, {sum(row.seconds > 1 for row in within)} "
            f"answered after 1 s, {len(over)} after {limit:.2f} s, {len(found)} of these while the machine did not stall"
        )
        return found

    def steady(self) -> bool:
        """Whether as many requests a second were sent as are asked of this load."""
        before = len([row for row in self.answers if row.at < self.switched]) / (self.switched - self.begun)
        if self.rate < WANTED:
            print(
                f"  {WANTED:g} requests a second are wanted, {self.rate:.1f} got through, {before:.1f} when nothing happened; "
                "RUNBOOK_RATE asks for fewer on a slower machine"
            )
        return self.rate >= WANTED

    @property
    def versions(self) -> dict[str, list[str]]:
        """By server, the versions that answered, in the order of their first answer."""
        found: dict[str, list[str]] = {}
        for row in self.answers:
            seen = found.setdefault(row.server, [])
            if row.version and row.version not in seen:
                seen.append(row.version)
        return found

    def since(self, moment: float) -> set[str]:
        """The versions of answers to what was sent after *moment*."""
        return {row.version for row in self.answers if row.version and row.at > moment}

    def __str__(self) -> str:
        before = [row for row in self.answers if row.at < self.switched]
        during = [row for row in self.answers if row.at >= self.switched]

        def told(name: str, rows: list[Answer]) -> str:
            times = sorted(row.seconds for row in rows)
            return (
                f"  {name}: {len(rows)} requests, slowest {times[-1]:.2f} s, 99% within {times[int(len(times) * 0.99)]:.2f} s, "
                f"{sum(second > 1 for second in times)} over 1 s"
            )

        own = max((row.seconds for row in self.rows if row.kind == "balancer"), default=0)
        return "\n".join(
            [
                f"load: {len(self.answers)} requests, {self.rate:.1f} a second, {len(self.failed)} failed",
                told("before", before),
                told("during", during),
                f"  the balancer's own answers took up to {own:.2f} s",
                f"  answers by version: {dict(Counter(row.version for row in self.answers if row.version))}",
                *(f"  {line}" for line in self.failed[:10]),
            ]
        )
