# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of real SQLite databases: under load, without room, killed, damaged."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _backup, _retention, _sqlite
from ansible_collections.runbook.deploy.plugins.module_utils._database import Damaged, engine_of
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.sqlite_tools import (
    WRITER,
    ask,
    execute,
    make_database,
    process,
)


class Place:
    """An application's directory with a database in it."""

    def __init__(self, root, wal=False, rows=0):
        self.layout = Layout(root)
        self.layout.shared.mkdir()
        self.path = make_database(self.layout.shared / "db.sqlite3", wal=wal, rows=rows)
        self.engine = engine_of({"engine": "sqlite", "path": str(self.path)})

    def take(self, backup_id="b1", **changes):
        fields = {"kind": "manual", "framework": "django", "scratch": "trial", **changes}
        with _backup.backups_locked(self.layout, wait=10):
            return _backup.take(self.layout, self.engine, _backup.Request(id=backup_id, **fields))

    def names(self):
        return sorted(name for name in os.listdir(self.layout.backups) if name != _backup.LOCK)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_a_backup_is_whole_private_and_described(place):
    taken = place.take(application="shop", deployment="d1")
    directory = place.layout.backup("b1")
    assert sorted(os.listdir(directory)) == ["database.sqlite3", "manifest.json"]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest == taken.manifest
    assert manifest["counts"] == {"customer": 2, "django_migrations": 3, "note": 3}
    assert manifest["heads"] == {"auth": ["0001_initial"], "shop": ["0002_notes"]}
    assert manifest["size"] == (directory / "database.sqlite3").stat().st_size
    assert manifest["sha256"] == _backup.digest(directory / "database.sqlite3")
    assert manifest["source"] == str(place.path)
    assert manifest["tools"] == {"sqlite": sqlite3.sqlite_version}
    assert (manifest["journal_mode"], manifest["integrity"], manifest["verified"]) == (
        "delete",
        "full",
        "restore",
    )
    assert (manifest["application"], manifest["deployment"], manifest["kind"]) == ("shop", "d1", "manual")
    assert manifest["foreign_key_violations"] == {}
    assert _backup.read_manifest(place.layout, "b1") == manifest


def test_the_scratch_database_is_another_file_that_only_the_application_may_enter(place):
    scratch = place.take().scratch
    assert scratch == {"engine": "sqlite", "path": str(place.layout.scratch / "trial" / "db.sqlite3")}
    assert stat.S_IMODE(os.stat(os.path.dirname(scratch["path"])).st_mode) == 0o700
    execute(scratch["path"], "DELETE FROM note")
    assert ask(place.path, "SELECT count(*) FROM note") == [(3,)]
    # A second one of that name begins anew.
    assert ask(place.take("b2").scratch["path"], "SELECT count(*) FROM note") == [(3,)]


def test_the_scratch_database_belongs_to_the_applications_user(place):
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    scratch = place.take(user="nobody").scratch["path"]
    uid = os.stat(scratch).st_uid
    assert uid != 0
    assert os.stat(os.path.dirname(scratch)).st_uid == uid


def test_a_scratch_nobody_asked_for_does_not_stay(place):
    assert place.take(scratch="").scratch is None
    assert os.listdir(place.layout.scratch) == []


def test_the_live_database_is_never_a_scratch(tmp_path):
    layout = Layout(tmp_path)
    (layout.scratch / "trial").mkdir(parents=True)
    path = make_database(layout.scratch / "trial" / "db.sqlite3")
    (tmp_path / "link.sqlite3").symlink_to(path)
    engine = engine_of({"engine": "sqlite", "path": str(tmp_path / "link.sqlite3")})
    with pytest.raises(Problem, match="would be the live one|holds the live database"):
        _backup.make_scratch(layout, engine, None, "trial", None)
    assert ask(path, "SELECT count(*) FROM note") == [(3,)]
    os.link(path, tmp_path / "second")
    assert engine.is_live(tmp_path / "second")
    assert not engine.is_live(tmp_path / "other")
    # Neither before there is one.
    missing = engine_of({"engine": "sqlite", "path": str(layout.scratch / "first" / "db.sqlite3")})
    assert missing.is_live(layout.scratch / "first" / "db.sqlite3")
    with pytest.raises(Problem, match="holds the live database"):
        _backup.make_scratch(layout, missing, None, "first", None)


def test_a_backup_is_never_overwritten(place):
    first = place.take().manifest
    execute(place.path, "DELETE FROM note")
    second = place.take().manifest
    assert (first["id"], second["id"]) == ("b1", "b1-2")
    assert _backup.read_manifest(place.layout, "b1")["counts"]["note"] == 3


def test_rows_still_in_the_log_are_in_the_backup_and_root_changes_no_owner(tmp_path):
    place = Place(tmp_path, wal=True)
    writer = sqlite3.connect(place.path)
    writer.execute("INSERT INTO note (customer_id, text) VALUES (1, 'in the log')")
    writer.commit()
    taken = place.take()
    assert taken.manifest["counts"]["note"] == 4
    assert taken.manifest["journal_mode"] == "wal"
    # Reading the copy, which has the mark of WAL, leaves nothing beside it.
    assert sorted(os.listdir(taken.directory)) == ["database.sqlite3", "manifest.json"]
    assert os.listdir(os.path.dirname(taken.scratch["path"])) == ["db.sqlite3"]
    writer.close()


@pytest.mark.parametrize("wal", [False, True], ids=["journal", "wal"])
def test_a_constant_writer_neither_starves_nor_tears_the_backup(tmp_path, wal):
    place = Place(tmp_path, wal=wal, rows=2000)
    before = ask(place.path, "SELECT count(*) FROM note")[0][0]
    with process(WRITER, place.path) as writer:
        acknowledged = int(writer.stdout.readline())
        begun = time.monotonic()
        taken = place.take()
        assert time.monotonic() - begun < 20
        assert writer.poll() is None
    found = taken.manifest["counts"]["note"] - before
    assert found >= 2 * acknowledged
    assert found % 2 == 0
    copy = taken.scratch["path"]
    assert ask(copy, "SELECT count(*) FROM note WHERE text LIKE 'a%'") == ask(
        copy, "SELECT count(*) FROM note WHERE text LIKE 'b%'"
    )


def test_a_large_database_is_copied_in_steps_and_at_once_when_writers_disturb(tmp_path):
    place = Place(tmp_path, rows=2000)
    target = tmp_path / "copy.sqlite3"
    assert place.engine.dump(target, largest_step=65536)["copied"] == "in steps"
    assert ask(target, "SELECT count(*) FROM note") == [(2003,)]
    stop = threading.Event()

    def disturb():
        connection = sqlite3.connect(place.path, timeout=30)
        while not stop.is_set():
            with connection:
                connection.execute("INSERT INTO note (customer_id, text) VALUES (1, 'x')")
        connection.close()

    writer = threading.Thread(target=disturb)
    writer.start()
    try:
        found = place.engine.dump(target, largest_step=4096)
    finally:
        stop.set()
        writer.join()
    assert found["copied"] == "at once"
    assert ask(target, "PRAGMA integrity_check") == [("ok",)]
    assert ask(target, "SELECT count(*) FROM note")[0][0] >= 2003


def test_a_foreign_key_that_points_nowhere_is_reported_not_fatal(place):
    execute(place.path, "INSERT INTO note (customer_id, text) VALUES (99, 'orphan')")
    assert place.take().manifest["foreign_key_violations"] == {"note": 1}


def test_tables_without_migration_rows_are_refused(place):
    execute(place.path, "DROP TABLE django_migrations")
    with pytest.raises(Problem, match=r"tables without migration rows \(2 tables, such as customer, note"):
        place.take()
    assert place.names() == []
    assert place.take(framework="none").manifest["applied"] is None


def test_an_index_only_the_application_understands_is_no_damage(place):
    connection = sqlite3.connect(place.path)
    connection.create_collation("mine", lambda left, right: (left > right) - (left < right))
    connection.create_function("half", 1, lambda value: value, deterministic=True)
    connection.executescript(
        "CREATE TABLE own (name TEXT COLLATE mine PRIMARY KEY) WITHOUT ROWID; INSERT INTO own VALUES ('a'), ('b');"
        "CREATE INDEX own_half ON note (half(text));"
    )
    connection.close()
    manifest = place.take().manifest
    assert manifest["integrity"] == "partial"
    assert manifest["counts"]["own"] == 2


def test_full_text_tables_are_counted_by_their_shadows(place):
    try:
        execute(
            place.path, "CREATE VIRTUAL TABLE search USING fts5(text)", "INSERT INTO search VALUES ('hello')"
        )
    except sqlite3.OperationalError as error:
        pytest.skip(f"this SQLite lacks full text search: {error}")
    counts = place.take().manifest["counts"]
    assert "search" not in counts
    assert counts["search_content"] == 1


def damage(path, offset=None):
    """Turn one byte of *path* round."""
    content = bytearray(path.read_bytes())
    offset = len(content) // 2 if offset is None else offset
    content[offset] ^= 0xFF
    path.write_bytes(content)


def test_a_damaged_live_database_makes_no_backup(tmp_path):
    place = Place(tmp_path, rows=200)
    page = ask(place.path, "SELECT rootpage FROM sqlite_master WHERE name = 'note_text'")[0][0]
    damage(place.path, (page - 1) * 4096 + 1)
    damage(place.path, (page - 1) * 4096 + 4)
    with pytest.raises(Damaged, match="integrity_check|cannot be read"):
        place.take()
    assert place.names() == []


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda directory: os.truncate(directory / "database.sqlite3", 4096), "damaged: the size .* is 4096"),
        (lambda directory: damage(directory / "database.sqlite3"), "damaged: the sha256"),
        (lambda directory: os.unlink(directory / "database.sqlite3"), "cannot be read"),
    ],
    ids=["cut short", "one byte", "missing"],
)
def test_a_backup_that_was_altered_is_found_out(place, harm, message):
    harm(place.take().directory)
    manifest = _backup.read_manifest(place.layout, "b1")
    with pytest.raises(Problem, match=message):
        _backup.require_intact(place.layout, place.engine, manifest)


def test_what_has_no_manifest_is_no_backup(place):
    place.take()
    manifest = place.take("b2").directory / "manifest.json"
    manifest.write_text("{}")
    with pytest.raises(Problem, match="not of schema 1"):
        _backup.read_manifest(place.layout, "b2")
    manifest.write_text("{")
    with pytest.raises(Problem, match="cannot be read"):
        _backup.read_manifest(place.layout, "b2")
    manifest.unlink()
    with pytest.raises(Problem, match=r"no finished backup.*newest: b1\)"):
        _backup.read_manifest(place.layout, "b2")
    with pytest.raises(Problem, match="There is no backup 'b3'"):
        _backup.read_manifest(place.layout, "b3")
    with pytest.raises(Problem, match="option backup"):
        _backup.read_manifest(place.layout, "../backups/b1")


def test_a_trial_restore_that_differs_is_refused(place, monkeypatch):
    """The bytes are altered between the copy and the trial, as a bad disk would."""
    original = _sqlite.Sqlite.scratch

    def bad_disk(self, dump, directory, owner):
        scratch = original(self, dump, directory, owner)
        execute(scratch["path"], "DELETE FROM note WHERE id = 1")
        return scratch

    monkeypatch.setattr(_sqlite.Sqlite, "scratch", bad_disk)
    with pytest.raises(Problem, match="trial restore .* table note: 2 rows, expected 3 rows"):
        place.take()
    assert place.names() == []


def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


BACKUP = """
import sys
from ansible_collections.runbook.deploy.plugins.module_utils import _backup
from ansible_collections.runbook.deploy.plugins.module_utils._database import engine_of
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
layout, engine = Layout(sys.argv[1]), engine_of({"engine": "sqlite", "path": sys.argv[2]})
if "slow" in sys.argv:
    def slow(*_arguments):
        print("copied", flush=True)
        sys.stdin.read()
    _backup.require_migration_rows = slow
try:
    with _backup.backups_locked(layout):
        taken = _backup.take(layout, engine, _backup.Request(sys.argv[3], "manual", "django"))
    print(taken.manifest["id"])
except Problem as problem:
    sys.exit(problem.message)
"""


def run_backup(place, backup_id, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", BACKUP, str(place.layout.root), str(place.path), backup_id, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        **options,
    )


def test_a_disk_that_is_full_leaves_no_backup(tmp_path):
    place = Place(tmp_path, rows=500)
    child = run_backup(place, "b1", preexec_fn=limit_file_size)
    _output, errors = child.communicate(timeout=30)
    assert child.returncode == 1
    assert "could not be written" in errors
    assert "make room" in errors
    assert place.names() == []


@contextlib.contextmanager
def small_file_system(root: Path, options: str) -> Iterator[None]:
    """Mount a small file system on the new directory *root*."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    root.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(root)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this machine lets nobody mount: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_room_for_the_tables_that_a_migration_copies_is_needed_beside_the_database(tmp_path):
    data = tmp_path / "data"
    with small_file_system(data, "size=16m"):
        place = Place(tmp_path, rows=600)
        kept = data / "database.sqlite3"
        shutil.move(place.path, kept)
        place.path.symlink_to(kept)
        size = kept.stat().st_size
        # Nearly full: the backup goes elsewhere, a migration does not.
        free = os.statvfs(data).f_bavail * os.statvfs(data).f_frsize
        (data / "other").write_bytes(b"x" * max(0, free - size - _backup.SPARE_BYTES // 2))
        with pytest.raises(Problem, match=f"no room for .* in {data}: .*tables that a migration copies"):
            place.take(scratch="s1")
        assert place.names() == []
        assert place.take(scratch="").manifest["counts"]
        (data / "other").unlink()
        assert place.take("b2").scratch


def test_too_little_room_is_found_before_anything_is_written(tmp_path):
    root = tmp_path / "root"
    with small_file_system(root, "size=4m,nr_inodes=40"):
        place = Place(root, rows=600)
        with pytest.raises(Problem, match=r"no room for a copy .* bytes are free, \d+ are needed"):
            place.take()
        assert place.names() == []
        place.path.unlink()
        make_database(place.path)
        for number in range(26):
            (root / f"file{number}").touch()
        with pytest.raises(Problem, match=r"\d+ inodes free"):
            place.take()


def test_killed_half_way_leaves_the_live_database_and_nothing_after_the_next_run(place):
    before = place.path.read_bytes()
    child = run_backup(place, "b1", "slow")
    assert child.stdout.readline() == "copied\n"
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert place.names() == [".partial-b1"]
    assert place.path.read_bytes() == before
    with pytest.raises(Problem, match="There is no backup"):
        _backup.read_manifest(place.layout, "b1")
    place.take("b2")
    assert place.names() == ["b2"]


def test_two_backups_at_once_wait_for_each_other_and_both_are_whole(place):
    children = [run_backup(place, "b1") for _number in range(3)]
    found = sorted(child.communicate(timeout=30)[0].strip() for child in children)
    assert found == ["b1", "b1-2", "b1-3"]
    for name in found:
        _backup.require_intact(place.layout, place.engine, _backup.read_manifest(place.layout, name))


def test_waiting_for_another_backup_ends(place):
    second = _backup.backups_locked(place.layout, wait=0.2)
    with (
        _backup.backups_locked(place.layout),
        pytest.raises(Problem, match="Another backup or restore.*fuser"),
    ):
        second.__enter__()


def test_only_manual_backups_are_pruned_the_oldest_first(place):
    for number, kind in enumerate(["manual", "deployment", "manual", "safety", "manual"]):
        place.take(f"b{number}", kind=kind, verify="none")
    assert sorted(_retention.prune_backups(place.layout, 1)) == ["b0", "b2"]
    assert place.names() == ["b1", "b3", "b4"]


def test_differences_name_tables_and_heads():
    manifest = {"counts": {"a": 1, "b": 2}, "heads": {"shop": ["0002"]}}
    found = _sqlite.Contents({"a": 1, "c": 3}, [["shop", "0001"]], "full", [])
    assert _backup.differences(manifest, found) == [
        "table b: no such table, expected 2 rows",
        "table c: 3 rows, expected no such table",
        "migration heads: {'shop': ['0001']}, expected {'shop': ['0002']}",
    ]
