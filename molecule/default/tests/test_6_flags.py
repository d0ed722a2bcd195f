# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Feature flags on a host that serves: switched under traffic, read again by the service, and all off in seconds."""

from __future__ import annotations

import json
import re

import pytest
from seen import Service

NAMES = ["NEW_PAGES", "BULK_REPORTS"]
STAGES = {"dormant": {}, "complete": dict.fromkeys(NAMES, True)}


def given(store: dict, **more: object) -> tuple[str, str]:
    """The words of a command line that describe flags."""
    return "-e", json.dumps({"app_flags": {"store": store, "flags": NAMES, "stages": STAGES}, **more})


FILE = "/srv/goexplorer/shared/flags.env"
IN_FILE = {"kind": "environment_file", "path": FILE, "reload": "web"}
TABLE = {"kind": "sql", "table": "switches", "name_column": "name", "value_column": "active"}


@pytest.fixture(scope="module")
def on(step, site):
    before = Service(site)
    done = step("flags", *given(IN_FILE, flags_stage="complete", flags_reason="the last day"))
    done.services = before, before.replaced(site)
    done.file = site.run("cat", FILE)
    return done


@pytest.fixture(scope="module")
def off(on, step):
    return step("rollback", "--tags", "flags", *given(IN_FILE))


@pytest.fixture(scope="module")
def sqlite(site):
    def ask(statement: str) -> str:
        return site.run("sqlite3", site.database_path, statement, user=site.user).strip()

    ask("CREATE TABLE switches (name text PRIMARY KEY, active bool NOT NULL)")
    ask(f"INSERT INTO switches VALUES ('{NAMES[0]}', 1), ('{NAMES[1]}', 1), ('OTHER', 1)")
    yield ask
    ask("DROP TABLE switches")


class TestAFile:
    def test_a_stage_is_what_the_file_says(self, on, site):
        assert on.run.code == 0, str(on.run)
        assert on.file.splitlines() == [f"{name}=true" for name in NAMES]
        lines = site.run("cat", f"{site.root}/deployments/flags.jsonl").splitlines()
        begun, ended = (json.loads(line) for line in lines[:2])
        assert begun["changes"] == {name: [None, "true"] for name in NAMES}
        assert (begun["reason"], begun["host"]) == ("the last day", "web1")
        assert (ended["verdict"], ended["flags"]) == ("switched", dict.fromkeys(NAMES, "true"))

    def test_the_service_has_read_it_again_and_no_request_is_lost(self, on):
        before, after = on.services
        assert after.main == before.main
        assert not before.workers & after.workers
        assert on.traffic.failed == []

    def test_all_off_is_a_matter_of_seconds(self, off, site):
        assert off.run.code == 0, str(off.run)
        assert site.run("cat", FILE).splitlines() == [f"{name}=false" for name in NAMES]
        assert re.search(r"all off: done on 1 host in \d+\.\d s", off.run.output)
        assert off.traffic.failed == []

    def test_the_application_may_read_the_file_and_strangers_may_not(self, off, site):
        assert site.run("cat", FILE, user=site.user)
        assert site.attempt("cat", FILE, user="nobody").returncode != 0

    def test_no_release_was_touched(self, off, on, site):
        assert site.wrong("v2.6") == []
        assert off.traffic.versions == ["v2.6"]
        assert Service(site).main == on.services[0].main


class TestATable:
    def test_all_off(self, sqlite, step):
        done = step("flags", "--tags", "off", *given({**TABLE, "values": {"true": 1, "false": 0}}))
        assert done.run.code == 0, str(done.run)
        found = sqlite("SELECT name, active, typeof(active) FROM switches ORDER BY name").splitlines()
        assert found == [f"{name}|0|integer" for name in sorted(NAMES)] + ["OTHER|1|integer"]
        assert "done once for all hosts" in done.run.output
        assert done.traffic.failed == []
        # It is still the application that can write its database.
        assert sqlite("UPDATE switches SET active = 1; SELECT sum(active) FROM switches") == "3"
