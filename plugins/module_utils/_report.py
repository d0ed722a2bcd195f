# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person reads at the end of a run: on the terminal, and as a Markdown report.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._layout import ADOPTED
from ansible_collections.runbook.deploy.plugins.module_utils._losses import describe
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_spec import lasted
from ansible_collections.runbook.deploy.plugins.module_utils._measured import mismatches
from ansible_collections.runbook.deploy.plugins.module_utils._steps import step_lines

TITLES = {
    "success": "SUCCESS",
    "no_change": "NOTHING TO DO",
    "checked": "CHECKED, NOTHING WAS CHANGED",
    "rolled_back": "FAILED, AND TAKEN BACK",
    "flags_off": "FAILED, AND CURED BY SWITCHING THE FEATURES OFF",
    "abandoned": "FAILED, NOTHING LIVE WAS CHANGED",
    "stopped": "STOPPED: A PERSON IS NEEDED",
    "failed": "FAILED",
    "refused": "REFUSED, NOTHING WAS CHANGED",
}
GOOD = ("success", "no_change", "checked")


def failure_lines(failures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what failed, host by host: the reason first, then what its evidence says beyond it, indented."""
    lines = []
    for failure in failures:
        where = f"{failure.get('phase', '?')} on {failure.get('host', '?')}"
        reason = str(failure.get("reason", "")).strip()
        lines.append(f"{where}: {reason}")
        evidence = str(failure.get("evidence", "") or "").strip().splitlines()[-20:]
        lines += [f"    {line}" for line in evidence if not line.strip() or line.strip() not in reason]
    return lines


def _release(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "nothing"
    if found.get("deployment") == ADOPTED:
        return "the adopted installation"
    version, commit = found.get("version"), (found.get("commit") or "")[:12]
    return f"{version} ({commit})" if version else commit or found.get("release") or "nothing"


def host_sentence(state: Mapping[str, Any] | None) -> str:
    """Return what a host answered (``deployment_state``) in words; None: it did not answer."""
    if not state:
        return "unknown: it does not answer"
    live = serving(state)
    words = [f"serves {_release(live)}"]
    if live and live.get("deployment") == ADOPTED:
        return words[0]
    for service in state.get("services") or []:
        words.append(service_sentence(service))
    return ", ".join(words)


def service_sentence(service: Mapping[str, Any]) -> str:
    """Return what is true of one service in words; only a web service answers, the others run."""
    name = service["name"]
    if service.get("wrong_image"):
        return str(service["wrong_image"])
    if service.get("foreign"):
        return f"the address of {name} is held by {service['foreign']}"
    if service.get("answers") is None:
        return f"{name} {'runs' if service.get('running') else 'does not run'}"
    return f"{name} {'answers' if service['answers'] else 'does not answer'}"


def serving(state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what a host serves: its current release, or the adopted installation where none is; None for nothing."""
    if state.get("current"):
        return state["current"]
    return {"deployment": ADOPTED} if (state.get("adopted") or {}).get("active") else None


def live_on_primary(facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what the primary serves, or None."""
    return serving((facts.get("states") or {}).get(facts.get("primary")) or {})


def restored(record: Mapping[str, Any]) -> dict[str, str]:
    """Return in words what a restore of the run *record* did: ``restored``, ``lost`` and ``kept``; empty without one."""
    done = [
        phase.get("result") or {}
        for phase in record.get("phases") or []
        if phase.get("phase") == "restore" and phase.get("state") == "done"
    ]
    if not done or not done[-1].get("restored"):
        return {}
    result = done[-1]
    found = {
        "restored": f"backup {result['restored']}",
        "lost": describe(result["lost"])
        if result.get("lost")
        else "no write: there was none since the backup",
    }
    if result.get("kept"):
        safety = f", and as backup {result['safety']}" if result.get("safety") else ""
        found["kept"] = f"the database before, as {result['kept']}{safety}"
    return found


def visitors(record: Mapping[str, Any]) -> str:
    """Return what visitors had of the maintenance page of the run *record*, in words; "" where there was none."""
    shown = [
        phase.get("result", {}).get("maintenance") or {}
        for phase in record.get("phases") or []
        if phase.get("phase") in ("maintenance", "maintenance off") and phase.get("state") == "done"
    ]
    if shown and shown[-1].get("on"):
        return "have the maintenance page until it is taken off with playbooks/maintenance.yml -e maintenance=off, or its time is over"
    found = record.get("downtime") or {}
    if not found:
        return ""
    return f"had the maintenance page for {lasted(found)}, {found['since']} to {found['until']}"


def terminal(facts: Mapping[str, Any]) -> list[str]:
    """Return the last lines of a run.

    :param facts: ``verdict``, ``application``, ``stage``, ``kind``, ``record``, ``states`` ({host: what it answered}),
        ``primary``, ``failures``, ``plan`` (the decision), ``url``, ``record_path``, ``report_path``, ``forecast``.
    """
    record = facts.get("record") or {}
    name = f"{facts.get('kind', 'deployment')} {record.get('id', '')}".strip()
    lines = [f"{name} of {facts['application']} ({facts['stage']}): {TITLES[facts['verdict']]}"]
    lines += [f"  {line}" for line in failure_lines(facts.get("failures") or [])]
    plan = facts.get("plan") or {}
    said = [failure.get("reason") for failure in facts.get("failures") or []]
    if plan.get("level") and plan["reason"] not in said:
        lines.append(f"  decision  {plan['level']}: {plan['reason']}")
    if facts["verdict"] == "checked":
        lines += [f"  step      {text}" for text in step_lines(plan.get("steps") or {})]
    lines += [f"  left out  {text}" for text in plan.get("left_out") or []]
    lines += [f"  {label:<9} {text}" for label, text in restored(record).items()]
    if visitors(record):
        lines.append(f"  visitors  {visitors(record)}")
    if (record.get("backup") or {}).get("degraded"):
        lines.append(f"  DEGRADED  no copy of the backup: {record['backup']['degraded']}")
    tag = record.get("release_tag") or {}
    if tag:
        failed = tag.get("state") == "failed"
        lines.append(f"  {'TAG' if failed else 'tag':<9} {tag.get('message') if failed else tag.get('name')}")
    live = live_on_primary(facts)
    if live is not None and facts.get("url"):
        lines.append(f"  address   {facts['url']}")
    answered = {f.get("host") for f in facts.get("failures") or [] if not f.get("unreachable")}
    for host, state in sorted((facts.get("states") or {}).items()):
        if facts["verdict"] == "refused" and not state and host in answered:
            # It answered with the reason why it was not measured.
            continue
        lines.append(f"  {host:<9} {host_sentence(state)}")
    for key, label in (("record_path", "record"), ("report_path", "report")):
        if facts.get(key):
            lines.append(f"  {label:<9} {facts[key]}")
    lines += [f"  next      {command}" for command in plan.get("commands") or []]
    if facts["verdict"] in ("stopped", "failed"):
        lines += [
            f"  call      {one.get('role')}: {one.get('name')}, {one.get('contact')}"
            for one in facts.get("contacts") or []
        ]
    return lines


def paths(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return where a run's record lies on the primary, and its report on the controller: ``record_path``, ``report_path``.

    :param facts: ``root``, ``application``, ``stage``, ``record``, ``store`` (empty: there is no report).
    """
    identifier = (facts.get("record") or {}).get("id")
    found = {}
    if identifier and facts.get("root"):
        found["record_path"] = f"{facts['root']}/deployments/{identifier}.json"
    if identifier and facts.get("store"):
        found["report_path"] = f"{facts['store']}/{facts['application']}/{facts['stage']}/{identifier}.md"
    return found


def notification_lines(told: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of who was told of the run, and who could not be; nothing where nobody was to be told.

    :param told: what ``notification`` answered for each event: ``event``, ``sent``, ``unsent``.
    """
    rows: list[tuple[str, str, str]] = []
    for answer in told:
        rows += [(answer["event"], name, "sent") for name in answer.get("sent") or []]
        rows += [(answer["event"], one["name"], one["message"]) for one in answer.get("unsent") or []]
    return ["", "## Notifications", "", *_table(("event", "who", "result"), rows)] if rows else []


def sign_offs(record: Mapping[str, Any]) -> list[str]:
    """Return the table of approvals, with blanks to be filled in by hand for those that nobody gave."""
    rows = [
        (one["role"], one.get("name") or "______________", one.get("at") or "______________")
        for one in record.get("approvals") or []
    ]
    return ["", "## Sign-offs", "", *_table(("role", "name", "time"), rows)] if rows else []


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    def cells(row: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"

    return [cells(head), "|" + "---|" * len(head), *(cells(row) for row in rows)]


def markdown(facts: Mapping[str, Any]) -> str:
    """Return the report of a deployment: the verdict first, then the story.

    :param facts: as for :func:`terminal`, and ``before`` (the gates' values of the deployment before), ``contacts``, ``incident``.
    """
    # Loaded only where a report is written.
    from ansible_collections.runbook.deploy.plugins.module_utils import _report_story as story

    record = facts.get("record") or {}
    plan = facts.get("plan") or {}
    tag = record.get("release_tag") or {}
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
            ("serving now", _release(live_on_primary(facts))),
            ("traffic taken", record.get("traffic_taken") or "never"),
            *([("maintenance", visitors(record))] if visitors(record) else []),
            *([("release tag", story.tag_line(tag))] if tag else []),
            *([("outside the window", record["outside_window"])] if record.get("outside_window") else []),
        ],
    )
    failures = facts.get("failures") or []
    if failures:
        lines += ["", "## What failed", "", "```", *failure_lines(failures), "```"]
    if plan.get("level"):
        lines += ["", "## Rollback decision", "", f"**{plan['level']}**: {plan['reason']}"]
    lines += story.incident_lines(facts) + story.contact_lines(facts)
    told = restored(record)
    if told:
        lines += ["", "## Restore", "", *_table(("", ""), list(told.items()))]
    if facts.get("forecast"):
        rows = [(row["phase"], row["level"], row["reason"]) for row in facts["forecast"]]
        lines += ["", "## What would have been done, decided before the start", ""]
        lines += _table(("if this failed", "then", "because"), rows)
    phases = record.get("phases") or []
    if phases:
        rows = [(p["begun"], p["phase"], p["state"], p.get("seconds"), p.get("message", "")) for p in phases]
        lines += ["", "## Timeline", ""] + _table(("begun", "phase", "state", "seconds", "message"), rows)
    lines += story.log_lines(facts)
    lines += story.gate_lines(record.get("gates") or {}, facts.get("before") or {})
    migrations = (record.get("plan") or {}).get("migrations") or []
    if migrations:
        rows = [
            (
                m["app"],
                m["name"],
                m["reversible"],
                m["compatible"],
                m["destructive"],
                rehearsed(m) + waits(record, m),
            )
            for m in migrations
        ]
        lines += ["", "## Migrations", ""]
        head = ("app", "migration", "reversible", "old code can run", "destroys data", "on the copy")
        lines += _table(head, rows)
    backup = record.get("backup") or {}
    if backup.get("id"):
        lines += ["", "## Backup", ""]
        lines += _table(("id", "bytes", "sha256"), [(backup["id"], backup.get("size"), backup.get("sha256"))])
        copy = backup.get("store") or {}
        if copy:
            row = (copy["location"], copy.get("endpoint") or "AWS", copy.get("verified_at"))
            lines += ["", *_table(("copy", "at", "came back as it was"), [row])]
        if backup.get("degraded"):
            lines += ["", f"**DEGRADED: there is no copy of it in the object store.** {backup['degraded']}"]
    lines += story.due_lines(record)
    lines += sign_offs(record)
    lines += notification_lines(record.get("notifications") or [])
    if facts.get("states"):
        rows = [(host, host_sentence(state)) for host, state in sorted(facts["states"].items())]
        lines += ["", "## Hosts", ""] + _table(("host", "measured"), rows)
    return "\n".join(lines) + "\n"


def waits(record: Mapping[str, Any], migration: Mapping[str, Any]) -> str:
    """Return for whom visitors would wait while *migration* runs, as the rehearsal of *record* saw it; "" for nothing."""
    name = f"{migration['app']}.{migration['name']}"
    found = ((record.get("plan") or {}).get("rehearsal") or {}).get("blocking") or []
    tables = next((entry["tables"] for entry in found if entry["migration"] == name), None)
    return "" if tables is None else f"; visitors wait meanwhile ({', '.join(tables) or 'tables'})"


def rehearsed(migration: Mapping[str, Any]) -> str:
    """Return what became of *migration* when it was rehearsed, as one cell."""
    found = migration.get("rehearsed")
    if not found:
        return "not rehearsed"
    there = f"forward {found['forward_seconds']:.1f} s"
    if found["backward_seconds"] is None:
        return f"{there}, back: {found['failed'] if found.get('failed') else 'not tried'}"
    left = [*found["schema"], *found["rows"]]
    said = f"differs ({'; '.join(left[:3])}{'; …' if len(left) > 3 else ''})" if left else "all as before"
    return f"{there}, back {found['backward_seconds']:.1f} s: {said}"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return *rows* as lines with columns as wide as their widest cell."""
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def unsettled(host: str, state: Mapping[str, Any]) -> list[str]:
    """Return in what *host* is not as its own files say, in a sentence; a foreign address is a problem of its own."""
    current = state.get("current")
    services = state.get("services") or []
    if not current:
        left = sorted({service["name"] for service in services if service.get("running")})
        if not left:
            return []
        return [
            f"{host}: of service {', '.join(left)} a process runs, but the link current names no release, so that "
            "nothing would be started after a reboot: deploy the version again."
        ]
    wrong = [
        clause
        for clause in mismatches(state, {"release": current["release"], "deployment": current["deployment"]})
        if not clause.startswith("the address of")
    ]
    if not wrong:
        return []
    return [
        f"{host}: {'; '.join(wrong)}: playbooks/rollback.yml --tags restart starts what is down and stops what is left over."
    ]


def overdue(record: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each task of *record* that should have been done by now."""
    if not record.get("due"):
        return []
    # Loaded only where there are tasks.
    from ansible_collections.runbook.deploy.plugins.module_utils import _due

    return [
        f"{_due.words(task)}; mark it with playbooks/due.yml."
        for task in _due.entries_of(record)
        if _due.is_overdue(task)
    ]


def status(facts: Mapping[str, Any]) -> list[str]:
    """Return what ``status.yml`` shows: a line for each host and service, then what needs attention.

    :param facts: ``application``, ``stage``, ``states`` ({host: what it answered}), ``primary``, ``url``, ``root``.
    """
    rows = [("host", "release", "service", "up", "from", "instance", "pid")]
    attention = []
    states = facts.get("states") or {}
    for host, state in sorted(states.items()):
        if not state:
            rows.append((host, "unknown", "", "", "", "", ""))
            attention.append(f"{host} does not answer: its state is unknown.")
            continue
        live = serving(state)
        current = _release(live)
        services = state.get("services") or [{}]
        if live and live.get("deployment") == ADOPTED:
            rows.append((host, current, state["adopted"]["service"], "yes", "-", ADOPTED, "-"))
            # Ours are not meant to run beside it.
            services = [service for service in services if service.get("running") or service.get("foreign")]
        for service in services:
            up = service.get("answers") if service.get("answers") is not None else service.get("running")
            up = up and not service.get("foreign") and not service.get("wrong_image")
            rows.append(
                (
                    host,
                    current,
                    service.get("name", ""),
                    "yes" if up else "no",
                    service.get("release") or "-",
                    service.get("deployment") or "-",
                    str(service.get("pid") or "-"),
                )
            )
        attention += [f"{host}: {problem['message']}" for problem in state.get("problems") or []]
        attention += [f"{host}: {warning['message']}" for warning in state.get("warnings") or []]
        attention += unsettled(host, state)
        if state.get("interrupted"):
            stopped = state["interrupted"]
            attention.append(
                f"{host}: the {stopped['kind']} {stopped['id']} ended in phase {stopped['phase']} without a verdict: "
                "take it back with playbooks/rollback.yml -e deployment_take_over=true, or deploy again with the same."
            )
        elif state.get("lock"):
            attention.append(
                f"{host}: {state['lock']['message']} With it, playbooks/rollback.yml takes that run back, and playbooks/deploy.yml deploys over it."
            )
        heads, recorded = state.get("heads"), state.get("recorded_heads")
        if recorded and heads and recorded != heads:
            ahead = ", ".join(
                f"{app}.{'/'.join(names)}" for app, names in heads.items() if recorded.get(app) != names
            )
            attention.append(f"{host}: the database is not as the live release left it: {ahead}.")
    lines = [
        f"{facts['application']} ({facts['stage']})" + (f" at {facts['url']}" if facts.get("url") else ""),
        *align(rows),
    ]
    primary = states.get(facts.get("primary")) or {}
    target, record = primary.get("target"), primary.get("record")
    lines.append(f"rollback would go to: {_release(target)}")
    attention += overdue(record or {})
    if record:
        lines.append(
            f"record: {facts['root']}/deployments/{record['id']}.json ({record.get('verdict') or 'no verdict yet'})"
        )
    lines += (
        ["needs attention:", *(f"  {line}" for line in attention)]
        if attention
        else ["nothing needs attention."]
    )
    return lines
