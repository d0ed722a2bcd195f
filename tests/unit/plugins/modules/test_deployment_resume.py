# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests for plugins/modules/deployment_resume.py: a deployment changes hands, and what comes from its dead run stops."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _detached, _lock, _record
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.modules import deployment_resume
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.deployed_host import (
    D0,
    D1,
    D2,
    R1,
    Host,
    deployed_host,
    run_module,
)

OLD = "t" * 32
ABOUT = {"operator": "alice", "controller": "ci1", "rule": "every host serves it", "reason": "Because."}


@pytest.fixture
def host() -> Iterator[Host]:
    with deployed_host() as made:
        made.record(D0, R1)
        made.record(D1, R1, verdict=None)
        yield made


def stored(host: Host, deployment: str = D1) -> dict[str, Any]:
    return json.loads(host.layout.record(deployment).read_text())


def take(on: Host, capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    given = {"root": str(on.root), "state": "taken", "deployment": D1, "host": "web1", "about": ABOUT}
    return run_module(deployment_resume, capsys, **{**given, **options})


def old_run(host: Host, primary: bool = True) -> _record.Journal:
    record = {"id": D1, "token": OLD, "host": "web1", "primary": primary, "about": {}}
    return _record.open_journal(host.root, record, False)


def locked(host: Host, **options: Any) -> None:
    _lock.acquire(host.layout, deployment=D1, token=OLD, owner="bob", **options)


def test_the_run_that_was_cut_off_stops_and_the_new_one_goes_on(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    locked(host)
    _lock.cut_off(host.layout, OLD)
    found = take(host, capsys)
    record = found["record"]
    assert found["changed"] is False
    assert (record["id"], record["host"], record["primary"]) == (D1, "web1", True)
    assert record["token"] != OLD and len(record["token"]) == 32
    assert record["about"]["release"] == R1
    (entry,) = stored(host)["resumed"]
    assert {key: entry[key] for key in ABOUT} == ABOUT and entry["at"]
    lock = _lock.read_lock(host.layout)
    assert (lock["deployment"], lock["owner"], lock["expired"]) == (D1, "alice", False)
    # From a controller that was only cut off.
    with (
        pytest.raises(Problem, match="belongs to another run"),
        old_run(host) as journal,
        journal.phase("restart"),
    ):
        pytest.fail("the old run went on")
    with _record.open_journal(host.root, record, False) as journal, journal.phase("restart"):
        pass
    assert [phase["phase"] for phase in stored(host)["phases"]] == ["restart"]


def test_another_host_takes_the_token_of_the_primary(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    found = take(host, capsys, primary=False, token="n" * 32, host="web2")
    assert found["record"] == {**found["record"], "token": "n" * 32, "primary": False, "host": "web2"}
    assert not host.layout.lock.exists()
    with pytest.raises(Problem, match="another run"), old_run(host, primary=False):
        pytest.fail("the old run went on")
    assert "only the primary makes one" in take(host, capsys, primary=False)["msg"]


def test_a_lock_whose_lease_is_not_past_is_taken_only_from_a_run_that_is_said_to_be_dead(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    locked(host)
    refused = take(host, capsys)
    assert refused["failed"] and "is not past" in refused["msg"] and "bob" in refused["msg"]
    assert stored(host)["token"] == OLD and "resumed" not in stored(host)
    assert not take(host, capsys, take_over=True).get("failed")
    # By the module that has just ended, whose process is the caller's here.
    assert stored(host)["token"] != OLD


def test_nothing_is_taken_from_a_process_that_works(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    locked(host)
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            lives = {"pid": child.pid, "start_time": _detached.start_time(child.pid), "boot": _lock.boot_id()}
            place = _detached.Place(host.layout, D1, "migrate")
            place.prepare()
            about = {"deployment": D1, "phase": "migrate", "since": "2026-01-01T00:00:00Z", "process": lives}
            place.about.write_text(json.dumps(about))
            refused = take(host, capsys, take_over=True)
            assert f"still runs as process {child.pid} since 2026-01-01" in refused["msg"]
            awaited = run_module(
                deployment_resume, capsys, root=str(host.root), state="awaited", deployment=D1, time_limit=0
            )
            assert awaited["failed"] and f"process {child.pid} (phase migrate" in awaited["msg"]
        finally:
            child.kill()
    assert not take(host, capsys, take_over=True).get("failed")


def test_a_command_that_a_killed_worker_left_is_waited_for(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; print('ready', flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={"PATH": os.environ["PATH"], "RUNBOOK_ROOT": str(host.root), "RUNBOOK_DEPLOYMENT": D1},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "ready\n"
    refused = take(host, capsys, take_over=True)
    assert f"process {child.pid} of the application still works" in refused["msg"]
    child.communicate()
    awaited = run_module(deployment_resume, capsys, root=str(host.root), state="awaited", deployment=D1)
    assert (awaited["phase"], awaited["answer"], awaited["evidence"]) == ("", {}, "")
    assert "works any more" in awaited["sentence"]


def test_a_migration_that_failed_is_told_with_its_last_lines(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    place = _detached.Place(host.layout, D1, "migrate")
    place.prepare()
    place.about.write_text(json.dumps({"deployment": D1, "phase": "migrate", "since": "x", "process": None}))
    place.log.write_text("begins\napply_start shop.0002_b\n")
    awaited = run_module(deployment_resume, capsys, root=str(host.root), state="awaited", deployment=D1)
    assert awaited["answer"]["died"] and awaited["evidence"].endswith("apply_start shop.0002_b")
    place.result.write_text(json.dumps({"failed": True, "msg": "No.", "evidence": "the reason"}))
    awaited = run_module(deployment_resume, capsys, root=str(host.root), state="awaited", deployment=D1)
    assert awaited["sentence"].endswith("No.") and awaited["evidence"] == "the reason"


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("is finished", {"verdict": "success"}),
        ("cannot be read", None),
    ],
)
def test_what_cannot_be_gone_on_with(
    host: Host, capsys: pytest.CaptureFixture[str], words: str, change: dict[str, Any] | None
) -> None:
    text = json.dumps({**stored(host), **change}) if change else "{"
    host.layout.record(D1).write_text(text)
    assert words in take(host, capsys)["msg"]
    assert not host.layout.lock.exists()


def test_only_the_newest_deployment_that_exists_is_gone_on_with(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "began on this host after" in take(host, capsys, deployment=D0)["msg"]
    assert "no record" in take(host, capsys, deployment=D2)["msg"]
    assert "expected an id" in take(host, capsys, deployment="yesterday")["msg"]


def test_check_mode_takes_nothing(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    before = host.tree()
    assert not take(host, capsys, _ansible_check_mode=True).get("failed")
    assert host.tree() == before


def test_what_gates_compare_with_is_in_the_record_from_the_first_phase_on(host: Host) -> None:
    before = {"cursors": {"errors": {"inode": 7}}, "measured": {}, "checks": [], "first": False}
    record = {"id": D1, "token": OLD, "host": "web1", "primary": False, "about": {}, "before": before}
    with _record.open_journal(host.root, record, False) as journal, journal.phase("release"):
        pass
    assert stored(host)["before"] == before
    # A later phase that does not bring it leaves it.
    with old_run(host, primary=False) as journal, journal.phase("backup"):
        pass
    assert stored(host)["before"] == before
