# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take a server out of a load balancer and put it back: options, order of the steps, what is refused.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

NOTES = "/var/lib/runbook-balancer"
OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["drained", "ready", "facts"], "required": True},
    "kind": {"type": "str", "choices": ["haproxy", "nginx"], "required": True},
    "backend": {"type": "str", "required": True},
    "server": {"type": "str"},
    "socket": {"type": "str"},
    "upstream_file": {"type": "path"},
    "pid_file": {"type": "path", "default": "/run/nginx.pid"},
    "nginx": {"type": "list", "elements": "str", "default": ["nginx"]},
    "notes": {"type": "path", "default": NOTES},
    "drain_timeout": {"type": "float", "default": 60},
    "on_deadline": {"type": "str", "choices": ["fail", "go_on"], "default": "fail"},
    "ready_timeout": {"type": "float", "default": 60},
    "checked": {"type": "float", "default": 3},
    "health_path": {"type": "str"},
    "health_host": {"type": "str"},
    "allow_last": {"type": "bool", "default": False},
    "force": {"type": "bool", "default": False},
}
RULES: dict[str, Any] = {
    "required_if": [
        ("state", "drained", ["server"]),
        ("state", "ready", ["server"]),
        ("kind", "haproxy", ["socket"]),
        ("kind", "nginx", ["upstream_file"]),
    ]
}
# Seconds between two looks; and for how long nothing may be seen, as a request can be between two connections.
LOOK = 0.1
QUIET = 0.5
# Seconds for one question to the balancer, or to a server's health path.
ANSWER = 10.0
# Sessions that a message names.
SHOWN = 10


class Server(NamedTuple):
    """One server of a backend.

    ``admin``: ready, drain or maint, as somebody wants it. ``up``: what the balancer's checks say, None where there are none.
    ``weight``: as configured or set; ``effective``: what it has at present, less while it starts slowly. ``ours``: this module
    took it out. ``sessions`` and ``queue``: requests at work there and waiting for it; None where the balancer does not count.
    """

    name: str
    address: str
    admin: str = "ready"
    ours: bool = False
    up: bool | None = None
    check: str = ""
    weight: int | None = None
    effective: int | None = None
    backup: bool = False
    sessions: int | None = None
    queue: int | None = None

    @property
    def usable(self) -> bool:
        """Whether it gets requests now; a backup server gets them only when there is no other, and may be a page of regrets."""
        return self.admin == "ready" and self.up is not False and self.weight != 0 and not self.backup

    def told(self) -> dict[str, Any]:
        """Return it as the module answers it."""
        return {**self._asdict(), "usable": self.usable}


class Driver(Protocol):
    """What one kind of balancer can do; every method raises Problem with one sentence."""

    def servers(self) -> list[Server]:
        """Return the servers of the backend as the balancer sees them now."""

    def drain(self, check_mode: bool) -> tuple[bool, list[str]]:
        """Take the server out; return whether anything changed and the sessions that were left."""

    def ready(self, check_mode: bool) -> bool:
        """Put the server back; return whether anything changed."""


def chosen(servers: Sequence[Server], name: str, place: str) -> Server:
    """Return the server called *name*: by its name, its address or, where that is unique, the host of its address.

    :raises Problem: when there is none, or more than one.
    """
    for found in (
        [server for server in servers if server.name == name],
        [server for server in servers if server.address == name],
        [server for server in servers if host_of(server.address) == name],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            raise Problem(
                f"{place} has {len(found)} servers {name!r}, expected one: give the name or the whole address of the one that is meant."
            )
    known = ", ".join(server.name for server in servers) or "none"
    raise Problem(
        f"{place} has no server {name!r}, only {known}: give one of these as server, or enter it there."
    )


def host_of(address: str) -> str:
    """Return the host of ``host:port``, ``[v6]:port`` or a host alone; "" for a Unix socket."""
    if address.startswith("unix:"):
        return ""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, colon, port = address.rpartition(":")
    return host if colon and port.isdigit() and ":" not in host else address


def port_of(address: str, default: int = 80) -> int:
    """Return the port of an address as :func:`host_of` takes it."""
    tail = address.rpartition(":")[2]
    bare = address.count(":") > 1 and not address.startswith("[")
    return int(tail) if tail.isdigit() and ":" in address and not bare else default


def require_another(servers: Sequence[Server], target: Server, allow_last: bool, place: str) -> None:
    """Refuse to take out the last server that gets requests.

    :raises Problem: when *target* is that one, and *allow_last* is not said.
    """
    if allow_last or not target.usable:
        return
    others = [server for server in servers if server.name != target.name]
    if any(server.usable for server in others):
        return
    states = ", ".join(f"{server.name} ({state_of(server)})" for server in others) or "no other"
    raise Problem(
        f"{target.name} is the last server of {place} that gets requests; besides it there is {states}: nothing was changed; make another "
        "one ready or restart fewer hosts at a time, or accept that nothing answers meanwhile with allow_last: true."
    )


def state_of(server: Server) -> str:
    """Return in words why a server gets requests, or does not."""
    if server.admin != "ready":
        return f"{server.admin}{', by this tool' if server.ours else ''}"
    if server.up is False:
        return f"down, {server.check}" if server.check else "down"
    if server.weight == 0:
        return "weight 0"
    return "backup" if server.backup else "ready"


def wait_quiet(busy: Callable[[], list[str]], deadline: float) -> list[str]:
    """Wait until *busy* has named nothing for ``QUIET`` s; return what it names at *deadline* (time.monotonic())."""
    since: float | None = None
    while True:
        left = busy()
        now = time.monotonic()
        since = None if left else (now if since is None else since)
        if since is not None and now - since >= QUIET:
            return []
        if now > deadline and left:
            return left
        time.sleep(LOOK)


def wait_steady(wrong: Callable[[], str], seconds: float, deadline: float) -> str:
    """Wait until *wrong* has said "" for *seconds*; return what it says, or said last, at *deadline*."""
    since: float | None = None
    last = ""
    while True:
        said = wrong()
        now = time.monotonic()
        last = said or last
        since = None if said else (now if since is None else since)
        if since is not None and now - since >= seconds:
            return ""
        if now > deadline:
            return (
                said or f"it was well for less than {seconds:g} s; before that: {last or 'nothing was wrong'}"
            )
        time.sleep(LOOK)


def left_sentence(server: str, place: str, left: Sequence[str], seconds: float) -> str:
    """Return the beginning of the sentence about sessions that did not end."""
    shown = "; ".join(left[:SHOWN])
    more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
    return f"{server} of {place} still has {len(left)} session{'s' if len(left) > 1 else ''} after {seconds:g} s: {shown}{more}"


def deadline_problem(server: str, place: str, left: Sequence[str], seconds: float, after: str) -> Problem:
    """Return the Problem of sessions that did not end; *after* says what became of the server."""
    return Problem(
        f"{left_sentence(server, place, left, seconds)}; expected none; {after}: raise drain_timeout, end them, or cut them with "
        "on_deadline: go_on.",
        "\n".join(left[:20]),
        left=list(left),
    )


def answers(address: str, path: str | None, host: str | None) -> str:
    """Return "" where the server at *address* accepts a connection and, with *path*, answers it with 2xx; else what is wrong."""
    if address.startswith("unix:"):
        return ""
    target = (host_of(address), port_of(address))
    try:
        if not path:
            with socket.create_connection(target, timeout=ANSWER):
                return ""
        client = http.client.HTTPConnection(*target, timeout=ANSWER)
        try:
            client.request("GET", path, headers={"Host": host or host_of(address), "Connection": "close"})
            status = client.getresponse().status
        finally:
            client.close()
    except (OSError, http.client.HTTPException) as error:
        return f"{address} does not answer ({error or type(error).__name__})"
    return "" if 200 <= status < 300 else f"{path} at {address} answers {status}, expected 2xx"


def perform(options: dict[str, Any], check_mode: bool, driver: Driver) -> dict[str, Any]:
    """Do what ``state`` says; return the module's answer.

    :raises Problem: with one sentence; what was before is then restored.
    """
    for name in ("drain_timeout", "ready_timeout", "checked"):
        if options[name] < 0:
            raise Problem(f"The option {name} is {options[name]:g}, expected seconds of at least 0.")
    begun = time.monotonic()
    before = driver.servers()
    place = f"{options['kind']} backend {options['backend']!r}"
    answer: dict[str, Any] = {"changed": False, "left": [], "by_hand": False, "before": {}, "after": {}}
    if options["state"] == "facts":
        if options["server"]:
            answer["after"] = chosen(before, options["server"], place).told()
        return {**answer, "servers": [server.told() for server in before], "seconds": 0.0}
    target = chosen(before, options["server"], place)
    answer["before"] = target.told()
    # Somebody else took it out, for a reason of theirs: it stays out.
    answer["by_hand"] = target.admin != "ready" and not target.ours
    if options["state"] == "drained":
        answer["changed"], answer["left"] = driver.drain(check_mode)
        wanted = target.admin if answer["by_hand"] else "maint"
    elif answer["by_hand"] and not options["force"]:
        wanted = target.admin
    else:
        answer["changed"] = driver.ready(check_mode)
        wanted = "ready"
    servers = before if check_mode else driver.servers()
    after = chosen(servers, target.name, place)
    after = after._replace(admin=wanted) if check_mode else after
    answer.update(
        after=after.told(),
        servers=[server.told() for server in servers],
        seconds=round(time.monotonic() - begun, 3),
        diff={"before": f"{target.name} {target.admin}\n", "after": f"{target.name} {after.admin}\n"},
    )
    return answer
