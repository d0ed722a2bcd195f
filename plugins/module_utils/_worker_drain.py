# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Celery workers are ended without losing a task.

A worker is first told to take no more tasks, and is given time to finish those that it has; only then it is sent TERM.
A file says so beforehand: after a kill in between, it would otherwise live on and do nothing.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

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
from ansible_collections.runbook.deploy.plugins.module_utils._workers import (
    Task,
    killed_words,
    listed,
    tasks_of,
)

# A worker must be found without tasks this often in a row.
QUIET = 2


class Ending:
    """A worker on its way out: what is known of its tasks."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.nodes: list[str] = []
        self.queues: list[str] = []
        self.tasks: list[Task] = []
        self.scheduled = 0
        self.quiet = 0
        self.note = ""
        self.silent = True
        self.ended = False
        self.killed = False
        self.seconds = 0.0

    @property
    def drained(self) -> bool:
        """Whether it takes no more tasks and has none."""
        return self.quiet >= QUIET

    def finished(self) -> bool:
        """Return whether there is nothing to wait for any more: no task, or no process."""
        return self.drained or not self.member.status().running

    def report(self) -> dict[str, Any]:
        """Return the member's entry in the module's answer."""
        return {
            "service": self.member.service,
            "deployment": self.member.deployment,
            "nodes": self.nodes,
            "queues": self.queues,
            "drained": self.drained,
            "seconds": round(self.seconds, 2),
            "running": [task.plain() for task in self.tasks],
            "scheduled": self.scheduled,
            "killed": self.killed,
            "message": self.message(),
        }

    def message(self) -> str:
        """Return what an operator should know, "" where every task was finished."""
        who = f"The worker {', '.join(self.nodes) or self.member.service} of deployment {self.member.deployment}"
        if self.killed:
            became = killed_words(self.tasks) or "what it had is not known"
            return (
                f"{who} did not end within its stop_timeout of {self.member.spec.get('stop_timeout') or 0} s and was killed: {became}. "
                "Give tasks more time with drain_timeout and stop_timeout of the service."
            )
        if self.ended and not self.drained:
            lost = killed_words(self.tasks) or "what it had is not known"
            return f"{who} ended by itself while it was waited for: {lost}."
        if self.note:
            return f"{who} was ended without knowing its tasks: {self.note}; it was sent TERM, which lets it finish those that run."
        if self.tasks:
            return f"{who} still had {listed(self.tasks)} after {self.seconds:.0f} s; it was sent TERM, and ended when they had finished."
        return ""


class Drain:
    """Workers that are told to take no more tasks, and are waited for; a context manager, which closes what asks them."""

    def __init__(self, settings: Settings, members: Sequence[Member]) -> None:
        self.settings = settings
        asked = [member for member in members if how_asked(member) is not None and member.status().running]
        self.endings = {str(member): Ending(member) for member in asked}
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Drain:
        return self

    def __exit__(self, *details: object) -> None:
        self.stack.close()

    def run(self) -> None:
        """Tell all workers to take no more tasks, and wait until none has any, each as long as it may take."""
        members = [ending.member for ending in self.endings.values()]
        begun = time.monotonic()
        limits = {str(member): begun + self._allowed(member) for member in members}
        longest = max(limits.values(), default=begun)
        made = controls(self.settings, members, longest - begun + REPLY * 4, self._cannot)
        for control in made:
            self.stack.enter_context(control)
        delay = FIRST
        while made:
            for control in list(made):
                if not self._round(control, limits):
                    made.remove(control)
            for ending in self.endings.values():
                ending.seconds = ending.seconds or (time.monotonic() - begun if ending.finished() else 0.0)
            if made:
                time.sleep(delay)
                delay = min(delay * 1.5, LONGEST)
        for ending in self.endings.values():
            ending.seconds = ending.seconds or time.monotonic() - begun
            ending.ended = not ending.member.status().running

    def _allowed(self, member: Member) -> float:
        own = member.spec.get("drain_timeout")
        return float(self.settings.drain_timeout if own is None else own)

    def _cannot(self, member: Member, error: Unasked) -> None:
        self.endings[str(member)].note = str(error)

    def _round(self, control: Control, limits: dict[str, float]) -> bool:
        """Take one look at the workers of *control*; return whether another is needed."""
        waiting = [
            ending
            for ending in (self.endings[str(member)] for member in control.members)
            if not ending.finished()
        ]
        try:
            if any(not ending.nodes for ending in waiting):
                self._find(control, waiting)
            for ending in waiting:
                if ending.nodes:
                    self._look(control, ending)
        except Unasked as error:
            for ending in waiting:
                ending.note = str(error)
            return False
        now = time.monotonic()
        late = [ending for ending in waiting if now >= limits[str(ending.member)]]
        for ending in late:
            if ending.silent:
                ending.note = "it did not answer its remote control"
        return any(not ending.finished() for ending in waiting if ending not in late)

    @staticmethod
    def _find(control: Control, endings: Sequence[Ending]) -> None:
        found, _answers = control.find()
        for ending in endings:
            nodes = found.get(ending.member.service)
            if nodes and not ending.nodes:
                ending.nodes = sorted(node for node, _pid in nodes)

    @staticmethod
    def _look(control: Control, ending: Ending) -> None:
        """See that *ending* takes no more tasks, and which it has: in this order none can slip through in between."""
        nodes = ending.nodes
        answered = dict(control.ask("active_queues", nodes))
        for node, queues in answered.items():
            if queues:
                # Before the first of them is taken from it, so that a kill leaves no worker that silently does nothing.
                ending.member.pause()
            for queue in queues:
                ending.queues = sorted({*ending.queues, queue})
                control.ask("cancel_consumer", [node], {"queue": queue})
        reserved = dict(control.ask("reserved", nodes))
        active = dict(control.ask("active", nodes))
        ending.scheduled = sum(dict(control.ask("scheduled", nodes)).values())
        if set(nodes) - set(answered) or set(nodes) - set(reserved) or set(nodes) - set(active):
            # Whoever does not answer may be at work.
            ending.quiet, ending.silent = 0, True
            return
        ending.silent = False
        ending.tasks = tasks_of(
            [task for tasks in active.values() for task in tasks],
            [task for tasks in reserved.values() for task in tasks],
            time.time(),
        )
        idle = not ending.tasks and not any(answered.values())
        ending.quiet = ending.quiet + 1 if idle else 0

    def stopped(self, member: Member, killed: bool) -> None:
        """Note that *member* has ended since."""
        ending = self.endings.get(str(member))
        if ending is not None:
            ending.killed = killed

    def reports(self) -> list[dict[str, Any]]:
        """Return what became of the workers."""
        return [ending.report() for ending in self.endings.values()]
