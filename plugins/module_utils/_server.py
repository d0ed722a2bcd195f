# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engines with a server have in common: scratch databases, on the live database's server or on another one.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._database import (
    SCRATCH_NOTE,
    Contents,
    Engine,
    is_at,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import write_json
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

SCRATCH = re.compile(r"^runbook_scratch_[0-9a-f]{12}$")


def definition_differences(found: Mapping[str, str], manifest: Mapping[str, Any]) -> list[str]:
    """Return in words how the definitions *found*, a digest of each by what it is, differ from those in *manifest*."""
    wanted = manifest.get("catalog") or {}
    result = [f"{what} is missing" for what in sorted(set(wanted) - set(found))]
    result += [f"{what} was not there" for what in sorted(set(found) - set(wanted))]
    return result + [
        f"{what} is defined otherwise"
        for what in sorted(set(found) & set(wanted))
        if found[what] != wanted[what]
    ]


class ServerEngine(Engine):
    """An engine whose ``client`` talks to a server; ``trial`` is the engine of the server where copies are tried, often itself."""

    client: Any
    trial: Any

    def place(self) -> str:
        """See :meth:`Engine.place`."""
        return f"{self.client.name} at {self.client.address()}"

    def is_live(self, path: str | os.PathLike[str]) -> bool:
        """Return False: a directory of this host holds no database of a server."""
        return False

    def scratch_space(self, size: int) -> list[tuple[Path, int]]:
        """See :meth:`Engine.scratch_space`."""
        return self.trial.server_space(size)

    def scratch(self, dump: Path | None, directory: Path, owner: tuple[int, int]) -> dict[str, str]:
        """See :meth:`Engine.scratch`: a database of random name; the note in *directory* is there before it is."""
        name = f"runbook_scratch_{secrets.token_hex(6)}"
        shape = None
        if self.trial is not self:
            self.require_as_new()
            shape = self.shape()
        found = self.trial.note(name, directory)
        directory.mkdir(mode=0o700)
        write_json(directory / SCRATCH_NOTE, found, 0o600)
        self.trial.create(name, shape)
        self.require_other(name)
        if dump is not None:
            self.trial.load_trial(dump, name)
        return found

    def note(self, name: str, directory: Path) -> dict[str, str]:
        """Return what :meth:`scratch` answers for the scratch database *name* of this server."""
        return {
            "engine": self.name,
            "name": name,
            "host": self.client.host,
            "port": str(self.client.port or ""),
            "user": self.client.login.user,
            "directory": str(directory),
        }

    def shape(self) -> Mapping[str, Any]:
        """Return of the live database what another server needs to make one like it."""
        raise NotImplementedError

    def require_as_new(self) -> None:
        """Refuse a server for copies that may not know what a dump of the live one holds.

        :raises Problem: naming both versions.
        """
        raise NotImplementedError

    def require_other(self, name: str) -> None:
        """Make sure that *name* is not the live database by another way; an engine without aliases has nothing to ask."""

    def create(self, name: str, shape: Mapping[str, Any] | None = None) -> None:
        """Make the empty database *name* like the live one, or of that *shape* where the live one is on another server.

        :raises Problem: when nobody of ours may do that.
        """
        raise NotImplementedError

    def load_trial(self, dump: Path, name: str) -> None:
        """Restore *dump* into the empty scratch database *name*."""
        raise NotImplementedError

    def database_contents(self, name: str, framework: str) -> Contents:
        """Return what the database *name* of this server holds."""
        raise NotImplementedError

    def drop(self, name: str) -> None:
        """Remove the database *name*, whoever is connected to it."""
        raise NotImplementedError

    def scratch_contents(self, scratch: Mapping[str, str], framework: str) -> Contents:
        """See :meth:`Engine.scratch_contents`."""
        return self.trial.database_contents(scratch["name"], framework)

    def drop_scratch(self, scratch: Mapping[str, str]) -> None:
        """See :meth:`Engine.drop_scratch`; only what has a name that we give is ever dropped."""
        name = str(scratch.get("name") or "")
        if not SCRATCH.match(name) or name == self.client.name:
            raise Problem(
                f"The note of a scratch database names {name!r}, which no trial restore made: nothing was dropped; see {scratch.get('directory')}."
            )
        holder = next((each for each in (self.trial, self) if is_at(each.note(name, Path()), scratch)), None)
        if holder is None:
            place = f"{scratch.get('host') or 'the local socket'}{' port ' if scratch.get('port') else ''}{scratch.get('port') or ''}"
            raise Problem(
                f"The scratch database {name} is on the server at {place}, which neither app_database nor app_database.scratch names "
                "any longer: drop it there by hand, then remove its directory below scratch/."
            )
        holder.drop(name)
        if scratch.get("directory"):
            shutil.rmtree(scratch["directory"], ignore_errors=True)
