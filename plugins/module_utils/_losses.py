# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the servers' engines share when they count what a restore would throw away.

A loss is ``{table: {inserts, updates, deletes}}`` or ``{table: {"unknown": reason}}``, for tables with losses. A table that
exists in the backup only loses nothing; every row of one that exists now only is an insert.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Rows that `migrate` itself adds for new models (create_contenttypes and create_permissions, handlers of Django's
# post_migrate signal): adding such rows is no write of a user's. Changing or removing one is.
DJANGO_OWN = frozenset(("django_content_type", "auth_permission"))


def compare(present: Iterator[bytes], backup: Iterator[bytes]) -> dict[str, int]:
    """Return ``{inserts, updates, deletes}`` from *backup* to *present*, lines of ``key digest`` sorted by key."""
    result = {"inserts": 0, "updates": 0, "deletes": 0}
    now, then = next(present, None), next(backup, None)
    while now is not None or then is not None:
        here = now.split()[0] if now is not None else None
        there = then.split()[0] if then is not None else None
        if there is None or (here is not None and here < there):
            result["inserts"] += 1
            now = next(present, None)
        elif here is None or there < here:
            result["deletes"] += 1
            then = next(backup, None)
        else:
            result["updates"] += now.split() != then.split()
            now, then = next(present, None), next(backup, None)
    return result


def describe(lost: Mapping[str, Mapping[str, Any]], limit: int = 10) -> str:
    """Return *lost* in words: ``notes: 3 inserts, 1 update; …``."""
    parts = []
    for table, found in sorted(lost.items()):
        if "unknown" in found:
            parts.append(f"{table}: unknown, {found['unknown']}")
            continue
        words = []
        for kind in ("inserts", "updates", "deletes"):
            number = found.get(kind, 0)
            if number:
                words.append(f"{number} {kind[:-1] if number == 1 else kind}")
        parts.append(f"{table}: {', '.join(words)}")
    rest = len(parts) - limit
    return "; ".join(parts[:limit]) + (f"; and {rest} more tables" if rest > 0 else "")
