# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._shared import check_shared, link_shared


@pytest.fixture(name="layout")
def fixture_layout(tmp_path: Path) -> Layout:
    (tmp_path / "release").mkdir()
    return Layout(tmp_path)


def link(layout: Layout, *paths: str, user: str | None = None) -> list[str]:
    return link_shared(layout, layout.root / "release", paths, user)


def test_directories_are_made_and_linked(layout: Layout) -> None:
    assert link(layout, "media", "var/uploads/", "db.sqlite3", "data/db.sqlite3") == []
    release = layout.root / "release"
    for path in ("media", "var/uploads", "db.sqlite3", "data/db.sqlite3"):
        assert os.readlink(release / path) == str(layout.shared / path)
    for path in ("media", "var/uploads", "var", "data"):
        assert (layout.shared / path).is_dir()
        assert (layout.shared / path).stat().st_mode & 0o7777 == 0o750
    # The application makes its files itself.
    assert not (layout.shared / "db.sqlite3").exists()
    assert (release / "media").is_dir()


def test_they_belong_to_the_application(layout: Layout) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give directories to another user")
    link(layout, "var/media", user="nobody")
    assert {(layout.shared / path).stat().st_uid for path in ("var", "var/media")} == {65534}
    assert layout.shared.stat().st_uid == 0


def test_a_placeholder_makes_way(layout: Layout) -> None:
    media = layout.root / "release/media"
    media.mkdir()
    (media / ".gitkeep").touch()
    assert link(layout, "media") == []
    assert media.is_symlink()
    assert not (layout.shared / "media/.gitkeep").exists()


def test_what_is_shipped_is_the_first_content_and_never_the_second(layout: Layout) -> None:
    media = layout.root / "release/media"
    (media / "logos").mkdir(parents=True)
    (media / "logos/a.svg").write_text("shipped")
    notes = link(layout, "media")
    assert len(notes) == 1 and "was filled with what this version ships" in notes[0]
    assert (layout.shared / "media/logos/a.svg").read_text() == "shipped"
    assert (layout.shared / "media/logos").stat().st_mode & 0o7777 == 0o750
    (layout.shared / "media/logos/a.svg").write_text("changed by a user")
    media.unlink()
    (media / "logos").mkdir(parents=True)
    (media / "logos/a.svg").write_text("shipped again")
    assert link(layout, "media") == []
    media.unlink()
    media.mkdir()
    (media / "new.svg").write_text("new")
    assert "new.svg of the repository cannot be seen" in link(layout, "media")[0]
    assert (layout.shared / "media/logos/a.svg").read_text() == "changed by a user"


def test_a_file_of_the_repository_gives_way_and_it_is_said(layout: Layout) -> None:
    (layout.root / "release/db.sqlite3").write_text("a developer's")
    notes = link(layout, "db.sqlite3")
    assert "the one in the repository is not used" in notes[0] and "does not exist yet" in notes[0]
    assert not (layout.shared / "db.sqlite3").exists()


def test_what_is_there_decides_between_file_and_directory(layout: Layout) -> None:
    (layout.shared / "conf.d").mkdir(parents=True)
    (layout.shared / "licence").write_text("x")
    assert link(layout, "conf.d", "licence") == []
    assert (layout.root / "release/conf.d").is_dir()
    assert (layout.root / "release/licence").read_text() == "x"


@pytest.mark.parametrize(
    ("prepare", "path", "message"),
    [
        ("file", "media", "ships a file of that name"),
        ("directory", "db.sqlite3", "a directory with files in this version and a file"),
        ("link", "outside/media", "'outside' is no directory in this version"),
    ],
)
def test_what_cannot_be_linked(layout: Layout, prepare: str, path: str, message: str) -> None:
    release = layout.root / "release"
    if prepare == "file":
        (release / "media").write_text("x")
    elif prepare == "directory":
        (release / "db.sqlite3").mkdir()
        (release / "db.sqlite3/x").write_text("x")
    else:
        os.symlink("/tmp", release / "outside")
    with pytest.raises(Problem, match=message):
        link(layout, path)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["/etc"], "'/etc': expected a path inside app_directory"),
        (["../x"], "expected a path inside"),
        (["."], "expected a path inside"),
        ([""], "expected a path inside"),
        (["static"], "shared/static is the collection's own"),
        (["env/x"], "shared/env is the collection's own"),
        (["media", "media/a"], "name only 'media'"),
    ],
)
def test_paths_that_are_refused(paths: list[str], message: str) -> None:
    with pytest.raises(Problem, match=message):
        check_shared(paths)
    assert check_shared(["media/", "./media", "b"]) == ["media", "b"]
