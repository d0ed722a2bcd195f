# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller is killed: the old release goes on, the next run refuses and says what to do, and that works."""

from __future__ import annotations

import re
import time

import pytest
from site_tools import ROOT, host, kill_tree, phase_runs

TAKE_OVER = "-e deployment_take_over=true"


def kill_in(site, phase: str, on: str) -> None:
    """Deploy v2.7 and kill the controller, with all that it started, in the middle of *phase* on a host."""
    running = site.start(site.command("deploy", version="v2.7"))
    try:
        host(on).sh(
            f"for i in $(seq 6000); do if {phase_runs(phase)}; then exit 0; fi; sleep 0.02; done; exit 1"
        )
    finally:
        kill_tree(running)
        running.wait()


def wait_for_modules(site) -> None:
    """Wait until what the controller had started on the hosts has ended, as it does by itself."""
    until = time.monotonic() + 120
    for member in site.members:
        while member.sh("pgrep -f '[B]ECOME-SUCCESS'", check=False):
            assert time.monotonic() < until, f"{member.name}: {member.sh('ps axww')}"
            time.sleep(0.2)


@pytest.mark.parametrize(
    ("phase", "on", "playbook", "after"),
    [
        ("release", "guard1", "deploy", "v2.7"),
        pytest.param("restart", "guard2", "resume", "v2.6", marks=pytest.mark.short),
    ],
)
def test_the_controller_is_killed(site, phase, on, playbook, after):
    if site.answer() != ["v2.6", "v2.6"]:
        site.good("rollback", rollback_to="v2.6")
    kill_in(site, phase, on)
    if phase == "release":
        assert site.answer() == ["v2.6", "v2.6"]
    wait_for_modules(site)
    serving = site.answer()
    assert set(serving) <= {"v2.6", "v2.7"}
    for member in site.members:
        assert len(member.instances()) == 1, member.name

    before = site.trees("/srv", "/etc/systemd")
    for path in before[0].copy():
        if path.startswith(f"{ROOT}/repository.git"):
            del before[0][path]
    run = site.deploy("v2.8")
    assert run.rc != 0
    assert re.search(r"held by \S+ on \S+ since \S+ for deployment \S+", run.end), run.end
    assert TAKE_OVER in run.end
    after_refusal = site.trees("/srv", "/etc/systemd")
    for path in after_refusal[0].copy():
        if path.startswith(f"{ROOT}/repository.git"):
            del after_refusal[0][path]
    assert after_refusal == before
    assert site.answer() == serving

    # The lease is not past, and nobody said that the run is dead.
    assert site.play("resume").rc != 0
    assert site.answer() == serving
    words = ("-e", "version=v2.7") if playbook == "deploy" else ()
    if playbook == "resume" and set(serving) == {"v2.7"}:
        # The module that restarts the last host goes on to its end: only later steps are open, and they are made up for.
        after = "v2.7"
    site.good(playbook, *words, *TAKE_OVER.split())
    assert site.answer() == [after, after]
    for member in site.members:
        assert len(member.instances()) == 1, member.name
    assert "nothing needs attention." in site.good("status").end

    # Nothing is interrupted any more: a release that was proved is not taken back.
    assert "NOTHING TO DO" in site.good("resume").end
    assert site.answer() == [after, after]
