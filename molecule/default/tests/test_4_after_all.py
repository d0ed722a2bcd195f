# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After all that failed: nothing of it is left, a good version is deployed as ever, and its code can be taken back alone."""

from __future__ import annotations

import pytest
from disclosure import in_files_of_everybody, in_journal, in_records, in_reports
from seen import stored

ADMIN_NOTE = "owner_agreements.0004_adminnote"


class TestAfterAllOfThem:
    def test_no_broken_release_is_kept(self, site):
        kept = {name[:12] for name in site.run("ls", f"{site.root}/releases").split()}
        assert kept == {site.commit(tag)[:12] for tag in ("v2.6", "v2.7")}

    def test_no_secret_is_in_records_reports_or_the_journal(self, site, secrets, reports):
        assert in_records(site, secrets) == []
        assert in_reports(reports, secrets) == []
        assert in_journal(site, secrets) == []

    def test_no_stranger_on_the_host_can_read_a_secret(self, site, secrets):
        assert in_files_of_everybody(site, secrets)["found"] == []


@pytest.fixture(scope="class")
def forward(step):
    return step("deploy", "-e", "version=v2.7")


class TestAGoodVersion:
    def test_it_succeeds(self, forward):
        assert forward.run.code == 0, str(forward.run)

    def test_exactly_one_instance_of_v2_7_serves(self, forward, site):
        assert site.wrong("v2.7") == []

    def test_no_request_is_lost(self, forward, site, ledger):
        assert forward.traffic.failed == []
        assert forward.traffic.versions == ["v2.6", "v2.7"]
        assert stored(site, ledger) == []


@pytest.fixture(scope="class")
def back(step):
    return step("rollback", "-e", "rollback_level=code", "-e", "rollback_reason=test")


class TestRollbackOfTheCode:
    def test_it_succeeds(self, back):
        assert back.run.code == 0, str(back.run)

    def test_exactly_one_instance_of_v2_6_serves(self, back, site):
        assert site.wrong("v2.6") == []
        assert site.ask("/admin/owner-agreements/intelligence/").status == 404

    def test_the_database_stays_as_it_is(self, back, site, ledger):
        assert site.database()["migrations"] == back.before.database["migrations"]
        assert site.database()["migrations"][-1] == ADMIN_NOTE
        assert stored(site, ledger) == []

    def test_no_request_is_lost(self, back):
        assert back.traffic.failed == []
        assert back.traffic.versions == ["v2.7", "v2.6"]

    def test_a_reboot_keeps_it(self, back, reboot):
        assert reboot("v2.6") == []
