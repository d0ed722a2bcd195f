# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A migration that fails half way never reaches the live database; one with no way back, and one that destroys, are taken back."""

from __future__ import annotations

import pytest

CONSENT = ("-e", "rollback_consent=true")


def as_before(server, before) -> bool:
    """Whether the database has the schema, and the companies, that it had."""
    assert server.objects() == before
    assert server.revisions() == ["0004"]
    return server.sql("SELECT company FROM leads WHERE email = 'Ada@example.org'") == "Engines"


@pytest.fixture(scope="class")
def half(site, step):
    assert site.wrong("v9") == []
    return step("deploy", "-e", "version=broken-migration")


class TestMigrationThatFailsHalfWay:
    """This server takes no part of a migration back, so that it has to be found on the copy."""

    def test_it_is_found_before_anything_live_is_changed(self, half, server, after):
        assert half.run.code == 2, str(half.run)
        assert "FAILED, NOTHING LIVE WAS CHANGED" in half.run.report.splitlines()[0]
        half.run.line("0005_outreach")
        assert server.objects() == half.before.objects
        assert server.revisions() == ["0004"]
        after(half, "v9")

    def test_those_who_write_notice_nothing(self, half):
        assert half.traffic.failed == []
        assert half.traffic.versions == ["v9"]


@pytest.fixture(scope="class")
def nobody_wrote(site, step):
    assert site.wrong("v9") == []
    return step("deploy", "-e", "version=destructive-broken", quiet=True)


@pytest.mark.long
class TestTakenBackByItselfWhenNobodyWrote:
    def test_no_consent_is_needed_because_nothing_is_lost(self, nobody_wrote, after):
        assert nobody_wrote.run.code == 2, str(nobody_wrote.run)
        assert "FAILED, AND TAKEN BACK" in nobody_wrote.run.report.splitlines()[0]
        nobody_wrote.run.line("restart on mariadb1: .*Check 'health' failed")
        nobody_wrote.run.line("decision +restore: .*0005_without_company cannot be left")
        after(nobody_wrote, "v9")

    def test_the_database_is_as_before(self, nobody_wrote, server):
        assert as_before(server, nobody_wrote.before.objects)
        assert len(server.kept()) == len(nobody_wrote.before.kept) + 1


@pytest.fixture(scope="class")
def stopped(site, step):
    assert site.wrong("v9") == []
    return step("deploy", "-e", "version=destructive-broken")


@pytest.fixture(scope="class")
def by_hand(stopped, step):
    return step("rollback", *CONSENT)


@pytest.mark.long
class TestStoppedBecauseOthersWrote:
    def test_without_consent_a_person_is_needed(self, stopped, server, after):
        assert stopped.run.code == 2, str(stopped.run)
        assert "STOPPED: A PERSON IS NEEDED" in stopped.run.report.splitlines()[0]
        stopped.run.line("would lose writes made since it was taken: .*writer_deletions: [0-9]+ inserts")
        assert "-e rollback_consent=true" in stopped.run.report
        assert server.kept() == stopped.before.kept
        assert server.revisions() == ["0005_without_company"]
        after(stopped, "v9")

    def test_with_consent_the_backup_comes_back(self, by_hand, stopped, server, after):
        assert by_hand.run.code == 0, str(by_hand.run)
        assert as_before(server, stopped.before.objects)
        assert len(server.kept()) == len(stopped.before.kept) + 1
        after(by_hand, "v9")


@pytest.fixture(scope="class")
def with_consent(site, step):
    assert site.wrong("v9") == []
    return step("deploy", "-e", "version=destructive-broken", *CONSENT)


class TestTakenBackByItselfWithConsent:
    def test_it_is_taken_back_while_others_write(self, with_consent, server, after):
        assert with_consent.run.code == 2, str(with_consent.run)
        assert "FAILED, AND TAKEN BACK" in with_consent.run.report.splitlines()[0]
        with_consent.run.line("decision +restore: .*0005_without_company cannot be left")
        assert as_before(server, with_consent.before.objects)
        after(with_consent, "v9")

    def test_what_was_written_meanwhile_is_in_the_kept_database(self, with_consent, server, book):
        gone = set(book.acknowledged) - with_consent.before.book - server.copy().marks
        assert gone
        assert gone <= server.copy(server.kept()[-1]).marks


@pytest.fixture(scope="class", params=["irreversible", "destructive"])
def served(request, step):
    done = step("deploy", "-e", f"version={request.param}")
    done.version = request.param
    return done


@pytest.fixture(scope="class")
def refused(served, step):
    return step("rollback")


@pytest.fixture(scope="class")
def back(refused, step):
    return step("rollback", *CONSENT)


class TestTakenBackByHandAfterTraffic:
    def test_it_is_deployed(self, served, after):
        assert served.run.code == 0, str(served.run)
        assert served.traffic.versions == ["v9", served.version]
        after(served, served.version)

    def test_without_consent_the_losses_are_counted_and_nothing_happens(self, refused, served, server, after):
        assert refused.run.code != 0
        refused.run.line("cannot be left")
        refused.run.line("rollback_consent=true")
        assert refused.traffic.failed == []
        assert server.kept() == refused.before.kept
        after(refused, served.version)

    def test_with_consent_the_backup_comes_back(self, back, served, server, after):
        assert back.run.code == 0, str(back.run)
        assert as_before(server, served.before.objects)
        assert len(server.kept()) == len(served.before.kept) + 1
        after(back, "v9")
