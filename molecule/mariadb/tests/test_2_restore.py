# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leads dropped and a view removed by hand: the backup comes back, and what was there is kept."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="class")
def corrupted(server, step):
    upgrade = step("deploy", "-e", "version=v9")
    assert upgrade.run.code == 0, str(upgrade.run)
    server.rows(
        "DROP TABLE review_decisions; DELETE FROM leads WHERE email LIKE '%@example.org'; DROP VIEW scored; DROP FUNCTION doubled"
    )
    return upgrade


@pytest.fixture(scope="class")
def refused(corrupted, step):
    return step("rollback", "--tags", "restore")


@pytest.fixture(scope="class")
def restored(refused, step):
    return step("rollback", "--tags", "restore", "-e", "rollback_consent=true")


class TestRestoreOfWhatWasDestroyed:
    def test_without_consent_the_losses_are_counted_and_nothing_happens(self, refused, server):
        assert refused.run.code != 0
        refused.run.line("would lose writes made since it was taken: .*leads: [0-9]+ inserts")
        assert "rollback_consent=true" in refused.run.report
        assert refused.traffic.failed == []
        assert server.kept() == []
        assert server.sql("SELECT COUNT(*) FROM leads WHERE email LIKE '%@example.org'") == "0"

    def test_with_consent_it_succeeds(self, restored, after):
        assert restored.run.code == 0, str(restored.run)
        assert "SUCCESS" in restored.run.report.splitlines()[0]
        after(restored, "v8")

    def test_what_was_destroyed_is_back(self, restored, server):
        assert server.sql("SELECT COUNT(*) FROM leads WHERE email LIKE '%@example.org'") == "2"
        assert server.sql("SELECT COUNT(*) FROM scored") != "0"
        assert server.sql("SELECT doubled(21)") == "42"

    def test_everything_beside_rows_is_as_before_the_upgrade(self, restored, corrupted, server):
        assert server.objects() == corrupted.before.objects

    def test_a_restored_trigger_works_in_the_live_database(self, restored, server):
        before = int(server.sql("SELECT COUNT(*) FROM audit"))
        server.rows("UPDATE leads SET score = score + 1 WHERE email LIKE '%@example.org'")
        assert int(server.sql("SELECT COUNT(*) FROM audit")) == before + 2

    def test_the_destroyed_database_is_kept_and_its_event_sleeps(self, restored, server):
        (kept,) = server.kept()
        assert server.sql("SELECT COUNT(*) FROM leads WHERE email LIKE '%@example.org'", kept) == "0"
        restored.run.line(f"kept +the database before, as {kept}, and as backup ")
        assert server.objects()["event tidy"].startswith("ENABLED")
        assert server.objects(kept)["event tidy"].startswith("DISABLED")

    def test_some_writes_are_in_the_kept_one_alone(self, restored, server, book, everything):
        """So that the check of every write is one: the live database has not got them all."""
        gone = set(book.acknowledged) - everything().live.marks
        assert gone
        assert gone <= server.copy(server.kept()[0]).marks

    def test_the_next_deployment_succeeds(self, restored, step, after):
        done = step("deploy", "-e", "version=v9")
        assert done.run.code == 0, str(done.run)
        assert done.traffic.failed == []
        after(done, "v9")
