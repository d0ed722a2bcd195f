# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""With the server's administrator: migrations with no way back, and such that destroy, are taken back by a restore.

By the deployment itself, when the version fails after it migrated, and by an operator, when it served for a while.
"""

from __future__ import annotations

import pytest

CONSENT = ("-e", "rollback_consent=true")
REFERENCES = "SELECT count(*) FROM owner_agreements_owneragreement WHERE reference <> ''"
IRREVERSIBLE = "owner_agreements.0005_agreementrisksignal_region"
DESTRUCTIVE = "owner_agreements.0005_remove_owneragreement_reference"


def as_before(server, before) -> bool:
    """Whether the database has the schema, and the references, that it had."""
    assert server.objects() == before
    assert server.migrations()[-1] == "owner_agreements.0004_adminnote"
    return server.sql(REFERENCES) == "3"


@pytest.fixture(scope="class")
def nobody_wrote(site, step, by_administrator):
    assert site.wrong("v2.7") == []
    return step("deploy", "-e", "version=destructive-broken", *by_administrator, quiet=True)


class TestTakenBackByItselfWhenNobodyWrote:
    def test_no_consent_is_needed_because_nothing_is_lost(self, nobody_wrote, after):
        assert nobody_wrote.run.code == 2, str(nobody_wrote.run)
        assert "FAILED, AND TAKEN BACK" in nobody_wrote.run.report.splitlines()[0]
        nobody_wrote.run.line("restart on postgresql1: .*Check 'health' failed")
        nobody_wrote.run.line(f"decision +restore: {DESTRUCTIVE} cannot be left .* and cannot be reversed")
        after(nobody_wrote, "v2.7")

    def test_the_database_is_as_before(self, nobody_wrote, server):
        assert as_before(server, nobody_wrote.before.objects)
        assert len(server.kept()) == len(nobody_wrote.before.kept) + 1


@pytest.fixture(scope="class")
def stopped(site, step, by_administrator):
    return step("deploy", "-e", "version=irreversible-broken", *by_administrator)


@pytest.fixture(scope="class")
def by_hand(stopped, step, by_administrator):
    return step("rollback", *by_administrator, *CONSENT)


@pytest.mark.long
class TestStoppedBecauseOthersWrote:
    def test_without_consent_a_person_is_needed(self, stopped, site, server, after):
        assert stopped.run.code == 2, str(stopped.run)
        assert "STOPPED: A PERSON IS NEEDED" in stopped.run.report.splitlines()[0]
        stopped.run.line("restart on postgresql1: .*Check 'health' failed")
        stopped.run.line(
            "would lose writes made since it was taken: owner_agreements_agreementrisksignal: unknown, [0-9]+ rows have "
            "a value in the column region, which the backup lacks; writer_deletions: [0-9]+ inserts"
        )
        assert "-e rollback_consent=true" in stopped.run.report
        assert server.kept() == stopped.before.kept
        assert server.migrations()[-1] == IRREVERSIBLE
        after(stopped, "v2.7")

    def test_those_who_write_notice_nothing(self, stopped):
        assert stopped.traffic.failed == []
        assert stopped.traffic.versions == ["v2.7"]

    def test_with_consent_the_backup_comes_back(self, by_hand, stopped, server, after):
        assert by_hand.run.code == 0, str(by_hand.run)
        assert as_before(server, stopped.before.objects)
        assert len(server.kept()) == len(stopped.before.kept) + 1
        after(by_hand, "v2.7")


@pytest.fixture(scope="class")
def with_consent(site, step, by_administrator):
    return step("deploy", "-e", "version=destructive-broken", *by_administrator, *CONSENT)


class TestTakenBackByItselfWithConsent:
    def test_it_is_taken_back_while_others_write(self, with_consent, server, after):
        assert with_consent.run.code == 2, str(with_consent.run)
        assert "FAILED, AND TAKEN BACK" in with_consent.run.report.splitlines()[0]
        with_consent.run.line(f"decision +restore: {DESTRUCTIVE} cannot be left")
        assert as_before(server, with_consent.before.objects)
        after(with_consent, "v2.7")

    def test_what_was_written_meanwhile_is_in_the_kept_database(self, with_consent, server, book):
        gone = set(book.acknowledged) - with_consent.before.book - server.copy().marks
        assert gone
        assert gone <= server.copy(server.kept()[-1]).marks


@pytest.fixture(scope="class", params=["irreversible", "destructive"])
def served(request, step, by_administrator):
    done = step("deploy", "-e", f"version={request.param}", *by_administrator)
    done.version = request.param
    return done


@pytest.fixture(scope="class")
def refused(served, step, by_administrator):
    return step("rollback", *by_administrator)


@pytest.fixture(scope="class")
def back(refused, step, by_administrator):
    return step("rollback", *by_administrator, *CONSENT)


@pytest.mark.long
class TestTakenBackByHandAfterTraffic:
    def test_it_is_deployed(self, served, after):
        assert served.run.code == 0, str(served.run)
        assert served.traffic.versions == ["v2.7", served.version]
        after(served, served.version)

    def test_without_consent_nothing_happens(self, refused, served, server, after):
        assert refused.run.code != 0
        refused.run.line(
            f"{IRREVERSIBLE if served.version == 'irreversible' else DESTRUCTIVE} cannot be left"
        )
        refused.run.line("rollback_consent=true")
        assert refused.traffic.failed == []
        assert server.kept() == refused.before.kept
        after(refused, served.version)

    def test_with_consent_the_backup_comes_back(self, back, served, server, after):
        assert back.run.code == 0, str(back.run)
        assert as_before(server, served.before.objects)
        assert len(server.kept()) == len(served.before.kept) + 1
        after(back, "v2.7")
