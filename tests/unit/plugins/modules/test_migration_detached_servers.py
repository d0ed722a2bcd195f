# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A migration whose module dies in the middle, on a real PostgreSQL server: it is done once, to its end, and taken back once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _detached, _lock
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_servers import (
    PASSWORD,
    ServerProject,
    serving,
)
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.migrating_host import (
    DEPLOYMENT,
    PATIENCE,
    TOKEN,
    Migrating,
    wait_for,
)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Migrating]:
    with serving("postgresql") as server:
        server.clean()
        project = ServerProject(tmp_path / "srv", server)
        project.manage("migrate", "--verbosity", "0")
        made = Migrating(project, tmp_path, server.database)
        yield made
        made.close()


def test_it_is_done_once_and_taken_back_once(host: Migrating) -> None:
    before = [list(row) for row in host.project.rows("SELECT app, name FROM django_migrations ORDER BY id")]
    child = host.start()
    child.kill()
    child.wait()
    host.go_on.touch()
    found = _detached.attach(host.layout, DEPLOYMENT, PATIENCE)
    assert found["answer"]["failed"] is False, found
    assert found["answer"]["heads"]["orders"] == ["0003_more"]
    assert [[str(cell) for cell in row] for row in host.project.rows("SELECT count(*) FROM counted")] == [
        ["1"]
    ]
    assert host.record()["phases"][0]["state"] == "done"
    assert host.lock()["expired"]
    for path in _detached.directory_of(host.layout, DEPLOYMENT).iterdir():
        assert PASSWORD not in path.read_text()
    # The way back is as long, and as little ends with its connection.
    _lock.renew(host.layout, TOKEN, "reverse")
    child = host.start(state="reversed", applied=before, consent=True)
    child.stdout.close()
    assert child.wait(PATIENCE) is not None
    wait_for((_detached.directory_of(host.layout, DEPLOYMENT) / "reverse.json").exists, "the worker to begin")
    found = _detached.attach(host.layout, DEPLOYMENT, PATIENCE)
    assert (found["phase"], found["answer"]["failed"]) == ("reverse", False)
    rows = [list(row) for row in host.project.rows("SELECT app, name FROM django_migrations ORDER BY id")]
    assert rows == before
    assert [phase["phase"] for phase in host.record()["phases"]] == ["migrate", "reverse"]
