# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What served before ends while the run goes on, slowly or with an exit code, and has ended when the run says how it ended."""

from __future__ import annotations

import json
from datetime import datetime
from types import SimpleNamespace

import pytest

SHARED = "/srv/goexplorer/shared"
# What an application may do in gunicorn's hook of that name: the main process goes on when its workers have ended.
SECONDS = 5
ENDINGS = {
    "slow": f"import time\ndef on_exit(server):\n    time.sleep({SECONDS})\n",
    "sour": "import os\ndef on_exit(server):\n    os._exit(3)\n",
}


def words(ending):
    command = f"gunicorn goexplorer.wsgi --workers 2 --bind unix:{{socket}} --config {SHARED}/{ending}.py"
    return ("-e", json.dumps({"app_services": [{"name": "web", "manager": "systemd", "command": command}]}))


def seconds(text):
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z").timestamp()


def journal(site, deployment):
    """The lines of a unit's journal, each with its time."""
    lines = site.run(
        "journalctl", "--no-pager", "-o", "short-unix", "-u", f"{site.unit}@{deployment}.service"
    )
    return lines.splitlines()


def units(site):
    """Every unit of the application that systemd knows, with its state; the one that serves at boot is none of them."""
    listed = site.run("systemctl", "list-units", "--all", "--plain", "--no-legend", f"{site.unit}@*")
    return {line.split()[0]: line.split()[2] for line in listed.splitlines()}


def look(site, done, version):
    """What can be seen the moment a run has ended."""
    # Asked first: a unit that still ends would have ended after a few questions more.
    found = SimpleNamespace(units=units(site), wrong=site.wrong(version), run=done.run, traffic=done.traffic)
    assert done.run.code == 0, str(done.run)
    found.deployment = json.loads(site.ask(site.health).body)["deployment"]
    newest = site.run("sh", "-c", f"ls {site.root}/deployments/*.json | tail -1").strip()
    found.record = json.loads(site.run("cat", newest))
    return found


@pytest.fixture(scope="module")
def ended(site, step):
    version = site.ask("/").version
    for name, text in ENDINGS.items():
        site.run("tee", f"{SHARED}/{name}.py", text=text)
    slow = look(site, step("deploy", "-e", f"version={version}", *words("slow")), version)
    sour = look(site, step("deploy", "-e", f"version={version}", *words("sour")), version)
    back = look(site, step("rollback", "-e", "rollback_level=code", *words("sour")), version)
    yield SimpleNamespace(slow=slow, sour=sour, back=back)
    last = look(site, step("deploy", "-e", f"version={version}"), version)
    assert last.wrong == []
    site.run("rm", *(f"{SHARED}/{name}.py" for name in ENDINGS))


@pytest.mark.parametrize("which", ["slow", "sour", "back"])
def test_exactly_one_instance_is_there_when_the_run_has_ended(ended, site, which):
    found = getattr(ended, which)
    assert found.units == {f"{site.unit}@{found.deployment}.service": "active"}
    assert found.wrong == []
    assert found.traffic.failed == []


def test_one_that_ends_slowly_is_waited_for_by_the_settling_and_not_before(ended, site):
    """The restart was over before it had ended, and the verdict came after that."""
    record = ended.sour.record
    (restart,) = [phase for phase in record["phases"] if phase["phase"] == "restart"]
    # Before it was started again.
    stopped = [
        float(line.split()[0])
        for line in journal(site, ended.slow.deployment)
        if "Stopped " in line and float(line.split()[0]) < seconds(ended.back.record["begun"])
    ]
    assert len(stopped) == 1, journal(site, ended.slow.deployment)
    assert record["verdict"] == "success"
    assert seconds(restart["finished"]) + SECONDS - 3 < stopped[0] < seconds(record["finished"]) + 1


def test_one_that_ends_with_an_exit_code_is_no_failed_unit(ended, site):
    assert ended.back.deployment == ended.slow.deployment
    text = "\n".join(journal(site, ended.sour.deployment))
    assert "Failed with result 'exit-code'" in text, text
    assert "Traceback" not in text
