# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host with its server, those who write to the database all the time, and what is looked for after every run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[3]
SCENARIO = Path(__file__).resolve().parents[1]
CONTAINERS = PROJECT / "build" / "containers-mariadb"
sys.path.insert(0, str(PROJECT / "molecule" / "support"))
pytest.register_assert_rewrite("machine", "disclosure", "mariadb", "steps")

from machine import Machine
from mariadb import Server
from steps import Access, Steps
from traffic import Answer, ask
from writes import Book

# As the server's administrator, through the local socket; a client that lost its server is started again by the writer.
CLIENT = ("mariadb", "--batch", "--skip-column-names", "--unbuffered", "--skip-reconnect", "leadbook")
# What an operator has in the database beside the application's tables.
ADDED = """
CREATE TABLE writer_deletions (id BIGINT PRIMARY KEY AUTO_INCREMENT, details TEXT NOT NULL);
CREATE TABLE notes (id BIGINT PRIMARY KEY AUTO_INCREMENT, text TEXT);
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
        found.forget(name, "leadbook@'127.0.0.1'")
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
def steps(site: Machine, server: Server, book: Book, secrets: dict[str, str]) -> Steps:
    """What is done to the host, with everybody writing, and what is looked for afterwards."""
    return Steps(site, server, book, Access(CLIENT, "root"), secrets, CONTAINERS / "reports")


@pytest.fixture(scope="session")
def everything(steps: Steps) -> Callable[[], SimpleNamespace]:
    """Find each acknowledged write, one by one."""
    return steps.everything


@pytest.fixture(scope="session")
def step(steps: Steps) -> Callable[..., SimpleNamespace]:
    """Run a playbook while everybody writes; return what was seen."""
    return steps.run


@pytest.fixture
def after(steps: Steps) -> Callable[[SimpleNamespace, str], None]:
    """What holds after every step, whatever became of it."""
    return steps.check
