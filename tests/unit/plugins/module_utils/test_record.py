# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _lock as lock
from ansible_collections.runbook.deploy.plugins.module_utils import _record as records
from ansible_collections.runbook.deploy.plugins.module_utils._layout import ADOPTED, DEPLOYMENT_ID, Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.deployed_host import (
    D0,
    D1,
    D2,
    D3,
    D4,
    R1,
    R2,
    R3,
    R4,
    python_path,
)

TOKEN = "a" * 32


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def option(primary: bool = False, **fields) -> dict:
    about = {"kind": "deployment", "release": R1, "operator": "alice"}
    return {"id": D1, "token": TOKEN, "host": "web1", "primary": primary, "about": about, **fields}


def stored(layout: Layout, deployment: str = D1) -> dict:
    return json.loads(layout.record(deployment).read_text())


def entry(deployment: str, release: str | None, verdict: str | None = "success", **fields) -> dict:
    found = {
        "id": deployment,
        "kind": "deployment",
        "release": release,
        "commit": (release or "")[:1] * 40,
        "version": None,
        "verdict": verdict,
        "previous": None,
        "undoes": None,
        "undone_by": None,
        "phases": [],
        "host": "web1",
        "begun": "2026-01-01T00:00:00Z",
    }
    return {**found, **fields}


def rollback(deployment: str, left: str, release: str | None, **fields) -> dict:
    found = {"undoes": left, "previous": {"deployment": left}, **fields}
    return entry(deployment, release, kind="rollback", **found)


# The journal


def test_a_phase_is_on_the_disk_while_it_runs_and_after(layout: Layout) -> None:
    with records.open_journal(layout.root, option(), False) as journal:
        with journal.phase("backup") as result:
            running = stored(layout)["phases"][0]
            assert (running["phase"], running["state"], running["finished"]) == ("backup", "running", None)
            result.update(size=5, path=Path("/x"), names={"b", "a"})
        journal.update(backup={"id": "b1"}, traffic_taken="2026-01-01T00:00:00Z")
    found = stored(layout)
    phase = found["phases"][0]
    assert phase["state"] == "done"
    assert phase["result"] == {"size": 5, "path": "/x", "names": ["a", "b"]}
    assert phase["seconds"] >= 0
    assert found["backup"] == {"id": "b1"}
    assert (found["operator"], found["host"], found["release"], found["verdict"]) == (
        "alice",
        "web1",
        R1,
        None,
    )
    assert layout.record(D1).stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Problem("The disk is full of hunter22."), "The disk is full of ********."),
        (ValueError("no hunter22"), "ValueError: no ********"),
        (SystemExit(1), "The module ended with an error."),
    ],
)
def test_a_failure_is_written_without_secrets_and_goes_on(
    layout: Layout, error: BaseException, message: str
) -> None:
    journal = records.open_journal(layout.root, option(), False, secrets=["hunter22"])
    with pytest.raises(type(error)), journal, journal.phase("migrate") as result:
        result["applied"] = ["x"]
        raise error
    phase = stored(layout)["phases"][0]
    assert (phase["state"], phase["message"]) == ("failed", message)
    assert phase["result"] == {"applied": ["x"]}


def test_a_module_that_exits_well_inside_a_phase_is_done(layout: Layout) -> None:
    journal = records.open_journal(layout.root, option(), False)
    with pytest.raises(SystemExit), journal, journal.phase("backup"):
        raise SystemExit(0)
    assert stored(layout)["phases"][0]["state"] == "done"


@pytest.mark.parametrize(("record", "check_mode"), [(None, False), (option(), True)])
def test_without_a_record_or_in_check_mode_nothing_is_written(
    layout: Layout, record: dict | None, check_mode: bool
) -> None:
    with records.open_journal(layout.root, record, check_mode) as journal:
        assert journal.deployment is None
        with journal.phase("backup") as result:
            result["x"] = 1
        journal.update(backup={})
    with records.open_journal(None, record, False) as journal, journal.phase("smoke_test") as result:
        result["x"] = 1
    assert os.listdir(layout.root) == []


def test_the_primary_needs_the_lock_and_renews_it(layout: Layout) -> None:
    with records.open_journal(layout.root, option(primary=True), False) as journal:
        with pytest.raises(Problem, match="is gone"), journal.phase("backup"):
            pytest.fail("the phase began without the lock")
        lock.acquire(layout, deployment=D2, token="b" * 32, owner="bob")
        with pytest.raises(Problem, match="bob"), journal.phase("backup"):
            pytest.fail("the phase began under somebody else's lock")
    assert stored(layout)["phases"] == []
    lock.release(layout, "b" * 32)
    lock.acquire(layout, deployment=D1, token=TOKEN)
    with records.open_journal(layout.root, option(primary=True), False) as journal, journal.phase("migrate"):
        assert lock.read_lock(layout)["process"]["phase"] == "migrate"


def test_another_token_may_not_write(layout: Layout) -> None:
    with records.open_journal(layout.root, option(), False):
        pass
    with (
        pytest.raises(Problem, match="another run"),
        records.open_journal(layout.root, option(token="b" * 32), False),
    ):
        pytest.fail("opened")


def test_a_finished_deployment_has_no_further_phase(layout: Layout) -> None:
    lock.acquire(layout, deployment=D1, token=TOKEN)
    with records.open_journal(layout.root, option(primary=True), False) as journal:
        journal.update(verdict="success")
    with (
        pytest.raises(Problem, match="finished"),
        records.open_journal(layout.root, option(primary=True), False),
    ):
        pytest.fail("opened")


def test_another_host_can_be_taken_back_until_the_primary_is_finished(layout: Layout) -> None:
    with records.open_journal(layout.root, option(), False) as journal:
        journal.update(verdict="success")
    with records.open_journal(layout.root, option(), False) as journal, journal.phase("restart"):
        assert stored(layout)["verdict"] is None


def test_a_run_that_was_taken_over_goes_on_nowhere(layout: Layout) -> None:
    with records.open_journal(layout.root, option(), False) as journal:
        with records.open_journal(layout.root, option(id=D2, token="b" * 32), False):
            pass
        assert stored(layout)["verdict"] == "stopped"
        with pytest.raises(Problem, match=f"{D2} began on this host"), journal.phase("restart"):
            pytest.fail("the phase began")
    assert stored(layout)["phases"] == []


@pytest.mark.made_up_records
def test_a_new_record_on_another_host_closes_what_died_there(layout: Layout) -> None:
    records.write_record(layout, {**entry(D0, R4, None), "phases": [{"phase": "restart"}]})
    with records.open_journal(layout.root, option(), False):
        pass
    closed = stored(layout, D0)
    assert closed["verdict"] == "stopped"
    assert "restart" in closed["decision"]["reason"]
    assert D1 in closed["decision"]["reason"]


@pytest.mark.parametrize("change", [{"id": "../x"}, {"id": ""}, {"token": None}, {"primary": None}])
def test_an_incomplete_option_is_refused(layout: Layout, change: dict) -> None:
    with pytest.raises(Problem, match="option record"):
        records.open_journal(layout.root, option(**change), False)


def test_killed_in_a_phase_the_record_says_which(layout: Layout) -> None:
    code = (
        "import json, sys, time\n"
        "from ansible_collections.runbook.deploy.plugins.module_utils._record import open_journal\n"
        "with open_journal(sys.argv[1], json.loads(sys.argv[2]), False) as journal:\n"
        "    with journal.phase('backup'): pass\n"
        "    with journal.phase('migrate'):\n"
        "        print('in', flush=True)\n"
        "        time.sleep(60)\n"
    )
    words = [sys.executable, "-c", code, str(layout.root), json.dumps(option())]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, env=python_path())
    child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert [phase["state"] for phase in stored(layout)["phases"]] == ["done", "running"]
    found = records.interrupted(records.read_records(layout), None)
    assert (found["id"], found["phase"], found["host"]) == (D1, "migrate", "web1")


# Reading


@pytest.mark.made_up_records
def test_records_are_read_newest_first_and_damage_is_reported(layout: Layout) -> None:
    for deployment in (D2, D1, D3):
        records.write_record(layout, entry(deployment, R1))
    os.utime(layout.record(D1), (4e9, 4e9))
    layout.record(D4).write_text('{"id": "20260104')
    layout.record(D0).write_text('{"id": "another", "phases": [], "verdict": "success"}')
    (layout.deployments / "notes.txt").write_text("mine")
    (layout.deployments / ".x.json.tmp").write_text("")
    good, damaged = records.load_records(layout)
    assert [record["id"] for record in good] == [D3, D2, D1]
    assert [record["id"] for record in damaged] == [D4, D0]
    assert all(str(layout.deployments) in record["message"] for record in damaged)
    assert [record["id"] for record in records.read_records(layout, 1)] == []
    assert records.load_records(Layout(layout.root / "none")) == ([], [])


def test_ids_grow_even_when_the_clock_goes_back() -> None:
    first = records.make_id(now=1_800_000_000)
    assert DEPLOYMENT_ID.match(first)
    second = records.make_id(first, now=1_700_000_000)
    assert second[:15] > first[:15]
    assert records.make_id(second, now=1_900_000_000)[:15] == "20300317T174640"


# Judgement: records newest first


@pytest.mark.parametrize(
    ("name", "listed", "live", "expected"),
    [
        ("nothing was deployed", [], None, None),
        ("the first", [entry(D1, R1)], R1, None),
        ("the one before", [entry(D2, R2), entry(D1, R1)], R2, (R1, D1)),
        ("failed ones between", [entry(D3, R3), entry(D2, R2, "rolled_back"), entry(D1, R1)], R3, (R1, D1)),
        ("unfinished ones between", [entry(D3, R3), entry(D2, R2, None), entry(D1, R1)], R3, (R1, D1)),
        ("this one runs", [entry(D3, R3, None), entry(D2, R2), entry(D1, R1)], R3, (R2, D2)),
        ("the same release twice", [entry(D3, R2), entry(D2, R2), entry(D1, R1)], R2, (R1, D1)),
        ("the newest instance of it", [entry(D4, R2), entry(D3, R1), entry(D1, R1)], R2, (R1, D3)),
        (
            "never back to what was undone",
            [rollback(D4, D3, R2), entry(D3, R3), entry(D2, R2), entry(D1, R1)],
            R2,
            (R1, D1),
        ),
        (
            "marked by undone_by alone",
            [entry(D3, R3), entry(D2, R2, undone_by=D4), entry(D1, R1)],
            R3,
            (R1, D1),
        ),
        (
            "a rollback is gone back to as the instance that it started",
            [entry(D4, R4), rollback(D3, D2, R1), entry(D2, R2), entry(D1, R1)],
            R4,
            (R1, D1),
        ),
        (
            "undone, then deployed again",
            [entry(D4, R3), entry(D3, R2), rollback(D2, D1, R1), entry(D1, R2), entry(D0, R1)],
            R3,
            (R2, D3),
        ),
        (
            "a rollback that failed undid nothing",
            [rollback(D4, D3, R2, verdict="failed"), entry(D3, R3), entry(D2, R2)],
            R3,
            (R2, D2),
        ),
        (
            "a rollback of what never went live leaves the one that served a target",
            [
                entry(D3, R3),
                rollback(D2, D1, R1, previous={"release": R1, "deployment": D0}, instance=D0),
                entry(D1, R2, "stopped"),
                entry(D0, R1),
            ],
            R3,
            (R1, D0),
        ),
        (
            "two rollbacks after each other",
            [rollback(D4, D2, R1), rollback(D3, D2, R2), entry(D2, R2), entry(D1, R1), entry(D0, R3)],
            R1,
            (R3, D0),
        ),
    ],
)
def test_the_rollback_target(name: str, listed: list, live: str | None, expected: tuple | None) -> None:
    found = records.rollback_target(listed, live, {R1, R2, R3, R4})
    assert (found and (found["release"], found["deployment"])) == expected, name


def test_only_complete_releases_are_targets() -> None:
    listed = [entry(D3, R3), entry(D2, R2), entry(D1, R1)]
    assert records.rollback_target(listed, R3, {R1, R3})["release"] == R1
    assert records.rollback_target(listed, R3, set()) is None


def test_the_adopted_installation_is_the_last_resort() -> None:
    assert records.rollback_target([entry(D1, R1)], R1, {R1}, adopted=True)["deployment"] == ADOPTED
    assert records.rollback_target([entry(D2, R2), entry(D1, R1)], R2, {R1}, adopted=True)["deployment"] == D1
    assert records.rollback_target([], None, set(), adopted=True) is None


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (None, D2),
        ({"deployment": D2, "alive": False, "expired": False}, None),
        ({"deployment": D2, "alive": False, "expired": True}, D2),
        ({"deployment": D2, "alive": True, "expired": True}, None),
        ({"deployment": D1, "alive": False, "expired": False}, D2),
        ({"deployment": None, "readable": False, "alive": False, "expired": False}, D2),
    ],
)
def test_interrupted_is_what_no_living_lock_holds(held: dict | None, expected: str | None) -> None:
    listed = [entry(D3, R3), entry(D2, R2, None), entry(D1, R1, "failed")]
    found = records.interrupted(listed, held)
    assert (found and found["id"]) == expected
    assert records.interrupted(listed, None, own=D2) is None


def test_what_is_answered_has_no_token() -> None:
    assert "token" not in records.public({"id": D1, "token": "x"})
    assert records.public(None) is None


def test_what_a_rollback_left_applied_is_known_later() -> None:
    """Only what older code was proved to run with, and only of deployments that were taken back."""

    def planned(deployment: str, release: str, name: str, compatible: str = "yes", **fields) -> dict:
        plan = {"migrations": [{"app": "shop", "name": name, "compatible": compatible}]}
        return {**entry(deployment, release, **fields), "plan": plan}

    code, abandon = {"level": "code"}, {"level": "abandon"}
    listed = [
        planned(D4, R3, "0004", verdict="rolled_back", decision=code),
        planned(D3, R3, "0003", "unknown", verdict="rolled_back", decision=code),
        planned(D2, R2, "0002", undone_by=D4),
        planned(D1, R1, "0001"),
        # A first deployment that failed: what it applied is for the next attempt, not for an older version.
        planned(D0, R1, "0000", verdict="rolled_back", decision=abandon),
    ]
    assert records.left_behind(listed) == {("shop", "0004"), ("shop", "0002")}
