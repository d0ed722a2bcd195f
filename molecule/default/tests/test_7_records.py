# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all the runs before have recorded: on the host and on the controller, as the published schema has it."""

from __future__ import annotations

from pathlib import Path

from recorded import in_store, on_host, unlike_schema

# The deployments and rollbacks of the files before this one.
AT_LEAST = 8
# What the modules of a deployment do on a host, in this order.
PHASES = ["release", "backup", "verify", "collectstatic", "migrate", "restart"]
# Where nothing was pending: what has verified the code has seen at once that the live database is as it needs it.
CURRENT = ["release", "backup", "verify", "migrate", "collectstatic", "restart"]


def test_every_record_on_the_host_is_as_the_schema_has_it(site):
    records = on_host(site)
    assert len(records) >= AT_LEAST
    assert {record["kind"] for record in records.values()} == {"deployment", "rollback"}
    assert {"success", "rolled_back", "abandoned"} <= {record["verdict"] for record in records.values()}
    assert unlike_schema(records) == []


def test_the_controller_has_a_copy_of_each_as_the_schema_has_it(site, reports):
    copies = in_store(reports)
    assert unlike_schema(copies) == []
    known = {Path(name).stem for name in copies}
    assert {Path(name).stem for name in on_host(site)} <= known


def test_every_phase_has_written_its_begin_and_its_end(site):
    deployed = 0
    for name, record in on_host(site).items():
        for phase in record["phases"]:
            assert phase["state"] in ("done", "failed"), (name, phase)
            assert record["begun"] <= phase["begun"] <= phase["finished"] <= record["finished"], (name, phase)
            assert phase["seconds"] >= 0, (name, phase)
        if record["kind"] == "deployment" and record["verdict"] == "success":
            deployed += 1
            pending = next(entry for entry in record["phases"] if entry["phase"] == "verify")["result"][
                "pending"
            ]
            # Rehearsal and maintenance only where there are such.
            found = [entry["phase"] for entry in record["phases"] if entry["phase"] in PHASES]
            assert found == (PHASES if pending else CURRENT), name
    assert deployed > 0
