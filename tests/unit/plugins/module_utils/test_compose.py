# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is concluded of containers and images, and what is written for Compose; the engine itself is in tests/compose."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.runbook.deploy.plugins.module_utils import (
    _compose,
    _compose_engine,
    _compose_image,
    _compose_state,
    _state,
)
from ansible_collections.runbook.deploy.plugins.module_utils._chosen import complete
from ansible_collections.runbook.deploy.plugins.module_utils._compose_engine import (
    Container,
    Place,
    is_recent,
    parse_containers,
    pick_port,
)
from ansible_collections.runbook.deploy.plugins.module_utils._contract import (
    check,
    check_service,
    complete_service,
)
from ansible_collections.runbook.deploy.plugins.module_utils._instance import Instance, overlay_file
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._measured import mismatches
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._report import service_sentence, unsettled
from ansible_collections.runbook.deploy.plugins.module_utils._retention import INSTANCE_FILE
from test_contract import values

IMAGE = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
DEPLOYMENT = "20261121T013700-ab12"
SPEC = {"name": "web", "kind": "web", "manager": "compose", "bind": "port", "port": 8000, "stop_timeout": 10}


def container(**changes: Any) -> Container:
    """A container that runs as this process."""
    labels = {
        "runbook.deploy.service": "web",
        "runbook.deploy.deployment": DEPLOYMENT,
        "runbook.deploy.release": "r1",
    }
    found = Container("c1", "shop-web-1", IMAGE, labels, "running", os.getpid(), 0, 0, "", ((80, 8000),), "")
    return found._replace(**changes)


def test_a_container_is_read_without_its_secrets() -> None:
    entry = {
        "Id": "c1",
        "Name": "/shop-web-1",
        "Image": IMAGE,
        "RestartCount": 2,
        "State": {
            "Status": "running",
            "Pid": 12,
            "ExitCode": 0,
            "Health": {"Status": "starting"},
            "Error": "",
        },
        "Config": {"Labels": {"a": "b"}, "Env": ["PASSWORD=of-the-database"]},
        "NetworkSettings": {
            "Ports": {
                "80/tcp": [
                    {"HostIp": "127.0.0.1", "HostPort": "8000"},
                    {"HostIp": "::1", "HostPort": "8000"},
                ],
                "53/udp": [{"HostIp": "0.0.0.0", "HostPort": "53"}],
                "443/tcp": None,
            }
        },
    }
    (found,) = parse_containers(json.dumps([entry]))
    assert found == Container(
        "c1", "shop-web-1", IMAGE, {"a": "b"}, "running", 12, 2, 0, "starting", ((80, 8000),), ""
    )
    assert "of-the-database" not in repr(found)


def test_a_container_without_anything_is_read() -> None:
    (found,) = parse_containers('[{"Id": "c1"}]')
    assert (found.status, found.pid, found.ports, found.health) == ("unknown", 0, (), "")
    assert parse_containers("") == []


@pytest.mark.parametrize(
    ("changes", "running", "failed", "words"),
    [
        ({}, True, False, "is running"),
        ({"health": "healthy"}, True, False, "healthy"),
        ({"health": "starting"}, True, False, "starting"),
        ({"health": "unhealthy"}, False, True, "unhealthy"),
        ({"image": OTHER}, False, True, "runs the image bbbbbbbbbbbb, where the release names aaaaaaaaaaaa"),
        ({"status": "exited", "pid": 0, "exit_code": 3}, False, True, "exited with exit code 3"),
        ({"status": "restarting", "pid": 0, "restarts": 4}, False, True, "started again 4 times"),
        ({"status": "created", "pid": 0, "error": "port is taken"}, False, False, "(port is taken)"),
        ({"status": "paused"}, False, True, "is paused"),
    ],
)
def test_a_container_is_judged(changes: dict[str, Any], running: bool, failed: bool, words: str) -> None:
    found = _compose.judge(container(**changes), IMAGE)
    assert (found.running, found.failed) == (running, failed)
    assert words in found.detail
    assert found.restarts == changes.get("restarts", 0)


def test_no_container_is_no_failure() -> None:
    found = _compose.judge(None, IMAGE)
    assert (found.running, found.failed) == (False, False)


def test_every_value_reaches_a_container_as_it_is(tmp_path: Path) -> None:
    value = "$HOME ${NAME} $$ \"q\" 'q' \\ # : \x7f \x07 \u0085 \U0001f600 \ufeff\nnext\tline"
    document = {"release": "r1", "services": [SPEC]}
    instance = Instance(
        Layout(tmp_path), DEPLOYMENT, document, {"VALUE": value, "PATH": "/host/bin", "VIRTUAL_ENV": "/host"}
    )
    text = _compose.yaml_text(
        _compose.overlay(instance, SPEC, Place("shop-test", "compose.yaml", "site"), IMAGE)
    )
    assert text.isascii()
    service = yaml.safe_load(text)["services"]["site"]
    # Compose makes one dollar sign of two, and replaces what follows one.
    assert service["environment"].pop("VALUE").replace("$$", "$") == value
    assert service["environment"] == {"RUNBOOK_DEPLOYMENT": DEPLOYMENT, "RUNBOOK_SERVICE": "web"}
    assert service["image"] == IMAGE
    assert service["labels"]["runbook.deploy.root"] == str(tmp_path)
    assert (service["pull_policy"], service["restart"], service["stop_grace_period"]) == (
        "never",
        "unless-stopped",
        "10s",
    )


def test_what_leads_the_docker_command_elsewhere_is_not_passed_on() -> None:
    given = {
        "DOCKER_HOST": "tcp://x",
        "COMPOSE_FILE": "y",
        "BUILDKIT_HOST": "z",
        "PATH": "/x",
        "NAME": "kept",
    }
    found = _compose.own_variables(given, SPEC, None)
    assert found == {
        "NAME": "kept",
        "RUNBOOK_PORT": "8000",
        "RUNBOOK_UID": str(os.geteuid()),
        "RUNBOOK_GID": found["RUNBOOK_GID"],
    }


def test_the_file_over_the_compose_file_goes_with_its_instance() -> None:
    for deployment in (DEPLOYMENT, f"{DEPLOYMENT}.trial"):
        name = overlay_file(Layout("/srv/shop"), deployment, "web").name
        assert INSTANCE_FILE.match(name), name


def test_a_published_port_is_found_or_missed() -> None:
    place = Place("shop-test", "compose.yaml", "web")
    service = {
        "ports": [{"target": 53, "published": "8000", "protocol": "udp"}, {"target": 80, "published": "8000"}]
    }
    assert pick_port(service, place, 8000) == 80
    with pytest.raises(Problem, match="does not publish port 8001"):
        pick_port(service, place, 8001)


def test_an_old_compose_is_refused() -> None:
    assert [is_recent(version) for version in ("2.26.1-4", "v2.40.3", "5.0.0", "2.20.0")] == [True] * 4
    assert [is_recent(version) for version in ("1.29.2", "v2.19.1", "", "dev")] == [False] * 4


@pytest.mark.parametrize(
    ("reference", "registry"),
    [
        ("shop:1", False),
        ("team/shop:1", False),
        ("registry.example.org/shop:1", True),
        ("registry:5000/shop", True),
        ("localhost/shop", True),
        ("docker.io/library/python", True),
    ],
)
def test_only_an_image_that_names_its_registry_is_looked_for_there_first(
    reference: str, registry: bool
) -> None:
    assert _compose_image.has_registry(reference) is registry


def test_the_name_of_an_image_is_filled_in() -> None:
    facts = {"version": "v2.7", "commit": "c" * 40, "release": "r1"}
    assert (
        _compose_image.fill("registry:5000/shop:{version}-{release}", facts) == "registry:5000/shop:v2.7-r1"
    )
    with pytest.raises(Problem, match="which is no name of an image"):
        _compose_image.fill("shop:{version}", {"version": "a branch"})
    with pytest.raises(Problem, match="which is no name of an image"):
        _compose_image.fill("--privileged", facts)


def described(**changes: Any) -> dict[str, Any]:
    return _compose_state.describe(SPEC, [container(**changes)], {DEPLOYMENT: IMAGE})


def test_what_serves_is_the_container_that_publishes_the_port() -> None:
    found = described()
    assert (found["answers"], found["running"], found["deployment"], found["release"]) == (
        True,
        True,
        DEPLOYMENT,
        "r1",
    )
    assert found["image"] == "a" * 12
    found = described(ports=())
    assert (found["answers"], found["running"], found["release"]) == (False, True, None)
    found = described(status="exited", pid=0)
    assert (found["answers"], found["running"], found["instances"]) == (False, False, [])
    assert described(health="unhealthy")["answers"] is False


def test_a_trial_that_was_left_behind_serves_nobody() -> None:
    labels = {**container().labels, "runbook.deploy.deployment": f"{DEPLOYMENT}.trial"}
    found = described(labels=labels)
    assert (found["answers"], found["release"], len(found["instances"])) == (False, None, 1)


def test_another_image_than_recorded_is_drift() -> None:
    found = described(image=OTHER)
    assert found["release"] is None
    sentence = "web runs the image bbbbbbbbbbbb, where its deployment recorded aaaaaaaaaaaa"
    current = {"release": "r1", "deployment": DEPLOYMENT}
    assert mismatches({"services": [found], "current": current}, current) == [sentence]
    assert service_sentence(found) == sentence
    assert sentence in unsettled("web1", {"services": [found], "current": current})[0]
    # Where its files are gone, nobody recorded anything.
    assert _compose_state.describe(SPEC, [container(image=OTHER)], {DEPLOYMENT: None})["release"] == "r1"


def test_a_worker_needs_no_port() -> None:
    found = _compose_state.describe(
        {**SPEC, "kind": "worker", "port": 0}, [container(ports=())], {DEPLOYMENT: IMAGE}
    )
    assert (found["answers"], found["running"], found["release"]) == (None, True, "r1")


def test_a_host_without_docker_is_a_problem_before_anything_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compose_engine, "DEFAULT_PATH", str(tmp_path))
    state = _state.measure(Layout(tmp_path), services=[SPEC])
    (problem,) = (entry for entry in state["problems"] if entry["code"] == "compose_missing")
    assert problem["message"].startswith("There is no docker command on this host")
    (found,) = state["services"]
    assert (found["running"], found["answers"], found["foreign"]) == (False, False, None)


@pytest.mark.parametrize(
    ("service", "words"),
    [
        ({"name": "web"}, "has no port"),
        ({"name": "web", "port": 8000, "command": "gunicorn"}, "command is there"),
        ({"name": "web", "port": 8000, "strategy": "blue_green"}, "remove it"),
        ({"name": "web", "bind": "socket"}, "has no port"),
        ({"name": "work", "kind": "worker", "celery": "shop"}, "celery is there"),
        ({"name": "web", "port": 8000, "compose_file": "/srv/compose.yaml"}, "inside the release"),
        ({"name": "web", "port": 8000, "compose_file": "../compose.yaml"}, "inside the release"),
        ({"name": "web", "port": 8000, "compose_project": "Shop"}, "lower-case"),
        ({"name": "web", "port": "8000"}, "whole number"),
    ],
)
def test_the_contract_refuses_what_a_container_cannot(service: dict[str, Any], words: str) -> None:
    (error,) = check_service(0, {"manager": "compose", **service}, "/srv/shop")
    assert words in error


def test_the_contract_takes_a_container() -> None:
    for service in (
        {"name": "web", "port": 8000},
        {"name": "work", "kind": "worker", "image": "shop:{version}"},
    ):
        assert check_service(0, {"manager": "compose", **service}, "/srv/shop") == []
    full = complete_service({"name": "web", "manager": "compose", "port": 8000})
    assert (full["strategy"], full["compose_file"], full["image"], full["command"]) == (
        "restart",
        "compose.yaml",
        "",
        "",
    )
    (error,) = check_service(0, {"name": "web", "command": "x {socket}", "image": "shop:1"}, "/srv/shop")
    assert "only manager: compose looks at it" in error


def test_flags_are_not_read_again_by_a_container() -> None:
    services = [{"name": "web", "manager": "compose", "port": 8000}]
    store = {"kind": "environment_file", "path": "/srv/shop/shared/flags.env"}
    flags = {"store": store, "flags": ["NEW"], "stages": {"on": {"NEW": True}}}
    assert check(values(app_services=services, app_flags=flags), "deployment") == []
    store["reload"] = "web"
    (error,) = check(values(app_services=services, app_flags=flags), "deployment")
    assert "app_flags.store.reload is 'web', a container" in error


def test_a_service_of_another_manager_needs_a_command() -> None:
    with pytest.raises(Problem, match="has no command"):
        complete(
            {
                "name": "web",
                "kind": "web",
                "manager": "systemd",
                "command": "",
                "bind": None,
                "port": 0,
                "strategy": None,
            }
        )
    full = complete({**SPEC, "command": "", "strategy": None, "compose_file": "compose.yaml", "celery": None})
    assert (full["strategy"], full["celery"]) == ("restart", "")
