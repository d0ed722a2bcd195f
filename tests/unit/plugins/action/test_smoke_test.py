# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role smoke_test in a play: all tests are asked, or the critical ones only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faulty_server import FaultyServer

PROJECT = Path(__file__).resolve().parents[4]
TESTS = [
    {"name": "health", "url": "/ok"},
    {"name": "named", "url": "/json", "severity": "critical"},
    {"name": "speed", "url": "/slow", "max_seconds": 0.1, "severity": "degraded"},
    {"name": "way", "severity": "minor", "steps": [{"url": "/moved", "follow": True}]},
]


def play(server: FaultyServer, directory: Path, **variables: Any) -> tuple[int, list[str]]:
    """Run the role; return the exit code and the names of the checks that were asked."""
    given = {
        "app_smoke_tests": TESTS,
        "app_health_checks": [],
        "app_url": server.address,
        "app_gates": [
            {"name": "space", "disk": "/", "free": "> 1", "moments": ["smoke_test"]},
            {"name": "memory", "memory": True, "free": "> 1", "severity": "minor", "moments": ["smoke_test"]},
        ],
        "app_smoke_secrets": {},
        "app_smoke_timeout": 60,
        "app_gate_timeout": 1,
        "app_gates_timeout": 60,
        "app_gate_waivers": [],
        "app_environment": {},
        "app_root": str(directory),
        "app_user": "",
        "app_settings_module": "",
        "app_database": {},
        "app_smoke_critical_only": False,
        "deploy_version": "v1",
        "ansible_python_interpreter": sys.executable,
        **variables,
    }
    seen = directory / "seen.json"
    tasks = [
        {"ansible.builtin.import_role": {"name": "runbook.deploy.smoke_test"}},
        {
            "ansible.builtin.copy": {
                "content": "{{ {'http': smoke_test_result.checks, 'gates': smoke_test_gated.checks} | to_json }}",
                "dest": str(seen),
                "mode": "0600",
            }
        },
    ]
    book = directory / "play.json"
    book.write_text(
        json.dumps([{"hosts": "localhost", "gather_facts": False, "vars": given, "tasks": tasks}])
    )
    command = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local", str(book)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert seen.exists(), done.stdout + done.stderr
    found = json.loads(seen.read_text())
    return done.returncode, [check["name"] for check in [*found["http"], *found["gates"]]]


@pytest.mark.parametrize(
    ("variables", "asked", "paths"),
    [
        ({}, ["health", "named", "speed", "way", "space", "memory"], {"/ok", "/json", "/slow", "/moved"}),
        pytest.param(
            {"app_smoke_critical_only": True},
            ["health", "named", "space"],
            {"/ok", "/json"},
            marks=pytest.mark.long,
        ),
        # A smoke test that asks nothing would prove nothing.
        (
            {"app_smoke_critical_only": True, "app_smoke_tests": TESTS[3:]},
            ["way", "space"],
            {"/moved", "/ok"},
        ),
    ],
)
def test_which_tests_are_asked(
    tmp_path: Path, variables: dict[str, Any], asked: list[str], paths: set[str]
) -> None:
    with FaultyServer() as server:
        code, names = play(server, tmp_path, **variables)
        seen = {request.path for request in server.requests}
    assert (code, names) == (0, asked)
    assert seen == paths
