# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""app_service and deployment_record under a pretended systemd: what served before ends while the run goes on, and has ended with the verdict."""

from __future__ import annotations

import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _ending, _systemd
from ansible_collections.runbook.deploy.plugins.module_utils._layout import remove_tree
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.modules import deployment_record
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.deployed_host import run_module
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.pretended_systemd import (
    PretendedSystemd,
    instances,
)
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.test_app_service import ONE, TWO, Host


class SystemdHost(Host):
    """A host whose services are under the pretended systemd, and whose record can be finished."""

    systemd: PretendedSystemd

    @staticmethod
    def web(**changes: Any) -> dict[str, Any]:
        return Host.web(manager="systemd") | changes

    def release(self, name: str, fault: str = "") -> str:
        made = super().release(name, fault)
        (self.layout.release(name) / ".complete").touch()
        return made

    def one(self, fault: str = "lingering", **changes: Any) -> None:
        """Deploy the first release, which serves from then on."""
        assert self.deploy(ONE, self.release("one", fault), stay_up=0, **changes)["changed"]

    def two(self, fault: str = "", **changes: Any) -> dict[str, Any]:
        """Deploy the second one beside it."""
        answer = self.deploy(TWO, self.release("two", fault), **{"stay_up": 0, "stop_wait": False} | changes)
        assert answer.get("changed"), answer
        return answer

    def finish(
        self, deployment: str = TWO, release: str = "two", verdict: str = "success", **params: Any
    ) -> dict[str, Any]:
        """Finish as the role does, on a host that is not the primary."""
        record = {"id": TWO, "token": "t" * 32, "host": "web2", "primary": False, "about": {"release": "two"}}
        given = {
            "state": "finished",
            "root": str(self.root),
            "name": "shop",
            "stage": "test",
            "record": record,
            "verdict": verdict,
            "expect": {"deployment": deployment, "release": release},
            "services": self.services,
        }
        return run_module(deployment_record, self.capsys, **given | params)

    def state(self, deployment: str) -> str:
        return self.systemd.state(self.systemd.unit("web", deployment))


@pytest.fixture
def host(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    # Not pytest's own directory: its name grows with the test's, and a socket's path may have 107 bytes.
    short = Path(tempfile.mkdtemp(prefix="rb-"))
    made = SystemdHost(short / "a", capsys)
    made.systemd = PretendedSystemd(made.layout, monkeypatch)
    yield made
    made.systemd.end()
    remove_tree(short)


def test_by_default_the_end_is_waited_for(host):
    host.one()
    answer = host.two(stop_wait=True)
    assert host.systemd.states() == {host.systemd.unit("web", TWO): "active"}
    assert instances(host.layout) == {("web", TWO)}
    assert answer["stopped"] == [f"web of deployment {ONE}"]
    assert not host.systemd.count("--no-block")


def test_without_waiting_it_only_begins_to_end_and_says_the_same(host):
    host.one()
    answer = host.two()
    assert host.state(ONE) == "deactivating" and host.state(TWO) == "active"
    assert answer["stopped"] == [f"web of deployment {ONE}"] and answer["connections_cut"] == 0
    assert host.ask().startswith(TWO)


def test_whoever_ends_keeps_its_socket_until_it_removes_it_itself(host):
    """gunicorn dies of a traceback, before its workers have ended, where its socket is gone."""
    host.one()
    host.two()
    assert host.layout.socket("web", ONE).exists()
    assert "failed" not in host.finish()
    assert host.systemd.codes == {host.systemd.unit("web", ONE): 0}
    assert not host.layout.socket("web", ONE).exists()


def test_the_settling_waits_for_it_and_then_writes_the_verdict(host):
    host.one()
    host.two()
    assert host.state(ONE) == "deactivating"
    answer = host.finish()
    assert "failed" not in answer, answer
    assert answer["record"]["verdict"] == "success"
    assert [entry["deployment"] for entry in answer["state"]["services"][0]["instances"]] == [TWO]
    assert host.systemd.states() == {host.systemd.unit("web", TWO): "active"}
    assert instances(host.layout) == {("web", TWO)}


def test_an_exit_code_of_its_end_is_no_failure_that_stays(host):
    host.one("sour")
    host.two()
    until = time.monotonic() + 5
    while host.state(ONE) == "deactivating" and time.monotonic() < until:
        time.sleep(0.01)
    assert host.state(ONE) == "failed"
    assert "failed" not in host.finish()
    assert host.systemd.states() == {host.systemd.unit("web", TWO): "active"}


def test_a_socket_that_its_server_left_is_removed(host):
    host.one("")
    host.two()
    assert "failed" not in host.finish()
    assert [path.name for path in host.layout.run.glob("web.*.sock")] == [f"web.{TWO}.sock"]


def test_a_socket_at_which_somebody_listens_stays(host):
    host.one("")
    host.two()
    place = host.layout.socket("web", ONE)
    until = time.monotonic() + 5
    while host.state(ONE) != "inactive" and time.monotonic() < until:
        time.sleep(0.01)
    place.unlink()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(place))
        stranger.listen()
        assert "failed" not in host.finish()
        assert place.exists()


def test_it_is_asked_for_once_where_systemd_has_something_and_never_elsewhere(host):
    host.one("")
    host.two(stop_wait=True)
    host.systemd.calls.clear()
    assert "failed" not in host.finish()
    assert [call[0] for call in host.systemd.calls] == ["list-units"]


def test_hosts_without_systemd_are_asked_nothing(host):
    host.services = [Host.web()]
    host.one("")
    host.deploy(TWO, host.release("two"), stay_up=0, stop_wait=False)
    host.systemd.calls.clear()
    answer = host.finish()
    host.run(state="stopped")
    assert "failed" not in answer and host.systemd.calls == []


def test_under_the_manager_process_the_end_is_waited_for_all_the_same(host):
    host.services = [Host.web()]
    host.one()
    host.deploy(TWO, host.release("two"), stay_up=0, stop_wait=False)
    found = instances(host.layout)
    host.run(state="stopped")
    assert found == {("web", TWO)}


def test_workers_and_beats_are_waited_for_all_the_same(host):
    host.services = [host.web(), *(Host.worker(kind) | {"manager": "systemd"} for kind in ("worker", "beat"))]
    host.one("")
    host.systemd.calls.clear()
    host.two()
    told = [call[-1].split("@")[0] for call in host.systemd.calls if "--no-block" in call]
    waited = [
        call[-1].split("@")[0]
        for call in host.systemd.calls
        if call[0] == "stop" and "--no-block" not in call
    ]
    assert told == ["shop-test-web"] and sorted(waited) == ["shop-test-beat", "shop-test-worker"]


def test_one_that_still_answers_somebody_is_waited_for(host):
    """What was not drained may still write: it is gone when the module returns."""
    host.one("lingering")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(host.layout.socket("web")))
        threading.Timer(0.8, client.close).start()
        answer = host.two(drain_timeout=0.2)
    assert answer["connections_cut"] == 1
    assert not host.systemd.count("--no-block") and host.state(ONE) in ("inactive", "failed")


def test_a_service_on_a_port_is_not_known_to_be_drained_and_is_waited_for(host):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    on_port = host.web(bind="port", port=port, command=f"{sys.executable} small_server.py tcp {{port}}")
    host.one("", services=[on_port])
    host.services = [host.web(name="site")]
    host.two()
    assert host.systemd.count("stop", "--no-block") == 0 and host.state(ONE) == "inactive"
    assert instances(host.layout) == {("site", TWO)}


def test_a_leftover_of_the_same_deployment_is_waited_for(host):
    """Whoever settles waits for other deployments alone."""
    host.services = [host.web(), host.web(name="old")]
    host.one("")
    host.services = [host.web()]
    host.deploy(ONE, "one", stay_up=0, stop_wait=False)
    assert not host.systemd.count("--no-block")
    assert instances(host.layout) == {("web", ONE)}


def test_a_stop_that_has_not_begun_is_waited_for(host):
    """Otherwise whoever comes next takes the unit for one that runs."""
    host.one()
    host.systemd.hesitates = True
    host.two()
    assert host.systemd.count("stop", "--no-block") == 1
    assert host.state(ONE) == "inactive" and not host.layout.socket("web", ONE).exists()


def test_it_is_started_again_while_it_still_ends(host):
    """A deployment that fails its smoke test goes back at once: the end is waited for, and then it serves anew."""
    host.one()
    first = host.run(state="status", name="shop", stage="test")["services"][0]["pid"]
    host.two()
    assert host.state(ONE) == "deactivating"
    answer = host.run(state="deployed", deployment=ONE, name="shop", stage="test", stay_up=0, stop_wait=False)
    assert answer["changed"], answer
    assert host.ask().startswith(ONE) and answer["services"][0]["pid"] != first
    assert host.systemd.codes[host.systemd.unit("web", ONE)] == 0
    answer = host.finish(ONE, "one", "rolled_back", undone=[TWO])
    assert "failed" not in answer, answer
    assert host.systemd.states() == {host.systemd.unit("web", ONE): "active"}
    assert instances(host.layout) == {("web", ONE)}


def test_what_a_killed_run_left_ending_is_ended_by_the_next_deployment(host):
    three = "20261121T030000-cccc"
    host.one()
    host.two()
    assert host.state(ONE) == "deactivating"
    answer = host.deploy(three, host.release("three"), stay_up=0, stop_wait=False)
    assert answer["changed"] and sorted(answer["stopped"]) == [f"web of deployment {d}" for d in (ONE, TWO)]
    record = {"id": three, "token": "t" * 32, "host": "web2", "primary": False, "about": {"release": "three"}}
    assert "failed" not in host.finish(three, "three", record=record)
    assert host.systemd.states() == {host.systemd.unit("web", three): "active"}


def test_stopping_everything_waits_for_what_ends_already(host):
    """Before a restore nothing may write."""
    host.one()
    host.two()
    host.run(state="stopped", name="shop", stage="test", stop_wait=False)
    assert host.systemd.states() == {} and instances(host.layout) == set()


@pytest.mark.parametrize("verdict", ["success", "rolled_back", "abandoned"])
def test_no_verdict_beside_an_instance_that_nobody_ends(host, verdict):
    """Even where its service is none that is measured any more."""
    host.services = [host.web(name="site")]
    host.one("")
    host.two(services=[host.web()], stop_wait=True)
    host.systemd._start(host.systemd.unit("site", ONE))
    answer = host.finish(verdict=verdict, services=[host.web()])
    assert answer["failed"] and f"site of {ONE} still runs" in answer["msg"]
    assert host.systemd.state(host.systemd.unit("site", ONE)) == "active"
    assert not host.layout.record(TWO).exists()


def test_no_verdict_where_one_cannot_be_ended(host, monkeypatch):
    host.one()
    host.two()

    def refuse(unit: Any, timeout: float) -> bool:
        raise Problem(f"systemd could not stop {unit.unit}.")

    monkeypatch.setattr(_systemd.SystemdUnit, "stop", refuse)
    answer = host.finish()
    assert answer["failed"] and f"could not stop shop-test-web@{ONE}.service" in answer["msg"]
    assert not host.layout.record(TWO).exists()
    # Somebody has to look anyway.
    assert "failed" not in host.finish(verdict="stopped")


def test_in_check_mode_nothing_is_stopped(host):
    host.one()
    host.two()
    host.systemd.calls.clear()
    host.finish(_ansible_check_mode=True)
    assert host.systemd.calls == []


def test_another_application_whose_name_begins_alike_is_left_alone(host):
    """The unit shop-test-eu-web@… is the service eu-web of shop, or the service web of shop-test-eu: its deployment tells."""
    host.one("")
    host.two(stop_wait=True)
    foreign = host.systemd.unit("eu-web", "20260101T000000-ffff")
    host.systemd._failed.add(foreign)
    assert "failed" not in host.finish()
    assert host.systemd.state(foreign) == "failed"


def test_the_limit_is_that_of_the_slowest_service_of_the_instance(host, monkeypatch):
    host.services = [host.web(stop_timeout=7)]
    host.one()
    host.two()
    limits = []
    monkeypatch.setattr(_systemd.SystemdUnit, "stop", lambda _unit, limit: limits.append(limit))
    _ending.await_ended(host.layout, "shop", "test", TWO, True)
    assert limits == [7]


def test_a_failed_unit_is_left_to_the_person_who_is_needed(host):
    host.one("sour")
    host.two()
    while host.state(ONE) == "deactivating":
        time.sleep(0.01)
    assert "failed" not in host.finish(verdict="stopped")
    assert host.state(ONE) == "failed"
