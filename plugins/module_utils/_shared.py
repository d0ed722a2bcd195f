# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What outlives releases: the paths of app_shared, linked into each of them.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Sequence
from pathlib import Path

from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, remove_tree
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Files that stand in a repository for a directory, because git knows no empty ones.
PLACEHOLDERS = (".gitkeep", ".gitignore", ".keep", ".empty", ".placeholder")
# Names below shared/ that the collection uses itself (_layout.py).
TAKEN = ("static", "env")
NAMED = 5


def check_shared(paths: Sequence[str]) -> list[str]:
    """Return *paths* (relative to app_directory) without trailing slashes.

    :raises Problem: naming app_shared, for a path that leaves the release, lies in another one, or is taken.
    """
    plain = []
    for path in paths:
        normal = os.path.normpath(path)
        if not path or path.startswith("/") or normal in (".", "..") or normal.startswith("../"):
            raise Problem(f"app_shared holds {path!r}: expected a path inside app_directory, such as media.")
        if normal.split("/")[0] in TAKEN:
            raise Problem(
                f"app_shared holds {path!r}, but shared/{normal.split('/')[0]} is the collection's own: static files "
                "are published there without being named, for other files choose another name."
            )
        plain.append(normal)
    for path in plain:
        for other in plain:
            if path != other and path.startswith(f"{other}/"):
                raise Problem(
                    f"app_shared holds {path!r} and {other!r}, in which it lies: name only {other!r}."
                )
    return list(dict.fromkeys(plain))


def is_file_path(path: str, target: Path) -> bool:
    """Return whether the shared *path* is a file: what is there decides, else whether its name has an ending.

    >>> is_file_path("db.sqlite3", Path("/nowhere"))
    True
    """
    if target.exists():
        return not target.is_dir()
    return bool(os.path.splitext(path)[1])


def link_shared(layout: Layout, place: Path, paths: Sequence[str], user: str | None) -> list[str]:
    """Link each of *paths* in *place*, the application's directory of a release, to ``shared/<path>``.

    Directories that are missing in ``shared`` are made, 0750 and the application's, with what the release ships as
    their first content. A file is only linked: the application makes it.

    :returns: sentences for the operator about what was copied or is hidden by a link.
    :raises Problem: when a path cannot be linked.
    """
    notes = []
    layout.shared.mkdir(mode=0o755, exist_ok=True)
    for path in check_shared(paths):
        target, link = layout.shared / path, place / path
        make_parents(place, path)
        shipped = link.exists() or link.is_symlink()
        if is_file_path(path, target):
            if link.is_dir() and not link.is_symlink() and not is_placeholder(link):
                raise Problem(
                    f"app_shared holds {path!r}, which is a directory with files in this version and a file in "
                    f"{str(layout.shared)!r}: rename one of them."
                )
            make_owned(target.parent, layout.shared, user)
            if link.is_file():
                notes.append(
                    f"{path} is in the repository and in app_shared: the one in the repository is not used"
                    + ("." if target.exists() else f", and {str(target)!r} does not exist yet.")
                )
        else:
            notes += fill_directory(target, link, layout.shared, path, user)
        if shipped:
            remove_tree(link)
        os.symlink(target, link)
    return notes


def fill_directory(target: Path, shipped: Path, shared: Path, path: str, user: str | None) -> list[str]:
    """Make the shared directory *target*, and return sentences about the content that the release ships for it."""
    content = shipped.is_dir() and not is_placeholder(shipped)
    if shipped.is_file():
        raise Problem(
            f"app_shared holds {path!r}, a directory in {str(shared)!r}, but this version ships a file of that name: "
            "rename one of them."
        )
    if target.is_dir():
        hidden = [name for name in files_below(shipped) if not (target / name).exists()] if content else []
        if not hidden:
            return []
        more = f" and {len(hidden) - NAMED} more" if len(hidden) > NAMED else ""
        return [
            f"{path} is in app_shared, so {', '.join(hidden[:NAMED])}{more} of the repository cannot be seen: copy to "
            f"{str(target)!r} what is wanted there."
        ]
    make_owned(target.parent, shared, user)
    # Under another name first: after a kill a half-copied directory would count as the data.
    fresh = target.with_name(f".{target.name}.new")
    remove_tree(fresh)
    if content:
        shutil.copytree(shipped, fresh, symlinks=True)
    else:
        fresh.mkdir()
    give(fresh, user)
    fresh.rename(target)
    return (
        [f"{path} was filled with what this version ships: {str(target)!r} did not exist."] if content else []
    )


def make_parents(place: Path, path: str) -> None:
    """Make the directories in which the link *path* will lie.

    :raises Problem: when one of them is a link or a file in this version.
    """
    parent = place
    for part in path.split("/")[:-1]:
        parent = parent / part
        if parent.is_symlink() or (parent.exists() and not parent.is_dir()):
            raise Problem(
                f"app_shared holds {path!r}, but {part!r} is no directory in this version: correct app_shared."
            )
        if not parent.is_dir():
            parent.mkdir()
            parent.chmod(0o755)


def make_owned(directory: Path, shared: Path, user: str | None) -> None:
    """Make *directory* and its parents up to *shared*, each the application's."""
    missing = []
    while directory != shared and not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        path.mkdir()
        give(path, user)


def give(path: Path, user: str | None) -> None:
    """Make *path* and what lies in it the application's: directories 0750, files 0640.

    :raises Problem: when its user is another one and we are not root.
    """
    owner = group = -1
    if user:
        try:
            entry = pwd.getpwnam(user)
        except KeyError as error:
            raise Problem(
                f"The user {user!r} (app_user) does not exist on this host: run playbooks/setup.yml first."
            ) from error
        owner, group = entry.pw_uid, entry.pw_gid
        if owner != os.geteuid() and os.geteuid() != 0:
            raise Problem(
                f"The shared directory {path.name!r} must belong to {user!r} (app_user), but this task runs as uid "
                f"{os.geteuid()}: set ansible_become to true, or make it by hand."
            )
    for parent, _names, files in os.walk(path):
        os.chown(parent, owner, group)
        os.chmod(parent, 0o750)
        for name in files:
            file = os.path.join(parent, name)
            os.chown(file, owner, group, follow_symlinks=False)
            if not os.path.islink(file):
                os.chmod(file, 0o640)


def is_placeholder(directory: Path) -> bool:
    """Return whether *directory* is empty, or only holds files that stand for an empty one."""
    return all(name in PLACEHOLDERS for name in os.listdir(directory))


def files_below(directory: Path) -> list[str]:
    """Return the files below *directory*, relative to it, without placeholders, sorted."""
    found = []
    for parent, _names, files in os.walk(directory):
        found += [
            os.path.relpath(os.path.join(parent, name), directory)
            for name in files
            if name not in PLACEHOLDERS
        ]
    return sorted(found)
