# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._archive import (
    archive_commit,
    common_top,
    unpack,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.release_tools import Repository


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = "", text: str = "x"
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o4777
    data = text.encode() if kind == tarfile.REGTYPE else b""
    info.size = len(data)
    return info, data


def make_tar(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return path


def given(path: Path) -> dict[str, str]:
    return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest().upper()}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize("prefix", ["", "shop-2.7/"])
def test_an_archive_of_git_names_its_commit(tmp_path: Path, kind: str, prefix: str) -> None:
    repository = Repository(tmp_path / "shop")
    (repository.path / "run.sh").write_text("#!/bin/sh\n")
    (repository.path / "run.sh").chmod(0o755)
    os.symlink("run.sh", repository.path / "link")
    commit = repository.commit("one", {"app/manage.py": "1\n", "top": "t\n"})
    path = tmp_path / f"shop.{kind}"
    repository.git("archive", f"--format={kind}", f"--prefix={prefix}", "-o", str(path), "HEAD")
    assert archive_commit(given(path)) == commit
    (tmp_path / "out").mkdir()
    unpack(path, tmp_path / "out")
    assert (tmp_path / "out/app/manage.py").read_text() == "1\n"
    assert os.readlink(tmp_path / "out/link") == "run.sh"
    assert (tmp_path / "out/run.sh").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "out/top").stat().st_mode & 0o7777 == 0o644


def test_another_archive_is_named_by_its_sum(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tgz", entry("a"))
    assert archive_commit(given(path)) == given(path)["sha256"].lower()[:40]


def test_a_wrong_sum_a_missing_and_a_damaged_archive(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tgz", entry("a", text="a" * 100_000))
    for sha256, message in (
        ("0" * 64, "has the sha256"),
        ("", "64 hexadecimal digits"),
        ("zz", "64 hexadecimal"),
    ):
        with pytest.raises(Problem, match=message):
            archive_commit({"path": str(path), "sha256": sha256})
    with pytest.raises(Problem, match="is not on this host"):
        archive_commit({"path": str(tmp_path / "none"), "sha256": "0" * 64})
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(Problem, match="cannot be read"):
        archive_commit(given(tmp_path / "text"))
    path.write_bytes(path.read_bytes()[:-60])
    (tmp_path / "out").mkdir()
    with pytest.raises(Problem, match="cannot be read"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry("/etc/cron.d/x")], "leaves the release"),
        ([entry("a/../../x")], "leaves the release"),
        ([entry("up", tarfile.SYMTYPE, "../outside")], "outside the release"),
        ([entry("abs", tarfile.SYMTYPE, "/etc/passwd")], "outside the release"),
        ([entry("d", tarfile.SYMTYPE, "e"), entry("d/x")], "below 'd', which is no directory"),
        (
            [entry("e", tarfile.DIRTYPE), entry("d", tarfile.SYMTYPE, "e"), entry("d/x")],
            "which is no directory",
        ),
        ([entry("hard", tarfile.LNKTYPE, "/etc/passwd")], "leaves the release"),
        ([entry("hard", tarfile.LNKTYPE, "absent")], "which is not in it"),
        ([entry("tty", tarfile.CHRTYPE)], "a device or a pipe"),
        ([entry("fifo", tarfile.FIFOTYPE)], "a device or a pipe"),
        ([entry("a"), entry("./a")], "more than once"),
    ],
)
def test_nothing_leaves_the_directory(
    tmp_path: Path, entries: list[tuple[tarfile.TarInfo, bytes]], message: str
) -> None:
    path = make_tar(tmp_path / "a.tgz", entry("0"), *entries)
    (tmp_path / "out").mkdir()
    with pytest.raises(Problem, match=message):
        unpack(path, tmp_path / "out")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.tgz", "out"]


def test_nothing_of_a_zip_leaves_the_directory(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    for name, text, message in (("../x", "x", "leaves the release"), (link, "/etc", "outside the release")):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("0", "0")
            archive.writestr(name, text)
        out = tmp_path / f"out{len(text)}"
        out.mkdir()
        with pytest.raises(Problem, match=message):
            unpack(tmp_path / "a.zip", out)


def test_hard_links_become_copies(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tgz", entry("p/a", text="same"), entry("p/b", tarfile.LNKTYPE, "p/a"))
    (tmp_path / "out").mkdir()
    unpack(path, tmp_path / "out")
    assert (tmp_path / "out/b").read_text() == "same"


@pytest.mark.parametrize(
    ("names", "directory", "top"),
    [
        (["shop-2.7/", "shop-2.7/a"], "", "shop-2.7"),
        (["./shop/a"], "", "shop"),
        (["src/", "src/a"], "src", ""),
        (["src/a"], "src/site", ""),
        (["src/a"], "site", "src"),
        (["a", "b/c"], "", ""),
        (["../a"], "", ""),
        ([], "", ""),
    ],
)
def test_the_directory_at_the_top(names: list[str], directory: str, top: str) -> None:
    assert common_top(iter(names), directory) == top
