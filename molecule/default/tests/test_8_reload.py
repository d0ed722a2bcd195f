# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/reload.yml under systemd: a changed shared file is read by the main process that serves, and no request fails."""

from __future__ import annotations

import json

import pytest
from seen import Service

CONFIG = "/srv/goexplorer/shared/gunicorn.conf.py"
COMMAND = f"gunicorn goexplorer.wsgi --bind unix:{{socket}} --config {CONFIG}"
WORDS = ("-e", json.dumps({"app_services": [{"name": "web", "strategy": "reload", "command": COMMAND}]}))


@pytest.fixture(scope="module")
def reloaded(site, step):
    version = site.ask("/").version
    site.run("tee", CONFIG, text="workers = 2\n")
    deployed = step("deploy", "-e", f"version={version}", *WORDS)
    assert deployed.run.code == 0, str(deployed.run)
    before = Service(site)
    site.run("tee", CONFIG, text="workers = 3\n")
    done = step("reload", *WORDS)
    done.services, done.version, done.deployed = (before, before.replaced(site)), version, deployed
    yield done
    back = step("deploy", "-e", f"version={version}")
    assert back.run.code == 0, str(back.run)
    site.run("rm", CONFIG)


def test_the_main_process_reads_it_again_and_no_request_is_lost(reloaded):
    assert reloaded.run.code == 0, str(reloaded.run)
    before, after = reloaded.services
    assert after.main == before.main
    assert (len(before.workers), len(after.workers)) == (2, 3) and not before.workers & after.workers
    assert reloaded.traffic.failed == [] and reloaded.deployed.traffic.failed == []


def test_another_release_is_refused_because_it_would_not_be_served(reloaded, step):
    other = "v2.6" if reloaded.version != "v2.6" else "v2.7"
    refused = step("reload", "-e", f"version={other}", *WORDS)
    assert refused.run.code != 0
    assert f"The version {other} is wanted, but {reloaded.version} serves" in " ".join(
        str(refused.run).split()
    )
    assert refused.traffic.failed == []
