# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups and restores of a real PostgreSQL server: what is in them, what is lost, and what a fault leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _backup, _former, _restore
from ansible_collections.runbook.deploy.plugins.module_utils import _postgresql as postgresql
from ansible_collections.runbook.deploy.plugins.module_utils import _postgresql_restore as swapping
from ansible_collections.runbook.deploy.plugins.module_utils._database import Damaged, engine_of
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, write_json
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_client import (
    advice,
    first_error,
    literal,
    version,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_servers import (
    PASSWORD,
    Server,
    serving,
)

SCRATCH = "20261121T010101-abcd"
SCHEMA = """
CREATE TABLE django_migrations (id serial PRIMARY KEY, app text, name text, applied timestamptz DEFAULT now());
INSERT INTO django_migrations (app, name) VALUES ('shop', '0001_initial'), ('shop', '0002_note');
CREATE TABLE note (id serial PRIMARY KEY, body text);
INSERT INTO note (body) SELECT 'text ' || n FROM generate_series(1, 500) n;
CREATE TABLE "Odd ""Name" (a int, b int, PRIMARY KEY (a, b));
INSERT INTO "Odd ""Name" VALUES (1, 2);
CREATE SCHEMA side; CREATE TABLE side.plain (words text); INSERT INTO side.plain VALUES ('x'), ('x');
CREATE VIEW few AS SELECT * FROM note WHERE id < 10;
CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.body := upper(NEW.body); RETURN NEW; END $$;
CREATE TRIGGER loud BEFORE INSERT ON note FOR EACH ROW EXECUTE FUNCTION shout();
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with serving("postgresql") as server:
        server.clean()
        server.sql(f"DROP DATABASE {server.scratch}", "postgres")
        as_app(server, SCHEMA)
        # Copied for each test: quicker than made again.
        server.sql("ALTER DATABASE shop RENAME TO pattern", "postgres")
        yield server


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    for row in running.sql("SELECT datname FROM pg_database WHERE datname ~ '^(shop|runbook)'", "postgres"):
        running.sql(f'ALTER DATABASE "{row[0]}" ALLOW_CONNECTIONS true', "postgres")
        running.sql(f'DROP DATABASE "{row[0]}" WITH (FORCE)', "postgres")
    running.sql("CREATE DATABASE shop TEMPLATE pattern OWNER app", "postgres")
    running.sql("ALTER ROLE app CREATEDB", "postgres")
    return running


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "srv").mkdir()
    return Layout(str(tmp_path / "srv"))


def as_app(server: Server, statement: str, database: str = "shop") -> list[list[str]]:
    return server.sql(f"SET ROLE app; {statement}", database)


def engine_for(server: Server, **changes: Any) -> postgresql.Postgresql:
    engine = engine_of({**server.database, "password": PASSWORD, **changes})
    assert isinstance(engine, postgresql.Postgresql)
    return engine


def request(**changes: Any) -> _backup.Request:
    return _backup.Request(**{"id": "b1", "kind": "manual", "framework": "django", **changes})


def take(layout: Layout, server: Server, **changes: Any) -> _backup.Taken:
    with _backup.backups_locked(layout):
        return _backup.take(layout, engine_for(server), request(**changes))


def restore(layout: Layout, server: Server, consent: bool = False, **changes: Any) -> dict[str, Any]:
    order = _restore.Order(backup="b1", consent=consent, user=None, timeout=5)
    with _backup.backups_locked(layout):
        return _restore.restore(layout, engine_for(server, **changes), order)


def databases(server: Server) -> list[str]:
    rows = server.sql(
        "SELECT datname FROM pg_database WHERE datname ~ '^(shop|runbook)' ORDER BY 1", "postgres"
    )
    return [row[0] for row in rows]


def leftovers(layout: Layout) -> list[str]:
    """What is in backups/ and scratch/, except for the lock's file."""
    found = [path for place in (layout.backups, layout.scratch) if place.is_dir() for path in place.iterdir()]
    return sorted(path.name for path in found if path.name != ".lock")


# What a backup is


def test_a_backup_says_what_it_holds_and_is_proved(layout: Layout, server: Server) -> None:
    taken = take(layout, server)
    manifest = json.loads((taken.directory / "manifest.json").read_text())
    assert manifest["counts"] == {'Odd "Name': 1, "django_migrations": 2, "note": 500, "side.plain": 2}
    assert manifest["heads"] == {"shop": ["0002_note"]}
    assert {"view public.few", "trigger public.note.loud", "constraint public.note.note_pkey"} <= set(
        manifest["catalog"]
    )
    assert manifest["extensions"] == ["plpgsql"]
    assert (manifest["owner"], manifest["verified"]) == ("app", "restore")
    assert manifest["sha256"] == _backup.digest(taken.directory / manifest["file"])
    assert (taken.directory / manifest["file"]).stat().st_mode & 0o777 == 0o600
    assert databases(server) == ["shop"]
    assert leftovers(layout) == ["b1"]


def test_counts_are_those_of_the_dump_while_somebody_writes(layout: Layout, server: Server) -> None:
    stop, begun = threading.Event(), threading.Event()

    def write() -> None:
        with server.connect() as connection:
            while not stop.is_set():
                connection.execute("INSERT INTO note (body) VALUES ('more')")
                connection.execute("DELETE FROM note WHERE id = (SELECT min(id) FROM note) AND id % 3 = 0")
                connection.commit()
                begun.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert begun.wait(10)
    try:
        for number in range(3):
            # A count of another moment than the dump's would differ from the trial restore's.
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
    assert server.sql("SELECT count(*) FROM note", taken.scratch["name"]) == [["500"]]
    owner = server.sql(
        f"SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = '{taken.scratch['name']}'",
        "postgres",
    )
    assert owner == [["app"]]
    _backup.forget_scratch(engine_for(server), layout.scratch / SCRATCH)
    assert databases(server) == ["shop"]
    assert leftovers(layout) == ["b1"]


def test_a_note_is_there_before_its_database(
    layout: Layout, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two, nothing is left that nobody can find."""
    seen = []
    create = postgresql.Postgresql.create

    def create_after(self: Any, name: str, *shape: Any) -> None:
        seen.append(json.loads((layout.scratch / SCRATCH / "database.json").read_text())["name"] == name)
        create(self, name, *shape)

    monkeypatch.setattr(postgresql.Postgresql, "create", create_after)
    take(layout, server, scratch=SCRATCH)
    assert seen == [True]


@pytest.mark.parametrize(
    "name", ["shop", "postgres", "runbook_scratch_", "runbook_scratch_0a1b2c3d4e5f; DROP"]
)
def test_a_note_that_names_anything_else_drops_nothing(layout: Layout, server: Server, name: str) -> None:
    directory = layout.scratch / SCRATCH
    directory.mkdir(parents=True)
    write_json(directory / "database.json", {"engine": "postgresql", "name": name}, 0o600)
    with pytest.raises(Problem, match="nothing was dropped"):
        _backup.forget_scratch(engine_for(server), directory)
    assert (directory / "database.json").exists()
    assert databases(server) == ["shop"]


def test_an_empty_database_is_a_state_and_a_missing_one_a_problem(server: Server) -> None:
    assert engine_for(server).exists()
    as_app(server, 'DROP SCHEMA side CASCADE; DROP TABLE note, django_migrations, "Odd ""Name" CASCADE')
    assert not engine_for(server).exists()
    with pytest.raises(Problem, match="'gone'.*does not exist.*create it"):
        engine_for(server, name="gone").exists()


def test_tables_without_migration_rows_are_refused(layout: Layout, server: Server) -> None:
    as_app(server, "DELETE FROM django_migrations")
    with pytest.raises(Problem, match="tables without migration rows"):
        take(layout, server)
    assert leftovers(layout) == []


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
            postgresql.shutil, "which", lambda name, **more: None if name == "zstd" else found(name, **more)
        )
    taken = take(layout, server, verify="read")
    dump = taken.directory / taken.manifest["file"]
    assert dump.name.endswith(".zst") == compressed
    engine_for(server).read_whole(dump)
    damage(dump)
    if compressed or damage is cut:
        # pg_dump's own compression has no checksum over everything: a flipped byte is found by the sha256.
        with pytest.raises(Damaged, match="cannot be read whole"):
            engine_for(server).read_whole(dump)
    with pytest.raises(Problem, match="is damaged"):
        restore(layout, server, consent=True)
    assert databases(server) == ["shop"]


def test_a_backup_without_its_manifest_is_none(layout: Layout, server: Server) -> None:
    taken = take(layout, server)
    (taken.directory / "manifest.json").unlink()
    with pytest.raises(Problem, match=r"no manifest\.json"):
        restore(layout, server, consent=True)


def test_a_dump_that_no_server_would_take_makes_no_backup(layout: Layout, server: Server) -> None:
    """A dump is restored with an empty search_path: a function in an index that relies on one is not found then."""
    as_app(
        server,
        "CREATE FUNCTION fold(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT lower($1)';"
        "CREATE FUNCTION folded(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN fold($1); END';"
        "CREATE INDEX by_fold ON note (folded(body))",
    )
    # pg_dump itself finds nothing wrong, nor does whoever reads the dump.
    taken = take(layout, server, verify="read")
    engine_for(server).read_whole(taken.directory / taken.manifest["file"])
    shutil.rmtree(taken.directory)
    with pytest.raises(Problem, match=r"function fold\(text\) does not exist"):
        take(layout, server)
    assert leftovers(layout) == []
    assert databases(server) == ["shop"]


def test_a_full_disk_is_named_and_leaves_nothing(layout: Layout, server: Server, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can mount a small file system")
    as_app(
        server,
        "INSERT INTO note (body) SELECT md5(n::text) || md5((n + 1)::text) FROM generate_series(1, 150000) n",
    )
    layout.backups.mkdir(mode=0o700)
    if os.system(f"mount -t tmpfs -o size=2m none {layout.backups}"):
        pytest.skip("no file system can be mounted here")
    try:
        engine = engine_for(server)
        engine.size = lambda: 1000  # type: ignore[method-assign]  # the estimate would find it before
        with (
            _backup.backups_locked(layout),
            pytest.raises(Problem, match="zstd ended with .*No space.*make room"),
        ):
            _backup.take(layout, engine, request())
        assert leftovers(layout) == []
        with pytest.raises(Problem, match="There is no room"):
            take(layout, server)
    finally:
        os.system(f"umount {layout.backups}")
    assert databases(server) == ["shop"]


def test_a_server_that_dies_during_the_dump(
    layout: Layout, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = postgresql.count_rows

    def die(session: Any) -> Any:
        server.kill()
        return count(session)

    monkeypatch.setattr(postgresql, "count_rows", die)
    try:
        with pytest.raises(Problem, match="server closed|connection|terminat"):
            take(layout, server)
    finally:
        server.start()
    assert leftovers(layout) == []
    assert server.sql("SELECT count(*) FROM note") == [["500"]]


def test_a_server_that_dies_during_the_trial_restore(
    layout: Layout, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = postgresql.Postgresql.load

    def die(self: Any, *arguments: Any, **more: Any) -> None:
        server.kill()
        load(self, *arguments, **more)

    monkeypatch.setattr(postgresql.Postgresql, "load", die)
    try:
        with pytest.raises(Problem, match="start the server|server's log"):
            take(layout, server, scratch=SCRATCH)
    finally:
        server.start()
    # Its note is still there, so that what was begun is found and removed.
    assert leftovers(layout) == [SCRATCH]
    _backup.forget_scratch(engine_for(server), layout.scratch / SCRATCH)
    assert databases(server) == ["shop"]


def test_a_role_without_the_right_is_told_what_to_grant(layout: Layout, server: Server) -> None:
    server.sql("ALTER ROLE app NOCREATEDB", "postgres")
    assert 'ALTER ROLE "app" CREATEDB' in engine_for(server).warnings()[0]
    with pytest.raises(Problem, match='ALTER ROLE "app" CREATEDB.*app_database_admin'):
        take(layout, server)
    assert leftovers(layout) == []
    assert databases(server) == ["shop"]


def test_an_administrator_makes_what_the_role_may_not(layout: Layout, server: Server) -> None:
    server.sql("ALTER ROLE app NOCREATEDB", "postgres")
    engine = engine_of({**server.database, "password": PASSWORD}, {"user": "postgres"})
    assert engine.warnings() == []
    with _backup.backups_locked(layout):
        taken = _backup.take(layout, engine, request(scratch=SCRATCH))
    assert taken.scratch is not None
    tables = server.sql(
        "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'", taken.scratch["name"]
    )
    assert tables == [["app"]]


def test_a_client_older_than_the_server_is_refused(
    layout: Layout, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql.Postgresql, "_pg_dump_version", lambda _self: "9.6")
    with pytest.raises(Problem, match=r"pg_dump on this host is 9\.6, but .* install postgresql-client-"):
        take(layout, server)


def test_a_wrong_password_is_no_secret_in_the_answer(server: Server) -> None:
    server.sql("ALTER ROLE app PASSWORD 'another-word'", "postgres")
    hba = Path(server.directory) / "data" / "pg_hba.conf"
    before = hba.read_text()
    hba.write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
    server.sql("SELECT pg_reload_conf()", "postgres")
    time.sleep(0.3)
    try:
        with pytest.raises(
            Problem, match="password authentication failed.*correct the user and password"
        ) as caught:
            engine_for(server).exists()
        assert PASSWORD not in caught.value.message + caught.value.evidence
    finally:
        hba.write_text(before)
        server.sql(f"ALTER ROLE app PASSWORD '{PASSWORD}'; SELECT pg_reload_conf()", "postgres")


# What a restore loses, and keeps


CHANGES = """
INSERT INTO note (body) VALUES ('a'), ('b'); UPDATE note SET body = 'changed' WHERE id < 4; DELETE FROM note WHERE id = 100;
INSERT INTO "Odd ""Name" VALUES (3, 4); ALTER TABLE note ADD COLUMN extra int; CREATE TABLE later (id int PRIMARY KEY);
INSERT INTO later VALUES (1); INSERT INTO django_migrations (app, name) VALUES ('shop', '0003_later');
"""
LOST = {
    "note": {"inserts": 2, "updates": 3, "deletes": 1},
    'Odd "Name': {"inserts": 1, "updates": 0, "deletes": 0},
    "later": {"inserts": 1, "updates": 0, "deletes": 0},
}


def test_what_would_be_lost_is_counted_and_needs_consent(layout: Layout, server: Server) -> None:
    take(layout, server)
    as_app(server, CHANGES)
    with pytest.raises(Problem, match="note: 2 inserts, 3 updates, 1 delete") as caught:
        restore(layout, server)
    assert caught.value.results["lost"] == LOST
    assert databases(server) == ["shop"]
    assert server.sql("SELECT count(*) FROM note") == [["501"]]
    order = _restore.Order(backup="b1", consent=True, user=None, timeout=5)
    assert _restore.preview(layout, engine_for(server), order)["lost"] == LOST
    assert databases(server) == ["shop"]


def test_a_restore_keeps_everything_that_was_there(layout: Layout, server: Server) -> None:
    as_app(server, "ALTER DATABASE shop SET work_mem TO '7MB'")
    server.sql(
        "REVOKE CONNECT ON DATABASE shop FROM PUBLIC; GRANT CONNECT ON DATABASE shop TO app", "postgres"
    )
    take(layout, server)
    as_app(server, CHANGES)
    answer = restore(layout, server, consent=True)
    assert answer["lost"] == LOST
    assert server.sql("SELECT count(*), max(body) FILTER (WHERE id = 2) FROM note") == [["500", "text 2"]]
    # Nothing of the newer release is left, as it would be after a restore into the live database.
    assert server.sql("SELECT count(*) FROM pg_tables WHERE tablename = 'later'") == [["0"]]
    assert engine_for(server).applied("django") == [["shop", "0001_initial"], ["shop", "0002_note"]]
    assert server.sql("SHOW work_mem", "shop") == [["7MB"]]
    acl = "SELECT has_database_privilege('app', 'shop', 'CONNECT'), (SELECT datacl::text !~ '=c?C?T?c?/' FROM pg_database WHERE datname = 'shop')"
    assert server.sql(acl)[0][0] == "t"
    assert server.sql("INSERT INTO note (body) VALUES ('loud') RETURNING body")[0] == ["LOUD"]
    # What was lost is in the kept database, and in the safety backup.
    assert server.sql("SELECT count(*) FROM later", answer["kept"]) == [["1"]]
    manifest = json.loads((layout.backup(answer["safety"]) / "manifest.json").read_text())
    assert manifest["counts"]["note"] == 501
    assert databases(server) == sorted(["shop", answer["kept"]])


def test_a_restore_keeps_what_others_were_granted(layout: Layout, server: Server) -> None:
    """Also when the application's role restores, which has no administrator."""
    if not server.sql("SELECT 1 FROM pg_roles WHERE rolname = 'reader'", "postgres"):
        server.sql("CREATE ROLE reader", "postgres")
    as_app(server, "GRANT SELECT ON few TO reader; REVOKE EXECUTE ON FUNCTION shout() FROM PUBLIC")
    rights = "SELECT has_table_privilege('reader', 'few', 'SELECT'), has_function_privilege('reader', 'shout()', 'EXECUTE')"
    assert server.sql(rights) == [["t", "f"]]
    take(layout, server)
    as_app(server, "DROP VIEW few")
    restore(layout, server, consent=True)
    assert server.sql(rights) == [["t", "f"]]


def test_rights_that_cannot_be_restored_refuse_the_restore(layout: Layout, server: Server) -> None:
    """An object of another role becomes the application's without an administrator: that is another database."""
    server.sql("CREATE TABLE foreign_one (id int PRIMARY KEY); GRANT SELECT ON foreign_one TO app", "shop")
    take(layout, server)
    with pytest.raises(Problem, match=r"rights public\.foreign_one is defined otherwise"):
        restore(layout, server, consent=True)
    assert databases(server) == ["shop"]


def test_nothing_lost_needs_no_consent(layout: Layout, server: Server) -> None:
    take(layout, server)
    assert restore(layout, server)["lost"] == {}


def test_rows_without_a_key_that_differ_are_unknown(layout: Layout, server: Server) -> None:
    take(layout, server)
    as_app(server, "INSERT INTO side.plain VALUES ('x')")
    with pytest.raises(Problem, match=r"side\.plain: unknown.*no key"):
        restore(layout, server)


@pytest.mark.long
def test_a_client_that_comes_back_for_ever_does_not_stop_a_restore(layout: Layout, server: Server) -> None:
    take(layout, server)
    stop = threading.Event()
    acknowledged: list[int] = []

    def write() -> None:
        while not stop.is_set():
            with contextlib.suppress(Exception), server.connect() as connection:
                while not stop.is_set():
                    row = connection.execute("INSERT INTO note (body) VALUES ('w') RETURNING id").fetchone()
                    connection.commit()
                    acknowledged.append(row[0])

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
    kept = [int(row[0]) for row in server.sql("SELECT id FROM note WHERE body = 'W'", answer["kept"])]
    live = [int(row[0]) for row in server.sql("SELECT id FROM note WHERE body = 'W'")]
    # Identity numbers begin again in the restored one, so the two are counted, not joined.
    assert len(kept) + len(live) >= len(acknowledged) > count
    assert answer["lost"]["note"]["inserts"] == len(kept)


def test_what_is_written_after_the_count_needs_consent_too(
    layout: Layout, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted again when nobody can write any more: the live database is opened again and nothing was done."""
    take(layout, server)
    end = swapping.PostgresqlRestorer._end_sessions
    late = []

    def write_first(self: Any, name: str, *arguments: Any, **more: Any) -> None:
        if name == "shop" and not late:
            late.append(name)
            server.sql("ALTER DATABASE shop ALLOW_CONNECTIONS true", "postgres")
            as_app(server, "INSERT INTO note (body) VALUES ('late')")
        end(self, name, *arguments, **more)

    monkeypatch.setattr(swapping.PostgresqlRestorer, "_end_sessions", write_first)
    with pytest.raises(Problem, match="note: 1 insert"):
        restore(layout, server)
    assert databases(server) == ["shop"]
    assert server.sql("SELECT count(*) FROM note") == [["501"]]


@pytest.mark.parametrize(
    "step",
    [
        "_end_sessions",
        "load",
        pytest.param("_open_again", marks=pytest.mark.long),
        pytest.param("create", marks=pytest.mark.long),
        pytest.param("staged_differences", marks=pytest.mark.long),
    ],
)
def test_killed_at_a_step_the_next_restore_heals(
    layout: Layout, server: Server, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    take(layout, server)
    as_app(server, CHANGES)
    place = (
        swapping.PostgresqlRestorer if hasattr(swapping.PostgresqlRestorer, step) else postgresql.Postgresql
    )
    original = getattr(place, step)

    def die(*_arguments: Any, **_more: Any) -> None:
        os._exit(9)

    child = os.fork()
    if child == 0:
        setattr(place, step, die)
        with contextlib.suppress(BaseException):
            restore(layout, server, consent=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert getattr(place, step) is original
    # Killed before the renames; the same restore, started again, comes to its end.
    names = databases(server)
    if not any("_broken_" in name for name in names):
        answer = restore(layout, server, consent=True)
        assert answer["lost"] == LOST
    kept = [name for name in databases(server) if "_broken_" in name]
    assert len(kept) == 1
    assert databases(server) == sorted(["shop", *kept])
    assert server.sql("SELECT count(*) FROM note") == [["500"]]
    assert server.sql("SELECT datallowconn FROM pg_database WHERE datname = 'shop'", "postgres") == [["t"]]


def test_a_backup_that_is_not_what_its_manifest_says_is_not_put_live(layout: Layout, server: Server) -> None:
    taken = take(layout, server)
    manifest = dict(taken.manifest)
    for key, value, words in (
        ("counts", {**manifest["counts"], "note": 499}, "table note: 500 rows, expected 499"),
        ("heads", {"shop": ["0009_x"]}, "migration heads"),
        ("catalog", {**manifest["catalog"], "view public.gone": "0"}, "view public.gone is missing"),
    ):
        write_json(taken.directory / "manifest.json", {**manifest, key: value}, 0o600)
        with pytest.raises(Problem, match=words):
            restore(layout, server, consent=True)
        assert databases(server) == ["shop"]


# Words


def test_words() -> None:
    assert first_error("psql: error: connection to server failed: FATAL:  no such\nhint") == "no such"
    assert first_error("pg_dump: error: query failed: ERROR:  permission denied").endswith(
        "permission denied"
    )
    assert "create it" in advice('database "x" does not exist')
    assert version("pg_dump (PostgreSQL) 15.18 (Debian)") == (15, 18)
    assert version("17devel") == (17,)
    assert literal("it's") == "'it''s'"
    assert literal("a\\'b") == " E'a\\\\''b'"


# What restores have put aside


def put_aside(layout: Layout, server: Server, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore, and have the former database take *name*."""
    names = swapping.PostgresqlRestorer.names
    with monkeypatch.context() as patched:
        patched.setattr(
            swapping.PostgresqlRestorer,
            "names",
            lambda self, kind: name if kind == "broken" else names(self, kind),
        )
        assert restore(layout, server, consent=True)["kept"] == name


@pytest.mark.long
def test_former_databases_go_when_they_are_old_ours_and_unused(
    layout: Layout, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(layout, server)
    stem = "shop_broken_2026010{}t000000"
    for day in (1, 2, 3, 4):
        put_aside(layout, server, stem.format(day), monkeypatch)
    # Of such a name, but nobody's business: made by hand, of another application, and one in the place of ours.
    foreign = ["shop_broken_20250101t000000", "shop2_broken_20250101t000000", "shop_broken_mine"]
    server.sql(f"DROP DATABASE {stem.format(2)}", "postgres")
    for name in [*foreign, stem.format(2)]:
        server.sql(f"CREATE DATABASE {name} OWNER app", "postgres")
    everything = databases(server)
    engine = engine_for(server)
    record = {"verdict": "success", "phases": [{"phase": "restore", "result": {"kept": stem.format(3)}}]}
    assert _former.prune(layout, engine, [], 0) == ([], [])
    found = _former.survey(layout, engine, [record], 30)
    assert {each["name"]: each["state"] for each in found} == {
        stem.format(4): "newest",
        stem.format(3): "pinned",
        stem.format(2): "foreign",
        stem.format(1): "surplus",
        foreign[0]: "foreign",
    }
    assert all(each["size"] > 1_000_000 for each in found)
    with engine.client.session(stem.format(1)) as somebody:
        somebody.ask("SELECT 1")
        gone, errors = _former.prune(layout, engine, [record], 30)
        assert gone == [] and len(errors) == 1 and "is being accessed" in errors[0]
    assert _former.prune(layout, engine, [record], 30, check_mode=True) == ([stem.format(1)], [])
    assert databases(server) == everything
    deadline = time.monotonic() + 20
    while (
        _former.prune(layout, engine, [record], 30) != ([stem.format(1)], []) and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    assert databases(server) == [name for name in everything if name != stem.format(1)]
    assert as_app(server, "SELECT count(*) FROM note")[-1] == ["500"]


def test_a_server_that_is_gone_loses_nothing_and_stops_nothing(layout: Layout, server: Server) -> None:
    take(layout, server)
    engine = engine_for(server, port=1)
    gone, errors = _former.prune(layout, engine, [], 30)
    assert gone == [] and "could not be looked for" in errors[0]
