# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What backups there are, and whether they can still be restored.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _former
from ansible_collections.runbook.deploy.plugins.module_utils._backup import (
    differences,
    forget_scratch,
    make_id,
    make_scratch,
    read_manifest,
    require_intact,
    require_space,
)
from ansible_collections.runbook.deploy.plugins.module_utils._database import Engine
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, current_release, read_json
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import read_records
from ansible_collections.runbook.deploy.plugins.module_utils._retention import list_backups

KEPT = ("kind", "engine", "size", "created", "deployment", "verified", "heads", "sha256")
HEAD = ("id", "made", "kind", "engine", "bytes", "verified", "now", "of")


def owners(records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return, by backup, the versions of the deployments that named it."""
    result: dict[str, list[str]] = {}
    for record in records:
        name = (record.get("backup") or {}).get("id")
        if name:
            result.setdefault(name, []).append(str(record.get("version") or record["id"]))
    return result


def listing(layout: Layout) -> list[dict[str, Any]]:
    """Return ``{id, kind, engine, size, created, deployment, verified, heads, sha256, versions}`` of each backup, newest first."""
    named = owners(read_records(layout))
    result = []
    for name, _created in list_backups(layout):
        with contextlib.suppress(ValueError, OSError):
            manifest = read_json(layout.backup(name) / "manifest.json") or {}
            result.append(
                {"id": name, **{key: manifest.get(key) for key in KEPT}, "versions": named.get(name, [])}
            )
    return result


def verify(layout: Layout, engine: Engine, name: str, how: str, user: str | None) -> None:
    """See that the backup *name* is what its manifest says; call it under ``backups_locked``.

    :param how: ``checksum``: its bytes; ``restore``: also all that it holds, in a scratch database that is removed afterwards.
    :raises Problem: when it is not, or cannot be restored.
    """
    manifest = read_manifest(layout, name)
    dump = require_intact(layout, engine, manifest)
    if how != "restore":
        return
    require_space([(layout.scratch, engine.size())])
    # The name of a deployment: what a kill leaves is removed with the scratches of dead runs.
    scratch = make_id()
    try:
        made = make_scratch(layout, engine, dump, scratch, user)
        contents = engine.scratch_contents(made, manifest.get("framework", "none"))
        found = differences(manifest, contents) + engine.differences(made, manifest)
    finally:
        if (layout.scratch / scratch).exists():
            forget_scratch(engine, layout.scratch / scratch)
    if found:
        raise Problem(
            f"The backup {name} does not hold what its manifest says: {found[0]}; take a new one, and check the disk.",
            "\n".join(found[:20]),
        )


def table(rows: Sequence[Mapping[str, Any]], states: Mapping[str, str], release: str | None) -> list[str]:
    """Return the backups *rows* as lines for a person.

    :param states: what was found of each, by id; :param release: what is live.
    """
    if not rows:
        return ["There is no backup yet: playbooks/backup.yml takes one."]
    cells = [HEAD]
    for row in rows:
        cells.append(
            (
                row["id"],
                str(row["created"] or "?"),
                str(row["kind"] or "?"),
                str(row["engine"] or "?"),
                str(row["size"] or "?"),
                str(row["verified"] or "?"),
                states.get(row["id"], "-"),
                ", ".join(row["versions"]) or "-",
            )
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
    return [*lines, f"live: {release or 'nothing'}"]


# What becomes of it, in words.
STATES = {
    "newest": "stays: the newest",
    "pinned": "stays: a recent record names it",
    "kept": "stays",
    "surplus": "the next deployment removes it",
    "foreign": "no restore of this host has noted it: never removed; drop it by hand when nobody needs it",
}


def former(layout: Layout, engine: Engine, days: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what restores have put aside beside the database of *engine*, and lines about it for a person.

    A server that does not answer is said there: the list of the backups is as good without it.
    """
    try:
        found = _former.survey(layout, engine, read_records(layout), days)
    except Problem as problem:
        return [], [f"put aside by restores: {problem.message}"]
    lines = []
    for entry in found:
        state = STATES[entry["state"]]
        if entry["state"] == "kept":
            state += f" until it is {days} days old" if days > 0 else " (app_restore_keep_days is 0)"
        size = "of unknown size" if entry["size"] is None else f"{entry['size']} bytes"
        lines.append(
            f"put aside by a restore: {entry['kind']} {entry['name']}, {entry['made']}, {size}; {state}"
        )
    return found, lines


def survey(
    layout: Layout, engine: Engine | None, names: Sequence[str], how: str, user: str | None
) -> dict[str, Any]:
    """Return ``{backups, states, text, failures}``: all backups, and what was found of *names* (or of all of them).

    :raises Problem: for a backup that does not exist.
    """
    rows = listing(layout)
    states: dict[str, str] = {}
    failures: list[str] = []
    for name in names:
        if engine is None:
            break
        try:
            verify(layout, engine, name, how, user)
            states[name] = "restored" if how == "restore" else "intact"
        except Problem as problem:
            states[name] = "FAILED"
            failures.append(problem.message)
    return {
        "backups": rows,
        "states": states,
        "text": "\n".join(table(rows, states, current_release(layout))),
        "failures": failures,
    }
