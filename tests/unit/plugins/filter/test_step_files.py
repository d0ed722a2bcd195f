# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files of tasks a way back has: few where it has few steps, the same ones on all hosts of a fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.filter.end_files import end_files
from ansible_collections.runbook.deploy.plugins.filter.step_files import step_files
from ansible_collections.runbook.deploy.plugins.module_utils._steps import steps_of

TASKS = Path(__file__).parents[4] / "roles" / "rollback" / "tasks"
OLD = "0123456789ab-00000000"
STATE = {"releases": [{"name": OLD}]}


def files(hosts: list[str], level: str = "code", **given: Any) -> list[tuple[str, list[str]]]:
    plan = {"level": level, "unknown": [], "code_first": False, "target": {"release": OLD, "deployment": "d"}}
    plan["batches"] = given.pop("batches", [hosts])
    steps = steps_of(plan, dict.fromkeys(hosts, STATE), hosts[0], {}, beats_apart=given.pop("beats", False))[
        1
    ]
    found = [(entry["file"], entry["hosts"]) for entry in step_files(steps, hosts, **given)]
    assert all((TASKS / name).is_file() for name, _hosts in found)
    return found


def test_one_host_that_changes_code_alone_starts_the_release_before() -> None:
    assert files(["web1"]) == [("start.yml", ["web1"])]


@pytest.mark.parametrize("given", [{"balanced": True}, {"stopped": True}])
def test_one_host_asks_first_where_something_may_stand_against_it(given) -> None:
    assert files(["web1"], **given) == [("turn.yml", ["web1"])]


def test_visitors_are_told_first_and_then_it_is_asked_whether_there_is_time() -> None:
    assert files(["web1"], page=True) == [("page_on.yml", ["web1"]), ("turn.yml", ["web1"])]


@pytest.mark.parametrize("level", ["migrations", "restore"])
def test_the_database_goes_back_before_the_code_that_needs_it(level) -> None:
    assert files(["web1"], level) == [("before_start.yml", ["web1"]), ("turn.yml", ["web1"])]


def test_beats_end_before_and_start_after() -> None:
    assert [name for name, _hosts in files(["web1"], beats=True)] == [
        "before_start.yml",
        "turn.yml",
        "after_start.yml",
    ]


def test_hosts_of_a_fleet_go_back_batch_after_batch() -> None:
    assert files(["web1", "web2", "web3"], batches=[["web1"], ["web2", "web3"]]) == [
        ("page_on.yml", ["web1", "web2", "web3"]),
        ("turn.yml", ["web1"]),
        ("turn.yml", ["web2", "web3"]),
    ]


def test_nothing_starts_where_a_person_has_to_decide() -> None:
    assert files(["web1"], "stop") == []


def ends(hosts: list[str], unknown: list[str] | None = None, **given: bool) -> list[str]:
    found = end_files(unknown or [], hosts, "web1", **given)
    assert all((TASKS / entry["file"]).is_file() and entry["hosts"] == hosts for entry in found)
    return [entry["file"] for entry in found]


def test_one_host_only_closes_its_record() -> None:
    assert ends(["web1"]) == ["close_host.yml"]
    assert ends(["web1"], unknown=["web1"]) == ["close.yml"]


def test_the_record_is_closed_when_the_proof_is_there_and_visitors_see_the_application() -> None:
    assert ends(["web1"], page=True, proof=True, balanced=True) == [
        "maintenance.yml",
        "prove.yml",
        "close_host.yml",
        "balanced.yml",
        "maintenance_again.yml",
    ]


def test_hosts_of_a_fleet_end_with_the_same_files_whatever_each_is_asked_for() -> None:
    assert ends(["web1", "web2"]) == ends(["web1", "web2"], page=True, proof=True, balanced=True)
