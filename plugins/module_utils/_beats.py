# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many Celery beats of an application run on this host: two of them send every scheduled task twice.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils import _proc_tree, _processes
from ansible_collections.runbook.deploy.plugins.module_utils._processes import PROC

# What Celery calls its processes where setproctitle is installed (celery.platforms.set_process_title).
_TITLE = re.compile(r"^\[(celery beat|celeryd: [^\]]*)\](.*)$", re.DOTALL)
_EMBEDDED = re.compile(r"(?:^|[\s(])(?:-B|--beat)(?:$|[\s)=])")


class Application(NamedTuple):
    """By what its processes are known: ``root``, paths below which its code and its environment are, services that are beats
    by definition, and ``name`` as ``celery -A`` takes it."""

    root: str | None
    paths: Sequence[str]
    services: Collection[str]
    name: str


class Found(NamedTuple):
    """The beats that run, and processes that may be such: nobody may see whose they are; by PID."""

    beats: list[int]
    unknown: list[int]


def is_beat(words: Sequence[str]) -> bool:
    """Return whether the command *words* is ``celery … beat``, or a worker with a beat in it (``-B``)."""
    title = _TITLE.match(words[0]) if words else None
    if title:
        return title.group(1) == "celery beat" or _EMBEDDED.search(title.group(2)) is not None
    names = [os.path.basename(word) for word in words]
    if "celery" not in names:
        return False
    rest = words[names.index("celery") + 1 :]
    if "beat" in rest and "worker" not in rest[: rest.index("beat")]:
        # "celery -A beat worker" is no beat, whatever it is the worker of.
        at = rest.index("beat")
        return not (
            at and rest[at - 1] in ("-A", "--app", "-b", "--broker", "-n", "--hostname", "-Q", "--queues")
        )
    if "worker" not in rest:
        return False
    return any(
        word in ("-B", "--beat") or re.match(r"-[A-Za-z]*B[A-Za-z]*$", word) is not None
        for word in rest[rest.index("worker") + 1 :]
    )


def named(words: Sequence[str]) -> str | None:
    """Return the application that a command line names (``-A``), None where it does not."""
    listed = " ".join(words).split() if words and _TITLE.match(words[0]) else list(words)
    for index, word in enumerate(listed):
        if word in ("-A", "--app") and index + 1 < len(listed):
            return listed[index + 1].strip("()")
        for prefix in ("--app=", "-A"):
            if word.startswith(prefix) and len(word) > len(prefix):
                return word[len(prefix) :].strip("()")
    return None


def belongs(
    application: Application, words: Sequence[str], variables: Mapping[str, str], paths: Iterable[str] | None
) -> bool | None:
    """Return whether a process is the application's; None where that cannot be told.

    :param variables: its environment, {} where that may not be read; :param paths: where it runs, None likewise.
    """
    root = variables.get("RUNBOOK_ROOT")
    if root and application.root:
        return os.path.realpath(root) == os.path.realpath(application.root)
    places = [os.path.realpath(path) for path in application.paths]
    seen = [*(paths or ()), *(word for word in words if word.startswith("/"))]
    if variables.get("VIRTUAL_ENV"):
        seen.append(variables["VIRTUAL_ENV"])
    if any(path == place or path.startswith(f"{place}/") for path in seen for place in places):
        return True
    if not variables and paths is None:
        own = named(words)
        return None if own is None or own.split(":")[0] == application.name.split(":")[0] else False
    return False


def words_of(pid: int) -> list[str]:
    """Return the command line of *pid*, [] when it is gone."""
    try:
        with open(f"{PROC}/{pid}/cmdline", "rb") as stream:
            return os.fsdecode(stream.read()).rstrip("\0").split("\0")
    except OSError:
        return []


def find(
    application: Application,
    entries: Mapping[int, _proc_tree.Entry] | None = None,
    words_of: Callable[[int], list[str]] = words_of,
) -> Found:
    """Return the beats of *application* on this host; one that a wrapper started, or a worker, counts once."""
    listed = _proc_tree.scan() if entries is None else entries
    beats: set[int] = set()
    unknown: set[int] = set()
    for pid in listed:
        words = words_of(pid)
        variables: Mapping[str, str] = {}
        celery = is_beat(words)
        if not celery:
            if not application.services:
                continue
            variables = _processes.variables(pid)
            if variables.get("RUNBOOK_SERVICE") not in application.services:
                continue
        variables = variables or _processes.variables(pid)
        whose = belongs(application, words, variables, _proc_tree.runs_from(pid))
        if whose:
            beats.add(pid)
        elif whose is None:
            unknown.add(pid)
    every = beats | unknown
    return Found(
        sorted(pid for pid in beats if not _above(pid, listed) & every),
        sorted(pid for pid in unknown if not _above(pid, listed) & every),
    )


def _above(pid: int, entries: Mapping[int, _proc_tree.Entry]) -> set[int]:
    """Return the ancestors of *pid*."""
    found: set[int] = set()
    while pid in entries and entries[pid].ppid not in found:
        pid = entries[pid].ppid
        found.add(pid)
    return found
