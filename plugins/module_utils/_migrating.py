# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module ``migration`` does for each state, with the framework that the application has.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _alembic, _initialise, _migrate
from ansible_collections.runbook.deploy.plugins.module_utils._application import Installed
from ansible_collections.runbook.deploy.plugins.module_utils._command import parse_environment
from ansible_collections.runbook.deploy.plugins.module_utils._migrations import (
    expected_keys,
    is_current,
)
from ansible_collections.runbook.deploy.plugins.module_utils._plan import empty_plan
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import Journal
from ansible_collections.runbook.deploy.plugins.module_utils._rehearse import require_short

# Host sides of the frameworks that keep a table of what is applied.
FRAMEWORKS: dict[str, Any] = {"django": _migrate, "alembic": _alembic}


def check_options(params: dict[str, Any], check_mode: bool) -> None:
    """Refuse combinations that would do something else than what was meant.

    :raises Problem: naming the option.
    """
    state = params["state"]
    if params["time_limit"] <= 0:
        raise Problem(
            f"The option time_limit is {params['time_limit']}, expected a number of seconds above 0."
        )
    if params["lock_timeout"] <= 0:
        raise Problem(
            f"The option lock_timeout is {params['lock_timeout']:g}, expected a number of seconds above 0."
        )
    if params["blocking_limit"] < 0:
        raise Problem(
            f"The option blocking_limit is {params['blocking_limit']}, expected a number of seconds, or 0 for no limit."
        )
    if params["framework"] == "none":
        return
    if state == "verified" and not params["database"] and not check_mode:
        raise Problem(
            "The new code cannot be verified without a scratch database, because it may change the live one already "
            "while it starts: pass on the scratch of database_backup as the option database (app_backup_verify: restore)."
        )
    if state in ("applied", "reversed") and params["database"]:
        raise Problem(
            f"The option database names a scratch copy, but state {state!r} is for the live database: leave it out."
        )
    if params["framework"] == "command" and not params["command"]:
        raise Problem("The option command is empty, but framework is command: give app_migrate_command.")
    if state == "reversed" and not params["applied"] and params["framework"] != "command":
        raise Problem(
            "The option applied is empty, and going back to that would remove every table: pass on applied_before of "
            "the deployment's record; after a first deployment there is nothing to go back to."
        )


def without_running(params: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of check mode for what would run on the live database."""
    answer: dict[str, Any] = {"applied": None, "heads": {}, "changed": False}
    answer["plan"] = None
    if params["state"] == "applied":
        # Without a plan nobody has asked yet whether anything is pending.
        answer.update(
            changed=params["plan"] is None or bool(params["plan"]),
            seconds=[],
            initial_command=False,
            notes=[],
        )
    elif params["state"] == "verified":
        answer["current"] = False
    return answer


def lasting(params: dict[str, Any], check_mode: bool) -> bool:
    """Return whether the work changes the live database under a record, so that it has to outlive its connection."""
    return bool(not check_mode and params["record"] and params["state"] in ("applied", "reversed"))


def nothing_to_migrate(params: dict[str, Any]) -> dict[str, Any]:
    """Return the answer for an application without migrations."""
    answer: dict[str, Any] = {"changed": False, "applied": [], "heads": {}}
    if params["state"] == "reversed":
        return {**answer, "reversed": [], "lost": {}, "seconds": []}
    answer["plan"] = empty_plan()
    if params["state"] == "verified":
        answer.update(notes=[], current=True)
    elif params["state"] == "applied":
        answer.update(seconds=[], initial_command=False, notes=[])
    return answer


def command_of(params: dict[str, Any]) -> _initialise.Command:
    """Return the application's own command, as the options name it."""
    elsewhere = parse_environment(params["command_environment"], "app_migrate_command_environment")
    return _initialise.Command([str(word) for word in params["command"]], elsewhere)


def work(
    params: dict[str, Any], target: Installed, journal: Journal, entry: dict[str, Any], check_mode: bool
) -> dict[str, Any]:
    """Do what ``state`` asks for and return the module's answer; *entry* is the phase's result in the record."""
    state, limit = params["state"], float(params["time_limit"])
    if state in ("planned", "verified"):
        with beside(params, target, check_mode) as collecting:
            found = seen(params, target, journal, limit, collecting.wait)
        journal.update(plan=found["plan"])
        require_short(found["plan"], float(params["blocking_limit"]))
        notes, inert = found.pop("notes"), found.pop("inert")
        if state == "verified":
            found["notes"] = entry["notes"] = notes
            found["inert"] = inert
        entry["pending"] = len(found["plan"]["migrations"])
        return {"changed": False, **found}
    if params["framework"] == "command":
        answer = commanded(params, target, journal, limit)
    elif state == "applied":
        answer = applied(params, target, journal, limit)
    else:
        answer = FRAMEWORKS[params["framework"]].reverse(
            target,
            journal,
            wanted=expected_keys(params["applied"]) or [],
            live=params["live_database"],
            limit=limit,
            lock_timeout=params["lock_timeout"],
            consent=params["consent"],
            check_mode=check_mode,
        )
    if state == "reversed":
        entry["lost"] = answer["lost"]
    entry["seconds"] = answer["seconds"]
    return answer


def beside(params: dict[str, Any], target: Installed, check_mode: bool) -> Any:
    """Return what is done while the release is verified: a context manager with ``wait``."""
    wanted = params["state"] == "verified" and params["framework"] == "django" and params["collect"]
    # Where the new code is first run with other variables, the files would be made with those.
    other = params["rehearse"] != "never" and params["rehearse_environment"] not in (None, "", "{}")
    if not wanted or other or not params["deployment"] or check_mode or (target.path / ".complete").is_file():
        return contextlib.nullcontext(SimpleNamespace(wait=lambda: None))
    # Only here: whoever does not collect does not pay for the import.
    from ansible_collections.runbook.deploy.plugins.module_utils._collect import Beside, Collection

    scratch = _migrate.scratch_of(params["database"], params["live_database"])
    return Beside(Collection(target, float(params["collect_timeout"]), scratch), params["deployment"])


def seen(
    params: dict[str, Any], target: Installed, journal: Journal, limit: float, alone: Callable[[], None]
) -> dict[str, Any]:
    """Return what ``verify`` of the framework finds.

    :param alone: called before the copy of the database is changed: nobody else may be at it then.
    """
    scratch, live = params["database"], params["live_database"]
    if params["framework"] == "command":
        tried = scratch if params["state"] == "verified" else None
        return _initialise.verify(target, tried, live, limit, command=command_of(params), journal=journal)
    more = {"alone": alone} if params["framework"] == "django" else {}
    return FRAMEWORKS[params["framework"]].verify(
        target,
        scratch,
        live,
        limit,
        checks=params["state"] == "verified",
        import_modules=params["import_modules"],
        app=params["app"],
        stop_at=params["target"],
        rehearse=params["rehearse"] if params["state"] == "verified" else "never",
        lock_timeout=params["lock_timeout"],
        journal=journal,
        **more,
    )


def commanded(params: dict[str, Any], target: Installed, journal: Journal, limit: float) -> dict[str, Any]:
    """Run the application's own command, or refuse to take it back."""
    if params["state"] == "reversed":
        _initialise.reverse()
    return _initialise.apply(
        target,
        journal,
        command=command_of(params),
        plan=expected_keys(params["plan"]),
        limit=limit,
        judged=params["plan"],
    )


def applied(params: dict[str, Any], target: Installed, journal: Journal, limit: float) -> dict[str, Any]:
    """Apply the pending migrations."""
    framework = params["framework"]
    more = {"judged": params["plan"]} if framework == "alembic" else {}
    return FRAMEWORKS[framework].apply(
        target,
        journal,
        plan=expected_keys(params["plan"]),
        live=params["live_database"],
        initial_command=params["initial_command"],
        limit=limit,
        lock_timeout=params["lock_timeout"],
        app=params["app"],
        stop_at=params["target"],
        **more,
    )


def current(
    params: dict[str, Any], target: Installed, journal: Journal, found: dict[str, Any], inert: bool
) -> bool:
    """Return whether after ``verified`` with the answer *found* nothing is left for ``applied``; see :func:`is_current`.

    :param inert: whether ``migrate`` of the same code does nothing on the copy.
    """
    return inert and is_current(
        target,
        journal,
        framework=params["framework"],
        verified=found["applied"],
        live=params["live_database"],
        initial_command=params["initial_command"],
    )
