# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that speaks with the object store: boto3, in an environment of its own beside the application's.

It runs as the user of the task, who owns ``backups/``, and not as the application's: who breaks into the application
shall find neither the dumps nor the keys that can delete their copies. The keys are in the process's environment alone.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Imported so that it is sent to the host along with this file; its text is what is wanted.
from ansible_collections.runbook.deploy.plugins.module_utils import _agent_runtime, _agent_store
from ansible_collections.runbook.deploy.plugins.module_utils._agent import Agent, AgentProblem
from ansible_collections.runbook.deploy.plugins.module_utils._environment import (
    Interpreter,
    ask_interpreter,
    ensure_environment,
    find_uv,
    is_built,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, remove_tree
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._requirements import Requirements, digest
from ansible_collections.runbook.deploy.plugins.module_utils._retention import STORE_ENVIRONMENT
from ansible_collections.runbook.deploy.plugins.module_utils._store_faults import problem
from ansible_collections.runbook.deploy.plugins.module_utils._store_spec import (
    ATTEMPTS,
    CONNECT_TIMEOUT,
    READ_TIMEOUT,
    VARIABLE,
    Settings,
)

# 1.36 is the first whose checksums can be kept to what a request asks for, which servers other than AWS need.
BOTO3 = "boto3>=1.36,<2"
DAMAGED = "damaged"
PARTS = (("_runbook_runtime", _agent_runtime), ("_runbook_store", _agent_store))


class StoreFault(Problem):
    """The copy cannot be made, and that alone: with ``required: false`` a deployment goes on without it.

    ``code``: the store's own, or ``DAMAGED`` where the bytes are others.
    """

    code = ""


def environment_of(layout: Layout, interpreter: Interpreter) -> Path:
    """Return where the environment of boto3 for *interpreter* is, or will be."""
    name = digest(Requirements(packages=[BOTO3], lines=[["p", BOTO3]]), interpreter, "", None)
    return layout.environment(f"{STORE_ENVIRONMENT}{name}")


def provide(
    layout: Layout, python: str, build: Mapping[str, str], uv: str | None, timeout: float
) -> tuple[Path, bool]:
    """Build the environment where it is missing; return it, and whether it was built.

    :param build: ``app_build_environment``: index, proxy, certificates.
    :raises StoreFault: when boto3 cannot be installed here.
    """
    path = environment_of(layout, ask_interpreter(python))
    if is_built(path):
        return path, False
    layout.require_root()
    try:
        ensure_environment(
            layout,
            path.name,
            ask_interpreter(python),
            Requirements(packages=[BOTO3]),
            release=layout.root,
            directory="",
            build=build,
            uv=find_uv(layout, uv),
            user=None,
            read_only=False,
            timeout=timeout,
            origin=f"for {VARIABLE} (boto3)",
        )
    except Problem as fault:
        raise StoreFault(fault.message, fault.evidence) from fault
    for other in layout.environments.glob(f"{STORE_ENVIRONMENT}*"):
        if other != path:
            with contextlib.suppress(OSError):
                remove_tree(other)
    return path, True


def credentials(settings: Settings) -> dict[str, str]:
    """Return the variables of the process: the keys, and no other place to look for them or for settings."""
    if not settings.access_key:
        return {}
    return {
        "AWS_ACCESS_KEY_ID": settings.access_key,
        "AWS_SECRET_ACCESS_KEY": settings.secret_key,
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class Session:
    """The process, as a context manager; every fault of the store is a :class:`StoreFault`."""

    def __init__(self, settings: Settings, environment: Path) -> None:
        self.settings = settings
        self.agent = Agent(
            python=environment / "bin" / "python",
            # Python looks for modules here first: nobody but who built it may write there.
            cwd=environment,
            variables=credentials(settings),
            secrets=[text for text in (settings.secret_key, settings.access_key) if text],
            limit=float(settings.timeout),
            parts=PARTS,
        )

    def __enter__(self) -> Session:
        try:
            self.ask(
                "No connection can be made to",
                "nothing was copied",
                "connect",
                endpoint=self.settings.endpoint,
                bucket=self.settings.bucket,
                region=self.settings.region,
                ca_path=self.settings.ca_path,
                proxy=self.settings.proxy,
                attempts=ATTEMPTS,
                connect_timeout=min(CONNECT_TIMEOUT, self.settings.timeout / ATTEMPTS / 2),
                read_timeout=min(READ_TIMEOUT, self.settings.timeout / ATTEMPTS / 2),
            )
        except BaseException:
            self.agent.close()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        self.agent.close()

    def ask(self, doing: str, after: str, operation: str, **arguments: Any) -> dict[str, Any]:
        """Return the answer to *operation*.

        :param doing: the beginning of the sentence for a fault, such as ``The backup x could not be copied to``.
        :param after: what is true all the same.
        """
        try:
            answer = self.agent.call(operation, **arguments)
        except AgentProblem as lost:
            raise StoreFault(*self._lost(lost, doing, after)) from lost
        if "failed" in answer:
            facts = answer["failed"]
            hidden = {**facts, "message": self.agent.hide(str(facts["message"]))}
            found = problem(doing, hidden, self.settings, after)
            error = StoreFault(found.message, found.evidence)
            error.code = facts["code"]
            raise error
        return answer

    def _lost(self, lost: AgentProblem, doing: str, after: str) -> tuple[str, str]:
        """Return sentence and evidence for a request that the process did not answer."""
        place = self.settings.place()
        if lost.reason == "time":
            return (
                f"{doing} {place}: it was not done within {self.settings.timeout} s; {after}: raise {VARIABLE}.timeout, or look at the "
                "network and the store.",
                lost.evidence,
            )
        why = lost.error.get("message") or lost.message.rstrip(".")
        kind = lost.error.get("type", "")
        return (
            f"{doing} {place}: the process of boto3 failed ({kind + ': ' if kind else ''}{str(why).splitlines()[0]}); {after}: remove the "
            f"directories {STORE_ENVIRONMENT}* in environments/ if it repeats, the next run builds them anew.",
            lost.evidence,
        )
