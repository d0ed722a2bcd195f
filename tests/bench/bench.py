# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare a deployment by this collection with a shell script that does the runbook's own commands.

    bench.py [--rounds=5] [--patience=60] [--keep]

Both deploy the same new commit of the same application to the same host, through ssh, in turn: one round is the
script's deployment and rollback, and the collection's deployment, deployment with no change, and rollback. Every round
has a commit of its own, so that everything is new to both, and dependencies that did not change. The first round is a
warm-up and does not count. What is timed is the whole command line, connecting included.

Prints medians, spreads and ratios; writes build/bench.json and, with every single time, build/bench/rounds.json. Exit
code 1 when a target is missed. The controller's processor time says what a change is worth where the
machine is not quiet. Measure on a quiet machine: each command waits for one second of quiet, at most for the
patience given, and what others used of the processors at its begin is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
# Hosts of the benchmark's own: a molecule run in the same checkout keeps its hosts.
os.environ["RUNBOOK_HOSTS"] = "bench"
sys.path.insert(0, str(PROJECT / "tests" / "containers"))

import hosts
import supplies
from figures import busy, enter, missed, rows_of, table

HOST = "bench1"
RESULT = PROJECT / "build" / "bench.json"
LOGS = PROJECT / "build" / "bench"
REPOSITORY = supplies.REPOSITORIES / "bench.git"
INVENTORY = PROJECT / "tests" / "bench" / "inventory"
SCRIPT = PROJECT / "tests" / "bench" / "runbook.sh"
# What both go back to, and what the new commits are made from.
BASE, NEXT = "v2.7", "v2.8"
PORTS = {"collection": 80, "script": 8080}
MEASURED = ("deployment", "no_change", "rollback")
COMMAND_SECONDS = 300
# Share of the processors that others may use when a measurement begins.
QUIET = 0.1


def git(*arguments: str, **options: Any) -> str:
    """Return what git prints in the benchmark's repository."""
    identity = {f"GIT_{who}_{what}": "bench" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", "-C", str(REPOSITORY), *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **identity, **options.pop("environment", {})},
        **options,
    )
    return done.stdout.strip()


def make_repository() -> None:
    """Copy the application's repository to one that may be committed to."""
    shutil.rmtree(REPOSITORY, ignore_errors=True)
    source = supplies.REPOSITORIES / "goexplorer.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", str(source), str(REPOSITORY)], check=True)


def commit_next(number: int) -> str:
    """Commit a version that exists nowhere yet, with a static file that changed; return its tag."""
    tag = f"next-{number}"
    index = {"GIT_INDEX_FILE": str(REPOSITORY / "bench.index")}
    git("read-tree", NEXT, environment=index)
    path = "owner_agreements/static/owner_agreements/site.css"
    contents = {"VERSION": f"{tag}\n", path: git("show", f"{NEXT}:{path}") + f"\n/* {tag} */\n"}
    for name, content in contents.items():
        blob = git("hash-object", "-w", "--stdin", input=content)
        git("update-index", "--cacheinfo", f"100644,{blob},{name}", environment=index)
    tree = git("write-tree", environment=index)
    commit = git("commit-tree", tree, "-p", f"{BASE}^{{commit}}", "-m", tag)
    git("tag", tag, commit)
    return tag


def forget_connections() -> None:
    """Close ssh's shared connections: nobody starts with a connection that a measurement before has opened."""
    hosts.close_connections()
    hosts.CONTROL.mkdir(mode=0o700)


def spent() -> float:
    """Return the processor's seconds of all commands that ended, and of what they started on this machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Bench:
    """The two ways to deploy, on one host at *address*."""

    def __init__(self, address: str, patience: float) -> None:
        self.address = address
        self.patience = patience
        self.disturbed: list[float] = []
        self.processor: dict[str, float] = {}
        self.ssh = [
            *("ssh", "-F", "none", "-i", str(hosts.KEY), "-o", f"UserKnownHostsFile={hosts.KNOWN_HOSTS}"),
            *("-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"),
            f"{hosts.USER}@{address}",
        ]
        # As in an operator's terminal: where Python may not keep bytecode, each start compiles what it imports.
        foreign = ("ANSIBLE_", "PYTHON")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
        }

    def wait_for_quiet(self) -> None:
        """Wait until others leave the machine alone, or the patience is over."""
        until = time.monotonic() + self.patience
        while True:
            share = busy()
            if share <= QUIET or time.monotonic() > until:
                self.disturbed.append(share)
                return

    def run(self, name: str, command: Sequence[str], stdin: Path | None = None) -> float:
        """Run *command* with its output in a log, and return its seconds.

        :raises SystemExit: when it fails; a time of something that failed means nothing.
        """
        forget_connections()
        self.wait_for_quiet()
        log = LOGS / f"{name}.log"
        source = (stdin or Path(os.devnull)).open("rb")
        with source, log.open("wb") as output:
            begun = time.monotonic()
            done = subprocess.run(
                command,
                cwd=PROJECT,
                env=self.environment,
                stdin=source,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=COMMAND_SECONDS,
                check=False,
            )
            seconds = time.monotonic() - begun
        if done.returncode:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
            raise SystemExit(f"bench: {name} ended with exit code {done.returncode}; {log} ends with\n{tail}")
        return seconds

    def script(self, name: str, *arguments: str) -> float:
        """Run the script on the host, in one ssh session."""
        return self.run(f"script_{name}", [*self.ssh, "sudo", "sh", "-s", "--", *arguments], SCRIPT)

    def playbook(self, name: str, book: str, *arguments: str) -> float:
        """Run a playbook as an operator would."""
        sources = ["-i", str(hosts.INVENTORY), "-i", str(INVENTORY)]
        used = spent()
        seconds = self.run(name, ["ansible-playbook", *sources, f"playbooks/{book}.yml", *arguments])
        self.processor[name] = spent() - used
        return seconds

    def on_host(self, *command: str) -> str:
        """Return what *command* prints on the host, asked past ssh and past everything that is measured."""
        return hosts.docker("exec", hosts.container(HOST), *command, check=True).stdout.strip()

    def require(self, who: str, version: str) -> None:
        """See from outside that *version* serves.

        :raises SystemExit: when it does not.
        """
        url = f"http://{self.address}:{PORTS[who]}/healthz/"
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own address
            found = answer.headers["X-Goexplorer-Version"]
        if found != version:
            raise SystemExit(f"bench: {url} is answered by version {found}, expected {version}")

    def records(self) -> list[str]:
        """Return the names of the records on the host, oldest first."""
        return self.on_host("ls", "/srv/goexplorer/deployments").split()

    def proof(self, wanted: float) -> float:
        """Return how long the newest record watched that what it started stays up: at most the *wanted* seconds."""
        record = json.loads(self.on_host("cat", f"/srv/goexplorer/deployments/{self.records()[-1]}"))
        restart = next(phase for phase in record["phases"] if phase["phase"] == "restart")
        watched = float(restart["result"]["proof_seconds"])
        return min(watched, wanted)

    @staticmethod
    def configured(name: str, default: str) -> str:
        """Return the value of *name* in the benchmark's inventory, or *default*, which is the contract's."""
        for line in (INVENTORY / "group_vars" / "app.yml").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return line.split(":", 1)[1].strip()
        return default

    def prepare(self) -> None:
        """Bring both to where every round begins and ends."""
        self.script("prepare", "prepare", f"/repositories/{REPOSITORY.name}", self.address)
        self.script("first", "deploy", BASE)
        self.playbook("setup", "setup")
        self.playbook("first", "deploy", "-e", f"version={BASE}")
        for who in PORTS:
            self.require(who, BASE)

    def by_script(self, tag: str) -> dict[str, float]:
        """Deploy *tag* and roll back by the script."""
        times = {"script_deployment": self.script("deployment", "deploy", tag)}
        self.require("script", tag)
        times["script_rollback"] = self.script("rollback", "rollback")
        self.require("script", BASE)
        return times

    def by_collection(self, tag: str) -> dict[str, float]:
        """Deploy *tag*, deploy it again, and roll back by the collection."""
        times = {"deployment": self.playbook("deployment", "deploy", "-e", f"version={tag}")}
        self.require("collection", tag)
        times["stay_up"] = self.proof(float(self.configured("app_stay_up", "5")))
        before = self.records()
        times["no_change"] = self.playbook("no_change", "deploy", "-e", f"version={tag}")
        self.require("collection", tag)
        if self.records() != before:
            raise SystemExit("bench: a deployment with no change has written a record: it did something")
        times["rollback"] = self.playbook("rollback", "rollback")
        # The role's default for rollback_stay_up.
        times["rollback_stay_up"] = self.proof(1.0)
        self.require("collection", BASE)
        times.update({f"{name}_processor": self.processor[name] for name in MEASURED})
        return times

    def round(self, number: int) -> dict[str, float]:
        """Measure everything once; who begins takes turns."""
        tag = commit_next(number)
        ways: list[Callable[[str], dict[str, float]]] = [self.by_script, self.by_collection]
        times: dict[str, float] = {}
        for way in ways if number % 2 else reversed(ways):
            times.update(way(tag))
        return times


def measure(rounds: int, patience: float) -> list[dict[str, float]]:
    """Return the times of *rounds* rounds, the warm-up left out."""
    bench = Bench(hosts.address_of(HOST), patience)
    bench.prepare()
    found = []
    for number in range(rounds + 1):
        bench.disturbed.clear()
        times = bench.round(number)
        shown = ", ".join(f"{name} {seconds:.2f}" for name, seconds in times.items())
        others = f"others used up to {max(bench.disturbed):.0%}"
        print(f"{f'round {number}' if number else 'warm-up'} ({others}): {shown}", flush=True)
        if number:
            found.append(times)
    return found


def main() -> int:
    """Measure, print, write; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, at least 5")
    parser.add_argument(
        "--patience", type=float, default=60, help="seconds to wait for a quiet machine, each time"
    )
    parser.add_argument("--keep", action="store_true", help="leave the host running")
    arguments = parser.parse_args()
    if arguments.rounds < 5:
        parser.error(f"--rounds is {arguments.rounds}, expected at least 5: medians of fewer say little")
    LOGS.mkdir(parents=True, exist_ok=True)
    supplies.prepare()
    make_repository()
    hosts.up({"app": [HOST]})
    try:
        rounds = measure(arguments.rounds, arguments.patience)
    finally:
        if not arguments.keep:
            hosts.down(quiet=True)
    rows = rows_of(rounds)
    (LOGS / "rounds.json").write_text(json.dumps(rounds, indent=1) + "\n")
    enter(RESULT, rows)
    print(f"\nmedians of {len(rounds)} rounds in seconds, connecting included\n{table(rows)}")
    for name in MEASURED:
        used = statistics.median(entry[f"{name}_processor"] for entry in rounds)
        print(f"{name}: {used:.2f} s of the controller's processor")
    failures = missed(rows)
    print("\n".join(failures) if failures else "All targets are reached.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
