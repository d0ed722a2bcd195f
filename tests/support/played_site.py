# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo application on this machine, with an inventory like the demo's and playbooks run as an operator runs them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

PROJECT = Path(__file__).resolve().parents[2]
# Far more than a run takes; one that hangs is a defect to be seen.
RUN_SECONDS = 900
WAIT_SECONDS = 60


class Run(NamedTuple):
    """What a playbook left: the exit code, negative where it was killed, and all that it printed."""

    code: int
    output: str


def play(directory: Path, name: str, *words: str, **environment: str) -> Run:
    """Run a playbook as an operator does, in a session of its own; the inventory is ``hosts.json`` of *directory*."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "RUNBOOK_"))}
    program = Path(sys.executable).with_name("ansible-playbook")
    # A file, not a pipe: what outlives the run may keep it open.
    output = directory / "output"
    with output.open("wb") as stream:
        running = subprocess.Popen(
            [str(program), "-i", str(directory / "hosts.json"), f"playbooks/{name}.yml", *words],
            cwd=PROJECT,
            env={
                **kept,
                "PATH": f"{program.parent}{os.pathsep}{kept['PATH']}",
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_LOCALHOST_WARNING": "0",
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = running.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            raise
    return Run(code, output.read_text(encoding="utf-8", errors="replace"))


class PlayedSite:
    """The application below *directory*: its inventory is ``hosts.json``, its repository ``goexplorer.git``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "srv"
        self.database = self.root / "shared" / "data" / "goexplorer.sqlite3"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        demo = PROJECT / "inventories" / "demo" / "group_vars" / "app.yml"
        self.variables: dict[str, Any] = yaml.safe_load(demo.read_text(encoding="utf-8"))
        for check in [*self.variables["app_health_checks"], *self.variables["app_smoke_tests"]]:
            # A busy machine is no reason to refuse a release.
            check.pop("max_seconds", None)
        self.variables.update(
            demo_directory=str(directory),
            demo_port=self.port,
            ansible_connection="local",
            ansible_python_interpreter=sys.executable,
        )

    def write(self, **changes: Any) -> None:
        """Write the inventory, as an operator who changes some of its variables."""
        inventory = {"app": {"hosts": {"demo": {}}, "vars": {**self.variables, **changes}}}
        (self.directory / "hosts.json").write_text(json.dumps(inventory), encoding="utf-8")

    def play(self, name: str, *words: str, **environment: str) -> Run:
        """Run a playbook as an operator does."""
        return play(self.directory, name, *words, **environment)

    def rows(self, query: str) -> list[str]:
        """The first column of what SQLite answers."""
        with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as connection:
            return [row[0] for row in connection.execute(query)]

    def applied(self) -> set[str]:
        """The application's migrations in the database."""
        return set(self.rows("SELECT name FROM django_migrations WHERE app = 'owner_agreements'"))

    def records(self) -> list[dict[str, Any]]:
        """The records of deployments, oldest first."""
        found = sorted((self.root / "deployments").glob("*.json"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in found]

    @staticmethod
    def wait(condition: Callable[[], Any], what: str) -> None:
        """Wait until *condition* is true."""
        until = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < until, f"waited {WAIT_SECONDS} s for {what}"
            time.sleep(0.1)
