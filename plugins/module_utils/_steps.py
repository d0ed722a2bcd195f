# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each host goes back to, and which steps of a rollback that takes, in their order.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._layout import ADOPTED

# Levels after which the release before serves, where there is one.
STARTING = ("abandon", "code", "migrations", "restore")


def target_of(
    target: Mapping[str, Any] | None, state: Mapping[str, Any], undone: Mapping[str, Any], named: bool
) -> dict[str, Any]:
    """Return what a host goes back to, ``{release, deployment, …}``; empty where it is left with nothing.

    Where the *target* of the fleet never was on the host (one that is new, or that --limit left out), it is what the host served
    before the deployment; nothing where that was nothing, so that no host keeps what was refused.

    :param state: what the host answered; :param undone: the record that is undone.
    :param named: an operator named the target; it is never replaced.
    """
    if not target:
        return {}
    there = {release.get("name") for release in state.get("releases") or []}
    if named or target.get("deployment") == ADOPTED or target.get("release") in there:
        return dict(target)
    current = state.get("current") or {}
    if current.get("release") and current["release"] != undone.get("release"):
        return dict(current)
    own = state.get("open_record") or {}
    if own.get("id") and own["id"] == undone.get("id"):
        return dict(own.get("previous") or {})
    return {}


def steps_of(
    plan: Mapping[str, Any],
    states: Mapping[str, Mapping[str, Any] | None],
    primary: str,
    undone: Mapping[str, Any],
    *,
    named: bool = False,
    beats_apart: bool = False,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return (what each host goes back to, by name; the steps by name, in their order).

    :param plan: the decision, with ``batches``; :param states: what each host answered, None for one that did not.
    :param named: see :func:`target_of`; :param beats_apart: beats end before the workers of all hosts, and start after them.
    :return: a step has ``what``, in words, ``hosts``, where it runs, and ``reason``; ``start`` has ``batches``, too. A step without hosts is not taken.
    """
    level, target, unknown = plan["level"], plan.get("target") or {}, set(plan["unknown"])
    targets = {host: target_of(target, state or {}, undone, named) for host, state in states.items()}
    # The release that was deployed stays, with its features off.
    if level == "flags":
        targets = {
            host: {"release": undone.get("release"), "deployment": undone.get("id")} for host in states
        }
    answering = [host for host in states if host not in unknown]
    starting = [host for host in answering if targets[host]] if level in STARTING else []
    reversing = [primary] if level == "migrations" else []
    first = bool(plan.get("code_first"))
    # What a person has to decide on is left as it is, unless nothing served before.
    ending = (
        [host for host in answering if not targets[host]]
        if level not in ("flags", "stop") or not target
        else []
    )
    beats = answering if beats_apart and level in STARTING else []
    batches = [[host for host in batch if host in starting] for batch in plan.get("batches") or [starting]]

    def step(what: str, hosts: Iterable[str], reason: str, **more: Any) -> dict[str, Any]:
        listed = list(hosts)
        return {"what": what, "hosts": listed, "reason": reason if listed else "", **more}

    return targets, {
        "beats_stopped": step("stop the beats", beats, "no beat sends what no worker takes"),
        "migrations_first": step(
            "reverse the migrations",
            [] if first else reversing,
            "the old code is not proved to run with what was applied",
        ),
        # On a silent host too: that it cannot be stopped keeps the database as it is.
        "restore": step(
            "stop everything and restore the backup",
            states if level == "restore" else (),
            "no other level helps",
        ),
        "start": step(
            "start the release before",
            starting,
            "what was deployed is to serve no more",
            batches=[batch for batch in batches if batch],
        ),
        "beats_started": step(
            "start the beats", [host for host in starting if beats_apart], "the workers of every host are up"
        ),
        "stop": step("stop everything", ending, "nothing served there before"),
        "migrations_after": step(
            "reverse the migrations",
            reversing if first and not unknown else [],
            "every host serves code that runs with and without what was applied",
        ),
    }


def step_lines(steps: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the steps that are taken, in words, a line each: what, where, in which batches, why."""
    lines = []
    for step in steps.values():
        batches = [", ".join(batch) for batch in step.get("batches") or [step["hosts"]]]
        if step["hosts"]:
            lines.append(f"{step['what']} on {', then '.join(batches)}: {step['reason']}")
    return lines


def verdict_of(plan: Mapping[str, Any], by_hand: bool) -> str:
    """Return the verdict of the run where every step of *plan* succeeds: ``success``, ``rolled_back``, ``abandoned`` or ``stopped``.

    :param by_hand: an operator asked for it, so that going back is what was meant.
    """
    if plan["level"] == "stop" or plan["unknown"]:
        return "stopped"
    if by_hand or plan["level"] == "flags":
        return "success"
    return "abandoned" if plan["level"] == "abandon" and not plan["revert"] else "rolled_back"


def refusal(mode: str, reason: str, primary: str, states: Mapping[str, Any]) -> str:
    """Return why a rollback by hand is not even planned, "" where nothing stands against it.

    :param mode: ``planned``, ``emergency`` or ""; :param reason: the operator's.
    """
    if mode not in ("", "planned", "emergency"):
        return f"rollback_mode is {mode}, expected planned or emergency; nothing was changed."
    if mode == "planned" and not reason.strip():
        return "A planned rollback needs a reason, which the record keeps: add -e 'rollback_reason=\"…\"'; nothing was changed."
    if not states.get(primary):
        return (
            f"The primary {primary} does not answer, and only its record says what to go back to: run the rollback again when it "
            "answers; nothing was changed."
        )
    return ""
