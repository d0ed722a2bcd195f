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

from ansible_collections.runbook.deploy.plugins.module_utils._command import parse_environment
from ansible_collections.runbook.deploy.plugins.module_utils._gate import FAIL, gate_result, until
from ansible_collections.runbook.deploy.plugins.module_utils._gating import Probe, journal_of, require_passed
from ansible_collections.runbook.deploy.plugins.module_utils._http import (
    reads_only,
    run_checks,
    verify_placeholders,
)
from ansible_collections.runbook.deploy.plugins.module_utils._http_spec import (
    Check,
    Flow,
    Values,
    parse_check,
    parse_flow,
    parse_flows,
)
from ansible_collections.runbook.deploy.plugins.module_utils._http_transport import Target, whole_addresses
from ansible_collections.runbook.deploy.plugins.module_utils._parallel import in_parallel
from ansible_collections.runbook.deploy.plugins.module_utils._waivers import (
    Waiver,
    parse_waivers,
    today,
    waive,
)

# The options of the module http_gate and of its action, and what holds between them.
OPTIONS: dict[str, Any] = {
    "checks": {"type": "list", "elements": "dict", "default": []},
    "flows": {"type": "list", "elements": "dict", "default": []},
    "address": {"type": "str"},
    "socket": {"type": "path"},
    "host": {"type": "str"},
    "headers": {"type": "dict", "default": {}},
    "validate_certs": {"type": "bool", "default": True},
    "ca_path": {"type": "path"},
    "placeholders": {"type": "dict", "default": {}},
    "secrets": {"type": "str", "no_log": True},
    "timeout": {"type": "float", "default": 10},
    "successes": {"type": "int", "default": 2},
    "interval": {"type": "float", "default": 0.5},
    "deadline": {"type": "float", "default": 60},
    "patience": {"type": "float"},
    "on_no_data": {"type": "str", "choices": ["fail", "inconclusive"], "default": "fail"},
    "before": {"type": "list", "elements": "dict", "default": []},
    "judge": {"type": "bool", "default": True},
    "waivers": {"type": "list", "elements": "dict", "default": []},
    "root": {"type": "path"},
    "phase": {"type": "str", "default": "smoke_test"},
    "record": {"type": "dict"},
}
RULES: dict[str, Any] = {
    "mutually_exclusive": [("address", "socket")],
    "required_one_of": [("address", "socket")],
}


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
    before: Sequence[Mapping[str, Any]] = (),
    waivers: Sequence[Waiver] = (),
) -> dict[str, Any]:
    """Ask *checks* until all pass *successes* times in a row, then do *flows*; all within *deadline* seconds.

    Flows write (they log in, they post), so they are done once and never tried again, and only when the checks
    have passed.

    :param waivers: checks and flows that may fail, and who answers for them.
    :param before: the results of the same checks before the deployment; see :func:`told_from_before`.
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
            found = run_checks(
                checks, target, placeholders=placeholders, secrets=secrets, timeout=timeout, deadline=left
            )
            return waive(told_from_before(checks, found, before), waivers, today())

        gate = until(probe, successes=successes, interval=interval, deadline=deadline, patience=patience)
    if flows and (gate["passed"] or not checks):
        limit = begun + deadline
        # Only here: a gate without flows does not pay for the import.
        from ansible_collections.runbook.deploy.plugins.module_utils._http_flow import run_flow

        def task(flow: Flow) -> Callable[[float], dict[str, Any]]:
            return lambda end: run_flow(flow, target, values, timeout, end)

        names = [(flow.name, flow.severity) for flow in flows]
        done = in_parallel([task(flow) for flow in flows], names, limit)
        gate = {**gate, **gate_result([*gate["checks"], *waive(done, waivers, today())])}
        gate["reason"] = "" if gate["passed"] else "A flow is done once and not tried again."
    elif flows:
        not_asked += [flow.name for flow in flows]
    gate["seconds"] = round(time.monotonic() - begun, 3)
    return {**gate, "not_asked": not_asked}


def told_from_before(
    checks: Sequence[Check], results: Sequence[dict[str, Any]], before: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return *results* with the faults that were there *before* the deployment told from new ones.

    A check with ``compare`` that failed before and fails now is ``degraded`` and has ``old_fault: true``: taking the
    release back would not cure it. What could not be asked before excuses nothing.

    :param before: entries of ``checks`` of an earlier gate, found by their names.
    """
    earlier = {str(item.get("name")): item for item in before}
    told = []
    for check, result in zip(checks, results):
        was = earlier.get(check.name)
        if check.compare and result["verdict"] == FAIL and was is not None and was.get("verdict") == FAIL:
            message = f"{result['message']} It failed before the deployment, too: {was.get('observed', '')}"
            severity = "degraded" if result["severity"] == "critical" else result["severity"]
            result = {**result, "severity": severity, "message": message, "old_fault": True}
        told.append(result)
    return told


def prober(options: Mapping[str, Any], check_mode: bool) -> Probe:
    """Return what asks the checks of *options*, without flows; it is given the seconds that are left.

    :param check_mode: leave out methods other than GET and HEAD.
    :raises Problem: when a check is not well written, or a placeholder has no value.
    """
    secrets = parse_environment(options["secrets"], "secrets")
    checks = [parse_check(item, f"checks[{index}]") for index, item in enumerate(options["checks"])]
    values = Values(options["placeholders"], secrets)
    for check in checks:
        verify_placeholders(check, values)
    if not options["address"]:
        whole_addresses(check.url for check in checks)
    asked = [check for check in checks if reads_only(check) or not check_mode]
    target = Target(
        options["address"] or "http://localhost", None, None, options["headers"], True, options["ca_path"]
    )

    def probe(left: float) -> list[dict[str, Any]]:
        return run_checks(
            asked,
            target,
            placeholders=options["placeholders"],
            secrets=secrets,
            timeout=options["timeout"],
            deadline=left,
        )

    return Probe(probe, [check.name for check in checks if check not in asked], bool(asked))


def perform(options: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    """Run the gate that *options* (see ``OPTIONS``) describe, keep its journal, and return the gate.

    :param warn: called with a sentence for each check of lower severity that did not pass.
    :raises Problem: when the gate does not pass, unless it is only to measure, or an option is wrong.
    """
    secrets = parse_environment(options["secrets"], "secrets")
    checks, flows = read_tests(options["checks"], options["flows"])
    target = Target(
        options["address"],
        options["socket"],
        options["host"],
        options["headers"],
        options["validate_certs"],
        options["ca_path"],
    )
    with (
        journal_of(options, check_mode, secrets.values()) as journal,
        journal.phase(options["phase"]) as entry,
    ):
        gate = run_gate(
            checks,
            flows,
            target,
            placeholders=options["placeholders"],
            secrets=secrets,
            timeout=options["timeout"],
            successes=options["successes"],
            interval=options["interval"],
            deadline=options["deadline"],
            patience=options["patience"],
            read_only=check_mode,
            before=options["before"],
            waivers=parse_waivers(options["waivers"]),
        )
        entry["gate"] = gate
        if not options["judge"]:
            return gate
        nothing_left = bool(check_mode and gate["not_asked"] and not gate["checks"])
        require_passed(
            gate, options["address"] or options["socket"], options["on_no_data"], warn, nothing_left
        )
    return gate
