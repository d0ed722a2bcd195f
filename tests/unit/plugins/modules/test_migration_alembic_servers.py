# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests for plugins/modules/migration.py with a real project with Alembic on real PostgreSQL and MariaDB servers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.modules.migration import main
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.alembic_project import (
    ADD_NOTE,
    DROP_NOTE,
    ENV,
    AlembicProject,
)
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_servers import (
    PASSWORD,
    Server,
    serving,
)

DEPLOYMENT = "20261121T013700-ab12"
Run = Callable[..., dict[str, Any]]
DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
BOTH = pytest.mark.parametrize("server", ["postgresql", "mysql"], indirect=True)
POSTGRESQL = pytest.mark.parametrize("server", ["postgresql"], indirect=True)
MARIADB = pytest.mark.parametrize("server", ["mysql"], indirect=True)


@pytest.fixture(scope="module")
def servers() -> Iterator[Callable[[str], Server]]:
    """Start each server when it is first asked for."""
    running: dict[str, Any] = {}

    def get(engine: str) -> Server:
        if engine not in running:
            context = serving(engine)
            running[engine] = (context, context.__enter__())
        return running[engine][1]

    yield get
    for context, _server in running.values():
        context.__exit__(None, None, None)


@pytest.fixture
def server(servers: Callable[[str], Server], request: pytest.FixtureRequest) -> Server:
    found = servers(request.param)
    found.clean()
    return found


@pytest.fixture
def project(tmp_path: Path, server: Server) -> AlembicProject:
    made = AlembicProject(tmp_path / "srv")
    made.fill()
    made.url = f"{DRIVERS[server.engine]}://app:{PASSWORD}@127.0.0.1:{server.port}/shop"
    return made


@pytest.fixture
def run(project: AlembicProject, server: Server, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(**options: Any) -> dict[str, Any]:
        arguments = {
            "root": str(project.root),
            "release": project.name,
            "framework": "alembic",
            "environment_path": str(project.environment),
            "environment": json.dumps(project.variables),
            "live_database": {**server.database, "password": PASSWORD},
            **options,
        }
        capsys.readouterr()
        with patch_module_args(arguments), pytest.raises(SystemExit):
            main()
        text = capsys.readouterr().out
        assert PASSWORD not in text
        return {"failed": False, **json.loads(text)}

    return call


def heads(server: Server) -> list[str]:
    return [row[0] for row in server.sql("SELECT version_num FROM alembic_version ORDER BY 1")]


def columns(server: Server, database: str = "shop") -> set[str]:
    place = "table_schema = DATABASE()" if server.engine == "mysql" else "table_schema = 'public'"
    statement = f"SELECT column_name FROM information_schema.columns WHERE table_name = 'orders' AND {place}"
    return {row[0] for row in server.sql(statement, database)}


@BOTH
def test_forward_and_back(project: AlembicProject, server: Server, run: Run) -> None:
    assert not run(state="applied")["failed"]
    server.sql("INSERT INTO orders (id, number) VALUES (1, '1')")
    project.add_note()
    scratch = {**server.database, "name": server.scratch}
    # An empty copy: what matters is that nothing goes to the live one.
    found = run(state="verified", database=scratch)
    assert not found["failed"], found["msg"] + found["evidence"]
    assert [entry["name"] for entry in found["plan"]["migrations"]] == ["r1", "r2"]
    assert {entry["reversible"] for entry in found["plan"]["migrations"]} == {"yes"}
    transactional = {entry["transactional"] for entry in found["plan"]["migrations"]}
    assert transactional == ({"yes"} if server.engine == "postgresql" else {"no"})
    (lock,) = found["plan"]["migrations"][1]["locks"] or [{"table": "orders"}]
    assert lock["table"] == "orders"
    assert "note" not in columns(server) and "note" in columns(server, server.scratch)
    done = run(state="applied", plan=[["alembic", "r2"]])
    assert done["applied"] == [["alembic", "r2"]] and "note" in columns(server), done
    back = run(state="reversed", applied=[["alembic", "r1"]], consent=True)
    assert heads(server) == ["r1"] and "note" not in columns(server), back
    assert server.sql("SELECT number FROM orders") == [["1"]]


@BOTH
def test_a_connection_to_another_database_stops_the_process(
    project: AlembicProject, server: Server, run: Run
) -> None:
    project.write(
        "alembic/env.py",
        ENV.replace(
            'create_engine(os.environ["SHOP_URL"]',
            'create_engine(os.environ["SHOP_URL"].replace("/shop", "/other")',
        ),
    )
    server.sql("DROP DATABASE IF EXISTS other", None)
    server.sql("CREATE DATABASE other", None)
    if server.engine == "mysql":
        server.sql("GRANT ALL ON other.* TO app@'%'; GRANT ALL ON other.* TO app@localhost", None)
    found = run(state="verified", database={**server.database, "name": server.scratch})
    assert found["failed"] and "instead of the scratch copy" in found["msg"], found


@BOTH
def test_half_way(project: AlembicProject, server: Server, run: Run) -> None:
    run(state="applied")
    project.revision(
        "r2",
        "r1",
        f'{ADD_NOTE}\nop.create_index("ix", "orders", ["nothing"])',
        f'op.drop_index("ix")\n{DROP_NOTE}',
    )
    about = {"id": DEPLOYMENT, "token": "t" * 16, "host": "web1", "primary": False, "about": {}}
    failed = run(state="applied", record=about)
    assert failed["failed"] and failed["failed_migration"] == ["alembic", "r2"] and heads(server) == ["r1"]
    story = json.loads((project.root / "deployments" / f"{DEPLOYMENT}.json").read_text())
    assert story.get("half_done") == (None if server.engine == "postgresql" else ["alembic", "r2"])
    if server.engine == "postgresql":
        assert "note" not in columns(server) and failed["live_changed"] is False
        assert "its transaction was rolled back" in failed["msg"]
    else:
        # MariaDB cannot take the first statement back: what remains is said.
        assert "note" in columns(server) and failed["live_changed"] is True
        assert "it is not rolled back as a whole" in failed["msg"], failed["msg"]
        assert failed["failed_operation"]["index"] == 2, failed


@BOTH
def test_of_several_taken_back_the_last_fails(project: AlembicProject, server: Server, run: Run) -> None:
    """One at a time: what is undone stays undone, and where it stopped is said."""
    run(state="applied")
    project.revision("r2", "r1", ADD_NOTE, f'{DROP_NOTE}\nop.drop_index("nothing", "orders")')
    project.revision(
        "r3",
        "r2",
        'op.add_column("orders", sa.Column("extra", sa.Text()))',
        'op.drop_column("orders", "extra")',
    )
    assert run(state="applied")["applied"] == [["alembic", "r3"]]
    back = run(state="reversed", applied=[["alembic", "r1"]], consent=True)
    assert back["failed"] and back["failed_migration"] == ["alembic", "r2"], back
    assert heads(server) == ["r2"] and "extra" not in columns(server)
    assert back["done"] == [["alembic", "r3"]] and back["live_changed"] is True, back
    # MariaDB cannot take the first statement back; on PostgreSQL the revision is there as a whole.
    assert ("note" in columns(server)) is (server.engine == "postgresql")
    said = (
        "its transaction was rolled back" if server.engine == "postgresql" else "not rolled back as a whole"
    )
    assert said in back["msg"] and "r2" in back["msg"], back["msg"]


@pytest.mark.long
@BOTH
def test_a_lock_that_is_not_given_in_time(project: AlembicProject, server: Server, run: Run) -> None:
    run(state="applied")
    server.sql("INSERT INTO orders (id, number) VALUES (1, '1')")
    project.add_note()
    busy = server.connect()
    cursor = busy.cursor()
    cursor.execute("SELECT * FROM orders")
    try:
        failed = run(state="applied", lock_timeout=1.0)
    finally:
        busy.rollback()
        busy.close()
    # Who holds it an ordinary role of MariaDB may not see.
    said = "a lock was not given" if server.engine == "postgresql" else "Lock wait timeout exceeded"
    assert failed["failed"] and said in failed["msg"], failed["msg"]
    assert heads(server) == ["r1"] and "note" not in columns(server)
    if server.engine == "postgresql":
        assert "in 3 attempts" in failed["msg"] and "somebody" in failed["msg"]
    assert not run(state="applied")["failed"]


@pytest.mark.long
@BOTH
def test_two_at_the_same_time(project: AlembicProject, server: Server, run: Run) -> None:
    run(state="applied")
    project.add_note()
    other = server.connect()
    cursor = other.cursor()
    if server.engine == "postgresql":
        cursor.execute("SELECT pg_advisory_lock(1920298594, 1)")
    else:
        from ansible_collections.runbook.deploy.plugins.module_utils._agent_session import lock_name

        cursor.execute("SELECT GET_LOCK(%s, 1)", (lock_name("shop"),))
    try:
        failed = run(state="applied")
    finally:
        other.close()
    assert failed["failed"] and "another migration holds the lock" in failed["msg"], failed["msg"]
    assert heads(server) == ["r1"]


@POSTGRESQL
def test_an_index_that_is_built_beside_the_site(project: AlembicProject, server: Server, run: Run) -> None:
    run(state="applied")
    server.sql("INSERT INTO orders (id, number) VALUES (1, '1'), (2, '1')")
    project.revision(
        "r2",
        "r1",
        "with op.get_context().autocommit_block():\n"
        '    op.create_index("ix", "orders", ["number"], unique=True, postgresql_concurrently=True)',
        'op.drop_index("ix")',
    )
    failed = run(state="applied")
    assert failed["failed"] and "it left the unusable index public.ix on orders" in failed["msg"], failed[
        "msg"
    ]
    assert failed["live_changed"] is True


@POSTGRESQL
def test_death_of_the_server(project: AlembicProject, server: Server, run: Run) -> None:
    run(state="applied")
    project.revision("r2", "r1", ADD_NOTE, DROP_NOTE)
    project.revision("r3", "r2", f'{DROP_NOTE}\nop.execute("SELECT pg_terminate_backend(pg_backend_pid())")')
    failed = run(state="applied")
    assert failed["failed"] and failed["applied"] == [["alembic", "r2"]], failed["msg"]
    assert heads(server) == ["r2"] and "note" in columns(server)


@POSTGRESQL
def test_an_asynchronous_env_py(project: AlembicProject, server: Server, run: Run) -> None:
    project.write(
        "alembic/env.py",
        "import asyncio\nimport os\n\nfrom alembic import context\nfrom shop.models import metadata\n"
        "from sqlalchemy.ext.asyncio import create_async_engine\n\n\ndef migrate(connection):\n"
        "    context.configure(connection=connection, target_metadata=metadata)\n"
        "    with context.begin_transaction():\n        context.run_migrations()\n\n\nasync def main():\n"
        '    engine = create_async_engine(os.environ["SHOP_URL"])\n    async with engine.connect() as connection:\n'
        "        await connection.run_sync(migrate)\n    await engine.dispose()\n\n\nasyncio.run(main())\n",
    )
    found = run(state="verified", database={**server.database, "name": server.scratch})
    assert not found["failed"], found["msg"] + found["evidence"]
    assert server.sql("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'") == [
        ["0"]
    ]
    done = run(state="applied")
    assert not done["failed"] and heads(server) == ["r1"], done
