# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services under systemd of earlier instances, which ``app_service`` told to end and did not wait for: that they have ended.

Few imports: whoever settles pays for them on every host, and those of systemd only where it has something to say.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, read_json
from ansible_collections.runbook.deploy.plugins.module_utils._processes import peer_pid


def described(layout: Layout) -> dict[str, list[dict[str, Any]]]:
    """Return the services under systemd of each instance that has its description; none of a damaged one."""
    found: dict[str, list[dict[str, Any]]] = {}
    for deployment in layout.described_instances():
        found[deployment] = []
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            services = read_json(layout.instance_file(deployment))["services"]
            found[deployment] = [entry for entry in services if entry["manager"] == "systemd"]
    return found


def await_ended(layout: Layout, name: str, stage: str, expected: str, measured: bool) -> list[str]:
    """Wait until every unit of this application that ends has ended, but those of *expected*; forget their failures.

    A server may end with another exit code than 0 because it was told to end: that is no failure anybody has to look at.

    :param expected: the deployment that serves; "" or ``adopted`` where all of ours are others.
    :param measured: a verdict is to be written that says what serves. Otherwise a person is needed, to whom all is left as it is.
    :return: what does not even end, as clauses for a sentence.
    :raises Problem: when systemd does not answer, or could not end a unit.
    """
    instances = described(layout)
    others = {deployment: services for deployment, services in instances.items() if deployment != expected}
    if not any(others.values()):
        return []
    # Only here: hosts without systemd do not pay for the import.
    from ansible_collections.runbook.deploy.plugins.module_utils import _systemd
    from ansible_collections.runbook.deploy.plugins.module_utils._instance import TRIAL

    left, running = [], []
    for (service, deployment), state in sorted(_systemd.find_units(name, stage).items()):
        base = deployment.replace(TRIAL, "")
        # Another application can have a name that begins like ours: the deployment must be one of ours.
        if deployment == expected or base not in instances:
            continue
        unit = _systemd.SystemdUnit(_systemd.unit_name(name, stage, service, deployment), service)
        if state == "deactivating":
            # It joins what systemd does already. The unit has its own limit; ours is that of the slowest service.
            limits = [float(entry.get("stop_timeout") or 0) for entry in instances[base]]
            unit.stop(max(limits, default=_systemd.STOP_TIMEOUT))
        elif state == "failed" and measured:
            unit.forget()
        elif state not in ("inactive", "failed"):
            running.append((service, deployment))
            left.append(f"{service} of {deployment} still runs")
    remove_sockets(layout, others, running)
    return left


def remove_sockets(
    layout: Layout, others: Mapping[str, Sequence[Mapping[str, Any]]], running: Sequence[tuple[str, str]]
) -> None:
    """Remove the sockets that services of *others* left, which have ended; a server most often removes its own."""
    for deployment, services in others.items():
        for entry in services:
            path = layout.socket(str(entry.get("name")), deployment)
            if (entry.get("name"), deployment) in running:
                continue
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(path.lstat().st_mode) and peer_pid(path) is None:
                    path.unlink()
