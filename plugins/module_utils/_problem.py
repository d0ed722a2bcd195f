# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception an operator reads.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import errno
from typing import Any


class Problem(Exception):
    """A failure that somebody can act on.

    :param message: one sentence: what, where, what was found, what was expected, what to do next.
    :param evidence: the last lines of the output that prove it (already redacted), or "".
    :param results: further values for the module's answer, such as ``live_changed=True``.

    ``kept``: parts of the message in which no secret is hidden, because they name what is public: a check, a verdict.
    """

    def __init__(self, message: str, evidence: str = "", **results: Any) -> None:
        super().__init__(message)
        self.message = message
        self.evidence = evidence
        self.results = results
        self.kept: list[str] = []

    def answer(self) -> dict[str, Any]:
        """Return the keyword arguments for ``AnsibleModule.fail_json``."""
        return {"msg": self.message, "evidence": self.evidence, **self.results}


def of_system(error: OSError, root: str) -> Problem:
    """Return the Problem for an *error* of the operating system that nobody expected, such as a full disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Problem(
            f"There is no space left for {error.filename or 'what has to be written'} on the file system of app_root {root!r}: "
            "free some there, then run again."
        )
    return Problem(
        f"{error.filename or 'A file'} in app_root {root!r} could not be read or written: {error.strerror or error}; correct that, then run again."
    )
