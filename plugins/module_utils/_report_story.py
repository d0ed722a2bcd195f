# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of the report in Markdown that tell more than one run: the gates beside those of the deployment before, the log as a
runbook has it, the incident after a rollback, whom to call, what is due. Pure.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._due import entries_of
from ansible_collections.runbook.deploy.plugins.module_utils._lock import parse_timestamp
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

BLANK = "______________"
# What an incident can be, and what is done first. Whoever writes the report chooses; the run suggests.
CLASSES = {
    "security": "isolate the hosts, keep their logs, call the security contact before anything is deleted",
    "data_integrity": "stop what writes, restore a verified backup, count what is lost",
    "performance": "a planned rollback, with a reason, when it does not pass",
    "system_failure": "an immediate rollback",
}
# Phases that change the database, and what a restore is called in a record.
DATA_PHASES = ("migrate", "reverse", "restore")
CONTACT_KEYS = ("role", "name", "contact")


def parse_contacts(items: Sequence[Any], where: str = "app_contacts") -> list[dict[str, str]]:
    """Return *items*, ``{role, name, contact}`` each, in the order in which they are called.

    :raises Problem: with one sentence for the first thing that is wrong.
    """
    found = []
    for index, item in enumerate(items):
        place = f"{where}[{index}]"
        if not isinstance(item, Mapping):
            raise Problem(f"{place} must be a mapping with {', '.join(CONTACT_KEYS)}, found {item!r}.")
        for key in item:
            if key not in CONTACT_KEYS:
                raise Problem(f"{place} has the unknown key {key!r}: known are {', '.join(CONTACT_KEYS)}.")
        for key in CONTACT_KEYS:
            if not isinstance(item.get(key), str) or not item[key].strip():
                raise Problem(f"{place}.{key} must be a text, found {item.get(key)!r}.")
        found.append({key: " ".join(item[key].split()) for key in CONTACT_KEYS})
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return a table in Markdown; a cell is one line."""

    def cells(row: Sequence[Any]) -> str:
        return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in row) + " |"

    return [cells(head), "|" + "---|" * len(head), *(cells(row) for row in rows)]


def gate_lines(gates: Mapping[str, Sequence[Mapping[str, Any]]], before: Mapping[str, Any]) -> list[str]:
    """Return the table of what the gates saw, by moment, beside what they saw in the deployment before.

    :param before: ``{id, version, gates: {moment: {check: observed}}}``; empty where there was none.
    """
    rows = []
    values = before.get("gates") or {}
    for moment, checks in gates.items():
        for check in checks:
            waived = check.get("waived") or {}
            verdict = check["verdict"]
            if waived:
                verdict += f", waived by {waived['approver']} until {waived['until']}: {waived['reason']}"
            then = (values.get(moment) or {}).get(check["name"], "-")
            rows.append(
                (
                    moment,
                    check["name"],
                    verdict,
                    check["severity"],
                    check["observed"],
                    then,
                    check["expected"],
                )
            )
    if not rows:
        return []
    head = (
        "when",
        "check",
        "verdict",
        "severity",
        "observed",
        f"in {before['id']}" if before else "before",
        "expected",
    )
    lines = ["", "## Gates", ""]
    if before:
        lines += [
            f"Beside the values of the deployment before, {before.get('version') or 'no version'} ({before['id']}).",
            "",
        ]
    return lines + table(head, rows)


def clock(moment: Any, zero: float | None) -> str:
    """Return *moment* as the time to or from *zero*, in minutes and seconds: ``T-1:05``, ``T+0:30``."""
    seconds = parse_timestamp(moment)
    if seconds is None or zero is None:
        return "T ?"
    apart = int(seconds - zero)
    return f"T{'-' if apart < 0 else '+'}{abs(apart) // 60}:{abs(apart) % 60:02d}"


def log_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return the log of the deployment: what was ready, what happened before and after the switch, issues, rollback, sign-off.

    T is the moment from which the new release may have answered; where it never did, the end of the run.

    :param facts: as for ``_report.markdown``.
    """
    record = facts.get("record") or {}
    if not record.get("begun"):
        return []
    zero = parse_timestamp(record.get("traffic_taken") or record.get("finished"))
    lines = [
        "",
        "## Deployment log",
        "",
        f"- Date: {record['begun'][:10]}, {record['begun'][11:19]} UTC",
        f"- Version: {record.get('version') or '-'} ({(record.get('commit') or '-')[:12]})",
        f"- By: {record.get('operator') or BLANK}",
        "",
        *_ready(record),
        "",
    ]
    events = [(record["begun"], "begin")]
    for phase in record.get("phases") or []:
        seconds = phase.get("seconds")
        took = f" after {seconds:.1f} s" if isinstance(seconds, (int, float)) else ""
        events.append((phase.get("finished") or phase["begun"], f"{phase['phase']} {phase['state']}{took}"))
    if record.get("traffic_taken"):
        events.append((record["traffic_taken"], "the new release takes traffic"))
    if record.get("finished"):
        events.append((record["finished"], f"end: {record.get('verdict') or 'no verdict'}"))
    lines += [
        f"- {clock(moment, zero)} {what}" for moment, what in sorted(events, key=lambda event: event[0])
    ]
    failures = facts.get("failures") or []
    issues = "; ".join(f"{one.get('phase')} on {one.get('host')}: {one.get('reason')}" for one in failures)
    plan = facts.get("plan") or {}
    back = facts["verdict"] == "rolled_back" or facts.get("kind") == "rollback"
    lines += [
        "",
        f"- Issues: {' '.join(issues.split()) or 'none'}",
        f"- Rollback: {'yes, level ' + str(plan.get('level')) + ': ' + str(plan.get('reason')) if back and plan else 'yes' if back else 'no'}",
        f"- Notes: {record.get('outside_window') or BLANK}",
    ]
    return lines


def _ready(record: Mapping[str, Any]) -> list[str]:
    """Return what was ready before the switch, ticked where the record proves it."""

    def item(good: bool, text: str) -> str:
        return f"- [{'x' if good else ' '}] {text}"

    checks = (record.get("gates") or {}).get("preflight") or []
    passed = [check for check in checks if check["verdict"] == "pass"]
    waived = [check for check in checks if check.get("waived")]
    said = f"{len(passed)} of {len(checks)} checks passed" + (f", {len(waived)} waived" if waived else "")
    lines = (
        [item(len(passed) + len(waived) >= len(checks), f"gates before the start: {said}")] if checks else []
    )
    backup = record.get("backup") or {}
    if backup.get("id"):
        lines.append(item(bool(backup.get("sha256")), f"backup {backup['id']}: {backup.get('path') or '-'}"))
    else:
        lines.append(item(False, "backup: none was taken"))
    for approval in record.get("approvals") or []:
        lines.append(
            item(
                bool(approval.get("name")), f"approved as {approval['role']}: {approval.get('name') or BLANK}"
            )
        )
    started = [answer for answer in record.get("notifications") or [] if answer.get("event") == "start"]
    for answer in started:
        lines.append(
            item(
                not answer.get("unsent"),
                f"told of the start: {', '.join(answer.get('sent') or []) or 'nobody'}",
            )
        )
    return lines


def incident_class(facts: Mapping[str, Any]) -> str:
    """Return the class that the run suggests, a key of ``CLASSES``; "" where it knows too little.

    Security is nothing that a run finds out by itself.
    """
    record, plan = facts.get("record") or {}, facts.get("plan") or {}
    failed = {
        str(failure.get("phase", "")).rpartition(":")[2].strip() for failure in facts.get("failures") or []
    }
    touched = {phase.get("phase") for phase in record.get("phases") or [] if phase.get("state") == "failed"}
    if plan.get("level") == "restore" or record.get("half_done") or (failed | touched) & set(DATA_PHASES):
        return "data_integrity"
    if "watch" in failed | touched:
        return "performance"
    return "system_failure" if failed else ""


def incident_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return the part to be filled in after something live went wrong: class, impact, root cause, what follows.

    :param facts: as for ``_report.markdown``, and ``incident``, the class that a person gave.
    """
    kind, verdict = facts.get("kind"), facts["verdict"]
    if verdict not in ("rolled_back", "stopped", "failed") and not (
        kind == "rollback" and verdict == "success"
    ):
        return []
    record = facts.get("record") or {}
    given, suggested = facts.get("incident") or "", incident_class(facts)
    chosen = given or suggested
    begun, ended = parse_timestamp(record.get("traffic_taken")), parse_timestamp(record.get("finished"))
    live = (
        f"{record['traffic_taken']} to {record['finished']}, {ended - begun:.0f} s at most"
        if begun is not None and ended is not None
        else "never, the release took no traffic"
        if kind != "rollback"
        else f"until {record.get('finished') or BLANK}"
    )
    others = ", ".join(name.replace("_", " ") for name in CLASSES if name != chosen)
    shown = chosen.replace("_", " ") or BLANK
    rows = [
        ("class", shown if given else f"{shown} (suggested; others: {others})"),
        ("first step of the class", CLASSES.get(chosen, BLANK)),
        ("what was refused was live", live),
        ("taken back deployment", record.get("undoes") or record.get("id") or BLANK),
        ("service restored at", record.get("finished") or BLANK),
        ("users affected", BLANK),
    ]
    lines = ["", "## Incident", "", *table(("", ""), rows)]
    for heading in ("Impact", "Root cause", "What is done so that it does not happen again"):
        lines += ["", f"### {heading}", "", BLANK]
    return lines


def contact_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return the table of whom to call, first to last; nothing where nobody is named or nothing went wrong."""
    contacts = facts.get("contacts") or []
    if not contacts or (
        facts["verdict"] in ("success", "no_change", "checked") and facts.get("kind") != "rollback"
    ):
        return []
    rows = [
        (number, one.get("role"), one.get("name"), one.get("contact"))
        for number, one in enumerate(contacts, 1)
    ]
    return ["", "## Escalation", "", *table(("", "role", "name", "contact"), rows)]


def due_lines(record: Mapping[str, Any]) -> list[str]:
    """Return the table of the tasks that are due later."""
    rows = [
        (
            task.get("due"),
            task.get("name"),
            " ".join(str(word) for word in task.get("command") or []) or "-",
            task.get("note") or "-",
            task.get("state"),
        )
        for task in entries_of(record)
    ]
    return ["", "## Due later", "", *table(("due", "task", "command", "note", "state"), rows)] if rows else []


def tag_line(tag: Mapping[str, Any]) -> str:
    """Return in words what became of the tag of the release; "" where none was asked for."""
    if not tag:
        return ""
    if tag.get("state") == "failed":
        return str(tag.get("message"))
    return f"{tag.get('name')}" + (", which was there already" if tag.get("state") == "there" else "")
