# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Maintenance by a file or by commands of the application, and the watchman that ends it when its time is over.

Neither ends by itself, so a process of the host waits for the end: a unit of systemd, enabled so that it goes on after a reboot, where
that runs the host; else a process in a session of its own, which a reboot ends. It is told by files alone, and needs nothing of this
collection.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._application import Installed
from ansible_collections.runbook.deploy.plugins.module_utils._command import identity, run
from ansible_collections.runbook.deploy.plugins.module_utils._layout import write_atomic, write_json
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# There where systemd runs the host (sd_booted(3)).
BOOTED = Path("/run/systemd/system")
UNITS = Path("/etc/systemd/system")
# Seconds for one command of the application.
COMMAND = 120.0
WATCHMAN = "watchman.py"
ORDER = "watchman.json"

# Written to the host as it is. It ends when the maintenance is another's, or over; the lock is that of the module.
SCRIPT = r'''"""Ends the maintenance when its time is over. Written by runbook.deploy; removed with the maintenance."""
import fcntl, json, os, subprocess, sys, time

directory, mine = sys.argv[1], sys.argv[2]


def read(name):
    try:
        with open(os.path.join(directory, name), encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return {}


while True:
    left = 0
    if read("state.json").get("id") != mine:
        sys.exit(0)
    order = read("watchman.json")
    left = order.get("expires", 0) - time.time()
    if left > 0:
        time.sleep(min(left + 0.05, 5.0))
        continue
    lock = os.open(directory, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    # Somebody may have given it another end, or ended it, while the lock was waited for.
    order = read("watchman.json")
    if read("state.json").get("id") != mine or order.get("expires", 0) > time.time():
        os.close(lock)
        continue
    if order.get("path"):
        try:
            os.unlink(order["path"])
        except FileNotFoundError:
            pass
        sys.exit(0)
    done = subprocess.run(
        order["argv"], cwd=order["cwd"], env=order["environment"], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=order["timeout"], **order["identity"]
    )
    if done.returncode == 0:
        with open(os.path.join(directory, "ended"), "w", encoding="utf-8") as stream:
            stream.write(mine)
        sys.exit(0)
    os.close(lock)
    time.sleep(10)
'''


def unit_text(name: str, stage: str, directory: Path, identifier: str) -> str:
    """Return the unit that waits for the end; Restart= has the commands tried again."""

    def quoted(text: str) -> str:
        return (
            '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$") + '"'
        )

    words = [sys.executable or "/usr/bin/python3", str(directory / WATCHMAN), str(directory), identifier]
    return (
        "# Managed by runbook.deploy: removed with the maintenance.\n"
        "[Unit]\n"
        f"Description={name} {stage}: end the maintenance when its time is over\n"
        "[Service]\n"
        f"ExecStart={' '.join(map(quoted, words))}\n"
        "Restart=on-failure\n"
        "RestartSec=10\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    )


class Watchman:
    """What ends a maintenance of this application when nobody does."""

    def __init__(self, name: str, stage: str, directory: Path, systemd: bool | None = None) -> None:
        self.name, self.stage, self.directory = name, stage, directory
        self.unit = f"runbook-maintenance-{name}-{stage}.service"
        self.systemd = BOOTED.is_dir() and os.geteuid() == 0 if systemd is None else systemd

    def order(self, expires: float, what: Mapping[str, Any]) -> None:
        """Write until when, and what is to be done then; secret, as it has the variables of a command."""
        write_json(self.directory / ORDER, {"expires": expires, **what}, 0o600)

    def start(self, identifier: str) -> None:
        """Let it wait for the end of the maintenance *identifier*.

        :raises Problem: when it does not start: without it nothing would end a maintenance that is forgotten.
        """
        write_atomic(self.directory / WATCHMAN, SCRIPT, 0o644)
        if self.systemd:
            write_atomic(
                UNITS / self.unit, unit_text(self.name, self.stage, self.directory, identifier), 0o644
            )
            for words in (["daemon-reload"], ["enable", "--quiet", self.unit], ["restart", self.unit]):
                done = run(["systemctl", *words], timeout=COMMAND)
                if done.rc != 0:
                    raise Problem(
                        f"The unit {self.unit}, which ends the maintenance when its time is over, could not be started (systemctl {words[0]} ended "
                        f"with exit code {done.rc}, expected 0): see the evidence.",
                        done.tail(),
                    )
            return
        words = [sys.executable, str(self.directory / WATCHMAN), str(self.directory), identifier]
        with open(os.devnull, "r+b") as nothing:
            # In a session of its own, so that it outlives the connection that started it.
            subprocess.Popen(
                words, stdin=nothing, stdout=nothing, stderr=nothing, cwd="/", start_new_session=True
            )

    def stop(self) -> None:
        """Take it away; a process of its own ends when the maintenance is no more the one it waits for."""
        if self.systemd and (UNITS / self.unit).exists():
            run(["systemctl", "disable", "--quiet", "--now", self.unit], timeout=COMMAND)
            (UNITS / self.unit).unlink(missing_ok=True)
            run(["systemctl", "daemon-reload"], timeout=COMMAND)
        for name in (ORDER, WATCHMAN, "ended"):
            (self.directory / name).unlink(missing_ok=True)

    def ended(self, identifier: str) -> bool:
        """Say whether it has ended the maintenance *identifier* by its command."""
        try:
            return (self.directory / "ended").read_text(encoding="utf-8") == identifier
        except OSError:
            return False


class FileFlag:
    """A file of the operator's choice, which the application or the web server looks for."""

    def __init__(self, path: str, watchman: Watchman, content: Callable[[str, float], str]) -> None:
        self.path, self.watchman, self.content = Path(path), watchman, content

    def prepare(self, check_mode: bool) -> tuple[bool, bool]:
        """There is nothing to prepare but to see that the file can be.

        :raises Problem: when it cannot.
        """
        del check_mode
        if not self.path.parent.is_dir():
            raise Problem(
                f"The directory of {str(self.path)!r} (app_maintenance.path) does not exist on this host: make it, or correct the path."
            )
        if os.path.lexists(self.path) and (self.path.is_symlink() or not self.path.is_file()):
            raise Problem(
                f"{str(self.path)!r} (app_maintenance.path) is no regular file, expected none or one: move it away, or correct the path."
            )
        return False, False

    def up(self, moment: float) -> bool:
        """Say whether it is there."""
        del moment
        return self.path.exists()

    def left(self) -> bool:
        """Say whether it is there."""
        return self.path.exists()

    def on(self, identifier: str, begin: float, end: float) -> None:
        """Write it; the watchman is there before."""
        del begin
        self.watchman.order(end, {"path": str(self.path)})
        self.watchman.start(identifier)
        try:
            write_atomic(self.path, self.content(identifier, end), 0o644)
        except OSError as error:
            raise Problem(
                f"{str(self.path)!r} (app_maintenance.path) cannot be written ({error.strerror}): correct that."
            ) from error

    def off(self) -> None:
        """Remove it, then the watchman."""
        self.path.unlink(missing_ok=True)
        self.watchman.stop()


class Commands:
    """Two commands of the application, run in the release that is current. That they ran is known from our own note alone."""

    def __init__(
        self, on: Sequence[str], off: Sequence[str], place: Callable[[], Installed], watchman: Watchman
    ) -> None:
        self.words = {"on": list(on), "off": list(off)}
        self.place, self.watchman = place, watchman
        self.state: Mapping[str, Any] = {}

    def prepare(self, check_mode: bool) -> tuple[bool, bool]:
        """See that there is a release to run them in."""
        del check_mode
        self.place()
        return False, False

    def up(self, moment: float) -> bool:
        """Say what the note says: until its time is over and the watchman has run the command, it is on."""
        return bool(self.state.get("id")) and not (
            moment > self.state.get("expires", 0) and self.watchman.ended(self.state["id"])
        )

    def left(self) -> bool:
        """Say whether there is a note."""
        return bool(self.state.get("id"))

    def _run(self, which: str) -> None:
        place = self.place()
        words = self.words[which]
        done = run(
            place.argv(words),
            cwd=place.cwd,
            environment=place.variables,
            user=place.user,
            timeout=COMMAND,
            secrets=place.secrets,
        )
        if done.rc != 0 or done.timed_out:
            how = (
                f"did not end within {COMMAND:g} s"
                if done.timed_out
                else f"ended with exit code {done.rc}, expected 0"
            )
            raise Problem(
                f"The command {' '.join(words)!r} (app_maintenance.command_{which}) {how} in {str(place.cwd)!r}: run it by hand as "
                f"{place.user or 'this user'} and correct it.",
                done.tail(),
            )

    def on(self, identifier: str, begin: float, end: float) -> None:
        """Run the command; the watchman is there before."""
        del begin
        place = self.place()
        self.watchman.order(
            end,
            {
                "argv": place.argv(self.words["off"]),
                "cwd": str(place.cwd),
                "environment": place.variables,
                "timeout": COMMAND,
                "identity": identity(place.user),
            },
        )
        self.watchman.start(identifier)
        self._run("on")

    def off(self) -> None:
        """Run the command, then take the watchman away."""
        self._run("off")
        self.watchman.stop()


def flag_text(reason: str) -> Callable[[str, float], str]:
    """Return what makes the text of a flag file: JSON with whose it is, why, and until when it is meant (seconds since 1970)."""

    def text(identifier: str, end: float) -> str:
        return json.dumps({"id": identifier, "reason": reason, "expires": int(end)}, sort_keys=True) + "\n"

    return text
