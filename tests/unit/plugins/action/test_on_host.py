# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ansible.errors import AnsibleConnectionFailure
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.plugins.action.normal import ActionModule as NormalAction
from ansible.template import Templar
from ansible_collections.runbook.deploy.plugins.action import on_host
from ansible_collections.runbook.deploy.plugins.plugin_utils._lost import lost_because

COLLECTION = Path(__file__).resolve().parents[4]
VARIABLES = {"inventory_hostname": "web1"}


def run(ignore_unreachable):
    task = Task()
    task.action, task.args, task.ignore_unreachable = "runbook.deploy.release", {}, ignore_unreachable
    loader = DataLoader()
    connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir="unused"))
    templar = Templar(loader=loader, variables=VARIABLES)
    action = on_host.ActionModule(task, connection, PlayContext(), loader, templar, None)
    return action.run(task_vars=VARIABLES)


def lost(*_args, **_options):
    raise AnsibleConnectionFailure("Failed to connect to the host via ssh: no route to host.")


def test_an_unreachable_host_is_a_failure_where_the_play_goes_on(monkeypatch):
    monkeypatch.setattr(NormalAction, "run", lost)
    answer = run(ignore_unreachable=True)
    assert answer["failed"] is True
    assert answer["unreachable_host"] is True
    # That key would make it no failure, and no rescue would see it.
    assert "unreachable" not in answer
    assert answer["msg"].startswith("web1 does not answer: ")
    assert "no route to host. Its state is unknown." in answer["msg"]


SENT = 'Data could not be sent to remote host "192.0.2.7". Make sure this host can be reached over ssh:'
DIED = (
    "Traceback (most recent call last):\n"
    '  File "x/_live.py", line 180, in run\n'
    "FileNotFoundError: [Errno 2] No such file or directory: '/tmp/payload.zip'"
)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "Failed to connect to the host via ssh: no route.\n",
            "Failed to connect to the host via ssh: no route",
        ),
        (
            f"{SENT} ssh: connect to host 192.0.2.7 port 22: No route to host\r\n",
            f"{SENT} ssh: connect to host 192.0.2.7 port 22: No route to host",
        ),
        # The shared connection ended, and nobody said why.
        (SENT, SENT[:-1]),
        # The host went down below a module, which wrote how it died.
        (f"{SENT} {DIED}", SENT[:-1]),
        (
            f"{SENT} {DIED}\nConnection to 192.0.2.7 closed by remote host.\n",
            f"{SENT} Connection to 192.0.2.7 closed by remote host",
        ),
    ],
)
def test_the_reason_is_one_line(said, reason):
    assert lost_because(AnsibleConnectionFailure(said)) == reason


def test_elsewhere_it_stays_what_ansible_makes_of_it(monkeypatch):
    monkeypatch.setattr(NormalAction, "run", lost)
    with pytest.raises(AnsibleConnectionFailure):
        run(ignore_unreachable=False)


def test_what_a_module_answers_is_passed_on(monkeypatch):
    given = {"failed": True, "msg": "The repository is gone."}
    monkeypatch.setattr(NormalAction, "run", lambda *_args, **_options: given)
    assert run(ignore_unreachable=True) is given


def test_every_module_that_works_on_hosts_has_this_action():
    routing = yaml.safe_load((COLLECTION / "meta" / "runtime.yml").read_text())["plugin_routing"]["modules"]
    modules = {path.stem for path in (COLLECTION / "plugins" / "modules").glob("*.py")}
    actions = {path.stem for path in (COLLECTION / "plugins" / "action").glob("*.py")}
    assert set(routing) == modules - actions
    assert {entry["action_plugin"] for entry in routing.values()} == {"runbook.deploy.on_host"}
