# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run looks like from outside: what each step observed, what is running, and how it ended. No output is made here.

This plugin util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._report import host_sentence

LONGEST = 160
HIDDEN = "(hidden by no_log)"
UNDECIDED = "none: the run ended before one was made"


def _line(text: Any) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= LONGEST else f"{words[: LONGEST - 3]}..."


def _checks(checks: Any) -> str:
    """Return in words how the checks of a gate went."""
    passed = [check for check in checks if check.get("verdict") == "pass"]
    if len(passed) == len(checks) == 1:
        return f"{checks[0].get('name')}: {checks[0].get('observed')}"
    others = [str(check.get("name")) for check in checks if check.get("verdict") != "pass"]
    return f"{len(passed)} of {len(checks)} checks passed" + (f", not {', '.join(others)}" if others else "")


def _named(key: str, words: str) -> Any:
    """Return a function that says *words* and the member *key* of a mapping; "" where it has none."""

    def say(found: Any) -> str:
        value = found.get(key) if isinstance(found, Mapping) else None
        return f"{words} {value}".strip() if value else ""

    return say


# What a module's answer says of itself where it has no message: {member: how it is put in words}.
SAID: dict[str, Any] = {
    "checks": _checks,
    "backup": _named("id", "backup"),
    "restored": lambda found: f"restored {found}" if isinstance(found, str) else "",
    "applied": lambda found: f"{len(found)} migrations applied" if isinstance(found, list) else "",
    "wanted": _named("release", "release"),
    "release": _named("name", "release"),
    "state": host_sentence,
    "plan": _named("level", "decision:"),
    "record": _named("id", "record"),
    "unsent": lambda found: f"not told: {', '.join(one['name'] for one in found)}",
    "sent": lambda found: f"told: {', '.join(found)}",
}


def observed(answer: Mapping[str, Any]) -> str:
    """Return in one line what a step observed; "" where its *answer* says nothing of it."""
    if "censored" in answer:
        return HIDDEN
    for key in ("message", "msg"):
        if isinstance(answer.get(key), str) and answer[key].strip():
            return _line(answer[key])
    for key, say in SAID.items():
        if answer.get(key):
            try:
                words = say(answer[key])
            except (AttributeError, KeyError, TypeError):
                # A module of others has a member of that name with something else in it.
                continue
            if words:
                return _line(words)
    return ""


def reason(answer: Mapping[str, Any]) -> list[str]:
    """Return why a task failed, as lines: its sentence, and what proves it, or the end of what an unexpected end left."""
    if "censored" in answer:
        return [f"it failed, and its answer is hidden {HIDDEN}"]
    lines = str(answer.get("msg") or "it failed without a message").strip().splitlines()
    proof = answer.get("evidence") or answer.get("module_stderr") or ""
    return lines + str(proof).strip().splitlines()[-20:]


def seconds(took: float | None) -> str:
    """Return a time as it is shown; "" where it is not known."""
    if took is None:
        return ""
    return f"{took:.1f} s" if took < 60 else f"{int(took) // 60} min {int(took) % 60:02d} s"


class Run:
    """What is known of the run until now; the members that are read by a second thread are behind a lock."""

    def __init__(self) -> None:
        self.phase = ""
        self.done = 0
        self._begun = time.monotonic()
        self._failures: list[tuple[str, str, str]] = []
        self._outcome: Mapping[str, Any] = {}
        self._lock = threading.Lock()
        # (host, task): [name or "", begin, begin of the present item, attempts]
        self._running: dict[tuple[str, str], list[Any]] = {}

    @staticmethod
    def step_name(name: str) -> str:
        """Return the name of a task without that of its role."""
        return name.rpartition(" : ")[2].strip()

    def begin(self, host: str, task: str, name: str) -> None:
        """Take note that a task begins on a host; without a *name* it is not shown as running."""
        now = time.monotonic()
        with self._lock:
            self._running[host, task] = [self.step_name(name), now, now, 1]

    def end(self, host: str, task: str) -> float | None:
        """Return the seconds that a task took on a host; None where its begin was not seen."""
        with self._lock:
            found = self._running.pop((host, task), None)
        return time.monotonic() - found[1] if found else None

    def lap(self, host: str, task: str) -> float | None:
        """Return the seconds since the begin of the task, or since its item before."""
        now = time.monotonic()
        with self._lock:
            found = self._running.get((host, task))
            if not found:
                return None
            took, found[2] = now - found[2], now
        return took

    def attempt(self, host: str, task: str, number: Any) -> None:
        """Take note that a task is tried again."""
        with self._lock:
            if (host, task) in self._running and isinstance(number, int):
                self._running[host, task][3] = number + 1

    def running(self) -> str:
        """Return in words what has been running the longest, where, and for how long; "" for nothing."""
        with self._lock:
            found = [
                (entry[1], host, entry[0], entry[3])
                for (host, _t), entry in self._running.items()
                if entry[0]
            ]
        if not found:
            return ""
        begun, _host, name, attempts = min(found)
        hosts = sorted(host for _b, host, step, _a in found if step == name)
        where = ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else "")
        phase = f"{self.phase}: " if self.phase else ""
        again = f", attempt {attempts}" if attempts > 1 else ""
        return f"{int(time.monotonic() - begun)} s  {phase}{name} on {where}{again}"

    def fail(self, step: str, host: str, text: str) -> None:
        """Take note of a failure."""
        self._failures.append((step, host, text))

    def note(self, answer: Mapping[str, Any]) -> None:
        """Take note of what the role ``rollback`` says of the end."""
        facts = answer.get("ansible_facts")
        outcome = facts.get("rollback_outcome") if isinstance(facts, Mapping) else None
        if isinstance(outcome, Mapping):
            self._outcome = outcome

    def summary(self, failed: bool) -> str:
        """Return the line that ends the list."""
        took = seconds(time.monotonic() - self._begun)
        return f"{'FAILED' if failed else 'DONE'} after {took}: {self.done} steps done, {len(self._failures)} failed."

    def ending(self, following: str) -> list[tuple[str, str]]:
        """Return the last lines of a run that failed: reason, decision and the next commands, at least *following*."""
        plan = self._outcome.get("plan") or {}
        failures = self._outcome.get("failures") or []
        if failures:
            first = failures[0]
            why = f"{first.get('phase')} on {first.get('host')}: {str(first.get('reason') or '').strip()}"
        elif self._failures:
            # Those before may have been rescued, or be of hosts that the run went on without: the last one has ended it.
            why = "{} on {}: {}".format(*self._failures[-1])
        else:
            why = "a host did not answer"
        decision = f"{plan['level']}: {plan.get('reason', '')}" if plan.get("level") else UNDECIDED
        if self._outcome.get("verdict") == "refused":
            decision = "refused: nothing was changed"
        commands = plan.get("commands") or [following]
        return [
            ("reason", _line(why)),
            ("decision", _line(decision)),
            *(("next", command) for command in commands),
        ]
