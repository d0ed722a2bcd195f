# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table that decides a rollback: over every input, and against tables that somebody else wrote."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.runbook.deploy.plugins.module_utils import _policy
from ansible_collections.runbook.deploy.plugins.module_utils._decision import (
    decide,
    forecast,
    through_unproven,
)
from ansible_collections.runbook.deploy.plugins.module_utils._policy import (
    DEFAULT,
    FACTS,
    LEVELS,
    WORDS,
    check_absent,
    check_policy,
    choose,
    every_input,
    judge_policy,
    possible,
    refusal,
)
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(_policy.__file__).resolve().parents[2]
ALL = list(every_input())
ANYTHING = {"name": "anything else", "when": {}, "level": "stop"}


def harm(level: str, facts: dict[str, Any]) -> str:
    """Say what a level would break, written down once more and apart from the module; "" where it may be."""
    unproved = facts["migrations"] in ("applied", "partial") and facts["compatible"] != "yes"
    if level != "stop" and (facts["answering"] == "none" or facts["migrations"] == "unknown"):
        return "acts on a guess"
    if level == "code" and (unproved or facts["migrations"] == "partial"):
        return "old code with what it is not proved to run with"
    if level == "flags" and not facts["flags"]:
        return "flags that cure nothing"
    if level == "restore":
        if not facts["backup"]:
            return "nothing to restore"
        if facts["traffic"] and not facts["consent"]:
            return "a loss of writes without consent"
        lossless = facts["reversible"] == "yes" and facts["destructive"] == "no"
        if facts["migrations"] == "none" or (facts["migrations"] == "applied" and (lossless or not unproved)):
            return "restore where less helps"
    if level == "migrations":
        if facts["migrations"] != "applied" or facts["reversible"] != "yes":
            return "a reversal that cannot be"
        if facts["destructive"] != "no" and not facts["consent"]:
            return "a loss of data without consent"
    if level in ("code", "migrations", "restore") and not facts["target"]:
        return "back to nothing"
    if level in ("migrations", "restore") and facts["hidden"] and unproved:
        return "a schema that a silent host cannot serve with"
    if level == "abandon" and facts["target"] and (facts["serving"] or facts["migrations"] != "none"):
        return "left what was changed"
    return ""


def test_the_inputs_are_all_that_can_be() -> None:
    listed = [tuple(facts.values()) for facts in ALL]
    assert len(set(listed)) == len(listed)
    whole = (dict(zip(FACTS, values)) for values in itertools.product(*FACTS.values()))
    assert {tuple(facts.values()) for facts in whole if possible(facts)} == set(listed)


def test_the_default_table_over_every_input() -> None:
    seen = set()
    for facts in ALL:
        row, refused = choose(DEFAULT, facts)
        assert not refused, (facts, refused)
        assert not harm(row["level"], facts), (facts, row["name"])
        seen.add(row["name"])
        if facts["flags"]:
            assert row["level"] == "flags"
    assert seen == {row["name"] for row in DEFAULT}
    assert judge_policy(DEFAULT, "app_rollback_policy") == []


def test_consent_alone_opens_nothing_but_a_restore() -> None:
    for facts in ALL:
        if not facts["consent"]:
            without = choose(DEFAULT, facts)[0]["level"]
            agreed = choose(DEFAULT, {**facts, "consent": True})[0]["level"]
            assert agreed == without or (without, agreed) == ("stop", "restore")


def test_operators_read_the_table_that_decides() -> None:
    """The role's defaults are what is passed on, and the docs explain every fact and word."""
    found = yaml.safe_load((ROOT / "roles/rollback/defaults/main.yml").read_text(encoding="utf-8"))
    assert found["rollback_policy"] == list(DEFAULT)
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    section = text.split("## Rollback policy")[1].split("\n## ")[0]
    assert [
        name for name in (*FACTS, *WORDS) if f"`{name}`" not in section and f"{{{name}}}" not in section
    ] == []


ROWS = st.builds(
    lambda name, level, when: {"name": name, "level": level, "when": when},
    st.sampled_from(["one", "two", "three"]),
    st.sampled_from(LEVELS),
    st.fixed_dictionaries({}, optional={fact: st.sampled_from(values) for fact, values in FACTS.items()}),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ROWS, max_size=6), st.integers(0, len(ALL) - 1))
def test_whatever_a_table_says_nothing_unsafe_is_chosen(rows: list, number: int) -> None:
    facts = ALL[number]
    row, refused = choose(rows, facts)
    assert not harm(row["level"], facts)
    if refused:
        assert row["level"] == "stop"


@settings(max_examples=10, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=4))
def test_a_table_that_is_accepted_is_safe_everywhere(rows: list) -> None:
    table = [*rows, ANYTHING]
    if not check_policy(table):
        for facts in ALL:
            _row, refused = choose(table, facts)
            assert not refused


def test_the_invariants_are_those_written_down_twice() -> None:
    for facts in ALL:
        for level in LEVELS:
            assert bool(refusal(level, facts)) == bool(harm(level, facts)) or (
                # Of flags there are further reasons than that they cure nothing, where they could not be to blame.
                level == "flags" and not facts["flags"]
            ), (level, facts)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"name": "x", "when": {"compatible": ["no", "unknown"]}, "level": "code"}, "would do harm: "),
        (
            {
                "name": "x",
                "when": {"migrations": "applied", "answering": "all", "target": True},
                "level": "code",
            },
            "(compatible: ",
        ),
        (
            {"name": "x", "when": {"traffic": True, "migrations": "applied"}, "level": "restore"},
            "would do harm",
        ),
        ({"name": "x", "when": {"migrations": "none", "target": True}, "level": "restore"}, "would do harm"),
        ({"name": "x", "when": {"migrations": "unknown"}, "level": "code"}, "nobody knows"),
        ({"name": "x", "when": {"compatibel": "yes"}, "level": "stop"}, "did you mean 'compatible'"),
        ({"name": "x", "when": {"compatible": True}, "level": "stop"}, "in quotes"),
        ({"name": "x", "when": {"traffic": 1}, "level": "stop"}, "expected one of true, false"),
        ({"name": "x", "when": {"traffic": []}, "level": "stop"}, "expected one of true, false"),
        ({"name": "x", "when": [], "level": "stop"}, "must be a mapping of facts"),
        ({"name": "x", "when": {}, "level": "half"}, "expected one of abandon"),
        ({"when": {}, "level": "stop"}, "has no name"),
        ({"name": "x", "level": "stop", "then": "code"}, "unknown key 'then'"),
        ({"name": "x", "level": "stop", "because": "{nobody}"}, "names {nobody}"),
        ({"name": "x", "level": "stop", "because": "half {"}, "cannot be read"),
        ("stop", "must be a mapping"),
    ],
)
def test_a_row_that_cannot_be_is_named(row: Any, says: str) -> None:
    (error, *_more) = check_policy([row, ANYTHING])
    assert error.startswith("app_rollback_policy[0]") and says in error


def test_a_table_that_forgets_something_or_repeats_itself_is_refused() -> None:
    silent = {"name": "silent", "when": {"answering": "none"}, "level": "stop"}
    (lost,) = check_policy([silent])
    assert "no row for" in lost and "answering is all" in lost
    (again,) = check_policy([silent, {**silent, "name": "again"}, ANYTHING])
    assert "(again) is never reached" in again
    assert check_policy({"name": "x"}) and check_policy([]) == []
    # Everything to a person is no harm.
    assert check_policy([ANYTHING]) == []


def test_an_operators_table_decides_and_says_why() -> None:
    careful = [
        {
            "name": "people decide about data",
            "when": {"migrations": "applied"},
            "level": "stop",
            "because": "{names}: ask Ann.",
        },
        *DEFAULT,
    ]
    record = {
        "release": "new",
        "previous": {"release": "old"},
        "applied_before": [],
        "phases": [{"phase": "migrate"}],
        "plan": {
            "migrations": [
                {"app": "shop", "name": "0002", "compatible": "yes", "reversible": "yes", "destructive": "no"}
            ]
        },
    }
    states = {"web1": {"current": {"release": "new"}, "services": [], "applied": [["shop", "0002"]]}}
    found = decide(record=record, states=states, primary="web1", policy=careful)
    assert (found["level"], found["rule"], found["reason"]) == (
        "stop",
        "people decide about data",
        "shop.0002: ask Ann.",
    )
    rows = forecast(record["plan"], {"release": "old"}, True, careful)
    assert {row["level"] for row in rows[1:]} == {"stop"}
    # A harmful one that nobody checked is refused where it would have been used.
    blind = [{"name": "always", "when": {}, "level": "code"}]
    record["plan"]["migrations"][0]["compatible"] = "unknown"
    found = decide(record=record, states=states, primary="web1", policy=blind)
    assert (
        found["level"] == "stop"
        and "asks for code (always), but the old code is not proved" in found["reason"]
    )


@pytest.mark.parametrize(
    ("failures", "cures", "expected"),
    [
        ([{"phase": "smoke_test"}], ["smoke_test"], "flags"),
        ([{"phase": "smoke_test", "checks": ["search"]}], ["search"], "flags"),
        ([{"phase": "smoke_test", "checks": ["search", "health"]}], ["search"], "code"),
        ([{"phase": "smoke_test", "checks": []}], ["search"], "code"),
        ([{"phase": "restart"}], ["restart", "smoke_test"], "code"),
        ([{"phase": "smoke_test"}, {"phase": "restart"}], ["smoke_test"], "code"),
        ([{"phase": "smoke_test", "unreachable": True}], ["smoke_test"], "code"),
        ([], ["smoke_test"], "code"),
    ],
)
def test_flags_come_first_where_they_cure_everything_that_failed(
    failures: list, cures: list, expected: str
) -> None:
    record = {"release": "new", "previous": {"release": "old"}, "phases": [], "plan": {}}
    states = {"web1": {"current": {"release": "new"}, "services": []}}
    found = decide(record=record, states=states, primary="web1", failures=failures, cures=cures)
    assert found["level"] == expected
    silent = decide(
        record=record, states={**states, "web2": None}, primary="web1", failures=failures, cures=cures
    )
    assert silent["level"] == "code"


ANOTHER = """
import json, sys
from ansible_collections.runbook.deploy.plugins.module_utils._decision import decide, through_unproven
given = json.load(sys.stdin)
record = through_unproven(given["record"], given["records"])
json.dump(decide(record=record, states=given["states"], primary=given["primary"]), sys.stdout)
"""


def test_another_process_decides_the_same_from_json_alone() -> None:
    record = {
        "id": "20260102T000000-0000",
        "release": "new",
        "previous": {"release": "old", "deployment": "20260101T000000-0000"},
        "applied_before": [["shop", "0001"]],
        "phases": [{"phase": "migrate"}, {"phase": "restart"}],
        "plan": {
            "migrations": [
                {"app": "shop", "name": "0002", "compatible": "no", "reversible": "yes", "destructive": "no"}
            ]
        },
        "backup": {"id": "b"},
        "traffic_taken": "then",
    }
    states = {
        "web1": {
            "current": {"release": "new"},
            "services": [],
            "applied": [["shop", "0001"], ["shop", "0002"]],
        },
        "web2": {"current": {"release": "old"}, "services": []},
    }
    mine = decide(record=through_unproven(record, [record]), states=states, primary="web1")
    asked = {"record": record, "records": [record], "states": states, "primary": "web1"}
    done = subprocess.run(
        [sys.executable, "-c", ANOTHER],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
        timeout=60,
    )
    assert json.loads(done.stdout) == json.loads(json.dumps(mine))
    assert (mine["level"], mine["reverse"]) == ("migrations", [["shop", "0002"]])


def test_what_must_be_absent_is_an_address() -> None:
    assert check_absent(["/new/", "https://shop.example.org/new/"], "https://shop.example.org") == []
    (wrong,) = check_absent([{"url": "/new/"}], "https://shop.example.org")
    assert wrong.startswith("app_rollback_absent[0]")
    (nobody,) = check_absent(["/new/"], "")
    assert "without app_url" in nobody
