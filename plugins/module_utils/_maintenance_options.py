# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the module ``maintenance``, and how long what is expected makes it last. Pure.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_spec import LONGEST, PATH, networks
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["on", "off", "prepared", "facts", "noted"], "required": True},
    "kind": {"type": "str", "choices": ["nginx", "file", "command"], "required": True},
    "root": {"type": "path", "required": True},
    "name": {"type": "str", "required": True},
    "stage": {"type": "str", "required": True},
    "directory": {"type": "path"},
    "user": {"type": "str"},
    "environment": {"type": "str", "no_log": True},
    "settings_module": {"type": "str", "default": ""},
    "expires": {"type": "int", "default": 3600},
    "expected": {"type": "float", "default": 0},
    "afterwards": {"type": "int", "default": 0},
    "retry_after": {"type": "int", "default": 120},
    "allow": {"type": "list", "elements": "str", "default": []},
    "trusted_proxies": {"type": "list", "elements": "str", "default": []},
    "open": {"type": "list", "elements": "str", "default": []},
    "json": {"type": "list", "elements": "str", "default": []},
    "webhooks": {"type": "list", "elements": "str", "default": []},
    "page": {"type": "str", "default": ""},
    "http_file": {"type": "path"},
    "server_file": {"type": "path"},
    "nginx": {"type": "list", "elements": "str", "default": ["nginx"]},
    "pid_file": {"type": "path", "default": "/run/nginx.pid"},
    "path": {"type": "path"},
    "command_on": {"type": "list", "elements": "str", "default": []},
    "command_off": {"type": "list", "elements": "str", "default": []},
    "probe": {"type": "str", "default": ""},
    "probe_host": {"type": "str", "default": ""},
    "verify_timeout": {"type": "float", "default": 10},
    "deployment": {"type": "str", "default": ""},
    "reason": {"type": "str", "default": ""},
    "operator": {"type": "str", "default": ""},
    "downtime": {"type": "dict"},
    "record": {"type": "dict"},
}
RULES: dict[str, Any] = {
    "required_if": [("kind", "file", ["path"]), ("kind", "command", ["command_on", "command_off"])]
}
# The copy has no visitors, waits for no lock and may fit into memory: live it may well take twice as long. A page that ends too late is
# taken off when all is done; one that ends too early shows visitors an application in the middle of its migrations.
MARGIN = 2


def lasts(expires: int, expected: float, afterwards: int) -> int:
    """Return the seconds after which the page ends by itself.

    :param expires: the least, ``app_maintenance.expires``; :param expected: seconds, 0 where nothing is known.
    :param afterwards: seconds that what follows may take: the restart and the smoke test.

    >>> lasts(3600, 0, 500), lasts(3600, 1500, 500), lasts(3600, 1550.2, 500)
    (3600, 3600, 3602)
    """
    return max(expires, MARGIN * math.ceil(expected) + afterwards) if expected else expires


def wait(retry_after: int, expected: float) -> int:
    """Return what ``Retry-After`` says: not sooner than the end is expected.

    >>> wait(120, 0), wait(120, 119.5), wait(120, 600.1)
    (120, 120, 601)
    """
    return max(retry_after, math.ceil(expected))


def still_expected(options: Mapping[str, Any], state: Mapping[str, Any], now: float) -> int:
    """Return the whole seconds for which the maintenance that *options* describe is expected to last, 0 where nobody knows.

    What was said of a page that is on counts as long as it is who put it on that decides: a person's before a deployment's, and either
    before a run that only tells the web server of the page.

    :param state: the note of the page that is there; empty for none. :param now: seconds since 1970.
    """
    given = math.ceil(options["expected"])
    if not state or state["expires"] <= now:
        return given
    if options["state"] == "prepared" or (options["deployment"] and not state.get("by")):
        return max(given, state.get("expected") or 0)
    return given


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse values that would make a file of nginx another one, or a page without end.

    :raises Problem: with one sentence.
    """
    for name in ("allow", "trusted_proxies"):
        errors = networks(options[name], f"The option {name}")[1]
        if errors:
            raise Problem(errors[0])
    for name in ("open", "json", "webhooks"):
        for path in options[name]:
            if not PATH.match(path):
                raise Problem(f"The option {name} has {path!r}, expected a path such as /api/.")
    for name, most in (("expires", LONGEST), ("retry_after", LONGEST)):
        if not 1 <= options[name] <= most:
            raise Problem(f"The option {name} is {options[name]}, expected seconds from 1 to {most}.")
    # Also false for what is no number.
    if not 0 <= options["expected"] <= LONGEST:
        raise Problem(
            f"The option expected is {options['expected']:g}, expected seconds from 0 (unknown) to {LONGEST}: more is no maintenance of one page."
        )
    if options["afterwards"] < 0:
        raise Problem(f"The option afterwards is {options['afterwards']}, expected seconds of at least 0.")
    if options["verify_timeout"] < 0:
        raise Problem(
            f"The option verify_timeout is {options['verify_timeout']:g}, expected seconds of at least 0."
        )


def complete(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return *options* with the paths that follow from the names."""
    own = f"{options['name']}-{options['stage']}-maintenance.conf"
    return {
        **options,
        "http_file": options["http_file"] or f"/etc/nginx/conf.d/{own}",
        "server_file": options["server_file"] or f"/etc/nginx/snippets/{own}",
    }
