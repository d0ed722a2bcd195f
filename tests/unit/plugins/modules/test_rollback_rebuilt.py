# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All facts of a run thrown away: another process decides the same from the host and its records alone."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._decision import decide
from ansible_collections.runbook.deploy.plugins.module_utils._steps import steps_of, verdict_of
from ansible_collections.runbook.deploy.plugins.modules import deployment_state
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.deployed_host import (
    D1,
    D2,
    R1,
    R2,
    deployed_host,
    python_path,
    run_module,
)

WEB = {"name": "web", "kind": "web", "bind": "socket"}
# What another controller knows: where the application lies, what its services are, which host is the primary.
ANOTHER = """
import contextlib, io, json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils._decision import decide
from ansible_collections.runbook.deploy.plugins.module_utils._steps import steps_of, verdict_of
from ansible_collections.runbook.deploy.plugins.modules import deployment_state
answer = io.StringIO()
with patch_module_args(json.load(sys.stdin)), contextlib.redirect_stdout(answer), contextlib.suppress(SystemExit):
    deployment_state.main()
state = json.loads(answer.getvalue())["state"]
record = state["open_record"]
plan = decide(record=record, states={"web1": state}, primary="web1")
way = [*steps_of(plan, {"web1": state}, "web1", record), verdict_of(plan, False)]
print(json.dumps({"plan": plan, "way": way, "verdict": record["verdict"], "target": state["target"]}))
"""


@pytest.fixture
def host():
    with deployed_host() as made:
        yield made


def run_of(
    host: Any, judged: dict[str, str], switched: bool, backup: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make what a deployment of R2 over R1 leaves that failed after its migration; return (its record, the module's options)."""
    for release, version in ((R1, "v1"), (R2, "v2")):
        host.release(release, version=version)
    host.record(D1, R1)
    plan = {"migrations": [{"app": "shop", "name": "0002", **judged}]}
    record = host.record(
        D2,
        R2,
        None,
        previous={"release": R1, "deployment": D1, "commit": "1" * 40, "version": "v1"},
        applied_before=[["shop", "0001"]],
        plan=plan,
        backup={"id": "b1"} if backup else {},
        phases=[
            {"phase": name, "state": "done"}
            for name in ("release", "migrate", *(["restart"] if switched else []))
        ],
        traffic_taken="2026-01-02T00:00:09Z" if switched else None,
    )
    live, deployment = (R2, D2) if switched else (R1, D1)
    host.switch(live, deployment)
    host.start("web", deployment, live)
    database = host.layout.shared / "db.sqlite3"
    with sqlite3.connect(database) as connection:
        connection.execute(
            "CREATE TABLE django_migrations (id integer PRIMARY KEY, app text, name text, applied text)"
        )
        rows = [("shop", "0001", "then"), ("shop", "0002", "then")]
        connection.executemany("INSERT INTO django_migrations (app, name, applied) VALUES (?, ?, ?)", rows)
    connection.close()
    options = {
        "root": str(host.root),
        "services": [WEB],
        "framework": "django",
        "database": {"engine": "sqlite", "path": str(database)},
    }
    return record, options


@pytest.mark.parametrize(
    ("judged", "switched", "backup", "level"),
    [
        (("yes", "yes", "no"), True, True, "code"),
        (("yes", "yes", "no"), False, True, "migrations"),
        (("unknown", "yes", "no"), True, True, "migrations"),
        (("no", "no", "yes"), False, True, "restore"),
        (("no", "no", "yes"), True, True, "stop"),
        (("unknown", "unknown", "unknown"), False, False, "stop"),
    ],
)
def test_another_process_knows_verdict_target_and_level(
    host, capsys, judged, switched, backup, level
) -> None:
    marks = dict(zip(("compatible", "reversible", "destructive"), judged))
    record, options = run_of(host, marks, switched, backup)
    state = run_module(deployment_state, capsys, **options)["state"]
    failures = [{"host": "web1", "phase": "smoke_test" if switched else "restart", "reason": "it is ill"}]
    mine = decide(record=record, states={"web1": state}, primary="web1", failures=failures)
    assert mine["level"] == level
    done = subprocess.run(
        [sys.executable, "-c", ANOTHER],
        input=json.dumps(options),
        capture_output=True,
        text=True,
        check=False,
        env=python_path(),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    other = json.loads(done.stdout)
    assert other["plan"] == json.loads(json.dumps(mine))
    # What each host goes back to, in which steps, and the verdict that the run has then.
    way = [*steps_of(mine, {"web1": state}, "web1", record), verdict_of(mine, False)]
    assert other["way"] == json.loads(json.dumps(way))
    assert (other["verdict"], other["plan"]["target"]["deployment"]) == (None, D1)
    # What a person is told that a rollback leads to is what it leads to.
    assert other["target"] is None or other["target"]["deployment"] == D1
