# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rehearsal that is killed in the middle of a migration: what it leaves, and that the next one begins anew."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils import _backup, _processes
from ansible_collections.runbook.deploy.plugins.module_utils._database import engine_of
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.modules.migration import main
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_project import DjangoProject
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_servers import (
    PASSWORD,
    Server,
    ServerProject,
    serving,
)

DEPLOYMENT = "20261121T013700-ab12"
SLOW = """
import pathlib, time
def work(apps, schema_editor):
    apps.get_model("orders", "Order").objects.all().delete()
    pathlib.Path({marker!r}).write_text("here")
    time.sleep({seconds})
"""
WORK = "migrations.RunPython(work, work)"


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Server]:
    with serving("postgresql") as running:
        running.sql("ALTER ROLE app CREATEDB", "postgres")
        yield running


@pytest.fixture(scope="module")
def mysql() -> Iterator[Server]:
    with serving("mysql") as running:
        for host in ("%", "localhost"):
            running.sql(f"GRANT ALL ON `runbook\\_%`.* TO app@'{host}'", None)
        yield running


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> DjangoProject:
    if request.param == "sqlite":
        made: DjangoProject = DjangoProject(tmp_path / "srv")
    else:
        made = ServerProject(tmp_path / "srv", request.getfixturevalue(request.param))
    made.fill("one", "two")
    return made


def live(project: DjangoProject) -> dict[str, Any]:
    if isinstance(project, ServerProject):
        return {**project.server.database, "password": PASSWORD}
    return {"engine": "sqlite", "path": str(project.database)}


def copy(project: DjangoProject) -> dict[str, str]:
    """Take a backup and leave its scratch database, as the phase before does."""
    layout = Layout(str(project.root))
    request = _backup.Request(id=_backup.make_id(), kind="manual", framework="django", scratch=DEPLOYMENT)
    with _backup.backups_locked(layout):
        taken = _backup.take(layout, engine_of(live(project)), request)
    assert taken.scratch is not None
    return taken.scratch


def verify(project: DjangoProject, scratch: dict[str, str]) -> None:
    arguments = {
        "state": "verified",
        "root": str(project.root),
        "release": project.name,
        "environment_path": str(project.environment),
        "environment": json.dumps(project.variables),
        "database": scratch,
        "live_database": live(project),
        "rehearse": "auto",
    }
    with patch_module_args(arguments):
        main()


def test_the_next_one_begins_anew_and_live_data_was_never_touched(
    project: DjangoProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    marker.chmod(0o666)
    tmp_path.chmod(0o755)
    project.migration("0002_slow", "0001_initial", WORK, code=SLOW.format(marker=str(marker), seconds=4))
    scratch = copy(project)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            verify(project, scratch)
        os._exit(0)
    deadline = time.monotonic() + 60
    while not marker.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running(project)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert marker.read_text()

    # Now, and when the process of the application has come to its end, which nobody asks any more.
    for _attempt in range(2):
        assert project.rows("select count(*) from orders_order") in ([(2,)], [("2",)])
        assert not project.rows("select name from django_migrations where name = '0002_slow'")
        while running(project) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert not running(project)

    # A migration that is quick: the deployment that comes after it is whole.
    _backup.forget_scratch(engine_of(live(project)), Layout(str(project.root)).scratch / DEPLOYMENT)
    project.migration("0002_slow", "0001_initial", WORK, code=SLOW.format(marker=str(marker), seconds=0))
    with pytest.raises(SystemExit):
        verify(project, copy(project))
    answer = json.loads(capsys.readouterr().out)
    assert not answer.get("failed"), answer.get("msg")
    (found,) = answer["plan"]["migrations"]
    assert found["rehearsed"]["forward_seconds"] >= 0
    # It deletes rows and does not bring them back.
    assert found["rehearsed"]["rows"]


def running(project: DjangoProject) -> list[int]:
    """The processes that work in the release, as another program finds them."""
    return [entry.pid for entry in _processes.application_processes(project.root)]
