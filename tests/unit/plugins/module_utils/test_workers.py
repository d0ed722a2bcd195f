# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which services are Celery workers, whose answers are theirs, and how many beats a fleet may have; without any process."""

from __future__ import annotations

import shlex

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._schedulers import (
    beats_apart,
    check_beats,
    check_signals,
)
from ansible_collections.runbook.deploy.plugins.module_utils._workers import (
    Celery,
    Task,
    celery_of,
    is_node,
    killed_words,
    listed,
    node_name,
    tasks_of,
    twice,
    within,
)


@pytest.mark.parametrize(
    ("command", "given", "expected"),
    [
        ("/env/bin/celery -A shop worker", None, Celery("shop", "")),
        ("celery --app=shop.celery:app worker -l info", None, Celery("shop.celery:app", "")),
        ("/env/bin/python -m celery -A shop -b redis://b/1 worker", None, Celery("shop", "redis://b/1")),
        ("celery -A shop --broker=redis://b/1 worker", None, Celery("shop", "redis://b/1")),
        ("celery worker", None, Celery("named", "")),
        ("python manage.py work", None, None),
        ("python manage.py work", "shop", Celery("shop", "")),
        ("celery -A shop worker", "", None),
        ("celery -A shop flower", None, None),
        ("rq worker high", None, None),
    ],
)
def test_which_worker_is_celerys(command, given, expected):
    spec = {"kind": "worker", "celery": given}
    assert celery_of(spec, shlex.split(command), {"CELERY_APP": "named"}) == expected


def test_only_workers_are_asked():
    assert celery_of({"kind": "beat"}, ["celery", "-A", "shop", "worker", "-B"], {}) is None
    assert celery_of({"kind": "worker"}, ["celery", "worker"], {}) is None


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("w1@%h", "w1@web1.example.org"),
        ("w1@%n", "w1@web1"),
        ("w1.%d@here", "w1.example.org@here"),
        ("w1@", "w1@web1.example.org"),
        ("w1", "celery@w1"),
        ("100%%@h", "100%@h"),
    ],
)
def test_name_that_a_worker_is_given(value, name):
    assert node_name(value, "web1.example.org") == name


@pytest.mark.parametrize(
    ("node", "command", "ours"),
    [
        ("celery@web1", "celery -A shop worker", True),
        ("celery@web1.example.org", "celery -A shop worker", True),
        # A process of this host may have the PID that a worker of another host tells.
        ("celery@web2", "celery -A shop worker", False),
        ("celery@b", "/env/bin/celery -A shop worker", False),
        ("w1@shared", "celery -A shop worker -n w1@shared", True),
        ("w2@shared", "celery -A shop worker -n w1@shared", False),
        ("w1@web1", "'[celeryd: w1@web1:MainProcess] -active- (-A shop worker)'", True),
        ("w2@web1", "'[celeryd: w1@web1:MainProcess] -active- (-A shop worker)'", False),
    ],
)
def test_whose_answer_it_is(node, command, ours):
    assert is_node(node, shlex.split(command), "web1.example.org") is ours


def test_tasks_that_run_and_that_wait():
    active = [{"id": "a", "name": "shop.send", "started": 100.0, "acknowledged": True}]
    # It was taken up between the two questions.
    reserved = [{"id": "a", "name": "shop.send"}, {"id": "b", "name": "shop.count"}]
    found = tasks_of(active, reserved, 130.0)
    assert found == [Task("a", "shop.send", 30.0, True), Task("b", "shop.count", None, False)]
    assert listed(found) == "shop.send (a, for 30 s), shop.count (b, waiting)"
    assert tasks_of([{"id": "c", "name": "n", "started": None}], [], 1.0)[0].seconds == 0.0
    gone, _sign, again = killed_words(found).partition("; ")
    assert "a, for 30 s" in gone and "nobody" in gone
    assert "b, waiting" in again and "visibility" in again
    assert listed([Task(str(number), "n", None, False) for number in range(7)]).endswith("and 2 more")


def test_two_workers_of_one_name():
    assert twice([["w1@a", {}], ["w2@a", {}], ["w1@a", {}]]) == ["w1@a"]
    assert twice([["w1@a", {}], ["w2@a", {}]]) == []


def test_passwords_in_addresses():
    assert within(["redis://:p%40ss@h/0", "x"]) == ["redis://:p%40ss@h/0", "p%40ss", "p@ss", "x"]


def test_one_beat_in_the_fleet():
    beat, web = {"name": "beat", "kind": "beat"}, {"name": "web"}
    groups = {"app": ["a", "b"], "timers": ["b"], "more": ["b", "a"]}
    assert check_beats([web, beat], ["a"], groups) == []
    (wrong,) = check_beats([web, beat], ["a", "b"], groups)
    assert "'beat'" in wrong and "a, b" in wrong and "groups" in wrong
    assert check_beats([{**beat, "groups": ["timers"]}], ["a", "b"], groups) == []
    assert check_beats([{**beat, "groups": ["timers", "more"]}], ["a", "b"], groups)
    assert check_beats([{**beat, "groups": ["nobody"]}], ["a", "b"], groups) == []
    assert beats_apart([web, beat], ["a", "b"]) and not beats_apart([web, beat], ["a"])
    assert not beats_apart([web], ["a", "b"])


def test_signal_that_drops_tasks():
    assert check_signals({}) == [] and check_signals({"REMAP_SIGTERM": ""}) == []
    (wrong,) = check_signals({"REMAP_SIGTERM": "SIGQUIT"})
    assert "REMAP_SIGTERM" in wrong and "remove it" in wrong
