# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restores of real SQLite databases: what would be lost, who has them open, and kills at every moment."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _backup, _restore, _sqlite_restore
from ansible_collections.runbook.deploy.plugins.module_utils._database import engine_of
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.sqlite_tools import (
    HOLDER,
    WRITER,
    ask,
    execute,
    make_database,
    process,
)


class Place:
    """An application's directory with a database and a backup of it."""

    def __init__(self, root, wal=False):
        self.layout = Layout(root)
        self.layout.shared.mkdir()
        self.path = make_database(self.layout.shared / "db.sqlite3", wal=wal)
        self.engine = engine_of({"engine": "sqlite", "path": str(self.path)})
        with _backup.backups_locked(self.layout):
            request = _backup.Request("b1", "deployment", "django", verify="read")
            _backup.take(self.layout, self.engine, request)

    def restore(self, consent=False, backup="b1", timeout=2.0):
        with _backup.backups_locked(self.layout):
            order = _restore.Order(backup, consent, None, timeout)
            return _restore.restore(self.layout, self.engine, order)

    def notes(self):
        return [text for (text,) in ask(self.path, "SELECT text FROM note ORDER BY id")]

    def backups(self):
        return sorted(name for name in os.listdir(self.layout.backups) if name != _backup.LOCK)

    def beside(self):
        return sorted(name for name in os.listdir(self.path.parent) if name != self.path.name)


OLD = ["first", "second", "third"]


@pytest.fixture(params=[False, True], ids=["journal", "wal"])
def place(tmp_path, request):
    return Place(tmp_path, wal=request.param)


@pytest.fixture
def plain(tmp_path):
    return Place(tmp_path)


def write(place):
    execute(
        place.path,
        "INSERT INTO note (customer_id, text) VALUES (1, 'new'), (2, 'newer')",
        "UPDATE note SET text = 'changed' WHERE id = 1",
        "DELETE FROM note WHERE id = 2",
        "UPDATE customer SET name = 'ada' WHERE id = 1",
    )


NEW = ["changed", "third", "new", "newer"]
LOST = {
    "customer": {"inserts": 0, "updates": 1, "deletes": 0},
    "note": {"inserts": 2, "updates": 1, "deletes": 1},
}


def test_losses_are_counted_refused_and_nothing_is_changed(place):
    write(place)
    before = place.path.stat()
    with pytest.raises(
        Problem, match=r"note: 2 inserts, 1 update, 1 delete;.*not changed.*consent"
    ) as caught:
        place.restore()
    assert caught.value.results == {"lost": LOST}
    assert (place.path.stat().st_ino, place.path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert place.notes() == NEW
    assert place.backups() == ["b1"]
    assert [name for name in place.beside() if "broken" in name or "restoring" in name] == []


def test_with_consent_the_former_database_is_kept_twice(place):
    os.chmod(place.path, 0o660)
    write(place)
    found = place.restore(consent=True)
    assert place.notes() == OLD
    assert found["lost"] == LOST
    assert stat.S_IMODE(place.path.stat().st_mode) == 0o660
    assert ask(found["kept"], "SELECT count(*) FROM note") == [(4,)]
    manifest = _backup.read_manifest(place.layout, found["safety"])
    assert (manifest["kind"], manifest["counts"]["note"], manifest["verified"]) == ("safety", 4, "read")
    # And back again.
    place.restore(consent=True, backup=found["safety"])
    assert place.notes() == NEW


def test_without_losses_no_consent_is_needed(place):
    assert place.restore()["lost"] == {}
    assert place.notes() == OLD


def test_the_owner_of_the_database_stays(plain):
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(plain.path, 65534, 65534)
    plain.restore()
    assert (plain.path.stat().st_uid, plain.path.stat().st_gid) == (65534, 65534)


def test_a_link_stays_and_its_file_is_exchanged(plain, tmp_path):
    link = tmp_path / "link.sqlite3"
    link.symlink_to(plain.path)
    plain.engine = engine_of({"engine": "sqlite", "path": str(link)})
    write(plain)
    found = plain.restore(consent=True)
    assert link.is_symlink()
    assert os.path.dirname(found["kept"]) == str(plain.path.parent)
    assert plain.notes() == OLD


def test_a_database_that_is_gone_comes_back(plain):
    plain.path.unlink()
    found = plain.restore()
    assert (found["kept"], found["safety"], found["lost"]) == (None, None, {})
    assert plain.notes() == OLD


def test_a_damaged_database_is_kept_as_it_is_with_its_log(place):
    place.path.write_bytes(b"damaged" * 1000)
    log = place.path.parent / "db.sqlite3-wal"
    log.write_bytes(b"log" * 100)
    with pytest.raises(Problem, match="unknown, the present database is damaged"):
        place.restore()
    found = place.restore(consent=True)
    assert found["safety"] is None
    assert place.notes() == OLD
    with open(found["kept"], "rb") as kept, open(f"{found['kept']}-wal", "rb") as kept_log:
        assert kept.read(7) == b"damaged"
        assert kept_log.read(3) == b"log"
    assert not log.exists()


def test_a_stale_log_of_a_killed_application_does_not_meet_the_new_file(tmp_path):
    place = Place(tmp_path, wal=True)
    writer = sqlite3.connect(place.path)
    writer.execute("INSERT INTO note (customer_id, text) VALUES (1, 'in the log')")
    writer.commit()
    log = open(f"{place.path}-wal", "rb").read()  # noqa: SIM115
    content = place.path.read_bytes()
    writer.close()
    place.path.write_bytes(content)
    (place.path.parent / "db.sqlite3-wal").write_bytes(log)
    found = place.restore(consent=True)
    assert found["lost"] == {"note": {"inserts": 1, "updates": 0, "deletes": 0}}
    assert place.beside() == [os.path.basename(found["kept"])]
    assert place.notes() == OLD
    assert ask(found["kept"], "SELECT count(*) FROM note") == [(4,)]


@pytest.mark.parametrize(
    "manner", [(), ("stubborn",), ("master",)], ids=["ends", "must be killed", "starts again"]
)
def test_processes_of_the_application_are_stopped(plain, manner):
    with process(HOLDER, plain.path, *manner, root=plain.layout.root) as holder:
        found = plain.restore(timeout=0.5)
        assert found["stopped"]
        assert all(entry["ours"] for entry in found["stopped"])
        holder.wait(5)
    assert plain.notes() == OLD


def test_a_process_of_somebody_else_is_named_and_lives(place):
    with process(HOLDER, place.path) as holder:
        with pytest.raises(
            Problem, match=rf"do not belong to this application: pid {holder.pid} \(.*nothing was"
        ):
            place.restore()
        assert holder.poll() is None
    with process(HOLDER, place.path, root=place.layout.root.parent) as holder:
        with pytest.raises(Problem, match=f"pid {holder.pid}"):
            place.restore()
        assert holder.poll() is None
    assert place.backups() == ["b1"]
    assert [name for name in place.beside() if "broken" in name or "restoring" in name] == []


def test_the_applications_process_lives_when_losses_are_refused(plain):
    write(plain)
    with process(HOLDER, plain.path, root=plain.layout.root) as holder:
        with pytest.raises(Problem, match="would lose"):
            plain.restore()
        assert holder.poll() is None


def test_no_acknowledged_row_of_a_writer_is_lost_without_being_counted(place):
    """Rows come in until the writer is stopped; all of them are in the safety backup, and in `lost`."""
    with process(WRITER, place.path, root=place.layout.root) as writer:
        found = place.restore(consent=True)
        writer.wait(5)
        acknowledged = int(writer.stdout.read().split()[-1])
    kept = ask(found["kept"], "SELECT count(*) FROM note")[0][0] - 3
    assert kept >= 2 * acknowledged
    assert found["lost"]["note"]["inserts"] == kept
    assert _backup.read_manifest(place.layout, found["safety"])["counts"]["note"] == kept + 3
    assert place.notes() == OLD


def test_writes_after_the_count_are_counted_again_and_need_consent(place, monkeypatch):
    """A write between the safety backup and the swap, by a process that is gone when the swap begins."""
    original = _sqlite_restore.SqliteRestorer.stop

    def stop(self, root, timeout):
        execute(place.path, "INSERT INTO note (customer_id, text) VALUES (1, 'between')")
        monkeypatch.setattr(_sqlite_restore.SqliteRestorer, "stop", original)
        return original(self, root, timeout)

    monkeypatch.setattr(_sqlite_restore.SqliteRestorer, "stop", stop)
    with pytest.raises(Problem, match="note: 1 insert;"):
        place.restore()
    assert place.notes()[-1] == "between"
    assert place.backups() == ["b1"]


def test_a_database_that_is_written_to_all_the_time_is_given_up(plain, monkeypatch):
    original = _sqlite_restore.SqliteRestorer.stop

    def stop(self, root, timeout):
        execute(plain.path, "INSERT INTO note (customer_id, text) VALUES (1, 'again')")
        return original(self, root, timeout)

    monkeypatch.setattr(_sqlite_restore.SqliteRestorer, "stop", stop)
    with pytest.raises(Problem, match="written to 3 times"):
        plain.restore(consent=True)
    assert plain.notes() == [*OLD, *["again"] * 3]
    assert plain.backups() == ["b1"]
    assert plain.beside() == []


def test_nobody_reads_or_writes_while_the_file_is_exchanged(place):
    restorer = _restore.restorer_of(place.engine)
    restorer.settle()
    with restorer.locked() as handle:
        assert handle is not None
        code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute(sys.argv[2])"
        for statement in ("SELECT count(*) FROM note", "DELETE FROM note"):
            child = subprocess.run(
                [sys.executable, "-c", code, str(place.path), statement],
                capture_output=True,
                text=True,
                check=False,
            )
            assert "database is locked" in child.stderr
        # A look at the mark must not give the lock away.
        restorer._mark(handle)
        child = subprocess.run([sys.executable, "-c", code, str(place.path), "DELETE FROM note"], check=False)
        assert child.returncode == 1
    assert place.notes() == OLD


def test_who_keeps_the_database_locked_is_asked_for(plain, monkeypatch):
    monkeypatch.setattr(_sqlite_restore, "LOCK_TIMEOUT", 0.2)
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_SH, 510, 0x40000002); print(1, flush=True); time.sleep(60)"
    monkeypatch.setattr(_sqlite_restore, "stop_openers", lambda *_arguments: [])
    with (
        process(code, plain.path),
        pytest.raises(Problem, match="kept the database .* locked for 0.2 s; nothing was"),
    ):
        plain.restore()
    assert plain.notes() == OLD


def test_a_process_that_comes_while_the_file_is_exchanged_is_reported(plain, monkeypatch):
    original = os.rename
    with process("print(1, flush=True)\nimport time; time.sleep(60)") as other:
        comers = []

        def rename(source, target):
            if str(target) == str(plain.path):
                script = HOLDER.replace(
                    'connection.execute("SELECT count(*) FROM note").fetchone()',
                    "connection.execute('PRAGMA mmap_size'); open(sys.argv[1], 'rb'); held = open(sys.argv[1], 'rb')",
                )
                manager = process(script, plain.path)
                comers.append((manager, manager.__enter__()))
            original(source, target)

        monkeypatch.setattr(_sqlite_restore.os, "rename", rename)
        try:
            found = plain.restore()
            assert [entry["pid"] for entry in found["late"]] == [comers[0][1].pid]
        finally:
            for manager, _child in comers:
                manager.__exit__(None, None, None)
        assert other.poll() is None


@pytest.mark.parametrize("harm", ["cut short", "one byte", "no manifest"])
def test_a_backup_that_is_not_whole_changes_nothing(plain, harm):
    write(plain)
    dump = plain.layout.backup("b1") / "database.sqlite3"
    if harm == "cut short":
        os.truncate(dump, dump.stat().st_size // 2)
    elif harm == "one byte":
        content = bytearray(dump.read_bytes())
        content[len(content) // 2] ^= 1
        dump.write_bytes(content)
    else:
        (plain.layout.backup("b1") / "manifest.json").unlink()
    with pytest.raises(Problem, match="damaged|no finished backup"):
        plain.restore(consent=True)
    assert plain.notes() == NEW
    assert plain.beside() == []
    assert plain.backups() == ["b1"]


def test_a_manifest_that_promises_other_rows_changes_nothing(plain):
    path = plain.layout.backup("b1") / "manifest.json"
    path.write_text(path.read_text().replace('"note": 3', '"note": 4'))
    with pytest.raises(Problem, match="table note: 3 rows, expected 4 rows; nothing was changed"):
        plain.restore()
    assert plain.beside() == []


def test_check_mode_counts_and_changes_nothing(place):
    write(place)
    before = {name: place.path.parent.joinpath(name).read_bytes() for name in [place.path.name]}
    order = _restore.Order("b1", True, None, 2.0)
    found = _restore.preview(place.layout, place.engine, order)
    assert found["lost"] == LOST
    with pytest.raises(Problem, match="would lose"):
        _restore.preview(place.layout, place.engine, order._replace(consent=False))
    assert {name: place.path.parent.joinpath(name).read_bytes() for name in before} == before
    assert place.backups() == ["b1"]


RESTORE = """
import os, signal, sys
from ansible_collections.runbook.deploy.plugins.module_utils import _backup, _restore, _sqlite_restore
from ansible_collections.runbook.deploy.plugins.module_utils._database import engine_of
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
layout, engine = Layout(sys.argv[1]), engine_of({"engine": "sqlite", "path": sys.argv[2]})
name, number = sys.argv[3].split(":")
seen = 0
original = getattr(os, name)
def die(*arguments, **options):
    global seen
    if any(part in str(arguments) for part in ("restoring", "broken")):
        seen += 1
        if seen == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
setattr(os, name, die)
with _backup.backups_locked(layout):
    _restore.restore(layout, engine, _restore.Order("b1", True, None, 1.0))
"""


# The fourth rename is the exchange itself; before it each companion is looked for.
@pytest.mark.parametrize("moment", ["open:1", "link:1", "rename:4"])
def test_killed_at_any_moment_the_old_database_is_whole_and_the_next_run_tidies(plain, moment):
    write(plain)
    child = subprocess.run(
        [sys.executable, "-c", RESTORE, str(plain.layout.root), str(plain.path), moment],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    assert plain.notes() == NEW
    found = plain.restore(consent=True)
    assert plain.notes() == OLD
    assert plain.beside() == [os.path.basename(found["kept"])]


def test_too_little_room_beside_the_database_is_found_first(plain, monkeypatch):
    free = shutil.disk_usage(plain.path.parent).free
    monkeypatch.setattr(
        _sqlite_restore.SqliteRestorer, "space", lambda self, size: [(self.path.parent, free * 2)]
    )
    write(plain)
    with pytest.raises(Problem, match="no room"):
        plain.restore(consent=True)
    assert plain.notes() == NEW
