# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deployments whose gates fail behind the switch: each is taken back by itself, and the host says so, not the run.

What was there before is looked at from outside: which release answers, what runs, the schema and the rows of the database.
"""

from __future__ import annotations

import json
from pathlib import Path

import disclosure
import pytest
from gated import Host

# The first deployment has shown that all of them pass; of these faults the others have nothing to tell.
FEW = {"test_moments": ["watch"]}
WATCHED = {"app_watch": {"duration": 60, "interval": 2, "failures": 2}}


# The tables are there, and no later version changes them: nothing of the database stands against going back.
ALWAYS = {"app_framework": "none", "app_migrate_command": [], "app_gate_timeout": 10}


def deploy(host: Host, version: str, **variables: object):
    """Deploy with the gates that `variables` leave."""
    return host.site.playbook("deploy", "-e", json.dumps({"version": version, **ALWAYS, **variables}))


def failing(run) -> dict[str, str]:
    """The verdict of each check that is no pass."""
    return {check["name"]: check["verdict"] for check in run.checks if check["verdict"] != "pass"}


def record_report(run) -> str:
    """The report that the controller has stored of a run."""
    return Path(run.line("report ").split()[-1]).read_text(encoding="utf-8")


def require_taken_back(host: Host, run, before: dict, check: str) -> dict:
    """The run failed over `check` alone, the release before serves with its database, and the record says why."""
    assert run.code == 2 and failing(run) == {check: "fail"}, str(run)
    host.settle(lambda: host.wrong(before["version"]))
    assert host.state() == before
    record = host.newest_record()
    assert (record["verdict"], record["decision"]["level"]) == ("rolled_back", "code"), record["decision"]
    assert record["traffic_taken"]
    assert check in json.dumps(record["failures"]), record["failures"]
    return record


@pytest.mark.long
def test_old_lines_in_a_log_fail_nothing(host):
    """The release before has written errors all along; only what comes after the deployment's begin counts."""
    assert host.site.ask("/lost").status == 500
    host.settle(lambda: [] if "a parcel is lost" in host.journal("web") else ["nothing is in the log"])
    run = deploy(host, "v2", **FEW)
    assert run.code == 0 and failing(run) == {}, str(run)
    assert [check["verdict"] for check in run.checks if check["name"] == "log"][-1] == "pass"
    host.settle(lambda: host.wrong("v2"))


def test_an_error_in_the_log_takes_the_deployment_back(host):
    """The new release is healthy and answers; that something is amiss only its log says."""
    before = host.state()
    run = deploy(host, "loud", **FEW)
    record = require_taken_back(host, run, before, "log")
    assert "depot west is not known" in run.output and "journalctl" in run.output
    assert "depot west is not known" in json.dumps(record)


@pytest.mark.long
def test_a_fault_that_comes_with_visitors_takes_the_deployment_back(host):
    """The smoke test finds nothing, as it does not ask for that page; the watch sees what visitors get."""
    before = host.state()
    run = deploy(host, "lossy", **WATCHED)
    record = require_taken_back(host, run, before, "traffic")
    assert record["failures"][-1]["phase"] == "watch", record["failures"]
    assert "errors > 5%" in run.output


@pytest.mark.long
def test_a_watch_alone_says_so_and_changes_nothing(host):
    before, records = host.state(), host.records()
    variables = json.dumps({**ALWAYS, **WATCHED})
    host.visitors.lost = True
    try:
        run = host.site.playbook("watch", "-e", variables)
    finally:
        host.visitors.lost = False
    assert run.code == 2 and "traffic" in failing(run), str(run)
    assert "Nothing was changed" in run.output
    assert host.wrong(before["version"]) == [] and host.state() == before and host.records() == records


@pytest.mark.long
def test_a_waiver_lets_it_pass_and_is_in_the_record(host):
    """The same release as above: somebody answers for what its log says."""
    waiver = {"check": "log", "reason": "depot west opens in May", "approver": "Ada", "until": "2099-12-31"}
    run = deploy(host, "loud", **FEW, app_gate_waivers=[waiver])
    assert run.code == 0 and failing(run) == {"log": "fail"}, str(run)
    host.settle(lambda: host.wrong("loud"))
    record = host.newest_record()
    assert record["verdict"] == "success"
    kept = {name: waiver[name] for name in ("reason", "approver", "until")}
    assert any(check.get("waived") == kept for check in record["gates"]["smoke_test"]), record["gates"]
    assert "waived by Ada until 2099-12-31" in record_report(run)


def test_no_secret_is_told(site, secrets, reports):
    assert disclosure.in_records(site, secrets) == []
    assert disclosure.in_journal(site, secrets) == []
    assert disclosure.in_reports(reports, secrets) == []
