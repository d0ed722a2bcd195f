# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every source of measured values has in common.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._thresholds import Reading

# What a source without names of its own calls its only value.
VALUE = "value"


class Unsampled(Exception):
    """A source could not be asked; ``text`` says why, as a part of a sentence."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Means(NamedTuple):
    """What sources find in the options of the module: ``secrets`` by name, ``database`` as app_database, ``user`` and ``environment``
    for commands, the authorities to trust, and texts to hide in what is shown."""

    secrets: Mapping[str, str]
    database: Mapping[str, Any] | None
    user: str | None
    environment: Mapping[str, str]
    chdir: str | None
    ca_path: str | None

    def secret(self, name: str | None, where: str) -> str | None:
        """Return the secret *name*; None for None.

        :raises Problem: when there is none of that name; it is not shown, because it may be the secret itself.
        """
        if name is None:
            return None
        if name not in self.secrets:
            known = ", ".join(sorted(self.secrets)) or "none"
            raise Problem(f"{where} names no entry of the option secrets, which has: {known}.")
        return self.secrets[name]


class Source:
    """Where values come from.

    :ivar names: of the values, None where they are known only when it was asked; :ivar harmless: whether asking changes nothing.
    """

    kind = ""
    names: tuple[str, ...] | None = (VALUE,)
    harmless = True
    #: whether a value is a difference between two samples
    differs = False

    def unit(self, name: str) -> str:
        """Return the unit that the value *name* is measured in, "" where that is not known."""
        return ""

    def open(self, means: Means) -> None:
        """Take what the module's options have for it; called once, before the first sample.

        :raises Problem: when something is missing.
        """

    def sample(self, timeout: float) -> dict[str, Reading]:
        """Return the values now, within *timeout* seconds; a value that is missing has a reading without one.

        :raises Unsampled: when it could not be asked.
        """
        raise NotImplementedError

    def place(self) -> str:
        """Return where is asked, for messages; without secrets."""
        raise NotImplementedError

    def repeat(self) -> str:
        """Return the command that asks the same by hand, without secrets."""
        raise NotImplementedError


def reading(value: float | None, why: str) -> Reading:
    """Return *value* as a reading; what is not finite is no data, and *why* says what there is instead."""
    if value is None:
        return Reading(None, why)
    if not math.isfinite(value):
        return Reading(None, f"{why} ({value})" if why else f"it is {value}")
    return Reading(value)
