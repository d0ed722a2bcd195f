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
CONTAINERS = PROJECT / "build" / "containers-mariadb"
sys.path.insert(0, str(PROJECT / "molecule" / "support"))
pytest.register_assert_rewrite("machine", "disclosure", "mariadb")

from disclosure import in_files_of_everybody, in_journal, in_records, in_reports, in_text
from machine import Machine
from mariadb import Server
from seen import backups
from traffic import Answer, Traffic, ask
from writes import Book, Copy, Writer, contradictions, missing

# As the server's administrator, through the local socket; a client that lost its server is started again by the writer.
CLIENT = ("mariadb", "--batch", "--skip-column-names", "--unbuffered", "--skip-reconnect", "leadbook")
# What an operator has in the database beside the application's tables.
ADDED = """
CREATE TABLE writer_deletions (id BIGINT PRIMARY KEY AUTO_INCREMENT, details TEXT NOT NULL);
CREATE TABLE audit (id BIGINT PRIMARY KEY AUTO_INCREMENT, lead_id INT, at DATETIME(6) NOT NULL);
CREATE TRIGGER lead_scored AFTER UPDATE ON leads FOR EACH ROW
 INSERT INTO audit (lead_id, at) SELECT NEW.id, NOW(6) FROM DUAL WHERE NEW.score <> OLD.score;
CREATE VIEW scored AS SELECT id, email FROM leads WHERE score > 0;
CREATE FUNCTION doubled(number INT) RETURNS INT DETERMINISTIC RETURN 2 * number;
CREATE EVENT tidy ON SCHEDULE EVERY 1 DAY STARTS '2037-01-01 00:00:00' DO DELETE FROM audit WHERE at < NOW() - INTERVAL 1 YEAR;
INSERT INTO leads (email, company, score, created_at) VALUES ('Ada@example.org', 'Engines', 7, NOW()), ('Grace@example.org', 'Ships', 0, NOW());
"""


class Leads(Book):
    """What was sent and acknowledged, through the application's interface for leads."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self.token = token

    def send(self, address: str, text: str) -> Answer:
        """Have the application insert a lead with this text."""
        return ask(address, "/api/v1/leads", "POST", {"email": text, "company": "Visitors"}, token=self.token)


@pytest.fixture(scope="session")
def site() -> Machine:
    """The host that the converge has set up, seen from outside."""
    return Machine(
        "mariadb1", (CONTAINERS / "inventory.yml", SCENARIO / "inventory"), "leadbook", health="/healthz"
    )


@pytest.fixture(scope="session")
def server(site: Machine) -> Server:
    """Its database server, and in the application's database what an operator has there besides."""
    found = Server(site)
    if "audit" not in found.tables():
        found.rows(ADDED)
    # Of an earlier run of these tests on the same host.
    found.rows("DELETE FROM leads WHERE email LIKE 'writer %'; TRUNCATE writer_deletions")
    for name in found.kept():
        found.rows(f"DROP DATABASE {name}", "mysql")
    return found


@pytest.fixture(scope="session")
def secrets() -> dict[str, str]:
    """The secrets of the inventory by name."""
    text = (SCENARIO / "inventory" / "group_vars" / "app.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["test_secrets"]


@pytest.fixture(scope="session")
def book(secrets: dict[str, str]) -> Book:
    """Every write that was acknowledged, over all steps."""
    return Leads(secrets["token"])


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
        lost = missing(book.acknowledged, [live, *seen.values()])
        for name in sorted(backups(site), reverse=True) if lost else []:
            if name not in seen:
                seen[name] = server.backup(f"{site.root}/backups/{name}")
                lost = missing(lost, [seen[name]])
        copies = [live, *seen.values()]
        wrong = [each for copy in copies for each in contradictions(copy, book.sent)]
        return SimpleNamespace(live=live, copies=copies, lost=lost, wrong=wrong)

    return look


@pytest.fixture(scope="session")
def step(
    site: Machine, server: Server, book: Book, secrets: dict[str, str]
) -> Callable[..., SimpleNamespace]:
    """Run a playbook while everybody writes; return what was seen, and look for secrets wherever they must not be."""

    @contextlib.contextmanager
    def writing() -> Iterator[Traffic]:
        with Traffic(site.address, book, pause=0.1) as traffic, Writer(site, book, CLIENT, "root"):
            time.sleep(0.5)
            yield traffic

    def run(name: str, *words: str, quiet: bool = False) -> SimpleNamespace:
        before = SimpleNamespace(
            backups=backups(site), kept=server.kept(), book=set(book.acknowledged), objects=server.objects()
        )
        load = contextlib.nullcontext() if quiet else writing()
        with site.commands() as seen, load as traffic:
            done = site.playbook(name, *words)
        # Kept where a person finds it when a step fails: pytest shows it then.
        print(f"\n[{done.seconds:.1f} s, exit code {done.code}] {done.command}\n{done.report}")
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

    return run


def untidy(site: Machine, server: Server) -> list[str]:
    """What is left behind: databases and scratch directories, or backups that others can read."""
    wrong = [f"database {name}" for name in server.strangers()]
    wrong += [f"scratch {name}" for name in site.run("ls", "-A", f"{site.root}/scratch").split()]
    modes = set(site.run("find", f"{site.root}/backups", "-printf", "%y %m %u\n").splitlines())
    return wrong + [f"mode {mode}" for mode in modes - {"d 700 root", "f 600 root"}]


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
