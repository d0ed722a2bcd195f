# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the git repository of an application for tests, with a tag for each version and each way to break.

The same sources give the same commit ids on every machine and in every run: content, dates and names are fixed, and
nothing of the user's git configuration is read. README.md, beside this file, says what the tags are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, Optional

HERE = Path(__file__).resolve().parent
# 2026-01-05 09:00:00 UTC, a day before the first version; each commit is a day later than the one before.
EPOCH = 1767603600
DAY = 86400
# What running the application in its source directory leaves there; never part of the repository.
LEFTOVERS = {"__pycache__", "staticfiles", "media", "db.sqlite3", ".venv", ".ruff_cache", "VERSION"}
# Set in a repository that this script made, which it may therefore make again.
MARK = "runbook.testapplication"


class Version(NamedTuple):
    """One commit: its tag, the tag that it is built on, its message, and whether the tag is an annotated one."""

    tag: str
    parent: Optional[str]  # noqa: UP045 - evaluated at run time, on Python 3.9 too
    message: str
    annotated: bool


class Application(NamedTuple):
    """An application: the directory of its sources, its name in texts, its versions, and which tag each branch is at."""

    sources: Path
    title: str
    versions: list[Version]
    branches: dict[str, str]

    @property
    def author(self) -> str:
        """Who made every commit."""
        return f"{self.title} <developers@{self.title.lower()}.example>"


# Annotated and light tags both: a deployment has to resolve either to the commit.
GOEXPLORER = Application(
    HERE / "goexplorer",
    "GoExplorer",
    [
        Version("v2.6", None, "Phase 2.6: owner agreements and risk signals", True),
        Version("v2.7", "v2.6", "Phase 2.7: admin decision assist", True),
        Version("v2.8", "v2.7", "Phase 2.8: colours", True),
        Version("broken-migration", "v2.7", "Regional review: a migration that raises half way", False),
        Version("broken-migration-partial", "v2.7", "Regional review: the same outside a transaction", False),
        Version("irreversible", "v2.7", "Regions: a migration with no way back", False),
        Version("destructive", "v2.7", "Agreements: without their reference", False),
        Version("irreversible-broken", "irreversible", "Health page: name the region", False),
        Version("destructive-broken", "destructive", "Health page: name the region", False),
        Version("broken-boot", "v2.7", "Telemetry: the server cannot import it", False),
        Version("broken-health", "v2.7", "Health page: name the region", False),
        Version("crash-later", "v2.7", "Server: ends after three seconds", False),
        Version("slow", "v2.7", "Requests: three seconds each", False),
        Version("broken-dependency", "v2.7", "Requirements: one that does not exist", False),
        Version("broken-static", "v2.7", "Static files: the manifest of the repository", False),
    ],
    {"main": "v2.7", "release/phase-2.6": "v2.6", "release/phase-2.7": "v2.7"},
)
LEADBOOK = Application(
    HERE / "leadbook",
    "Leadbook",
    [
        Version("v8", None, "Phase 8: quality gates", True),
        Version("v9", "v8", "Phase 9: review queue", True),
        Version("broken-migration", "v9", "Outreach: an index on a column that is not there", False),
        Version("irreversible", "v9", "Domains: a migration with no way back", False),
        Version("destructive", "v9", "Leads: without their company", False),
        Version("data", "v9", "Leads: addresses in lower case", False),
        Version("slow", "v9", "Requests: three seconds each", False),
        Version("broken-health", "v9", "Health: name the region", False),
        Version("v8.1", "v8", "Home page: another heading", True),
        Version("destructive-broken", "destructive", "Health: name the region", False),
    ],
    {"main": "v9"},
)
PARCELS = Application(
    HERE / "parcels",
    "Parcels",
    [
        Version("v1", None, "Depots and their parcels", True),
        Version("v2", "v1", "Home page: another heading", True),
        Version("loud", "v2", "Home page: say which depots are not known", False),
        Version("lossy", "v2", "Home page: no heading", False),
    ],
    {"main": "v2"},
)
APPLICATIONS = {"goexplorer": GOEXPLORER, "leadbook": LEADBOOK, "parcels": PARCELS}


def files_of(directory: Path) -> dict[str, bytes]:
    """Return the content of each file below *directory*, by its path relative to it."""
    found = {}
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        leftover = (
            LEFTOVERS.intersection(relative.parts) or path.suffix == ".pyc" or "db.sqlite3-" in path.name
        )
        if path.is_file() and not leftover:
            found[relative.as_posix()] = path.read_bytes()
    return found


def tree(tag: str, application: Application = GOEXPLORER) -> dict[str, bytes]:
    """Return the whole content of the version *tag*: its own files over its parent's, and VERSION.

    :raises FileNotFoundError: when the version has no directory of sources.
    """
    sources = application.sources
    version = next(version for version in application.versions if version.tag == tag)
    if not (sources / tag).is_dir():
        raise FileNotFoundError(f"the sources of {tag} are missing: {sources / tag} is not a directory")
    inherited = tree(version.parent, application) if version.parent else {}
    return {**inherited, **files_of(sources / tag), "VERSION": f"{tag}\n".encode()}


def block(content: bytes) -> bytes:
    """Return *content* as git fast-import's ``data`` command."""
    return b"data %d\n%s\n" % (len(content), content)


def stream(application: Application = GOEXPLORER) -> bytes:
    """Return the whole history in the format of git-fast-import(1)."""
    lines = []
    marks = {version.tag: number for number, version in enumerate(application.versions, 1)}
    for version in application.versions:
        who = f"{application.author} {EPOCH + marks[version.tag] * DAY} +0000"
        lines.append(f"commit refs/runbook/{version.tag}\nmark :{marks[version.tag]}\n".encode())
        lines.append(f"author {who}\ncommitter {who}\n".encode() + block(f"{version.message}\n".encode()))
        if version.parent:
            lines.append(f"from :{marks[version.parent]}\n".encode())
        lines.append(b"deleteall\n")
        for path, content in sorted(tree(version.tag, application).items()):
            mode = "100755" if content.startswith(b"#!") else "100644"
            lines.append(f"M {mode} inline {path}\n".encode() + block(content))
        if version.annotated:
            lines.append(f"tag {version.tag}\nfrom :{marks[version.tag]}\ntagger {who}\n".encode())
            lines.append(block(f"{application.title} {version.tag}\n".encode()))
        else:
            lines.append(f"reset refs/tags/{version.tag}\nfrom :{marks[version.tag]}\n\n".encode())
    for branch, tag in application.branches.items():
        lines.append(f"reset refs/heads/{branch}\nfrom :{marks[tag]}\n\n".encode())
    lines.append(b"done\n")
    return b"".join(lines)


def git(repository: Path, *arguments: str, data: bytes | None = None) -> str:
    """Return what git prints in *repository*, with no configuration but the repository's own.

    :raises SystemExit: with git's own words, when it fails.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment.update(
        GIT_CONFIG_NOSYSTEM="1", GIT_CONFIG_GLOBAL=os.devnull, GIT_DEFAULT_HASH="sha1", LC_ALL="C"
    )
    environment["HOME"] = environment["XDG_CONFIG_HOME"] = (
        os.devnull
    )  # git before 2.32 knows no GIT_CONFIG_GLOBAL
    # git refuses a repository of another user, unless the environment says that it is meant.
    environment.update(GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="safe.directory", GIT_CONFIG_VALUE_0="*")
    command = ["git", "-C", str(repository), *arguments]
    done = subprocess.run(command, input=data, capture_output=True, env=environment, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.decode().strip()}")
    return done.stdout.decode().strip()


def prepare(destination: Path, bare: bool, application: Application = GOEXPLORER) -> None:
    """Make *destination* an empty repository, or check that it is one that this script made.

    :raises SystemExit: when something else is there.
    """
    config = destination / ("config" if bare else ".git/config")
    if config.is_file():
        made = git(destination, "config", "--file", str(config.resolve()), "--default", "", "--get", MARK)
        if made != application.sources.name:
            raise SystemExit(
                f"{destination} is {f'the repository of {made}' if made else 'a repository that this script did not make'}: "
                "name another directory"
            )
        return
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise SystemExit(
            f"{destination} is not empty and not a {'bare' if bare else 'work'} repository: name another"
        )
    destination.mkdir(parents=True, exist_ok=True)
    git(destination, "init", "--quiet", "--template=", *(["--bare"] if bare else []))
    git(destination, "config", MARK, application.sources.name)


def build(destination: Path, bare: bool = True, application: Application = GOEXPLORER) -> dict[str, str]:
    """Make the repository in *destination*, anew where it exists, and return each tag's commit (40 hex digits).

    References that this script did not make are removed; a work tree is put back to ``main``.

    :param bare: a repository with no work tree; otherwise ``main`` is checked out.
    :raises SystemExit: when *destination* holds something else, or git fails.
    """
    prepare(destination, bare, application)
    git(destination, "symbolic-ref", "HEAD", "refs/heads/main")
    git(destination, "fast-import", "--quiet", "--force", "--done", data=stream(application))
    versions = application.versions
    wanted = {f"refs/tags/{version.tag}" for version in versions} | {
        f"refs/heads/{branch}" for branch in application.branches
    }
    # fast-import needs a branch for each commit; the tags are what stays.
    for reference in git(destination, "for-each-ref", "--format=%(refname)").splitlines():
        if reference not in wanted:
            git(destination, "update-ref", "-d", reference)
    if not bare:
        git(destination, "reset", "--quiet", "--hard", "main")
        git(destination, "clean", "--quiet", "-d", "--force")
    commits = git(destination, "rev-parse", *(f"refs/tags/{version.tag}^{{commit}}" for version in versions))
    return dict(zip((version.tag for version in versions), commits.splitlines()))


def main() -> None:
    """Read the command line, make the repository, print each tag and its commit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "destination", type=Path, metavar="DESTINATION", help="the repository to make, or to make again"
    )
    parser.add_argument(
        "--work-tree", action="store_true", help="with main checked out; default: a bare repository"
    )
    parser.add_argument(
        "--application", choices=sorted(APPLICATIONS), default="goexplorer", help="default: goexplorer"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object {tag: commit}")
    arguments = parser.parse_args()
    commits = build(
        arguments.destination,
        bare=not arguments.work_tree,
        application=APPLICATIONS[arguments.application],
    )
    if arguments.json:
        json.dump(commits, sys.stdout, indent=2)
        print()
    else:
        for tag, commit in commits.items():
            print(f"{commit} {tag}")


if __name__ == "__main__":
    main()
