# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemctl does with the units of an application, done with real processes; real systemd is in molecule/default."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _processes, _systemd
from ansible_collections.runbook.deploy.plugins.module_utils._command import Finished
from ansible_collections.runbook.deploy.plugins.module_utils._instance import parse_environment_text
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout


class PretendedSystemd:
    """Units ``<prefix><service>@<deployment>.service`` of the instances below *layout*.

    :ivar calls: the words of each systemctl; :ivar codes: unit -> exit code of its main process, as soon as that is known.
    :ivar hesitates: a stop that nobody waits for is only noted, and begins with the next that is waited for.
    """

    def __init__(self, layout: Layout, monkeypatch: pytest.MonkeyPatch, prefix: str = "shop-test-") -> None:
        self.layout = layout
        self.prefix = prefix
        self.calls: list[tuple[str, ...]] = []
        self.codes: dict[str, int] = {}
        self.hesitates = False
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._told: set[str] = set()
        self._failed: set[str] = set()
        monkeypatch.setattr(_systemd, "systemctl", self._systemctl)
        monkeypatch.setattr(_systemd.SystemdUnit, "owns", lambda unit, pid: self._owns(unit.unit, pid))
        monkeypatch.setattr(_systemd.SystemdUnit, "tail", lambda *_args: "")

    def unit(self, service: str, deployment: str) -> str:
        return f"{self.prefix}{service}@{deployment}.service"

    def states(self) -> dict[str, str]:
        """Every unit that systemd would list, with its ActiveState."""
        return {unit: self.state(unit) for unit in sorted({*self._running, *self._failed})}

    def state(self, unit: str) -> str:
        process = self._running.get(unit)
        if process is not None and process.poll() is not None:
            self.codes[unit] = process.returncode
            del self._running[unit]
            if unit not in self._told or process.returncode not in (0, -signal.SIGTERM):
                self._failed.add(unit)
            self._told.discard(unit)
            process = None
        if process is not None:
            return "deactivating" if unit in self._told else "active"
        return "failed" if unit in self._failed else "inactive"

    def count(self, *words: str) -> int:
        """How often systemctl was called with all of these words."""
        return sum(1 for call in self.calls if set(words) <= set(call))

    def end(self) -> None:
        """End every process."""
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _owns(self, unit: str, pid: int) -> bool:
        process = self._running.get(unit)
        return process is not None and os.getpgid(pid) == process.pid

    def _start(self, unit: str) -> int:
        assert self.state(unit) == "inactive", f"{unit} is {self.state(unit)} when it is started"
        service, deployment = unit[len(self.prefix) : -len(".service")].split("@")
        variables = parse_environment_text(self.layout.environment_file(deployment).read_text())
        self._running[unit] = subprocess.Popen(
            ["/bin/sh", str(self.layout.launcher(deployment, service))],
            env={"PATH": os.environ["PATH"], **variables},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return 0

    def _tell(self, unit: str) -> None:
        if self.state(unit) == "active":
            self._told.add(unit)
            self._running[unit].terminate()

    def _stop(self, unit: str) -> int:
        self._tell(unit)
        until = time.monotonic() + 10
        while self.state(unit) == "deactivating" and time.monotonic() < until:
            time.sleep(0.01)
        return 0

    def _shown(self, unit: str) -> str:
        state, process = self.state(unit), self._running.get(unit)
        pid = process.pid if process is not None else 0
        result = "exit-code" if state == "failed" else "success"
        return f"LoadState=loaded\nActiveState={state}\nMainPID={pid}\nNRestarts=0\nResult={result}\n"

    def _systemctl(self, verb: str, *words: str, timeout: float = 0) -> Finished:
        self.calls.append((verb, *words))
        output, code = "", 0
        unit = next((word for word in words if not word.startswith("-")), "")
        if verb == "list-units":
            output = "".join(f"{name} loaded {state} sub shop\n" for name, state in self.states().items())
        elif verb == "show":
            output = self._shown(unit)
        elif verb == "start":
            code = self._start(unit)
        elif verb == "reset-failed":
            self._failed.discard(unit)
        elif verb == "kill":
            os.killpg(self._running[unit].pid, signal.SIGKILL)
        elif verb == "stop" and "--no-block" in words:
            if not self.hesitates:
                self._tell(unit)
        elif verb == "stop":
            code = self._stop(unit)
        else:
            raise AssertionError(f"systemctl {verb} is not pretended")
        return Finished(["systemctl", verb, *words], code, output, "", 0.0, False)


def instances(layout: Layout) -> set[tuple[str, str]]:
    """(service, deployment) of what runs or ends, by its processes."""
    found: list[Any] = _processes.application_processes(layout.root)
    return {(entry.service, entry.deployment) for entry in found if entry.service}
