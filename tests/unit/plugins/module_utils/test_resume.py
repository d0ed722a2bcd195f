# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests for plugins/module_utils/_resume.py: every input of the table, and what its facts are made from."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._resume import (
    FACTS,
    TABLE,
    choose,
    decide,
    migrated,
    sentence,
)

DEPLOYMENT = "20261121T013700-ab12"
RELEASE = "0123456789ab-01234567"
PLAN = {"migrations": [{"app": "shop", "name": "0002_b"}]}
BEFORE = [["shop", "0001_a"]]
AFTER = [*BEFORE, ["shop", "0002_b"]]
EVERYTHING = [dict(zip(FACTS, values)) for values in itertools.product(*FACTS.values())]
GOOD = {
    "unfinished": True,
    "kind": "deployment",
    "answering": True,
    "known": True,
    "same": True,
    "failed": False,
    "migrated": "yes",
    "complete": True,
}


def test_every_input_has_a_way_and_every_row_an_input() -> None:
    rules = set()
    for facts in EVERYTHING:
        way, rule, _reason = choose(facts)
        rules.add(rule)
        proved = all(facts[name] == value for name, value in GOOD.items())
        # Finished is only what was proved as far as that goes, and then where it serves everywhere or somebody asks.
        assert (way == "finish") == (
            proved and facts["asked"] != "undo" and (facts["switched"] == "all" or facts["asked"] == "finish")
        )
        assert (way == "nothing") == (not facts["unfinished"])
        # To finish is refused, and never turned into something that was not asked for.
        assert (way == "refuse") == (facts["asked"] == "finish" and facts["unfinished"] and not proved)
        assert way in ("nothing", "finish", "undo", "refuse")
    assert rules == {row[0] for row in TABLE}
    assert len(EVERYTHING) == 3 * 2 * 2 * 2 * 2 * 2 * 2 * 3 * 2 * 3


def service(deployment: str = DEPLOYMENT, **fields: Any) -> dict[str, Any]:
    return {
        "name": "web",
        "kind": "web",
        "deployment": deployment,
        "release": RELEASE if deployment == DEPLOYMENT else "f" * 12 + "-11111111",
        "running": True,
        "answers": True,
        "foreign": None,
        "instances": [],
        **fields,
    }


def record(*phases: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {
        "id": DEPLOYMENT,
        "release": RELEASE,
        "plan": PLAN,
        "applied_before": BEFORE,
        "phases": [{"phase": name, "state": state} for name, state in (phases or (("migrate", "done"),))],
        **fields,
    }


def state(old: bool = False, **fields: Any) -> dict[str, Any]:
    found = service("20261120T000000-0000" if old else DEPLOYMENT)
    return {
        "unfinished": {"id": DEPLOYMENT, "kind": "deployment"},
        "open_record": record(),
        "current": {"release": found["release"], "deployment": found["deployment"]},
        "services": [found],
        "releases": [{"name": RELEASE, "complete": True}],
        "applied": AFTER,
        **fields,
    }


def way(*states: dict[str, Any] | None, **options: Any) -> tuple[str, str]:
    named = {f"web{number}": found for number, found in enumerate(states, 1)}
    plan = decide(states=named, primary="web1", **options)
    assert plan["reason"] and "{" not in plan["reason"]
    assert plan["reason"] in sentence(plan)
    return plan["way"], plan["rule"]


def test_where_every_host_serves_it_only_later_steps_are_open() -> None:
    assert way(state(), state()) == ("finish", "every host serves it")
    plan = decide(states={"web1": state()}, primary="web1")
    assert (plan["deployment"], plan["open"], plan["record"]["release"]) == (DEPLOYMENT, [], RELEASE)


def test_hosts_that_are_left_are_restarted_only_when_it_is_asked_for() -> None:
    assert way(state(), state(old=True)) == ("undo", "hosts are left")
    assert way(state(), state(old=True), asked="finish")[0] == "finish"
    assert way(state(old=True), state(old=True), asked="finish")[0] == "finish"
    assert way(state(old=True)) == ("undo", "hosts are left")
    plan = decide(states={"web1": state(), "web2": state(old=True)}, primary="web1", asked="finish")
    assert plan["open"] == ["web2"] and "web2 will be restarted" in plan["reason"]


def test_what_serves_but_not_well_is_not_finished() -> None:
    assert way(state(services=[service(answers=False)]))[0] == "undo"
    assert way(state(services=[service(running=False, answers=False)]))[0] == "undo"
    assert way(state(services=[service(foreign="pid 1: other")]))[0] == "undo"
    # It serves, but a reboot would start the release before.
    assert way(state(current={"release": "other", "deployment": "other"}))[0] == "undo"


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("part of a migration", state(open_record=record(half_done=["shop", "0002_b"]))),
        ("migrations", state(open_record=record(("migrate", "running")))),
        ("migrations", state(applied=None)),
        # Somebody has taken it back since.
        ("migrations", state(applied=BEFORE)),
        ("release", state(releases=[{"name": RELEASE, "complete": False}])),
        ("a phase failed", state(open_record=record(("migrate", "done"), ("restart", "failed")))),
        ("no record of it", state(open_record=None)),
        ("no record of it", state(open_record={**record(), "id": "20261120T000000-0000"})),
        ("a rollback", state(unfinished={"id": DEPLOYMENT, "kind": "rollback"})),
    ],
)
def test_what_was_not_proved_is_undone_and_finishing_it_is_refused(rule: str, found: dict[str, Any]) -> None:
    assert way(found) == ("undo", rule)
    assert way(found, asked="finish") == ("refuse", rule)
    assert way(found, asked="undo")[0] == "undo"


def test_every_host_has_to_answer_and_to_know_of_it() -> None:
    assert way(state(), None) == ("undo", "hosts that do not answer")
    assert way(None, state()) == ("undo", "hosts that do not answer")
    assert way(state(), state(open_record=None)) == ("undo", "no record of it")
    failed = state(open_record=record(("restart", "failed")))
    assert way(state(), failed) == ("undo", "a phase failed")


def test_a_second_attempt_that_ended_well_makes_up_for_the_first() -> None:
    found = record(("migrate", "done"), ("restart", "failed"), ("restart", "done"))
    assert way(state(open_record=found))[0] == "finish"


def test_other_settings_make_another_release() -> None:
    assert way(state(), inputs={"web1": "01234567"})[0] == "finish"
    assert way(state(), inputs={"web1": "76543210"}) == ("undo", "other settings")


def test_nothing_was_cut_off() -> None:
    assert way(state(unfinished=None)) == ("nothing", "nothing was cut off")
    assert way(state(unfinished=None), asked="finish") == ("nothing", "nothing was cut off")


def test_migrations_of_each_framework() -> None:
    assert migrated(record(), AFTER, "django") == "yes"
    assert migrated({"phases": []}, None, "none") == "yes"
    heads = {
        **record(applied_before=[["alembic", "a"]]),
        "plan": {
            "migrations": [
                {"app": "alembic", "name": "b", "down": ["a"]},
                {"app": "alembic", "name": "c", "down": ["b"]},
            ]
        },
    }
    assert migrated(heads, [["alembic", "c"]], "alembic") == "yes"
    assert migrated(heads, [["alembic", "b"]], "alembic") == "no"
    command = {**record(applied_before=[]), "plan": {"migrations": [{"app": "command", "name": "init"}]}}
    assert migrated(command, [], "command") == "yes"
    # Nothing was pending.
    assert migrated({**record(), "plan": {"migrations": []}}, BEFORE, "django") == "yes"
