# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the application may write, anything can lie: it must not hold up, or be written to by, who deploys."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _static as static
from ansible_collections.runbook.deploy.plugins.module_utils._facts import environment_fault
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    Layout,
    open_regular,
    read_json,
    read_regular,
)
from ansible_collections.runbook.deploy.plugins.module_utils._process import ProcessUnit

ID = "20260101T000000-0000"


class Waited(Exception):
    """It would have waited for ever."""


@pytest.fixture(autouse=True)
def hurry() -> Iterator[None]:
    def stop(*_details: object) -> None:
        raise Waited

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(3)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path)
    for path in (found.logs, found.run):
        path.mkdir(parents=True)
    return found


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_APPEND, os.O_RDWR])
@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", "device", "link"])
def test_only_a_regular_file_is_opened(tmp_path: Path, monkeypatch, flags: int, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("entry")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        Path("file").touch()
        path.symlink_to("file")
    with pytest.raises(OSError):
        os.close(open_regular(path, flags))


def test_a_regular_file_is_opened_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "file"
    handle = open_regular(path, os.O_WRONLY | os.O_CREAT)
    assert os.get_blocking(handle)
    assert not os.get_inheritable(handle)
    os.write(handle, b"{}")
    os.close(handle)
    assert path.stat().st_mode & 0o777 <= 0o640
    (tmp_path / "link").symlink_to(path)
    assert read_json(tmp_path / "link") == {}
    assert read_regular(tmp_path / "link", follow=True) == "{}"
    assert read_json(tmp_path / "none") is None


def test_a_fifo_holds_up_nobody(layout: Layout, tmp_path: Path) -> None:
    unit = ProcessUnit(layout, "web", ID, None)
    release = tmp_path / "release"
    release.mkdir()
    for path in (unit.log, unit.pid_file, tmp_path / "staticfiles.json", tmp_path / "environment"):
        os.mkfifo(path)
    assert unit.tail() == ""
    assert not unit.exists()
    assert static.hashed_names(tmp_path, "staticfiles.json") == set()
    with pytest.raises(OSError):
        static.save_manifest(release, tmp_path, "staticfiles.json")
    with pytest.raises(OSError):
        static.copy(tmp_path / "staticfiles.json", tmp_path / "copy")
    assert "regular" in environment_fault(str(tmp_path / "environment"))
