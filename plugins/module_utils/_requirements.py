# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requirement files: what they say, followed through every file that they name, as one hash.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Path inside the release (or absolute) -> text, None where there is no such file.
Reader = Callable[[str], "str | None"]

# Requirements file format: https://pip.pypa.io/en/stable/reference/requirements-file-format/
COMMENT = re.compile(r"(^|\s+)#.*$")
NESTED = re.compile(r"^(?:(-r|--requirement)|(-c|--constraint))(?:\s+|=|(?<=-[rc])(?=\S))(.+)$")
EDITABLE = re.compile(r"^(?:-e|--editable)(?:\s+|=)(.+)$")
FIND_LINKS = re.compile(r"^(?:-f|--find-links)(?:\s+|=)(.+)$")
ADDRESS = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
REMOTE = re.compile(r"^(?:git|hg|svn|bzr)\+|^(?:https?|ssh|ftp)://", re.IGNORECASE)
DISTRIBUTION = re.compile(r"\.(?:whl|zip|tar\.gz|tgz|tar\.bz2)(?:\[[^]]*\])?$", re.IGNORECASE)
DIGITS = 16


@dataclass
class Requirements:
    """What is to be installed.

    ``files`` and ``constraints`` are paths inside the release (or absolute), ``lines`` all lines that say something,
    in order, ``hashed`` whether pip would demand hashes, ``local`` the requirements that are paths (they are
    different code in every release), ``found`` directories of packages inside the release.
    """

    files: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    packages: list[str] = field(default_factory=list)
    lines: list[list[str]] = field(default_factory=list)
    hashed: bool = False
    local: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)


def logical_lines(text: str) -> list[str]:
    r"""Return the lines of a requirement file that say something, continued lines joined, blanks made one.

    >>> logical_lines("a==1 \\\n    --hash=sha256:00\n# no\n\nb  # yes\n")
    ['a==1 --hash=sha256:00', 'b']
    """
    joined = re.sub(r"\\\r?\n", " ", text.lstrip("\ufeff"))
    lines = (" ".join(COMMENT.sub("", line).split()) for line in joined.splitlines())
    return [line for line in lines if line]


def collect(
    read: Reader, directory: str, files: Sequence[str], constraints: Sequence[str], packages: Sequence[str]
) -> Requirements:
    """Read *files* and *constraints*, which are named relative to *directory* in the release, and all they name.

    :param packages: requirements given besides, in the same notation.
    :raises Problem: naming app_requirements or app_constraints when a file does not exist.
    """
    result = Requirements(packages=list(packages))
    for names, kind, option in ((files, "r", "app_requirements"), (constraints, "c", "app_constraints")):
        for name in names:
            path = inside(posixpath.join(directory, name), option)
            (result.files if kind == "r" else result.constraints).append(path)
            follow(read, path, kind, option, result, [])
    for package in packages:
        judge(package, directory, result)
        result.lines.append(["p", " ".join(package.split())])
    return result


def follow(read: Reader, path: str, kind: str, option: str, result: Requirements, parents: list[str]) -> None:
    """Add the lines of the file *path* and of the files it names to *result*."""
    if path in parents:
        return
    text = read(path)
    if text is None:
        named = f"named by {parents[-1]!r}" if parents else "which is relative to app_directory"
        raise Problem(
            f"The requirement file {path!r} ({option}), {named}, is not in the release: "
            f"correct {option} ([] where there is nothing to install), or add the file."
        )
    here = posixpath.dirname(path)
    for line in logical_lines(text):
        nested = NESTED.match(line)
        if nested and not ADDRESS.match(nested.group(3)):
            target = inside(posixpath.join(here, nested.group(3).strip("'\"")), option)
            follow(read, target, "r" if nested.group(1) else "c", option, result, [*parents, path])
            continue
        judge(line, here, result)
        result.lines.append([kind, line])


def judge(line: str, here: str, result: Requirements) -> None:
    """Note in *result* what the requirement *line*, read in the directory *here*, means for the environment."""
    if line == "--require-hashes" or "--hash=" in line or "--hash " in line:
        result.hashed = True
    links = FIND_LINKS.match(line)
    if links:
        if not ADDRESS.match(links.group(1)):
            result.found.append(posixpath.normpath(posixpath.join(here, links.group(1))))
        return
    editable = EDITABLE.match(line)
    if line.startswith("-") and not editable:
        return
    target = editable.group(1) if editable else line.split(";")[0].split(" --")[0].strip()
    _name, at, address = target.partition(" @ ")
    place = address.strip() if at else target
    if REMOTE.match(place):
        return
    if (
        editable
        or place.startswith((".", "/", "file:"))
        or "/" in place.split("[")[0]
        or DISTRIBUTION.search(place)
    ):
        result.local.append(place)


def inside(path: str, option: str) -> str:
    """Return *path* without ``.`` and ``..``.

    :raises Problem: when it leaves the release; an absolute path is a file of the host.
    """
    plain = posixpath.normpath(path)
    if plain == ".." or plain.startswith("../"):
        raise Problem(
            f"The requirement file {path!r} ({option}) lies outside the release: give a path inside it."
        )
    return plain


def directory_reader(release: Path) -> Reader:
    """Return the reader of the files of a release on the disk."""

    def read(path: str) -> str | None:
        try:
            return (release / path).read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    return read


def digest(
    requirements: Requirements, interpreter: Iterable[str], release: Path | str, tree: Path | None
) -> str:
    """Return the name of the environment: 16 hexadecimal digits of everything that decides what is in it.

    :param interpreter: path, version, platform and libc of the Python.
    :param release: name of the release, which counts when something is installed from a path.
    :param tree: where the release lies, to look into its directories of packages; None when it is not exported.
    """
    payload: dict[str, Any] = {
        "schema": 1,
        "interpreter": list(interpreter),
        "lines": requirements.lines,
        "hashed": requirements.hashed,
        "packages": [listing(tree / name) for name in requirements.found] if tree else [],
        "release": str(release) if requirements.local else "",
    }
    text = json.dumps(payload, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:DIGITS]


def listing(directory: Path) -> list[list[Any]]:
    """Return ``[name, sha256]`` of the files directly in *directory*; [] where there is none."""
    if not directory.is_dir():
        return []
    return [
        [entry.name, hashlib.sha256(Path(entry.path).read_bytes()).hexdigest()]
        for entry in sorted(os.scandir(directory), key=lambda item: item.name)
        if entry.is_file()
    ]
