# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manager ``process``: services as background processes with a PID file, for hosts with no service manager.

Each service leads a session of its own, so that it survives the end of the connection that started it, and all
its processes can be found. No signal goes to a PID alone: the kernel gives PIDs out again, and the application
may write the directory of the PID files, so a process must also have the recorded start time and the
application's user.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import subprocess
import time
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from ansible_collections.runbook.deploy.plugins.module_utils._command import (
    base_environment,
    identity,
    redact,
)
from ansible_collections.runbook.deploy.plugins.module_utils._instance import (
    Instance,
    make_directory,
    owner_group,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    Layout,
    open_regular,
    read_regular,
    write_json,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

POLL = 0.05
# After KILL a process ends at once, unless the kernel holds it in an uninterruptible call.
KILL_WAIT = 5.0
# What remains of a service after its main process ended gracefully is killed, as systemd's KillMode=mixed does.
LINGER = 1.0


class Status(NamedTuple):
    """What a manager says of one service.

    ``restarts``: how often the manager started it again by itself; ``failed``: it ended wrongly or cannot be
    started; ``detail``: in words, for messages.
    """

    running: bool
    pid: int | None
    started: int | None
    restarts: int
    failed: bool
    detail: str


def owned_by(pid: int, uid: int) -> bool:
    """Return whether the process *pid* exists and runs as *uid*."""
    try:
        return os.stat(f"/proc/{pid}").st_uid == uid
    except OSError:
        return False


def session_of(pid: int) -> int | None:
    """Return the session of *pid*, None when it is gone."""
    try:
        return os.getsid(pid)
    except OSError:
        return None


def send(pid: int, started: int, number: int) -> bool:
    """Send the signal *number* to the process *pid* if it still is the one that started at *started*.

    A handle on the process is taken first where the system offers one (Linux 5.3, Python 3.9), so that the PID
    cannot change hands between the check and the signal.

    :return: False when that process is gone.
    :raises Problem: when it may not be signalled.
    """
    handle = None
    try:
        with contextlib.suppress(AttributeError, OSError):
            handle = os.pidfd_open(pid)
        if not _processes.is_same(pid, started):
            return False
        if handle is not None:
            signal.pidfd_send_signal(handle, number)
        else:
            os.kill(pid, number)
    except ProcessLookupError:
        return False
    except PermissionError as error:
        raise Problem(
            f"The process {pid} ({_processes.command(pid)}) may not be signalled by uid {os.geteuid()}: "
            "set ansible_become to true, or app_user to the user who owns it."
        ) from error
    finally:
        if handle is not None:
            os.close(handle)
    return True


class ProcessUnit:
    """One service of one instance under the manager ``process``."""

    manager = "process"

    def __init__(self, layout: Layout, service: str, deployment: str, user: str | None) -> None:
        self.layout = layout
        self.service = service
        self.deployment = deployment
        self.user = user
        self.pid_file = layout.pid_file(service, deployment)
        self.log = layout.log(service, deployment)
        self._child: subprocess.Popen[Any] | None = None

    @property
    def name(self) -> str:
        """What an operator knows it by."""
        return f"{self.service} ({self.pid_file})"

    def _uid(self) -> int:
        return pwd.getpwnam(self.user).pw_uid if self.user else os.geteuid()

    def start(self, instance: Instance) -> None:
        """Start the service with the files of *instance*, and write its PID file.

        :raises Problem: when its launcher cannot be run.
        """
        make_directory(self.layout.logs, 0o750, self.user)
        argv = ["/bin/sh", str(self.layout.launcher(self.deployment, self.service))]
        log = open_regular(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.fchown(log, -1, owner_group(self.user))
            self._child = subprocess.Popen(
                argv,
                cwd="/",
                env={**base_environment(self.user), **instance.variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **identity(self.user),
            )
        except OSError as error:
            raise Problem(f"The service {self.service!r} could not be started: {error}.") from error
        finally:
            os.close(log)
        pid = self._child.pid
        write_json(
            self.pid_file,
            {
                "pid": pid,
                "start_time": _processes.start_time(pid),
                "argv": argv,
                "service": self.service,
                "deployment": self.deployment,
            },
            0o644,
        )

    def _recorded(self) -> tuple[int, int] | None:
        """Return (PID, start time) from the PID file if that process lives; a damaged file counts as none."""
        try:
            found = json.loads(read_regular(self.pid_file))
            pid, started = int(found["pid"]), int(found["start_time"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        if pid > 1 and _processes.is_same(pid, started) and owned_by(pid, self._uid()):
            return pid, started
        return None

    def _marked(self) -> list[_processes.Process]:
        """Return the living processes that carry this service and deployment in their environment."""
        uid = self._uid()
        return [
            entry
            for entry in _processes.application_processes(self.layout.root)
            if entry.service == self.service
            and entry.deployment == self.deployment
            and owned_by(entry.pid, uid)
        ]

    def main(self) -> tuple[int, int] | None:
        """Return (PID, start time) of the main process, None when the service does not run.

        Where the PID file is missing (its writer was killed) the process is found by its environment.
        """
        if self._child is not None:
            self._child.poll()  # takes the exit code, so that no zombie stays
        found = self._recorded()
        if found is None:
            for entry in self._marked():
                if session_of(entry.pid) == entry.pid:
                    return entry.pid, entry.start_time
        return found

    def status(self) -> Status:
        """Return whether the service runs, and how it ended if we started it."""
        found = self.main()
        if found:
            return Status(True, found[0], found[1], 0, False, "running")
        code = self._child.returncode if self._child else None
        if code is None:
            return Status(False, None, None, 0, False, "not running")
        how = f"killed by signal {abs(code)}" if code < 0 else f"ended with exit code {code}"
        return Status(False, None, None, 0, True, how)

    def owns(self, pid: int) -> bool:
        """Return whether the process *pid* belongs to this service."""
        found = self.main()
        if found and session_of(pid) == found[0]:
            return True
        return _processes.carries(pid, self.service, self.deployment)

    def exists(self) -> bool:
        """Return whether anything of the service is left that :meth:`stop` would end."""
        return bool(self.main() or self._marked())

    def _members(self) -> dict[int, int]:
        """Return PID -> start time of all processes of the service."""
        members = {entry.pid: entry.start_time for entry in self._marked()}
        found = self.main()
        if found:
            uid = self._uid()
            for pid in _processes.pids():
                if session_of(pid) == found[0] and owned_by(pid, uid):
                    started = _processes.start_time(pid)
                    if started is not None:
                        members[pid] = started
        return members

    def stop(self, timeout: float) -> bool:
        """Stop the service: TERM to its main process, *timeout* seconds, then KILL to all of its processes.

        :return: whether it had to be killed.
        :raises Problem: when a process is still there after KILL.
        """
        members = self._members()
        found = self.main()
        killed = False
        if found:
            send(found[0], found[1], signal.SIGTERM)
        else:
            for pid, started in members.items():
                send(pid, started, signal.SIGTERM)
        deadline = time.monotonic() + timeout
        main_ended = None
        while members:
            if found and main_ended is None:
                if self._alive(found):
                    # New workers may appear until the main process is gone.
                    members.update(self._members())
                else:
                    main_ended = time.monotonic()
            members = {pid: started for pid, started in members.items() if self._alive((pid, started))}
            now = time.monotonic()
            if now >= deadline or (main_ended is not None and now >= main_ended + LINGER):
                break
            if members:
                time.sleep(POLL)
        end = time.monotonic() + KILL_WAIT
        while members:
            members.update(self._members())
            for pid, started in members.items():
                killed = send(pid, started, signal.SIGKILL) or killed
            members = {pid: started for pid, started in members.items() if self._alive((pid, started))}
            if members and time.monotonic() > end:
                raise Problem(
                    f"The process {min(members)} of service {self.service!r} is still there {KILL_WAIT:.0f} s after "
                    "KILL (the kernel holds it, often a file system that does not answer): look at it, then run again."
                )
            if members:
                time.sleep(POLL)
        self.forget()
        return killed

    def _alive(self, process: tuple[int, int]) -> bool:
        if self._child is not None and self._child.pid == process[0]:
            self._child.poll()
        return _processes.is_same(*process)

    def forget(self) -> None:
        """Remove the PID file."""
        with contextlib.suppress(FileNotFoundError):
            self.pid_file.unlink()

    def tail(self, lines: int = 20, secrets: tuple[str, ...] = ()) -> str:
        """Return the last lines of the service's log."""
        try:
            handle = open_regular(self.log)
        except OSError:
            return ""
        with os.fdopen(handle, "rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 65536))
            text = stream.read().decode("utf-8", "replace")
        return redact("\n".join(text.splitlines()[-lines:]), secrets)


def find_processes(layout: Layout) -> set[tuple[str, str]]:
    """Return (service, deployment) of everything that runs or left a PID file under this manager."""
    found = {
        (entry.service, entry.deployment)
        for entry in _processes.application_processes(layout.root)
        if entry.service and entry.deployment
    }
    with contextlib.suppress(OSError):
        for path in layout.run.glob("*.pid"):
            # <service>.<deployment>.pid; a service's name has no dot, a trial's deployment has one.
            service, _dot, deployment = path.name[: -len(".pid")].partition(".")
            if deployment:
                found.add((service, deployment))
    return found
