# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""app_service with a real supervisord: switching, taking back, its death and its next start."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _processes, _supervisor
from ansible_collections.runbook.deploy.plugins.module_utils._layout import remove_tree
from ansible_collections.runbook.deploy.plugins.module_utils._service_spec import parse_check
from ansible_collections.runbook.deploy.plugins.module_utils._service_target import find
from test_app_service import ONE, SECRET, THREE, TWO, Client, Host

BINARIES = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
SUPERVISORD = shutil.which("supervisord", path=BINARIES)
pytestmark = pytest.mark.skipif(SUPERVISORD is None, reason="supervisor is not installed")
CONFIG = """
[unix_http_server]
file={root}/control
username=admin
password=of-the-socket
[supervisord]
logfile={root}/supervisord.log
pidfile={root}/supervisord.pid
directory={root}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{root}/control
username=admin
password=of-the-socket
[program:stranger]
command=/bin/sleep 86400
[include]
files={root}/conf.d/*.conf
"""


def wait_for(condition: Callable[[], object], seconds: float = 40.0) -> None:
    """Wait until *condition* holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


class Supervisord:
    """A supervisord with a socket and sections of its own."""

    def __init__(self) -> None:
        # Short: a socket's path may have 107 bytes.
        self.root = Path(tempfile.mkdtemp(prefix="rb-"))
        self.include = self.root / "conf.d"
        self.include.mkdir()
        self.config = self.root / "supervisord.conf"
        self.config.write_text(CONFIG.format(root=self.root))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with contextlib.suppress(FileNotFoundError):
            (self.root / "control").unlink()
        self.process = subprocess.Popen(
            [str(SUPERVISORD), "-n", "-c", str(self.config)],
            env={**os.environ, "OF_SUPERVISORD": "yes"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: "RUNNING" in self.ask("status", "stranger"))

    def ask(self, *arguments: str) -> str:
        """Return what supervisorctl prints."""
        control = shutil.which("supervisorctl", path=BINARIES)
        argv = [str(control), "-c", str(self.config), *arguments]
        return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False).stdout

    def programs(self) -> dict[str, str]:
        """Return program -> state of everything but the stranger."""
        words = [line.split() for line in self.ask("status").splitlines()]
        return {line[0]: line[1] for line in words if line[0] != "stranger"}

    def sections(self) -> set[str]:
        """Return the names of the files in the included directory."""
        return {path.stem for path in self.include.iterdir()}

    def kill(self) -> None:
        """Kill it, and nothing of what it started."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it and the stranger."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait()
        remove_tree(self.root)


class SupervisedHost(Host):
    """A host whose services run under supervisord."""

    supervisord: Supervisord

    def service(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Return *spec* under supervisord."""
        place = {
            "supervisor_config": str(self.supervisord.config),
            "supervisor_include": str(self.supervisord.include),
        }
        return {**spec, "manager": "supervisor", **place}

    def options(self, deployment: str, release: str, **changes: Any) -> dict[str, Any]:
        """Return the options of a deployment, with time for a machine that is busy."""
        return super().options(deployment, release, **{"start_timeout": 30, **changes})

    def answers(self, beginning: str) -> bool:
        """Return whether the application answers already, and so."""
        try:
            return self.ask().startswith(beginning)
        except (OSError, AssertionError):
            return False

    def stranger(self) -> str:
        """Return which process of somebody else supervisord runs."""
        return self.supervisord.ask("pid", "stranger").strip()


@pytest.fixture(scope="module")
def supervisord() -> Iterator[Supervisord]:
    """Return a supervisord for all tests."""
    made = Supervisord()
    made.start()
    yield made
    made.close()


@pytest.fixture
def host(
    supervisord: Supervisord, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[SupervisedHost]:
    """Return a host whose processes and programs are gone afterwards."""
    monkeypatch.setenv("PATH", BINARIES)
    short = Path(tempfile.mkdtemp(prefix="rb-"))
    # supervisord takes the % for an expansion, and a # after a blank for a comment.
    made = SupervisedHost(short / "a;50%", capsys)
    made.supervisord = supervisord
    made.services = [made.service(made.web())]
    if supervisord.process is None or supervisord.process.poll() is not None:
        supervisord.start()
    before = made.stranger()
    yield made
    assert made.stranger() == before or made.restarted, "somebody else's program was restarted"
    names = list(supervisord.programs())
    if names:
        supervisord.ask("stop", *names)
        supervisord.ask("remove", *names)
    for path in supervisord.include.iterdir():
        path.unlink()
    supervisord.ask("reread")
    for entry in _processes.application_processes(made.root):
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry.pid, signal.SIGKILL)
    remove_tree(short)


SupervisedHost.restarted = False


def test_deploy_upgrade_and_roll_back(host: SupervisedHost) -> None:
    """No request is lost, the last one's section is all that is left, and nothing is done twice."""
    answer = host.deploy(ONE, host.release("one"))
    assert answer.get("changed") and answer["gate"]["passed"], answer
    assert answer["services"][0]["manager"] == "supervisor"
    assert host.ask() == f"{ONE} hello one"
    assert host.supervisord.programs() == {f"shop-test-web-{ONE}": "RUNNING", "shop-test": "EXITED"}
    again = host.deploy(ONE, "one")
    assert not again["changed"] and again["services"][0]["pid"] == answer["services"][0]["pid"]
    two = host.release("two")
    preview = host.run(**host.options(TWO, two), check=True)
    assert preview["changed"] and host.supervisord.sections() == {f"shop-test-web-{ONE}", "shop-test"}
    with Client(host) as client, Client(host, "/slow") as slow:
        answer = host.deploy(TWO, two, stay_up=0.2)
    assert answer["changed"], answer
    for asked in (client, slow):
        assert asked.lost == []
        assert asked.answers[0] == ONE and set(asked.answers) <= {ONE, TWO}
    assert host.ask() == f"{TWO} hello two"
    assert host.running() == {("web", TWO)}
    assert host.supervisord.sections() == {f"shop-test-web-{TWO}", "shop-test"}
    assert set(host.supervisord.programs()) == {f"shop-test-web-{TWO}", "shop-test"}
    answer = host.run(state="deployed", name="shop", stage="test", deployment=ONE, stay_up=0)
    assert answer["changed"], answer
    assert host.ask() == f"{ONE} hello one" and host.running() == {("web", ONE)}
    assert host.supervisord.sections() == {f"shop-test-web-{ONE}", "shop-test"}


def test_no_secret_lies_open(host: SupervisedHost) -> None:
    """Neither in a section, nor in a command line, nor in a file that everybody reads; nothing of supervisord's is inherited."""
    odd = "a\"b\\c $HOME `id` $(id) 'q' é %d ; #\nsecond line\\"
    environment = json.dumps({"SECRET_KEY": SECRET, "ODD": odd})
    host.deploy(ONE, host.release("one"), stay_up=0, environment=environment)
    for path in host.supervisord.include.iterdir():
        assert SECRET not in path.read_text()
    for path in host.layout.instances.iterdir():
        if not path.is_symlink():
            assert path.stat().st_mode & 0o007 == 0, path
    assert host.layout.log("web", ONE).stat().st_mode & 0o007 == 0
    found = _processes.application_processes(host.root)
    assert found
    for entry in found:
        assert SECRET not in entry.command
        variables = _processes.variables(entry.pid)
        assert variables["SECRET_KEY"] == SECRET and "OF_SUPERVISORD" not in variables
        assert variables["ODD"] == odd
    # The gate of services finds it, too.
    target = find(parse_check({"service": "web"}, "checks[0]"), str(host.root), None, [])
    state = target.service.state(30.0)
    assert state.wrong == "" and target.service.owns(state.pid)
    assert "starting with ********" in target.last_lines(5.0)
    host.supervisord.ask("stop", f"shop-test-web-{ONE}")
    target = find(parse_check({"service": "web"}, "checks[0]"), str(host.root), None, [])
    assert "STOPPED" in target.service.state(30.0).wrong


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("boot", "BACKOFF"),
        pytest.param("later", "BACKOFF", marks=pytest.mark.long),
        ("respawn", "were replaced"),
    ],
)
def test_a_bad_release_never_serves(
    host: SupervisedHost, monkeypatch: pytest.MonkeyPatch, fault: str, reason: str
) -> None:
    """The old one answers throughout, nothing of the new one is left, and its own last words are shown."""
    host.deploy(ONE, host.release("one"), stay_up=0)
    two = host.release("two", fault)
    if reason == "BACKOFF":
        # However slowly the machine gets there, it ends before it has started.
        monkeypatch.setattr(_supervisor, "START_SECONDS", 20)
    with Client(host) as client:
        answer = host.deploy(TWO, two, gate_timeout=0.3, stay_up=5 if fault == "respawn" else 0)
    assert answer["failed"] and answer["live_changed"] is False
    assert reason in answer["msg"] and "one serves as before" in answer["msg"], answer
    assert SECRET not in json.dumps(answer)
    assert "starting with ********" in answer["evidence"]
    if fault == "boot":
        assert "No module named 'shop.nonsense'" in answer["evidence"]
    assert client.lost == [] and set(client.answers) == {ONE}
    assert host.current() == "one" and host.running() == {("web", ONE)}
    assert host.supervisord.sections() == {f"shop-test-web-{ONE}", "shop-test"}
    assert set(host.supervisord.programs()) == {f"shop-test-web-{ONE}", "shop-test"}


@pytest.mark.long
def test_after_supervisord_was_killed_exactly_the_live_release_serves(host: SupervisedHost) -> None:
    """What an earlier supervisord left is ended; what was being tried is not started."""
    host.services = [host.service(host.web()), host.service(host.worker("beat"))]
    host.deploy(ONE, host.release("one"), stay_up=0)
    host.deploy(TWO, host.release("two"), stay_up=0)
    # A run that was cut short before it switched: all that is needed to start its instance is there.
    for path in (*host.supervisord.include.iterdir(), *host.layout.instances.glob(f"{TWO}.*")):
        if TWO in path.name:
            copy = path.with_name(path.name.replace(TWO, THREE))
            copy.write_text(path.read_text().replace(TWO, THREE))
            copy.chmod(path.stat().st_mode & 0o777)
    orphans = {entry.pid for entry in _processes.application_processes(host.root)}
    host.restarted = True
    host.supervisord.kill()
    assert host.running() == {("web", TWO), ("beat", TWO)}
    answer = host.deploy(THREE, host.release("three"))
    assert answer["failed"] and "does not answer supervisorctl" in answer["msg"], answer
    host.supervisord.start()
    wait_for(lambda: list(host.supervisord.programs().values()).count("RUNNING") == 2)
    wait_for(lambda: host.supervisord.programs()["shop-test"] == "EXITED")
    assert host.running() == {("web", TWO), ("beat", TWO)}
    found = {entry.pid for entry in _processes.application_processes(host.root)}
    assert not found & orphans
    # RUNNING is not listening yet.
    wait_for(lambda: host.answers(f"{TWO} hello two"))
    beats = [entry for entry in _processes.application_processes(host.root) if entry.service == "beat"]
    assert len(beats) == 1
    answer = host.deploy(THREE, "three", stay_up=0)
    assert answer["changed"], answer
    assert host.ask() == f"{THREE} hello three"
    assert host.running() == {("web", THREE), ("beat", THREE)}


@pytest.mark.long
def test_stopped_stays_stopped_until_supervisord_starts(host: SupervisedHost) -> None:
    """A TERM that is ignored ends in KILL; an operator's update starts nothing, the next start of supervisord does."""
    services = [host.service(host.web(stop_timeout=1))]
    host.deploy(ONE, host.release("one", "stubborn"), services=services, stay_up=0)
    assert host.run(state="stopped", name="shop", stage="test")["changed"]
    assert host.running() == set()
    assert not host.run(state="stopped", name="shop", stage="test")["changed"]
    host.supervisord.ask("update")
    assert host.supervisord.programs() == {f"shop-test-web-{ONE}": "STOPPED", "shop-test": "EXITED"}
    host.restarted = True
    host.supervisord.kill()
    host.supervisord.start()
    wait_for(lambda: host.running() == {("web", ONE)})
    wait_for(lambda: host.supervisord.programs()["shop-test"] == "EXITED")
    wait_for(lambda: host.answers(ONE))
    assert host.run(state="stopped", name="shop", stage="test", boot=False)["changed"]
    assert host.running() == set() and host.supervisord.sections() == {"shop-test"}


@pytest.mark.long
def test_in_place_at_a_port_with_a_worker(host: SupervisedHost) -> None:
    """Strategy restart: tried beside, then in place; a worker that fails brings everything back."""
    port = free_port()
    web = host.web(bind="port", port=port, command=f"{sys.executable} small_server.py tcp {{port}}")
    host.services = [host.service(web), host.service(host.worker())]
    host.deploy(ONE, host.release("one"), stay_up=0)
    answer = host.deploy(TWO, host.release("two"), stay_up=0)
    assert answer["changed"], answer
    assert host.running() == {("web", TWO), ("worker", TWO)}
    assert host.supervisord.sections() == {f"shop-test-web-{TWO}", f"shop-test-worker-{TWO}", "shop-test"}
    broken = host.service(host.worker())
    broken["command"] = "false"
    answer = host.deploy(THREE, host.release("three"), services=[host.services[0], broken], stay_up=0)
    assert answer["failed"] and answer["live_changed"] is False, answer
    assert host.running() == {("web", TWO), ("worker", TWO)} and _processes.listener_pids(port)
    assert host.supervisord.sections() == {f"shop-test-web-{TWO}", f"shop-test-worker-{TWO}", "shop-test"}


def free_port() -> int:
    """Return a port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts services as another user")
@pytest.mark.skipif(
    not os.access("/usr/bin/python3", os.X_OK), reason="there is no /usr/bin/python3 for everybody"
)
def test_as_another_user(host: SupervisedHost) -> None:
    """Under root's supervisord the service is the application's user, and can read its variables."""
    host.root.parent.chmod(0o755)
    os.chown(host.layout.run, pwd.getpwnam("nobody").pw_uid, -1)
    web = host.web(command="/usr/bin/python3 small_server.py unix {socket}")
    answer = host.deploy(ONE, host.release("one"), services=[host.service(web)], user="nobody", stay_up=0)
    assert answer.get("changed"), answer
    assert host.ask() == f"{ONE} hello one"
    found = _processes.application_processes(host.root)
    assert found and {os.stat(f"/proc/{entry.pid}").st_uid for entry in found} == {
        pwd.getpwnam("nobody").pw_uid
    }
    assert _processes.variables(found[0].pid)["HOME"] == pwd.getpwnam("nobody").pw_dir
    assert host.run(state="stopped", name="shop", stage="test", user="nobody")["changed"]
    assert host.running() == set()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"supervisor_config": "/nonexistent/supervisord.conf"}, "has no configuration"),
        ({"supervisor_include": "/nonexistent/conf.d"}, "does not exist on this host"),
        ({"supervisor_include": "{elsewhere}"}, "does not know the group"),
        ({"supervisor_include": "conf.d"}, "absolute path"),
    ],
)
def test_bad_places(host: SupervisedHost, tmp_path: Path, changes: dict[str, str], words: str) -> None:
    """One sentence, nothing runs, and no section is left."""
    wanted = {key: value.format(elsewhere=tmp_path) for key, value in changes.items()}
    host.services = [{**host.services[0], **wanted}]
    answer = host.deploy(ONE, host.release("one"))
    assert answer["failed"] and words in answer["msg"], answer
    assert host.running() == set() and host.supervisord.programs() == {}
    assert list(tmp_path.iterdir()) == [] and host.supervisord.sections() == set()


def test_no_supervisor_and_a_section_of_somebody_else(
    host: SupervisedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is not installed, and where somebody's section cannot be read."""
    (host.supervisord.include / "broken.conf").write_text("[program:broken]\n")
    answer = host.deploy(ONE, host.release("one"))
    assert answer["failed"] and "cannot read its configuration" in answer["msg"], answer
    assert "broken" in answer["evidence"] and host.supervisord.sections() == {"broken"}
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "which", lambda *_args, **_named: None)
        answer = host.deploy(ONE, "one")
    assert answer["failed"] and "There is no supervisorctl" in answer["msg"], answer
