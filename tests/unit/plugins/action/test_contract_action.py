# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The contract at the start of a run: variables checked, aliases applied, groups built, the primary found."""

from __future__ import annotations

import datetime
import hashlib
from typing import Any

from action_tools import act
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.action.contract import ActionModule

GOOD = {
    "app_name": "shop",
    "app_stage": "production",
    "app_repository": "https://git.example.org/shop.git",
    "app_settings_module": "shop.settings",
    "app_version": "v1",
    "app_database": {"engine": "sqlite", "path": "/srv/shop/shared/data/shop.sqlite3", "shared": True},
    "app_services": [{"name": "web", "command": "gunicorn shop.wsgi --bind unix:{socket}"}],
    "app_url": "https://192.0.2.1",
}


def check(purpose: str = "deployment", host: str = "web1", limit: tuple[str, ...] = (), **changes: Any):
    """Answer the contract on *host* of two; None as a change leaves a variable out."""
    variables = {
        "inventory_hostname": host,
        "groups": {"app": ["web1", "web2"]},
        "group_names": ["app"],
        "ansible_play_hosts_all": list(limit) or ["web1", "web2"],
        **{name: value for name, value in {**GOOD, **changes}.items() if value is not None},
    }
    return act(ActionModule, {"purpose": purpose}, variables)


def test_the_first_host_is_the_primary_and_both_are_in_the_run():
    answers = {host: check(host=host)["add_host"] for host in ("web1", "web2")}
    assert answers["web1"]["groups"] == ["deploy_hosts", "deploy_primary"]
    assert answers["web2"]["groups"] == ["deploy_hosts", "deploy_others"]
    assert {entry["host_vars"]["deploy_primary_host"] for entry in answers.values()} == {"web1"}


def test_another_primary_can_be_named():
    assert check(host="web2", app_primary="web2")["add_host"]["groups"][1] == "deploy_primary"


def test_a_primary_outside_the_group_is_refused():
    answer = check(app_primary="db1")
    assert answer["failed"]
    assert "app_primary is 'db1'" in answer["msg"]


def test_a_file_for_each_host_is_no_database_for_all_of_them():
    alone = {"engine": "sqlite", "path": "/srv/shop/shared/data/shop.sqlite3"}
    answer = check(app_database=alone)
    assert answer["failed"]
    assert "web1, web2" in answer["msg"]
    assert "app_database.shared: true" in answer["msg"]
    # Data that is there must always be reachable: only a deployment is refused.
    assert "failed" not in check(purpose="rollback", app_database=alone)
    assert "failed" not in check(app_database={**alone, "shared": True})


def test_a_limit_without_the_primary_is_refused():
    answer = check(host="web2", limit=("web2",))
    assert answer["failed"]
    assert "primary host web1 is left out by --limit" in answer["msg"]
    assert "add_host" not in answer


def test_a_host_that_is_new_can_be_set_up_alone():
    answer = check("setup", host="web2", limit=("web2",))
    assert answer["add_host"]["groups"] == ["deploy_hosts", "deploy_others"]


def test_a_part_of_a_deployment_is_refused():
    for changes in ({"ansible_run_tags": ["release"]}, {"ansible_skip_tags": ["preflight", "notest"]}):
        assert "A deployment runs whole" in check(**changes)["msg"]
        assert "failed" not in check(purpose="rollback", **changes)


def test_tags_that_molecule_always_skips_leave_a_deployment_whole():
    answer = check(ansible_run_tags=["all"], ansible_skip_tags=["molecule-notest", "notest"])
    assert "failed" not in answer


def test_version_on_the_command_line_wins():
    assert check(version="v2")["add_host"]["host_vars"]["deploy_version"] == "v2"


def test_a_version_that_is_a_number_to_yaml_is_a_text():
    assert check(app_version=2.7)["add_host"]["host_vars"]["deploy_version"] == "2.7"


def test_the_wrong_stage_is_refused():
    answer = check(env="staging")
    assert answer["failed"]
    assert "'staging'" in answer["msg"]
    assert "'production'" in answer["msg"]


def test_the_right_stage_passes():
    assert not check(env="production").get("failed")


def test_every_fault_is_named_at_once():
    answer = check(app_services="web", app_nmae="shop", app_name=None)
    assert answer["failed"]
    assert len(answer["errors"]) == 3
    assert "did you mean app_name?" in answer["msg"]


def test_defaults_reach_the_host_and_given_values_are_not_repeated():
    found = check(app_start_timeout=90)["add_host"]["host_vars"]
    assert found["app_root"] == "/srv/shop"
    assert "app_start_timeout" not in found


def test_the_digest_of_inputs_changes_with_the_environment_and_not_with_the_version():
    digest = check()["add_host"]["host_vars"]["deploy_inputs"]
    assert check(version="v2")["add_host"]["host_vars"]["deploy_inputs"] == digest
    assert check(app_environment={"A": "1"})["add_host"]["host_vars"]["deploy_inputs"] != digest


def test_an_inventory_without_a_host_is_told_as_that_and_nothing_else():
    for groups in ({"app": []}, {}):
        answer = act(
            ActionModule, {"purpose": "deployment"}, {"inventory_hostname": "localhost", "groups": groups}
        )
        assert answer["failed"]
        assert answer["errors"] == [answer["msg"]]
        assert "no host in group app" in answer["msg"]


def test_an_archive_is_compared_with_its_sha256_before_it_is_sent(tmp_path):
    path = tmp_path / "shop.tar"
    path.write_bytes(b"code")
    right = hashlib.sha256(b"code").hexdigest()
    source = {"app_repository": None, "app_version": None}
    assert not check(**source, app_archive={"path": str(path), "sha256": right.upper()}).get("failed")
    wrong = check(**source, app_archive={"path": str(path), "sha256": "0" * 64})["errors"]
    assert len(wrong) == 1
    assert wrong[0].startswith("app_archive.sha256 is 000")
    assert right in wrong[0]
    # A rollback and a status need no archive.
    assert not check("status", **source, app_archive={"path": str(path), "sha256": "0" * 64}).get("failed")


def test_an_address_that_nobody_here_could_ask_is_refused_before_anything_is_changed():
    # RFC 2606: this top level domain never exists.
    address = "https://shop.invalid"
    answer = check(app_url=address)
    assert answer["failed"]
    assert answer["msg"].startswith(
        f"app_url is '{address}', and this controller does not know the name 'shop.invalid'"
    )
    # A way back never waits for a name.
    assert not check("rollback", app_url=address).get("failed")
    assert not check(app_url="http://localhost:8000").get("failed")
    assert "does not know" in check(app_url=f"http://{'a' * 70}.example")["msg"]


def test_an_archive_that_is_not_there_is_named(tmp_path):
    answer = check(app_repository=None, app_archive={"path": str(tmp_path / "x.tar"), "sha256": "0" * 64})
    assert answer["errors"] == [
        f"app_archive.path '{tmp_path}/x.tar' cannot be read on the controller (No such file or directory): give the path of the tar file."
    ]


def test_true_is_no_text():
    answer = check(app_settings_module=True)
    assert answer["failed"]
    assert "app_settings_module must be a text, found True" in answer["msg"]


def test_services_of_other_groups_are_left_out():
    worker = {"name": "worker", "kind": "worker", "command": "celery", "groups": ["workers"]}
    services = check(app_services=[*GOOD["app_services"], worker])["add_host"]["host_vars"]["deploy_services"]
    assert [service["name"] for service in services] == ["web"]


def test_a_variable_that_cannot_be_templated_is_named():
    from ansible.template import trust_as_template

    answer = check(app_url=trust_as_template("https://{{ nobody_has_this }}"))
    assert answer["failed"]
    assert answer["msg"].startswith("app_url cannot be read")


def test_options_that_do_not_exist_are_refused():
    assert act(ActionModule, {"porpose": "status"}, {"inventory_hostname": "web1"})["failed"]


class TestPermission:
    """The window is one that never is now: it opens in two to three days by the controller's clock."""

    @staticmethod
    def shut(**changes):
        day = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=2)
        window = {"days": [day.strftime("%a").lower()], "from": "12:00", "to": "13:00"}
        return check(app_window=[window], deploy_goes_on=True, **changes)

    def facts(self, answer):
        return answer["add_host"]["host_vars"]

    def test_outside_the_window_is_a_refusal_for_preflight(self):
        (refusal,) = self.facts(self.shut())["deploy_refusals"]
        assert "app_window opens next on" in refusal
        assert "12:00 (UTC)" in refusal

    def test_a_reason_lets_it_pass_and_is_kept(self):
        facts = self.facts(self.shut(deployment_outside_window="the shop  is down"))
        assert facts["deploy_refusals"] == []
        assert facts["deploy_outside_window"] == "the shop is down"

    def test_inside_the_window_a_reason_is_not_needed_and_not_kept(self):
        facts = self.facts(check(deployment_outside_window="just so", deploy_goes_on=True))
        assert facts["deploy_refusals"] == []
        assert facts["deploy_outside_window"] == ""

    def test_a_missing_approval_is_a_refusal_and_a_given_one_is_kept(self):
        missing = self.facts(check(app_approvals=["dba"], deploy_goes_on=True))
        assert "the approval of dba, which is missing" in missing["deploy_refusals"][0]
        assert missing["deploy_approvals"] == [{"role": "dba", "name": None, "at": None}]
        given = self.facts(
            check(app_approvals=["dba"], deploy_goes_on=True, deployment_approvals={"dba": "bob"})
        )
        assert given["deploy_refusals"] == []
        assert [(one["role"], one["name"]) for one in given["deploy_approvals"]] == [("dba", "bob")]
        assert given["deploy_approvals"][0]["at"]

    def test_what_is_no_approval_is_refused_at_once(self):
        answer = check(app_approvals=["dba"], deployment_approvals="bob", deploy_goes_on=True)
        assert answer["failed"]
        assert "deployment_approvals must be a mapping" in answer["msg"]

    def test_gates_alone_and_a_rollback_are_not_held_up(self, monkeypatch):
        warnings = []
        monkeypatch.setattr(Display, "warning", lambda self, text, **options: warnings.append(text))
        assert self.facts(check(app_approvals=["dba"]))["deploy_refusals"] == []
        assert "A deployment would be refused now. app_approvals asks" in warnings[0]
        back = self.facts(
            check("rollback", app_approvals=["dba"], deploy_goes_on=True, deployment_outside_window="x")
        )
        assert back["deploy_refusals"] == []
        assert back["deploy_outside_window"] == ""
        assert len(warnings) == 1


def test_the_load_balancer_is_one_of_the_inventory(tmp_path):
    haproxy = {"kind": "haproxy", "host": "lb9", "backend": "shop", "socket": "/run/haproxy/admin.sock"}
    result = check(app_load_balancer=haproxy)
    assert result["failed"] is True
    assert "app_load_balancer.host is 'lb9'" in result["msg"]
    (tmp_path / "drain.yml").write_text("[]\n", encoding="utf-8")
    own = {"kind": "tasks", "drain": str(tmp_path / "drain.yml"), "ready": str(tmp_path / "ready.yml")}
    result = check(app_load_balancer=own)
    assert "app_load_balancer.ready is " in result["msg"]
    assert "app_load_balancer.drain" not in result["msg"]
    (tmp_path / "ready.yml").write_text("[]\n", encoding="utf-8")
    result = check(app_load_balancer=own, app_batch="25%")
    assert not result.get("failed"), result
