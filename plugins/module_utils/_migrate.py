# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The migrate phases of a Django release: verify on a copy, apply what was verified, take back what was applied.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._agent import AgentProblem
from ansible_collections.runbook.deploy.plugins.module_utils._application import Installed
from ansible_collections.runbook.deploy.plugins.module_utils._database import (
    engine_of,
    heads,
    is_at,
    on_scratch,
    trial_server,
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
from ansible_collections.runbook.deploy.plugins.module_utils._plan import judge_plan
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import Journal, left_behind, read_records
from ansible_collections.runbook.deploy.plugins.module_utils._rehearse import Rehearsal
from ansible_collections.runbook.deploy.plugins.module_utils._rehearse import wanted as held

# Where no port is named.
DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306}
# Lines of findings that are shown; the rest is counted.
SHOWN = 20


def check_database(
    target: Installed,
    started: Mapping[str, Any],
    live: Mapping[str, Any] | None,
    place: Mapping[str, str],
    scratch: bool,
) -> None:
    """See that the settings use the database that is backed up.

    :param started: the agent's answer to ``start``: ``vendor``, and in ``database`` what the settings say of the default
        connection, ``{engine, name, host, port}``.
    :param live: ``app_database``.
    :param place: the agent's answer to ``where``; :param scratch: whether it is on a scratch beside the live database.
    :raises Problem: when they are two databases.
    """
    if not live or not live.get("engine"):
        return
    settings = started["database"]
    if live["engine"] == "sqlite":
        same = "sqlite" in settings["engine"] and os.path.realpath(
            target.cwd / settings["name"]
        ) == os.path.realpath(live.get("path") or "")
        named, described = f"app_database.path is {live.get('path')!r}", repr(settings["name"])
    else:
        name = settings["name"] if scratch else place["name"]
        same = started["vendor"] == live["engine"] and name in (live.get("name"), "")
        if same and not same_server(live["engine"], settings, live):
            same = proved_by_identity(engine_of(live, None, target.user).identity(), place, scratch)
        named = f"app_database is the {live['engine']} database {live.get('name')!r} on {server_text(live)}"
        described = f"{name!r} on {server_text(settings)}"
    if not same:
        raise Problem(
            f"{named}, but the settings of the release use {settings['engine']} with {described}: another database "
            "would be migrated than is backed up; make app_environment or app_database agree."
        )


def proved_by_identity(live: Mapping[str, str], place: Mapping[str, str], scratch: bool) -> bool:
    """Return whether two ways lead to the same database, by what the server says of itself on each of them.

    :param live: the engine's answer on app_database; :param place: the agent's; both ``{server, oid}``, "" for not known.
    :param scratch: *place* is another database of the server, so that the server alone is compared.
    """
    if not live.get("server") or live["server"] != place.get("server"):
        return False
    return scratch or live.get("oid", "") == place.get("oid", "")


def server_text(database: Mapping[str, Any]) -> str:
    """Return host and port for a message."""
    port = f" port {database['port']}" if database.get("port") else ""
    return f"{database.get('host') or 'the local socket'}{port}"


def same_server(engine: str, settings: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    """Return whether both name the same server: host and port, where every way to this host is one.

    A socket and an address of the loopback interface lead to the same server when their ports are the same. MySQL's
    socket has no port, so there is nothing to compare.
    """
    theirs, ours = _is_local(settings.get("host")), _is_local(live.get("host"))
    default = DEFAULT_PORTS[engine]
    ports = [int(entry.get("port") or default) for entry in (settings, live)]
    if theirs and ours:
        socket = engine == "mysql" and (_is_socket(settings.get("host")) or _is_socket(live.get("host")))
        return socket or ports[0] == ports[1]
    if theirs != ours:
        return False
    return str(settings["host"]).lower() == str(live["host"]).lower() and ports[0] == ports[1]


def _is_socket(host: Any) -> bool:
    return not host or str(host).startswith("/")


def _is_local(host: Any) -> bool:
    return _is_socket(host) or str(host).lower() in ("localhost", "127.0.0.1", "::1")


def live_of(
    target: Installed, settings: Mapping[str, str], live: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """Return *live*, or where that is not given what the settings say about a database that is a file."""
    if live and live.get("engine"):
        return live
    if "sqlite" in settings["engine"]:
        return {"engine": "sqlite", "path": str(target.cwd / settings["name"])}
    return None


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
    alone: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Return ``{applied, heads, plan, notes, inert}`` as the new code sees the database *scratch*.

    :param scratch: ``{engine, path}``; None: the live one, which is only read.
    :param rehearse: ``auto``, ``always`` or ``never``: whether the pending migrations are run on the scratch, see
        :func:`_rehearse.wanted`; the *journal* then has a phase of its own for it.
    :param app: label of the only app to migrate; :param stop_at: ``app.name`` of the last migration to apply.
    :param checks: also run the checks; otherwise only the plan is made.
    :param alone: waits until nobody else is at the scratch; called before a rehearsal.
    :raises Problem: for what makes a deployment impossible, everything in one sentence and its evidence.
    """
    # The limit is one for migrations: a rehearsal goes forward and back, after the checks have had their time.
    with agent_of(target, limit if rehearse == "never" else 3 * limit) as agent:
        started = agent.call("start", argv=["manage.py", "check"], database=scratch_of(scratch, live))
        check_database(target, started, live, agent.call("where"), bool(scratch))
        found: dict[str, Any] = {"checks": [], "deploy": [], "missing": [], "imports": []}
        if checks:
            found = agent.call("verify", import_modules=list(import_modules), release=str(target.path))
        state = agent.call("state", collect=bool(scratch), app=app, target=stop_at)
        # Asked last, because it imports more of the application than anything before.
        inert = bool(
            checks and not state["pending"] and not state["remaining"] and agent.call("inert")["inert"]
        )
        left = left_behind(read_records(target.layout))
        errors, warnings = judge_findings(found, state, started["disabled"], left)
        warnings += remaining_notes(state)
        plan = judge_plan(state)
        for migration in plan["migrations"]:
            migration["sql"] = migration["sql"] and [agent.hide(text) for text in migration["sql"]]
        if errors:
            shown = [agent.hide(text) for text in errors]
            more = f" and {len(shown) - 1} more, in the evidence" if len(shown) > 1 else ""
            raise Problem(
                f"The release {target.path.name} does not pass its checks: {shown[0].rstrip('.')}{more}; nothing live was "
                "touched: correct the application and deploy the correction.",
                "\n".join(shown[:SHOWN]),
                findings=shown,
            )
        if scratch and held(rehearse, state["pending"], state["applied"]):
            waiting = time.monotonic()
            alone()
            # What the rehearsal is given is not spent on that.
            agent.deadline += time.monotonic() - waiting
            engine = engine_of(on_scratch(live, scratch), None, target.user)
            rehearsal = Rehearsal(
                agent, engine, scratch, when=rehearse, limit=limit, lock_timeout=lock_timeout
            )
            with (journal or Journal(None, None, [])).phase("rehearse") as entry:
                plan, more = rehearsal.run(plan, state["applied"])
                entry.update(plan["rehearsal"])
            warnings += more
    return {
        "applied": state["applied"],
        "heads": heads(state["applied"]),
        "plan": plan,
        "notes": [agent.hide(text) for text in warnings],
        "inert": inert,
    }


def scratch_of(
    scratch: Mapping[str, Any] | None, live: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Return what the process is to use instead of the live database: ``{engine, path}`` or ``{engine, name, …}``.

    Host and port are named only where they are not those of app_database, because the settings may know another way
    to the same server.

    :param scratch: the option ``database``; None or empty: none. :param live: ``app_database``.
    :raises Problem: when a member is missing, or it is the live database.
    """
    if not scratch:
        return None
    key = "path" if scratch.get("engine") == "sqlite" else "name"
    if not scratch.get("engine") or not scratch.get(key):
        raise Problem(
            f"The option database has {sorted(scratch)}, expected engine and path or name: pass on the scratch that "
            "database_backup returned."
        )
    found = {"engine": str(scratch["engine"]), key: str(scratch[key])}
    live = live or {}
    if key == "name":
        if live.get("name") == scratch["name"]:
            raise Problem(
                f"The option database is {scratch['name']!r}, which is app_database itself: pass on the scratch that "
                "database_backup returned."
            )
        if not is_at(live, scratch):
            found.update({member: str(scratch[member]) for member in ("host", "port") if scratch.get(member)})
        elsewhere = trial_server(live, "")
        if elsewhere and is_at(elsewhere, scratch):
            # The settings know the live server's only.
            found.update({key: str(elsewhere[key]) for key in ("user", "password") if elsewhere.get(key)})
        if scratch.get("identity"):
            found["identity"] = dict(scratch["identity"])
    return found


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
            "database; deploy a version that has them, or go back with playbooks/rollback.yml"
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


def remaining_notes(state: Mapping[str, Any]) -> list[str]:
    """Return a warning about what stays pending because one app or one migration was asked for."""
    if not state["remaining"]:
        return []
    return [
        f"pending and not asked for, so left out: {names(state['remaining'])}; the release may need them, so migrate the "
        "rest soon"
    ]


def index_notes(indexes: Sequence[str]) -> list[str]:
    """Return a warning about indexes that exist and are not used, as a failed concurrent build leaves them."""
    return [
        f"the index {text} is invalid, as a failed CREATE INDEX CONCURRENTLY leaves it: drop it or REINDEX it"
        for text in indexes
    ]


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
) -> dict[str, Any]:
    """Apply the pending migrations, which must be those of *plan* where it is given.

    :param lock_timeout: seconds that a statement may wait for a lock.
    :param app: label of the only app to migrate; :param stop_at: ``app.name`` of the last migration to apply.
    :return: ``{changed, applied, heads, plan, seconds: [{app, name, seconds}], initial_command, notes}``;
        ``initial_command`` says whether the command ran.
    :raises Problem: saying which migration failed, what was applied before it and what is applied now.
    """
    with agent_of(target, limit) as agent:
        started = agent.call("start", argv=["manage.py", "migrate"])
        check_database(target, started, live, agent.call("where"), False)
        state = agent.call("state", app=app, target=stop_at)
        before = state["applied"]
        remember_before(target, journal, before)
        initial = prepare_initial(target, before, initial_command)
        progress = Progress(journal, before)
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
                agent, live_now, "django", before, progress, problem, "applied", target.user
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
        "notes": index_notes(answer["invalid_indexes"]) + remaining_notes(state),
    }


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
    """Unapply everything that is applied and not in *wanted*, with the code of the release *target*.

    :param consent: whether what was written to what goes may be lost.
    :param check_mode: count that, and change nothing.
    :return: ``{changed, applied, heads, reversed: [[app, name]], lost, seconds: [{app, name, seconds}]}``.
    :raises Problem: as :func:`apply`; for what would be lost without *consent*.
    """
    with agent_of(target, limit) as agent:
        started = agent.call("start", argv=["manage.py", "migrate"])
        check_database(target, started, live, agent.call("where"), False)
        before = agent.call("applied")["applied"]
        lost = agent.call("written", target=wanted)
        require_consent(lost, consent)
        if check_mode:
            known = {tuple(row) for row in wanted}
            gone = [row for row in before if tuple(row) not in known]
            facts = {"changed": bool(gone), "reversed": gone, "lost": lost, "seconds": []}
            return {**facts, "applied": before, "heads": heads(before)}
        progress = Progress(journal, before)
        try:
            answer = agent.call("reverse", on_event=progress, target=wanted, lock_timeout=lock_timeout)
        except AgentProblem as problem:
            live_now = live_of(target, started["database"], live)
            raise explain(
                agent, live_now, "django", before, progress, problem, "reversed", target.user
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


def require_consent(lost: Mapping[str, Mapping[str, Any]], consent: bool) -> None:
    """Refuse a reversal that would throw away what somebody wrote.

    :param lost: the agent's answer to ``written``.
    :raises Problem: listing it, and saying how to accept it.
    """
    if consent or not any(lost.values()):
        return
    parts = [f"{number} rows of {table}" for table, number in sorted(lost["tables"].items())]
    parts += [f"{number} values of {column}" for column, number in sorted(lost["columns"].items())]
    parts += [
        f"what {name} holds (it cannot be counted: {why})" for name, why in sorted(lost["unknown"].items())
    ]
    more = f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
    raise Problem(
        f"Taking the migrations back would lose {', '.join(parts[:SHOWN])}{more}; nothing was reversed: accept that with "
        "playbooks/rollback.yml -e rollback_consent=true (a copy of the database is kept among the backups), or leave the schema "
        "as it is.",
        lost={kind: dict(found) for kind, found in lost.items()},
    )
