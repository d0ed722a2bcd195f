# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import itertools

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._applied import (
    applied_since,
    difference,
    worst,
)
from ansible_collections.runbook.deploy.plugins.module_utils._decision import (
    decide,
    forecast,
    through_unproven,
    towards,
)
from ansible_collections.runbook.deploy.plugins.module_utils._policy import LEVELS
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

TARGET = {"release": "old", "deployment": "20260101T000000-0000", "commit": "a" * 40, "version": "v1"}
JUDGEMENTS = ("yes", "no", "unknown")


def migration(name: str, **judged: str) -> dict:
    return {
        "app": "shop",
        "name": name,
        "compatible": "yes",
        "reversible": "yes",
        "destructive": "no",
        **judged,
    }


def record(migrations: list | None = None, **fields) -> dict:
    return {
        "release": "new",
        "previous": TARGET,
        "applied_before": [["shop", "0001"]],
        "plan": {"migrations": migrations or []},
        "backup": {"id": "b1"},
        "phases": [{"phase": "migrate"}] if migrations else [],
        "traffic_taken": None,
        **fields,
    }


def state(current: str = "old", applied: tuple[str, ...] = ("0001",), serving: str | None = None) -> dict:
    services = [{"name": "web", "running": True, "release": serving or current}]
    return {
        "current": {"release": current},
        "services": services,
        "applied": [["shop", name] for name in applied],
    }


def level(found: dict) -> str:
    return found["level"]


def test_nothing_live_changed_is_abandoned() -> None:
    found = decide(record=record(), states={"web1": state()}, primary="web1")
    assert (level(found), found["revert"], found["reverse"]) == ("abandon", [], [])


def test_code_goes_back_only_where_the_new_release_is() -> None:
    found = decide(record=record(), states={"web1": state("new"), "web2": state()}, primary="web1")
    assert (level(found), found["revert"]) == ("code", ["web1"])


def test_a_host_that_still_runs_the_new_release_goes_back_though_current_is_old() -> None:
    found = decide(record=record(), states={"web1": state("old", serving="new")}, primary="web1")
    assert (level(found), found["revert"]) == ("code", ["web1"])


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        ({}, "code"),
        ({"compatible": "no"}, "migrations"),
        ({"compatible": "unknown"}, "migrations"),
        ({"compatible": "no", "reversible": "no"}, "restore"),
        ({"compatible": "no", "reversible": "unknown"}, "restore"),
        ({"compatible": "no", "destructive": "yes"}, "restore"),
        ({"compatible": "no", "destructive": "unknown"}, "restore"),
    ],
)
def test_the_least_level_that_helps(judged: dict, expected: str) -> None:
    rec = record([migration("0002", **judged)], traffic_taken="then")
    states = {"web1": state("new", ("0001", "0002"))}
    assert level(decide(record=rec, states=states, primary="web1", consent=True)) == expected


def test_before_traffic_what_can_be_reversed_is_reversed() -> None:
    """Nobody can have written to a new table, and a next version without it must not find it there."""
    states = {"web1": state("old", ("0001", "0002"))}
    assert level(decide(record=record([migration("0002")]), states=states, primary="web1")) == "migrations"
    for judged in ({"reversible": "no"}, {"reversible": "unknown"}, {"destructive": "yes"}):
        rec = record([migration("0002", **judged)])
        assert level(decide(record=rec, states=states, primary="web1")) == "code"


def test_without_a_backup_nothing_is_restored() -> None:
    rec = record([migration("0002", compatible="no", reversible="no")], backup={})
    assert (
        level(decide(record=rec, states={"web1": state("new", ("0001", "0002"))}, primary="web1")) == "stop"
    )


def test_a_migration_the_plan_does_not_know_is_unknown() -> None:
    rec = record([migration("0002")])
    found = decide(record=rec, states={"web1": state("old", ("0001", "0002", "0003"))}, primary="web1")
    assert level(found) == "restore"


def test_only_what_was_applied_counts() -> None:
    rec = record([migration("0002"), migration("0003", compatible="no", reversible="no")])
    found = decide(record=rec, states={"web1": state("old", ("0001", "0002"))}, primary="web1")
    assert (level(found), found["reverse"]) == ("migrations", [["shop", "0002"]])


def test_a_lost_primary_after_the_migration_began_stops_unless_all_is_compatible() -> None:
    states = {"web1": None, "web2": state("new")}
    risky = decide(record=record([migration("0002", compatible="unknown")]), states=states, primary="web1")
    assert (level(risky), risky["unknown"]) == ("stop", ["web1"])
    harmless = decide(record=record([migration("0002")]), states=states, primary="web1")
    assert (level(harmless), harmless["revert"]) == ("code", ["web2"])


def test_a_lost_primary_before_any_migration_takes_the_others_back() -> None:
    found = decide(record=record(), states={"web1": None, "web2": state("new")}, primary="web1")
    assert (level(found), found["revert"], found["unknown"]) == ("code", ["web2"], ["web1"])


def test_when_no_host_answers_nothing_is_claimed() -> None:
    found = decide(record=record(), states={"web1": None}, primary="web1")
    assert (level(found), found["unknown"]) == ("stop", ["web1"])


def test_migrations_are_not_reversed_under_a_host_that_may_serve_the_new_release() -> None:
    states = {"web1": state("old", ("0001", "0002")), "web2": None}
    needed = [migration("0002", compatible="no")]
    began = record(needed, phases=[{"phase": "migrate"}, {"phase": "restart"}])
    assert level(decide(record=began, states=states, primary="web1")) == "stop"
    assert level(decide(record=record(needed), states=states, primary="web1")) == "migrations"
    harmless = record([migration("0002")], phases=[{"phase": "migrate"}, {"phase": "restart"}])
    assert level(decide(record=harmless, states=states, primary="web1")) != "stop"


def test_a_database_that_does_not_answer_stops() -> None:
    silent = {**state("new"), "applied": None}
    assert (
        level(decide(record=record([migration("0002")]), states={"web1": silent}, primary="web1")) == "stop"
    )
    unplanned = record(phases=[{"phase": "migrate"}], plan=None)
    assert level(decide(record=unplanned, states={"web1": silent}, primary="web1")) == "stop"


def test_a_database_that_does_not_answer_is_no_matter_where_nothing_was_pending() -> None:
    began = record(phases=[{"phase": "migrate"}])
    silent = {**state("old"), "applied": None}
    assert level(decide(record=began, states={"web1": silent}, primary="web1")) == "abandon"
    serving = {**state("new"), "applied": None}
    assert level(decide(record=began, states={"web1": serving}, primary="web1")) == "code"


def test_the_first_deployment_has_nothing_to_go_back_to() -> None:
    for asked in ("", "abandon", "stop"):
        found = decide(
            record=record(previous=None), states={"web1": state("new")}, primary="web1", level=asked
        )
        assert (level(found), found["revert"], found["target"]) == ("abandon", ["web1"], None)
        assert "web1 is stopped; the database stays" in found["reason"]
    found = decide(record=record(previous=None), states={"web1": state("new")}, primary="web1", level="code")
    assert level(found) == "stop"
    first = record([migration("0001")], previous=None, applied_before=None)
    found = decide(
        record=first, states={"web1": {**state(), "current": None, "services": []}}, primary="web1"
    )
    assert (level(found), found["reverse"]) == ("abandon", [])


@pytest.mark.parametrize(
    ("asked", "judged", "expected"),
    [
        ("code", {}, "code"),
        ("code", {"compatible": "unknown"}, "stop"),
        ("migrations", {}, "migrations"),
        ("migrations", {"reversible": "unknown"}, "stop"),
        ("migrations", {"destructive": "yes"}, "stop"),
        ("restore", {}, "restore"),
    ],
)
def test_what_the_operator_asks_for_is_refused_where_it_would_do_harm(
    asked: str, judged: dict, expected: str
) -> None:
    rec = record([migration("0002", **judged)])
    found = decide(record=rec, states={"web1": state("new", ("0001", "0002"))}, primary="web1", level=asked)
    assert level(found) == expected


def test_a_migrate_phase_that_ended_before_its_first_step_applied_nothing() -> None:
    # Otherwise every migration the database ever had counts as applied by it, and the backup is restored.
    rec = record(applied_before=None, phases=[{"phase": "migrate", "state": "failed"}])
    found = decide(record=rec, states={"web1": state("old", ("0001", "0002"))}, primary="web1")
    assert found["level"] == "abandon"
    assert found["reverse"] == []


@pytest.mark.parametrize("asked", ("code", "migrations", "abandon"))
def test_no_level_is_taken_on_trust_while_the_database_does_not_say_what_is_applied(asked: str) -> None:
    silent = {**state("new"), "applied": None}
    found = decide(record=record([migration("0002")]), states={"web1": silent}, primary="web1", level=asked)
    assert found["level"] == "stop"
    assert "which migrations are applied" in found["reason"]


@pytest.mark.parametrize(
    ("fields", "consent", "expected"),
    [
        ({"traffic_taken": "then"}, False, "stop"),
        ({"traffic_taken": "then"}, True, "restore"),
        ({}, False, "restore"),
        ({"backup": {}}, True, "stop"),
        ({"backup": {"id": "b1", "empty": True}}, True, "stop"),
    ],
)
def test_a_restore_that_would_be_refused_is_refused_before_anything_is_stopped(
    fields: dict, consent: bool, expected: str
) -> None:
    rec = record([migration("0002")], **fields)
    found = decide(
        record=rec,
        states={"web1": state("new", ("0001", "0002"))},
        primary="web1",
        level="restore",
        consent=consent,
    )
    assert found["level"] == expected
    assert expected == "restore" or "rollback_level=restore" in found["reason"]
    lacks_consent = bool(fields.get("traffic_taken")) and not consent
    assert found["without_consent"] == ("restore" if lacks_consent else "")


@pytest.mark.parametrize(("compatible", "first"), [("yes", True), ("no", False), ("unknown", False)])
def test_code_that_runs_with_the_migrations_goes_back_before_them(compatible: str, first: bool) -> None:
    rec = record([migration("0002", compatible=compatible)])
    live = {"web1": state("new", ("0001", "0002"))}
    found = decide(record=rec, states=live, primary="web1", level="migrations")
    assert (found["level"], found["code_first"]) == ("migrations", first)
    assert decide(record=record(), states={"web1": state("new")}, primary="web1")["code_first"] is False


def test_abandon_is_no_way_to_start_old_code_on_a_new_schema() -> None:
    rec = record([migration("0002", compatible="no")])
    live = {"web1": state("new", ("0001", "0002"))}
    assert decide(record=rec, states=live, primary="web1", level="abandon")["level"] == "stop"
    untouched = {"web1": state("old")}
    assert decide(record=rec, states=untouched, primary="web1", level="abandon")["level"] == "abandon"


def test_an_earlier_instance_of_the_same_release_is_not_what_was_deployed() -> None:
    rec = record(id="20260103T000000-0000", release="old")
    before = state("old")
    before["current"]["deployment"] = before["services"][0]["deployment"] = TARGET["deployment"]
    assert level(decide(record=rec, states={"web1": before}, primary="web1")) == "abandon"
    after = state("old")
    after["current"]["deployment"] = after["services"][0]["deployment"] = rec["id"]
    assert decide(record=rec, states={"web1": after}, primary="web1")["revert"] == ["web1"]


def test_what_was_never_proved_is_gone_through() -> None:
    """Killed after its switch, then deployed over: the way back takes both, from what the first had found."""
    unproven = {**TARGET, "release": "mid", "deployment": "20260102T000000-0000", "proven": False}
    killed = record(
        [migration("0002", compatible="no")],
        id=unproven["deployment"],
        release="mid",
        traffic_taken="then",
        backup={"id": "b0"},
    )
    rec = record(
        [migration("0003")],
        id="20260103T000000-0000",
        previous=unproven,
        applied_before=[["shop", "0001"], ["shop", "0002"]],
    )
    found = through_unproven(rec, [rec, killed])
    assert found["previous"] == TARGET
    assert found["applied_before"] == [["shop", "0001"]]
    assert found["backup"] == {"id": "b0"}
    assert found["traffic_taken"] == "then"
    assert found["undone"] == [rec["id"], killed["id"]]
    whole = decide(record=found, states={"web1": state("mid", ("0001", "0002", "0003"))}, primary="web1")
    assert (level(whole), whole["revert"], whole["target"]) == ("migrations", ["web1"], TARGET)
    assert whole["reverse"] == [["shop", "0002"], ["shop", "0003"]]
    # Nothing of the second was live: what serves is left as it is, and said to be unproved.
    left = decide(record=rec, states={"web1": state("mid", ("0001", "0002"))}, primary="web1")
    assert level(left) == "abandon"
    assert "never proved" in left["reason"]
    assert through_unproven(killed, [killed]) == killed


def test_invariants_over_the_whole_table() -> None:
    """Never code with what is not proved compatible; never a loss without consent; restore only when less does not help."""
    space = itertools.product(
        JUDGEMENTS,
        JUDGEMENTS,
        JUDGEMENTS,
        ("old", "new"),
        (None, "then"),
        (True, False),
        (True, False),
        ("0001",),
        (("0001",), ("0001", "0002")),
    )
    seen = set()
    for compatible, reversible, destructive, current, traffic, consent, backup, _first, applied in space:
        rec = record(
            [migration("0002", compatible=compatible, reversible=reversible, destructive=destructive)],
            traffic_taken=traffic,
            backup={"id": "b1"} if backup else {},
        )
        found = decide(record=rec, states={"web1": state(current, applied)}, primary="web1", consent=consent)
        chosen = level(found)
        seen.add(chosen)
        assert chosen in LEVELS
        done = len(applied) > 1
        if chosen == "code" and done:
            assert compatible == "yes"
        if chosen == "migrations":
            assert done and (reversible, destructive) == ("yes", "no")
            assert compatible != "yes" or (current == "old" and not traffic)
        if chosen == "restore":
            assert backup and compatible != "yes" and (reversible, destructive) != ("yes", "no")
            assert consent or not traffic
        if found["without_consent"]:
            # Consent alone makes it go: who counts what would be lost counts the right thing.
            agreed = decide(
                record=rec, states={"web1": state(current, applied)}, primary="web1", consent=True
            )
            assert (chosen, level(agreed)) == ("stop", found["without_consent"])
        if chosen == "abandon":
            assert current == "old" and not done
    assert seen == {"abandon", "code", "migrations", "restore", "stop"}


def test_worst_of_nothing_is_harmless() -> None:
    assert [worst([], {}, key) for key in ("compatible", "reversible", "destructive")] == ["yes", "yes", "no"]


def test_difference_keeps_the_order() -> None:
    assert difference([["a", "1"], ["b", "2"], ["a", "3"]], [["a", "1"]]) == [["b", "2"], ["a", "3"]]


def test_forecast_names_a_level_for_each_phase() -> None:
    rows = forecast({"migrations": [migration("0002", compatible="no")]}, TARGET, backup=True)
    assert [(row["phase"], row["level"]) for row in rows] == [
        ("release to collectstatic", "abandon"),
        ("migrate", "migrations"),
        ("restart", "migrations"),
        ("smoke_test", "migrations"),
    ]


def test_forecast_of_a_deployment_without_migrations() -> None:
    assert [row["level"] for row in forecast({}, TARGET, backup=True)] == [
        "abandon",
        "abandon",
        "abandon",
        "code",
    ]


def past(number: int, version: str, **fields) -> dict:
    """Return the record of a deployment, numbered by age; its release is named after its version."""
    base = {
        "id": f"2026010{number}T000000-0000",
        "kind": "deployment",
        "verdict": "success",
        "release": f"r-{version}",
        "version": version,
        "commit": version.encode().hex().ljust(40, "0"),
        "applied_before": [["shop", f"000{i}"] for i in range(1, number)],
        "plan": {"migrations": [migration(f"000{number}")]},
        "phases": [{"phase": "migrate"}],
        "backup": {"id": f"b{number}"},
        "undone_by": None,
    }
    return {**base, **fields}


HISTORY = [past(4, "v4"), past(3, "v3"), past(2, "v2", verdict="abandoned"), past(1, "v1")]
COMPLETE = ["r-v1", "r-v3", "r-v4"]


@pytest.mark.parametrize("to", ["v1", "r-v1", HISTORY[3]["id"], HISTORY[3]["commit"][:8]])
def test_everything_since_is_undone_as_one(to: str) -> None:
    found = towards(HISTORY, to, COMPLETE)
    assert found["previous"]["release"] == "r-v1"
    assert found["applied_before"] == [["shop", "0001"]]
    assert found["backup"] == {"id": "b2"}
    assert {m["name"] for m in found["plan"]["migrations"]} == {"0002", "0003", "0004"}
    assert HISTORY[0]["id"] in found["undone"] and HISTORY[1]["id"] in found["undone"]
    decided = decide(record=found, states={"web1": state("r-v4", ("0001", "0003", "0004"))}, primary="web1")
    assert level(decided) == "code"


@pytest.mark.parametrize(
    ("to", "complete", "says"),
    [
        ("v9", COMPLETE, "no successful deployment"),
        ("v2", COMPLETE, "no successful deployment"),
        ("v4", COMPLETE, "already"),
        ("v1", ["r-v4"], "no more on the host"),
    ],
)
def test_a_target_that_cannot_be_is_refused(to: str, complete: list, says: str) -> None:
    with pytest.raises(Problem, match=says):
        towards(HISTORY, to, complete)


def test_a_long_list_of_migrations_is_counted() -> None:
    names = [f"{number:04}" for number in range(1, 23)]
    plan = [migration(name) for name in names]
    found = decide(
        record=record(plan, previous=None, applied_before=[]),
        states={"web1": {**state("old", tuple(names)), "current": None}},
        primary="web1",
    )
    assert found["level"] == "abandon"
    assert "22 migrations (" in found["reason"]
    assert len(found["reason"]) < 200


def revision(name: str, *down: str, **judged: str) -> dict:
    return {**migration(name, **judged), "app": "alembic", "down": list(down)}


def alembic(*heads: str) -> list[list[str]]:
    return [["alembic", head] for head in heads]


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        (["c"], ["a"], ["b", "c"]),
        (["b"], ["a"], ["b"]),
        (["a"], ["a"], []),
        # A merge of two heads, and one of them alone.
        (["m"], ["b", "x"], ["m"]),
        (["m"], ["a"], ["b", "m"]),
        # Nobody knows what is below it.
        (["strange"], ["a"], ["strange"]),
        ([], ["a"], []),
    ],
)
def test_what_is_below_a_head_of_alembic_is_applied_too(now: list, before: list, expected: list) -> None:
    plan = {"migrations": [revision("b", "a"), revision("c", "b"), revision("m", "b", "x")]}
    assert applied_since(alembic(*now), alembic(*before), plan) == alembic(*expected)


def test_a_revision_below_the_head_counts_for_the_decision() -> None:
    plan = [revision("b", "a", compatible="no", reversible="no"), revision("c", "b")]
    found = decide(
        record=record(plan, applied_before=alembic("a")),
        states={"web1": {**state("new"), "applied": alembic("c")}},
        primary="web1",
    )
    assert level(found) == "restore"


@pytest.mark.parametrize("began", [True, False])
def test_a_command_is_applied_once_it_has_begun(began: bool) -> None:
    unknown = dict.fromkeys(("compatible", "reversible", "destructive"), "unknown")
    plan = [{**migration("init.py", **unknown), "app": "command"}]
    found = decide(
        record=record(plan, applied_before=[] if began else None),
        states={"web1": {**state("new"), "applied": None}},
        primary="web1",
    )
    assert level(found) == ("restore" if began else "code")
    assert (
        level(
            decide(
                record=record([], phases=[{"phase": "migrate"}], applied_before=[]),
                states={"web1": {**state("new"), "applied": None}},
                primary="web1",
            )
        )
        == "code"
    )


@pytest.mark.parametrize(
    ("compatible", "backup", "expected"),
    [
        ("yes", {"id": "b1"}, "stop"),
        ("no", {"id": "b1"}, "restore"),
        ("unknown", {"id": "b1"}, "restore"),
        ("no", {}, "stop"),
        ("no", {"id": "b1", "empty": True}, "stop"),
    ],
)
def test_part_of_a_migration_is_never_nothing(compatible: str, backup: dict, expected: str) -> None:
    """MySQL cannot roll back changes of the schema: no row says so, and something live was changed all the same."""
    plan = [migration("0002", compatible=compatible)]
    found = decide(
        record=record(plan, half_done=["shop", "0002"], backup=backup),
        states={"web1": state()},
        primary="web1",
    )
    assert level(found) == expected and "part of it remains" in found["reason"]
    found = decide(
        record=record(plan, half_done=["shop", "0002"], backup=backup, previous=None),
        states={"web1": state("")},
        primary="web1",
    )
    assert level(found) == "abandon" and "part of it remains" in found["reason"]
