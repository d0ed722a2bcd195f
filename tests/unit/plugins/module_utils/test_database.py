# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The applied migrations of a real SQLite file, and a live database that is left as it was found."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _mysql_client, _postgresql_client
from ansible_collections.runbook.deploy.plugins.module_utils._database import applied, engine_of, heads
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.sqlite_tools import (
    execute,
    make_database,
)


def database(path):
    return {"engine": "sqlite", "path": str(path)}


def test_applied_and_heads_in_the_order_of_application(tmp_path):
    path = make_database(tmp_path / "db.sqlite3")
    found = applied(database(path), "django")
    assert found == [["shop", "0001_initial"], ["auth", "0001_initial"], ["shop", "0002_notes"]]
    assert heads(found) == {"auth": ["0001_initial"], "shop": ["0002_notes"]}


def test_every_row_of_alembic_is_a_head(tmp_path):
    path = tmp_path / "db.sqlite3"
    execute(
        path,
        "CREATE TABLE alembic_version (version_num TEXT)",
        "INSERT INTO alembic_version VALUES ('b'), ('a')",
    )
    assert heads(applied(database(path), "alembic")) == {"alembic": ["a", "b"]}


@pytest.mark.parametrize("framework", ["django", "alembic", "command", "none"])
def test_no_file_and_no_table_are_none(tmp_path, framework):
    assert applied(database(tmp_path / "missing" / "db.sqlite3"), framework) is None
    (tmp_path / "empty").touch()
    assert applied(database(tmp_path / "empty"), framework) is None
    execute(tmp_path / "other", "CREATE TABLE t (x)")
    assert applied(database(tmp_path / "other"), framework) is None
    assert heads(None) == {}
    assert not (tmp_path / "missing").exists()


def test_an_empty_table_is_an_empty_list(tmp_path):
    path = make_database(tmp_path / "db.sqlite3")
    execute(path, "DELETE FROM django_migrations")
    assert applied(database(path), "django") == []


def test_a_path_that_means_something_in_a_uri(tmp_path):
    path = make_database(tmp_path / "a b?mode=rwc#%41&.sqlite3")
    link = tmp_path / "link"
    link.symlink_to(path)
    assert len(applied(database(link), "django")) == 3
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, "link"])


def test_what_is_no_database_is_named(tmp_path):
    path = tmp_path / "db.sqlite3"
    path.write_text("no database at all" * 100)
    with pytest.raises(Problem, match=r"app_database.path .*db\.sqlite3.* not a database.*restore a backup"):
        applied(database(path), "django")
    with pytest.raises(Problem, match="is no file"):
        applied(database(tmp_path), "django")
    with pytest.raises(Problem, match="absolute path"):
        applied(database("db.sqlite3"), "django")
    with pytest.raises(Problem, match="'oracle'.*supports sqlite and postgresql and mysql only"):
        engine_of({"engine": "oracle", "name": "shop"})


def test_a_locked_database_names_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr("ansible_collections.runbook.deploy.plugins.module_utils._sqlite.LOCK_TIMEOUT", 0.1)
    path = make_database(tmp_path / "db.sqlite3")
    writer = sqlite3.connect(path)
    writer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Problem, match="locked.*fuser"):
        applied(database(path), "django")
    writer.close()


@pytest.mark.parametrize("wal", [False, True])
def test_root_leaves_no_files_of_its_own_beside_the_applications_database(tmp_path, wal):
    if os.geteuid() != 0:
        pytest.skip("only root can open somebody else's database with other rights")
    path = make_database(tmp_path / "db.sqlite3", wal=wal)
    os.chown(path, 65534, 65534)
    before = path.stat()
    assert len(applied(database(path), "django")) == 3
    for name in os.listdir(tmp_path):
        assert (tmp_path / name).stat().st_uid == 65534, name
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_rows_in_the_log_of_a_killed_application_are_seen(tmp_path):
    path = make_database(tmp_path / "db.sqlite3", wal=True)
    writer = sqlite3.connect(path)
    writer.execute("INSERT INTO django_migrations (app, name) VALUES ('shop', '0003_late')")
    writer.commit()
    (tmp_path / "killed").mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", tmp_path / "killed" / f"db.sqlite3{suffix}")
    writer.close()
    assert applied(database(tmp_path / "killed" / "db.sqlite3"), "django")[-1] == ["shop", "0003_late"]


def test_a_transaction_that_a_crash_cut_short_is_rolled_back(tmp_path):
    path = make_database(tmp_path / "db.sqlite3")
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA cache_size = 1")
    writer.execute("PRAGMA cache_spill = 1")
    writer.execute("BEGIN")
    writer.execute("INSERT INTO django_migrations (app, name) VALUES ('shop', '0003_half')")
    writer.executemany("INSERT INTO note (customer_id, text) VALUES (1, ?)", [("x" * 5000,)] * 200)
    (tmp_path / "crashed").mkdir()
    crashed = tmp_path / "crashed" / "db.sqlite3"
    for suffix in ("", "-journal"):
        shutil.copy(f"{path}{suffix}", f"{crashed}{suffix}")
    writer.close()
    assert os.path.getsize(f"{crashed}-journal") > 0
    assert len(applied(database(crashed), "django")) == 3
    assert stat.S_ISREG(crashed.stat().st_mode)


@pytest.mark.parametrize("client", [_mysql_client.Client, _postgresql_client.Client])
@pytest.mark.parametrize(
    ("host", "password", "os_user", "reached"),
    [
        ("127.0.0.1", "", "root", ""),
        ("localhost", "", "root", ""),
        ("", "", "root", ""),
        # A password goes where the application goes, and a server elsewhere has no local socket.
        ("127.0.0.1", "secret", "root", "127.0.0.1"),
        ("127.0.0.1", "", None, "127.0.0.1"),
        ("db.example.org", "", "root", "db.example.org"),
        ("/run/own", "", "root", "/run/own"),
    ],
)
def test_an_operating_system_user_is_known_by_the_local_socket(
    client, host, password, os_user, reached
) -> None:
    login = _mysql_client.Login("root", password, os_user)
    assert client({"name": "shop", "host": host}, login).host == reached


def test_the_usual_socket_is_never_taken_for_that_of_another_mysql_server() -> None:
    login = _mysql_client.Login("root", "", "root")
    place = {"name": "shop", "host": "127.0.0.1"}
    assert (
        _mysql_client.Client({**place, "port": 3306}, login).host,
        _mysql_client.Client({**place, "port": 3307}, login).host,
    ) == ("", "127.0.0.1")
