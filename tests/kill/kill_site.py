# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host with the demo application, which serves v2.6; its visitors; and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from ansible_collections.runbook.deploy.plugins.module_utils import _processes

PROJECT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
# Far more than a run takes; one that hangs is a defect to be seen.
RUN_SECONDS = 900
WAIT_SECONDS = 60
NEW_MIGRATION = "0004_adminnote"


class Task(NamedTuple):
    """A line of the log of tasks: its number, when it started, and ``<role> | <task>``."""

    number: int
    at: float
    name: str


class Answer(NamedTuple):
    """What one request got; status 0 where no answer came."""

    at: float
    status: int
    version: str
    commit: str
    body: str


class Run(NamedTuple):
    """What a playbook left: the exit code, negative where it was killed, and all that it printed."""

    code: int
    output: str


class Visitors:
    """One reads every 50 ms, one writes; what was acknowledged is noted."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.reads: list[Answer] = []
        self.acknowledged: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._write)]

    def _read(self) -> None:
        while not self._over.wait(0.05):
            self.reads.append(self.site.get())

    def _write(self) -> None:
        number = 0
        while not self._over.wait(0.05):
            number += 1
            details = f"visitor {number}"
            if self.site.report(details):
                self.acknowledged.append(details)

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


class Site:
    """The application below *directory*, with an inventory like the demo's."""

    def __init__(self, directory: Path, **changes: Any) -> None:
        """:param changes: variables that are not the demo's."""
        self.directory = directory
        self.root = directory / "srv"
        self.database = self.root / "shared" / "data" / "goexplorer.sqlite3"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.commits = self._repository()
        (directory / "secret").write_text("a secret of the tests, long enough for anybody", encoding="utf-8")
        demo = PROJECT / "inventories" / "demo" / "group_vars" / "app.yml"
        variables = yaml.safe_load(demo.read_text(encoding="utf-8"))
        variables.update(
            demo_directory=str(directory),
            demo_port=self.port,
            app_stay_up=1,
            ansible_connection="local",
            ansible_python_interpreter=sys.executable,
        )
        variables.update(changes)
        self.variables = variables
        self._main: _processes.Process | None = None
        self._environment: dict[str, str] = {}
        self.write()

    def write(self, **changes: Any) -> None:
        """Write the inventory, as an operator who changes some of its variables."""
        variables = {**self.variables, **changes}
        inventory = {"app": {"hosts": {"demo": {}}, "vars": variables}}
        (self.directory / "hosts.json").write_text(json.dumps(inventory), encoding="utf-8")

    def _repository(self) -> dict[str, str]:
        script = PROJECT / "tests" / "applications" / "make_repository.py"
        made = subprocess.run(
            [sys.executable, str(script), "--json", str(self.directory / "goexplorer.git")],
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(made.stdout)

    def play(self, name: str, *words: str, **environment: str) -> Run:
        """Run a playbook as an operator does, in a session of its own."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "RUNBOOK_"))
        }
        bin_directory = Path(sys.executable).parent
        # A file, not a pipe: what outlives the run may keep it open.
        output = self.directory / "output"
        with output.open("wb") as stream:
            running = subprocess.Popen(
                [
                    str(bin_directory / "ansible-playbook"),
                    "-i",
                    str(self.directory / "hosts.json"),
                    f"playbooks/{name}.yml",
                    *words,
                ],
                cwd=PROJECT,
                env={
                    **kept,
                    "PATH": f"{bin_directory}{os.pathsep}{kept['PATH']}",
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

    def killed(self, at: int = 0, after: float = 0, whom: str = "controller") -> tuple[Run, list[Task]]:
        """Deploy v2.7 and kill the run at task *at*; return it and the tasks that started, the last is where it died."""
        log = self.directory / "tasks"
        log.unlink(missing_ok=True)
        run = self.play(
            "deploy",
            *("-e", "version=v2.7"),
            ANSIBLE_CALLBACK_PLUGINS=str(HERE / "callbacks"),
            ANSIBLE_CALLBACKS_ENABLED="kill_at",
            RUNBOOK_KILL_LOG=str(log),
            RUNBOOK_KILL_AT=str(at),
            RUNBOOK_KILL_AFTER=str(after),
            RUNBOOK_KILL_WHOM=whom,
        )
        tasks = []
        for line in log.read_text(encoding="utf-8").splitlines():
            number, begun, name = line.split(" ", 2)
            tasks.append(Task(int(number), float(begun), name))
        return run, tasks

    # --- what is asked over HTTP

    def _ask(self, method: str, path: str, body: str | None = None, host: str = "") -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=25)
        headers = {"Content-Type": "application/json"} if body else {}
        headers.update({"Host": host} if host else {})
        begun = time.monotonic()
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            commit = ""
            with contextlib.suppress(ValueError, AttributeError):
                commit = json.loads(text).get("commit") or ""
            return Answer(begun, answer.status, answer.headers.get("X-Goexplorer-Version", ""), commit, text)
        except (OSError, http.client.HTTPException) as error:
            return Answer(begun, 0, "", "", f"{type(error).__name__}: {error}")
        finally:
            connection.close()

    def get(self, host: str = "") -> Answer:
        """Ask the health page, as a visitor of the site named *host*."""
        return self._ask("GET", "/healthz/", host=host)

    def report(self, details: str) -> bool:
        """Write a row through the application; return whether it said that it is stored."""
        body = {"risk_type": "EXPIRING", "severity": "INFO", "details": details}
        return self._ask("POST", "/signals/report/", json.dumps(body)).status == 201

    # --- what lies on the host

    def processes(self) -> list[_processes.Process]:
        """The processes of the application, by their own environment."""
        return _processes.application_processes(self.root)

    def instances(self) -> set[str]:
        """The deployments whose services run."""
        return {entry.deployment for entry in self.processes() if entry.service}

    def tools(self) -> list[str]:
        """What runs below the root or for it and is no service: modules and their children."""
        services = {entry.pid for entry in self.processes() if entry.service}
        found = []
        for pid in _processes.pids():
            words = _processes.command(pid)
            mine = str(self.directory) in words or _processes.variables(pid).get("RUNBOOK_ROOT") == str(
                self.root
            )
            # A module is no more than an interpreter by its command line; it was started from the run's own.
            mine = mine or _processes.variables(pid).get("RUNBOOK_KILL_LOG") == str(self.directory / "tasks")
            if mine and pid not in services and pid != os.getpid() and words:
                found.append(f"{pid} {words[:200]}")
        return found

    def applied(self) -> set[str]:
        """The application's migrations in the database."""
        return set(self.rows("SELECT name FROM django_migrations WHERE app = 'owner_agreements'"))

    def rows(self, query: str) -> list[str]:
        """The first column of what SQLite answers."""
        with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as connection:
            return [row[0] for row in connection.execute(query)]

    def records(self) -> list[dict[str, Any]]:
        """The records of deployments, oldest first."""
        found = sorted((self.root / "deployments").glob("*.json"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in found]

    # --- where each kill point begins

    def prepare(self) -> None:
        """Serve v2.6, and keep all of it."""
        for name, words in (("setup", ()), ("deploy", ("-e", "version=v2.6"))):
            run = self.play(name, *words)
            assert run.code == 0, run.output[-6000:]
        assert self.get().version == "v2.6", self.get()
        (main,) = _processes.tree_roots([entry for entry in self.processes() if entry.service])
        self._main = main
        self._environment = dict(_processes.variables(main.pid))
        shutil.copytree(self.root, self.directory / "prepared", symlinks=True)

    def stop(self) -> None:
        """Kill what runs of the application, whoever started it."""
        until = time.monotonic() + WAIT_SECONDS
        while found := self.processes():
            for entry in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(entry.pid, signal.SIGKILL)
            assert time.monotonic() < until, found
            time.sleep(0.05)

    def reset(self) -> None:
        """Put everything back to where v2.6 had just been deployed, and start it with its own launcher."""
        self.stop()
        for path in [self.root, *self.root.rglob("*")]:
            if path.is_dir() and not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o700)
        shutil.rmtree(self.root)
        shutil.rmtree(self.directory / "reports", ignore_errors=True)
        shutil.copytree(self.directory / "prepared", self.root, symlinks=True)
        deployment = self._main.deployment
        launcher = self.root / "shared" / "env" / f"{deployment}.web.sh"
        log = self.root / "shared" / "log" / f"web.{deployment}.log"
        with log.open("ab") as stream:
            # Its parent ends at once, so that the service is nobody's child, as after a deployment.
            subprocess.run(
                ["setsid", "--fork", "/bin/sh", str(launcher)],
                cwd="/",
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                check=True,
            )
        self.wait(lambda: self.get().version == "v2.6", "v2.6 to answer")
        (main,) = _processes.tree_roots([entry for entry in self.processes() if entry.service])
        pid_file = self.root / "run" / f"web.{deployment}.pid"
        noted = json.loads(pid_file.read_text(encoding="utf-8"))
        pid_file.write_text(
            json.dumps({**noted, "pid": main.pid, "start_time": main.start_time}), encoding="utf-8"
        )

    @staticmethod
    def wait(condition: Any, what: str) -> None:
        """Wait until *condition* is true."""
        until = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < until, f"waited {WAIT_SECONDS} s for {what}"
            time.sleep(0.1)
