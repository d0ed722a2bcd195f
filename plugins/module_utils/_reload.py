# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HUP for services that read their configuration anew on it: the same main process, new workers, proved.

HUP goes on with the code and the variables that the main process was started with, whatever ``current`` says now; so it is
for configuration alone that lies outside of releases, such as a shared file or a certificate.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from ansible_collections.runbook.deploy.plugins.module_utils._fleet import live_deployment
from ansible_collections.runbook.deploy.plugins.module_utils._gate import gate_result
from ansible_collections.runbook.deploy.plugins.module_utils._instance import read_instance
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._process import send
from ansible_collections.runbook.deploy.plugins.module_utils._service import (
    POLL,
    Member,
    Settings,
    stay_up,
    workers,
)


def not_by_reload(live: Mapping[str, Any], version: str, inputs: str) -> str:
    """Return why HUP cannot bring what is wanted, "" where it can: code and variables are those that the main process was started with.

    :param live: the live instance, with ``release``, ``version`` and ``commit``.
    :param version: what the operator wants, a name or the beginning of a commit; empty where he named none.
    :param inputs: the digest of today's settings, with which a release's name ends; empty where it is not known.
    """
    shown = str(live.get("version") or live.get("release") or "")
    commit = str(live.get("commit") or "")
    # Git's own least length of an abbreviation is 4.
    if version and version != live.get("version") and not (len(version) >= 4 and commit.startswith(version)):
        return (
            f"The version {version} is wanted, but {shown} serves, and a reload goes on with its code, so nothing was reloaded: deploy it with "
            f"playbooks/deploy.yml -e version={version}."
        )
    made_of = str(live.get("release") or "").rpartition("-")[2]
    if inputs and made_of != inputs:
        return (
            f"The settings of the inventory are not those that {shown} was started with (digest {inputs}, expected {made_of}; app_environment or "
            "another variable of the release), and a reload goes on with the old ones, so nothing was reloaded: deploy the version again, which "
            "makes a release of them, or take the change back."
        )
    return ""


def reload_live(settings: Settings, check_mode: bool, version: str = "", inputs: str = "") -> dict[str, Any]:
    """Reload the services of the live instance whose strategy is ``reload``; return what of the module's answer that changes.

    :param version: refused unless it is what serves; :param inputs: the same, for the settings: see :func:`not_by_reload`.
    :raises Problem: when there is none, one does not run, or does not serve afterwards; what ended is started again then.
    """
    deployment = live_deployment(settings.layout)
    instance = read_instance(settings.layout, deployment) if deployment else None
    if instance is None or deployment is None:
        raise Problem(
            f"Nothing of ours is current in {settings.layout.root}, so nothing can be reloaded: deploy a version first."
        )
    wrong = not_by_reload(instance.document, version, inputs)
    if wrong:
        raise Problem(wrong)
    chosen = [
        Member(settings, deployment, spec, instance)
        for spec in instance.services
        if spec["kind"] == "web" and spec.get("strategy") == "reload"
    ]
    if not chosen:
        raise Problem(
            f"No service of the live instance {deployment} has strategy: reload, so nothing was reloaded: set it in app_services and "
            "deploy once, or restart the service."
        )
    settings.host = instance.document.get("host_header") or None
    settings.headers = dict(instance.document.get("headers") or {})
    checks = instance.document.get("health_checks") or []
    # All must serve before the first is touched.
    for member in chosen:
        if not member.serves():
            raise Problem(
                f"The service {member.service!r} of {deployment} does not serve, so it was not reloaded: start it with "
                "playbooks/rollback.yml --tags restart."
            )
    gates: list[dict[str, Any]] = []
    if not check_mode:
        for member in chosen:
            gates.append(_reload(settings, member))
            gates.append(member.gate(checks, settings.successes))
        gates.append(gate_result(stay_up(chosen, settings.stay_up)))
    found = [check for gate in gates for check in gate["checks"]]
    return {"changed": True, "gate": gate_result(found) if found else {}}


def _reload(settings: Settings, member: Member) -> dict[str, Any]:
    """Send HUP to *member* and wait until all of its workers are new; return the gate.

    :raises Problem: when it ends (what does not know HUP does, and is started again), or keeps its workers.
    """
    status = member.require_running()
    pid, started = status.pid or 0, status.started or 0
    before = workers(pid)
    begun = time.monotonic()
    send(pid, started, signal.SIGHUP)
    while True:
        if not _processes.is_same(pid, started):
            again = ""
            if not member.status().running:
                member.start()
                member.gate([], 1)
                again = " It was started again and serves."
            raise Problem(
                f"The service {member.service!r} ended on HUP (process {pid}), so it is no service for strategy: reload: use blue_green or "
                f"restart.{again}",
                member.tail(),
                live_changed=False,
            )
        now = workers(pid)
        old = [child for child, since in before.items() if now.get(child) == since]
        if now and not old:
            break
        if time.monotonic() - begun > settings.start_timeout:
            raise member.problem(
                f"did not replace its workers within {settings.start_timeout:g} s of HUP: "
                + (f"{len(old)} of {len(before)} are still the old ones" if before else "it has no workers")
                + "; it still serves as before. Use another strategy, or see its log."
            )
        time.sleep(POLL)
    return member.gate([], 1)
