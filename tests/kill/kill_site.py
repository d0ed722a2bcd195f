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
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import killer
from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from played_site import PROJECT, WAIT_SECONDS, PlayedSite, Run, play

HERE = Path(__file__).parent
# Most of the files, which an upgrade with the same packages leaves as they are: copied anew only where they are not as they were.
KEPT = ("environments", "tools")
NEW_MIGRATION = "0004_adminnote"
SWITCH = "restart | Start the new instance, prove it, give it the traffic"
TAKE_OVER = ("-e", "deployment_take_over=true")


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


def fingerprint(top: Path) -> int:
    """What tells one state of a tree from another: names, kinds, sizes, times and the files' own numbers."""
    found = []
    for directory, _directories, names in os.walk(top):
        for path in (directory, *(os.path.join(directory, name) for name in names)):
            entry = os.lstat(path)
            found.append((path, entry.st_mode, entry.st_ino, entry.st_size, entry.st_mtime_ns))
    return hash(tuple(sorted(found)))


def remove(path: Path) -> None:
    """Remove a file or a tree, which may be read-only."""
    if path.is_dir() and not path.is_symlink():
        for directory in [path, *path.rglob("*")]:
            if directory.is_dir() and not directory.is_symlink():
                directory.chmod(directory.stat().st_mode | 0o700)
        shutil.rmtree(path)
    else:
        path.unlink()


def copy(path: Path, to: Path) -> None:
    """Copy a file or a tree as it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.copytree(path, to, symlinks=True)
    else:
        shutil.copy2(path, to, follow_symlinks=False)


def play_and_kill(directory: Path, version: str, **where: str) -> tuple[Run, list[Task]]:
    """Deploy *version* and kill the run there, in words of the callback kill_at; return it and the tasks that started."""
    log = directory / "tasks"
    log.unlink(missing_ok=True)
    run = play(
        directory,
        "deploy",
        *("-e", f"version={version}"),
        ANSIBLE_CALLBACK_PLUGINS=str(HERE / "callbacks"),
        ANSIBLE_CALLBACKS_ENABLED="kill_at",
        RUNBOOK_KILL_LOG=str(log),
        **where,
    )
    tasks = []
    for line in log.read_text(encoding="utf-8").splitlines():
        number, begun, name = line.split(" ", 2)
        tasks.append(Task(int(number), float(begun), name))
    return run, tasks


class Visitors:
    """One reads every 100 ms, one writes; what was acknowledged is noted."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.reads: list[Answer] = []
        self.acknowledged: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._write)]

    def _read(self) -> None:
        while not self._over.wait(0.1):
            self.reads.append(self.site.get())

    def _write(self) -> None:
        number = 0
        while not self._over.wait(0.1):
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


class Site(PlayedSite):
    """The application below *directory*, made from the repository of the demo."""

    def __init__(self, directory: Path, **changes: Any) -> None:
        """:param changes: variables that are not the demo's."""
        super().__init__(directory)
        self.commits = self._repository()
        (directory / "secret").write_text("a secret of the tests, long enough for anybody", encoding="utf-8")
        self.variables.update({"app_stay_up": 1, **changes})
        self._main: _processes.Process | None = None
        self._environment: dict[str, str] = {}
        self._kept: dict[str, int] = {}
        self.write()

    def _repository(self) -> dict[str, str]:
        script = PROJECT / "tests" / "applications" / "make_repository.py"
        made = subprocess.run(
            [sys.executable, str(script), "--json", str(self.directory / "goexplorer.git")],
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(made.stdout)

    def killed(self, at: int = 0, after: float = 0, whom: str = "controller") -> tuple[Run, list[Task]]:
        """Deploy v2.7 and kill the run at task *at*; return it and the tasks that started, the last is where it died."""
        words = {"RUNBOOK_KILL_AT": str(at), "RUNBOOK_KILL_AFTER": str(after), "RUNBOOK_KILL_WHOM": whom}
        return play_and_kill(self.directory, "v2.7", **words)

    @contextlib.contextmanager
    def killed_while(self, whom: str, *words: str) -> Iterator[None]:
        """Kill the run that goes on meanwhile when a process has all *words* in its command line."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.02):
                commands = {pid: _processes.command(pid) for pid in _processes.pids()}
                if any(all(word in text for word in words) for text in commands.values()):
                    mine = killer.parents()
                    (top,) = [
                        pid
                        for pid, text in commands.items()
                        if mine.get(pid) == os.getpid() and str(self.directory / "hosts.json") in text
                    ]
                    command = [sys.executable, "-S", killer.__file__, str(top), "0", whom]
                    subprocess.run(command, check=True)
                    return

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

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
        self._kept = {name: fingerprint(self.root / name) for name in KEPT}

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
        shutil.rmtree(self.directory / "reports", ignore_errors=True)
        prepared = self.directory / "prepared"
        whole = {name for name, known in self._kept.items() if fingerprint(self.root / name) == known}
        for path in self.root.iterdir():
            if path.name not in whole:
                remove(path)
        for path in prepared.iterdir():
            if path.name not in whole:
                copy(path, self.root / path.name)
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
