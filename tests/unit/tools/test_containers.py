# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the scripts for the test hosts decide, without an engine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

CONTAINERS = Path(__file__).resolve().parents[2] / "containers"
sys.path.insert(0, str(CONTAINERS))

import engine
import hosts
import image
import supplies


def test_the_image_is_another_when_anything_in_it_is():
    names = {
        image.name_of("debian:12", b"a"),
        image.name_of("debian:12", b"b"),
        image.name_of("debian:13", b"a"),
    }
    assert len(names) == 3
    assert image.name_of("debian:12", b"a") in names


def test_the_build_takes_what_downloads_need_from_apt_and_nothing_else():
    dump = (
        'APT::Get::Assume-Yes "true";\nAcquire::http "";\nAcquire::http::Proxy "http://proxy:3128";\n'
        'Acquire::Check-Valid-Until "false";\nAcquire::IndexTargets "";\nDPkg::Post-Invoke "rm";\n'
    )
    assert image.apt_settings(dump) == (
        'Acquire::http::Proxy "http://proxy:3128";\nAcquire::Check-Valid-Until "false";\n'
    )


def test_sources_of_the_same_suite_only():
    targets = (
        "http://mirror.example/debian bookworm main\nhttp://mirror.example/debian bookworm main\n"
        "http://mirror.example/debian bookworm contrib\nhttp://mirror.example/debian-security bookworm-security main\n"
        "http://other.example/debian trixie main\n"
    )
    assert image.sources_of(targets, "bookworm") == [
        "deb http://mirror.example/debian bookworm main",
        "deb http://mirror.example/debian-security bookworm-security main",
    ]


def test_the_inventory_is_yaml_with_groups_addresses_and_checked_host_keys():
    text = hosts.inventory_text(
        {"app": ["web1", "web2"], "workers": ["web2"]}, {"web1": "10.0.0.10", "web2": "10.0.0.11"}
    )
    everything = yaml.safe_load(text)["all"]
    assert everything["children"]["app"]["hosts"]["web1"]["ansible_host"] == "10.0.0.10"
    assert list(everything["children"]["workers"]["hosts"]) == ["web2"]
    assert "StrictHostKeyChecking=yes" in everything["vars"]["ansible_ssh_common_args"]
    assert everything["vars"]["test_build_environment"]["PIP_NO_INDEX"] == "1"


def test_sockets_of_shared_connections_fit():
    # ssh makes <40 hexadecimal digits>.<16 characters> there while it connects; a socket's path has 107 bytes.
    assert len(str(hosts.CONTROL)) + 1 + 40 + 1 + 16 <= 107


def test_requirements_of_every_version_except_the_broken_ones(tmp_path):
    for name, text in (
        ("shop/requirements.txt", "# first\nDjango==5.2.8  # pinned\n-r other.txt\ngunicorn\n"),
        ("shop/v2/requirements.txt", "Django==5.2.9\n"),
        ("shop/broken-dependency/requirements.txt", "does-not-exist==1\n"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert supplies.requirements(tmp_path) == ["Django==5.2.8", "gunicorn", "Django==5.2.9"]


@pytest.mark.parametrize(
    ("content", "removed"), [("1", True), ("4194304", True), ("", False), ("nonsense", False)]
)
def test_a_pid_file_that_is_no_engines_is_removed(tmp_path, content, removed):
    path = tmp_path / "docker.pid"
    path.write_text(content)
    assert engine.remove_stale_pid_file(path) is removed
    assert path.exists() is not removed


def test_a_running_engines_pid_file_stays(tmp_path):
    program = tmp_path / "dockerd"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "30"]) as running:
        try:
            # The kernel renames the process a moment after the program was started.
            while Path(f"/proc/{running.pid}/comm").read_text() != "dockerd\n":
                time.sleep(0.01)
            path = tmp_path / "docker.pid"
            path.write_text(str(running.pid))
            assert engine.remove_stale_pid_file(path) is False
            assert path.exists()
        finally:
            running.kill()


def test_missing_programs_are_named_by_their_packages():
    assert engine.missing({"sh": "dash", "no-such-program": "one", "nor-this": "one"}) == ["one"]


def test_who_may_not_install_is_told_what_to_install():
    with pytest.raises(SystemExit) as refused:
        engine.refuse(["docker.io"], "only root may start one")
    message = str(refused.value)
    assert "could not run" in message
    assert "apt-get install docker.io" in message


def test_with_no_engine_an_ordinary_user_gets_a_failure(tmp_path):
    """The real program, with a docker that reaches no engine; as root, as nobody."""
    fake = tmp_path / "docker"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    tmp_path.chmod(0o755)
    script = f"import os, runpy, sys; sys.path.insert(0, {str(CONTAINERS)!r}); import engine; "
    script += (
        "os.geteuid() == 0 and os.setuid(65534); sys.argv = ['engine.py', 'true']; sys.exit(engine.main())"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "could not run" in done.stderr
