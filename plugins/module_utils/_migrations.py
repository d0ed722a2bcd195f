# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the migrate phases of every framework share: the record of each step, the words for a failure, the initial command.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._agent import Agent, AgentProblem
from ansible_collections.runbook.deploy.plugins.module_utils._application import Installed
from ansible_collections.runbook.deploy.plugins.module_utils._command import run
from ansible_collections.runbook.deploy.plugins.module_utils._database import applied as applied_in
from ansible_collections.runbook.deploy.plugins.module_utils._database import heads, named
from ansible_collections.runbook.deploy.plugins.module_utils._detached import note
from ansible_collections.runbook.deploy.plugins.module_utils._layout import read_json, write_json
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import Journal

# How often, and with how many seconds between, a server is asked what is applied after a failure.
READ_ATTEMPTS = 6
READ_PAUSE = 2.0
# Statements that a sentence names.
SHOWN_STATEMENTS = 5


def agent_of(target: Installed, limit: float, framework: str = "django") -> Agent:
    """Return a process in the release *target*; *limit*: seconds for everything that is asked of it."""
    return Agent(
        python=target.python,
        cwd=target.cwd,
        variables=target.variables,
        user=target.user,
        secrets=target.secrets,
        limit=limit,
        framework=framework,
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


def is_current(
    target: Installed,
    journal: Journal,
    *,
    framework: str,
    verified: Sequence[Sequence[str]],
    live: Mapping[str, Any] | None,
    initial_command: Sequence[str],
) -> bool:
    """Return whether the live database is what the release needs already, so that there is nothing to apply.

    It is then written as the phase ``migrate``, with what is applied, and the application need not be started for it.

    :param framework: as :func:`_database.applied` takes it.
    :param verified: what was applied on the copy on which the same code has just found nothing pending and ``migrate``
        inert. The live database must have exactly these rows now.
    :param initial_command: what is due when it failed before.
    """
    if not named(live) or (initial_command and target.layout.initial_command.exists()):
        return False
    rows = applied_in(live, framework, None, target.user)
    # Without any rows the database is empty, as before the first deployment.
    if not rows or [list(row) for row in rows] != [list(row) for row in verified]:
        return False
    with journal.phase("migrate") as entry:
        remember_before(target, journal, rows)
        journal.update(heads_after=heads(rows))
        entry.update(seconds=[], pending=0)
    return True


class Progress:
    """What has happened to the live database, written into the record at each step.

    ``running``: the event of the migration that has begun and not ended, with ``operation`` (the event of the one
    that was begun last), ``statements`` (those that were executed in it and are not rolled back with the migration)
    and ``finished`` (how many operations before it were executed). ``blocked``, ``invalid_indexes``: what the process
    told about a failure.

    :param rows: the applied migrations before the first step.
    """

    def __init__(self, journal: Journal, rows: Sequence[Sequence[str]]) -> None:
        self.journal = journal
        self.rows = [list(row) for row in rows]
        self.running: dict[str, Any] | None = None
        self.done: list[dict[str, Any]] = []
        self.blocked: list[str] = []
        self.invalid_indexes: list[str] = []
        self.retries = 0

    def __call__(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind in ("apply_start", "unapply_start"):
            self.running = {**event, "operation": None, "statements": []}
            note(f"{kind} {event['app']}.{event['name']}")
        elif kind == "operation" and self.running is not None:
            self.running.update(operation=dict(event), statements=[])
        elif kind == "statement" and self.running is not None:
            self.running["statements"].append(event["sql"])
        elif kind == "retry":
            self.retries += 1
        elif kind == "blocked":
            self.blocked = list(event["by"])
        elif kind == "invalid_indexes":
            self.invalid_indexes = list(event["indexes"])
        elif kind in ("apply_success", "unapply_success", "unrecorded"):
            self._ended(event)

    def _ended(self, event: Mapping[str, Any]) -> None:
        key = [event["app"], event["name"]]
        note(f"{event['event']} {event['app']}.{event['name']}")
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

    @property
    def failed_operation(self) -> dict[str, Any] | None:
        """``{index, of, description, deferred, statements}`` of the operation in which it stopped; None for none."""
        operation = (self.running or {}).get("operation")
        if not operation:
            return None
        facts = {key: operation[key] for key in ("index", "of", "description", "deferred")}
        return {**facts, "statements": list(self.running["statements"])}


def remember_before(target: Installed, journal: Journal, rows: Sequence[Sequence[str]]) -> None:
    """Write what is applied before the first step into the record; a second attempt keeps what the first found."""
    if journal.deployment is None:
        return
    found = read_json(target.layout.record(journal.deployment)) or {}
    if found.get("applied_before") is None:
        journal.update(applied_before=rows, heads_before=heads(rows))


def explain(
    agent: Agent,
    database: Mapping[str, Any] | None,
    framework: str,
    before: Sequence[Sequence[str]],
    progress: Progress,
    problem: AgentProblem,
    verb: str,
    user: str | None = None,
) -> Problem:
    """Return the problem for migrations that stopped half way: what is applied now is read, not assumed.

    :param database: ``app_database`` of the live database, by which it is read when the process is gone.
    :param framework: as :func:`_database.applied` takes it; :param verb: ``applied`` or ``reversed``.
    :param user: the application's user, as whom *database* is read.
    """
    now = rows_now(agent, database, framework, user)
    running = progress.running
    if running and now is not None:
        key = [running["app"], running["name"]]
        if (key in [list(row) for row in now]) == (verb == "applied"):
            # Killed between the end of its transaction and the word about it.
            progress.done.append({"app": key[0], "name": key[1], "seconds": None})
            progress.running = running = None
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
    if running and running.get("atomic"):
        parts.append(
            "its transaction is rolled back unless it had just ended"
            if now is None
            else "its transaction was rolled back, so nothing of it remains"
        )
    elif running and running.get("atomic") is False:
        parts.append(what_remains(progress))
    if progress.invalid_indexes:
        parts.append(
            f"it left the unusable index {', '.join(progress.invalid_indexes)}: DROP INDEX CONCURRENTLY before the next try"
        )
    if progress.blocked:
        tried = f" in {progress.retries + 1} attempts" if progress.retries else ""
        parts.append(
            f"a lock was not given{tried}, because of {', '.join(progress.blocked)}: end that or wait for it"
        )
    changed = (
        now is None or [list(row) for row in now] != [list(row) for row in before] or bool(progress.done)
    )
    if verb == "applied" and running and running.get("atomic") is False and remains(progress):
        # By this a rollback knows that nothing can take back what there is of it.
        progress.journal.update(half_done=[running["app"], running["name"]])
    text = "; ".join(parts)
    return Problem(
        f"{text}. {problem.message}",
        problem.evidence,
        applied=now,
        heads={} if now is None else heads(now),
        failed_migration=[running["app"], running["name"]] if running else None,
        failed_operation=progress.failed_operation,
        done=progress.done_keys,
        seconds=progress.done,
        live_changed=changed or bool(running and running.get("atomic") is False),
    )


def remains(progress: Progress) -> bool:
    """Return whether the running migration, which is not rolled back, has done anything; a statement that failed has not."""
    operation = progress.failed_operation
    if operation is None:
        return bool((progress.running or {}).get("statements"))
    return bool(operation["index"] > 1 or operation["deferred"] or operation["statements"])


def what_remains(progress: Progress) -> str:
    """Return what a migration that cannot be rolled back has done and not done, as far as it told."""
    operation = progress.failed_operation
    if operation is None:
        return "it is not rolled back as a whole, and stopped before its first operation"
    statements = operation["statements"]
    if operation["deferred"]:
        begun = (
            f"all of its {operation['of']} operations were executed, it stopped in {operation['description']}"
        )
    else:
        begun = (
            f"it is not rolled back as a whole: it stopped in its operation {operation['index']} of {operation['of']} "
            f"({operation['description']}), of which the {operation['index'] - 1} before remain done"
        )
    shown = "; ".join(statements[:SHOWN_STATEMENTS])
    more = f" and {len(statements) - SHOWN_STATEMENTS} more" if len(statements) > SHOWN_STATEMENTS else ""
    inside = f", and in it were executed: {shown}{more}" if statements else ", and nothing in it was executed"
    return f"{begun}{inside}; complete or undo these by hand, or restore the backup, before it is tried again"


def rows_now(
    agent: Agent, database: Mapping[str, Any] | None, framework: str, user: str | None = None
) -> list[list[str]] | None:
    """Return the rows that are applied now, by the process if it still answers, else by a look into *database*.

    A server that has just died may come back by itself, so it is asked for a while. None: they could not be read.
    """
    is_file = bool(database) and database.get("engine") == "sqlite"
    for attempt in range(1 if is_file else READ_ATTEMPTS):
        if attempt:
            time.sleep(READ_PAUSE)
        with contextlib.suppress(Problem):
            if not agent.finished:
                return agent.call("applied")["applied"]
        with contextlib.suppress(Problem):
            if database and database.get("engine"):
                return applied_in(database, framework, None, user) or []
        if agent.finished and not (database and database.get("engine")):
            break
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
