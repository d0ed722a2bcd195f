# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with ``app_batch`` and ``app_load_balancer``: how many hosts restart at a time, and who takes them out meanwhile.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._kinds import check_kinds, check_place

SHARE = re.compile(r"^(?:100|[1-9][0-9]?)%$")
# Keys of app_load_balancer by kind, those that are needed first; what each must be.
TEXT, NUMBER, TRUTH, WORDS = "a text", "a number of at least 0", "true or false", "a list of words"
COMMON = {
    "host": TEXT,
    "backend": TEXT,
    "server": TEXT,
    "drain_timeout": NUMBER,
    "ready_timeout": NUMBER,
    "checked": NUMBER,
    "on_deadline": TEXT,
    "health_path": TEXT,
    "health_host": TEXT,
    "allow_last": TRUTH,
}
KINDS: dict[str, dict[str, str]] = {
    "haproxy": {**COMMON, "socket": TEXT, "notes": TEXT},
    "nginx": {**COMMON, "upstream_file": TEXT, "pid_file": TEXT, "nginx": WORDS},
    "tasks": {"drain": TEXT, "ready": TEXT},
}
NEEDED = {
    "haproxy": ("host", "backend", "socket"),
    "nginx": ("host", "backend", "upstream_file"),
    "tasks": ("drain", "ready"),
}
ON_DEADLINE = ("fail", "go_on")


def check_batch(value: Any) -> list[str]:
    """Return what is wrong with ``app_batch``: a number of hosts, a share such as ``25%``, or a list of these."""
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if not items:
        return ["app_batch is an empty list: give how many hosts restart at a time, such as [1, '25%']."]
    return [
        f"app_batch has {item!r}, expected a number of hosts of at least 1, or a share of them from 1% to 100%, such as [1, '25%']."
        for item in items
        if not _is_batch(item)
    ]


def _is_batch(item: Any) -> bool:
    if isinstance(item, bool):
        return False
    if isinstance(item, int):
        return item >= 1
    return isinstance(item, str) and bool(SHARE.match(item) or (item.isdigit() and int(item) >= 1))


def check_balancer(value: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with ``app_load_balancer``, a sentence each; nothing where it is empty."""
    errors = check_kinds("app_load_balancer", value, KINDS, NEEDED, _fits)
    if not errors and value.get("on_deadline", "fail") not in ON_DEADLINE:
        errors.append(
            f"app_load_balancer.on_deadline is {value['on_deadline']!r}, expected one of {', '.join(ON_DEADLINE)}."
        )
    return errors


def _fits(value: Any, wanted: str) -> bool:
    if wanted == TRUTH:
        return isinstance(value, bool)
    if wanted == NUMBER:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
    if wanted == WORDS:
        return (
            isinstance(value, (list, tuple)) and bool(value) and all(isinstance(word, str) for word in value)
        )
    return isinstance(value, str)


def check_balancer_hosts(
    value: Mapping[str, Any], hosts: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return what is wrong with ``app_load_balancer.host``: it must be a host, or a group with hosts, of the inventory."""
    return check_place("app_load_balancer.host", value.get("host"), "load balancer", hosts, groups)


def batches(hosts: Sequence[str], value: Any) -> list[list[str]]:
    """Return *hosts* in the batches of ``app_batch``: the last size is repeated, a share is of all of them and at least one host."""
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    sizes = [_size(item, len(hosts)) for item in items]
    found, rest = [], list(hosts)
    while rest:
        size = sizes[min(len(found), len(sizes) - 1)]
        found.append(rest[:size])
        rest = rest[size:]
    return found


def _size(item: Any, number: int) -> int:
    text = str(item)
    return max(1, int(text[:-1]) * number // 100 if text.endswith("%") else int(text))
