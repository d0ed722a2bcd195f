# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.plugins.action.normal import ActionModule as NormalAction
from ansible.template import Templar
from ansible_collections.runbook.deploy.plugins.action import http_gate
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.faulty_server import FaultyServer

SECRET = "pa&ss-of-the-gate"


@pytest.fixture
def server():
    with FaultyServer() as running:
        yield running


def prepared(args, check=False, transport="local", become=None, environment=None, wait=0):
    task = Task()
    task.action, task.args, task.check_mode = "runbook.deploy.http_gate", args, check
    task.environment, task.async_val = environment or [], wait
    loader = DataLoader()
    connection = SimpleNamespace(transport=transport, become=become, _shell=SimpleNamespace(tmpdir="unused"))
    return http_gate.ActionModule(
        task, connection, PlayContext(), loader, Templar(loader=loader, variables={}), None
    )


@pytest.fixture
def elsewhere(monkeypatch):
    """The answers of tasks that were handed to the module; the module itself has tests of its own."""
    asked = []

    def run(self, tmp=None, task_vars=None):
        asked.append(self._task.args)
        return {"changed": False, "from": "module"}

    monkeypatch.setattr(NormalAction, "run", run)
    return asked


def test_the_controller_asks_without_a_module(server, elsewhere):
    args = {"address": server.address, "checks": [{"url": "/ok"}], "successes": 2, "interval": 0.01}
    answer = prepared(args).run(task_vars={})
    assert (answer["passed"], answer["changed"], len(server.requests)) == (True, False, 2)
    assert elsewhere == []


def test_a_gate_that_does_not_pass_fails_the_task(server, elsewhere):
    args = {"address": server.address, "checks": [{"name": "page", "url": "/error"}], "deadline": 0.5}
    answer = prepared(args).run(task_vars={})
    assert (answer["failed"], answer["verdict"], answer["failing"]) == (True, "fail", ["page"])
    assert "'page'" in answer["msg"]
    assert "it broke" in answer["evidence"]
    assert elsewhere == []


def test_no_secret_is_answered(server):
    check = {"url": "/error", "headers": {"X-Token": "{secret.token}"}}
    args = {"address": server.address, "checks": [check], "deadline": 0.5}
    answer = prepared({**args, "secrets": json.dumps({"token": SECRET})}).run(task_vars={})
    assert answer["failed"]
    assert server.requests
    assert SECRET not in json.dumps(answer)


def test_check_mode_asks_only_what_changes_nothing(server):
    checks = [{"url": "/ok"}, {"name": "post", "url": "/ok", "method": "POST"}]
    answer = prepared({"address": server.address, "checks": checks, "successes": 1}, check=True).run(
        task_vars={}
    )
    assert (answer["passed"], answer["not_asked"]) == (True, ["post"])
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "args",
    [
        {"checks": [{"url": "/ok"}]},
        {"address": "http://127.0.0.1:9", "socket": "/run/x.sock", "checks": [{"url": "/ok"}]},
        {"address": "http://127.0.0.1:9", "cheks": [{"url": "/ok"}]},
        {"address": "http://127.0.0.1:9", "checks": [{"url": "/ok"}], "deadline": "soon"},
    ],
)
def test_wrong_options_are_refused_as_by_the_module(args, elsewhere):
    with pytest.raises(AnsibleError):
        prepared(args).run(task_vars={})
    assert elsewhere == []


@pytest.mark.parametrize(
    "where",
    [
        {"transport": "ssh"},
        {"become": object()},
        {"environment": [{"HTTPS_PROXY": "http://127.0.0.1:9"}]},
        {"wait": 60},
    ],
)
def test_anything_but_the_controller_as_it_is_gets_the_module(where, server, elsewhere):
    args = {"address": server.address, "checks": [{"url": "/ok"}]}
    assert prepared(args, **where).run(task_vars={})["from"] == "module"
    assert elsewhere == [args]
    assert server.requests == []
