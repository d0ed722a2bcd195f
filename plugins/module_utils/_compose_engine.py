# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container engine and its Compose, asked and told through the docker command.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._command import (
    DEFAULT_PATH,
    Finished,
    last_words,
    run,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# The engine answers at once; one that hangs must not hang us.
ASK = 30.0
LABEL = "runbook.deploy."
# Its release notes: --progress as an option of all commands.
OLDEST = (2, 20)


class Place(NamedTuple):
    """Which service of which Compose file: the project's name, the file inside the release, the service in it."""

    project: str
    file: str
    service: str


class Container(NamedTuple):
    """What the engine says of one container; ``health`` is "" without a healthcheck, ``ports`` are (container's, host's)."""

    id: str
    name: str
    image: str
    labels: dict[str, str]
    status: str
    pid: int
    restarts: int
    exit_code: int
    health: str
    ports: tuple[tuple[int, int], ...]
    error: str

    @property
    def service(self) -> str:
        """The service that it is of, in ``app_services``."""
        return self.labels.get(f"{LABEL}service", "")

    @property
    def deployment(self) -> str:
        """The instance that it is of."""
        return self.labels.get(f"{LABEL}deployment", "")

    @property
    def release(self) -> str:
        """The release that it is of."""
        return self.labels.get(f"{LABEL}release", "")


def short(image: str) -> str:
    """Return the digest *image* as people read it."""
    return image.replace("sha256:", "")[:12] or "unknown"


def parse_containers(text: str) -> list[Container]:
    """Return the containers in the output of ``docker inspect``; its other fields hold secrets, and are dropped here.

    :raises ValueError: when it is no such output.
    """
    result = []
    for entry in json.loads(text or "[]"):
        state = entry.get("State") or {}
        ports = []
        for target, published in ((entry.get("NetworkSettings") or {}).get("Ports") or {}).items():
            number, _slash, protocol = target.partition("/")
            for one in published or []:
                if protocol == "tcp" and str(one.get("HostPort") or "").isdigit():
                    ports.append((int(number), int(one["HostPort"])))
        result.append(
            Container(
                entry["Id"],
                str(entry.get("Name") or "").lstrip("/"),
                str(entry.get("Image") or ""),
                dict((entry.get("Config") or {}).get("Labels") or {}),
                str(state.get("Status") or "unknown"),
                int(state.get("Pid") or 0),
                int(entry.get("RestartCount") or 0),
                int(state.get("ExitCode") or 0),
                str((state.get("Health") or {}).get("Status") or "").replace("none", ""),
                tuple(sorted(set(ports))),
                str(state.get("Error") or ""),
            )
        )
    return result


def docker(*arguments: str, timeout: float = ASK) -> Finished:
    """Run the docker command; its exit code is the caller's matter, that the engine answers is not.

    :raises Problem: where there is no engine, or it does not answer.
    """
    if shutil.which("docker", path=DEFAULT_PATH) is None:
        raise Problem(
            "There is no docker command on this host, which manager: compose needs: install Docker and Compose 2 (Debian: docker.io and "
            "docker-compose, from trixie on), or choose another manager in app_services."
        )
    answer = run(["docker", *arguments], timeout=timeout)
    if answer.timed_out or (
        answer.rc != 0 and re.search(r"docker daemon|docker API|docker\.sock", answer.stderr)
    ):
        raise Problem(
            "The container engine of this host does not answer the docker command, so it is unknown which containers run: start it, "
            "and let the user of this task use it (as root, or in the group docker).",
            answer.tail(5),
        )
    return answer


def compose(
    place: Place,
    files: Sequence[Path],
    *arguments: str,
    environment: Mapping[str, str],
    secrets: Sequence[str] = (),
    timeout: float = ASK,
) -> Finished:
    """Run ``docker compose`` with *files*, the first of which says where the project is, and *arguments*.

    :raises Problem: where the docker command has no Compose.
    """
    words = ["docker", "compose", "--ansi", "never", "--progress", "plain", "--project-name", place.project]
    words += ["--project-directory", str(files[0].parent)]
    for file in files:
        words += ["--file", str(file)]
    answer = run([*words, *arguments], environment=environment, secrets=secrets, timeout=timeout)
    if answer.rc != 0 and re.search(
        r"is not a docker command|unknown command|unknown flag: --ansi", answer.stderr
    ):
        raise no_compose()
    return answer


def no_compose(found: str = "") -> Problem:
    """Return the Problem of a host without a Compose that is recent enough; *found* is the version that it has."""
    has = f"has Compose {found}" if found else "has no Compose"
    return Problem(
        f"The docker command of this host {has}, and manager: compose needs {OLDEST[0]}.{OLDEST[1]} or later: install it (Debian: "
        "docker-compose, from trixie on), or choose another manager in app_services."
    )


def is_recent(version: str) -> bool:
    """Return whether Compose of this *version*, such as ``2.26.1-4`` or ``v2.40.0``, has all that is used here."""
    found = re.match(r"v?(\d+)\.(\d+)", version)
    return found is not None and (int(found.group(1)), int(found.group(2))) >= OLDEST


def require_engine() -> None:
    """See that there are an engine and a Compose.

    :raises Problem: where one of them is missing.
    """
    docker("version", "--format", "{{.Server.Version}}")
    answer = run(["docker", "compose", "version", "--short"], timeout=ASK)
    version = answer.stdout.strip() if answer.rc == 0 else ""
    if not is_recent(version):
        raise no_compose(version)


def find_containers(*labels: str, port: int = 0) -> list[Container]:
    """Return the containers, running or not, that have all *labels* (``name=value``), and publish *port* where it is given.

    :raises Problem: when the engine does not answer.
    """
    words = [word for label in labels for word in ("--filter", f"label={label}")]
    words += ["--filter", f"publish={port}"] if port else []
    listed = docker("ps", "--all", "--quiet", "--no-trunc", *words)
    if listed.rc != 0:
        raise Problem("The containers of this host cannot be listed: see the evidence.", listed.tail(5))
    names = listed.stdout.split()
    if not names:
        return []
    # One that is gone meanwhile makes the exit code 1; the others are shown.
    answer = docker("container", "inspect", *names)
    try:
        return parse_containers(answer.stdout)
    except (ValueError, KeyError, TypeError) as error:
        raise Problem(
            f"What docker inspect says of {len(names)} containers cannot be understood ({error}): see that it is Docker's own command."
        ) from error


def application_containers(layout: Layout) -> list[Container]:
    """Return the containers of the application below the layout's root, whatever instance they are of."""
    return [
        entry for entry in find_containers(f"{LABEL}root={layout.root}") if entry.service and entry.deployment
    ]


def strangers(place: Place) -> list[Container]:
    """Return the containers of the same Compose service that no deployment started."""
    found = find_containers(
        f"com.docker.compose.project={place.project}", f"com.docker.compose.service={place.service}"
    )
    return [
        entry
        for entry in found
        if not entry.deployment and entry.labels.get("com.docker.compose.oneoff") != "True"
    ]


def read_service(
    place: Place, files: Sequence[Path], environment: Mapping[str, str], secrets: Sequence[str]
) -> dict[str, Any]:
    """Return the service of *place* as Compose reads *files*.

    :raises Problem: where the file is missing or wrong, or has no such service.
    """
    if not files[0].is_file():
        raise Problem(
            f"The Compose file {place.file!r} (compose_file in app_services) is not in the release, at {files[0]}: correct its path, "
            "which is relative to app_directory."
        )
    answer = compose(
        place, files, "config", "--format", "json", place.service, environment=environment, secrets=secrets
    )
    if answer.rc != 0:
        raise Problem(
            f"docker compose cannot use {place.file} with the service {place.service!r}: correct what the evidence names.",
            last_words(answer.stderr, 10),
        )
    try:
        service = json.loads(answer.stdout)["services"][place.service]
    except (ValueError, KeyError, TypeError) as error:
        raise Problem(
            f"The Compose file {place.file} has no service {place.service!r}: correct compose_service."
        ) from error
    if service.get("network_mode"):
        raise Problem(
            f"The service {place.service!r} of {place.file} has a network_mode ({service['network_mode']}), where no port is published: "
            "use networks, so that a new release can be proved beside the old one."
        )
    return service


def pick_port(service: Mapping[str, Any], place: Place, port: int) -> int:
    """Return the container's port that *service*, of ``docker compose config``, publishes as *port* of the host.

    :raises Problem: where it publishes none such.
    """
    found = [
        int(entry["target"])
        for entry in service.get("ports") or []
        if str(entry.get("published") or "") == str(port) and entry.get("protocol", "tcp") == "tcp"
    ]
    if not found:
        raise Problem(
            f"The service {place.service!r} of {place.file} does not publish port {port} of this host, which app_services names: "
            'let its ports say "127.0.0.1:${RUNBOOK_PORT}:<port in the container>".'
        )
    return found[0]
