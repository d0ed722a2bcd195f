# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies in an object store, judged from its listing: copies, what killed runs have left, what retention removes.

Nothing here asks the store; everything is a pure function, because what these answer is what gets deleted.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._backup import MANIFEST, NAME, SCHEMA
from ansible_collections.runbook.deploy.plugins.module_utils._retention import (
    MINIMUM_BACKUPS,
    surplus_backups,
)

# Seconds after which an upload that nobody of this host began counts as dead.
DEAD_AFTER = 24 * 3600
NEEDED = ("schema", "engine", "file", "size", "sha256", "counts", "heads", "created")
HEAD = ("id", "made", "kind", "bytes", "here", "store", "proved")


def split_key(key: str, base: str) -> tuple[str, str] | None:
    """Return (backup id, file) of an object's *key*; None for what is not ours: other prefixes, other depths."""
    if not key.startswith(base):
        return None
    name, slash, file = key[len(base) :].partition("/")
    return (name, file) if slash and file and "/" not in file and NAME.fullmatch(name) else None


def by_backup(objects: Iterable[Mapping[str, Any]], base: str) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Return the *objects* below *base* as ``{backup id: {file: object}}``."""
    result: dict[str, dict[str, Mapping[str, Any]]] = {}
    for entry in objects:
        found = split_key(entry["key"], base)
        if found:
            result.setdefault(found[0], {})[found[1]] = entry
    return result


def portable(manifest: Mapping[str, Any]) -> str:
    """Return the text of *manifest* as the store gets it: without what is only true on this host."""
    kept = {key: value for key, value in manifest.items() if key != "store"}
    return json.dumps(kept, indent=2, sort_keys=True) + "\n"


def read_stored(text: str, name: str) -> dict[str, Any] | None:
    """Return the manifest in *text*, which lies in the store as that of the backup *name*; None where it is none."""
    try:
        manifest = json.loads(text)
    except ValueError:
        return None
    if not isinstance(manifest, dict) or any(key not in manifest for key in NEEDED):
        return None
    file, size = manifest["file"], manifest["size"]
    # The name becomes a path on this host.
    named = (
        isinstance(file, str) and os.path.basename(file) == file and NAME.fullmatch(file) and file != MANIFEST
    )
    whole = manifest["schema"] == SCHEMA and isinstance(size, int) and size >= 0 and named
    return {**manifest, "id": name} if whole else None


def dead_uploads(
    uploads: Iterable[Mapping[str, Any]], base: str, mine: Collection[str], now: float | None
) -> list[dict[str, Any]]:
    """Return the unfinished *uploads* of runs that are dead, ``{key, id}``.

    Whoever asks holds this host's lock, so an upload of a backup that was made here (*mine*) has nobody who goes on with
    it; one of another host counts as dead a day after it began, by the store's own clock *now*.
    """
    dead = []
    for entry in uploads:
        found = split_key(entry["key"], base)
        if found and (found[0] in mine or (now is not None and now - entry["begun"] > DEAD_AFTER)):
            dead.append({"key": entry["key"], "id": entry["id"]})
    return dead


def surplus_copies(
    manifests: Mapping[str, Mapping[str, Any]],
    pinned: Collection[str],
    keep: int,
    days: int,
    now: str = "",
) -> list[str]:
    """Return the ids of the copies to remove, of those whose *manifests* could be read.

    :param keep: so many of the newest stay, at least one; 0: all stay, whatever their age.
    :param days: older ones go, too, except for the newest three; 0: however old they are.
    """
    if keep <= 0:
        return []
    dated = sorted(((str(manifest["created"]), name) for name, manifest in manifests.items()), reverse=True)
    return surplus_backups(
        [(name, created) for created, name in dated], pinned, max(keep, 1), days, MINIMUM_BACKUPS, now
    )


def keys_of(base: str, name: str, manifest: Mapping[str, Any]) -> list[str]:
    """Return the keys of a copy in the order of their removal: without its manifest it is none, even after a kill."""
    return [f"{base}{name}/{MANIFEST}", f"{base}{name}/{manifest['file']}"]


def rows(
    here: Mapping[str, Mapping[str, Any]],
    stored: Mapping[str, Mapping[str, Any] | None],
    base: str,
    bucket: str,
) -> list[dict[str, Any]]:
    """Return a row for each backup, newest first: ``{id, created, kind, size, here, store, location, proved}``.

    :param here: the manifests on this host; :param stored: those in the store, None for what has no readable one.
    ``store`` is ``yes``, ``no``, ``unfinished``, or ``different`` where it is not the same dump.
    """
    result = []
    for name in sorted({*here, *stored}):
        local, remote = here.get(name), stored.get(name)
        known = local or remote or {}
        if name not in stored:
            state = "no"
        elif remote is None:
            state = "unfinished"
        else:
            state = "different" if local and local.get("sha256") != remote["sha256"] else "yes"
        result.append(
            {
                "id": name,
                "created": known.get("created"),
                "kind": known.get("kind"),
                "size": known.get("size"),
                "here": local is not None,
                "store": state,
                "location": f"s3://{bucket}/{base}{name}/{remote['file']}" if remote else None,
                "proved": ((local or {}).get("store") or {}).get("verified_at"),
            }
        )
    return sorted(result, key=lambda row: (str(row["created"] or ""), row["id"]), reverse=True)


def table(listed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the *listed* rows as lines for a person."""
    if not listed:
        return ["There is no backup yet, neither on this host nor in the store."]
    cells = [HEAD]
    for row in listed:
        cells.append(
            (
                row["id"],
                str(row["created"] or "?"),
                str(row["kind"] or "?"),
                str(row["size"] if row["size"] is not None else "?"),
                "yes" if row["here"] else "no",
                f"{row['store']} {row['location'] or ''}".strip(),
                str(row["proved"] or "-"),
            )
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
