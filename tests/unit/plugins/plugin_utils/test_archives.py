# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of modules that outlive a run: reused where nothing changed, and only where nobody else could have written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.plugin_utils import _archives

NAME = "ansible_collections.runbook.deploy.plugins.modules.release-ZIP_DEFLATED-none"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's home; `run()` begins another run, with an empty temporary directory."""
    directory = tmp_path / "home" / ".ansible"
    directory.mkdir(parents=True)
    directory.chmod(0o755)
    monkeypatch.setattr(_archives.constants, "ANSIBLE_HOME", str(directory))
    return directory


@pytest.fixture
def run(home, monkeypatch):
    def begin(number):
        local = home / "tmp" / f"ansible-local-{number}"
        local.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(_archives.constants, "DEFAULT_LOCAL_TMP", str(local))
        return local / "ansiballz_cache"

    return begin


def made(cache, name=NAME, content=b"archive"):
    """What ansible-core leaves when it made an archive."""
    cache.mkdir(exist_ok=True)
    (cache / name).write_bytes(content)
    (cache / f"{name}.lock").write_bytes(b"")


def kept(home):
    return sorted(path.name for path in (home / "runbook.deploy" / "archives").glob("*/*"))


def test_an_archive_of_one_run_is_there_in_the_next(home, run):
    cache = run(1)
    with _archives.reused():
        made(cache)
    cache = run(2)
    with _archives.reused():
        assert (cache / NAME).read_bytes() == b"archive"
    assert sorted(os.listdir(cache)) == [NAME]
    assert kept(home) == [NAME]


def test_ansible_core_takes_what_was_kept(home, tmp_path):
    """With the real thing: the second run packs nothing."""
    book = tmp_path / "book.yml"
    task = {"runbook.deploy.deployment_lock": {"root": str(tmp_path / "none"), "state": "absent"}}
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [task]}
    book.write_text(json.dumps([play]))
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(_archives.COLLECTION / "ansible.cfg"),
        "ANSIBLE_HOME": str(home),
        "ANSIBLE_DEBUG": "1",
    }
    command = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", str(book)]
    told = []
    for _run in range(2):
        done = subprocess.run(
            command, cwd=_archives.COLLECTION, env=environment, capture_output=True, text=True, check=False
        )
        told.append(
            ("ANSIBALLZ: Creating module" in done.stdout, "ANSIBALLZ: using cached module" in done.stdout)
        )
        assert len(kept(home)) == 1, done.stdout[-2000:]
    assert told[0][0]
    assert told[1] == (False, True)


@pytest.mark.parametrize("folder", ["module_utils", "modules"])
def test_another_state_of_the_collection_has_archives_of_its_own(tmp_path, folder):
    for name in ("module_utils", "modules"):
        (tmp_path / "plugins" / name).mkdir(parents=True)
        (tmp_path / "plugins" / name / "one.py").write_text("a = 1\n")
    before = _archives.key(tmp_path)
    assert _archives.key(tmp_path) == before
    path = tmp_path / "plugins" / folder / "one.py"
    path.write_text("a = 2\n")
    os.utime(path, ns=(1, 1))
    changed = _archives.key(tmp_path)
    assert changed != before
    path.with_name("two.py").write_text("")
    assert _archives.key(tmp_path) != changed


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (_archives, "core_version", "2.99.0"),
        (_archives.sys, "version", "3.99"),
        (_archives.constants, "DEFAULT_MODULE_UTILS_PATH", ["/elsewhere"]),
    ],
)
def test_so_has_another_maker(monkeypatch, place, name, value):
    before = _archives.key()
    monkeypatch.setattr(place, name, value)
    assert _archives.key() != before


@pytest.mark.parametrize("place", ["", "runbook.deploy", "runbook.deploy/archives"])
def test_what_others_may_write_is_not_used(home, run, place):
    cache = run(1)
    with _archives.reused():
        made(cache)
    (home / place).chmod(0o775)
    cache = run(2)
    with _archives.reused():
        assert not cache.exists()
        made(cache, NAME.replace("release", "migration"))
    assert kept(home) == [NAME]


def test_neither_is_what_belongs_to_somebody_else_or_is_a_link(home, run, monkeypatch):
    cache = run(1)
    with _archives.reused():
        made(cache)
    user = os.geteuid()
    monkeypatch.setattr(_archives.os, "geteuid", lambda: user + 1)
    cache = run(2)
    with _archives.reused():
        assert not cache.exists()
    monkeypatch.undo()
    store = home / "runbook.deploy" / "archives"
    store.rename(home / "elsewhere")
    store.symlink_to(home / "elsewhere")
    assert not _archives.private(store)


def test_archives_of_other_collections_and_unfinished_ones_stay_where_they_are(home, run):
    cache = run(1)
    with _archives.reused():
        made(cache)
        made(cache, "ansible.modules.copy-ZIP_DEFLATED-none")
        (cache / f"{NAME}-part").write_bytes(b"arch")
    assert kept(home) == [NAME]


def test_what_nobody_used_for_long_is_removed(home, run):
    cache = run(1)
    with _archives.reused():
        made(cache)
    store = home / "runbook.deploy" / "archives"
    old, young = store / "old", store / "young"
    for directory, age in ((old, _archives.KEPT_SECONDS + 60), (young, 60)):
        directory.mkdir()
        os.utime(directory, (time.time() - age,) * 2)
    cache = run(2)
    with _archives.reused():
        made(cache, NAME.replace("release", "migration"))
    assert not old.exists()
    assert young.exists()
    assert len(kept(home)) == 2


def test_a_home_that_cannot_be_written_fails_nothing(run, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    run(1)
    monkeypatch.setattr(_archives.constants, "ANSIBLE_HOME", str(file / "home"))
    with _archives.reused():
        pass


def test_what_a_module_raises_is_raised(home, run):
    cache = run(1)
    with pytest.raises(ValueError, match="broken"), _archives.reused():
        made(cache)
        raise ValueError("broken")
    assert Path(cache / NAME).exists()


def test_a_users_umask_that_lets_a_group_write_is_no_obstacle(home, run):
    before = os.umask(0o002)
    try:
        cache = run(1)
        with _archives.reused():
            made(cache)
    finally:
        os.umask(before)
    assert kept(home) == [NAME]
