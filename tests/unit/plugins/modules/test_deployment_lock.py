# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os

import pytest
from ansible_collections.runbook.deploy.plugins.modules import deployment_lock as module
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.deployed_host import run_module


@pytest.fixture
def ask(tmp_path, capsys):
    def run(**params) -> dict:
        return run_module(module, capsys, root=str(tmp_path), **params)

    return run


def test_held_read_and_released(ask, tmp_path) -> None:
    assert ask()["lock"] is None
    held = ask(state="held", owner="alice", host="ci1", deployment="repair", lease=60)
    assert held["changed"] is False
    assert held["lock"]["token"]
    read = ask()
    assert "token" not in read["lock"]
    assert (read["lock"]["owner"], read["lock"]["kind"], read["lock"]["lease"]) == ("alice", "manual", 60)
    for text in ("alice", "ci1", "repair"):
        assert text in read["message"]
    assert ask(state="held", token=held["lock"]["token"])["lock"]["since"] == held["lock"]["since"]
    assert ask(state="held")["failed"] is True
    assert ask(state="released", token="wrong")["failed"] is True
    assert ask(state="released", token=held["lock"]["token"])["lock"]["deployment"] == "repair"
    assert ask(state="released", token=held["lock"]["token"])["lock"] is None
    assert os.listdir(tmp_path) == []


def test_absent_needs_force_while_the_lease_lasts(ask) -> None:
    ask(state="held", owner="alice")
    refused = ask(state="absent")
    assert refused["failed"] is True
    assert "alice" in refused["msg"]
    assert ask(state="absent", force=True)["lock"]["owner"] == "alice"
    assert ask(state="absent")["lock"] is None


def test_force_takes_over(ask) -> None:
    first = ask(state="held", owner="alice")
    second = ask(state="held", owner="bob", force=True)
    assert second["taken_over"]["owner"] == "alice"
    assert first["lock"]["token"] not in str(second)
    assert ask(state="released", token=first["lock"]["token"])["failed"] is True


def test_check_mode_judges_and_writes_nothing(ask, tmp_path) -> None:
    assert ask(state="held", _ansible_check_mode=True)["lock"] is None
    assert os.listdir(tmp_path) == []
    held = ask(state="held", owner="alice")
    for params in ({"state": "held"}, {"state": "absent"}, {"state": "released", "token": "wrong"}):
        assert ask(_ansible_check_mode=True, **params)["failed"] is True
    for params in (
        {"state": "held", "force": True},
        {"state": "held", "token": held["lock"]["token"]},
        {"state": "absent", "force": True},
        {"state": "released", "token": held["lock"]["token"]},
    ):
        assert "failed" not in ask(_ansible_check_mode=True, **params)
    assert ask()["lock"]["renewed"] == held["lock"]["renewed"]


def test_released_needs_a_token(ask) -> None:
    assert "token" in ask(state="released")["msg"]
