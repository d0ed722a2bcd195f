# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole HTTP gate: checks until they pass in a row, then flows, once.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._gate import PASS, gate_result, until
from ansible_collections.runbook.deploy.plugins.module_utils._http import (
    in_parallel,
    reads_only,
    run_checks,
    verify_placeholders,
)
from ansible_collections.runbook.deploy.plugins.module_utils._http_flow import run_flow
from ansible_collections.runbook.deploy.plugins.module_utils._http_spec import (
    Check,
    Flow,
    Values,
    parse_check,
    parse_flow,
    parse_flows,
)
from ansible_collections.runbook.deploy.plugins.module_utils._http_transport import Target

# Of the checks that did not pass, in the one sentence; the others are in the answer.
TOLD = 3


def read_tests(tests: Sequence[Any], flows: Sequence[Any]) -> tuple[list[Check], list[Flow]]:
    """Return the checks and the flows; an item of *tests* that has ``steps`` is a flow.

    :raises Problem: when one of them is not well written.
    """
    checks: list[Check] = []
    found: list[Flow] = []
    for index, item in enumerate(tests):
        where = f"checks[{index}]"
        if isinstance(item, Mapping) and "steps" in item:
            found.append(parse_flow(item, where))
        else:
            checks.append(parse_check(item, where))
    return checks, found + parse_flows(list(flows))


def run_gate(
    checks: Sequence[Check],
    flows: Sequence[Flow],
    target: Target,
    *,
    placeholders: Mapping[str, Any] | None = None,
    secrets: Mapping[str, str] | None = None,
    timeout: float = 10.0,
    successes: int = 2,
    interval: float = 0.5,
    deadline: float = 60.0,
    patience: float | None = None,
    read_only: bool = False,
) -> dict[str, Any]:
    """Ask *checks* until all pass *successes* times in a row, then do *flows*; all within *deadline* seconds.

    Flows write (they log in, they post), so they are done once and never tried again, and only when the checks
    have passed.

    :param read_only: leave out what may change something: methods other than GET and HEAD, and flows.
    :return: the gate contract with ``attempts``, ``streak``, ``seconds``, ``reason`` and ``not_asked``, the
        names of what was left out.
    :raises Problem: when a placeholder or a secret has no value, or a number makes no sense.
    """
    begun = time.monotonic()
    values = Values(placeholders, secrets)
    for check in [*checks, *(step for flow in flows for step in flow.steps)]:
        verify_placeholders(check, values)
    not_asked: list[str] = []
    if read_only:
        not_asked = [item.name for item in [*(check for check in checks if not reads_only(check)), *flows]]
        checks, flows = [check for check in checks if reads_only(check)], []
    # Every result has the same keys, asked or not.
    gate = {
        **gate_result([]),
        "attempts": 0,
        "streak": 0,
        "seconds": 0.0,
        "reason": "There was nothing to ask.",
    }
    if checks:

        def probe(left: float) -> list[dict[str, Any]]:
            return run_checks(
                checks, target, placeholders=placeholders, secrets=secrets, timeout=timeout, deadline=left
            )

        gate = until(probe, successes=successes, interval=interval, deadline=deadline, patience=patience)
    if flows and (gate["passed"] or not checks):
        limit = begun + deadline

        def task(flow: Flow) -> Callable[[float], dict[str, Any]]:
            return lambda end: run_flow(flow, target, values, timeout, end)

        names = [(flow.name, flow.severity) for flow in flows]
        done = in_parallel([task(flow) for flow in flows], names, limit)
        gate = {**gate, **gate_result([*gate["checks"], *done])}
        gate["reason"] = "" if gate["passed"] else "A flow is done once and not tried again."
    elif flows:
        not_asked += [flow.name for flow in flows]
    gate["seconds"] = round(time.monotonic() - begun, 3)
    return {**gate, "not_asked": not_asked}


def sentence(gate: Mapping[str, Any], place: str) -> str:
    """Return why *gate* did not pass: every critical check by name, the first few with all that is known."""
    wrong = [
        check for check in gate["checks"] if check["verdict"] != PASS and check["name"] in gate["failing"]
    ] or [check for check in gate["checks"] if check["verdict"] != PASS]
    begin = f"The gate on {place} did not pass ({gate['verdict']}). {gate['reason']}".strip()
    told = " ".join(check["message"] for check in wrong[:TOLD])
    others = ", ".join(repr(check["name"]) for check in wrong[TOLD:])
    return " ".join(filter(None, [begin, f"Others that did not pass: {others}." if others else "", told]))
