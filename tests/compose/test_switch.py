# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""compose_image and app_service with small containers: switching, refusing, taking back, what was left behind."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils._compose_state import measure
from ansible_collections.runbook.deploy.plugins.module_utils._instance import read_instance
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._service_spec import parse_check
from ansible_collections.runbook.deploy.plugins.module_utils._service_target import find
from ansible_collections.runbook.deploy.plugins.modules import app_service, compose_image
from compose_site import base_image, clean, containers, docker

NAME = f"switch-{os.getpid()}"
SECRET = "do-not-show-me"
ONE = "20261121T010000-aaaa"
TWO = "20261121T020000-bbbb"
THREE = "20261121T030000-cccc"
RELEASES = {"one": "111111111111-0a1b2c3d", "two": "222222222222-0a1b2c3d", "three": "333333333333-0a1b2c3d"}
# What a container runs: it answers with its deployment and what is in its image, with one fault or none.
PROGRAM = """
import http.server, os, pathlib, signal, sys, threading
fault, starts = os.environ.get("FAULT", ""), pathlib.Path(os.environ["RUNBOOK_ROOT"], "shared", "starts")
if fault == "ends at once": sys.exit("no such table: shop " + os.environ["SECRET_KEY"])
with starts.open("a") as stream: stream.write(os.environ["RUNBOOK_DEPLOYMENT"] + "\\n")
if fault == "ends in place" and starts.read_text().count("bbbb") > 1: sys.exit("only once")
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
if fault == "dies": threading.Timer(4, lambda: os._exit(7)).start()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(500 if fault == "answers wrong" else 200)
        self.end_headers()
        self.wfile.write(f"{os.environ['RUNBOOK_DEPLOYMENT']} {pathlib.Path('/content').read_text()}".encode())
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("0.0.0.0", 80), Handler).serve_forever()
"""


class Host:
    """A host with an application root, and the modules run on it."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.layout = Layout(root)
        self.capsys = capsys
        self.base = base_image()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.services: list[dict[str, Any]] = [
            {"name": "web", "manager": "compose", "port": self.port, "stop_timeout": 5}
        ]
        for directory in (self.layout.releases, self.layout.run, self.layout.shared):
            directory.mkdir(parents=True)

    def release(self, name: str, fault: str = "", **service: Any) -> str:
        """Make a release with *fault*, its image built."""
        path = self.layout.release(RELEASES[name])
        path.mkdir()
        web = {
            "build": ".",
            "command": ["python3", "-c", PROGRAM],
            "ports": ["127.0.0.1:${RUNBOOK_PORT}:80"],
            "volumes": ["${RUNBOOK_ROOT}/shared:${RUNBOOK_ROOT}/shared"],
            "environment": {"FAULT": fault},
            **service,
        }
        worker = {
            "image": self.base,
            "command": ["python3", "-c", "import time; time.sleep(600)"],
            "init": True,
        }
        (path / "compose.yaml").write_text(json.dumps({"services": {"web": web, "worker": worker}}))
        (path / "Dockerfile").write_text(f"FROM {self.base}\nCOPY content /content\n")
        (path / "content").write_text(name)
        (path / ".release.json").write_text(
            json.dumps({"name": path.name, "commit": "c" * 40, "version": name})
        )
        (path / ".built").write_text("")
        answer = self.run(compose_image, **self.about(), release=path.name, services=self.services)
        assert not answer.get("failed"), answer
        return path.name

    def about(self) -> dict[str, Any]:
        environment = json.dumps({"SECRET_KEY": SECRET})
        return {"root": str(self.layout.root), "name": NAME, "stage": "test", "environment": environment}

    def run(self, module: Any, check: bool = False, **options: Any) -> dict[str, Any]:
        """Run *module* and return its answer."""
        with patch_module_args(options | {"_ansible_check_mode": check}), pytest.raises(SystemExit):
            module.main()
        return json.loads(self.capsys.readouterr().out)

    def deploy(self, deployment: str, release: str, **changes: Any) -> dict[str, Any]:
        """Bring *release* live as *deployment* and return the answer."""
        options = {
            **self.about(),
            "state": "deployed",
            "deployment": deployment,
            "release": release,
            "services": self.services,
            "health_checks": [{"url": "/", "contains": "{deployment}"}],
            "start_timeout": 60,
            "gate_timeout": 3,
            "stay_up": 5,
            "drain_timeout": 3,
        } | changes
        return self.run(app_service, **options)

    def ask(self) -> str:
        """What is answered at the port."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", "/")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def containers(self) -> list[dict[str, Any]]:
        """All containers of the project, running or not."""
        return containers(NAME)

    def container(self) -> dict[str, Any]:
        """The only container."""
        (found,) = self.containers()
        assert found["State"]["Running"]
        return found

    def current(self) -> str:
        """What is current."""
        return Path(os.readlink(self.layout.current)).name


@pytest.fixture
def host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Host]:
    """A host whose containers are removed afterwards."""
    made = Host(tmp_path / "srv", capsys)
    try:
        yield made
    finally:
        clean(NAME)


def test_forward_and_back_by_digest(host: Host) -> None:
    one, two = host.release("one"), host.release("two")
    answer = host.deploy(ONE, one)
    assert answer.get("changed") is True, answer
    assert host.ask() == f"{ONE} one"
    first = host.container()
    assert answer["services"][0]["image"] == first["Image"][7:19]
    assert host.deploy(ONE, one)["changed"] is False
    assert host.container()["Id"] == first["Id"]

    answer = host.deploy(TWO, two)
    assert answer.get("changed") is True, answer
    assert host.ask() == f"{TWO} two"
    second = host.container()
    assert second["Image"] != first["Image"]
    assert second["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    assert host.current() == two

    # The tag of the former release means something else by now; what was deployed goes back all the same.
    docker("tag", second["Image"], f"runbook/{NAME}-test/web:{one}")
    try:
        answer = host.deploy(ONE, one, services=None)
        assert answer.get("changed") is True, answer
        assert host.ask() == f"{ONE} one"
        assert host.container()["Image"] == first["Image"]
        assert host.current() == one
    finally:
        docker("tag", first["Image"], f"runbook/{NAME}-test/web:{one}")

    # The gate of services sees it, and whose it is.
    check = parse_check({"service": "web"}, "app_gates[0]")
    target = find(check, str(host.layout.root), None, [])
    state = target.service.state(30.0)
    assert (state.wrong, state.pid, state.restarts) == ("", host.container()["State"]["Pid"], 0)

    answer = host.run(app_service, **host.about(), state="stopped", boot=False)
    assert answer["changed"] is True
    assert host.containers() == []
    with pytest.raises(OSError):
        host.ask()


@pytest.mark.parametrize(
    ("fault", "service", "words"),
    [
        ("ends at once", {}, "does not stay up"),
        ("answers wrong", {}, "is not healthy"),
        ("dies", {}, "does not stay up"),
        (
            "",
            {
                "healthcheck": {
                    "test": ["CMD", "/bin/false"],
                    "interval": "1s",
                    "timeout": "20s",
                    "retries": 1,
                }
            },
            "unhealthy",
        ),
        ("", {"command": ["/no/such/program"]}, "could not start"),
    ],
)
def test_a_broken_release_is_refused_beside_the_old_one(
    host: Host, fault: str, service: dict[str, Any], words: str
) -> None:
    one, two = host.release("one"), host.release("two", fault, **service)
    host.deploy(ONE, one)
    before = host.container()
    answer = host.deploy(TWO, two)
    assert answer["failed"] and answer["live_changed"] is False
    assert words in answer["msg"], answer
    after = host.container()
    assert (after["Id"], after["State"]["StartedAt"]) == (before["Id"], before["State"]["StartedAt"])
    assert host.ask() == f"{ONE} one"
    assert host.current() == one
    if fault == "ends at once":
        assert "no such table: shop" in answer["evidence"]
    assert SECRET not in json.dumps(answer)
    assert list(host.layout.instances.glob("*bbbb*")) == []


def test_what_fails_only_in_its_place_is_taken_back_by_digest(host: Host) -> None:
    one, two = host.release("one"), host.release("two", "ends in place")
    host.deploy(ONE, one)
    before = host.container()
    answer = host.deploy(TWO, two)
    assert answer["failed"] and answer["live_changed"] is False, answer
    assert "does not stay up" in answer["msg"] and f"The release {one} serves as before" in answer["msg"]
    after = host.container()
    assert after["Id"] != before["Id"] and after["Image"] == before["Image"]
    assert host.ask() == f"{ONE} one"
    assert host.current() == one


def test_another_image_behind_the_same_labels_is_seen_and_replaced(host: Host) -> None:
    one, two = host.release("one"), host.release("two")
    host.deploy(ONE, one)
    proper = host.container()
    images = json.loads((host.layout.release(two) / ".images.json").read_text())
    labels = [
        word
        for name, value in proper["Config"]["Labels"].items()
        for word in ("--label", f"{name}={value}")
        if name.startswith(("runbook.deploy.", "com.docker.compose."))
    ]
    variables = [word for entry in proper["Config"]["Env"] for word in ("--env", entry)]
    shared = str(host.layout.shared)
    docker("rm", "--force", proper["Id"])
    docker(
        *("run", "--detach", "--name", proper["Name"].lstrip("/"), *labels, *variables),
        *("--publish", f"127.0.0.1:{host.port}:80", "--volume", f"{shared}:{shared}"),
        *(images["web"]["id"], "python3", "-c", PROGRAM),
    )
    instance = read_instance(host.layout, ONE)
    assert instance is not None
    measured, _problem = measure(host.layout, instance.services)
    assert measured["web"]["release"] is None
    assert measured["web"]["wrong_image"].startswith(f"web runs the image {images['web']['id'][7:19]}, ")
    answer = host.deploy(ONE, one, services=None)
    assert answer["changed"] is True
    assert host.container()["Image"] == proper["Image"]
    assert host.ask() == f"{ONE} one"


def test_an_image_that_is_gone_is_missed_before_anything_is_stopped(host: Host) -> None:
    one, two = host.release("one"), host.release("two")
    host.deploy(ONE, one)
    former = host.container()["Image"]
    host.deploy(TWO, two)
    before = host.container()
    docker("image", "rm", "--force", former)
    answer = host.deploy(ONE, one, services=None)
    assert answer["failed"] and answer["live_changed"] is False
    assert (
        f"The image {former[7:19]} of service 'web'" in answer["msg"]
        and "deploy its version again" in answer["msg"]
    )
    assert host.container()["Id"] == before["Id"]
    assert host.ask() == f"{TWO} two"
    # Deployed again, it is built again.
    answer = host.run(compose_image, **host.about(), release=one, services=host.services)
    assert answer["changed"] is True
    assert host.deploy(THREE, one)["changed"] is True
    assert host.ask() == f"{THREE} one"


def test_what_a_killed_run_left_is_stopped(host: Host) -> None:
    one, two = host.release("one"), host.release("two")
    host.deploy(ONE, one)
    left = host.container()
    # The trial of a run that died: a further container with its labels.
    labels = {**left["Config"]["Labels"], "runbook.deploy.deployment": f"{TWO}.trial"}
    words = [word for name, value in labels.items() for word in ("--label", f"{name}={value}")]
    docker("run", "--detach", *words, host.base, "sleep", "600")
    answer = host.deploy(THREE, two)
    assert answer.get("changed") is True, answer
    host.container()
    assert host.ask() == f"{THREE} two"


def test_a_web_service_and_a_worker_of_one_file(host: Host) -> None:
    worker = {"name": "worker", "kind": "worker", "manager": "compose", "stop_timeout": 1, "image": host.base}
    host.services.append(worker)
    answer = host.deploy(ONE, host.release("one"))
    assert answer.get("changed") is True, answer
    assert {entry["name"]: entry["running"] for entry in answer["services"]} == {"web": True, "worker": True}
    before = {entry["Config"]["Labels"]["runbook.deploy.service"]: entry["Id"] for entry in host.containers()}
    answer = host.deploy(TWO, host.release("two"))
    after = {entry["Config"]["Labels"]["runbook.deploy.service"]: entry["Id"] for entry in host.containers()}
    assert set(after) == {"web", "worker"}
    assert not set(before.values()) & set(after.values())
    assert host.ask() == f"{TWO} two"


def test_a_release_without_an_image_is_refused(host: Host) -> None:
    one = host.release("one")
    (host.layout.release(one) / ".images.json").unlink()
    answer = host.deploy(ONE, one)
    assert answer["failed"] and "does not name the image of service 'web'" in answer["msg"]
    assert host.containers() == []
