# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge what was measured of a host, the answer of ``deployment_state``; pure, and read by the controller too.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._layout import ADOPTED


def mismatches(state: Mapping[str, Any], expect: Mapping[str, Any]) -> list[str]:
    """Return, as clauses for a sentence, in what the measured *state* differs from *expect*.

    :param expect: ``{release, deployment}``; a None is not compared, except that the deployment ``adopted``
        expects the adopted unit to be active and nothing of ours to run. ``{nothing: True}``: nothing is live.
    """
    if expect.get("nothing"):
        wrong = [f"{service['name']} still runs" for service in state["services"] if service["running"]]
        return wrong + ([f"current is {state['current']['release']}"] if state["current"] else [])
    if expect.get("deployment") == ADOPTED:
        wrong = [
            f"{service['name']} of {service['release']} runs"
            for service in state["services"]
            if service["running"]
        ]
        if not (state.get("adopted") or {}).get("active"):
            wrong.append("the adopted service is not active")
        return wrong
    wrong = []
    release, deployment = expect.get("release"), expect.get("deployment")
    current = state["current"] or {}
    if release and current.get("release") != release:
        wrong.append(f"current is {current.get('release') or 'nothing'}")
    if deployment and current.get("deployment") != deployment:
        wrong.append(f"after a reboot {current.get('deployment') or 'nothing'} would be started")
    for service in state["services"]:
        name = service["name"]
        if service.get("wrong_image"):
            wrong.append(service["wrong_image"])
        elif service["foreign"]:
            wrong.append(f"the address of {name} is held by {service['foreign']}")
        elif service["answers"] is False:
            wrong.append(f"{name} does not answer")
        elif not service["running"]:
            wrong.append(f"{name} does not run")
        elif release and service["release"] != release:
            wrong.append(f"{name} answers from {service['release'] or 'an unknown release'}")
        elif deployment and service["deployment"] != deployment:
            wrong.append(f"{name} answers from deployment {service['deployment'] or 'unknown'}")
        elif len(service["instances"]) > 1:
            others = sorted({entry["deployment"] for entry in service["instances"]} - {service["deployment"]})
            if others:
                wrong.append(f"{name} of {', '.join(others)} still runs")
    return wrong


def is_current(state: Mapping[str, Any], release: str) -> bool:
    """Judge whether nothing is to be done to have *release* live.

    It is current and complete, its deployment's verdict is success, nothing is interrupted, the migrations are
    those with which it ended, and every service answers from that one instance.
    """
    current, record = state["current"], state["record"]
    if not current or current["release"] != release or not current["deployment"] or state["interrupted"]:
        return False
    if not any(entry["name"] == release and entry["complete"] for entry in state["releases"]):
        return False
    if not record or record.get("verdict") != "success" or record.get("undone_by"):
        return False
    if state["recorded_heads"] and state["recorded_heads"] != state["heads"]:
        return False
    return not mismatches(state, {"release": release, "deployment": current["deployment"]})
