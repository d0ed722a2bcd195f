# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a deployment that was cut off is finished or undone: a table over what is measured and recorded. Pure.

What was never proved is not finished by itself: only where the migrations ended well and every host already serves the
new release, as it would after a reboot, are the later steps made up for. A person may ask to finish earlier, from the
moment in which all that is left is to restart hosts; and to undo at any time.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._applied import applied_since
from ansible_collections.runbook.deploy.plugins.module_utils._measured import mismatches

ASKED = ("", "finish", "undo")

# Fact → the values that it can have.
FACTS: dict[str, tuple[Any, ...]] = {
    "asked": ASKED,
    "unfinished": (True, False),
    "kind": ("deployment", "rollback"),
    "answering": (True, False),
    "known": (True, False),
    "same": (True, False),
    "failed": (True, False),
    "migrated": ("yes", "no", "partial"),
    "complete": (True, False),
    "switched": ("all", "some", "none"),
}
# The first row whose facts all hold. `refuse` is what becomes of `finish` where it is asked for; otherwise it is undone.
# What is not named does not matter.
TABLE: tuple[tuple[str, dict[str, Any], str, str], ...] = (
    ("nothing was cut off", {"unfinished": False}, "nothing", "No run was cut off: there is nothing to do."),
    ("asked for", {"asked": "undo"}, "undo", "resume=undo was asked for."),
    (
        "a rollback",
        {"kind": "rollback"},
        "cannot",
        "A rollback was cut off, and its way is gone to the end.",
    ),
    ("hosts that do not answer", {"answering": False}, "cannot", "{silent} did not answer."),
    ("no record of it", {"known": False}, "cannot", "The record of {id} cannot be read on every host."),
    (
        "other settings",
        {"same": False},
        "cannot",
        "The settings of this run make another release than {release}, so what is left of its deployment would not be what was proved.",
    ),
    ("a phase failed", {"failed": True}, "cannot", "{failures} failed, and was about to be taken back."),
    ("part of a migration", {"migrated": "partial"}, "cannot", "{half} remained half done."),
    ("migrations", {"migrated": "no"}, "cannot", "Its migrations did not come to their end."),
    (
        "release",
        {"complete": False},
        "cannot",
        "The release {release} is not complete on {incomplete}.",
    ),
    (
        "every host serves it",
        {"switched": "all"},
        "finish",
        "Migrations are done and every host serves {release}: only later steps are open.",
    ),
    (
        "hosts are left, and it is asked for",
        {"asked": "finish"},
        "finish",
        "resume=finish was asked for: migrations are done, and {open} will be restarted.",
    ),
    (
        "hosts are left",
        {},
        "undo",
        "{open} does not serve {release}: what serves elsewhere was never proved as a whole.",
    ),
)


def choose(facts: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return (``nothing``, ``finish``, ``undo`` or ``refuse``; the row; its reason with names to fill in).

    :param facts: a value for each of ``FACTS``.
    """
    for rule, conditions, way, reason in TABLE:
        if all(facts[name] == value for name, value in conditions.items()):
            if way != "cannot":
                return way, rule, reason
            return ("refuse" if facts["asked"] == "finish" else "undo"), rule, reason
    raise AssertionError("the last row has no conditions")


def migrated(record: Mapping[str, Any], applied: Any, framework: str) -> str:
    """Return whether the migrations of *record* came to their end: ``yes``, ``no`` or ``partial``.

    :param applied: what the database says now, None where it does not.
    """
    if record.get("half_done"):
        return "partial"
    if framework == "none":
        return "yes"
    ended = [
        phase
        for phase in record.get("phases") or []
        if phase.get("phase") == "migrate" and phase.get("state") == "done"
    ]
    before = record.get("applied_before")
    if not ended or applied is None or before is None:
        return "no"
    # The phase says so; that nobody has taken anything back since, only the database.
    plan = record.get("plan") or {}
    planned = [[m["app"], m["name"]] for m in plan.get("migrations", [])]
    now = applied_since(applied, before, plan)
    return "yes" if all(row in now or row in [list(r) for r in before] for row in planned) else "no"


def decide(
    *,
    states: Mapping[str, Mapping[str, Any] | None],
    primary: str,
    asked: str = "",
    inputs: Mapping[str, str] | None = None,
    framework: str = "django",
) -> dict[str, Any]:
    """Decide how to go on with the newest run without a verdict.

    :param states: what each host answered (``deployment_state``), None for a host that did not.
    :param primary: the host that migrates. :param asked: one of ``ASKED``.
    :param inputs: host → the digest of its settings now (``deploy_inputs``), the second part of a release's name.
    :return: ``way`` (``nothing``, ``finish``, ``undo``, ``refuse``), ``rule``, ``reason``, ``facts``, ``deployment``, ``kind``,
        ``open`` (hosts that do not serve it), ``record`` (the primary's; {} where there is none).
    """
    state = states.get(primary) or {}
    left = state.get("unfinished") or {}
    record = state.get("open_record") or {}
    if record.get("id") != left.get("id"):
        record = {}
    release, deployment = record.get("release") or "", left.get("id") or ""
    silent = sorted(host for host, found in states.items() if not found)
    reached = {host: found for host, found in states.items() if found}
    expect = {"release": release, "deployment": deployment}
    still_open = [host for host, found in reached.items() if not record or mismatches(found, expect)]
    incomplete = [
        host
        for host, found in reached.items()
        if not any(entry["name"] == release and entry["complete"] for entry in found.get("releases", []))
    ]
    known = bool(record) and all(
        (found.get("open_record") or {}).get("id") == deployment for found in reached.values()
    )
    failed = sorted(
        {
            f"the phase {phase['phase']} on {host}"
            for host, found in reached.items()
            if (found.get("open_record") or {}).get("id") == deployment
            for phase in last_of_each((found["open_record"]).get("phases") or [])
            if phase.get("state") == "failed"
        }
    )
    digest = release.rpartition("-")[2]
    facts = {
        "asked": asked,
        "unfinished": bool(left) or primary in silent,
        "kind": left.get("kind") or "deployment",
        "answering": not silent,
        "known": known,
        "same": all(not found or found == digest for found in (inputs or {}).values()),
        "failed": bool(failed),
        "migrated": migrated(record, state.get("applied"), framework),
        "complete": not incomplete,
        "switched": "all" if not still_open else "some" if len(still_open) < len(reached) else "none",
    }
    way, rule, reason = choose(facts)
    words = {
        "silent": ", ".join(silent),
        "id": deployment or "the run",
        "release": release,
        "failures": ", ".join(failed),
        "half": ".".join(record.get("half_done") or []),
        "incomplete": ", ".join(incomplete),
        "open": ", ".join(still_open),
    }
    return {
        "way": way,
        "rule": rule,
        "reason": reason.format_map(words),
        "facts": facts,
        "deployment": deployment,
        "kind": facts["kind"],
        "open": still_open,
        "record": dict(record),
    }


def last_of_each(phases: list[Any]) -> list[Mapping[str, Any]]:
    """Return the last entry of each phase: a second attempt that ended well makes up for the first."""
    return list({phase.get("phase"): phase for phase in phases}.values())


def sentence(plan: Mapping[str, Any]) -> str:
    """Return *plan* as a line for whoever resumes."""
    begin = {
        "nothing": "Nothing to resume",
        "finish": f"The deployment {plan['deployment']} is to be finished",
        "undo": f"The {plan['kind']} {plan['deployment'] or 'that was cut off'} is to be undone"
        if plan["kind"] == "deployment"
        else f"The rollback {plan['deployment']} is to be gone to its end",
        "refuse": f"The {plan['kind']} {plan['deployment']} cannot be finished",
    }[plan["way"]]
    more = (
        " Leave out resume=finish, and it is undone; nothing was changed." if plan["way"] == "refuse" else ""
    )
    return f"{begin}: {plan['reason']}{more}"
