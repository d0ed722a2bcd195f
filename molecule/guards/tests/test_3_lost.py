# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that is lost in any phase: recorded, told as unknown, the others taken back; one command repairs it all.

The network of the host is cut the moment that the phase begins. The module on it goes on, as on a real machine.
RUNBOOK_GUARDS=all runs every phase on every host that takes part in it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import pytest
from site_tools import ROOT, Site, host, phase_runs

LOG = "/var/log/nginx/access.log"
# The first task that reaches a host is the preflight's.
REACHED = "pgrep -f '[B]ECOME-SUCCESS' > /dev/null"
RECORD = f"$(ls {ROOT}/deployments/*.json | tail -1)"
# Release, collectstatic, restart: the last host is done, and the smoke test begins.
RESTARTED = f'[ $(grep -c \'"state": "done"\' {RECORD}) = 3 ] && grep -q \'"traffic_taken": "2\' {RECORD}'


class Loss(NamedTuple):
    """Which host is lost, when, and on which host that is seen."""

    phase: str
    lost: str
    condition: str
    seen_on: str = ""
    short: bool = False

    @property
    def other(self) -> str:
        return "guard2" if self.lost == "guard1" else "guard1"


LOSSES = (
    Loss("preflight", "guard1", REACHED),
    Loss("preflight", "guard2", REACHED, short=True),
    Loss("release", "guard1", phase_runs("release")),
    Loss("release", "guard2", phase_runs("release")),
    Loss("backup", "guard1", phase_runs("backup")),
    Loss("verify", "guard1", phase_runs("verify")),
    Loss("collectstatic", "guard1", phase_runs("collectstatic")),
    Loss("collectstatic", "guard2", phase_runs("collectstatic")),
    Loss("migrate", "guard1", phase_runs("migrate"), short=True),
    Loss("restart", "guard1", phase_runs("restart")),
    Loss("restart", "guard2", phase_runs("restart"), short=True),
    Loss("smoke_test", "guard1", RESTARTED, "guard2"),
    Loss("smoke_test", "guard2", RESTARTED),
    Loss(
        "settle",
        "guard1",
        f'grep -q \'"phase": "finish"\' {ROOT}/deployment.lock/lock.json 2>/dev/null',
        short=True,
    ),
    Loss("settle", "guard2", f"[ -s {LOG} ]", "guard1"),
)
EVERY = os.environ.get("RUNBOOK_GUARDS") == "all"
CHOSEN = [loss for loss in LOSSES if EVERY or loss.short]


@pytest.fixture(scope="module")
def written(site) -> str:
    """A row that a user wrote before."""
    site.members[0].sh(
        "curl -sf -X POST -H 'Content-Type: application/json' "
        """-d '{"risk_type": "EXPIRING", "severity": "INFO", "details": "kept"}' """
        f"-H 'Host: {site.members[0].address}' http://127.0.0.1/signals/report/"
    )
    return "select count(*) from owner_agreements_agreementrisksignal where details = 'kept'"


def stored(site: Site) -> dict:
    """The newest record on the controller."""
    directory = Path(site.variables["app_report_store"]) / "goexplorer" / "guards"
    return json.loads(max(directory.glob("*.json")).read_text(encoding="utf-8"))


def assert_whole(site: Site, version: str) -> str:
    """Every host serves *version*, from one instance, and nothing is left to do; returns what status says."""
    assert site.answer() == [version] * len(site.members)
    for member in site.members:
        assert len(member.instances()) == 1, member.name
        assert len(member.units()) == 1, member.name
    run = site.good("status")
    assert "nothing needs attention." in run.end
    return run.end


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(
            loss,
            id=f"{loss.phase}-{loss.lost}",
            marks=[pytest.mark.short] if (loss.phase, loss.lost) == ("restart", "guard2") else [],
        )
        for loss in CHOSEN
    ],
)
def test_a_host_is_lost(site, written, loss):
    lost, other = host(loss.lost), host(loss.other)
    site.members[0].sh(f": > {LOG}")
    with lost.cut_when(loss.condition, host(loss.seen_on) if loss.seen_on else None):
        run = site.deploy("v2.7")
        # Seen while the host is away, as the operator sees it.
        assert other.version() == "v2.6"
        assert other.instances() == {
            other.sh(
                f"basename $(readlink {ROOT}/shared/env/$(basename $(readlink {ROOT}/current)).deployment)"
            )
        }
    assert run.rc != 0
    assert f"{loss.lost}    unknown: it does not answer" in run.end
    assert f"{loss.other}    serves v2.6" in run.end
    if loss.phase == "preflight":
        # Nothing had begun, so that there is no record and nothing to repair.
        assert "REFUSED, NOTHING WAS CHANGED" in run.end
        assert f"preflight on {loss.lost}: {loss.lost} does not answer" in run.end
    else:
        assert "STOPPED: A PERSON IS NEEDED" in run.end
        for record in (stored(site), other.records()[-1]):
            assert {(f["host"], f["unreachable"]) for f in record["failures"]} >= {(loss.lost, True)}
        repaired = site.run(run.next)
        assert repaired.rc == 0, repaired.output[-4000:]
    assert_whole(site, "v2.6")
    assert site.members[0].rows(written) == ["1"]


def test_the_next_deployment_is_as_any_other(site, written):
    site.good("deploy", version="v2.7")
    assert "rollback would go to: v2.6" in assert_whole(site, "v2.7")
    assert site.members[0].rows(written) == ["1"]


ALONE = (
    ("migrate", "restart")
    if not EVERY
    else ("release", "backup", "verify", "collectstatic", "migrate", "restart")
)


@pytest.mark.parametrize("phase", ALONE)
def test_the_only_host_is_lost(alone, phase):
    lost = alone.members[0]
    with lost.cut_when(phase_runs(phase)):
        run = alone.deploy("v2.7")
    assert run.rc != 0
    assert "STOPPED: A PERSON IS NEEDED" in run.end
    assert "guard1    unknown: it does not answer" in run.end
    assert f"{phase} on guard1: guard1 does not answer" in run.end
    assert stored(alone)["failures"][0]["unreachable"] is True
    # One release serves, whichever: what was begun on the host was ended there.
    assert lost.version() in ("v2.6", "v2.7")
    repaired = alone.run(run.next)
    assert repaired.rc == 0, repaired.output[-4000:]
    assert_whole(alone, "v2.6")
