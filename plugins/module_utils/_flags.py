# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show and switch feature flags on one host: each switch is recorded, read back, and taken back where it is half done.

All off is the way out of trouble and goes on where a flag cannot be switched: what is off stays off, and the others are
named. Every other switch is taken back as a whole.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._application import RELEASE_OPTIONS, installed
from ansible_collections.runbook.deploy.plugins.module_utils._command import parse_environment, redact
from ansible_collections.runbook.deploy.plugins.module_utils._database import OPTIONAL_DATABASE, named
from ansible_collections.runbook.deploy.plugins.module_utils._flags_history import (
    History,
    held_history,
    history_file,
    read_switches,
)
from ansible_collections.runbook.deploy.plugins.module_utils._flags_spec import (
    Flags,
    all_off,
    as_lines,
    parse_flags,
    shown,
    stage_of,
    wanted_values,
)
from ansible_collections.runbook.deploy.plugins.module_utils._flags_store import Store
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, current_release
from ansible_collections.runbook.deploy.plugins.module_utils._lock import public, read_lock, timestamp
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import make_id

SWITCHED, TAKEN_BACK, PARTIAL = "switched", "taken_back", "partial"
ALL_OFF = "all off"
# Seconds between two looks where a change takes a moment to be seen.
LOOK = 0.2
# Switches that are shown.
NEWEST = 10
OPTIONS: dict[str, Any] = {
    "root": {"type": "path", "required": True},
    "flags": {"type": "dict", "required": True},
    "state": {"type": "str", "choices": ["shown", "switched", "taken_back"], "default": "shown"},
    "stage": {"type": "str"},
    "values": {"type": "dict"},
    "all_off": {"type": "bool", "default": False},
    "switch": {"type": "str"},
    "reason": {"type": "str", "default": ""},
    "operator": {"type": "str", "default": ""},
    "host": {"type": "str", "default": ""},
    "token": {"type": "str", "no_log": True},
    "user": {"type": "str"},
    "environment": {"type": "str", "no_log": True},
    "name": {"type": "str", "default": ""},
    "application_stage": {"type": "str", "default": ""},
    "settings_module": {"type": "str", "default": ""},
    "database": OPTIONAL_DATABASE,
    "timeout": {"type": "float", "default": 30.0},
}
RULES: dict[str, Any] = {
    "mutually_exclusive": [("stage", "values", "switch")],
    "required_if": [("state", "taken_back", ("switch",))],
}


def store_of(flags: Flags, options: Mapping[str, Any]) -> Store:
    """Return the place that *flags* are kept in, ready to be asked.

    :raises Problem: when it lacks something: a database, a release, a token.
    """
    store, layout, timeout = flags.store, Layout(options["root"]), options["timeout"]
    # Only what is needed is loaded: the quickest way back is a matter of seconds.
    if store["kind"] == "environment_file":
        from ansible_collections.runbook.deploy.plugins.module_utils._flags_file import FileStore

        return FileStore(
            store["path"],
            store.get("reload", ""),
            layout,
            options["user"],
            options["name"],
            options["application_stage"],
        )
    if store["kind"] == "sql":
        from ansible_collections.runbook.deploy.plugins.module_utils._flags_sql import SqlStore

        database = named(options["database"])
        if database is None:
            raise Problem(
                "app_flags.store is a table, but app_database is empty: set app_database with engine and name (SQLite: path)."
            )
        return SqlStore(store, database, options["user"], timeout)
    if store["kind"] == "http":
        from ansible_collections.runbook.deploy.plugins.module_utils._flags_http import HttpStore

        return HttpStore(store, options["token"], timeout)
    from ansible_collections.runbook.deploy.plugins.module_utils._flags_store import CommandStore

    release = current_release(layout)
    if not release:
        raise Problem(
            f"No release is current in {str(layout.root)!r}, and the commands of app_flags run in it: deploy first."
        )
    own = {name: spec.get("default", "") for name, spec in RELEASE_OPTIONS.items()}
    given = {name: options[name] for name in ("root", "user", "environment", "name", "settings_module")}
    return CommandStore(
        store,
        installed(
            {**own, "record": None, **given, "stage": options["application_stage"], "release": release}
        ),
        timeout,
    )


def running_deployment(layout: Layout) -> dict[str, Any] | None:
    """Return the lock of a deployment that runs now, without its token; None where there is none."""
    lock = read_lock(layout)
    if lock is None or (not lock["alive"] and lock["expired"]):
        return None
    found = public(lock) or {}
    return {key: found.get(key) for key in ("deployment", "kind", "owner", "host", "since")}


class Switch:
    """One switch on this host."""

    def __init__(
        self,
        flags: Flags,
        store: Store,
        options: Mapping[str, Any],
        check_mode: bool,
        warn: Callable[[str], None],
        hidden: list[str],
    ) -> None:
        self.flags = flags
        self.store = store
        self.options = options
        self.check_mode = check_mode
        self.warn = warn
        self.hidden = hidden
        self.layout = Layout(options["root"])
        self.begun = time.monotonic()
        self.before: dict[str, str | None] = {}
        self.running = running_deployment(self.layout)

    def answer(self, found: Mapping[str, str | None], **more: Any) -> dict[str, Any]:
        """Return what the module answers when the flags are as *found*."""
        return {
            "flags": dict(found),
            "stage": stage_of(self.flags, found),
            "all_off": all_off(self.flags, found),
            "place": self.store.place(),
            "shared": self.store.shared,
            "running": self.running,
            "history": str(history_file(self.layout)),
            "seconds": round(time.monotonic() - self.begun, 3),
            **more,
        }

    def show(self) -> dict[str, Any]:
        """Return what the flags are, and the newest switches."""
        found = self.store.read(self.flags.names)
        return self.answer(found, changed=False, switches=read_switches(self.layout)[-NEWEST:])

    def run(
        self, wanted: Mapping[str, str | None], action: str, go_on: bool, left: str = ""
    ) -> dict[str, Any]:
        """Make the flags *wanted*, under the lock; *action*: what is recorded as asked for; *go_on*: see the module.

        :param left: what a switch that is taken back leaves alone, a sentence.
        :raises Problem: when they are not what is wanted; it says what each is then.
        """
        if self.check_mode:
            return self._change(None, wanted, action, go_on, left)
        with held_history(self.layout, self.options["timeout"]) as history:
            return self._change(history, wanted, action, go_on, left)

    def _change(
        self, history: History | None, wanted: Mapping[str, str | None], action: str, go_on: bool, left: str
    ) -> dict[str, Any]:
        self.before = self.store.read(self.flags.names)
        changes = {name: value for name, value in wanted.items() if self.before[name] != value}
        after = {**self.before, **changes}
        diff = {"before": as_lines(self.before), "after": as_lines(after)}
        more = {
            "before": self.before,
            "changes": {name: [self.before[name], changes[name]] for name in changes},
        }
        missing = [name for name in changes if self.before[name] is None and not self.store.removable]
        if missing and not (go_on and len(missing) < len(changes)):
            raise Problem(
                f"The flags {', '.join(missing)} are not in {self.store.place()}, so nothing was switched: make them there, or "
                "correct app_flags.flags.",
                flags=self.before,
            )
        if not changes or history is None:
            if left:
                raise Problem(left, flags=self.before)
            extra = {"diff": diff} if changes else {}
            if history is not None and any(one["verdict"] != SWITCHED for one in history.switches()[-1:]):
                # The flags may be right since that one, and the application may not know.
                extra["applied"] = self.store.apply()
            return self.answer(after, changed=bool(changes), switch=None, **more, **extra)
        identifier = self._begin(history, more["changes"], action)
        for name in missing:
            changes.pop(name)
        errors = [f"The flag {name} is not in {self.store.place()}." for name in missing]
        found, said = self._write(changes, go_on, errors)
        wrong = {name: found.get(name) for name in wanted if found.get(name) != wanted[name]}
        if not wrong and not errors:
            self._end(history, identifier, SWITCHED, found)
            if left:
                raise Problem(left, flags=found, switch=identifier)
            return self.answer(found, changed=True, switch=identifier, applied=said, diff=diff, **more)
        goal = "off" if action == ALL_OFF else "as before"
        reason = " ".join(errors) or "What was written did not come back when it was read."
        if go_on:
            named = ", ".join(f"{name} is {shown(value)}" for name, value in wrong.items())
            message = (
                f"Not every flag in {self.store.place()} is {goal}: {named}; the others are and stay so: {reason} Set them there by "
                "hand, and see playbooks/flags.yml."
                if named
                else f"Every flag in {self.store.place()} is {goal}, but: {reason}"
            )
            self._end(history, identifier, PARTIAL, found, message)
            raise Problem(message, flags=found, switch=identifier, **more)
        raise self._take_back(history, identifier, changes, found, reason, more)

    def _begin(self, history: History, changes: Mapping[str, Any], action: str) -> str:
        """Record the switch before anything is written, so that a kill leaves a trace; return its id."""
        switches = history.switches()
        identifier = make_id(switches[-1]["id"] if switches else None)
        history.add(
            {
                "state": "begun",
                "id": identifier,
                "begun": timestamp(),
                "host": self.options["host"],
                "operator": self.options["operator"],
                "reason": self.options["reason"],
                "action": action,
                "place": self.store.place(),
                "changes": changes,
                "release": current_release(self.layout),
                "during": self.running,
            }
        )
        return identifier

    def _end(
        self, history: History, identifier: str, verdict: str, found: Mapping[str, Any], message: str = ""
    ) -> None:
        entry = {
            "state": "ended",
            "id": identifier,
            "finished": timestamp(),
            "verdict": verdict,
            "flags": dict(found),
            "message": redact(message, self.hidden),
            "seconds": round(time.monotonic() - self.begun, 3),
        }
        try:
            history.add(entry)
        except Problem as problem:
            # The switch itself is done and proved.
            self.warn(f"{problem.message.rstrip('.')}; the end of switch {identifier} is not recorded.")

    def _write(
        self, changes: Mapping[str, str | None], go_on: bool, errors: list[str]
    ) -> tuple[dict[str, str | None], str]:
        """Write *changes* and read them back; return what is there then, and what the application was told."""
        said = ""
        try:
            errors += self.store.write(changes, go_on)
            if not errors or go_on:
                said = self.store.apply()
        except Problem as problem:
            errors.append(problem.message)
        limit = time.monotonic() + (0.0 if errors else self.store.settle)
        while True:
            try:
                found = self.store.read(self.flags.names)
            except Problem as problem:
                errors.append(problem.message)
                return dict.fromkeys(self.flags.names), said
            if all(found[name] == changes[name] for name in changes) or time.monotonic() >= limit:
                return found, said
            time.sleep(LOOK)

    def _take_back(
        self,
        history: History,
        identifier: str,
        changes: Mapping[str, Any],
        found: dict[str, str | None],
        reason: str,
        more: Mapping[str, Any],
    ) -> Problem:
        """Make the flags what they were; return the Problem that says how that ended."""
        errors: list[str] = []
        # A request without an answer may still be heard, so that only the whole places are known to be as before.
        if not self.store.atomic or any(found[name] != self.before[name] for name in changes):
            found, _said = self._write({name: self.before[name] for name in changes}, True, errors)
        wrong = [name for name in changes if found.get(name) != self.before[name]]
        if wrong:
            named = ", ".join(
                f"{name} is {shown(found.get(name))} (was {shown(self.before[name])})" for name in wrong
            )
            message = (
                f"The flags in {self.store.place()} were switched by half and could not be taken back: {named}: {reason} Set them "
                "there by hand, then see playbooks/flags.yml."
            )
        else:
            told = f" ({' '.join(errors)})" if errors else ""
            message = (
                f"The flags in {self.store.place()} were not switched and are as they were{told}: {reason}"
            )
        self._end(history, identifier, PARTIAL if wrong else TAKEN_BACK, found, message)
        return Problem(message, flags=found, switch=identifier, **more)


def to_take_back(
    flags: Flags, switch: Mapping[str, Any], found: Mapping[str, str | None]
) -> tuple[dict[str, str | None], str]:
    """Return what the flags that *switch* changed were before it, without those that somebody has switched since; pure.

    :return: the values, and a sentence about what is left alone, "" for nothing.
    """
    changes = {name: pair for name, pair in switch["changes"].items() if name in flags.names}
    others = [name for name, (old, new) in changes.items() if found.get(name) not in (old, new)]
    wanted = {name: old for name, (old, _new) in changes.items() if name not in others}
    left = ", ".join(f"{name} is {shown(found.get(name))}" for name in others)
    return wanted, left and (
        f"The switch {switch['id']} was taken back but for what somebody has switched since: {left}; see playbooks/flags.yml."
    )


def perform(options: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    """Do what *options* (see ``OPTIONS``) say and return the module's answer.

    :raises Problem: when the flags are not what was asked for.
    """
    if not options["timeout"] > 0:
        raise Problem(f"timeout must be a number of seconds above 0, found {options['timeout']}.")
    flags = parse_flags(options["flags"])
    if flags is None:
        raise Problem("app_flags is empty: say where the feature flags are kept and what they are called.")
    hidden = [*parse_environment(options["environment"], "environment").values(), options["token"] or ""]
    hidden += filter(None, [(options["database"] or {}).get("password")])
    state = options["state"]
    wanted: dict[str, str | None] = {}
    if state == "switched":
        given = {"stage": options["stage"], "values": options["values"], "off": options["all_off"]}
        wanted = dict(wanted_values(flags, **given))
    switch = Switch(flags, store_of(flags, options), options, check_mode, warn, hidden)
    if switch.running and state != "shown":
        during = switch.running
        warn(
            f"The {during['kind'] or 'deployment'} {during['deployment']} of {during['owner'] or 'somebody'} has been running since "
            f"{during['since']}; flags are switched beside it."
        )
    try:
        if state == "shown":
            return switch.show()
        if state == "taken_back":
            before = next(
                (one for one in read_switches(switch.layout) if one["id"] == options["switch"]), None
            )
            if before is None:
                raise Problem(
                    f"There is no switch {options['switch']!r} in {str(history_file(switch.layout))!r}: see playbooks/flags.yml."
                )
            back, left = to_take_back(flags, before, switch.store.read(flags.names))
            answer = switch.run(back, f"take back {before['id']}", True, left)
            return {**answer, "recorded": read_switches(switch.layout)[-NEWEST:]}
        action = (
            "all off" if options["all_off"] else f"stage {options['stage']}" if options["stage"] else "set"
        )
        return {
            **switch.run(wanted, action, options["all_off"]),
            "recorded": read_switches(switch.layout)[-NEWEST:],
        }
    except Problem as problem:
        evidence = redact(problem.evidence, hidden)
        recorded: list[dict[str, Any]] = []
        with contextlib.suppress(Problem):
            recorded = read_switches(switch.layout)[-NEWEST:]
        results = {"recorded": recorded, **problem.results}
        raise Problem(redact(problem.message, hidden), evidence, **results) from problem
