# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks that are due after a deployment: ``app_due_tasks``, and what became of them, in the record's member ``due``.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._lock import parse_timestamp, timestamp
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

KEYS = ("name", "after", "at", "command", "note")
UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
SHORT = {"s": "second", "sec": "second", "m": "minute", "min": "minute", "h": "hour", "d": "day", "w": "week"}
DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*([a-z]+)$")
# What a task can be: nobody has done it yet; somebody has, or its command ended with 0; its command did not.
OPEN, DONE, FAILED = "open", "done", "failed"


class Task(NamedTuple):
    """``after``: seconds since the end of the deployment; ``at``: instead of it a time in UTC; ``command``: words."""

    name: str
    after: float | None
    at: str | None
    command: list[str]
    note: str


def parse_tasks(items: Sequence[Any], where: str = "app_due_tasks") -> list[Task]:
    """Return *items* read.

    :raises Problem: with one sentence for the first thing that is wrong.
    """
    tasks = [_parse(item, f"{where}[{index}]") for index, item in enumerate(items)]
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise Problem(f"{where} names {name!r} twice: a task is marked as done by its name.")
    return tasks


def _parse(item: Any, where: str) -> Task:
    if not isinstance(item, Mapping):
        raise Problem(f"{where} must be a mapping with name and after, found {item!r}.")
    for key in item:
        if key not in KEYS:
            raise Problem(f"{where} has the unknown key {key!r}: known are {', '.join(KEYS)}.")
    name = item.get("name")
    if not isinstance(name, str) or not name.strip():
        raise Problem(f"{where} has no name: it is what the task is marked as done by.")
    if ("after" in item) == ("at" in item):
        raise Problem(f"{where} needs either after, such as 24 hours, or at, such as 2026-12-01T09:00:00Z.")
    command = item.get("command") or []
    if not isinstance(command, (list, tuple)) or not all(isinstance(word, str) and word for word in command):
        raise Problem(f"{where}.command must be a list of words, found {command!r}.")
    note = item.get("note") or ""
    if not isinstance(note, str):
        raise Problem(f"{where}.note must be a text, found {note!r}.")
    at = str(item["at"]) if "at" in item else None
    if at is not None and parse_timestamp(at) is None:
        raise Problem(
            f"{where}.at must be a time in UTC such as 2026-12-01T09:00:00Z, in quotes, found {item['at']!r}."
        )
    after = _seconds(item["after"], where) if "after" in item else None
    return Task(" ".join(name.split()), after, at, list(command), " ".join(note.split()))


def _seconds(value: Any, where: str) -> float:
    """Return a duration in seconds: a number, or a text such as ``15 minutes``, ``4h``, ``1 week``."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return float(value)
    found = DURATION.match(value.strip().lower()) if isinstance(value, str) else None
    if found:
        unit = SHORT.get(found[2], found[2].rstrip("s") if len(found[2]) > 1 else found[2])
        if unit in UNITS:
            return float(found[1]) * UNITS[unit]
    raise Problem(
        f"{where}.after must be seconds, or a duration such as 15 minutes, 4 hours, 1 day or 1 week, found {value!r}."
    )


def due_of(items: Sequence[Any], finished: float) -> list[dict[str, Any]]:
    """Return the record's ``due`` for a deployment that ended at *finished* (seconds since 1970), soonest first."""
    entries = [
        {
            "name": task.name,
            "due": task.at or timestamp(finished + (task.after or 0.0)),
            "command": task.command,
            "note": task.note,
            "state": OPEN,
            "done_at": None,
            "done_by": None,
            "remark": "",
        }
        for task in parse_tasks(items)
    ]
    return sorted(entries, key=lambda entry: entry["due"])


def entries_of(record: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return the tasks in *record* that can be read; a record from before there were tasks has none."""
    found = (record or {}).get("due")
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []


def is_overdue(entry: Mapping[str, Any], now: float | None = None) -> bool:
    """Say whether the task *entry* should have been done by *now*."""
    due = parse_timestamp(entry.get("due"))
    return entry.get("state") != DONE and due is not None and due <= (time.time() if now is None else now)


def marked(
    entries: Sequence[Mapping[str, Any]], name: str, *, state: str, by: str, remark: str, at: str
) -> list[dict[str, Any]]:
    """Return *entries* with the task *name* in *state*; ``open`` takes a mark back.

    :raises Problem: when there is no such task.
    """
    names = [str(entry.get("name")) for entry in entries]
    if name not in names:
        known = ", ".join(repr(one) for one in names) or "none"
        raise Problem(f"The deployment has no task {name!r}; its tasks are: {known}. Nothing was marked.")
    change = {"state": state, "done_at": at, "done_by": by, "remark": remark}
    if state == OPEN:
        change.update(done_at=None, done_by=None)
    return [{**entry, **change} if entry.get("name") == name else dict(entry) for entry in entries]


def words(entry: Mapping[str, Any], now: float | None = None) -> str:
    """Return what a person has to know of one task, in one line."""
    if entry.get("state") == DONE:
        by = f" by {entry['done_by']}" if entry.get("done_by") else ""
        said = f"done at {entry.get('done_at')}{by}"
    else:
        said = f"{'OVERDUE since' if is_overdue(entry, now) else 'due at'} {entry.get('due')}"
        if entry.get("state") == FAILED:
            said += f", its command failed at {entry.get('done_at')}"
    parts = [f"{entry.get('name')}: {said}"]
    if entry.get("remark"):
        parts.append(str(entry["remark"]))
    if entry.get("state") != DONE:
        if entry.get("command"):
            parts.append(f"command: {shlex.join(str(word) for word in entry['command'])}")
        if entry.get("note"):
            parts.append(str(entry["note"]))
    return "; ".join(parts)
