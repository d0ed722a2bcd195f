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
from ansible_collections.runbook.deploy.plugins.module_utils._gate import gate_result
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._service import Member, Settings
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


def prove_workers(settings: Settings, members: Sequence[Member]) -> list[dict[str, Any]]:
    """Wait until each Celery worker of *members* answers ping, takes tasks and runs its release; return the gates passed.

    :raises Problem: when one does not in time.
    """
    if not any(how_asked(member) for member in members):
        return []
    from ansible_collections.runbook.deploy.plugins.module_utils._worker_drain import prove

    return [gate_result(prove(settings, members))]


def require_beats(settings: Settings, members: Sequence[Member]) -> None:
    """Make sure, before the beats *members* are started, that no other beat of the application runs on this host.

    :raises Problem: when one does that is not ours to stop: both would send every scheduled task.
    """
    if not members:
        return
    root = str(settings.layout.root)
    found = _beats.find(_beats.Application(root, [root], {member.service for member in members}, ""))
    others = [pid for pid in found.beats if not any(member.unit.owns(pid) for member in members)]
    if others:
        shown = ", ".join(f"{pid} ({_processes.command(pid)[:100]})" for pid in others[:3])
        raise Problem(
            f"A beat runs on this host that was not started as a service of {root}: process {shown}; two beats send every scheduled "
            "task twice: stop it, then run again."
        )
