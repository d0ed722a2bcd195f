# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decision on the controller: what it passes on, what it refuses, what a person is told to do next."""

from __future__ import annotations

from action_tools import act
from ansible_collections.runbook.deploy.plugins.action.rollback_plan import ActionModule

OLD, NEW = "0123456789ab-00000000", "ba9876543210-00000000"
BEFORE = {"release": OLD, "deployment": "20261121T010000-aaaa", "commit": "0" * 40, "version": "v1"}


def record(**changes):
    """A deployment of v2 over v1 in which nothing has been applied."""
    return {
        "id": "20261121T020000-bbbb",
        "version": "v2",
        "release": NEW,
        "previous": BEFORE,
        "phases": [],
        **changes,
    }


def state(release=OLD):
    return {"current": {"release": release}, "services": [], "applied": [], "releases": []}


def plan(**options):
    return act(ActionModule, {"primary": "web1", **options})["plan"]


def test_all_hosts_answer_and_nothing_is_named_but_status():
    answer = plan(record=record(), states={"web1": state(), "web2": state()})
    assert answer["level"] == "abandon"
    assert answer["unknown"] == []
    assert [command.split()[1] for command in answer["commands"]] == ["playbooks/status.yml"]


def test_a_lost_host_is_named_with_one_command_for_its_return():
    answer = plan(record=record(), states={"web1": state(), "web2": None})
    assert answer["unknown"] == ["web2"]
    assert "what web2 serves is unknown" in answer["reason"]
    assert answer["commands"][0] == (
        "ansible-playbook playbooks/rollback.yml -i <inventory>  # when web2 answers again"
    )


def test_a_lost_primary_still_holds_the_lock():
    answer = plan(record=record(), states={"web1": None, "web2": state()})
    assert "-e deployment_take_over=true" in answer["commands"][0]


def test_with_nothing_to_go_back_to_the_command_deploys_again():
    answer = plan(record=record(previous=None), states={"web1": state(None), "web2": None})
    assert answer["commands"][0].startswith(
        "ansible-playbook playbooks/deploy.yml -i <inventory> -e version=v2"
    )


def test_nobody_answers():
    answer = plan(record=record(), states={"web1": None, "web2": None})
    assert answer["level"] == "stop"
    assert "No host answers (web1, web2)" in answer["reason"]


def test_hosts_that_went_live_go_back_though_another_is_lost():
    answer = plan(record=record(), states={"web1": state(NEW), "web2": None})
    assert (answer["level"], answer["revert"], answer["unknown"]) == ("code", ["web1"], ["web2"])


def test_a_release_that_was_never_deployed_is_refused_by_name():
    result = act(
        ActionModule,
        {
            "primary": "web1",
            "record": record(),
            "states": {"web1": state()},
            "to": "v9",
            "records": [record(verdict="success")],
        },
    )
    assert result["failed"]
    assert "rollback_to is 'v9'" in result["msg"]
    assert "v2" in result["msg"]


def test_a_level_that_does_not_exist_is_refused():
    result = act(ActionModule, {"level": "half"})
    assert result["failed"]
    assert "half" in result["msg"]


def test_the_forecast_knows_the_first_deployment():
    rows = act(ActionModule, {"forecast": True, "plan": {}, "target": {}})["forecast"]
    assert {row["phase"] for row in rows} >= {"release to collectstatic", "restart", "smoke_test"}
    assert "code" not in {row["level"] for row in rows}


def test_hosts_go_back_in_the_batches_of_a_deployment_after_those_that_are_there():
    states = {"web1": state(NEW), "web2": state(NEW), "web3": state(NEW), "web4": state(), "web5": None}
    asked = {"record": record(), "states": states}
    assert plan(**asked)["batches"] == [list(states)]
    assert plan(**asked, batch=[1, "100%"])["batches"] == [["web4", "web5"], ["web1"], ["web2", "web3"]]
    assert plan(**asked, batch="34%")["batches"] == [["web4", "web5"], ["web1"], ["web2"], ["web3"]]
    assert plan(**asked, batch=2)["batches"] == [["web4", "web5"], ["web1", "web2"], ["web3"]]
    # In the order of the inventory, whatever the names are.
    asked["states"] = {"web9": state(NEW), "web1": state(), "web2": state(NEW)}
    assert plan(**asked, batch=1)["batches"] == [["web1"], ["web9"], ["web2"]]


def test_where_going_back_fails_the_first_command_goes_on_from_what_is_measured():
    first, *others = plan(record=record(backup={"id": "b1"}), states={"web1": state(NEW)})["again"]
    assert "playbooks/rollback.yml" in first and "deployment_take_over=true" in first
    assert any("--tags restart" in command for command in others)
    assert any("rollback_level=restore" in command for command in others)


def test_a_policy_that_would_do_harm_is_refused_as_such():
    blind = [{"name": "always", "when": {}, "level": "code"}]
    result = act(
        ActionModule, {"primary": "web1", "record": record(), "states": {"web1": state(NEW)}, "policy": blind}
    )
    assert result["failed"] and "(always) asks for code where it would do harm" in result["msg"]


def test_the_forecast_is_shown_with_the_rows_that_decide(capsys):
    rows = act(
        ActionModule, {"forecast": True, "plan": {}, "target": BEFORE, "watched": True, "cures": ["watch"]}
    )["forecast"]
    assert {row["phase"]: row["level"] for row in rows} == {
        "release to collectstatic": "abandon",
        "migrate": "abandon",
        "restart": "abandon",
        "smoke_test": "code",
        "watch": "flags",
    }
    assert "if watch" in capsys.readouterr().out


def test_with_the_forecast_the_page_and_its_length_are_announced(capsys):
    migration = {
        "app": "shop",
        "name": "0002_x",
        "reversible": "yes",
        "compatible": "no",
        "destructive": "no",
        "rehearsed": {"forward_seconds": 12.1},
    }
    pending = {"migrations": [migration], "rehearsal": {"forward_seconds": 12.1}}
    given = {"forecast": True, "plan": pending, "target": BEFORE}
    answer = act(ActionModule, {**given, "page": "the old code is not proved to run after shop.0002_x"})
    shown = capsys.readouterr().out.splitlines()[-1]
    assert "maintenance page, because the old code is not proved" in shown
    assert "expected to take 13 s" in shown
    assert answer["page"] == shown
    assert act(ActionModule, given)["page"] == ""
    assert "maintenance page" not in capsys.readouterr().out
