# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run ansible-test's sanity tests on the committed state, in a clone that lies where ansible-test wants it.

    run_sanity.py [OPTION OF ansible-test sanity …]

ansible-test accepts a collection only below a directory ansible_collections, physically. It writes below HOME, which
is build/home here, so that nothing stays in the user's own; pip's settings and cache are linked into it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
BUILD = PROJECT / "build"
CLONE = BUILD / "ansible_collections" / "runbook" / "deploy"
HOME = BUILD / "home"
REPORTS = BUILD / "reports" / "sanity"


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def clone() -> None:
    """Bring the clone to the commit that the checkout is on; files of earlier runs go."""
    if not (CLONE / ".git").exists():
        shutil.rmtree(CLONE, ignore_errors=True)
        CLONE.parent.mkdir(parents=True, exist_ok=True)
        git("clone", "-q", "--no-hardlinks", str(PROJECT), str(CLONE))
    head = git("-C", str(PROJECT), "rev-parse", "HEAD").strip()
    git("-C", str(CLONE), "fetch", "-q", "--no-tags", str(PROJECT), "HEAD")
    git("-C", str(CLONE), "checkout", "-q", "--force", "--detach", head)
    git("-C", str(CLONE), "clean", "-q", "-d", "--force", "-x")
    changed = git("-C", str(PROJECT), "status", "--porcelain", "--untracked-files=normal").splitlines()
    if changed:
        print(
            f"sanity: tests the commit {head[:12]}; {len(changed)} files differ from it and are not tested as they are"
        )


def pip_version() -> str:
    """The version of pip that this ansible-test asks for, as its file name wants it (24_2)."""
    import ansible_test._internal.python_requirements as requirements

    found = re.search(r"\bpip='([0-9.]+)'", Path(requirements.__file__).read_text(encoding="utf-8"))
    if not found:
        raise SystemExit(
            f"sanity: {requirements.__file__} names no version of pip; adapt pip_version() to this ansible-test."
        )
    return found.group(1).replace(".", "_")


def prepare_home() -> None:
    """A home directory with a stand-in for get-pip.py and the user's own settings of pip."""
    real = Path.home()
    cache = HOME / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    shutil.copy(PROJECT / "tests" / "get_pip.py", cache / f"get_pip_{pip_version()}.py")
    for name in (".config/pip", ".pip", ".cache/pip"):
        link = HOME / name
        if (real / name).is_dir() and not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(real / name)


def main() -> int:
    clone()
    prepare_home()
    output = CLONE / "tests" / "output" / "junit"
    # This Python only: a machine's other ones may be stand-ins that do not run (pyenv's). ruff guards the syntax of 3.9.
    python = f"--python={sys.version_info.major}.{sys.version_info.minor}"
    done = subprocess.run(
        ["ansible-test", "sanity", "--local", python, "--junit", "--color", "no", *sys.argv[1:]],
        cwd=CLONE,
        env={**os.environ, "HOME": str(HOME)},
        stdin=subprocess.DEVNULL,
        check=False,
    )
    shutil.rmtree(REPORTS, ignore_errors=True)
    if output.is_dir():
        shutil.copytree(output, REPORTS)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
