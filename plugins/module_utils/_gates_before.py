# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a deployment remembers before it begins, for gates that compare with it afterwards.

Logs are marked, values are measured for conditions on a baseline, and checks of HTTP with ``compare`` are asked. A first
deployment has nothing to compare with: only logs are marked then, and conditions on a baseline are left out.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils import _http_gate, _log_gate, _metrics_gate
from ansible_collections.runbook.deploy.plugins.module_utils._gate import INCONCLUSIVE, PASS
from ansible_collections.runbook.deploy.plugins.module_utils._gating import Probe
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

PREFLIGHT = "preflight"
# What is different with each release; nothing that names it can be the same before.
OF_RELEASE = re.compile(r"\{(?:commit|release|version|deployment)\}")
LOG, METRICS, HTTP = "log", "metrics", "http"


class Before(NamedTuple):
    """What was remembered: ``cursors`` by log check, values ``measured`` by ``check.value``, results of HTTP ``checks`` with
    ``name``, ``verdict`` and ``observed``; ``first``: nothing was live then."""

    cursors: dict[str, Any]
    measured: dict[str, Any]
    checks: list[dict[str, Any]]
    first: bool


def read(given: Any) -> Before:
    """Return *given*, what ``remembered`` returned, or nothing.

    :raises Problem: when it is something else.
    """
    found = given or {}
    right = isinstance(found, Mapping) and all(
        isinstance(found.get(name, empty), type(empty))
        for name, empty in (("cursors", {}), ("measured", {}), ("checks", []), ("first", False))
    )
    if not right:
        raise Problem("before must be what this module returned as before at the moment preflight.")
    return Before(
        dict(found.get("cursors", {})),
        dict(found.get("measured", {})),
        [dict(item) for item in found.get("checks", []) if isinstance(item, Mapping)],
        found.get("first", False),
    )


def compares(kind: str, parsed: Any) -> bool:
    """Return whether a check needs something from before the deployment; *parsed* as its kind reads it."""
    if kind == METRICS:
        return any(item.baseline for item in (*parsed.required, *parsed.triggers))
    return kind == LOG or (kind == HTTP and parsed.compare)


def verify(kind: str, parsed: Any, moments: Sequence[str], where: str) -> None:
    """Refuse what could only be found out when the new release serves already.

    :raises Problem: when a check can never be judged at one of its *moments*.
    """
    if not compares(kind, parsed):
        return
    if kind != HTTP and PREFLIGHT in moments:
        raise Problem(
            f"{where}.moments has preflight, but it judges what came after the deployment's begin: use smoke_test or watch."
        )
    if (
        kind == LOG
        and "watch" in moments
        and any(count.condition and not count.allowing for count in parsed.counts)
    ):
        raise Problem(
            f"{where}.required cannot be watched: at first nothing is there; judge it at the moment smoke_test."
        )
    if kind == HTTP and OF_RELEASE.search(parsed.asserted() + str(parsed.url)):
        raise Problem(
            f"{where}.compare would excuse every failure: a check that names the release or its commit fails before each deployment."
        )


def reduced(check: Mapping[str, Any], baseline: bool) -> dict[str, Any] | None:
    """Return a *check* of the kind ``metrics`` with those conditions only that have a baseline, or with the others; None
    where none is left."""
    parsed = _metrics_gate.parse_check(check, "checks[0]")
    found = {key: value for key, value in check.items() if key not in ("require", "trigger")}
    left = False
    for key, thresholds in (("require", parsed.required), ("trigger", parsed.triggers)):
        given = check.get(key)
        texts = given if isinstance(given, list) else [] if given is None else [given]
        kept = [text for text, one in zip(texts, thresholds) if one.baseline is baseline]
        if kept:
            found[key] = kept
            left = True
    return found if left else None


def probes(
    wanted: Sequence[tuple[str, Mapping[str, Any]]],
    given: Callable[[str], dict[str, Any]],
    check_mode: bool,
    first: bool,
) -> list[Any]:
    """Return what marks, measures and asks before the deployment begins.

    :param wanted: kind and check of each that compares; :param given: returns the options of a kind without ``checks``.
    :param first: nothing is live.
    :raises Problem: when a check is not well written.
    """
    found: list[Any] = []
    logs = [dict(check) for kind, check in wanted if kind == LOG]
    if logs:
        found.append(
            once(_log_gate.prober({**given(LOG), "checks": logs, "state": _log_gate.MARK}, check_mode))
        )
    if first:
        return found
    measured = [reduced(check, True) for kind, check in wanted if kind == METRICS]
    if measured:
        # What a new release needs for its start the present one does not.
        checks = [{**check, "initial_delay": 0} for check in measured if check]
        found.append(
            _metrics_gate.prober(
                {**given(METRICS), "checks": checks, "measure": True, "accumulate": False}, check_mode
            )
        )
    asked = [dict(check) for kind, check in wanted if kind == HTTP]
    if asked:
        found.append(noted(_http_gate.prober({**given(HTTP), "checks": asked}, check_mode)))
    return found


def once(ask: Callable[[float], Sequence[dict[str, Any]]]) -> Probe:
    """Return *ask* with results that nobody waits for: a log that cannot be read now cannot be read in a minute."""
    return Probe(
        lambda left: [
            result if result["verdict"] == PASS else {**result, "final": True} for result in ask(left)
        ]
    )


def noted(ask: Callable[[float], Sequence[dict[str, Any]]]) -> Probe:
    """Return *ask* with results that stop nothing: ``was`` has the verdict, which excuses the same failure afterwards."""

    def probe(left: float) -> list[dict[str, Any]]:
        found = []
        for result in ask(left):
            verdict, severity = result["verdict"], result["severity"]
            note = {**result, "was": verdict, "severity": "degraded" if severity == "critical" else severity}
            if verdict != INCONCLUSIVE:
                shown = f"{'it passes' if verdict == PASS else 'it fails'} before the deployment: {result['observed']}"
                note.update({"verdict": PASS, "message": "", "observed": shown})
            found.append(note)
        return found

    return Probe(probe, getattr(ask, "not_asked", ()), getattr(ask, "anything", True))


def remembered(
    checks: Sequence[Mapping[str, Any]], names: Sequence[tuple[str, str]], first: bool
) -> dict[str, Any]:
    """Return what ``read`` takes.

    :param checks: results of ``probes``, and others; :param names: kind and name of those that compare.
    """
    by_kind = {kind: [name for own, name in names if own == kind] for kind in (LOG, METRICS, HTTP)}
    return {
        "cursors": {
            check["name"]: check["cursor"]
            for check in checks
            if check["name"] in by_kind[LOG] and "cursor" in check
        },
        "measured": _metrics_gate.values_of([check for check in checks if check["name"] in by_kind[METRICS]]),
        "checks": [
            {
                "name": check["name"],
                "verdict": check.get("was", check["verdict"]),
                "observed": check["observed"],
            }
            for check in checks
            if check["name"] in by_kind[HTTP]
        ],
        "first": first,
    }


def told(
    ask: Callable[[float], Sequence[dict[str, Any]]], checks: Sequence[Mapping[str, Any]], before: Before
) -> Probe:
    """Return *ask*, of the kind ``http``, with old faults told from new ones; *checks* as they are written."""
    parsed = {}
    for check in checks:
        one = _http_gate.parse_check(check, "checks[0]")
        if one.compare:
            parsed[one.name] = one

    def probe(left: float) -> list[dict[str, Any]]:
        found = []
        for result in ask(left):
            own = parsed.get(result["name"])
            found += _http_gate.told_from_before([own], [result], before.checks) if own else [result]
        return found

    return Probe(probe, getattr(ask, "not_asked", ()), getattr(ask, "anything", True))
