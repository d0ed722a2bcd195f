# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Feature flags in a file of ``NAME=value`` lines, which systemd, shells and dotenv libraries read.

A switch replaces the whole file by rename(2): whoever reads it, and a host after a crash, sees the old or the new one.
All other lines stay as they are.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ansible_collections.runbook.deploy.plugins.module_utils._flags_store import Store
from ansible_collections.runbook.deploy.plugins.module_utils._instance import (
    linked_deployment,
    owner_group,
    read_instance,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    Layout,
    current_release,
    open_regular,
    write_atomic,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._process import ProcessUnit, send
from ansible_collections.runbook.deploy.plugins.module_utils._supervisor import SupervisorUnit, place_of
from ansible_collections.runbook.deploy.plugins.module_utils._systemd import SystemdUnit, unit_name

# Of a file that is made here: the application reads it, others do not.
MODE = 0o640
# More is no file of settings.
MOST = 1024 * 1024
# Seconds for which a process must outlive the signal, and between two looks.
HUP_SECONDS = 0.5
LOOK = 0.1
_LINE = re.compile(r"^(\s*(?:export\s+)?)([A-Za-z_][A-Za-z0-9_]*)(\s*=)(.*)$", re.DOTALL)
# Needs no quotes in a shell, in systemd's EnvironmentFile= and in dotenv files.
_PLAIN = re.compile(r"^[A-Za-z0-9_.,:/%+@-]*$")


def read_line(line: str) -> tuple[str, str] | None:
    """Return name and value of a line; None for one that sets nothing.

    >>> read_line("export A='b c'")
    ('A', 'b c')
    """
    found = _LINE.match(line)
    if not found or line.lstrip().startswith(("#", ";")):
        return None
    text = found.group(4).strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        inner = text[1:-1]
        return found.group(2), inner if text[0] == "'" else re.sub(r"\\([\\\"$`])", r"\1", inner)
    return found.group(2), re.sub(r"\s+#.*$", "", text)


def quoted(value: str, name: str) -> str:
    """Return *value* as it stands in a file.

    :raises Problem: for a single quote, which those who read such files do not agree on.
    """
    if _PLAIN.match(value):
        return value
    if "'" in value:
        raise Problem(
            f"The value {value!r} of {name} has a single quote, which not everything reads alike in a file of variables: "
            "choose another value."
        )
    return f"'{value}'"


def values_in(text: str, names: Sequence[str]) -> dict[str, str | None]:
    """Return what the file *text* says of *names*; the last line counts, None for one that it does not set."""
    found: dict[str, str | None] = dict.fromkeys(names)
    for line in text.split("\n"):
        pair = read_line(line)
        if pair and pair[0] in found:
            found[pair[0]] = pair[1]
    return found


def switched_text(text: str, changes: Mapping[str, str | None]) -> str:
    """Return *text* with every line of the names in *changes* set to their values; None removes the lines.

    Each of several lines of one name is set, as some readers take the first and some the last one.
    """
    lines = text.split("\n")
    kept = []
    seen = set()
    for line in lines:
        pair = read_line(line)
        if not pair or pair[0] not in changes:
            kept.append(line)
            continue
        name = pair[0]
        value = changes[name]
        seen.add(name)
        if value is not None:
            head = _LINE.match(line).group(1)  # type: ignore[union-attr]
            ending = "\r" if line.endswith("\r") else ""
            kept.append(f"{head}{name}={quoted(value, name)}{ending}")
    if kept and kept[-1] == "":
        kept.pop()
    kept += [
        f"{name}={quoted(value, name)}"
        for name, value in changes.items()
        if name not in seen and value is not None
    ]
    return "\n".join(kept) + ("\n" if kept else "")


class FileStore(Store):
    """The file, on each host its own."""

    shared = False
    removable = True
    atomic = True

    def __init__(
        self, path: str, reload: str, layout: Layout, user: str | None, name: str, stage: str
    ) -> None:
        self.path = Path(path)
        self.reload = "" if reload == "none" else reload
        self.layout = layout
        self.user = user
        self.name = name
        self.stage = stage

    def place(self) -> str:
        """See :meth:`Store.place`."""
        return f"file {self.path}"

    def _text(self) -> tuple[str, os.stat_result | None]:
        """Return the file's text and what it is; "" and None where there is none.

        :raises Problem: when it cannot be read; a link is not followed, as the application may have put it there.
        """
        try:
            with os.fdopen(open_regular(self.path), "rb") as stream:
                details = os.fstat(stream.fileno())
                data = stream.read(MOST + 1)
        except FileNotFoundError:
            return "", None
        except OSError as error:
            link = " it is a symbolic link, so name the file itself" if self.path.is_symlink() else ""
            raise Problem(
                f"The flags in {str(self.path)!r} cannot be read ({error.strerror or error}):{link or ' correct that'}."
            ) from error
        if len(data) > MOST:
            raise Problem(
                f"{str(self.path)!r} has more than {MOST} bytes, which is no file of flags: correct app_flags.store.path."
            )
        try:
            return data.decode("utf-8"), details
        except UnicodeDecodeError as error:
            raise Problem(
                f"{str(self.path)!r} is no text in UTF-8 (byte {error.start}), so it is left alone: correct the file."
            ) from error

    def read(self, names: Sequence[str]) -> dict[str, str | None]:
        """See :meth:`Store.read`."""
        return values_in(self._text()[0], names)

    def write(self, changes: Mapping[str, str | None], go_on: bool = False) -> list[str]:
        """See :meth:`Store.write`; the file keeps its owner and mode, a new one is the application's to read."""
        text, details = self._text()
        wanted = switched_text(text, changes)
        try:
            if details is None:
                group = owner_group(self.user)
                write_atomic(self.path, wanted, MODE, group=group)
            else:
                same = (details.st_uid, details.st_gid) == (os.geteuid(), os.getegid())
                owner, group = (-1, -1) if same else (details.st_uid, details.st_gid)
                write_atomic(self.path, wanted, stat.S_IMODE(details.st_mode), owner, group)
        except FileNotFoundError as error:
            raise Problem(
                f"The directory of {str(self.path)!r} does not exist on this host: make it, or correct app_flags.store.path."
            ) from error
        except OSError as error:
            raise Problem(
                f"The flags in {str(self.path)!r} cannot be written ({error.strerror or error}), and the file is as it was: "
                "correct that and switch again."
            ) from error
        return []

    def apply(self) -> str:
        """Send SIGHUP to the main process of the service in ``reload``; return what was done, "" for nothing.

        :raises Problem: when the service is not there, or ended.
        """
        if not self.reload:
            return ""
        release = current_release(self.layout)
        deployment = linked_deployment(self.layout, release) if release else None
        instance = read_instance(self.layout, deployment) if deployment else None
        service = (
            next((one for one in instance.services if one["name"] == self.reload), None) if instance else None
        )
        if not deployment or service is None:
            raise Problem(
                f"The service {self.reload!r} (app_flags.store.reload) has no live instance in {str(self.layout.root)!r} on this "
                "host, so it did not read its flags again: see playbooks/status.yml."
            )
        unit: SystemdUnit | ProcessUnit | SupervisorUnit
        if service["manager"] == "systemd":
            unit = SystemdUnit(unit_name(self.name, self.stage, self.reload, deployment), self.reload)
        elif service["manager"] == "supervisor":
            place = place_of(service)
            unit = SupervisorUnit(
                self.layout, (self.name, self.stage), self.reload, deployment, self.user, place
            )
        else:
            unit = ProcessUnit(self.layout, self.reload, deployment, self.user)
        before = unit.status()
        if not before.running or not before.pid or not before.started:
            raise Problem(
                f"The service {self.reload!r} (app_flags.store.reload) does not run ({before.detail}), so it did not read its flags "
                "again: start it with playbooks/rollback.yml --tags restart."
            )
        if not send(before.pid, before.started, signal.SIGHUP):
            raise Problem(
                f"The main process {before.pid} of {self.reload!r} ended just now, so it did not read its flags again: "
                "see playbooks/status.yml."
            )
        # Who does not handle the signal is ended by it.
        limit = time.monotonic() + HUP_SECONDS
        while time.monotonic() < limit:
            time.sleep(LOOK)
            after = unit.status()
            if (after.pid, after.started) != (before.pid, before.started):
                raise Problem(
                    f"The service {self.reload!r} (app_flags.store.reload) ended when it was told to read its flags again "
                    f"({after.detail}), so it takes SIGHUP for an end: leave reload out, and see playbooks/status.yml."
                )
        return f"{self.reload} (process {before.pid}) was told to read its settings again"
