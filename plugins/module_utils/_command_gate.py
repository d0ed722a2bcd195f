# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gate of commands: tests, linters, smoke scripts, several at the same time.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import pwd
import shlex
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._bounded import (
    KILL_GRACE,
    TERM_GRACE,
    Ended,
    Unrunnable,
    excerpt,
    run_bounded,
)
from ansible_collections.runbook.deploy.plugins.module_utils._command import parse_environment, secret
from ansible_collections.runbook.deploy.plugins.module_utils._command_spec import (
    Check,
    expected_of,
    judge,
    parse_check,
)
from ansible_collections.runbook.deploy.plugins.module_utils._gate import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    check_result,
    gate_result,
)
from ansible_collections.runbook.deploy.plugins.module_utils._gating import (
    GATE_OPTIONS,
    Probe,
    conduct,
    hidden,
)
from ansible_collections.runbook.deploy.plugins.module_utils._parallel import in_parallel
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

__all__ = ["OPTIONS", "RULES", "parse_check", "perform", "prober"]

OPTIONS: dict[str, Any] = {
    **GATE_OPTIONS,
    "checks": {"type": "list", "elements": "dict", "required": True},
    "chdir": {"type": "path"},
    "environment": {"type": "str", "no_log": True},
    "user": {"type": "str"},
    "parallel": {"type": "int", "default": 4},
    "timeout": {"type": "float"},
}
RULES: dict[str, Any] = {}
# A command that had nearly all of its time and did not end is at fault; with less, the gate is.
NEARLY = 0.9


class Surroundings(NamedTuple):
    """Where the commands run: ``timeout`` in seconds, ``hidden`` are texts to leave out of all that is shown."""

    chdir: str | None
    environment: dict[str, str]
    user: str | None
    timeout: float
    hidden: list[str]


def prober(options: Mapping[str, Any], check_mode: bool) -> Probe:
    """Return what runs the commands of *options*; it is given the seconds that are left.

    A command without ``retry`` is not run again because another one did not pass; where nothing but such did not pass, the
    gate is over.

    :param check_mode: run only what is declared harmless.
    :raises Problem: when a check is not well written.
    """
    if options["parallel"] < 1:
        raise Problem(f"parallel must be at least 1, found {options['parallel']}.")
    if options["timeout"] is not None and options["timeout"] <= 0:
        raise Problem(f"timeout must be a number of seconds above 0, found {options['timeout']}.")
    checks = [parse_check(item, f"checks[{index}]") for index, item in enumerate(options["checks"])]
    not_asked = [check.name for check in checks if check_mode and not check.harmless]
    checks = [check for check in checks if check.harmless or not check_mode]
    environment = parse_environment(options["environment"], "environment")
    shown = [options["chdir"], *(check.chdir for check in checks)]
    around = Surroundings(
        options["chdir"],
        environment,
        options["user"],
        options["timeout"] or options["deadline"],
        secret(environment.values(), filter(None, shown)),
    )
    kept: dict[int, dict[str, Any]] = {}

    def task(check: Check) -> Callable[[float], dict[str, Any]]:
        return lambda limit: run_check(check, around, limit)

    def probe(left: float) -> list[dict[str, Any]]:
        asked = [index for index in range(len(checks)) if index not in kept]
        names = [(checks[index].name, checks[index].common.severity) for index in asked]
        limit = time.monotonic() + left
        found = in_parallel([task(checks[index]) for index in asked], names, limit, options["parallel"])
        kept.update(zip(asked, found))
        results = [kept[index] for index in range(len(checks))]
        whole = gate_result(results)["passed"]
        for index, check in enumerate(checks):
            # Another success in a row needs another run of all of them.
            if whole or check.retry:
                kept.pop(index, None)
        return results

    return Probe(probe, not_asked, bool(checks))


def run_check(check: Check, around: Surroundings, limit: float) -> dict[str, Any]:
    """Run one command and judge it; *limit* is the reading of ``time.monotonic()`` at which it must be over."""
    begun = time.monotonic()
    chdir = check.chdir or around.chdir or "/"
    own = check.common.timeout or around.timeout
    allowed = min(own, limit - begun - TERM_GRACE)
    ended: Ended | None = None
    observed = ""
    cut = allowed <= 0
    if cut:
        verdict, found = INCONCLUSIVE, "no time was left to run it: raise the deadline"
    else:
        try:
            ended = run_bounded(
                check.argv, cwd=chdir, environment=around.environment, user=around.user, timeout=allowed
            )
        except Unrunnable as error:
            verdict, found = INCONCLUSIVE, f"{error.text}: install or correct it"
        else:
            observed = described(ended)
            verdict, found = _verdict(check, ended, allowed, own)
            cut = ended.timed_out and verdict == INCONCLUSIVE
    expected = expected_of(check)
    again = repeat(check, chdir, around.user)
    message = ""
    if verdict != PASS:
        end = "failed" if verdict == FAIL else "could not be asked" if ended is None else "cannot be judged"
        message = f"Check {check.name!r} {end}: {again}: expected {expected}, but {found}."
        message += f" Output: {observed}" if observed else ""
    result = check_result(
        check.name,
        verdict,
        check.common.severity,
        observed or found,
        expected,
        message,
        time.monotonic() - begun,
        repeat=again,
        exit_code=None if ended is None or ended.timed_out else ended.rc,
        **({"cut_short": True} if cut else {} if check.retry or verdict == PASS else {"final": True}),
    )
    return hidden(result, around.hidden)


def _verdict(check: Check, ended: Ended, allowed: float, own: float) -> tuple[str, str]:
    """Return the verdict on a command that was run, and what was found otherwise than expected."""
    if ended.timed_out:
        killed = f"it had not ended after {allowed:.1f} s and was killed with all that it had started"
        if allowed >= NEARLY * own - (TERM_GRACE + KILL_GRACE):
            return FAIL, f"{killed}: find out what it waits for, or raise its timeout"
        return INCONCLUSIVE, f"{killed}, because the gate's time was up: raise the deadline"
    judgement = judge(check, ended)
    if judgement.wrong:
        return FAIL, "; ".join(judgement.wrong)
    if judgement.unknown:
        return INCONCLUSIVE, "; ".join(judgement.unknown)
    return PASS, ""


def described(ended: Ended) -> str:
    """Return how a command ended, with the first and last lines of its output."""
    end = "killed at its time limit" if ended.timed_out else f"exit code {ended.rc}"
    lines = [f"{end} after {ended.seconds:.2f} s"]
    for name, output in (("stdout", ended.stdout), ("stderr", ended.stderr)):
        if text := excerpt(output.text()):
            lines.append(f"{name}:\n{text}")
    return "\n".join(lines)


def repeat(check: Check, chdir: str, user: str | None) -> str:
    """Return the command that does the same by hand; the environment's values are not in it."""
    words = list(check.argv)
    if user and _other(user):
        words = ["sudo", "-u", user, "--", *words]
    return f"cd {shlex.quote(chdir)} && {shlex.join(words)}"


def _other(user: str) -> bool:
    try:
        return pwd.getpwnam(user).pw_uid != os.geteuid()
    except KeyError:
        return True


def perform(options: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    """Run the gate that *options* (see ``OPTIONS``) describe and return it.

    :raises Problem: when it does not pass, or an option is wrong.
    """
    environment = parse_environment(options["environment"], "environment")
    return conduct(
        options,
        prober(options, check_mode),
        "commands of this host",
        check_mode=check_mode,
        warn=warn,
        secrets=environment.values(),
    )
