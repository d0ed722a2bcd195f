# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Celery workers are ended without losing a task, and proved when they were started, by their own remote control.

A worker is first told to take no more tasks, and is given time to finish those that it has; only then it is sent TERM.
A file says so beforehand: after a kill in between, it would otherwise live on and do nothing.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import (
    _agent_celery,
    _agent_runtime,
    _agent_workers,
    _beats,
    _proc_tree,
    _processes,
)
from ansible_collections.runbook.deploy.plugins.module_utils._agent import Agent
from ansible_collections.runbook.deploy.plugins.module_utils._gate import PASS, check_result
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._replace import how_asked
from ansible_collections.runbook.deploy.plugins.module_utils._service import Member, Settings
from ansible_collections.runbook.deploy.plugins.module_utils._workers import (
    Celery,
    Task,
    is_node,
    killed_words,
    listed,
    node_name,
    option,
    tasks_of,
    twice,
    within,
)

PARTS = (
    ("_runbook_runtime", _agent_runtime),
    ("_runbook_celery", _agent_celery),
    ("_runbook_workers", _agent_workers),
)
# Seconds for the broker, for all workers to say that they are there, and for those that did to answer further questions.
CONNECT = 5.0
FIND = 1.0
REPLY = 3.0
# Seconds for the application to be loaded, besides what is asked.
LOAD = 30.0
# Seconds between two looks; first soon, as most tasks are short.
FIRST, LONGEST = 0.1, 1.0
# A worker must be found without tasks this often in a row.
QUIET = 2


class Unasked(Exception):
    """The workers could not be asked; the text says why, as a part of a sentence."""


def python_of(member: Member) -> str:
    """Return the interpreter that runs *member*: the one in its command, beside its command, or of its environment."""
    first = member.instance.words(member.spec)[0] if member.instance else ""
    if os.path.basename(first).startswith("python"):
        return first
    beside = os.path.join(os.path.dirname(first), "python")
    if "/" in first and os.access(beside, os.X_OK):
        return beside
    environment = member.instance.document.get("environment_path") if member.instance else ""
    return f"{environment or '/usr'}/bin/python{'' if environment else '3'}"


class Control:
    """The Celery of *members*, which are of one instance and one application, asked by their own Python.

    :param limit: seconds for everything that will be asked, besides the loading of the application.
    :raises Unasked: when the application cannot be loaded or its broker not be reached.
    """

    def __init__(self, settings: Settings, members: Sequence[Member], how: Celery, limit: float) -> None:
        member = members[0]
        self.members = list(members)
        self.how = how
        self.place = ""
        instance = member.instance
        directory = str(instance.document.get("directory") or "")
        try:
            self.agent = Agent(
                python=python_of(member),
                cwd=settings.layout.release(instance.release) / directory,
                variables=instance.variables,
                user=settings.user,
                secrets=within(member.secrets),
                limit=limit + LOAD + CONNECT * 2,
                parts=PARTS,
            )
            try:
                said = self.agent.call(
                    "connect", app=how.app, broker=how.broker, seconds=CONNECT, timeout=LOAD + CONNECT * 2
                )
            except BaseException:
                self.agent.close()
                raise
        except Problem as problem:
            raise Unasked(problem.message.rstrip(".")) from problem
        self.place = member.hide(said["place"])
        if "error" in said:
            self.agent.close()
            text = self.agent.hide(said["error"]).rstrip(".")
            if said["kind"] == "application":
                raise Unasked(f"the Celery application {how.app!r} cannot be loaded: {text}")
            raise Unasked(f"the broker {self.place} cannot be reached: {text}")

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *details: object) -> None:
        self.agent.close()

    def ask(
        self, command: str, nodes: Sequence[str] = (), arguments: dict[str, Any] | None = None
    ) -> list[list[Any]]:
        """Return ``[node, answer]`` of those of *nodes* (of all workers) that answer *command*.

        :raises Unasked: when the broker fails, or the application's process.
        """
        try:
            said = self.agent.call(
                "ask",
                command=command,
                nodes=list(nodes),
                arguments=arguments,
                reply=FIND if command == "stats" else REPLY,
                timeout=LOAD + CONNECT * 2,
            )
        except Problem as problem:
            raise Unasked(problem.message.rstrip(".")) from problem
        if "error" in said:
            raise Unasked(f"the broker {self.place} failed: {self.agent.hide(said['error']).rstrip('.')}")
        return said["answers"]

    def find(self) -> tuple[dict[str, list[tuple[str, int]]], list[list[Any]]]:
        """Return (by service the name and PID of each worker that is a process of that member; all that answered).

        :raises Unasked: as :meth:`ask`.
        """
        host = os.uname().nodename
        # By name first: who is asked by name is not waited for when all have answered.
        answers = self.ask("stats", sorted({expected_node(member, host) for member in self.members}))
        found = self._matched(answers, host)
        if len(found) < len(self.members):
            answers = self.ask("stats")
            found = self._matched(answers, host)
        return found, answers

    def _matched(self, answers: Sequence[Sequence[Any]], host: str) -> dict[str, list[tuple[str, int]]]:
        found: dict[str, list[tuple[str, int]]] = {}
        for node, answer in answers:
            pid = answer.get("pid")
            if not isinstance(pid, int):
                continue
            for member in self.members:
                if member.unit.owns(pid) and is_node(node, _beats.words_of(pid), host):
                    found.setdefault(member.service, []).append((node, pid))
        return found


def expected_node(member: Member, host: str) -> str:
    """Return the name that the worker *member* most likely has on *host*."""
    words = member.instance.words(member.spec) if member.instance else []
    return node_name(option(words, "-n", "--hostname") or host, host)


def controls(
    settings: Settings, members: Sequence[Member], limit: float, failed: Callable[[Member, str], None]
) -> list[Control]:
    """Return what asks *members*; *failed* is told of each that cannot be asked, and why. The caller closes them."""
    groups: dict[tuple[str, Celery], list[Member]] = {}
    for member in members:
        how = how_asked(member)
        if how is not None:
            groups.setdefault((member.deployment, how), []).append(member)
    made = []
    for (_deployment, how), group in groups.items():
        try:
            made.append(Control(settings, group, how, limit))
        except Unasked as error:
            for member in group:
                failed(member, str(error))
    return made


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
        if self.note:
            return f"{who} was ended without knowing its tasks: {self.note}; it was sent TERM, which lets it finish those that run."
        if self.tasks:
            return f"{who} still had {listed(self.tasks)} after {self.seconds:.0f} s; it was sent TERM, and ended when they had finished."
        return ""


class Drain:
    """Workers that are told to take no more tasks, and are waited for; a context manager, which closes what asks them."""

    def __init__(self, settings: Settings, members: Sequence[Member]) -> None:
        self.settings = settings
        self.endings = {str(member): Ending(member) for member in members if how_asked(member) is not None}
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Drain:
        return self

    def __exit__(self, *details: object) -> None:
        self.stack.close()

    def run(self) -> None:
        """Tell all workers to take no more tasks, and wait until none has any, each as long as it may take."""
        members = [ending.member for ending in self.endings.values() if ending.member.status().running]
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

    def _allowed(self, member: Member) -> float:
        own = member.spec.get("drain_timeout")
        return float(self.settings.drain_timeout if own is None else own)

    def _cannot(self, member: Member, text: str) -> None:
        self.endings[str(member)].note = text

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
            if not ending.nodes:
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
            ending.quiet = 0
            return
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


def prove(settings: Settings, members: Sequence[Member]) -> list[dict[str, Any]]:
    """Wait until each Celery worker among *members* answers ping by its name, takes tasks and runs its release.

    :return: a ``check_result`` for each, with ``nodes``.
    :raises Problem: when one does not within ``start_timeout``, or ends meanwhile.
    """
    asked = [member for member in members if how_asked(member) is not None]
    begun = time.monotonic()
    results: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {member.service: "it was not asked" for member in asked}
    delay = FIRST
    while missing:
        wanted = [member for member in asked if member.service in missing]
        left = begun + settings.start_timeout - time.monotonic()
        made = controls(
            settings,
            wanted,
            max(left, 0.0) + REPLY * 4,
            lambda member, text: missing.update({member.service: text}),
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
        if missing and time.monotonic() - begun > settings.start_timeout:
            member = next(member for member in wanted if member.service in missing)
            raise member.problem(
                f"does not answer as a worker within {settings.start_timeout:g} s, expected a ping, a queue and its own release: "
                f"{missing[member.service]}; see its log, or raise app_start_timeout."
            )
        if missing:
            time.sleep(LONGEST)
    return [results[member.service] for member in asked]


def _ask_new(
    control: Control, missing: dict[str, str], results: dict[str, dict[str, Any]], begun: float
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
                missing[member.service] = f"{wrong} (workers that answered at {control.place}: {others})"
                if double:
                    missing[member.service] += (
                        f"; more than one is called {', '.join(double)}: give each a name with -n"
                    )
    except Unasked as error:
        for member in control.members:
            if member.service in missing:
                missing[member.service] = str(error)
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
