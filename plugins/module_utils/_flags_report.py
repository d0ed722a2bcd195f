# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of feature flags: each flag, its value on every host, the stage that the values are. Pure.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._flags_spec import (
    Flags,
    all_off,
    shown,
    stage_of,
)

OTHER = "none"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return *rows* as lines whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def report(
    flags: Flags,
    title: str,
    answers: Mapping[str, Mapping[str, Any]],
    failures: Mapping[str, str],
    switched: str,
    seconds: float,
    check_mode: bool,
    left_out: Sequence[str] = (),
) -> list[str]:
    """Return the lines that an operator reads.

    :param answers: what ``feature_flags`` answered on each host; *failures*: why it failed, a sentence for each host.
    :param switched: what was asked for, "" when the flags are only shown; *seconds*: since the run began.
    :param left_out: hosts that took no part.
    """
    read = {host: answer for host, answer in answers.items() if answer.get("flags")}
    lines = [f"feature flags of {title}{', as they would be' if check_mode and switched else ''}"]
    if read:
        shared = any(answer.get("shared") for answer in read.values())
        columns = [{name: found["flags"].get(name) for name in flags.names} for found in read.values()]
        rows = [["flag", *(["all hosts"] if shared else read)]]
        rows += [[name, *(shown(column[name]) for column in columns)] for name in flags.names]
        rows.append(["stage", *(_stage(flags, column) for column in columns)])
        lines += table(rows)
        if not shared and any(column != columns[0] for column in columns[1:]):
            lines.append("  the hosts differ: switch to a stage, or all off")
        lines += [
            f"  kept in {place}"
            for place in sorted({str(a["place"]) for a in read.values() if a.get("place")})
        ]
    lines += _last(answers, shared=len(read) == 1)
    for host, answer in answers.items():
        running = answer.get("running")
        if running:
            lines.append(
                f"  {host}: the {running.get('kind') or 'deployment'} {running.get('deployment')} of "
                f"{running.get('owner') or 'somebody'} has been running since {running.get('since')}"
            )
    if left_out and not any(answer.get("shared") for answer in answers.values()):
        lines.append(f"  left out by --limit, with flags of their own: {', '.join(left_out)}")
    lines += [f"  FAILED on {host}: {reason}" for host, reason in failures.items()]
    if switched:
        lines.append(_summary(answers, failures, switched, seconds, check_mode))
    return lines


def _stage(flags: Flags, values: Mapping[str, str | None]) -> str:
    found = stage_of(flags, values) or OTHER
    return f"{found} (all off)" if all_off(flags, values) else found


def _last(answers: Mapping[str, Mapping[str, Any]], shared: bool) -> list[str]:
    """Return a line about each host's newest switch; only unlike ones where there are several hosts."""
    lines = []
    for host, answer in answers.items():
        for switch in (answer.get("switches") or [])[-1:]:
            why = f" ({switch['reason']})" if switch.get("reason") else ""
            end = {"switched": "", "interrupted": ": it was interrupted, so look at each flag"}
            verdict = end.get(str(switch.get("verdict")), f": {str(switch.get('verdict')).replace('_', ' ')}")
            place = "" if shared else f"{host}: "
            lines.append(
                f"  {place}last switch {switch.get('begun')} by {switch.get('operator') or 'somebody'}: {switch.get('action')}{why}{verdict}"
            )
    return lines


def _summary(
    answers: Mapping[str, Mapping[str, Any]],
    failures: Mapping[str, str],
    switched: str,
    seconds: float,
    check_mode: bool,
) -> str:
    hosts = sorted({*answers, *failures})
    where = (
        "once for all hosts"
        if any(a.get("shared") for a in answers.values())
        else f"on {len(hosts)} host{'s' * (len(hosts) != 1)}"
    )
    if failures:
        return f"{switched}: FAILED on {', '.join(sorted(failures))} after {seconds:.1f} s"
    if check_mode:
        changed = [host for host in hosts if answers[host].get("changed")]
        return f"{switched}: would switch {'something on ' + ', '.join(changed) if changed else 'nothing'}"
    nothing = "" if any(answer.get("changed") for answer in answers.values()) else ", as it was already"
    return f"{switched}: done {where} in {seconds:.1f} s{nothing}"
