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
from ansible_collections.runbook.deploy.plugins.module_utils._policy import DEFAULT, choose
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Phases in which every host serves the new release already.
AFTER_THE_SWITCH = ("smoke_test", "watch")


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


def measure(
    record: Mapping[str, Any],
    states: Mapping[str, Mapping[str, Any] | None],
    primary: str,
    consent: bool,
    flags: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (the facts that a policy judges, see ``_policy.FACTS``; what they were made from, in lists and words)."""
    unknown = [host for host, state in states.items() if not state]
    reached = {host: state for host, state in states.items() if state}
    target, plan = record.get("previous") or None, record.get("plan") or {}
    revert = [host for host, state in reached.items() if host_is_new(state, record)]
    before = record.get("applied_before")
    now = reached[primary].get("applied") if primary in reached else None
    began = migration_began(record)
    reverse: list[list[str]] = []
    doubt = ""
    if began and primary not in reached:
        planned = [[m["app"], m["name"]] for m in plan.get("migrations", [])]
        if worst(planned, plan, "compatible") != "yes":
            doubt = f"the primary {primary} does not answer, so nobody knows which migrations are applied"
        # Otherwise the old code runs with any number of them, and the hosts that answer can go back.
    elif began and now is None and before and plan.get("migrations") != []:
        # Of a plan in which nothing was pending nothing can be applied.
        doubt = "the database does not say which migrations are applied"
    elif began and before is not None:
        # It is in the record before the first step: without it the phase ended before it applied anything.
        reverse = applied_since(now or [], before, plan)
    half = [record["half_done"]] if record.get("half_done") else []
    judged = [] if doubt else [*reverse, *half]
    backup = record.get("backup") or {}
    facts = {
        "answering": "none" if not reached else "some" if unknown else "all",
        "migrations": "unknown" if doubt else "partial" if half else "applied" if reverse else "none",
        "serving": bool(revert),
        "target": target is not None,
        "traffic": bool(record.get("traffic_taken")),
        **{key: worst(judged, plan, key) for key in ("compatible", "reversible", "destructive")},
        "backup": bool(backup.get("id")) and not backup.get("empty"),
        "consent": consent,
        "hidden": bool(unknown) and switching_began(record),
        "flags": flags and bool(revert) and not unknown and not half and not doubt,
    }
    found = {
        "unknown": unknown,
        "revert": revert,
        "reverse": reverse,
        "target": target,
        "doubt": doubt,
        "words": {
            "names": _names(reverse) or "nothing",
            "part": f"{_names(half)} failed, and part of it remains in the database",
            "place": _place(revert),
            "first": _first(revert, reverse),
            "doubt": doubt[:1].upper() + doubt[1:],
            "unknown": ", ".join(unknown),
            "backup": backup.get("id"),
            "untouched": _untouched(list(reached), unknown, target or {}),
            **{key: facts[key] for key in ("compatible", "reversible", "destructive")},
        },
    }
    return facts, found


def decide(
    *,
    record: Mapping[str, Any],
    states: Mapping[str, Mapping[str, Any] | None],
    primary: str,
    failures: Sequence[Mapping[str, Any]] = (),
    level: str = "",
    consent: bool = False,
    policy: Sequence[Mapping[str, Any]] = (),
    cures: Sequence[str] = (),
) -> dict[str, Any]:
    """Decide how to take a deployment back.

    :param record: the record on the primary of the deployment to undo.
    :param states: what each host answered (``deployment_state``), None for a host that did not.
    :param primary: the name of the host that migrates.
    :param failures: what failed, ``{host, phase, reason, unreachable, checks}`` each; empty for a rollback by hand.
    :param level: a level asked for by the operator, or "".
    :param consent: the operator accepts that writes since the backup are lost.
    :param policy: rows as those of ``_policy.DEFAULT``, which is taken where there are none.
    :param cures: phases and checks whose failure is cured by switching all feature flags off.
    :return: ``level``, ``rule`` (the row that chose it, "" for a level asked for), ``facts``, ``reason``, ``revert`` (hosts that go back
        to the target), ``unknown`` (hosts that did not answer), ``reverse`` (migrations to undo), ``code_first`` (they are undone when
        the old code serves), ``without_consent`` (the level that nothing but consent stands against, or ""), ``target``,
        ``commands`` for a person to go on with, and ``again``, those where going back fails.
    """
    rows = policy or DEFAULT
    facts, found = measure(record, states, primary, consent, cured(failures, cures))
    unknown, revert, reverse, target = (found[key] for key in ("unknown", "revert", "reverse", "target"))
    plan = record.get("plan") or {}

    def result(
        chosen: str, reason: str, undo: Sequence[list[str]] = (), without_consent: str = "", rule: str = ""
    ) -> dict[str, Any]:
        return {
            "revert": revert,
            "unknown": unknown,
            "target": target,
            "level": chosen,
            "rule": rule,
            "facts": facts,
            "reason": reason,
            "reverse": list(undo),
            # Old code that runs with what is applied goes first: no code ever meets a schema that lacks what it needs.
            "code_first": bool(undo) and worst(undo, plan, "compatible") == "yes",
            "without_consent": without_consent,
            "commands": commands(chosen, record, target, unknown, primary),
            "again": onward(record, target),
        }

    if level and found["doubt"] and level != "restore":
        return result("stop", f"rollback_level={level} was asked for, but {found['doubt']}.")
    if level:
        return _asked(level, result, record, reverse, revert, consent)
    row, refused = choose(rows, facts)
    chosen = row["level"]
    reason = f"{refused}." if refused else (row.get("because") or row["name"]).format_map(found["words"])
    without_consent = ""
    if chosen == "stop" and not consent:
        agreed = choose(rows, {**facts, "consent": True})[0]["level"]
        without_consent = agreed if agreed == "restore" else ""
    return result(chosen, reason, reverse if chosen == "migrations" else (), without_consent, row["name"])


def cured(failures: Sequence[Mapping[str, Any]], cures: Sequence[str]) -> bool:
    """Say whether everything that failed is cured by switching all features off: each phase, or each check of it, is in *cures*."""

    def is_cured(failure: Mapping[str, Any]) -> bool:
        if failure.get("unreachable") or failure.get("phase") not in AFTER_THE_SWITCH:
            return False
        checks = failure.get("checks") or []
        return failure["phase"] in cures or (bool(checks) and set(checks) <= set(cures))

    return bool(failures) and all(is_cured(failure) for failure in failures)


def _untouched(reached: Sequence[str], unknown: Sequence[str], target: Mapping[str, Any]) -> str:
    """Return why a deployment that changed nothing live is abandoned."""
    if unknown:
        return f"Nothing live was changed on {', '.join(reached)}, and what {', '.join(unknown)} serves is unknown."
    if target.get("proven") is False:
        return f"Nothing live was changed; what serves, of deployment {target.get('deployment')}, was never proved, and is left as it is."
    return "Nothing live was changed: no host serves the new release and no migration was applied."


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


def onward(record: Mapping[str, Any], target: Mapping[str, Any] | None) -> list[str]:
    """Return the commands a person goes on with where going back failed itself: first what goes on from what is measured then."""
    first = "ansible-playbook playbooks/rollback.yml -i <inventory> -e deployment_take_over=true  # goes on from what the hosts are then"
    restart = "ansible-playbook playbooks/rollback.yml -i <inventory> --tags restart  # starts what is down of what is live"
    return [first, restart, *commands("stop", record, target)]


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
    if found.get("detached"):
        raise Problem(
            f"rollback_to is {to!r}, but not all records since then are kept: deploy that version instead."
        )
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


def forecast(
    plan: Mapping[str, Any],
    target: Mapping[str, Any] | None,
    backup: bool,
    policy: Sequence[Mapping[str, Any]] = (),
    cures: Sequence[str] = (),
    watched: bool = False,
) -> list[dict[str, str]]:
    """Say before the deployment what would happen if a phase failed.

    :param plan: the migration plan; *target*: the release to go back to, or None; *backup*: whether there will be one.
    :param policy: see :func:`decide`; *cures*: likewise; *watched*: whether the deployment watches after its smoke test.
    :return: ``{phase, level, rule, reason}`` for each phase that can fail after the gates.
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
            "rule": "",
            "reason": "Nothing live is changed by then.",
        }
    ]
    after = [(phase, live, "yes") for phase in AFTER_THE_SWITCH if watched or phase != "watch"]
    for phase, states, traffic in (("migrate", quiet, None), ("restart", quiet, None), *after):
        if not pending and phase == "migrate":
            rows.append(
                {
                    "phase": phase,
                    "level": "abandon",
                    "rule": "",
                    "reason": "No migration is pending, so there is nothing to undo.",
                }
            )
            continue
        answer = decide(
            record={**applied, "traffic_taken": traffic},
            states=states,
            primary="primary",
            failures=[{"phase": phase}],
            policy=policy,
            cures=cures,
        )
        rows.append({"phase": phase, **{key: answer[key] for key in ("level", "rule", "reason")}})
    return rows


def forecast_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a person reads of :func:`forecast` before the first phase that changes something live."""
    width = max(len(row["phase"]) for row in rows)
    return [
        "the way back, decided before anything is live:",
        *(f"  if {row['phase']:<{width}} fails: {row['level']}: {row['reason']}" for row in rows),
    ]
