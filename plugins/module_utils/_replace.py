# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Workers and beats in a change of what is live: ended without losing a task, proved, and one beat at any time.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _beats, _processes
from ansible_collections.runbook.deploy.plugins.module_utils._fleet import discover, live_deployment
from ansible_collections.runbook.deploy.plugins.module_utils._gate import gate_result
from ansible_collections.runbook.deploy.plugins.module_utils._instance import read_instance
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._service import Member, Settings, stay_up
from ansible_collections.runbook.deploy.plugins.module_utils._workers import Celery, celery_of


def how_asked(member: Member) -> Celery | None:
    """Return how the Celery of *member* is asked, None where it is no Celery worker that we can start."""
    if member.instance is None or member.kind != "worker":
        return None
    return celery_of(member.spec, member.instance.words(member.spec), member.instance.variables)


def end_workers(
    settings: Settings, members: Sequence[Member], stop: Callable[[Member], bool]
) -> list[dict[str, Any]]:
    """Stop the workers *members*, those of Celery when they have no more tasks, or have had their time.

    :param stop: stops one, and returns whether it had to be killed.
    :return: what became of the Celery workers, see ``drained`` of ``app_service``.
    """
    if not any(how_asked(member) for member in members):
        for member in members:
            stop(member)
        return []
    # Only here: hosts without Celery do not pay for the import.
    from ansible_collections.runbook.deploy.plugins.module_utils._worker_drain import Drain

    with Drain(settings, members) as drain:
        drain.run()
    for member in members:
        drain.stopped(member, stop(member))
    return drain.reports()


def prove_workers(
    settings: Settings, members: Sequence[Member], again: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Wait until each Celery worker of *members* answers ping, takes tasks and runs its release; return (gates, warnings).

    :param again: they were proved before: a broker that cannot be reached is no failure then, but a warning.
    :raises Problem: when one does not in time.
    """
    if not any(how_asked(member) for member in members):
        return [], []
    from ansible_collections.runbook.deploy.plugins.module_utils._worker_proof import prove

    checks, warnings = prove(settings, members, again)
    return ([gate_result(checks)] if checks else []), warnings


def require_beats(settings: Settings, members: Sequence[Member]) -> None:
    """Make sure that no other beat of the application runs on this host than *members*, before they are started.

    :raises Problem: when one does that is not ours to stop: both would send every scheduled task.
    """
    root = str(settings.layout.root)
    found = _beats.find(_beats.Application(root, [root], {member.service for member in members}, ""))
    others = [pid for pid in found.beats if not any(member.unit.owns(pid) for member in members)]
    if others:
        shown = ", ".join(f"{pid} ({_processes.command(pid)[:100]})" for pid in others[:3])
        raise Problem(
            f"A beat runs on this host that was not started as a service of {root}: process {shown}; two beats send every scheduled "
            "task twice: stop it, then run again."
        )


def running(settings: Settings, kinds: Sequence[str]) -> list[Member]:
    """Return the services of *kinds*, of all instances, that run on this host."""
    return [member for member in discover(settings, None) if member.kind in kinds and member.status().running]


def stop_beats(settings: Settings, check_mode: bool, with_workers: bool = False) -> dict[str, Any]:
    """Stop all beats on this host, and with *with_workers* all workers, when they have no task; return the answer of ``app_beat``.

    :raises Problem: when one is left that is not ours to stop.
    """
    found = running(settings, ["beat"])
    workers = running(settings, ["worker"]) if with_workers else []
    drained: list[dict[str, Any]] = []
    if not check_mode:
        for member in found:
            member.stop()
        require_beats(settings, [])
        drained = end_workers(settings, workers, Member.stop)
    return {
        "changed": bool(found or workers),
        "stopped": [str(member) for member in [*found, *workers]],
        "beats": [],
        "workers": [],
        "drained": drained,
        "warnings": [],
    }


def start_beats(settings: Settings, check_mode: bool, with_workers: bool = False) -> dict[str, Any]:
    """Start the beats of the live instance, and those alone, with *with_workers* its workers before; return the answer of ``app_beat``.

    :raises Problem: when one does not stay up; beats that were started are stopped then.
    """
    deployment = live_deployment(settings.layout)
    instance = read_instance(settings.layout, deployment) if deployment else None
    specs = instance.services if instance else []
    kinds = ["worker", "beat"] if with_workers else ["beat"]
    # Workers first: a beat must not send what nobody takes.
    wanted = [
        Member(settings, deployment or "", spec, instance)
        for kind in kinds
        for spec in specs
        if spec["kind"] == kind
    ]
    names = {str(member) for member in wanted}
    surplus = [member for member in running(settings, kinds) if str(member) not in names]
    down = [member for member in wanted if not member.serves()]
    drained: list[dict[str, Any]] = []
    warnings: list[str] = []
    if (surplus or down) and not check_mode:
        for member in [member for member in surplus if member.kind == "beat"]:
            member.stop()
        drained = end_workers(
            settings, [member for member in surplus if member.kind == "worker"], Member.stop
        )
        require_beats(settings, [member for member in wanted if member.kind == "beat"])
        warnings = _start(settings, wanted, down)
    return {
        "changed": bool(surplus or down),
        "stopped": [str(member) for member in surplus],
        "beats": [member.report() for member in wanted if member.kind == "beat"],
        "workers": [member.report() for member in wanted if member.kind == "worker"],
        "drained": drained,
        "warnings": warnings,
    }


def _start(settings: Settings, wanted: Sequence[Member], down: Sequence[Member]) -> list[str]:
    """Start those of *wanted* that are *down*, in this order, and see that all stay up; return what an operator should know.

    :raises Problem: when one does not; beats that were started are stopped then.
    """
    warnings: list[str] = []
    begun: list[Member] = []
    try:
        for kind in ("worker", "beat"):
            for member in [member for member in down if member.kind == kind]:
                # One that lives, but was told to take no more tasks, is of no use.
                if member.unit.exists():
                    member.stop()
                begun.append(member)
                member.start()
                member.gate([], 1)
                member.mark_ready()
            if kind == "worker":
                # They served before, so that a broker which is away keeps none of them down.
                workers = [member for member in begun if member.kind == "worker"]
                warnings = prove_workers(settings, workers, True)[1]
        stay_up(wanted, settings.stay_up)
    except BaseException:
        for member in begun:
            # A worker that works is not taken away because another one does not.
            if member.kind == "beat" or not member.works():
                member.stop()
        raise
    return warnings
