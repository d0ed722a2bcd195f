# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the options of ``app_service`` to the instance that is meant: a new one, an earlier one, the live one.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._application import instance_variables
from ansible_collections.runbook.deploy.plugins.module_utils._compose import read_images
from ansible_collections.runbook.deploy.plugins.module_utils._fleet import live_deployment
from ansible_collections.runbook.deploy.plugins.module_utils._instance import (
    Instance,
    describe,
    read_instance,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    ADOPTED,
    DEPLOYMENT_ID,
    Layout,
    read_json,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# A web server in front of the application ends TLS; without this header many applications redirect.
HEADERS = {"X-Forwarded-Proto": "https"}


def complete(service: Mapping[str, Any]) -> dict[str, Any]:
    """Return the definition *service* with its defaults filled in.

    :raises Problem: when its parts contradict each other.
    """
    result = {key: value for key, value in service.items() if key != "groups"}
    where = f"app_services: service {result['name']!r}"
    for key in ("supervisor_config", "supervisor_include"):
        if result["manager"] != "supervisor":
            result.pop(key, None)
        elif not os.path.isabs(result[key]):
            raise Problem(f"{where} has the {key} {result[key]!r}: it must be an absolute path.")
    for key in ("compose_project", "compose_file", "compose_service", "image"):
        if result["manager"] != "compose":
            result.pop(key, None)
    if result["manager"] != "compose" and not result["command"].strip():
        raise Problem(f"{where} has no command: every service needs one, but those under compose.")
    if result["manager"] == "compose":
        # Nobody of the host's Celery reaches a worker by its PID there: it is sent TERM.
        result["celery"] = ""
        if result["kind"] == "web" and not result["port"]:
            raise Problem(
                f"{where} has no port, and a container is reached by the port that it publishes: add port."
            )
    if not result["name"] or any(sign in result["name"] for sign in "./@ \n"):
        raise Problem(
            f"{where} has a name that no unit and no file can have: use letters, digits and dashes."
        )
    if result["kind"] != "web":
        result.update(bind="none", strategy="restart")
        return result
    if result["bind"] in (None, "none"):
        result["bind"] = "port" if result["port"] else "socket"
    if result["bind"] == "port" and not 0 < (result["port"] or 0) < 65536:
        raise Problem(
            f"{where} binds a port but has port {result['port']}: give it one between 1 and 65535, or bind: socket."
        )
    if result["bind"] == "port" and result["strategy"] == "blue_green":
        raise Problem(
            f"{where} binds a port, which two instances cannot share, so blue_green is impossible: use bind: socket "
            "behind a web server, or strategy: restart."
        )
    if not result["strategy"]:
        result["strategy"] = "blue_green" if result["bind"] == "socket" else "restart"
    return result


def new_instance(layout: Layout, options: Mapping[str, Any], environment: Mapping[str, str]) -> Instance:
    """Return the instance that the options describe; nothing is written.

    :raises Problem: when the release does not exist or the options contradict each other.
    """
    services = [complete(service) for service in options["services"]]
    images = read_images(layout, options["release"])
    for service in services:
        if service["manager"] == "compose":
            if service["name"] not in images:
                raise Problem(
                    f"The release {options['release']!r} does not name the image of service {service['name']!r}: have compose_image make it, "
                    "as the release phase does."
                )
            service["image_id"] = images[service["name"]]["id"]
    names = [service["name"] for service in services]
    if len(set(names)) != len(names):
        raise Problem(f"app_services names a service twice on this host: found {', '.join(sorted(names))}.")
    release = layout.release(options["release"])
    if not options["release"] or not release.is_dir():
        raise Problem(
            f"The release {options['release']!r} does not exist in {layout.releases}: run the release phase first."
        )
    known = read_json(release / ".release.json") or {}
    facts = {"name": options["release"], "environment": known.get("environment")}
    for key in ("commit", "version", "directory"):
        facts[key] = options[key] or known.get(key) or ""
    path = options["environment_path"]
    if not path and known.get("environment"):
        path = str(layout.environment(known["environment"]))
    variables = instance_variables(
        root=layout.root,
        name=options["name"],
        stage=options["stage"],
        release=options["release"],
        commit=facts["commit"],
        version=facts["version"],
        deployment=options["deployment"],
        environment_path=path or None,
        settings_module=options["settings_module"] or None,
        environment=environment,
    )
    document = describe(
        options["deployment"],
        facts,
        services,
        name=options["name"],
        stage=options["stage"],
        environment_path=path,
        health_checks=options["health_checks"],
        host_header=options["host_header"],
        headers=HEADERS if options["headers"] is None else options["headers"],
    )
    return Instance(layout, options["deployment"], document, variables)


def existing_instance(layout: Layout, deployment: str) -> Instance:
    """Return an instance that has its files.

    :raises Problem: when it has none, or its release is gone.
    """
    instance = read_instance(layout, deployment)
    if instance is None:
        raise Problem(
            f"There is no instance {deployment} in {layout.instances} to start again: deploy its version anew, with services."
        )
    if not layout.release(instance.release).is_dir():
        raise Problem(
            f"The release {instance.release} of instance {deployment} is not in {layout.releases} any more: deploy its version anew."
        )
    return instance


def choose(
    layout: Layout, options: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[Instance | None, bool]:
    """Return (the instance to bring live, or None for the adopted one; whether its files are to be written).

    :raises Problem: when there is nothing that could be started.
    """
    if options["state"] == "started":
        live = live_deployment(layout)
        if live is not None:
            return existing_instance(layout, live), False
        if (options["adopt"] or {}).get("service"):
            return None, False
        raise Problem(
            f"Nothing is current in {layout.root}, so nothing can be started: deploy a version first."
        )
    if options["deployment"] == ADOPTED:
        return None, False
    if not DEPLOYMENT_ID.match(options["deployment"]):
        raise Problem(
            f"The option deployment is {options['deployment']!r}, expected an id like 20261121T013700-ab12, or {ADOPTED}."
        )
    if options["services"] is None:
        return existing_instance(layout, options["deployment"]), False
    return new_instance(layout, options, environment), True
