# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is true on a host: which release answers, which migrations are applied, what was begun and never ended.

Services are measured by who holds the socket or the port and by what its process carries in its environment; never
by PID files, and never by the link ``current`` alone.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _facts as facts
from ansible_collections.runbook.deploy.plugins.module_utils import _processes as processes
from ansible_collections.runbook.deploy.plugins.module_utils._command import run
from ansible_collections.runbook.deploy.plugins.module_utils._detached import working
from ansible_collections.runbook.deploy.plugins.module_utils._installed import list_releases, measure_current
from ansible_collections.runbook.deploy.plugins.module_utils._layout import DEPLOYMENT_ID, Layout
from ansible_collections.runbook.deploy.plugins.module_utils._lock import held_message, read_lock
from ansible_collections.runbook.deploy.plugins.module_utils._lock import public as public_lock
from ansible_collections.runbook.deploy.plugins.module_utils._measured import is_current
from ansible_collections.runbook.deploy.plugins.module_utils._paused import is_paused
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import (
    instance_of,
    interrupted,
    load_records,
    rollback_target,
    undone,
)
from ansible_collections.runbook.deploy.plugins.module_utils._record import public as public_record

# Less than an environment of a small application needs.
SPACE_LOW = 64 * 2**20


def socket_deployment(layout: Layout, service: str) -> str | None:
    """Return the deployment named by the target of the public link of *service*'s socket."""
    try:
        name = Path(os.readlink(layout.socket(service))).name
    except OSError:
        return None
    middle = name[len(service) + 1 : -len(".sock")]
    return middle if DEPLOYMENT_ID.match(middle) else None


def find_listener(layout: Layout, service: Mapping[str, Any]) -> tuple[bool, int | None]:
    """Return (somebody listens at the address of *service*, the PID where it can be known)."""
    if service.get("bind") == "port":
        port = int(service.get("port") or 0)
        if not processes.listener_inodes(port):
            return False, None
        holders = processes.listener_pids(port)
        return True, holders[0] if holders else None
    pid = processes.peer_pid(layout.socket(service["name"]))
    return pid is not None, pid or None


def not_ours(layout: Layout, port: int) -> bool:
    """Say whether none of the sockets that listen on *port* can be the application's, judged by their owners.

    For a process that may not be looked into: without root, those of the application's own user are such, too.
    """
    ours = {os.geteuid()}
    for place in (layout.run, layout.shared):
        with contextlib.suppress(OSError):
            ours |= {os.stat(entry).st_uid for entry in (place, *place.iterdir())}
    return not ours & processes.listener_owners(port)


def measure_service(
    layout: Layout, service: Mapping[str, Any], found: Iterable[processes.Process]
) -> dict[str, Any]:
    """Return what is true of one service.

    ``{name, kind, deployment, release, running, pid, answers, foreign, instances[{deployment, release, pid}]}``:
    ``deployment``, ``release`` and ``pid`` are those of the process that has the socket or port, for other
    kinds of services of their main process; ``answers`` is None for those, False for a worker that was told to take no
    more tasks. ``foreign`` is the command of a
    process at our address that is not ours. ``instances`` has more than one entry where one was left behind.

    :param found: the processes of the application, from one scan.
    """
    name = service["name"]
    own = [entry for entry in found if entry.service == name and entry.deployment]
    mains = processes.tree_roots(own)
    result: dict[str, Any] = {
        "name": name,
        "kind": service.get("kind", "web"),
        "deployment": None,
        "release": None,
        "running": bool(mains),
        "pid": None,
        "answers": None,
        "foreign": None,
        "instances": [
            {"deployment": entry.deployment, "release": entry.release, "pid": entry.pid} for entry in mains
        ],
    }
    serving = max(mains, key=lambda entry: (entry.deployment, -entry.pid)) if mains else None
    if result["kind"] == "web":
        result["answers"], pid = find_listener(layout, service)
        if not result["answers"]:
            serving = None
        elif pid is None and service.get("bind") == "port" and not_ours(layout, int(service["port"])):
            result["foreign"] = "another user's process"
            serving = None
        elif pid is not None:
            holder = next((entry for entry in own if entry.pid == pid), None)
            stranger = holder is None and processes.start_time(pid) is not None
            if stranger and processes.readable(pid):
                result["foreign"] = f"pid {pid}: {processes.command(pid)[:200]}"
            serving = holder or (None if stranger else serving)
            if stranger and serving is None and result["foreign"] is None:
                # Another user's process, and we are not root: only the link says whose it is.
                result.update(deployment=socket_deployment(layout, name), pid=pid, running=True)
    if serving is not None:
        result.update(deployment=serving.deployment, release=serving.release, pid=serving.pid)
        if result["kind"] == "worker" and is_paused(layout, name, serving.deployment, serving.pid):
            result["answers"] = False
    return result


def measure_adopted(adopt: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return ``{service, path, active}`` of the installation in ``app_adopt``; active is None: no such unit."""
    if not adopt or not adopt.get("service"):
        return None
    active: bool | None = None
    with contextlib.suppress(Problem):
        done = run(["systemctl", "show", "--property=LoadState,ActiveState", adopt["service"]], timeout=20)
        values = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        if done.rc == 0 and values.get("LoadState") not in (None, "not-found"):
            active = values.get("ActiveState") in ("active", "reloading")
    return {"service": adopt["service"], "path": adopt.get("path"), "active": active}


def measure_space(path: Path) -> dict[str, int]:
    """Return ``{free, total, inodes}``: bytes free for us and in all, and free inodes, where *path* lies."""
    found = os.statvfs(path)
    return {
        "free": found.f_bavail * found.f_frsize,
        "total": found.f_blocks * found.f_frsize,
        "inodes": found.f_favail,
    }


def open_record(records: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the record of the deployment that a rollback would undo: the newest that changed, or may have
    changed, what is live, and was not taken back."""
    listed = list(records)
    gone = undone(listed)
    for record in listed:
        open_verdict = record.get("verdict") in (None, "success", "stopped")
        if open_verdict and record.get("kind") != "rollback" and record["id"] not in gone:
            return record
    return None


def recorded_heads(records: Sequence[Mapping[str, Any]], deployment: str | None) -> dict[str, Any] | None:
    """Return the migration heads measured when the instance *deployment* last went live; None: not known."""
    for position, record in enumerate(records):
        if record.get("verdict") == "success" and instance_of(record, records[position + 1 :]) == deployment:
            return (record.get("measured") or {}).get("heads")
    return None


def commanded(
    found: Iterable[processes.Process], unfinished: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Return what a worker that was killed left at work for the run that is *unfinished*, as ``_detached.working`` does."""
    for entry in found if unfinished else ():
        if entry.deployment == unfinished["id"] and not entry.service:
            return {"deployment": entry.deployment, "phase": "", "pid": entry.pid, "since": None}
    return None


def measure(
    layout: Layout,
    *,
    services: Sequence[Mapping[str, Any]] = (),
    user: str | None = None,
    database: Mapping[str, Any] | None = None,
    database_admin: Mapping[str, Any] | None = None,
    framework: str = "none",
    shared: Sequence[str] = (),
    directory: str = "",
    adopt: Mapping[str, Any] | None = None,
    own: str | None = None,
) -> dict[str, Any]:
    """Measure the host and return the ``state`` of docs/internals.md; nothing is changed.

    :param services: ``app_services`` of this host, complete.
    :param database: ``app_database``, None on hosts that have nothing to do with it.
    :param own: the caller's deployment, which does not count as interrupted.
    """
    problems = facts.check_root(layout) + facts.check_user(user)
    problems += facts.check_sockets(layout, services) + facts.check_shared(layout, shared)
    problems += facts.check_database(layout, database, shared, directory)
    exists = layout.root.is_dir()
    records, damaged = load_records(layout)
    warnings = [facts.fact("record_damaged", entry["message"]) for entry in damaged]
    current = measure_current(layout)
    releases = list_releases(layout, [record.get("release") or "" for record in records])
    complete = {release["name"] for release in releases if release["complete"]}
    found = processes.application_processes(layout.root) if exists else []
    contained: dict[str, dict[str, Any]] = {}
    if any(service.get("manager") == "compose" for service in services):
        # Only here: other hosts do not pay for the import.
        from ansible_collections.runbook.deploy.plugins.module_utils import _compose_state

        composed = [service for service in services if service.get("manager") == "compose"]
        contained, missing = _compose_state.measure(layout, composed)
        problems += [facts.fact("compose_missing", missing)] if missing else []
    measured = [
        contained.get(service["name"]) or measure_service(layout, service, found) for service in services
    ]
    problems += [
        facts.fact(
            "address_taken",
            f"The address of service {entry['name']!r} in app_services is held by a process that is not the "
            f"application's ({entry['foreign']}): stop it, or give the service another port.",
        )
        for entry in measured
        if entry["foreign"] and not adopt
    ]
    adopted = measure_adopted(adopt)
    problems += facts.check_adopted(adopt, adopted and adopted["active"], current is not None)
    applied, heads = None, {}
    if database:
        try:
            # Only here: the driver costs time on hosts that do not ask.
            from ansible_collections.runbook.deploy.plugins.module_utils import _database

            engine = _database.engine_of(database, database_admin, user)
            applied = engine.applied(framework)
            heads = _database.heads(applied)
            warnings += [facts.fact("database_rights", text) for text in engine.warnings()]
        except Problem as problem:
            problems.append(facts.fact("database_unreadable", problem.message))
    lock = read_lock(layout)
    space = measure_space(layout.root) if exists else None
    if space and space["free"] < SPACE_LOW:
        warnings.append(
            facts.fact(
                "space_low",
                f"The file system of app_root {str(layout.root)!r} has {space['free'] // 2**20} MiB left, and a release with its "
                "environment and backup needs more: free some.",
            )
        )
    state = {
        "exists": exists,
        "current": current,
        "releases": releases,
        "services": measured,
        "applied": applied,
        "heads": heads,
        "recorded_heads": recorded_heads(records, current["deployment"]) if current else None,
        "interrupted": interrupted(records, lock, own),
        "unfinished": interrupted(records, None, own),
        "working": working(layout) or commanded(found, interrupted(records, None, own)),
        "lock": lock and {**public_lock(lock), "message": held_message(layout, lock)},
        "target": rollback_target(records, current and current["release"], complete, adopted is not None),
        "record": public_record(_record_of(records, current)),
        "open_record": public_record(open_record(records)),
        "adopted": adopted,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "space": space,
        "problems": problems,
        "warnings": warnings,
    }
    state["settled"] = current is not None and is_current(state, current["release"])
    return state


def _record_of(
    records: Iterable[Mapping[str, Any]], current: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    wanted = current and current["deployment"]
    return next((record for record in records if record["id"] == wanted), None)
