# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a service gate looks at: a systemd unit, a process with a PID file, or a service of the application's own.

Each kind answers within the seconds it is given, and says ``Unseen`` where it cannot know.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import json
import os
import pwd
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from ansible_collections.runbook.deploy.plugins.module_utils._bounded import Unrunnable, excerpt, run_bounded
from ansible_collections.runbook.deploy.plugins.module_utils._command import last_words, redact
from ansible_collections.runbook.deploy.plugins.module_utils._compose import ComposeUnit
from ansible_collections.runbook.deploy.plugins.module_utils._instance import (
    has_socket,
    linked_deployment,
    read_instance,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    Layout,
    current_release,
    open_regular,
    read_regular,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._process import ProcessUnit
from ansible_collections.runbook.deploy.plugins.module_utils._service_spec import CURRENT, Check
from ansible_collections.runbook.deploy.plugins.module_utils._supervisor import ASK, SupervisorUnit, place_of
from ansible_collections.runbook.deploy.plugins.module_utils._systemd import (
    PROPERTIES,
    SystemdUnit,
    judge,
    parse_show,
    unit_name,
)

# Lines of a log among which the last words are looked for, and those that are shown of them.
LOG_LINES = 200
SHOWN = 8
# Bytes of the end of a log file that are read.
LOG_BYTES = 65536
# Seconds for the log, when everything else is over.
LOG_TIME = 2.0
# A process may be said to have begun a little after it wrote its PID file: ticks are 10 ms, and file systems round.
WRITTEN = 5.0


class Unseen(Exception):
    """The service could not be looked at, so that nothing is known of it.

    :param text: why, as a part of a sentence; :param late: only because the time was up.
    """

    def __init__(self, text: str, late: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.late = late


class State(NamedTuple):
    """What the manager says: ``wrong`` says why it is not up, "" when it is; ``restarts`` is None where nobody counts."""

    pid: int
    started: int
    restarts: int | None
    sub: str
    wrong: str


class Unit:
    """A systemd unit."""

    manager = "systemd"

    def __init__(self, unit: str) -> None:
        self._unit = SystemdUnit(unit, unit)
        self.place = f"unit {self._unit.unit}"
        self.repeat = shlex.join(["systemctl", "status", self._unit.unit])

    def state(self, left: float) -> State:
        """Return what systemd says within *left* seconds.

        :raises Unseen: when it does not say anything, or does not know the unit.
        """
        wanted = f"--property={','.join(PROPERTIES)}"
        text = _asked(["systemctl", "--no-pager", "show", self._unit.unit, wanted], left)
        properties = parse_show(text)
        if properties.get("LoadState") in ("not-found", "", None):
            raise Unseen(f"systemd knows no unit {self._unit.unit}: correct its name, or install it")
        if not properties.get("ActiveState"):
            raise Unseen(f"systemctl show says nothing about {self._unit.unit}")
        found = judge(properties)
        restarts = found.restarts if properties.get("NRestarts", "").isdigit() else None
        sub = properties.get("SubState", "")
        if found.running and found.pid and found.started is not None:
            return State(found.pid, found.started, restarts, sub, "")
        wrong = f"it is {found.detail}"
        active = properties["ActiveState"]
        if active == "activating" and not found.failed:
            wrong += ": it is still starting"
        elif active in ("active", "reloading"):
            pid = properties.get("MainPID", "0")
            if pid != "0" and hidden(int(pid)):
                raise Unseen(f"its main process {pid} is hidden from uid {os.geteuid()}")
            wrong += ", but it has no main process" if pid == "0" else f", but its main process {pid} is gone"
        return State(0, 0, restarts, sub, wrong)

    def owns(self, pid: int) -> bool:
        """Return whether *pid* is in the unit's control group."""
        return self._unit.owns(pid)

    def tail(self, left: float) -> str:
        """Return the last lines of its journal, "" where they may not be read."""
        argv = ["journalctl", "--no-pager", "-q", "-u", self._unit.unit, "-n", str(LOG_LINES), "-o", "cat"]
        try:
            return _asked(argv, min(left, LOG_TIME))
        except Unseen:
            return ""


class PidFile:
    """A process that wrote its PID into a file."""

    manager = "a PID file"

    def __init__(self, path: str) -> None:
        self._path = path
        self.place = f"PID file {path}"
        self.repeat = f'ps -o pid,ppid,lstart,pcpu,rss,args -p "$(cat {shlex.quote(path)})"'

    def state(self, left: float) -> State:
        """Return whether the process that the file names lives.

        :raises Unseen: when the file does not say which one that is.
        """
        del left
        try:
            text = read_regular(self._path, follow=True)
            written = os.stat(self._path).st_mtime
        except FileNotFoundError as error:
            raise Unseen(
                f"there is no {self._path}: see whether the service runs, and writes its PID there"
            ) from error
        except (OSError, ValueError) as error:
            raise Unseen(
                f"{self._path} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from error
        pid, recorded = parse_pid(text)
        if pid is None:
            raise Unseen(f"{self._path} holds no PID, but {text[:40]!r}")
        started = _processes.start_time(pid)
        if started is None:
            if hidden(pid):
                raise Unseen(f"process {pid} is hidden from uid {os.geteuid()}")
            return State(0, 0, None, "", f"the process {pid} that {self._path} names does not run")
        if recorded is not None and recorded != started:
            return State(
                0,
                0,
                None,
                "",
                f"the process {pid} that {self._path} names has ended; another has its PID now",
            )
        if recorded is None and _began(started) > written + WRITTEN:
            raise Unseen(
                f"{self._path} is older than the process {pid} that it names, which may be another one; see whose it is"
            )
        return State(pid, started, None, "", "")

    def owns(self, pid: int) -> bool:
        """Return whether *pid* belongs to it: of what is not its descendant nobody knows."""
        del pid
        return False

    def tail(self, left: float) -> str:
        """Return nothing: nobody knows where its log is."""
        del left
        return ""


class Own:
    """A service of ``app_services`` under the manager ``process``."""

    manager = "the manager process"

    def __init__(self, unit: ProcessUnit) -> None:
        self._unit = unit
        self.place = f"service {unit.service} of deployment {unit.deployment}"
        self.repeat = f"cat {shlex.quote(str(unit.pid_file))}; tail {shlex.quote(str(unit.log))}"

    def state(self, left: float) -> State:
        """Return whether it runs."""
        del left
        found = self._unit.main()
        if found is None:
            return State(0, 0, None, "", f"it does not run (PID file {self._unit.pid_file})")
        return State(found[0], found[1], None, "", "")

    def owns(self, pid: int) -> bool:
        """Return whether *pid* carries its name in its environment."""
        return _processes.carries(pid, self._unit.service, self._unit.deployment)

    def tail(self, left: float) -> str:
        """Return the last lines of its log."""
        del left
        return self._unit.tail(LOG_LINES)


class Managed:
    """A service of ``app_services`` whose manager tells its processes by their environment, and keeps its log."""

    _unit: SupervisorUnit | ComposeUnit

    def owns(self, pid: int) -> bool:
        """Return whether *pid* carries its name in its environment."""
        return self._unit.owns(pid)

    def tail(self, left: float) -> str:
        """Return the last lines of its log."""
        del left
        return self._unit.tail(LOG_LINES)


class Supervised(Managed):
    """A service of ``app_services`` under the manager ``supervisor``."""

    manager = "supervisord"

    def __init__(self, unit: SupervisorUnit) -> None:
        self._unit = unit
        self.place = f"program {unit.program}"
        self.repeat = shlex.join(["supervisorctl", "-c", unit.place.config, "status", unit.program])

    def state(self, left: float) -> State:
        """Return what supervisord says within *left* seconds.

        :raises Unseen: when it does not answer.
        """
        if left <= 0:
            raise Unseen("no time was left to ask", late=True)
        try:
            found = self._unit.status(min(left, ASK))
        except Problem as problem:
            raise Unseen(problem.message.rstrip(".")) from problem
        if found.running and found.pid and found.started is not None:
            return State(found.pid, found.started, None, "", "")
        return State(0, 0, None, "", f"supervisord says {found.detail}")


class Contained(Managed):
    """A service of ``app_services`` under the manager ``compose``."""

    manager = "the container engine"

    def __init__(self, unit: ComposeUnit) -> None:
        self._unit = unit
        self.place = unit.name
        self.repeat = shlex.join(
            ["docker", "compose", "-p", unit.place.project, "ps", "-a", unit.place.service]
        )

    def state(self, left: float) -> State:
        """Return what the engine says.

        :raises Unseen: when it does not answer.
        """
        if left <= 0:
            raise Unseen("no time was left to ask", late=True)
        try:
            found = self._unit.status()
        except Problem as problem:
            raise Unseen(problem.message.rstrip(".")) from problem
        if found.running and found.pid and found.started is not None:
            # Whose port it is, the engine knows: on the host it listens itself.
            return State(found.pid, found.started, found.restarts, "", self._unit.listens())
        return State(0, 0, found.restarts, "", found.detail)


class Target(NamedTuple):
    """What is looked at, and what is expected of it besides its check: ``release`` and ``listens`` of an own service;
    ``secrets`` are left out of its log."""

    service: Unit | PidFile | Own | Supervised | Contained
    release: str | None
    listens: list[int | str]
    secrets: list[str]
    log: str | None

    def last_lines(self, left: float) -> str:
        """Return the last lines of the log in at most *left* seconds, "" for none."""
        text = file_end(self.log) if self.log else self.service.tail(left)
        return redact(excerpt(last_words(text, SHOWN), SHOWN), self.secrets)


def find(check: Check, root: str | None, user: str | None, secrets: Sequence[str]) -> Target:
    """Return what *check* is about, as it is at this moment.

    :raises Unseen: when there is no such service in what is live.
    """
    if check.subject == "unit":
        return Target(Unit(check.value), _release(check, root), check.listens, list(secrets), check.log)
    if check.subject == "pid_file":
        return Target(PidFile(check.value), _release(check, root), check.listens, list(secrets), check.log)
    if not root:
        raise Unseen("root is not given, and only there is known what the application's services are")
    layout = Layout(root)
    release = current_release(layout)
    deployment = linked_deployment(layout, release) if release else None
    if not deployment:
        raise Unseen(f"nothing of the application is live in {root}")
    try:
        instance = read_instance(layout, deployment)
    except Problem as problem:
        raise Unseen(problem.message.rstrip(".")) from problem
    if instance is None:
        raise Unseen(f"the files of the live instance {deployment} in {layout.instances} are not there")
    spec = next((found for found in instance.services if found["name"] == check.value), None)
    if spec is None:
        names = ", ".join(found["name"] for found in instance.services) or "none"
        raise Unseen(f"the live instance has no service {check.value!r} on this host, only: {names}")
    if user and not known_user(user):
        raise Unseen(f"the user {user!r} does not exist on this host")
    document = instance.document
    service: Unit | Own | Supervised | Contained
    if spec["manager"] == "systemd":
        service = Unit(
            unit_name(
                str(document.get("name") or ""), str(document.get("stage") or ""), check.value, deployment
            )
        )
    elif spec["manager"] == "supervisor":
        application = (str(document.get("name") or ""), str(document.get("stage") or ""))
        service = Supervised(
            SupervisorUnit(layout, application, check.value, deployment, user, place_of(spec))
        )
    elif spec["manager"] == "compose":
        application = (str(document.get("name") or ""), str(document.get("stage") or ""))
        service = Contained(ComposeUnit(layout, application, spec, deployment, user))
    else:
        service = Own(ProcessUnit(layout, check.value, deployment, user))
    listens = list(check.listens)
    if has_socket(spec):
        listens.append(str(layout.socket(check.value, deployment)))
    elif spec["kind"] == "web" and spec.get("port") and spec["manager"] != "compose":
        listens.append(int(spec["port"]))
    wanted = check.release if check.release not in (None, CURRENT) else instance.release
    return Target(service, wanted, listens, [*secrets, *instance.secrets], check.log)


def _release(check: Check, root: str | None) -> str | None:
    if check.release != CURRENT:
        return check.release
    release = current_release(Layout(root)) if root else None
    if not release:
        raise Unseen(f"no release is current in {root!r}, so that it is not known which one should run")
    return str(Layout(root or "").release(release))


def parse_pid(text: str) -> tuple[int | None, int | None]:
    """Return the PID in the *text* of a PID file, and the start time where it is a file of this collection."""
    found: Any = None
    try:
        found = json.loads(text)
        if isinstance(found, dict):
            return int(found["pid"]), int(found["start_time"])
    except (ValueError, TypeError, KeyError):
        pass
    words = text.split()
    if words and words[0].isascii() and words[0].isdigit() and int(words[0]) > 1:
        return int(words[0]), None
    return None, None


def hidden(pid: int) -> bool:
    """Return whether the process *pid* exists, although /proc does not show it to us (proc(5), hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not os.path.exists(f"/proc/{pid}/stat")
    except (OSError, OverflowError):
        return False
    return False


def known_user(user: str) -> bool:
    """Return whether *user* exists on this host."""
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _began(started: int) -> float:
    """Return the time (``time.time()``) of *started*, ticks since boot."""
    with open("/proc/stat", encoding="ascii") as stream:
        booted = next((int(line.split()[1]) for line in stream if line.startswith("btime ")), 0)
    return booted + started / os.sysconf("SC_CLK_TCK")


def _asked(argv: Sequence[str], left: float) -> str:
    """Return what a command of systemd prints.

    :raises Unseen: when it is not there, fails, or does not end within *left* seconds.
    """
    if left <= 0:
        raise Unseen("no time was left to ask", late=True)
    try:
        ended = run_bounded(argv, timeout=left)
    except Unrunnable as error:
        raise Unseen(f"systemd is not on this host: {error.text}") from error
    if ended.timed_out:
        raise Unseen(f"{argv[0]} did not answer in {left:.1f} s", late=True)
    if ended.rc != 0:
        said = excerpt(ended.stderr.text() or ended.stdout.text(), 2).replace("\n", " ").rstrip(".")
        raise Unseen(f"{argv[0]} does not answer (exit code {ended.rc}): {said}")
    return ended.stdout.text()


def file_end(path: str) -> str:
    """Return the end of the log file *path*, "" where it cannot be read."""
    try:
        with os.fdopen(open_regular(path, follow=True), "rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - LOG_BYTES))
            return stream.read(LOG_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
