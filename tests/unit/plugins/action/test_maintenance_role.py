# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ends of a run, by ansible-playbook itself: the page goes, stays where a person is needed, comes back, and stops no way back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[4]
# Steps: (entry point, variables); after each the play says whether the file is there and what the host knows.
PLAY = """
- hosts: localhost
  gather_facts: false
  vars:
    app_maintenance: {{kind: file, path: {root}/flag}}
    app_maintenance_monitoring: []
    app_root: {root}/srv
    app_name: shop
    app_stage: production
    app_user: ""
    app_environment: {{}}
    app_settings_module: ""
    app_url: ""
    app_web_server: {{}}
    app_services: [{{name: web, kind: web, command: x}}]
    app_start_timeout: 60
    app_stay_up: 5
    app_gate_timeout: 20
    app_drain_timeout: 30
    app_smoke_timeout: 300
    app_gates_timeout: 60
    maintenance_deployment: 20261121T013700-ab12
    maintenance_record: {{}}
  tasks:
    - name: Know what went before
      ansible.builtin.set_fact: {facts}
{steps}
"""
STEP = """
    - name: Step
      ansible.builtin.include_role:
        name: runbook.deploy.maintenance
        tasks_from: {entry}
        rolespec_validate: false
      vars: {variables}
    - name: Note
      ansible.builtin.debug:
        msg: "NOTE {{{{ [lookup('ansible.builtin.fileglob', '{root}/flag') | length > 0,
          maintenance_left_on | default({{}}) | length > 0, maintenance_downtime | default({{}}) | length > 0] | map('string') | join(' ') }}}}"
"""


def surroundings(tmp_path: Path) -> dict[str, str]:
    """The environment of ansible-playbook."""
    return {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".ansible_dev"),
        "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"),
        "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
    }


def play(tmp_path: Path, *steps: tuple[str, dict], facts: dict | None = None) -> list[list]:
    """Return a row for each step: [the flag is there, it was left on, a downtime is known].

    :param facts: what the host knows from earlier phases.
    """
    (tmp_path / "srv").mkdir()
    text = "".join(
        STEP.format(entry=entry, variables=json.dumps(variables), root=tmp_path) for entry, variables in steps
    )
    (tmp_path / "play.yml").write_text(
        PLAY.format(root=tmp_path, steps=text, facts=json.dumps({"known": True, **(facts or {})}))
    )
    argv = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local"]
    argv += ["-e", f"ansible_python_interpreter={sys.executable}", "play.yml"]
    done = subprocess.run(
        argv,
        cwd=tmp_path,
        env=surroundings(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [
        [word == "True" for word in found.split()] for found in re.findall(r'NOTE ([A-Za-z ]+)"', done.stdout)
    ]


@pytest.fixture(autouse=True)
def no_watchman_is_left(tmp_path):
    yield
    # A watchman ends by itself when the note is gone.
    (tmp_path / "srv/maintenance/state.json").unlink(missing_ok=True)


def test_the_page_goes_stays_where_a_person_is_needed_and_comes_back(tmp_path):
    assert play(
        tmp_path,
        # Where it was not on, a way back that failed does not put it on.
        ("settle.yml", {"maintenance_keep": True}),
        ("on.yml", {}),
        ("settle.yml", {"maintenance_keep": True, "maintenance_reason": "a person is needed"}),
        ("settle.yml", {"maintenance_keep": False}),
        # The proof failed after it was taken off.
        ("settle.yml", {"maintenance_keep": True}),
        ("off.yml", {}),
    ) == [
        [False, False, False],
        [True, False, False],
        [True, False, False],
        [False, False, True],
        [True, False, True],
        [False, False, True],
    ]


@pytest.mark.long
def test_a_page_that_cannot_be_switched_stops_neither_a_way_back_nor_the_end_of_a_run(tmp_path):
    elsewhere = {"maintenance_described": {"kind": "file", "path": "/nowhere/at/all/flag"}}
    other = {"maintenance_described": {"kind": "command", "command_on": ["true"], "command_off": ["true"]}}
    assert play(
        tmp_path,
        ("begin_rollback.yml", elsewhere),
        ("on.yml", {}),
        # Another kind cannot end it: that is told, and tried again.
        ("off.yml", other),
        ("settle.yml", {**other, "maintenance_keep": True}),
        ("off.yml", {}),
    ) == [
        [False, False, False],
        [True, False, False],
        [True, True, False],
        [True, True, False],
        [False, False, True],
    ]


def of_deploy() -> dict:
    """The variables that playbooks/deploy.yml gives the phase which puts the page on."""
    for one in yaml.safe_load((ROOT / "playbooks/deploy.yml").read_text()):
        for task in one.get("tasks") or []:
            if (task.get("vars") or {}).get("phase_name") == "maintenance":
                return {
                    name: value
                    for name, value in task["vars"].items()
                    if name.startswith(("maintenance_", "deploy_"))
                }
    raise AssertionError("playbooks/deploy.yml has no phase maintenance")


def test_a_deployment_gives_the_page_the_time_that_its_rehearsal_measured(tmp_path):
    rehearsed = {"forward_seconds": 754.2}
    migration = {"app": "shop", "name": "0002_x", "compatible": "no", "rehearsed": rehearsed}
    facts = {
        "deploy_primary_host": "localhost",
        "app_maintenance_when": "migrations",
        "migrate_verified": {"plan": {"migrations": [migration], "rehearsal": rehearsed}},
        "report_begun": {"previous": {"release": "r1"}},
    }
    described = {"kind": "file", "path": str(tmp_path / "flag"), "expires": 60}
    step = ("on.yml", {**of_deploy(), "maintenance_described": described})
    assert play(tmp_path, step, facts=facts) == [[True, False, False]]
    note = json.loads((tmp_path / "srv/maintenance/state.json").read_text())
    assert note["expected"] == 755
    # The restart of one host (60 + 5 + 20 + 30), and the smoke test with its gates (300 + 60).
    assert note["expires"] - note["since"] == pytest.approx(2 * 755 + 475, abs=0.01)
    assert "not proved to run after shop.0002_x" in note["reason"]


def test_a_person_says_how_long_it_is_expected_to_last(tmp_path):
    (tmp_path / "srv").mkdir()
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "app_name": "shop",
        "app_stage": "production",
        "app_root": str(tmp_path / "srv"),
        "app_user": "",
        "app_python": sys.executable,
        "app_repository": str(tmp_path / "none.git"),
        "app_framework": "none",
        "app_database": {"engine": "sqlite", "path": str(tmp_path / "srv/db.sqlite3")},
        "app_services": [
            {"name": "web", "manager": "process", "bind": "port", "port": 1, "command": "x {port}"}
        ],
        "app_maintenance": {"kind": "file", "path": str(tmp_path / "flag"), "expires": 60},
    }
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"all": {"children": {"app": {"hosts": {"here": variables}}}}}))

    def maintenance(*arguments: str) -> subprocess.CompletedProcess:
        argv = [sys.executable, "-m", "ansible", "playbook", "-i", str(inventory)]
        argv += [str(ROOT / "playbooks/maintenance.yml"), "-e", "maintenance=on", *arguments]
        return subprocess.run(
            argv,
            cwd=tmp_path,
            env=surroundings(tmp_path),
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )

    refused = maintenance("-e", "maintenance_expected=10m")
    assert refused.returncode != 0
    assert "maintenance_expected is 10m, expected seconds" in refused.stdout + refused.stderr
    assert not (tmp_path / "flag").exists()
    done = maintenance("-e", "maintenance_expected=600")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was expected to last 600 s" in done.stdout
    note = json.loads((tmp_path / "srv/maintenance/state.json").read_text())
    assert note["expected"] == 600
    assert note["expires"] - note["since"] == pytest.approx(2 * 600 + 475, abs=0.01)
