# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of backups in an object store: uploaded, downloaded again, compared; only then called copies.

The dump is uploaded first. It is read back, and when its bytes are those that the manifest names, the manifest follows:
what has no manifest in the store is no copy, whenever a run is killed. The backup on this host is never changed, but for
``store`` in its manifest.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._backup import (
    MANIFEST,
    backups_locked,
    digest,
    read_manifest,
    require_space,
)
from ansible_collections.runbook.deploy.plugins.module_utils._installed import (
    list_releases,
    measure_current,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    Layout,
    fsync_directory,
    held,
    read_json,
    write_json,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import load_records, rollback_target
from ansible_collections.runbook.deploy.plugins.module_utils._retention import (
    list_backups,
    pinned_backups,
    timestamp,
)
from ansible_collections.runbook.deploy.plugins.module_utils._store_copies import (
    by_backup,
    dead_uploads,
    keys_of,
    portable,
    read_stored,
    rows,
    surplus_copies,
    table,
)
from ansible_collections.runbook.deploy.plugins.module_utils._store_session import (
    DAMAGED,
    Session,
    StoreFault,
)
from ansible_collections.runbook.deploy.plugins.module_utils._store_spec import (
    Settings,
    extra,
    location,
    part_size,
)

# Seconds to wait for another copy of the same application to end.
LOCK_WAIT = 60.0
# What a fetch makes until it is proved; whoever holds the lock of copies removes what a kill has left.
FETCHING = ".fetching-"
# A manifest has a row for each table and migration.
LARGEST_MANIFEST = 16 * 1024 * 1024
SAFE = "the backup on this host is whole"
UNCHANGED = "nothing was changed"


class Copies(NamedTuple):
    """The store as the application sees it: ``base`` is what all its keys begin with."""

    layout: Layout
    settings: Settings
    session: Session
    base: str

    def key(self, name: str, file: str) -> str:
        """Return the key of the *file* of the backup *name*."""
        return f"{self.base}{name}/{file}"

    def stored(self, name: str, doing: str, after: str = UNCHANGED) -> dict[str, Any] | None:
        """Return the manifest of the copy of *name*; None where there is none that can be read."""
        text = self.session.ask(
            doing, after, "read_text", key=self.key(name, MANIFEST), limit=LARGEST_MANIFEST
        )
        return None if text["text"] is None else read_stored(text["text"], name)


def proved(copies: Copies, key: str, found: Mapping[str, Any], begun: float) -> dict[str, Any]:
    """Return what a manifest says of a copy that was compared: ``{location, endpoint, size, sha256, verified_at, seconds}``.

    :param found: size and sha256 of what came back; :param begun: when that began, as ``time.monotonic`` says.
    """
    return {
        "location": location(copies.settings, key),
        "endpoint": copies.settings.endpoint,
        **found,
        "verified_at": timestamp(),
        "seconds": round(time.monotonic() - begun, 3),
    }


@contextlib.contextmanager
def copying(layout: Layout) -> Iterator[None]:
    """Be the only one on this host who changes what is in the store; the kernel frees the lock of one that was killed.

    :raises Problem: when another works there for a minute.
    """
    layout.require_root()
    layout.backups.mkdir(mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(layout.backups, LOCK_WAIT))
        except TimeoutError:
            raise Problem(
                f"Another run has been copying backups of {layout.root} for {LOCK_WAIT:g} s: wait until it has ended, and find it "
                f"with 'fuser {layout.backups}'."
            ) from None
        for leftover in layout.backups.glob(f"{FETCHING}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def local(layout: Layout) -> dict[str, dict[str, Any]]:
    """Return the manifests of the backups on this host, by id."""
    found = {}
    for name, _created in list_backups(layout):
        with contextlib.suppress(ValueError, OSError):
            manifest = read_json(layout.backup(name) / MANIFEST)
            if isinstance(manifest, dict) and not name.startswith("."):
                found[name] = manifest
    return found


def tidy(copies: Copies, seen: Mapping[str, Any]) -> list[str]:
    """Give up the uploads that dead runs have left; return what could not be looked for, a sentence each."""
    dead = dead_uploads(seen["uploads"], copies.base, local(copies.layout), seen["now"])
    if dead:
        copies.session.ask(
            "What killed uploads have left could not be removed from", SAFE, "abort", uploads=dead
        )
    if not seen["unseen"]:
        return []
    return [
        f"What killed uploads have left in {copies.settings.place()} cannot be looked for ({seen['unseen']}): allow the access key to list "
        "multipart uploads, or let the bucket remove unfinished ones after some days."
    ]


def note(layout: Layout, name: str, value: Mapping[str, Any]) -> None:
    """Write *value* as ``store`` into the manifest of the backup *name* on this host."""
    path = layout.backup(name) / MANIFEST
    manifest = read_json(path)
    if isinstance(manifest, dict):
        write_json(path, {**manifest, "store": dict(value)}, 0o600)


def compare(
    copies: Copies, name: str, manifest: Mapping[str, Any], doing: str, after: str = UNCHANGED
) -> dict[str, Any]:
    """Download the dump of the copy of *name* without keeping it, and compare it with *manifest*.

    :return: ``{size, sha256}`` of what came back.
    :raises StoreFault: when it differs.
    """
    found = copies.session.ask(doing, after, "digest", key=copies.key(name, manifest["file"]))
    for what in ("size", "sha256"):
        if found[what] != manifest[what]:
            error = StoreFault(
                f"The copy of the backup {name} in {copies.settings.place()} is not what was backed up: the {what} of what came back is "
                f"{found[what]}, the manifest says {manifest[what]}; {after}: copy it again where it is on this host, and look at the store when it repeats."
            )
            error.code = DAMAGED
            raise error
    return found


def copy(copies: Copies, name: str) -> tuple[dict[str, Any], bool]:
    """Bring the backup *name* into the store, and prove it; call it under :func:`copying`.

    :return: ``store`` of its manifest, ``{location, endpoint, sha256, size, verified_at, seconds}``, and whether anything was
        uploaded.
    :raises StoreFault: when the store does not have it afterwards; no manifest is there then.
    """
    begun = time.monotonic()
    manifest = read_manifest(copies.layout, name)
    dump = copies.layout.backup(name) / manifest["file"]
    key = copies.key(name, manifest["file"])
    doing = f"The backup {name} could not be copied to"
    there = copies.stored(name, doing, SAFE)
    if there is not None and there["sha256"] != manifest["sha256"]:
        raise Problem(
            f"In {copies.settings.place()} lies another backup of the name {name} (made {there['created']}, sha256 {there['sha256']}), which is "
            f"not overwritten; {SAFE}: give this application and stage a prefix of their own in app_backup_store."
        )
    metadata = {"runbook-backup": name, "runbook-sha256": manifest["sha256"]}
    arguments = extra(copies.settings, metadata)
    reading = f"The copy of the backup {name} could not be read back from"
    wanted = there is None
    if not wanted:
        try:
            found = compare(copies, name, manifest, reading, SAFE)
        except StoreFault as fault:
            # What was lost or has rotted in the store is written again; only the right bytes can take its place.
            if fault.code not in (DAMAGED, "NoSuchKey"):
                raise
            wanted = True
    if wanted:
        send(copies, name, manifest, dump, key, arguments)
        try:
            found = compare(copies, name, manifest, reading, SAFE)
        except StoreFault:
            if there is None:
                discard(copies, key)
            raise
    if there is None:
        text = portable(manifest)
        copies.session.ask(
            doing, SAFE, "put_text", key=copies.key(name, MANIFEST), text=text, extra=arguments
        )
        back = copies.session.ask(
            doing, SAFE, "read_text", key=copies.key(name, MANIFEST), limit=LARGEST_MANIFEST
        )
        if back["text"] != text:
            discard(copies, copies.key(name, MANIFEST))
            raise StoreFault(
                f"The manifest of the backup {name} came back from {copies.settings.place()} as another text than was written; {SAFE}: copy it "
                "again, and look at the store when it repeats."
            )
    value = proved(copies, key, found, begun)
    note(copies.layout, name, value)
    return value, wanted


def send(
    copies: Copies,
    name: str,
    manifest: Mapping[str, Any],
    dump: Path,
    key: str,
    arguments: Mapping[str, Any],
) -> None:
    """Upload the *dump*; it appears in the store only if it still is what *manifest* says.

    :raises Problem: when the file on this host is not what was backed up, which no setting of the store excuses.
    """
    try:
        size = dump.stat().st_size
    except OSError as error:
        raise Problem(
            f"The backup {name} cannot be read: {dump}: {error.strerror}; choose another."
        ) from error
    sent = copies.session.ask(
        f"The backup {name} could not be copied to",
        SAFE,
        "upload",
        path=str(dump),
        key=key,
        part_size=part_size(size),
        sha256=manifest["sha256"],
        extra=dict(arguments),
    )
    if sent["sha256"] != manifest["sha256"]:
        raise Problem(
            f"The backup {name} is damaged: the sha256 of {dump} is {sent['sha256']}, its manifest says {manifest['sha256']}; nothing was "
            "written to the store: take a new backup, and check the disk."
        )


def discard(copies: Copies, key: str) -> None:
    """Remove the object *key*, which is not what was written; without its manifest it is no copy anyhow."""
    with contextlib.suppress(Problem):
        copies.session.ask("A damaged object could not be removed from", SAFE, "remove", keys=[key])


def newest_first(manifests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the ids of *manifests*, the one made last first."""
    return sorted(manifests, key=lambda name: (str(manifests[name]["created"]), name), reverse=True)


def inventory(copies: Copies) -> tuple[dict[str, Any], dict[str, dict[str, Any] | None]]:
    """Return what the store lists, and the manifest of each copy; None for what has no readable one."""
    doing = "The copies cannot be listed in"
    seen = copies.session.ask(doing, UNCHANGED, "look", prefix=copies.base)
    stored: dict[str, dict[str, Any] | None] = {}
    for name, files in by_backup(seen["objects"], copies.base).items():
        manifest = copies.stored(name, doing) if MANIFEST in files else None
        stored[name] = manifest if manifest and manifest["file"] in files else None
    return seen, stored


def verify(copies: Copies, names: list[str], write: bool) -> dict[str, Any]:
    """Download copies without keeping them, and compare each with its manifest.

    :param names: ``["all"]``, or [] for the newest one.
    :param write: whether to note the time in the manifest on this host.
    :return: ``{states: {id: intact | FAILED}, failures: [sentence], gone: [id]}``; ``gone`` as of :func:`vanished`.
    """
    _seen, stored = inventory(copies)
    whole = {name: manifest for name, manifest in stored.items() if manifest}
    wanted = newest_first(whole) if names == ["all"] else names or newest_first(whole)[:1]
    if not wanted:
        raise Problem(
            f"There is no copy of a backup in {copies.settings.place()} below {copies.base}: playbooks/backup.yml makes one."
        )
    here = local(copies.layout)
    states: dict[str, str] = {}
    failures: list[str] = []
    for name in wanted:
        begun = time.monotonic()
        try:
            manifest = required(copies, whole, name)
            if name in here and here[name].get("sha256") != manifest["sha256"]:
                raise StoreFault(
                    f"The copy of the backup {name} in {copies.settings.place()} is that of another dump (sha256 {manifest['sha256']}) than the "
                    f"one on this host ({here[name].get('sha256')}): find out which one is meant before either is removed."
                )
            found = compare(copies, name, manifest, f"The copy of the backup {name} could not be read from")
        except StoreFault as fault:
            states[name] = "FAILED"
            failures.append(fault.message)
            continue
        states[name] = "intact"
        if name in here and write:
            with contextlib.suppress(FileNotFoundError):
                note(copies.layout, name, proved(copies, copies.key(name, manifest["file"]), found, begun))
    gone = vanished(copies, here, set(whole) | set(states))
    return {"states": states, "failures": failures, "gone": gone}


def vanished(copies: Copies, here: Mapping[str, Mapping[str, Any]], known: Collection[str]) -> list[str]:
    """Return the backups of this host, newest first, that were proved to have a copy in this very place, and have none any more.

    What retention of this host removes is forgotten here (:func:`forget`), so that somebody else removed these.

    :param here: the manifests on this host; :param known: the copies that are there, or were already told to be missing.
    """
    return [
        name
        for name in newest_first({name: {"created": "", **manifest} for name, manifest in here.items()})
        if name not in known
        and (here[name].get("store") or {}).get("location")
        == location(copies.settings, copies.key(name, str(here[name].get("file"))))
        and here[name]["store"].get("endpoint") == copies.settings.endpoint
    ]


def required(copies: Copies, whole: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the manifest of the copy of *name*.

    :raises StoreFault: when there is no copy of this name.
    """
    if name not in whole:
        known = ", ".join(newest_first(whole)[:5]) or "none"
        raise StoreFault(
            f"There is no copy of the backup {name!r} in {copies.settings.place()} below {copies.base} (the newest: {known}): choose one that "
            "exists, as playbooks/backup.yml --tags list shows them."
        )
    return whole[name]


def is_whole(layout: Layout, name: str) -> bool:
    """Return whether the backup *name* is on this host with the bytes that its manifest names."""
    try:
        manifest = read_manifest(layout, name)
        dump = layout.backup(name) / manifest["file"]
        return dump.stat().st_size == manifest["size"] and digest(dump) == manifest["sha256"]
    except (Problem, OSError):
        return False


def fetch(copies: Copies, name: str) -> dict[str, Any]:
    """Bring the copy of *name* back to this host, and prove it; call it under :func:`copying`.

    What is on this host under that name, and is not whole, is replaced when the copy is there and proved.

    :raises Problem: when there is no such copy, no room, or it is not what its manifest says; nothing is changed then.
    """
    begun = time.monotonic()
    layout = copies.layout
    _seen, stored = inventory(copies)
    manifest = required(copies, {key: value for key, value in stored.items() if value}, name)
    require_space([(layout.backups, manifest["size"])])
    partial = layout.backups / f"{FETCHING}{name}"
    partial.mkdir(mode=0o700)
    try:
        found = copies.session.ask(
            f"The backup {name} could not be fetched from",
            "nothing was changed on this host",
            "download",
            key=copies.key(name, manifest["file"]),
            path=str(partial / manifest["file"]),
        )
        for what in ("size", "sha256"):
            if found[what] != manifest[what]:
                raise StoreFault(
                    f"The copy of the backup {name} in {copies.settings.place()} is damaged: the {what} of what came back is {found[what]}, its "
                    f"manifest says {manifest[what]}; nothing was changed on this host: choose another backup."
                )
        value = proved(copies, copies.key(name, manifest["file"]), found, begun)
        with backups_locked(layout):
            write_json(partial / MANIFEST, {**manifest, "store": value}, 0o600)
            put_in_place(layout, partial, name)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return {**manifest, "store": value}


def put_in_place(layout: Layout, partial: Path, name: str) -> None:
    """Give the proved directory *partial* the name of the backup; what lay there goes when that is done."""
    place = layout.backup(name)
    broken = layout.backups / f"{FETCHING}{name}.broken"
    if os.path.lexists(place):
        os.rename(place, broken)
    os.rename(partial, place)
    fsync_directory(layout.backups)
    shutil.rmtree(broken, ignore_errors=True)


def pins(layout: Layout) -> set[str]:
    """Return the backups that a rollback may need, by the records on this host.

    :raises StoreFault: when a record cannot be read: what it needs is not known.
    """
    records, damaged = load_records(layout)
    if damaged:
        raise StoreFault(
            f"The record {layout.record(damaged[0]['id'])} cannot be read, and what backup it needs is not known, so no copy was removed: "
            "repair the file or move it away."
        )
    current = measure_current(layout) or {}
    releases = list_releases(layout, [record.get("release") or "" for record in records])
    complete = {entry["name"] for entry in releases if entry["complete"]}
    target = rollback_target(records, current.get("release"), complete)
    return pinned_backups(records, current.get("deployment"), target)


def retain(copies: Copies, check_mode: bool, just_made: str | None = None) -> list[str]:
    """Remove the copies that ``keep`` and ``keep_days`` leave no place for; call it under :func:`copying`.

    :param just_made: the copy that was asked for, which stays however old its backup is.
    :return: their ids.
    """
    if copies.settings.keep <= 0:
        return []
    _seen, stored = inventory(copies)
    whole = {name: manifest for name, manifest in stored.items() if manifest}
    pinned = {*pins(copies.layout), *([just_made] if just_made else [])}
    surplus = surplus_copies(whole, pinned, copies.settings.keep, copies.settings.keep_days)
    for name in surplus:
        if not check_mode:
            copies.session.ask(
                f"The copy of the backup {name} could not be removed from",
                "the others are untouched",
                "remove",
                keys=keys_of(copies.base, name, whole[name]),
            )
            forget(copies.layout, name)
    return surplus


def forget(layout: Layout, name: str) -> None:
    """Remove ``store`` from the manifest on this host: the copy is gone."""
    path = layout.backup(name) / MANIFEST
    with contextlib.suppress(ValueError, OSError):
        manifest = read_json(path)
        if isinstance(manifest, dict) and manifest.pop("store", None):
            write_json(path, manifest, 0o600)


def listing(copies: Copies) -> dict[str, Any]:
    """Return ``{backups, text}``: each backup on this host or in the store."""
    _seen, stored = inventory(copies)
    listed = rows(local(copies.layout), stored, copies.base, copies.settings.bucket)
    return {
        "backups": listed,
        "text": "\n".join([f"copies in {copies.settings.place()}:", *table(listed)]),
    }
