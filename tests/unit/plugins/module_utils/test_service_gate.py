# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gate of services with real processes: what each fault is taken for, and that nothing is believed that cannot be seen."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils import _proc_tree as proc_tree
from ansible_collections.runbook.deploy.plugins.module_utils import _service_gate as gate
from ansible_collections.runbook.deploy.plugins.module_utils import _service_target as target
from ansible_collections.runbook.deploy.plugins.module_utils._instance import Instance, describe
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._process import ProcessUnit
from ansible_collections.runbook.deploy.plugins.module_utils._service_spec import (
    Sample,
    judge,
    parse_check,
)
from ansible_collections.runbook.deploy.plugins.modules import service_gate
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.deployed_host import (
    D1,
    R1,
    R2,
    deployed_host,
    wait_for,
)

# A master with two workers: argv[1] is JSON with what goes wrong.
SERVICE = r"""
import json, os, signal, socket, subprocess, sys, threading, time
wanted = json.loads(sys.argv[1])
print("the service begins", flush=True)
listener = None
if wanted.get("port"):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", wanted["port"]))
    listener.listen(8)
elif wanted.get("socket"):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(wanted["socket"])
    os.chmod(wanted["socket"], 0o666)
    listener.listen(8)
if wanted.get("accepts"):
    taken = []
    def accept():
        while True:
            taken.append(listener.accept())
    threading.Thread(target=accept, daemon=True).start()
ballast = bytearray(os.urandom(1024) * 1024 * wanted.get("megabytes", 0))
files = [open("/dev/null") for _number in range(wanted.get("files", 0))]
for _number in range(wanted.get("threads", 0)):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
def worker():
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if wanted.get("burns"):
        while True:
            pass
    time.sleep(wanted.get("lives", 60))
    print("Traceback (most recent call last):\n  File \"app.py\", line 1, in <module>\nValueError: no token hunter2-secret", flush=True)
    os._exit(1)
workers = {worker() for _number in range(wanted.get("workers", 2))}
if wanted.get("helper"):
    def helper():
        while True:
            subprocess.run(["/bin/true"])
            time.sleep(0.3)
    threading.Thread(target=helper, daemon=True).start()
end = time.monotonic() + wanted.get("ends", 60)
while time.monotonic() < end:
    if workers and wanted.get("replaces", True):
        try:
            pid, _status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pid = 0
        if pid in workers:
            workers.discard(pid)
            if not wanted.get("gives_up"):
                workers.add(worker())
    time.sleep(0.02)
print("the service ends", flush=True)
"""


class Running:
    """A service of its own process, with its PID file and its log."""

    def __init__(self, directory: Path, **wanted: Any) -> None:
        self.directory = directory
        self.wanted = wanted
        self.pid_file = directory / "app.pid"
        self.log = directory / "app.log"
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Running:
        own = {
            key: self.wanted.pop(key) for key in ("variables", "cwd", "argv", "user") if key in self.wanted
        }
        argv = own.get("argv") or [sys.executable, "-c", SERVICE, json.dumps(self.wanted)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=own.get("cwd", "/"),
                env={"PATH": os.environ["PATH"], **own.get("variables", {})},
                **({"user": own["user"], "group": own["user"]} if "user" in own else {}),
            )
        self.pid_file.write_text(f"{self.process.pid}\n")
        if "argv" not in own:
            wait_for(lambda: "begins" in self.log.read_text())
            time.sleep(0.15)
        return self

    def __exit__(self, *_error: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def check(self, **more: Any) -> dict[str, Any]:
        return {"pid_file": str(self.pid_file), "log": str(self.log), **more}


def options(checks: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Return all options of the module."""
    found = {name: spec.get("default") for name, spec in gate.OPTIONS.items()}
    return {**found, "checks": checks, "duration": 0.7, **more}


def ask(check: dict[str, Any], left: float = 10.0, **more: Any) -> dict[str, Any]:
    """Return the answer to one check."""
    return gate.prober(options([check], **more), False)(left)[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The table: what the service does x what is expected of it -> the verdict, and what the message says of it.
TABLE = [
    ({}, {}, "pass", ""),
    ({}, {"workers": 2, "processes": "== 3", "threads": "< 10", "restarts": None}, "pass", ""),
    ({}, {"workers": ">= 3"}, "fail", "workers was 2, expected >= 3"),
    ({"lives": 0.3}, {}, "fail", "ended and were replaced behind the living main process"),
    ({"lives": 0.3}, {"replaced": "< 100"}, "pass", ""),
    ({"lives": 0.3, "gives_up": True}, {}, "fail", "all of its workers ended"),
    ({"ends": 0.5}, {}, "fail", "does not stay up: the process"),
    ({"workers": 0, "helper": True}, {}, "pass", ""),
    ({"megabytes": 60}, {"memory": "< 50MB"}, "fail", "memory was"),
    ({"megabytes": 60}, {"memory": "< 2GB"}, "pass", ""),
    ({"megabytes": 60}, {"memory": "> 60MB"}, "pass", ""),
    ({"burns": True, "workers": 1}, {"cpu": "< 20%"}, "fail", "cpu was"),
    ({}, {"cpu": "< 20%"}, "pass", ""),
    ({"files": 100}, {"open_files": "< 90"}, "fail", "open files was"),
    ({"files": 100}, {"open_files": "< 400"}, "pass", ""),
    ({"files": 100}, {"open_files": "< 100%"}, "pass", ""),
    ({"files": 100}, {"open_files": "< 0.0001%"}, "fail", "%, expected < 0.0001%"),
    ({"threads": 30, "workers": 0}, {"threads": "< 20"}, "fail", "threads was 31"),
    ({}, {"uptime": "> 1m"}, "fail", "uptime was"),
    ({}, {"uptime": "< 1h"}, "pass", ""),
    ({}, {"restarts": "< 1"}, "inconclusive", "keeps no count"),
    ({}, {"release": R1}, "inconclusive", "tells"),
    ({"variables": {"RUNBOOK_RELEASE": R1}}, {"release": R1}, "pass", ""),
    (
        {"variables": {"RUNBOOK_RELEASE": R2}},
        {"release": R1},
        "fail",
        f"runs the release {R2}, expected {R1}",
    ),
    ({}, {"sub_state": "running"}, "fail", "sub-state"),
]


@pytest.mark.parametrize(("does", "expects", "verdict", "words"), TABLE)
def test_table(tmp_path, does, expects, verdict, words):
    with Running(tmp_path, **does) as service:
        begun = time.monotonic()
        found = ask(service.check(**expects))
        assert found["verdict"] == verdict, found["message"] or found["observed"]
        assert words in found["message"]
        assert time.monotonic() - begun < 4
        assert found["repeat"].startswith("ps ") and found["expected"].startswith("up for")
        if verdict == "pass":
            assert time.monotonic() - begun > 0.7
            assert found["message"] == ""


def test_last_lines_of_the_log_are_shown_without_secrets(tmp_path):
    environment = json.dumps({"TOKEN": "hunter2-secret"})
    with Running(tmp_path, lives=0.3) as service:
        found = ask(service.check(), environment=environment)
    assert "ValueError: no token ********" in found["message"] and "hunter2" not in json.dumps(found)
    assert found["final"] is True


def test_main_process_that_is_replaced_between_two_looks(tmp_path):
    probe = None
    with Running(tmp_path) as service:
        probe = gate.prober(options([service.check()]), False)
        assert probe(5.0)[0]["verdict"] == "pass"
    with Running(tmp_path):
        found = probe(5.0)[0]
        assert found["verdict"] == "fail" and "has taken its place" in found["message"]
        # It is told once; then the new one is what stays up.
        assert probe(5.0)[0]["verdict"] == "pass"


def test_wrapper_that_starts_its_program_again_and_again(tmp_path):
    program = f"{sys.executable} -S -c 'import time; time.sleep(0.3)'"
    with Running(tmp_path, argv=["/bin/sh", "-c", f"while true; do {program}; done"]) as service:
        time.sleep(0.2)
        found = ask(service.check(), duration=3.0)
        assert found["verdict"] == "fail" and "replaced" in found["message"]
    # A loop that does something now and then is no such thing.
    with Running(tmp_path, argv=["/bin/sh", "-c", "while true; do /bin/true; sleep 0.5; done"]) as service:
        assert ask(service.check(), duration=3.0)["verdict"] == "pass"


@pytest.mark.parametrize(
    ("looks", "replaced", "gone"),
    [
        # A child of a shell between fork and exec: it is no worker.
        (["", "E1", "E2 E3", "E4", ""], 0, False),
        (["E1", "", "", ""], 0, False),
        # One that ends before it is looked at again may have been such a child; many are workers that die at once.
        (["", "G1", "G2", ""], 0, False),
        (["", "G1", "G2", "G3"], 3, False),
        # New workers that live are counted at once, also in the last look.
        (["O1 O2", "O1 O2", "O1", "O1 N3"], 1, False),
        (["O1 O2", "O1 O2", "O1", "O1"], 0, False),
        (["N1 N2", "N1 N2", ""], 0, True),
        (["O1", "O1 N2", "O1 N2"], 0, False),
    ],
)
def test_what_counts_as_a_worker(looks, replaced, gone):
    """Each look has children of a shell that execute its program: O is old, N new, E about to execute another, G about to go."""
    later, names = [], {}
    workers = proc_tree.Workers(wait=later.append)

    def name_of(pid):
        kind = names.get(pid, "O")
        return "/bin/sh" if not later or kind in "ON" else {"E": "/bin/true", "G": ""}[kind]

    def age_of(started):
        return 60.0 if names[started] == "O" else 0.0

    for look in looks:
        names.clear()
        names.update({100 + int(word[1:]): word[0] for word in look.split()})
        later.clear()
        tree = [proc_tree.Entry(99, 1, 99, 0, 0, 1, 1, "sh")]
        tree += [proc_tree.Entry(pid, 99, 99, pid, 0, 1, 1, "sh") for pid in names]
        workers.look(tree, name_of, lambda _pid: "sh", age_of)
    assert (workers.replaced, workers.all_gone) == (replaced, gone)


def test_ports_and_sockets(tmp_path, request):
    port, other = free_port(), free_port()
    with Running(tmp_path, port=port) as service, socket.create_server(("127.0.0.1", other)):
        assert ask(service.check(listens=port))["verdict"] == "pass"
        found = ask(service.check(listens=[port, other]))
        assert found["verdict"] == "fail" and f"port {other}, but process {os.getpid()}" in found["message"]
        found = ask(service.check(listens=free_port()))
        assert found["verdict"] == "fail" and "nobody listens" in found["message"]
    with deployed_host() as host:
        path = str(host.root / "a.sock")
        with Running(tmp_path, socket=path) as service:
            assert ask(service.check(listens=path))["verdict"] == "pass"
            strange = socket.socket(socket.AF_UNIX)
            strange.bind(str(host.root / "b.sock"))
            found = ask(service.check(listens=str(host.root / "b.sock")))
            assert found["verdict"] == "fail" and "nobody listens" in found["message"]
            strange.listen()
            found = ask(service.check(listens=str(host.root / "b.sock")))
            assert found["verdict"] == "fail" and "not its own" in found["message"]
            strange.close()
            assert ask(service.check(listens=str(host.root / "c.sock")))["verdict"] == "fail"


@pytest.mark.parametrize("kind", ["port", "socket"])
def test_connections(tmp_path, kind):
    with deployed_host() as host, contextlib.ExitStack() as stack:
        place = free_port() if kind == "port" else str(host.root / "a.sock")
        service = stack.enter_context(Running(tmp_path, accepts=True, **{kind: place}))
        for _number in range(5):
            client = stack.enter_context(socket.socket(socket.AF_INET if kind == "port" else socket.AF_UNIX))
            client.connect(("127.0.0.1", place) if kind == "port" else place)
        time.sleep(0.1)
        assert ask(service.check(connections="== 5"))["verdict"] == "pass"
        found = ask(service.check(connections="< 5"))
        assert found["verdict"] == "fail" and "connections was 5" in found["message"]


def test_what_a_pid_file_may_be(tmp_path):
    path = tmp_path / "some.pid"
    check = {"pid_file": str(path)}
    found = ask(check)
    assert found["verdict"] == "inconclusive" and "there is no" in found["message"]
    for text in ("", "no number", "-4", "0", "1", "\u0663", "[1]"):
        path.write_text(text)
        assert ask(check)["verdict"] == "inconclusive", text
    path.write_text("4194999\n")
    assert ask(check)["verdict"] == "fail"
    # The PID was given to another process since the file was written.
    child = subprocess.Popen(["sleep", "60"])
    try:
        path.write_text(str(child.pid))
        os.utime(path, (0, 0))
        found = ask(check)
        assert found["verdict"] == "inconclusive" and "older than the process" in found["message"]
        path.write_text(json.dumps({"pid": child.pid, "start_time": 1}))
        assert ask(check)["verdict"] == "fail"
        path.unlink()
        os.mkfifo(path)
        begun = time.monotonic()
        assert ask(check)["verdict"] == "inconclusive" and time.monotonic() - begun < 2
    finally:
        child.kill()
        # A zombie is no service.
        path.unlink()
        path.write_text(str(child.pid))
        assert ask(check)["verdict"] == "fail"
        child.wait()


def test_a_gate_ends_in_time(tmp_path):
    with Running(tmp_path) as service:
        found = ask(service.check(duration=60), left=2.0)
        assert found["verdict"] == "inconclusive" and "raise the deadline" in found["message"]
        assert found["cut_short"] is True and found["seconds"] < 0.5
        begun = time.monotonic()
        answer = gate.prober(options([service.check()] * 20, duration=0.5), False)(2.0)
        assert [item["verdict"] for item in answer] == ["pass"] * 20
        assert time.monotonic() - begun < 3


def other_user() -> int:
    if os.geteuid() != 0:
        pytest.skip("another user's processes can only be made by root")
    return pwd.getpwnam("nobody").pw_uid


def as_user(uid: int, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the answers that the user *uid* gets; by a fork, because that user may not read this Python's files."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.write(writer, json.dumps(gate.prober(wanted, False)(10.0)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return json.loads(text)


def test_what_another_user_may_not_see(tmp_path):
    uid = other_user()
    port = free_port()
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.geteuid() and str(directory).startswith("/tmp/"):
            directory.chmod(0o755)
    with Running(tmp_path, port=port) as service:
        expects = [
            {},
            {"memory": "< 2GB"},
            {"memory": "< 1MB"},
            {"memory": "> 1MB"},
            {"open_files": "< 1000"},
            {"connections": "< 5"},
            {"listens": port},
            {"release": R1},
            {"threads": "< 50", "cpu": "< 90%"},
        ]
        checks = [service.check(**item) for item in expects]
        verdicts = [item["verdict"] for item in as_user(uid, options(checks))]
    unknown = "inconclusive"
    assert verdicts == ["pass", "pass", unknown, unknown, unknown, unknown, unknown, unknown, "pass"]


@pytest.fixture
def live():
    """An application whose live instance has a web service on a socket and a worker, under the manager ``process``."""
    with deployed_host() as host:
        host.release(R1)
        services = [
            {"name": "web", "kind": "web", "bind": "socket", "port": 0, "manager": "process", "command": ""},
            {
                "name": "worker",
                "kind": "worker",
                "bind": "none",
                "port": 0,
                "manager": "process",
                "command": "",
            },
        ]
        wanted = {"web": {"socket": "{socket}"}, "worker": {"workers": 1}}
        program = host.layout.release(R1) / "service.py"
        program.write_text(SERVICE)
        for service in services:
            text = json.dumps(json.dumps(wanted[service["name"]]))
            service["command"] = f"{sys.executable} {program} {text}"
        document = describe(D1, {"name": R1}, services, environment_path="", name="shop", stage="test")
        instance = Instance(
            host.layout,
            D1,
            document,
            {"RUNBOOK_ROOT": str(host.root), "RUNBOOK_RELEASE": R1, "SECRET_KEY": "a-very-secret-key"},
        )
        host.layout.run.mkdir(exist_ok=True)
        instance.write(None)
        host.switch(R1, D1)
        units = {name: ProcessUnit(host.layout, name, D1, None) for name in wanted}
        for unit in units.values():
            unit.start(instance)
        wait_for(lambda: host.layout.socket("web", D1).is_socket())
        time.sleep(0.3)
        try:
            yield host, units
        finally:
            for unit in units.values():
                unit.stop(1.0)


def test_own_services(live):
    host, units = live
    root = str(host.root)
    for name in units:
        found = ask({"service": name}, root=root)
        assert found["verdict"] == "pass", found["message"]
        assert f"release {R1}" in found["expected"]
    assert "listens on" in ask({"service": "web"}, root=root)["expected"]
    found = ask({"service": "beat"}, root=root)
    assert found["verdict"] == "inconclusive" and "only: web, worker" in found["message"]
    assert ask({"service": "web"})["verdict"] == "inconclusive"
    assert ask({"service": "web"}, root=root, user="no-such-user")["verdict"] == "inconclusive"
    found = ask({"service": "web", "release": R2}, root=root)
    assert found["verdict"] == "fail" and f"runs the release {R1}, expected {R2}" in found["message"]
    # Another one took the place of its socket: what it listens on is not what the path leads to.
    host.layout.socket("web", D1).unlink()
    with socket.socket(socket.AF_UNIX) as strange:
        strange.bind(str(host.layout.socket("web", D1)))
        strange.listen()
        found = ask({"service": "web"}, root=root)
        assert found["verdict"] == "fail" and "not its own" in found["message"]
    os.kill(units["worker"].main()[0], signal.SIGKILL)
    found = ask({"service": "worker"}, root=root)
    assert found["verdict"] == "fail" and "does not run" in found["message"]
    host.layout.current.unlink()
    assert ask({"service": "web"}, root=root)["verdict"] == "inconclusive"


def unit_says(**properties: str) -> str:
    base = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "Result": "success"}
    base.update({"MainPID": str(os.getpid()), "NRestarts": "0", "ExecMainStatus": "0", **properties})
    return "".join(f"{name}={value}\n" for name, value in base.items())


@pytest.mark.parametrize(
    ("said", "expects", "verdict", "words"),
    [
        (unit_says(), {}, "pass", ""),
        (unit_says(), {"sub_state": ["running", "listening"], "restarts": "< 1"}, "pass", ""),
        (unit_says(NRestarts="3"), {"restarts": "< 1"}, "fail", "restarts was 3"),
        (unit_says(SubState="reload"), {"sub_state": "running"}, "fail", "sub-state is 'reload'"),
        (unit_says(LoadState="not-found", ActiveState="inactive"), {}, "inconclusive", "knows no unit"),
        ("", {}, "inconclusive", "knows no unit"),
        (unit_says(ActiveState="inactive", SubState="dead", MainPID="0"), {}, "fail", "inactive (dead)"),
        (
            unit_says(ActiveState="failed", SubState="failed", Result="oom-kill", MainPID="0"),
            {},
            "fail",
            "oom-kill",
        ),
        (unit_says(ActiveState="activating", SubState="start", MainPID="0"), {}, "fail", "still starting"),
        (
            unit_says(ActiveState="activating", SubState="auto-restart", MainPID="0", ExecMainStatus="3"),
            {},
            "fail",
            "exit status 3",
        ),
        (unit_says(SubState="exited", MainPID="0"), {}, "fail", "no main process"),
        (unit_says(MainPID="4194999"), {}, "fail", "is gone"),
    ],
)
def test_what_systemd_says(monkeypatch, said, expects, verdict, words):
    monkeypatch.setattr(target, "_asked", lambda argv, left: said if "show" in argv else "its last words\n")
    found = ask({"unit": "shop", **expects}, duration=0.3)
    assert found["verdict"] == verdict and words in found["message"], found["message"]
    assert ("its last words" in found["message"]) is (verdict == "fail")


def test_unit_that_systemd_starts_again(monkeypatch):
    answers = iter([unit_says(), unit_says(), unit_says(NRestarts="1"), unit_says(NRestarts="1")])
    monkeypatch.setattr(target, "_asked", lambda argv, left: next(answers) if "show" in argv else "")
    found = ask({"unit": "shop"}, duration=1.2)
    assert found["verdict"] == "fail" and "has restarted it 1 times" in found["message"] and found["final"]


def test_without_systemd(monkeypatch):
    if os.path.isdir("/run/systemd/system"):
        pytest.skip("systemd is the init system here")
    found = ask({"unit": "shop.service"})
    assert found["verdict"] == "inconclusive" and "systemctl" in found["message"]


def test_systemctl_that_hangs(monkeypatch):
    real = target.run_bounded
    monkeypatch.setattr(target, "run_bounded", lambda argv, timeout: real(["sleep", "60"], timeout=timeout))
    begun = time.monotonic()
    found = ask({"unit": "shop.service"}, left=2.0, duration=0.5)
    assert found["verdict"] == "inconclusive" and "did not answer" in found["message"]
    assert time.monotonic() - begun < 20  # it would take 60


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({}, "0 subjects"),
        ("nginx", "must be a mapping"),
        ({"unit": "a", "pid_file": "/b"}, "2 subjects"),
        ({"unit": "a b"}, "must be the name of one unit"),
        ({"unit": "-H evil"}, "must be the name of one unit"),
        ({"unit": 4}, "must be a text"),
        ({"pid_file": "run/a.pid"}, "absolute path"),
        ({"unit": "a", "memry": "< 5MB"}, "did you mean 'memory'"),
        ({"unit": "a", "memory": "512MB"}, "must be a comparison"),
        ({"unit": "a", "memory": "< 5 parsecs"}, "one of the units"),
        ({"unit": "a", "cpu": True}, "must be a comparison"),
        ({"unit": "a", "duration": 0}, "above 0"),
        ({"unit": "a", "listens": "web"}, "must be ports and paths"),
        ({"unit": "a", "listens": 70000}, "must be ports and paths"),
        ({"unit": "a", "release": 5}, "must be the name of a release"),
        ({"unit": "a", "severity": "huge"}, "severity"),
    ],
)
def test_bad_checks(item, words):
    with pytest.raises(Problem, match="checks") as found:
        gate.prober(options([item]), False)
    assert words in found.value.message


def test_bad_options():
    with pytest.raises(Problem, match="duration"):
        gate.prober(options([{"unit": "a"}], duration=0), False)


def test_a_figure_that_is_not_known_is_no_pass():
    check = parse_check({"unit": "a", "memory": "< 5GB", "connections": "< 5", "cpu": "< 50%"}, "checks[0]")
    found = judge(check, [Sample(1, 1, 0, 5.0)], None, 0, "systemd")
    assert len(found.unknown) == 3 and not found.wrong
    # Of several moments the one that is too much counts.
    check = parse_check({"unit": "a", "memory": "< 5KB"}, "checks[0]")
    samples = [Sample(1, 1, 0, 5.0, memory=number) for number in (1, 6000, 2)]
    assert judge(check, samples, None, 0, "systemd").wrong == ["memory was 6.0 KB, expected < 5KB"]
    samples = [Sample(1, 1, 0, 5.0, memory=1), Sample(1, 1, 0, 5.0)]
    assert judge(check, samples, None, 0, "systemd").unknown


@pytest.mark.parametrize(
    ("wanted", "named", "paths", "found"),
    [
        ("r1", "r1", None, True),
        ("r1", "r2", ["/srv/releases/r1"], False),
        ("r1", "", ["/srv/app/releases/r1/shop", "/usr/bin/python3"], True),
        ("r1", "", ["/srv/app/releases/r0", "/usr/bin/python3"], False),
        ("r1", "", ["/", "/usr/bin/python3"], None),
        ("r1", "", ["/srv/app/releases/r10"], False),
        ("r1", "", None, None),
        ("/srv/app/v2", "", ["/srv/app/v2/shop"], True),
        ("/srv/app/v2", "", ["/srv/app/v1/shop (deleted)"], False),
        ("/srv/app/v2", "", ["/srv/app"], None),
        ("/srv/app/v2/", "v2", [], True),
    ],
)
def test_which_release(wanted, named, paths, found):
    variables = {"RUNBOOK_RELEASE": named} if named else {}
    assert proc_tree.is_release(wanted, variables, paths) is found


def test_link_to_a_release_is_followed_for_what_is_wanted_only(tmp_path):
    (tmp_path / "v2").mkdir()
    (tmp_path / "current").symlink_to("v2")
    wanted = str(tmp_path / "current")
    assert proc_tree.is_release(wanted, {}, [str(tmp_path / "v2")]) is True
    assert proc_tree.is_release(wanted, {}, [str(tmp_path / "v1")]) is False


def test_parsers():
    stat = "7 (a) b (c) S 4 7 7 0 -1 0 0 0 0 0 5 6 7 8 20 0 3 0 900 1000 12 0"
    assert proc_tree.parse_entry(stat) == proc_tree.Entry(7, 4, 7, 900, 26, 3, 12, "a) b (c")
    assert proc_tree.parse_entry(stat.replace(") S ", ") Z ")) is None
    with pytest.raises(ValueError, match="incomplete"):
        proc_tree.parse_entry("7 (a) S 4")
    assert proc_tree.parse_pss("Rss:  12 kB\nPss:   5 kB\nPss_Anon: 4 kB\n") == 5120
    assert proc_tree.parse_pss("") is None
    limits = (
        "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 4096   files\n"
    )
    assert proc_tree.parse_file_limit(limits) == 1024
    assert proc_tree.parse_file_limit(limits.replace("1024", "unlimited")) is None


def module_answer(capsys: Any, **given: Any) -> dict[str, Any]:
    with patch_module_args(given), pytest.raises(SystemExit):
        service_gate.main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("check_mode", [False, True])
def test_module(tmp_path, capsys, check_mode):
    with Running(tmp_path) as service:
        answer = module_answer(
            capsys, checks=[service.check(workers=2)], duration=0.5, _ansible_check_mode=check_mode
        )
    assert answer["passed"] and not answer["changed"]
    answer = module_answer(
        capsys, checks=[service.check(), {"unit": "a", "severity": "minor"}], deadline=2, duration=0.5
    )
    assert (
        answer["failed"]
        and answer["verdict"] == "fail"
        and answer["failing"] == [f"pid_file {service.pid_file}"]
    )
