# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role setup leaves alone, by ansible-playbook itself in check mode."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
VARIABLES = {
    "app_root": "/nowhere",
    "app_name": "nobody",
    "app_stage": "test",
    "app_user": "",
    "app_database": {},
    "app_python": "python3",
    "app_build_environment": {},
    "app_adopt": {},
    "app_web_server": {"kind": "nginx", "listen": 80},
}
PLAY = [
    {
        "hosts": "localhost",
        "gather_facts": False,
        "tasks": [{"ansible.builtin.include_role": {"name": "runbook.deploy.setup"}, "tags": ["always"]}],
    }
]


@pytest.mark.parametrize(("kind", "written"), [("web", True), ("worker", False)])
def test_site_is_written_only_where_a_web_service_is(tmp_path, kind, written):
    """Nginx refuses an upstream without servers, so that setup failed on hosts of workers."""
    service = {"name": "one", "kind": kind, "manager": "process", "bind": "socket", "command": "true"}
    (tmp_path / "play.yml").write_text(json.dumps(PLAY), encoding="utf-8")
    (tmp_path / "variables.json").write_text(
        json.dumps({**VARIABLES, "app_services": [service]}), encoding="utf-8"
    )
    argv = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local", "--check"]
    argv += ["--tags", "setup_web_server", "-e", "@variables.json", "play.yml"]
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".ansible_dev"),
        "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"),
        "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
    }
    done = subprocess.run(
        argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=180
    )
    # Where there is no nginx, what comes after the site may fail; that it is reached is what counts.
    assert ("Write the site" in done.stdout) == written, done.stdout + done.stderr
    if not written:
        assert done.returncode == 0, done.stdout + done.stderr
