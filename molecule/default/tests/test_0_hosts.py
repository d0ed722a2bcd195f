# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The test hosts are machines as far as a deployment can tell: systemd, ssh, a reboot, offline wheels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

testinfra_hosts = ["ansible://app"]
PROJECT = Path(__file__).resolve().parents[3]


def test_systemd_is_process_1(host):
    assert host.process.get(pid=1).comm == "systemd"
    assert host.run("systemctl is-system-running").stdout.strip() == "running"


def test_login_is_by_key_only_and_not_as_root_by_default(host):
    answer = host.run("sudo sshd -T")
    assert "passwordauthentication no" in answer.stdout
    assert host.run("printenv SUDO_USER").stdout.strip() == "deploy"


def test_web_server_runs(host):
    assert host.service("nginx").is_running
    assert host.socket("tcp://0.0.0.0:80").is_listening


def test_wheels_are_mounted_read_only(host):
    assert int(host.run("ls /wheels/*.whl | wc -l").stdout) >= 4
    assert host.run("touch /wheels/x").rc != 0


def test_the_application_installs_with_no_network(host):
    made = host.run(
        "set -e; dir=$(mktemp -d); python3 -m venv $dir/env; "
        "PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels $dir/env/bin/pip install -q --disable-pip-version-check uv; "
        "UV_OFFLINE=1 UV_FIND_LINKS=/wheels UV_CACHE_DIR=$dir/cache $dir/env/bin/uv pip install -q "
        "--python $dir/env/bin/python django gunicorn whitenoise; "
        "$dir/env/bin/python -c 'import django, gunicorn, whitenoise'; rm -rf $dir"
    )
    assert made.rc == 0, made.stderr


def test_a_reboot_keeps_address_and_host_key(host):
    before = host.file("/proc/sys/kernel/random/boot_id").content_string
    started = float(host.run("stat -c %Y /proc/1").stdout)
    name = host.run("hostname").stdout.strip()
    subprocess.run([sys.executable, PROJECT / "tests/containers/hosts.py", "reboot", name], check=True)
    assert host.process.get(pid=1).comm == "systemd"
    assert (
        host.file("/proc/sys/kernel/random/boot_id").content_string == before
    )  # a container has its kernel's
    assert float(host.run("stat -c %Y /proc/1").stdout) > started
    assert host.service("nginx").is_running


def test_no_other_network_is_reachable(host):
    assert host.run("curl --silent --max-time 3 http://deb.debian.org/").rc != 0
