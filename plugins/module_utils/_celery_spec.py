# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the checks of a Celery gate as people write them, and judge what workers and broker answered.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._comparison import Bound, parse_bound
from ansible_collections.runbook.deploy.plugins.module_utils._gate_spec import (
    COMMON,
    Common,
    common,
    keys,
    nearest,
    seconds,
    strings,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# What a check is about, and what else can be said of it.
SUBJECTS: dict[str, tuple[str, ...]] = {
    "workers": (),
    "active": ("longer_than",),
    "reserved": (),
    "queue": ("length", "consumers"),
    "beat": ("file", "max_age"),
    "tasks": (),
    "release": (),
}
EXAMPLE = "{workers: '>= 2'}"
# What the workers are asked besides whether they are there.
QUESTIONS = {
    "active": ("active",),
    "reserved": ("reserved",),
    "tasks": ("registered",),
    "release": ("stats",),
    "queue": ("active_queues",),
}
TIMES = {"": 1.0, "S": 1.0, "M": 60.0, "H": 3600.0, "D": 86400.0}
PLAIN = {"": 1.0}
# Names in a message.
SHOWN = 5


class Check(NamedTuple):
    """One question: its subject and the subject's value (a :class:`Bound`, names, or a text), and what else is said of it."""

    common: Common
    subject: str
    value: Any
    longer_than: float | None
    length: Bound | None
    consumers: Bound | None
    file: str | None
    max_age: Bound | None
    app: str | None

    @property
    def name(self) -> str:
        """Its name."""
        return self.common.name


class Judgement(NamedTuple):
    """What was ``observed``; what of it is ``wrong``, and what is ``unknown``; in words."""

    observed: str
    wrong: list[str]
    unknown: list[str]


def parse_check(item: Any, where: str) -> Check:
    """Return one check.

    :raises Problem: when it is not well written.
    """
    if not isinstance(item, Mapping):
        keys(item, (), where, EXAMPLE)
    found = [key for key in item if key in SUBJECTS]
    if len(found) != 1:
        unknown = next((str(key) for key in item if key not in (*SUBJECTS, *COMMON, "app")), "")
        hint = (
            nearest(unknown, list(SUBJECTS))
            if unknown and not found
            else f": expected one of {', '.join(SUBJECTS)}."
        )
        raise Problem(f"{where} has {len(found)} subjects{hint}")
    subject = found[0]
    keys(item, (*COMMON, "app", subject, *SUBJECTS[subject]), where, EXAMPLE)
    value = _value(subject, item[subject], f"{where}.{subject}")
    length = _bound(item.get("length"), f"{where}.length", PLAIN)
    consumers = _bound(item.get("consumers"), f"{where}.consumers", PLAIN)
    if subject == "queue" and length is None and consumers is None:
        raise Problem(f"{where} expects nothing: add length, such as '< 100', or consumers, such as '>= 1'.")
    path, age = item.get("file"), _bound(item.get("max_age"), f"{where}.max_age", TIMES)
    if path is not None and not os.path.isabs(str(path)):
        raise Problem(f"{where}.file must be an absolute path, found {path!r}.")
    if (path is None) != (age is None):
        raise Problem(f"{where} needs both file and max_age, such as '< 10m', or neither.")
    if age is not None and age.operator not in ("<", "<="):
        raise Problem(f"{where}.max_age must be an upper limit such as '< 10m', found {item['max_age']!r}.")
    app = item.get("app")
    if app is not None and (not isinstance(app, str) or not app.strip() or app.startswith("-")):
        raise Problem(f"{where}.app must be what celery -A takes, such as shop.celery:app, found {app!r}.")
    shown = value.text if isinstance(value, Bound) else ", ".join(value) if isinstance(value, list) else value
    return Check(
        common(item, where, f"celery {subject} {shown}"),
        subject,
        value,
        seconds(item.get("longer_than"), f"{where}.longer_than"),
        length,
        consumers,
        str(path) if path is not None else None,
        age,
        app,
    )


def _bound(value: Any, where: str, units: Mapping[str, float]) -> Bound | None:
    if value is None:
        return None
    plain = isinstance(value, int) and not isinstance(value, bool)
    return parse_bound(f"== {value}" if plain else value, where, units)


def _value(subject: str, value: Any, where: str) -> Any:
    if subject == "workers" and (isinstance(value, list) or (isinstance(value, str) and "@" in value)):
        return _names(value, where)
    if subject == "tasks":
        return _names(value, where)
    if subject in ("queue", "release"):
        if not isinstance(value, str) or not value.strip():
            raise Problem(f"{where} must be a text, found {value!r}.")
        return value.strip()
    found = _bound(value, where, PLAIN)
    if found is None:
        raise Problem(f"{where} must be a number or a comparison such as '< 5', found {value!r}.")
    if subject == "workers" and found.holds(0):
        raise Problem(
            f"{where} is {found.text!r}, which no worker at all would meet: ask for '>= 1' or more."
        )
    return found


def _names(value: Any, where: str) -> list[str]:
    found = strings(value, where)
    if not found:
        raise Problem(f"{where} is an empty list: nothing would be expected.")
    return found


def expected_of(check: Check) -> str:
    """Return what is expected, in words."""
    value = check.value
    if check.subject == "workers":
        return (
            f"{value.text} workers that answer"
            if isinstance(value, Bound)
            else f"answers of {', '.join(value)}"
        )
    if check.subject == "active":
        longer = f" for more than {check.longer_than:g} s" if check.longer_than else ""
        return f"{value.text} tasks running{longer}"
    if check.subject == "reserved":
        return f"{value.text} tasks that workers have fetched and not begun"
    if check.subject == "queue":
        wanted = [f"{check.length.text} messages"] if check.length else []
        wanted += [f"{check.consumers.text} consumers"] if check.consumers else []
        return f"queue {value!r} with {' and '.join(wanted)}"
    if check.subject == "beat":
        file = f", {check.file} changed {check.max_age.text} ago" if check.file and check.max_age else ""
        return f"{value.text} beats on this host{file}"
    if check.subject == "tasks":
        return f"every worker to know {', '.join(value)}"
    return f"the workers of this host to run the release {value}"


def judge(check: Check, answers: Mapping[str, Any], now: float) -> Judgement:
    """Judge the *answers* of the agent; not for ``beat`` and ``release``, which are looked at on the host.

    :param now: ``time.time()``.
    """
    workers = sorted(answers.get("ping") or {})
    return {
        "workers": _judge_workers,
        "active": _judge_load,
        "reserved": _judge_load,
        "queue": _judge_queue,
        "tasks": _judge_tasks,
    }[check.subject](check, answers, workers, now)


def shown(names: Sequence[str]) -> str:
    """Return the first of *names*, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def answered(workers: Sequence[str]) -> str:
    """Return who answered, in words."""
    return f"{len(workers)} workers answered: {shown(workers)}" if workers else "no worker answered"


def _judge_workers(check: Check, _answers: Mapping[str, Any], workers: list[str], _now: float) -> Judgement:
    seen = answered(workers)
    if isinstance(check.value, Bound):
        return Judgement(seen, [] if check.value.holds(len(workers)) else [seen], [])
    missing = [name for name in check.value if not fnmatch.filter(workers, name)]
    return Judgement(seen, [f"{shown(missing)} did not answer ({seen})"] if missing else [], [])


def _judge_load(check: Check, answers: Mapping[str, Any], workers: list[str], now: float) -> Judgement:
    if not workers:
        return Judgement("", [], ["no worker answered, so nobody knows what they do"])
    said = answers.get(check.subject) or {}
    silent = [worker for worker in workers if worker not in said]
    tasks = []
    for worker in workers:
        for task in said.get(worker, ()):
            begun = task.get("time_start")
            age = max(0.0, now - begun) if isinstance(begun, (int, float)) else 0.0
            if check.longer_than is None or age > check.longer_than:
                tasks.append((age, f"{task.get('name')} on {worker} for {age:.0f} s"))
    tasks.sort(reverse=True)
    what = "running" if check.subject == "active" else "fetched"
    seen = f"{len(tasks)} tasks {what}" + (f": {shown([text for _age, text in tasks])}" if tasks else "")
    # Who did not say anything may have more of them, never fewer.
    open_ = bool(silent) and (
        check.value.operator in (">", ">=")
        or (check.value.operator == "==" and len(tasks) < check.value.value)
    )
    if not check.value.holds(len(tasks)) and not open_:
        return Judgement(seen, [seen], [])
    unknown = [f"{shown(silent)} did not say what they do"] if silent else []
    return Judgement(seen, [], unknown)


def _judge_queue(check: Check, answers: Mapping[str, Any], workers: list[str], _now: float) -> Judgement:
    measured = (answers.get("queues") or {}).get(check.value)
    consumed = answers.get("active_queues") or {}
    own = [queue for found in consumed.values() for queue in found]
    known = sorted({*own, *(answers.get("declared") or ())})
    if measured is None:
        return Judgement("", [], [f"the broker has no queue {check.value!r}"])
    length, consumers = measured["messages"], measured["consumers"]
    if not length and consumers is None and check.value not in known:
        # Redis has no empty lists: a queue that does not exist looks like one.
        names = shown(known) or "none"
        return Judgement(
            "", [], [f"neither the application nor a worker knows a queue {check.value!r}, only: {names}"]
        )
    seen = f"{length} messages wait in {check.value!r}"
    if workers and check.value not in own:
        seen += ", which no worker that answered consumes"
    held = check.length is None or check.length.holds(length)
    if check.consumers is not None:
        # A broker that does not know them: those that said so.
        silent = [worker for worker in workers if worker not in consumed] if consumers is None else []
        count = own.count(check.value) if consumers is None else consumers
        seen += f"; {count} consumers" + (" that answered" if consumers is None else "")
        # Each that said nothing may be one more.
        if held and len({check.consumers.holds(count + more) for more in range(len(silent) + 1)}) > 1:
            return Judgement(seen, [], [f"{shown(silent)} did not say which queues they consume"])
        held = held and check.consumers.holds(count)
    return Judgement(seen, [] if held else [seen], [])


def _judge_tasks(check: Check, answers: Mapping[str, Any], workers: list[str], _now: float) -> Judgement:
    if not workers:
        return Judgement("no worker answered", ["no worker answered"], [])
    said = answers.get("registered") or {}
    wrong = []
    for worker in workers:
        if worker in said:
            missing = [name for name in check.value if name not in said[worker]]
            if missing:
                wrong.append(f"{worker} does not know {shown(missing)}")
    silent = [worker for worker in workers if worker not in said]
    unknown = [f"{shown(silent)} did not say which tasks they know"] if silent else []
    return Judgement(answered(workers), wrong, unknown)
