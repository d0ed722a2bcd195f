# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask again and again for a while, and say when it is bad enough to go back.

One wrong answer is no reason to take a release back, and many in a row are. Each check has a row of its own: it
triggers when it failed ``failures`` times in a row, or could not be asked ``unknowns`` times in a row.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _gates
from ansible_collections.runbook.deploy.plugins.module_utils._command import parse_environment
from ansible_collections.runbook.deploy.plugins.module_utils._gate import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    gate_result,
    once,
)
from ansible_collections.runbook.deploy.plugins.module_utils._gating import journal_of, require_passed
from ansible_collections.runbook.deploy.plugins.module_utils._http import (
    reads_only,
    run_checks,
    verify_placeholders,
)
from ansible_collections.runbook.deploy.plugins.module_utils._http_spec import Values, parse_checks
from ansible_collections.runbook.deploy.plugins.module_utils._http_transport import Target
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._waivers import parse_waivers, today, waive

Probe = Callable[[float], Sequence[dict[str, Any]]]
OPTIONS: dict[str, Any] = {
    "duration": {"type": "float", "default": 1800},
    "interval": {"type": "float", "default": 30},
    "initial_delay": {"type": "float", "default": 0},
    "failures": {"type": "int", "default": 3},
    "unknowns": {"type": "int", "default": 5},
    "timeout": {"type": "float", "default": 10},
    "checks": {"type": "list", "elements": "dict", "default": []},
    "headers": {"type": "dict", "default": {}},
    "gates": {"type": "list", "elements": "dict", "default": []},
    "waivers": {"type": "list", "elements": "dict", "default": []},
    "phase": {"type": "str", "default": "watch"},
    "record": {"type": "dict"},
    "before": {"type": "dict", "default": {}},
    **_gates.SHARED,
}
RULES: dict[str, Any] = {}


class Row:
    """What was seen of one check: how often it was asked, and for how long it has been wrong."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked = self.failed = self.unknown = 0
        self.failing = self.silent = self.longest = 0
        self.since = 0.0
        self.last: dict[str, Any] = {}
        self.wrong: dict[str, Any] = {}

    def take(self, check: dict[str, Any], at: float) -> None:
        """Count one answer; *at*: seconds since the watch began."""
        self.asked += 1
        self.last = check
        verdict = check["verdict"]
        if verdict == FAIL:
            self.since = at if not self.failing else self.since
            self.failed += 1
            self.failing += 1
        elif verdict == PASS:
            self.failing = 0
        # What could not be asked neither goes on with a row of failures nor ends it.
        self.unknown += verdict == INCONCLUSIVE
        self.silent = self.silent + 1 if verdict == INCONCLUSIVE else 0
        self.longest = max(self.longest, self.failing)
        if verdict != PASS:
            self.wrong = check

    def figures(self) -> dict[str, Any]:
        """Return the row for the answer; ``share`` is the part of what could be asked that passed, null for none."""
        told = self.asked - self.unknown
        return {
            "name": self.name,
            "asked": self.asked,
            "failed": self.failed,
            "inconclusive": self.unknown,
            "longest_failure": self.longest,
            "share": round((told - self.failed) / told, 4) if told else None,
        }


class Watch:
    """The rows of all checks, and what they come to."""

    def __init__(self, failures: int, unknowns: int) -> None:
        self.failures = failures
        self.unknowns = unknowns
        self.rows: dict[str, Row] = {}

    def take(self, checks: Sequence[dict[str, Any]], at: float) -> list[dict[str, Any]]:
        """Count one round; return the critical checks that trigger now, with their reason."""
        triggered = []
        for check in checks:
            row = self.rows.setdefault(check["name"], Row(check["name"]))
            row.take(check, at)
            if check["severity"] == "critical" and (
                row.failing >= self.failures or row.silent >= self.unknowns
            ):
                triggered.append(self.reason(row, at))
        return triggered

    def reason(self, row: Row, at: float) -> dict[str, Any]:
        """Return the last wrong answer of *row*, with how long it has been so."""
        check = row.wrong
        if row.failing >= self.failures:
            held = f"It failed {row.failing} times in a row, for {at - row.since:.0f} s."
            return {**check, "verdict": FAIL, "message": f"{check['message']} {held}"}
        return {**check, "message": f"{check['message']} It could not be asked {row.silent} times in a row."}

    def end(self) -> list[dict[str, Any]]:
        """Return each check as it is at the end of the time.

        A critical one that failed at last did not yet fail long enough to go back at once, but the window must not
        close over it; one that was never answered was never proved.
        """
        found = []
        for row in self.rows.values():
            last, figures = row.last, row.figures()
            told = f"{row.asked - row.failed - row.unknown} of {row.asked} passed; {last['observed']}"
            if last["verdict"] == PASS:
                found.append({**last, "observed": told, "watched": figures})
            else:
                message = f"{last['message']} It was so when the time was over."
                found.append({**last, "observed": told, "message": message, "watched": figures})
        return found


def watch(
    probe: Probe,
    *,
    duration: float,
    interval: float,
    failures: int,
    unknowns: int,
    initial_delay: float = 0.0,
    timeout: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Ask *probe* every *interval* seconds for *duration* seconds, or until a check triggers.

    :param probe: as in :func:`_gate.until`; each round gets *timeout* seconds, by which the watch may outlive its time.
    :return: the ``gate_result`` with ``attempts``, ``seconds``, ``reason`` and ``rows`` (``Row.figures``).
    :raises Problem: when a number makes no sense.
    """
    for name, value, least in (
        ("duration", duration, 0.001),
        ("interval", interval, 0.01),
        ("timeout", timeout, 0.01),
        ("initial_delay", initial_delay, 0),
        ("failures", failures, 1),
        ("unknowns", unknowns, 1),
    ):
        if not math.isfinite(value) or value < least:
            raise Problem(f"A watch needs {name} of at least {least:g}, found {value:g}.")
    sleep(initial_delay)
    begun = clock()
    seen = Watch(failures, unknowns)
    attempts = 0
    while True:
        asked = clock()
        attempts += 1
        round_ = once(probe, timeout)
        triggered = seen.take(round_, clock() - begun)
        if triggered:
            checks = triggered
            reason = f"Triggered after {clock() - begun:.0f} s of {duration:.0f} s."
            break
        pause = max(interval - (clock() - asked), 0.01)
        if clock() - begun + pause > duration:
            checks, reason = seen.end(), ""
            break
        sleep(pause)
    gate = gate_result(checks)
    return {
        **gate,
        "attempts": attempts,
        "seconds": round(clock() - begun, 3),
        "reason": reason,
        "rows": [row.figures() for row in seen.rows.values()],
    }


def nothing_asked() -> dict[str, Any]:
    """Return what :func:`watch` does where all that there is compares with a release before, and there was none."""
    reason = "There was nothing to watch: nothing of it could be compared with what was before."
    return {**gate_result([]), "attempts": 0, "seconds": 0.0, "reason": reason, "rows": []}


def perform(options: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    """Watch as *options* (see ``OPTIONS``) say, keep the journal, and return what :func:`watch` does.

    :param warn: called with a sentence for each check of lower severity that did not pass at the end.
    :raises Problem: when a check triggered or did not pass at the end, or an option is wrong.
    """
    probes: list[Probe] = []
    secrets = parse_environment(options["secrets"], "secrets")
    if options["checks"] and not options["address"]:
        raise Problem("The watch has checks and no address: give app_url.")
    if options["checks"]:
        target = Target(options["address"], None, None, options["headers"])
        checks = parse_checks(options["checks"])
        values = Values(options["placeholders"], secrets)
        for check in checks:
            verify_placeholders(check, values)
            if not reads_only(check):
                raise Problem(
                    f"{check.where} sends {check.method}: what is asked again and again may only read."
                )

        def ask(left: float) -> list[dict[str, Any]]:
            return run_checks(
                checks,
                target,
                placeholders=options["placeholders"],
                secrets=secrets,
                timeout=min(options["timeout"], left),
                deadline=left,
            )

        probes.append(ask)
    items = _gates.chosen(_gates.parse_gates(options["gates"]), "watch", True)
    if items:
        asked = {**options, "moment": "watch", "primary": True}
        probes.append(_gates.prober(asked, check_mode))
    if not probes:
        raise Problem(
            "There is nothing to watch: give app_url, or entries of app_gates with the moment watch."
        )
    waivers = parse_waivers(options["waivers"])
    together = _gates.together(probes)
    hidden = [*secrets.values(), *parse_environment(options["environment"], "environment").values()]
    with (
        journal_of(options, check_mode, hidden) as journal,
        journal.phase(options["phase"]) as entry,
    ):
        gate = (
            nothing_asked()
            if not together.anything
            else watch(
                lambda left: waive(together(left), waivers, today()),
                duration=options["duration"],
                interval=options["interval"],
                initial_delay=options["initial_delay"],
                failures=options["failures"],
                unknowns=options["unknowns"],
                timeout=options["timeout"],
            )
        )
        gate["not_asked"] = together.not_asked
        entry["gate"] = gate
        if not together.anything:
            warn(f"{gate['reason']} Left out: {', '.join(together.not_asked)}.")
        require_passed(gate, options["address"] or "this host", "fail", warn, not together.anything)
    return gate
