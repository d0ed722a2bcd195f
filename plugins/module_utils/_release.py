# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases: a commit, its environment and its shared paths, built beside what runs.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import pwd
import re
import stat
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._archive import (
    tar_members,
    unpack,
    write_members,
)
from ansible_collections.runbook.deploy.plugins.module_utils._command import run
from ansible_collections.runbook.deploy.plugins.module_utils._environment import (
    Interpreter,
    ask_interpreter,
    ensure_environment,
    find_uv,
    flush,
    is_built,
    set_mode,
)
from ansible_collections.runbook.deploy.plugins.module_utils._git import (
    FULL_COMMIT,
    commit_content,
    read_file,
    submodules,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    Layout,
    current_release,
    opened,
    read_json,
    remove_tree,
    write_atomic,
    write_json,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._requirements import (
    Requirements,
    collect,
    digest,
    directory_reader,
)
from ansible_collections.runbook.deploy.plugins.module_utils._shared import check_shared, link_shared
from ansible_collections.runbook.deploy.plugins.module_utils._source import Resolved, provide

NAME = re.compile(r"^[0-9a-f]{12}-[0-9a-z]{4,16}$")
# What the collection writes at the top of a release; a repository that has such a file must not decide by it.
OWN_FILES = (".built", ".collected.json", ".complete", ".images.json", ".release.json", "REVISION")
# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md: a pointer is at most 1024 bytes and begins so.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LFS_LARGEST = 1024
# From here on compiling on all cores pays for the processes it starts.
MANY_FILES = 200


@dataclass
class Wanted:
    """What the module was asked for; see the options of the module ``release``."""

    release: str
    commit: str
    version: str
    source: Mapping[str, Any]
    directory: str = ""
    python: str = "python3"
    requirements: Sequence[str] = ()
    constraints: Sequence[str] = ()
    packages: Sequence[str] = ()
    shared: Sequence[str] = ()
    build: Mapping[str, str] = field(default_factory=dict)
    uv: str | None = None
    user: str | None = None
    timeout: float = 900.0


@dataclass
class Outcome:
    """What was found or done; ``environment`` is None where only a build could tell it. Seconds of wall time."""

    changed: bool = False
    environment: str | None = None
    environment_built: bool = False
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(
        default_factory=lambda: {"fetch": 0.0, "export": 0.0, "environment": 0.0}
    )

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to ``seconds[name]``."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds[name] + time.monotonic() - began, 3)


def check_wanted(wanted: Wanted) -> None:
    """Refuse what could not be deployed, before anything is made.

    :raises Problem: naming the option.
    """
    if not NAME.match(wanted.release):
        raise Problem(
            f"The option release is {wanted.release!r}, expected <first 12 digits of the commit>-<hash of the inputs>."
        )
    if not FULL_COMMIT.match(wanted.commit) or not wanted.release.startswith(wanted.commit[:12]):
        raise Problem(
            f"The option commit is {wanted.commit!r}, expected the 40 digits of the commit that the release "
            f"{wanted.release!r} is named after."
        )
    plain = posixpath.normpath(wanted.directory or ".")
    if plain.startswith(("/", "..")):
        raise Problem(f"app_directory is {wanted.directory!r}: expected a path inside the repository.")
    for package in wanted.packages:
        if package.startswith("-") or not package.strip():
            raise Problem(f"app_packages holds {package!r}: expected a requirement such as gunicorn>=23.")
    check_shared(wanted.shared)


def is_release_built(path: Path) -> bool:
    """Return whether the release *path* was built to its end."""
    return (path / ".built").is_file() and (path / ".release.json").is_file()


def describe(path: Path) -> dict[str, Any]:
    """Return what ``.release.json`` of the release *path* says; {} where it says nothing."""
    try:
        found = read_json(path / ".release.json")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def dependencies_changed(layout: Layout, environment: str | None) -> bool:
    """Return whether *environment* is another one than the current release's (also when there is none)."""
    current = current_release(layout)
    before = describe(layout.release(current)).get("environment") if current else None
    return before is None or before != environment


def owns_both(user: str | None) -> bool:
    """Return whether the application's user is the one who deploys, so that only mode bits keep it from writing."""
    try:
        return user is None or pwd.getpwnam(user).pw_uid == os.geteuid()
    except KeyError as error:
        raise Problem(
            f"The user {user!r} (app_user) does not exist on this host: run playbooks/setup.yml first."
        ) from error


def build(layout: Layout, wanted: Wanted) -> Outcome:
    """Build the release and its environment unless they are there; nothing that runs is touched.

    A half-built release is removed and made again; one that fails now is removed.

    :raises Problem: naming what has to be corrected.
    """
    check_wanted(wanted)
    path = layout.release(wanted.release)
    outcome = Outcome()
    known = describe(path) if is_release_built(path) else {}
    if known.get("commit") == wanted.commit and is_built(layout.environment(str(known.get("environment")))):
        outcome.environment = known["environment"]
        return outcome
    read_only = owns_both(wanted.user)
    interpreter = ask_interpreter(wanted.python)
    outcome.changed = True
    layout.require_root()
    # The directories are for the application too, whatever the one who deploys has set for his own files.
    umask = os.umask(0o022)
    try:
        if known.get("commit") == wanted.commit:
            # Only the environment is gone, or the interpreter that it was made of.
            make_environment(layout, wanted, interpreter, outcome, read_only)
            with opened(path):
                write_json(
                    path / ".release.json", description(wanted, outcome), 0o444 if read_only else 0o644
                )
            return outcome
        build_anew(layout, wanted, interpreter, outcome, read_only)
    except OSError as error:
        raise no_space(error, layout) from error
    finally:
        os.umask(umask)
    return outcome


def build_anew(
    layout: Layout, wanted: Wanted, interpreter: Interpreter, outcome: Outcome, read_only: bool
) -> None:
    """Make the directory of the release, ``.built`` last; remove it when that fails."""
    path = layout.release(wanted.release)
    if current_release(layout) == wanted.release and path.is_dir():
        raise Problem(
            f"The release {wanted.release!r} is current but not built to its end, which no deployment leaves behind: "
            "roll back first, or repair app_root by hand; it is not removed while it may be running."
        )
    layout.releases.mkdir(mode=0o755, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with outcome.timed("fetch"):
            resolved = stack.enter_context(
                provide(layout, wanted.source, wanted.version, wanted.commit, timeout=wanted.timeout)
            )
        remove_tree(path)
        try:
            with outcome.timed("export"):
                path.mkdir(mode=0o755)
                outcome.notes += export(resolved, wanted, path)
            make_environment(layout, wanted, interpreter, outcome, read_only)
            with outcome.timed("export"):
                outcome.notes += link_shared(layout, path / wanted.directory, wanted.shared, wanted.user)
                compile_code(layout.environment(str(outcome.environment)), path)
                write_atomic(path / "REVISION", wanted.commit + "\n", 0o644)
                write_json(path / ".release.json", description(wanted, outcome), 0o644)
                close(path, read_only)
                flush(path)
                with opened(path):
                    write_atomic(path / ".built", "", 0o444 if read_only else 0o644)
        except BaseException:
            remove_tree(path)
            raise


def export(resolved: Resolved, wanted: Wanted, path: Path) -> list[str]:
    """Write the files of the commit into *path*; return sentences for the operator.

    :raises Problem: for submodules, a wrong app_directory, a damaged archive.
    """
    if resolved.git_dir is None:
        unpack(Path(wanted.source["archive"]["path"]), path, wanted.directory)
    else:
        modules = submodules(resolved.git_dir, resolved.commit)
        if modules:
            raise Problem(
                f"app_version {wanted.version!r} has the git submodules {', '.join(modules[:5])}, which are not "
                "fetched: add their files to the repository, or deploy an archive that has them (app_archive)."
            )
        with commit_content(resolved.git_dir, resolved.commit) as stream:
            try:
                with tarfile.open(fileobj=stream, mode="r|") as opened_tar:
                    write_members(
                        tar_members(opened_tar), path, f"the commit {resolved.commit}", links_may_leave=True
                    )
            except tarfile.TarError as error:
                raise Problem(
                    f"The commit {resolved.commit} cannot be exported from the mirror: {error}; remove "
                    f"{str(resolved.git_dir)!r}, the next run fetches it anew."
                ) from error
    for name in OWN_FILES:
        remove_tree(path / name)
    if not (path / wanted.directory).is_dir():
        found = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
        raise Problem(
            f"app_directory {wanted.directory!r} is not in app_version {wanted.version!r}; at its top it has "
            f"{', '.join(found[:10]) or 'no directory'}: correct app_directory."
        )
    pointers = lfs_pointers(path)
    if pointers:
        return [
            f"{', '.join(pointers[:5])} ({len(pointers)} in all) are pointers of Git LFS, whose content is not "
            "fetched: deploy an archive (app_archive) if the application needs it."
        ]
    return []


def lfs_pointers(path: Path) -> list[str]:
    """Return the files below *path* that Git LFS would replace; looked for only where .gitattributes name it."""
    attributes = [entry for entry in path.glob("**/.gitattributes") if b"filter=lfs" in entry.read_bytes()]
    if not attributes:
        return []
    found = []
    for parent, _names, files in os.walk(path):
        for name in files:
            file = Path(parent, name)
            size = file.lstat()
            if stat.S_ISREG(size.st_mode) and 0 < size.st_size <= LFS_LARGEST:
                with file.open("rb") as stream:
                    if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                        found.append(str(file.relative_to(path)))
    return sorted(found)


def make_environment(
    layout: Layout, wanted: Wanted, interpreter: Interpreter, outcome: Outcome, read_only: bool
) -> None:
    """Name the environment of the exported release after its inputs, and build it where it is missing."""
    path = layout.release(wanted.release)
    with outcome.timed("environment"):
        requirements = wanted_requirements(wanted, path)
        outcome.environment = digest(requirements, interpreter, wanted.release, path)
        with opened(path / wanted.directory):
            outcome.environment_built = ensure_environment(
                layout,
                outcome.environment,
                interpreter,
                requirements,
                release=path,
                directory=wanted.directory,
                build=wanted.build,
                uv=find_uv(layout, wanted.uv),
                user=wanted.user,
                read_only=read_only,
                timeout=wanted.timeout,
            )


def wanted_requirements(wanted: Wanted, tree: Path) -> Requirements:
    """Return what is to be installed for the release exported in *tree*."""
    return collect(
        directory_reader(tree), wanted.directory, wanted.requirements, wanted.constraints, wanted.packages
    )


def description(wanted: Wanted, outcome: Outcome) -> dict[str, Any]:
    """Return the content of ``.release.json``."""
    return {
        "name": wanted.release,
        "commit": wanted.commit,
        "version": wanted.version,
        "environment": outcome.environment,
        "directory": wanted.directory,
    }


def compile_code(environment: Path, path: Path) -> None:
    """Compile the release's code: the application may not write there, so it would do so at every start anew.

    What does not compile (templates, code for other versions) is left alone.
    """
    count = sum(name.endswith(".py") for _parent, _names, files in os.walk(path) for name in files)
    if count:
        workers = ["-j", "0"] if count > MANY_FILES else []
        argv = [
            str(environment / "bin" / "python"),
            "-I",
            "-S",
            "-m",
            "compileall",
            "-qq",
            *workers,
            str(path),
        ]
        run(argv, cwd="/", timeout=300, umask=0o022)


def close(path: Path, read_only: bool) -> None:
    """Settle the modes below the release *path*: readable by all, writable by its owner or by nobody."""
    for parent, _names, files in os.walk(path):
        for name in files:
            file = Path(parent, name)
            mode = file.lstat().st_mode
            if stat.S_ISREG(mode):
                executable = 0o111 if mode & 0o100 else 0
                set_mode(file, (0o444 if read_only else 0o644) | executable, mode)
        set_mode(Path(parent), 0o555 if read_only else 0o755)


def no_space(error: OSError, layout: Layout) -> Problem:
    """Return the Problem for an error of the file system."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Problem(
            f"The disk of app_root {str(layout.root)!r} is full, so the release cannot be built; what was begun is "
            "removed and nothing live was touched: make space, or lower app_releases_keep."
        )
    return Problem(
        f"The release cannot be built in app_root {str(layout.root)!r}: {error}; nothing live was touched: see that "
        "the user of this task may write there."
    )


def foresee(layout: Layout, wanted: Wanted) -> Outcome:
    """Return what :func:`build` would do, and change nothing.

    The environment's name is None where only the exported release can tell it.

    :raises Problem: for what can be known to fail.
    """
    check_wanted(wanted)
    path = layout.release(wanted.release)
    outcome = Outcome()
    known = describe(path) if is_release_built(path) else {}
    if known.get("commit") == wanted.commit and is_built(layout.environment(str(known.get("environment")))):
        outcome.environment = known["environment"]
        return outcome
    outcome.changed = True
    interpreter = ask_interpreter(wanted.python)
    with contextlib.ExitStack() as stack:
        with outcome.timed("fetch"):
            found = stack.enter_context(
                provide(
                    layout,
                    wanted.source,
                    wanted.version,
                    wanted.commit,
                    check_mode=True,
                    timeout=wanted.timeout,
                )
            )
        if found.git_dir is None:
            return outcome
        git_dir = found.git_dir

        def read(name: str) -> str | None:
            return (
                directory_reader(Path("/"))(name)
                if name.startswith("/")
                else read_file(git_dir, wanted.commit, name)
            )

        requirements = collect(
            read, wanted.directory, wanted.requirements, wanted.constraints, wanted.packages
        )
    if not requirements.found:
        outcome.environment = digest(requirements, interpreter, wanted.release, None)
        outcome.environment_built = not is_built(layout.environment(outcome.environment))
    return outcome
