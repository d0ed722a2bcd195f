# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the code comes from: the bare mirror, and the version that becomes one commit.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._archive import archive_commit
from ansible_collections.runbook.deploy.plugins.module_utils._command import Finished
from ansible_collections.runbook.deploy.plugins.module_utils._git import (
    FULL_COMMIT,
    Access,
    changed_files,
    commits_between,
    git,
    has_commit,
    list_files,
    peeled,
    read_file,
    redact_url,
    reference_names,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, held
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

__all__ = [
    "Resolved",
    "changed_files",
    "commits_between",
    "list_files",
    "provide",
    "read_file",
    "redact_url",
    "resolve",
]

REFSPECS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
ABBREVIATED = re.compile(r"^[0-9a-f]{4,39}$")
# What git says when the mirror itself is broken, as after a power cut (object-file.c, packfile.c, refs/).
BROKEN = re.compile(
    r"is corrupt|object file .* is empty|bad object|missing object|unable to read tree|inflate:|broken ref"
    r"|not a git repository: '|packed-refs.*(unexpected|unterminated)|does not match index|bad config",
    re.IGNORECASE,
)
LOCKED = re.compile(r"\.lock': File exists|Unable to create '.*\.lock'|unable to lock|cannot lock ref")
NEAREST = 5


class Resolved(NamedTuple):
    """A version that has become one commit.

    ``git_dir`` is a bare repository that has the commit, None for an archive; ``version`` is what was asked
    for; ``note`` is a sentence for the operator (an ambiguity), or "".
    """

    git_dir: Path | None
    commit: str
    version: str
    note: str = ""


def archive_of(source: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the archive of *source*, None where all its members are empty (as with ``app_archive: {}``)."""
    archive = source.get("archive") or {}
    return archive if any(archive.values()) else None


@contextlib.contextmanager
def resolve(
    layout: Layout,
    source: Mapping[str, Any],
    version: str,
    *,
    check_mode: bool = False,
    timeout: float = 300.0,
) -> Iterator[Resolved]:
    """Fetch once, and yield the commit that *version* names.

    :param source: ``repository`` (address or path), ``key`` and ``known_hosts`` (texts), or ``archive``
        (``path`` on this host, ``sha256``).
    :param version: a commit (40 digits, or the first 4 and more), a tag or a branch; for an archive a label.
    :param check_mode: fetch into a temporary repository that is removed afterwards; ``app_root`` stays as it is.
    :param timeout: seconds for the fetch.
    :raises Problem: naming ``app_repository``, ``app_version`` or ``app_archive``.
    """
    archive = archive_of(source)
    repository = source.get("repository")
    if bool(archive) == bool(repository):
        raise Problem(
            "Exactly one of app_repository and app_archive must say where the code comes from; "
            f"found {'both' if archive else 'none'}: set one of them."
        )
    if archive:
        yield Resolved(None, archive_commit(archive), version)
        return
    if not version:
        raise Problem("app_version is empty: set it to a tag, a branch or a commit of app_repository.")
    with contextlib.ExitStack() as stack:
        access = stack.enter_context(Access.open(source))
        git_dir = layout.mirror
        if check_mode:
            temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="runbook-check-"))
            git_dir = Path(temporary) / "repository.git"
        else:
            layout.require_root()
        borrow = layout.mirror if check_mode else None
        fetch(git_dir, access, timeout, borrow=borrow)
        commit, note = find_commit(git_dir, version, redact_url(repository), access, timeout)
        yield Resolved(git_dir, commit, version, note)


@contextlib.contextmanager
def provide(
    layout: Layout,
    source: Mapping[str, Any],
    version: str,
    commit: str,
    *,
    check_mode: bool = False,
    timeout: float = 300.0,
) -> Iterator[Resolved]:
    """Yield *commit*, which the primary has resolved already; fetch only where the mirror does not have it.

    :raises Problem: as :func:`resolve`, and when an archive is another commit than the one resolved.
    """
    if not archive_of(source) and FULL_COMMIT.match(commit) and has_commit(layout.mirror, commit):
        yield Resolved(layout.mirror, commit, version)
        return
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(resolve(layout, source, commit, check_mode=check_mode, timeout=timeout))
        if found.commit != commit:
            raise Problem(
                f"app_archive on this host is commit {found.commit}, but {commit} was resolved for this "
                "deployment: push the same archive to all hosts."
            )
        yield found._replace(version=version)


def fetch(git_dir: Path, access: Access, timeout: float, borrow: Path | None = None) -> None:
    """Bring all branches and tags of the repository into the bare repository *git_dir*, making it if needed.

    :param borrow: another repository whose objects need not be fetched again.
    :raises Problem: when the repository cannot be read.
    """
    with fetching(git_dir, timeout):
        prepare_mirror(git_dir, borrow)
        done = fetch_once(git_dir, access, timeout)
        if done.rc != 0 and LOCKED.search(done.stderr) and remove_stale_locks(git_dir, timeout):
            done = fetch_once(git_dir, access, timeout)
        if done.rc != 0 and BROKEN.search(done.stderr):
            done = fetch_afresh(git_dir, access, timeout) or done
    if done.rc != 0:
        raise unreadable(access, done, timeout)


def prepare_mirror(git_dir: Path, borrow: Path | None = None) -> None:
    """Make the bare repository *git_dir*; one that was being made when its maker was killed is completed."""
    if all((git_dir / name).exists() for name in ("HEAD", "config", "objects", "refs")):
        return
    for stale in git_dir.glob("*.lock") if git_dir.is_dir() else ():
        stale.unlink()
    done = git(git_dir, "init", "--quiet", "--bare", "--template=", str(git_dir), cwd=git_dir.parent)
    if done.rc != 0:
        raise unmakeable(git_dir, done.tail())
    git_dir.chmod(0o755)
    if borrow is not None and (borrow / "objects").is_dir():
        (git_dir / "objects" / "info").mkdir(exist_ok=True)
        (git_dir / "objects" / "info" / "alternates").write_text(f"{borrow / 'objects'}\n", encoding="utf-8")


def unmakeable(git_dir: Path, evidence: str) -> Problem:
    """Return what to say of a mirror that cannot be made."""
    return Problem(
        f"The mirror {str(git_dir)!r} cannot be made: is its directory writable for the user of this task "
        "and is there space?",
        evidence,
    )


@contextlib.contextmanager
def fetching(git_dir: Path, timeout: float) -> Iterator[None]:
    """Hold the mirror against another fetch of ours, also while it is made.

    :raises Problem: when one lasts longer than *timeout* seconds.
    """
    try:
        git_dir.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise unmakeable(git_dir, str(error)) from None
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(git_dir, timeout))
        except TimeoutError:
            raise Problem(
                f"Another run has been fetching into {str(git_dir)!r} for more than {timeout:.0f} s: "
                "wait for it or end it."
            ) from None
        yield


def fetch_once(git_dir: Path, access: Access, timeout: float, *references: str) -> Finished:
    """Run one ``git fetch`` of *references* (all branches and tags when there are none)."""
    # The working directory marks the process as one that writes here: see remove_stale_locks.
    # Housekeeping stays in the foreground: a background one would outlive us and hold locks.
    return git(
        git_dir,
        "-c",
        "gc.autoDetach=false",
        # Loose objects that a borrowed repository has too would be given a new time there: check mode changes nothing.
        "-c",
        f"fetch.unpackLimit={1 if (git_dir / 'objects/info/alternates').exists() else 100}",
        "-c",
        "maintenance.autoDetach=false",
        "fetch",
        "--quiet",
        "--no-tags",
        "--force",
        "--no-recurse-submodules",
        *(() if references else ("--prune",)),
        "--",
        access.address,
        *(references or REFSPECS),
        cwd=git_dir,
        access=access,
        timeout=timeout,
    )


def fetch_afresh(git_dir: Path, access: Access, timeout: float) -> Finished | None:
    """Replace a broken mirror by a new one; None, and the old one left, where the repository is the broken one."""
    fresh = git_dir.with_name(f".{git_dir.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    prepare_mirror(fresh)
    done = fetch_once(fresh, access, timeout)
    if done.rc != 0:
        shutil.rmtree(fresh, ignore_errors=True)
        return None
    shutil.rmtree(git_dir)
    fresh.rename(git_dir)
    return done


def remove_stale_locks(git_dir: Path, timeout: float) -> bool:
    """Remove the lock files that a killed git left; False while a process still works in the mirror.

    A git that outlived its killed module is waited for, up to *timeout* seconds.
    """
    deadline = time.monotonic() + timeout
    while working_in(git_dir):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    for lock in git_dir.rglob("*.lock"):
        with contextlib.suppress(FileNotFoundError):
            lock.unlink()
    return True


def working_in(directory: Path) -> list[int]:
    """Return the processes whose working directory is *directory* (those of others only as root)."""
    found = []
    wanted = os.path.realpath(directory)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/cwd") == wanted and int(entry) != os.getpid():
                    found.append(int(entry))
    return found


def find_commit(
    git_dir: Path, version: str, repository: str, access: Access, timeout: float
) -> tuple[str, str]:
    """Return the commit that *version* names, and a note about an ambiguity or "".

    A full commit comes first, then a tag (an annotated one is followed to its commit), a branch, an
    abbreviated commit.

    :raises Problem: when nothing, or more than one commit, has that name.
    """
    if FULL_COMMIT.match(version):
        if has_commit(git_dir, version) or fetch_commit(git_dir, access, version, timeout):
            return version, ""
        raise Problem(
            f"app_version {version!r} is no commit of app_repository {repository!r} (branches, tags and that "
            "commit itself were fetched): push it, or give a tag, a branch or another commit."
        )
    names = reference_names(git_dir)
    name = next(
        (item for item in (f"refs/tags/{version}", f"refs/heads/{version}", version) if item in names), None
    )
    if name is not None:
        commit = peeled(git_dir, name)
        if commit is None:
            raise Problem(
                f"app_version {version!r} of app_repository {repository!r} is a tag that names no commit: "
                "give a tag of a commit, a branch or a commit."
            )
        branch = names.get(f"refs/heads/{version}")
        if name.startswith("refs/tags/") and branch not in (None, commit):
            return commit, (
                f"app_version {version!r} is both a tag ({commit[:12]}) and a branch ({branch[:12]}): the tag was "
                f"taken; say refs/heads/{version} for the branch."
            )
        return commit, ""
    if ABBREVIATED.match(version):
        done = git(git_dir, "rev-parse", f"--disambiguate={version}")
        commits = [item for item in done.stdout.split() if has_commit(git_dir, item, peel=False)]
        if len(commits) > 1:
            raise Problem(
                f"app_version {version!r} is the beginning of {len(commits)} commits of app_repository "
                f"{repository!r}: give more digits.",
                "\n".join(commits[:20]),
            )
        if commits:
            return commits[0], ""
    raise Problem(
        f"app_version {version!r} is no tag, branch or commit of app_repository {repository!r}; "
        f"{nearest(version, names)}: correct app_version, or push the tag."
    )


def fetch_commit(git_dir: Path, access: Access, commit: str, timeout: float) -> bool:
    """Ask for a commit that no branch and no tag reaches; many servers give it. Return whether it is there."""
    with fetching(git_dir, timeout):
        # Kept under a name of our own, so that housekeeping does not remove it.
        fetch_once(git_dir, access, timeout, f"+{commit}:refs/runbook/{commit}")
    return has_commit(git_dir, commit)


def nearest(version: str, names: Mapping[str, str]) -> str:
    """Return the part of a sentence that lists the names most like *version*, else the last tags.

    :param names: full reference names, tags in their order of creation.
    """
    short = [name.split("/", 2)[2] for name in names if name.startswith(("refs/tags/", "refs/heads/"))]
    if not short:
        return "it has no branch and no tag at all"
    close = difflib.get_close_matches(version, short, NEAREST, 0.5)
    if close:
        return f"the nearest are {', '.join(close)}"
    tags = [name.split("/", 2)[2] for name in names if name.startswith("refs/tags/")]
    if tags:
        return f"its last tags are {', '.join(reversed(tags[-NEAREST:]))}"
    return f"it has the branches {', '.join(short[:NEAREST])}, and no tag"


def unreadable(access: Access, done: Finished, timeout: float) -> Problem:
    """Return the Problem for a fetch that failed, with what is most likely to help."""
    if done.timed_out:
        reason, advice = (
            f"did not answer within {timeout:.0f} s",
            "check the network, or give release_timeout more",
        )
    else:
        reason, advice = explain(done.stderr)
    return Problem(
        f"app_repository {redact_url(access.repository)!r} cannot be fetched on this host: it {reason}; {advice}.",
        done.tail(),
    )


def explain(stderr: str) -> tuple[str, str]:
    """Return what git's message means, and what to do, for the failures that are seen most."""
    known = (
        (
            r"Could not resolve host|Name or service not known|Temporary failure in name resolution",
            "is on a host that has no address",
            "correct the address, or the host's DNS",
        ),
        (
            r"REMOTE HOST IDENTIFICATION|Host key verification failed",
            "is on a host whose key is not the one in known_hosts",
            "give its present key in app_repository_known_hosts (ssh-keyscan, compared by another way)",
        ),
        (
            r"Permission denied \(|Authentication failed|could not read (Username|Password)|terminal prompts disabled"
            r"|\b40[13]\b",
            "refuses access",
            "give a deploy key that may read it in app_repository_key, or the user and token in the address",
        ),
        (r"Permission denied", "may not be read by the user of this task", "give that user access"),
        (
            r"Connection (refused|timed out|reset)|Failed to connect|unable to connect",
            "cannot be reached",
            "check port and firewall",
        ),
        (
            r"No space left on device|Disk quota exceeded",
            "does not fit on the disk",
            "make space in app_root",
        ),
        (
            r"does not appear to be a git repository|not found|does not exist|No such file",
            "does not exist",
            "correct the address",
        ),
        (
            r"error in libcrypto|invalid format",
            "was asked with an unreadable key",
            "correct app_repository_key",
        ),
    )
    for pattern, reason, advice in known:
        if re.search(pattern, stderr, re.IGNORECASE if "not found" in pattern else 0):
            return reason, advice
    return "gave an error", "see the last lines of git in `evidence`"
