# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The published schema allows what is written, and nothing else; conftest.py holds the records of all other tests against it."""

from __future__ import annotations

import json

import jsonschema
import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _record
from ansible_collections.runbook.deploy.plugins.module_utils._due import due_of
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.deployed_host import D1, D2, R1
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.record_schema import SCHEMA, faults


def record(**changes):
    """A record as it is begun, with *changes*."""
    about = {"kind": "deployment", "application": "shop", "stage": "production", "release": R1}
    made = _record.new_record(deployment=D2, token="t", host="web1", primary=True, about=about)
    return {**made, **changes}


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_every_field_of_a_new_record_is_required_and_described() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert set(record()) - {"token"} == set(schema["required"])
    assert set(record()) <= set(schema["properties"])
    assert not faults(record())
    assert not faults(_record.public(record()))


def test_a_record_that_went_through_everything_is_allowed() -> None:
    check = {
        "name": "host: disk",
        "verdict": "fail",
        "severity": "degraded",
        "observed": 97,
        "expected": "<= 90",
    }
    waived = {"reason": "is being replaced", "approver": "ann", "until": "2026-12-31"}
    found = record(
        approvals=[
            {"role": "tech_lead", "name": "ann", "at": "2026-11-21T01:36:58Z"},
            {"role": "qa", "name": None, "at": None},
        ],
        previous={"release": R1, "deployment": D1, "commit": "1" * 40, "version": "v1", "proven": False},
        applied_before=[["shop", "0001_initial"]],
        heads_before={"shop": ["0001_initial"]},
        half_done=["shop", "0002_x"],
        downtime={
            "since": "2026-11-21T01:37:40Z",
            "until": "2026-11-21T01:38:40Z",
            "seconds": 60.0,
            "expected": 41,
            "by": D1,
            "expired": False,
        },
        traffic_taken="2026-11-21T01:37:40Z",
        gates={"preflight": [{**check, "message": "It is full.", "seconds": 0.1, "waived": waived}]},
        due=due_of(
            [{"name": "look", "after": "1 day"}, {"name": "run", "after": 60, "command": ["manage.py", "x"]}],
            0.0,
        ),
        release_tag={"name": "deployed/v1", "state": "failed", "message": "refused"},
        notifications=[{"event": "start", "sent": ["ops"], "unsent": [{"name": "x", "message": "y"}]}],
        verdict="success",
        finished="2026-11-21T01:39:00Z",
    )
    assert not faults(found)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"downtime_of_nobody": 3}, "downtime_of_nobody"),
        ({"verdict": "fine"}, "verdict"),
        ({"begun": "yesterday"}, "begun"),
        ({"schema": 2}, "schema"),
        ({"commit": 7}, "commit"),
        ({"phases": [{"phase": "backup", "state": "done"}]}, "phases/0"),
        ({"gates": {"watch": [{"name": "x", "verdict": "pass"}]}}, "gates/watch/0"),
        ({"due": [{"name": "look", "state": "open"}]}, "due/0"),
        ({"measured": {"current": None, "mood": "good"}}, "mood"),
    ],
)
def test_what_is_not_described_is_refused(changes, named) -> None:
    assert any(named in line for line in faults(record(**changes))), faults(record(**changes))


def test_a_record_without_a_field_is_refused() -> None:
    for field in set(record()) - {"token"}:
        assert faults({key: value for key, value in record().items() if key != field}), field
