# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups that are proved: made under a temporary name, restored for a trial, described by a manifest.

A backup is the directory ``backups/<id>/`` (0700) with the engine's dump and ``manifest.json``. The manifest is
written last and the directory gets its name after that: what has no manifest is no backup.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import random
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._database import (
    FRAMEWORKS_WITH_TABLE,
    MIGRATION_TABLES,
    SCRATCH_NOTE,
    Contents,
    Engine,
    heads,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    Layout,
    fsync_directory,
    lock_within,
    read_json,
    remove_tree,
    write_json,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

SCHEMA = 1
NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")
MANIFEST = "manifest.json"
# Directories of this prefix are backups in the making, or what a kill has left of one.
PARTIAL = ".partial-"
LOCK = ".lock"
# Directories below scratch/ of this prefix hold what a restore unpacks; whoever uses one holds its lock.
WORKING = ".restore-"
# Seconds to wait for another backup of the same application to end.
LOCK_WAIT = 60.0
# Bytes and inodes to leave free beyond what is written: file systems need a few for themselves.
SPARE_BYTES = 1024 * 1024
SPARE_INODES = 16
CHUNK = 1024 * 1024


class Taken(NamedTuple):
    """``manifest``: what manifest.json holds; ``directory``: of the backup; ``scratch``: an app_database or None."""

    manifest: dict[str, Any]
    directory: Path
    scratch: dict[str, str] | None


class Request(NamedTuple):
    """What a backup is wanted for.

    ``kind``: ``deployment``, ``manual`` or ``safety`` (taken before a restore); ``verify``: ``restore``, ``read`` or
    ``none``; ``scratch``: the name of the directory below ``scratch/`` that the trial restore leaves for ``user``,
    or "" for one that is removed when the backup is proved.
    """

    id: str
    kind: str
    framework: str
    verify: str = "restore"
    scratch: str = ""
    user: str | None = None
    application: str = ""
    deployment: str | None = None


def make_id() -> str:
    """Return a new id in the form of a deployment's: UTC time and four hex digits."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{random.SystemRandom().randrange(1 << 16):04x}"


def require_name(name: str, option: str) -> str:
    """Return *name*, which becomes the name of a directory.

    :raises Problem: when it could lead elsewhere, or be taken for something unfinished.
    """
    if not NAME.match(name):
        raise Problem(
            f"The option {option} is {name!r}: expected letters, digits, '.', '_' and '-', not beginning with '.'."
        )
    return name


def owner_of(user: str | None) -> tuple[int, int]:
    """Return (uid, gid) of *user* for chown; (-1, -1) when that is who we are.

    :raises Problem: when the user does not exist, or we are not root and it is another.
    """
    if not user:
        return (-1, -1)
    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        raise Problem(
            f"The user {user!r} (app_user) does not exist on this host: run playbooks/setup.yml first."
        ) from error
    if entry.pw_uid == os.geteuid():
        return (-1, -1)
    if os.geteuid() != 0:
        raise Problem(
            f"Files must be given to {user!r} (app_user), but this task runs as uid {os.geteuid()}: set ansible_become "
            "to true, or app_user to the user of the connection."
        )
    return (entry.pw_uid, entry.pw_gid)


def digest(path: Path) -> str:
    """Return the SHA-256 of the file *path* in hexadecimal."""
    result = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(CHUNK):
            result.update(chunk)
    return result.hexdigest()


def existing(path: Path) -> Path:
    """Return *path* or the nearest directory above it that exists."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def require_space(needs: list[tuple[Path, int]]) -> None:
    """Make sure that each directory in *needs* has room for its bytes; those on one file system add up.

    :raises Problem: naming the directory, what is free and what is needed.
    """
    sums: dict[int, tuple[Path, int]] = {}
    for path, size in needs:
        place = existing(path)
        device = place.stat().st_dev
        sums[device] = (place, sums.get(device, (place, 0))[1] + size)
    for place, size in sums.values():
        room = os.statvfs(place)
        # Ordinary users may not have the reserved blocks, and root should not take them.
        free = room.f_bavail * room.f_frsize
        if free < size + SPARE_BYTES:
            raise Problem(
                f"There is no room for a copy of the database in {place}: {free} bytes are free, {size + SPARE_BYTES} are "
                "needed (backup, trial restore, tables that a migration copies); make room, or lower app_backup_keep, and try again."
            )
        # Some file systems (btrfs) have no inodes to count and say 0 of 0.
        if room.f_files and room.f_favail < SPARE_INODES:
            raise Problem(
                f"There are {room.f_favail} inodes free in {place}, {SPARE_INODES} are needed for a copy of the "
                "database: remove files there and try again."
            )


@contextlib.contextmanager
def backups_locked(layout: Layout, wait: float = LOCK_WAIT) -> Iterator[None]:
    """Be the only one who works in ``backups/``, and remove what killed runs have left there.

    :param wait: seconds to wait for another; the kernel frees the lock of one that was killed.
    """
    layout.require_root()
    layout.backups.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(layout.backups / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            lock_within(handle, wait)
        except TimeoutError as error:
            raise Problem(
                f"Another backup or restore has been working in {layout.backups} for {wait:g} s: wait until it "
                f"has ended, and find it with 'fuser {layout.backups / LOCK}'."
            ) from error
        for leftover in layout.backups.glob(f"{PARTIAL}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        remove_abandoned(layout.scratch)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def working_directory(scratch: Path) -> Iterator[Path]:
    """Give a new directory (0700) below *scratch* that goes at the end; after a kill :func:`remove_abandoned` finds it."""
    scratch.mkdir(mode=0o711, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=WORKING, dir=scratch) as name:
        handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(handle)


def remove_abandoned(scratch: Path) -> None:
    """Remove the working directories below *scratch* whose users are dead: they hold copies of all data."""
    for path in scratch.glob(f"{WORKING}*"):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)


def free_id(layout: Layout, wanted: str) -> str:
    """Return *wanted*, or ``<wanted>-2`` and so on: a backup is never overwritten, least of all by a resumed run,
    whose first attempt may hold the only copy from before the migrations."""
    number, result = 1, wanted
    while os.path.lexists(layout.backup(result)):
        number += 1
        result = f"{wanted}-{number}"
    return result


def differences(manifest: Mapping[str, Any], found: Contents) -> list[str]:
    """Return in words how *found* differs from what *manifest* says, [] when it does not."""
    result = []
    wanted = manifest["counts"]
    for table in sorted(set(wanted) | set(found.counts)):
        expected, present = wanted.get(table), found.counts.get(table)
        if expected != present:
            result.append(
                f"table {table}: {'no such table' if present is None else f'{present} rows'}, "
                f"expected {'no such table' if expected is None else f'{expected} rows'}"
            )
    if heads(found.applied) != manifest["heads"]:
        result.append(f"migration heads: {heads(found.applied)}, expected {manifest['heads']}")
    return result


def require_migration_rows(engine: Engine, contents: Contents, framework: str) -> None:
    """Refuse tables that no migration accounts for: the next one would meet them.

    :raises Problem: naming some of the tables.
    """
    others = sorted(set(contents.counts) - MIGRATION_TABLES)
    if framework in FRAMEWORKS_WITH_TABLE and others and not contents.applied:
        raise Problem(
            f"The database at {engine.place()} has tables without migration rows ({len(others)} tables, such as "
            f"{', '.join(others[:5])}; no row says which migrations of {framework} made them): correct app_database, "
            "record the migrations ('migrate --fake' or 'alembic stamp'), or set app_framework to command or none."
        )


def new_violations(engine: Engine, contents: Contents) -> list[list[Any]]:
    """Return the violated foreign keys of the copy that the live database does not have."""
    if not contents.violations:
        return []
    live = {tuple(row) for row in engine.live_violations()}
    return [row for row in contents.violations if tuple(row) not in live]


def make_scratch(
    layout: Layout, engine: Engine, dump: Path | None, name: str, user: str | None
) -> dict[str, str]:
    """Restore *dump* (None: nothing) below ``scratch/<name>/`` for *user*; an older one of that name goes."""
    # Others pass through to their own directory, and see no names.
    layout.scratch.mkdir(mode=0o711, exist_ok=True)
    directory = layout.scratch / name
    if engine.is_live(directory):
        raise Problem(
            f"The scratch directory {directory} holds the live database ({engine.place()}): app_database.path must not "
            "lie below the directory scratch of app_root."
        )
    if directory.is_symlink():
        directory.unlink()
    elif directory.exists():
        forget_scratch(engine, directory)
    return engine.scratch(dump, directory, owner_of(user))


def forget_scratch(engine: Engine | None, directory: Path) -> None:
    """Remove the scratch *directory*, and first the database on a server that its note names.

    :param engine: None where no database is configured.
    :raises Problem: when the server does not let go of it; the note stays then, for another try.
    """
    try:
        note = read_json(directory / SCRATCH_NOTE)
    except (ValueError, OSError):
        # Cut short while it was written: the database is made after that.
        note = None
    if isinstance(note, dict):
        if engine is None or engine.name != note.get("engine"):
            raise Problem(
                f"The scratch database {note.get('name')} of the engine {note.get('engine')} is still there, and app_database is of another "
                f"engine now: drop it by hand, then remove {directory}."
            )
        engine.drop_scratch({**note, "directory": ""})
    remove_tree(directory)


def copy_to_scratch(layout: Layout, engine: Engine, name: str, user: str | None) -> dict[str, str]:
    """Return a scratch database ``scratch/<name>/`` of the present data, without keeping a backup.

    The new code's first run needs a copy also where no backup is asked for. Call it under :func:`backups_locked`.

    :raises Problem: when there is no room, or the database cannot be read.
    """
    size = engine.size()
    require_space(
        [
            (layout.backups, size),
            (layout.scratch, size),
            *engine.scratch_space(size),
            *engine.migration_space(size),
        ]
    )
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=layout.backups) as partial:
        dump = Path(partial) / engine.dump_name
        engine.dump(dump)
        return make_scratch(layout, engine, dump, name, user)


def take(layout: Layout, engine: Engine, request: Request) -> Taken:
    """Make and prove a backup; call it under :func:`backups_locked`.

    :raises Problem: when there is no room, the data is damaged, or the trial restore differs; nothing but the
        scratch that was asked for remains then.
    """
    begun = time.monotonic()
    size = engine.size()
    needs = [(layout.backups, size)]
    if request.verify == "restore" or request.scratch:
        needs += [(layout.scratch, size), *engine.scratch_space(size)]
    if request.scratch:
        # New code follows: a migration that finds the disk full would leave it full for the live application, too.
        needs += engine.migration_space(size)
    require_space(needs)
    owner_of(request.user)
    backup_id = free_id(layout, request.id)
    partial = layout.backups / f"{PARTIAL}{backup_id}"
    partial.mkdir(mode=0o700)
    try:
        dump = partial / engine.dump_name
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        facts = engine.dump(dump)
        # With a trial restore the whole check is made there, on the same bytes.
        contents = engine.contents(dump, request.framework, integrity_check=request.verify == "read")
        require_migration_rows(engine, contents, request.framework)
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            "id": backup_id,
            "kind": request.kind,
            "application": request.application,
            "deployment": request.deployment,
            "created": created,
            "engine": engine.name,
            "tools": engine.tools(),
            "source": engine.place(),
            "framework": request.framework,
            "file": engine.dump_name,
            "size": dump.stat().st_size,
            "sha256": digest(dump),
            "counts": contents.counts,
            "applied": contents.applied,
            "heads": heads(contents.applied),
            "verified": request.verify,
            **facts,
        }
        scratch = None
        if request.verify == "restore":
            scratch = make_scratch(layout, engine, dump, request.scratch or backup_id, request.user)
            contents = engine.scratch_contents(scratch, request.framework)
            found = differences(manifest, contents) + engine.differences(scratch, manifest)
            if found:
                raise Problem(
                    f"The trial restore of the backup {backup_id} to {scratch.get('path') or scratch.get('name')} differs "
                    f"from the backup: {found[0]}; nothing live was changed; check the disk and try again.",
                    evidence="\n".join(found[:20]),
                )
            if not request.scratch:
                engine.drop_scratch(scratch)
                scratch = None
        elif request.scratch:
            scratch = make_scratch(layout, engine, dump, request.scratch, request.user)
        added = new_violations(engine, contents)
        if added:
            raise Problem(
                f"The backup of {engine.place()} has {len(added)} foreign keys that point nowhere, which the live database "
                f"does not have, the first in table {added[0][0]}: try again, and check the disk when it repeats.",
                evidence="\n".join(str(row) for row in added[:20]),
            )
        manifest["integrity"] = contents.integrity
        manifest["foreign_key_violations"] = count_by_table(contents.violations)
        manifest["seconds"] = round(time.monotonic() - begun, 3)
        write_json(partial / MANIFEST, manifest, 0o600)
        os.rename(partial, layout.backup(backup_id))
        fsync_directory(layout.backups)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if not request.scratch and (layout.scratch / backup_id).exists():
            # Where the server is away, its note stays for the next deployment's end.
            with contextlib.suppress(Problem):
                forget_scratch(engine, layout.scratch / backup_id)
        raise
    return Taken(manifest, layout.backup(backup_id), scratch)


def count_by_table(violations: list[list[Any]]) -> dict[str, int]:
    """Return how many rows of each table have a foreign key that points nowhere."""
    result: dict[str, int] = {}
    for row in violations:
        result[str(row[0])] = result.get(str(row[0]), 0) + 1
    return result


def public(taken: Taken) -> dict[str, Any]:
    """Return the value ``backup`` of the module's answer and of the record."""
    kept = (
        "id", "kind", "size", "sha256", "counts", "heads", "applied", "seconds", "created", "verified", "integrity",
        "foreign_key_violations", "engine",
    )  # fmt: skip
    return {**{key: taken.manifest[key] for key in kept}, "path": str(taken.directory), "empty": False}


def read_manifest(layout: Layout, backup_id: str) -> dict[str, Any]:
    """Return the manifest of the backup *backup_id*.

    :raises Problem: when there is no such backup, or it is none.
    """
    directory = layout.backup(require_name(backup_id, "backup"))
    known = (
        ", ".join(sorted(path.parent.name for path in layout.backups.glob(f"[!.]*/{MANIFEST}"))[-5:])
        or "none"
    )
    if not directory.is_dir():
        raise Problem(
            f"There is no backup {backup_id!r} in {layout.backups}: choose one that exists (the newest: {known})."
        )
    try:
        manifest = read_json(directory / MANIFEST)
    except (ValueError, OSError) as error:
        raise Problem(
            f"The manifest {directory / MANIFEST} cannot be read ({error}): choose another backup (the newest: {known})."
        ) from error
    if manifest is None:
        raise Problem(
            f"The directory {directory} has no {MANIFEST}, so it is no finished backup: choose another (the newest: {known})."
        )
    missing = [
        key
        for key in ("schema", "engine", "file", "size", "sha256", "counts", "heads")
        if key not in manifest
    ]
    if missing or manifest["schema"] != SCHEMA or os.path.basename(str(manifest["file"])) != manifest["file"]:
        raise Problem(
            f"The manifest {directory / MANIFEST} is not of schema {SCHEMA} (missing: {', '.join(missing) or 'nothing'}): "
            f"choose another backup (the newest: {known})."
        )
    # The directory's name counts: backups get copied between hosts and renamed.
    return {**manifest, "id": backup_id}


def require_intact(layout: Layout, engine: Engine, manifest: Mapping[str, Any]) -> Path:
    """Return the dump of the backup that *manifest* describes, after comparing its bytes.

    :raises Problem: when the file is missing, cut short or altered, or of another engine.
    """
    dump = layout.backup(manifest["id"]) / manifest["file"]
    if manifest["engine"] != engine.name:
        raise Problem(
            f"The backup {manifest['id']} is one of {manifest['engine']}, but app_database.engine is {engine.name}: choose "
            "a backup of this engine."
        )
    try:
        size = dump.stat().st_size
    except OSError as error:
        raise Problem(
            f"The backup {manifest['id']} cannot be read: {dump}: {error.strerror}; choose another."
        ) from error
    found, what = (size, "size") if size != manifest["size"] else (digest(dump), "sha256")
    if found != manifest[what]:
        raise Problem(
            f"The backup {manifest['id']} is damaged: the {what} of {dump} is {found}, its manifest says "
            f"{manifest[what]}; nothing was changed; choose another backup."
        )
    return dump
