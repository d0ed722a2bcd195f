# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import random
import string

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._conditions import (
    holds,
    lookup,
    parse_condition,
    parse_path,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

DOCUMENT = {
    "status": "ok",
    "ms": 480,
    "rate": "0.25",
    "ready": True,
    "none": None,
    "zero": 0,
    "one": 1,
    "empty": [],
    "items": [{"name": "a"}, {"name": "b", "tags": ["x", "y"]}],
    "a.b": {"c d": 5},
    "nan": float("nan"),
    "12": "twelve",
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("status", "ok"),
        (".status", "ok"),
        ("items[0].name", "a"),
        ("items[-1].tags[1]", "y"),
        ("items.1.name", "b"),
        ('["a.b"]["c d"]', 5),
        ("['a.b'].c d", 5),
        ("12", "twelve"),
        (".", DOCUMENT),
        ("", DOCUMENT),
    ],
)
def test_a_path_leads_to_its_value(path, value):
    assert lookup(DOCUMENT, path) == (True, value)


@pytest.mark.parametrize("path", ["a..b", "a.", "a[", "a[x]", "[]", "..", "a]b", "a['b"])
def test_a_path_that_cannot_be_read_is_a_problem(path):
    with pytest.raises(Problem, match="JSON path"):
        parse_path(path)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("statu", "only: "),
        ("items[2]", "list of 2"),
        ("items.name", "list of 2"),
        ("ms.x", "480"),
        ("none.x", "null"),
    ],
)
def test_a_path_to_nothing_says_why(path, why):
    found, text = lookup(DOCUMENT, path)
    assert not found
    assert why in text


@pytest.mark.parametrize(
    ("path", "expected", "true"),
    [
        ("status", "ok", True),
        ("status", "OK", False),
        ("status", "== ok", True),
        ("status", '== "ok"', True),
        ("status", "!= broken", True),
        ("status", "!= ok", False),
        ("status", "matches ^o", True),
        ("status", "matches ^k", False),
        ("status", "contains k", True),
        ("ms", 480, True),
        ("ms", 480.0, True),
        ("ms", "480", True),
        ("ms", "< 500", True),
        ("ms", "<500", True),
        ("ms", "< 480", False),
        ("ms", "<= 480", True),
        ("ms", ">= 480", True),
        ("ms", "> 480", False),
        ("ms", "== 480", True),
        ("ms", "!= 480", False),
        ("rate", "< 0.3", True),
        ("rate", "> 0.3", False),
        ("ready", True, True),
        ("ready", 1, False),
        ("one", True, False),
        ("zero", False, False),
        ("ready", "true", True),
        ("ready", "True", False),
        ("ready", "> 0", False),
        ("none", None, True),
        ("none", "null", True),
        ("none", "exists", True),
        ("none", "< 5", False),
        ("nan", "< 5", False),
        ("nan", "> 5", False),
        ("nan", "== nan", False),
        ("status", "< 5", False),
        ("items", "length > 1", True),
        ("items", "length == 2", True),
        ("items", "length > 2", False),
        ("empty", "length == 0", True),
        ("status", "length 2", False),
        ("status", "length == 2", True),
        ("ms", "length > 0", False),
        ("items[1].tags", "contains x", True),
        ("items[1].tags", "contains z", False),
        ("items[1].tags", ["x", "y"], True),
        (".", "contains status", True),
        ("gone", "absent", True),
        ("status", "absent", False),
        ("status", "== absent", False),
    ],
)
def test_conditions(path, expected, true):
    assert holds(DOCUMENT, path, expected)[0] is true


@pytest.mark.parametrize(
    "expected",
    [
        "!= broken",
        "exists",
        "< 5",
        "> -1",
        "length == 0",
        "null",
        None,
        "",
        "contains x",
        "matches .*",
        "== null",
    ],
)
@pytest.mark.parametrize("path", ["gone", "items[7]", "status.x", "empty[0]"])
def test_no_data_never_passes(path, expected):
    """Only ``absent`` is true where there is nothing."""
    true, text = holds(DOCUMENT, path, expected)
    assert not true
    assert "missing" in text


@pytest.mark.parametrize("expected", ["< fast", "> ", "length > many", "matches (", "<= 1,5", "< nan"])
def test_a_condition_that_could_never_be_true_is_a_problem(expected):
    with pytest.raises(Problem):
        parse_condition(expected, "json['x']")


def test_what_is_put_in_cannot_become_a_condition():
    replace = {"{version}": "< 5"}.get
    assert not holds({"v": 3}, "v", "{version}", lambda text: replace(text, text))[0]
    assert holds({"v": "< 5"}, "v", "{version}", lambda text: replace(text, text))[0]


def test_random_texts_never_raise_anything_but_a_problem():
    chance = random.Random(7)
    letters = string.ascii_letters[:4] + ".[]'\"<>=!( 019-"
    for _attempt in range(4000):
        path = "".join(chance.choices(letters, k=chance.randint(0, 8)))
        expected = "".join(chance.choices(letters, k=chance.randint(0, 8)))
        try:
            holds(DOCUMENT, path, expected)
        except Problem:
            continue
