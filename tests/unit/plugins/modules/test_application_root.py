# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The directories of an application, and the installer: made once, with owners and modes, whole or not at all."""

from __future__ import annotations

import getpass
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.modules import application_root

MODES = {
    "": 0o755,
    "releases": 0o755,
    "environments": 0o755,
    "shared": 0o755,
    "shared/static": 0o755,
    "shared/env": 0o750,
    "shared/log": 0o750,
    "shared/data": 0o750,
    "run": 0o1775,
    "backups": 0o700,
    "deployments": 0o750,
    "scratch": 0o711,
    "tools": 0o755,
}


@pytest.fixture(name="root")
def fixture_root(tmp_path: Path) -> Path:
    return tmp_path / "srv" / "shop"


@pytest.fixture(name="ask")
def fixture_ask(root: Path, capsys: pytest.CaptureFixture[str]):
    def ask(check: bool = False, **options: Any) -> dict[str, Any]:
        given = {
            "root": str(root),
            "user": getpass.getuser(),
            "data_directories": [str(root / "shared" / "data")],
            "_ansible_check_mode": check,
            **options,
        }
        with patch_module_args(given), pytest.raises(SystemExit):
            application_root.main()
        return json.loads(capsys.readouterr().out)

    return ask


def modes(root: Path) -> dict[str, int]:
    return {name: stat.S_IMODE((root / name).stat().st_mode) for name in MODES}


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_every_directory_has_its_mode_whatever_the_umask(root, ask):
    before = os.umask(0o077)
    try:
        answer = ask()
    finally:
        os.umask(before)
    assert answer["changed"] is True
    assert modes(root) == MODES
    assert sorted(answer["directories"]) == sorted(str(root / name) for name in MODES)


def test_a_second_run_changes_nothing_and_what_was_changed_is_put_right(root, ask):
    ask()
    assert (ask()["changed"], ask()["directories"]) == (False, [])
    (root / "backups").chmod(0o755)
    answer = ask()
    assert answer["directories"] == [str(root / "backups")]
    assert "backups 0755" in answer["diff"]["before"]
    assert "backups 0700" in answer["diff"]["after"]
    assert modes(root) == MODES


def test_a_check_says_what_would_be_made_and_makes_nothing(root, ask):
    answer = ask(check=True, uv=False)
    assert answer["changed"] is True
    assert len(answer["directories"]) == len(MODES)
    assert "absent" in answer["diff"]["before"]
    assert not root.parent.exists()


def test_a_check_before_the_user_is_made_shows_directories_of_a_new_user(root, ask):
    answer = ask(check=True, user="nobody-has-this-name")
    assert "failed" not in answer, answer
    assert f"{root}/run 1775" in answer["diff"]["after"]
    assert ":new\n" in answer["diff"]["after"]
    assert not root.exists()


def test_a_user_who_does_not_exist_is_named(root, ask):
    answer = ask(user="nobody-has-this-name")
    assert answer["failed"] is True
    assert "'nobody-has-this-name' (app_user)" in answer["msg"]
    assert not root.exists()


def test_a_file_in_the_place_of_a_directory_is_named_and_nothing_is_made(root, ask):
    root.mkdir(parents=True)
    (root / "shared").write_text("mine")
    answer = ask()
    assert answer["failed"] is True
    assert answer["msg"].startswith(f"{root}/shared is not a directory")
    assert [entry.name for entry in root.iterdir()] == ["shared"]


def test_a_link_in_the_place_of_a_directory_is_not_followed(root, ask, tmp_path):
    root.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    (root / "backups").symlink_to(tmp_path / "elsewhere")
    assert ask()["failed"] is True
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o755


def test_a_data_directory_outside_of_shared_is_refused(root, ask):
    answer = ask(data_directories=["/var/lib/shop"])
    assert answer["failed"] is True
    assert "'/var/lib/shop' is not below" in answer["msg"]
    assert not root.exists()


def test_the_installer_is_made_whole_or_not_at_all(root, ask, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    failing = "mkdir -p $4/bin; printf '#!/bin/sh\\necho no index for $SECRET_INDEX >&2; exit 3\\n' > $4/bin/python; chmod 755 $4/bin/python"
    python = program(tmp_path / "failing-python", f"PATH=/usr/bin:/bin; {failing}")
    answer = ask(uv=True, python=python, build_environment=json.dumps({"SECRET_INDEX": "hunter2-hunter2"}))
    assert answer["failed"] is True
    assert "uv could not be installed" in answer["msg"]
    assert "no index for" in answer["evidence"]
    assert "hunter2" not in json.dumps({**answer, "invocation": None})
    assert not (root / "tools" / "venv").exists()

    working = "mkdir -p $4/bin; printf '#!/bin/sh\\nPATH=/usr/bin:/bin; touch $(dirname $0)/uv\\n' > $4/bin/python; chmod 755 $4/bin/python"
    python = program(tmp_path / "working-python", f"PATH=/usr/bin:/bin; {working}")
    assert ask(uv=True, python=python)["uv_installed"] is True
    assert (root / "tools" / "venv" / "bin" / "uv").exists()
    again = ask(uv=True, python="/nowhere/python")
    assert (again["changed"], again["uv_installed"]) == (False, False)
