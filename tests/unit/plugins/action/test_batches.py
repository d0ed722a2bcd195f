# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts a deployment restarts together, and in which order: the play of playbooks/plays/switch.yml, run by ansible-playbook."""

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
HOSTS = ["web1", "web2", "web3", "worker1", "app-9"]


@pytest.mark.parametrize(
    ("batch", "limit", "batches"),
    [
        ([1, "50%"], "", [["web1"], ["web2", "web3"], ["worker1", "app-9"]]),
        ([1, "100%"], "", [["web1"], ["web2", "web3", "worker1", "app-9"]]),
        (2, "web3,app-9,web1", [["web1", "web3"], ["app-9"]]),
    ],
)
def test_order_of_the_inventory(tmp_path, batch, limit, batches):
    """However the contract finished on the hosts, the first of the inventory is the first to be restarted."""
    plays = yaml.safe_load((ROOT / "playbooks" / "plays" / "switch.yml").read_text(encoding="utf-8"))
    (switch,) = [play for play in plays if play["name"] == "Switch, batch after batch"]
    host = {"ansible.builtin.debug": {"msg": "BATCH {{ ansible_play_batch | join(',') }}"}, "run_once": True}
    # As the contract does, but the last host first.
    group = {
        "ansible.builtin.add_host": {
            "name": "{{ item }}",
            "groups": ["deploy_hosts", "{{ 'deploy_primary' if item == 'web3' else 'deploy_others' }}"],
            "app_batch": batch,
        },
        "loop": "{{ ansible_play_hosts | reverse }}",
    }
    written = [
        {"hosts": "app", "gather_facts": False, "tasks": [{**group, "run_once": True}]},
        {**{key: switch[key] for key in ("hosts", "serial")}, "gather_facts": False, "tasks": [host]},
    ]
    (tmp_path / "play.yml").write_text(json.dumps(written), encoding="utf-8")
    (tmp_path / "hosts.yml").write_text(
        yaml.safe_dump({"all": {"children": {"app": {"hosts": dict.fromkeys(HOSTS)}}}}, sort_keys=False)
    )
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
    }
    argv = [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.yml", "-c", "local", "play.yml"]
    argv += ["--limit", limit] if limit else []
    done = subprocess.run(
        argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [words.split(",") for words in re.findall(r'"msg": "BATCH ([^"]+)"', done.stdout)]
    assert found == batches, done.stdout + done.stderr
