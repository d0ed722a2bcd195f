# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host that switches by blue-green behind its own nginx, under the same load as the fleet; rebooted before, during and after a switch."""

from __future__ import annotations

import pytest
from fleet import Single, assert_unnoticed
from fleet_tools import phase_runs, until


@pytest.fixture(autouse=True)
def serves_v26(single: Single) -> None:
    """Each test begins and ends with the first version, but for the last one."""
    if single.answer() != {"single1": "v2.6"}:
        single.good("rollback", "-e", "rollback_to=v2.6")


def test_upgrade_and_rollback(single):
    with single.load() as load:
        single.good("deploy", "-e", "version=v2.7")
    assert_unnoticed(single, load, "v2.6", "v2.7")
    single.whole("v2.7")
    with single.load() as load:
        single.good("rollback", "-e", "rollback_mode=planned", "-e", "rollback_reason=practice")
    assert_unnoticed(single, load, "v2.7", "v2.6", proved_before=True)
    single.whole("v2.6")


def test_broken_release_answers_nobody(single):
    with single.load() as load:
        run = single.play("deploy", "-e", "version=broken-health")
    print(load)
    assert run.code != 0 and "FAILED, NOTHING LIVE WAS CHANGED" in run.block, run.block
    assert load.failed == [] and load.steady()
    assert {row.version for row in load.answers if row.version} == {"v2.6"}
    single.whole("v2.6")


def test_rebooted_before_during_and_after_a_switch(single):
    host = single.all["single1"]
    single.reboot(host.name)
    single.whole("v2.6")
    deployment = single.start("deploy", "-e", "version=v2.7")
    with host.when(phase_runs("restart"), "true") as watcher:
        assert watcher.wait(600) == 0
        single.reboot(host.name)
        run = deployment.wait()
    # Before anybody does anything: the old release serves, or the new one.
    found = until(lambda: set(single.answer().values()) & {"v2.6", "v2.7"}, f"an answer: {single.answer()}")
    print(f"after the reboot in the restart: {found}")
    if run.code:
        if "STOPPED: A PERSON IS NEEDED" in run.block:
            single.good(*single.next(run))
        single.whole("v2.6")
        single.good("deploy", "-e", "version=v2.7")
    single.reboot(host.name)
    single.whole("v2.7")
