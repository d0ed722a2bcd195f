# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The maintenance page of nginx: its files are written, tested and read before the flag goes up, and put back when nginx refuses them.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._layout import read_regular, write_atomic
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_pages import (
    MARK,
    default_page,
    http_text,
    ours,
    place,
    server_text,
)
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_window import (
    covers,
    listed,
    lower_flag,
    raise_flag,
)
from ansible_collections.runbook.deploy.plugins.module_utils._nginx import Nginx
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# nginx's workers, of another user, read all of it.
MODE = 0o644


class NginxPage(Nginx):
    """The page of one application on this host."""

    def __init__(self, options: Mapping[str, Any], directory: Path) -> None:
        super().__init__(options)
        self.http_file = Path(options["http_file"])
        self.directory = directory
        self.mark = place(options["name"], options["stage"]).rpartition("/")[2]
        self.texts = {
            self.http_file: http_text(options["name"], options["stage"], options),
            Path(options["server_file"]): server_text(
                options["name"], options["stage"], str(directory), options["retry_after"]
            ),
        }
        self.page = directory / "page.html"
        self.page_text = options["page"] or default_page(options["retry_after"])

    def _found(self, path: Path) -> str:
        """Return what is in *path*, "" where there is no such file.

        :raises Problem: when it is not ours.
        """
        try:
            text = read_regular(path)
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise Problem(
                f"{path} cannot be read ({getattr(error, 'strerror', None) or error}), expected a file of ours or none: give another path in "
                "app_maintenance, and run this with become: true."
            ) from error
        if not ours(text):
            raise Problem(
                f"{path} is not ours to write: its first line is {text.splitlines()[0][:80]!r}, expected {MARK!r} or no such file; give another path "
                "in app_maintenance, or move it away."
            )
        return text

    def before(self) -> dict[Path, str]:
        """Return what is in each of nginx's two files now."""
        return {path: self._found(path) for path in self.texts}

    def prepare(self, check_mode: bool) -> tuple[bool, bool]:
        """Let nginx know the page; return (whether files were changed, whether it was reloaded).

        :raises Problem: when it refuses them; they are then as they were.
        """
        before = self.before()
        different = {path: text for path, text in self.texts.items() if before[path] != text}
        try:
            page = "" if not self.page.exists() else read_regular(self.page)
        except (OSError, UnicodeDecodeError):
            page = ""
        changed = bool(different) or page != self.page_text
        if check_mode:
            return changed, bool(different)
        if page != self.page_text:
            write_atomic(self.page, self.page_text, MODE)
        if different:
            self._install(different, before)
        elif self._behind(self._master(), self.texts):
            # A run wrote the files that was killed before it could tell nginx.
            self._reload(self._master(), "")
            return changed, True
        return changed, bool(different)

    def _put(self, texts: Mapping[Path, str]) -> None:
        """Write *texts*, an empty one as no file; the server's file names what the other defines, and is there with it alone."""
        for path, text in sorted(
            texts.items(), key=lambda item: (item[0] == self.http_file) != bool(item[1])
        ):
            try:
                if text:
                    write_atomic(path, text, MODE)
                else:
                    path.unlink(missing_ok=True)
            except FileNotFoundError as error:
                raise Problem(
                    f"The directory of {path} does not exist on this host: install nginx, or give a path in app_maintenance that it reads."
                ) from error
            except OSError as error:
                raise Problem(
                    f"{path} cannot be written ({error.strerror}), and is as it was: run this with become: true, and see that there is space."
                ) from error

    def _install(self, texts: Mapping[Path, str], before: Mapping[Path, str]) -> None:
        """Write *texts*, test, reload; whatever goes wrong, what was *before* is put back."""
        master = self._master()
        reloaded = False
        try:
            self._put(texts)
            tested = self._nginx("-t", "-q")
            if tested.rc != 0:
                self._put({path: before[path] for path in texts})
                own = self._nginx("-t", "-q").rc == 0
                raise Problem(
                    f"nginx -t refuses the configuration {'with' if own else 'even without'} the maintenance page in "
                    f"{' and '.join(map(str, texts))}, which are as they were before, and nothing was reloaded: correct what the evidence names, "
                    "then run again.",
                    tested.tail(),
                )
            reloaded = True
            self._reload(master, f"; {' and '.join(map(str, texts))} are as they were before")
        except BaseException:
            with contextlib.suppress(Problem):
                self._put({path: before[path] for path in texts})
                if reloaded:
                    self._nginx("-s", "reload")
            raise

    # The flag, as every kind of maintenance has one

    def up(self, moment: float) -> bool:
        """Say whether the page is shown at *moment*."""
        return covers(listed(self.directory) or (), moment)

    def left(self) -> bool:
        """Say whether a flag is there, shown or past its time."""
        return listed(self.directory) is not None

    def on(self, identifier: str, begin: float, end: float) -> None:
        """Put the flag up until *end*."""
        raise_flag(self.directory, identifier, begin, end)

    def off(self) -> None:
        """Take the flag down."""
        lower_flag(self.directory)
