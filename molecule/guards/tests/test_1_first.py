# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""First deployments: an empty database is a state, and a failure leaves nothing behind that runs."""

from __future__ import annotations

import pytest
from site_tools import DATABASE, ROOT


def listening(member) -> str:
    """What listens on a socket or port of the application."""
    return member.sh("ss -Hlnptx | grep -E 'goexplorer|gunicorn|/srv/' || true")


def assert_nothing_runs(site) -> None:
    for member in site.members:
        assert member.units() == set(), member.name
        assert member.instances() == set(), member.name
        assert listening(member) == "", member.name
        assert member.sh(f"readlink {ROOT}/current", check=False) == ""
        assert member.get()[0] == 502


def test_a_check_shows_what_would_come_and_changes_nothing(empty):
    before = empty.trees()
    run = empty.good("deploy", "--check", "--diff", version="v2.7")
    assert empty.trees() == before
    assert "CHECKED, NOTHING WAS CHANGED" in run.end
    assert "+version: v2.7" in run.output
    assert "owner_agreements.0004_adminnote" in run.output
    assert_nothing_runs(empty)


@pytest.mark.parametrize(
    ("version", "reason"), [("broken-boot", "ModuleNotFoundError"), ("broken-health", "500")]
)
def test_a_release_that_is_broken_leaves_nothing_running(empty, version, reason):
    run = empty.deploy(version)
    assert run.rc != 0
    assert reason in run.end
    assert "FAILED, NOTHING LIVE WAS CHANGED" in run.end
    assert_nothing_runs(empty)
    assert not empty.members[0].sh(f"ls -d {ROOT}/deployment.lock", check=False)


def test_a_good_one_works_after_that(empty):
    empty.good("deploy", version="v2.7")
    assert empty.answer() == ["v2.7", "v2.7"]
    for member in empty.members:
        assert len(member.instances()) == 1
    assert "owner_agreements|0004_adminnote" in empty.members[0].rows(
        "select app, name from django_migrations"
    )


def test_tables_without_migration_rows_are_refused(empty):
    empty.forget()
    primary = empty.members[0]
    primary.sh(
        f"sqlite3 {DATABASE} 'create table kept (x); insert into kept values (7)'; chown goexplorer: {DATABASE}"
    )
    before = empty.trees("/data", "/etc/systemd", "/etc/nginx")
    run = empty.deploy("v2.7")
    assert run.rc != 0
    assert DATABASE in run.end
    assert "tables without migration rows" in run.end
    assert empty.trees("/data", "/etc/systemd", "/etc/nginx") == before
    assert primary.rows("select x from kept") == ["7"]
    assert_nothing_runs(empty)
