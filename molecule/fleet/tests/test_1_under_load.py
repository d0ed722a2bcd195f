# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deployed, upgraded and rolled back under load: no failed request, no slow answer by the switch, no release without its gate."""

from __future__ import annotations

import pytest
from fleet import assert_unnoticed
from fleet_tools import HOSTS

STATIC = "find /srv/goexplorer -path '*static*' -name 'intelligence*.css' -printf '%C@\\n'"


def test_first_deployment(fleet):
    fleet.whole("v2.6")
    assert fleet.migrations()[-1] == "0003_agreementrisksignal"


def test_upgrade(fleet):
    with fleet.load() as load:
        run = fleet.good("deploy", "-e", "version=v2.7")
    assert_unnoticed(fleet, load, "v2.6", "v2.7")
    # What a person reads at the end was measured then, on every host.
    told = [line.split()[:3] for line in run.block.splitlines()]
    assert [words for words in told if words[1:2] == ["serves"]] == [
        [name, "serves", "v2.7"] for name in HOSTS
    ]
    assert fleet.migrations().count("0004_adminnote") == 1
    # The files that only the new pages name were on every host before any host was restarted.
    published = [max(float(line) for line in fleet.all[host].sh(STATIC).splitlines()) for host in HOSTS]
    assert max(published) < min(fleet.started(host) for host in HOSTS), published
    fleet.whole("v2.7")


def test_rollback(fleet):
    with fleet.load() as load:
        run = fleet.good("rollback", "-e", "rollback_mode=planned", "-e", "rollback_reason=practice")
    assert_unnoticed(fleet, load, "v2.7", "v2.6", proved_before=True)
    assert load.since(run.ended) == {"v2.6"}
    fleet.whole("v2.6")


@pytest.mark.parametrize("version", ["broken-health", pytest.param("broken-boot", marks=pytest.mark.long)])
def test_broken_release_answers_nobody(fleet, version):
    with fleet.load() as load:
        run = fleet.play("deploy", "-e", f"version={version}")
    print(load)
    assert run.code != 0 and "FAILED, NOTHING LIVE WAS CHANGED" in run.block, run.block
    assert load.failed == [] and load.steady()
    assert {row.version for row in load.answers if row.version} == {"v2.6"}
    # One host tried it, and no other.
    assert fleet.tried(run.block.split()[1]) == ["web1"]
    fleet.whole("v2.6")
