# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real git repositories, wheels and trees for the tests of sources and releases."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, remove_tree
from ansible_collections.runbook.deploy.plugins.modules import release as release_module

# The one that every user of the host may run; the tests' own may lie in somebody's home.
PYTHON = next((path for path in ("/usr/bin/python3", sys.executable) if os.path.exists(path)), sys.executable)
APPLICATION = {"requirements.txt": "alpha==1.0\n", "manage.py": "import alpha\nprint(alpha.VERSION)\n"}


class Repository:
    """A git repository in *path* whose commits are made by :meth:`commit`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.git("init", "-q", "-b", "main", str(path), cwd=path.parent)

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        """Run git with an identity of its own and return its output."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "Ada",
            "GIT_AUTHOR_EMAIL": "ada@example.org",
            "GIT_COMMITTER_NAME": "Ada",
            "GIT_COMMITTER_EMAIL": "ada@example.org",
        }
        done = subprocess.run(
            ["git", *arguments],
            cwd=cwd or self.path,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def commit(self, subject: str, files: dict[str, str | None], tag: str | None = None) -> str:
        """Write (None: remove) *files*, commit, tag, and return the commit."""
        for name, text in files.items():
            path = self.path / name
            if text is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", subject)
        if tag:
            self.git("tag", tag)
        return self.git("rev-parse", "HEAD")


def make_wheel(directory: Path, name: str, version: str, requires: tuple[str, ...] = ()) -> Path:
    """Write a wheel with the one module *name* (binary distribution format of PyPA) and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {item}\n" for item in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for file, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{file},sha256={digest},{len(text)}")
    rows.append(f"{info}/RECORD,,")
    path = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
        archive.writestr(f"{info}/RECORD", "\n".join(rows) + "\n")
    return path


def find_uv() -> str:
    """Return the path of uv; skip the test where there is none."""
    found = shutil.which("uv", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
    if not found:
        pytest.skip("uv is not installed")
    return found


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """Return every path below *root* with type, mode, owner, size, modification time and content or target."""
    found = {}
    for parent, directories, files in os.walk(root):
        for name in [*directories, *files, "."]:
            path = os.path.join(parent, name)
            info = os.lstat(path)
            content: object = None
            if stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(info.st_mode):
                with open(path, "rb") as stream:
                    content = stream.read()
            size = info.st_size if content is not None else 0
            found[path] = (info.st_mode, info.st_uid, info.st_gid, size, info.st_mtime_ns, content)
    return found


class World:
    """A host's directory, a repository and a package index, and the module ``release`` working on them."""

    def __init__(self, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.base = base
        self.capsys = capsys
        self.layout = Layout(base / "root")
        self.layout.root.mkdir()
        self.repository = Repository(base / "shop")
        self.wheels = base / "wheels"
        make_wheel(self.wheels, "alpha", "1.0")
        make_wheel(self.wheels, "beta", "1.0", ("alpha<2",))
        self.options: dict[str, Any] = {"uv": find_uv()}
        self.build = {"PIP_FIND_LINKS": str(self.wheels), "PIP_NO_INDEX": "1"}

    def commit(self, files: dict[str, str | None], tag: str | None = None) -> str:
        return self.repository.commit("a change", files, tag)

    def arguments(self, commit: str, /, **options: Any) -> dict[str, Any]:
        return {
            "root": str(self.layout.root),
            "source": {"repository": str(self.repository.path)},
            "commit": commit,
            "release": f"{commit[:12]}-0a1b2c3d",
            "python": PYTHON,
            "build_environment": json.dumps(self.build),
            **self.options,
            **options,
        }

    def run(self, commit: str, /, **options: Any) -> dict[str, Any]:
        """Run the module and return its answer; ``failed`` tells a failure."""
        with patch_module_args(self.arguments(commit, **options)), pytest.raises(SystemExit):
            release_module.main()
        return json.loads(self.capsys.readouterr().out)

    def built(self, commit: str, /, **options: Any) -> dict[str, Any]:
        answer = self.run(commit, **options)
        assert "failed" not in answer, answer
        return answer


@contextlib.contextmanager
def open_world(
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """Yield a world of its own and remove it."""
    # Not tmp_path: other users must be able to look into it.
    base = Path(tempfile.mkdtemp(prefix="release-"))
    base.chmod(0o755)
    world = World(base, capsys)
    # One cache for all tests: uv asks each interpreter that its cache does not know.
    world.build["UV_CACHE_DIR"] = str(tmp_path_factory.getbasetemp() / "uv")
    try:
        yield world
    finally:
        remove_tree(base)
