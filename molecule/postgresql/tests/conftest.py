# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host with its server, those who write to the database all the time, and what is looked for after every run."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[3]
SCENARIO = Path(__file__).resolve().parents[1]
CONTAINERS = PROJECT / "build" / "containers-postgresql"
sys.path.insert(0, str(PROJECT / "molecule" / "support"))
pytest.register_assert_rewrite("machine", "disclosure", "postgresql")

from disclosure import in_files_of_everybody, in_journal, in_records, in_reports, in_text
from machine import Machine
from postgresql import SIGNALS, Server
from runs import Run
from seen import backups
from traffic import Traffic
from writes import Book, Copy, Writer, contradictions, missing

# The application's user, through the local socket.
PSQL = ("psql", "-X", "-q", "-A", "-t", "-d", "goexplorer")
# What an operator has in the database beside the application's tables.
ADDED = """
SET ROLE goexplorer;
CREATE TABLE writer_deletions (id bigserial PRIMARY KEY, details text NOT NULL);
CREATE TABLE audit (id bigserial PRIMARY KEY, agreement bigint, at timestamptz DEFAULT now());
CREATE FUNCTION note_agreement() RETURNS trigger LANGUAGE plpgsql AS
 'BEGIN INSERT INTO audit (agreement) VALUES (NEW.id); RETURN NEW; END';
CREATE TRIGGER agreement_noted AFTER UPDATE ON owner_agreements_owneragreement FOR EACH ROW EXECUTE FUNCTION note_agreement();
CREATE VIEW open_signals AS SELECT id, details FROM owner_agreements_agreementrisksignal WHERE NOT is_resolved;
GRANT SELECT ON open_signals TO reader;
CREATE EXTENSION citext;
ALTER DATABASE goexplorer SET statement_timeout = '2min';
REVOKE CONNECT ON DATABASE goexplorer FROM PUBLIC;
GRANT CONNECT ON DATABASE goexplorer TO reader;
"""


@pytest.fixture(scope="session")
def site() -> Machine:
    """The host that the converge has set up, seen from outside."""
    return Machine("postgresql1", (CONTAINERS / "inventory.yml", SCENARIO / "inventory"))


@pytest.fixture(scope="session")
def server(site: Machine) -> Server:
    """Its database server, and in the application's database what an operator has there besides."""
    found = Server(site)
    if found.sql("SELECT to_regclass('audit') IS NULL") == "t":
        found.sql(ADDED)
    # Of an earlier run of these tests on the same host.
    found.sql(f"DELETE FROM {SIGNALS} WHERE details LIKE 'writer %'; TRUNCATE writer_deletions")
    for name in found.kept():
        found.sql(f"DROP DATABASE {name}", "postgres")
    return found


@pytest.fixture(scope="session")
def book() -> Book:
    """Every write that was acknowledged, over all steps."""
    return Book()


@pytest.fixture(scope="session")
def secrets() -> dict[str, str]:
    """The secrets of the inventory by name."""
    text = (SCENARIO / "inventory" / "group_vars" / "app.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["test_secrets"]


@pytest.fixture(scope="session")
def by_administrator() -> tuple[str, ...]:
    """The words of a command line with which databases are made by the server's administrator, without any password."""
    return "-e", f"@{SCENARIO / 'vars' / 'administrator.yml'}"


@pytest.fixture(scope="session")
def everything(site: Machine, server: Server, book: Book) -> Callable[[], SimpleNamespace]:
    """Find each acknowledged write, one by one; safety backups are restored only for what is nowhere else."""
    seen: dict[str, Copy] = {}

    def look() -> SimpleNamespace:
        live = server.copy()
        # What was put aside does not change any more.
        for name in server.kept():
            if name not in seen:
                seen[name] = server.copy(name)
        copies = [live, *seen.values()]
        lost = missing(book.acknowledged, copies)
        for name in sorted(backups(site), reverse=True) if lost else []:
            if name not in seen:
                seen[name] = server.backup(f"{site.root}/backups/{name}")
                lost = missing(lost, [seen[name]])
        return SimpleNamespace(
            live=live,
            copies=[live, *seen.values()],
            lost=lost,
            wrong=[each for copy in (live, *seen.values()) for each in contradictions(copy, book.sent)],
        )

    return look


@pytest.fixture(scope="session")
def writing(
    site: Machine, server: Server, book: Book
) -> Callable[[], contextlib.AbstractContextManager[Traffic]]:
    """People who write through the application and past it, for as long as a context lasts."""

    @contextlib.contextmanager
    def go_on() -> Iterator[Traffic]:
        with Traffic(site.address, book, pause=0.1) as traffic, Writer(site, book, PSQL, site.user):
            time.sleep(0.5)
            yield traffic

    return go_on


@pytest.fixture(scope="session")
def step(
    site: Machine, server: Server, book: Book, secrets: dict[str, str], writing: Callable
) -> Callable[..., SimpleNamespace]:
    """Run a playbook while everybody writes; return what was seen, and look for secrets wherever they must not be."""

    def run(
        name: str,
        *words: str,
        quiet: bool = False,
        meanwhile: contextlib.AbstractContextManager | None = None,
    ) -> SimpleNamespace:
        before = SimpleNamespace(
            backups=backups(site), kept=server.kept(), book=set(book.acknowledged), objects=server.objects()
        )
        load = contextlib.nullcontext() if quiet else writing()
        beside = meanwhile or contextlib.nullcontext()
        with beside, site.commands() as seen, load as traffic:
            done = site.playbook(name, *words)
        told(done)
        disclosed = [f"process {each}" for each in in_text(secrets, "\n".join(seen))]
        disclosed += [f"output {each}" for each in in_text(secrets, done.output)]
        disclosed += [f"record {each}" for each in in_records(site, secrets)]
        disclosed += [f"report {each}" for each in in_reports(CONTAINERS / "reports", secrets)]
        disclosed += [f"journal {each}" for each in in_journal(site, secrets)]
        disclosed += in_files_of_everybody(site, {"database": secrets["database"]})["found"]
        return SimpleNamespace(
            run=done,
            traffic=traffic,
            before=before,
            seen=seen,
            disclosed=disclosed,
            written=len(set(book.acknowledged) - before.book),
        )

    def told(done: Run) -> None:
        """Keep the report where a person finds it when a step fails: pytest shows it then."""
        print(f"\n[{done.seconds:.1f} s, exit code {done.code}] {done.command}\n{done.report}")

    return run


def modes(site: Machine) -> set[str]:
    """The types, modes and owners of all that is in backups."""
    return set(site.run("find", f"{site.root}/backups", "-printf", "%y %m %u\n").splitlines())


def untidy(site: Machine, server: Server) -> list[str]:
    """What is left behind: databases and scratch directories, or backups that others can read."""
    wrong = [f"database {name}" for name in server.strangers()]
    wrong += [f"scratch {name}" for name in site.run("ls", "-A", f"{site.root}/scratch").split()]
    return wrong + [f"mode {mode}" for mode in modes(site) - {"d 700 root", "f 600 root"}]


@pytest.fixture
def after(site: Machine, server: Server, everything: Callable) -> Callable[[SimpleNamespace, str], None]:
    """What holds after every step, whatever became of it: no write lost, nothing left behind, nothing disclosed."""

    def check(done: SimpleNamespace, serving: str) -> None:
        assert site.wrong_soon(serving) == [], str(done.run)
        assert untidy(site, server) == []
        assert done.disclosed == []
        found = everything()
        assert found.lost == []
        assert found.wrong == []

    return check
