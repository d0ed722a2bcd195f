# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be written in app_flags, what a switch means, and what a file of variables says; all of it pure."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._flags import to_take_back
from ansible_collections.runbook.deploy.plugins.module_utils._flags_file import switched_text, values_in
from ansible_collections.runbook.deploy.plugins.module_utils._flags_history import folded
from ansible_collections.runbook.deploy.plugins.module_utils._flags_http import address_of, body_of
from ansible_collections.runbook.deploy.plugins.module_utils._flags_spec import (
    all_off,
    parse_flags,
    stage_of,
    stored_values,
    wanted_values,
)
from ansible_collections.runbook.deploy.plugins.module_utils._flags_store import read_all
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from hypothesis import given
from hypothesis import strategies as st

FILE = {"kind": "environment_file", "path": "/srv/shop/shared/flags.env"}
COMMAND = {"kind": "command", "show": ["flag", "{name}"], "set": ["flag", "{name}", "{value}"]}
SQL = {"kind": "sql", "table": "public.flags", "name_column": "name", "value_column": "is_on"}
HTTP = {
    "kind": "http",
    "url": "https://flags.example/f/{name}",
    "show": "https://flags.example/f/{name}",
    "body": {"on": "{value}"},
}
STAGES = {"dormant": {}, "internal": {"A": "staff"}, "10%": {"A": "10%"}, "complete": {"A": True, "B": True}}
WHOLE = {"store": FILE, "flags": ["A", "B"], "stages": STAGES, "all_off": False}


def test_a_stage_says_what_every_flag_is():
    flags = parse_flags(WHOLE)
    assert flags.off == "false"
    assert flags.stages["internal"] == {"A": "staff", "B": "false"}
    assert wanted_values(flags, stage="complete") == {"A": "true", "B": "true"}
    assert wanted_values(flags, values={"B": True}) == {"B": "true"}
    assert wanted_values(flags, off=True) == {"A": "false", "B": "false"}
    assert stage_of(flags, {"A": "10%", "B": "false"}) == "10%"
    assert stage_of(flags, {"A": "10%", "B": None}) is None
    assert all_off(flags, {"A": "false", "B": "false"})
    assert not all_off(flags, {"A": "false", "B": None})
    assert parse_flags({}) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"flag": ["A"]}, "did you mean 'flags'"),
        ({"store": None}, "store must be a mapping with kind"),
        ({"store": {**FILE, "kind": "environment"}}, "did you mean 'environment_file'"),
        ({"store": {**FILE, "path": "flags.env"}}, "must be the absolute path"),
        ({"store": {**FILE, "reloads": "web"}}, "did you mean 'reload'"),
        ({"store": {"kind": "environment_file"}}, "path is missing"),
        ({"store": {**FILE, "path": 5}}, "of a type that it cannot have"),
        ({"store": {**COMMAND, "set": ["flag", "{name}"]}}, "must hold {name} and {value}"),
        ({"store": {**COMMAND, "show": "flag {name}"}}, "of a type that it cannot have"),
        ({"store": {**COMMAND, "show": ["flag", 5]}}, "list of words that are texts"),
        ({"store": {**SQL, "table": 'flags"; DROP TABLE x; --'}}, "a name as the database has it"),
        ({"store": {**SQL, "name_column": "a.b"}}, "a name as the database has it"),
        ({"store": {**HTTP, "token": "secret"}}, "set app_flags_token instead"),
        ({"store": {**HTTP, "url": "flags.example"}}, "must be an address with http"),
        ({"store": {**HTTP, "method": "GET"}}, "one of PUT, POST, PATCH"),
        ({"store": {**HTTP, "body": {}}}, "neither in url nor in body"),
        ({"store": {**HTTP, "show": "https://flags.example/"}}, "which flag is read"),
        ({"flags": []}, "at least one name"),
        ({"flags": "A"}, "at least one name"),
        ({"flags": ["A", "A"]}, "names 'A' twice"),
        ({"flags": ["A", "b c"]}, "expected a name of a variable"),
        ({"flags": ["A", "B-x"]}, "expected a name of a variable"),
        ({"store": COMMAND, "flags": ["-A"], "stages": {}}, "expected a name of letters"),
        ({"stages": {"x": {"C": True}}}, "unknown flag 'C'"),
        ({"stages": ["x"]}, "mapping of stages"),
        ({"stages": {"x": True}}, "mapping of flags to values"),
        ({"stages": {"x": {"A": None}}}, "a text, a number, true or false"),
        ({"stages": {"x": {"A": "a\nb"}}}, "one line"),
        ({"stages": {"none": {}, "dormant": {"A": False}}}, "set the same values"),
        ({"all_off": []}, "a text, a number, true or false"),
    ],
)
def test_a_typing_error_is_found_before_anything_is_asked(change, said):
    with pytest.raises(Problem) as caught:
        parse_flags({**WHOLE, **change})
    assert said in caught.value.message
    assert caught.value.message.startswith("app_flags")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "exactly one of"),
        ({"stage": "internal", "off": True}, "exactly one of"),
        ({"values": {}}, "exactly one of"),
        ({"stage": "intern"}, "did you mean 'internal'"),
        ({"values": {"C": 1}}, "unknown flag 'C'"),
        ({"values": {"A": None}}, "flags_set.A must be a text"),
    ],
)
def test_a_switch_says_one_thing(asked, said):
    with pytest.raises(Problem, match=said):
        wanted_values(parse_flags(WHOLE), **asked)


def test_values_that_are_kept_as_something_else_can_be_told_apart():
    assert stored_values(HTTP) == {"true": True, "false": False}
    assert stored_values({**SQL, "values": {True: 1, False: 0}}) == {"true": 1, "false": 0}
    with pytest.raises(Problem, match="could not be told apart"):
        stored_values({**SQL, "values": {"on": 1, "true": "1"}})


TEXT = """# flags of the shop; A=commented
export A='staff'
OTHER="x y"  \r
B = true
A=10%
  nonsense
C="a \\"b\\" \\$c"
"""


def test_a_file_is_read_as_others_read_it():
    assert values_in(TEXT, ["A", "B", "C", "D"]) == {"A": "10%", "B": "true", "C": 'a "b" $c', "D": None}
    assert values_in("A=b # why\nB='b # why'", ["A", "B"]) == {"A": "b", "B": "b # why"}


def test_every_other_line_stays_as_it_is():
    switched = switched_text(TEXT, {"A": "all of them", "B": None, "D": "1"})
    expected = TEXT.replace("'staff'", "'all of them'").replace("A=10%", "A='all of them'")
    assert switched == expected.replace("B = true\n", "") + "D=1\n"
    assert switched_text("", {"A": "x"}) == "A=x\n"
    assert switched_text("A=x", {"A": None}) == ""
    assert switched_text("X=1", {"A": "2"}) == "X=1\nA=2\n"
    with pytest.raises(Problem, match="single quote"):
        switched_text("", {"A": "it's"})


VALUES = st.text(
    st.characters(min_codepoint=32, exclude_characters="'\x7f", exclude_categories=["Cs", "Cc"]), max_size=30
)
LINES = st.lists(st.sampled_from(TEXT.splitlines() + ["", "B=1", " A = 2 "]), max_size=8)


@given(LINES, VALUES, VALUES)
def test_what_is_written_is_read_and_nothing_else_changes(lines, one, other):
    text = "\n".join(lines)
    names = ["A", "B", "C", "OTHER"]
    before = values_in(text, names)
    switched = switched_text(text, {"A": one, "B": other})
    assert values_in(switched, names) == {**before, "A": one, "B": other}
    kept = [
        line
        for line in text.split("\n")
        if not line.lstrip().removeprefix("export").lstrip().startswith(("A", "B"))
    ]
    assert [line for line in kept if line] == [
        line
        for line in switched.split("\n")
        if line and not line.lstrip().removeprefix("export").lstrip().startswith(("A", "B"))
    ]


def test_a_shell_reads_what_is_written(tmp_path):
    path = tmp_path / "flags.env"
    values = {"A": 'a "b" $HOME `id` \\ #x', "B": "", "C": "10%", "D": "é; ls"}
    path.write_text(switched_text("", values), encoding="utf-8")
    script = f'. {path}; printf \'%s|\' "$A" "$B" "$C" "$D"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout == "".join(f"{value}|" for value in values.values())


def test_a_history_survives_what_a_kill_leaves():
    def line(identifier: str, state: str, **more: Any) -> str:
        return json.dumps({"id": identifier, "state": state, **more})

    found = folded(
        [
            line("1", "begun", operator="ann", changes={"A": ["x", "y"]}),
            line("1", "ended", verdict="switched"),
            line("2", "begun", operator="bob"),
            '{"id": "3", "state": "beg',
            "[1]",
            "",
            line("4", "ended", verdict="switched"),
        ]
    )
    assert [(one["id"], one["verdict"], one["operator"]) for one in found] == [
        ("1", "switched", "ann"),
        ("2", "interrupted", "bob"),
    ]


def test_only_what_a_switch_has_left_is_taken_back():
    flags = parse_flags(WHOLE)
    switch = {"id": "x", "changes": {"A": ["old", "new"], "B": [None, "on"], "GONE": ["1", "2"]}}
    assert to_take_back(flags, switch, {"A": "new", "B": "on"}) == ({"A": "old", "B": None}, "")
    assert to_take_back(flags, switch, {"A": "old", "B": "on"}) == ({"A": "old", "B": None}, "")
    wanted, left = to_take_back(flags, switch, {"A": "third", "B": "on"})
    assert wanted == {"B": None}
    assert "A is third" in left


def test_placeholders_are_replaced_once_and_quoted_in_addresses():
    assert (
        address_of("https://x/{name}?v={value}", "a:b", "{name}&c=1 /")
        == "https://x/a%3Ab?v=%7Bname%7D%26c%3D1%20%2F"
    )
    assert body_of({"on": "{value}", "list": ["{name}={value}", 5]}, "a", True) == {
        "on": True,
        "list": ["a=true", 5],
    }


def test_all_flags_at_once_are_json_or_lines():
    assert read_all('{"A": true, "B": 5}', ["A", "C"]) == {"A": True, "C": None}
    assert read_all("A = 1\n\nB=x=y\n", ["A", "B", "C"]) == {"A": "1", "B": "x=y", "C": None}
    for text in ("{", "Loading…"):
        with pytest.raises(Problem, match="shows the flags printed"):
            read_all(text, ["A"])
