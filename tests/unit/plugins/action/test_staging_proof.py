# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What production believes of staging, from real files as deployment_report stores them."""

from __future__ import annotations

import json
import os
import time

import pytest
from action_tools import act
from ansible import context
from ansible.module_utils.common.collections import ImmutableDict
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.action import deployment_report, staging_proof
from ansible_collections.runbook.deploy.plugins.module_utils._lock import timestamp
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import new_record, public
from ansible_collections.runbook.deploy.plugins.module_utils._staging_proof import parse_proof

C, OTHER = "c" * 40, "d" * 40
DAY = 86400
NOW = time.time()
IDS = [f"2026112{day}T020000-000{day}" for day in range(6)]


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    lines = []
    monkeypatch.setattr(Display, "display", lambda self, text, **options: None)
    monkeypatch.setattr(Display, "warning", lambda self, text, **options: lines.append(text))
    monkeypatch.setattr(context, "CLIARGS", ImmutableDict(args=(), inventory=()))
    return lines


class Staging:
    """Staging's store on this controller, filled by the action that fills it."""

    def __init__(self, store):
        self.store = store

    def path(self, identifier):
        return self.store / "shop" / "staging" / f"{identifier}.json"

    def put(self, identifier, verdict="success", commit=C, days=1.0, **changes):
        about = {
            "kind": changes.pop("kind", "deployment"),
            "application": "shop",
            "stage": "staging",
            "commit": commit,
        }
        begun = timestamp(NOW - days * DAY)
        made = new_record(deployment=identifier, token="t", host="s1", primary=True, about=about, begun=begun)
        made.update(
            verdict=verdict,
            finished=timestamp(NOW - days * DAY + 60) if verdict else None,
            measured={"current": {"commit": commit}},
        )
        act(
            deployment_report.ActionModule,
            {
                "verdict": verdict or "stopped",
                "kind": about["kind"],
                "application": "shop",
                "stage": "staging",
                "root": "/srv/shop",
                "store": str(self.store),
                "record": {**public(made), **changes},
            },
        )
        assert self.path(identifier).is_file()

    def back(self, identifier, undoes, verdict="success", **changes):
        self.put(identifier, verdict, commit=OTHER, kind="rollback", undoes=undoes, **changes)


@pytest.fixture
def staging(tmp_path):
    return Staging(tmp_path / "reports")


def ask(staging, require="success", days=0, commit=C, **changes):
    proof = {"store": str(staging.store), "environment": "staging", "require": require, "max_age_days": days}
    facts = {"proof": proof, "application": "shop", "commit": commit, "version": "v2"}
    return act(staging_proof.ActionModule, {**facts, **changes})


def refused(answer):
    """The sentence of a refusal."""
    assert answer.get("failed") and not answer["passed"], answer
    return answer["msg"]


def test_a_success_is_enough_where_nothing_more_is_asked_for(staging):
    staging.put(IDS[0])
    answer = ask(staging)
    assert answer["passed"] and not answer.get("failed")
    assert answer["checks"][0]["observed"] == f"a success, {IDS[0]}"


def test_a_success_without_a_rollback_is_not_enough_where_one_is_asked_for(staging):
    staging.put(IDS[0])
    assert "but no rollback of it that succeeded" in refused(ask(staging, "success_and_rollback"))
    staging.back(IDS[1], undoes=IDS[0], verdict="failed")
    assert f"the rollback {IDS[1]} ended with failed" in refused(ask(staging, "success_and_rollback"))
    staging.back(IDS[2], undoes=IDS[5])
    refused(ask(staging, "success_and_rollback"))
    staging.back(IDS[3], undoes=IDS[0])
    assert ask(staging, "success_and_rollback")["passed"]
    staging.put(IDS[4])
    answer = ask(staging, "success_and_rollback")
    assert answer["checks"][0]["observed"] == f"a success, {IDS[4]}, and the rollback {IDS[3]}"


def test_a_rollback_by_what_it_left_counts_too(staging):
    staging.put(IDS[0])
    staging.back(IDS[1], undoes=None, previous={"deployment": IDS[0]})
    assert ask(staging, "success_and_rollback")["passed"]


def test_nothing_and_another_commit_are_refused(staging):
    assert "No such file or directory" in refused(ask(staging))
    staging.path(IDS[0]).parent.mkdir(parents=True)
    assert "found no deployment of it" in refused(ask(staging))
    staging.put(IDS[0], commit=OTHER)
    sentence = refused(ask(staging))
    assert "found no deployment of it, the newest of 1 records is of dddddddddddd" in sentence
    assert "Commit cccccccccccc (v2) is not proved on staging: expected a success on staging" in sentence


@pytest.mark.parametrize("verdict", ["rolled_back", "abandoned", "stopped", "failed", None])
def test_the_last_deployment_of_the_commit_counts(staging, verdict):
    staging.put(IDS[0])
    staging.put(IDS[1], verdict)
    assert f"its last deployment {IDS[1]}" in refused(ask(staging))


def test_what_is_too_old_is_refused(staging):
    staging.put(IDS[0], days=10)
    assert "10.0 days old" in refused(ask(staging, days=9))
    assert ask(staging, days=11)["passed"]
    assert ask(staging)["passed"]
    staging.back(IDS[1], undoes=IDS[0], days=9.5)
    staging.put(IDS[2], days=1)
    assert f"its rollback {IDS[1]} is 9.5 days old" in refused(ask(staging, "success_and_rollback", days=9))


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"id": IDS[5]}, "its id is"),
        ({"application": "other"}, "its application is 'other'"),
        ({"stage": "production"}, "its stage is 'production'"),
        ({"kind": "party"}, "its kind is"),
        ({"verdict": "great"}, "its verdict is"),
        ({"finished": None}, "ended at None"),
        ({"finished": "2020-01-01T00:00:00Z"}, "ended at '2020"),
        ({"finished": "2099-01-01T00:00:00Z"}, "which is not yet"),
        ({"commit": C, "measured": {"current": {"commit": OTHER}}}, "not that its commit was measured"),
        ({"measured": {}}, "not that its commit was measured"),
        ({"measured": 5}, "not that its commit was measured"),
    ],
)
def test_a_record_that_was_tampered_with_is_none(staging, fields, said):
    staging.put(IDS[0])
    change(staging.path(IDS[0]), **fields)
    sentence = refused(ask(staging))
    assert f"the record {IDS[0]} is none: " in sentence and said in sentence


def test_another_commits_success_cannot_be_renamed(staging):
    staging.put(IDS[0], commit=OTHER)
    change(staging.path(IDS[0]), commit=C)
    assert "not that its commit was measured" in refused(ask(staging))


@pytest.mark.parametrize("length", [0, 1, 100, -2])
def test_a_truncated_record_is_none(staging, length):
    staging.put(IDS[0])
    whole = staging.path(IDS[0]).read_bytes()
    staging.path(IDS[0]).write_bytes(whole[:length])
    assert f"the record {IDS[0]} is none: it cannot be read" in refused(ask(staging))


@pytest.mark.parametrize("content", ["null", "[]", "7", '"x"', "{}"])
def test_what_is_no_record_is_none(staging, content):
    staging.put(IDS[0])
    staging.path(IDS[1]).write_text(content)
    assert "what came after it is not known" in refused(ask(staging))


def test_a_fifo_in_the_store_holds_nobody_up(staging):
    staging.put(IDS[1])
    os.mkfifo(staging.path(IDS[0]))
    assert ask(staging)["passed"]


def test_damage_that_is_older_than_the_success_hides_nothing(staging):
    staging.put(IDS[0])
    staging.put(IDS[1])
    staging.path(IDS[0]).write_text("{")
    assert ask(staging)["passed"]
    staging.path(IDS[2]).write_text("{")
    refused(ask(staging))


@pytest.mark.parametrize("junk", [None, [1], {"a": 1}, 7])
def test_nothing_in_a_record_raises(staging, junk):
    staging.put(IDS[0])
    staging.back(IDS[1], undoes=IDS[0])
    whole = json.loads(staging.path(IDS[1]).read_text())
    for field in whole:
        for path in (staging.path(IDS[0]), staging.path(IDS[1])):
            kept = path.read_text()
            change(path, **{field: junk})
            assert "passed" in ask(staging, "success_and_rollback", days=3), field
            path.write_text(kept)


def test_a_waiver_lets_it_pass_and_is_told(staging, shown):
    waiver = {"check": "staging_proof", "reason": "hot fix", "approver": "ann", "until": "2099-12-31"}
    answer = ask(staging, waivers=[waiver])
    assert answer["passed"] and not answer.get("failed")
    assert answer["checks"][0]["waived"]["approver"] == "ann"
    assert "Waived by ann until 2099-12-31: hot fix." in shown[0]
    assert "Its waiver by ann ended" in refused(ask(staging, waivers=[{**waiver, "until": "2020-01-01"}]))
    refused(ask(staging, waivers=[{**waiver, "check": "another"}]))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"environment": "staging"}, "store must be a text"),
        ({"store": "x", "environment": ""}, "environment must be a text"),
        ({"store": "x", "environment": "../production"}, "which is no name"),
        ({"store": "x", "require": "hope"}, "expected success or success_and_rollback"),
        ({"store": "x", "max_age_days": "two"}, "must be a number of days"),
        ({"store": "x", "max_age_days": True}, "must be a number of days"),
        ({"store": "x", "max_age": 3}, "unknown key 'max_age'"),
    ],
)
def test_what_cannot_be_meant_is_refused(value, said):
    with pytest.raises(Problem, match=said):
        parse_proof(value)
    assert parse_proof({}) is None
