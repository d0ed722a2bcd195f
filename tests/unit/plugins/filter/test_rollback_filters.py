# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollback asks for that must be gone, and what one in an emergency leaves out."""

from __future__ import annotations

import pytest
from ansible_collections.runbook.deploy.plugins.filter.emergency_omits import emergency_omits
from ansible_collections.runbook.deploy.plugins.filter.gone_back import gone_back
from ansible_collections.runbook.deploy.plugins.filter.must_be_gone import must_be_gone
from ansible_collections.runbook.deploy.plugins.module_utils._http_spec import parse_check


def test_what_must_be_gone_is_a_check_that_the_gate_reads() -> None:
    found = must_be_gone(["/reports/new/", 'https://shop.example.org/a"b'])
    assert [check["url"] for check in found] == ["/reports/new/", 'https://shop.example.org/a"b']
    for check in found:
        assert check["status"] == [404, 410]
        parse_check(check, "checks[0]")


def test_nothing_must_be_gone() -> None:
    assert must_be_gone([]) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"absent": [], "gates": False, "balancer": False, "drain": 2, "planned": 2}, []),
        (
            {"absent": [], "gates": False, "balancer": True, "drain": 2, "planned": 1},
            ["no host is taken out of the load balancer first"],
        ),
        (
            {"absent": ["/a", "/b"], "gates": True, "balancer": False, "drain": 2, "planned": 30},
            [
                "what is stopped gets 2 s to end instead of 30",
                "what must be absent is not asked: /a, /b",
                "gates of the moment rollback are not asked",
            ],
        ),
    ],
)
def test_an_emergency_says_what_it_leaves_out(given, said) -> None:
    assert emergency_omits(**given) == said


DEPLOYED, TAKEN_BACK, ABANDONED, STOPPED = (
    {"kind": "deployment", "verdict": verdict}
    for verdict in ("success", "rolled_back", "abandoned", "stopped")
)
BY_HAND = {"kind": "rollback", "verdict": "success"}


@pytest.mark.parametrize(
    ("records", "went_back"),
    [
        ([], False),
        ([DEPLOYED, BY_HAND], False),
        ([BY_HAND, DEPLOYED], True),
        ([TAKEN_BACK, DEPLOYED], True),
        ([ABANDONED, DEPLOYED, BY_HAND], False),
        ([ABANDONED, BY_HAND, DEPLOYED], True),
        ([{"kind": "deployment", "verdict": None}, BY_HAND], True),
        ([STOPPED, BY_HAND], False),
    ],
)
def test_what_serves_was_gone_back_to_by_the_newest_run_that_changed_it(records, went_back) -> None:
    assert gone_back(records) is went_back
