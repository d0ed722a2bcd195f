# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the statements of a migration lock, and whether all of them can be rolled back. Pure.

Sources. PostgreSQL's documentation: "Explicit Locking" (which lock each command takes), ALTER TABLE (what rewrites or
scans the table), CREATE INDEX ("Building Indexes Concurrently"). MySQL's: "Online DDL Operations" and "Statements That
Cause an Implicit Commit". MariaDB's: "InnoDB Online DDL Overview". SQLite's: "Making Other Kinds Of Table Schema
Changes", "File Locking And Concurrency".

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

YES, NO, UNKNOWN = "yes", "no", "unknown"
NAME = r'((?:(?:"(?:[^"]|"")+"|`(?:[^`]|``)+`|[\w$]+)\.)?(?:"(?:[^"]|"")+"|`(?:[^`]|``)+`|[\w$]+))'
TABLE = re.compile(rf"^ALTER\s+TABLE\s+(?:IF\s+EXISTS\s+)?(?:ONLY\s+)?{NAME}\s+(.*)$", re.I | re.S)
INDEX = re.compile(
    rf"^CREATE\s+(?:(?:UNIQUE|FULLTEXT|SPATIAL)\s+)?INDEX\s+(CONCURRENTLY\s+)?(?:IF\s+NOT\s+EXISTS\s+)?(?:{NAME}\s+)?ON\s+"
    rf"(?:ONLY\s+)?{NAME}",
    re.I,
)
DROP_INDEX = re.compile(
    rf"^DROP\s+INDEX\s+(CONCURRENTLY\s+)?(?:IF\s+EXISTS\s+)?{NAME}(?:\s+ON\s+{NAME})?", re.I
)
CREATE_TABLE = re.compile(rf"^CREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?{NAME}", re.I)
DROP_TABLE = re.compile(rf"^DROP\s+TABLE\s+(?:IF\s+EXISTS\s+)?{NAME}", re.I)
RENAME_TABLE = re.compile(rf"^RENAME\s+TABLE\s+{NAME}", re.I)
WRITES = re.compile(rf"^(?:UPDATE\s+(?:ONLY\s+)?|DELETE\s+FROM\s+(?:ONLY\s+)?){NAME}", re.I)
REFERENCES = re.compile(rf"\bREFERENCES\s+{NAME}", re.I)
# Begins a statement that changes the schema: in MySQL it ends the transaction that is open.
DDL = re.compile(r"^(?:CREATE|ALTER|DROP|RENAME|TRUNCATE)\b", re.I)
# Values that PostgreSQL writes into each row instead of once into the catalogue (ALTER TABLE: a volatile default).
VOLATILE = re.compile(
    r"\b(?:gen_random_uuid|uuid_generate_v\d\w*|random|clock_timestamp|timeofday|nextval)\s*\(|"
    r"\bGENERATED\b|\b(?:big|small)?serial\b",
    re.I,
)
# What the shortest of the strongest locks costs a busy site.
QUEUE = "short, but everything else waits while it waits for the transactions that are open on the table"


def unquoted(name: str | None) -> str:
    """Return the table's name alone, without schema and quotes."""
    last = re.findall(r'"(?:[^"]|"")+"|`(?:[^`]|``)+`|[\w$]+', name or "")
    if not last:
        return ""
    text = last[-1]
    return text[1:-1].replace(text[0] * 2, text[0]) if text[0] in '"`' else text


def entry(table: str | None, lock: str, reason: str) -> dict[str, Any]:
    """Return ``{table, lock, reason}``; *table* may still have its quotes."""
    return {"table": unquoted(table), "lock": lock, "reason": reason}


def judge_locks(
    vendor: str,
    migration: Mapping[str, Any],
    created: Iterable[str],
    rebuilt: Sequence[str],
    mariadb: bool = False,
) -> list[dict[str, Any]]:
    """Return what the site notices of a migration's locks, each ``{table, lock, reason}``, without duplicates.

    :param vendor: ``postgresql``, ``mysql`` or ``sqlite``; for any other nothing is known.
    :param migration: with ``sql``, a list of statements or None, and ``operations`` with ``class``.
    :param created: tables that the same plan has made, in which nobody waits.
    :param rebuilt: the tables that SQLite copies.
    """
    if vendor == "sqlite":
        reason = "the table is copied in one transaction, and every writer of the database waits for its end"
        return [entry(table, "write", reason) for table in rebuilt]
    if vendor not in ("postgresql", "mysql"):
        return []
    new = set(created)
    found: list[dict[str, Any]] = []
    statements = migration.get("sql")
    if statements is None:
        found.append(
            entry("", UNKNOWN, "its statements are not known before it runs, so neither are its locks")
        )
    for statement in statements or ():
        text = " ".join(str(statement).split()).rstrip(";")
        made = CREATE_TABLE.match(text)
        if made:
            new.add(unquoted(made.group(1)))
        judged = _postgresql(text) if vendor == "postgresql" else _mysql(text, mariadb)
        found += [each for each in judged if each["table"] not in new]
    for operation in migration.get("operations", ()):
        if operation.get("class") == "RunPython" and not operation.get("noop"):
            found.append(
                entry(
                    "",
                    UNKNOWN,
                    "what the rows' code locks is not known before it runs: " + operation["description"],
                )
            )
    unique = []
    for each in found:
        if each not in unique:
            unique.append(each)
    return unique


# --- PostgreSQL ---


def _postgresql(text: str) -> list[dict[str, Any]]:
    found = INDEX.match(text)
    if found:
        if found.group(1):
            return [
                entry(
                    found.group(3),
                    "SHARE UPDATE EXCLUSIVE",
                    "nobody waits, but it waits for every transaction that is open; when it fails an invalid index stays",
                )
            ]
        return [entry(found.group(3), "SHARE", "writes wait until the index is built (no CONCURRENTLY)")]
    found = DROP_INDEX.match(text)
    if found:
        lock = "SHARE UPDATE EXCLUSIVE" if found.group(1) else "ACCESS EXCLUSIVE"
        return [entry("", lock, f"the table of the index {unquoted(found.group(2))}: {QUEUE}")]
    found = DROP_TABLE.match(text)
    if found:
        return [entry(found.group(1), "ACCESS EXCLUSIVE", QUEUE)]
    found = CREATE_TABLE.match(text)
    if found:
        return _referenced(text)
    found = TABLE.match(text)
    if found:
        return _alter_postgresql(found.group(1), found.group(2))
    found = WRITES.match(text)
    if found:
        return [
            entry(
                found.group(1),
                "ROW EXCLUSIVE",
                "the rows that it changes stay locked to the end of the transaction",
            )
        ]
    if re.match(r"(?:SET|SELECT|COMMENT|INSERT|CREATE\s+(?:EXTENSION|COLLATION|SEQUENCE))\b", text, re.I):
        return []
    return [entry("", UNKNOWN, f"what this statement locks is not known: {text[:80]}")]


def _referenced(text: str) -> list[dict[str, Any]]:
    return [
        entry(name, "SHARE ROW EXCLUSIVE", f"a new foreign key points to it: {QUEUE}")
        for name in REFERENCES.findall(text)
    ]


def _alter_postgresql(table: str, rest: str) -> list[dict[str, Any]]:
    def has(pattern: str) -> bool:
        return re.search(pattern, rest, re.I) is not None

    def exclusive(reason: str) -> list[dict[str, Any]]:
        return [entry(table, "ACCESS EXCLUSIVE", reason)]

    if has(r"^VALIDATE\s+CONSTRAINT"):
        return [entry(table, "SHARE UPDATE EXCLUSIVE", "reads and writes go on while the rows are checked")]
    if has(r"^ADD\s+CONSTRAINT"):
        if has(r"\bFOREIGN\s+KEY\b"):
            scan = (
                QUEUE if has(r"\bNOT\s+VALID\b") else "writes wait while all rows are checked (no NOT VALID)"
            )
            return [entry(table, "SHARE ROW EXCLUSIVE", scan)] + [
                entry(name, "SHARE ROW EXCLUSIVE", scan) for name in REFERENCES.findall(rest)
            ]
        if has(r"\bUSING\s+INDEX\b") or has(r"\bNOT\s+VALID\b"):
            return exclusive(QUEUE)
        if has(r"\bCHECK\b"):
            return exclusive("reads and writes wait while all rows are checked (no NOT VALID)")
        return exclusive("reads and writes wait while the index of the constraint is built")
    if has(r"^ADD\b"):
        rewrites = bool(VOLATILE.search(rest))
        reason = "reads and writes wait while every row is written anew (its value differs from row to row)"
        found = exclusive(reason if rewrites else QUEUE)
        if has(r"\bREFERENCES\b") and has(r"\bDEFAULT\b"):
            # Without a default the new column is NULL everywhere, and PostgreSQL checks nothing.
            found = exclusive(
                "reads and writes wait while all rows are checked against the table it points to"
            )
        if has(r"\bUNIQUE\b|\bPRIMARY\s+KEY\b"):
            found = exclusive("reads and writes wait while the index of the column is built")
        return found + _referenced(rest)
    if has(r"\bTYPE\b"):
        return exclusive(
            "reads and writes wait; every row and index is written anew, unless the new type only allows longer text"
        )
    if has(r"\bSET\s+NOT\s+NULL\b"):
        return exclusive("reads and writes wait while all rows are read for NULLs")
    return exclusive(QUEUE)


# --- MySQL and MariaDB ---


def _mysql(text: str, mariadb: bool) -> list[dict[str, Any]]:
    begin = "short, but everything else waits while it waits for the transactions that are open on the table"
    found = INDEX.match(text)
    if found:
        return [entry(found.group(3), "INPLACE", f"reads and writes go on; {begin}")]
    found = DROP_INDEX.match(text)
    if found:
        return [entry(found.group(3), "INPLACE", begin)]
    found = DROP_TABLE.match(text) or RENAME_TABLE.match(text)
    if found:
        return [entry(found.group(1), "EXCLUSIVE", begin)]
    if CREATE_TABLE.match(text):
        return [entry(name, "EXCLUSIVE", begin) for name in REFERENCES.findall(text)]
    found = TABLE.match(text)
    if found:
        return _alter_mysql(found.group(1), found.group(2), mariadb, begin)
    found = WRITES.match(text)
    if found:
        return [
            entry(found.group(1), "ROW", "the rows that it changes stay locked to the end of the statement")
        ]
    if re.match(r"(?:SET|SELECT|INSERT)\b", text, re.I):
        return []
    return [entry("", UNKNOWN, f"what this statement locks is not known: {text[:80]}")]


def _alter_mysql(table: str, rest: str, mariadb: bool, begin: str) -> list[dict[str, Any]]:
    def has(pattern: str) -> bool:
        return re.search(pattern, rest, re.I) is not None

    instant = "10.3" if mariadb else "8.0.12"
    dropped = "10.4" if mariadb else "8.0.29"
    if has(r"\bFOREIGN\s+KEY\b") and not has(r"^DROP\b"):
        copied = (
            "writes wait while the table is copied, because foreign keys are checked (foreign_key_checks=1)"
        )
        return [entry(table, "COPY", copied)] + [
            entry(name, "EXCLUSIVE", begin) for name in REFERENCES.findall(rest)
        ]
    if has(
        r"^(?:ADD\s+(?:CONSTRAINT\s+\S+\s+)?(?:UNIQUE|INDEX|KEY)\b|DROP\s+(?:INDEX|KEY|FOREIGN|CONSTRAINT|CHECK)\b|RENAME\s+INDEX)"
    ):
        return [entry(table, "INPLACE", f"reads and writes go on; {begin}")]
    if has(r"^ADD\s+CONSTRAINT\b.*\bCHECK\b"):
        return [entry(table, "COPY", "writes wait while the table is copied, as for every new CHECK")]
    if has(r"^ADD\s+(?:COLUMN\s+)?"):
        if has(r"\bAUTO_INCREMENT\b|\bSTORED\b|\bPERSISTENT\b"):
            return [entry(table, "COPY", "writes wait while the table is copied")]
        return [
            entry(table, "INSTANT", f"from version {instant}, before that the table is built anew; {begin}")
        ]
    if has(r"^DROP\s+(?:COLUMN\s+)?"):
        return [
            entry(table, "INSTANT", f"from version {dropped}, before that the table is built anew; {begin}")
        ]
    if has(r"^RENAME\s+(?:COLUMN|TO)\b") or has(r"^ALTER\s+(?:COLUMN\s+)?\S+\s+(?:SET|DROP)\s+DEFAULT"):
        return [entry(table, "INSTANT", begin)]
    if has(r"^(?:MODIFY|CHANGE)\b"):
        return [
            entry(
                table,
                "COPY",
                "writes wait while the table is copied, unless the type stays: then it is built anew beside them",
            )
        ]
    return [entry(table, UNKNOWN, f"what this statement locks is not known: {rest[:80]}")]


# --- transactions ---


def judge_transaction(migration: Mapping[str, Any], can_rollback_ddl: bool | None) -> str:
    """Return whether nothing of the migration remains when it fails: ``yes``, ``no`` or ``unknown``.

    :param migration: with ``atomic``, and ``sql`` as a list of statements or None.
    :param can_rollback_ddl: whether the engine can roll back changes of the schema; None: not known.
    """
    statements = migration.get("sql")
    if statements == [] and not _runs_code(migration):
        return YES
    if not migration["atomic"]:
        return NO
    if can_rollback_ddl is None:
        return UNKNOWN
    if can_rollback_ddl:
        return YES
    if statements is not None and not _runs_code(migration) and len(statements) == 1:
        # One statement of InnoDB is done as a whole or not at all, in MySQL since version 8.0.
        return NO if DDL.match(statements[0]) else YES
    return NO


def _runs_code(migration: Mapping[str, Any]) -> bool:
    return any(facts.get("class") == "RunPython" for facts in migration.get("operations", ()))
