# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run ends with on the controller: the verdict, the stored report, the status; and what a host answered last."""

from __future__ import annotations

import json
import stat

import pytest
from action_tools import act
from ansible import context
from ansible.module_utils.common.collections import ImmutableDict
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.action import deployment_report, deployment_status
from ansible_collections.runbook.deploy.plugins.filter.last_answer import last_answer

ID = "20261121T020000-bbbb"
STATE = {
    "current": {"release": "ba9876543210-00000000", "version": "v2", "commit": "b" * 40, "deployment": ID},
    "services": [
        {
            "name": "web",
            "answers": True,
            "running": True,
            "foreign": None,
            "release": "ba9876543210-00000000",
            "deployment": ID,
            "pid": 7,
            "instances": [{"deployment": ID}],
        }
    ],
}
FACTS = {
    "verdict": "success",
    "application": "shop",
    "stage": "production",
    "root": "/srv/shop",
    "record": {"id": ID, "version": "v2", "phases": [], "plan": {}, "backup": {}},
    "states": {"web1": STATE, "web2": STATE},
    "primary": "web1",
    "url": "https://shop.example.org",
}


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    """What was shown, and a command line with two inventories."""
    lines = []
    monkeypatch.setattr(Display, "display", lambda self, text, **options: lines.append(text))
    monkeypatch.setattr(Display, "warning", lambda self, text, **options: lines.append(f"warning: {text}"))
    monkeypatch.setattr(context, "CLIARGS", ImmutableDict(inventory=("/etc/inventories/prod", "/my hosts")))
    return lines


def report(check=False, **changes):
    return act(deployment_report.ActionModule, {**FACTS, **changes}, check=check)


def test_success_ends_the_task_well(shown):
    answer = report()
    assert not answer.get("failed")
    assert "SUCCESS" in shown[0]
    assert "web2      serves v2 (bbbbbbbbbbbb), web answers" in shown[0]


@pytest.mark.parametrize("verdict", ["rolled_back", "abandoned", "stopped", "failed", "refused"])
def test_every_bad_verdict_fails_the_run(verdict):
    assert report(verdict=verdict)["failed"]


@pytest.mark.parametrize("verdict", ["success", "no_change", "checked"])
def test_every_good_verdict_does_not(verdict):
    assert not report(verdict=verdict).get("failed")


def test_only_what_is_checked_says_its_steps(shown):
    steps = {"start": {"what": "start the release before", "hosts": ["web1"], "reason": "it is to serve"}}
    plan = {"level": "code", "reason": "so it is", "steps": steps}
    report(verdict="checked", plan=plan)
    assert "  step      start the release before on web1: it is to serve" in shown[-1].splitlines()
    report(verdict="success", plan=plan)
    assert "  step " not in shown[-1]


def test_a_lost_host_is_unknown_and_the_next_command_can_be_copied(shown):
    report(
        verdict="stopped",
        states={"web1": STATE, "web2": None},
        failures=[{"host": "web2", "phase": "release", "reason": "web2 does not answer."}],
        plan={
            "level": "abandon",
            "reason": "Nothing.",
            "commands": ["ansible-playbook playbooks/rollback.yml -i <inventory>"],
        },
    )
    assert "web2      unknown: it does not answer" in shown[0]
    assert "release on web2: web2 does not answer." in shown[0]
    assert "playbooks/rollback.yml -i /etc/inventories/prod -i '/my hosts'" in shown[0]


def test_record_and_report_are_stored_for_their_owner(tmp_path):
    path = report(store=str(tmp_path / "reports"))["report"]
    assert path == str(tmp_path / "reports" / "shop" / "production" / f"{ID}.md")
    assert "v2 of shop (production)" in (tmp_path / "reports/shop/production" / f"{ID}.md").read_text()
    stored = tmp_path / "reports/shop/production" / f"{ID}.json"
    assert json.loads(stored.read_text())["id"] == ID
    assert stat.S_IMODE(stored.stat().st_mode) == 0o640


def test_records_that_the_copies_lack_are_stored_and_none_is_replaced(tmp_path):
    other = {"id": "20261120T020000-aaaa", "verdict": "stopped"}
    report(store=str(tmp_path), unstored=[other, {"id": "../x"}, {"no": "id"}])
    directory = tmp_path / "shop" / "production"
    assert sorted(path.name for path in directory.iterdir()) == [
        f"{other['id']}.json",
        f"{ID}.json",
        f"{ID}.md",
    ]
    report(store=str(tmp_path), unstored=[{**other, "verdict": "success"}])
    assert json.loads((directory / f"{other['id']}.json").read_text()) == other


def test_check_mode_stores_nothing(tmp_path):
    report(store=str(tmp_path / "reports"), check=True)
    assert not (tmp_path / "reports").exists()


def test_a_full_disk_on_the_controller_does_not_turn_the_verdict(tmp_path, shown):
    (tmp_path / "file").write_text("")
    answer = report(store=str(tmp_path / "file"))
    assert not answer.get("failed")
    assert answer["report"] is None
    assert shown[0].startswith("warning: The report could not be written")


def test_a_report_that_cannot_be_told_does_not_turn_the_verdict(tmp_path, shown):
    answer = report(store=str(tmp_path / "reports"), record={"id": ID, "phases": [{"no": "phase"}]})
    assert not answer.get("failed")
    assert shown[0].startswith("warning: The report could not be written")


def test_the_copy_has_what_became_of_the_tag(tmp_path):
    tag = {"name": "deployed/v2", "state": "pushed", "message": ""}
    report(store=str(tmp_path), release_tag=tag)
    assert json.loads((tmp_path / "shop/production" / f"{ID}.json").read_text())["release_tag"] == tag


def test_a_verdict_that_does_not_exist_is_refused():
    assert "perhaps" in report(verdict="perhaps")["msg"]


def test_status_names_the_lost_host(shown):
    states = {"web1": STATE, "web2": None}
    facts = {key: FACTS[key] for key in ("application", "stage", "root", "primary", "url")}
    answer = act(deployment_status.ActionModule, {**facts, "states": states})
    assert not answer.get("failed")
    assert "web2 does not answer: its state is unknown." in shown[0]
    assert answer["text"] in shown[0]


def test_the_last_answer_is_that_of_the_first_name():
    variables = {"late": {"state": {"a": 1}}, "early": {"state": {"a": 2}}}
    assert last_answer(variables, ["late", "early"]) == {"a": 1}
    assert last_answer({"early": {"state": {"a": 2}}}, ["late", "early"]) == {"a": 2}


@pytest.mark.parametrize("key", ["unreachable", "unreachable_host"])
def test_a_host_that_was_lost_has_no_last_answer_whatever_it_said_before(key):
    variables = {"late": {key: True, "msg": "gone"}, "early": {"state": {"a": 2}}}
    assert last_answer(variables, ["late", "early"]) is None


def test_an_answer_without_a_state_is_passed_over():
    assert last_answer({"late": {"skipped": True}, "early": {"state": {"a": 2}}}, ["late", "early"]) == {
        "a": 2
    }
    assert last_answer({}, ["late"]) is None
