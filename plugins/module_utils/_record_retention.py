# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which records may go from a host, and their removal.

Records go from the oldest on, up to the first that has to stay: whoever goes back to a named release undoes all that
was recorded since, so that there may be no gap above one that can be gone back to. What only says which migrations a
rollback left applied stays below such a gap, marked ``detached``, and is never gone back to.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._layout import DEPLOYMENT_ID, Layout
from ansible_collections.runbook.deploy.plugins.module_utils._record import (
    NEWEST,
    load_records,
    public,
    write_record,
)

# So many that the controller lacks are given to it at the end of one run; the others by the next ones.
HANDED_OVER = 20


def why_it_stays(
    record: Mapping[str, Any],
    *,
    serving: Collection[str],
    releases: Collection[str],
    backups: Collection[str],
    stored: Collection[str] | None,
) -> str:
    """Return why *record* has to stay, whatever its age; "" where it may go.

    :param serving: deployments that are live, run, or are a rollback target, and those the way back leads through.
    :param releases: those on the host; :param backups: ids of those that are kept.
    :param stored: deployments whose record the controller has; None where it keeps none.
    """
    if record.get("verdict") is None:
        return "it has no verdict"
    if record["id"] in serving:
        return "it is live, or a way back leads to it"
    if record.get("verdict") == "success" and record.get("release") in releases:
        return "its release is on the host"
    copies = {(phase.get("result") or {}).get("safety") for phase in record.get("phases") or []}
    if ({(record.get("backup") or {}).get("id")} | copies) & set(backups):
        return "it names a backup that is kept"
    if stored is not None and record.get("primary") and record["id"] not in stored:
        return "the controller has no copy of it"
    return ""


def way_back(records: Sequence[Mapping[str, Any]], first: Collection[str]) -> set[str]:
    """Return *first* and the deployments before them that were never proved, down to one that was: a rollback leads through all of these."""
    known = {record["id"]: record for record in records}
    found: set[str] = set()
    waiting = set(first)
    while waiting:
        deployment = waiting.pop()
        found.add(deployment)
        previous = (known.get(deployment) or {}).get("previous") or {}
        if previous.get("proven") is False:
            waiting |= {previous.get("deployment")} - found - {None}
    return found


def left_applied(records: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the ids of the records that ``_record.left_behind`` needs: rollbacks to code that left migrations applied, and what they undid."""
    by_code = {r["id"]: r for r in records if (r.get("decision") or {}).get("level") == "code"}
    found = set()
    for record in records:
        planned = (record.get("plan") or {}).get("migrations") or []
        if not any(migration.get("compatible") == "yes" for migration in planned):
            continue
        undoing = {one for one, other in by_code.items() if other.get("undoes") == record["id"]}
        undoing |= {record["id"], record.get("undone_by")} & set(by_code)
        if undoing:
            found |= {record["id"], *undoing}
    return found


def surplus_records(
    records: Sequence[Mapping[str, Any]],
    *,
    keep: int,
    serving: Collection[str],
    releases: Collection[str],
    backups: Collection[str],
    stored: Collection[str] | None,
) -> tuple[list[str], list[str]]:
    """Return (ids of the records to remove, oldest first; those to mark ``detached``).

    :param records: newest first.
    :param keep: so many of the newest stay; 0: all. The others are as of :func:`why_it_stays`.
    """
    if keep < 1 or len(records) <= keep:
        return [], []
    attached = [record for record in records if not record.get("detached")]
    needed = way_back(records, {*serving, *(record["id"] for record in attached[:1])})
    end = min(keep, len(attached))
    for position in range(len(attached) - 1, end - 1, -1):
        if why_it_stays(
            attached[position], serving=needed, releases=releases, backups=backups, stored=stored
        ):
            end = position + 1
            break
    left = left_applied(records)
    older = [record["id"] for record in reversed(attached[end:])]
    known = {record["id"] for record in records if record.get("detached")}
    return [name for name in older if name not in left] + sorted(known - left), [
        name for name in older if name in left
    ]


def prune_records(
    layout: Layout,
    records: Sequence[Mapping[str, Any]],
    *,
    keep: int,
    serving: Collection[str],
    releases: Collection[str],
    backups: Collection[str],
    stored: Sequence[str] | None,
    own: str,
    check_mode: bool = False,
) -> tuple[list[str], list[dict[str, Any]], list[str]]:
    """Remove the surplus; return (ids of what was removed, records that the controller has to be given, errors in words).

    Marks are written first, then the oldest file goes first, so that a kill leaves no gap either. A record that cannot be read is left alone.

    :param records: the newest ``_record.NEWEST``, newest first; the others as of :func:`surplus_records`.
    :param own: the deployment that ends, whose record the controller gets otherwise.
    """
    try:
        count = sum(1 for name in os.listdir(layout.deployments) if DEPLOYMENT_ID.match(name[:-5]))
    except OSError:
        return [], [], []
    if keep > 0 and count > NEWEST:
        # More than are ever read otherwise: all of them, once, so that they can go.
        records = load_records(layout, count)[0]
    lacking: list[Mapping[str, Any]] = []
    if stored is not None:
        known = set(stored)
        lacking = [
            record
            for record in reversed(records)
            if record.get("primary")
            and record.get("verdict")
            and record["id"] not in known
            and record["id"] != own
        ]
    given = [public(record) for record in lacking[:HANDED_OVER]]
    surplus, detach = surplus_records(
        records, keep=keep, serving=serving, releases=releases, backups=backups, stored=stored
    )
    removed, errors = [], []
    try:
        if not check_mode:
            by_id = {record["id"]: record for record in records}
            for name in detach:
                write_record(layout, {**by_id[name], "detached": True})
        for name in surplus:
            if not check_mode:
                with contextlib.suppress(FileNotFoundError):
                    layout.record(name).unlink()
            removed.append(name)
    except OSError as error:
        errors.append(
            f"Old records below {layout.deployments} could not be removed ({error.strerror or error}): the next deployment tries again."
        )
    return removed, given, errors
