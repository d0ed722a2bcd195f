# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A test host seen from outside: asked over HTTP, and inside it with programs that are not the collection's."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from runs import PROJECT, Run, run_playbook
from traffic import Answer, ask

HOSTS = PROJECT / "tests" / "containers" / "hosts.py"
REPOSITORIES = PROJECT / "build" / "repositories"
PROBE = Path(__file__).with_name("probe.py").read_text(encoding="utf-8")


class Machine:
    """One host of an inventory that tests/containers/hosts.py has written, with the application on it."""

    def __init__(
        self,
        name: str,
        inventories: tuple[Path, ...],
        application: str = "goexplorer",
        stage: str = "test",
        service: str = "web",
        workers: int = 2,
        health: str = "/healthz/",
    ) -> None:
        self.name = name
        self.health = health
        self.inventories = inventories
        document = yaml.safe_load(inventories[0].read_text(encoding="utf-8"))
        hosts: dict[str, Any] = {}
        for group in document["all"]["children"].values():
            hosts.update(group["hosts"])
        self.address: str = hosts[name]["ansible_host"]
        self.container: str = hosts[name]["test_container"]
        self.application = application
        self.user = application
        self.root = f"/srv/{application}"
        self.database_path = f"{self.root}/shared/data/{application}.sqlite3"
        self.unit = f"{application}-{stage}-{service}"
        self.service = service
        self.workers = workers

    # --- as an operator ---

    def playbook(self, name: str, *words: str, verbosity: int = 0) -> Run:
        """Run one of the collection's playbooks against the inventory."""
        return run_playbook(name, *words, inventories=self.inventories, verbosity=verbosity)

    def reboot(self) -> None:
        """Restart the host and wait until it is up; what starts at boot may take longer."""
        # The set of hosts that the inventory is of; see hosts.py.
        own_set = self.inventories[0].parent.name.partition("-")[2]
        done = subprocess.run(
            [sys.executable, str(HOSTS), "reboot", self.name],
            env={**os.environ, "RUNBOOK_HOSTS": own_set},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    # --- as a visitor ---

    def ask(self, path: str) -> Answer:
        """Ask for a page through the web server."""
        return ask(self.address, path)

    # --- as somebody on the host ---

    def run(self, *command: str, user: str = "root", text: str = "") -> str:
        """Run a command in the host and return its output; it has to succeed."""
        done = self.attempt(*command, user=user, text=text)
        assert done.returncode == 0, f"{command[:2]} as {user}: {done.stderr[-2000:]}"
        return done.stdout

    def attempt(self, *command: str, user: str = "root", text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in the host, which may fail."""
        return subprocess.run(
            ["docker", "exec", "--interactive", f"--user={user}", self.container, *command],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def probe(self, question: str, *words: str, user: str = "root", text: str = "") -> Any:
        """Ask one of the questions of probe.py inside the host."""
        return json.loads(self.run("python3", "-c", PROBE, question, *words, user=user, text=text))

    def database(self) -> dict[str, Any]:
        """What is in the application's database; read as its user, so that no file changes hands."""
        found = self.probe("database", self.database_path, user=self.user)
        found["signals"] = {int(number): details for number, details in found["signals"].items()}
        return found

    def tree(self, *, without: tuple[str, ...] = ()) -> dict[str, list]:
        """Everything below the application's directory and /etc, except what starts with one of `without`."""
        found = self.probe("tree", self.root, "/etc")
        return {path: about for path, about in found.items() if not path.startswith(without)}

    @contextlib.contextmanager
    def commands(self) -> Iterator[list[str]]:
        """Collect every command line of processes, the host's and the controller's; complete when the context ends."""
        seen: list[str] = []
        watch = ("-c", PROBE, "commands", "280")
        inside = ("docker", "exec", "--interactive", self.container, "python3")
        watches = [
            subprocess.Popen([*program, *watch], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for program in (inside, (sys.executable,))
        ]
        try:
            yield seen
        finally:
            for process in watches:
                output, _error = process.communicate("\n", timeout=300)
                seen += json.loads(output)

    # --- what serves ---

    def commit(self, tag: str) -> str:
        """The commit that a tag of the application's repository names."""
        repository = REPOSITORIES / f"{self.application}.git"
        command = ["git", "-C", str(repository), "rev-parse", "--verify", f"{tag}^{{commit}}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def release(self) -> str:
        """The name of the release that `current` leads to."""
        return self.run("readlink", f"{self.root}/current").strip().rpartition("/")[2]

    def wrong(self, tag: str) -> list[str]:
        """What contradicts that exactly one instance of the release of `tag` serves; nothing when it does."""
        commit = self.commit(tag)
        answers = [self.ask(self.health) for _number in range(6)]
        bad = [f"{self.health}: {answer.status} {answer.error}" for answer in answers if answer.status != 200]
        if bad:
            return bad[:1]
        health = json.loads(answers[0].body)
        wrong = [
            f"health says {name} {json.loads(answer.body)[name]!r}, expected {wanted!r}"
            for answer in answers
            for name, wanted in {
                **health,
                "commit": commit,
                "version": tag,
                "status": "ok",
                "database": "ok",
            }.items()
            if json.loads(answer.body)[name] != wanted
        ]
        pages = [self.ask("/").version, *(answer.version for answer in answers if answer.version)]
        wrong += [f"the page of {version!r}" for version in pages if version != tag]
        deployment, release = health["deployment"], health["release"]
        if not release.startswith(commit[:12]):
            wrong.append(f"release {release} is not of commit {commit[:12]}")
        return [
            *dict.fromkeys(wrong),
            *self._processes(deployment, release),
            *self._units(deployment),
            *self._links(deployment, release),
        ]

    def _processes(self, deployment: str, release: str) -> list[str]:
        found = self.probe("processes", self.user, user=self.user)
        wrong = [
            f"process {one['pid']} of deployment {one['deployment']!r}, release {one['release']!r}: {one['command']}"
            for one in found
            if (one["deployment"], one["release"]) != (deployment, release)
            or not one["directory"].startswith(f"{self.root}/releases/{release}")
        ]
        masters = [one["pid"] for one in found if one["parent"] == 1]
        workers = [one for one in found if one["parent"] in masters]
        if len(masters) != 1 or len(workers) != self.workers or len(found) != 1 + self.workers:
            wrong.append(f"{len(masters)} masters and {len(workers)} workers among {found}")
        return wrong

    def _units(self, deployment: str) -> list[str]:
        listed = self.run(
            *(
                "systemctl",
                "list-units",
                "--all",
                "--plain",
                "--no-legend",
                "--type=service",
                f"{self.unit}@*",
            )
        )
        units = [tuple(line.split()[:4]) for line in listed.splitlines()]
        wanted = [(f"{self.unit}@{deployment}.service", "loaded", "active", "running")]
        return [] if units == wanted else [f"units {units}, expected {wanted}"]

    def _links(self, deployment: str, release: str) -> list[str]:
        wrong = []
        if self.release() != release:
            wrong.append(f"current leads to {self.release()}, {release} answers")
        socket = self.run("readlink", f"{self.root}/run/{self.service}.sock").strip()
        if socket != f"{self.service}.{deployment}.sock":
            wrong.append(f"{self.service}.sock leads to {socket}, {deployment} answers")
        sockets = self.run("sh", "-c", f"cd {self.root}/run && find . -type s").split()
        if sockets != [f"./{socket}"]:
            wrong.append(f"sockets {sockets}")
        for left in ("deployment.lock", "scratch"):
            inside = self.attempt("ls", "-A", f"{self.root}/{left}").stdout.split()
            if inside:
                wrong.append(f"{left} holds {inside}")
        return wrong

    def wrong_soon(self, tag: str, seconds: float = 30) -> list[str]:
        """What is wrong when this time for starting is over; nothing as soon as nothing is."""
        return until_empty(lambda: self.wrong(tag), seconds)


def until_empty(question: Callable[[], list[str]], seconds: float) -> list[str]:
    """Ask again until the answer is empty or the time is over; return the last answer."""
    until = time.monotonic() + seconds
    while True:
        answer = question()
        if not answer or time.monotonic() > until:
            return answer
        time.sleep(0.2)
