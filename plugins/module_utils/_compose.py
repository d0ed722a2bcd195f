# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manager ``compose``: a service of a Compose file, its container made from the image that the release names.

What is run is the Compose file of the release and a file of ours over it, which says by digest which image it is, and which
instance: labels that a container keeps for its life, by which it is found again whatever its name is.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from ansible_collections.runbook.deploy.plugins.module_utils._command import redact
from ansible_collections.runbook.deploy.plugins.module_utils._compose_engine import (
    LABEL,
    Container,
    Place,
    application_containers,
    compose,
    docker,
    find_containers,
    parse_containers,
    pick_port,
    read_service,
    short,
    strangers,
)
from ansible_collections.runbook.deploy.plugins.module_utils._instance import TRIAL, Instance, overlay_file
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, read_json, write_atomic
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._process import Status

# Making networks, volumes and a container, on a machine that is busy.
START = 120.0
# docker stop returns when its own time is over; this much is allowed for the engine's work.
STOP_MARGIN = 30.0
# What the engine said holds this long, unless the main process ended: each question takes a process.
FRESH = 1.0
# docs.docker.com, "docker inspect": the exit code of a process that was ended by KILL.
KILLED = 137
# Variables of the host's Python environment: in the image they would hide its own.
HOST_ONLY = ("PATH", "VIRTUAL_ENV")
# By these the docker command would talk to another engine, or read other files.
REFUSED = re.compile(r"^(COMPOSE|DOCKER|BUILDKIT|BUILDX)_")
# YAML 1.2, 5.1: everything else may be refused where it stands unescaped.
_UNSAFE = re.compile("[^\n\x20-\x7e]")


def place_of(spec: Mapping[str, Any], name: str, stage: str) -> Place:
    """Return which Compose service the service *spec* of the application *name* and *stage* is."""
    return Place(
        spec.get("compose_project") or f"{name}-{stage}",
        spec.get("compose_file") or "compose.yaml",
        spec.get("compose_service") or str(spec["name"]),
    )


def images_file(layout: Layout, release: str) -> Path:
    """Return the file in the release that says which image each of its services is."""
    return layout.release(release) / ".images.json"


def read_images(layout: Layout, release: str) -> dict[str, dict[str, Any]]:
    """Return what :func:`images_file` says: ``{service: {reference, id, digests, origin, tag}}``; {} where it is not there."""
    with contextlib.suppress(OSError, ValueError):
        found = read_json(images_file(layout, release))
        if isinstance(found, dict):
            return found
    return {}


def judge(container: Container | None, image: str) -> Status:
    """Return the status that *container* means for a service whose release names *image* by digest.

    A container of another image has failed, whatever it answers: tags move, and a name proves nothing.
    """
    if container is None:
        return Status(False, None, None, 0, False, "it has no container")
    detail = f"container {container.name} is {container.status}"
    if container.status in ("exited", "dead"):
        detail += f" with exit code {container.exit_code}"
    if container.error:
        detail += f" ({container.error})"
    if container.health:
        detail += f", {container.health}"
    if container.restarts:
        detail += f", started again {container.restarts} times by the engine"
    if container.image != image:
        detail += f", and runs the image {short(container.image)}, where the release names {short(image)}"
        return Status(False, None, None, container.restarts, True, detail)
    started = (
        _processes.start_time(container.pid) if container.status == "running" and container.pid else None
    )
    if started is None:
        failed = container.status not in ("created", "running")
        return Status(False, None, None, container.restarts, failed, detail)
    unhealthy = container.health == "unhealthy"
    return Status(not unhealthy, container.pid, started, container.restarts, unhealthy, detail)


def escape(value: str) -> str:
    """Return *value* so that Compose, which replaces ``$NAME``, takes it as it is."""
    return value.replace("$", "$$")


def yaml_text(document: Any) -> str:
    """Return *document* as JSON that YAML reads as well: whatever is not plain ASCII is escaped in YAML's way."""

    def code(found: re.Match[str]) -> str:
        number = ord(found.group())
        return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"

    return _UNSAFE.sub(code, json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)) + "\n"


def container_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Return those of an instance's *variables* that its containers get."""
    return {name: value for name, value in variables.items() if name not in HOST_ONLY}


def overlay(instance: Instance, spec: Mapping[str, Any], place: Place, image: str) -> dict[str, Any]:
    """Return what is laid over the release's Compose file: the image by digest, whose container it is, its variables."""
    labels = {
        "root": str(instance.layout.root),
        "service": str(spec["name"]),
        "deployment": instance.deployment,
        "release": instance.release,
    }
    variables = {**container_variables(instance.variables), "RUNBOOK_SERVICE": str(spec["name"])}
    service = {
        "image": image,
        # Neither pulled nor built: the digest is what the release phase found or made.
        "pull_policy": "never",
        # Started again by the engine after a crash and a reboot, unless it was stopped. There is no other container to choose.
        "restart": "unless-stopped",
        "stop_grace_period": f"{float(spec.get('stop_timeout') or 0):.0f}s",
        "labels": {f"{LABEL}{name}": escape(value) for name, value in labels.items()},
        "environment": {name: escape(value) for name, value in variables.items()},
    }
    return {"services": {place.service: service}}


def own_variables(variables: Mapping[str, str], spec: Mapping[str, Any], user: str | None) -> dict[str, str]:
    """Return what a Compose file can use as ``${NAME}``: the application's variables, and who and where it is.

    Without RUNBOOK_SERVICE: the docker command that gets them works for a deployment, and is no service of it.
    """
    entry = pwd.getpwnam(user) if user else pwd.getpwuid(os.geteuid())
    found = {name: value for name, value in variables.items() if not REFUSED.match(name)}
    for name in HOST_ONLY:
        found.pop(name, None)
    return {
        **found,
        "RUNBOOK_PORT": str(spec.get("port") or ""),
        "RUNBOOK_UID": str(entry.pw_uid),
        "RUNBOOK_GID": str(entry.pw_gid),
    }


class ComposeUnit:
    """One service of one instance as a container.

    :param spec: its definition, with ``image_id``, the digest that its release names; without it nothing can be started.
    """

    manager = "compose"

    def __init__(
        self,
        layout: Layout,
        application: tuple[str, str],
        spec: Mapping[str, Any],
        deployment: str,
        user: str | None,
    ) -> None:
        self.layout = layout
        self.spec = dict(spec)
        self.service = str(spec["name"])
        self.deployment = deployment
        self.user = user
        self.place = place_of(spec, *application)
        self.image = str(spec.get("image_id") or "")
        self.file = overlay_file(layout, deployment, self.service)
        self._first = ""
        self._said: tuple[float, Status, Container | None] | None = None

    @property
    def name(self) -> str:
        """What an operator knows it by."""
        return f"service {self.place.service} of the Compose project {self.place.project}"

    @property
    def shown(self) -> str:
        """The image that its release names, in short."""
        return short(self.image)

    def containers(self) -> list[Container]:
        """Return its containers, as a rule one."""
        labels = [f"{LABEL}root={self.layout.root}", f"{LABEL}service={self.service}"]
        return find_containers(*labels, f"{LABEL}deployment={self.deployment}")

    def look(self) -> tuple[Status, Container | None]:
        """Return what the engine says, and of which container; what it said a moment ago while the main process lives."""
        if self._said is not None:
            when, said, seen = self._said
            same = not said.running or _processes.is_same(said.pid or 0, said.started or 0)
            if time.monotonic() - when < FRESH and same:
                return said, seen
        listed = sorted(self.containers(), key=lambda entry: entry.status != "running")
        container = listed[0] if listed else None
        found = judge(container, self.image or (container.image if container else ""))
        if container is not None and self._first and container.id != self._first:
            found = found._replace(
                restarts=found.restarts + 1, detail=f"{found.detail}, put in place of another one"
            )
        self._said = (time.monotonic(), found, container)
        return found, container

    def status(self) -> Status:
        """Return whether its container runs, of the right image, and is not unhealthy."""
        return self.look()[0]

    def listens(self) -> str:
        """Return "" when the container's healthcheck, where it has one, has passed, and it listens at the published port."""
        _status, container = self.look()
        if container is None:
            return "it has no container"
        if container.health not in ("", "healthy"):
            self._said = None
            return f"its healthcheck says {container.health}"
        if self.spec.get("bind") != "port":
            return ""
        port = int(self.spec["port"])
        targets = [inside for inside, outside in container.ports if outside == port]
        if not targets:
            return f"the container {container.name} does not publish port {port}"
        # The engine accepts connections to a published port whether anybody in the container does or not.
        for kind in ("tcp", "tcp6"):
            with (
                contextlib.suppress(OSError),
                open(f"{_processes.PROC}/{container.pid}/net/{kind}", encoding="ascii") as stream,
            ):
                if _processes.parse_listeners(stream.read(), targets[0]):
                    return ""
        return f"nobody listens on port {targets[0]} in the container {container.name}"

    def owns(self, pid: int) -> bool:
        """Return whether the process *pid* belongs to this service."""
        return _processes.carries(pid, self.service, self.deployment)

    def _files(self, instance: Instance) -> list[Path]:
        directory = self.layout.release(instance.release) / str(instance.document.get("directory") or "")
        return [directory / self.place.file, self.file]

    def _write(self, instance: Instance) -> None:
        text = yaml_text(overlay(instance, self.spec, self.place, self.image))
        write_atomic(self.file, text, 0o600)

    def clear_way(self) -> None:
        """Remove containers of the same Compose service that are in the way: stopped ones of ours, and what somebody started by
        hand, as ``docker compose up`` would."""
        ours = [
            entry
            for entry in application_containers(self.layout)
            if entry.service == self.service
            and entry.status != "running"
            and not entry.deployment.endswith(TRIAL)
        ]
        for entry in [*ours, *strangers(self.place)]:
            self._end(entry, float(self.spec.get("stop_timeout") or 0))

    def start(self, instance: Instance) -> None:
        """Make the container anew and start it; of a trial a further one beside, at a port of its own.

        :raises Problem: where the image is gone, the Compose file is wrong, or the engine refuses.
        """
        self._first, self._said = "", None
        if not self.image or docker("image", "inspect", "--format", "{{.Id}}", self.image).rc != 0:
            raise Problem(
                f"The image {short(self.image)} of service {self.service!r}, which the release {instance.release} names, is not on this "
                "host any more (somebody removed images): deploy its version again."
            )
        self._write(instance)
        port = int(self.spec.get("public_port") or self.spec.get("port") or 0)
        environment = own_variables(instance.variables, {**self.spec, "port": port}, self.user)
        files = self._files(instance)
        secrets = instance.secrets
        words = ["up", "--detach", "--no-deps", "--no-build", "--force-recreate", "--pull", "never"]
        if instance.deployment.endswith(TRIAL):
            words = [
                "run",
                "--detach",
                "--no-deps",
                "--name",
                f"{self.place.project}-{self.service}-{self.deployment}",
            ]
            if self.spec.get("bind") == "port":
                service = read_service(self.place, files, environment, secrets)
                inside = pick_port(service, self.place, port)
                words += ["--publish", f"127.0.0.1:{self.spec['port']}:{inside}"]
        answer = compose(
            self.place,
            files,
            *words,
            self.place.service,
            environment=environment,
            secrets=secrets,
            timeout=START,
        )
        if answer.rc != 0:
            evidence = "\n".join(part for part in (answer.tail(10), self.tail(10, tuple(secrets))) if part)
            raise Problem(
                f"docker compose could not start {self.name} for the release {instance.release} (exit code {answer.rc}): see the "
                "evidence.",
                evidence,
            )
        found = self.containers()
        if len(found) != 1:
            raise Problem(
                f"docker compose started {len(found)} containers for {self.name}, expected 1: remove scale and replicas from "
                f"{self.place.file}; more processes belong into its command."
            )
        self._first = found[0].id

    def exists(self) -> bool:
        """Return whether anything of the service is left that :meth:`stop` would end."""
        return bool(self.containers())

    def _end(self, container: Container, timeout: float) -> bool:
        """Stop and remove *container*; return whether it had to be killed."""
        docker("stop", "--time", f"{timeout:.0f}", container.id, timeout=timeout + STOP_MARGIN)
        listed = docker("container", "inspect", container.id)
        with contextlib.suppress(ValueError, KeyError):
            found = parse_containers(listed.stdout)
            killed = bool(found) and container.status == "running" and found[0].exit_code == KILLED
            # Volumes without a name belong to the container; those of a trial are new and nobody's.
            further = ["--volumes"] if container.deployment.endswith(TRIAL) else []
            answer = docker("rm", "--force", *further, container.id, timeout=STOP_MARGIN)
            if (
                answer.rc != 0
                and "No such container" not in answer.stderr
                and "in progress" not in answer.stderr
            ):
                raise Problem(
                    f"The container {container.name} of service {self.service!r} cannot be removed: remove it with "
                    f"'docker rm -f {container.name}', then run again.",
                    answer.tail(5),
                )
            return killed
        return False

    def stop(self, timeout: float) -> bool:
        """Stop the service: TERM, *timeout* seconds, KILL; its container is removed, its image stays.

        :return: whether it had to be killed.
        """
        self._first, self._said = "", None
        killed = [self._end(entry, timeout) for entry in self.containers()]
        return any(killed)

    def forget(self) -> None:
        """Remove the file over the Compose file."""
        with contextlib.suppress(FileNotFoundError):
            self.file.unlink()

    def tail(self, lines: int = 20, secrets: tuple[str, ...] = ()) -> str:
        """Return the last lines of the container's log, standard output and error."""
        found = self.containers()
        if not found:
            return ""
        answer = docker("logs", "--tail", str(lines), found[0].id)
        return redact(f"{answer.stdout}\n{answer.stderr}".strip(), secrets)
