# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import sqlite3
import subprocess

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._layout import write_json
from ansible_collections.runbook.deploy.plugins.modules import deployment_state as module
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.deployed_host import (
    D1,
    deployed_host,
    run_module,
)

WEB = {"name": "web", "kind": "web", "bind": "socket"}
INPUTS = "01234567"


@pytest.fixture
def host():
    with deployed_host() as made:
        yield made


def git(repository, *arguments: str) -> str:
    words = ["git", "-C", str(repository), "-c", "user.name=A", "-c", "user.email=a@example.org", *arguments]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with v1 and v2; v2 has one more migration."""
    path = tmp_path / "shop"
    (path / "shop" / "migrations").mkdir(parents=True)
    git(path, "init", "-q")
    for number, (version, migration) in enumerate((("v1", "0001_initial"), ("v2", "0002_more")), 1):
        (path / "shop" / "migrations" / f"{migration}.py").write_text("")
        (path / "VERSION").write_text(version)
        git(path, "add", "-A")
        git(path, "commit", "-q", "-m", f"Change {number}")
        git(path, "tag", version)
    return path


@pytest.fixture
def ask(host, repository, capsys):
    """Run the module, resolving a version of the repository."""

    def run(version: str, **params) -> dict:
        options = {
            "root": str(host.root),
            "services": [WEB],
            "framework": "django",
            "database": {"engine": "sqlite", "path": str(host.layout.shared / "db.sqlite3")},
            "source": {"repository": str(repository), "key": "", "known_hosts": "", "archive": {}},
            "version": version,
            "inputs8": INPUTS,
            "resolve": True,
        }
        return run_module(module, capsys, **{**options, **params})

    return run


@pytest.fixture
def live(host, repository):
    """v1 is live."""
    commit = git(repository, "rev-parse", "v1")
    release = f"{commit[:12]}-{INPUTS}"
    host.release(release)
    write_json(
        host.layout.release(release) / ".release.json",
        {"name": release, "commit": commit, "version": "v1"},
        0o644,
    )
    host.record(D1, release, version="v1")
    host.switch(release, D1)
    host.start("web", D1, release)
    with sqlite3.connect(host.layout.shared / "db.sqlite3") as connection:
        connection.execute("CREATE TABLE django_migrations (id INTEGER PRIMARY KEY, app, name, applied)")
        connection.execute("INSERT INTO django_migrations VALUES (1, 'shop', '0001_initial', '')")
    connection.close()
    return release


def test_what_the_next_version_brings(host, live, repository, ask) -> None:
    answer = ask("v2", _ansible_diff=True)
    wanted = answer["wanted"]
    commit = git(repository, "rev-parse", "v2")
    assert (wanted["commit"], wanted["release"]) == (commit, f"{commit[:12]}-{INPUTS}")
    assert (wanted["built"], wanted["complete"], wanted["current"]) == (False, False, False)
    assert [entry["subject"] for entry in wanted["commits"]] == ["Change 2"]
    assert wanted["files"] == [
        {"status": "M", "path": "VERSION"},
        {"status": "A", "path": "shop/migrations/0002_more.py"},
    ]
    assert wanted["pending_by_file"] == [["shop", "0002_more"]]
    assert answer["changed"] is False, "measuring is no change"
    assert host.layout.mirror.is_dir()


def test_a_version_with_two_meanings_is_told_as_a_warning(live, repository, ask, monkeypatch) -> None:
    told: list[str] = []
    # Beside tests of the controller's part a warning goes to the controller's terminal, not into the answer.
    monkeypatch.setattr(AnsibleModule, "warn", lambda _self, text: told.append(text))
    ask("v2")
    assert told == []
    git(repository, "branch", "v2", "v1")
    answer = ask("v2")
    assert answer["wanted"]["commit"] == git(repository, "rev-parse", "refs/tags/v2")
    assert told == [answer["wanted"]["note"]]
    assert "branch" in told[0]


def test_what_is_not_as_it_should_be_is_told_before_a_deployment(live, ask, monkeypatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _self, text: told.append(text))
    monkeypatch.setattr(module._state, "SPACE_LOW", 2**63)
    warnings = ask("v2")["state"]["warnings"]
    assert [warning["code"] for warning in warnings] == ["space_low"]
    assert told == [warnings[0]["message"]]


def test_check_mode_shows_it_and_leaves_the_host_as_it_is(host, live, ask) -> None:
    before = host.tree()
    answer = ask("v2", _ansible_check_mode=True, _ansible_diff=True)
    assert host.tree() == before
    assert answer["changed"] is True, "without it Ansible shows no diff"
    for text in ("Change 2", "shop.0002_more", "A shop/migrations/0002_more.py"):
        assert text in answer["diff"]["after"]


def test_nothing_is_to_be_done_for_what_is_live(host, live, ask) -> None:
    answer = ask("v1", _ansible_check_mode=True)
    assert answer["wanted"]["current"] is True
    assert answer["wanted"]["release"] == live
    assert answer["wanted"]["commits"] == []
    assert answer["changed"] is False
    assert answer["diff"]["before"] == answer["diff"]["after"]
    for process in list(host.children):
        host.kill(process)
    assert ask("v1")["wanted"]["current"] is False, "a dead service is something to do"


def test_other_inputs_are_another_release(live, ask) -> None:
    wanted = ask("v1", inputs8="76543210")["wanted"]
    assert (wanted["current"], wanted["built"]) == (False, False)


def test_a_first_deployment_has_everything_pending(host, ask) -> None:
    wanted = ask("v1")["wanted"]
    assert wanted["pending_by_file"] == [["shop", "0001_initial"]]
    assert wanted["commits"] == wanted["files"] == []


@pytest.mark.parametrize(
    ("params", "variable"),
    [
        ({"version": "v9"}, "app_version"),
        ({"source": {"repository": "/nowhere/at/all"}}, "app_repository"),
        ({"inputs8": ""}, "inputs8"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(live, ask, params: dict, variable: str) -> None:
    answer = ask(**{"version": "v1", **params})
    assert answer["failed"] is True
    assert variable in answer["msg"]
    assert answer["state"]["current"]["release"]


def test_without_a_root_the_problem_is_told_and_nothing_is_fetched(host, ask) -> None:
    answer = ask("v1", root=str(host.root / "none"))
    assert [problem["code"] for problem in answer["state"]["problems"]] == ["root_missing"]
    assert "wanted" not in answer


def test_what_stands_in_the_way_is_a_failure_where_that_is_asked_for(host, ask) -> None:
    answer = ask("v1", root=str(host.root / "none"), refuse=True)
    (problem,) = answer["state"]["problems"]
    assert answer["failed"] is True and answer["msg"] == problem["message"]


def test_nothing_is_refused_where_nothing_stands_in_the_way(live, ask) -> None:
    answer = ask("v1", refuse=True)
    assert not answer.get("failed") and answer["state"]["problems"] == []


def test_the_deployment_of_the_caller_is_not_interrupted(host, ask) -> None:
    host.record(D1, None, None)
    assert ask("v1", resolve=False)["state"]["interrupted"]["id"] == D1
    assert ask("v1", resolve=False, record={"id": D1})["state"]["interrupted"] is None
