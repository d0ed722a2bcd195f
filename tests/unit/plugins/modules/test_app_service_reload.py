# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""app_service state=reloaded with a real gunicorn, and with servers that do not know HUP."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from ansible_collections.runbook.deploy.plugins.module_utils._reload import not_by_reload
from ansible_collections.runbook.deploy.plugins.module_utils._service import workers
from test_app_service import ONE, TWO, host

__all__ = ["host"]
# The configuration lies outside of the release; the greeting is read when a worker begins.
APP = """
import os
greeting = open(os.path.join(os.environ["RUNBOOK_ROOT"], "shared", "greeting")).read()
def application(environ, start):
    start("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.environ['RUNBOOK_DEPLOYMENT']} {greeting}".encode()]
"""
gunicorn = pytest.mark.skipif(
    importlib.util.find_spec("gunicorn") is None, reason="gunicorn is not installed for this Python"
)


def pid_of(host) -> int:
    return _processes.peer_pid(host.layout.socket("web"))


def start(host, **changes):
    """Deploy a release under gunicorn."""
    host.services = [
        host.web(
            command=f"{sys.executable} -m gunicorn shop:application --bind unix:{{socket}} --workers 1",
            **changes,
        )
    ]
    release = host.release("r1")
    (host.layout.release(release) / "shop.py").write_text(APP)
    (host.layout.shared / "greeting").write_text("good morning")
    answer = host.deploy(ONE, release, start_timeout=60, gate_timeout=20, stay_up=0.3)
    assert not answer.get("failed"), answer


@gunicorn
def test_configuration_is_read_anew_by_the_same_main_process(host):
    start(host, strategy="reload")
    assert "good morning" in host.ask()
    main = pid_of(host)
    before = set(workers(main))
    (host.layout.shared / "greeting").write_text("good evening")
    preview = host.run(check=True, state="reloaded")
    assert preview["changed"] and set(workers(main)) == before
    answer = host.run(state="reloaded", start_timeout=60, stay_up=0.3)
    assert not answer.get("failed") and answer["changed"], answer
    assert pid_of(host) == main and not before & set(workers(main))
    assert "good evening" in host.ask() and answer["gate"]["passed"]


@gunicorn
def test_deployment_never_reloads(host):
    """HUP would go on with the old code: a deployment starts an instance beside, as for blue_green."""
    start(host, strategy="reload")
    main = pid_of(host)
    release = host.release("r2")
    (host.layout.release(release) / "shop.py").write_text(APP)
    answer = host.deploy(TWO, release, start_timeout=60, gate_timeout=20, stay_up=0.3)
    assert not answer.get("failed"), answer
    assert pid_of(host) != main and TWO in host.ask() and host.running() == {("web", TWO)}


def test_server_that_ends_on_hup_is_started_again(host):
    host.services = [host.web(strategy="reload")]
    assert not host.deploy(ONE, host.release("r1")).get("failed")
    answer = host.run(state="reloaded", start_timeout=20)
    assert answer["failed"] and "ended on HUP" in answer["msg"] and "started again" in answer["msg"], answer
    assert ONE in host.ask()


def test_nothing_to_reload(host):
    answer = host.run(state="reloaded")
    assert answer["failed"] and "deploy a version first" in answer["msg"]
    assert not host.deploy(ONE, host.release("r1")).get("failed")
    answer = host.run(state="reloaded")
    assert answer["failed"] and "strategy: reload" in answer["msg"] and ONE in host.ask()


@pytest.mark.parametrize(
    ("version", "inputs", "said"),
    [
        ("", "", ""),
        ("v2.6", "0123abcd", ""),
        ("c0ffee", "", ""),
        ("v2.7", "0123abcd", "The version v2.7 is wanted, but v2.6 serves"),
        ("c0f", "", "The version c0f is wanted"),
        ("v2.6", "ffffffff", "The settings of the inventory are not those that v2.6 was started with"),
    ],
)
def test_what_hup_cannot_bring(version, inputs, said):
    live = {"release": "c0ffee000000-0123abcd", "version": "v2.6", "commit": "c0ffee" + "0" * 34}
    found = not_by_reload(live, version, inputs)
    assert said in found and bool(found) == bool(said)


def test_other_code_or_settings_are_refused_before_anything_is_sent(host):
    host.services = [host.web(strategy="reload")]
    assert not host.deploy(ONE, host.release("r1")).get("failed")
    before = pid_of(host)
    for option, said in (
        ({"version": "v9"}, "deploy it with"),
        ({"inputs": "ffffffff"}, "deploy the version again"),
    ):
        for check in (True, False):
            answer = host.run(check=check, state="reloaded", **option)
            assert answer["failed"] and said in answer["msg"], answer
    # This one ends on HUP, so it got none.
    assert pid_of(host) == before and ONE in host.ask()
