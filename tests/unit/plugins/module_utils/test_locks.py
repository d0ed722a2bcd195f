# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests for plugins/module_utils/_locks.py: tables of statements, as Django and Alembic write them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._locks import (
    judge_locks,
    judge_transaction,
    unquoted,
)

# statement; the locks as "table LOCK", then a word of the first reason.
POSTGRESQL = [
    ('CREATE INDEX "i" ON "t" ("a")', ["t SHARE"], "writes wait"),
    ('CREATE UNIQUE INDEX "i" ON "s"."t" ("a") WHERE a > 1', ["t SHARE"], "writes wait"),
    ('CREATE INDEX CONCURRENTLY "i" ON "t" ("a")', ["t SHARE UPDATE EXCLUSIVE"], "invalid index"),
    ("create index on t (a)", ["t SHARE"], "writes wait"),
    ('DROP INDEX IF EXISTS "i"', [" ACCESS EXCLUSIVE"], "the table of the index i"),
    ('DROP INDEX CONCURRENTLY IF EXISTS "i"', [" SHARE UPDATE EXCLUSIVE"], "index i"),
    ('ALTER TABLE "t" ADD COLUMN "c" integer NULL', ["t ACCESS EXCLUSIVE"], "short"),
    ('ALTER TABLE "t" ADD COLUMN "c" varchar(5) DEFAULT \'x\' NOT NULL', ["t ACCESS EXCLUSIVE"], "short"),
    ('ALTER TABLE "t" ADD COLUMN "c" uuid DEFAULT gen_random_uuid()', ["t ACCESS EXCLUSIVE"], "written anew"),
    (
        'ALTER TABLE "t" ADD COLUMN "c" int GENERATED ALWAYS AS (a) STORED',
        ["t ACCESS EXCLUSIVE"],
        "written anew",
    ),
    ('ALTER TABLE "t" ADD COLUMN "c" int UNIQUE', ["t ACCESS EXCLUSIVE"], "index of the column"),
    (
        'ALTER TABLE "t" ADD COLUMN "c" bigint NULL CONSTRAINT "f" REFERENCES "o"("id") DEFERRABLE',
        ["t ACCESS EXCLUSIVE", "o SHARE ROW EXCLUSIVE"],
        "short",
    ),
    (
        'ALTER TABLE "t" ADD COLUMN "c" bigint DEFAULT 1 NOT NULL CONSTRAINT "f" REFERENCES "o"("id")',
        ["t ACCESS EXCLUSIVE", "o SHARE ROW EXCLUSIVE"],
        "all rows are checked",
    ),
    ('ALTER TABLE "t" ALTER COLUMN "c" TYPE bigint', ["t ACCESS EXCLUSIVE"], "written anew"),
    ('ALTER TABLE "t" ALTER COLUMN "c" SET NOT NULL', ["t ACCESS EXCLUSIVE"], "read for NULLs"),
    ('ALTER TABLE "t" ALTER COLUMN "c" DROP DEFAULT', ["t ACCESS EXCLUSIVE"], "short"),
    (
        'ALTER TABLE "t" ADD CONSTRAINT "f" FOREIGN KEY ("c") REFERENCES "o" ("id")',
        ["t SHARE ROW EXCLUSIVE", "o SHARE ROW EXCLUSIVE"],
        "all rows are checked",
    ),
    (
        'ALTER TABLE "t" ADD CONSTRAINT "f" FOREIGN KEY ("c") REFERENCES "o" ("id") NOT VALID',
        ["t SHARE ROW EXCLUSIVE", "o SHARE ROW EXCLUSIVE"],
        "short",
    ),
    ('ALTER TABLE "t" ADD CONSTRAINT "c" CHECK ("a" > 0)', ["t ACCESS EXCLUSIVE"], "all rows are checked"),
    ('ALTER TABLE "t" ADD CONSTRAINT "c" CHECK ("a" > 0) NOT VALID', ["t ACCESS EXCLUSIVE"], "short"),
    ('ALTER TABLE "t" ADD CONSTRAINT "u" UNIQUE ("a")', ["t ACCESS EXCLUSIVE"], "index of the constraint"),
    ('ALTER TABLE "t" ADD CONSTRAINT "u" UNIQUE USING INDEX "i"', ["t ACCESS EXCLUSIVE"], "short"),
    ('ALTER TABLE "t" VALIDATE CONSTRAINT "c"', ["t SHARE UPDATE EXCLUSIVE"], "go on"),
    ('ALTER TABLE "t" DROP COLUMN "c" CASCADE', ["t ACCESS EXCLUSIVE"], "short"),
    ('ALTER TABLE "t" RENAME TO "u"', ["t ACCESS EXCLUSIVE"], "short"),
    ('DROP TABLE "t" CASCADE', ["t ACCESS EXCLUSIVE"], "short"),
    ("UPDATE t SET a = 1", ["t ROW EXCLUSIVE"], "rows"),
    ("SET CONSTRAINTS f IMMEDIATE", [], ""),
    ("CREATE EXTENSION IF NOT EXISTS hstore", [], ""),
    ("CLUSTER t", [" unknown"], "not known"),
]
MYSQL = [
    ("CREATE INDEX `i` ON `t` (`a`)", ["t INPLACE"], "go on"),
    ("ALTER TABLE `t` ADD COLUMN `c` longtext NULL", ["t INSTANT"], "8.0.12"),
    ("ALTER TABLE `t` DROP COLUMN `c`", ["t INSTANT"], "8.0.29"),
    ("ALTER TABLE `t` MODIFY `c` varchar(40) NOT NULL", ["t COPY"], "copied"),
    (
        "ALTER TABLE `t` ADD CONSTRAINT `f` FOREIGN KEY (`c`) REFERENCES `o` (`id`)",
        ["t COPY", "o EXCLUSIVE"],
        "foreign_key_checks",
    ),
    ("ALTER TABLE `t` ADD CONSTRAINT `u` UNIQUE (`a`, `b`)", ["t INPLACE"], "go on"),
    ("ALTER TABLE `t` ADD CONSTRAINT `c` CHECK (`a` > 0)", ["t COPY"], "CHECK"),
    ("ALTER TABLE `t` DROP FOREIGN KEY `f`", ["t INPLACE"], "go on"),
    ("ALTER TABLE `t` RENAME COLUMN `a` TO `b`", ["t INSTANT"], "short"),
    ("RENAME TABLE `t` TO `u`", ["t EXCLUSIVE"], "short"),
    ("DROP INDEX `i` ON `t`", ["t INPLACE"], "short"),
    ("OPTIMIZE TABLE t", [" unknown"], "not known"),
]


def migration(*statements: str, **facts: Any) -> dict[str, Any]:
    return {"atomic": True, "sql": list(statements), "operations": [], **facts}


@pytest.mark.parametrize(
    ("vendor", "statement", "locks", "reason"),
    [("postgresql", *case) for case in POSTGRESQL] + [("mysql", *case) for case in MYSQL],
)
def test_statements(vendor: str, statement: str, locks: list[str], reason: str) -> None:
    found = judge_locks(vendor, migration(statement + ";"), [], [])
    assert [f"{each['table']} {each['lock']}" for each in found] == locks
    if found:
        assert reason in found[0]["reason"]


def test_a_table_of_the_same_plan_does_not_count() -> None:
    statements = (
        'CREATE TABLE "t" ("id" int)',
        'CREATE INDEX "i" ON "t" ("id")',
        'CREATE INDEX "j" ON "o" ("a")',
    )
    assert [each["table"] for each in judge_locks("postgresql", migration(*statements), [], [])] == ["o"]
    assert judge_locks("postgresql", migration(*statements), ["o"], []) == []


def test_a_new_table_locks_those_it_points_to() -> None:
    found = judge_locks("postgresql", migration('CREATE TABLE "t" ("o" int REFERENCES "o" ("id"))'), [], [])
    assert [(each["table"], each["lock"]) for each in found] == [("o", "SHARE ROW EXCLUSIVE")]


def test_what_is_not_known() -> None:
    assert judge_locks("postgresql", migration(sql=None), [], [])[0]["lock"] == "unknown"
    code = {"class": "RunPython", "noop": False, "description": "Fill it"}
    found = judge_locks("postgresql", migration(operations=[code]), [], [])
    assert [each["lock"] for each in found] == ["unknown"]
    assert judge_locks("postgresql", migration(operations=[{**code, "noop": True}]), [], []) == []
    assert judge_locks("oracle", migration("ALTER TABLE t ADD c int"), [], []) == []


def test_sqlite_says_which_tables_are_copied() -> None:
    found = judge_locks("sqlite", migration('CREATE TABLE "new__t" ("id" int)'), [], ["t"])
    assert [(each["table"], each["lock"]) for each in found] == [("t", "write")]


def test_the_same_lock_is_named_once() -> None:
    found = judge_locks("postgresql", migration('DROP TABLE "t"', 'DROP TABLE "t"'), [], [])
    assert len(found) == 1


def test_transactions() -> None:
    ddl = "ALTER TABLE t ADD c int"
    code = {"class": "RunPython"}
    assert judge_transaction(migration(ddl), True) == "yes"
    assert judge_transaction(migration(ddl, atomic=False), True) == "no"
    assert judge_transaction(migration(ddl), False) == "no"
    assert judge_transaction(migration(ddl), None) == "unknown"
    assert judge_transaction(migration("UPDATE t SET a = 1"), False) == "yes"
    assert judge_transaction(migration("UPDATE t SET a = 1", "UPDATE t SET b = 1"), False) == "no"
    # Nothing happens, so nothing remains.
    assert judge_transaction(migration(atomic=False), False) == "yes"
    assert judge_transaction(migration(operations=[code]), False) == "no"
    assert judge_transaction(migration(sql=None), False) == "no"


def test_names() -> None:
    assert unquoted('"s"."a ""t"""') == 'a "t"'
    assert unquoted("`s`.`t`") == "t"
    assert unquoted("s.t") == "t"
    assert unquoted(None) == ""


# --- beside another linter ---

# What squawk's rules about locks find, and the words that our reason must then have.
SQUAWK = {
    "require-concurrent-index-creation": "until the index is built",
    "require-concurrent-index-deletion": "the table of the index",
    "adding-not-nullable-field": "read for NULLs",
    "changing-column-type": "written anew",
    "disallowed-unique-constraint": "index of the",
    "adding-field-with-default": "written anew",
    "adding-foreign-key-constraint": "all rows are checked",
    "constraint-missing-not-valid": "rows are checked|index of the",
}


def test_squawk_finds_no_lock_that_is_not_found_here(tmp_path: Path) -> None:
    program = shutil.which("squawk", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("squawk is not installed beside pytest; install requirements-dev.txt")
    script = tmp_path / "statements.sql"
    # One statement a line, so that the line says which one is meant; all in tables that are there before.
    script.write_text("".join(f"{case[0]};\n" for case in POSTGRESQL))
    done = subprocess.run(
        [program, "--reporter", "Json", "--pg-version", "15.0", str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    seen = set()
    for finding in json.loads(done.stdout):
        words = SQUAWK.get(finding["rule_name"])
        if words is None:
            continue
        seen.add(finding["rule_name"])
        statement = POSTGRESQL[finding["line"]][0]
        if " NULL CONSTRAINT " in statement and "DEFAULT" not in statement:
            # PostgreSQL does not check a foreign key of a new column that is NULL everywhere (transformAlterTableStmt).
            continue
        reasons = " ".join(each["reason"] for each in judge_locks("postgresql", migration(statement), [], []))
        assert re.search(words, reasons), (finding["rule_name"], statement, reasons)
    assert len(seen) >= 6, seen
