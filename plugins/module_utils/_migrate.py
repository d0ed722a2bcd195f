# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The migrate phases of a Django release: verify on a copy, apply what was verified, take back what was applied.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._agent import Agent, AgentProblem
from ansible_collections.runbook.deploy.plugins.module_utils._application import Installed
from ansible_collections.runbook.deploy.plugins.module_utils._command import run
from ansible_collections.runbook.deploy.plugins.module_utils._database import applied as applied_in
from ansible_collections.runbook.deploy.plugins.module_utils._database import heads
from ansible_collections.runbook.deploy.plugins.module_utils._layout import read_json, write_json
from ansible_collections.runbook.deploy.plugins.module_utils._plan import empty_plan, judge_plan
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import Journal, left_behind, read_records

# Lines of findings that are shown; the rest is counted.
SHOWN = 20


def agent_of(target: Installed, limit: float) -> Agent:
    """Return a process in the release *target*; *limit*: seconds for everything that is asked of it."""
    return Agent(
        python=target.python,
        cwd=target.cwd,
        variables=target.variables,
        user=target.user,
        secrets=target.secrets,
        limit=limit,
    )


def names(keys: Sequence[Sequence[str]]) -> str:
    """Return ``app.0001_x, app.0002_y`` for a list of [app, name]; ``nothing`` for an empty one."""
    return ", ".join(f"{app}.{name}" for app, name in keys) or "nothing"


def describe_heads(rows: Sequence[Sequence[str]]) -> str:
    """Return ``app: 0002_y; other: 0001_x`` for the applied *rows*."""
    found = heads(rows)
    return "; ".join(f"{app}: {', '.join(found[app])}" for app in sorted(found)) or "nothing is applied"


def expected_keys(plan: Sequence[Any] | None) -> list[list[str]] | None:
    """Return the option ``plan`` as a list of [app, name]: its entries may be pairs, or migrations of a plan.

    :raises Problem: for anything else.
    """
    if plan is None:
        return None
    found = []
    for entry in plan:
        if isinstance(entry, Mapping) and {"app", "name"} <= set(entry):
            found.append([str(entry["app"]), str(entry["name"])])
        elif isinstance(entry, (list, tuple)) and len(entry) == 2:
            found.append([str(entry[0]), str(entry[1])])
        else:
            raise Problem(
                f"The option plan holds {entry!r}, expected [app, name] or a migration of a verified plan."
            )
    return found


def check_database(target: Installed, settings: Mapping[str, str], live: Mapping[str, Any] | None) -> None:
    """See that the settings use the database that is backed up.

    :param settings: ``{engine, name, host, port}`` of the default connection; :param live: ``app_database``.
    :raises Problem: when they are two databases.
    """
    if not live or live.get("engine") != "sqlite" or not live.get("path"):
        return
    used = target.cwd / settings["name"]
    if "sqlite" not in settings["engine"] or os.path.realpath(used) != os.path.realpath(live["path"]):
        raise Problem(
            f"app_database.path is {live['path']!r}, but the settings of the release use {settings['engine']} with "
            f"{settings['name']!r}: another database would be migrated than is backed up; make app_environment or "
            "app_database agree."
        )


# --- verify ---


def verify(
    target: Installed,
    scratch: Mapping[str, Any] | None,
    live: Mapping[str, Any] | None,
    limit: float,
    *,
    checks: bool = True,
    import_modules: Sequence[str] = (),
) -> dict[str, Any]:
    """Return ``{applied, heads, plan, notes, inert}`` as the new code sees the database *scratch*.

    :param scratch: ``{engine, path}``; None: the live one, which is only read.
    :param checks: also run the checks; otherwise only the plan is made.
    :raises Problem: for what makes a deployment impossible, everything in one sentence and its evidence.
    """
    with agent_of(target, limit) as agent:
        started = agent.call("start", argv=["manage.py", "check"], database=scratch_of(scratch))
        check_database(target, started["database"], live)
        found: dict[str, Any] = {"checks": [], "deploy": [], "missing": [], "imports": []}
        if checks:
            found = agent.call("verify", import_modules=list(import_modules), release=str(target.path))
        state = agent.call("state")
        # Asked last, because it imports more of the application than anything before.
        inert = bool(checks and not state["pending"] and agent.call("inert")["inert"])
    left = left_behind(read_records(target.layout))
    errors, warnings = judge_findings(found, state, started["disabled"], left)
    if errors:
        shown = [agent.hide(text) for text in errors]
        more = f" and {len(shown) - 1} more, in the evidence" if len(shown) > 1 else ""
        raise Problem(
            f"The release {target.path.name} does not pass its checks: {shown[0].rstrip('.')}{more}; nothing live was "
            "touched: correct the application and deploy the correction.",
            "\n".join(shown[:SHOWN]),
            findings=shown,
        )
    return {
        "applied": state["applied"],
        "heads": heads(state["applied"]),
        "plan": judge_plan(state),
        "notes": [agent.hide(text) for text in warnings],
        "inert": inert,
    }


def scratch_of(scratch: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Return ``{engine, path}`` of the option ``database``; None for none.

    :raises Problem: when a member is missing.
    """
    if not scratch:
        return None
    if not scratch.get("engine") or not scratch.get("path"):
        raise Problem(
            f"The option database has {sorted(scratch)}, expected engine and path: pass on the scratch that "
            "database_backup returned."
        )
    return {"engine": str(scratch["engine"]), "path": str(scratch["path"])}


def judge_findings(
    found: Mapping[str, Any], state: Mapping[str, Any], disabled: Sequence[str], left: Set[tuple[str, str]]
) -> tuple[list[str], list[str]]:
    """Return (errors, warnings) as sentences.

    :param found: the agent's answer to ``verify``; :param state: its answer to ``state``.
    :param disabled: connections that were switched off while the checks ran.
    :param left: migrations that rollbacks left applied because older code runs with them.
    """
    errors, warnings = [], []
    if state["inconsistent"]:
        errors.append(f"the history of migrations is inconsistent: {state['inconsistent']}")
    for app, last in sorted(state["conflicts"].items()):
        errors.append(
            f"the app {app} has several last migrations ({', '.join(last)}): merge them with makemigrations --merge"
        )
    late, stale = split_unknown(state)
    harmless = [row for row in late if tuple(row) in left]
    late = [row for row in late if tuple(row) not in left]
    if harmless:
        warnings.append(
            f"the database still has {names(harmless)}, which a deployment that was taken back left applied; this "
            "release has no file of it and runs with it"
        )
    if late:
        errors.append(
            f"the database has {names(late)} applied, of which this release has no file: it is older than the "
            "database; go back with playbooks/rollback.yml"
        )
    if stale:
        warnings.append(
            f"applied rows without a file, as removed apps and squashes leave them: {names(stale)}"
        )
    for message in found["checks"]:
        (errors if message["error"] else warnings).append(check_text(message))
    warnings += [f"check --deploy: {check_text(message)}" for message in found["deploy"]]
    for entry in found["missing"]:
        text = (
            f"the app {entry['app']} has model changes without a migration: {'; '.join(entry['changes'][:5])}"
        )
        if entry["own"]:
            errors.append(f"{text}: run makemigrations and commit the file")
        else:
            warnings.append(f"{text} (a package, which this project cannot correct)")
    for failure in found["imports"]:
        errors.append(
            f"the module {failure['module']} cannot be imported: {failure['type']}: {failure['message']}"
        )
    if disabled:
        warnings.append(f"checked without the databases {', '.join(disabled)}, which have no scratch copy")
    return errors, warnings


def check_text(message: Mapping[str, Any]) -> str:
    """Return a message of Django's system check as one line."""
    where = f"{message['object']}: " if message["object"] else ""
    hint = f" ({message['hint']})" if message["hint"] else ""
    return " ".join(f"{where}{message['id']} {message['message']}{hint}".split())


def split_unknown(state: Mapping[str, Any]) -> tuple[list[list[str]], list[list[str]]]:
    """Return (late, stale) of the applied rows that no file explains.

    Rows that come after every known row of an app were written by a newer release: late. Those of an app that is
    gone, and those before a known one (a squash whose replaced files were deleted), are stale and harm nobody.
    """
    unknown = {tuple(row) for row in state["unknown"]}
    known_last: dict[str, int] = {}
    for position, row in enumerate(state["applied"]):
        if tuple(row) not in unknown:
            known_last[row[0]] = position
    late, stale = [], []
    for position, row in enumerate(state["applied"]):
        if tuple(row) in unknown:
            is_late = row[0] in known_last and position > known_last[row[0]]
            (late if is_late else stale).append(list(row))
    return late, stale


# --- apply and reverse ---


def nothing_pending(
    target: Installed,
    journal: Journal,
    *,
    verified: Sequence[Sequence[str]] | None,
    plan: Sequence[Sequence[str]] | None,
    live: Mapping[str, Any] | None,
    initial_command: Sequence[str],
) -> dict[str, Any] | None:
    """Return the answer of :func:`apply` without starting the application; None where it has to be started.

    :param verified: what was applied on the copy on which the same code has just found nothing pending and ``migrate``
        inert; None where it has not. The live database must have exactly these rows now.
    """
    if not verified or plan is None or len(plan) or not live:
        return None
    if initial_command and target.layout.initial_command.exists():
        return None
    rows = applied_in(live, "django")
    if rows is None or [list(row) for row in rows] != [list(row) for row in verified]:
        return None
    remember_before(target, journal, rows)
    journal.update(heads_after=heads(rows))
    return {
        "changed": False,
        "applied": rows,
        "heads": heads(rows),
        "plan": empty_plan(),
        "seconds": [],
        "initial_command": False,
    }


class Progress:
    """What has happened to the live database, written into the record at each step.

    :param rows: the applied migrations before the first step.
    """

    def __init__(self, journal: Journal, rows: Sequence[Sequence[str]]) -> None:
        self.journal = journal
        self.rows = [list(row) for row in rows]
        self.running: dict[str, Any] | None = None
        self.done: list[dict[str, Any]] = []

    def __call__(self, event: Mapping[str, Any]) -> None:
        key = [event["app"], event["name"]]
        if event["event"] in ("apply_start", "unapply_start"):
            self.running = dict(event)
            return
        if event["event"] == "apply_success":
            self.rows.append(key)
        else:
            self.rows = [row for row in self.rows if row != key]
        if event["event"] != "unrecorded":
            self.done.append({"app": event["app"], "name": event["name"], "seconds": event["seconds"]})
        self.running = None
        self.journal.update(heads_after=heads(self.rows))

    @property
    def done_keys(self) -> list[list[str]]:
        """The migrations that were applied or reversed."""
        return [[entry["app"], entry["name"]] for entry in self.done]


def apply(
    target: Installed,
    journal: Journal,
    *,
    plan: list[list[str]] | None,
    live: Mapping[str, Any] | None,
    initial_command: Sequence[str],
    limit: float,
) -> dict[str, Any]:
    """Apply the pending migrations, which must be those of *plan* where it is given.

    :return: ``{changed, applied, heads, plan, seconds: [{app, name, seconds}], initial_command}``; the last says
        whether the command ran.
    :raises Problem: saying which migration failed, what was applied before it and what is applied now.
    """
    with agent_of(target, limit) as agent:
        started = agent.call("start", argv=["manage.py", "migrate"])
        check_database(target, started["database"], live)
        state = agent.call("state")
        before = state["applied"]
        remember_before(target, journal, before)
        initial = prepare_initial(target, before, initial_command)
        progress = Progress(journal, before)
        try:
            answer = agent.call("apply", on_event=progress, expected=plan)
        except AgentProblem as problem:
            raise explain(
                target, agent, started["database"], before, progress, problem, "applied"
            ) from problem
    after = answer["applied"]
    journal.update(heads_after=heads(after))
    if initial:
        run_initial(target, initial_command, limit)
    return {
        "changed": after != before or initial,
        "applied": after,
        "heads": heads(after),
        "plan": judge_plan(state),
        "seconds": progress.done,
        "initial_command": initial,
    }


def reverse(
    target: Installed,
    journal: Journal,
    *,
    wanted: list[list[str]],
    live: Mapping[str, Any] | None,
    limit: float,
) -> dict[str, Any]:
    """Unapply everything that is applied and not in *wanted*, with the code of the release *target*.

    :return: ``{changed, applied, heads, reversed: [[app, name]], seconds: [{app, name, seconds}]}``.
    :raises Problem: as :func:`apply`.
    """
    with agent_of(target, limit) as agent:
        started = agent.call("start", argv=["manage.py", "migrate"])
        check_database(target, started["database"], live)
        before = agent.call("applied")["applied"]
        progress = Progress(journal, before)
        try:
            answer = agent.call("reverse", on_event=progress, target=wanted)
        except AgentProblem as problem:
            raise explain(
                target, agent, started["database"], before, progress, problem, "reversed"
            ) from problem
    after = answer["applied"]
    journal.update(heads_after=heads(after))
    return {
        "changed": after != before,
        "applied": after,
        "heads": heads(after),
        "reversed": answer["plan"],
        "seconds": progress.done,
    }


def remember_before(target: Installed, journal: Journal, rows: Sequence[Sequence[str]]) -> None:
    """Write what is applied before the first step into the record; a second attempt keeps what the first found."""
    if journal.deployment is None:
        return
    found = read_json(target.layout.record(journal.deployment)) or {}
    if found.get("applied_before") is None:
        journal.update(applied_before=rows, heads_before=heads(rows))


def explain(
    target: Installed,
    agent: Agent,
    settings: Mapping[str, str],
    before: Sequence[Sequence[str]],
    progress: Progress,
    problem: AgentProblem,
    verb: str,
) -> Problem:
    """Return the problem for migrations that stopped half way: what is applied now is read, not assumed.

    :param settings: ``{engine, name}`` of the live connection; :param verb: ``applied`` or ``reversed``.
    """
    now = rows_now(target, agent, settings)
    running = progress.running
    parts = []
    if running:
        parts.append(f"The migration {running['app']}.{running['name']} could not be {verb}")
    elif progress.done:
        parts.append(f"The migrations were {verb}, but what follows them failed")
    else:
        parts.append(f"No migration could be {verb}")
    parts.append(f"{verb} before that in this run: {names(progress.done_keys)}")
    if now is None:
        parts.append("what is applied now could not be read")
    else:
        parts.append(f"now applied: {describe_heads(now)}")
        progress.journal.update(heads_after=heads(now))
    if running and running.get("atomic") is False:
        parts.append("it is not atomic, so a part of its changes may remain: compare with the backup")
    changed = (
        now is None or [list(row) for row in now] != [list(row) for row in before] or bool(progress.done)
    )
    text = "; ".join(parts)
    return Problem(
        f"{text}. {problem.message}",
        problem.evidence,
        applied=now,
        heads={} if now is None else heads(now),
        failed_migration=[running["app"], running["name"]] if running else None,
        done=progress.done_keys,
        seconds=progress.done,
        live_changed=changed or bool(running and running.get("atomic") is False),
    )


def rows_now(target: Installed, agent: Agent, settings: Mapping[str, str]) -> list[list[str]] | None:
    """Return the rows that are applied now, by the process if it still answers, else by a look into the file."""
    try:
        if not agent.finished:
            return agent.call("applied")["applied"]
        if "sqlite" in settings["engine"]:
            path = str(target.cwd / settings["name"])
            return applied_in({"engine": "sqlite", "path": path}, "django") or []
    except Problem:
        pass
    return None


# --- the command for an empty database ---


def prepare_initial(target: Installed, before: Sequence[Sequence[str]], command: Sequence[str]) -> bool:
    """Return whether the initial *command* is to run after the migrations.

    A marker written before the first migration keeps it due until it has run to its end, whatever is killed between.
    """
    if not command:
        return False
    marker = target.layout.initial_command
    if not before and not marker.exists():
        write_json(marker, {"release": target.path.name, "command": [str(word) for word in command]}, 0o640)
    return marker.exists()


def run_initial(target: Installed, command: Sequence[str], limit: float) -> None:
    """Run the initial *command* once, and forget about it when it succeeds.

    :raises Problem: with its last lines.
    """
    done = run(
        target.argv(command),
        cwd=target.cwd,
        environment=target.variables,
        user=target.user,
        timeout=limit,
        secrets=target.secrets,
    )
    if done.rc != 0:
        reason = f"did not end within {limit:g} s" if done.timed_out else f"ended with exit code {done.rc}"
        raise Problem(
            f"app_migrate_initial_command {done.argv!r} {reason} after the migrations were applied; expected exit code "
            "0: correct it, the next deployment runs it again.",
            done.tail(),
            live_changed=True,
        )
    Path(target.layout.initial_command).unlink()
