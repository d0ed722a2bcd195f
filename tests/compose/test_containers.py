# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images and single containers with the real engine, without playbooks: what they are known by, how they end, what is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _compose, _compose_image
from ansible_collections.runbook.deploy.plugins.module_utils._application import Installed
from ansible_collections.runbook.deploy.plugins.module_utils._compose_state import measure
from ansible_collections.runbook.deploy.plugins.module_utils._instance import Instance
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from compose_site import base_image, docker

NAME = f"units-{os.getpid()}"
RELEASE = "0123456789ab-0a1b2c3d"
DEPLOYMENT = "20261121T013700-ab12"
WAIT_SECONDS = 60


def tiny(name: str, mark: str) -> str:
    """Make an image with next to nothing in it, called *name*; return its digest."""
    empty = bytes(10240)
    done = subprocess.run(
        ["docker", "import", "--change", f"LABEL mark={mark}", "-", name],
        input=empty,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode().strip()


class Shop:
    """A release with a Compose file, and no application."""

    def __init__(self, root: Path, base: str) -> None:
        self.layout = Layout(root)
        self.base = base
        self.path = self.layout.release(RELEASE)
        for path in (self.path, self.layout.instances, self.layout.run):
            path.mkdir(parents=True)

    def write(self, **service: Any) -> None:
        """Write the Compose file with its service "work"."""
        text = json.dumps({"services": {"work": service}})
        (self.path / "compose.yaml").write_text(text, encoding="utf-8")

    def spec(self, **changes: Any) -> dict[str, Any]:
        return {
            "name": "work",
            "kind": "worker",
            "manager": "compose",
            "bind": "none",
            "stop_timeout": 1,
            **changes,
        }

    def installed(self) -> Installed:
        names = ("RUNBOOK_VERSION", "RUNBOOK_COMMIT", "RUNBOOK_RELEASE")
        variables = dict(zip(names, ("v1", "0123456789ab" + "0" * 28, RELEASE)))
        return Installed(self.layout, self.path, self.path, None, None, variables, [])

    def ensure(self, *specs: dict[str, Any]) -> tuple[dict[str, Any], bool, list[str]]:
        return _compose_image.ensure(self.installed(), NAME, "test", specs, 120.0, self.layout.run)

    def unit(self, deployment: str, program: str, **changes: Any) -> tuple[_compose.ComposeUnit, Instance]:
        """Return a unit that runs the Python *program*, and its instance."""
        self.write(image=self.base, command=["python3", "-c", program], **changes.pop("service", {}))
        image = docker("image", "inspect", "--format", "{{.Id}}", self.base)
        spec = self.spec(image_id=image, **changes)
        variables = {"NAME": "of-the-test", "RUNBOOK_ROOT": str(self.layout.root)}
        instance = Instance(self.layout, deployment, {"release": RELEASE, "services": [spec]}, variables)
        return _compose.ComposeUnit(self.layout, (NAME, "test"), spec, deployment, None), instance

    def containers(self) -> list[str]:
        label = f"label=com.docker.compose.project={NAME}-test"
        return docker("ps", "--all", "--quiet", "--filter", label).split()

    def clean(self) -> None:
        for entry in self.containers():
            docker("rm", "--force", entry, check=False)
        docker("network", "rm", f"{NAME}-test_default", check=False)
        listed = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}")
        for tag in listed.split():
            if tag.startswith((f"runbook/{NAME}-test/", f"{NAME}", f"runbook.invalid/{NAME}")):
                docker("image", "rm", "--force", tag, check=False)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path / "srv", base_image())
    try:
        yield made
    finally:
        made.clean()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_release_keeps_its_image_when_the_tag_moves(shop: Shop) -> None:
    first = tiny(f"{NAME}:v1", "first")
    spec = shop.spec(image=f"{NAME}:{{version}}")
    images, changed, notes = shop.ensure(spec)
    assert (images["work"]["id"], images["work"]["origin"], changed, notes) == (first, "local", True, [])
    second = tiny(f"{NAME}:v1", "second")
    assert first != second
    images, changed, _notes = shop.ensure(spec)
    assert (images["work"]["id"], changed) == (first, False)
    assert json.loads((shop.path / ".images.json").read_text())["work"]["id"] == first
    assert docker("image", "inspect", "--format", "{{.Id}}", f"runbook/{NAME}-test/work:{RELEASE}") == first
    # What nothing names any more but our tag is spared.
    docker("image", "prune", "--force", "--filter", "label=mark=first")
    assert docker("image", "inspect", "--format", "{{.Id}}", first) == first


def test_an_image_that_cannot_be_had_stops_the_release(shop: Shop) -> None:
    with pytest.raises(Problem, match="is not on this host and cannot be pulled"):
        shop.ensure(shop.spec(image=f"runbook.invalid/{NAME}:v1"))
    assert not (shop.path / ".images.json").exists()


def test_a_registry_that_does_not_answer_is_told_where_the_image_is_here(shop: Shop) -> None:
    found = tiny(f"runbook.invalid/{NAME}:v1", "loaded")
    images, _changed, (note,) = shop.ensure(shop.spec(image=f"runbook.invalid/{NAME}:v1"))
    assert images["work"]["id"] == found
    assert "could not be pulled" in note


def test_the_compose_file_names_the_image_where_nobody_else_does(shop: Shop) -> None:
    found = tiny(f"{NAME}:v1", "named")
    shop.write(image=f"{NAME}:${{RUNBOOK_VERSION}}")
    images, _changed, _notes = shop.ensure(shop.spec())
    assert (images["work"]["id"], images["work"]["reference"]) == (found, f"{NAME}:v1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is not in the release"),
        ("services: {other: {image: x}}", "work"),
        ("services: {work: {image: x, network_mode: host}}", "network_mode"),
        ("services: [", "cannot use compose.yaml"),
        ("services: {work: {command: x}}", "image"),
        ("services: {work: {image: 'x:${MISSING:?is not set}'}}", "cannot use compose.yaml"),
    ],
)
def test_a_compose_file_that_cannot_be_used_stops_the_release(
    shop: Shop, text: str | None, words: str
) -> None:
    if text is not None:
        (shop.path / "compose.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(Problem) as raised:
        shop.ensure(shop.spec())
    assert words in raised.value.message + raised.value.evidence
    assert not (shop.path / ".images.json").exists()


def test_tags_of_releases_that_are_gone_go(shop: Shop) -> None:
    tiny(f"{NAME}:v1", "old")
    spec = shop.spec(image=f"{NAME}:v1")
    shop.ensure(spec)
    docker("tag", f"{NAME}:v1", f"runbook/{NAME}-test/work:ffffffffffff-0a1b2c3d")
    docker("tag", f"{NAME}:v1", f"runbook/{NAME}-testing/work:ffffffffffff-0a1b2c3d")
    _compose_image.prune(shop.layout, NAME, "test")
    left = docker(
        "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "--filter", f"reference=runbook/{NAME}-*/*"
    )
    docker("image", "rm", f"runbook/{NAME}-testing/work:ffffffffffff-0a1b2c3d")
    assert sorted(left.split()) == [
        f"runbook/{NAME}-test/work:{RELEASE}",
        f"runbook/{NAME}-testing/work:ffffffffffff-0a1b2c3d",
    ]


def test_a_worker_runs_with_its_variables_and_ends_by_term(shop: Shop) -> None:
    program = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "print(os.environ['NAME'], os.environ['RUNBOOK_SERVICE'], flush=True)\n"
        "time.sleep(600)"
    )
    unit, instance = shop.unit(DEPLOYMENT, program, stop_timeout=30)
    unit.start(instance)
    wait_for(lambda: "of-the-test work" in unit.tail())
    status = unit.status()
    assert (status.running, status.restarts) == (True, 0)
    assert unit.owns(status.pid or 0)
    assert "(hidden)" not in unit.tail() and "of-the-test" not in unit.tail(20, ("of-the-test",))
    assert unit.file.stat().st_mode & 0o777 == 0o600
    assert unit.stop(30) is False
    assert shop.containers() == []
    assert unit.exists() is False


def test_a_worker_that_ignores_term_is_killed(shop: Shop) -> None:
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    unit, instance = shop.unit(DEPLOYMENT, program)
    unit.start(instance)
    wait_for(lambda: "ready" in unit.tail())
    assert unit.stop(1) is True
    assert shop.containers() == []


def test_a_container_that_the_engine_starts_again_and_again_has_failed(shop: Shop) -> None:
    unit, instance = shop.unit(DEPLOYMENT, "raise SystemExit('no such table: shop')")
    unit.start(instance)
    wait_for(lambda: unit.status().restarts > 0)
    wait_for(lambda: unit.status().failed)
    assert "no such table: shop" in unit.tail()


def test_a_container_put_in_the_place_of_another_is_seen(shop: Shop) -> None:
    unit, instance = shop.unit(DEPLOYMENT, "import time; time.sleep(600)")
    unit.start(instance)
    first = unit.status()
    again, _instance = shop.unit(DEPLOYMENT, "import time; time.sleep(600)")
    again.start(instance)
    wait_for(lambda: unit.status().pid != first.pid)
    assert unit.status().restarts == 1


def test_several_containers_of_a_service_are_refused(shop: Shop) -> None:
    unit, instance = shop.unit(DEPLOYMENT, "import time; time.sleep(600)", service={"scale": 2})
    with pytest.raises(Problem, match="started 2 containers"):
        unit.start(instance)
    unit.stop(1)
    assert shop.containers() == []


def test_nothing_is_started_without_its_image(shop: Shop) -> None:
    unit, instance = shop.unit(DEPLOYMENT, "pass")
    unit.image = "sha256:" + "0" * 64
    with pytest.raises(Problem, match="is not on this host any more"):
        unit.start(instance)
    assert shop.containers() == []


def test_a_web_service_that_publishes_another_port_is_refused_before_its_trial(shop: Shop) -> None:
    changes = {"kind": "web", "bind": "port", "port": 18999, "service": {"ports": ["127.0.0.1:18998:80"]}}
    unit, instance = shop.unit(f"{DEPLOYMENT}.trial", "import time; time.sleep(600)", **changes)
    with pytest.raises(Problem, match="does not publish port 18999"):
        unit.start(instance)
    assert shop.containers() == []


def test_a_port_that_only_the_engine_listens_on_does_not_count(shop: Shop) -> None:
    """The engine accepts connections to a published port, whether anybody in the container does or not."""
    program = (
        "import os, socket, time\n"
        "time.sleep(3)\n"
        "s = socket.create_server(('0.0.0.0', 80)); print('listens', flush=True); time.sleep(600)"
    )
    changes: dict[str, Any] = {
        "kind": "web",
        "bind": "port",
        "service": {"ports": ["127.0.0.1:${RUNBOOK_PORT}:80"]},
    }
    changes["port"] = free_port()
    unit, instance = shop.unit(DEPLOYMENT, program, **changes)
    unit.start(instance)
    before = unit.listens()
    assert "listens" in unit.tail() or "nobody listens on port 80" in before
    wait_for(lambda: "listens" in unit.tail())
    wait_for(lambda: unit.listens() == "")
    measured, problem = measure(shop.layout, [unit.spec])
    assert (problem, measured["work"]["answers"], measured["work"]["deployment"]) == ("", True, DEPLOYMENT)
    assert measured["work"]["foreign"] is None


def test_what_somebody_started_by_hand_is_named_and_replaced(shop: Shop) -> None:
    changes: dict[str, Any] = {
        "kind": "web",
        "bind": "port",
        "service": {"ports": ["127.0.0.1:${RUNBOOK_PORT}:80"]},
    }
    changes["port"] = free_port()
    unit, instance = shop.unit(DEPLOYMENT, "import time; time.sleep(600)", **changes)
    environment = {**os.environ, "RUNBOOK_PORT": str(changes["port"])}
    words = ["docker", "compose", "-p", f"{NAME}-test", "up", "--detach", "work"]
    subprocess.run(words, cwd=shop.path, env=environment, check=True, capture_output=True, timeout=120)
    (stranger,) = shop.containers()
    measured, _problem = measure(shop.layout, [unit.spec])
    assert measured["work"]["release"] is None
    assert measured["work"]["foreign"].startswith(f"container {NAME}-test-work-1, of the image ")
    unit.clear_way()
    assert shop.containers() == []
    unit.start(instance)
    (ours,) = shop.containers()
    assert ours != stranger
