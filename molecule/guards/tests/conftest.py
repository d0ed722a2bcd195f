# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts are prepared once; every module then puts them back to where setup left them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from site_tools import Site, hosts


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> None:
    """Hosts on which the real setup ran: its first run on a bare host, after a check that changed nothing."""
    site = Site(tmp_path_factory.mktemp("setup"))
    before = site.trees()
    site.good("setup", "--check", "--diff")
    assert site.trees() == before
    site.good("setup")
    # What a database server would be: one place for both hosts, writable by the application.
    hosts()["guard1"].sh("chown goexplorer:goexplorer /data")


@pytest.fixture(scope="module")
def empty(prepared, tmp_path_factory) -> Site:
    """Both hosts as setup leaves them; nothing was ever deployed."""
    site = Site(tmp_path_factory.mktemp("site"), app_report_store=str(tmp_path_factory.mktemp("reports")))
    site.forget()
    return site


@pytest.fixture(scope="module")
def site(empty) -> Site:
    """Both hosts serving v2.6."""
    run = empty.good("deploy", version="v2.6")
    assert empty.answer() == ["v2.6", "v2.6"]
    # What a person reads at the end was measured then, on both hosts.
    assert all(f"{name}    serves v2.6" in run.end for name in ("guard1", "guard2")), run.end
    return empty


@pytest.fixture(scope="module")
def alone(empty, tmp_path_factory) -> Site:
    """One host serving v2.6, whatever both served before."""
    empty.forget()
    made = Site(
        tmp_path_factory.mktemp("alone"), ("guard1",), app_report_store=empty.variables["app_report_store"]
    )
    made.good("deploy", version="v2.6")
    return made
