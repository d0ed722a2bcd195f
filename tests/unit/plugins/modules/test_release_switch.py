# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.modules import release_switch

FIRST, SECOND = "111111111111-0a1b2c3d", "222222222222-0a1b2c3d"


@pytest.fixture(name="root")
def fixture_root(tmp_path: Path) -> Path:
    for name in (FIRST, SECOND):
        (tmp_path / "releases" / name).mkdir(parents=True)
        (tmp_path / "releases" / name / ".built").touch()
        (tmp_path / "releases" / name / "name").write_text(name)
    return tmp_path


def switch(root: Path, release: str, capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    with patch_module_args({"root": str(root), "release": release, **options}), pytest.raises(SystemExit):
        release_switch.main()
    return json.loads(capsys.readouterr().out)


def test_the_first_the_next_and_the_same(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = switch(root, FIRST, capsys)
    assert (answer["changed"], answer["previous"], answer["current"]) == (True, None, FIRST)
    assert os.readlink(root / "current") == f"releases/{FIRST}"
    answer = switch(root, SECOND, capsys)
    assert (answer["changed"], answer["previous"], answer["current"]) == (True, FIRST, SECOND)
    answer = switch(root, SECOND, capsys)
    assert (answer["changed"], answer["previous"], answer["current"]) == (False, SECOND, SECOND)
    assert sorted(entry.name for entry in root.iterdir()) == ["current", "releases"]


def test_there_is_no_moment_without_a_release(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    switch(root, FIRST, capsys)
    ended, missed = threading.Event(), []

    def look() -> None:
        while not ended.is_set():
            try:
                (root / "current" / "name").read_text()
            except OSError as error:
                missed.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(60):
        switch(root, (FIRST, SECOND)[number % 2], capsys)
    ended.set()
    thread.join()
    assert not missed


def test_check_mode_and_diff(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    switch(root, FIRST, capsys)
    answer = switch(root, SECOND, capsys, _ansible_check_mode=True, _ansible_diff=True)
    assert answer["changed"] and (answer["previous"], answer["current"]) == (FIRST, SECOND)
    assert FIRST in answer["diff"]["before"] and SECOND in answer["diff"]["after"]
    assert os.readlink(root / "current") == f"releases/{FIRST}"
    assert switch(root, FIRST, capsys, _ansible_check_mode=True)["changed"] is False


def test_what_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "releases" / SECOND / ".built").unlink()
    assert "was not built to its end" in switch(root, SECOND, capsys)["msg"]
    answer = switch(root, "333333333333-0a1b2c3d", capsys)
    assert "is not on this host; found 1111" in answer["msg"]
    for name in ("..", "../..", ".", ""):
        assert "is not on this host" in switch(root, name, capsys)["msg"]
    assert not (root / "current").is_symlink()
    (root / "current").mkdir()
    answer = switch(root, FIRST, capsys)
    assert "is not a link but a directory" in answer["msg"] and "app_adopt" in answer["msg"]
    assert (root / "current").is_dir() and not list((root / "current").iterdir())


def test_a_link_that_leads_nowhere_is_replaced(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.symlink("/nowhere/" + FIRST, root / "current")
    answer = switch(root, FIRST, capsys)
    assert answer["changed"] and (root / "current/name").read_text() == FIRST
