# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be removed from a host after a deployment, judged from the records, never from file times.

Only releases whose deployment succeeded count, so that failed ones never displace a good one. What is live, what
was live before, what a rollback would go back to, what runs, and what an unfinished record names always stays.
``shared/`` is never touched, except for the files of instances whose release is gone.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import calendar
import contextlib
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._command import run
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    Layout,
    opened,
    read_json,
    remove_tree,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import undone

# `<deployment>.env`, `.json`, `.boot`, `.supervisor`, `<deployment>.<service>.sh` and `.compose.yaml`, and the same of a trial instance.
INSTANCE_FILE = re.compile(
    r"^(\d{8}T\d{6}-[0-9a-f]{4})(\.trial)?\.(env|json|boot|supervisor|[a-z0-9-]+\.(sh|compose\.yaml))$"
)
# However old they are, so many of the newest backups stay.
MINIMUM_BACKUPS = 3
# How manifests and records write times (UTC).
FORM = "%Y-%m-%dT%H:%M:%SZ"
# Environments of this prefix belong to the collection itself, and to no release.
STORE_ENVIRONMENT = "store-"
RELEASE_LINK = re.compile(r"^([0-9a-f]{12}-[0-9a-f]{8})\.deployment$")


def timestamp() -> str:
    """Return the present time as manifests have it."""
    return time.strftime(FORM, time.gmtime())


def needs_attention(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the records that somebody will still act on: the unfinished, and the newest if it stopped."""
    return [
        record
        for position, record in enumerate(records)
        if record.get("verdict") is None or (position == 0 and record["verdict"] == "stopped")
    ]


def pinned_releases(
    records: Sequence[Mapping[str, Any]],
    live: str | None,
    target: Mapping[str, Any] | None,
    running: Iterable[str] = (),
) -> set[str]:
    """Return the releases that stay whatever their number.

    :param records: newest first; :param live: what ``current`` names.
    :param target: what a rollback would go back to; :param running: releases that processes run from.
    """
    pinned = {live, (target or {}).get("release"), *running}
    # What was live before is named by the newest success; its target may be another one.
    newest = next((record for record in records if record.get("verdict") == "success"), None)
    for record in [*needs_attention(records), *([newest] if newest else [])]:
        pinned |= {record.get("release"), (record.get("previous") or {}).get("release")}
    return {name for name in pinned if name}


def surplus_releases(
    records: Sequence[Mapping[str, Any]],
    releases: Iterable[Mapping[str, Any]],
    pinned: Collection[str],
    keep: int,
) -> list[str]:
    """Return the names of the releases to remove.

    :param releases: ``{name, complete}`` of those on the host.
    :param keep: how many releases with a successful deployment stay, the live one included. Complete ones
        without success stay while they are newer than the last of these, at most *keep*; incomplete ones go.
    """
    gone = undone(records)
    rank: dict[str, int] = {}
    good = set()
    for position, record in enumerate(records):
        name = record.get("release")
        if name:
            rank.setdefault(name, position)
            if record.get("verdict") == "success" and record["id"] not in gone:
                good.add(name)
    listed = sorted(releases, key=lambda entry: (rank.get(entry["name"], len(records)), entry["name"]))
    # The pinned ones take their places first: the live release is one of those kept.
    counted = sum(1 for entry in listed if entry["name"] in pinned and entry["name"] in good)
    failed = 0
    surplus = []
    for entry in listed:
        name = entry["name"]
        if name in pinned:
            continue
        if entry["complete"] and name in good and counted < keep:
            counted += 1
        elif entry["complete"] and name in rank and name not in good and counted < keep and failed < keep:
            failed += 1
        else:
            surplus.append(name)
    return surplus


def surplus_backups(
    backups: Sequence[tuple[str, str]],
    pinned: Collection[str],
    keep: int,
    days: int = 0,
    minimum: int = MINIMUM_BACKUPS,
    now: str = "",
) -> list[str]:
    """Return the ids of the *backups* to remove.

    :param backups: (id, when it was made in UTC, as manifests have it), newest first. The manifest counts, never a file's time.
    :param pinned: what is never removed, and takes none of the places.
    :param keep: those beyond this number go; :param days: so do older ones, 0: however old they are.
    :param minimum: so many of the newest stay however old they are; :param now: the present time in UTC.
    """
    oldest = ""
    if days > 0:
        moment = calendar.timegm(time.strptime(now or timestamp(), FORM)) - days * 86400
        oldest = time.strftime(FORM, time.gmtime(moment))
    surplus = []
    for position, (name, created) in enumerate(backups):
        late = position >= max(keep, 0) or (position >= minimum and created < oldest)
        if late and name not in pinned:
            surplus.append(name)
    return surplus


def pinned_backups(
    records: Sequence[Mapping[str, Any]], live: str | None, target: Mapping[str, Any] | None
) -> set[str]:
    """Return the backups named by the records of the *live* deployment, of the *target*'s, and of the unfinished, and
    the copy that the newest restore took of what it replaced."""
    wanted = {live, (target or {}).get("deployment")}
    result = set()
    for record in [*needs_attention(records), *(record for record in records if record["id"] in wanted)]:
        result.add((record.get("backup") or {}).get("id"))
    copies = (
        (phase.get("result") or {}).get("safety")
        for record in records
        for phase in record.get("phases") or []
    )
    result.add(next(filter(None, copies), None))
    return {name for name in result if name}


def list_backups(layout: Layout) -> list[tuple[str, str]]:
    """Return (id, when it was made) of the backups, newest first; a directory without a readable manifest is none."""
    found = []
    try:
        names = os.listdir(layout.backups)
    except OSError:
        return []
    for name in names:
        with contextlib.suppress(ValueError, OSError):
            manifest = read_json(layout.backup(name) / "manifest.json")
            if isinstance(manifest, dict):
                found.append((str(manifest.get("created") or ""), name))
    return [(name, created) for created, name in sorted(found, reverse=True)]


def prune_backups(layout: Layout, keep: int, days: int = 0, minimum: int = MINIMUM_BACKUPS) -> list[str]:
    """Remove the surplus among the backups that belong to no deployment and no restore; return their ids.

    The others are kept or removed by the deployment that ends next, which knows what a rollback needs.
    """
    manual = []
    for name, created in list_backups(layout):
        manifest = read_json(layout.backup(name) / "manifest.json") or {}
        if manifest.get("kind") == "manual":
            manual.append((name, created))
    surplus = surplus_backups(manual, (), keep, days, minimum)
    for name in surplus:
        # Without its manifest it is no backup, even if this is killed half way.
        os.unlink(layout.backup(name) / "manifest.json")
        remove_tree(layout.backup(name))
    return surplus


def prune_cache(layout: Layout) -> str:
    """Have uv drop from its cache what no environment needs any more; return what is wrong, or ""."""
    # Only where environments went: it is much to import.
    from ansible_collections.runbook.deploy.plugins.module_utils import _environment

    variables = _environment.installer_variables(layout, {}, True)
    if not Path(variables["UV_CACHE_DIR"]).is_dir():
        return ""
    try:
        uv = _environment.find_uv(layout, None)
        if not uv:
            return ""
        done = run([uv, "cache", "prune", "--quiet"], environment=variables, timeout=120)
    except Problem as problem:
        return problem.message
    last = (done.stderr.strip().splitlines() or [f"exit code {done.rc}"])[-1]
    return (
        "" if done.rc == 0 else f"The cache of uv could not be pruned ({last}): run 'uv cache prune' by hand."
    )


def environments_in_use(layout: Layout, releases: Iterable[str]) -> set[str] | None:
    """Return the environments that *releases* name; None when one of them does not say, so that none may go."""
    result = set()
    for name in releases:
        try:
            found = read_json(layout.release(name) / ".release.json")
        except (ValueError, OSError):
            return None
        if not isinstance(found, dict):
            return None
        if found.get("environment"):
            result.add(Path(found["environment"]).name)
    return result


def surplus_instance_files(
    layout: Layout,
    records: Iterable[Mapping[str, Any]],
    kept: Collection[str],
    live: Collection[str],
) -> list[Path]:
    """Return the files of instances whose release is not among those *kept*; never those of the *live* ones.

    A file whose release is known neither from the instance's description nor from a record stays.
    """
    try:
        names = sorted(os.listdir(layout.instances))
    except OSError:
        return []
    release_of: dict[str, str | None] = {}
    for record in records:
        if record.get("kind") != "rollback":
            release_of[record["id"]] = record.get("release")
    surplus = []
    for name in names:
        link, file = RELEASE_LINK.match(name), INSTANCE_FILE.match(name)
        if link and link.group(1) not in kept:
            surplus.append(layout.instances / name)
        if not file or file.group(1) in live:
            continue
        deployment = file.group(1)
        described = None
        with contextlib.suppress(ValueError, OSError):
            described = read_json(layout.instance_file(deployment))
        if isinstance(described, dict) and described.get("release"):
            release_of[deployment] = described["release"]
        release = release_of.get(deployment)
        if release and release not in kept:
            surplus.append(layout.instances / name)
    # The descriptions last: after a kill they still say which release the other files belong to.
    return sorted(surplus, key=lambda path: (path.suffix == ".json", path.name))


def apply(
    layout: Layout,
    state: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    *,
    running: Iterable[tuple[str, str]] = (),
    keep: int,
    keep_backups: int,
    keep_backups_days: int = 0,
    keep_backups_minimum: int = MINIMUM_BACKUPS,
    check_mode: bool = False,
) -> dict[str, list[str]]:
    """Remove what is surplus; return ``{releases, environments, instances, backups, former, records, errors}``; former and records are for others to fill.

    What cannot be removed is an error in words and stops nothing else.

    :param state: the measured state of the host.
    :param running: (deployment, release) of the application's processes.
    """
    removed: dict[str, list[str]] = {
        "releases": [],
        "environments": [],
        "instances": [],
        "backups": [],
        "former": [],
        "records": [],
        "errors": [],
    }

    def remove(kind: str, path: Path, how: Callable[[Path], Any]) -> None:
        try:
            if not check_mode:
                how(path)
            removed[kind].append(path.name)
        except OSError as error:
            removed["errors"].append(
                f"{path} could not be removed ({error.strerror or error}): remove it by hand."
            )

    current = state["current"] or {}
    target = state["target"]
    runs = list(running)
    pinned = pinned_releases(records, current.get("release"), target, [release for _id, release in runs])
    surplus = surplus_releases(records, state["releases"], pinned, keep)
    for name in surplus:
        remove("releases", layout.release(name), remove_tree)
    kept = {entry["name"] for entry in state["releases"]} - set(surplus)
    live = {
        current.get("deployment"),
        (target or {}).get("deployment"),
        *(deployment for deployment, _name in runs),
    }
    live |= {record["id"] for record in needs_attention(records)}
    for path in surplus_instance_files(layout, records, kept, live):
        remove("instances", path, os.unlink)
    named = environments_in_use(layout, kept)
    if named is not None:
        with contextlib.suppress(OSError):
            for path in sorted(layout.environments.iterdir()):
                ours = path.name.startswith((".", STORE_ENVIRONMENT))
                if path.is_dir() and not ours and path.name not in named:
                    remove("environments", path, remove_tree)
    pins = pinned_backups(records, current.get("deployment"), target)
    for name in surplus_backups(
        list_backups(layout), pins, keep_backups, keep_backups_days, keep_backups_minimum
    ):
        remove("backups", layout.backup(name), remove_tree)
    if removed["environments"] and not check_mode:
        removed["errors"] += [text for text in [prune_cache(layout)] if text]
    return removed


def discard_release(
    layout: Layout,
    name: str,
    *,
    live: str | None,
    records: Iterable[Mapping[str, Any]],
    running: Iterable[str],
    check_mode: bool = False,
) -> str:
    """Remove the failed release *name*; return what became of it.

    ``kept``: it is live, or an earlier deployment of it succeeded; ``incomplete``: processes still run from it, so
    that it only stops being a rollback target; ``removed``; ``absent``: there is none.
    """
    path = layout.release(name)
    if not path.is_dir():
        return "absent"
    listed = list(records)
    gone = undone(listed)
    succeeded = any(
        record.get("release") == name and record.get("verdict") == "success" and record["id"] not in gone
        for record in listed
    )
    if name == live or succeeded:
        return "kept"
    busy = name in set(running)
    if not check_mode:
        if busy:
            with opened(path), contextlib.suppress(FileNotFoundError):
                (path / ".complete").unlink()
        else:
            remove_tree(path)
    return "incomplete" if busy else "removed"
