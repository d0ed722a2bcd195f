# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies that are tried on another server: two real PostgreSQL and two real MariaDB servers, and a real Django project."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils import _backup
from ansible_collections.runbook.deploy.plugins.module_utils._database import (
    engine_of,
    on_scratch,
    trial_server,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.modules.migration import main
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_servers import (
    PASSWORD,
    Server,
    ServerProject,
    serving,
)

DEPLOYMENT = "20261121T013700-ab12"
SECRET = "of-the-other-server"


class Pair(NamedTuple):
    """``database``: ``app_database`` with its ``scratch``, whose role ``tester`` may make databases; that of ``live`` may not."""

    live: Server
    other: Server
    database: dict[str, Any]


def allow(server: Server, allowed: bool = True) -> None:
    """Let the role ``tester`` make databases on *server*, or not."""
    if server.engine == "postgresql":
        server.sql(f"ALTER ROLE tester {'CREATEDB' if allowed else 'NOCREATEDB'}", "postgres")
        return
    verb, way = ("GRANT", "TO") if allowed else ("REVOKE", "FROM")
    for host in ("%", "localhost"):
        server.sql(f"{verb} ALL ON `runbook\\_%`.* {way} tester@'{host}'", None)


@pytest.fixture(scope="module", params=["postgresql", "mysql"])
def running(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        # Two servers are told apart by their identity, which a copy would share.
        live, other = (stack.enter_context(serving(request.param, fresh=True)) for _number in range(2))
        if request.param == "postgresql":
            other.sql("DROP ROLE app", "postgres")
            other.sql(f"CREATE ROLE tester LOGIN CREATEDB PASSWORD '{SECRET}'", "postgres")
        else:
            for host in ("%", "localhost"):
                other.sql(
                    f"DROP USER app@'{host}'; CREATE USER tester@'{host}' IDENTIFIED BY '{SECRET}'", None
                )
            allow(other)
        scratch = {"host": "127.0.0.1", "port": other.port, "user": "tester", "password": SECRET}
        yield Pair(live, other, {**live.database, "password": PASSWORD, "scratch": scratch})


@pytest.fixture
def pair(running: Pair) -> Pair:
    running.live.clean()
    for name in databases(running.other):
        running.other.sql(f"DROP DATABASE {name}", None)
    return running


@pytest.fixture
def project(pair: Pair, tmp_path: Path) -> ServerProject:
    made = ServerProject(tmp_path / "srv", pair.live)
    made.fill("one", "two")
    return made


def databases(server: Server) -> list[str]:
    """The names of the databases that we make on *server*."""
    if server.engine == "postgresql":
        rows = server.sql("SELECT datname FROM pg_database WHERE datname ~ '^runbook_scratch_.{12}$'", None)
    else:
        rows = server.sql(
            "SELECT schema_name FROM information_schema.schemata WHERE schema_name REGEXP '^runbook_scratch_.{12}$'",
            None,
        )
    return [row[0] for row in rows]


def take(project: ServerProject, pair: Pair, **changes: Any) -> _backup.Taken:
    layout = Layout(str(project.root))
    request = _backup.Request(**{"id": "b1", "kind": "manual", "framework": "django", **changes})
    with _backup.backups_locked(layout):
        return _backup.take(layout, engine_of(pair.database), request)


def test_a_backup_is_proved_where_databases_may_be_made(project: ServerProject, pair: Pair) -> None:
    seen = []
    create = type(engine_of(pair.database)).create

    def watched(engine: Any, *arguments: Any) -> None:
        create(engine, *arguments)
        seen.append((len(databases(pair.live)), len(databases(pair.other))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(engine_of(pair.database)), "create", watched)
        taken = take(project, pair)
    assert seen == [(0, 1)]
    assert taken.manifest["verified"] == "restore" and taken.manifest["counts"]["orders_order"] == 2
    assert databases(pair.live) == databases(pair.other) == []


@pytest.fixture
def verify(
    project: ServerProject, pair: Pair, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    """Try the project's pending migrations on a copy; the answer has ``failed`` True when it failed."""

    def call(scratch: dict[str, str], **options: Any) -> dict[str, Any]:
        arguments = {
            "state": "verified",
            "root": str(project.root),
            "release": project.name,
            "environment_path": str(project.environment),
            "environment": json.dumps(project.variables),
            "database": scratch,
            "live_database": pair.database,
            "rehearse": "auto",
            **options,
        }
        capsys.readouterr()
        with patch_module_args(arguments), pytest.raises(SystemExit):
            main()
        text = capsys.readouterr().out
        assert SECRET not in text and PASSWORD not in text
        return {"failed": False, **json.loads(text)}

    return call


def test_new_code_runs_there_and_leaves_the_live_database_alone(
    project: ServerProject, pair: Pair, verify: Callable[..., dict[str, Any]]
) -> None:
    project.note()
    taken = take(project, pair, scratch=DEPLOYMENT)
    assert taken.scratch is not None and databases(pair.other) == [taken.scratch["name"]]
    note = Layout(str(project.root)).scratch / DEPLOYMENT / "database.json"
    assert SECRET not in note.read_text() and PASSWORD not in note.read_text()
    before = project.rows("SELECT count(*) FROM django_migrations")
    answer = verify(taken.scratch)
    assert not answer["failed"], answer["msg"]
    (found,) = answer["plan"]["migrations"]
    assert found["rehearsed"]["forward_seconds"] > 0 and found["rehearsed"]["schema"] == []
    assert project.rows("SELECT count(*) FROM django_migrations") == before
    _backup.forget_scratch(engine_of(pair.database), note.parent)
    assert databases(pair.other) == [] and not note.parent.exists()


def test_a_copy_on_a_server_that_is_no_longer_named_stays_and_is_named(
    project: ServerProject, pair: Pair
) -> None:
    taken = take(project, pair, scratch=DEPLOYMENT)
    assert taken.scratch is not None
    directory = Layout(str(project.root)).scratch / DEPLOYMENT
    now = engine_of({**pair.database, "scratch": None})
    with pytest.raises(
        Problem, match=f"{taken.scratch['name']} is on the server at 127.0.0.1 port {pair.other.port}"
    ):
        _backup.forget_scratch(now, directory)
    assert databases(pair.other) == [taken.scratch["name"]] and (directory / "database.json").exists()


def test_a_missing_right_there_is_named(project: ServerProject, pair: Pair) -> None:
    allow(pair.other, False)
    try:
        warnings = engine_of(pair.database).warnings()
        assert (
            "no backup can be proved by a restore there" in warnings[0]
            and "app_database.scratch" in warnings[0]
        )
        # A restore beside the live database is another matter.
        words = "none can be restored" if pair.live.engine == "mysql" else "would exchange its schemas"
        assert words in warnings[1]
        with pytest.raises(Problem, match=r"tester may not create databases .*app_database\.scratch"):
            take(project, pair)
    finally:
        allow(pair.other)


def test_an_older_server_is_refused(
    project: ServerProject, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(pair.database)
    older = "9.6.1" if pair.live.engine == "postgresql" else "10.0.1-MariaDB"
    monkeypatch.setattr(engine.trial, "server_version", lambda: older)  # type: ignore[attr-defined]
    layout = Layout(str(project.root))
    with (
        _backup.backups_locked(layout),
        pytest.raises(Problem, match=rf"app_database\.scratch at .* is .*{older}"),
    ):
        _backup.take(layout, engine, _backup.Request(id="b1", kind="manual", framework="django"))
    assert databases(pair.other) == []


def test_a_server_that_does_not_answer_is_named(project: ServerProject, pair: Pair) -> None:
    pair.other.kill()
    try:
        with pytest.raises(Problem, match=str(pair.other.port)):
            take(project, pair)
    finally:
        pair.other.start()
    assert databases(pair.live) == []


LIVE = {"engine": "postgresql", "name": "shop", "host": "db1", "port": 5433, "user": "shop", "password": "a"}


@pytest.mark.parametrize(
    ("scratch", "expected"),
    [
        (None, None),
        ({"host": None, "port": None}, None),
        ({"host": "db2"}, {"host": "db2", "port": None, "user": "shop", "password": "a"}),
        ({"host": "db2", "port": 5}, {"host": "db2", "port": 5, "user": "shop", "password": "a"}),
        ({"user": "t", "password": "b"}, {"host": "db1", "port": 5433, "user": "t", "password": "b"}),
        ({"user": "t"}, {"host": "db1", "port": 5433, "user": "t", "password": None}),
    ],
)
def test_what_is_not_named_is_as_for_the_live_database(scratch: Any, expected: Any) -> None:
    found = trial_server({**LIVE, "scratch": scratch}, "lobby")
    assert found == (expected and {"engine": "postgresql", "name": "lobby", **expected})


def test_a_password_goes_to_its_own_server_only() -> None:
    """A scratch that was made beside the live database before the configuration changed is reached as that one."""
    database = {**LIVE, "scratch": {"host": "db2", "password": "b"}}
    there = {"engine": "postgresql", "name": "s", "host": "db2", "port": "", "user": "shop"}
    assert on_scratch(database, there)["password"] == "b"
    assert on_scratch(database, {**there, "host": "db1", "port": "5433"})["password"] == "a"
