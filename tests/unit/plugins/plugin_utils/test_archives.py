# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archives that are kept from one run to the next: never stale, never somebody else's, never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.plugin_utils import _archives as archives

NAME = f"{archives.OURS}plugins.modules.release-ZIP_DEFLATED"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home of ansible with nothing in it, private to this user."""
    tmp_path.chmod(0o700)
    monkeypatch.setattr(archives, "store", lambda: tmp_path / "home" / "runbook.deploy" / "archives")
    (tmp_path / "home").mkdir(mode=0o700)
    return tmp_path


def run(home: Path, monkeypatch: pytest.MonkeyPatch, number: int, content: str | None) -> str | None:
    """Do as one run: return what it was given; it makes an archive of *content* where it was given none."""
    directory = home / f"run{number}"
    monkeypatch.setattr(archives, "run_directory", lambda: directory)
    with archives.reused():
        path = directory / NAME
        if path.exists():
            return path.read_text()
        if content is not None:
            directory.mkdir(exist_ok=True)
            path.write_text(content)
    return None


def test_what_a_run_made_is_given_to_the_next(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(home, monkeypatch, 1, "packed") is None
    assert run(home, monkeypatch, 2, None) == "packed"


def test_changed_code_is_packed_anew(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = home / "collection" / "plugins" / "module_utils"
    code.mkdir(parents=True)
    (code / "_x.py").write_text("a = 1\n")
    make = archives.key
    monkeypatch.setattr(archives, "key", lambda: make(home / "collection"))
    run(home, monkeypatch, 1, "packed")
    assert run(home, monkeypatch, 2, None) == "packed"
    (code / "_x.py").write_text("a = 22\n")
    assert run(home, monkeypatch, 3, None) is None
    (code / "_y.py").write_text("")
    assert run(home, monkeypatch, 4, None) is None


def test_a_directory_that_others_may_write_is_not_believed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(home, monkeypatch, 1, "packed")
    archives.store().chmod(0o777)
    assert run(home, monkeypatch, 2, None) is None


def test_a_link_in_place_of_the_directory_is_not_believed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(home, monkeypatch, 1, "packed")
    elsewhere = home / "elsewhere"
    archives.store().rename(elsewhere)
    archives.store().symlink_to(elsewhere)
    assert run(home, monkeypatch, 2, None) is None


def test_half_an_archive_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(home, monkeypatch, 1, "packed")
    kept = archives.store() / archives.key()
    (kept / NAME).rename(kept / f"{NAME}-part")
    assert run(home, monkeypatch, 2, None) is None


def test_a_home_that_cannot_be_made_does_not_matter(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("")
    monkeypatch.setattr(archives, "store", lambda: home / "file" / "runbook.deploy" / "archives")
    assert run(home, monkeypatch, 1, "packed") is None


def test_archives_of_other_versions_go_when_nobody_uses_them(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(home, monkeypatch, 1, "packed")
    old = archives.store() / ("0" * 32)
    old.mkdir()
    os.utime(old, (1000, 1000))
    monkeypatch.setattr(archives, "key", lambda: "f" * 32)
    run(home, monkeypatch, 2, "packed")
    assert not old.exists()
    assert len(list(archives.store().iterdir())) == 2
