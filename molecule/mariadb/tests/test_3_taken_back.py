# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A migration that fails half way never reaches the live database; one with no way back, and one that destroys, are taken back."""

from __future__ import annotations

import pytest

CONSENT = ("-e", "rollback_consent=true")


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
        assert server.objects() == served.before.objects
        assert server.revisions() == ["0004"]
        assert server.sql("SELECT company FROM leads WHERE email = 'Ada@example.org'") == "Engines"
        assert len(server.kept()) == len(served.before.kept) + 1
        after(back, "v9")


class TestInTheEnd:
    def test_nothing_needs_attention(self, site):
        status = site.playbook("status")
        assert status.code == 0, str(status)
        assert "nothing needs attention." in status.output

    def test_every_write_is_found_and_most_of_them_are_live(self, book, everything):
        found = everything()
        assert found.lost == []
        live = found.live.marks & set(book.acknowledged)
        print(
            f"{len(book.acknowledged)} writes acknowledged ({dict(book.kinds())}), {len(live)} of them live"
        )
        for copy in found.copies[1:]:
            print(f"{len(copy.marks & set(book.acknowledged))} in {copy.name}")
        assert len(book.acknowledged) > 300
        assert live < set(book.acknowledged)
