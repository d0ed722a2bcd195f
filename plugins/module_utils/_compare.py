# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare what a database holds at two moments, its schema and its rows, whatever engine it has.

A snapshot is ``{"schema": {name: definition}, "rows": {table: fingerprint}}``, as ``Engine.snapshot`` returns it; both
names are readable, both values are texts that differ where the thing differs.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

# Tables whose rows a migration and its reversal leave otherwise than they were, by design: what is applied, with the time and a
# number of its own, and the rows that Django's `migrate` adds for each model and its reversal leaves.
OWN_ROWS = frozenset(("django_migrations", "alembic_version", "django_content_type", "auth_permission"))
MODULUS = 1 << 64
# Of a definition that the server has digested, because it may be long.
DIGEST = re.compile(r"^[0-9a-f]{32}$")


def fingerprint(rows: Iterable[Any]) -> str:
    """Return the number of *rows* and the sum of their digests, as text: the same for the same rows in any order."""
    number = total = 0
    for row in rows:
        number += 1
        digest = hashlib.blake2b(repr(row).encode("utf-8", "surrogateescape"), digest_size=8).digest()
        total = (total + int.from_bytes(digest, "big")) % MODULUS
    return f"{number} rows, {total:016x}"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return ``{schema: [sentence part], rows: [sentence part]}``: how *after* differs from *before*.

    The rows of a table that *before* lacks count as schema: the table itself is what is too many.
    """
    result: dict[str, list[str]] = {"schema": [], "rows": []}
    old, new = before["schema"], after["schema"]
    for name in sorted(set(old) | set(new)):
        if name not in new:
            result["schema"].append(f"{name} is missing")
        elif name not in old:
            result["schema"].append(f"{name} was not there")
        elif old[name] != new[name]:
            digests = DIGEST.match(old[name]) and DIGEST.match(new[name])
            said = "is defined otherwise" if digests else f"is {new[name]}, was {old[name]}"
            result["schema"].append(f"{name} {said}")
    for table in sorted(set(before["rows"]) - OWN_ROWS):
        was, now = before["rows"][table], after["rows"].get(table)
        if now is not None and was != now:
            counts = [re.match(r"\d+ rows", text).group(0) for text in (now, was)]  # type: ignore[union-attr]
            same = (
                "the same number with another content"
                if counts[0] == counts[1]
                else f"{counts[0]}, was {counts[1]}"
            )
            result["rows"].append(f"table {table}: {same}")
    return result
