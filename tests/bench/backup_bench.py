# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare backups of a PostgreSQL database with PostgreSQL's own programs, used by hand.

    backup_bench.py [--rounds=5] [--megabytes=300] [--patience=60]

A private server, with its defaults, gets generated data of at least that size. Each round takes, in turn: ``pg_dump -Fc``;
the same with ``createdb`` and ``pg_restore -j2`` after it; and the module database_backup as one process on this host,
without a check, reading the backup whole, and restoring it. What is timed is each process from its begin to its end; the
module's time has the checksum, the rows counted, the comparison and the removal of the scratch database in it. The first
round is a warm-up and does not count.

Prints medians, spreads and ratios, and enters them into build/bench.json. Exit code 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
HELPERS = PROJECT / "tests" / "unit" / "plugins" / "module_utils"
sys.path[:0] = [str(PROJECT / ".ansible_dev"), str(HELPERS)]

from django_servers import PASSWORD, Postgresql, program  # noqa: E402
from figures import busy, enter, missed, row_of, table  # noqa: E402

RESULT = PROJECT / "build" / "bench.json"
SECONDS = 1800
# Share of the processors that others may use when a measurement begins.
QUIET = 0.1
# Tables of a shop: short texts of words, numbers, times, a document, references and indexes.
WORDS = (
    "amber birch cedar delta ember fjord grove haven iris juniper kelp linen maple north olive pearl quartz river "
    "stone thyme umber velvet willow yarrow zephyr the of and for with from large small wooden red green"
)
# Depends on n, so that each row gets words of its own.
WORD = f"(string_to_array('{WORDS}', ' '))[1 + floor(random() * {len(WORDS.split())} + (n + w) * 0)::int]"
TEXT = f"(SELECT string_agg({WORD}, ' ') FROM generate_series(1, 9) w)"
SCHEMA = """
CREATE TABLE django_migrations (id serial PRIMARY KEY, app text, name text, applied timestamptz DEFAULT now());
INSERT INTO django_migrations (app, name) VALUES ('shop', '0001_initial');
CREATE TABLE customer (id bigint PRIMARY KEY, email text UNIQUE, about text, joined timestamptz);
CREATE TABLE purchase (id bigint PRIMARY KEY, customer_id bigint REFERENCES customer, note text, total numeric(10, 2), made timestamptz, extra jsonb);
CREATE INDEX purchase_customer ON purchase (customer_id); CREATE INDEX purchase_made ON purchase (made);
"""
BATCH = 50_000


class Shop(Postgresql):
    """A server with its defaults: the tests' own one does not wait for the disk."""

    def start(self) -> None:
        options = {
            "port": self.port,
            "unix_socket_directories": self.directory,
            "listen_addresses": "127.0.0.1",
        }
        arguments = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
        self.spawn(program("postgres"), "-D", str(self.data), *arguments)

    def as_app(self, statement: str) -> list[list[str]]:
        """Run *statement* as the application's role."""
        return self.sql(f"SET ROLE app; {statement}")

    def size(self) -> int:
        """Return the bytes of the database, as the server counts them."""
        return int(self.sql("SELECT pg_database_size('shop')")[-1][0])

    def fill(self, size: int) -> None:
        """Generate rows, always the same ones, until the database has *size* bytes."""
        self.clean()
        self.sql(f"DROP DATABASE {self.scratch}", "postgres")
        self.sql("ALTER ROLE app CREATEDB", "postgres")
        self.as_app(SCHEMA)
        first = 1
        while self.size() < size:
            last = first + BATCH - 1
            self.as_app(
                f"SELECT setseed({first % 997 / 1000}); INSERT INTO customer SELECT n, 'user' || n || '@example.org', {TEXT}, "
                f"timestamptz '2020-01-01' + n * interval '7 minutes' FROM generate_series({first}, {last}, 5) n; "
                f"INSERT INTO purchase SELECT n, {first} + 5 * ((n % 10000 * 7919) % {BATCH // 5}), {TEXT}, random() * 1000, "
                "timestamptz '2021-01-01' + n * interval '90 seconds', "
                "jsonb_build_object('paid', n % 3 = 0, 'weight', round((random() * 50)::numeric, 3), 'ref', md5(n::text)) "
                f"FROM generate_series({first}, {last}) n"
            )
            first += BATCH
        self.sql("VACUUM ANALYZE")


class Bench:
    """One server, one directory of an application; *patience*: seconds to wait for a quiet machine, each time."""

    def __init__(self, server: Shop, base: Path, patience: float) -> None:
        self.server = server
        self.base = base
        self.patience = patience
        self.disturbed: list[float] = []
        self.root = base / "srv"
        self.root.mkdir()
        login = {"PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGUSER": "app", "PGPASSWORD": PASSWORD}
        self.environment = {**os.environ, **login}
        self.dump = base / "by_hand.dump"

    def settle(self) -> None:
        """Write out what the measurement before has left to write, and wait for quiet."""
        self.server.sql("CHECKPOINT")
        os.sync()
        deadline = time.monotonic() + self.patience
        while (used := busy()) > QUIET and time.monotonic() < deadline:
            pass
        self.disturbed.append(used)

    def run(self, *argv: str, environment: dict[str, str] | None = None) -> str:
        """Run one program and return what it printed."""
        done = subprocess.run(
            argv, env=environment or self.environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(
                f"backup_bench: {argv[0]} ended with {done.returncode}: {(done.stderr or done.stdout)[-2000:]}"
            )
        return done.stdout

    def by_hand(self, restore: bool) -> float:
        """Return the seconds of a dump by hand, with *restore* of its restore, too."""
        self.settle()
        begun = time.monotonic()
        self.run(program("pg_dump"), "-Fc", "-f", str(self.dump), "shop")
        if restore:
            self.run(program("createdb"), "by_hand")
            self.run(program("pg_restore"), "-j2", "-d", "by_hand", str(self.dump))
        seconds = time.monotonic() - begun
        self.dump.unlink()
        if restore:
            self.run(program("dropdb"), "by_hand")
        return seconds

    def by_module(self, verify: str) -> float:
        """Return the seconds of a backup by the module, after looking at what it left."""
        self.settle()
        arguments = self.base / "arguments.json"
        database = {**self.server.database, "password": PASSWORD}
        options = {"root": str(self.root), "application": "bench", "database": database, "verify": verify}
        arguments.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": options}))
        module = PROJECT / "plugins" / "modules" / "database_backup.py"
        path = os.pathsep.join(entry for entry in sys.path if entry)
        begun = time.monotonic()
        out = self.run(
            sys.executable, str(module), str(arguments), environment={**os.environ, "PYTHONPATH": path}
        )
        seconds = time.monotonic() - begun
        backup = json.loads(out)["backup"]
        if backup["verified"] != verify or backup["counts"].get("purchase") != self.rows:
            raise SystemExit(f"backup_bench: this is not the backup that was asked for: {backup}")
        if self.server.sql("SELECT datname FROM pg_database WHERE datname ~ 'scratch'", "postgres"):
            raise SystemExit("backup_bench: the trial restore has left its database")
        shutil.rmtree(self.root / "backups")
        return seconds

    @property
    def rows(self) -> int:
        """The rows of the largest table, asked from the live database."""
        return int(self.server.sql("SELECT count(*) FROM purchase")[-1][0])

    def round(self, number: int) -> dict[str, float]:
        """Measure each way once; who begins takes turns."""
        ways: list[tuple[str, Callable[[], float]]] = [
            ("by_hand_dump", lambda: self.by_hand(False)),
            ("backup", lambda: self.by_module("none")),
            ("backup_read", lambda: self.by_module("read")),
            ("by_hand_dump_restore", lambda: self.by_hand(True)),
            ("backup_restored", lambda: self.by_module("restore")),
        ]
        return {name: way() for name, way in (ways if number % 2 else reversed(ways))}


def table_of(rounds: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Return one row for each way, with the bare programs that do the same as its floor."""
    floors = {"backup_restored": "by_hand_dump_restore", "by_hand_dump_restore": "by_hand_dump_restore"}
    names = ("backup", "backup_read", "backup_restored", "by_hand_dump", "by_hand_dump_restore")
    return [
        row_of(
            name, *([entry[each] for entry in rounds] for each in (name, floors.get(name, "by_hand_dump")))
        )
        for name in names
    ]


def main() -> int:
    """Measure, print, write; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--megabytes", type=int, default=300, help="least size of the database")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for quiet, each time")
    given = parser.parse_args()
    server = Shop()
    try:
        server.fill(given.megabytes * 1_000_000)
        print(f"{server.size() / 1e6:.0f} MB, {server.sql('SHOW server_version')[-1][0]}", flush=True)
        rounds = []
        with tempfile.TemporaryDirectory(prefix="backup-bench-") as base:
            bench = Bench(server, Path(base), given.patience)
            for number in range(given.rounds + 1):
                bench.disturbed.clear()
                times = bench.round(number)
                shown = ", ".join(f"{name} {seconds:.2f}" for name, seconds in times.items())
                others = f"others used up to {max(bench.disturbed):.0%}"
                print(f"{f'round {number}' if number else 'warm-up'} ({others}): {shown}", flush=True)
                if number:
                    rounds.append(times)
    finally:
        server.close()
    rows = table_of(rounds)
    enter(RESULT, rows)
    print(f"\nmedians of {len(rounds)} rounds in seconds\n{table(rows)}")
    failures = missed(rows)
    print("\n".join(failures) if failures else "All targets are reached.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
