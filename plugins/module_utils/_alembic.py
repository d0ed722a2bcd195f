# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The migrate phases of a release with Alembic: verify on a copy, apply what was verified, take back what was applied.

What is applied is the rows of ``alembic_version``, which are heads: the revisions below them are applied, too.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._agent import Agent, AgentProblem
from ansible_collections.runbook.deploy.plugins.module_utils._alembic_plan import judge_plan
from ansible_collections.runbook.deploy.plugins.module_utils._application import Installed
from ansible_collections.runbook.deploy.plugins.module_utils._database import engine_of, heads, on_scratch
from ansible_collections.runbook.deploy.plugins.module_utils._migrate import (
    check_database,
    index_notes,
    live_of,
    remaining_notes,
    require_consent,
    scratch_of,
)
from ansible_collections.runbook.deploy.plugins.module_utils._migrations import (
    Progress,
    agent_of,
    explain,
    names,
    prepare_initial,
    remember_before,
    run_initial,
)
from ansible_collections.runbook.deploy.plugins.module_utils._plan import empty_plan, overall
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import Journal, left_behind, read_records
from ansible_collections.runbook.deploy.plugins.module_utils._rehearse import Rehearsal
from ansible_collections.runbook.deploy.plugins.module_utils._rehearse import wanted as held

FRAMEWORK = "alembic"
# Findings that are shown; the rest is counted.
SHOWN = 20


class Revisions(Progress):
    """As for other frameworks; but what is applied after a step is what the step says, as rows are heads.

    :param sizes: how many directives each revision has, by its name; those that are not known are missing.
    """

    def __init__(
        self, journal: Journal, rows: Sequence[Sequence[str]], sizes: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(journal, rows)
        self.sizes = dict(sizes or {})

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "operation":
            event = {**event, "of": max(self.sizes.get(event["name"], 0), event["index"])}
        super().__call__(event)

    def _ended(self, event: Mapping[str, Any]) -> None:
        self.rows = [list(row) for row in event["rows"]]
        self.done.append({"app": event["app"], "name": event["name"], "seconds": event["seconds"]})
        self.running = None
        self.journal.update(heads_after=heads(self.rows))


def begun(
    agent: Agent, target: Installed, scratch: Mapping[str, Any] | None, live: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Start the application in *agent*, and see that it uses the database that is backed up; return what it says.

    :param scratch: as :func:`verify` takes it.
    :raises Problem: when it uses another database.
    """
    place = {
        key: value
        for key, value in (live or {}).items()
        if key not in ("password", "user", "shared", "scratch")
    }
    started = agent.call("start", argv=["alembic"], database=scratch_of(scratch, live), live=place)
    check_database(target, started, live, agent.call("where"), bool(scratch))
    return started


# --- verify ---


def verify(
    target: Installed,
    scratch: Mapping[str, Any] | None,
    live: Mapping[str, Any] | None,
    limit: float,
    *,
    checks: bool = True,
    import_modules: Sequence[str] = (),
    app: str = "",
    stop_at: str = "",
    rehearse: str = "never",
    lock_timeout: float = 5.0,
    journal: Journal | None = None,
) -> dict[str, Any]:
    """Return ``{applied, heads, plan, notes, inert}``; parameters and errors as :func:`_migrate.verify`.

    Model changes without a migration can only be seen where nothing is pending any more, so that they are looked for in
    the middle of the rehearsal, or after the revisions were applied to the copy of an empty database.
    """
    with agent_of(target, limit if rehearse == "never" else 3 * limit, FRAMEWORK) as agent:
        begun(agent, target, scratch, live)
        found: dict[str, Any] = {"imports": []}
        if checks:
            found = agent.call("verify", import_modules=list(import_modules), release=str(target.path))
        state = agent.call("state", collect=bool(scratch), app=app, target=stop_at)
        settled, covered = known_beside(state, read_records(target.layout))
        errors, warnings = judge_findings(found, state, settled)
        refuse([agent.hide(text) for text in errors], target)
        if covered:
            state = {**state, "pending": []}
        plan = judge_plan(state)
        for migration in plan["migrations"]:
            migration["sql"] = migration["sql"] and [agent.hide(text) for text in migration["sql"]]
        warnings += remaining_notes(state)
        missing: dict[str, Any] | None = None
        look = bool(checks and scratch and not state["remaining"] and not covered)
        if scratch and held(rehearse, state["pending"], state["applied"]):
            engine = engine_of(on_scratch(live, scratch), None, target.user)
            last = plan["migrations"][-1]["name"] if look else ""
            rehearsal = Models(
                agent, engine, scratch, when=rehearse, limit=limit, lock_timeout=lock_timeout, last=last
            )
            with (journal or Journal(None, None, [])).phase("rehearse") as entry:
                plan, more = rehearsal.run(plan, state["applied"])
                entry.update(plan["rehearsal"])
            warnings += more
            missing = rehearsal.missing
        elif look and not state["pending"]:
            missing = agent.call("missing")
        elif look and not state["applied"]:
            # An empty copy, of which nobody has anything to lose.
            agent.call("apply", lock_timeout=lock_timeout)
            missing = agent.call("missing")
        elif look:
            warnings.append(
                "model changes without a migration were not looked for, because app_migrate_rehearse is never and revisions are pending"
            )
        if missing is not None:
            errors, more = judge_missing(missing)
            refuse([agent.hide(text) for text in errors], target)
            warnings += more
    return {
        "applied": state["applied"],
        "heads": heads(state["applied"]),
        "plan": plan,
        "notes": [agent.hide(text) for text in warnings],
        # Without anything pending, nothing is run: Alembic has no signals.
        "inert": bool(checks and not state["pending"] and not state["remaining"]),
    }


class Models(Rehearsal):
    """A rehearsal that compares the models with the database when the revision *last* was applied; "" for none."""

    def __init__(self, *arguments: Any, last: str, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.last = last
        self.missing: dict[str, Any] | None = None

    def _forward(self, key: tuple[str, str], used: float) -> dict[str, Any]:
        found = super()._forward(key, used)
        if key[1] == self.last:
            self.missing = self.agent.call("missing")
        return found


def refuse(errors: Sequence[str], target: Installed) -> None:
    """Raise where there are *errors*, all of them in one sentence and its evidence."""
    if not errors:
        return
    more = f" and {len(errors) - 1} more, in the evidence" if len(errors) > 1 else ""
    raise Problem(
        f"The release {target.path.name} does not pass its checks: {errors[0].rstrip('.')}{more}; nothing live was touched: "
        "correct the application and deploy the correction.",
        "\n".join(errors[:SHOWN]),
        findings=list(errors),
    )


def known_beside(state: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> tuple[list[str], bool]:
    """Return the applied heads that this release has no file of and runs with all the same, and whether nothing else is pending.

    A rollback of the code alone leaves what the newer release applied, because the older code was proved to run with it. The
    records say what each of these revisions follows: where that leads to all of this release's own heads, nothing of it is
    missing in the database. Where it leads elsewhere, its own revisions could only be applied beside them, which is refused.
    """
    listed = list(records)
    left = {name for app, name in left_behind(listed) if app == FRAMEWORK}
    down = {
        migration["name"]: migration.get("down") or []
        for record in listed
        for migration in (record.get("plan") or {}).get("migrations", [])
        if migration["app"] == FRAMEWORK
    }
    unknown = [name for _app, name in state["unknown"]]
    reached = {name for _app, name in state["applied"] if name not in unknown}
    settled = []
    for head in unknown:
        waiting, seen = [head], set()
        below: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in left:
                waiting += down.get(name, [])
            else:
                below.add(name)
        if head in left and below:
            settled.append(head)
            reached |= below
    fine = bool(unknown) and len(settled) == len(unknown) and set(state["leaves"]) <= reached
    return (settled, True) if fine else ([], False)


def judge_findings(
    found: Mapping[str, Any], state: Mapping[str, Any], settled: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return (errors, warnings) as sentences.

    :param found: the agent's answer to ``verify``; :param state: its answer to ``state``.
    :param settled: as :func:`known_beside` returns them.
    """
    errors, warnings = [], []
    for last in state["conflicts"].values():
        errors.append(
            f"there are several heads ({', '.join(last)}): merge them with 'alembic merge heads', or 'flask db merge heads'"
        )
    late = [row for row in state["unknown"] if row[1] not in settled]
    if late:
        errors.append(
            f"the database has {names(late)} applied, of which this release has no file: it is older than the database; deploy "
            "a version that has it, or go back with playbooks/rollback.yml"
        )
    if settled:
        warnings.append(
            f"the database still has {names([[FRAMEWORK, name] for name in settled])}, which a deployment that was taken back left "
            "applied; this release has no file of it and runs with it"
        )
    for failure in found["imports"]:
        errors.append(
            f"the module {failure['module']} cannot be imported: {failure['type']}: {failure['message']}"
        )
    return errors, warnings


def judge_missing(missing: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return (errors, warnings) about the differences between models and database.

    A table or column that the models have and the database has not makes the new code fail. Anything else may be meant: tables
    of other programs, and types and defaults that are compared loosely.
    """
    if not missing["metadata"]:
        return [], [
            "env.py gives no target_metadata, so model changes without a migration were not looked for"
        ]
    errors = [
        f"the models have changes without a migration: {text}; run 'alembic revision --autogenerate' and commit the file"
        for text in missing["needed"]
    ]
    warnings = [f"models and database differ: {text}" for text in missing["other"][:SHOWN]]
    return errors, warnings


# --- apply and reverse ---


def apply(
    target: Installed,
    journal: Journal,
    *,
    plan: list[list[str]] | None,
    live: Mapping[str, Any] | None,
    initial_command: Sequence[str],
    limit: float,
    lock_timeout: float = 5.0,
    app: str = "",
    stop_at: str = "",
    judged: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Apply the pending revisions; parameters, answer and errors as :func:`_migrate.apply`.

    The live process does not write down what its revisions do, because that calls their code: the plan that it returns is the
    verified one.

    :param judged: the verified plan's migrations, for the answer; entries that are no mappings are left out.
    """
    judged = [dict(entry) for entry in judged or () if isinstance(entry, Mapping)]
    with agent_of(target, limit, FRAMEWORK) as agent:
        started = begun(agent, target, None, live)
        state = agent.call("state", app=app, target=stop_at)
        settled, covered = known_beside(state, read_records(target.layout))
        before = state["applied"]
        remember_before(target, journal, before)
        if covered and not plan:
            journal.update(heads_after=heads(before))
            return {**_unchanged(before), "notes": judge_findings({"imports": []}, state, settled)[1]}
        initial = prepare_initial(target, before, initial_command)
        sizes = {entry["name"]: len(entry.get("operations") or ()) for entry in judged}
        progress = Revisions(journal, before, sizes)
        try:
            answer = agent.call(
                "apply",
                on_event=progress,
                expected=plan,
                lock_timeout=lock_timeout,
                app=app,
                target=stop_at,
            )
        except AgentProblem as problem:
            live_now = live_of(target, started["database"], live)
            raise explain(
                agent, live_now, FRAMEWORK, before, progress, problem, "applied", target.user
            ) from problem
    after = answer["applied"]
    journal.update(heads_after=heads(after))
    if initial:
        run_initial(target, initial_command, limit)
    done = {tuple(row) for row in answer["plan"]}
    shown = judge_plan(state)
    if {(entry["app"], entry["name"]) for entry in judged} == done:
        shown = {**shown, **overall(judged), "migrations": judged}
    return {
        "changed": after != before or initial,
        "applied": after,
        "heads": heads(after),
        "plan": shown,
        "seconds": progress.done,
        "initial_command": initial,
        "notes": index_notes(answer["invalid_indexes"]) + remaining_notes(state),
    }


def _unchanged(rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    facts = {"changed": False, "applied": [list(row) for row in rows], "heads": heads(rows)}
    return {**facts, "plan": empty_plan(), "seconds": [], "initial_command": False}


def made_by(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what each revision makes, by its name, as the newest record whose plan has it says; see ``_alembic_plan.makes``."""
    found: dict[str, Any] = {}
    for record in records:
        for migration in (record.get("plan") or {}).get("migrations", []):
            if migration["app"] == FRAMEWORK and migration.get("makes") is not None:
                found.setdefault(migration["name"], migration["makes"])
    return found


def reverse(
    target: Installed,
    journal: Journal,
    *,
    wanted: list[list[str]],
    live: Mapping[str, Any] | None,
    limit: float,
    lock_timeout: float = 5.0,
    consent: bool = False,
    check_mode: bool = False,
) -> dict[str, Any]:
    """Take back everything that is applied and not in *wanted*; parameters, answer and errors as :func:`_migrate.reverse`."""
    with agent_of(target, limit, FRAMEWORK) as agent:
        started = begun(agent, target, None, live)
        before = agent.call("applied")["applied"]
        counted = agent.call("written", target=wanted, made=made_by(read_records(target.layout)))
        lost = {kind: counted[kind] for kind in ("tables", "columns", "unknown")}
        require_consent(lost, consent)
        if check_mode:
            facts = {
                "changed": bool(counted["gone"]),
                "reversed": counted["gone"],
                "lost": lost,
                "seconds": [],
            }
            return {**facts, "applied": before, "heads": heads(before)}
        progress = Revisions(journal, before)
        try:
            answer = agent.call("reverse", on_event=progress, target=wanted, lock_timeout=lock_timeout)
        except AgentProblem as problem:
            live_now = live_of(target, started["database"], live)
            raise explain(
                agent, live_now, FRAMEWORK, before, progress, problem, "reversed", target.user
            ) from problem
    after = answer["applied"]
    journal.update(heads_after=heads(after))
    return {
        "changed": after != before,
        "applied": after,
        "heads": heads(after),
        "reversed": answer["plan"],
        "lost": lost,
        "seconds": progress.done,
    }
