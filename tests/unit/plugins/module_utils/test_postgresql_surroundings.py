# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What real PostgreSQL servers have around a database: limits of roles, autovacuum, locales, extensions in schemas of their own."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _backup, _restore
from ansible_collections.runbook.deploy.plugins.module_utils import _postgresql as postgresql
from ansible_collections.runbook.deploy.plugins.module_utils._database import engine_of
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_servers import (
    PASSWORD,
    Server,
    serving,
)
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.pgbouncer_server import pooling

TABLES = """CREATE TABLE note (id serial PRIMARY KEY, body text);
INSERT INTO note (body) SELECT 'text ' || n FROM generate_series(1, 500) n"""


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with serving("postgresql") as server:
        server.sql("ALTER ROLE app CREATEDB", "postgres")
        yield server


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    yield running
    running.sql("ALTER ROLE app RESET ALL", "postgres")
    for row in running.sql("SELECT datname FROM pg_database WHERE datname ~ '^(shop|runbook)'", "postgres"):
        running.sql(f'ALTER DATABASE "{row[0]}" ALLOW_CONNECTIONS true', "postgres")
        running.sql(f'DROP DATABASE "{row[0]}" WITH (FORCE)', "postgres")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "srv").mkdir()
    return Layout(str(tmp_path / "srv"))


def make(server: Server, options: str = "", tables: str = TABLES) -> None:
    """Make the database ``shop`` of the role ``app``."""
    server.sql(f"CREATE DATABASE shop OWNER app {options}", "postgres")
    server.sql(f"SET ROLE app; {tables}")


def engine_for(server: Server, admin: bool = False, **changes: Any) -> Any:
    return engine_of(
        {**server.database, "password": PASSWORD, **changes}, {"user": "postgres"} if admin else None
    )


def take(layout: Layout, server: Server, admin: bool = False, port: int = 0, **changes: Any) -> _backup.Taken:
    request = _backup.Request(**{"id": "b1", "kind": "manual", "framework": "none", **changes})
    with _backup.backups_locked(layout):
        return _backup.take(layout, engine_for(server, admin, port=port or server.port), request)


def restore(layout: Layout, server: Server, admin: bool = False, consent: bool = True) -> dict[str, Any]:
    order = _restore.Order(backup="b1", consent=consent, user=None, timeout=5)
    with _backup.backups_locked(layout):
        return _restore.restore(layout, engine_for(server, admin), order)


def databases(server: Server) -> list[str]:
    rows = server.sql(
        "SELECT datname FROM pg_database WHERE datname ~ '^(shop|runbook)' ORDER BY 1", "postgres"
    )
    return [row[0] for row in rows]


@pytest.mark.long
def test_limits_of_the_role_end_neither_backup_nor_restore(layout: Layout, server: Server) -> None:
    """They are meant for the application's own requests; a session that holds a snapshot waits for pg_dump."""
    make(server)
    # The last one also counts while psql itself begins.
    limits = {"statement_timeout": 5, "idle_in_transaction_session_timeout": 5, "idle_session_timeout": 200}
    for name, milliseconds in limits.items():
        server.sql(f"ALTER ROLE app SET {name} = {milliseconds}", "postgres")
    take(layout, server)
    server.sql("INSERT INTO note (body) VALUES ('late')")
    assert restore(layout, server)["lost"] == {"note": {"inserts": 1, "updates": 0, "deletes": 0}}
    with engine_for(server).client.session() as session:
        time.sleep(0.5)
        assert session.query("SELECT 1") == 1


@contextlib.contextmanager
def vacuuming(server: Server, table: str) -> Iterator[Any]:
    """Keep autovacuum at work for long in whatever database has *table*; give what waits for it."""
    for name, value in {"autovacuum_naptime": "1s", "autovacuum_vacuum_cost_delay": "100ms"}.items():
        server.sql(f"ALTER SYSTEM SET {name} = '{value}'", "postgres")
    server.sql("ALTER SYSTEM SET autovacuum_vacuum_cost_limit = 1", "postgres")
    server.sql("SELECT pg_reload_conf()", "postgres")

    def wait(name: str) -> None:
        deadline = time.monotonic() + 60
        query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND backend_type = 'autovacuum worker'"
        while server.sql(query, "postgres") == [["0"]]:
            assert time.monotonic() < deadline, "autovacuum does not begin"
            time.sleep(0.05)

    try:
        yield wait
    finally:
        server.sql("ALTER SYSTEM RESET ALL", "postgres")
        server.sql("SELECT pg_reload_conf()", "postgres")


@pytest.mark.long
def test_autovacuum_keeps_nobody_from_dropping_and_exchanging(layout: Layout, server: Server) -> None:
    """An ordinary role may not end its workers, and need not: the server does, before it renames or drops."""
    many = "CREATE TABLE many (id int PRIMARY KEY, body text); INSERT INTO many SELECT n, md5(n::text) FROM generate_series(1, 40000) n"
    make(server, tables=many)
    with vacuuming(server, "many") as wait:
        taken = take(layout, server, scratch="20261121T010101-abcd")
        assert taken.scratch is not None
        server.sql("DELETE FROM many", taken.scratch["name"])
        wait(taken.scratch["name"])
        _backup.forget_scratch(engine_for(server), layout.scratch / "20261121T010101-abcd")
        assert databases(server) == ["shop"]
        server.sql("DELETE FROM many WHERE id > 10000")
        wait("shop")
        answer = restore(layout, server)
    assert answer["lost"]["many"]["deletes"] == 30000
    assert server.sql("SELECT count(*) FROM many") == [["40000"]]


def test_what_makes_a_database_is_kept(layout: Layout, server: Server) -> None:
    """Its provider of collations, its limit of connections, its comment: none of them is in a dump."""
    if server.sql("SELECT count(*) FROM pg_collation WHERE collprovider = 'i'", "postgres") == [["0"]]:
        pytest.skip("this server is built without ICU")
    make(
        server,
        "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'de-DE' CONNECTION LIMIT 40",
    )
    server.sql("COMMENT ON DATABASE shop IS 'of the shop''s own'")
    names = "datlocprovider, daticulocale, datconnlimit, shobj_description(oid, 'pg_database')"
    query = f"SELECT {names} FROM pg_database WHERE datname = 'shop'"
    before = server.sql(query)
    assert before == [["i", "de-DE", "40", "of the shop's own"]]
    take(layout, server)
    restore(layout, server)
    assert server.sql(query) == before


EXTENSION = """CREATE SCHEMA words AUTHORIZATION {owner}; CREATE EXTENSION citext SCHEMA words;
GRANT USAGE ON SCHEMA words TO app; SET ROLE app;
CREATE TABLE named (id int PRIMARY KEY, name words.citext UNIQUE); INSERT INTO named VALUES (1, 'Ann')"""


@pytest.mark.parametrize("owner", ["app", "postgres"])
def test_an_extension_in_a_schema_of_its_own(layout: Layout, server: Server, owner: str) -> None:
    """The schema must be there before it, and everything else after it."""
    make(server)
    server.sql(EXTENSION.format(owner=owner))
    admin = owner == "postgres"
    taken = take(layout, server, admin, scratch="20261121T010101-abcd")
    assert taken.scratch is not None
    restore(layout, server, admin)
    query = """SELECT extnamespace::regnamespace, (SELECT nspowner::regrole FROM pg_namespace WHERE nspname = 'words')
        FROM pg_extension WHERE extname = 'citext'"""
    assert server.sql(query) == [["words", owner]]


def test_an_extension_that_needs_an_administrator_is_told_before(layout: Layout, server: Server) -> None:
    make(server)
    server.sql("CREATE EXTENSION pg_stat_statements")
    assert "pg_stat_statements" in engine_for(server).warnings()[0]
    with pytest.raises(Problem, match="app_database_admin"):
        take(layout, server)
    assert engine_for(server, admin=True).warnings() == []
    take(layout, server, admin=True)


def test_a_database_named_like_the_lobby(layout: Layout, server: Server) -> None:
    assert engine_for(server, name="postgres").lobby() == "template1"


def test_what_a_killed_restore_unpacked_is_removed(
    layout: Layout, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(server)
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(postgresql, "prepare", lambda *_arguments: os._exit(9))
        with contextlib.suppress(BaseException):
            take(layout, server)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert list(layout.scratch.glob(".restore-*/database.pgdump"))
    with _backup.working_directory(layout.scratch) as used, _backup.backups_locked(layout):
        assert list(layout.scratch.glob(".restore-*")) == [used]
    assert list(layout.scratch.glob(".restore-*")) == []


def test_the_servers_own_disk_is_looked_at(server: Server) -> None:
    if os.geteuid():
        pytest.skip("only root sees where another user's server works")
    make(server)
    assert engine_for(server).server_space(5) == [(server.directory / "data", 5)]
    assert engine_for(server, host="192.0.2.1").server_space(5) == []


@pytest.mark.parametrize(
    ("ignored", "words"),
    [("extra_float_digits", "this is a pooler"), ("extra_float_digits, options", "a pooler that forgets")],
)
def test_no_backup_comes_through_a_pooler(layout: Layout, server: Server, ignored: str, words: str) -> None:
    """It would drop the settings of each session, and its limits; one way or the other it is told apart."""
    make(server)
    with (
        pooling(server, "transaction", ignored) as port,
        pytest.raises(Problem, match=f"{words}.*name the server itself in app_database.host"),
    ):
        take(layout, server, port=port)
    assert not [path for path in layout.backups.iterdir() if path.name != _backup.LOCK]
    assert databases(server) == ["shop"]
