# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host whose application is Celery workers and a beat with a real Redis; each task notes in a database that it ran."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout

PASSWORD = "p@ss-word-5521"
# On a busy machine everything may take long; nothing is asserted of how long.
PATIENCE = 90.0
ONE, TWO, THREE = "20261121T010000-aaaa", "20261121T020000-bbbb", "20261121T030000-cccc"
R1, R2, R3 = "111111111111-11111111", "222222222222-22222222", "333333333333-33333333"

APP = '''
import os, sqlite3, sys, time
from celery import Celery

fault = open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "fault")).read()
app = Celery("shop", broker=os.environ["BROKER"] if fault != "elsewhere" else "redis://127.0.0.1:9/0")
app.conf.update(
    task_default_queue="shop",
    broker_connection_retry_on_startup=True,
    task_ignore_result=True,
    task_acks_late="late" in os.environ.get("WAY", ""),
    broker_transport_options={"visibility_timeout": 1} if "visible" in os.environ.get("WAY", "") else {},
    beat_schedule={"tick": {"task": "shop.note", "schedule": 0.5, "args": ["tick", 0]}},
    beat_max_loop_interval=0.5,
)

def write(key, what):
    with sqlite3.connect(os.environ["NOTES"], timeout=120) as notes:
        notes.execute("INSERT INTO notes VALUES (?, ?, ?, ?)", (key, what, os.environ.get("RUNBOOK_RELEASE"), time.time()))

@app.task(name="shop.note")
def note(key, seconds):
    time.sleep(seconds)
    write(key, "done")

@app.task(name="shop.hold")
def hold(key, path):
    """Runs until there is a file."""
    write(key, "begun")
    while not os.path.exists(path):
        time.sleep(0.05)
    write(key, "done")
'''


class Shop:
    """Such a host, and the modules run on it."""

    def __init__(self, root: Path, broker: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.layout = Layout(root)
        self.capsys = capsys
        self.broker = broker
        self.notes = root / "notes.sqlite"
        self.variables = {"BROKER": broker, "NOTES": str(self.notes), "C_FORCE_ROOT": "1"}
        self.services = [self.worker()]
        for directory in (self.layout.releases, self.layout.run, self.layout.shared):
            directory.mkdir(parents=True)
        with sqlite3.connect(self.notes) as notes:
            notes.execute("PRAGMA journal_mode=wal")
            notes.execute("CREATE TABLE notes (key TEXT, what TEXT, release TEXT, at REAL)")

    @staticmethod
    def worker(name: str = "worker", options: str = "-c 2", **changes: Any) -> dict[str, Any]:
        """Return the definition of a worker."""
        command = f"{sys.executable} -m celery -A shop worker -n {name}@%h --without-gossip --without-mingle {options}"
        return {
            "name": name,
            "kind": "worker",
            "manager": "process",
            "command": command,
            "stop_timeout": 60,
        } | changes

    @staticmethod
    def beat(name: str = "beat") -> dict[str, Any]:
        """Return the definition of a beat."""
        command = f"{sys.executable} -m celery -A shop beat -s {{root}}/run/schedule --pidfile= "
        return {"name": name, "kind": "beat", "manager": "process", "command": command, "stop_timeout": 30}

    def release(self, name: str, fault: str = "") -> str:
        """Make a release with *fault*."""
        path = self.layout.release(name)
        path.mkdir()
        (path / "shop.py").write_text(APP)
        (path / "fault").write_text(fault)
        (path / ".release.json").write_text(json.dumps({"name": name, "commit": "c" * 40, "version": name}))
        return name

    def options(self, deployment: str, release: str, **changes: Any) -> dict[str, Any]:
        """Return the options of a deployment."""
        return {
            "state": "deployed",
            "root": str(self.root),
            "name": "shop",
            "stage": "test",
            "deployment": deployment,
            "release": release,
            "services": self.services,
            "environment": json.dumps(self.variables),
            "start_timeout": 60,
            "stay_up": 0.3,
            "drain_timeout": 60,
        } | changes

    def run(self, module: Any, check: bool = False, **options: Any) -> dict[str, Any]:
        """Run *module* and return its answer."""
        with patch_module_args(options | {"_ansible_check_mode": check}), pytest.raises(SystemExit):
            module.main()
        return json.loads(self.capsys.readouterr().out)

    def running(self) -> set[tuple[str, str]]:
        """Return (service, deployment) of what really runs."""
        found = _processes.application_processes(self.root)
        return {(entry.service, entry.deployment) for entry in found if entry.service}

    def main_pid(self, service: str, deployment: str) -> int:
        """Return the main process of a service."""
        return json.loads(self.layout.pid_file(service, deployment).read_text())["pid"]

    def send(self, *tasks: tuple[Any, ...]) -> None:
        """Submit tasks: name and arguments."""
        from celery import Celery

        with Celery("client", broker=self.broker, set_as_current=False) as app:
            app.conf.task_default_queue = "shop"
            for name, *given in tasks:
                app.send_task(name, given)

    def noted(self, what: str = "done") -> list[tuple[str, str]]:
        """Return (key, release) of the notes, in the order they were made."""
        with contextlib.closing(sqlite3.connect(self.notes, timeout=120)) as notes:
            return notes.execute(
                "SELECT key, release FROM notes WHERE what = ? AND key != 'tick' ORDER BY rowid", (what,)
            ).fetchall()

    def ticks(self) -> int:
        """Return how many tasks of the beat ran."""
        with contextlib.closing(sqlite3.connect(self.notes, timeout=120)) as notes:
            return notes.execute("SELECT count(*) FROM notes WHERE key = 'tick'").fetchone()[0]

    def log(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in self.layout.logs.glob("*.log"))

    def until(self, condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
        """Wait for *condition*, which is called *what*, for at most *patience* seconds."""
        limit = time.monotonic() + patience
        while True:
            found = condition()
            if found:
                return found
            if time.monotonic() > limit:
                pytest.fail(f"{what} did not come about\n{self.log()}")
            time.sleep(0.05)

    def close(self) -> None:
        """End every process."""
        for entry in _processes.application_processes(self.root):
            with contextlib.suppress(ProcessLookupError):
                os.kill(entry.pid, signal.SIGKILL)
