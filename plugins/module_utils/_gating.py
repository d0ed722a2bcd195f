# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every gate's module does around its probe: options, journal, the sentence of a failure.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._command import redact
from ansible_collections.runbook.deploy.plugins.module_utils._gate import (
    INCONCLUSIVE,
    PASS,
    gate_result,
    until,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._waivers import parse_waivers, today, waive

# Options of every gate; documented by the fragment `gate`.
GATE_OPTIONS: dict[str, Any] = {
    "successes": {"type": "int", "default": 1},
    "interval": {"type": "float", "default": 1.0},
    "deadline": {"type": "float", "default": 60.0},
    "patience": {"type": "float"},
    "on_no_data": {"type": "str", "choices": ["fail", "inconclusive"], "default": "fail"},
    "waivers": {"type": "list", "elements": "dict", "default": []},
    "root": {"type": "path"},
    "phase": {"type": "str", "default": "gate"},
    "record": {"type": "dict"},
}
EVIDENCE_LINES = 20
# Of the checks that did not pass, in the one sentence; the others are in the answer.
TOLD = 3


class Probe:
    """What a gate's ``prober`` returns where it may leave something out: called with the seconds left, as ``_gate.until`` does.

    :param ask: the same call; :param not_asked: names of the checks that are left out, in check mode.
    :param anything: whether a check remains that is asked.
    """

    def __init__(
        self,
        ask: Callable[[float], Sequence[dict[str, Any]]],
        not_asked: Iterable[str] = (),
        anything: bool = True,
    ) -> None:
        self.ask = ask
        self.not_asked = list(not_asked)
        self.anything = anything

    def __call__(self, left: float) -> Sequence[dict[str, Any]]:
        """Ask."""
        return self.ask(left)


def hidden(result: Mapping[str, Any], secrets: Iterable[str]) -> dict[str, Any]:
    """Return *result*, a ``_gate.check_result``, without *secrets* in its texts.

    Its name, verdict and severity are none: a variable such as ``LOG_LEVEL: critical`` must not make a check one that
    stops nothing, and by its name it is waived and compared.
    """
    known, kept = list(secrets), [repr(result["name"])]
    return {
        key: redact(value, known, kept)
        if isinstance(value, str) and key not in ("name", "verdict", "severity")
        else value
        for key, value in result.items()
    }


def _begin(gate: Mapping[str, Any], place: str) -> str:
    return f"The gate on {place} did not pass ({gate['verdict']})."


def sentence(gate: Mapping[str, Any], place: str) -> str:
    """Return why *gate* did not pass: every critical check by name, the first few with all that is known."""
    wrong = [
        check for check in gate["checks"] if check["verdict"] != PASS and check["name"] in gate["failing"]
    ] or [check for check in gate["checks"] if check["verdict"] != PASS]
    begin = f"{_begin(gate, place)} {gate.get('reason', '')}".strip()
    told = " ".join(check["message"] for check in wrong[:TOLD])
    others = ", ".join(repr(check["name"]) for check in wrong[TOLD:])
    return " ".join(filter(None, [begin, f"Others that did not pass: {others}." if others else "", told]))


def require_passed(
    gate: Mapping[str, Any], place: str, on_no_data: str, warn: Callable[[str], None], tolerate: bool = False
) -> None:
    """Judge the end of a gate; those of lower severity that did not pass are told to *warn*.

    :param on_no_data: ``fail`` or ``inconclusive``; *tolerate*: there was nothing that could have been asked.
    :raises Problem: when *gate* did not pass, with all of it.
    """
    tolerated = gate["verdict"] == INCONCLUSIVE and (on_no_data != "fail" or tolerate)
    if not gate["passed"] and not tolerated:
        lines = [check["message"] for check in gate["checks"] if check["verdict"] != PASS]
        problem = Problem(sentence(gate, place), "\n".join(lines[:EVIDENCE_LINES]), **gate)
        # What is not a value of anybody: the record's own hiding of secrets would take the verdict and the names away.
        problem.kept = [_begin(gate, place), *(repr(check["name"]) for check in gate["checks"])]
        raise problem
    for check in gate["checks"]:
        if check["name"] in gate["degraded"] and check["verdict"] != PASS:
            warn(check["message"])


class Unkept(contextlib.nullcontext):
    """The journal of a gate that has no record."""

    def __enter__(self) -> Unkept:
        return self

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[dict[str, Any]]:
        """Take what would be written."""
        del name
        yield {}


def journal_of(options: Mapping[str, Any], check_mode: bool, secrets: Iterable[str] = ()) -> Any:
    """Return the journal that *options* name; the gate's phase in it is ``options["phase"]``."""
    if not options["record"]:
        return Unkept()
    # Only here: the gate of a smoke test, which has none, does not pay for the import.
    from ansible_collections.runbook.deploy.plugins.module_utils._record import open_journal

    return open_journal(options["root"], options["record"], check_mode, secrets)


def conduct(
    options: Mapping[str, Any],
    probe: Callable[[float], Sequence[dict[str, Any]]],
    place: str,
    *,
    check_mode: bool,
    warn: Callable[[str], None],
    secrets: Iterable[str] = (),
) -> dict[str, Any]:
    """Ask *probe* as *options* say (see ``GATE_OPTIONS``), keep the journal, and return the gate.

    :param probe: as in :func:`_gate.until`, or a :class:`Probe`; :param place: what the gate is on, in words.
    :return: the gate; of a :class:`Probe` with ``not_asked``, the names of what is left out in check mode.
    :raises Problem: when the gate does not pass.
    """
    not_asked = list(getattr(probe, "not_asked", ()))
    nothing = bool(not_asked) and not getattr(probe, "anything", True)
    waivers = parse_waivers(options["waivers"])
    with (
        journal_of(options, check_mode, secrets) as journal,
        journal.phase(options["phase"]) as entry,
    ):
        if nothing:
            reason = "Nothing of it is asked in check mode."
            gate = {**gate_result([]), "attempts": 0, "streak": 0, "seconds": 0.0, "reason": reason}
        else:
            gate = until(
                lambda left: waive(probe(left), waivers, today()),
                successes=options["successes"],
                interval=options["interval"],
                deadline=options["deadline"],
                patience=options["patience"],
            )
        if isinstance(probe, Probe):
            gate["not_asked"] = not_asked
        entry["gate"] = gate
        require_passed(gate, place, options["on_no_data"], warn, nothing)
    return gate
