# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An application with Celery for tests: its workers and beats are real processes, and a gate asks them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _celery_gate as gate

PASSWORD = "p@ss/word-5521"

APP = """
import os, sys, time
from celery import Celery
print("the application prints what it likes")
app = Celery("shop", broker=os.environ["BROKER"])
app.conf.update(
    task_default_queue="shop", worker_hijack_root_logger=False, broker_connection_retry_on_startup=True,
    beat_schedule={"tick": {"task": "shop.quick", "schedule": 0.5}} if os.environ.get("TICKS") else {},
)

@app.task(name="shop.quick")
def quick():
    return 1

@app.task(name="shop.slow")
def slow(path, secret):
    limit = time.monotonic() + 120
    while not os.path.exists(path) and time.monotonic() < limit:
        time.sleep(0.05)
"""


class Shop:
    """An application directory with a broker, and what was started of it."""

    def __init__(self, directory: Path, server: Any, scheme: str) -> None:
        self.directory = directory
        self.redis = self.server = server
        self.scheme = scheme
        self.children: list[subprocess.Popen] = []
        (directory / "shop.py").write_text(APP)
        # A Python of its own: beats that other tests run with the same one are not of this application.
        self.python = directory / "bin" / "python"
        self.python.parent.mkdir()
        self.python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        self.python.chmod(0o755)
        (directory / "plain.py").write_text("app = 5\n")
        (directory / "broken.py").write_text("import os\nraise RuntimeError(os.environ['BROKER'])\n")
        (directory / "leaves.py").write_text("import sys\nsys.exit('no settings')\n")
        (directory / "slow.py").write_text("import time\ntime.sleep(60)\n")

    @property
    def broker(self) -> str:
        user, path = ("", "0") if self.scheme == "redis" else ("shop", "/")
        return f"{self.scheme}://{user}:p%40ss%2Fword-5521@{self.server.address}/{path}"

    @property
    def variables(self) -> dict[str, str]:
        return {"BROKER": self.broker, "C_FORCE_ROOT": "1"}

    def start(self, *words: str, **variables: str) -> subprocess.Popen:
        log = (self.directory / "celery.log").open("ab")
        child = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "shop", *words],
            cwd=self.directory,
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **self.variables, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        self.children.append(child)
        return child

    def worker(self, name: str, *words: str, **variables: str) -> subprocess.Popen:
        return self.start(
            *("worker", "-n", f"{name}@here", "-c", "1", "-P", "threads"),
            *("--without-gossip", "--without-mingle", *words),
            **variables,
        )

    def beat(self, **variables: str) -> subprocess.Popen:
        path = self.directory / f"schedule-{len(self.children)}"
        return self.start("beat", "-s", str(path), "--pidfile", f"{path}.pid", **variables)

    def kill(self, child: subprocess.Popen) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        self.children.remove(child)

    def close(self) -> None:
        for child in list(self.children):
            self.kill(child)

    def options(self, *checks: dict[str, Any], **more: Any) -> dict[str, Any]:
        found = {name: spec.get("default") for name, spec in gate.OPTIONS.items()}
        found.update(python=str(self.python), chdir=str(self.directory), app="shop", reply_timeout=0.8)
        return {**found, "environment": json.dumps(self.variables), "checks": list(checks), **more}

    def ask(self, *checks: dict[str, Any], left: float = 15.0, **more: Any) -> list[dict[str, Any]]:
        return gate.prober(self.options(*checks, **more), False)(left)

    def one(self, check: dict[str, Any], **more: Any) -> dict[str, Any]:
        return self.ask(check, **more)[0]

    def until(
        self, verdicts: str, *checks: dict[str, Any], words: str = "", **more: Any
    ) -> list[dict[str, Any]]:
        """Ask until the verdicts are those of the first letters in *verdicts*, and *words* are in a message.

        On a loaded machine a worker may be late once.
        """
        limit = time.monotonic() + 60
        while True:
            found = self.ask(*checks, **more)
            right = [item["verdict"][0] for item in found] == list(verdicts)
            if right and any(words in item["message"] for item in found):
                return found
            if time.monotonic() > limit:
                log = (self.directory / "celery.log").read_text(errors="replace")[-2000:]
                pytest.fail("\n".join([*(str(item) for item in found), log]))
            time.sleep(0.1)

    def wait(self, check: dict[str, Any]) -> None:
        self.until("p", check)
