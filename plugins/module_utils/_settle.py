# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first and the last step of a deployment on a host: lock and record, then proof, verdict, retention, unlock.

Both take the options of the module ``deployment_record`` and return its answer.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import (
    _detached,
    _former,
    _installed,
    _lock,
    _record,
    _record_retention,
    _retention,
    _state,
)
from ansible_collections.runbook.deploy.plugins.module_utils._backup import forget_scratch
from ansible_collections.runbook.deploy.plugins.module_utils._database import engine_of, named
from ansible_collections.runbook.deploy.plugins.module_utils._due import due_of
from ansible_collections.runbook.deploy.plugins.module_utils._ending import await_ended
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    ADOPTED,
    DEPLOYMENT_ID,
    Layout,
    read_json,
    remove_tree,
)
from ansible_collections.runbook.deploy.plugins.module_utils._measured import mismatches
from ansible_collections.runbook.deploy.plugins.module_utils._previous import live_before
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._processes import application_processes

NOTHING_REMOVED: dict[str, list[str]] = {
    "releases": [],
    "environments": [],
    "instances": [],
    "backups": [],
    "former": [],
    "records": [],
    "errors": [],
}
# Verdicts that say what serves: none of them is written where something else does.
MEASURED = ("success", "rolled_back", "abandoned")


def begin(layout: Layout, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Take the lock and write the record; return the module's answer.

    :raises Problem: when another run holds the lock, or one was interrupted and is not taken over.
    """
    about = {key: value for key, value in params["about"].items() if key in _record.ABOUT}
    unknown = sorted(set(params["about"]) - set(_record.ABOUT))
    if unknown:
        raise Problem(
            f"The option about has {', '.join(unknown)}, expected only {', '.join(_record.ABOUT)}: remove the rest."
        )
    if about.setdefault("kind", "deployment") not in _record.KINDS:
        raise Problem(
            f"The option about.kind is {about['kind']!r}, expected one of {', '.join(_record.KINDS)}: correct it."
        )
    records = _record.read_records(layout)
    lock = _lock.read_lock(layout)
    finished = {record["id"] for record in records if record["verdict"] is not None}
    stopped = _record.interrupted(records, lock)
    if lock and not _lock.may_take(lock, force=params["take_over"], finished=finished):
        raise Problem(_lock.held_message(layout, lock), lock=_lock.public(lock), interrupted=stopped)
    goes_on = params["take_over"] or params["resume"]
    if stopped and not goes_on:
        raise Problem(
            f"The {stopped['kind']} {stopped['id']} began at {stopped['begun']} and ended in phase {stopped['phase']} "
            f"without a verdict: take it back with playbooks/resume.yml (or playbooks/rollback.yml {_lock.TAKE_OVER}), or deploy over it "
            f"with playbooks/deploy.yml {_lock.TAKE_OVER}.",
            interrupted=stopped,
        )
    # Whether its lock is past or taken over.
    dead = _record.interrupted(records, None)
    left = _detached.left_at_work(layout, dead["id"]) if dead else []
    if left:
        raise Problem(
            f"The process {left[0].pid} of the application still works for {dead['kind']} {dead['id']}, whose run is dead, and nothing "
            "may begin beside it: wait until it has ended; playbooks/resume.yml waits for it and goes on from there.",
            interrupted=dead,
        )
    previous = live_before(layout, records)
    if previous is None and params["adopt"].get("service"):
        previous = {"release": None, "deployment": ADOPTED, "commit": None, "version": None}
    if check_mode:
        return {"record": None, "previous": previous, "interrupted": stopped, "lock": None}
    deployment = _record.make_id(_record.newest_id(layout))
    token = secrets.token_hex(16)
    taken, _before = _lock.acquire(
        layout,
        deployment=deployment,
        token=token,
        owner=str(about.get("operator") or ""),
        host=str(about.get("controller") or ""),
        kind=about["kind"],
        lease=params["lease"],
        force=params["take_over"],
        finished=finished,
    )
    try:
        # Measured again: between the first look and the lock another run may have come and gone.
        records = _record.read_records(layout)
        stopped = _record.interrupted(records, None)
        if stopped and not goes_on:
            raise Problem(f"The deployment {stopped['id']} was interrupted just now: try again.")
        previous = live_before(layout, records) or previous
        _record.write_record(
            layout,
            _record.new_record(
                deployment=deployment,
                token=token,
                host=params["host"],
                primary=True,
                about=about,
                previous=previous,
                begun=taken["since"],
            ),
        )
        _record.close_unfinished(layout, deployment)
    except BaseException:
        # Nothing has begun: the lock of a record that does not exist would only be in the way.
        _lock.release(layout, token)
        raise
    return {
        "record": {
            "id": deployment,
            "token": token,
            "host": params["host"],
            "primary": True,
            "about": about,
        },
        "previous": previous,
        "interrupted": stopped,
        "lock": _lock.public(taken),
    }


def finish(layout: Layout, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Measure, write the verdict, remove what is surplus, release the lock; return the module's answer.

    :raises Problem: when what is measured is not what the verdict says, or the record is another run's.
    """
    given = params["record"]
    deployment = given["id"]
    _record.must_be_newest(layout, deployment)
    record = load(layout, given, params["verdict"])
    lock = _lock.read_lock(layout)
    if given["primary"] and record["verdict"] and (lock is None or lock["token"] != given["token"]):
        # Finished and unlocked before; what may be removed is now the business of later deployments.
        return {"record": _record.public(record), "state": None, "removed": NOTHING_REMOVED, "unstored": []}
    if given["primary"] and not check_mode:
        _lock.renew(layout, given["token"], "finish")
    at_work = _detached.working(layout)
    if at_work and at_work["deployment"] == deployment:
        raise Problem(
            f"The phase {at_work['phase']} of {deployment} still runs as process {at_work['pid']} since {at_work['since']}, "
            "so nothing was finished and the lock is kept: playbooks/resume.yml waits for it and goes on from there."
        )
    left = [] if check_mode else ended(layout, params)
    state = _state.measure(
        layout,
        services=services_expected(layout, params["expect"], params["services"]),
        user=params["user"],
        database=named(params["database"]),
        database_admin=params["database_admin"],
        framework=params["framework"],
        adopt=params["adopt"] or None,
        own=deployment,
    )
    if params["expect"] and params["verdict"] in MEASURED:
        wrong = mismatches(state, params["expect"])
        wrong += [clause for clause in left if clause not in wrong]
        expected = (
            f"release {params['expect'].get('release')} of deployment {params['expect'].get('deployment')}"
        )
        if params["expect"].get("nothing"):
            expected = "nothing"
        if wrong:
            raise Problem(
                f"The verdict {params['verdict']} of {deployment} on {given['host'] or 'this host'} is not what is "
                f"measured: expected {expected}, found that {'; '.join(wrong)}: nothing was finished and the lock is "
                "kept; see playbooks/status.yml, then roll back or deploy again.",
                state=state,
            )
    record.update(
        verdict=params["verdict"],
        finished=_lock.timestamp(),
        failures=params["failures"],
        decision=params["decision"],
        gates=params["gates"],
        notifications=params["notifications"],
        measured={
            "current": state["current"],
            "services": state["services"],
            "heads": state["heads"] if named(params["database"]) else None,
            "health": params["health"],
            "at": _lock.timestamp(),
        },
    )
    if given["primary"] and params["verdict"] == "success" and record["kind"] == "deployment":
        record["due"] = due_of(params["due_tasks"], time.time())
    result: dict[str, Any] = {"record": _record.public(_record.plain(record)), "state": state}
    result["before"] = gates_before(_record.read_records(layout), deployment)
    if not check_mode:
        _record.write_record(layout, record)
        mark_undone(layout, params["undone"], deployment)
    records = _record.read_records(layout)
    runs = [(entry.deployment, entry.release) for entry in application_processes(layout.root)]
    live = (state["current"] or {}).get("release")
    if params["remove_release"]:
        result["failed_release"] = _retention.discard_release(
            layout,
            params["remove_release"],
            live=live,
            records=records,
            running=[release for _id, release in runs],
            check_mode=check_mode,
        )
    # The target and the releases are others now that the verdict is written.
    after = {**state, **targets(layout, records, live, state["adopted"] is not None)}
    result["removed"] = _retention.apply(
        layout,
        after,
        records,
        running=runs,
        keep=params["keep"],
        keep_backups=params["keep_backups"],
        keep_backups_days=params["keep_backups_days"],
        keep_backups_minimum=params["keep_backups_minimum"],
        check_mode=check_mode,
    )
    engine = engine_for(params)
    if engine is not None:
        days = params["keep_former_days"]
        gone, errors = _former.prune(layout, engine, records, days, check_mode=check_mode)
        result["removed"]["former"] = gone
        result["removed"]["errors"] += errors
    result["state"] = {**state, **targets(layout, records, live, state["adopted"] is not None)}
    prune_records(layout, params, result, records, [entry for entry, _name in runs], check_mode)
    if not check_mode:
        _detached.forget(layout)
        # Copies of the database, of this run and of runs that are dead: whoever holds the lock is the only one that lives.
        copies = [entry for entry in layout.scratch.glob("*") if DEPLOYMENT_ID.match(entry.name)]
        # Archives were pushed for this release, which is built by now or will never be.
        for leftover in [*copies, *layout.scratch.glob("*.archive")]:
            try:
                if leftover in copies:
                    forget_scratch(engine_for(params), leftover)
                else:
                    remove_tree(leftover)
            except Problem as problem:
                result["removed"]["errors"].append(problem.message)
            except OSError as error:
                result["removed"]["errors"].append(
                    f"{leftover} could not be removed ({error.strerror}): remove it by hand."
                )
        if given["primary"]:
            _lock.release(layout, given["token"])
            result["state"]["lock"] = None
    return result


def prune_records(
    layout: Layout,
    params: dict[str, Any],
    result: dict[str, Any],
    records: list[dict[str, Any]],
    busy: list[str],
    check_mode: bool,
) -> None:
    """Remove surplus records and enter into *result* what went, what the controller lacks, and what could not go.

    :param result: the module's answer so far, with the state as it is after everything else was removed.
    :param busy: deployments whose processes run.
    """
    state, removed = result["state"], result["removed"]
    found = {(state[key] or {}).get("deployment") for key in ("current", "target")}
    removed["records"], result["unstored"], errors = _record_retention.prune_records(
        layout,
        records,
        keep=params["keep_records"],
        serving={*found, *busy, params["record"]["id"]} - {None},
        releases={entry["name"] for entry in state["releases"]},
        backups={name for name, _made in _retention.list_backups(layout)} - set(removed["backups"]),
        stored=params["stored_records"],
        own=params["record"]["id"],
        check_mode=check_mode,
    )
    removed["errors"] += errors


def engine_for(params: dict[str, Any]) -> Any:
    """Return the engine of the options; None on a host that has nothing to do with the database."""
    database = named(params["database"])
    return engine_of(database, params["database_admin"], params["user"]) if database else None


def ended(layout: Layout, params: dict[str, Any]) -> list[str]:
    """Wait for what ends of other deployments than the expected one; return what still runs of them, as clauses for a sentence.

    :raises Problem: when it cannot be ended, and the verdict says what serves.
    """
    given, expect = params["record"], params["expect"]
    if not expect or not params["name"]:
        return []
    measured = params["verdict"] in MEASURED
    token = given["token"] if given["primary"] else None
    try:
        with _lock.kept_renewed(layout, token, "finish"):
            return await_ended(
                layout, params["name"], params["stage"], expect.get("deployment") or "", measured
            )
    except Problem:
        # Somebody will look at the host, and what is measured says the same.
        if measured:
            raise
        return []


def services_expected(
    layout: Layout, expect: dict[str, Any], services: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the services that are to be measured: those of the instance that is expected, which may have others
    than *services*, those of today's inventory."""
    deployment = expect.get("deployment") or ""
    if not DEPLOYMENT_ID.match(deployment):
        return services
    try:
        found = read_json(layout.instance_file(deployment))
    except (ValueError, OSError):
        return services
    own = found.get("services") if isinstance(found, dict) else None
    return own or services


def targets(layout: Layout, records: list[dict[str, Any]], live: str | None, adopted: bool) -> dict[str, Any]:
    """Return the members ``releases`` and ``target`` of the state, from the disk as it is now."""
    releases = _installed.list_releases(layout, [record.get("release") or "" for record in records])
    complete = {entry["name"] for entry in releases if entry["complete"]}
    return {"releases": releases, "target": _record.rollback_target(records, live, complete, adopted)}


def load(layout: Layout, given: dict[str, Any], verdict: str) -> dict[str, Any]:
    """Return the record of *given*, made now on a host where no phase began.

    :raises Problem: when it is damaged, another run's, or on the primary finished with another verdict.
    """
    path = layout.record(given["id"])
    try:
        found = read_json(path)
    except (ValueError, OSError) as error:
        raise Problem(
            f"The record {str(path)!r} cannot be read ({error}): move it away and finish again."
        ) from error
    if found is None:
        found = _record.new_record(
            deployment=given["id"],
            token=given["token"],
            host=given["host"],
            primary=bool(given["primary"]),
            about=given.get("about") or {},
            previous=live_before(layout, _record.read_records(layout)),
        )
    if found.get("token") != given["token"]:
        raise Problem(f"The record {str(path)!r} belongs to another run: it is left as it is.")
    if found["verdict"] not in (None, verdict) and found["primary"]:
        # Other hosts follow the primary, which finishes last: their success ends when it takes the fleet back.
        raise Problem(
            f"The deployment {given['id']} is finished already with the verdict {found['verdict']}, not {verdict}: "
            "a verdict of the primary is never changed."
        )
    return found


def gates_before(records: list[dict[str, Any]], deployment: str) -> dict[str, Any]:
    """Return what the gates of the last success before *deployment* saw: ``{id, version, gates: {moment: {check: observed}}}``.

    :param records: newest first; {} where there was none.
    """
    for record in records:
        good = record.get("kind") == "deployment" and record.get("verdict") == "success"
        gates = record.get("gates")
        if good and record["id"] < deployment and isinstance(gates, dict) and any(gates.values()):
            values = {
                moment: {str(c.get("name")): str(c.get("observed")) for c in checks if isinstance(c, dict)}
                for moment, checks in gates.items()
                if isinstance(checks, list)
            }
            return {"id": record["id"], "version": record.get("version"), "gates": values}
    return {}


def mark_undone(layout: Layout, undone: list[str], by: str) -> None:
    """Write into the records of the deployments *undone*, where there are such, that *by* took them back."""
    for record in _record.read_records(layout) if undone else []:
        if record["id"] in undone and record["id"] != by:
            _record.write_record(layout, {**record, "undone_by": by})
