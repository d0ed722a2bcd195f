# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections, workers, signals: read from a real kernel."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _fleet, _process, _processes, _service
from ansible_collections.runbook.deploy.plugins.module_utils._instance import Instance, describe
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

ID = "20261121T013700-ab12"
WORKER = {
    "name": "job",
    "kind": "worker",
    "manager": "process",
    "bind": "none",
    "command": "",
    "stop_timeout": 1,
}


def member(root: Path, command: str, **spec: object) -> _service.Member:
    """Return a service with its files written."""
    layout = Layout(root)
    layout.run.mkdir(parents=True)
    layout.release("r1").mkdir(parents=True)
    document = describe(ID, {"name": "r1"}, [{**WORKER, "command": command, **spec}])
    instance = Instance(layout, ID, document, {"RUNBOOK_ROOT": str(root)})
    instance.write(None)
    return _service.Member(_service.Settings(layout), ID, instance.services[0], instance)


def test_connections_are_counted_until_they_are_closed(tmp_path: Path) -> None:
    """Waiting ones too: a server that is stopped now would lose them."""
    path = tmp_path / "s.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    assert _service.connections(path) == 0
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(str(path))
    assert _service.connections(path) == 1
    accepted = server.accept()[0]
    second = socket.socket(socket.AF_UNIX)
    second.connect(str(path))
    assert _service.connections(path) == 2
    waiting.close()
    accepted.close()
    second.close()
    server.accept()[0].close()
    assert _service.connections(path) == 0
    server.close()


def test_listening_host() -> None:
    """A service that binds one address is asked there."""
    with socket.socket() as server:
        server.bind(("127.0.0.9", 0))
        server.listen()
        assert _service.listening_host(server.getsockname()[1]) == "127.0.0.9"
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        assert _service.listening_host(server.getsockname()[1]) == "127.0.0.1"


def test_workers_are_children_of_the_same_program() -> None:
    """A helper of another program is none."""
    script = (
        "import os, subprocess, sys, time\n"
        "helper = subprocess.Popen(['sleep', '30'])\n"
        "pid = os.fork()\n"
        "if pid == 0: time.sleep(30)\n"
        "print(pid, helper.pid, flush=True)\n"
        "sys.stdin.read(); helper.kill(); os.kill(pid, 9)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    worker, helper = map(int, run.stdout.readline().split())
    deadline = time.monotonic() + 3
    while "sleep" not in _processes.command(helper).split(" ")[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(_service.workers(run.pid)) == {worker}
    run.communicate("")


def test_no_signal_for_another_process() -> None:
    """The PID is right, the start time is not."""
    run = subprocess.Popen(["sleep", "30"])
    try:
        started = _processes.start_time(run.pid)
        assert started is not None
        assert not _process.send(run.pid, started - 1, signal.SIGKILL)
        assert run.poll() is None
        assert _process.send(run.pid, started, signal.SIGKILL)
        assert run.wait(5) == -signal.SIGKILL
        assert not _process.send(run.pid, started, signal.SIGKILL)
    finally:
        run.kill()


def session(pid: int) -> int:
    """The session of a process; 0 for one that ended meanwhile."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def test_stop_leaves_no_child(tmp_path: Path) -> None:
    """Children that ignore TERM and one that left the session are ended with the service."""
    child = "trap '' TERM; while :; do sleep 1; done"
    job = member(tmp_path, f"sh -c \"({child}) & setsid sh -c '{child}' & wait\"")
    job.start()
    # The third process exists before it has left the session: both are waited for.
    deadline = time.monotonic() + 20
    sessions: dict[int, int] = {}
    while (len(sessions) < 3 or len(set(sessions.values())) < 2) and time.monotonic() < deadline:
        time.sleep(0.02)
        sessions = {entry.pid: session(entry.pid) for entry in _processes.application_processes(tmp_path)}
    assert len(set(sessions.values())) == 2
    begun = time.monotonic()
    assert job.stop()
    assert time.monotonic() - begun < 3.5
    assert _processes.application_processes(tmp_path) == []
    assert not job.unit.pid_file.exists()


def handles(pid: int) -> set[str]:
    """The files that a process holds open."""
    found = set()
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/{pid}/fd/{number}"))
    return found


def test_the_service_survives_its_starter(tmp_path: Path) -> None:
    """It leads a session of its own, and holds none of the starter's files."""
    job = member(tmp_path, "sleep 30")
    job.start()
    pid = job.status().pid
    assert pid is not None and os.getsid(pid) == pid != os.getsid(0)
    # Until it executes its program it holds what its starter held.
    deadline = time.monotonic() + 20
    while handles(pid) != {"/dev/null", str(job.unit.log)} and time.monotonic() < deadline:
        time.sleep(0.02)
    assert handles(pid) == {"/dev/null", str(job.unit.log)}
    job.stop()


def test_a_worker_that_ends_is_noticed(tmp_path: Path) -> None:
    """The exit code and the end of the log are told, the secret is not."""
    job = member(tmp_path, "sh -c 'echo the key is opensesame; exit 7'")
    job.secrets = ("opensesame",)
    job.start()
    try:
        for _round in range(100):
            job.gate([], 1)
            time.sleep(0.02)
    except Problem as problem:
        assert "ended with exit code 7" in problem.message
        assert problem.evidence == "the key is ********"
    else:
        raise AssertionError("it passed")


def test_a_log_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    """The application may write the directory of the logs; root must not be led elsewhere."""
    job = member(tmp_path / "root", "sleep 30")
    target = tmp_path / "target"
    target.write_text("precious")
    job.unit.log.parent.mkdir(parents=True, exist_ok=True)
    job.unit.log.symlink_to(target)
    try:
        job.start()
    except (Problem, OSError):
        pass
    else:
        raise AssertionError("it followed the link")
    assert target.read_text() == "precious"


def test_drain_waits_for_the_last_connection(tmp_path: Path) -> None:
    """It ends soon after the last one is closed, and at the deadline at the latest."""
    job = member(tmp_path, "sleep 30", kind="web", bind="socket")
    assert job.socket is not None
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(job.socket))
    server.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(job.socket))
    held = server.accept()[0]
    assert job.drain(0.2) == 1
    threading.Timer(0.3, held.close).start()
    begun = time.monotonic()
    assert job.drain(5) == 0
    assert 0.2 < time.monotonic() - begun < 2
    client.close()
    server.close()


def test_undo_goes_backwards_and_never_stops() -> None:
    """The last step first; a step that fails is told, and the others are done."""
    done = []
    undo = _fleet.Undo()

    def fail() -> None:
        raise OSError("no space")

    undo.add("first", lambda: done.append(1))
    undo.add("second", fail)
    dropped = undo.add("dropped", lambda: done.append(9))
    undo.add("third", lambda: done.append(3))
    undo.drop(dropped)
    assert undo.run() == ["second: no space"]
    assert done == [3, 1]


def test_a_death_is_seen_between_two_questions_to_the_manager(tmp_path: Path, monkeypatch) -> None:
    """The manager is asked seldom, the kernel often."""
    monkeypatch.setattr(_service, "ASK", 60.0)
    job = member(tmp_path, "sleep 0.5")
    job.start()
    begun = time.monotonic()
    with pytest.raises(Problem, match="does not stay up"):
        _service.stay_up([job], 20)
    assert time.monotonic() - begun < 5
    job.stop()


def test_the_manager_has_the_last_word(tmp_path: Path, monkeypatch) -> None:
    """A restart that it counted fails a service whose process is there all the time."""
    monkeypatch.setattr(_service, "ASK", 60.0)
    job = member(tmp_path, "sleep 30")
    job.start()
    asked: list[int] = []
    status = job.unit.status

    def counted() -> _process.Status:
        asked.append(1)
        return status()._replace(restarts=len(asked) - 1)

    monkeypatch.setattr(job.unit, "status", counted)
    try:
        with pytest.raises(Problem, match="does not stay up"):
            _service.stay_up([job], 0.7)
        assert len(asked) == 2
    finally:
        monkeypatch.undo()
        job.stop()
