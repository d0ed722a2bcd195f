# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the application Leadbook with Flask-Migrate, its versions, and the agent inside them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._agent import Agent, AgentProblem
from ansible_collections.runbook.deploy.plugins.module_utils._alembic_plan import judge_plan
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.alembic_project import AlembicProject

SCRIPT = Path(__file__).resolve().parents[2] / "applications" / "make_repository.py"
SPECIFICATION = importlib.util.spec_from_file_location("make_repository", SCRIPT)
make_repository = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(make_repository)
LEADBOOK = make_repository.LEADBOOK
# What each version has pending after v9: (reversible, compatible, destructive).
JUDGED = {
    "broken-migration": ("yes", "yes", "no"),
    "irreversible": ("no", "unknown", "unknown"),
    "destructive": ("unknown", "no", "yes"),
    "data": ("no", "unknown", "unknown"),
    "slow": ("yes", "yes", "no"),
}


class Leadbook(AlembicProject):
    """A release of a version, on the database of the one before."""

    def put(self, tag: str) -> None:
        """Replace the release by the version *tag*."""
        shutil.rmtree(self.release)
        for path, content in make_repository.tree(tag, LEADBOOK).items():
            self.write(path, "").write_bytes(content)

    def agent(self) -> Agent:
        """Return a process in it."""
        return Agent(
            python=self.environment / "bin" / "python",
            cwd=self.release,
            variables={"LEADBOOK_DATABASE_URL": self.url, "LEADBOOK_TOKEN": "t"},
            framework="alembic",
        )

    def apply(self) -> dict[str, Any]:
        """Apply what is pending to the live database."""
        with self.agent() as agent:
            agent.call("start", argv=["alembic"], live=self.app_database)
            return agent.call("apply")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Leadbook:
    made = Leadbook(tmp_path_factory.mktemp("leadbook") / "srv", "flask_migrate")
    made.put("v9")
    made.apply()
    made.rows("insert into leads (email, company, created_at) values ('A@b.example', 'B', '2026-01-01')")
    return made


@pytest.mark.parametrize("tag", JUDGED)
def test_what_each_version_has_pending(project: Leadbook, tag: str) -> None:
    project.put(tag)
    before = project.database.read_bytes()
    with project.agent() as agent:
        started = agent.call("start", argv=["alembic"], database=project.scratch(), live=project.app_database)
        state = agent.call("state", collect=True)
        failed = ""
        try:
            agent.call("apply")
        except AgentProblem as problem:
            failed = problem.message
    assert started["flask"] is True
    plan = judge_plan(state)
    assert (plan["reversible"], plan["compatible"], plan["destructive"]) == JUDGED[tag], plan
    assert ("outreach_on" in failed) == (tag == "broken-migration"), failed
    assert project.database.read_bytes() == before


def test_models_and_migrations_agree(project: Leadbook) -> None:
    for tag in ("irreversible", "destructive", "data", "v9"):
        project.put(tag)
        with project.agent() as agent:
            agent.call("start", argv=["alembic"], database=project.scratch(), live=project.app_database)
            agent.call("apply")
            assert agent.call("missing") == {"metadata": True, "needed": [], "other": []}, tag


def test_it_answers(project: Leadbook) -> None:
    project.put("v9")
    code = (
        "import json\nfrom wsgi import app\nclient = app.test_client()\n"
        "token = {'Authorization': 'Bearer t'}\nfound = [client.get('/healthz').json['revisions'],\n"
        " client.get('/api/v1/review-queue/stats').status_code,\n"
        " client.post('/api/v1/leads', json={'email': 'a', 'company': 'b'}).status_code,\n"
        " client.post('/api/v1/leads', json={'email': 'a', 'company': 'b'}, headers=token).status_code,\n"
        " client.post('/api/v1/review-queue/tasks/1/flag', json={'reason': 'r'}, headers=token).status_code,\n"
        " client.get('/api/v1/review-queue/stats', headers=token).json['total_pending'],\n"
        " client.post('/api/v1/review-queue/tasks/1/approve', json={}, headers=token).status_code,\n"
        " client.post('/api/v1/review-queue/tasks/1/approve', json={}, headers=token).status_code,\n"
        " client.get('/api/v1/leads/99').status_code]\nprint(json.dumps(found))\n"
    )
    import subprocess

    done = subprocess.run(
        [str(project.environment / "bin" / "python"), "-c", code],
        cwd=project.release,
        env={"LEADBOOK_DATABASE_URL": project.url, "LEADBOOK_TOKEN": "t", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["0004"], 401, 401, 201, 200, 1, 200, 404, 404]


def test_the_repository_is_not_that_of_another_application(tmp_path: Path) -> None:
    made = make_repository.build(tmp_path / "r", application=LEADBOOK)
    assert list(made) == [version.tag for version in LEADBOOK.versions]
    with pytest.raises(SystemExit, match="repository of leadbook"):
        make_repository.build(tmp_path / "r")
