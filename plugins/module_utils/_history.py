# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Past deployments, from the records of every host: what happened, where the hosts disagree, what cannot be read. Pure.

Records are read as they lie there, from earlier versions and after damage too: no field is taken for granted.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._due import DONE, entries_of, words
from ansible_collections.runbook.deploy.plugins.module_utils._lock import parse_timestamp

# What hosts have to agree on; a deployment is one story.
SHARED = ("kind", "verdict", "release", "commit", "version")
LONGEST_NOTE = 100
HEAD = ("begun", "id", "kind", "version", "commit", "operator", "verdict", "seconds", "note")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _entries(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def text(value: Any) -> str:
    """Return *value* as a cell: one line, "-" for nothing."""
    return " ".join(str(value).split()) if value not in (None, "") else "-"


def merged(
    answers: Mapping[str, Mapping[str, Any] | None], primary: str, application: str, stage: str
) -> dict[str, Any]:
    """Return the deployments of all hosts as one list.

    :param answers: what ``deployment_record state=read`` answered on each host, None where it did not.
    :param primary: the host whose record is the whole story, where it has one.
    :return: ``deployments``, newest first, ``{id, record, hosts: {host: verdict}, differs: [sentence]}``, and
        ``problems``, a sentence for each host that is silent, each record that cannot be read or is another application's.
    """
    problems = []
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    oldest: dict[str, str] = {}
    for host in sorted(answers, key=lambda name: (name != primary, name)):
        answer = answers[host]
        if not isinstance(answer, Mapping) or "records" not in answer:
            why = text(answer.get("msg")) if isinstance(answer, Mapping) else f"{host} did not answer."
            problems.append(f"{why} What {host} knows is missing here.")
            continue
        problems += [f"{host}: {entry.get('message')}" for entry in _entries(answer.get("damaged"))]
        records = _entries(answer["records"])
        oldest[host] = min((str(record.get("id")) for record in records), default="~")
        for record in records:
            whose = (record.get("application"), record.get("stage"))
            if any(own and own != ours for own, ours in zip(whose, (application, stage))):
                problems.append(
                    f"{host}: the record {record.get('id')} is one of {text(whose[0])} ({text(whose[1])}), not of {application} ({stage}): "
                    "it is left out; move it away."
                )
            else:
                found.setdefault(str(record.get("id")), {})[host] = record
    deployments = []
    for identifier in sorted(found, reverse=True):
        hosts = found[identifier]
        record = hosts.get(primary) or next(iter(hosts.values()))
        silent = [host for host in oldest if host not in hosts and oldest[host] < identifier]
        deployments.append(
            {
                "id": identifier,
                "record": dict(record),
                "hosts": {host: one.get("verdict") for host, one in hosts.items()},
                "differs": _differences(record, hosts) + [f"{host} has no record of it" for host in silent],
            }
        )
    return {"deployments": deployments, "problems": problems}


def _differences(record: Mapping[str, Any], hosts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return in what the hosts' records are not as *record*, a clause each."""
    clauses = []
    for host, other in hosts.items():
        for key in SHARED:
            if other.get(key) != record.get(key):
                clauses.append(f"{host} says {key} {text(other.get(key))} instead of {text(record.get(key))}")
    return clauses


def seconds_of(record: Mapping[str, Any]) -> float | None:
    """Return how long the run of *record* took, None while it is not known."""
    begun, finished = parse_timestamp(record.get("begun")), parse_timestamp(record.get("finished"))
    return None if begun is None or finished is None else finished - begun


def note_of(record: Mapping[str, Any]) -> str:
    """Return the one thing that is worth knowing of *record* besides its verdict."""
    parts = []
    if record.get("undoes"):
        parts.append(f"takes back {text(record['undoes'])}")
    if record.get("undone_by"):
        parts.append(f"taken back by {text(record['undone_by'])}")
    decision = _mapping(record.get("decision"))
    if decision.get("level"):
        parts.append(f"level {text(decision['level'])}")
    failures = _entries(record.get("failures"))
    if failures:
        parts.append(f"{text(failures[0].get('phase'))}: {text(failures[0].get('reason'))}")
    if record.get("outside_window"):
        parts.append(f"outside the window: {text(record['outside_window'])}")
    waivers = sum(len(_waived(checks)) for checks in _mapping(record.get("gates")).values())
    if waivers:
        parts.append(f"{waivers} waived")
    left = [entry for entry in entries_of(record) if entry.get("state") != DONE]
    if left:
        parts.append(f"{len(left)} of {len(entries_of(record))} tasks due")
    line = "; ".join(parts)
    return line if len(line) <= LONGEST_NOTE else line[: LONGEST_NOTE - 1] + "…"


def _waived(checks: Any) -> list[Mapping[str, Any]]:
    return [check for check in _entries(checks) if check.get("waived")]


def row(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of *record*, as ``HEAD``."""
    took = seconds_of(record)
    return (
        text(record.get("begun")),
        text(record.get("id")),
        text(record.get("kind")),
        text(record.get("version")),
        text(record.get("commit"))[:12],
        text(record.get("operator")),
        text(record.get("verdict") or "no verdict"),
        "-" if took is None else f"{took:.0f}",
        note_of(record),
    )


def table(title: str, found: Mapping[str, Any], limit: int) -> list[str]:
    """Return the lines of the history: the newest *limit* deployments, then what needs attention."""
    shown = found["deployments"][:limit]
    lines = [title]
    if shown:
        rows = [HEAD, *(row(entry["record"]) for entry in shown)]
        widths = [max(len(cells[column]) for cells in rows) for column in range(len(HEAD))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() for cells in rows
        ]
    else:
        lines.append("there is no record of a deployment.")
    attention = [
        f"{entry['id']}: the hosts disagree: {'; '.join(entry['differs'])}."
        for entry in shown
        if entry["differs"]
    ]
    return lines + _attention(attention + list(found["problems"]))


def _attention(sentences: Sequence[str]) -> list[str]:
    return ["needs attention:", *(f"  {line}" for line in sentences)] if sentences else []


def chosen(found: Mapping[str, Any], identifier: str) -> Mapping[str, Any] | None:
    """Return the deployment that *identifier* names, whole or by the only beginning; None where there is none."""
    matching = [entry for entry in found["deployments"] if entry["id"].startswith(identifier)]
    exact = [entry for entry in matching if entry["id"] == identifier]
    return exact[0] if exact else matching[0] if len(matching) == 1 else None


def one(title: str, entry: Mapping[str, Any], problems: Sequence[str]) -> list[str]:
    """Return the lines about one deployment."""
    record = entry["record"]
    cells = dict(zip(HEAD, row(record)))
    lines = [f"{cells['kind']} {cells['id']} of {title}: {cells['verdict']}"]
    previous = _mapping(record.get("previous"))
    pairs = [
        (
            "begun",
            f"{cells['begun']} by {cells['operator']} on {text(record.get('controller'))}, {cells['seconds']} s",
        ),
        (
            "version",
            f"{cells['version']} ({text(record.get('commit'))}), release {text(record.get('release'))}",
        ),
        (
            "before",
            f"{text(previous.get('version'))} ({text(previous.get('commit'))[:12]})"
            if previous
            else "nothing",
        ),
        ("traffic", text(record.get("traffic_taken"))),
        ("note", cells["note"] or "-"),
    ]
    backup = _mapping(record.get("backup"))
    if backup.get("id"):
        pairs.append(
            (
                "backup",
                f"{text(backup['id'])}, {text(backup.get('size'))} bytes, verified: {text(backup.get('verified'))}",
            )
        )
    for approval in _entries(record.get("approvals")):
        pairs.append(
            (
                "approval",
                f"{text(approval.get('role'))}: {text(approval.get('name'))} {text(approval.get('at'))}",
            )
        )
    lines += [f"  {label:<9} {value}" for label, value in pairs]
    for phase in _entries(record.get("phases")):
        said = f" {text(phase['message'])}" if phase.get("message") else ""
        lines.append(
            f"  {text(phase.get('begun'))}  {text(phase.get('phase'))}: {text(phase.get('state'))}, {text(phase.get('seconds'))} s{said}"
        )
    for moment, checks in _mapping(record.get("gates")).items():
        for check in _entries(checks):
            if check.get("verdict") != "pass":
                lines.append(
                    f"  gate {moment}: {text(check.get('name'))}: {text(check.get('verdict'))}: {text(check.get('message'))}"
                )
    for failure in _entries(record.get("failures")):
        lines.append(
            f"  failed    {text(failure.get('phase'))} on {text(failure.get('host'))}: {text(failure.get('reason'))}"
        )
    decision = _mapping(record.get("decision"))
    if decision.get("level"):
        lines.append(f"  decision  {text(decision['level'])}: {text(decision.get('reason'))}")
    lines += [f"  task      {words(task)}" for task in entries_of(record)]
    lines += [f"  {host:<9} {text(verdict or 'no verdict')}" for host, verdict in entry["hosts"].items()]
    attention = [f"the hosts disagree: {'; '.join(entry['differs'])}."] if entry["differs"] else []
    return lines + _attention(attention + list(problems))


def document(found: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """Return the history for programs: ``{deployments: [record with hosts and differs], problems}``, newest first."""
    return {
        "deployments": [
            {**entry["record"], "hosts": entry["hosts"], "differs": entry["differs"]}
            for entry in found["deployments"][:limit]
        ],
        "problems": list(found["problems"]),
    }
