# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real SQLite databases, and real processes that write to them, for the tests of backup and restore."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SCHEMA = """
CREATE TABLE django_migrations (id INTEGER PRIMARY KEY, app TEXT NOT NULL, name TEXT NOT NULL);
INSERT INTO django_migrations (app, name) VALUES ('shop', '0001_initial'), ('auth', '0001_initial'), ('shop', '0002_notes');
CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE note (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customer (id), text TEXT NOT NULL);
CREATE INDEX note_text ON note (text);
INSERT INTO customer (name) VALUES ('Ada'), ('Grace');
INSERT INTO note (customer_id, text) VALUES (1, 'first'), (1, 'second'), (2, 'third');
"""

# Two rows in one transaction, so that a torn copy shows an odd number; each is acknowledged after its commit.
WRITER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=60)
number = 0
while True:
    number += 1
    with connection:
        connection.execute("INSERT INTO note (customer_id, text) VALUES (1, ?)", (f"a{number}",))
        connection.execute("INSERT INTO note (customer_id, text) VALUES (2, ?)", (f"b{number}",))
    print(number, flush=True)
"""

# Keeps the database open, in a master with a worker when asked to, and says when it is so.
HOLDER = """
import os, signal, sqlite3, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "master" in sys.argv:
    def begin():
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            hold()
    def hold():
        connection = sqlite3.connect(sys.argv[1])
        connection.execute("SELECT count(*) FROM note").fetchone()
        print("open", flush=True)
        time.sleep(60)
        os._exit(0)
    begin()
    while True:
        os.wait()
        begin()
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM note").fetchone()
if "write" in sys.argv:
    connection.execute("INSERT INTO note (customer_id, text) VALUES (1, 'late')")
    connection.commit()
print("open", flush=True)
time.sleep(60)
"""


def make_database(path: Path, wal: bool = False, rows: int = 0) -> Path:
    """Make a database with migrations, two tables, and *rows* further rows of 1000 bytes each."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        if wal:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(SCHEMA)
        with connection:
            connection.executemany(
                "INSERT INTO note (customer_id, text) VALUES (1, ?)",
                ((f"{n:04d}" * 250,) for n in range(rows)),
            )
    return path


def execute(path: Path, *statements: str) -> None:
    """Run *statements* in one transaction."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def ask(path: Path, statement: str) -> list[tuple]:
    """Return the rows of *statement*."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


@contextlib.contextmanager
def process(script: str, *arguments: object, root: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run *script*, with the environment of a service below *root*; yield it once it has printed a line."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RUNBOOK_")}
    if root is not None:
        environment.update(
            RUNBOOK_ROOT=str(root), RUNBOOK_SERVICE="web", RUNBOOK_DEPLOYMENT="d", RUNBOOK_RELEASE="r"
        )
    found = subprocess.Popen(
        [sys.executable, "-c", script, *(str(argument) for argument in arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        assert found.stdout.readline()
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(found.pid, signal.SIGKILL)
        found.stdout.close()
        found.wait()
