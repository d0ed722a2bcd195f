# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows that going back to an older database would lose, counted between real files."""

from __future__ import annotations

import shutil
import sqlite3

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._losses import describe
from ansible_collections.runbook.deploy.plugins.module_utils._sqlite import uri
from ansible_collections.runbook.deploy.plugins.module_utils._sqlite_losses import losses
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.sqlite_tools import execute


def compare(tmp_path, before, after, framework="django"):
    old, new = tmp_path / "old", tmp_path / "new"
    execute(old, *before)
    shutil.copy(old, new)
    execute(new, *after)
    return losses(uri(new, mode="ro"), uri(old, mode="ro"), framework)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (["CREATE TABLE t (a TEXT)", "INSERT INTO t VALUES ('x')"], ["UPDATE t SET a = 'y'"], (0, 1, 0)),
        (
            ["CREATE TABLE t (a TEXT COLLATE NOCASE)", "INSERT INTO t VALUES ('x')"],
            ["UPDATE t SET a = 'X'"],
            (0, 1, 0),
        ),
        (["CREATE TABLE t (a)", "INSERT INTO t VALUES (1)"], ["UPDATE t SET a = 1.0"], (0, 1, 0)),
        (["CREATE TABLE t (a)", "INSERT INTO t VALUES (NULL)"], ["UPDATE t SET a = ''"], (0, 1, 0)),
        (
            [
                "CREATE TABLE t (a TEXT, b INT, PRIMARY KEY (a, b)) WITHOUT ROWID",
                "INSERT INTO t VALUES ('x', 1)",
            ],
            ["INSERT INTO t VALUES ('x', 2)", "DELETE FROM t WHERE b = 1"],
            (1, 0, 1),
        ),
        (
            ["CREATE TABLE t (a TEXT PRIMARY KEY)", "INSERT INTO t VALUES (NULL)"],
            ["INSERT INTO t VALUES (NULL)"],
            (1, 0, 0),
        ),
        (
            ["CREATE TABLE t (rowid TEXT, _rowid_ TEXT)", "INSERT INTO t VALUES ('x', 'y')"],
            ["INSERT INTO t VALUES ('x', 'y')"],
            (1, 0, 0),
        ),
        (['CREATE TABLE "t" ("a""b" TEXT)'], ["INSERT INTO t VALUES ('x')"], (1, 0, 0)),
        (["CREATE TABLE u (a)"], ["CREATE TABLE t (a)", "INSERT INTO t VALUES (1)"], (1, 0, 0)),
    ],
)
def test_losses_of_all_kinds_of_tables(tmp_path, before, after, expected):
    found = compare(tmp_path, before, after)
    assert found == {"t": dict(zip(("inserts", "updates", "deletes"), expected))}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["CREATE TABLE t (a)", "INSERT INTO t VALUES (1)"], []),
        (
            ["CREATE TABLE t (a)", "INSERT INTO t VALUES (1)"],
            ["ALTER TABLE t ADD COLUMN b TEXT NOT NULL DEFAULT 'x'"],
        ),
        (["CREATE TABLE t (a)", "INSERT INTO t VALUES (1)"], ["ALTER TABLE t ADD COLUMN b TEXT"]),
        (["CREATE TABLE t (a)", "INSERT INTO t VALUES (1)"], ["DROP TABLE t"]),
        (["CREATE TABLE t (a)"], ["CREATE TABLE empty (a)", "CREATE INDEX i ON t (a)"]),
        (
            ["CREATE TABLE django_migrations (id, app, name)"],
            ["INSERT INTO django_migrations VALUES (1, 'a', 'b')"],
        ),
        (["CREATE TABLE auth_permission (id)"], ["INSERT INTO auth_permission VALUES (1)"]),
    ],
)
def test_what_migrations_do_themselves_is_no_loss(tmp_path, before, after):
    assert compare(tmp_path, before, after) == {}


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (
            ["CREATE TABLE t (a)", "INSERT INTO t VALUES (1)"],
            ["ALTER TABLE t ADD COLUMN b TEXT", "UPDATE t SET b = 'written'"],
            "1 rows have a value in the column b",
        ),
        (
            ["CREATE TABLE t (a)"],
            ["DROP TABLE t", "CREATE TABLE t (a INTEGER PRIMARY KEY)"],
            "its key changed",
        ),
    ],
)
def test_what_cannot_be_told_is_unknown(tmp_path, before, after, reason):
    found = compare(tmp_path, before, after)
    assert reason in found["t"]["unknown"]
    assert reason in describe(found)


def test_a_table_with_a_collation_of_the_application_is_unknown(tmp_path):
    connection = sqlite3.connect(tmp_path / "old")
    connection.create_collation("mine", lambda left, right: (left > right) - (left < right))
    connection.executescript(
        "CREATE TABLE t (a TEXT COLLATE mine NOT NULL PRIMARY KEY); INSERT INTO t VALUES ('x')"
    )
    connection.close()
    path = uri(tmp_path / "old", mode="ro")
    assert "cannot be compared" in losses(path, path, "django")["t"]["unknown"]


def test_rows_of_permissions_that_were_changed_are_losses_and_other_frameworks_have_no_exception(tmp_path):
    before = [
        "CREATE TABLE auth_permission (id INTEGER PRIMARY KEY, name)",
        "INSERT INTO auth_permission VALUES (1, 'a')",
    ]
    after = ["UPDATE auth_permission SET name = 'b'", "INSERT INTO auth_permission VALUES (2, 'c')"]
    assert compare(tmp_path, before, after) == {"auth_permission": {"inserts": 0, "updates": 1, "deletes": 0}}
    (tmp_path / "other").mkdir()
    assert compare(tmp_path / "other", before, after, "none")["auth_permission"]["inserts"] == 1
