# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _lock as lock
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, write_json
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._processes import start_time
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.deployed_host import (
    D1,
    D2,
    python_path,
)

# Waits for a common moment, takes the lock, says so, and stays (or ends) as asked.
TAKER = """
import os, sys, time
from ansible_collections.runbook.deploy.plugins.module_utils import _lock
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
root, token, moment, force, stay = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4] == "1", float(sys.argv[5])
time.sleep(max(0, moment - time.time()))
try:
    _lock.acquire(Layout(root), deployment=token, token=token, owner="alice", host="ci1", force=force)
except Problem as problem:
    print("lost", problem.message, flush=True)
else:
    print("won", flush=True)
    time.sleep(stay)
"""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def taker(
    layout: Layout, token: str, moment: float = 0, force: bool = False, stay: float = 0
) -> subprocess.Popen:
    words = [sys.executable, "-c", TAKER, str(layout.root), token, str(moment), str(int(force)), str(stay)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=python_path())


def race(layout: Layout, number: int, force: bool = False) -> list[str]:
    moment = time.time() + 1.2
    # The winner stays until the last one has tried: a process that works is never taken over from.
    children = [taker(layout, f"t{index:02}", moment, force, stay=60) for index in range(number)]
    answers = [child.stdout.readline() for child in children]
    for child in children:
        child.kill()
        child.communicate()
    return answers


def age(layout: Layout, seconds: float, dead: bool = False) -> None:
    path = layout.lock / lock.DOCUMENT
    document = json.loads(path.read_text())
    document["renewed"] = lock.timestamp(time.time() - seconds)
    if dead:
        document["process"] = None
    write_json(path, document, 0o640)


@pytest.mark.parametrize("stale", [False, True])
def test_of_twenty_processes_one_wins(layout: Layout, stale: bool) -> None:
    if stale:
        lock.acquire(layout, deployment=D1, token="dead", lease=10)
        age(layout, 11, dead=True)
    answers = race(layout, 20, force=stale)
    winners = [index for index, answer in enumerate(answers) if answer == "won\n"]
    assert len(winners) == 1, answers
    assert lock.read_lock(layout)["token"] == f"t{winners[0]:02}"
    assert os.listdir(layout.root) == ["deployment.lock"], "nothing of the losers is left"


def test_every_change_waits_for_the_one_under_way(layout: Layout) -> None:
    with lock.serialised(layout):
        child = taker(layout, "a")
        time.sleep(0.5)
        assert child.poll() is None
        assert lock.read_lock(layout) is None
    assert child.communicate()[0] == "won\n"


def test_a_change_that_never_ends_is_named(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "FLOCK_SECONDS", 0.1)
    with lock.serialised(layout), pytest.raises(Problem, match="fuser"):
        lock.acquire(layout, deployment=D1, token="a")


def test_the_loser_learns_who_when_what_and_what_to_do(layout: Layout) -> None:
    ours, before = lock.acquire(layout, deployment=D1, token="a", owner="alice", host="ci1")
    assert before is None
    with pytest.raises(Problem) as caught:
        lock.acquire(layout, deployment=D2, token="b")
    for text in ("alice", "ci1", ours["since"], D1, "-e deployment_take_over=true"):
        assert text in caught.value.message
    assert "token" not in caught.value.results["lock"]
    assert lock.read_lock(layout)["token"] == "a"


def test_a_lock_is_released_only_by_its_token(layout: Layout) -> None:
    lock.acquire(layout, deployment=D1, token="a")
    with pytest.raises(Problem, match="not by this run"):
        lock.release(layout, "b")
    assert lock.read_lock(layout)["deployment"] == D1
    assert lock.release(layout, "a") is True
    assert lock.read_lock(layout) is None
    assert lock.release(layout, "a") is False
    assert os.listdir(layout.root) == []


def test_a_lease_ends_and_is_renewed(layout: Layout) -> None:
    lock.acquire(layout, deployment=D1, token="a", lease=100)
    age(layout, 99)
    assert not lock.read_lock(layout)["expired"]
    age(layout, 102)
    assert lock.read_lock(layout)["expired"]
    lock.renew(layout, "a", "backup")
    found = lock.read_lock(layout)
    assert not found["expired"]
    assert found["process"]["phase"] == "backup"
    with pytest.raises(Problem):
        lock.acquire(layout, deployment=D2, token="b")


def test_whoever_was_taken_over_may_not_go_on(layout: Layout) -> None:
    lock.acquire(layout, deployment=D1, token="a", lease=10)
    age(layout, 11)
    _own, before = lock.acquire(layout, deployment=D2, token="b", owner="bob")
    assert before["deployment"] == D1
    with pytest.raises(Problem, match="bob.*taken over"):
        lock.renew(layout, "a")
    with pytest.raises(Problem):
        lock.release(layout, "a")
    lock.release(layout, "b")
    with pytest.raises(Problem, match="is gone"):
        lock.renew(layout, "a")


def test_a_working_process_is_not_taken_over_from_even_by_force(layout: Layout) -> None:
    child = taker(layout, "first", stay=60)
    try:
        assert child.stdout.readline() == "won\n"
        age(layout, 10_000)
        assert lock.read_lock(layout)["alive"]
        with pytest.raises(Problem, match=f"process {child.pid} still runs"):
            lock.acquire(layout, deployment=D2, token="b", force=True)
        with pytest.raises(Problem, match="still runs"):
            lock.remove(layout, force=True)
    finally:
        child.kill()
        child.communicate()
    lock.acquire(layout, deployment=D2, token="b")


def test_a_process_of_an_earlier_boot_or_with_another_start_is_dead() -> None:
    ours = {"pid": os.getppid(), "start_time": start_time(os.getppid()), "boot": lock.boot_id()}
    assert lock.process_lives(ours)
    assert not lock.process_lives({**ours, "boot": "another"})
    assert not lock.process_lives({**ours, "start_time": ours["start_time"] + 1})
    assert not lock.process_lives({**ours, "pid": "x"})
    assert not lock.process_lives(None)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"owner": "x"}'])
def test_a_lock_without_a_readable_document_needs_force(layout: Layout, content: str | None) -> None:
    layout.lock.mkdir()
    if content is not None:
        (layout.lock / lock.DOCUMENT).write_text(content)
    found = lock.read_lock(layout)
    assert found["readable"] is False
    with pytest.raises(Problem, match="cannot be read.*deployment_take_over"):
        lock.acquire(layout, deployment=D1, token="a")
    lock.acquire(layout, deployment=D1, token="a", force=True)
    assert lock.read_lock(layout)["deployment"] == D1


def test_a_lock_that_is_a_file_is_handled(layout: Layout) -> None:
    layout.lock.write_text("mine")
    with pytest.raises(Problem):
        lock.acquire(layout, deployment=D1, token="a")
    lock.acquire(layout, deployment=D1, token="a", force=True)
    assert layout.lock.is_dir()


def test_the_lock_of_a_finished_deployment_is_taken_at_once(layout: Layout) -> None:
    lock.acquire(layout, deployment=D1, token="a")
    lock.acquire(layout, deployment=D2, token="b", finished={D1})
    assert lock.read_lock(layout)["deployment"] == D2


def test_what_a_kill_leaves_is_no_lock_and_is_cleaned_up(layout: Layout) -> None:
    (layout.root / ".deployment.lock.dead").mkdir()
    (layout.root / ".deployment.lock.dead" / ".lock.json.x").write_text("")
    lock.acquire(layout, deployment=D1, token="a")
    lock.release(layout, "a")
    assert os.listdir(layout.root) == []


def test_killed_at_any_moment_the_lock_is_whole_or_absent(layout: Layout) -> None:
    code = (
        "import sys\n"
        "from ansible_collections.runbook.deploy.plugins.module_utils import _lock\n"
        "from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout\n"
        "layout = Layout(sys.argv[1])\n"
        "print('on', flush=True)\n"
        "while True:\n"
        "    _lock.acquire(layout, deployment='d', token='k', force=True)\n"
        "    _lock.renew(layout, 'k')\n"
        "    _lock.release(layout, 'k')\n"
    )
    for delay in (0.0, 0.004, 0.011, 0.023, 0.031):
        words = [sys.executable, "-c", code, str(layout.root)]
        child = subprocess.Popen(words, stdout=subprocess.PIPE, env=python_path())
        child.stdout.readline()
        time.sleep(delay)
        child.kill()
        child.communicate()
        found = lock.read_lock(layout)
        assert found is None or (found["readable"] and not found["alive"])
    lock.acquire(layout, deployment=D1, token="a", force=True)


def test_without_a_root_setup_is_named(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="setup.yml"):
        lock.acquire(Layout(tmp_path / "none"), deployment=D1, token="a")


@pytest.mark.parametrize("text", [None, "", "yesterday", 5, "2026-13-01T00:00:00Z"])
def test_a_time_that_is_none_is_expired(layout: Layout, text: object) -> None:
    assert lock.parse_timestamp(text) is None
    lock.acquire(layout, deployment=D1, token="a")
    path = layout.lock / lock.DOCUMENT
    write_json(path, {**json.loads(path.read_text()), "renewed": text}, 0o640)
    assert lock.read_lock(layout)["expired"]


def test_times_go_there_and_back() -> None:
    assert lock.timestamp(0) == "1970-01-01T00:00:00Z"
    assert lock.parse_timestamp(lock.timestamp(1_795_000_000)) == 1_795_000_000
