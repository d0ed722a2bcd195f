# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""By a role with a password: forward to v2.7 and back with the migration reversed, while everybody writes."""

from __future__ import annotations

import json

import pytest

NOTES = "owner_agreements_admin_notes"
ADMIN_NOTE = "owner_agreements.0004_adminnote"


@pytest.fixture(scope="class")
def upgrade(server, step):
    return step("deploy", "-e", "version=v2.7")


class TestUpgrade:
    def test_it_succeeds(self, upgrade, after):
        assert upgrade.run.code == 0, str(upgrade.run)
        assert "SUCCESS" in upgrade.run.report.splitlines()[0]
        after(upgrade, "v2.7")

    def test_no_request_is_lost(self, upgrade, book):
        assert upgrade.traffic.failed == []
        assert upgrade.traffic.versions == ["v2.6", "v2.7"]
        assert min(book.kinds()[kind] for kind in ("http", "insert", "update", "delete")) > 10, book.kinds()

    def test_the_migration_is_applied(self, upgrade, server):
        assert server.migrations()[-1] == ADMIN_NOTE
        assert server.counts(NOTES) == {NOTES: 0}
        # As the application's own instructions say: five indexes.
        assert server.sql(f"SELECT count(*) FROM pg_indexes WHERE tablename = '{NOTES}'") == "5"

    def test_what_the_operator_added_is_untouched(self, upgrade, server):
        now = server.objects()
        assert {name: now.get(name) for name in upgrade.before.objects} == upgrade.before.objects

    def test_the_backup_is_what_the_server_s_own_programs_restore(self, upgrade, site, server, book):
        (name,) = set(site.run("ls", f"{site.root}/backups").split()) - set(upgrade.before.backups)
        manifest = json.loads(site.run("cat", f"{site.root}/backups/{name}/manifest.json"))
        copy = server.backup(f"{site.root}/backups/{name}")
        signals = manifest["counts"]["owner_agreements_agreementrisksignal"]
        assert signals == len(copy.rows) + 6
        assert manifest["counts"]["writer_deletions"] == len(copy.deleted)
        # The dump is from the middle of the run: it has some of the writes, and not all.
        assert copy.marks & set(book.acknowledged)
        assert set(book.acknowledged) - copy.marks

    def test_the_watch_on_processes_sees_the_clients(self, upgrade):
        assert any("pg_dump" in line for line in upgrade.seen)
        assert any("pg_restore" in line for line in upgrade.seen)


@pytest.fixture(scope="class")
def back(server, step):
    return step("rollback", "-e", "rollback_level=migrations")


class TestRollbackOfTheMigrations:
    def test_it_succeeds(self, back, after):
        assert back.run.code == 0, str(back.run)
        back.run.line(f"undone first: {ADMIN_NOTE}")
        after(back, "v2.6")

    def test_no_request_is_lost(self, back):
        assert back.traffic.failed == []
        assert back.traffic.versions == ["v2.7", "v2.6"]
        assert back.written > 50

    def test_the_migration_is_reversed(self, back, server):
        assert ADMIN_NOTE not in server.migrations()
        assert server.counts(NOTES) == {NOTES: -1}

    def test_nothing_was_put_aside(self, back, server):
        assert server.kept() == []
