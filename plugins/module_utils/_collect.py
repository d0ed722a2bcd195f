# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a Django release's ``collectstatic``: when its turn comes, or already while the release is verified.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._agent import Agent
from ansible_collections.runbook.deploy.plugins.module_utils._application import Installed
from ansible_collections.runbook.deploy.plugins.module_utils._handover import Borrower, lent
from ansible_collections.runbook.deploy.plugins.module_utils._layout import opened, read_json, write_json
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._static import (
    COLLECTED,
    place_of,
    prepare,
    save_manifest,
)


class Collection:
    """One run of ``collectstatic`` in the release *target*, in a process that is first asked where it would write.

    ``facts``: ``static_root``, ``manifest`` and whether that is the release's ``own`` directory; ``counts``: files ``copied``,
    ``unmodified``, ``post_processed``; ``seconds``: how long it took.

    :param limit: seconds for all of it.
    :param scratch: what the process has instead of the live database, as :func:`_migrate.scratch_of` gives it; None: the live one.
    """

    def __init__(self, target: Installed, limit: float, scratch: Mapping[str, Any] | None = None) -> None:
        self.target = target
        self.limit = limit
        self.scratch = scratch
        self.facts: dict[str, Any] = {"static_root": "", "manifest": "", "own": False}
        self.counts: dict[str, int] = {}
        self.seconds = 0.0
        self._agent: Agent | None = None
        self._unwanted = False

    def run(self, *, lent_already: bool = False, early: bool = False) -> bool:
        """Collect; return whether it was done, which without static files it is.

        :param lent_already: the release belongs to the application's user until the caller takes it back.
        :param early: only where nobody but this release can see it: nothing but files of Django's own making, in the release.
        :raises Problem: when the application fails, or would write where it must not.
        """
        target = self.target
        begun = time.monotonic()
        process = Agent(
            python=target.python,
            cwd=target.cwd,
            variables=target.variables,
            user=target.user,
            secrets=target.secrets,
            limit=self.limit,
        )
        # The process ends before the directory is taken back from its user.
        with contextlib.ExitStack() as loans, process as agent:
            self._agent = agent
            if self._unwanted:
                return False
            agent.call("start", argv=["manage.py", "collectstatic"], database=self.scratch)
            settings = agent.call("settings")
            if early and not (settings["plain"] and settings["location"]):
                return False
            if not settings["staticfiles"]:
                return True
            if settings["local"]:
                if not settings["location"]:
                    raise Problem(
                        "The application has django.contrib.staticfiles installed, but its settings have no STATIC_ROOT; "
                        "expected a directory such as BASE_DIR / 'staticfiles': set STATIC_ROOT, or remove the app."
                    )
                place, own = place_of(target.layout, target.path, target.cwd, settings["location"])
                if early and not own:
                    return False
                self.facts.update(static_root=str(place), manifest=settings["manifest"], own=own)
                if not own:
                    save_manifest(target.path, place, settings["manifest"])
                else:
                    prepare(place)
                    if lent_already:
                        # Taken back together with the release, after the commands that follow.
                        Borrower(target.user).give(place)
                    else:
                        loans.enter_context(lent(place, target.user))
            self.counts = agent.call("collectstatic")
        self.seconds = round(time.monotonic() - begun, 3)
        return True

    def abandon(self) -> None:
        """Have a run that another thread does end soon."""
        self._unwanted = True
        if self._agent is not None:
            self._agent.abandon()


class Beside:
    """``collectstatic`` at the same time as what is done in the block, for the module ``static_files`` to find.

    It has the copy of the database, as everything has that the new code does before it is verified. When it fails nothing is said:
    ``static_files`` does it again, and says what is wrong.

    :param deployment: the run that may use what was collected; no other, because settings may say something else then.
    """

    def __init__(self, collection: Collection, deployment: str) -> None:
        self.collection = collection
        self.deployment = deployment
        self.thread = threading.Thread(target=self._work)

    def __enter__(self) -> Beside:
        self.thread.start()
        return self

    def __exit__(self, kind: object, *details: object) -> None:
        if kind is not None:
            self.collection.abandon()
        self.wait()

    def wait(self) -> None:
        """Wait until it has ended."""
        self.thread.join()

    def _work(self) -> None:
        collection = self.collection
        release = collection.target.path
        with contextlib.suppress(Problem, OSError):
            if collection.run(early=True):
                found = {
                    "deployment": self.deployment,
                    "made_by": made_by(collection.target),
                    "facts": collection.facts,
                    "counts": collection.counts,
                    "seconds": collection.seconds,
                }
                with opened(release):
                    write_json(release / COLLECTED, found, 0o600)


def made_by(target: Installed) -> str:
    """Return a digest of what makes the process that collects: its interpreter, directory and variables."""
    about = [str(target.python), str(target.cwd), sorted(target.variables.items())]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def collected(target: Installed, deployment: str) -> Collection | None:
    """Return what :class:`Beside` has collected for *deployment*, as *target* would; None where it has not."""
    try:
        found = read_json(target.path / COLLECTED) or {}
    except (OSError, ValueError):
        return None
    if not deployment or found.get("deployment") != deployment or found["made_by"] != made_by(target):
        return None
    collection = Collection(target, 0.0)
    collection.facts, collection.counts = found["facts"], found["counts"]
    collection.seconds = found["seconds"]
    return collection
