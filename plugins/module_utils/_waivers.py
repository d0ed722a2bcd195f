# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that somebody answers for, until a day: they are asked and told, and stop nothing.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._gate import PASS
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

KEYS = ("check", "reason", "approver", "until")


class Waiver(NamedTuple):
    """Who lets the check of that name not pass, why, and the last day on which it holds."""

    check: str
    reason: str
    approver: str
    until: datetime.date


def parse_waivers(items: Sequence[Any], where: str = "waivers") -> list[Waiver]:
    """Return *items* read; each names a check, a reason, an approver and a day such as 2026-12-31.

    :raises Problem: when anything of that is missing: what nobody answers for is not waived.
    """
    return [_parse(item, f"{where}[{index}]") for index, item in enumerate(items)]


def _parse(item: Any, where: str) -> Waiver:
    if not isinstance(item, Mapping):
        raise Problem(f"{where} must be a mapping with {', '.join(KEYS)}, found {item!r}.")
    for key in item:
        if key not in KEYS:
            raise Problem(f"{where} has the unknown key {key!r}: known are {', '.join(KEYS)}.")
    for key in KEYS:
        if not str(item.get(key) or "").strip():
            raise Problem(
                f"{where} has no {key}: a waiver names the check, the reason, who approved it, and until when."
            )
    try:
        until = datetime.date.fromisoformat(str(item["until"])[:10])
    except ValueError:
        raise Problem(f"{where}.until must be a day such as 2026-12-31, found {item['until']!r}.") from None
    return Waiver(str(item["check"]), str(item["reason"]), str(item["approver"]), until)


def today() -> datetime.date:
    """Return the day in UTC: the same on every host, whatever its time zone."""
    return datetime.datetime.now(datetime.timezone.utc).date()


def waive(
    checks: Sequence[dict[str, Any]], waivers: Sequence[Waiver], day: datetime.date
) -> list[dict[str, Any]]:
    """Return *checks*; those that did not pass and are waived have ``waived`` and stop nothing.

    A waiver whose last day is over is told in the message, and changes nothing else.

    :param checks: as ``_gate.check_result`` returns them; :param day: see :func:`today`.
    """
    # Of several for one check the one that holds longest.
    chosen = {waiver.check: waiver for waiver in sorted(waivers, key=lambda waiver: waiver.until)}
    return [_waived(check, chosen.get(check["name"]), day) for check in checks]


def _waived(check: dict[str, Any], waiver: Waiver | None, day: datetime.date) -> dict[str, Any]:
    if waiver is None or check["verdict"] == PASS:
        return check
    if day > waiver.until:
        return {
            **check,
            "message": f"{check['message']} Its waiver by {waiver.approver} ended on {waiver.until}.",
        }
    severity = "degraded" if check["severity"] == "critical" else check["severity"]
    message = f"{check['message']} Waived by {waiver.approver} until {waiver.until}: {waiver.reason}."
    waived = {"reason": waiver.reason, "approver": waiver.approver, "until": waiver.until.isoformat()}
    return {**check, "severity": severity, "message": message, "waived": waived}
