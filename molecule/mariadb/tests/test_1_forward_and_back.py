# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first deployment; forward to v9 and back with the migrations reversed, while everybody writes; what a backup holds."""

from __future__ import annotations

import json

import pytest
from seen import backups


class TestFirstDeployment:
    """Made by the converge, on an empty database of an account that has rights on nothing else."""

    def test_exactly_one_instance_of_v8_serves(self, site):
        assert site.wrong("v8") == []

    def test_the_first_revisions_are_applied(self, server):
        assert server.revisions() == ["0002"]

    def test_no_backup_of_an_empty_database(self, site):
        assert backups(site) == []

    def test_the_account_has_no_rights_but_on_its_database(self, server):
        assert server.granted() == {server.name}
        assert server.strangers() == []


@pytest.fixture(scope="class")
def upgrade(server, step):
    return step("deploy", "-e", "version=v9")


class TestUpgrade:
    def test_it_succeeds(self, upgrade, after):
        assert upgrade.run.code == 0, str(upgrade.run)
        assert "SUCCESS" in upgrade.run.report.splitlines()[0]
        after(upgrade, "v9")

    def test_no_request_is_lost(self, upgrade, book):
        assert upgrade.traffic.failed == []
        assert upgrade.traffic.versions == ["v8", "v9"]
        assert min(book.kinds()[kind] for kind in ("http", "insert", "update", "delete")) > 5, book.kinds()

    def test_the_migrations_are_applied(self, upgrade, server):
        assert server.revisions() == ["0004"]
        assert server.counts("review_decisions") == {"review_decisions": 0}
        assert server.sql("SELECT COUNT(*) FROM leads WHERE requires_human_review") == "0"

    def test_what_the_operator_added_is_untouched(self, upgrade, server):
        now = server.objects()
        before = {name: text for name, text in upgrade.before.objects.items() if not name.startswith("view ")}
        assert {name: now.get(name) for name in before} == before

    def test_the_backup_is_what_the_server_s_own_programs_restore(self, upgrade, site, server, book):
        (name,) = set(backups(site)) - set(upgrade.before.backups)
        manifest = json.loads(site.run("cat", f"{site.root}/backups/{name}/manifest.json"))
        copy = server.backup(f"{site.root}/backups/{name}")
        # Two leads are the operator's own.
        assert manifest["counts"]["leads"] == len(copy.rows) + 2
        assert manifest["counts"]["writer_deletions"] == len(copy.deleted)
        assert copy.marks & set(book.acknowledged)
        assert set(book.acknowledged) - copy.marks

    def test_the_watch_on_processes_sees_the_clients(self, upgrade):
        assert any("mariadb" in line and "--defaults-extra-file=" in line for line in upgrade.seen)


@pytest.fixture(scope="class")
def back(server, step):
    return step("rollback", "-e", "rollback_level=migrations", "-e", "rollback_consent=true")


class TestRollbackOfTheMigrations:
    def test_it_succeeds(self, back, after):
        assert back.run.code == 0, str(back.run)
        after(back, "v8")

    def test_no_request_is_lost(self, back):
        assert back.traffic.failed == []
        assert back.traffic.versions == ["v9", "v8"]
        assert back.written > 20

    def test_the_migrations_are_reversed(self, back, server):
        assert server.revisions() == ["0002"]
        assert server.counts("review_decisions") == {"review_decisions": -1}

    def test_nothing_was_put_aside(self, back, server):
        assert server.kept() == []
