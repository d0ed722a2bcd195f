# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The remote control of Celery workers, through the application's own Celery, and whose answers are whose.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import (
    _agent_celery,
    _agent_runtime,
    _agent_workers,
    _beats,
)
from ansible_collections.runbook.deploy.plugins.module_utils._agent import Agent
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._replace import how_asked
from ansible_collections.runbook.deploy.plugins.module_utils._service import Member, Settings
from ansible_collections.runbook.deploy.plugins.module_utils._workers import (
    Celery,
    is_node,
    node_name,
    option,
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


class Unasked(Exception):
    """The workers could not be asked; the text says why, as a part of a sentence.

    :param broker: that was the broker's fault, and not the application's.
    """

    def __init__(self, text: str, broker: bool = False) -> None:
        super().__init__(text)
        self.broker = broker


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
            raise Unasked(f"the broker {self.place} cannot be reached: {text}", True)

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
            text = self.agent.hide(said["error"]).rstrip(".")
            raise Unasked(f"the broker {self.place} failed: {text}", True)
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
    settings: Settings, members: Sequence[Member], limit: float, failed: Callable[[Member, Unasked], None]
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
                failed(member, error)
    return made
