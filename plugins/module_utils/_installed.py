# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The releases on a host, and the one that is current, from their own files.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, current_release, read_json

RELEASE = re.compile(r"^[0-9a-f]{12}-[0-9a-f]{8}$")


def describe_release(layout: Layout, name: str) -> dict[str, Any]:
    """Return ``{name, commit, version, environment, built, complete}`` of the release directory *name*."""
    path = layout.release(name)
    found: Any = None
    with contextlib.suppress(ValueError, OSError):
        found = read_json(path / ".release.json")
    known = found if isinstance(found, dict) else {}
    commit = known.get("commit")
    if not commit:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            commit = (path / "REVISION").read_text(encoding="ascii").strip() or None
    return {
        "name": name,
        "commit": commit,
        "version": known.get("version"),
        "environment": known.get("environment"),
        "built": (path / ".built").is_file(),
        "complete": (path / ".complete").is_file(),
    }


def list_releases(layout: Layout, order: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return :func:`describe_release` of all releases, those in *order* first, as they stand there."""
    try:
        names = {name for name in os.listdir(layout.releases) if RELEASE.match(name)}
    except OSError:
        return []
    known = [name for name in dict.fromkeys(order) if name in names]
    return [describe_release(layout, name) for name in known + sorted(names.difference(known))]


def measure_current(layout: Layout) -> dict[str, Any] | None:
    """Return ``{release, commit, deployment, version}`` of what would serve after a reboot; None: nothing."""
    name = current_release(layout)
    if name is None:
        return None
    release = describe_release(layout, name)
    deployment = None
    with contextlib.suppress(OSError):
        deployment = Path(os.readlink(layout.release_instance(name))).name
    return {
        "release": name,
        "commit": release["commit"],
        "deployment": deployment,
        "version": release["version"],
    }
