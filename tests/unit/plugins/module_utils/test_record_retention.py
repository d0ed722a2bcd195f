# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which records go, which never do, and what a kill in between leaves."""

from __future__ import annotations

import os
import random

import pytest
from ansible_collections.runbook.deploy.plugins.filter.stored_records import MOST, stored_records
from ansible_collections.runbook.deploy.plugins.module_utils import _record_retention as retention
from ansible_collections.runbook.deploy.plugins.module_utils._decision import towards
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import (
    left_behind,
    read_records,
    rollback_target,
    write_record,
)
from ansible_collections.runbook.deploy.plugins.modules import deployment_record
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.deployed_host import (
    deployed_host,
    run_module,
)

ABOUT = {"kind": "deployment", "version": "v9", "commit": "9" * 40, "operator": "alice"}


def name(number: int) -> str:
    return f"2026{number // 28 + 1:02}{number % 28 + 1:02}T000000-{number:04x}"


def release(number: int) -> str:
    return f"{number:012x}-{number:08x}"


def made(number: int, **fields) -> dict:
    return {
        "id": name(number),
        "kind": "deployment",
        "verdict": "success",
        "primary": True,
        "release": release(number),
        "instance": name(number),
        "previous": {"deployment": name(number - 1), "release": release(number - 1)},
        "phases": [],
        "plan": {},
        **fields,
    }


def surplus(records, keep=3, serving=(), releases=(), backups=(), stored=None):
    return retention.surplus_records(
        records, keep=keep, serving=serving, releases=releases, backups=backups, stored=stored
    )


def history(count: int, **special) -> list[dict]:
    """Records 1 to *count*, newest first; ``r4={...}`` changes record 4."""
    return [made(number, **special.get(f"r{number}", {})) for number in range(count, 0, -1)]


def test_the_oldest_go_first_and_so_many_stay() -> None:
    assert surplus(history(8), keep=3) == ([name(number) for number in range(1, 6)], [])
    assert surplus(history(3), keep=3) == ([], [])
    assert surplus(history(8), keep=0) == ([], [])


@pytest.mark.parametrize(
    ("special", "facts"),
    [
        ({"r4": {"verdict": None}}, {}),
        ({}, {"serving": {name(4)}}),
        ({}, {"releases": {release(4)}}),
        ({"r4": {"backup": {"id": "b4"}}}, {"backups": {"b4"}}),
        (
            {"r4": {"phases": [{"phase": "rollback: restore", "result": {"safety": "s4"}}]}},
            {"backups": {"s4"}},
        ),
        ({}, {"stored": [name(number) for number in range(1, 9) if number != 4]}),
        # What is live was never proved, nor what was before: the way back leads to 4.
        (
            {
                "r8": {"previous": {"deployment": name(5), "proven": False}},
                "r5": {"previous": {"deployment": name(4), "proven": False}},
            },
            {"serving": {name(8)}},
        ),
    ],
)
def test_nothing_goes_from_one_that_has_to_stay_on(special, facts) -> None:
    assert surplus(history(8, **special), **facts) == ([name(number) for number in range(1, 4)], [])


def test_of_other_hosts_the_controller_needs_no_copy_and_a_failed_release_pins_nothing() -> None:
    special = {"r4": {"primary": False}, "r5": {"verdict": "rolled_back"}}
    stored = [name(number) for number in range(1, 9) if number != 4]
    removed, _marked = surplus(history(8, **special), stored=stored, releases={release(5)})
    assert removed == [name(number) for number in range(1, 6)]


def test_what_a_rollback_left_applied_is_known_as_long_as_anything() -> None:
    plan = {"migrations": [{"app": "shop", "name": "0007", "compatible": "yes"}]}
    unsafe = {"migrations": [{"app": "shop", "name": "0008", "compatible": "no"}]}
    special = {
        "r2": {"plan": plan, "undone_by": name(3)},
        "r3": {"kind": "rollback", "undoes": name(2), "decision": {"level": "code"}},
        "r4": {"plan": plan, "verdict": "rolled_back", "decision": {"level": "code"}},
        "r5": {"plan": unsafe, "verdict": "rolled_back", "decision": {"level": "code"}},
        "r6": {"plan": plan, "verdict": "rolled_back", "decision": {"level": "migrations"}},
    }
    records = history(12, **special)
    removed, marked = surplus(records)
    assert removed == [name(number) for number in (1, 5, 6, 7, 8, 9)]
    assert marked == [name(number) for number in (2, 3, 4)]
    left = [record for record in records if record["id"] not in removed]
    assert left_behind(left) == left_behind(records) == {("shop", "0007")}
    # Once more, with the marks: nothing changes.
    again = [{**record, "detached": True} if record["id"] in marked else record for record in left]
    assert surplus(again) == ([], [])


def test_beside_a_gap_nothing_is_gone_back_to() -> None:
    records = [made(9), {**made(4), "detached": True}]
    with pytest.raises(Problem, match="not all records since then are kept"):
        towards(records, name(4), [release(4)])
    assert rollback_target(records, release(9), [release(4)]) is None


def test_whatever_was_recorded_and_is_on_the_host_no_gap_lies_above_a_target() -> None:
    """A property, over many histories: every release that can be named leads to the same records as before."""
    dice = random.Random(7)
    plan = {"migrations": [{"app": "shop", "name": "0007", "compatible": "yes"}]}
    for _round in range(300):
        special = {}
        for number in range(1, 31):
            verdict = dice.choice(["success"] * 5 + ["rolled_back", "stopped", "abandoned"])
            fields = {"verdict": verdict, "plan": plan if dice.random() < 0.2 else {}}
            if dice.random() < 0.2:
                fields.update(decision={"level": "code"})
            special[f"r{number}"] = fields
        records = history(30, **special)
        on_host = {release(number) for number in dice.sample(range(1, 31), 3)}
        facts = {"serving": {name(dice.randrange(20, 31))}, "releases": on_host}
        removed, marked = surplus(records, keep=dice.randrange(1, 12), **facts)
        left = [
            {**record, "detached": True} if record["id"] in marked else record
            for record in records
            if record["id"] not in removed
        ]
        assert left_behind(left) == left_behind(records)
        assert rollback_target(left, release(30), on_host) == rollback_target(records, release(30), on_host)
        for target in on_host:
            number = int(target[:12], 16)
            if any(r["id"] == name(number) and r["verdict"] == "success" for r in records) and number < 30:
                assert towards(left, target, on_host) == towards(records, target, on_host)


@pytest.fixture
def host():
    with deployed_host() as found:
        yield found


def fill(host, count: int, **fields) -> list[str]:
    for number in range(1, count + 1):
        host.record(name(number), release(number), instance=name(number), **fields)
    host.release(release(count))
    host.switch(release(count), name(count))
    return [name(number) for number in range(1, count + 1)]


def kept(host) -> list[str]:
    return sorted(path.stem for path in host.layout.deployments.glob("*.json"))


def finish(host, capsys, **options) -> dict:
    """Begin and finish a deployment that fails before anything is live."""
    root = str(host.root)
    begun = run_module(deployment_record, capsys, root=root, state="begun", host="web1", about=ABOUT)
    answer = run_module(
        deployment_record,
        capsys,
        root=root,
        state="finished",
        record=begun["record"],
        verdict="stopped",
        **options,
    )
    assert "failed" not in answer, answer
    return {**answer, "own": begun["record"]["id"]}


def test_a_run_removes_at_its_end_what_is_old_and_shows_it(host, capsys) -> None:
    ids = fill(host, 9)
    damaged = host.layout.record(name(0))
    damaged.write_text("{")
    answer = finish(host, capsys, keep_records=4, _ansible_diff=True)
    assert answer["removed"]["records"] == ids[:6]
    assert kept(host) == [name(0), *ids[6:], answer["own"]]
    assert answer["diff"]["after"] == ""
    assert answer["diff"]["before"].splitlines() == [str(host.layout.record(one)) for one in ids[:6]]
    assert answer["unstored"] == []
    assert answer["changed"] is False
    assert "diff" not in finish(host, capsys, keep_records=0)
    assert len(kept(host)) == 6


def test_what_the_controller_lacks_stays_and_is_handed_over(host, capsys) -> None:
    ids = fill(host, 30)
    answer = finish(host, capsys, keep_records=4, stored_records=ids[:3])
    assert answer["removed"]["records"] == ids[:3]
    assert [record["id"] for record in answer["unstored"]] == ids[3:23]
    assert not any("token" in record for record in answer["unstored"])
    nothing = finish(host, capsys, keep_records=4, stored_records=[])
    assert nothing["removed"]["records"] == []


def test_those_beyond_what_is_ever_read_go_too(host, capsys) -> None:
    ids = fill(host, 230)
    many = finish(host, capsys, keep_records=4)
    assert kept(host) == [*ids[-3:], many["own"]]


def test_what_cannot_be_removed_is_told_and_ends_nothing(host, capsys, monkeypatch) -> None:
    ids = fill(host, 9)

    class Killed(BaseException):
        """As a kill: nothing catches it."""

    unlink = os.unlink
    fault: list[BaseException] = [OSError(30, "Read-only file system")]

    def refused(path, *args, **words):
        if str(path) == str(host.layout.record(ids[2])):
            raise fault[0]
        return unlink(path, *args, **words)

    monkeypatch.setattr(os, "unlink", refused)
    answer = finish(host, capsys, keep_records=4)
    assert answer["removed"]["records"] == ids[:2]
    assert "Read-only file system" in answer["removed"]["errors"][0]
    assert not host.layout.lock.exists()
    # The oldest go first, so that a kill leaves no gap.
    host.record(ids[0], release(1))
    host.record(ids[1], release(2))
    fault[0] = Killed()
    with pytest.raises(Killed):
        finish(host, capsys, keep_records=4)
    assert kept(host)[:7] == ids[2:]
    assert [record["id"] for record in read_records(host.layout)][-1] == ids[2]


def test_marks_are_written_before_anything_goes(host, capsys, monkeypatch) -> None:
    plan = {"migrations": [{"app": "shop", "name": "0007", "compatible": "yes"}]}
    ids = fill(host, 9)
    failed = {"plan": plan, "decision": {"level": "code", "reason": "r"}}
    host.record(ids[3], release(4), "rolled_back", **failed)
    order = []
    wrote, unlink = write_record, os.unlink
    monkeypatch.setattr(
        retention, "write_record", lambda layout, record: order.append("mark") or wrote(layout, record)
    )
    monkeypatch.setattr(
        os, "unlink", lambda path, *a, **w: order.append(f"{path}"[-9:]) or unlink(path, *a, **w)
    )
    finish(host, capsys, keep_records=4)
    assert order.index("mark") < order.index("0001.json")
    assert kept(host)[0] == ids[3]
    marked = read_records(host.layout)[-1]
    assert (marked["detached"], marked["plan"]) == (True, plan)
    assert left_behind(read_records(host.layout)) == {("shop", "0007")}


def test_copies_of_the_controller(tmp_path) -> None:
    assert stored_records("", "shop", "production") is None
    assert stored_records(str(tmp_path / "none"), "shop", "production") == []
    directory = tmp_path / "shop" / "production"
    directory.mkdir(parents=True)
    for entry in (f"{name(1)}.json", f"{name(2)}.json", f"{name(2)}.md", "flags.json", f"{name(3)}.md"):
        (directory / entry).touch()
    assert stored_records(str(tmp_path), "shop", "production") == [name(2), name(1)]
    assert MOST >= 2000
