# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the code comes from: an archive for hosts without git, and a repository behind ssh with a deploy key."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from site_tools import REPOSITORY, ROOT, Site, host

SERVER = "guard2"
HOME = "/home/codeserver"


@pytest.fixture
def without_git(empty) -> Iterator[None]:
    """Hosts on which nobody finds git."""
    for member in empty.members:
        member.sh("mv /usr/bin/git /usr/bin/git.hidden")
    try:
        yield
    finally:
        for member in empty.members:
            member.sh("mv /usr/bin/git.hidden /usr/bin/git")


@pytest.mark.short
def test_an_archive_is_deployed_to_hosts_without_git(empty, without_git, tmp_path):
    path = tmp_path / "goexplorer.tar"
    subprocess.run(["git", "-C", REPOSITORY, "archive", "-o", path, "v2.6"], check=True)
    commit = subprocess.run(
        ["git", "-C", REPOSITORY, "rev-parse", "v2.6^{commit}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    site = Site(tmp_path, app_repository=None, app_archive={"path": str(path), "sha256": digest})
    site.good("deploy")
    assert site.answer() == ["v2.6", "v2.6"]
    for member in site.members:
        assert json.loads(member.get()[2])["commit"] == commit
        assert member.sh(f"ls {ROOT}/scratch") == ""
        assert not member.sh(f"ls -d {ROOT}/repository.git", check=False)


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, str]:
    """A server whose sshd gives one repository to one key, and nothing else: the key, its own host key, another one."""
    directory = tmp_path_factory.mktemp("keys")
    for name in ("deploy", "stranger"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(directory / name)],
            check=True,
        )
    server = host(SERVER)
    public = (directory / "deploy.pub").read_text()
    command = f"git-upload-pack {HOME}/goexplorer.git"
    server.sh(
        f"id codeserver >/dev/null 2>&1 || useradd --create-home --shell /bin/sh codeserver; rm -rf {HOME}/goexplorer.git; "
        f"git clone -q --bare /repositories/goexplorer.git {HOME}/goexplorer.git; install -d -m 700 {HOME}/.ssh; "
        f"printf '%s\\n' 'restrict,command=\"{command}\" {public.strip()}' > {HOME}/.ssh/authorized_keys; "
        f"chown -R codeserver: {HOME}"
    )
    own = " ".join(server.sh("cat /etc/ssh/ssh_host_ed25519_key.pub").split()[:2])
    other = " ".join((directory / "stranger.pub").read_text().split()[:2])
    return {
        "app_repository": f"ssh://codeserver@{server.address}{HOME}/goexplorer.git",
        "app_repository_key": (directory / "deploy").read_text(),
        "known": f"{server.address} {own}\n",
        "stranger": f"{server.address} {other}\n",
        "other_key": (directory / "stranger").read_text(),
    }


def site_with(directory: Path, keys: dict[str, str], **changes: str) -> Site:
    given = {name: keys[name] for name in ("app_repository", "app_repository_key")}
    return Site(directory, **{**given, "app_repository_known_hosts": keys["known"], **changes})


def assert_key_is_gone(site: Site, run, keys: dict[str, str]) -> None:
    """The key's text is in no file of a host that outlives the run, in no process, and in no output."""
    line = keys["app_repository_key"].splitlines()[2]
    assert line not in run.output
    for member in site.members:
        places = "/srv /data /opt /tmp /var/tmp /var/log /root /home /etc /run /dev/shm"
        found = member.sh(f"grep -rlF -e '{line}' {places} 2>/dev/null", check=False)
        assert found == "", f"{member.name}: {found}"
        assert line not in member.sh("ps axwwe")


def test_a_server_that_is_another_one_is_refused(empty, keys, tmp_path):
    site = site_with(tmp_path, keys, app_repository_known_hosts=keys["stranger"])
    run = site.deploy("v2.7")
    assert run.rc != 0
    assert "REFUSED, NOTHING WAS CHANGED" in run.end
    assert "app_repository_known_hosts" in run.end
    assert_key_is_gone(site, run, keys)


def test_a_key_that_the_server_does_not_know_is_refused(empty, keys, tmp_path):
    site = site_with(tmp_path, keys, app_repository_key=keys["other_key"])
    run = site.deploy("v2.7")
    assert run.rc != 0
    assert "REFUSED, NOTHING WAS CHANGED" in run.end
    assert "app_repository_key" in run.end
    assert keys["other_key"].splitlines()[2] not in run.output


def test_a_deploy_key_is_used_and_never_kept(empty, keys, tmp_path):
    site = site_with(tmp_path, keys)
    run = site.good("deploy", "-vvv", version="v2.7")
    assert site.answer() == ["v2.7", "v2.7"]
    assert_key_is_gone(site, run, keys)
    # The key opens this one door: a login with it gives no shell.
    said = host(SERVER).sh(f"su codeserver -s /bin/sh -c 'cat {HOME}/.ssh/authorized_keys'")
    assert said.startswith("restrict,command=")
