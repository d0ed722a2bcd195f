# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What deploying a version would bring: commits, files and migrations, told from the commit's files alone.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# A Django migration is a module in the package `migrations` of its app; all that Django makes begin with a digit.
DJANGO_MIGRATION = re.compile(r"^(?:.*/)?([^/]+)/migrations/([0-9][^/]*)\.py$")
# A revision of Alembic is a module in the directory `versions`, or below it.
ALEMBIC_REVISION = re.compile(r"^(?:.*/)?versions/(?:.*/)?([^/]+)\.py$")
# Lines of each part of the diff; the rest is counted.
DIFF_LINES = 50


def release_name(commit: str, inputs8: str) -> str:
    """Return the name of the release of *commit* with these inputs."""
    return f"{commit[:12]}-{inputs8}"


def pending_by_file(
    files: Iterable[str],
    directory: str,
    applied: Iterable[Sequence[str]] | None,
    framework: str,
    changed: Iterable[str] | None = None,
) -> list[list[str]]:
    """Return ``[app, name]`` of the migrations among *files* that are not applied, sorted.

    By file: an app whose label differs from its directory is listed though it may be applied, and a migration of
    a package outside the repository is not seen; the exact plan exists after the build.

    :param directory: where ``manage.py`` is; only files below it count.
    :param applied: rows of ``django_migrations``; None: there are none yet.
    :param changed: the paths that differ from what is live; None: nothing is. The files of Alembic do not say which of them
        are applied, so that those count which differ. An application's own command is always pending.
    """
    if framework == "command":
        return [["command", "app_migrate_command"]]
    if framework == "alembic":
        return _revisions(files if changed is None or applied is None else changed, directory)
    if framework != "django":
        return []
    known = {(row[0], row[1]) for row in applied or ()}
    prefix = directory.strip("/") + "/" if directory.strip("./") else ""
    pending = set()
    for path in files:
        found = DJANGO_MIGRATION.match("/" + path[len(prefix) :]) if path.startswith(prefix) else None
        if found and (found.group(1), found.group(2)) not in known:
            pending.add((found.group(1), found.group(2)))
    return [list(entry) for entry in sorted(pending)]


def _revisions(files: Iterable[str], directory: str) -> list[list[str]]:
    prefix = directory.strip("/") + "/" if directory.strip("./") else ""
    found = (ALEMBIC_REVISION.match(path[len(prefix) :]) for path in files if path.startswith(prefix))
    names = {match.group(1) for match in found if match}
    return [["alembic", name] for name in sorted(names - {"__init__"})]


def limited(lines: Sequence[str]) -> list[str]:
    """Return the first ``DIFF_LINES`` of *lines*, and a last one that counts the rest."""
    rest = len(lines) - DIFF_LINES
    return [*lines[:DIFF_LINES], f"… and {rest} more"] if rest > 0 else list(lines)


def diff(current: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> dict[str, str]:
    """Return ``{before, after, before_header, after_header}`` for ``--diff``; equal texts when nothing is to be done."""

    def header(release: Any, version: Any, commit: Any) -> list[str]:
        return [
            f"release: {release or 'none'}",
            f"version: {version or 'unknown'}",
            f"commit: {commit or 'none'}",
        ]

    now = current or {}
    before = header(now.get("release"), now.get("version"), now.get("commit"))
    after = header(wanted["release"], wanted["version"], wanted["commit"])
    if wanted["current"]:
        after = before
    else:
        parts = (
            ("commits", [f"{entry['commit'][:12]} {entry['subject']}" for entry in wanted["commits"]]),
            ("migrations, by file", [".".join(entry) for entry in wanted["pending_by_file"]]),
            ("files", [f"{entry['status']} {entry['path']}" for entry in wanted["files"]]),
        )
        for title, lines in parts:
            if lines:
                after = [*after, f"{title} ({len(lines)}):", *(f"  {line}" for line in limited(lines))]
    return {
        "before_header": f"live: {now.get('version') or now.get('release') or 'nothing'}",
        "after_header": f"wanted: {wanted['version']}",
        "before": "\n".join(before) + "\n",
        "after": "\n".join(after) + "\n",
    }
