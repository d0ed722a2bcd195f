# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Going back by hand behind a real HAProxy: one batch after the other, each out of the balancer meanwhile, whatever becomes of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._steps import steps_of
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.balanced_site import (
    HaproxySite,
    Load,
    program,
)
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.test_restart_balanced import Fleet

pytestmark = pytest.mark.skipif(not program("haproxy"), reason="haproxy is not installed")

PLAYBOOK = """
- hosts: app
  gather_facts: false
  ignore_unreachable: true
  tasks:
    - ansible.builtin.include_role:
        name: runbook.deploy.rollback
        tasks_from: go_back.yml
        rolespec_validate: false
      vars:
        # There is no record to be closed.
        __rollback_ends: [{file: "{{ playbook_dir }}/ended.yml", hosts: []}]
    - ansible.builtin.copy:
        dest: "{{ rollback_root }}/outcome.json"
        mode: "0600"
        content: "{{ {'failure': rollback_failure | default({}), 'undrained': rollback_undrained | default({}),
          'left_out': restart_left_out | default({}), 'ended_when': started_at_the_end} | to_json }}"
"""
# What every host has started by the time at which this one ends.
ENDED = """
- ansible.builtin.set_fact:
    started_at_the_end: "{{ ['one', 'two'] | map('extract', hostvars) | selectattr('rollback_started', 'defined') | map(attribute='inventory_hostname') }}"
"""
# What a run leaves that is cut off when it has taken a host out, and what a rollback does at its end.
ONE_STEP = """
- hosts: app
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: runbook.deploy.{role}
        tasks_from: {file}
        rolespec_validate: false
      when: inventory_hostname in {hosts}
    - ansible.builtin.copy:
        dest: "{{{{ rollback_root }}}}/outcome.json"
        mode: "0600"
        content: "{{{{ restart_left_out | default({{}}) | to_json }}}}"
"""
OLD = "0123456789ab-00000000"


class Rolling(Fleet):
    """The fleet of the restarts, on its way back."""

    def __init__(self, directory: Path, site: HaproxySite) -> None:
        super().__init__(directory, site)
        (directory / "play.yml").write_text(PLAYBOOK, encoding="utf-8")
        (directory / "ended.yml").write_text(ENDED, encoding="utf-8")

    def run(self, **variables: Any) -> dict:
        plan = {
            "level": "code",
            "revert": ["one", "two"],
            "unknown": [],
            "code_first": False,
            "target": {"release": OLD, "deployment": "20260101T000000-0000"},
            "batches": variables.pop("batches", [["one"], ["two"]]),
        }
        state = {"releases": [{"name": OLD}]}
        plan["targets"], plan["steps"] = steps_of(plan, {"one": state, "two": state}, "one", {})
        outcome = super().run(
            rollback_by_hand=True,
            rollback_root="{{ restart_root }}",
            rollback_application="shop",
            rollback_stage="test",
            rollback_user="",
            rollback_services=[{"name": "web", "kind": "web"}],
            rollback_adopt={},
            rollback_drain_timeout=1,
            rollback_timeout=variables.pop("limit", 400),
            rollback_absent=[],
            rollback_gates=[],
            rollback_primary="one",
            rollback_measured={"state": {"releases": [{"name": OLD}]}},
            rollback_plan_result={"plan": plan},
            **variables,
        )
        self.ended_when = {name: entry.pop("ended_when", []) for name, entry in outcome.items()}
        return outcome


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Rolling]:
    (tmp_path / "balancer").mkdir()
    with HaproxySite(tmp_path / "balancer", slow=1.0) as site:
        running = Rolling(tmp_path, site)
        try:
            yield running
        finally:
            running.end()


def test_one_host_after_the_other_goes_back_and_no_request_fails(fleet):
    with Load(fleet.site.port) as load:
        outcome = fleet.run()
        load.more()
    assert outcome == {name: {"failure": {}, "undrained": {}, "left_out": {}} for name in ("one", "two")}, (
        fleet.output
    )
    assert load.failures == []
    assert fleet.site.seen() == {"one", "two"}
    # Both were started anew: the processes of the beginning are gone.
    assert fleet.site.one.process.wait() == fleet.site.two.process.wait() == -9


@pytest.mark.long
def test_a_host_that_cannot_go_back_is_left_out_and_the_other_goes_all_the_same(fleet):
    fleet.fault("one", "dead")
    with Load(fleet.site.port) as load:
        outcome = fleet.run()
        load.more()
    assert outcome["one"]["failure"]["reason"] == "The release does not start.", fleet.output
    assert "stays out of the load balancer" in outcome["one"]["left_out"]["reason"]
    assert fleet.site.status("one") == "MAINT"
    # Alone in the balancer it cannot be taken out; it goes back all the same, and that is told.
    assert outcome["two"]["failure"] == {}
    assert "two is the last server" in outcome["two"]["undrained"]["reason"]
    assert fleet.site.two.process.wait() == -9
    assert fleet.site.status("two").startswith("UP")


@pytest.mark.long
def test_an_emergency_does_not_wait_for_the_balancer(fleet):
    outcome = fleet.run(rollback_mode="emergency")
    assert outcome["one"]["failure"] == outcome["two"]["failure"] == {}, fleet.output
    assert "Let the load balancer have the host" not in fleet.output
    assert fleet.site.one.process.wait() == fleet.site.two.process.wait() == -9


def test_no_host_ends_before_all_have_gone_back(fleet):
    """A worker goes back without the balancer, and has reckoned with other batches: the files would merge in the order of the answers."""
    other = {"level": "code", "revert": ["one", "two"], "unknown": [], "code_first": False}
    other.update(target={"release": OLD, "deployment": "20260101T000000-0000"}, batches=[["one", "two"]])
    state = {"releases": [{"name": OLD}]}
    other["targets"], other["steps"] = steps_of(other, {"one": state, "two": state}, "one", {})
    fleet.own["two"] = {
        "rollback_plan_result": {"plan": other},
        "rollback_services": [{"name": "task", "kind": "worker"}],
    }
    outcome = fleet.run()
    assert outcome["one"]["failure"] == outcome["two"]["failure"] == {}, fleet.output
    assert fleet.ended_when == {"one": ["one", "two"], "two": ["one", "two"]}, fleet.output


@pytest.mark.long
def test_batches_go_back_in_their_order(fleet):
    """Not in the order in which hosts answer: the first is the first, and looked at, before the others."""
    outcome = fleet.run(batches=[["two"], ["one"]], rollback_mode="emergency")
    assert outcome["one"]["failure"] == outcome["two"]["failure"] == {}, fleet.output
    begun = [line for line in fleet.output.splitlines() if "Start the instance before again" in line]
    hosts = re.findall(r"^changed: \[(one|two)\]", fleet.output[fleet.output.index(begun[0]) :], re.MULTILINE)
    assert len(begun) == 2 and hosts[0] == "two", fleet.output


@pytest.mark.long
def test_a_host_that_a_run_has_left_out_is_put_back_at_the_end(fleet):
    """It would get no requests for ever, while everything else says that nothing needs attention."""
    play = fleet.directory / "play.yml"
    play.write_text(ONE_STEP.format(role="restart", file="drain.yml", hosts=["two"]), encoding="utf-8")
    fleet.run()
    assert fleet.site.status("two") == "MAINT"
    play.write_text(
        ONE_STEP.format(role="rollback", file="balanced.yml", hosts=["one", "two"]), encoding="utf-8"
    )
    # As where nothing goes back: this run takes nobody out.
    assert fleet.run(rollback_mode="emergency") == {"one": {}, "two": {}}, fleet.output
    assert fleet.site.status("one").startswith("UP") and fleet.site.status("two").startswith("UP")


@pytest.mark.long
def test_nothing_is_begun_when_the_time_is_up(fleet):
    outcome = fleet.run(rollback_deadline=1.0, limit=7)
    for name in ("one", "two"):
        assert "The 7 s of app_rollback_timeout are over" in outcome[name]["failure"]["reason"], fleet.output
    assert fleet.site.one.process.poll() is fleet.site.two.process.poll() is None
    assert fleet.site.status("one").startswith("UP")


@pytest.mark.long
def test_what_takes_longer_than_the_limit_is_left_and_told(fleet):
    module = fleet.directory / "collections/ansible_collections/runbook/deploy/plugins/modules/app_service.py"
    text = module.read_text(encoding="utf-8")
    module.write_text(text.replace("root = module", "time.sleep(300)\nroot = module"), encoding="utf-8")
    outcome = fleet.run(limit=3, app_load_balancer={})
    for name in ("one", "two"):
        reason = outcome[name]["failure"]["reason"]
        assert "not done within the 3 s of app_rollback_timeout" in reason, fleet.output
        assert f"what it began on {name} may still go on" in reason
