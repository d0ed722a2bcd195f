# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person reads at the end of a run: on the terminal, and as a Markdown report.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TITLES = {
    "success": "SUCCESS",
    "no_change": "NOTHING TO DO",
    "checked": "CHECKED, NOTHING WAS CHANGED",
    "rolled_back": "FAILED, AND TAKEN BACK",
    "abandoned": "FAILED, NOTHING LIVE WAS CHANGED",
    "stopped": "STOPPED: A PERSON IS NEEDED",
    "failed": "FAILED",
    "refused": "REFUSED, NOTHING WAS CHANGED",
}
GOOD = ("success", "no_change", "checked")


def failure_lines(failures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what failed, host by host: the reason first, then its evidence, indented."""
    lines = []
    for failure in failures:
        where = f"{failure.get('phase', '?')} on {failure.get('host', '?')}"
        lines.append(f"{where}: {str(failure.get('reason', '')).strip()}")
        evidence = str(failure.get("evidence", "") or "").strip()
        lines += [f"    {line}" for line in evidence.splitlines()[-20:]]
    return lines


def _release(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "nothing"
    if found.get("deployment") == "adopted":
        return "the adopted installation"
    version, commit = found.get("version"), (found.get("commit") or "")[:12]
    return f"{version} ({commit})" if version else commit or found.get("release") or "nothing"


def terminal(facts: Mapping[str, Any]) -> list[str]:
    """Return the last lines of a run.

    :param facts: ``verdict``, ``application``, ``stage``, ``kind``, ``record``, ``live`` (current of the primary),
        ``failures``, ``plan`` (the decision), ``hosts`` ({name: sentence}), ``url``, ``record_path``, ``report_path``,
        ``forecast``, ``seconds``.
    """
    record = facts.get("record") or {}
    name = f"{facts.get('kind', 'deployment')} {record.get('id', '')}".strip()
    lines = [f"{name} of {facts['application']} ({facts['stage']}): {TITLES[facts['verdict']]}"]
    lines += [f"  {line}" for line in failure_lines(facts.get("failures") or [])]
    plan = facts.get("plan") or {}
    if plan.get("level"):
        lines.append(f"  decision  {plan['level']}: {plan['reason']}")
    live = facts.get("live")
    if live is not None or facts["verdict"] != "refused":
        lines.append(
            f"  serving   {_release(live)}" + (f" at {facts['url']}" if facts.get("url") and live else "")
        )
    lines += [f"  {host:<9} {sentence}" for host, sentence in sorted((facts.get("hosts") or {}).items())]
    for key, label in (("record_path", "record"), ("report_path", "report")):
        if facts.get(key):
            lines.append(f"  {label:<9} {facts[key]}")
    lines += [f"  next      {command}" for command in plan.get("commands") or []]
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    def cells(row: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"

    return [cells(head), "|" + "---|" * len(head), *(cells(row) for row in rows)]


def markdown(facts: Mapping[str, Any]) -> str:
    """Return the report of a deployment: the verdict first, then the story.

    :param facts: as for :func:`terminal`.
    """
    record = facts.get("record") or {}
    plan = facts.get("plan") or {}
    lines = [
        f"# {TITLES[facts['verdict']].capitalize()}: {record.get('version') or 'no version'} "
        f"of {facts['application']} ({facts['stage']})",
        "",
    ]
    lines += _table(
        ("", ""),
        [
            (facts.get("kind", "deployment"), record.get("id")),
            ("begun", record.get("begun")),
            ("finished", record.get("finished")),
            ("operator", f"{record.get('operator')} on {record.get('controller')}"),
            ("commit", record.get("commit")),
            ("before", _release(record.get("previous"))),
            ("serving now", _release(facts.get("live"))),
            ("traffic taken", record.get("traffic_taken") or "never"),
        ],
    )
    failures = facts.get("failures") or []
    if failures:
        lines += ["", "## What failed", "", "```", *failure_lines(failures), "```"]
    if plan.get("level"):
        lines += ["", "## Rollback decision", "", f"**{plan['level']}**: {plan['reason']}"]
    if facts.get("forecast"):
        rows = [(row["phase"], row["level"], row["reason"]) for row in facts["forecast"]]
        lines += ["", "## What would have been done, decided before the start", ""]
        lines += _table(("if this failed", "then", "because"), rows)
    phases = record.get("phases") or []
    if phases:
        rows = [(p["begun"], p["phase"], p["state"], p.get("seconds"), p.get("message", "")) for p in phases]
        lines += ["", "## Timeline", ""] + _table(("begun", "phase", "state", "seconds", "message"), rows)
    migrations = (record.get("plan") or {}).get("migrations") or []
    if migrations:
        rows = [(m["app"], m["name"], m["reversible"], m["compatible"], m["destructive"]) for m in migrations]
        lines += ["", "## Migrations", ""]
        lines += _table(("app", "migration", "reversible", "old code can run", "destroys data"), rows)
    backup = record.get("backup") or {}
    if backup.get("id"):
        lines += ["", "## Backup", ""]
        lines += _table(("id", "bytes", "sha256"), [(backup["id"], backup.get("size"), backup.get("sha256"))])
    if facts.get("hosts"):
        lines += ["", "## Hosts", ""] + _table(("host", "measured"), sorted(facts["hosts"].items()))
    return "\n".join(lines) + "\n"
