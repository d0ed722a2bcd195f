# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every broken version is taken back by itself: v2.6 goes on serving, its data is intact, and the output says why."""

from __future__ import annotations

import pytest
from disclosure import in_text
from seen import stored

BACK = "FAILED, AND TAKEN BACK"
# For each broken version: how the run ends, and what names the reason (phase and host first).
BROKEN = {
    # Found in the rehearsal, before anything live; and in the live database, where no rehearsal was held.
    "broken-migration": (
        "FAILED, NOTHING LIVE WAS CHANGED",
        "verify on web1:",
        "The migration owner_agreements.0006_regional_review failed in the rehearsal",
        "region east has no severity",
    ),
    "broken-migration, not rehearsed": (
        BACK,
        "migrate on web1:",
        "The migration owner_agreements.0006_regional_review could not be applied",
        "region east has no severity",
    ),
    "broken-boot": (
        BACK,
        "restart on web1:",
        "Service 'web'",
        "ModuleNotFoundError: No module named 'goexplorer.telemetry'",
    ),
    "broken-health": (
        BACK,
        "restart on web1:",
        "Check 'health' failed",
        "expected status 200, but it was 500",
    ),
    "crash-later": (BACK, "restart on web1:", "Service 'web'", "does not stay up"),
    "slow": (
        BACK,
        "restart on web1:",
        "Check 'health' failed",
        "expected an answer within 2 s, but it took 3.",
    ),
    "broken-dependency": (
        "FAILED, NOTHING LIVE WAS CHANGED",
        "release on web1:",
        "a requirement does not exist",
        "goexplorer-distribution-that-does-not-exist",
    ),
    "broken-static": (
        BACK,
        "restart on web1:",
        "Check 'home page with its static files' failed",
        "expected status 200, but it was 500",
    ),
}


@pytest.fixture(scope="class")
def failed(request, site, step):
    assert site.wrong("v2.6") == []
    version, *unrehearsed = request.param.split(", ")
    more = ["-e", "app_migrate_rehearse=never"] if unrehearsed else []
    done = step("deploy", "-e", f"version={version}", *more, verbosity=3)
    done.verdict, *done.reasons = BROKEN[request.param]
    return done


@pytest.mark.parametrize("failed", BROKEN, indirect=True, scope="class")
class TestBroken:
    def test_the_exit_code_says_so(self, failed):
        assert failed.run.code == 2, str(failed.run)

    def test_the_reason_is_named(self, failed):
        assert failed.verdict in failed.run.report.splitlines()[0], str(failed.run)
        for reason in failed.reasons:
            assert reason in failed.run.report

    def test_exactly_one_instance_of_v2_6_serves(self, failed, site):
        assert site.wrong("v2.6") == []

    def test_the_broken_version_never_served_anybody(self, failed):
        assert failed.traffic.versions == ["v2.6"]
        assert failed.traffic.failed == []
        assert min(failed.traffic.count("read"), failed.traffic.count("write")) > 10

    def test_the_database_is_as_it_was(self, failed, site, ledger):
        before, after = failed.before.database, site.database()
        assert after["migrations"] == before["migrations"]
        assert after["columns"] == before["columns"]
        assert set(after["counts"]) == set(before["counts"])
        assert (after["check"], after["foreign_keys"]) == (["ok"], [])
        assert len(after["signals"]) > len(before["signals"])
        assert stored(site, ledger) == []

    def test_no_secret_is_in_the_output(self, failed, secrets):
        assert "Using module file" in failed.run.output
        assert in_text(secrets, failed.run.output) == []

    def test_after_a_reboot_v2_6_serves(self, failed, reboot):
        assert reboot("v2.6") == []
