# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything of the application that runs on this host: instances, leftovers of killed runs, what was adopted.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._compose_engine import application_containers
from ansible_collections.runbook.deploy.plugins.module_utils._instance import (
    START_ORDER,
    TRIAL,
    Instance,
    linked_deployment,
    read_instance,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    ADOPTED,
    Layout,
    current_release,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._process import (
    ProcessUnit,
    Status,
    find_processes,
)
from ansible_collections.runbook.deploy.plugins.module_utils._service import (
    Member,
    Settings,
    connections,
)
from ansible_collections.runbook.deploy.plugins.module_utils._supervisor import (
    Place,
    SupervisorUnit,
    Word,
    find_programs,
    place_of,
)
from ansible_collections.runbook.deploy.plugins.module_utils._systemd import (
    STOP_TIMEOUT,
    find_adopted,
    find_units,
)


class AdoptedMember(Member):
    """The installation in ``app_adopt``: a unit that somebody else wrote, started and stopped as a whole."""

    def __init__(self, settings: Settings) -> None:
        unit = find_adopted(settings.adopt)
        if unit is None:
            raise Problem(
                "The adopted installation is wanted, but app_adopt names no service: set app_adopt.service to the "
                "unit that ran the application before."
            )
        spec = {
            "name": ADOPTED,
            "kind": "web",
            "manager": "systemd",
            "bind": "none",
            "port": 0,
            "stop_timeout": 90,
        }
        super().__init__(settings, ADOPTED, spec, None, unit)
        self.address = settings.adopt.get("socket") or None

    @property
    def release(self) -> str:
        """What stands for the release's name in messages."""
        return f"adopted from {self.settings.adopt.get('path') or self.unit.name}"

    def start(self) -> None:
        """Start the unit."""
        self._begun = time.monotonic()
        self._restarts = 0
        self.unit.start(None)

    def listens(self) -> str:
        """Return "" as soon as its socket is there; other addresses are not known to us."""
        if self.address and not Path(self.address).is_socket():
            return f"there is no socket {self.address}"
        return ""

    def require_running(self) -> Status:
        """Return the status; how often systemd restarted it before we came is no matter."""
        status = self.status()
        if status.failed or not status.running:
            raise self.problem(f"does not stay up: {status.detail}; its log ends as shown.")
        return status

    def drain(self, timeout: float) -> int:
        """Wait until nobody is connected to its socket, where that is known."""
        deadline = time.monotonic() + timeout
        left = 0
        while self.address:
            left = connections(Path(self.address))
            if not left or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return left

    def stop(self) -> bool:
        """Stop the unit; its files are not ours."""
        return self.unit.stop(float(self.spec["stop_timeout"]))


class Undo:
    """What has to be done to take back what was done, last step first."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], object]]] = []

    def add(self, what: str, action: Callable[[], object]) -> tuple[str, Callable[[], object]]:
        """Remember *action*; *what* names it in a message. Returns a handle for :meth:`drop`."""
        step = (what, action)
        self._steps.append(step)
        return step

    def drop(self, step: tuple[str, Callable[[], object]]) -> None:
        """Forget a step that is done or not needed any more."""
        self._steps.remove(step)

    def run(self) -> list[str]:
        """Do all steps, whatever happens to the others; return what failed, a clause each."""
        failures = []
        while self._steps:
            what, action = self._steps.pop()
            try:
                action()
            except Problem as problem:
                failures.append(f"{what}: {problem.message}")
            except Exception as error:  # whatever one step does, the others must be done
                failures.append(f"{what}: {error}")
        return failures


def live_deployment(layout: Layout) -> str | None:
    """Return the deployment whose instance ``current`` means, None where there is none of ours."""
    release = current_release(layout)
    return linked_deployment(layout, release) if release else None


def known_instances(layout: Layout) -> dict[str, Instance | None]:
    """Return the instances that have files, by deployment; None for one whose files are damaged."""
    found: dict[str, Instance | None] = {}
    with contextlib.suppress(OSError):
        for deployment in layout.described_instances():
            found[deployment] = None
            with contextlib.suppress(Problem):
                found[deployment] = read_instance(layout, deployment)
    return found


def guess(
    settings: Settings, service: str, deployment: str, manager: str, known: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    """Return the definition of a service that runs: its instance's own, else what can be seen of it."""
    for spec in known:
        if spec["name"] == service:
            # A service that changed its manager still runs under the one that started it.
            return {**spec, "manager": manager}
    listening = settings.layout.socket(service, deployment).is_socket()
    return {
        "name": service,
        "kind": "web" if listening else "worker",
        "bind": "socket" if listening else "none",
        "port": 0,
        "manager": manager,
        "stop_timeout": STOP_TIMEOUT,
    }


def supervised(
    settings: Settings, wanted: Iterable[Instance], marked: Iterable[str]
) -> dict[tuple[str, str], tuple[Place, Word | None]]:
    """Return (service, deployment) -> (where, what supervisord says) of our programs that it knows or has a section of.

    :param wanted: the instances whose services say which supervisord is asked; :param marked: deployments that run.
    """
    instances = list(wanted)
    known = {instance.deployment for instance in instances} | {entry.replace(TRIAL, "") for entry in marked}
    specs = [spec for instance in instances for spec in instance.services if spec["manager"] == "supervisor"]
    result = {}
    for place in {place_of(spec) for spec in specs}:
        programs = find_programs(settings.layout, settings.name, settings.stage, place)
        for (service, deployment), (word, ours) in programs.items():
            # Another application can have a name that begins like ours.
            if ours or deployment.replace(TRIAL, "") in known:
                result[service, deployment] = place, word
    return result


def forget_programs(settings: Settings) -> None:
    """Remove the sections of programs that do not run and are not current."""
    live = live_deployment(settings.layout)
    wanted = [instance for instance in known_instances(settings.layout).values() if instance is not None]
    for (service, deployment), (place, word) in supervised(settings, wanted, ()).items():
        if deployment == live:
            continue
        application = (settings.name, settings.stage)
        unit = SupervisorUnit(settings.layout, application, service, deployment, settings.user, place)
        unit.hear(word)
        if not unit.exists():
            unit.forget()


def discover(settings: Settings, target: Instance | None) -> list[Member]:
    """Return what of this application exists on the host, running or failed, under every manager.

    :param target: an instance that may have no files yet; its services tell what kind an unknown one is.
    """
    layout = settings.layout
    instances = known_instances(layout)
    running = find_processes(layout)
    wanted = [instance for instance in [*instances.values(), target] if instance is not None]
    units: dict[tuple[str, str], str] = {}
    if any(spec["manager"] == "systemd" for instance in wanted for spec in instance.services):
        marked = {deployment for _service, deployment in running}
        for (service, deployment), state in find_units(settings.name, settings.stage).items():
            # Another application can have a name that begins like ours: the deployment must be one of ours.
            if state != "inactive" and (deployment.replace(TRIAL, "") in instances or deployment in marked):
                units[service, deployment] = "systemd"
    programs = supervised(settings, wanted, {deployment for _service, deployment in running})
    units.update(dict.fromkeys(programs, "supervisor"))
    if any(spec["manager"] == "compose" for instance in wanted for spec in instance.services):
        containers = {(entry.service, entry.deployment) for entry in application_containers(layout)}
        units.update(dict.fromkeys(containers, "compose"))
    result = []
    for service, deployment in sorted(running | set(units)):
        base = instances.get(deployment.replace(TRIAL, ""))
        known = [*(base.services if base else []), *(target.services if target else [])]
        manager = units.get((service, deployment), "process")
        spec = guess(settings, service, deployment, manager, known)
        if (service, deployment) in programs:
            (config, include), _word = programs[service, deployment]
            spec.update(supervisor_config=config, supervisor_include=include)
        startable = base if base and base.deployment == deployment else None
        member = Member(settings, deployment, spec, startable)
        if isinstance(member.unit, SupervisorUnit):
            member.unit.hear(programs[service, deployment][1])
        if base:
            member.secrets = tuple(base.secrets)
        # A PID file may have outlived its process.
        if manager == "systemd" or member.unit.exists():
            result.append(member)
    return sorted(result, key=lambda member: START_ORDER[member.kind])


def forget_ended(settings: Settings) -> None:
    """Remove the PID files of processes that are not there any more, and the sections of programs that are not current."""
    for service, deployment in find_processes(settings.layout):
        unit = ProcessUnit(settings.layout, service, deployment, settings.user)
        if not unit.exists():
            unit.forget()
    forget_programs(settings)


def adopted_member(settings: Settings) -> AdoptedMember | None:
    """Return the adopted installation where it runs at the moment."""
    if not settings.adopt.get("service"):
        return None
    member = AdoptedMember(settings)
    return member if member.unit.exists() else None


def stop_all(members: Iterable[Member]) -> list[str]:
    """Stop *members*, beats first and webs last; return what was stopped."""
    listed = sorted(members, key=lambda member: START_ORDER[member.kind], reverse=True)
    for member in listed:
        member.stop()
    return [str(member) for member in listed]
