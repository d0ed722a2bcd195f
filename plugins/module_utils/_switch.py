# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The link ``current``.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os

from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    Layout,
    current_release,
    replace_link,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem


def switch(layout: Layout, release: str, check_mode: bool = False) -> tuple[str | None, str, bool]:
    """Point ``current`` to *release*; return what was current before, what is now, and whether
    the link changed (in check mode: would).

    :raises Problem: when ``current`` is no link, or the release was not built to its end.
    """
    current = layout.current
    if not current.is_symlink() and current.exists():
        raise Problem(
            f"{str(current)!r} is not a link but a {'directory' if current.is_dir() else 'file'}, so no release can be "
            "made current: move it away (app_adopt takes over an installation that runs), then deploy again."
        )
    path = layout.release(release)
    if "/" in release or not release.strip(".") or not path.is_dir():
        found = (
            sorted(entry.name for entry in os.scandir(layout.releases)) if layout.releases.is_dir() else []
        )
        raise Problem(
            f"The release {release!r} is not on this host; found {', '.join(found[:10]) or 'none'}: build it with "
            "runbook.deploy.release, or name one that is there."
        )
    if not (path / ".built").is_file():
        raise Problem(
            f"The release {release!r} was not built to its end (it has no .built), so it was not made current: "
            "build it again with runbook.deploy.release."
        )
    previous = current_release(layout)
    target = os.path.join(layout.releases.name, release)
    exact = current.is_symlink() and os.path.realpath(current) == os.path.realpath(path)
    if check_mode:
        return previous, release, not exact
    if not exact:
        try:
            replace_link(current, target)
        except OSError as error:
            raise Problem(
                f"The link {str(current)!r} cannot be changed: {error.strerror}; see that the user of this task may "
                f"write in {str(layout.root)!r}."
            ) from error
    return previous, current_release(layout) or release, not exact
