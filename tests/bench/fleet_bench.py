# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare a deployment to one, two and four hosts with the shell script, which does one host after the other.

    fleet_bench.py [--rounds=5] [--patience=60] [--hosts=1,2,4] [--keep]

As bench.py, whose script and application these are: the same new commit to the same hosts, through ssh, in turn. The
collection deploys to the first host, and when that has passed its gates to all others at once, as it does by default;
the application's database is one file that all hosts share. By hand each host is a session of its own, with a
database of its own. Prints medians, spreads and ratios and the module executions on the host that had most of them;
enters all into build/bench.json. There is no target. The time for which a release must stay up is taken off, as in
bench.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from typing import Any

import bench
import yaml
from bench import BASE, LOGS, PROJECT, RESULT, hosts, supplies
from figures import enter, row_of, table

HOSTS = ("bench1", "bench2", "bench3", "bench4")
SHARED = "/data"
VARIABLES = PROJECT / "tests" / "bench" / "fleet.yml"
EXECUTIONS = LOGS / "executions"


class FleetBench(bench.Bench):
    """The two ways to deploy, on the first *number* hosts."""

    def __init__(self, number: int, patience: float) -> None:
        self.names = HOSTS[:number]
        self.single = [bench.Bench(hosts.address_of(name), patience) for name in self.names]
        super().__init__(self.single[0].address, patience)
        self.environment |= {
            "ANSIBLE_CALLBACK_PLUGINS": str(PROJECT / "tests" / "callbacks"),
            "ANSIBLE_CALLBACKS_ENABLED": "executions",
            "RUNBOOK_EXECUTIONS": str(EXECUTIONS),
        }
        document = yaml.safe_load(hosts.INVENTORY.read_text(encoding="utf-8"))
        members = document["all"]["children"]["app"]["hosts"]
        document["all"]["children"]["app"]["hosts"] = {name: members[name] for name in self.names}
        self.inventory = LOGS / f"fleet-{number}.yml"
        self.inventory.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")

    def script(self, name: str, *arguments: str) -> float:
        """Run the script on one host after the other; return the seconds of all."""
        words = {"prepare": lambda host: (*arguments, host.address)}.get(
            arguments[0], lambda _host: arguments
        )
        seconds = []
        for host in self.single:
            seconds.append(host.script(name, *words(host)))
            self.disturbed += host.disturbed
            host.disturbed.clear()
        return sum(seconds)

    def playbook(self, name: str, book: str, *arguments: str) -> float:
        """Run a playbook on all hosts."""
        sources = ["-i", str(self.inventory), "-i", str(bench.INVENTORY), "-e", f"@{VARIABLES}"]
        EXECUTIONS.unlink(missing_ok=True)
        return self.run(name, ["ansible-playbook", *sources, f"playbooks/{book}.yml", *arguments])

    def executions(self) -> int:
        """Return the module executions of the last playbook on the host that had most."""
        return max(Counter(line.split()[0] for line in EXECUTIONS.read_text().splitlines()).values())

    def require_all(self, who: str, version: str) -> None:
        """See from outside that every host serves *version*."""
        for host in self.single:
            host.require(who, version)

    def proofs(self, wanted: float) -> float:
        """Return how long the newest deployment waited for what had to stay up: the longest of each batch."""
        found = []
        for name in self.names:
            text = hosts.docker(
                "exec",
                hosts.container(name),
                "sh",
                "-c",
                "cat $(ls /srv/goexplorer/deployments/*-????.json | tail -1)",
                check=True,
            )
            restart = next(
                phase for phase in json.loads(text.stdout)["phases"] if phase["phase"] == "restart"
            )
            found.append(min(float(restart["result"]["proof_seconds"]), wanted))
        # app_batch is [1, "100%"] by default.
        return found[0] + max(found[1:], default=0.0)

    def prepare(self) -> None:
        """Bring all hosts to where every round begins and ends."""
        fresh = [host for host, name in zip(self.single, self.names) if not self.prepared(name)]
        every, self.single = self.single, fresh
        if fresh:
            self.script("prepare", "prepare", f"/repositories/{bench.REPOSITORY.name}")
            self.script("first", "deploy", BASE)
        self.single = every
        self.playbook("setup", "setup")
        self.on_host("chown", "goexplorer:goexplorer", SHARED)
        self.playbook("first", "deploy", "-e", f"version={BASE}")
        for who in bench.PORTS:
            self.require_all(who, BASE)

    @staticmethod
    def prepared(name: str) -> bool:
        """Return whether the script has prepared a host."""
        return hosts.docker("exec", hosts.container(name), "test", "-e", "/srv/runbook").returncode == 0

    def by_script(self, tag: str) -> dict[str, float]:
        """Deploy *tag* and roll back by the script."""
        times = {"script": self.script("deployment", "deploy", tag)}
        self.require_all("script", tag)
        times["script_rollback"] = self.script("rollback", "rollback")
        self.require_all("script", BASE)
        return times

    def by_collection(self, tag: str) -> dict[str, float]:
        """Deploy *tag* and roll back by the collection."""
        whole = self.playbook("deployment", "deploy", "-e", f"version={tag}")
        times = {"executions": float(self.executions())}
        self.require_all("collection", tag)
        times["deployment"] = whole - self.proofs(float(self.configured("app_stay_up", "5")))
        whole = self.playbook("rollback", "rollback")
        times["rollback_executions"] = float(self.executions())
        self.require_all("collection", BASE)
        # The role's default for rollback_stay_up; a rollback does all hosts at once where no balancer is to be told.
        times["rollback"] = whole - self.proof(1.0)
        return times


def measure(number: int, first: int, rounds: int, patience: float) -> list[dict[str, float]]:
    """Return the times of *rounds* rounds on so many hosts, the warm-up left out; *first* is the number of the first commit."""
    fleet = FleetBench(number, patience)
    fleet.prepare()
    found = []
    for count in range(rounds + 1):
        fleet.disturbed.clear()
        times = fleet.round(first + count)
        shown = ", ".join(f"{name} {value:.2f}" for name, value in times.items())
        others = f"others used up to {max(fleet.disturbed):.0%}"
        print(f"{number} hosts, {f'round {count}' if count else 'warm-up'} ({others}): {shown}", flush=True)
        if count:
            found.append(times)
    return found


def rows_of(number: int, rounds: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Return the rows of so many hosts."""
    times = {name: [entry[name] for entry in rounds] for name in rounds[0]}
    rows = []
    for name, floor, executions in (
        ("deployment", "script", "executions"),
        ("rollback", "script_rollback", "rollback_executions"),
    ):
        row = row_of(f"fleet_{number}_{name}", times[name], times[floor])
        rows.append({**row, "executions": round(statistics.median(times[executions]))})
    return rows


def main() -> int:
    """Measure, print, write; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument(
        "--patience", type=float, default=60, help="seconds to wait for a quiet machine, each time"
    )
    parser.add_argument("--hosts", default="1,2,4", help="numbers of hosts, at most four")
    parser.add_argument("--keep", action="store_true", help="leave the hosts running")
    arguments = parser.parse_args()
    numbers = [int(word) for word in arguments.hosts.split(",")]
    if not all(0 < number <= len(HOSTS) for number in numbers) or arguments.rounds < 1:
        parser.error(
            f"--hosts is {arguments.hosts}, expected numbers of 1 to {len(HOSTS)}, and at least one round"
        )
    LOGS.mkdir(parents=True, exist_ok=True)
    supplies.prepare()
    bench.make_repository()
    hosts.up({"app": list(HOSTS[: max(numbers)])}, shared=SHARED)
    rows: list[dict[str, Any]] = []
    rounds: dict[int, list[dict[str, float]]] = {}
    try:
        for position, number in enumerate(numbers):
            # Commits of earlier numbers of hosts would not be new to these.
            rounds[number] = measure(
                number, position * (arguments.rounds + 1), arguments.rounds, arguments.patience
            )
            rows += rows_of(number, rounds[number])
    finally:
        if not arguments.keep:
            hosts.down(quiet=True)
    (LOGS / "fleet.json").write_text(json.dumps(rounds, indent=1) + "\n")
    enter(RESULT, rows)
    print(f"\nmedians of {arguments.rounds} rounds in seconds, connecting included\n{table(rows)}")
    for row in rows:
        print(f"{row['name']}: {row['executions']} module executions on the host that had most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
