# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rehearse the pending migrations on the scratch copy: forward and back, one at a time, and see what is left.

What a migration says of itself is held against what it does: schema and rows after going back are compared with those
before. A difference means that it cannot be reversed, whatever it claims.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._agent import Agent, AgentProblem
from ansible_collections.runbook.deploy.plugins.module_utils._agent_rehearse import strongest
from ansible_collections.runbook.deploy.plugins.module_utils._compare import differences
from ansible_collections.runbook.deploy.plugins.module_utils._database import Engine
from ansible_collections.runbook.deploy.plugins.module_utils._lock_sampler import LockSampler
from ansible_collections.runbook.deploy.plugins.module_utils._plan import NO, UNKNOWN, YES, overall
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

WHEN = ("auto", "always", "never")
# Locks for which readers or writers wait: of PostgreSQL, as seen on the copy, and of the others, as _locks.py knows them.
HELD = ("ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock")
KNOWN = ("COPY", "write")
# Seconds of waiting that are worth a note.
WORTH_A_NOTE = 1.0
# Differences that are kept of each migration.
SHOWN = 10


def wanted(when: str, pending: Sequence[Any], applied: Sequence[Any]) -> bool:
    """Return whether a rehearsal is to be held.

    With ``auto`` not where nothing is pending, and not for a first deployment: an empty database has nothing that could be lost,
    and nothing to go back to.
    """
    if when == "never" or not pending:
        return False
    return when == "always" or bool(applied)


def judge(migration: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, str]:
    """Return ``{reversible, destructive}`` of *migration* after its rehearsal.

    :param migration: an entry of the plan, judged from its operations.
    :param found: ``{backward_seconds, schema, rows}``: seconds of going back (None: it was not done), and what differed then.

    The rehearsal can prove what was unknown and refute what was claimed; it never makes good what was judged bad, because other
    rows than today's may be there when it counts.
    """
    reversible, destructive = migration["reversible"], migration["destructive"]
    if found["backward_seconds"] is None:
        return {"reversible": NO if found.get("failed") else reversible, "destructive": destructive}
    if found["schema"] or found["rows"]:
        return {"reversible": NO, "destructive": YES if found["rows"] else destructive}
    return {
        "reversible": YES if reversible == UNKNOWN else reversible,
        "destructive": NO if destructive == UNKNOWN else destructive,
    }


def merge(plan: Mapping[str, Any], found: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[str, Any]:
    """Return *plan* with what the rehearsal has *found* of each migration, as ``rehearsed`` and in its judgement."""
    migrations = []
    for migration in plan["migrations"]:
        rehearsed = found.get((migration["app"], migration["name"]))
        if rehearsed is None:
            migrations.append(dict(migration))
            continue
        judged = judge(migration, rehearsed)
        migrations.append(
            {**migration, **judged, "rehearsed": {**rehearsed, "reversible": judged["reversible"]}}
        )
    return {**plan, "migrations": migrations, **overall(migrations)}


def blocking(migrations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return ``[{migration, seconds, tables}]`` of the *migrations* during which visitors wait, the longest first.

    :param migrations: of a plan that was rehearsed. On PostgreSQL the locks count that were held on the copy; elsewhere those that
        its statements are known to take. The whole time counts: a lock is given back at the end of a transaction.
    """
    found = []
    for migration in migrations:
        seen = migration.get("rehearsed")
        if not seen:
            continue
        held = [entry for entry in seen["locks"] if entry["lock"] in HELD]
        held += [entry for entry in migration.get("locks", ()) if entry["lock"] in KNOWN]
        if held:
            found.append(
                {
                    "migration": f"{migration['app']}.{migration['name']}",
                    "seconds": seen["forward_seconds"],
                    "tables": sorted({entry["table"] for entry in held if entry["table"]}),
                }
            )
    return sorted(found, key=lambda entry: (-entry["seconds"], entry["migration"]))


def tables_in(snapshot: Mapping[str, Any]) -> set[str]:
    """Return the tables of a PostgreSQL *snapshot*, partitioned ones too, named as locks name them: without the schema ``public``."""
    places = (key[7:].rsplit(".", 1)[0] for key in snapshot["schema"] if key.startswith("column "))
    return set(snapshot["rows"]) | {place.removeprefix("public.") for place in places}


def require_short(plan: Mapping[str, Any], limit: float) -> None:
    """Refuse a *plan* whose rehearsal shows that visitors would wait for one migration longer than *limit* seconds; 0: never.

    :raises Problem: naming the longest.
    """
    longest = next(iter((plan.get("rehearsal") or {}).get("blocking") or ()), None)
    if limit > 0 and longest and longest["seconds"] > limit:
        raise Problem(
            f"The migration {longest['migration']} took {longest['seconds']:.1f} s on the copy of the database and keeps {in_words(longest)} "
            f"locked meanwhile, above app_migrate_blocking_limit of {limit:g} s; nothing live was touched: split it into steps that "
            "lock shortly, or raise the limit and deploy in a window of that length."
        )


def in_words(entry: Mapping[str, Any]) -> str:
    """Return the tables of *entry*, as :func:`blocking` has it."""
    names = entry["tables"]
    return (", ".join(names[:5]) + (", …" if len(names) > 5 else "")) or "tables"


class NeedsNetwork(Exception):
    """A migration failed after it was refused a connection; its text is the note for the operator."""


class Rehearsal:
    """One rehearsal in the process *agent*, whose database is *scratch*.

    :param limit: seconds for all migrations forward.
    :param when: ``auto``: a migration that needs the network ends the rehearsal; ``always``: it ends the deployment.
    """

    def __init__(
        self,
        agent: Agent,
        engine: Engine,
        scratch: Mapping[str, Any],
        *,
        limit: float,
        lock_timeout: float,
        when: str = "auto",
    ) -> None:
        self.when = when
        self.agent = agent
        self.engine = engine
        self.scratch = dict(scratch)
        self.limit = limit
        self.lock_timeout = lock_timeout
        self.locks: list[dict[str, str]] = []
        # Addresses, of the whole rehearsal and of the present migration.
        self.refused: list[str] = []
        self.refused_now: list[str] = []

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event.get("event") == "locks":
            self.locks += [entry for entry in event["locks"] if entry not in self.locks]
        elif event.get("event") == "refused":
            for listed in (self.refused, self.refused_now):
                if event["address"] not in listed:
                    listed.append(str(event["address"]))

    def run(
        self, plan: Mapping[str, Any], applied: Sequence[Sequence[str]]
    ) -> tuple[dict[str, Any], list[str]]:
        """Return the merged plan, and notes for the operator.

        :param applied: what is applied on the scratch now.
        :raises Problem: when a migration fails going forward, or all of them take longer than the limit.
        """
        isolated = self.agent.call("isolate")
        self.agent.call("tell_locks")
        found: dict[tuple[str, str], dict[str, Any]] = {}
        stages: list[tuple[tuple[str, str], list[list[str]], dict[str, Any]]] = []
        rows, ended = [list(row) for row in applied], []
        existing: set[str] | None = None
        for migration in plan["migrations"]:
            key = (migration["app"], migration["name"])
            before = self.engine.snapshot(self.scratch)
            if existing is None:
                existing = tables_in(before)
            try:
                with self._watched(migration) as sampler:
                    seen = self._forward(key, sum(entry["forward_seconds"] for entry in found.values()))
                if sampler is not None:
                    told = {("public", entry["table"], entry["lock"]) for entry in seen["locks"]}
                    seen["locks"] = strongest(told | sampler.seen)
                # Nobody can wait for a table that the same deployment makes.
                seen["locks"] = [entry for entry in seen["locks"] if entry["table"] in existing]
            except NeedsNetwork as needs:
                # What it left of itself is unknown, so nothing is compared any more.
                ended, stages = [str(needs)], []
                break
            stages.append((key, [list(row) for row in rows], before))
            found[key] = seen
            rows.append(list(key))
        forward = sum(entry["forward_seconds"] for entry in found.values())
        if forward > self.limit:
            raise Problem(
                f"The pending migrations took {forward:.1f} s on the copy of the database, above app_migrate_time_limit of "
                f"{self.limit:g} s; nothing live was touched: raise the limit and plan a window of that length, or make them quicker."
            )
        notes = ended + [
            f"connections to {address} were refused while migrations were rehearsed"
            for address in self.refused
        ]
        judged = {(entry["app"], entry["name"]): entry["reversible"] for entry in plan["migrations"]}
        for key, before, snapshot in reversed(stages):
            if judged[key] == NO:
                # Known from its operations; what comes before it cannot be reached any more.
                break
            if not self._backward(key, before, snapshot, found[key]):
                break
        merged = merge(plan, found)
        merged["rehearsal"] = {
            "forward_seconds": round(forward, 3),
            "backward_seconds": round(sum(entry["backward_seconds"] or 0.0 for entry in found.values()), 3),
            "blocking": blocking(merged["migrations"]),
            **isolated,
        }
        notes += [
            f"while {entry['migration']} runs visitors wait for {in_words(entry)}: up to {entry['seconds']:.1f} s on the copy"
            for entry in merged["rehearsal"]["blocking"]
            if entry["seconds"] >= WORTH_A_NOTE
        ]
        return merged, notes

    def _watched(self, migration: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
        """Return what looks at the locks of *migration* from outside, where it has no transaction at whose end it could tell."""
        client = getattr(self.engine, "client", None)
        if self.engine.name != "postgresql" or migration.get("atomic", True) or client is None:
            return contextlib.nullcontext()
        return LockSampler(client, str(self.scratch["name"]))

    def _forward(self, key: tuple[str, str], used: float) -> dict[str, Any]:
        name = ".".join(key)
        self.locks, self.refused_now = [], []
        begun = time.monotonic()
        left = max(1.0, self.limit - used)
        try:
            self.agent.call(
                "apply",
                timeout=left + 1.0,
                on_event=self,
                expected=[list(key)],
                lock_timeout=self.lock_timeout,
                target=name,
            )
        except AgentProblem as problem:
            if problem.reason == "time":
                raise Problem(
                    f"The migration {name} had not ended on the copy of the database when app_migrate_time_limit of {self.limit:g} s was "
                    "over; nothing live was touched: raise the limit and plan a window of that length, or make it quicker.",
                    problem.evidence,
                ) from problem
            cure = "correct it and deploy the correction"
            if self.refused_now and problem.reason == "application":
                needed = ", ".join(self.refused_now)
                if self.when == "auto":
                    raise NeedsNetwork(
                        f"the rehearsal ended at {name}, which failed without a connection to {needed}: it and what comes after it are "
                        "judged by their operations alone"
                    ) from problem
                cure = (
                    f"connections are off then, and it tried {needed}: give it another address in app_migrate_rehearse_environment, or "
                    "set app_migrate_rehearse to auto"
                )
            raise Problem(
                f"The migration {name} failed in the rehearsal on a copy of the database; nothing live was touched: {cure}. "
                f"{problem.message}",
                problem.evidence,
            ) from problem
        return {
            "forward_seconds": round(time.monotonic() - begun, 3),
            "backward_seconds": None,
            "locks": self.locks,
            "schema": [],
            "rows": [],
        }

    def _backward(
        self,
        key: tuple[str, str],
        before: list[list[str]],
        snapshot: Mapping[str, Any],
        found: dict[str, Any],
    ) -> bool:
        """Go back behind *key* and compare with *snapshot*; return whether going further back makes sense."""
        # What going back locks is no part of what was told of going forward.
        self.locks = []
        begun = time.monotonic()
        try:
            self.agent.call(
                "reverse",
                timeout=self.limit,
                on_event=self,
                target=before,
                lock_timeout=self.lock_timeout,
            )
        except AgentProblem as problem:
            # Not the end of a deployment: it only has no way back over this migration.
            found["failed"] = problem.message
            return False
        found["backward_seconds"] = round(time.monotonic() - begun, 3)
        seen = differences(snapshot, self.engine.snapshot(self.scratch))
        found["schema"], found["rows"] = seen["schema"][:SHOWN], seen["rows"][:SHOWN]
        # Further back the same difference would be seen again, and be laid to migrations that have no part in it.
        return not seen["schema"] and not seen["rows"]
