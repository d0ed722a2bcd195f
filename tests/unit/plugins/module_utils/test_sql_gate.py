# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gate of SQL against real servers and files: what each answer and each fault is taken for, and that nothing is written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils import _sql_gate as gate
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._sql_session import (
    ROWS,
    Answer,
    mysql_kind,
    read_xml,
    require_one_reading,
    session_of,
)
from ansible_collections.runbook.deploy.plugins.module_utils._sql_spec import judge_query, parse_check
from ansible_collections.runbook.deploy.plugins.modules import sql_gate
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_servers import (
    PASSWORD,
    serving,
)

ENGINES = ("postgresql", "mysql", "sqlite")
SCHEMA = (
    "CREATE TABLE orders (id integer PRIMARY KEY, state varchar(20), total integer)",
    "CREATE INDEX orders_state_idx ON orders (state)",
    "INSERT INTO orders VALUES (1, 'paid', 10), (2, 'NULL', 20), (3, NULL, NULL), (4, '', 7)",
    "CREATE TABLE empty_table (id integer)",
)


class Place:
    """A database with ``SCHEMA`` and what a test needs to look at it from outside."""

    def __init__(self, engine: str, database: dict[str, Any], server: Any = None) -> None:
        self.engine = engine
        self.database = database
        self.server = server

    def outside(self, statement: str) -> list[Any]:
        """Run *statement* as the application itself."""
        if self.engine == "sqlite":
            with contextlib.closing(sqlite3.connect(self.database["path"])) as file:
                rows = file.execute(statement).fetchall()
                file.commit()
                return rows
        connection = self.server.connect()
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                rows = list(cursor.fetchall()) if cursor.description else []
            connection.commit()
            return rows
        finally:
            connection.close()


@pytest.fixture(scope="module", params=ENGINES)
def place(request: Any, tmp_path_factory: Any) -> Iterator[Place]:
    with contextlib.ExitStack() as stack:
        if request.param == "sqlite":
            path = tmp_path_factory.mktemp("db") / "db.sqlite3"
            found = Place("sqlite", {"engine": "sqlite", "path": str(path)})
        else:
            server = stack.enter_context(serving(request.param))
            server.clean()
            found = Place(request.param, {**server.database, "password": PASSWORD}, server)
        for statement in SCHEMA:
            found.outside(statement)
        yield found


def options(place: Place | dict[str, Any], **given: Any) -> dict[str, Any]:
    database = place.database if isinstance(place, Place) else place
    defaults = {name: spec.get("default") for name, spec in gate.OPTIONS.items()}
    return {**defaults, "database": database, **given}


def ask(
    place: Place | dict[str, Any], check: dict[str, Any], seconds: float = 20.0, **given: Any
) -> dict[str, Any]:
    (found,) = gate.prober(options(place, checks=[check], **given), False)(seconds)
    return found


@pytest.mark.parametrize(
    ("check", "verdict", "said"),
    [
        ({"query": "SELECT count(*) FROM orders", "value": "< 5"}, "pass", ""),
        ({"query": "SELECT count(*) FROM orders;", "value": 4}, "pass", ""),
        ({"query": "SELECT count(*) FROM orders", "value": "< 4"}, "fail", "the value is"),
        ({"query": "SELECT id, state FROM orders", "rows": 4}, "pass", ""),
        ({"query": "SELECT id, state FROM orders", "rows": "> 4"}, "fail", "there are 4 rows"),
        ({"query": "SELECT id FROM empty_table", "rows": "0"}, "pass", ""),
        ({"query": "SELECT id FROM empty_table", "rows": 1}, "fail", "there are 0 rows"),
        ({"query": "SELECT id FROM empty_table", "value": "< 5"}, "inconclusive", "there is no row"),
        ({"query": "SELECT id FROM empty_table", "value": None}, "pass", ""),
        ({"query": "SELECT id FROM empty_table", "contains": "x"}, "inconclusive", "there is no row"),
        ({"query": "SELECT id FROM empty_table", "absent": "x"}, "inconclusive", "there is no row"),
        ({"query": "SELECT max(id) FROM empty_table", "value": "< 5"}, "inconclusive", "is NULL"),
        ({"query": "SELECT max(id) FROM empty_table", "value": "absent"}, "pass", ""),
        ({"query": "SELECT 5", "value": "absent"}, "fail", "the value is"),
        ({"query": "SELECT state FROM orders WHERE id = 2", "value": "== NULL"}, "pass", ""),
        ({"query": "SELECT state FROM orders WHERE id = 4", "value": "== "}, "pass", ""),
        (
            {"query": "SELECT id, total FROM orders WHERE id < 3", "column": "total", "value": ">= 10"},
            "pass",
            "",
        ),
        (
            {"query": "SELECT id, total FROM orders WHERE id < 3", "column": "total", "value": "< 15"},
            "fail",
            "in row 2",
        ),
        ({"query": "SELECT total FROM orders", "value": "> 0"}, "inconclusive", "in row 3 is NULL"),
        (
            {"query": "SELECT id FROM orders", "column": "ident", "value": 1},
            "fail",
            "no column 'ident', only id",
        ),
        ({"query": "SELECT state FROM orders", "contains": "paid", "absent": ["lost"]}, "pass", ""),
        ({"query": "SELECT state FROM orders", "contains": "sent"}, "fail", "'sent' is not in it"),
        ({"query": "SELECT state FROM orders", "absent": "paid"}, "fail", "'paid' is in it"),
        ({"query": "WITH a AS (SELECT 3 AS b) SELECT b FROM a", "column": "b", "value": 3}, "pass", ""),
        ({"query": "SELECT 'a;b' AS x -- why\n", "value": "a;b"}, "pass", ""),
        ({"query": "SELECT 'it''s \"é\", <b>&\n2' AS x", "contains": 'it\'s "é", <b>&\n2'}, "pass", ""),
        ({"query": "SELECT id FROM missing_table", "rows": 0}, "inconclusive", "refused it"),
        ({"query": "SELECT no such syntax here", "rows": 0}, "inconclusive", "refused it"),
        ({"query": "SELECT 1; SELECT 2", "value": "> 0"}, "inconclusive", "refused it"),
        ({"query": "SELECT 1", "value": 1, "max_seconds": 0.000001}, "fail", "more than 1e-06 s"),
        ({"table": "orders"}, "pass", ""),
        ({"table": "orders", "rows": 4, "columns": ["id", "total"], "index": "orders_state_idx"}, "pass", ""),
        ({"table": "orders", "rows": "> 100"}, "fail", "it has 4 rows"),
        ({"table": "orders", "columns": ["id", "price"]}, "fail", "no column price"),
        (
            {"table": "orders", "index": ["orders_state_idx", "orders_total_idx"]},
            "fail",
            "orders_total_idx is not there",
        ),
        ({"table": "orders", "indexes": "< 1"}, "fail", "orders_state_idx"),
        ({"table": "missing_table"}, "fail", "none that this user may see"),
        ({"table": "missing_table", "rows": 0}, "fail", "none that this user may see"),
        ({"table": "it's `a\" \\ name"}, "fail", "none that this user may see"),
        ({"index": "orders_state_idx"}, "pass", ""),
        ({"index": "orders_total_idx"}, "fail", "there is none"),
        ({"reachable": True, "max_seconds": 10}, "pass", ""),
    ],
)
def test_each_answer_has_its_verdict(place, check, verdict, said):
    found = ask(place, {"name": "it", **check})
    assert found["verdict"] == verdict, found
    assert said in found["message"]
    assert bool(found["message"]) is (verdict != "pass")
    assert PASSWORD not in json.dumps(found)


WRITES = (
    "INSERT INTO orders VALUES (9, 'x', 1)",
    "UPDATE orders SET total = 0",
    "DROP TABLE orders",
    "SELECT 1; DELETE FROM orders",
    "SELECT 1; COMMIT; DELETE FROM orders",
    "WITH a AS (SELECT 1) DELETE FROM orders",
    "EXPLAIN SELECT 1; DELETE FROM orders",
    "COMMIT",
    "SET x = 1",
)
ENGINE_WRITES = {
    "postgresql": (
        "WITH gone AS (DELETE FROM orders RETURNING id) SELECT id FROM gone",
        "SELECT * INTO copied FROM orders",
        "EXPLAIN ANALYZE DELETE FROM orders",
        "SELECT nextval('counting')",
        "SELECT lo_create(4711)",
        "SELECT set_config('transaction_read_only', 'off', false)",
        "SELECT writes()",
        "\\! touch {mark}",
        "SELECT 1 \\g | touch {mark}",
        "SELECT 1' ; DELETE FROM orders; --",
        "COPY orders TO PROGRAM 'touch {mark}'",
    ),
    "mysql": (
        "SELECT id FROM orders INTO OUTFILE '{mark}'",
        "SELECT id FROM orders INTO/**/OUTFILE '{mark}'",
        "SELECT writes()",
        "\\! touch {mark}",
        "SELECT 1 \\! touch {mark}\n",
        "SELECT 1\nsystem touch {mark};",
        "SELECT 1 \\g DELETE FROM orders",
        "SELECT 1' ; DELETE FROM orders; -- ",
        "/*!50000 DELETE FROM orders */",
        "SELECT 1 /*!50000 ; DELETE FROM orders */",
        "SHUTDOWN",
        "KILL 1",
    ),
    "sqlite": (
        "WITH a AS (SELECT 1) INSERT INTO orders SELECT 9, 'x', 1",
        "PRAGMA user_version = 7",
        "UPDATE sqlite_master SET sql = ''",
        "PRAGMA journal_mode = WAL",
        "ATTACH '{mark}' AS other",
        "VACUUM INTO '{mark}'",
        "SELECT load_extension('{mark}')",
        "SELECT writefile('{mark}', 'x')",
    ),
}

# What is answered all the same, and changes nothing: it is rolled back.
UNDONE = ("set_config", "lo_create", "/*!50000 ;")


def test_nothing_is_ever_written(place, tmp_path):
    if place.engine == "postgresql":
        place.outside("CREATE SEQUENCE IF NOT EXISTS counting")
        place.outside(
            "CREATE OR REPLACE FUNCTION writes() RETURNS int LANGUAGE sql AS 'DELETE FROM orders; SELECT 1'"
        )
    if place.engine == "mysql":
        place.outside("DROP FUNCTION IF EXISTS writes")
        place.outside(
            "CREATE FUNCTION writes() RETURNS int MODIFIES SQL DATA BEGIN DELETE FROM orders; RETURN 1; END"
        )
    mark = tmp_path / "mark"
    before = place.outside("SELECT * FROM orders ORDER BY id")
    file = Path(place.database["path"]).read_bytes() if place.engine == "sqlite" else b""
    passed = []
    for statement in (*WRITES, *ENGINE_WRITES[place.engine]):
        statement = statement.replace("{mark}", str(mark))
        for name in ("as it is", "past our own look at it"):
            with contextlib.suppress(Problem), pytest.MonkeyPatch.context() as patch:
                if name != "as it is":
                    patch.setattr(
                        "ansible_collections.runbook.deploy.plugins.module_utils._sql_spec.require_one_reading",
                        lambda sql, _engine, _where: sql,
                    )
                    if "OUTFILE" in statement or statement in ("SHUTDOWN", "KILL 1", "COMMIT"):
                        # These the server would do, if the user may: only our look keeps them off.
                        continue
                found = ask(place, {"query": statement, "value": "> -1"})
                passed += [(statement, name)] if found["verdict"] == "pass" else []
            assert place.outside("SELECT * FROM orders ORDER BY id") == before, (statement, name)
            assert not mark.exists(), (statement, name)
    assert [item for item in passed if not any(word in item[0] for word in UNDONE)] == []
    if place.engine == "sqlite":
        assert Path(place.database["path"]).read_bytes() == file
        assert os.listdir(Path(place.database["path"]).parent) == ["db.sqlite3"]
    if place.engine == "postgresql":
        assert place.outside("SELECT is_called FROM counting") == [(False,)]
        assert place.outside("SELECT count(*) FROM pg_largeobject_metadata") == [(0,)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "sql", ["SELECT 1 INTO OUTFILE '/x'", "KILL 5", "CALL x()", "", "  ;; ", "/*!50000 KILL 5 */", "SELECT\0"]
)
def test_what_only_we_can_refuse_is_refused(sql, engine):
    with pytest.raises(Problem, match=r"^here "):
        require_one_reading(sql, engine, "here")


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({}, "0 subjects"),
        ({"qery": "SELECT 1"}, "did you mean 'query'"),
        ({"query": "SELECT 1", "table": "x"}, "2 subjects"),
        ({"query": "SELECT 1"}, "expects nothing"),
        ({"query": "SELECT 1", "column": "a"}, "expects nothing"),
        ({"query": "SELECT 1", "column": "a", "rows": 1}, "no value"),
        ({"query": "SELECT 1", "valeu": 1}, "did you mean 'value'"),
        ({"query": "SELECT 1", "rows": "many"}, "number or a condition"),
        ({"query": "SELECT 1", "rows": "< x"}, "expected a number"),
        ({"query": "SELECT 1", "value": [1]}, "value or a condition"),
        ({"query": "DELETE FROM x", "rows": 0}, "only reads"),
        ({"query": 5, "rows": 0}, "must be a text"),
        ({"table": "x", "columns": []}, "empty list"),
        ({"table": ""}, "must be a text"),
        ({"reachable": False}, "must be true"),
        ({"connections": "few"}, "SQLite|number or a condition"),
        ({"table": "x", "severity": "bad"}, "severity"),
    ],
)
def test_a_typing_error_is_found_before_anything_is_asked(check, said):
    for engine in ENGINES:
        database = {"engine": engine, "name": "x", "path": "/nowhere/x"}
        with pytest.raises(Problem, match=rf"^checks\[0\].*({said})"):
            gate.prober(options(database, checks=[check]), False)


def test_a_gate_needs_a_database_that_it_knows():
    for database, said in (
        (None, "needs a database"),
        ({"engine": None}, "needs a database"),
        ({"engine": "oracle"}, "found 'oracle'"),
        ({"engine": "postgresql"}, "name is missing"),
        ({"engine": "sqlite"}, "path is missing"),
    ):
        with pytest.raises(Problem, match=said):
            gate.prober(options(database, checks=[]), False)
    with pytest.raises(Problem, match="has no server"):
        gate.prober(options({"engine": "sqlite", "path": "/x"}, checks=[{"pool": "< 80%"}]), False)


# What a server tells of itself


@pytest.fixture
def server(place):
    if place.engine == "sqlite":
        pytest.skip("SQLite has no server")
    return place


def test_connections_and_the_pool_are_those_of_others(server):
    counted = int(ask(server, {"connections": "> -1"})["observed"].split()[3])
    held = [server.server.connect() for _number in range(3)]
    try:
        assert ask(server, {"connections": counted + 3})["verdict"] == "pass"
        found = ask(server, {"connections": f"< {counted + 3}"})
        assert (found["verdict"], f"{counted + 3} connections" in found["message"]) == ("fail", True)
        # All at the same time, and yet none of ours is counted.
        checks = [
            {"connections": counted + 3},
            {"pool": "> 0%"},
            *({"reachable": True} for _number in range(6)),
        ]
        results = gate.prober(options(server, checks=checks), False)(20)
        assert [found["verdict"] for found in results] == ["pass"] * 8, results
        found = ask(server, {"pool": "> 50%"})
        assert (found["verdict"], "connections are in use" in found["message"]) == ("fail", True)
    finally:
        for connection in held:
            connection.close()


# A query that is there until somebody ends it, where it runs, and how it is ended; both for the administrator.
LASTING = {
    "postgresql": "SELECT pg_sleep(100)",
    "mysql": "SELECT sleep(100)",
}
RUNS = {
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(100)' AND state = 'active' "
    "AND now() - query_start > interval '1.2 s'",
    # Whole seconds, cut off.
    "mysql": "SELECT id FROM information_schema.processlist WHERE info = 'SELECT sleep(100)' AND time >= 2",
}
END = {"postgresql": "SELECT pg_cancel_backend({})", "mysql": "KILL QUERY {}"}


@contextlib.contextmanager
def lasting(place, run) -> Iterator[None]:
    """Let *run* make a query that has lasted for more than a second, and end it."""

    def work() -> None:
        # What becomes of it when it is ended is the driver's own affair.
        with contextlib.suppress(Exception):
            run(LASTING[place.engine])

    worker = threading.Thread(target=work)
    worker.start()
    deadline = time.monotonic() + 60
    while not (found := place.server.sql(RUNS[place.engine])):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    try:
        yield
    finally:
        place.server.sql(END[place.engine].format(found[0][0]))
        worker.join()


def test_slow_queries_are_seen_and_a_hidden_session_is_no_pass(server):
    check = {"slow_queries": "< 1", "longer_than": 1}
    assert ask(server, check)["verdict"] == "pass"
    with lasting(server, server.outside):
        found = ask(server, check)
    assert (found["verdict"], "1 queries have run" in found["message"]) == ("fail", True), found
    # The administrator's session, which the application's user may not look into.
    with lasting(server, server.server.sql):
        found = ask(server, check)
    assert (found["verdict"], "may not see" in found["message"]) == ("inconclusive", True), found


def test_an_invalid_index_is_none(place):
    if place.engine != "postgresql":
        pytest.skip("only PostgreSQL leaves invalid indexes")
    place.outside("CREATE INDEX broken_idx ON orders (total)")
    place.server.sql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'broken_idx'::regclass")
    try:
        assert ask(place, {"index": "broken_idx"})["verdict"] == "fail"
        assert "is invalid" in ask(place, {"table": "orders", "index": "broken_idx"})["message"]
        assert ask(place, {"table": "orders", "indexes": 2})["verdict"] == "pass"
    finally:
        place.outside("DROP INDEX broken_idx")


def test_schemas_odd_names_and_true_and_false(place):
    if place.engine == "postgresql":
        place.outside("CREATE SCHEMA side")
        place.outside('CREATE TABLE side."Odd ""Name" (a int)')
        assert ask(place, {"table": 'side.Odd "Name', "rows": 0, "columns": "a"})["verdict"] == "pass"
        assert ask(place, {"table": 'Odd "Name'})["verdict"] == "fail"
        assert ask(place, {"query": "SELECT 'NaN'::float8", "value": "< 5"})["verdict"] == "inconclusive"
        assert ask(place, {"query": "SHOW server_version", "value": "exists"})["verdict"] == "pass"
    else:
        place.outside("CREATE TABLE `odd name` (a int)")
        assert ask(place, {"table": "odd name", "rows": 0, "columns": "a"})["verdict"] == "pass"
    if place.engine == "mysql":
        assert ask(place, {"query": "SHOW TABLES LIKE 'orders'", "rows": 1})["verdict"] == "pass"
        assert ask(place, {"table": "shop.orders", "rows": 4})["verdict"] == "pass"
    assert ask(place, {"query": "SELECT 2 > 1", "value": True})["verdict"] == "pass"
    assert ask(place, {"query": "SELECT 2 > 1", "value": False})["verdict"] == "fail"


# Bounds


def endless(engine: str) -> str:
    if engine == "mysql" and os.environ.get("MYSQL_BIN"):
        # MySQL has no such sequences.
        numbers = "JSON_TABLE(CONCAT('[1', REPEAT(',1', 99999), ']'), '$[*]' COLUMNS (seq FOR ORDINALITY))"
        return f"SELECT a.seq FROM {numbers} AS a"
    if engine == "mysql":
        return "SELECT a.seq FROM seq_1_to_100000 a, seq_1_to_100000 b"
    if engine == "postgresql":
        return "SELECT generate_series(1, 100000000000) AS a"
    return "WITH RECURSIVE a(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM a) SELECT n FROM a"


def test_an_endless_answer_is_bounded(place):
    begun = time.monotonic()
    found = ask(place, {"query": endless(place.engine), "value": "> 0"})
    assert (found["verdict"], "more rows than" in found["message"]) == ("inconclusive", True)
    assert ask(place, {"query": endless(place.engine), "value": "< 1"})["verdict"] == "fail"
    assert ask(place, {"query": endless(place.engine), "rows": "> 10"})["verdict"] == "pass"
    assert ask(place, {"query": endless(place.engine), "rows": "< 10"})["verdict"] == "fail"
    assert ask(place, {"query": endless(place.engine), "rows": "> 5000"})["verdict"] == "inconclusive"
    assert time.monotonic() - begun < 60


def test_a_huge_value_is_no_answer(place):
    huge = {
        "postgresql": "SELECT repeat('x', 30000000)",
        "mysql": "SELECT repeat('x', 10000000)",
        "sqlite": "SELECT hex(zeroblob(10000000))",
    }[place.engine]
    found = ask(place, {"query": huge, "contains": "x"})
    assert (found["verdict"], "more than 524288 bytes" in found["message"]) == ("inconclusive", True)
    assert len(json.dumps(found)) < 3000


def slow_sql(engine: str) -> str:
    counted = "SELECT count(*) FROM a AS x, a AS y"
    recursive = f"WITH RECURSIVE a(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM a WHERE n < 100000) {counted}"
    return {
        "postgresql": "SELECT pg_sleep(30)",
        "mysql": "SELECT sleep(30) FROM orders",
        "sqlite": recursive,
    }[engine]


def test_what_takes_too_long_ends_here_and_on_the_server(place):
    begun = time.monotonic()
    found = ask(place, {"query": slow_sql(place.engine), "value": 0, "timeout": 1})
    assert time.monotonic() - begun < 20
    assert (found["verdict"], "no answer within" in found["message"] or "time" in found["message"]) == (
        "inconclusive",
        True,
    )
    found = ask(place, {"query": slow_sql(place.engine), "value": 0, "timeout": 1, "max_seconds": 0.5})
    assert found["verdict"] == "fail"
    begun = time.monotonic()
    with pytest.raises(Problem):
        checks = [{"query": slow_sql(place.engine), "value": 0}]
        gate.perform(options(place, checks=checks, deadline=1.5, waivers=[]), False, print)
    # By themselves they would end after 30 s.
    assert time.monotonic() - begun < 20
    left = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'FETCH%' AND state = 'active'",
        "mysql": "SELECT count(*) FROM information_schema.processlist WHERE info LIKE '%sleep(30)%' "
        "AND id <> connection_id()",
    }.get(place.engine)
    while left and place.server.sql(left) != [["0"]]:
        assert time.monotonic() - begun < 20
        time.sleep(0.05)


def test_a_lock_of_somebody_else_is_not_waited_for_longer(place):
    if place.engine == "sqlite":
        holder = sqlite3.connect(place.database["path"], isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
    else:
        holder = place.server.connect()
        with holder.cursor() as cursor:
            cursor.execute(
                "LOCK TABLE orders IN ACCESS EXCLUSIVE MODE"
                if place.engine == "postgresql"
                else "LOCK TABLES orders WRITE"
            )
    try:
        begun = time.monotonic()
        found = ask(place, {"query": "SELECT count(*) FROM orders", "value": 4, "timeout": 1})
        assert time.monotonic() - begun < 2.0
        assert found["verdict"] == "inconclusive", found
    finally:
        holder.close()
    assert ask(place, {"query": "SELECT count(*) FROM orders", "value": 4})["verdict"] == "pass"


# A database that does not answer

QUERY = {"query": "SELECT 1", "value": 1}


class Silent:
    """Listens, and does with each connection what *act* does; without one it says nothing."""

    def __init__(self, act: Any = None) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.act = act
        self.held: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = self.listener.accept()[0]
                self.held.append(connection)
                if self.act:
                    self.act(connection)

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *details: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.held:
            connection.close()


ACTS = {
    "hangs": None,
    "closes": lambda connection: connection.close(),
    "garbage": lambda connection: (connection.sendall(b"\xff" * 4000), connection.shutdown(socket.SHUT_WR)),
    "http": lambda connection: (
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        connection.shutdown(socket.SHUT_WR),
    ),
}


@pytest.mark.parametrize("engine", ["postgresql", "mysql"])
@pytest.mark.parametrize("fault", ["refused", *ACTS])
def test_a_server_that_does_not_answer(engine, fault):
    with Silent(ACTS.get(fault)) as silent:
        port = 1 if fault == "refused" else silent.port
        database = {
            "engine": engine,
            "name": "shop",
            "host": "127.0.0.1",
            "port": port,
            "user": "app",
            "password": PASSWORD,
        }
        for check, verdict in (
            (QUERY, "inconclusive"),
            ({"reachable": True}, "fail"),
            ({"table": "x"}, "inconclusive"),
        ):
            begun = time.monotonic()
            found = ask(database, {**check, "timeout": 1})
            assert time.monotonic() - begun < 20  # the other side waits for ever
            assert found["verdict"] == verdict, found
            assert PASSWORD not in json.dumps(found)


def test_who_may_not_come_in_and_what_is_not_there(server):
    wrong = {**server.database, "password": "wrong-password-of-ours"}
    if server.engine == "mysql":
        assert ask(wrong, QUERY)["verdict"] == "inconclusive"
        found = ask(wrong, {"reachable": True})
        assert (found["verdict"], "wrong-password" in json.dumps(found)) == ("fail", False)
    missing = {**server.database, "name": "no_such_database"}
    assert ask(missing, QUERY)["verdict"] == "inconclusive"
    assert ask(missing, {"reachable": True})["verdict"] == "fail"
    unknown = {**server.database, "host": "no-such-name.invalid"}
    assert ask(unknown, {"reachable": True})["verdict"] == "inconclusive"
    if not os.geteuid():
        socket_only = {"engine": server.engine, "name": "shop"}
        found = ask(socket_only, {"reachable": True}, user="no-such-user-here")
        assert (found["verdict"], "does not exist" in found["message"]) == ("inconclusive", True), found


def test_without_its_client_a_gate_is_inconclusive(server, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_words, **_options: None)
    for check in (QUERY, {"reachable": True}, {"pool": "< 80%"}):
        found = ask(server, check)
        assert (found["verdict"], "not installed" in found["message"]) == ("inconclusive", True)


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "text").write_text(
        "this is no database, but a text that is long enough to have a head\n" * 40
    )
    (tmp_path / "empty").touch()
    for name, said in (("missing", "no such file"), ("text", "not a database"), (".", "no such file")):
        database = {"engine": "sqlite", "path": str(tmp_path / name)}
        found = ask(database, QUERY)
        assert (found["verdict"], said in found["message"]) == ("inconclusive", True), found
        assert ask(database, {"reachable": True})["verdict"] == "fail"
    assert ask({"engine": "sqlite", "path": str(tmp_path / "empty")}, {"table": "x"})["verdict"] == "fail"
    assert sorted(os.listdir(tmp_path)) == ["empty", "text"]


def test_a_file_in_wal_mode_is_read_while_it_is_written(tmp_path):
    path = tmp_path / "db.sqlite3"
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("CREATE TABLE orders (id integer)")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("INSERT INTO orders VALUES (1)")
    database = {"engine": "sqlite", "path": str(path)}
    assert ask(database, {"table": "orders", "rows": 0})["verdict"] == "pass"
    writer.execute("COMMIT")
    assert ask(database, {"table": "orders", "rows": 1})["verdict"] == "pass"
    writer.close()


# The gate


def run_module(capsys: Any, check_mode: bool = False, **given: Any) -> dict[str, Any]:
    arguments = {"interval": 0.02, "deadline": 3, **given, "_ansible_check_mode": check_mode}
    with patch_module_args(arguments), pytest.raises(SystemExit) as ended:
        sql_gate.main()
    answer = json.loads(capsys.readouterr().out)
    assert bool(ended.value.code) is bool(answer.get("failed"))
    return answer


def test_the_module(place, capsys):
    check_mode = place.engine == "mysql"
    database = place.database
    checks = [{"table": "orders", "rows": 4}, {"query": "SELECT 1", "value": 1}]
    answer = run_module(capsys, check_mode, database=database, checks=checks, successes=2)
    assert (answer["passed"], answer["attempts"], answer["changed"]) == (True, 2, False)
    answer = run_module(
        capsys, check_mode, database=database, patience=0.1, checks=[{"table": "orders", "rows": 5}]
    )
    assert (answer["failed"], answer["verdict"]) == (True, "fail")
    assert "it has 4 rows" in answer["msg"]
    assert "Repeat: " in answer["msg"]
    assert PASSWORD not in json.dumps(answer)
    answer = run_module(
        capsys, check_mode, database=database, deadline=0.8, checks=[{"query": "SELECT x", "value": 1}]
    )
    assert (answer["failed"], answer["verdict"]) == (True, "inconclusive")
    answer = run_module(capsys, check_mode, database=database, deadline=0.2, checks=[])
    assert (answer["failed"], answer["verdict"]) == (True, "inconclusive")


def test_what_is_to_be_repeated_can_be(place):
    found = ask(place, {"query": "SELECT count(*) FROM orders WHERE state = 'paid'", "value": 1})
    command = found["repeat"].replace(" -p ", f" -p{PASSWORD} ")
    environment = {**os.environ, "PGPASSWORD": PASSWORD}
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=30, env=environment, check=False
    )
    assert (done.returncode, "1" in done.stdout) == (0, True), (command, done.stderr)


# Pure judgement


def test_a_long_answer_is_judged_by_what_is_known_of_it():
    rows = [[n] for n in range(ROWS)]
    answer = Answer(["n"], rows, True, 0.1)

    def verdict(**expects: Any) -> str:
        found = judge_query(parse_check({"query": "SELECT 1", **expects}, "it"), answer, "sqlite")
        return "fail" if found.wrong else "inconclusive" if found.unknown else "pass"

    assert verdict(rows=f"> {ROWS - 1}") == "pass"
    assert verdict(rows=f">= {ROWS + 1}") == "pass"
    assert verdict(rows=f"> {ROWS}") == "pass"
    assert verdict(rows=f"> {ROWS + 1}") == "inconclusive"
    assert verdict(rows=f"< {ROWS}") == "fail"
    assert verdict(rows=f"< {ROWS + 9}") == "inconclusive"
    assert verdict(rows=ROWS + 1) == "inconclusive"
    assert verdict(rows=ROWS + 500) == "inconclusive"
    assert verdict(rows=ROWS) == "fail"
    assert verdict(rows=f"!= {ROWS + 500}") == "inconclusive"
    assert verdict(rows=f"!= {ROWS}") == "pass"
    assert verdict(value=">= 0") == "inconclusive"
    assert verdict(value="> 0") == "fail"
    assert verdict(absent="no") == "inconclusive"


def test_the_xml_of_the_client_is_read():
    text = (
        '<?xml version="1.0"?>\n<resultset statement="x" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">\n'
        '  <row>\n\t<field name="a">1</field>\n\t<field name="b" xsi:nil="true" />\n\t<field name="c"></field>\n'
        '\t<field name="d">\x01 &lt;&amp;</field>\n  </row>\n</resultset>\n'
    )
    assert read_xml(text) == (["a", "b", "c", "d"], [["1", None, "", "� <&"]])
    assert read_xml("") == ([], [])
    assert mysql_kind("ERROR 2005 (HY000): Unknown server host") == "probe"
    assert mysql_kind("nothing known") == "statement"


def test_a_session_names_its_place_without_a_password():
    for database in (
        {
            "engine": "postgresql",
            "name": "shop",
            "host": "db",
            "port": 5432,
            "user": "app",
            "password": PASSWORD,
        },
        {"engine": "mysql", "name": "shop", "host": "/run/s", "user": "app", "password": PASSWORD},
    ):
        session = session_of(database, None)
        assert "shop" in session.place()
        assert PASSWORD not in session.place() + session.repeat("SELECT 1")
