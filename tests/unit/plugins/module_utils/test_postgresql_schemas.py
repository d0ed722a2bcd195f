# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restores on a real PostgreSQL server by a role that may not make databases: schema by schema."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _backup, _former, _restore
from ansible_collections.runbook.deploy.plugins.module_utils import _postgresql_schemas as schemas
from ansible_collections.runbook.deploy.plugins.module_utils._database import engine_of
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, write_json
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_load import in_schemas
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_servers import (
    PASSWORD,
    Server,
    serving,
)

SCHEMA = """
CREATE SCHEMA kinds; CREATE EXTENSION citext SCHEMA kinds;
CREATE TABLE django_migrations (id serial PRIMARY KEY, app text, name text, applied timestamptz DEFAULT now());
INSERT INTO django_migrations (app, name) VALUES ('shop', '0001_initial'), ('shop', '0002_note');
CREATE TYPE mood AS ENUM ('calm', 'loud');
CREATE TABLE note (id serial PRIMARY KEY, body text, label kinds.citext DEFAULT 'none', mood mood DEFAULT 'calm');
CREATE INDEX by_label ON note (label);
INSERT INTO note (body) SELECT 'text ' || n FROM generate_series(1, 500) n;
CREATE TABLE child (id int PRIMARY KEY, note_id int REFERENCES note (id) ON DELETE CASCADE);
INSERT INTO child VALUES (1, 500);
CREATE SCHEMA side; CREATE TABLE side.plain (words text); INSERT INTO side.plain VALUES ('x'), ('x');
CREATE VIEW few AS SELECT * FROM note WHERE id < 10;
CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.body := upper(NEW.body); RETURN NEW; END $$;
CREATE TRIGGER loud BEFORE INSERT ON note FOR EACH ROW EXECUTE FUNCTION shout();
"""
CHANGES = """
INSERT INTO note (body) VALUES ('new'), ('newer'); UPDATE note SET body = 'other' WHERE id IN (1, 2, 3);
DELETE FROM note WHERE id = 4; CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1); DROP VIEW few;
"""
LOST = {
    "note": {"inserts": 2, "updates": 3, "deletes": 1},
    "later": {"inserts": 1, "updates": 0, "deletes": 0},
}


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with serving("postgresql") as server:
        server.clean()
        server.sql("GRANT CREATE ON DATABASE shop TO app", "postgres")
        as_app(server, SCHEMA)
        server.sql("ALTER DATABASE shop RENAME TO pattern", "postgres")
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    running.sql("DROP DATABASE IF EXISTS shop WITH (FORCE)", "postgres")
    running.sql("CREATE DATABASE shop TEMPLATE pattern OWNER app", "postgres")
    return running


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "srv").mkdir()
    return Layout(str(tmp_path / "srv"))


def as_app(server: Server, statement: str) -> list[list[str]]:
    return server.sql(f"SET ROLE app; {statement}")


def engine_for(server: Server) -> Any:
    return engine_of({**server.database, "password": PASSWORD})


def take(layout: Layout, server: Server) -> _backup.Taken:
    request = _backup.Request(id="b1", kind="manual", framework="django", verify="read")
    with _backup.backups_locked(layout):
        return _backup.take(layout, engine_for(server), request)


def restore(layout: Layout, server: Server, consent: bool = False) -> dict[str, Any]:
    order = _restore.Order(backup="b1", consent=consent, user=None, timeout=5)
    with _backup.backups_locked(layout):
        return _restore.restore(layout, engine_for(server), order)


def present(server: Server) -> list[str]:
    """The names of the schemas of users."""
    rows = server.sql(
        "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' ORDER BY 1"
    )
    return [row[0] for row in rows]


def test_what_is_lost_is_counted_and_needs_consent(layout: Layout, server: Server) -> None:
    take(layout, server)
    as_app(server, CHANGES)
    with pytest.raises(Problem, match="note: 2 inserts, 3 updates, 1 delete") as caught:
        restore(layout, server)
    assert caught.value.results["lost"] == LOST
    assert present(server) == ["kinds", "public", "side"]
    assert server.sql("SELECT count(*) FROM note") == [["501"]]
    order = _restore.Order(backup="b1", consent=True, user=None, timeout=5)
    assert _restore.preview(layout, engine_for(server), order)["lost"] == LOST
    assert present(server) == ["kinds", "public", "side"]


def test_everything_is_as_it_was(layout: Layout, server: Server) -> None:
    rights = "SELECT nspname, pg_get_userbyid(nspowner), nspacl FROM pg_namespace WHERE nspname IN ('public', 'side', 'kinds') ORDER BY 1"
    before = server.sql(rights)
    take(layout, server)
    as_app(server, CHANGES)
    answer = restore(layout, server, consent=True)
    assert answer["lost"] == LOST
    assert server.sql("SELECT count(*), max(body) FILTER (WHERE id = 2) FROM note") == [["500", "text 2"]]
    assert server.sql(
        "SELECT count(*) FROM pg_tables WHERE tablename = 'later' AND schemaname = 'public'"
    ) == [["0"]]
    assert server.sql("SELECT count(*) FROM few") == [["9"]]
    assert server.sql("SELECT count(*) FROM side.plain") == [["2"]]
    assert engine_for(server).applied("django") == [["shop", "0001_initial"], ["shop", "0002_note"]]
    assert server.sql(rights) == before
    # The sequence goes on, the trigger fires, the extension's type and the enumeration are the live ones.
    new = as_app(
        server,
        "INSERT INTO note (body, label, mood) VALUES ('loud', 'A', 'loud') RETURNING id, body, label OPERATOR(kinds.=) 'a'",
    )
    assert ["501", "LOUD", "t"] in new
    types = "SELECT DISTINCT n.nspname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace n ON n.oid = t.typnamespace "
    assert server.sql(
        types + "WHERE a.attrelid = 'public.note'::regclass AND a.attname IN ('label', 'mood')"
    ) in ([["kinds"], ["public"]], [["public"], ["kinds"]])
    assert server.sql("SELECT extnamespace::regnamespace FROM pg_extension WHERE extname = 'citext'") == [
        ["kinds"]
    ]
    # What was lost is kept beside it, and in the safety backup; nothing else is left.
    broken = [name for name in present(server) if "_broken_" in name]
    assert len(broken) == 2 and present(server) == sorted(["kinds", "public", "side", *broken])
    assert all(name in answer["kept"] for name in broken)
    aside = next(name for name in broken if name.startswith("public"))
    assert server.sql(f"SELECT count(*) FROM {aside}.later") == [["1"]]


def test_what_is_put_aside_is_no_part_of_later_backups(layout: Layout, server: Server) -> None:
    first = take(layout, server)
    restore(layout, server)
    assert any("_broken_" in name for name in present(server))
    request = _backup.Request(id="b2", kind="manual", framework="django", verify="read")
    with _backup.backups_locked(layout):
        again = _backup.take(layout, engine_for(server), request)
    assert again.manifest["counts"] == first.manifest["counts"]
    assert again.manifest["catalog"] == first.manifest["catalog"]
    assert again.manifest["size"] < first.manifest["size"] * 1.2


def test_writers_lose_nothing_that_was_acknowledged_unseen(layout: Layout, server: Server) -> None:
    """Somebody inserts all the time: every acknowledged row is live or in what is kept aside."""
    take(layout, server)
    stop, done = threading.Event(), []

    def write() -> None:
        while not stop.is_set():
            with contextlib.suppress(Exception), server.connect() as connection:
                while not stop.is_set():
                    row = connection.execute(
                        "INSERT INTO note (body) VALUES ('w') RETURNING body || id"
                    ).fetchone()
                    connection.commit()
                    done.append(row[0])
            time.sleep(0.01)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        while len(done) < 20:
            time.sleep(0.01)
        answer = restore(layout, server, consent=True)
        so_far = len(done)
        deadline = time.monotonic() + 20
        while len(done) < so_far + 20 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        stop.set()
        thread.join()
    assert len(done) >= so_far + 20
    aside = next(name for name in present(server) if name.startswith("public_broken"))
    held = [
        row[0]
        for place in ("public", aside)
        for row in server.sql(f"SELECT body || id FROM {place}.note WHERE body = 'W'")
    ]
    # Numbers begin again in the restored table, so that rows are counted, not compared.
    assert len(held) == len(done)
    assert answer["lost"]["note"]["inserts"] == int(
        server.sql(f"SELECT count(*) FROM {aside}.note WHERE body = 'W'")[0][0]
    )


def test_what_is_written_after_the_count_needs_consent_too(
    layout: Layout, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(layout, server)
    end, late = schemas.SchemaRestorer._end_others, []

    def write_first(self: Any, session: Any) -> None:
        if not late:
            late.append(as_app(server, "INSERT INTO note (body) VALUES ('late')"))
        end(self, session)

    monkeypatch.setattr(schemas.SchemaRestorer, "_end_others", write_first)
    with pytest.raises(Problem, match="note: 1 insert"):
        restore(layout, server)
    assert present(server) == ["kinds", "public", "side"]
    assert server.sql("SELECT count(*) FROM note") == [["501"]]


@pytest.mark.parametrize(
    "step",
    [
        "_end_others",
        pytest.param("_make_public", marks=pytest.mark.long),
        pytest.param("staged_differences", marks=pytest.mark.long),
        pytest.param("_losses", marks=pytest.mark.long),
    ],
)
def test_killed_at_a_step_the_next_restore_heals(layout: Layout, server: Server, step: str) -> None:
    take(layout, server)
    as_app(server, CHANGES)
    child = os.fork()
    if child == 0:
        setattr(schemas.SchemaRestorer, step, lambda *_arguments, **_more: os._exit(9))
        with contextlib.suppress(BaseException):
            restore(layout, server, consent=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    # Until the renames the application has its own tables.
    assert server.sql("SELECT count(*) FROM public.note") == [["501"]]
    assert restore(layout, server, consent=True)["lost"] == LOST
    assert server.sql("SELECT count(*) FROM note") == [["500"]]
    assert not [name for name in present(server) if "_restore_" in name]


@pytest.mark.long
def test_a_transaction_that_stays_open_ends_the_restore(layout: Layout, server: Server) -> None:
    """Of another role, whose session nobody of ours may end."""
    take(layout, server)
    as_app(server, CHANGES)
    import psycopg

    with psycopg.connect(
        host=str(server.directory), port=server.port, user="postgres", dbname="shop"
    ) as other:
        other.execute("UPDATE note SET body = 'held' WHERE id = 9")
        with pytest.raises(Problem, match="lock"):
            restore(layout, server, consent=True)
        other.rollback()
    assert present(server) == ["kinds", "public", "side"]
    assert server.sql("SELECT count(*) FROM note") == [["501"]]


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
        assert present(server) == ["kinds", "public", "side"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "ALTER SCHEMA side OWNER TO postgres; GRANT ALL ON SCHEMA side TO app",
            r"does not own the schemas side \(postgres\)",
        ),
        ("CREATE EXTENSION pg_trgm", "may not move the extensions pg_trgm in public"),
        ("SET ROLE app; SELECT lo_create(0)", "1 large objects"),
        (
            "ALTER DATABASE shop OWNER TO postgres; GRANT ALL ON SCHEMA public TO app",
            "does not own the schemas public",
        ),
    ],
)
def test_what_stands_in_the_way_is_named_before_and_then(
    layout: Layout, server: Server, change: str, words: str
) -> None:
    take(layout, server)
    server.sql(change)
    assert any(schemas.re.search(words, text) for text in engine_for(server).warnings())
    with pytest.raises(Problem, match=words):
        restore(layout, server, consent=True)
    assert present(server) == ["kinds", "public", "side"]


def test_preflight_offers_it(server: Server) -> None:
    first, second = engine_for(server).warnings()
    assert "no backup can be proved by a restore" in first and "app_database.scratch" in first
    assert "would exchange its schemas" in second


def test_what_belongs_to_the_whole_database_is_left_out() -> None:
    lines = [
        ";",
        "5; 2615 2200 SCHEMA - public pg_database_owner",
        "6; 2615 16385 SCHEMA - side app",
        "7; 2615 16386 SCHEMA - public_too app",
        "2; 3079 16400 EXTENSION - citext ",
        "3500; 0 0 COMMENT - EXTENSION citext ",
        "3501; 0 0 ACL - SCHEMA side app",
        "3502; 0 0 ACL - SCHEMA public app",
        "3503; 0 0 ACL - DATABASE shop app",
        "3504; 0 0 ACL public TABLE note app",
        "220; 1259 16390 TABLE public note app",
        "3399; 0 16390 TABLE DATA public note app",
        "3300; 3466 16500 EVENT TRIGGER - watch postgres",
        "3301; 6104 16501 PUBLICATION - feed app",
        "3302; 6106 16502 PUBLICATION TABLE public feed note app",
    ]
    kept = [line.split(";")[0] for line in in_schemas(lines)]
    assert kept == ["6", "7", "3501", "3504", "220", "3399"]


def test_former_schemas_go_when_they_are_old_and_nothing_needs_them(
    layout: Layout, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(layout, server)
    endings = [f"_broken_2026010{day}t000000" for day in (1, 2)]
    for ending in endings:
        stamp = ending.removeprefix("_broken_")
        with monkeypatch.context() as patched:
            patched.setattr(schemas.time, "strftime", lambda form, *more, stamp=stamp, real=time.strftime: (
                stamp if form == "%Y%m%dt%H%M%S" else real(form, *more)
            ))  # fmt: skip
            assert ending in restore(layout, server, consent=True)["kept"]
    as_app(server, "CREATE SCHEMA mine_broken_20250101t000000")
    everything = present(server)
    engine = engine_for(server)
    first = f"public{endings[0]}"
    states = {each["name"]: each["state"] for each in _former.survey(layout, engine, [], 30)}
    assert states[first] == "surplus" and states["mine_broken_20250101t000000"] == "foreign"
    assert {state for name, state in states.items() if name.endswith(endings[1])} == {"newest"}
    # Somebody compares the live rows with the former ones: that must not go with them.
    as_app(
        server,
        f'CREATE VIEW gone AS SELECT * FROM "{first}".note WHERE id NOT IN (SELECT id FROM public.note)',
    )
    gone, errors = _former.prune(layout, engine, [], 30)
    assert first not in gone and any("another schema needs it" in text for text in errors)
    assert as_app(server, "SELECT count(*) FROM gone")[-1] == ["0"]
    assert [name for name in everything if name not in present(server)] == gone
    as_app(server, "DROP VIEW gone")
    again, errors = _former.prune(layout, engine, [], 30)
    assert first in again and errors == []
    assert sorted([*gone, *again]) == [name for name in everything if name.endswith(endings[0])]
    assert present(server) == [name for name in everything if not name.endswith(endings[0])]
    assert as_app(server, "SELECT count(*) FROM note")[-1] == ["500"]
