# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manager ``systemd``: services as instances of template units, asked and told through systemctl.

Units are called ``<name>-<stage>-<service>@<deployment>.service``. Their template is written by the setup role
and reads the instance's files, so that a deployment changes no unit. Instances are never enabled: the boot unit
starts those of the current release.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from ansible_collections.runbook.deploy.plugins.module_utils._command import Finished, redact, run
from ansible_collections.runbook.deploy.plugins.module_utils._instance import Instance
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._process import Status

PROPERTIES = ("LoadState", "ActiveState", "SubState", "Result", "MainPID", "NRestarts", "ExecMainStatus")
# systemctl answers at once; a start waits for exec (Type=exec), a bus that hangs must not hang us.
ASK = 30.0
START = 60.0
# Of a service whose definition is gone; as the contract's default.
STOP_TIMEOUT = 30
# systemctl returns after TimeoutStopSec at the latest; this much is allowed for systemd's own work.
STOP_MARGIN = 30.0


def unit_name(name: str, stage: str, service: str, deployment: str) -> str:
    """Return the name of the unit of *service* in the instance *deployment*."""
    return f"{name}-{stage}-{service}@{deployment}.service"


def parse_show(text: str) -> dict[str, str]:
    """Return the properties in the output of ``systemctl show``: lines ``Name=value``."""
    result = {}
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        if separator:
            result[name] = value
    return result


def judge(properties: Mapping[str, str]) -> Status:
    """Return the status that *properties* (see ``PROPERTIES``) mean.

    A unit between two starts (``auto-restart``) is not running and has failed, even while systemd calls it
    activating: that is how a crash loop looks between its crashes.
    """
    active = properties.get("ActiveState", "")
    sub = properties.get("SubState", "")
    pid = _number(properties.get("MainPID"))
    restarts = _number(properties.get("NRestarts"))
    running = active in ("active", "reloading") and pid > 0
    failed = active == "failed" or sub.startswith("auto-restart")
    detail = f"{active or 'unknown'} ({sub})" if sub else active or "unknown"
    result = properties.get("Result", "success")
    if result not in ("", "success"):
        detail += f", result {result}"
    if _number(properties.get("ExecMainStatus")) and not running:
        detail += f", exit status {properties['ExecMainStatus']}"
    if restarts:
        detail += f", restarted {restarts} times by systemd"
    started = _processes.start_time(pid) if running else None
    return Status(
        running and started is not None, pid if running else None, started, restarts, failed, detail
    )


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def parse_units(text: str, name: str, stage: str) -> dict[tuple[str, str], str]:
    """Return (service, deployment) -> ActiveState from the output of ``systemctl list-units --plain``.

    Only what can be an instance of this application is taken. A name such as ``shop-eu`` makes that ambiguous
    (service ``eu-web`` of ``shop``?), so the caller compares the deployments with those it knows.
    """
    result = {}
    pattern = re.compile(
        rf"{re.escape(name)}-{re.escape(stage)}-(?P<service>[^@]+)@(?P<deployment>[^@]+)\.service$"
    )
    for line in text.splitlines():
        # A bullet marks failed units in some versions even with --plain.
        fields = line.replace("\u25cf", " ").split()
        if len(fields) < 3:
            continue
        found = pattern.match(fields[0])
        if found:
            result[found["service"], found["deployment"]] = fields[2]
    return result


def systemctl(*arguments: str, timeout: float = ASK) -> Finished:
    """Run systemctl with *arguments*; no pager, no colours, no question for a password.

    :raises Problem: when there is no systemctl on this host.
    """
    return run(["systemctl", "--no-pager", "--no-ask-password", *arguments], timeout=timeout)


def find_units(name: str, stage: str) -> dict[tuple[str, str], str]:
    """Return (service, deployment) -> ActiveState of the instances that systemd has loaded.

    :raises Problem: when systemd does not answer.
    """
    answer = systemctl(
        "list-units", "--all", "--plain", "--no-legend", "--full", f"{name}-{stage}-*@*.service"
    )
    if answer.rc != 0:
        raise Problem(
            "systemctl list-units failed on this host, so it is unknown which instances run: check that systemd is "
            "the init system here, or use manager: process.",
            answer.tail(),
        )
    return parse_units(answer.stdout, name, stage)


class SystemdUnit:
    """One service of one instance under systemd, or an adopted unit.

    :param unit: the unit's name; :param service: the service's name.
    """

    manager = "systemd"

    def __init__(self, unit: str, service: str) -> None:
        self.unit = unit if unit.endswith(".service") else f"{unit}.service"
        self.service = service
        self._since: float | None = None

    @property
    def name(self) -> str:
        """What an operator knows it by."""
        return self.unit

    def show(self) -> dict[str, str]:
        """Return the unit's properties.

        :raises Problem: when systemd does not answer.
        """
        answer = systemctl("show", self.unit, f"--property={','.join(PROPERTIES)}")
        if answer.rc != 0:
            raise Problem(
                f"systemctl show {self.unit} failed, so it is unknown whether {self.service!r} runs: "
                "check that systemd answers on this host.",
                answer.tail(),
            )
        return parse_show(answer.stdout)

    def status(self) -> Status:
        """Return whether the unit runs, as systemd sees it."""
        return judge(self.show())

    def start(self, instance: Instance | None) -> None:
        """Start the unit, from a clean count of earlier failures; *instance* is in its files already.

        :raises Problem: when the unit is unknown or systemd refuses.
        """
        del instance
        if self.show().get("LoadState") == "not-found":
            raise Problem(
                f"systemd has no template for the unit {self.unit}: run playbooks/setup.yml, which writes it."
            )
        # 5 failed starts in 10 s block a unit until this; a unit without failures is no error.
        systemctl("reset-failed", self.unit)
        self._since = time.time()
        answer = systemctl("start", self.unit, timeout=START)
        if answer.rc != 0:
            raise Problem(
                f"systemd could not start {self.unit} (exit code {answer.rc}): see the evidence.",
                "\n".join(part for part in (answer.tail(10), self.tail(10)) if part),
            )

    def owns(self, pid: int) -> bool:
        """Return whether the process *pid* is in the unit's control group."""
        try:
            with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as stream:
                text = stream.read()
        except OSError:
            return False
        return any(f"/{self.unit}" in f"{line}/" for line in text.splitlines())

    def exists(self) -> bool:
        """Return whether anything of the unit is left that :meth:`stop` would end."""
        return self.show().get("ActiveState") not in ("inactive", None)

    def end(self) -> bool:
        """Tell the unit to stop, and return whether it does so now; its end is not waited for.

        False where it has ended already, or where systemd has not begun or refused: for :meth:`stop`, which waits, and forgets
        failures. So nobody who comes later takes a unit for one that runs which is only about to stop.
        """
        systemctl("stop", "--no-block", self.unit)
        return self.show().get("ActiveState") == "deactivating"

    def stop(self, timeout: float) -> bool:
        """Stop the unit and forget its failures; systemd sends TERM, waits TimeoutStopSec, then KILL.

        :param timeout: what the service was promised; systemd's own limit is in the unit.
        :return: whether it had to be killed.
        :raises Problem: when systemd could not stop it.
        """
        answer = systemctl("stop", self.unit, timeout=timeout + STOP_MARGIN)
        properties = self.show()
        if properties.get("ActiveState") not in ("inactive", "failed"):
            # It outlived what was promised: the unit's TimeoutStopSec is older than the service's stop_timeout.
            systemctl("kill", "--signal=KILL", self.unit)
            systemctl("stop", self.unit, timeout=STOP_MARGIN)
            properties = self.show()
        if properties.get("ActiveState") not in ("inactive", "failed"):
            raise Problem(
                f"systemd could not stop {self.unit} (it is {properties.get('ActiveState')}): stop it by hand with "
                f"'systemctl kill --signal=KILL {self.unit}', then run again.",
                answer.tail(),
            )
        killed = properties.get("Result") == "timeout"
        systemctl("reset-failed", self.unit)
        return killed

    def enable(self, wanted: bool) -> None:
        """Have an adopted unit started at boot, or not.

        :raises Problem: when systemd refuses.
        """
        answer = systemctl("enable" if wanted else "disable", self.unit)
        if answer.rc != 0:
            raise Problem(
                f"systemd could not {'enable' if wanted else 'disable'} {self.unit}, so that the wrong release "
                "would be started at the next boot: do it by hand.",
                answer.tail(),
            )

    def forget(self) -> None:
        """Clear what systemd remembers of the unit's failures."""
        systemctl("reset-failed", self.unit)

    def tail(self, lines: int = 20, secrets: tuple[str, ...] = ()) -> str:
        """Return the last lines of the unit's journal, of an earlier life of the unit only where it was not us who
        started it."""
        since = [] if self._since is None else [f"--since=@{self._since:.6f}"]
        # From the end: with --since alone, -n counts from the beginning (systemd 252).
        command = [
            "journalctl",
            "--no-pager",
            "-u",
            self.unit,
            "--reverse",
            "-n",
            str(lines),
            "-o",
            "cat",
            *since,
        ]
        answer = run(command, timeout=ASK)
        if answer.rc != 0:
            return ""
        return redact("\n".join(reversed(answer.stdout.strip().splitlines())), secrets)


def find_adopted(adopt: Mapping[str, Any] | None) -> SystemdUnit | None:
    """Return the unit of the adopted installation, None where ``app_adopt`` names none."""
    service = (adopt or {}).get("service")
    return SystemdUnit(service, "adopted") if service else None
