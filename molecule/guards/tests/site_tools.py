# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator has: an inventory and the playbooks; and what an observer has: the hosts, seen from outside.

Nothing here asks the collection what it did: hosts are looked into through the container engine, and asked through HTTP.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

PROJECT = Path(__file__).resolve().parents[3]
SCENARIO = PROJECT / "molecule" / "guards"
HOSTS = PROJECT / "build" / "containers-guards" / "inventory.yml"
REPOSITORY = PROJECT / "build" / "repositories" / "goexplorer.git"
ROOT = "/srv/goexplorer"
DATABASE = "/data/goexplorer.sqlite3"
# What a deployment may change on a host, and what the web server and systemd read.
WATCHED = ("/srv", "/data", "/opt", "/etc/systemd", "/etc/nginx")
# Far more than any of these runs takes; a run that hangs is a defect to be seen.
RUN_SECONDS = 300
# A host whose network is gone is noticed by ssh itself, in time for a test.
SSH = "-o ControlMaster=auto -o ControlPersist=60s -o ServerAliveInterval=2 -o ServerAliveCountMax=3"
TREE = r"""
import hashlib, json, os, stat, sys
found = {}
def look(path):
    entry = os.lstat(path)
    digest = ""
    if stat.S_ISREG(entry.st_mode):
        with open(path, "rb") as stream:
            digest = hashlib.sha256(stream.read()).hexdigest()
    elif stat.S_ISLNK(entry.st_mode):
        digest = os.readlink(path)
    found[path] = [oct(entry.st_mode), entry.st_uid, entry.st_gid, entry.st_size, entry.st_mtime_ns, digest]
for top in sys.argv[1:]:
    if os.path.lexists(top):
        look(top)
    for directory, names, files in os.walk(top):
        for name in names + files:
            look(os.path.join(directory, name))
print(json.dumps(found))
"""


class Run(NamedTuple):
    """What a playbook left: its exit code, everything that it printed, and how long it took."""

    rc: int
    output: str
    seconds: float

    @property
    def end(self) -> str:
        """The block that a person reads, from the verdict on."""
        found = re.search(
            r"^(?:(?:deployment|rollback) (?:\S+ )?of goexplorer|goexplorer) \(guards\)",
            self.output,
            re.MULTILINE,
        )
        if not found:
            return ""
        block = self.output[found.start() :]
        return re.split(r"\n(?: +failed on |PLAY RECAP|TASK \[|ok: \[|\[ERROR)", block)[0].rstrip()

    @property
    def next(self) -> list[str]:
        """The command that the run names for the return of the hosts that were lost."""
        for line in self.end.splitlines():
            if line.startswith("  next ") and " # when " in line:
                return shlex.split(line.removeprefix("  next "), comments=True)
        raise AssertionError(f"no command for the return of the lost host:\n{self.end}")

    @property
    def messages(self) -> list[str]:
        """The lines that say why a task failed."""
        found = re.findall(r"^ +failed on \S+: (.*(?:\n {12}.*)*)$", self.output, re.MULTILINE)
        return ["\n".join(line.strip() for line in message.splitlines()) for message in found]


class Host:
    """One host, looked at from outside."""

    def __init__(self, name: str, address: str, container: str) -> None:
        self.name, self.address, self.container = name, address, container

    def sh(self, script: str, check: bool = True) -> str:
        """What *script* prints, run by root inside; its failure is an error with what it said."""
        command = ["docker", "exec", self.container, "sh", "-c", script]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise AssertionError(
                f"{self.name}: {script!r} ended with {done.returncode}: {done.stderr}{done.stdout}"
            )
        return done.stdout.strip()

    def tree(self, *tops: str) -> dict[str, list]:
        """Every path below *tops* with mode, owner, size, time and content."""
        command = ["docker", "exec", "--interactive", self.container, "python3", "-", *(tops or WATCHED)]
        done = subprocess.run(command, input=TREE, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def get(
        self, path: str = "/healthz/", port: int = 80, seconds: float = 5
    ) -> tuple[int, Mapping[str, str], str]:
        """Status, headers and text of *path* through the web server; status 0 when nothing answers."""
        request = urllib.request.Request(
            f"http://{self.address}:{port}{path}", headers={"Host": host("guard1").address}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=seconds) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode(errors="replace")
        except OSError as error:
            return 0, {}, str(error)

    def version(self, port: int = 80) -> str:
        """The version that answers through the web server, or what came instead."""
        status, headers, text = self.get(port=port)
        return headers.get("X-Goexplorer-Version") or f"{status} {text[:200]}"

    def instances(self) -> set[str]:
        """The deployments whose processes run, from the processes' own environments."""
        found = self.sh(
            "for p in /proc/[0-9]*; do tr '\\0' '\\n' < $p/environ 2>/dev/null | sed -n 's/^RUNBOOK_DEPLOYMENT=//p'; done"
        )
        return set(found.split())

    def units(self) -> set[str]:
        """The application's units that are active or try to be."""
        listed = self.sh("systemctl list-units --plain --no-legend --all 'goexplorer-*@*.service'")
        return {line.split()[0] for line in listed.splitlines() if line.split()[2] != "inactive"}

    def records(self, root: str = ROOT) -> list[dict[str, Any]]:
        """The records, oldest first."""
        text = self.sh(f"for f in {root}/deployments/*.json; do [ -f $f ] && cat $f && echo; done; true")
        found, decoder = [], json.JSONDecoder()
        while text.strip():
            record, end = decoder.raw_decode(text.lstrip())
            found.append(record)
            text = text.lstrip()[end:]
        return found

    def rows(self, query: str, path: str = DATABASE) -> list[str]:
        """What sqlite3 answers, line by line."""
        return self.sh(f'sqlite3 {path} "{query}"').splitlines()

    def cut(self) -> None:
        """Take the network away; nothing inside is told."""
        self.sh("ip link set eth0 down")

    def heal(self) -> None:
        """Give the network back and wait until ssh answers."""
        self.sh("ip link set eth0 up")
        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((self.address, 22), timeout=1).close()
                return
            except OSError as error:
                if time.monotonic() > until:
                    raise AssertionError(f"{self.name} does not come back: {error}") from error
                time.sleep(0.1)

    @contextmanager
    def cut_when(self, condition: str, seen_on: Host | None = None) -> Iterator[None]:
        """Cut the network the moment that the shell's *condition* is true, and give it back at the end.

        It is watched from inside, so that nothing lies between what is seen and the cut; on another host, a file in
        the directory that both share tells this one.
        """
        mark = f"/data/.cut-{time.monotonic_ns()}"
        loop = "touch {mark}; while [ -e {mark} ]; do if {condition}; then {action}; exit 0; fi; sleep 0.02; done; exit 3"
        cut = "ip link set eth0 down"
        watchers = []
        if seen_on is None:
            watchers.append((self, loop.format(mark=mark, condition=condition, action=cut)))
        else:
            watchers.append((self, loop.format(mark=mark, condition=f"[ -e {mark}.seen ]", action=cut)))
            action = f"touch {mark}.seen"
            watchers.append((seen_on, loop.format(mark=mark, condition=condition, action=action)))
        running = [
            subprocess.Popen(["docker", "exec", watcher.container, "sh", "-c", script])
            for watcher, script in watchers
        ]
        try:
            yield
            assert running[0].poll() == 0, f"{self.name} was never cut: {condition} did not come true"
        finally:
            self.sh(f"rm -f {mark} {mark}.seen")
            for process in running:
                process.wait(10)
            self.heal()


def phase_runs(phase: str, root: str = ROOT) -> str:
    """A shell condition: the newest record says that *phase* has begun and not ended."""
    running = f'"phase":"{phase}","result":{{}},"seconds":null,"state":"running"'
    return f"cat $(ls {root}/deployments/*.json | tail -1) | tr -d ' \\n' | grep -qF '{running}'"


def hosts() -> dict[str, Host]:
    """The hosts of this scenario by name, from the inventory that was written when they were made."""
    listed = yaml.safe_load(HOSTS.read_text(encoding="utf-8"))["all"]["children"]["app"]["hosts"]
    return {
        name: Host(name, found["ansible_host"], found["test_container"]) for name, found in listed.items()
    }


def host(name: str) -> Host:
    """The host *name*."""
    return hosts()[name]


def kill_tree(process: subprocess.Popen) -> None:
    """Kill a process and all that it started, none of which is asked; Ansible's workers have sessions of their own."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in listed.splitlines():
        pid, parent = map(int, line.split())
        children.setdefault(parent, []).append(pid)
    found = [process.pid]
    for pid in found:
        found += children.get(pid, [])
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Site:
    """An inventory of the application in *directory*, and the command line of an operator.

    :param members: the hosts of group app.
    :param changes: variables that differ from application.yml; None leaves one out.
    """

    def __init__(
        self, directory: Path, members: tuple[str, ...] = ("guard1", "guard2"), **changes: Any
    ) -> None:
        self.directory = directory
        # Not inside: Ansible takes every file there for a part of the inventory.
        self.output = directory.with_name(f"{directory.name}.output")
        self.members = [host(name) for name in members]
        inventory = yaml.safe_load(HOSTS.read_text(encoding="utf-8"))
        listed = inventory["all"]["children"]["app"]["hosts"]
        inventory["all"]["children"]["app"]["hosts"] = {name: listed[name] for name in members}
        variables = yaml.safe_load((SCENARIO / "vars" / "application.yml").read_text(encoding="utf-8"))
        variables = {name: value for name, value in {**variables, **changes}.items() if value is not None}
        self.variables = copy.deepcopy(variables)
        (directory / "group_vars").mkdir(parents=True, exist_ok=True)
        (directory / "hosts.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")
        (directory / "group_vars" / "app.yml").write_text(yaml.safe_dump(variables), encoding="utf-8")

    def command(self, playbook: str, *words: str, **extra: Any) -> list[str]:
        """The words of the command line; *extra* are variables for ``-e``."""
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(self.directory)]
        command += [f"playbooks/{playbook}.yml", *words]
        for name, value in extra.items():
            command += ["-e", f"{name}={value}"]
        return command

    @staticmethod
    def environment() -> dict[str, str]:
        """What a login of the operator has; molecule's own settings are not part of it."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ANSIBLE_", "MOLECULE_"))
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        return {**kept, "PATH": path, "ANSIBLE_SSH_ARGS": SSH, "ANSIBLE_NOCOLOR": "1"}

    def start(self, command: list[str], **environment: str) -> subprocess.Popen:
        """Start a command line of the operator; its output goes to ``self.output``."""
        with self.output.open("wb") as output:
            return subprocess.Popen(
                command,
                cwd=PROJECT,
                env={**self.environment(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, command: list[str], **environment: str) -> Run:
        """Run a command line of the operator to its end."""
        begun = time.monotonic()
        running = self.start(command, **environment)
        try:
            code = running.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            kill_tree(running)
            code = running.wait()
        run = Run(
            code,
            self.output.read_text(encoding="utf-8", errors="replace"),
            round(time.monotonic() - begun, 1),
        )
        title = " ".join(word for word in command[1:] if word not in ("-i", str(self.directory)))
        print(f"\n[{run.seconds:5.1f} s, exit code {run.rc}] {title}\n{run.end}")
        if run.seconds >= RUN_SECONDS:
            raise AssertionError(f"{title} hung:\n{run.output[-3000:]}")
        return run

    def play(self, playbook: str, *words: str, **extra: Any) -> Run:
        """Run a playbook to its end."""
        return self.run(self.command(playbook, *words, **extra))

    def deploy(self, version: str, *words: str, **extra: Any) -> Run:
        """Run playbooks/deploy.yml for *version*."""
        return self.play("deploy", *words, version=version, **extra)

    def good(self, playbook: str, *words: str, **extra: Any) -> Run:
        """Run a playbook that has to succeed."""
        run = self.play(playbook, *words, **extra)
        assert run.rc == 0, run.output[-6000:]
        return run

    def trees(self, *tops: str) -> list[dict[str, list]]:
        """The tree of each host."""
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda member: member.tree(*tops), self.members))

    def answer(self) -> list[str]:
        """The version that each host answers with."""
        return [member.version() for member in self.members]

    def forget(self) -> None:
        """Put the hosts back to where setup left them; built environments stay, because they cost time only."""
        root = self.variables["app_root"]
        for member in self.members:
            member.sh(
                "systemctl stop 'goexplorer-*@*.service' goexplorer-old.service 2>/dev/null; systemctl reset-failed; "
                f"cd {root} 2>/dev/null && rm -rf current deployment.lock "
                "repository.git releases/* deployments/* backups/* scratch/* shared/env/* shared/static/* shared/media "
                "run/* run/.[a-z]* ; rm -rf /data/* ; true"
            )
