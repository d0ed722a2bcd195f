# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``app_maintenance`` may say, whether a plan of migrations needs a maintenance page, and for how long.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.runbook.deploy.plugins.module_utils._kinds import check_kinds, check_place

WHEN = ("never", "migrations", "always")
# Of these nothing has a meaning to nginx, in a pattern or between quotes, but for the dot.
PATH = re.compile(r"^/[A-Za-z0-9._~/-]*$")
# What may stand in a file of nginx: no space, quote, brace, semicolon or variable.
FILE = re.compile(r"^/[A-Za-z0-9._~/@+:-]+$")
TEXT, NUMBER, WORDS, PATHS, NETWORKS = (
    "a text",
    "a whole number of at least 1",
    "a list of words",
    "a list of paths such as /api/",
    "a list of addresses or networks such as 10.0.0.0/8",
)
COMMON = {
    "workers": TEXT,
    "expires": NUMBER,
    "retry_after": NUMBER,
    "verify_timeout": NUMBER,
    "probe": TEXT,
    "probe_host": TEXT,
}
# Where the page is the web server's on another host than the application's.
ELSEWHERE = {"hosts": TEXT, "directory": TEXT}
# What workers and beats do meanwhile: they stand still, or go on.
WORKERS = ("pause", "keep")
KINDS: dict[str, dict[str, str]] = {
    "nginx": {
        **COMMON,
        **ELSEWHERE,
        "allow": NETWORKS,
        "trusted_proxies": NETWORKS,
        "open": PATHS,
        "json": PATHS,
        "webhooks": PATHS,
        "page": TEXT,
        "http_file": TEXT,
        "server_file": TEXT,
        "nginx": WORDS,
        "pid_file": TEXT,
    },
    "file": {**COMMON, **ELSEWHERE, "path": TEXT},
    "command": {**COMMON, "command_on": WORDS, "command_off": WORDS},
}
NEEDED = {"nginx": (), "file": ("path",), "command": ("command_on", "command_off")}
# A day: a page that nobody takes away for longer is no maintenance.
LONGEST = 86400
# Under these locks the site waits: of PostgreSQL and of SQLite's copy of a table (_locks.py).
WAITED_FOR = ("ACCESS EXCLUSIVE", "SHARE ROW EXCLUSIVE", "SHARE", "EXCLUSIVE", "write")
# Seconds for which a site may hang on such a lock before a page is kinder.
LONG = 5.0


def networks(items: Sequence[Any], where: str) -> tuple[list[Any], list[str]]:
    """Return *items* as networks, and a sentence for each that is none."""
    found, errors = [], []
    for item in items:
        try:
            found.append(ipaddress.ip_network(str(item), strict=True))
        except ValueError as error:
            errors.append(
                f"{where} has {item!r}, which is no address or network ({error}): write it as 10.0.0.1 or 10.0.0.0/8."
            )
    return found, errors


def _fits(value: Any, wanted: str) -> bool:
    if wanted == NUMBER:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if wanted == TEXT:
        return isinstance(value, str)
    if not isinstance(value, (list, tuple)):
        return False
    if wanted == PATHS:
        return all(isinstance(word, str) and PATH.match(word) for word in value)
    return all(isinstance(word, str) and word for word in value) and (wanted != WORDS or bool(value))


def check(value: Mapping[str, Any], when: str = "migrations", url: str = "", listen: str = "") -> list[str]:
    """Return what is wrong with ``app_maintenance``, a sentence each; nothing where it is empty.

    :param when: ``app_maintenance_when``; :param url: ``app_url``, which smoke tests ask during the maintenance; :param listen: of ``app_web_server``.
    """
    errors = check_kinds("app_maintenance", value, KINDS, NEEDED, _fits)
    return errors if errors or not value else _check_values(value, when, url, listen)


def _check_values(value: Mapping[str, Any], when: str, url: str, listen: str) -> list[str]:
    errors = []
    for key in ("allow", "trusted_proxies"):
        errors += networks(value.get(key) or [], f"app_maintenance.{key}")[1]
    if value.get("expires", 1) > LONGEST:
        errors.append(
            f"app_maintenance.expires is {value['expires']}, expected at most {LONGEST} seconds: longer pages are put on again."
        )
    if value.get("workers", WORKERS[0]) not in WORKERS:
        errors.append(
            f"app_maintenance.workers is {value['workers']!r}, expected one of {', '.join(WORKERS)}."
        )
    if value.get("directory") and not value.get("hosts"):
        errors.append(
            "app_maintenance.directory is given without hosts: on the application's own hosts the directory is maintenance below app_root."
        )
    if value.get("hosts") and not value.get("probe"):
        errors.append(
            f"app_maintenance has no probe, which hosts ({value['hosts']}) needs: give the address at which each of them asks its own web server, such "
            "as http://127.0.0.1/."
        )
    for key in ("path", "http_file", "server_file", "directory"):
        if value.get(key) and not FILE.match(value[key]):
            errors.append(
                f"app_maintenance.{key} is {value[key]!r}, expected an absolute path of letters, digits and ._~/@+:-."
            )
    probe = value.get("probe", "")
    if probe and (urlsplit(probe).scheme not in ("http", "https") or not urlsplit(probe).hostname):
        errors.append(
            f"app_maintenance.probe is {probe!r}, expected an address that each host asks itself, such as http://127.0.0.1/."
        )
    if value["kind"] == "nginx" and not probe and listen and not listen.isdigit():
        errors.append(
            f"app_maintenance has no probe, and app_web_server.listen is {listen!r}, from which it cannot be told: give the address at which "
            "each host reaches its own web server, such as https://127.0.0.1/."
        )
    if value["kind"] == "nginx" and url and not value.get("allow") and when != "never":
        errors.append(
            "app_maintenance.allow is empty, so the smoke tests through app_url would get the page as everybody does: name the address that the "
            "controller has for the web server, or set app_maintenance_when to never."
        )
    return errors


def check_hosts(
    value: Mapping[str, Any], hosts: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return what is wrong with ``app_maintenance.hosts``: it must be a host, or a group with hosts, of the inventory."""
    return check_place("app_maintenance.hosts", value.get("hosts"), "web server", hosts, groups)


def wanted(when: str, plan: Mapping[str, Any] | None, first: bool = False) -> str:
    """Return why a deployment has to put the maintenance page on, "" where it has not.

    :param when: ``app_maintenance_when``; :param plan: the pending migrations as *verify* judged them.
    :param first: nothing served before, so there is nobody to tell.
    """
    if first or when not in WHEN or when == "never":
        return ""
    if when == "always":
        return "app_maintenance_when is always"
    for migration in (plan or {}).get("migrations") or []:
        name = f"{migration.get('app')}.{migration.get('name')}"
        if migration.get("compatible") != "yes":
            return f"the old code is not proved to run after {name}"
        seconds = (migration.get("rehearsed") or {}).get("forward_seconds") or 0.0
        for lock in migration.get("locks") or []:
            # SQLite has one lock for all writers, and how long a copy takes is known from the rehearsal alone.
            if lock.get("lock") == "write":
                return f"{name} copies the table {lock.get('table')}, and every writer of the database waits meanwhile"
            if lock.get("lock") in WAITED_FOR and seconds >= LONG:
                return f"{name} took {seconds:.0f} s on the copy, and holds {lock['lock']} on {lock.get('table') or 'a table'}"
    return ""


def expected(plan: Mapping[str, Any] | None) -> float:
    """Return the seconds that the migrations of *plan* are expected to take; 0 where that is not known.

    Known is what all of them took on the copy: of a rehearsal that ended before the last the time says nothing of the rest.

    :param plan: the pending migrations as *verify* judged them.
    """
    rehearsal = (plan or {}).get("rehearsal") or {}
    migrations = (plan or {}).get("migrations") or []
    if not all(migration.get("rehearsed") for migration in migrations):
        return 0.0
    return float(rehearsal.get("forward_seconds") or 0.0)


def page_words(reason: str, plan: Mapping[str, Any]) -> str:
    """Return what the operator reads of the page before it is on; "" without a *reason* for it, as :func:`wanted` gives it."""
    if not reason:
        return ""
    seconds = expected(plan)
    if seconds:
        length = f"the migrations are expected to take {math.ceil(seconds)} s, as on the copy, then come the restart and the smoke test"
    elif plan.get("migrations"):
        length = "how long is not known, as not all migrations were rehearsed"
    else:
        length = "while it restarts, and until the smoke test has passed"
    return f"visitors will get the maintenance page, because {reason}: {length}"


def lasted(downtime: Mapping[str, Any]) -> str:
    """Return how long it was, beside how long it was expected to be where that was known.

    >>> lasted({"seconds": 61.5, "expected": 40}), lasted({"seconds": 61.5})
    ('61.5 s (expected 40 s)', '61.5 s')
    """
    known = downtime.get("expected")
    return f"{downtime['seconds']:g} s" + (f" (expected {known:g} s)" if known else "")
