# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two deployments started together: one wins, and the other one changes nothing."""

from __future__ import annotations

import re

import pytest
from fleet import Fleet

# Pairs for the fleet, and for one host, where a pair takes a third of the time: the lock is one directory on the primary in both.
COUNTS = {"fleet": 5, "single": 15}
SHORT = 2
PAIRS = [
    pytest.param(site, number, marks=[pytest.mark.long] if number >= SHORT else [])
    for site, count in COUNTS.items()
    for number in range(count)
]


@pytest.mark.parametrize(("site", "number"), PAIRS)
def test_two_deployments_started_together(request, site, number):
    fleet: Fleet = request.getfixturevalue(site)
    served = set(fleet.answer().values())
    assert len(served) == 1, served
    version = "v2.7" if served == {"v2.8"} else "v2.8"
    before = {name: len(fleet.all[name].records()) for name in fleet.names}
    both = [fleet.start("deploy", "-e", f"version={version}") for _one in range(2)]
    ended = [run.wait() for run in both]
    losers = [run for run in ended if run.code != 0]
    assert len(losers) == 1, [str(run) for run in ended]
    assert "REFUSED, NOTHING WAS CHANGED" in losers[0].block, losers[0].block
    # Who holds the lock, where, since when, and for what.
    assert re.search(r"held by \S+ on \S+ since \S+ for deployment \S+", " ".join(losers[0].block.split())), (
        losers[0].block
    )
    print(f"pair {number + 1} of {site}: one of two won, the other one was refused")
    fleet.whole(version)
    for name in fleet.names:
        # One deployment was recorded, and no lock is left.
        assert len(fleet.all[name].records()) == before[name] + 1
        assert fleet.all[name].sh("ls -d /srv/goexplorer/deployment.lock", check=False) == ""
