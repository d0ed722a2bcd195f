# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups and restores of a real MariaDB server (or MySQL's own, by MYSQL_BIN): what is in them, what is lost, and what a fault leaves behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _backup, _former, _restore
from ansible_collections.runbook.deploy.plugins.module_utils import _mysql as mysql
from ansible_collections.runbook.deploy.plugins.module_utils import _mysql_client as client_of
from ansible_collections.runbook.deploy.plugins.module_utils import _mysql_dump as mysql_dump
from ansible_collections.runbook.deploy.plugins.module_utils import _mysql_restore as swapping
from ansible_collections.runbook.deploy.plugins.module_utils._database import Damaged, engine_of
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, write_json
from ansible_collections.runbook.deploy.plugins.module_utils._mysql_client import (
    Client,
    Login,
    advice,
    first_error,
    identifier,
    literal,
    option,
    version,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_servers import (
    PASSWORD,
    Server,
    serving,
)
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.mysql_server import OWN, portable

SCRATCH = "20261121T010101-abcd"
GRANT = r"GRANT ALL ON `runbook\\_%`.* TO app@'{host}'"
# Words that a parser of dumps would stumble over: parentheses, quotes, semicolons, newlines, bytes.
SCHEMA = (
    "CREATE TABLE django_migrations (id int AUTO_INCREMENT PRIMARY KEY, app text, name text, applied timestamp DEFAULT now())",
    "INSERT INTO django_migrations (app, name) VALUES ('shop', '0001_initial'), ('shop', '0002_note')",
    "CREATE TABLE note (id int AUTO_INCREMENT PRIMARY KEY, body varchar(200), data blob)",
    "INSERT INTO note (body, data) SELECT concat('x(y)''\\\\ ;\\n),(', seq), unhex('00ff27') FROM seq_1_to_500",
    "CREATE TABLE `odd ``name (x)` (a int, b int, PRIMARY KEY (a, b))",
    "INSERT INTO `odd ``name (x)` VALUES (1, 2)",
    "CREATE TABLE plain (words text)",
    "INSERT INTO plain VALUES ('x'), ('x')",
    "CREATE TABLE nothing (id int PRIMARY KEY)",
    "CREATE TABLE child (id int PRIMARY KEY, note_id int, CONSTRAINT fk FOREIGN KEY (note_id) REFERENCES note (id) ON DELETE CASCADE)",
    "INSERT INTO child VALUES (1, 7)",
    "CREATE VIEW few AS SELECT * FROM note WHERE id < 10",
    "CREATE TRIGGER loud BEFORE INSERT ON note FOR EACH ROW SET NEW.body = upper(NEW.body)",
    "CREATE PROCEDURE one() SELECT 1",
    "CREATE PROCEDURE two() BEGIN\nINSERT INTO `plain` VALUES ('y');\n-- Dump completed\nEND",
    *(
        [
            "CREATE TABLE past (id int PRIMARY KEY) COLLATE utf8mb4_0900_ai_ci",
            "INSERT INTO past VALUES (1)",
            "CREATE TABLE numbers (id int PRIMARY KEY, twice int AS (id * 2) STORED, words json, wide varchar(50) INVISIBLE)",
        ]
        if OWN
        else [
            "CREATE TABLE past (id int PRIMARY KEY) WITH SYSTEM VERSIONING",
            "INSERT INTO past VALUES (1)",
            "CREATE SEQUENCE numbers",
            "SELECT nextval(numbers)",
        ]
    ),
    "CREATE EVENT tick ON SCHEDULE EVERY 1 DAY DO DELETE FROM plain WHERE words = 'never'",
)
COUNTS = {
    "child": 1,
    "django_migrations": 2,
    "note": 500,
    "nothing": 0,
    "odd `name (x)": 1,
    "past": 1,
    "plain": 2,
    **({"numbers": 0} if OWN else {}),
}


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with serving("mysql") as server:
        for host in ("%", "localhost"):
            server.sql(GRANT.format(host=host).replace("\\\\", "\\"), None)
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    for (name,) in running.sql(
        "SELECT schema_name FROM information_schema.schemata WHERE schema_name REGEXP '^(shop_|runbook_)'",
        None,
    ):
        running.sql(f"DROP DATABASE `{name}`", None)
    running.clean()
    as_app(running, *SCHEMA)
    return running


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "srv").mkdir()
    return Layout(str(tmp_path / "srv"))


def as_app(server: Server, *statements: str, database: str = "shop") -> list[Any]:
    connection = server.connect(database)
    try:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(portable(statement))
            connection.commit()
            return list(cursor.fetchall())
    finally:
        connection.close()


def engine_for(server: Server, **changes: Any) -> mysql.Mysql:
    engine = engine_of({**server.database, "password": PASSWORD, **changes})
    assert isinstance(engine, mysql.Mysql)
    return engine


def request(**changes: Any) -> _backup.Request:
    return _backup.Request(**{"id": "b1", "kind": "manual", "framework": "django", **changes})


def take(layout: Layout, server: Server, engine: Any = None, **changes: Any) -> _backup.Taken:
    with _backup.backups_locked(layout):
        return _backup.take(layout, engine or engine_for(server), request(**changes))


def restore(layout: Layout, server: Server, consent: bool = False) -> dict[str, Any]:
    order = _restore.Order(backup="b1", consent=consent, user=None, timeout=5)
    with _backup.backups_locked(layout):
        return _restore.restore(layout, engine_for(server), order)


def databases(server: Server) -> list[str]:
    rows = server.sql(
        "SELECT schema_name FROM information_schema.schemata WHERE schema_name REGEXP '^(shop|runbook)' ORDER BY 1",
        None,
    )
    return [row[0] for row in rows if row[0] != server.scratch]


def leftovers(layout: Layout) -> list[str]:
    found = [path for place in (layout.backups, layout.scratch) if place.is_dir() for path in place.iterdir()]
    return sorted(path.name for path in found if path.name != ".lock")


# What a backup is


def test_a_backup_says_what_it_holds_and_is_proved(layout: Layout, server: Server) -> None:
    taken = take(layout, server)
    manifest = json.loads((taken.directory / "manifest.json").read_text())
    assert manifest["counts"] == COUNTS
    assert manifest["heads"] == {"shop": ["0002_note"]}
    assert {"view few", "trigger loud", "routine one", "event tick", "foreign key child.fk"} <= set(
        manifest["catalog"]
    )
    assert manifest["sha256"] == _backup.digest(taken.directory / manifest["file"])
    assert (taken.directory / manifest["file"]).stat().st_mode & 0o777 == 0o600
    assert databases(server) == ["shop"]
    assert leftovers(layout) == ["b1"]


def test_counts_are_those_of_the_dump_while_somebody_writes(layout: Layout, server: Server) -> None:
    stop, begun = threading.Event(), threading.Event()

    def write() -> None:
        connection = server.connect()
        with connection.cursor() as cursor:
            while not stop.is_set():
                cursor.execute("INSERT INTO note (body) VALUES ('more')")
                connection.commit()
                begun.set()
        connection.close()

    writer = threading.Thread(target=write)
    writer.start()
    assert begun.wait(10)
    try:
        for number in range(3):
            take(layout, server, id=f"w{number}")
    finally:
        stop.set()
        writer.join()
    counts = [
        json.loads((layout.backup(f"w{n}") / "manifest.json").read_text())["counts"]["note"] for n in range(3)
    ]
    assert counts[0] > 500 and counts == sorted(set(counts))


def test_the_scratch_is_left_for_the_new_code_and_found_by_its_note(layout: Layout, server: Server) -> None:
    taken = take(layout, server, scratch=SCRATCH)
    assert taken.scratch is not None
    assert taken.scratch["name"] in databases(server)
    assert PASSWORD not in json.dumps(taken.scratch)
    assert as_app(server, "SELECT count(*) FROM note", database=taken.scratch["name"]) == [(500,)]
    # An event of a copy would run beside the live one, and may name the live database.
    assert events(server, taken.scratch["name"]) == {"tick": "DISABLED"}
    _backup.forget_scratch(engine_for(server), layout.scratch / SCRATCH)
    assert databases(server) == ["shop"]
    assert leftovers(layout) == ["b1"]


@pytest.mark.parametrize("name", ["shop", "mysql", "runbook_scratch_"])
def test_a_note_that_names_anything_else_drops_nothing(layout: Layout, server: Server, name: str) -> None:
    directory = layout.scratch / SCRATCH
    directory.mkdir(parents=True)
    write_json(directory / "database.json", {"engine": "mysql", "name": name}, 0o600)
    with pytest.raises(Problem, match="nothing was dropped"):
        _backup.forget_scratch(engine_for(server), directory)
    assert "shop" in databases(server)


def test_a_missing_database_is_a_problem_and_an_empty_one_a_state(server: Server) -> None:
    with pytest.raises(Problem, match="'gone'.*(create it|grant)"):
        engine_for(server, name="gone").exists()
    server.sql("DROP DATABASE shop; CREATE DATABASE shop", None)
    assert not engine_for(server).exists()


def test_tables_without_transactions_are_refused_or_locked(layout: Layout, server: Server) -> None:
    as_app(server, "CREATE TABLE old (id int) ENGINE=MyISAM", "INSERT INTO old VALUES (1)")
    assert "old (MyISAM)" in engine_for(server).warnings()[0]
    with pytest.raises(Problem, match=r"old \(MyISAM\).*nontransactional: lock"):
        take(layout, server)
    assert leftovers(layout) == []
    taken = take(layout, server, engine_for(server, nontransactional="lock"))
    assert (taken.manifest["counts"]["old"], taken.manifest["nontransactional"]) == (1, ["old (MyISAM)"])


def test_no_password_is_in_a_command_line(
    layout: Layout, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    popen = subprocess.Popen

    class Watched(popen):  # type: ignore[misc,valid-type]
        def __init__(self, argv: Any, *arguments: Any, **more: Any) -> None:
            seen.append(" ".join(map(str, argv)) + str(more.get("env")))
            super().__init__(argv, *arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", Watched)
    take(layout, server)
    assert len(seen) > 5 and not any(PASSWORD in text for text in seen)


# Faults


def flip(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 0xFF]))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [cut, flip])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_damaged_dump_cannot_be_read_whole(
    layout: Layout, server: Server, damage: Any, compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compressed:
        found = shutil.which
        monkeypatch.setattr(
            mysql.shutil, "which", lambda name, **more: None if name == "zstd" else found(name, **more)
        )
    taken = take(layout, server, verify="read")
    dump = taken.directory / taken.manifest["file"]
    assert dump.name.endswith(".zst") == compressed
    assert engine_for(server).read_whole(dump) == COUNTS
    damage(dump)
    with pytest.raises(Damaged):
        engine_for(server).read_whole(dump)
    with pytest.raises(Problem, match="is damaged"):
        restore(layout, server, consent=True)
    assert databases(server) == ["shop"]


def test_a_full_disk_is_named_and_leaves_nothing(layout: Layout, server: Server) -> None:
    if os.geteuid():
        pytest.skip("only root can mount a small file system")
    as_app(server, "INSERT INTO note (body) SELECT sha2(seq * rand(), 256) FROM seq_1_to_150000")
    layout.backups.mkdir(mode=0o700)
    if os.system(f"mount -t tmpfs -o size=2m none {layout.backups}"):
        pytest.skip("no file system can be mounted here")
    try:
        engine = engine_for(server)
        engine.size = lambda: 1000  # type: ignore[method-assign]  # the estimate would find it before
        with pytest.raises(Problem, match="could not be written.*make room"):
            take(layout, server, engine)
        assert leftovers(layout) == []
    finally:
        os.system(f"umount {layout.backups}")
    assert databases(server) == ["shop"]


def test_a_server_that_dies_during_the_dump(
    layout: Layout, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = mysql_dump.Counter.line
    seen = []

    def die(self: Any, text: bytes) -> None:
        if not seen:
            seen.append(text)
            server.kill()
        line(self, text)

    monkeypatch.setattr(mysql_dump.Counter, "line", die)
    try:
        with pytest.raises(Problem, match="nothing live was changed|start the server"):
            take(layout, server)
    finally:
        server.start()
    assert leftovers(layout) == []
    assert as_app(server, "SELECT count(*) FROM note") == [(500,)]


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE plain ADD COLUMN more int",
        "CREATE TABLE added (id int PRIMARY KEY)",
        "DROP TRIGGER loud",
    ],
)
def test_a_schema_that_is_changed_while_it_is_dumped_makes_no_backup(
    layout: Layout, server: Server, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    write = mysql.Mysql._write

    def change_after(self: Any, *arguments: Any) -> None:
        # What was changed at the beginning a dump may hold empty, what was changed at its end not at all.
        write(self, *arguments)
        as_app(server, change)

    monkeypatch.setattr(mysql.Mysql, "_write", change_after)
    with pytest.raises(Problem, match=r"was changed while it was dumped.*end what changes it"):
        take(layout, server)
    assert leftovers(layout) == []


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'a warning' >&2; kill -KILL $$", "it was ended by signal 9"),
        ("exit 3", "it ended with exit code 3"),
        ("echo 'ERROR 1044 (42000): no' >&2; exit 1", "ERROR 1044 (42000): no\n"),
        ("exit 0", ""),
    ],
)
def test_how_a_client_ended_is_said(script: str, said: str) -> None:
    command = ["sh", "-c", f"cat >/dev/null; {script}"]
    assert mysql_dump.receive(command, None, mysql_dump.Counter(), io.BytesIO()) == said
    assert mysql_dump.feed(command, None, [b"SELECT 1;\n"]) == said


def test_who_killed_a_dump_is_to_be_found_not_the_server_s_log(
    layout: Layout, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql.Mysql, "dump_command", lambda *_words: ["sh", "-c", "kill -KILL $$"])
    with pytest.raises(Problem, match=r"failed in mysqldump: it was ended by signal 9; .* find who ended it"):
        take(layout, server)
    assert leftovers(layout) == []


def test_a_user_without_the_right_is_told_what_to_grant(layout: Layout, server: Server) -> None:
    for host in ("%", "localhost"):
        server.sql(f"REVOKE ALL ON `runbook\\_%`.* FROM app@'{host}'", None)
    try:
        assert "GRANT ALL ON `runbook" in engine_for(server).warnings()[0]
        with pytest.raises(Problem, match="may not create databases.*app_database_admin"):
            take(layout, server)
        administrator = engine_of(
            {**server.database, "password": PASSWORD, "host": str(server.directory / "s"), "port": None},
            {"user": "root"},
        )
        assert administrator.warnings() == []
        taken = take(layout, server, administrator, id="b2", scratch=SCRATCH)
        assert as_app(server, "SELECT count(*) FROM note", database=taken.scratch["name"]) == [(500,)]
        administrator.drop_scratch(taken.scratch)
        grants = "".join(row[0] for row in server.sql("SHOW GRANTS FOR app@localhost", None))
        assert taken.scratch["name"] not in grants.replace("\\", "")
    finally:
        for host in ("%", "localhost"):
            server.sql(GRANT.format(host=host).replace("\\\\", "\\"), None)


@pytest.mark.skipif(not OWN, reason="MariaDB has no binary log by default; make test-mysql runs this")
def test_triggers_that_only_an_administrator_may_make_again(layout: Layout, server: Server) -> None:
    server.sql("SET GLOBAL log_bin_trust_function_creators = OFF", None)
    try:
        assert "triggers or functions (loud)" in engine_for(server).warnings()[0]
        with pytest.raises(Problem, match="error 1419.*with a binary log triggers.*app_database_admin"):
            take(layout, server)
        assert leftovers(layout) == [] and databases(server) == ["shop"]
        administrator = engine_of(
            {**server.database, "password": PASSWORD, "host": str(server.directory / "s"), "port": None},
            {"user": "root"},
        )
        assert administrator.warnings() == []
        assert take(layout, server, administrator).manifest["counts"] == COUNTS
    finally:
        server.sql("SET GLOBAL log_bin_trust_function_creators = ON", None)


# What a restore loses, and keeps

CHANGES = (
    "INSERT INTO note (body) VALUES ('a'), ('b')",
    "UPDATE note SET body = 'changed' WHERE id < 4",
    "DELETE FROM note WHERE id = 100",
    "INSERT INTO `odd ``name (x)` VALUES (3, 4)",
    "ALTER TABLE note ADD COLUMN extra int",
    "CREATE TABLE later (id int PRIMARY KEY)",
    "INSERT INTO later VALUES (1)",
    "INSERT INTO django_migrations (app, name) VALUES ('shop', '0003_later')",
)
LOST = {
    "note": {"inserts": 2, "updates": 3, "deletes": 1},
    "odd `name (x)": {"inserts": 1, "updates": 0, "deletes": 0},
    "later": {"inserts": 1, "updates": 0, "deletes": 0},
}


def events(server: Server, database: str) -> dict[str, str]:
    rows = server.sql(
        f"SELECT event_name, status FROM information_schema.events WHERE event_schema = '{database}'", None
    )
    return {row[0]: row[1] for row in rows}


def check_restored(server: Server) -> None:
    """Everything of the backup is there, and nothing of what came later."""
    assert as_app(server, "SELECT count(*) FROM note") == [(500,)]
    tables = {row[0] for row in server.sql("SHOW FULL TABLES WHERE Table_type <> 'VIEW'")}
    assert tables == {*COUNTS, "numbers"}
    assert as_app(server, "SELECT count(*) FROM few") == [(9,)]
    assert as_app(server, "CALL one()") == [(1,)]
    assert events(server, "shop") == {"tick": "ENABLED"}
    as_app(server, "INSERT INTO note (id, body) VALUES (9999, 'loud')")
    assert as_app(server, "SELECT body FROM note WHERE id = 9999") == [("LOUD",)]
    # The foreign key leads into the live database, not to where the table came from.
    as_app(server, "DELETE FROM note WHERE id = 7")
    assert as_app(server, "SELECT count(*) FROM child") == [(0,)]


def test_what_would_be_lost_is_counted_and_needs_consent(layout: Layout, server: Server) -> None:
    take(layout, server)
    as_app(server, *CHANGES)
    with pytest.raises(Problem, match="note: 2 inserts, 3 updates, 1 delete") as caught:
        restore(layout, server)
    assert caught.value.results["lost"] == LOST
    assert databases(server) == ["shop"]
    assert as_app(server, "SELECT count(*) FROM note") == [(501,)]


def test_a_restore_keeps_everything_that_was_there(layout: Layout, server: Server) -> None:
    take(layout, server)
    as_app(server, *CHANGES)
    answer = restore(layout, server, consent=True)
    assert answer["lost"] == LOST
    check_restored(server)
    # What was lost is in the kept database with its triggers and views, and in the safety backup.
    assert as_app(server, "SELECT count(*) FROM later", database=answer["kept"]) == [(1,)]
    assert as_app(server, "SELECT count(*) FROM few", database=answer["kept"]) == [(9,)]
    assert events(server, answer["kept"]) == {"tick": "DISABLED"}
    manifest = json.loads((layout.backup(answer["safety"]) / "manifest.json").read_text())
    assert manifest["counts"]["note"] == 501
    assert databases(server) == sorted(["shop", answer["kept"]])
    assert not (layout.backups / swapping.NOTES).exists()


def test_nothing_lost_needs_no_consent(layout: Layout, server: Server) -> None:
    take(layout, server)
    assert restore(layout, server)["lost"] == {}
    check_restored(server)


def test_rows_without_a_key_that_differ_are_unknown(layout: Layout, server: Server) -> None:
    take(layout, server)
    as_app(server, "INSERT INTO plain VALUES ('x')")
    with pytest.raises(Problem, match="plain: unknown.*no key"):
        restore(layout, server)


def test_a_writer_that_goes_on_loses_nothing(layout: Layout, server: Server) -> None:
    take(layout, server)
    stop = threading.Event()
    acknowledged: list[int] = []

    def write() -> None:
        while not stop.is_set():
            with contextlib.suppress(Exception):
                connection = server.connect()
                with connection.cursor() as cursor:
                    while not stop.is_set():
                        cursor.execute("INSERT INTO note (body) VALUES ('w')")
                        connection.commit()
                        acknowledged.append(cursor.lastrowid)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(acknowledged) < 20:
            time.sleep(0.01)
        answer = restore(layout, server, consent=True)
        count = len(acknowledged)
        deadline = time.monotonic() + 10
        while len(acknowledged) < count + 20 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        stop.set()
        writer.join()
    kept = as_app(server, "SELECT count(*) FROM note WHERE upper(body) = 'W'", database=answer["kept"])[0][0]
    live = as_app(server, "SELECT count(*) FROM note WHERE upper(body) = 'W'")[0][0]
    assert kept + live >= len(acknowledged) > count
    assert answer["lost"]["note"]["inserts"] == kept


def test_what_is_written_after_the_count_needs_consent_too(
    layout: Layout, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(layout, server)
    rename = swapping.MysqlRestorer._rename
    late = []

    def write_first(self: Any, source: str, target: str) -> None:
        if not late:
            late.append(1)
            as_app(server, "INSERT INTO note (body) VALUES ('late')")
        rename(self, source, target)

    monkeypatch.setattr(swapping.MysqlRestorer, "_rename", write_first)
    with pytest.raises(Problem, match="note: 1 insert"):
        restore(layout, server)
    assert databases(server) == ["shop"]
    assert as_app(server, "SELECT count(*) FROM note") == [(501,)]
    assert as_app(server, "SELECT count(*) FROM few") == [(9,)]
    assert [row[0] for row in server.sql("SHOW TRIGGERS")] == ["loud"]


@pytest.mark.parametrize("step", ["_drop_extras", "_rename", "losses"])
def test_a_fault_between_the_renames_leaves_the_live_database_as_it_was(
    layout: Layout, server: Server, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(layout, server)
    as_app(server, *CHANGES)
    place: Any = swapping if step == "losses" else swapping.MysqlRestorer
    original = getattr(place, step)
    calls = []

    def fail(*arguments: Any) -> Any:
        calls.append(step)
        if len(calls) == 2:
            raise Problem("A lock was not given.")
        return original(*arguments)

    monkeypatch.setattr(place, step, fail)
    with pytest.raises(Problem, match="A lock was not given"):
        restore(layout, server, consent=True)
    assert databases(server) == ["shop"]
    assert as_app(server, "SELECT count(*) FROM note") == [(501,)]
    assert as_app(server, "SELECT count(*) FROM few") == [(9,)]
    assert [row[0] for row in server.sql("SHOW TRIGGERS")] == ["loud"]
    assert events(server, "shop") == {"tick": "ENABLED"}
    assert not (layout.backups / swapping.NOTES).exists()
    monkeypatch.setattr(place, step, original)
    restore(layout, server, consent=True)
    check_restored(server)


def test_tables_that_somebody_made_meanwhile_are_named_and_nothing_is_lost(
    layout: Layout, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(layout, server)
    as_app(server, *CHANGES)
    rename = swapping.MysqlRestorer._rename

    def make(self: Any, source: str, target: str) -> None:
        if target == "shop":
            as_app(server, "CREATE TABLE IF NOT EXISTS note (mine int)")
        rename(self, source, target)

    monkeypatch.setattr(swapping.MysqlRestorer, "_rename", make)
    with pytest.raises(Problem):
        restore(layout, server, consent=True)
    monkeypatch.setattr(swapping.MysqlRestorer, "_rename", rename)
    with pytest.raises(Problem, match=r"made others in their place \(note\)"):
        restore(layout, server, consent=True)
    as_app(server, "DROP TABLE note")
    restore(layout, server, consent=True)
    check_restored(server)
    kept = [name for name in databases(server) if "_broken_" in name]
    assert as_app(server, "SELECT count(*) FROM later", database=kept[0]) == [(1,)]


@pytest.mark.parametrize(
    ("step", "times"),
    [
        ("load", 1),
        ("_rename", 2),
        pytest.param("_drop_extras", 1, marks=pytest.mark.long),
        pytest.param("_drop_extras", 2, marks=pytest.mark.long),
        pytest.param("_rename", 1, marks=pytest.mark.long),
        pytest.param("run_sql", 1, marks=pytest.mark.long),
        pytest.param("run_sql", 2, marks=pytest.mark.long),
        pytest.param("drop", 1, marks=pytest.mark.long),
    ],
)
def test_killed_at_a_step_the_next_restore_heals(
    layout: Layout, server: Server, step: str, times: int
) -> None:
    take(layout, server)
    as_app(server, *CHANGES)
    place: Any = swapping.MysqlRestorer if hasattr(swapping.MysqlRestorer, step) else mysql.Mysql
    original = getattr(place, step)
    calls = []

    def die(self: Any, *arguments: Any, **more: Any) -> Any:
        calls.append(step)
        if len(calls) == times:
            os._exit(9)
        return original(self, *arguments, **more)

    child = os.fork()
    if child == 0:
        setattr(place, step, die)
        with contextlib.suppress(BaseException):
            restore(layout, server, consent=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    restore(layout, server, consent=True)
    check_restored(server)
    kept = [name for name in databases(server) if "_broken_" in name]
    assert databases(server) == sorted(["shop", *kept])
    assert any(["later"] in server.sql("SHOW TABLES", name) for name in kept)


def test_a_backup_that_is_not_what_its_manifest_says_is_not_put_live(layout: Layout, server: Server) -> None:
    taken = take(layout, server)
    manifest = dict(taken.manifest)
    for key, value, words in (
        ("counts", {**manifest["counts"], "note": 499}, "table note: 500 rows, expected 499"),
        ("catalog", {**manifest["catalog"], "view gone": "0"}, "view gone is missing"),
    ):
        write_json(taken.directory / "manifest.json", {**manifest, key: value}, 0o600)
        with pytest.raises(Problem, match=words):
            restore(layout, server, consent=True)
        assert databases(server) == ["shop"]


# Words and rows


@pytest.mark.parametrize(
    ("lines", "counts"),
    [
        ([b"CREATE TABLE `a` (\n", b"INSERT INTO `a` VALUES (1),(2);\n"], {"a": 2}),
        ([b"INSERT INTO `a` VALUES\n", b"(1,'x),(y'),\n", b"(2,'it''s; (');\n"], {"a": 2}),
        (
            [b"INSERT INTO `a` VALUES (1,'\\'),(');\n", b"INSERT INTO `a``b` (`c (d)`) VALUES (0x2829);\n"],
            {"a": 1, "a`b": 1},
        ),
        ([b"CREATE TABLE `none` (\n"], {"none": 0}),
    ],
)
def test_rows_are_counted_in_the_text_of_a_dump(lines: list[bytes], counts: dict[str, int]) -> None:
    counter = mysql_dump.Counter()
    for line in lines:
        counter.line(line)
    assert counter.counts == counts
    assert not counter.complete
    counter.line(b"-- Dump completed on 2026-11-21\n")
    assert counter.complete


def test_words() -> None:
    assert first_error("x\nERROR 1049 (42000): Unknown database 'x'") == "error 1049: Unknown database 'x'"
    assert "create it" in advice("error 1049: Unknown database")
    assert "app_database_admin" in advice(
        "mariadb-dump: app has insufficient privileges to SHOW CREATE FUNCTION `f`!"
    )
    assert version("mariadb-dump  Ver 10.19 Distrib 10.11.19-MariaDB, for debian") == (10, 11, 19)
    assert version("mysqldump  Ver 8.0.36 for Linux on x86_64") == (8, 0, 36)
    assert version("10.11.19-MariaDB-0+deb12u1") == (10, 11, 19)
    assert (identifier("a`b"), literal("it's \\"), option('a"#b')) == ("`a``b`", "'it''s \\\\'", '"a\\"#b"')
    assert mysql.may_create(r"GRANT ALL PRIVILEGES ON `runbook\_%`.* TO `app`@`%`")
    assert not mysql.may_create("GRANT ALL PRIVILEGES ON `shop`.* TO `app`@`%`")


def test_rights_in_the_words_of_mysql() -> None:
    words = ", ".join(sorted(client_of.NEEDED))
    assert mysql.may_create(f"GRANT {words}, SUPER ON *.* TO `root`@`localhost` WITH GRANT OPTION")
    assert not mysql.may_create(f"GRANT {words.replace('CREATE VIEW, ', '')} ON *.* TO `app`@`%`")
    assert not mysql.may_create(
        "GRANT USAGE ON *.* TO `app`@`%`\nGRANT ALL PRIVILEGES ON `shop`.* TO `app`@`%`"
    )


MARIADB, MYSQL = "Ver 10.19 Distrib 10.11.19-MariaDB, for debian-linux-gnu", "Ver 8.4.6 for Linux on x86_64"


@pytest.mark.parametrize(
    ("programs", "maker", "dump"),
    [
        ({"mariadb-dump": MARIADB, "mysqldump": MARIADB}, "mysql", "mariadb-dump"),
        ({"mysqldump": MYSQL}, "mariadb", "mysqldump"),
        ({"mariadb-dump": MARIADB, "mysqldump": MYSQL}, "mysql", "mysqldump"),
        ({"mariadb-dump": MARIADB, "mysqldump": MYSQL}, "mariadb", "mariadb-dump"),
    ],
)
def test_of_two_makers_clients_the_one_of_the_server_s_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, str], maker: str, dump: str
) -> None:
    for name, words in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{name}  {words}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(client_of, "PLACES", ())
    client = Client({"name": "shop"}, Login("app", "", None))
    monkeypatch.setitem(client.__dict__, "maker", maker)
    assert client.program("dump") == str(tmp_path / dump)


@pytest.mark.parametrize(
    ("said", "server", "refused"),
    [
        (MARIADB, "10.11.19-MariaDB-0+deb12u1", ""),
        (MARIADB, "10.6.22-MariaDB", ""),
        (MARIADB, "11.4.2-MariaDB", "MariaDB's 10.11"),
        (MYSQL, "8.0.36", ""),
        (MYSQL, "9.1.0", "MySQL's 8.4"),
        # Each counts for himself.
        (MARIADB, "8.4.6", "MariaDB's 10.11"),
        (MYSQL, "5.5.68-MariaDB", "MySQL's 8.4"),
    ],
)
def test_a_client_that_is_older_or_the_other_maker_s_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, server: str, refused: str
) -> None:
    (tmp_path / "mysqldump").write_text(f"#!/bin/sh\necho 'mysqldump  {said}'\n")
    (tmp_path / "mysqldump").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(client_of, "PLACES", ())
    engine = engine_of({"engine": "mysql", "name": "shop", "user": "app"})
    assert isinstance(engine, mysql.Mysql)
    monkeypatch.setattr(engine, "server_version", lambda: server)
    if not refused:
        engine.require_tools()
        return
    with pytest.raises(
        Problem, match=f"{refused}.*but the server at .* is {server}.*of its version or newer"
    ):
        engine.require_tools()


def test_the_file_with_the_password_is_private_and_gone_afterwards(server: Server) -> None:
    client = Client({"name": "shop", "host": "127.0.0.1", "port": server.port}, Login("app", "a#b c", None))
    with client.options() as argument:
        path = Path(argument.split("=", 1)[1])
        assert path.stat().st_mode & 0o777 == 0o600
        assert 'password="a#b c"' in path.read_text()
    assert not path.exists()


# What restores have put aside


@pytest.mark.long
def test_former_databases_go_when_they_are_old_ours_and_unused(
    layout: Layout, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(layout, server)
    stem = "runbook_shop_broken_2026010{}t000000"
    names = swapping.MysqlRestorer.names
    for day in (1, 2, 3):
        with monkeypatch.context() as patched:
            patched.setattr(
                swapping.MysqlRestorer,
                "names",
                lambda self, kind, day=day: stem.format(day) if kind == "broken" else names(self, kind),
            )
            assert restore(layout, server, consent=True)["kept"] == stem.format(day)
    # Of such a name, but nobody's business.
    foreign = [
        "runbook_shop2_broken_20250101t000000",
        "runbook_shop_broken_20250101t000000",
        "runbook_shop_broken_mine",
    ]
    for name in foreign:
        server.sql(f"CREATE DATABASE {name}", None)
    everything = databases(server)
    engine = engine_for(server)
    record = {"verdict": "success", "phases": [{"phase": "restore", "result": {"kept": stem.format(2)}}]}
    assert _former.prune(layout, engine, [], 0) == ([], [])
    found = _former.survey(layout, engine, [record], 30)
    assert {each["name"]: each["state"] for each in found} == {
        stem.format(3): "newest",
        stem.format(2): "pinned",
        stem.format(1): "surplus",
        foreign[1]: "foreign",
    }
    assert found[0]["size"] > 10_000
    as_app(server, f"CREATE VIEW gone AS SELECT * FROM `{stem.format(1)}`.note")
    gone, errors = _former.prune(layout, engine, [record], 30)
    assert gone == [] and "in use by view shop.gone" in errors[0]
    as_app(server, "DROP VIEW gone")
    somebody = server.connect(stem.format(1))
    gone, errors = _former.prune(layout, engine, [record], 30)
    assert gone == [] and "in use by session" in errors[0]
    assert databases(server) == everything
    somebody.close()
    deadline = time.monotonic() + 20
    while (
        _former.prune(layout, engine, [record], 30) != ([stem.format(1)], []) and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    assert databases(server) == [name for name in everything if name != stem.format(1)]
    assert as_app(server, "SELECT count(*) FROM note") == [(500,)]
