# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the checks of a service gate as people write them, and judge what was seen of a service for a while.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._comparison import SIZES, Bound, parse_bound
from ansible_collections.runbook.deploy.plugins.module_utils._gate_spec import (
    COMMON,
    Common,
    common,
    keys,
    seconds,
    strings,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

SUBJECTS = ("service", "unit", "pid_file")
PLAIN = {"": 1.0}
PERCENT = {"": 1.0, "%": 1.0}
TIMES = {"": 1.0, "S": 1.0, "M": 60.0, "H": 3600.0, "D": 86400.0}
# What is held against a figure, with the units it may have. A bare number means exactly that many.
FIGURES: dict[str, Mapping[str, float]] = {
    "memory": SIZES,
    "cpu": PERCENT,
    "open_files": PERCENT,
    "connections": PLAIN,
    "threads": PLAIN,
    "processes": PLAIN,
    "workers": PLAIN,
    "replaced": PLAIN,
    "restarts": PLAIN,
    "uptime": TIMES,
}
KEYS = (*COMMON, *SUBJECTS, *FIGURES, "duration", "listens", "release", "sub_state", "log")
EXAMPLE = "{unit: nginx.service, memory: '< 512MB'}"
DURATION = 5.0
NEVER = Bound("==", 0, "0")
CURRENT = "current"


class Check(NamedTuple):
    """One service and what is expected of it.

    ``subject``: one of ``SUBJECTS``; ``duration``: seconds that it is looked at; ``listens``: ports and paths of sockets;
    ``log``: a file whose end is shown when it fails.
    """

    common: Common
    subject: str
    value: str
    duration: float | None
    figures: dict[str, Bound]
    listens: list[int | str]
    release: str | None
    sub_state: list[str]
    log: str | None

    @property
    def name(self) -> str:
        """Its name."""
        return self.common.name

    def wants(self, *figures: str) -> bool:
        """Return whether one of *figures* is expected to be something."""
        return any(figure in self.figures for figure in figures)


class Sample(NamedTuple):
    """What was seen at one moment; None where it could not be.

    ``memory`` in bytes, and whether that is ``exact`` or at most so much; ``open_files`` of all processes together and, in
    percent, of the one that is nearest to its limit; ``restarts``: how often the manager started it again.
    """

    processes: int
    threads: int
    workers: int
    uptime: float
    memory: int | None = None
    exact: bool = True
    open_files: int | None = None
    open_files_percent: float | None = None
    connections: int | None = None
    restarts: int | None = None


class Judgement(NamedTuple):
    """What was ``observed``; what of it is ``wrong``, and what is ``unknown``; in words."""

    observed: str
    wrong: list[str]
    unknown: list[str]


def parse_check(item: Any, where: str) -> Check:
    """Return one check.

    :raises Problem: when it is not well written.
    """
    keys(item, KEYS, where, EXAMPLE)
    named = [subject for subject in SUBJECTS if item.get(subject) is not None]
    if len(named) != 1:
        raise Problem(f"{where} has {len(named)} subjects: expected one of {', '.join(SUBJECTS)}.")
    subject = named[0]
    value = item[subject]
    if not isinstance(value, str) or not value.strip():
        raise Problem(f"{where}.{subject} must be a text, found {value!r}.")
    for key in ("pid_file", "log"):
        if item.get(key) is not None and not os.path.isabs(str(item[key])):
            raise Problem(f"{where}.{key} must be an absolute path, found {item[key]!r}.")
    if subject == "unit" and not all(letter.isalnum() or letter in ":-_.\\@" for letter in value):
        raise Problem(f"{where}.unit must be the name of one unit, such as nginx.service, found {value!r}.")
    figures = {
        key: parse_bound(_bound_text(item[key]), f"{where}.{key}", units)
        for key, units in FIGURES.items()
        if item.get(key) is not None
    }
    release = item.get("release")
    if release is not None and (not isinstance(release, str) or not release.strip()):
        raise Problem(
            f"{where}.release must be the name of a release, a path or 'current', found {release!r}."
        )
    return Check(
        common(item, where, f"{subject} {value}"),
        subject,
        value.strip(),
        seconds(item.get("duration"), f"{where}.duration"),
        figures,
        _addresses(item.get("listens"), f"{where}.listens"),
        release.strip() if release else None,
        strings(item.get("sub_state"), f"{where}.sub_state"),
        str(item["log"]) if item.get("log") is not None else None,
    )


def _bound_text(value: Any) -> Any:
    return f"== {value}" if isinstance(value, int) and not isinstance(value, bool) else value


def _addresses(value: Any, where: str) -> list[int | str]:
    found: list[int | str] = []
    for item in strings(value, where):
        if item.startswith("/"):
            found.append(item)
        elif item.isdecimal() and 0 < int(item) < 65536:
            found.append(int(item))
        else:
            raise Problem(
                f"{where} must be ports and paths of sockets, such as [8000, /run/app.sock], found {item!r}."
            )
    return found


def expected_of(
    check: Check, duration: float, release: str | None = None, listens: Sequence[int | str] | None = None
) -> str:
    """Return what is expected, in words.

    :param release, listens: those of the service that was found, where they are not in the check.
    """
    parts = [f"up for {duration:g} s with the same main process"]
    if check.figures.get("replaced", NEVER) == NEVER:
        parts.append("no worker replaced")
    parts += [f"{name.replace('_', ' ')} {bound.text}" for name, bound in check.figures.items()]
    parts += [f"sub-state {' or '.join(check.sub_state)}"] if check.sub_state else []
    parts += [f"listens on {place}" for place in (check.listens if listens is None else listens)]
    parts += [f"release {release or check.release}"] if release or check.release else []
    return ", ".join(parts)


def size(number: float) -> str:
    """Return bytes as people read them, in the units that ``SIZES`` has for powers of ten."""
    for unit in ("GB", "MB", "KB"):
        if number >= SIZES[unit]:
            return f"{number / SIZES[unit]:.1f} {unit}"
    return f"{number:.0f} B"


def judge(
    check: Check, samples: Sequence[Sample], cpu: float | None, replaced: int, manager: str
) -> Judgement:
    """Judge what was seen of a service that stayed up: every sample has to be as expected.

    :param cpu: percent of one core over the whole time; None where that could not be measured.
    :param replaced: how many workers were; :param manager: what it is called in messages, for what it does not keep.
    """
    wrong: list[str] = []
    unknown: list[str] = []
    last = samples[-1]
    shown = [f"{last.processes} processes", f"{last.workers} workers"]
    readers: dict[str, tuple[Callable[[Sample], float | None], Callable[[float], str]]] = {
        "memory": (lambda sample: sample.memory, size),
        "connections": (lambda sample: sample.connections, _number),
        "threads": (lambda sample: sample.threads, _number),
        "processes": (lambda sample: sample.processes, _number),
        "workers": (lambda sample: sample.workers, _number),
        "uptime": (lambda sample: sample.uptime, lambda value: f"{value:.0f} s"),
        "restarts": (lambda sample: sample.restarts, _number),
        "open_files": (lambda sample: sample.open_files, _number),
        "open_files %": (lambda sample: sample.open_files_percent, _percent),
    }
    for name, bound in check.figures.items():
        title = name.replace("_", " ")
        if name == "replaced":
            continue
        if name == "cpu":
            found, text = [cpu], _percent
        else:
            of_limit = name == "open_files" and bound.text.endswith("%")
            read, text = readers["open_files %" if of_limit else name]
            # It only grows: what it was at first does not matter.
            looked = samples[-1:] if name == "uptime" else samples
            found = [read(sample) for sample in looked]
        known = [value for value in found if value is not None]
        if len(known) < len(found) or not known:
            unknown.append(f"{title} cannot be told: {_why(name, manager)}")
            continue
        against = next((value for value in known if not bound.holds(value)), None)
        exact = name != "memory" or all(sample.exact for sample in samples)
        shown.append(f"{title} {text(known[-1] if against is None else against)}")
        if not exact and (against is not None or bound.operator not in ("<", "<=")):
            unknown.append(
                f"{title} is at most {text(max(known))}, expected {bound.text}: what its processes share is only known to "
                "root and to its own user"
            )
        elif against is not None:
            wrong.append(f"{title} was {text(against)}, expected {bound.text}")
    bound = check.figures.get("replaced", NEVER)
    shown += [f"{replaced} workers replaced"] if replaced else []
    if not bound.holds(replaced):
        wrong.append(f"{replaced} of its workers ended and were replaced, expected {bound.text}")
    return Judgement(", ".join(shown), wrong, unknown)


def _number(value: float) -> str:
    return f"{value:g}"


def _percent(value: float) -> str:
    return f"{value:.1f} %"


def _why(figure: str, manager: str) -> str:
    if figure == "restarts":
        return f"{manager} keeps no count of them"
    if figure == "cpu":
        return "it was looked at for too short a time"
    return f"uid {os.geteuid()} may not look into its processes; ask as root or as its own user"
