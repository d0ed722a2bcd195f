# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests for plugins/modules/migration.py with a real Django project on real PostgreSQL and MariaDB servers."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.modules.migration import main
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_project import SECRET
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_servers import (
    PASSWORD,
    Server,
    ServerProject,
    serving,
)
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.pgbouncer_server import pooling

Run = Callable[..., dict[str, Any]]
ADD = 'migrations.AddField("order", "note", models.TextField(null=True))'
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
def project(server: Server, tmp_path: Path) -> ServerProject:
    return ServerProject(tmp_path / "srv", server)


@pytest.fixture
def run(project: ServerProject, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the module; the answer has ``failed`` True when it failed."""

    def call(**options: Any) -> dict[str, Any]:
        arguments = {
            "root": str(project.root),
            "release": project.name,
            "environment_path": str(project.environment),
            "environment": json.dumps(project.variables),
            "live_database": project.server.database,
            **options,
        }
        capsys.readouterr()
        with patch_module_args(arguments), pytest.raises(SystemExit):
            main()
        text = capsys.readouterr().out
        assert SECRET not in text
        assert PASSWORD not in text
        return {"failed": False, **json.loads(text)}

    return call


@pytest.fixture
def before(project: ServerProject, run: Run) -> list[list[str]]:
    """What is applied in the live database with the first migrations: once by the module, and copied then."""
    kept = project.server.put_back("before")
    if kept is not None:
        return kept
    found = run(state="applied")
    assert not found["failed"], found
    project.server.sql("INSERT INTO orders_order (number) VALUES ('one'), ('one')")
    project.server.keep("before", found["applied"])
    return found["applied"]


def columns(project: ServerProject, database: str = "shop") -> set[str]:
    # The schema is "public" in PostgreSQL, and the database's name in MariaDB.
    statement = (
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'orders_order' "
        f"AND table_schema IN ('public', '{database}')"
    )
    return {row[0] for row in project.server.sql(statement, database)}


class Relay:
    """Another address of the server: what comes in is passed on."""

    def __init__(self, address: str, port: int) -> None:
        self.port = port
        self.listener = socket.create_server((address, port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _address = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.port))
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := one.recv(65536):
                other.sendall(chunk)
            other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End it."""
        self.listener.close()


# --- the good way ---


@BOTH
def test_verified_on_the_scratch_applied_and_taken_back(
    project: ServerProject, run: Run, before: list[list[str]]
) -> None:
    operations = f'{ADD}, migrations.AddIndex("order", models.Index(fields=["number"], name="by_number"))'
    project.migration("0002_note", "0001_initial", operations)
    project.write(
        "orders/models.py",
        "from django.db import models\n\n\nclass Order(models.Model):\n    number = models.CharField(max_length=20)\n"
        "    note = models.TextField(null=True)\n\n    class Meta:\n"
        '        indexes = [models.Index(fields=["number"], name="by_number")]\n',
    )
    found = run(state="verified", database=project.scratch_database)
    assert not found["failed"], found
    # The scratch is empty here, so all of it is pending; nothing but the scratch was looked at.
    plan = {(entry["app"], entry["name"]): entry for entry in found["plan"]["migrations"]}
    last = plan[("orders", "0002_note")]
    quote = '"' if project.server.engine == "postgresql" else "`"
    assert f"ALTER TABLE {quote}orders_order{quote} ADD COLUMN {quote}note{quote}" in last["sql"][0]
    assert last["transactional"] == ("yes" if project.server.engine == "postgresql" else "no")
    # The table is one that the same plan makes.
    assert last["locks"] == []
    assert columns(project) == {"id", "number"}

    planned = run(state="planned")
    done = run(state="applied", plan=planned["plan"]["migrations"])
    assert not done["failed"], done
    assert [entry["name"] for entry in done["seconds"]] == ["0002_note"]
    assert columns(project) == {"id", "number", "note"}
    back = run(state="reversed", applied=before)
    assert not back["failed"], back
    assert back["reversed"] == [["orders", "0002_note"]]
    assert columns(project) == {"id", "number"}
    assert project.server.sql("SELECT count(*) FROM orders_order") == [["2"]]


@BOTH
@pytest.mark.usefixtures("before")
def test_locks_of_a_table_with_rows(project: ServerProject, run: Run) -> None:
    dump_like_copy(project)
    operations = 'migrations.AddIndex("order", models.Index(fields=["number"], name="by_number"))'
    project.migration("0002_index", "0001_initial", operations)
    found = run(state="planned", database=project.scratch_database)
    assert not found["failed"], found
    (entry,) = found["plan"]["migrations"]
    expected = "SHARE" if project.server.engine == "postgresql" else "INPLACE"
    assert [(lock["table"], lock["lock"]) for lock in entry["locks"]] == [("orders_order", expected)]


def dump_like_copy(project: ServerProject) -> None:
    """Apply the first migrations to the scratch as well."""
    project.configure(NAME=project.server.scratch)
    project.manage("migrate", "--verbosity", "0")
    project.configure()


# --- nothing but the scratch ---


@BOTH
@pytest.mark.usefixtures("before")
@pytest.mark.parametrize(
    "trick",
    [
        # In ready(), as settings that are computed late.
        'connection.settings_dict["NAME"] = "shop"',
        # Another way to a connection of one's own: a copy in a thread, which an exception would not stop.
        'other = connection.copy(); other.settings_dict["NAME"] = "shop"\n'
        "        try:\n            other.cursor().execute('DELETE FROM orders_order')\n"
        "        except BaseException:\n            pass",
    ],
    ids=["settings", "copy"],
)
def test_a_connection_elsewhere_stops_the_process(project: ServerProject, run: Run, trick: str) -> None:
    project.write(
        "orders/apps.py",
        "from django.apps import AppConfig\n\n\nclass Orders(AppConfig):\n    name = 'orders'\n\n"
        "    def ready(self):\n        from django.db import connection\n\n"
        f"        {trick}\n        connection.cursor().execute('DELETE FROM orders_order')\n",
    )
    found = run(state="verified", database=project.scratch_database)
    assert found["failed"]
    assert f"instead of the scratch copy {project.server.scratch}" in found["msg"]
    assert project.server.sql("SELECT count(*) FROM orders_order") == [["2"]]


@POSTGRESQL
@pytest.mark.usefixtures("before")
def test_options_that_name_a_database_do_not_win(project: ServerProject, run: Run) -> None:
    project.append_settings('DATABASES["default"]["OPTIONS"] = {"dbname": "shop"}\n')
    project.append_settings(
        'DATABASES["replica"] = {**DATABASES["default"], "HOST": "192.0.2.1", "OPTIONS": {"connect_timeout": 1}}\n'
        'DATABASES["other"] = {**DATABASES["default"], "NAME": "postgres", "OPTIONS": {}}\n'
    )
    found = run(state="verified", database=project.scratch_database)
    assert not found["failed"], found
    assert any("without the databases other," in text for text in found["notes"])
    # Had it looked at the live one, nothing would be pending.
    assert found["plan"]["migrations"]


@BOTH
def test_settings_of_another_database(project: ServerProject, run: Run) -> None:
    project.configure(NAME=project.server.scratch)
    found = run(state="applied")
    assert found["failed"]
    assert "another database would be migrated than is backed up" in found["msg"]
    assert columns(project, project.server.scratch) == set()


@POSTGRESQL
@pytest.mark.usefixtures("before")
def test_another_way_to_the_same_server_is_proved(project: ServerProject, run: Run) -> None:
    # The host's own name is no address of the loopback interface, as one can read; the server says that it is the same.
    live = {**project.server.database, "host": "127.0.0.2", "password": PASSWORD}
    project.configure(HOST="127.0.0.1")
    relay = Relay("127.0.0.2", project.server.port)
    try:
        assert not run(state="applied", live_database=live)["failed"]
        assert not run(state="verified", database=project.scratch_database, live_database=live)["failed"]
        project.server.sql("CREATE DATABASE twin OWNER app TEMPLATE template0")
        project.configure(NAME="twin")
        found = run(state="applied", live_database={**live, "name": "twin"})
        assert not found["failed"], found
        found = run(state="applied", live_database=live)
        assert "another database would be migrated" in found["msg"]
    finally:
        relay.close()
        project.server.sql("DROP DATABASE IF EXISTS twin WITH (FORCE)")


@BOTH
def test_the_live_database_is_no_scratch(project: ServerProject, run: Run) -> None:
    found = run(state="verified", database=project.server.database)
    assert found["failed"]
    assert "which is app_database itself" in found["msg"]


@POSTGRESQL
@pytest.mark.usefixtures("before")
def test_a_wrapper_of_a_backend_is_known_by_its_vendor(project: ServerProject, run: Run) -> None:
    project.write("shop/wrapper/__init__.py", "")
    project.write("shop/wrapper/base.py", "from django.db.backends.postgresql.base import DatabaseWrapper\n")
    project.configure(ENGINE="shop.wrapper")
    assert not run(state="planned", database=project.scratch_database)["failed"]
    assert not run(state="applied")["failed"]


# --- who else is there ---


@pytest.mark.long
@BOTH
@pytest.mark.usefixtures("before")
def test_another_migration_at_the_same_time(
    project: ServerProject, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    del monkeypatch
    project.migration("0002_note", "0001_initial", ADD)
    other = project.server.connect()
    with other.cursor() as cursor:
        if project.server.engine == "postgresql":
            cursor.execute(f"SELECT pg_advisory_lock({0x72756E62}, 1)")
            holder = "application_name 'somebody'"
        else:
            from ansible_collections.runbook.deploy.plugins.module_utils._agent_session import lock_name

            cursor.execute("SELECT GET_LOCK(%s, 0)", (lock_name("shop"),))
            holder = f"the connection {other.thread_id()}"
    found = run(state="applied")
    other.close()
    assert found["failed"]
    assert "another migration holds the lock of this database" in found["msg"]
    assert holder in found["msg"]
    assert columns(project) == {"id", "number"}
    assert found["live_changed"] is False
    assert not run(state="applied")["failed"]
    assert columns(project) == {"id", "number", "note"}


@BOTH
@pytest.mark.usefixtures("before")
def test_a_migration_that_closes_the_connection(project: ServerProject, run: Run) -> None:
    if project.server.engine == "postgresql":
        limit, wanted = 'cursor.execute("SHOW lock_timeout")', "2s"
    else:
        limit, wanted = 'cursor.execute("SELECT @@lock_wait_timeout")', "2"
    code = (
        "def close(apps, editor):\n    editor.connection.close()\n    with editor.connection.cursor() as cursor:\n"
        f"        {limit}\n        found = str(cursor.fetchone()[0])\n        assert found == {wanted!r}, found\n\n\n"
    )
    project.migration("0002_close", "0001_initial", "migrations.RunPython(close)", code=code, atomic=False)
    project.migration("0003_note", "0002_close", ADD)
    found = run(state="applied", lock_timeout=2)
    assert found["failed"]
    # The limits are there again; the lock is not, and somebody else may have it.
    assert "lost the lock of the migrations" in found["msg"]
    assert found["heads"]["orders"] == ["0002_close"]
    assert columns(project) == {"id", "number"}
    assert not run(state="applied")["failed"]


@BOTH
@pytest.mark.usefixtures("before")
def test_a_lock_that_is_not_given(project: ServerProject, run: Run) -> None:
    project.migration("0002_note", "0001_initial", ADD)
    other = project.server.connect()
    with other.cursor() as cursor:
        # An open transaction that has read the table is enough.
        cursor.execute("SELECT * FROM orders_order")
    begun = time.monotonic()
    found = run(state="applied", lock_timeout=1)
    assert time.monotonic() - begun < 20
    assert found["failed"]
    assert "could not be applied" in found["msg"]
    assert columns(project) == {"id", "number"}
    if project.server.engine == "postgresql":
        assert "in 3 attempts" in found["msg"]
        assert f"session {other.info.backend_pid} (role app, somebody, idle in transaction" in found["msg"]
        assert found["live_changed"] is False
    else:
        assert "nothing in it was executed" in found["msg"]
    other.close()


@POSTGRESQL
@pytest.mark.usefixtures("before")
def test_a_lock_that_is_given_later(project: ServerProject, run: Run) -> None:
    project.migration("0002_note", "0001_initial", ADD)
    other = project.server.connect()
    with other.cursor() as cursor:
        cursor.execute("SELECT * FROM orders_order")
    timer = threading.Timer(3.0, other.close)
    timer.start()
    found = run(state="applied", lock_timeout=1)
    timer.join()
    assert not found["failed"], found
    assert columns(project) == {"id", "number", "note"}


@POSTGRESQL
@pytest.mark.usefixtures("before")
def test_a_pooler_in_transaction_mode_is_refused(project: ServerProject, run: Run) -> None:
    project.migration("0002_note", "0001_initial", ADD)
    for mode, refused in (("transaction", True), ("session", False)):
        with pooling(project.server, mode) as port:
            project.configure(PORT=port, DISABLE_SERVER_SIDE_CURSORS=True)
            found = run(state="applied", live_database={**project.server.database, "port": port})
        assert found["failed"] is refused, found
        if refused:
            assert "gives each transaction another session" in found["msg"]
            assert columns(project) == {"id", "number"}
    assert columns(project) == {"id", "number", "note"}


# --- half way ---


@MARIADB
@pytest.mark.usefixtures("before")
def test_half_a_migration_is_described(project: ServerProject, run: Run) -> None:
    operations = (
        f'{ADD}, migrations.RunSQL(["create table extra (x int)", "insert into nowhere values (\'{PASSWORD}\')"]), '
        'migrations.AddField("order", "more", models.TextField(null=True))'
    )
    project.migration("0002_half", "0001_initial", operations)
    found = run(state="applied")
    assert found["failed"]
    assert found["failed_migration"] == ["orders", "0002_half"]
    operation = found["failed_operation"]
    assert (operation["index"], operation["of"], operation["deferred"]) == (2, 3, False)
    assert operation["statements"] == ["create table extra (x int)"]
    assert (
        "stopped in its operation 2 of 3 (Raw SQL operation), of which the 1 before remain done"
        in found["msg"]
    )
    assert found["live_changed"] is True
    # What it says is what is there.
    assert columns(project) == {"id", "number", "note"}
    assert project.server.sql("SHOW TABLES LIKE 'extra'") == [["extra"]]
    assert found["heads"]["orders"] == ["0001_initial"]


@POSTGRESQL
@pytest.mark.usefixtures("before")
def test_postgresql_takes_back_the_whole_migration(project: ServerProject, run: Run) -> None:
    operations = f'{ADD}, migrations.RunSQL("select * from nowhere")'
    project.migration("0002_half", "0001_initial", operations)
    found = run(state="applied")
    assert found["failed"]
    assert "rolled back, so nothing of it remains" in found["msg"]
    assert found["failed_operation"]["index"] == 2
    assert columns(project) == {"id", "number"}
    assert found["live_changed"] is False


@POSTGRESQL
@pytest.mark.usefixtures("before")
def test_an_invalid_index_is_named(project: ServerProject, run: Run) -> None:
    statement = "create unique index concurrently one on orders_order (number)"
    project.migration("0002_one", "0001_initial", f'migrations.RunSQL("{statement}")', atomic=False)
    found = run(state="applied")
    assert found["failed"]
    assert "it left the unusable index public.one on orders_order" in found["msg"]
    project.migration("0002_one", "0001_initial", ADD)
    found = run(state="applied")
    assert not found["failed"], found
    assert any("public.one on orders_order is invalid" in text for text in found["notes"])


@BOTH
@pytest.mark.usefixtures("before")
def test_the_server_dies_during_a_migration(project: ServerProject, run: Run) -> None:
    sleep = "pg_sleep(30)" if project.server.engine == "postgresql" else "sleep(30)"
    project.migration("0002_note", "0001_initial", ADD)
    project.migration("0003_slow", "0002_note", f'migrations.RunSQL("select {sleep}")')

    def end() -> None:
        deadline = time.monotonic() + 20
        while ("0002_note",) not in project.rows("SELECT name FROM django_migrations"):
            assert time.monotonic() < deadline
        time.sleep(0.5)
        project.server.kill()
        project.server.start()

    thread = threading.Thread(target=end)
    thread.start()
    found = run(state="applied")
    thread.join()
    assert found["failed"]
    assert found["failed_migration"] == ["orders", "0003_slow"]
    # Read from the server that has come back.
    assert found["heads"]["orders"] == ["0002_note"]
    assert found["done"] == [["orders", "0002_note"]]
    assert columns(project) == {"id", "number", "note"}


@POSTGRESQL
@pytest.mark.usefixtures("before")
def test_the_server_does_not_go_on_after_the_time_limit(project: ServerProject, run: Run) -> None:
    if int(project.server.sql("SHOW server_version_num")[0][0]) < 140000:
        pytest.skip("PostgreSQL looks after its client since version 14")
    project.migration("0002_slow", "0001_initial", 'migrations.RunSQL("select pg_sleep(60)")', atomic=False)
    found = run(state="applied", time_limit=3)
    assert found["failed"]
    assert "within 3 seconds" in found["msg"]
    deadline = time.monotonic() + 5
    statement = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state = 'active'"
    while project.server.sql(statement) != [["0"]]:
        assert time.monotonic() < deadline
        time.sleep(0.2)


# --- one app, one migration ---


@POSTGRESQL
def test_one_app_and_one_migration(project: ServerProject, run: Run) -> None:
    project.migration("0002_note", "0001_initial", ADD)
    project.migration("0003_more", "0002_note", 'migrations.RunSQL("create table more (x int)")')
    found = run(state="planned", target="orders.0002")
    assert [entry["name"] for entry in found["plan"]["migrations"]] == ["0001_initial", "0002_note"]
    assert ["orders", "0003_more"] in found["plan"]["remaining"]
    done = run(state="applied", target="orders.0002_note", plan=found["plan"]["migrations"])
    assert not done["failed"], done
    assert done["heads"] == {"orders": ["0002_note"]}
    assert any("orders.0003_more" in text for text in done["notes"])
    wrong = run(state="applied", target="orders.0001_initial")
    assert wrong["failed"]
    assert "would take orders.0002_note back" in wrong["msg"]
    assert run(state="applied", app="nosuch")["msg"].count("no app 'nosuch' with migrations") == 1
    rest = run(state="applied", app="orders")
    assert rest["heads"] == {"orders": ["0003_more"]}
    # Of the app that nobody asked for nothing was applied.
    assert project.rows("SELECT count(*) FROM django_migrations WHERE app = 'contenttypes'") == [("0",)]
