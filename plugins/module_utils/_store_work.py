# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``backup_store`` does for each of its states.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._backup import read_manifest, require_name
from ansible_collections.runbook.deploy.plugins.module_utils._environment import (
    ask_interpreter,
    is_built,
    secret_parts,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, read_json
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import Journal, open_journal
from ansible_collections.runbook.deploy.plugins.module_utils._store import (
    UNCHANGED,
    Copies,
    copy,
    copying,
    fetch,
    is_whole,
    listing,
    retain,
    tidy,
    verify,
)
from ansible_collections.runbook.deploy.plugins.module_utils._store_lifecycle import harmful, warnings_of
from ansible_collections.runbook.deploy.plugins.module_utils._store_session import (
    Session,
    StoreFault,
    environment_of,
    provide,
)
from ansible_collections.runbook.deploy.plugins.module_utils._store_spec import Settings, base_of, parse

# Seconds for each command of the installer, as of a release.
BUILD_TIMEOUT = 900.0
PHASE = "backup_store"


def perform(params: Mapping[str, Any], build: Mapping[str, str], check_mode: bool) -> dict[str, Any]:
    """Do what the module's options *params* ask for; return its answer, with ``warnings`` besides.

    :raises StoreFault: when the store is what fails; a Problem of another class no setting of the store excuses.
    """
    layout = Layout(params["root"])
    settings = parse(params["store"])
    base = base_of(settings, params["application"], params["stage"])
    names = [name for name in [params["id"], *params["ids"]] if name]
    for name in names:
        require_name(name, "id")
    secrets = [settings.secret_key, settings.access_key, *secret_parts(build)]
    with open_journal(layout.root, params["record"], check_mode, [text for text in secrets if text]) as kept:
        if params["state"] != "present" or kept.record is None:
            return work(params, layout, settings, base, build, check_mode)
        with kept.phase(PHASE) as entry:
            try:
                answer = work(params, layout, settings, base, build, check_mode)
            except StoreFault as fault:
                if settings.required:
                    raise
                answer = degraded(fault, params["state"])
            entry.update(store=answer["store"], degraded=answer["degraded"], removed=answer["removed"])
            tell_record(kept, layout, params["id"], answer)
            return answer


def tell_record(kept: Journal, layout: Layout, name: str, answer: Mapping[str, Any]) -> None:
    """Write where the copy is, or why there is none, beside the backup of the record."""
    record = read_json(layout.record(str(kept.deployment))) or {}
    backup = record.get("backup") or {}
    if backup.get("id") == name:
        told = {"store": answer["store"]}
        if answer["degraded"]:
            told["degraded"] = answer["degraded"]
        # A run that was resumed may have had none the first time.
        former = {key: value for key, value in backup.items() if key not in ("store", "degraded")}
        kept.update(backup={**former, **told})


def degraded(fault: Problem, state: str) -> dict[str, Any]:
    """Return the answer where a copy is not required and cannot be made: it says so, and the run goes on."""
    answer: dict[str, Any] = {
        "changed": False,
        "degraded": fault.message,
        "msg": f"There is no copy in the store, and it is not required: {fault.message}",
        "warnings": [f"DEGRADED: {fault.message}"],
    }
    answer["lifecycle"] = None
    return {**answer, "store": None, "removed": []} if state == "present" else answer


def work(
    params: Mapping[str, Any],
    layout: Layout,
    settings: Settings,
    base: str,
    build: Mapping[str, str],
    check_mode: bool,
) -> dict[str, Any]:
    """Do what is asked for, without the record."""
    state = params["state"]
    if state == "present":
        # Before anything is built: a wrong name is no fault of the store.
        read_manifest(layout, params["id"])
    if state == "fetched" and is_whole(layout, params["id"]):
        stored = read_manifest(layout, params["id"]).get("store")
        return plain(False, f"The backup {params['id']} is whole on this host.", store=stored)
    environment, built = ready_environment(params, layout, build, check_mode)
    if environment is None:
        return foreseen(params, settings)
    with Session(settings, environment) as session:
        copies = Copies(layout, settings, session, base)
        answer = answered(copies, params, built, check_mode)
        return with_lifecycle(copies, answer) if state in ("ready", "present", "verified") else answer


def answered(copies: Copies, params: Mapping[str, Any], built: bool, check_mode: bool) -> dict[str, Any]:
    """Do what is asked for, with the store.

    :param built: whether the environment of boto3 was missing.
    """
    state, settings = params["state"], copies.settings
    if state == "ready":
        copies.session.ask("Backups cannot be copied to", UNCHANGED, "probe", prefix=copies.base)
        return plain(built, f"The store answers: {settings.place()}.", degraded="")
    if state == "listed":
        return plain(False, "The backups of this host and of the store are listed.", **listing(copies))
    if state == "verified":
        return verified(copies, params["ids"], check_mode)
    if check_mode:
        return previewed(copies, params)
    with copying(copies.layout):
        return changed(copies, params)


def with_lifecycle(copies: Copies, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return *answer* with ``lifecycle``, and a warning of each rule of the bucket that ends copies before retention does.

    It is the last question: what was copied stays so when the store does not say, which is no fault and not worth a warning.
    """
    rules: list[dict[str, Any]] = []
    unseen = ""
    try:
        rules = copies.session.ask("The lifecycle rules cannot be read from", UNCHANGED, "lifecycle")["rules"]
    except StoreFault as fault:
        unseen = fault.code or fault.message
    found = harmful(rules, copies.base)
    warnings = [*answer["warnings"], *warnings_of(found, copies.settings, copies.base)]
    return {**answer, "warnings": warnings, "lifecycle": {"rules": found, "unseen": unseen}}


def ready_environment(
    params: Mapping[str, Any], layout: Layout, build: Mapping[str, str], check_mode: bool
) -> tuple[Path | None, bool]:
    """Return the environment of boto3, and whether it was built; None where check mode may not build it."""
    if check_mode:
        path = environment_of(layout, ask_interpreter(params["python"]))
        return (path if is_built(path) else None), False
    return provide(layout, params["python"], build, params["uv"], BUILD_TIMEOUT)


def plain(changed: bool, msg: str, warnings: list[str] | None = None, **further: Any) -> dict[str, Any]:
    """Return an answer of the module."""
    return {"changed": changed, "msg": msg, "warnings": warnings or [], **further}


def foreseen(params: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return the answer of check mode where the environment has to be built first."""
    state = params["state"]
    msg = f"The environment of boto3 would be built, then {settings.place()} would be asked."
    further: dict[str, dict[str, Any]] = {
        "ready": {"degraded": "", "lifecycle": None},
        "present": {"degraded": "", "store": None, "removed": [], "lifecycle": None},
        "verified": {"states": {}, "failures": [], "gone": [], "text": msg, "lifecycle": None},
        "fetched": {"store": None},
        "listed": {"backups": [], "text": msg},
        "absent": {"removed": []},
    }
    return plain(state in ("ready", "present", "fetched"), msg, **further[state])


def verified(copies: Copies, names: list[str], check_mode: bool) -> dict[str, Any]:
    """Compare copies with their manifests."""
    found = verify(copies, names, not check_mode)
    lines = [
        f"copy of {name} in {copies.settings.place()}: {state}" for name, state in found["states"].items()
    ]
    msg = " ".join(found["failures"]) or f"{len(found['states'])} copies are what was backed up."
    warnings = []
    if found["gone"]:
        names_gone = ", ".join(found["gone"][:5]) + (", …" if len(found["gone"]) > 5 else "")
        warnings.append(
            f"Copies that were proved are no longer in {copies.settings.place()} below {copies.base}, and this host has not removed them "
            f"({len(found['gone'])}: {names_gone}): look for a lifecycle rule of the bucket or another host of the same application and stage, and "
            "copy those that are needed again with playbooks/backup.yml --tags copy -e backup_id=."
        )
    return plain(False, msg, warnings, text="\n".join(lines), **found)


def previewed(copies: Copies, params: Mapping[str, Any]) -> dict[str, Any]:
    """Say what would be done; the store is only read."""
    state, name = params["state"], params["id"]
    if state == "absent":
        removed = retain(copies, True)
        return plain(bool(removed), f"{len(removed)} copies would be removed.", removed=removed)
    there = copies.stored(name, f"The backup {name} cannot be looked for in")
    if state == "fetched":
        if there is None:
            raise StoreFault(
                f"There is no copy of the backup {name!r} in {copies.settings.place()}: choose one that exists."
            )
        return plain(True, f"The backup {name} would be fetched from {copies.settings.place()}.", store=None)
    doing = "compared with its copy in" if there else "copied to"
    return plain(
        there is None,
        f"The backup {name} would be {doing} {copies.settings.place()}.",
        store=None,
        degraded="",
        removed=[],
    )


def changed(copies: Copies, params: Mapping[str, Any]) -> dict[str, Any]:
    """Copy, fetch or remove; the lock is held."""
    state, name, place = params["state"], params["id"], copies.settings.place()
    if state == "absent":
        removed = retain(copies, False)
        return plain(bool(removed), f"{len(removed)} copies were removed from {place}.", removed=removed)
    if state == "fetched":
        manifest = fetch(copies, name)
        return plain(True, f"The backup {name} was fetched from {place}.", store=manifest["store"])
    seen = copies.session.ask(
        f"The backup {name} could not be copied to",
        "the backup on this host is whole",
        "look",
        prefix=copies.base,
    )
    warnings = tidy(copies, seen)
    store, uploaded = copy(copies, name)
    removed: list[str] = []
    try:
        removed = retain(copies, False, name)
    except StoreFault as fault:
        # The copy is there and proved: what remains of old ones is no reason to stop.
        warnings.append(fault.message)
    done = "was copied to" if uploaded else "was already in"
    return plain(
        uploaded,
        f"The backup {name} {done} {place}, and came back as it was: {store['location']}.",
        warnings,
        store=store,
        degraded="",
        removed=removed,
    )
