# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import json
import os
import time

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _detached
from ansible_collections.runbook.deploy.plugins.module_utils import _lock as lock
from ansible_collections.runbook.deploy.plugins.module_utils import _record as records
from ansible_collections.runbook.deploy.plugins.module_utils._layout import write_json
from ansible_collections.runbook.deploy.plugins.modules import deployment_record as module
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.deployed_host import (
    D1,
    D2,
    R1,
    R2,
    R3,
    deployed_host,
    run_module,
)

WEB = {"name": "web", "kind": "web", "bind": "socket"}
ABOUT = {"kind": "deployment", "release": R2, "version": "v2", "commit": "2" * 40, "operator": "alice"}


@pytest.fixture
def host():
    with deployed_host() as made:
        yield made


@pytest.fixture
def ask(host, capsys):
    """Run the module against the host."""

    def run(**params) -> dict:
        return run_module(module, capsys, root=str(host.root), **params)

    return run


def begin(ask, **params) -> dict:
    params.setdefault("about", ABOUT)
    return ask(state="begun", host="web1", **params)


def live(host, release: str, deployment: str, **fields):
    """Make *release* live, as the deployment that succeeded with it, and start its service."""
    host.release(release)
    host.record(deployment, release, **fields)
    host.switch(release, deployment)
    return host.start("web", deployment, release)


def stored(host, deployment: str) -> dict:
    return json.loads(host.layout.record(deployment).read_text())


def let_the_lease_end(host) -> None:
    path = host.layout.lock / lock.DOCUMENT
    document = json.loads(path.read_text())
    document.update(renewed=lock.timestamp(time.time() - 1000))
    path.write_text(json.dumps(document))


def test_a_deployment_from_begin_to_end(host, ask) -> None:
    old = live(host, R1, D1, version="v1")
    begun = begin(ask)
    assert begun["changed"] is False
    record = begun["record"]
    assert begun["previous"] == {"release": R1, "deployment": D1, "commit": "1" * 40, "version": "v1"}
    assert stored(host, record["id"])["previous"] == begun["previous"]
    assert stored(host, record["id"])["verdict"] is None
    assert lock.read_lock(host.layout)["token"] == record["token"]
    assert record["token"] not in json.dumps(begun["lock"])

    with records.open_journal(host.root, record, False) as journal, journal.phase("release"):
        host.release(R2)
    (host.layout.scratch / record["id"]).mkdir(parents=True)
    (host.layout.scratch / "20261120T000000-dead").mkdir()
    (host.layout.scratch / "by-hand").mkdir()
    (host.layout.scratch / f"{'0' * 64}.archive").write_bytes(b"pushed for this release")
    host.switch(R2, record["id"])
    host.start("web", record["id"], R2)
    host.kill(old)

    ended = ask(
        state="finished",
        record=record,
        verdict="success",
        expect={"release": R2, "deployment": record["id"]},
        services=[WEB],
        health={"passed": True},
    )
    assert "failed" not in ended, ended
    assert ended["changed"] is False
    assert record["token"] not in json.dumps({**ended, "invocation": None})
    found = stored(host, record["id"])
    assert (found["verdict"], found["measured"]["current"]["release"]) == ("success", R2)
    assert found["measured"]["services"][0]["release"] == R2
    assert found["measured"]["health"] == {"passed": True}
    assert [phase["phase"] for phase in found["phases"]] == ["release"]
    assert ended["state"]["target"]["release"] == R1
    assert not host.layout.lock.exists()
    # A run that is dead leaves a copy of the database too; what no deployment made is not ours.
    assert [entry.name for entry in host.layout.scratch.iterdir()] == ["by-hand"]

    again = ask(state="finished", record=record, verdict="success")
    assert "failed" not in again
    changed = ask(state="finished", record=record, verdict="stopped")
    assert changed["failed"] is True
    listed = ask(state="read")
    assert [entry["id"] for entry in listed["records"]] == [record["id"], D1]
    assert record["token"] not in json.dumps(listed)


@pytest.mark.parametrize("verdict", ["success", "rolled_back", "abandoned"])
def test_a_verdict_that_is_not_measured_is_refused(host, ask, verdict: str) -> None:
    live(host, R1, D1)
    record = begin(ask)["record"]
    host.release(R2)
    host.switch(R2, record["id"])
    before = host.tree()
    answer = ask(
        state="finished",
        record=record,
        verdict=verdict,
        expect={"release": R2, "deployment": record["id"]},
        services=[WEB],
    )
    assert answer["failed"] is True
    assert f"web answers from {R1}" in answer["msg"]
    assert stored(host, record["id"])["verdict"] is None
    assert lock.read_lock(host.layout)["token"] == record["token"]
    changed = {path for path in before if before[path][2] != host.tree()[path][2]}
    assert changed <= {str(host.layout.lock / lock.DOCUMENT)}


def test_two_deployments_do_not_begin(host, ask) -> None:
    first = begin(ask)["record"]
    second = begin(ask)
    assert second["failed"] is True
    assert first["id"] in second["msg"]
    assert "alice" in second["msg"]
    assert second["lock"]["deployment"] == first["id"]
    assert os.listdir(host.layout.deployments) == [f"{first['id']}.json"]


def test_an_interrupted_deployment_is_refused_until_it_is_taken_over(host, ask) -> None:
    first = begin(ask)["record"]
    with records.open_journal(host.root, first, False) as journal, journal.phase("migrate"):
        pass
    let_the_lease_end(host)
    refused = begin(ask)
    assert refused["failed"] is True
    for text in (first["id"], "migrate", "deployment_take_over=true", "rollback.yml"):
        assert text in refused["msg"]
    assert lock.read_lock(host.layout)["token"] == first["token"], "a refusal takes nothing"
    second = begin(ask, take_over=True)
    assert second["interrupted"]["id"] == first["id"]
    assert second["record"]["id"] > first["id"]
    closed = stored(host, first["id"])
    assert closed["verdict"] == "stopped"
    assert second["record"]["id"] in closed["decision"]["reason"]
    late = ask(state="finished", record=first, verdict="success")
    assert late["failed"] is True
    assert lock.read_lock(host.layout)["token"] == second["record"]["token"]


def test_nothing_begins_beside_a_command_of_a_dead_run(host, ask) -> None:
    first = begin(ask)["record"]
    command = host.start("", first["id"], R2, address="-")
    refused = begin(ask, take_over=True)
    assert f"process {command.pid} of the application still works" in refused["msg"]
    assert "playbooks/resume.yml" in refused["msg"]
    assert lock.read_lock(host.layout)["token"] == first["token"]
    host.kill(command)
    assert begin(ask, take_over=True)["interrupted"]["id"] == first["id"]


def test_nothing_is_finished_while_a_migration_works_and_its_files_go_with_the_verdict(host, ask) -> None:
    first = begin(ask)["record"]
    place = _detached.Place(host.layout, first["id"], "migrate")
    place.prepare()
    command = host.start("", first["id"], R2, address="-")
    lives = {"pid": command.pid, "start_time": _detached.start_time(command.pid), "boot": lock.boot_id()}
    about = {"deployment": first["id"], "phase": "migrate", "since": "2026-01-01T00:00:00Z", "process": lives}
    place.about.write_text(json.dumps(about))
    refused = ask(state="finished", record=first, verdict="stopped")
    assert f"still runs as process {command.pid}" in refused["msg"]
    assert stored(host, first["id"])["verdict"] is None
    host.kill(command)
    assert not ask(state="finished", record=first, verdict="stopped").get("failed")
    assert not place.directory.exists()


def test_a_resumption_waits_for_the_lease_and_needs_no_word_after_it(host, ask) -> None:
    first = begin(ask)["record"]
    early = begin(ask, resume=True)
    assert early["failed"] is True and first["id"] in early["msg"]
    assert lock.read_lock(host.layout)["token"] == first["token"]
    let_the_lease_end(host)
    second = begin(ask, resume=True)
    assert second["interrupted"]["id"] == first["id"]
    assert stored(host, first["id"])["verdict"] == "stopped"


def test_a_lock_left_after_the_verdict_is_no_obstacle(host, ask) -> None:
    first = begin(ask)["record"]
    document = stored(host, first["id"])
    records.write_record(host.layout, {**document, "verdict": "abandoned"})
    assert "failed" not in begin(ask)


def test_a_lock_without_a_record_is_taken_over_by_force_alone(host, ask) -> None:
    lock.acquire(host.layout, deployment="20991231T000000-aaaa", token="x", owner="bob")
    assert "bob" in begin(ask)["msg"]
    assert begin(ask, take_over=True)["lock"]["owner"] == "alice"


def test_check_mode_writes_nothing(host, ask) -> None:
    live(host, R1, D1)
    before = host.tree()
    answer = begin(ask, _ansible_check_mode=True)
    assert answer["record"] is None
    assert answer["previous"]["release"] == R1
    ended = ask(state="finished", record=None, verdict="success", _ansible_check_mode=True)
    assert "failed" not in ended
    assert host.tree() == before


def test_what_a_killed_run_left_live_was_never_proved(host, ask) -> None:
    live(host, R1, D1)
    host.release(R2)
    host.switch(R2, D2)
    host.record(D2, R2, None)
    answer = begin(ask, take_over=True)
    assert (answer["previous"]["deployment"], answer["previous"]["proven"]) == (D2, False)
    assert stored(host, answer["record"]["id"])["previous"]["proven"] is False


def test_services_are_those_of_the_instance_that_is_expected(host, ask) -> None:
    """A failed deployment may have brought the inventory a service that the release before does not have."""
    live(host, R1, D1)
    write_json(host.layout.instance_file(D1), {"release": R1, "services": [WEB]}, 0o640)
    record = begin(ask)["record"]
    answer = ask(
        state="finished",
        record=record,
        verdict="rolled_back",
        expect={"release": R1, "deployment": D1},
        services=[WEB, {"name": "mailer", "kind": "worker", "bind": "none"}],
    )
    assert "failed" not in answer, answer


def test_a_first_deployment_has_nothing_before_it(host, ask) -> None:
    assert begin(ask)["previous"] is None


def test_an_adopted_installation_is_what_was_before(host, ask) -> None:
    answer = begin(ask, adopt={"service": "shop.service", "path": "/opt/shop"})
    assert answer["previous"]["deployment"] == "adopted"


def test_a_failed_deployment_leaves_no_release_and_says_why(host, ask) -> None:
    live(host, R1, D1)
    record = begin(ask)["record"]
    host.release(R2)
    failure = {"host": "web1", "phase": "restart", "reason": "ImportError", "unreachable": False}
    answer = ask(
        state="finished",
        record=record,
        verdict="abandoned",
        expect={"release": R1, "deployment": D1},
        services=[WEB],
        failures=[failure],
        decision={"level": "abandon", "reason": "Nothing live was changed."},
        remove_release=R2,
    )
    assert answer["failed_release"] == "removed"
    assert not host.layout.release(R2).exists()
    assert host.layout.release(R1).exists()
    found = stored(host, record["id"])
    assert found["failures"] == [failure]
    assert found["decision"]["level"] == "abandon"
    assert found["measured"]["current"]["release"] == R1


def test_the_live_release_is_never_removed(host, ask) -> None:
    live(host, R1, D1)
    record = begin(ask)["record"]
    answer = ask(state="finished", record=record, verdict="stopped", remove_release=R1, keep=0)
    assert answer["failed_release"] == "kept"
    assert (host.layout.release(R1) / ".complete").exists()


def test_a_rollback_marks_what_it_took_back(host, ask) -> None:
    live(host, R1, D1)
    host.release(R2)
    host.record(D2, R2)
    host.switch(R2, D2)
    about = {"kind": "rollback", "release": R1, "undoes": D2, "instance": D1}
    begun = begin(ask, about=about)
    assert begun["previous"]["deployment"] == D2
    host.switch(R1, D1)
    answer = ask(
        state="finished",
        record=begun["record"],
        verdict="success",
        expect={"release": R1, "deployment": D1},
        services=[WEB],
        undone=[D2],
    )
    assert "failed" not in answer, answer
    assert stored(host, D2)["undone_by"] == begun["record"]["id"]
    assert answer["state"]["target"] is None


def test_another_host_finishes_its_own_record_without_a_lock(host, ask) -> None:
    live(host, R1, D1)
    record = {
        "id": D2,
        "token": "x" * 32,
        "host": "web2",
        "primary": False,
        "about": {**ABOUT, "release": R1},
    }
    answer = ask(state="finished", record=record, verdict="success", services=[WEB])
    assert "failed" not in answer, answer
    found = stored(host, D2)
    assert (found["host"], found["primary"], found["verdict"], found["release"]) == (
        "web2",
        False,
        "success",
        R1,
    )
    other = ask(state="finished", record={**record, "token": "y"}, verdict="success")
    assert other["failed"] is True
    ask(state="finished", record=record, verdict="stopped")
    assert stored(host, D2)["verdict"] == "stopped", "the fleet was taken back after this host was finished"


def test_retention_runs_at_the_end_and_is_no_change(host, ask) -> None:
    for release, deployment in ((R3, "20260101T000000-0000"), (R2, "20260102T000000-0000")):
        host.release(release)
        host.record(deployment, release)
    live(host, R1, "20260103T000000-0000", previous={"release": R2})
    record = begin(ask)["record"]
    answer = ask(state="finished", record=record, verdict="abandoned", keep=1)
    assert answer["removed"]["releases"] == [R3]
    assert answer["changed"] is False
    assert not host.layout.release(R3).exists()


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"state": "begun", "about": {"kind": "party"}}, "about.kind"),
        ({"state": "begun", "about": {"colour": "red"}}, "colour"),
        ({"state": "finished", "record": {"id": "x"}, "verdict": "success"}, "option record"),
        ({"state": "finished", "record": {}}, "verdict"),
    ],
)
def test_wrong_options_are_named(ask, params: dict, text: str) -> None:
    answer = ask(**params)
    assert answer["failed"] is True
    assert text in answer["msg"]


def test_without_a_root_setup_is_named(host, capsys) -> None:
    answer = run_module(module, capsys, root=str(host.root / "none"), state="begun")
    assert "setup.yml" in answer["msg"]


def test_a_full_disk_is_said_in_a_sentence(host, ask, monkeypatch) -> None:
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "begin", full)
    answer = begin(ask)
    assert answer["failed"] is True
    assert "There is no space left" in answer["msg"]


def test_a_success_has_its_tasks_and_the_values_of_the_one_before(host, ask) -> None:
    check = {
        "name": "disk",
        "verdict": "pass",
        "severity": "critical",
        "observed": 40,
        "expected": "",
        "message": "",
        "seconds": 0.1,
    }
    old = live(host, R1, D1, version="v1", gates={"preflight": [check], "watch": []})
    record = begin(ask)["record"]
    host.release(R2)
    host.switch(R2, record["id"])
    host.start("web", record["id"], R2)
    host.kill(old)
    ended = ask(
        state="finished",
        record=record,
        verdict="success",
        expect={"release": R2, "deployment": record["id"]},
        services=[WEB],
        due_tasks=[
            {"name": "week", "after": "1 week"},
            {"name": "look", "after": "1 hour", "note": "the metrics"},
        ],
    )
    assert "failed" not in ended, ended
    assert [(task["name"], task["state"]) for task in stored(host, record["id"])["due"]] == [
        ("look", "open"),
        ("week", "open"),
    ]
    finished = lock.parse_timestamp(ended["record"]["finished"])
    assert 3600 <= lock.parse_timestamp(ended["record"]["due"][0]["due"]) - finished < 3700
    assert ended["before"] == {"id": D1, "version": "v1", "gates": {"preflight": {"disk": "40"}, "watch": {}}}
    assert "due" not in stored(host, D1)
