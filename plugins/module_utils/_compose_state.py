# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is true of a service under ``compose``: which container publishes its port, of which instance, from which image.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from ansible_collections.runbook.deploy.plugins.module_utils._compose import judge
from ansible_collections.runbook.deploy.plugins.module_utils._compose_engine import (
    Container,
    application_containers,
    find_containers,
    require_engine,
    short,
)
from ansible_collections.runbook.deploy.plugins.module_utils._instance import TRIAL, read_instance
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem


def recorded_image(layout: Layout, deployment: str, service: str) -> str | None:
    """Return the digest that *service* of the instance *deployment* was started with; None where its files do not say."""
    with contextlib.suppress(Problem):
        instance = read_instance(layout, deployment)
        for spec in instance.services if instance else ():
            if spec["name"] == service:
                return spec.get("image_id")
    return None


def holder(port: int, containers: Iterable[Container]) -> str:
    """Return in words who holds *port* of this host, for a message; *containers* publish it."""
    for entry in containers:
        return f"container {entry.name}, of the image {short(entry.image)}"
    pids = _processes.listener_pids(port)
    return f"pid {pids[0]}: {_processes.command(pids[0])[:200]}" if pids else "another user's process"


def describe(
    service: Mapping[str, Any], containers: Iterable[Container], images: Mapping[str, str | None]
) -> dict[str, Any]:
    """Return what is true of *service*, see ``measure_service``; besides ``image``, the digest that runs, in short, and
    ``wrong_image``, a clause where that is not what was recorded.

    :param containers: those of the application; :param images: digest recorded, by deployment.
    """
    name = str(service["name"])
    own = [entry for entry in containers if entry.service == name and entry.status in ("running", "paused")]
    result: dict[str, Any] = {
        "name": name,
        "kind": service.get("kind", "web"),
        "deployment": None,
        "release": None,
        "running": bool(own),
        "pid": None,
        "answers": None,
        "foreign": None,
        "instances": [
            {"deployment": entry.deployment, "release": entry.release, "pid": entry.pid} for entry in own
        ],
        "image": None,
        "wrong_image": None,
    }
    web = result["kind"] == "web"
    port = int(service.get("port") or 0)
    proper = [entry for entry in own if not entry.deployment.endswith(TRIAL)]
    serving = max(
        (entry for entry in proper if not web or any(outside == port for _inside, outside in entry.ports)),
        key=lambda entry: entry.deployment,
        default=None,
    )
    if web:
        result["answers"] = False
    if serving is None:
        return result
    wanted = images.get(serving.deployment)
    status = judge(serving, wanted or serving.image)
    if web:
        result["answers"] = status.running
    result.update(image=short(serving.image), pid=serving.pid)
    if wanted and wanted != serving.image:
        # Whatever its labels say: this is not what was deployed.
        result.update(
            answers=None if not web else True,
            wrong_image=f"{name} runs the image {short(serving.image)}, where its deployment recorded {short(wanted)}",
        )
        return result
    result.update(deployment=serving.deployment, release=serving.release)
    return result


def measure(layout: Layout, services: Iterable[Mapping[str, Any]]) -> tuple[dict[str, dict[str, Any]], str]:
    """Return what is true of each of *services*, all under ``compose``, by name; and a sentence where that cannot be known, else ""."""
    listed = list(services)
    containers: list[Container] = []
    problem = ""
    try:
        require_engine()
        containers = application_containers(layout)
    except Problem as found:
        problem = found.message
    result = {}
    for service in listed:
        name = str(service["name"])
        images = {
            entry.deployment: recorded_image(layout, entry.deployment, name)
            for entry in containers
            if entry.service == name
        }
        measured = describe(service, containers, images)
        port = int(service.get("port") or 0) if measured["kind"] == "web" else 0
        if port and measured["pid"] is None and not problem:
            others = find_containers(port=port)
            if others or _processes.listener_inodes(port):
                measured["foreign"] = holder(port, others)
        result[name] = measured
    return result, problem
