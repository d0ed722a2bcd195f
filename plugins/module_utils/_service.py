# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One service of one instance: start it, prove that it listens, is healthy and stays up, drain and stop it.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import socket as sockets
import stat
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _paused, _processes
from ansible_collections.runbook.deploy.plugins.module_utils._command import last_words, redact
from ansible_collections.runbook.deploy.plugins.module_utils._compose import ComposeUnit
from ansible_collections.runbook.deploy.plugins.module_utils._gate import FAIL, PASS, check_result, until
from ansible_collections.runbook.deploy.plugins.module_utils._instance import Instance, has_socket
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._process import ProcessUnit, Status
from ansible_collections.runbook.deploy.plugins.module_utils._supervisor import SupervisorUnit, place_of
from ansible_collections.runbook.deploy.plugins.module_utils._systemd import SystemdUnit, unit_name

POLL = 0.1
# A drained socket must be seen without connections this often in a row: a client may be between two calls.
QUIET = 3
# Lines of a service's log among which the last words are looked for.
LOG_LINES = 200
# Seconds for one health request.
REQUEST = 10.0
# While an instance is watched, its processes are looked at this often, by /proc alone; its manager is asked less often, because
# that takes a process each time.
LOOK = 0.2
ASK = 1.0
# Everybody may connect; nothing else can be done with a socket. See _instance.launcher_text.
CONNECTABLE = 0o666


@dataclass
class Settings:
    """What the options of the module say; times in seconds."""

    layout: Layout
    name: str = ""
    stage: str = ""
    user: str | None = None
    host: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    successes: int = 2
    start_timeout: float = 60.0
    gate_timeout: float = 20.0
    stay_up: float = 5.0
    drain_timeout: float = 30.0
    adopt: dict[str, Any] = field(default_factory=dict)


def parse_connections(text: str, path: str) -> int:
    """Return how many connections to the Unix socket *path* the text of /proc/net/unix lists.

    Columns (proc_pid_net(5)): Num RefCount Protocol Flags Type St Inode Path. The listening socket has state 01;
    02 is a connection that nobody accepted yet, 03 an accepted one, until the server closes it.
    """
    count = 0
    for line in text.splitlines()[1:]:
        fields = line.split(None, 7)
        if len(fields) == 8 and fields[7] == path and fields[5] in ("02", "03"):
            count += 1
    return count


def connections(path: Path) -> int:
    """Return how many connections the server on the socket *path* has, waiting ones included."""
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as stream:
        return parse_connections(stream.read(), str(path))


def free_port() -> int:
    """Return a TCP port of the loopback that nobody uses at this moment."""
    with sockets.socket(sockets.AF_INET, sockets.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def parse_listening_host(text: str, port: int) -> str | None:
    """Return the IPv4 address that the text of /proc/net/tcp shows listening on *port*; 127.0.0.1 for any.

    Addresses stand there as a number in the byte order of the host (proc_pid_net(5)).
    """
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 3 and fields[3] == _processes.TCP_LISTEN:
            address, _colon, number = fields[1].partition(":")
            if int(number, 16) == port:
                host = sockets.inet_ntoa(struct.pack("=I", int(address, 16)))
                return "127.0.0.1" if host == "0.0.0.0" else host
    return None


def listening_host(port: int) -> str:
    """Return at which address of this host *port* can be asked."""
    with contextlib.suppress(OSError), open("/proc/net/tcp", encoding="ascii") as stream:
        return parse_listening_host(stream.read(), port) or "127.0.0.1"
    return "127.0.0.1"


def _executable(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def workers(main: int) -> dict[int, int]:
    """Return PID -> start time of the children of *main* that run the same program: its worker processes.

    Helpers that a server starts (git, a shell) come and go without meaning anything.
    """
    program = _executable(main)
    found = {}
    for pid in _processes.pids():
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
                state, parent, started = _processes.parse_stat(stream.read())
        except (OSError, ValueError):
            continue
        if parent == main and state not in "ZX" and _executable(pid) == program:
            found[pid] = started
    return found


class Member:
    """One service of one instance.

    :param spec: its complete definition; of an instance whose files are gone, what could be found out.
    :param instance: None where its files are gone: it can be stopped, not started.
    """

    def __init__(
        self,
        settings: Settings,
        deployment: str,
        spec: Mapping[str, Any],
        instance: Instance | None,
        unit: ProcessUnit | SystemdUnit | SupervisorUnit | None = None,
    ) -> None:
        self.settings = settings
        self.deployment = deployment
        self.spec = dict(spec)
        self.instance = instance
        self.service = str(spec["name"])
        self.kind = str(spec["kind"])
        self.socket = settings.layout.socket(self.service, deployment) if has_socket(spec) else None
        self.unit = unit or make_unit(settings, spec, deployment)
        self.secrets = tuple(instance.secrets) if instance else ()
        self.seconds: float | None = None
        self._begun = 0.0
        self._restarts = 0

    def __str__(self) -> str:
        return f"{self.service} of deployment {self.deployment}"

    def status(self) -> Status:
        """Return what the manager says."""
        return self.unit.status()

    def start(self) -> None:
        """Start the service.

        :raises Problem: when its address is taken, its files are gone, or the manager cannot start it.
        """
        if self.instance is None:
            raise Problem(f"The files of {self} are gone, so it cannot be started: deploy its version again.")
        if isinstance(self.unit, ComposeUnit):
            self.unit.clear_way()
        if self.kind == "web" and self.spec["bind"] == "port":
            self._require_free_port()
        self._begun = time.monotonic()
        try:
            self.unit.start(self.instance)
        except Problem as problem:
            raise Problem(problem.message, self.hide(problem.evidence), **problem.results) from problem

    def hide(self, text: str) -> str:
        """Return *text* without the values of app_environment."""
        return redact(text, self.secrets)

    def _require_free_port(self) -> None:
        port = int(self.spec["port"])
        if _processes.listener_inodes(port):
            holders = _processes.listener_pids(port)
            who = (
                f"process {holders[0]} ({_processes.command(holders[0])})"
                if holders
                else "another user's process"
            )
            raise Problem(
                f"Service {self.service!r} cannot have port {port}: {who} listens there and does not belong to this "
                "application; stop it, or choose another port in app_services."
            )

    def problem(self, what: str) -> Problem:
        """Return a Problem about this service, with the last lines of its log."""
        return Problem(f"Service {self.service!r} of the release {self.release} {what}", self.tail())

    @property
    def release(self) -> str:
        """The release's name, "?" where it is unknown."""
        return self.instance.release if self.instance else "?"

    def tail(self) -> str:
        """Return the last lines of its log, without secrets."""
        return last_words(self.unit.tail(LOG_LINES, self.secrets))

    def require_running(self) -> Status:
        """Return the status of the service.

        :raises Problem: when it does not run, or its manager had to start it again.
        """
        status = self.status()
        if status.failed or status.restarts > self._restarts or not status.running:
            raise self.problem(f"does not stay up: {status.detail}; its log ends as shown.")
        return status

    def listens(self) -> str:
        """Return "" when the service listens at its address, connectable and itself, else what is wrong.

        :raises Problem: when somebody else listens there.
        """
        if isinstance(self.unit, ComposeUnit):
            return self.unit.listens()
        if self.kind != "web":
            return ""
        if self.socket is not None:
            try:
                mode = self.socket.lstat().st_mode
            except FileNotFoundError:
                return f"there is no socket {self.socket}"
            if not stat.S_ISSOCK(mode):
                return f"{self.socket} is no socket"
            if mode & CONNECTABLE != CONNECTABLE:
                return f"the socket {self.socket} has mode {stat.S_IMODE(mode):04o}, so the web server cannot connect"
            pid = _processes.peer_pid(self.socket)
            if pid is None:
                return f"nobody listens on {self.socket}"
            holders = [pid]
            place = str(self.socket)
        else:
            port = int(self.spec["port"])
            if not _processes.listener_inodes(port):
                return f"nobody listens on port {port}"
            holders = _processes.listener_pids(port)
            place = f"port {port}"
            if not holders:
                if not _processes.listener_inodes(port):
                    return f"nobody listens on port {port}"
                raise self.problem(
                    f"cannot be told from others at {place}: whose process listens there is hidden from this user; run as root "
                    "(in a container with the capability SYS_PTRACE), or use bind: socket."
                )
        if not holders or not all(self.unit.owns(pid) for pid in holders):
            shown = ", ".join(f"{pid} ({_processes.command(pid)})" for pid in holders[:3]) or "unknown"
            # A process may end between the two looks at it.
            if all(_processes.start_time(pid) is None for pid in holders) and holders:
                return f"nobody listens on {place}"
            raise self.problem(f"does not answer at {place}: another process does, {shown}; stop it.")
        return ""

    def place(self) -> str:
        """Return where the service answers, in words."""
        if self.socket is not None:
            return str(self.socket)
        return f"port {self.spec['port']}" if self.spec["bind"] == "port" else "it runs"

    def pause(self) -> None:
        """Write down that it is told to take no more tasks: from here on it is of no use, though it lives."""
        status = self.status()
        if status.running:
            _paused.pause(
                self.settings.layout, self.service, self.deployment, status.pid or 0, status.started or 0
            )

    def works(self) -> bool:
        """Return whether it runs and was not told to take no more tasks."""
        status = self.status()
        return status.running and not _paused.is_paused(
            self.settings.layout, self.service, self.deployment, status.pid or 0
        )

    def serves(self) -> bool:
        """Return whether the service runs, listens and takes what it is there for."""
        try:
            return self.works() and not self.listens()
        except Problem:
            return False

    def gate(self, checks: Sequence[Mapping[str, Any]], successes: int) -> dict[str, Any]:
        """Wait until the service listens and passes *checks* *successes* times in a row; return the gate.

        An instance that already answers but goes on answering wrong is given ``gate_timeout`` seconds from its
        first answer, one that does not answer yet the whole ``start_timeout``.

        :raises Problem: when it ends, or does not become healthy in time.
        """
        begun = time.monotonic()
        limit = begun + self.settings.start_timeout
        delay = 0.02
        while True:
            # First whether it lives: the reason is in its log then.
            self.require_running()
            missing = self.listens()
            if not missing:
                break
            if time.monotonic() > limit:
                raise self.problem(
                    f"did not listen within {self.settings.start_timeout:g} s: {missing}; see its log, or raise "
                    "app_start_timeout."
                )
            time.sleep(delay)
            delay = min(delay * 1.5, POLL)
        listening = check_result(
            f"{self.service} listens",
            PASS,
            observed=self.place(),
            expected="its own process at its address",
            seconds=time.monotonic() - begun,
        )
        if self.kind != "web" or not checks:
            return {"passed": True, "verdict": PASS, "checks": [listening], "attempts": 1}
        result = until(
            self._probe(checks, listening),
            successes=successes,
            interval=POLL,
            deadline=max(1.0, limit - time.monotonic()),
        )
        if not result["passed"]:
            raise self._unhealthy(result["checks"], result.get("reason", ""))
        return result

    def _unhealthy(self, checks: Iterable[Mapping[str, Any]], reason: str) -> Problem:
        wrong = [check for check in checks if check["verdict"] != PASS]
        sentences = " ".join(str(check["message"] or check["name"]) for check in wrong)
        problem = self.problem(f"is not healthy. {self.hide(sentences)} {reason}".strip())
        problem.results["failed_checks"] = [check["name"] for check in wrong]
        return problem

    def _probe(
        self, checks: Sequence[Mapping[str, Any]], listening: dict[str, Any]
    ) -> Callable[[float], list[dict[str, Any]]]:
        # Only here: hosts without web services do not pay for the import.
        from ansible_collections.runbook.deploy.plugins.module_utils._http import Target, run_checks

        headers = self.settings.headers
        if self.socket is not None:
            target = Target(socket=str(self.socket), host=self.settings.host, headers=headers)
        else:
            place = f"http://{listening_host(int(self.spec['port']))}:{self.spec['port']}"
            target = Target(address=place, host=self.settings.host, headers=headers)
        document = self.instance.document if self.instance else {}
        known = {name: document.get(name) or "" for name in ("release", "commit", "version")}
        known["deployment"] = self.deployment
        answered: list[float] = []

        def probe(left: float) -> list[dict[str, Any]]:
            self.require_running()
            results = run_checks(
                checks, target, placeholders=known, timeout=min(REQUEST, left), deadline=left
            )
            now = time.monotonic()
            if any(result.get("status") is not None for result in results):
                answered.append(now)
            wrong = any(result["verdict"] == FAIL and result["severity"] == "critical" for result in results)
            if wrong and answered and now - answered[0] > self.settings.gate_timeout:
                raise self._unhealthy(
                    results,
                    f"It has answered like that for {self.settings.gate_timeout:g} s since its first answer.",
                )
            return [listening, *results]

        return probe

    def mark_ready(self) -> None:
        """Note how long it took from the start until now."""
        if self._begun:
            self.seconds = round(time.monotonic() - self._begun, 3)

    def drain(self, timeout: float) -> int:
        """Wait until no connection is left on the service's socket; return how many are after *timeout* s."""
        if self.socket is None:
            return 0
        deadline = time.monotonic() + timeout
        quiet = 0
        while True:
            left = connections(self.socket)
            quiet = 0 if left else quiet + 1
            if quiet >= QUIET or time.monotonic() > deadline:
                return left
            time.sleep(0.03)

    def stop(self) -> bool:
        """Stop the service and remove its socket; return whether it had to be killed."""
        killed = self.unit.stop(float(self.spec.get("stop_timeout") or 0))
        _paused.forget(self.settings.layout, self.service, self.deployment)
        if self.socket is not None:
            with contextlib.suppress(FileNotFoundError):
                self.socket.unlink()
        return killed

    def report(self) -> dict[str, Any]:
        """Return the service's entry in the module's answer."""
        status = self.status()
        return {
            **({"image": self.unit.shown} if isinstance(self.unit, ComposeUnit) else {}),
            "name": self.service,
            "kind": self.kind,
            "manager": self.unit.manager,
            "strategy": self.spec.get("strategy"),
            "deployment": self.deployment,
            "running": status.running,
            "pid": status.pid,
            "detail": status.detail,
            "seconds": self.seconds,
        }


def make_unit(
    settings: Settings, spec: Mapping[str, Any], deployment: str
) -> ProcessUnit | SystemdUnit | SupervisorUnit | ComposeUnit:
    """Return what starts and stops the service *spec* of *deployment*."""
    service = str(spec["name"])
    if spec["manager"] == "systemd":
        return SystemdUnit(unit_name(settings.name, settings.stage, service, deployment), service)
    application = (settings.name, settings.stage)
    if spec["manager"] == "compose":
        return ComposeUnit(settings.layout, application, spec, deployment, settings.user)
    if spec["manager"] == "supervisor":
        place, timeout = place_of(spec), float(spec.get("stop_timeout") or 0)
        return SupervisorUnit(
            settings.layout, application, service, deployment, settings.user, place, timeout
        )
    return ProcessUnit(settings.layout, service, deployment, settings.user)


def stay_up(members: Sequence[Member], seconds: float) -> list[dict[str, Any]]:
    """Watch *members* for *seconds*: the same main process, no restarts, no worker replaced.

    A master that listens while its workers die and come back looks healthy in every single look.

    :return: a ``check_result`` for each.
    :raises Problem: at the first that does not stay up.
    """
    begun = time.monotonic()
    mains = {member: member.require_running() for member in members}
    known = {member: workers(mains[member].pid or 0) for member in members}
    asked = begun
    while True:
        now = time.monotonic()
        left = seconds - (now - begun)
        # The manager has the last word, whatever the processes look like.
        ask = left <= 0 or now - asked >= ASK
        asked = now if ask else asked
        for member, first in mains.items():
            same = _processes.is_same(first.pid or 0, first.started or 0)
            if ask or not same:
                status = member.require_running()
                if (status.pid, status.started) != (first.pid, first.started):
                    raise member.problem(
                        f"does not stay up: its main process {first.pid} was replaced by {status.pid}; its log ends as shown."
                    )
            children = workers(first.pid or 0)
            gone = [pid for pid, started in known[member].items() if children.get(pid) != started]
            new = [pid for pid, started in children.items() if known[member].get(pid) != started]
            if gone and new:
                raise member.problem(
                    f"does not stay up: {len(gone)} of its {len(known[member])} workers ended and were replaced within "
                    f"{seconds - max(left, 0):.1f} s; its log ends as shown."
                )
            if gone and not children:
                raise member.problem("does not stay up: all of its workers ended; its log ends as shown.")
        if left <= 0:
            break
        time.sleep(min(LOOK, max(left, 0.01)))
    return [
        check_result(
            f"{member.service} stays up",
            PASS,
            observed=f"process {status.pid} for {time.monotonic() - begun:.1f} s",
            expected="one main process, no worker replaced",
            seconds=time.monotonic() - begun,
        )
        for member, status in mains.items()
    ]
