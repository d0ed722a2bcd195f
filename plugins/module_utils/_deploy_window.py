# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""May this deployment begin now, and did everybody agree? ``app_window`` and ``app_approvals``, judged on the controller.

A window is read off the clock on the wall of its zone: the same hour in summer and in winter. An hour that the clock shows twice is
inside twice, one that it leaves out never is.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import datetime
import difflib
import json
import re
import zoneinfo
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_NAMES = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
KEYS = ("days", "from", "to", "zone")
MIDNIGHT = 24 * 60
MINUTE = datetime.timedelta(minutes=1)
# A window opens at least once a week, unless a change of the clock leaves it out.
HORIZON = 15 * MIDNIGHT
ROLE = re.compile(r"^[A-Za-z][A-Za-z0-9_-]{0,40}$")


class Window(NamedTuple):
    """``days`` on which it begins (0 is Monday), minutes of the day, and the zone whose clock is meant.

    ``end`` up to ``begin`` is on the next day; ``end`` may be ``MIDNIGHT``.
    """

    days: frozenset[int]
    begin: int
    end: int
    zone: zoneinfo.ZoneInfo


def parse_windows(items: Sequence[Any], where: str = "app_window") -> list[Window]:
    """Return *items* read.

    :raises Problem: with one sentence for the first thing that is wrong.
    """
    return [_parse(item, f"{where}[{index}]") for index, item in enumerate(items)]


def _parse(item: Any, where: str) -> Window:
    if not isinstance(item, Mapping):
        raise Problem(f"{where} must be a mapping with {', '.join(KEYS)}, found {item!r}.")
    for key in item:
        if key not in KEYS:
            raise Problem(f"{where} has the unknown key {key!r}: known are {', '.join(KEYS)}.")
    days = item.get("days", list(DAYS))
    known = isinstance(days, (list, tuple)) and all(str(day).lower()[:3] in DAYS for day in days)
    if not known or not days:
        raise Problem(f"{where}.days must be a list of some of {', '.join(DAYS)}, found {days!r}.")
    begin, end = _minutes(item, "from", where), _minutes(item, "to", where)
    if begin == MIDNIGHT:
        raise Problem(f"{where}.from is 24:00, which is 00:00 of the next day: say that.")
    zone = item.get("zone", "UTC")
    try:
        place = zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise Problem(
            f"{where}.zone {zone!r} is not known on this controller: give one such as Europe/Berlin; where all are unknown, the package "
            "tzdata is missing."
        ) from None
    return Window(frozenset(DAYS.index(str(day).lower()[:3]) for day in days), begin, end, place)


def _minutes(item: Mapping[str, Any], key: str, where: str) -> int:
    """Return a time of the day in minutes; YAML reads an unquoted 22:00 as the number of minutes."""
    value = item.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MIDNIGHT:
        return value
    found = re.fullmatch(r"(\d{1,2}):(\d{2})", value.strip()) if isinstance(value, str) else None
    minutes = int(found[1]) * 60 + int(found[2]) if found and int(found[2]) < 60 else MIDNIGHT + 1
    if minutes > MIDNIGHT:
        raise Problem(f'{where}.{key} must be a time such as "22:00", found {value!r}.')
    return minutes


def is_open(windows: Sequence[Window], moment: datetime.datetime) -> bool:
    """Say whether *moment* (with a zone) is inside one of *windows*; without any, it always is."""
    return not windows or any(_covers(window, moment) for window in windows)


def _covers(window: Window, moment: datetime.datetime) -> bool:
    wall = moment.astimezone(window.zone)
    minute = wall.hour * 60 + wall.minute
    today, yesterday = wall.weekday(), (wall.weekday() - 1) % 7
    if window.begin < window.end:
        return today in window.days and window.begin <= minute < window.end
    return (today in window.days and minute >= window.begin) or (
        yesterday in window.days and minute < window.end
    )


def next_opening(
    windows: Sequence[Window], moment: datetime.datetime
) -> tuple[datetime.datetime, Window] | None:
    """Return when one of *windows* opens after *moment*, to the minute, and which; None when none ever does.

    Minute by minute: what the changes of a clock do to a window needs no rules then.
    """
    then = moment.astimezone(datetime.timezone.utc).replace(second=0, microsecond=0)
    for _minute in range(HORIZON):
        then += MINUTE
        for window in windows:
            if _covers(window, then):
                return then, window
    return None


def told(moment: datetime.datetime, zone: zoneinfo.ZoneInfo) -> str:
    """Return *moment* as people of *zone* say it."""
    wall = moment.astimezone(zone)
    return f"{DAY_NAMES[wall.weekday()]} {wall:%Y-%m-%d %H:%M} ({zone.key})"


def outside(windows: Sequence[Window], moment: datetime.datetime, reason: str) -> str:
    """Return in one sentence why a deployment may not begin at *moment*; "" when it may, or *reason* lets it pass."""
    if reason.strip() or is_open(windows, moment):
        return ""
    found = next_opening(windows, moment)
    opens = (
        f"opens next on {told(found[0], found[1].zone)}" if found else "does not open in the next two weeks"
    )
    return (
        f"It is {told(moment, (found[1] if found else windows[0]).zone)}, and app_window {opens}: deploy then, or let it pass with "
        "-e deployment_outside_window=<reason>; nothing was changed."
    )


def parse_roles(items: Sequence[Any], where: str = "app_approvals") -> list[str]:
    """Return the roles *items*.

    :raises Problem: when one cannot be a role, or is there twice.
    """
    for index, item in enumerate(items):
        if not isinstance(item, str) or not ROLE.match(item):
            raise Problem(f"{where}[{index}] must be a role such as tech_lead, found {item!r}.")
        if list(items).count(item) > 1:
            raise Problem(f"{where} names {item!r} twice.")
    return list(items)


def parse_approvals(value: Any) -> dict[str, str]:
    """Return who approved, ``{role: name}``, from ``deployment_approvals``, a mapping or its JSON.

    :raises Problem: when it cannot be read, or a role has nobody's name.
    """
    given = value.strip() if isinstance(value, str) else value
    if isinstance(value, str) and given:
        try:
            given = json.loads(value)
        except ValueError:
            given = value.strip()
    if given in (None, "", {}):
        return {}
    if not isinstance(given, Mapping):
        raise Problem(
            f"""deployment_approvals must be a mapping of roles to names, as in -e '{{"deployment_approvals": {{"tech_lead": "ann"}}}}', """
            f"found {value!r}; nothing was changed."
        )
    for role, name in given.items():
        if not isinstance(name, str) or not name.strip():
            raise Problem(
                f"deployment_approvals.{role} must be a person's name, found {name!r}; nothing was changed."
            )
    return {str(role): " ".join(name.split()) for role, name in given.items()}


def missing(roles: Sequence[str], given: Mapping[str, str]) -> str:
    """Return in one sentence whose approval is missing; "" when none is."""
    absent = [role for role in roles if role not in given]
    if not absent:
        return ""
    option = json.dumps({"deployment_approvals": {**given, **dict.fromkeys(absent, "<name>")}})
    others = [role for role in given if role not in roles]
    meant = [
        f"{other} for {near[0]}" for other in others if (near := difflib.get_close_matches(other, absent, 1))
    ]
    return (
        f"app_approvals asks for the approval of {', '.join(absent)}, which is missing"
        f"{' (is ' + ', '.join(meant) + ' a slip?)' if meant else ''}: have it, and give the name with "
        f"-e '{option}', or at the terminal with -e deployment_ask_approvals=true; nothing was changed."
    )


def signatures(
    roles: Sequence[str], given: Mapping[str, str], moment: datetime.datetime
) -> list[dict[str, Any]]:
    """Return the record's ``approvals``: ``{role, name, at}`` for each role asked for or given; name and time null without one."""
    at = moment.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return [
        {"role": role, "name": given.get(role), "at": at if role in given else None}
        for role in [*roles, *(role for role in given if role not in roles)]
    ]
