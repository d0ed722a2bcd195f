# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._requirements import (
    collect,
    digest,
    directory_reader,
    logical_lines,
)

PYTHON = ("/usr/bin/python3.11", "3.11.2.final.0", "cpython-311", "linux-x86_64", "glibc 2.36")
FILES = {
    "src/requirements.txt": "-r ../requirements/base.txt\n-c=limits.txt\nflask  # web\n",
    "requirements/base.txt": "--constraint more.txt\ndjango==5.2\n",
    "requirements/more.txt": "sqlparse<1\n",
    "src/limits.txt": "asgiref<4\n",
}


def name_of(
    files: dict[str, str],
    *,
    packages: tuple[str, ...] = (),
    python: tuple[str, ...] = PYTHON,
    release: str = "r1",
) -> str:
    found = collect(files.get, "src", ["requirements.txt"], [], packages)
    return digest(found, python, release, None)


def test_lines_are_joined_and_comments_dropped() -> None:
    text = "\ufeffa==1 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n# no\n\nb#c\nd  # e\n"
    assert logical_lines(text) == ["a==1 --hash=sha256:00 --hash=sha256:11", "b#c", "d"]


def test_every_file_that_is_named_counts() -> None:
    base = name_of(FILES)
    for path, text in FILES.items():
        assert name_of({**FILES, path: text + "extra==1\n"}) != base
        assert name_of({**FILES, path: "# only a comment\n\n" + text.replace("\n", "  \r\n")}) == base


def test_interpreter_and_packages_count_and_the_release_does_not() -> None:
    base = name_of(FILES)
    assert name_of(FILES, packages=("gunicorn",)) != base
    for number, part in enumerate(PYTHON):
        assert name_of(FILES, python=(*PYTHON[:number], f"{part}x", *PYTHON[number + 1 :])) != base
    assert name_of(FILES, release="r2") == base


@pytest.mark.parametrize(
    "line",
    [
        "-e .",
        "--editable=./lib",
        "./lib[x]",
        ".",
        "lib @ file:lib",
        "lib @ ./lib",
        "lib/lib-1.whl",
        "lib-1-py3-none-any.whl",
        "../lib ; python_version > '3'",
        "file:///opt/lib",
    ],
)
def test_a_path_puts_the_release_into_the_name(line: str) -> None:
    files = {"src/requirements.txt": line}
    assert name_of(files, release="r1") != name_of(files, release="r2")


@pytest.mark.parametrize(
    "line",
    [
        "django",
        "django[argon2]>=5 ; python_version > '3.8'",
        "-e git+https://example.org/x#egg=x",
        "x @ https://example.org/x.whl",
        "--index-url https://example.org/simple",
        "x @ git+ssh://git@example.org/x",
    ],
)
def test_an_address_does_not(line: str) -> None:
    files = {"src/requirements.txt": line}
    assert name_of(files, release="r1") == name_of(files, release="r2")


def test_hashes_are_seen() -> None:
    for text, hashed in (("a==1 --hash=sha256:00", True), ("--require-hashes", True), ("a==1", False)):
        assert collect({"r": text}.get, "", ["r"], [], []).hashed is hashed


def test_packages_in_the_repository_count_by_content(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "r").write_text("--find-links wheels\na\n")
    names = set()
    for content in ("1", "2"):
        (tmp_path / "wheels/a-1-py3-none-any.whl").write_text(content)
        found = collect(directory_reader(tmp_path), "", ["r"], [], [])
        names.add(digest(found, PYTHON, "r1", tmp_path))
    assert len(names) == 2


def test_files_that_are_missing_are_named() -> None:
    with pytest.raises(
        Problem, match=r"'src/none.txt' \(app_requirements\), which is relative to app_directory"
    ):
        collect({}.get, "src", ["none.txt"], [], [])
    with pytest.raises(Problem, match=r"'limits.txt' \(app_constraints\)"):
        collect({}.get, "", [], ["limits.txt"], [])
    with pytest.raises(Problem, match="'base.txt' .*named by 'r'"):
        collect({"r": "-r base.txt"}.get, "", ["r"], [], [])
    with pytest.raises(Problem, match="outside the release"):
        collect({"r": "-r ../base.txt"}.get, "", ["r"], [], [])


def test_files_that_name_each_other_end() -> None:
    found = collect({"a": "-r b\nx\n", "b": "-r a\ny\n"}.get, "", ["a"], [], [])
    assert found.lines == [["r", "y"], ["r", "x"]]
