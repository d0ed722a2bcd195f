# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which rollback: decided from what the hosts answered and what the records say, and from nothing else.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._applied import (
    Migration,
    applied_since,
    worst,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# From the least to the most; `flags` comes with feature flags, `none` is for failures that need nothing undone.
LEVELS = ("none", "abandon", "code", "migrations", "restore", "stop")


def _names(migrations: Iterable[Migration]) -> str:
    names = [".".join(row) for row in migrations]
    if len(names) > 6:
        # A first deployment applies all of Django's own; the record has the whole list.
        return f"{len(names)} migrations ({', '.join(names[:2])} … {names[-1]})"
    return ", ".join(names)


def host_is_new(state: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Say whether a host serves what *record* deployed, or would after a reboot.

    An earlier instance of the same release is not what it deployed; where the instance is not known, the release counts.
    """
    releases = {record.get("release") or "", *record.get("releases", [])} - {""}
    ids = {record.get("id"), *record.get("undone", [])} - {None, ""}

    def deployed(found: Mapping[str, Any]) -> bool:
        instance = found.get("deployment")
        return found.get("release") in releases and (not ids or not instance or instance in ids)

    running = [service for service in state.get("services", []) if service.get("running")]
    return deployed(state.get("current") or {}) or any(deployed(service) for service in running)


def decide(
    *,
    record: Mapping[str, Any],
    states: Mapping[str, Mapping[str, Any] | None],
    primary: str,
    failures: Sequence[Mapping[str, Any]] = (),
    level: str = "",
    consent: bool = False,
) -> dict[str, Any]:
    """Decide how to take a deployment back.

    :param record: the record on the primary of the deployment to undo.
    :param states: what each host answered (``deployment_state``), None for a host that did not.
    :param primary: the name of the host that migrates.
    :param failures: what failed, ``{host, phase, reason, unreachable}`` each; empty for a rollback by hand.
    :param level: a level asked for by the operator, or "".
    :param consent: the operator accepts that writes since the backup are lost.
    :return: ``level``, ``reason``, ``revert`` (hosts that go back to the target), ``unknown`` (hosts that did not
        answer), ``reverse`` (migrations to undo), ``code_first`` (they are undone when the old code serves),
        ``without_consent`` (the level that nothing but consent stands against, or ""), ``target`` and ``commands``
        for a person to go on with.
    """
    unknown = sorted(host for host, state in states.items() if not state)
    reached = {host: state for host, state in states.items() if state}
    target = record.get("previous") or None
    revert = sorted(host for host, state in reached.items() if host_is_new(state, record))
    before = record.get("applied_before")
    plan = record.get("plan") or {}
    now = reached.get(primary, {}).get("applied") if primary in reached else None
    began = migration_began(record)
    reverse: list[list[str]] = []
    doubt = ""
    if began and primary not in reached:
        planned = [[m["app"], m["name"]] for m in plan.get("migrations", [])]
        if worst(planned, plan, "compatible") != "yes":
            doubt = f"the primary {primary} does not answer, so nobody knows which migrations are applied"
        # Otherwise the old code runs with any number of them, and the hosts that answer can go back.
    elif began and now is None and before:
        doubt = "the database does not say which migrations are applied"
    elif began and before is not None:
        # It is in the record before the first step: without it the phase ended before it applied anything.
        reverse = applied_since(now or [], before, plan)
    answer: dict[str, Any] = {"revert": revert, "unknown": unknown, "reverse": [], "target": target}

    def result(
        chosen: str, reason: str, undo: Sequence[list[str]] = (), without_consent: str = ""
    ) -> dict[str, Any]:
        return {
            **answer,
            "level": chosen,
            "reason": reason,
            "reverse": list(undo),
            # Old code that runs with what is applied goes first: no code ever meets a schema that lacks what it needs.
            "code_first": bool(undo) and worst(undo, plan, "compatible") == "yes",
            "without_consent": without_consent,
            "commands": commands(chosen, record, target, unknown, primary),
        }

    if level and doubt and level != "restore":
        return result("stop", f"rollback_level={level} was asked for, but {doubt}.")
    if level:
        return _asked(level, result, record, reverse, revert, consent)
    if not reached:
        return result(
            "stop",
            f"No host answers ({', '.join(unknown)}): nobody knows what is live, and a person has to look.",
        )
    if doubt:
        return result("stop", f"{doubt[0].upper()}{doubt[1:]}: a person has to look.")
    half = record.get("half_done")
    if half:
        return _half_done(result, record, plan, [half])
    if not revert and not reverse:
        unproven = (target or {}).get("proven") is False
        return result(
            "abandon",
            f"Nothing live was changed; what serves, of deployment {(target or {}).get('deployment')}, was never proved, and is left as "
            "it is."
            if unproven and not unknown
            else f"Nothing live was changed on {', '.join(sorted(reached))}, and what {', '.join(unknown)} serves is unknown."
            if unknown
            else "Nothing live was changed: no host serves the new release and no migration was applied.",
        )
    if target is None:
        return result("abandon", _first(revert, reverse))
    if not reverse:
        return result("code", f"No migration was applied: {_place(revert)} the release before.")
    if unknown and worst(reverse, plan, "compatible") != "yes" and switching_began(record):
        return result(
            "stop",
            f"{', '.join(unknown)} may serve the new release, which needs {_names(reverse)}, and the release before is not "
            "proved to run with that: a person has to look at that host first.",
        )
    return _with_migrations(result, record, reverse, plan, revert, consent)


def _half_done(
    result: Any, record: Mapping[str, Any], plan: Mapping[str, Any], half: list[list[str]]
) -> dict[str, Any]:
    """Choose the level where a migration failed and part of it remains: nothing takes back a part of a migration."""
    part = f"{_names(half)} failed, and part of it remains in the database"
    if not record.get("previous"):
        return result(
            "abandon", f"Nothing served before; {part}: complete or undo it before the next attempt."
        )
    if worst(half, plan, "compatible") == "yes":
        return result(
            "stop",
            f"{part}; the old code runs with that: a person has to complete or undo it before the next deployment.",
        )
    backup = record.get("backup") or {}
    if backup.get("id") and not backup.get("empty") and not record.get("traffic_taken"):
        return result(
            "restore",
            f"{part}, with which the old code is not proved to run: backup {backup['id']} is restored, if that loses no writes.",
        )
    return result("stop", f"{part}, with which the old code is not proved to run: a person has to decide.")


def _first(revert: Sequence[str], reverse: Sequence[Migration]) -> str:
    """Return why a deployment before which nothing served ends with nothing that serves."""
    kept = f"the database keeps {_names(reverse)} for the next attempt" if reverse else "the database stays"
    if revert:
        return f"Nothing served before this deployment: what it started on {', '.join(revert)} is stopped; {kept}."
    return f"Nothing served before and nothing serves now; {kept}."


def _place(revert: Sequence[str]) -> str:
    if not revert:
        return "the hosts still serve"
    return f"{', '.join(revert)} {'goes' if len(revert) == 1 else 'go'} back to"


def _with_migrations(
    result: Any,
    record: Mapping[str, Any],
    reverse: list[list[str]],
    plan: Mapping[str, Any],
    revert: Sequence[str],
    consent: bool,
) -> dict[str, Any]:
    """Choose the least level for a deployment whose migrations are applied."""
    names = _names(reverse)
    compatible = worst(reverse, plan, "compatible")
    reversible = worst(reverse, plan, "reversible")
    destructive = worst(reverse, plan, "destructive")
    lossless = reversible == "yes" and destructive == "no"
    if lossless and not revert and not record.get("traffic_taken"):
        # Nobody can have written to what is removed, and the next version meets the schema it was made for.
        return result(
            "migrations",
            f"The new release never took traffic, and {names} can be reversed without loss: the database goes back to where it was.",
            reverse,
        )
    if compatible == "yes":
        return result(
            "code",
            f"The old code runs with what was applied ({names}): {_place(revert)} the release before, the schema stays.",
        )
    if lossless:
        return result(
            "migrations",
            f"The old code is not proved to run with {names} (compatible: {compatible}), and each can be reversed: they are undone, then the code.",
            reverse,
        )
    why = f"{names} cannot be left (compatible: {compatible}) and cannot be reversed without loss (reversible: {reversible}, destructive: {destructive})"
    backup = record.get("backup") or {}
    if not backup.get("id") or backup.get("empty"):
        return result("stop", f"{why}, and there is no backup to restore: a person has to decide.")
    if consent or not record.get("traffic_taken"):
        # Until the new release took traffic the old one served: what it wrote is counted again by the restore itself.
        return result(
            "restore",
            f"{why}: backup {backup['id']} is restored, if that loses no writes or their loss was accepted.",
        )
    return result(
        "stop",
        f"{why}, and a restore of backup {backup['id']} would lose what was written since: accept that with -e rollback_consent=true, or repair by hand.",
        without_consent="restore",
    )


def _asked(
    level: str,
    result: Any,
    record: Mapping[str, Any],
    reverse: list[list[str]],
    revert: Sequence[str],
    consent: bool,
) -> dict[str, Any]:
    """Answer a level that the operator asked for, or `stop` with the reason why it cannot be."""
    plan, target = record.get("plan") or {}, record.get("previous") or None
    names = _names(reverse) or "nothing"
    if target is None and level in ("abandon", "stop"):
        return result("abandon", _first(revert, reverse))
    if level == "stop":
        return result(
            "stop",
            "rollback_level=stop was asked for, but there is a release to go back to: leave the level out, or take the application "
            "out of service with playbooks/remove.yml.",
        )
    if target is None and level not in ("abandon", "stop"):
        return result("stop", f"rollback_level={level} was asked for, but there is no release to go back to.")
    if level == "code":
        compatible = worst(reverse, plan, "compatible")
        if compatible != "yes":
            return result(
                "stop",
                f"rollback_level=code was asked for, but the old code is not proved to run with {names} (compatible: {compatible}).",
            )
        return result("code", f"Asked for by the operator; what was applied stays: {names}.")
    if level == "migrations":
        reversible = worst(reverse, plan, "reversible")
        if reversible != "yes":
            return result(
                "stop",
                f"rollback_level=migrations was asked for, but {names} cannot be reversed (reversible: {reversible}).",
            )
        if worst(reverse, plan, "destructive") != "no" and not consent:
            return result(
                "stop",
                f"rollback_level=migrations was asked for, but reversing {names} loses data: accept that with -e rollback_consent=true.",
            )
        return result("migrations", f"Asked for by the operator; undone first: {names}.", reverse)
    if level == "restore":
        return _asked_to_restore(result, record, consent)
    if level == "abandon" and (revert or reverse):
        return result(
            "stop",
            f"rollback_level=abandon was asked for, but what is live was changed: {', '.join(revert) or 'no host'} "
            f"serves the new release, applied are {names}.",
        )
    return result(level, "Asked for by the operator.")


def _asked_to_restore(result: Any, record: Mapping[str, Any], consent: bool) -> dict[str, Any]:
    """Answer `restore`, or refuse what the restore itself would refuse when every service is stopped already."""
    backup = record.get("backup") or {}
    if not backup.get("id") or backup.get("empty"):
        return result(
            "stop",
            "rollback_level=restore was asked for, but the record names no backup of a database with content.",
        )
    if record.get("traffic_taken") and not consent:
        return result(
            "stop",
            f"rollback_level=restore was asked for, but the new release has taken traffic, and backup {backup['id']} lacks "
            "what was written since: accept that with -e rollback_consent=true.",
            without_consent="restore",
        )
    return result("restore", f"Asked for by the operator; restored is backup {backup['id']}.")


def migration_began(record: Mapping[str, Any]) -> bool:
    """Say whether the record shows that migrations were, or may have been, applied."""
    return any(phase.get("phase") == "migrate" for phase in record.get("phases", []))


def switching_began(record: Mapping[str, Any]) -> bool:
    """Say whether the record shows that a host serves the new release, or may."""
    return bool(record.get("traffic_taken")) or any(
        phase.get("phase") == "restart" for phase in record.get("phases", [])
    )


def commands(
    level: str,
    record: Mapping[str, Any],
    target: Mapping[str, Any] | None,
    unknown: Sequence[str] = (),
    primary: str = "",
) -> list[str]:
    """Return the commands a person goes on with after *level*, the likeliest first.

    While hosts are *unknown*, the first one is that which brings all to one release when they answer again.
    """
    status = "ansible-playbook playbooks/status.yml -i <inventory>"
    if unknown:
        # The lock is on the primary: where that was lost, nobody gave it back.
        take_over = " -e deployment_take_over=true" if primary in unknown else ""
        back = f"rollback.yml -i <inventory>{take_over}"
        again = f"deploy.yml -i <inventory> -e version={record.get('version') or '<version>'}{take_over}"
        return [
            f"ansible-playbook playbooks/{back if target else again}  # when {', '.join(unknown)} answers again",
            status,
        ]
    if level != "stop":
        return [status]
    found = [status]
    if target:
        found.append("ansible-playbook playbooks/rollback.yml -i <inventory> -e rollback_level=migrations")
        found.append("ansible-playbook playbooks/rollback.yml -i <inventory> -e rollback_level=code")
    if (record.get("backup") or {}).get("id"):
        found.append(
            "ansible-playbook playbooks/rollback.yml -i <inventory> -e rollback_level=restore -e rollback_consent=true"
        )
    return found


def towards(records: Sequence[Mapping[str, Any]], to: str, complete: Iterable[str]) -> dict[str, Any]:
    """Return the record of everything that was done since the release *to* was live, to be undone as one.

    :param records: the primary's records, newest first.
    :param to: a deployment id, a release, a version, or at least seven digits of a commit.
    :param complete: the releases that are complete on the primary.
    :raises Problem: when no such deployment succeeded, when it is live already, or when its release is gone.
    """
    listed = list(records)
    position = next((i for i, record in enumerate(listed) if _named(record, to)), None)
    if position is None:
        known = ", ".join(
            dict.fromkeys(str(r.get("version") or r["id"]) for r in listed if r.get("verdict") == "success")
        )
        raise Problem(
            f"rollback_to is {to!r}, which no successful deployment had; there are: {known or 'none'}."
        )
    found = listed[position]
    # A rollback started an earlier deployment's instance again; that one is meant.
    instance = found.get("instance") or found["id"]
    newer = [record for record in listed[:position] if record.get("kind") != "rollback"]
    undo = [record for record in newer if not record.get("undone_by")]
    if not undo:
        raise Problem(f"rollback_to is {to!r}, which is what serves already.")
    if found.get("release") not in set(complete):
        raise Problem(
            f"rollback_to is {to!r}, but its release {found.get('release')} is no more on the host: deploy that version instead."
        )
    return {
        **undo[0],
        "previous": {
            "release": found.get("release"),
            "deployment": instance,
            "commit": found.get("commit"),
            "version": found.get("version"),
        },
        **_as_one(newer),
        "undone": [record["id"] for record in undo],
    }


def _as_one(newer: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the members of a record that stands for all of *newer*, newest first: what they applied, from the oldest on."""
    migrations: dict[tuple[str, str], Any] = {}
    phases: dict[str, Any] = {}
    for record in newer:
        for migration in (record.get("plan") or {}).get("migrations", []):
            migrations.setdefault((migration["app"], migration["name"]), migration)
        for phase in record.get("phases", []):
            phases.setdefault(phase.get("phase"), {"phase": phase.get("phase")})
    first = next((record for record in reversed(newer) if record.get("applied_before") is not None), {})
    return {
        "applied_before": first.get("applied_before"),
        "backup": first.get("backup") or {},
        "plan": {"migrations": list(migrations.values())},
        "half_done": next((record["half_done"] for record in newer if record.get("half_done")), None),
        "phases": list(phases.values()),
        "traffic_taken": next((r["traffic_taken"] for r in newer if r.get("traffic_taken")), None),
        "releases": sorted({record["release"] for record in newer if record.get("release")}),
    }


def through_unproven(record: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return *record* as one with the deployments before it that were never proved, so that its target is one that was.

    :param records: the primary's, in any order.
    :return: *record* itself where what served before it was proved, or has no record.
    """
    known = {entry["id"]: entry for entry in records}
    chain = [record]
    while (chain[-1].get("previous") or {}).get("proven") is False:
        older = known.get(chain[-1]["previous"].get("deployment"))
        if older is None or older in chain:
            break
        chain.append(older)
    if len(chain) == 1:
        return dict(record)
    return {
        **record,
        "previous": chain[-1].get("previous"),
        **_as_one(chain),
        "undone": [entry["id"] for entry in chain],
    }


def _named(record: Mapping[str, Any], to: str) -> bool:
    """Say whether *record* is a success that *to* names."""
    if record.get("verdict") != "success":
        return False
    commit = record.get("commit") or ""
    return to in (record["id"], record.get("release"), record.get("version")) or (
        len(to) >= 7 and commit.startswith(to)
    )


def forecast(plan: Mapping[str, Any], target: Mapping[str, Any] | None, backup: bool) -> list[dict[str, str]]:
    """Say before the deployment what would happen if a phase failed.

    :param plan: the migration plan; *target*: the release to go back to, or None; *backup*: whether there will be one.
    :return: ``{phase, level, reason}`` for each phase that can fail after the gates.
    """
    pending = [[m["app"], m["name"]] for m in plan.get("migrations", [])]
    applied = {
        "release": "new",
        "phases": [{"phase": "migrate"}],
        "plan": plan,
        "previous": target,
        "applied_before": [],
    }
    if backup:
        applied["backup"] = {"id": "the one just taken"}
    quiet = {"primary": {"applied": pending, "current": {"release": "old"}}}
    live = {"primary": {"applied": pending, "current": {"release": "new"}}}
    rows = [
        {
            "phase": "release to collectstatic",
            "level": "abandon",
            "reason": "Nothing live is changed by then.",
        }
    ]
    for phase, states, traffic in (
        ("migrate", quiet, None),
        ("restart", quiet, None),
        ("smoke_test", live, "yes"),
    ):
        if not pending and phase == "migrate":
            rows.append(
                {
                    "phase": phase,
                    "level": "abandon",
                    "reason": "No migration is pending, so there is nothing to undo.",
                }
            )
            continue
        answer = decide(record={**applied, "traffic_taken": traffic}, states=states, primary="primary")
        rows.append({"phase": phase, "level": answer["level"], "reason": answer["reason"]})
    return rows
