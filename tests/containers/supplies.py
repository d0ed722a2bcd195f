# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the test hosts install from, made on the controller, because the hosts have no network to rely on.

build/wheels: the application's distributions and uv, for the Python of the hosts (Debian bookworm: 3.11).
build/repositories: the application's git repositories.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
WHEELS = PROJECT / "build" / "wheels"
REPOSITORIES = PROJECT / "build" / "repositories"
APPLICATIONS = PROJECT / "tests" / "applications"
# What the test applications need where they do not say it themselves.
COMMON = ("uv", "pip", "django>=5.2,<5.3", "gunicorn", "whitenoise")
# What the collection itself builds on a host: _store_session.py.
STORE = ("boto3>=1.36,<2",)
PYTHON = "3.11"
STAMP = ".complete"


def requirements(applications: Path) -> list[str]:
    """Requirements of the test applications, of every version in turn, options and comments left out.

    A requirement that is broken on purpose (`broken-dependency`) is left to the test that needs it to be missing.
    """
    found: dict[str, None] = {}
    for path in sorted(applications.glob("*/**/requirements*.txt")):
        if any(part.startswith("broken") for part in path.relative_to(applications).parts):
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            wanted = line.split(" #")[0].split("#egg")[0].strip()
            if wanted and not wanted.startswith(("#", "-")):
                found[wanted] = None
    return list(found)


def groups(wanted: list[str]) -> list[list[str]]:
    """Sets to be resolved one by one: versions of the same application may pin different ones."""
    return [list(COMMON), list(STORE), *([item] for item in wanted)]


def fetch_wheels() -> None:
    """Fill build/wheels; nothing to do when it was filled for the same requirements."""
    sets = groups(requirements(APPLICATIONS))
    key = hashlib.sha256(repr((sets, PYTHON)).encode()).hexdigest()
    stamp = WHEELS / STAMP
    if stamp.exists() and stamp.read_text() == key:
        return
    WHEELS.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    machine = platform.machine()
    target = ["--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp"]
    target += [f"--abi={abi}" for abi in ("cp311", "abi3", "none")]
    target += [f"--platform={tag}_{machine}" for tag in ("manylinux2014", "manylinux_2_17", "manylinux_2_28")]
    for wanted in sets:
        answer = subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--disable-pip-version-check",
                "-d",
                str(WHEELS),
                *target,
                *wanted,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode:
            reason = "\n".join(answer.stderr.strip().splitlines()[-5:])
            raise SystemExit(
                f"supplies: wheels for {', '.join(wanted)} cannot be fetched into {WHEELS}:\n{reason}"
            )
    for wheel in WHEELS.glob("*.whl"):
        os.chmod(wheel, 0o644)
    stamp.write_text(key)


def make_repositories() -> None:
    """Build the applications' git repositories, where their script is there."""
    REPOSITORIES.mkdir(parents=True, exist_ok=True)
    script = APPLICATIONS / "make_repository.py"
    for name in ("goexplorer", "leadbook", "parcels") if script.exists() else ():
        subprocess.run(
            [sys.executable, str(script), "--application", name, str(REPOSITORIES / f"{name}.git")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
        )


def prepare() -> None:
    fetch_wheels()
    make_repositories()


if __name__ == "__main__":
    prepare()
    print(f"{len(list(WHEELS.glob('*.whl')))} wheels in {WHEELS}, repositories in {REPOSITORIES}")
