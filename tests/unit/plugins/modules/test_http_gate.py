# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import time

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.modules import http_gate
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.faulty_server import FaultyServer

CONTRACT = {"passed", "verdict", "checks", "failing", "degraded", "not_asked", "attempts", "streak", "reason"}
QUICK = {"interval": 0.02, "deadline": 0.6, "successes": 2}
SECRETS = json.dumps({"password": "pa&ss <w>"})
LOGIN = {
    "name": "log in",
    "steps": [
        {"url": "/login/", "form": {"username": "a", "password": "{secret.password}"}, "contains": "Log out"}
    ],
}


@pytest.fixture
def server():
    with FaultyServer() as running:
        yield running


@pytest.fixture
def run(server, capsys):
    def call(check_mode=False, **options):
        given = {"address": server.address, **QUICK, **options, "_ansible_check_mode": check_mode}
        with patch_module_args(given), pytest.raises(SystemExit) as ended:
            http_gate.main()
        answer = json.loads(capsys.readouterr().out)
        assert bool(ended.value.code) is bool(answer.get("failed"))
        return answer

    return call


def test_a_gate_that_passes(run, server):
    answer = run(checks=[{"url": "/ok"}, {"url": "/json", "json": {"status": "ok"}}])
    assert (answer["passed"], answer["verdict"], answer["changed"]) == (True, "pass", False)
    assert set(answer) >= CONTRACT
    assert (answer["attempts"], len(server.requests)) == (2, 4)
    assert not answer.get("failed")
    assert not answer.get("skipped")


def test_a_gate_that_fails_names_every_critical_check(run):
    checks = [{"name": f"page {n}", "url": "/error"} for n in range(5)]
    answer = run(
        checks=[
            *checks,
            {"name": "fine", "url": "/ok"},
            {"name": "nice", "url": "/error", "severity": "minor"},
        ]
    )
    assert answer["failed"] is True
    assert set(answer) >= CONTRACT
    assert answer["verdict"] == "fail"
    for n in range(5):
        assert f"'page {n}'" in answer["msg"]
    assert "fine" not in answer["msg"]
    assert "nice" not in answer["msg"]
    assert "curl" in answer["msg"]
    assert "Traceback: it broke" in answer["evidence"]


def test_a_lesser_check_warns_and_fails_nothing(run, monkeypatch):
    # Where tests of actions were imported before, Ansible shows warnings itself instead of answering them.
    warnings = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _module, text: warnings.append(text))
    answer = run(checks=[{"url": "/ok"}, {"name": "nice", "url": "/error", "severity": "degraded"}])
    assert (answer["passed"], answer["degraded"]) == (True, ["nice"])
    assert len(warnings) == 1
    assert "'nice'" in warnings[0]


@pytest.mark.parametrize(
    "options",
    [{}, {"checks": [], "flows": []}, {"checks": [{"url": "http://no-such-name.invalid/"}]}],
)
def test_a_gate_without_an_answer_fails_unless_the_caller_decides(run, options):
    answer = run(**options)
    assert (answer["failed"], answer["verdict"], answer["passed"]) == (True, "inconclusive", False)
    assert answer["msg"]
    answer = run(**options, on_no_data="inconclusive")
    assert not answer.get("failed")
    assert (answer["verdict"], answer["passed"]) == ("inconclusive", False)


def test_on_no_data_does_not_excuse_a_failure(run):
    assert run(checks=[{"url": "/error"}], on_no_data="inconclusive")["failed"] is True
    assert run(checks=[{"url": "/ok"}], address="127.0.0.1:1", on_no_data="inconclusive")["failed"] is True


def test_flows_are_done_once_and_only_after_the_checks(run, server):
    note = {"url": "/signals/3/", "form": {"note": "once"}, "contains": "Internal note added"}
    flow = {**LOGIN, "steps": [*LOGIN["steps"], note]}
    headers = {"X-Forwarded-Proto": "https"}
    answer = run(checks=[{"url": "/ok"}, flow], secrets=SECRETS, headers=headers)
    assert answer["passed"], answer
    assert [check["name"] for check in answer["checks"]] == ["GET /ok", "log in"]
    assert len(server.notes) == 1
    answer = run(checks=[{"url": "/error"}], flows=[flow], secrets=SECRETS, headers=headers)
    assert (answer["failed"], answer["not_asked"], len(server.notes)) == (True, ["log in"], 1)
    answer = run(flows=[{**flow, "name": "only a flow"}], secrets=SECRETS, headers=headers)
    assert (answer["passed"], len(server.notes)) == (True, 2)
    bad = run(flows=[flow], secrets=json.dumps({"password": "wrong-1"}), headers=headers)
    assert (bad["failed"], bad["failing"], len(server.notes)) == (True, ["log in"], 2)
    assert "wrong-1" not in json.dumps(bad)


def test_check_mode_only_reads(run, server):
    checks = [{"url": "/ok"}, {"name": "post", "url": "/echo", "method": "POST"}, LOGIN]
    answer = run(check_mode=True, checks=checks, secrets=SECRETS)
    assert (answer["passed"], answer["not_asked"]) == (True, ["post", "log in"])
    assert {request.path for request in server.requests} == {"/ok"}
    answer = run(check_mode=True, checks=checks[1:], secrets=SECRETS)
    assert not answer.get("failed")
    assert (answer["passed"], answer["verdict"]) == (False, "inconclusive")


@pytest.mark.parametrize(
    "path", ["/hang", "/dribble-head", "/dribble-body", "/flapping", "/reset", "/endless"]
)
def test_the_deadline_holds(run, path):
    begun = time.monotonic()
    answer = run(checks=[{"url": path, "contains": "never there"}], deadline=0.4, timeout=5)
    assert time.monotonic() - begun < 1.4
    assert answer["failed"] is True


def test_wrong_options_are_told_before_anything_is_asked(run, server):
    answer = run(checks=[{"url": "/ok"}, {"url": "/ok", "contain": "x"}])
    assert "checks[1] has the unknown key 'contain': did you mean 'contains'?" in answer["msg"]
    answer = run(checks=[{"url": "/ok"}], flows=[{"steps": [{"url": "/ok", "contains": "{commit}"}]}])
    assert "flows[0].steps[0] uses {commit}, but no commit was given" in answer["msg"]
    assert "secrets is not JSON" in run(checks=[{"url": "/ok"}], secrets="{'a': 1}")["msg"]
    assert server.requests == []


def test_the_journal_holds_the_result(run, tmp_path):
    (tmp_path / "deployments").mkdir()
    record = {"id": "20261121T013700-ab12", "token": "0f", "host": "web1", "primary": False, "about": {}}
    options = {"root": str(tmp_path), "record": record}
    assert run(checks=[{"url": "/ok"}], **options)["passed"]
    assert run(checks=[{"name": "broken", "url": "/error"}], **options)["failed"]
    assert run(checks=[{"url": "/ok"}], check_mode=True, **options)["passed"]
    (file,) = (tmp_path / "deployments").glob("*.json")
    good, bad = json.loads(file.read_text())["phases"]
    assert (good["phase"], good["state"], good["result"]["gate"]["verdict"]) == ("smoke_test", "done", "pass")
    assert (bad["state"], bad["result"]["gate"]["failing"]) == ("failed", ["broken"])
    assert "'broken'" in bad["message"]
