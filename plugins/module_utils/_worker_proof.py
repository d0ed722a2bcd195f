# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Celery workers prove themselves when they were started: by a ping, a queue and the release that their process runs.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils import _proc_tree, _processes
from ansible_collections.runbook.deploy.plugins.module_utils._gate import PASS, check_result
from ansible_collections.runbook.deploy.plugins.module_utils._replace import how_asked
from ansible_collections.runbook.deploy.plugins.module_utils._service import Member, Settings
from ansible_collections.runbook.deploy.plugins.module_utils._worker_control import (
    FIRST,
    LONGEST,
    REPLY,
    Control,
    Unasked,
    controls,
)
from ansible_collections.runbook.deploy.plugins.module_utils._workers import twice

# On the way back a broker that cannot be reached is waited for so many seconds.
WAY_BACK = 10.0


class Missing(NamedTuple):
    """What a new worker lacks, in words; ``broker``: nobody could ask it."""

    text: str
    broker: bool = False


def prove(
    settings: Settings, members: Sequence[Member], again: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
    """Wait until each Celery worker among *members* answers ping by its name, takes tasks and runs its release.

    :param again: they were proved before, and are started again: a broker that nobody reaches must not hold up a way back.
    :return: (a ``check_result`` for each, with ``nodes``; warnings of those that could not be asked).
    :raises Problem: when one does not within ``start_timeout``, or ends meanwhile.
    """
    asked = [member for member in members if how_asked(member) is not None]
    begun = time.monotonic()
    results: dict[str, dict[str, Any]] = {}
    missing = {member.service: Missing("it was not asked") for member in asked}
    delay = FIRST
    while missing:
        wanted = [member for member in asked if member.service in missing]
        left = max(0.0, begun + settings.start_timeout - time.monotonic())
        made = controls(
            settings,
            wanted,
            left + REPLY * 4,
            lambda member, error: missing.update({member.service: Missing(str(error), error.broker)}),
        )
        with contextlib.ExitStack() as stack:
            for control in made:
                stack.enter_context(control)
            while missing:
                for member in wanted:
                    member.require_running()
                broken = [control for control in made if not _ask_new(control, missing, results, begun)]
                if not missing or time.monotonic() - begun > settings.start_timeout or broken or not made:
                    break
                time.sleep(delay)
                delay = min(delay * 1.5, LONGEST)
        waited = time.monotonic() - begun
        if again and missing and waited > WAY_BACK and all(found.broker for found in missing.values()):
            return [results[name] for name in results], [
                f"The worker {name!r} was started, and not proved: {found.text}. Look at it when the broker answers."
                for name, found in missing.items()
            ]
        if missing and waited > settings.start_timeout:
            member = next(member for member in wanted if member.service in missing)
            raise member.problem(
                f"does not answer as a worker within {settings.start_timeout:g} s, expected a ping, a queue and its own release: "
                f"{missing[member.service].text}; see its log, or raise app_start_timeout."
            )
        if missing:
            time.sleep(LONGEST)
    return [results[member.service] for member in asked], []


def _ask_new(
    control: Control, missing: dict[str, Missing], results: dict[str, dict[str, Any]], begun: float
) -> bool:
    """Ask the workers of *control*; return whether they could be asked."""
    try:
        found, answers = control.find()
        double = twice(answers)
        for member in control.members:
            nodes = found.get(member.service, [])
            if member.service in missing:
                wrong = _wrong(control, member, nodes)
                if not wrong:
                    del missing[member.service]
                    results[member.service] = _proved(control, member, nodes, begun)
                    continue
                others = ", ".join(sorted({node for node, _answer in answers})) or "none"
                text = f"{wrong} (workers that answered at {control.place}: {others})"
                if double:
                    text += f"; more than one is called {', '.join(double)}: give each a name with -n"
                missing[member.service] = Missing(text)
    except Unasked as error:
        for member in control.members:
            if member.service in missing:
                missing[member.service] = Missing(str(error), error.broker)
        return False
    return True


def _wrong(control: Control, member: Member, nodes: Sequence[tuple[str, int]]) -> str:
    """Return what is missing of the worker *member*, "" where nothing is."""
    if not nodes:
        return "none of its processes answered"
    names = sorted({node for node, _pid in nodes})
    silent = sorted(set(names) - {node for node, _answer in control.ask("ping", names)})
    if silent:
        return f"{', '.join(silent)} did not answer the ping"
    queues = dict(control.ask("active_queues", names))
    idle = [node for node in names if not queues.get(node)]
    if idle:
        return f"{', '.join(idle)} takes tasks from no queue"
    wanted = str(member.settings.layout.release(member.release))
    for node, pid in nodes:
        if not _proc_tree.is_release(wanted, _processes.variables(pid), _proc_tree.runs_from(pid)):
            return f"{node} (process {pid}) does not run the release {member.release}"
    return ""


def _proved(
    control: Control, member: Member, nodes: Sequence[tuple[str, int]], begun: float
) -> dict[str, Any]:
    shown = ", ".join(f"{node} (process {pid})" for node, pid in sorted(nodes))
    return check_result(
        f"{member.service} answers ping",
        PASS,
        observed=f"{shown} at {control.place}",
        expected=f"its own workers, running the release {member.release}",
        seconds=time.monotonic() - begun,
        nodes=sorted({node for node, _pid in nodes}),
    )
