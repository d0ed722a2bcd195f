# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A migration whose module, connection or own process dies in the middle: real Django, real SQLite, real kills."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _detached, _lock, _processes, _record
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_project import (
    SECRET,
    DjangoProject,
)
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.migrating_host import (
    DEPLOYMENT,
    PATIENCE,
    TOKEN,
    Migrating,
    wait_for,
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = DjangoProject(tmp_path_factory.mktemp("template") / "srv")
    made.manage("migrate", "--verbosity", "0")
    return made.database


@pytest.fixture
def host(tmp_path: Path, template: Path) -> Iterator[Migrating]:
    project = DjangoProject(tmp_path / "srv")
    shutil.copy(template, project.database)
    made = Migrating(project, tmp_path, {"engine": "sqlite", "path": str(project.database)})
    yield made
    made.close()


def kill(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()


def test_it_goes_on_when_its_module_is_killed_and_the_next_run_takes_over_its_answer(host: Migrating) -> None:
    child = host.start()
    worker = host.worker()
    # A signal to the group or the terminal of the run does not reach it.
    assert os.getsid(worker) == os.getpgid(worker) == worker != os.getsid(child.pid)
    assert _processes.is_same(worker, host.lock()["process"]["start_time"])
    kill(child)
    assert host.lock()["alive"]
    assert "playbooks/resume.yml" in _lock.held_message(host.layout, host.lock())
    assert not _lock.may_take(host.lock(), force=True)
    with pytest.raises(_detached.Problem, match=f"already runs as process {worker} since"):
        _detached.Place(host.layout, DEPLOYMENT, "migrate").prepare()
    host.go_on.touch()
    found = _detached.attach(host.layout, DEPLOYMENT, PATIENCE)
    assert found["phase"] == "migrate"
    assert found["answer"]["failed"] is False
    assert found["answer"]["heads"]["orders"] == ["0003_more"]
    # Once, to its end, and so it is told.
    assert host.project.applied() == ["0001_initial", "0002_waits", "0003_more"]
    assert host.project.rows("select count(*) from counted") == [(1,)]
    (phase,) = host.record()["phases"]
    assert (phase["phase"], phase["state"]) == ("migrate", "done")
    assert phase["finished"] and host.record()["heads_after"]["orders"] == ["0003_more"]
    # Nobody waited for it: whoever goes on need not wait for the lease.
    assert host.lock()["expired"] and not host.lock()["alive"]


def test_it_goes_on_when_the_connection_is_lost(host: Migrating) -> None:
    """ssh without a terminal sends no signal: the other end of the output is closed."""
    child = host.start()
    child.stdout.close()
    assert child.wait(PATIENCE) == 1
    assert host.lock()["alive"]
    host.go_on.touch()
    assert _detached.attach(host.layout, DEPLOYMENT, PATIENCE)["answer"]["failed"] is False
    assert host.project.rows("select count(*) from counted") == [(1,)]
    assert host.lock()["expired"]


def test_who_waits_gets_the_answer_and_the_lease_is_renewed_meanwhile(host: Migrating) -> None:
    child = host.start()
    first = host.lock()["renewed"]
    # Seconds are what a lease is written in: two renewals later it is another.
    wait_for(lambda: host.lock()["renewed"] > first, "the lease to be renewed")
    host.go_on.touch()
    text = child.communicate(timeout=PATIENCE)[0]
    answer = json.loads(text)
    assert answer["changed"] and [entry["name"] for entry in answer["seconds"]] == ["0002_waits", "0003_more"]
    assert "failed" not in answer and SECRET not in text
    assert not host.lock()["expired"]
    files = sorted(_detached.directory_of(host.layout, DEPLOYMENT).iterdir())
    assert [path.name for path in files] == ["migrate.json", "migrate.log", "migrate.result"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert all(SECRET not in path.read_text() for path in files)
    log = files[1].read_text()
    assert "apply_start orders.0002_waits" in log and "apply_success orders.0003_more" in log
    _detached.forget(host.layout)
    assert not _detached.directory_of(host.layout, DEPLOYMENT).exists()


def test_a_worker_that_was_killed_is_told_from_one_that_lives(host: Migrating) -> None:
    child = host.start()
    os.kill(host.worker(), signal.SIGKILL)
    answer = json.loads(child.communicate(timeout=PATIENCE)[0])
    assert answer["failed"] and answer["died"]
    assert "without a result" in answer["msg"] and "apply_start orders.0002_waits" in answer["evidence"]
    assert _detached.working(host.layout) is None
    # What it had begun is the application's own process, which still works: it is known by its variables.
    assert _detached.left_at_work(host.layout, DEPLOYMENT)
    with pytest.raises(_detached.Problem, match="of the application .* still runs"):
        _detached.attach(host.layout, DEPLOYMENT, 0)
    host.go_on.touch()
    found = _detached.attach(host.layout, DEPLOYMENT, PATIENCE)
    assert found["answer"]["died"]
    # It ended the migration in hand, and began none after it.
    assert host.project.applied() == ["0001_initial", "0002_waits"]
    assert host.record()["phases"][0]["state"] == "running"
    assert host.record()["heads_before"]["orders"] == ["0001_initial"]


def test_nothing_was_detached(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert _detached.attach(layout, DEPLOYMENT, 5) == {"phase": "", "waited": 0.0, "answer": {}}
    assert _detached.working(layout) is None


def test_a_lock_that_was_cut_off_is_nobodys_until_it_is_renewed(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    _lock.acquire(layout, deployment=DEPLOYMENT, token=TOKEN)
    assert not _lock.cut_off(layout, "another")
    assert not _lock.read_lock(layout)["expired"]
    assert _lock.cut_off(layout, TOKEN)
    assert _lock.read_lock(layout)["expired"]
    _lock.renew(layout, TOKEN, "migrate")
    assert not _lock.read_lock(layout)["expired"]


def test_the_lease_of_any_long_phase_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path)
    _lock.acquire(layout, deployment=DEPLOYMENT, token=TOKEN)
    renewed: list[str] = []
    monkeypatch.setattr(_lock, "RENEW_EVERY", 0.01)
    monkeypatch.setattr(_lock, "renew", lambda *words: renewed.append(words[2]))
    record = {"id": DEPLOYMENT, "token": TOKEN, "host": "web1", "primary": True, "about": {}}
    monkeypatch.setattr(_record, "renew", lambda *words: {})
    with _record.open_journal(tmp_path, record, False) as journal:
        with journal.phase("backup"):
            wait_for(lambda: len(renewed) > 2, "renewals")
        count = len(renewed)
    time.sleep(0.05)
    assert set(renewed) == {"backup"} and len(renewed) == count
