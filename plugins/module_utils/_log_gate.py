# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gate of logs: what a file or a journal has since it was marked.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _log_files, _log_journal, _log_tail
from ansible_collections.runbook.deploy.plugins.module_utils._bounded import KILL_GRACE, TERM_GRACE
from ansible_collections.runbook.deploy.plugins.module_utils._command import parse_environment
from ansible_collections.runbook.deploy.plugins.module_utils._gate import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    check_result,
)
from ansible_collections.runbook.deploy.plugins.module_utils._gating import GATE_OPTIONS, conduct, hidden
from ansible_collections.runbook.deploy.plugins.module_utils._log_files import Unread
from ansible_collections.runbook.deploy.plugins.module_utils._log_spec import (
    Check,
    Tally,
    expected_of,
    parse_check,
)
from ansible_collections.runbook.deploy.plugins.module_utils._log_tail import Tail
from ansible_collections.runbook.deploy.plugins.module_utils._parallel import in_parallel
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

__all__ = ["OPTIONS", "RULES", "parse_check", "perform", "prober"]

MARK, JUDGE = "mark", "judge"
OPTIONS: dict[str, Any] = {
    **GATE_OPTIONS,
    "checks": {"type": "list", "elements": "dict", "required": True},
    "state": {"type": "str", "choices": [MARK, JUDGE], "default": JUDGE},
    "cursors": {"type": "dict", "default": {}},
    "duration": {"type": "float", "default": 0.0},
    "accumulate": {"type": "bool", "default": False},
    "secrets": {"type": "str", "no_log": True},
    "timeout": {"type": "float", "default": 30.0},
}
RULES: dict[str, Any] = {}
# Seconds between two looks while a log is followed.
POLL = 0.25
# Kept of the time for a child to end, and for what is in memory to be judged.
ENDING = TERM_GRACE + KILL_GRACE


class Follower:
    """One log that is read from its mark on.

    :param cursor: where to begin; None: at the end, when it is first asked, where that is wanted.
    """

    def __init__(self, check: Check, options: Mapping[str, Any], cursor: Any) -> None:
        self.check = check
        self.duration = float(options["duration"])
        self.accumulate = bool(options["accumulate"])
        self.timeout = check.common.timeout or float(options["timeout"])
        self.given = cursor
        self._tail: Tail | None = None
        self._restart()

    def _restart(self) -> None:
        self._tail = None
        self.tally = Tally(self.check)
        # What could not be read of what was written stays unknown, also when all that follows was read.
        self._missing = ""

    def mark(self, limit: float) -> dict[str, Any]:
        """Return a cursor for the end of the log.

        :raises Unread: when it cannot be read.
        """
        return _log_tail.mark(self.check, limit)

    def ask(self, limit: float) -> dict[str, Any]:
        """Read what was written since the mark, and judge it; *limit* is the latest end (``time.monotonic()``)."""
        begun = time.monotonic()
        until = begun + self.duration
        limit = min(limit - ENDING, until + self.timeout)
        unread = ""
        try:
            tail = self._tail if self.accumulate else None
            if tail is None:
                self._restart()
                tail = self._tail = Tail(self.check, self.tally, self._begin(limit))
            self._follow(tail, until, limit)
        except Unread as error:
            unread = error.text
        return self._result(begun, self._missing or unread)

    def _begin(self, limit: float) -> dict[str, Any]:
        where = f"the cursor of {self.check.name!r}"
        if self.given is None:
            if not self.duration and not self.accumulate:
                raise Unread(
                    "there is no cursor of it: mark it before what is to be judged (state: mark), or give a duration"
                )
            return self.mark(limit)
        if self.check.path is None:
            return _log_journal.require_cursor(self.given, where)
        found = _log_files.require_cursor(self.given, where)
        if found["path"] != self.check.path:
            raise Unread(f"{where} is that of {found['path']}")
        return found

    def _follow(self, tail: Tail, until: float, limit: float) -> None:
        while True:
            last = time.monotonic() >= min(until, limit)
            final = last and not self.accumulate
            missing = tail.read(limit, final)
            self._missing = self._missing or missing
            if final:
                tail.end()
            # What is proved wrong does not become right by waiting.
            if last or self._missing or self.tally.wrong(False, tail.pending()):
                return
            time.sleep(max(0.0, min(POLL, until - time.monotonic(), limit - time.monotonic())))

    def _result(self, begun: float, missing: str) -> dict[str, Any]:
        # Also what may go on is counted.
        if self._tail is not None:
            self._tail.end()
        tally = self.tally
        wrong = tally.wrong(not missing)
        # Of what was not read whole, a number that suffices already needs nothing more.
        verdict = FAIL if wrong else INCONCLUSIVE if missing and (tally.open() or not tally.entries) else PASS
        return self._told(verdict, wrong, missing, begun)

    def _told(self, verdict: str, wrong: list[int], missing: str, begun: float) -> dict[str, Any]:
        check, tally = self.check, self.tally
        expected = expected_of(check)
        again = self.repeat()
        evidence = tally.evidence(wrong)
        observed = tally.described()
        message = ""
        if verdict == FAIL:
            found = ", ".join(f"{check.counts[index].label} {tally.numbers[index]}" for index in wrong)
            first = f" First: {evidence[0].strip()}." if evidence else ""
            message = f"Check {check.name!r} failed: {check.place}: expected {expected}, but found {found}.{first} Repeat: {again}"
        elif verdict == INCONCLUSIVE:
            message = f"Check {check.name!r} cannot be judged: {check.place}: expected {expected}, but {missing}. Repeat: {again}"
        # What was written stays written; what is missing may still come.
        final = bool(tally.wrong(False)) or (self.given is None and not self.duration and not self.accumulate)
        return check_result(
            check.name,
            verdict,
            check.common.severity,
            "\n".join([missing if missing and not tally.entries else observed, *evidence]),
            expected,
            message,
            time.monotonic() - begun,
            repeat=again,
            counts={count.label: found for count, found in zip(check.counts, tally.numbers)},
            **({"final": True} if final and verdict != PASS else {}),
        )

    def repeat(self) -> str:
        """Return the command that shows by hand what was read."""
        return _log_tail.repeat(self.check, self.given)

    def marked(self, limit: float) -> dict[str, Any]:
        """Return the result of marking the log, with its ``cursor``."""
        begun = time.monotonic()
        expected = "a log that can be read"
        try:
            cursor = self.mark(min(limit - ENDING, begun + self.timeout))
        except Unread as error:
            advice = (
                " (absent: true takes one that is not there yet)"
                if self.check.path and not os.path.exists(self.check.path)
                else ""
            )
            message = (
                f"Check {self.check.name!r} cannot be marked: {error.text}{advice}. Repeat: {self.repeat()}"
            )
            verdict, observed, extra = INCONCLUSIVE, error.text, {}
        else:
            verdict, message, extra = PASS, "", {"cursor": cursor}
            observed = (
                "not there yet"
                if cursor.get("absent")
                else f"marked at {cursor.get('offset', cursor.get('cursor'))}"
            )
        name, severity = self.check.name, self.check.common.severity
        return check_result(
            name,
            verdict,
            severity,
            observed,
            expected,
            message,
            time.monotonic() - begun,
            repeat=self.repeat(),
            **extra,
        )


def prober(options: Mapping[str, Any], check_mode: bool) -> Callable[[float], list[dict[str, Any]]]:
    """Return what marks or judges the logs of *options*; it is given the seconds that are left. It only reads.

    With ``accumulate`` each call reads what came since the one before, and judges all of it together; a watch asks so.

    :raises Problem: when a check is not well written.
    """
    checks = [parse_check(item, f"checks[{index}]") for index, item in enumerate(options["checks"])]
    names: set[str] = set()
    for index, check in enumerate(checks):
        if check.name in names:
            raise Problem(
                f"checks[{index}].name {check.name!r} is that of another check: give each a name of its own."
            )
        names.add(check.name)
        if options["accumulate"] and any(count.condition and not count.allowing for count in check.counts):
            raise Problem(
                f"{check.common.where}.required cannot be watched: at first nothing is there; judge it once."
            )
    duration, timeout = options["duration"], options["timeout"]
    if not (math.isfinite(duration) and duration >= 0 and math.isfinite(timeout) and timeout > 0):
        raise Problem(
            f"duration must be at least 0 seconds and timeout above 0, found {duration} and {timeout}."
        )
    if duration >= options["deadline"]:
        raise Problem(
            f"duration is {duration:g} s, but the deadline is {options['deadline']:g} s: raise the deadline."
        )
    cursors = options["cursors"] or {}
    secrets = list(parse_environment(options["secrets"], "secrets").values())
    followers = [Follower(check, options, cursors.get(check.name)) for check in checks]
    known = [(check.name, check.common.severity) for check in checks]

    def task(one: Follower) -> Callable[[float], dict[str, Any]]:
        def run(limit: float) -> dict[str, Any]:
            return hidden(one.marked(limit) if options["state"] == MARK else one.ask(limit), secrets)

        return run

    def probe(left: float) -> list[dict[str, Any]]:
        tasks = [task(one) for one in followers]
        return in_parallel(tasks, known, time.monotonic() + left, max(1, len(tasks)))

    return probe


def perform(options: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    """Run the gate that *options* (see ``OPTIONS``) describe and return it, with ``cursors`` by check.

    :raises Problem: when it does not pass, or an option is wrong.
    """
    gate = conduct(
        options,
        prober(options, check_mode),
        "logs of this host",
        check_mode=check_mode,
        warn=warn,
        secrets=parse_environment(options["secrets"], "secrets").values(),
    )
    return {
        **gate,
        "cursors": {check["name"]: check["cursor"] for check in gate["checks"] if "cursor" in check},
    }
