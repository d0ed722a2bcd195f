# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The migrate phases of an application with a command of its own, ``app_migrate_command``, of which nothing else is known.

The command is one migration that is always pending and of which every answer is ``unknown``; what is applied no table says.
Where it can be pointed at another database it is tried on the copy. When it leaves the copy as it was, and makes its tables
in an empty database, nothing is pending.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._application import Installed
from ansible_collections.runbook.deploy.plugins.module_utils._command import Finished, run
from ansible_collections.runbook.deploy.plugins.module_utils._compare import differences
from ansible_collections.runbook.deploy.plugins.module_utils._database import engine_of, on_scratch
from ansible_collections.runbook.deploy.plugins.module_utils._plan import (
    UNKNOWN,
    empty_plan,
    overall,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import Journal

# The application name under which the command is listed.
COMMAND = "command"
PLACES = ("path", "name", "host", "port", "user")
PLACEHOLDER = re.compile(r"\{(" + "|".join(PLACES) + r")\}")
# Differences that are shown.
SHOWN = 10


class Command(NamedTuple):
    """``words``: app_migrate_command; ``elsewhere``: app_migrate_command_environment, {} where it has only one database."""

    words: list[str]
    elsewhere: dict[str, str]

    @property
    def name(self) -> str:
        """What the plan calls it: its program, and the word after it that is no option."""
        words = [PurePath(str(word)).name for word in self.words[:2] if not str(word).startswith("-")]
        return " ".join(words)


def filled(elsewhere: Mapping[str, str], database: Mapping[str, Any]) -> dict[str, str]:
    """Return *elsewhere* with its placeholders replaced by what names *database*.

    :raises Problem: for a placeholder that the engine does not have, or where no value has one that says which database it is.
    """
    found: dict[str, str] = {}
    told = False
    key = "path" if database["engine"] == "sqlite" else "name"
    for variable, value in elsewhere.items():
        for place in PLACEHOLDER.findall(value):
            if not database.get(place) and place in ("path", "name"):
                raise Problem(
                    f"app_migrate_command_environment.{variable} has the placeholder {{{place}}}, which a database of the engine "
                    f"{database['engine']} does not have: use {{{key}}}."
                )
            told = told or place == key
        found[variable] = PLACEHOLDER.sub(lambda match: str(database.get(match.group(1)) or ""), value)
    if not told:
        raise Problem(
            f"app_migrate_command_environment has no {{{key}}} in any of its values, so the command would reach the live database "
            "when it is tried on the copy: add it, or leave the variable empty."
        )
    return found


def plan_of(command: Command, reason: str = "") -> dict[str, Any]:
    """Return the plan of a command of which nothing is known; *reason*: what is known all the same."""
    operation = {
        "name": "Command",
        "description": reason or "a command of the application's own, of which nothing is known",
        "reversible": UNKNOWN,
        "compatible": UNKNOWN,
        "destructive": UNKNOWN,
    }
    migration = {
        "app": COMMAND,
        "name": command.name,
        "operations": [operation],
        "atomic": False,
        **overall([operation]),
        "sql": None,
        "transactional": UNKNOWN,
        "locks": [{"table": "", "lock": UNKNOWN, "reason": "what the command locks is not known"}],
    }
    return {"migrations": [migration], **overall([migration]), "rebuilds": [], "remaining": []}


def judge_changes(command: Command, seen: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the plan after the command was tried on the copy.

    :param seen: ``{schema, rows}``: what it changed, as :func:`_compare.differences` says.
    """
    changes = [*seen["schema"], *seen["rows"]]
    if not changes:
        return empty_plan()
    more = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    return plan_of(command, f"on the copy it changed: {'; '.join(changes[:SHOWN])}{more}")


def execute(target: Installed, command: Command, limit: float, more: Mapping[str, str]) -> Finished:
    """Run the command with the application's variables and *more*."""
    return run(
        target.argv(command.words),
        cwd=target.cwd,
        environment={**target.variables, **more},
        user=target.user,
        timeout=limit,
        secrets=[*target.secrets, *command.elsewhere.values()],
    )


def _end(done: Finished, limit: float) -> str:
    return f"did not end within {limit:g} s" if done.timed_out else f"ended with exit code {done.rc}"


# --- verify ---


def verify(
    target: Installed,
    scratch: Mapping[str, Any] | None,
    live: Mapping[str, Any] | None,
    limit: float,
    *,
    command: Command,
    journal: Journal | None = None,
) -> dict[str, Any]:
    """Return ``{applied, heads, plan, notes, inert}``: try the command on the copy, where it can be pointed there.

    :param scratch: the copy; None: only the plan is made.
    :raises Problem: when it fails there.
    """
    answer: dict[str, Any] = {"applied": None, "heads": {}, "inert": False, "notes": []}
    if not scratch:
        return {**answer, "plan": plan_of(command)}
    if not command.elsewhere:
        note = (
            "app_migrate_command was not tried on the copy of the database: app_migrate_command_environment does not say how it is "
            "pointed there"
        )
        return {**answer, "plan": plan_of(command), "notes": [note]}
    database = on_scratch(live, scratch)
    variables = filled(command.elsewhere, database)
    engine = engine_of(database, None, target.user)
    with (journal or Journal(None, None, [])).phase("rehearse") as entry:
        before = engine.snapshot(dict(scratch))
        begun = time.monotonic()
        done = execute(target, command, limit, variables)
        entry["forward_seconds"] = round(time.monotonic() - begun, 3)
        if done.rc != 0:
            raise Problem(
                f"app_migrate_command {done.argv!r} {_end(done, limit)} on the copy of the database, expected exit code 0; nothing live "
                "was touched: correct the application and deploy the correction.",
                done.tail(),
                findings=[f"app_migrate_command {_end(done, limit)}"],
            )
        seen = differences(before, engine.snapshot(dict(scratch)))
        obeys = bool(seen["schema"] or seen["rows"]) or _obeys(target, command, database, limit)
    if not obeys:
        note = "app_migrate_command changed nothing on the copy of the database, and nothing proves that it was pointed there"
        return {**answer, "plan": plan_of(command), "notes": [note]}
    return {**answer, "plan": judge_changes(command, seen)}


def _obeys(target: Installed, command: Command, database: Mapping[str, Any], limit: float) -> bool:
    """Return whether the command makes its tables in an empty database when it is pointed there: then it went to the copy, too.

    For a file alone; on a server that would take another database.
    """
    if database["engine"] != "sqlite":
        return False
    empty = Path(database["path"]).with_name("empty.sqlite3")
    done = execute(target, command, limit, filled(command.elsewhere, {**database, "path": str(empty)}))
    if done.rc != 0 or not empty.exists():
        return False
    engine = engine_of({"engine": "sqlite", "path": str(empty)}, None, target.user)
    return bool(engine.snapshot({"engine": "sqlite", "path": str(empty)})["schema"])


# --- apply and reverse ---


def apply(
    target: Installed,
    journal: Journal,
    *,
    command: Command,
    plan: list[list[str]] | None,
    limit: float,
    judged: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Run the command on the live database.

    :param plan: what was verified; an empty one says that the command changed nothing on the copy. It runs all the same, as it may
        do other things than that.
    :param judged: the verified plan's migrations, for the answer.
    :raises Problem: with its last lines; what it has done by then nobody knows.
    """
    # Before the first step: from now on a rollback cannot take the old code for granted.
    journal.update(applied_before=[], heads_before={}, heads_after={})
    begun = time.monotonic()
    done = execute(target, command, limit, {})
    seconds = round(time.monotonic() - begun, 3)
    if done.rc != 0:
        journal.update(half_done=[COMMAND, command.name])
        raise Problem(
            f"app_migrate_command {done.argv!r} {_end(done, limit)}, expected exit code 0; what it has changed in the live database by "
            "then is not known: see its last lines, and restore the backup where it left something half done.",
            done.tail(),
            applied=None,
            heads={},
            failed_migration=[COMMAND, command.name],
            failed_operation=None,
            done=[],
            seconds=[],
            live_changed=True,
        )
    migrations = [dict(entry) for entry in judged or () if isinstance(entry, Mapping)]
    shown = plan_of(command) if plan is None else empty_plan()
    if migrations:
        shown = {**shown, **overall(migrations), "migrations": migrations}
    return {
        "changed": plan is None or bool(plan),
        "applied": None,
        "heads": {},
        "plan": shown,
        "seconds": [{"app": COMMAND, "name": command.name, "seconds": seconds}],
        "initial_command": False,
        "notes": [],
    }


def reverse() -> dict[str, Any]:
    """Refuse: nobody knows the way back of a command.

    :raises Problem: saying so.
    """
    raise Problem(
        "What app_migrate_command has done cannot be taken back, because nobody knows its way back; nothing was done: restore the "
        "backup instead, with playbooks/rollback.yml -e rollback_level=restore."
    )
