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
CONTAINERS = PROJECT / "build" / "containers-postgresql"
sys.path.insert(0, str(PROJECT / "molecule" / "support"))
pytest.register_assert_rewrite("machine", "disclosure", "postgresql", "steps")

from machine import Machine
from postgresql import SIGNALS, Server
from steps import Access, Steps
from writes import Book

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
def steps(site: Machine, server: Server, book: Book, secrets: dict[str, str]) -> Steps:
    """What is done to the host, with everybody writing, and what is looked for afterwards."""
    return Steps(site, server, book, Access(PSQL, site.user), secrets, CONTAINERS / "reports")


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
