# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables dropped and rows deleted by hand: the backup comes back, and what was there is kept."""

from __future__ import annotations

import re

import pytest

AGREEMENTS, USERS = "owner_agreements_owneragreement", "auth_user"


@pytest.fixture(scope="class")
def corrupted(server, step):
    upgrade = step("deploy", "-e", "version=v2.7")
    assert upgrade.run.code == 0, str(upgrade.run)
    assert server.counts(AGREEMENTS, USERS) == {AGREEMENTS: 3, USERS: 2}
    server.sql(f"DROP TABLE {AGREEMENTS} CASCADE; DELETE FROM {USERS}; DROP VIEW open_signals")
    return upgrade


@pytest.fixture(scope="class")
def refused(corrupted, step):
    return step("rollback", "--tags", "restore")


@pytest.fixture(scope="class")
def restored(refused, step):
    return step("rollback", "--tags", "restore", "-e", "rollback_consent=true")


class TestRestoreOfWhatWasDestroyed:
    def test_without_consent_it_is_refused_and_nothing_happens(self, refused, server):
        assert refused.run.code != 0
        refused.run.line("backup .* lacks what was written since")
        refused.run.line("would lose writes made since it was taken: .*writer_")
        assert "rollback_consent=true" in refused.run.report
        assert server.kept() == []
        assert server.counts(AGREEMENTS, USERS) == {AGREEMENTS: -1, USERS: 0}

    def test_with_consent_it_succeeds(self, restored, after):
        assert restored.run.code == 0, str(restored.run)
        assert "SUCCESS" in restored.run.report.splitlines()[0]
        after(restored, "v2.6")

    def test_what_was_destroyed_is_back(self, restored, server):
        assert server.counts(AGREEMENTS, USERS) == {AGREEMENTS: 3, USERS: 2}
        assert server.sql("SELECT count(*) FROM open_signals") != "0"

    def test_everything_beside_rows_is_as_before_the_upgrade(self, restored, corrupted, server):
        assert server.objects() == corrupted.before.objects

    def test_a_restored_trigger_works(self, restored, server):
        before = int(server.sql("SELECT count(*) FROM audit"))
        server.sql(f"UPDATE {AGREEMENTS} SET status = status")
        assert int(server.sql("SELECT count(*) FROM audit")) == before + 3

    def test_the_destroyed_database_is_kept_under_a_name_that_says_so(self, restored, server):
        (kept,) = server.kept()
        assert server.sql("SELECT count(*) FROM auth_user", kept) == "0"
        restored.run.line(f"kept +the database before, as {kept}, and as backup ")
        lost = restored.run.line("lost +auth_user: 2 deletes; ")
        assert re.search(
            "owner_agreements_agreementrisksignal: [0-9]+ inserts, [0-9]+ updates, [0-9]+ deletes", lost
        )

    def test_some_writes_are_in_the_kept_one_alone(self, restored, server, book, everything):
        """So that the check of every write is one: the live database has not got them all."""
        live = everything().live.marks
        gone = set(book.acknowledged) - live
        assert gone
        assert gone <= server.copy(server.kept()[0]).marks

    def test_the_next_deployment_succeeds(self, restored, step, after):
        done = step("deploy", "-e", "version=v2.7")
        assert done.run.code == 0, str(done.run)
        assert done.traffic.failed == []
        after(done, "v2.7")
