# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""app_service with real processes under the manager ``process``: switching, taking back, surviving kills."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, remove_tree
from ansible_collections.runbook.deploy.plugins.modules import app_service

SERVER = Path(__file__).with_name("small_server.py")
SECRET = "do-not-show-me"
ONE = "20261121T010000-aaaa"
TWO = "20261121T020000-bbbb"
THREE = "20261121T030000-cccc"


class Host:
    """A host with an application root, and the module run on it."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.layout = Layout(root)
        self.capsys = capsys
        self.services: list[dict[str, Any]] = [self.web()]
        for directory in (self.layout.releases, self.layout.run, self.layout.shared):
            directory.mkdir(parents=True)

    @staticmethod
    def web(**changes: Any) -> dict[str, Any]:
        """Return the definition of a web service."""
        command = f"{sys.executable} small_server.py unix {{socket}}"
        return {
            "name": "web",
            "kind": "web",
            "manager": "process",
            "command": command,
            "stop_timeout": 3,
        } | changes

    @staticmethod
    def worker(kind: str = "worker") -> dict[str, Any]:
        """Return the definition of a worker or a beat."""
        command = f"{sys.executable} small_server.py worker {kind}"
        return {"name": kind, "kind": kind, "manager": "process", "command": command, "stop_timeout": 3}

    def release(self, name: str, fault: str = "") -> str:
        """Make a release with *fault*."""
        path = self.layout.release(name)
        path.mkdir()
        shutil.copy(SERVER, path)
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
            "environment": json.dumps({"SECRET_KEY": SECRET, "GREETING": f"hello {release}"}),
            "health_checks": [{"url": "/", "contains": "{deployment}"}],
            "start_timeout": 5,
            "gate_timeout": 1,
            "stay_up": 1,
            "drain_timeout": 3,
        } | changes

    def run(self, check: bool = False, **options: Any) -> dict[str, Any]:
        """Run the module and return its answer."""
        options.setdefault("root", str(self.root))
        with patch_module_args(options | {"_ansible_check_mode": check}), pytest.raises(SystemExit):
            app_service.main()
        return json.loads(self.capsys.readouterr().out)

    def deploy(self, deployment: str, release: str, **changes: Any) -> dict[str, Any]:
        """Deploy and return the answer."""
        return self.run(**self.options(deployment, release, **changes))

    def ask(self, path: str = "/", service: str = "web") -> str:
        """Return what the application answers at its public socket."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(3)
            client.connect(str(self.layout.socket(service)))
            client.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            answer = b""
            while True:
                part = client.recv(4096)
                if not part:
                    break
                answer += part
        head, _blank, body = answer.decode().partition("\r\n\r\n")
        assert " 200 " in head, answer
        return body

    def running(self) -> set[tuple[str, str]]:
        """Return (service, deployment) of what really runs."""
        found = _processes.application_processes(self.root)
        return {(entry.service, entry.deployment) for entry in found if entry.service}

    def current(self) -> str:
        """Return what is current."""
        return Path(os.readlink(self.layout.current)).name


@pytest.fixture
def host(capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a host whose processes are ended afterwards."""
    # Not pytest's own directory: its name grows with the test's, and a socket's path may have 107 bytes.
    short = Path(tempfile.mkdtemp(prefix="rb-"))
    made = Host(short / "a", capsys)
    yield made
    for entry in _processes.application_processes(made.root):
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry.pid, signal.SIGKILL)
    remove_tree(short)


class Client(threading.Thread):
    """Asks without a pause, and keeps what it got."""

    def __init__(self, host: Host, path: str = "/") -> None:
        super().__init__()
        self.host = host
        self.path = path
        self.answers: list[str] = []
        self.lost: list[str] = []
        self.enough = threading.Event()

    def run(self) -> None:
        """Ask until stopped."""
        while not self.enough.is_set():
            try:
                self.answers.append(self.host.ask(self.path).split()[0])
            except (OSError, AssertionError, IndexError) as error:
                self.lost.append(repr(error))

    def __enter__(self) -> Client:
        self.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self.enough.set()
        self.join()


def test_first_deployment_then_nothing_to_do(host: Host) -> None:
    """What is live and up is left alone, quickly."""
    release = host.release("one")
    answer = host.deploy(ONE, release)
    assert answer["changed"] and answer["live"] == {"deployment": ONE, "release": "one"}
    assert answer["gate"]["passed"] and answer["proof_seconds"] >= 1
    assert host.ask() == f"{ONE} hello one"
    assert host.current() == "one"
    assert host.run(**host.options(ONE, release), check=True)["changed"] is False
    pid = answer["services"][0]["pid"]
    begun = time.monotonic()
    answer = host.deploy(ONE, release)
    assert not answer["changed"] and answer["services"][0]["pid"] == pid
    assert time.monotonic() - begun < 0.5


def test_files_are_private_and_the_socket_is_not(host: Host) -> None:
    """Secrets are in no file that everybody reads, and in no command line."""
    host.deploy(ONE, host.release("one"), stay_up=0)
    for path in host.layout.instances.iterdir():
        if not path.is_symlink():
            assert path.stat().st_mode & 0o007 == 0, path
            assert path.stat().st_mode & 0o777 == 0o640, path
    # The application made it with 0700 at most; the web server's user has to connect.
    assert host.layout.socket("web", ONE).stat().st_mode & 0o666 == 0o666
    for entry in _processes.application_processes(host.root):
        assert SECRET not in entry.command


def test_blue_green_loses_no_request(host: Host) -> None:
    """Clients that ask all the time, slow requests included, get an answer from the old or the new one."""
    host.deploy(ONE, host.release("one"), stay_up=0)
    two = host.release("two")
    with Client(host) as quick, Client(host) as other, Client(host, "/slow") as slow:
        answer = host.deploy(TWO, two, stay_up=0.2)
        time.sleep(0.1)
    assert answer["changed"], answer
    for client in (quick, other, slow):
        assert client.lost == []
        assert client.answers[0] == ONE and client.answers[-1] == TWO
    assert len(quick.answers) > 100
    assert answer["previous"] == {"deployment": ONE, "release": "one"}
    assert host.running() == {("web", TWO)}
    assert not host.layout.socket("web", ONE).exists()


def test_the_old_one_is_drained_before_it_is_stopped(host: Host) -> None:
    """Requests that it has taken are answered, even where TERM drops them."""
    host.deploy(ONE, host.release("one", "abrupt"), stay_up=0)
    with Client(host, "/slow") as client, Client(host, "/slow") as other:
        time.sleep(0.2)
        host.deploy(TWO, host.release("two"), stay_up=0.1)
    for answers in (client, other):
        assert answers.lost == [] and {ONE, TWO} == set(answers.answers)


def test_a_stranger_at_the_new_address(host: Host) -> None:
    """What answers there must be the new instance's own process, whatever it answers."""
    host.deploy(ONE, host.release("one"), stay_up=0)
    with socket.socket(socket.AF_UNIX) as stranger:

        def listen() -> None:
            stranger.bind(str(host.layout.socket("web", TWO)))
            stranger.listen()

        threading.Timer(0.4, listen).start()
        answer = host.deploy(TWO, host.release("two", "deaf"), health_checks=[], stay_up=0)
    assert answer["failed"] and f"another process does, {os.getpid()}" in answer["msg"]
    assert host.ask().startswith(ONE)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("boot", "ended with exit code 1"),
        ("health", "is not healthy"),
        ("deaf", "did not listen"),
        ("later", "does not stay up"),
        ("respawn", "were replaced"),
    ],
)
def test_a_bad_release_never_serves(host: Host, fault: str, reason: str) -> None:
    """The old one answers throughout, nothing of the new one is left, and the reason is named."""
    host.deploy(ONE, host.release("one"), stay_up=0)
    two = host.release("two", fault)
    files = {path.name for path in host.layout.instances.iterdir()}
    with Client(host) as client:
        answer = host.deploy(TWO, two, start_timeout=1.5, gate_timeout=0.3)
    assert answer["failed"] and answer["live_changed"] is False
    assert reason in answer["msg"] and "one serves as before" in answer["msg"]
    assert SECRET not in json.dumps(answer)
    assert "starting with ********" in answer["evidence"]
    assert client.lost == [] and set(client.answers) == {ONE}
    assert host.current() == "one" and host.running() == {("web", ONE)}
    assert {path.name for path in host.layout.instances.iterdir()} == files
    assert {path.name for path in host.layout.run.iterdir()} == {
        "web.sock",
        f"web.{ONE}.sock",
        f"web.{ONE}.pid",
    }


def test_a_first_deployment_that_fails_leaves_nothing(host: Host) -> None:
    """Nothing listens, nothing is current."""
    answer = host.deploy(ONE, host.release("one", "health"))
    assert answer["failed"] and "Nothing serves, as before" in answer["msg"]
    assert host.running() == set() and not host.layout.current.is_symlink()
    assert list(host.layout.run.iterdir()) == []


def test_rollback_starts_the_old_instance_with_its_own_settings(host: Host) -> None:
    """Without services everything comes from the instance's files, its environment too."""
    host.deploy(ONE, host.release("one"), stay_up=0)
    host.deploy(TWO, host.release("two"), stay_up=0)
    answer = host.run(state="deployed", deployment=ONE, stay_up=0)
    assert answer["changed"], answer
    assert host.ask() == f"{ONE} hello one"
    assert host.current() == "one" and host.running() == {("web", ONE)}
    answer = host.run(state="deployed", deployment=THREE)
    assert answer["failed"] and "no instance" in answer["msg"]


def test_workers_and_the_beat(host: Host) -> None:
    """Never two beats; workers are replaced; a worker that fails brings the old ones back."""
    host.services = [host.web(), host.worker(), host.worker("beat")]
    host.deploy(ONE, host.release("one"), stay_up=0)
    beats: list[int] = []
    enough = threading.Event()

    def watch() -> None:
        while not enough.is_set():
            found = {
                entry.pid for entry in _processes.application_processes(host.root) if entry.service == "beat"
            }
            beats.append(len(found))

    thread = threading.Thread(target=watch)
    thread.start()
    answer = host.deploy(TWO, host.release("two"), stay_up=0)
    enough.set()
    thread.join()
    assert answer["changed"], answer
    assert max(beats) == 1
    assert host.running() == {("web", TWO), ("worker", TWO), ("beat", TWO)}
    host.services[1]["command"] = f"{sys.executable} -c 'raise SystemExit(4)'"
    answer = host.deploy(THREE, host.release("three"), stay_up=0.3)
    assert answer["failed"] and "exit code 4" in answer["msg"] and answer["live_changed"] is False
    assert answer["traffic_taken"]
    assert host.running() == {("web", TWO), ("worker", TWO), ("beat", TWO)}
    assert host.ask().startswith(TWO) and host.current() == "two"


def free_port() -> int:
    """Return a free TCP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_restart_on_a_port(host: Host) -> None:
    """The new one is tried at another port; a bad one never takes the port, a good one does."""
    port = free_port()
    command = f"{sys.executable} small_server.py tcp {{port}}"
    host.services = [host.web(bind="port", port=port, command=command)]
    assert host.deploy(ONE, host.release("one"))["changed"]
    pid = _processes.listener_pids(port)
    answer = host.deploy(TWO, host.release("two", "respawn"))
    assert answer["failed"] and answer["live_changed"] is False and answer["traffic_taken"] is None
    assert _processes.listener_pids(port) == pid
    answer = host.deploy(THREE, host.release("three"))
    assert answer["changed"], answer
    assert host.running() == {("web", THREE)}
    assert not [path for path in host.layout.instances.iterdir() if ".trial" in path.name]
    # Without the trial the fault shows at the real port, and the old one comes back.
    host.services[0]["trial"] = False
    (host.layout.release("two") / "fault").write_text("health")
    answer = host.deploy(TWO, "two")
    assert answer["failed"] and answer["live_changed"] is False, answer
    assert "three serves as before" in answer["msg"]
    assert host.running() == {("web", THREE)} and _processes.listener_pids(port)


def test_a_port_of_somebody_else(host: Host) -> None:
    """The process that has the port is named, and lives on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        host.services = [host.web(bind="port", port=port, command="python3 small_server.py tcp {port}")]
        answer = host.deploy(ONE, host.release("one"), stay_up=0)
    assert answer["failed"] and f"process {os.getpid()}" in answer["msg"]
    assert host.running() == set()


def test_stop_and_start(host: Host) -> None:
    """Stopped twice, started twice; the one that ignores TERM too."""
    host.deploy(ONE, host.release("one", "stubborn"), services=[host.web(stop_timeout=1)])
    assert host.run(state="status")["services"][0]["running"]
    assert host.run(state="stopped", check=True)["changed"]
    assert host.running() == {("web", ONE)}
    assert host.run(state="stopped")["changed"]
    assert host.running() == set()
    assert not host.run(state="stopped")["changed"]
    assert host.run(state="status")["services"][0]["running"] is False
    answer = host.run(state="started", stay_up=0)
    assert answer["changed"] and host.ask().startswith(ONE)
    assert not host.run(state="started", stay_up=0)["changed"]


def test_what_was_refused_is_stopped_for_good(host: Host) -> None:
    """Not started by the next boot, and not what the next deployment would go back to."""
    host.deploy(ONE, host.release("one"))
    assert host.run(state="stopped", boot=False, check=True)["changed"]
    assert host.layout.current.is_symlink() and host.running() == {("web", ONE)}
    assert host.run(state="stopped", boot=False)["changed"]
    assert host.running() == set() and not os.path.lexists(host.layout.current)
    assert not host.run(state="stopped", boot=False)["changed"]
    assert "Nothing is current" in host.run(state="started")["msg"]


DRIVER = """
import json, os, signal, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils import _fleet, _instance, _live, _service
from ansible_collections.runbook.deploy.plugins.modules import app_service
left = int(sys.argv[2])

def deadly(function):
    def wrapped(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped

# Every step that changes something: files, starts, stops, links.
for place, name in ((_instance, "write_atomic"), (_live, "put_link"), (_instance, "replace_link"), (_live, "stay_up"),
                    (_service.Member, "start"), (_service.Member, "stop"), (_service.Member, "drain")):
    setattr(place, name, deadly(getattr(place, name)))
with patch_module_args(json.load(open(sys.argv[1]))):
    app_service.main()
"""
# The steps of that deployment: 0-4 files, 5 start web, 6 watch it, 7 and 8 stop beat and worker, 9 and 10 start them,
# 11 watch them, 12 the link for the next boot, 13 current, 14 the public socket, 15 drain, 16 stop the old one.
MOMENTS = (3, 5, 8, 10, 13, 14, 16)


def killed_run(host: Host, tmp_path: Path, options: dict[str, Any], step: int) -> bool:
    """Run the module in a process that kills itself before its change number *step*; return whether it did."""
    arguments = tmp_path / "arguments.json"
    arguments.write_text(json.dumps(options))
    run = subprocess.run(
        [sys.executable, "-c", DRIVER, str(arguments), str(step)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    return run.returncode == -signal.SIGKILL


@pytest.mark.parametrize("step", MOMENTS)
def test_killed_at_any_step(host: Host, tmp_path: Path, step: int) -> None:
    """After a kill somebody answers, and the next run, of another deployment, leaves exactly one."""
    host.services = [host.web(), host.worker(), host.worker("beat")]
    host.deploy(ONE, host.release("one"), stay_up=0)
    with Client(host) as client:
        assert killed_run(host, tmp_path, host.options(TWO, host.release("two"), stay_up=0), step)
        found = len([1 for service, _id in host.running() if service == "beat"])
        assert found <= 1
        answer = host.deploy(THREE, host.release("three"), stay_up=0)
    assert answer["changed"], answer
    assert client.lost == []
    assert host.ask().startswith(THREE)
    assert host.running() == {("web", THREE), ("worker", THREE), ("beat", THREE)}
    assert not list(host.layout.run.glob(f"*{TWO}*"))


def test_killed_and_run_again(host: Host, tmp_path: Path) -> None:
    """The same deployment goes on where it was killed: between current and the public socket."""
    host.deploy(ONE, host.release("one"), stay_up=0)
    options = host.options(TWO, host.release("two"), stay_up=0)
    assert killed_run(host, tmp_path, options, 7)
    assert host.current() == "two"
    assert host.ask().startswith(ONE)
    assert host.run(**options)["changed"]
    assert host.ask().startswith(TWO) and host.running() == {("web", TWO)}


def test_an_instance_whose_pid_file_was_lost(host: Host) -> None:
    """It is found by its environment: neither started twice nor forgotten."""
    host.deploy(ONE, host.release("one"), stay_up=0)
    host.layout.pid_file("web", ONE).unlink()
    assert not host.deploy(ONE, "one")["changed"]
    assert host.deploy(TWO, host.release("two"))["changed"]
    assert host.running() == {("web", TWO)}


def test_a_pid_file_that_lies(host: Host) -> None:
    """A process that is not the recorded one gets no signal."""
    host.deploy(ONE, host.release("one"), stay_up=0)
    host.run(state="stopped")
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        forged = {"pid": stranger.pid, "start_time": 1, "service": "web", "deployment": ONE}
        host.layout.pid_file("web", ONE).write_text(json.dumps(forged))
        host.run(state="stopped")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_check_mode_changes_nothing(host: Host) -> None:
    """It says what would be live, and not a byte is different."""
    host.deploy(ONE, host.release("one"), stay_up=0)
    host.release("two")
    before = sorted((str(path), path.lstat().st_mtime_ns) for path in host.root.rglob("*"))
    answer = host.run(**host.options(TWO, "two"), check=True)
    assert answer["changed"] and answer["diff"]["before"] != answer["diff"]["after"]
    assert sorted((str(path), path.lstat().st_mtime_ns) for path in host.root.rglob("*")) == before
    assert host.running() == {("web", ONE)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"services": [Host.web(bind="port", port=80, strategy="blue_green")]}, "blue_green is impossible"),
        ({"services": [Host.web(bind="port")]}, "has port 0"),
        ({"services": [Host.web(command="serve 'unclosed")]}, "cannot be split"),
        ({"services": [Host.web(command="serve {port}")]}, "uses {port}"),
        ({"services": [Host.web(name="w" * 100)]}, "a path of"),
        ({"services": [Host.web(), Host.web()]}, "twice"),
        ({"release": "none"}, "does not exist"),
        ({"deployment": "yesterday"}, "expected an id"),
        ({"environment": "{"}, "not JSON"),
        ({"environment": '{"RUNBOOK_ROOT": "/"}'}, "RUNBOOK_ROOT"),
    ],
)
def test_bad_options(host: Host, changes: dict[str, Any], words: str) -> None:
    """One sentence, and nothing was started or written."""
    host.release("one")
    answer = host.run(**{**host.options(ONE, "one"), **changes})
    assert answer["failed"] and words in answer["msg"], answer["msg"]
    assert host.running() == set()
    assert not list(host.layout.shared.rglob("*.json"))


def test_current_is_a_directory(host: Host) -> None:
    """It is not touched."""
    (host.layout.current / "important").mkdir(parents=True)
    answer = host.deploy(ONE, host.release("one"))
    assert answer["failed"] and "no symbolic link" in answer["msg"]
    assert (host.layout.current / "important").is_dir()
