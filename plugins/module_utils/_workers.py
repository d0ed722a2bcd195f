# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which services are Celery workers, by which names they answer, and what their answers mean. Nothing here asks anybody.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils import _beats

# What Celery calls a worker where setproctitle is installed (celery.platforms.set_mp_process_title).
_TITLE = re.compile(r"^\[celeryd: (?P<node>[^:\]]+):")
_PASSWORD = re.compile(r"://[^:/@\s]*:([^@\s]+)@")
# So many tasks are named in a sentence; all of them are in the answer.
NAMED = 5


class Celery(NamedTuple):
    """How a worker's Celery is asked: ``app`` as ``celery -A`` takes it, ``broker`` where its command names one, else ""."""

    app: str
    broker: str


def option(words: Sequence[str], short: str, long: str) -> str:
    """Return the value of an option of the command *words*, written in any of the ways that Celery reads; "" without it."""
    for index, word in enumerate(words):
        if word in (short, long) and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(f"{long}="):
            return word[len(long) + 1 :]
        if word.startswith(short) and not word.startswith("--") and len(word) > len(short):
            return word[len(short) :].lstrip("=")
    return ""


def is_worker_command(words: Sequence[str]) -> bool:
    """Return whether *words* is ``celery … worker``, also by way of ``python -m``."""
    names = [os.path.basename(word) for word in words]
    return "celery" in names and "worker" in words[names.index("celery") + 1 :]


def celery_of(spec: Mapping[str, Any], words: Sequence[str], variables: Mapping[str, str]) -> Celery | None:
    """Return how the worker *spec* is asked; None where it is no worker, none of Celery, or nobody knows its application.

    :param words: its command; :param variables: its environment, which names the application where the command does not.
    """
    given = spec.get("celery")
    if spec.get("kind") != "worker" or given == "" or not (given or is_worker_command(words)):
        return None
    app = given or _beats.named(words) or variables.get("CELERY_APP") or ""
    return Celery(app, option(words, "-b", "--broker")) if app else None


def node_name(value: str, host: str) -> str:
    """Return the name of the worker that is started with ``-n value`` on *host* (celery.utils.nodenames).

    ``%h`` is the host's whole name, ``%n`` its first part, ``%d`` the rest; a value without ``@`` is the host's part.
    """
    name, at, place = value.partition("@")
    if not at:
        name, place = "celery", value
    first, _dot, domain = host.partition(".")
    known = {"%h": host, "%n": first, "%d": domain, "%%": "%", "%i": "", "%I": ""}
    return re.sub(r"%[hndiI%]", lambda found: known[found.group()], f"{name or 'celery'}@{place or host}")


def is_node(node: str, words: Sequence[str], host: str) -> bool:
    """Return whether the process with the command *words* on this *host* is the worker *node*.

    A PID alone says nothing: workers of other hosts answer too, and theirs exist here as well.
    """
    title = _TITLE.match(words[0]) if words else None
    if title:
        return title["node"] == node
    named = option(words, "-n", "--hostname")
    if named and node == node_name(named, host):
        return True
    return node.partition("@")[2] in (host, host.split(".")[0])


class Task(NamedTuple):
    """A task that a worker has: ``seconds`` since it began, None while it waits; ``acknowledged``: the broker forgot it."""

    id: str
    name: str
    seconds: float | None
    acknowledged: bool

    def words(self) -> str:
        """Return it in words."""
        since = "waiting" if self.seconds is None else f"for {self.seconds:.0f} s"
        return f"{self.name} ({self.id}, {since})"

    def plain(self) -> dict[str, Any]:
        """Return it for an answer."""
        return {
            "id": self.id,
            "name": self.name,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "acknowledged": self.acknowledged,
        }


def tasks_of(
    active: Iterable[Mapping[str, Any]], reserved: Iterable[Mapping[str, Any]], now: float
) -> list[Task]:
    """Return the tasks in the answers to ``active`` and ``reserved``, those that run first; *now* is the time of day."""
    found: dict[str, Task] = {}
    for task, runs in [*((task, True) for task in active), *((task, False) for task in reserved)]:
        started = task.get("started")
        seconds = max(0.0, now - float(started)) if runs and isinstance(started, (int, float)) else None
        if runs and seconds is None:
            seconds = 0.0
        name = str(task.get("id"))
        found.setdefault(name, Task(name, str(task.get("name")), seconds, bool(task.get("acknowledged"))))
    return list(found.values())


def listed(tasks: Sequence[Task]) -> str:
    """Return the first of *tasks* in words."""
    shown = ", ".join(task.words() for task in tasks[:NAMED])
    return shown + (f" and {len(tasks) - NAMED} more" if len(tasks) > NAMED else "")


def within(values: Iterable[str]) -> list[str]:
    """Return *values*, and the passwords in those that are addresses, as they are written and as they are meant."""
    found = []
    for value in values:
        passwords = _PASSWORD.findall(value)
        found += [value, *passwords, *(urllib.parse.unquote(password) for password in passwords)]
    return found


def twice(answers: Iterable[Sequence[Any]]) -> list[str]:
    """Return the names by which more than one worker answered: whatever is sent to one of them, both do."""
    names = [str(node) for node, _answer in answers]
    return sorted({name for name in names if names.count(name) > 1})


def killed_words(tasks: Sequence[Task]) -> str:
    """Return what became of *tasks*, which a worker may still have had when it was killed."""
    gone = [task for task in tasks if task.acknowledged]
    again = [task for task in tasks if not task.acknowledged]
    said = []
    if gone:
        said.append(
            f"{listed(gone)} had been acknowledged when it began (no acks_late) and is run again by nobody: send it anew where it matters"
        )
    if again:
        said.append(
            f"{listed(again)} had not been acknowledged, so that the broker gives it out again; Redis and SQS only when the visibility "
            "timeout is over"
        )
    return "; ".join(said)
