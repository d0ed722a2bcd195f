# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Static files: collected into the release, published for the web server beside those of earlier releases.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._command import identity
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    Layout,
    open_regular,
    opened,
    read_json,
    read_regular,
    write_atomic,
    write_json,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# What the manifest of a STATIC_ROOT outside the release said before this release collected there.
SAVED_MANIFEST = ".staticfiles-before.json"
# What it said when this release had collected: it is put there again when this release serves again.
OWN_MANIFEST = ".staticfiles-own.json"
# What was collected into the release while it was verified, until it is published.
COLLECTED = ".collected.json"
# A content hash in a name: 12 digits in Django (HashedFilesMixin.file_hash), 8 and more in what bundlers make.
HASHED = re.compile(r"[.-][0-9a-f]{8,64}\.")
# link(2): another file system, no hard links there, too many of them, somebody else's file.
NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)


class Published(NamedTuple):
    """``published``: names that are new or newer in shared/static; ``kept``: hashed names with another content there."""

    published: int
    kept: list[str]


def place_of(layout: Layout, release: Path, cwd: Path, location: str) -> tuple[Path, bool]:
    """Return (the directory where *location*, the settings' STATIC_ROOT, really lies; whether that is in *release*).

    :raises Problem: when collecting there would overwrite code or another release.
    """
    found = Path(os.path.realpath(cwd / location))
    own = Path(os.path.realpath(release))
    if found == own or found in own.parents or found == Path(os.path.realpath(cwd)):
        raise Problem(
            f"STATIC_ROOT is {location!r}, the directory of the release {str(own)!r} itself or one above it; expected a "
            "directory of its own, such as BASE_DIR / 'staticfiles': correct the settings."
        )
    if own in found.parents:
        return found, True
    releases = Path(os.path.realpath(layout.releases))
    if found == releases or releases in found.parents:
        raise Problem(
            f"STATIC_ROOT is {location!r}, inside another release than {own.name!r}: it would be changed while it "
            "serves; expected a directory of this release: correct the settings or app_environment."
        )
    return found, False


def prepare(place: Path) -> None:
    """Make *place*, a directory of the release, and those above it, readable by all."""
    missing = []
    directory = place
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    with opened(directory):
        for path in reversed(missing):
            path.mkdir(mode=0o755)
            path.chmod(0o755)


# --- a STATIC_ROOT that all releases share ---


def save_manifest(release: Path, place: Path, manifest: str) -> bool:
    """Keep in *release* what the manifest in *place* says before this release overwrites it; return whether now.

    The first attempt counts: a second one would save the new release's own.
    """
    if not manifest or (release / SAVED_MANIFEST).exists():
        return False
    _keep(release, SAVED_MANIFEST, place, manifest)
    return True


def keep_manifest(release: Path, place: Path, manifest: str) -> None:
    """Keep in *release* what the manifest in *place* says now that this release has collected there."""
    if manifest:
        _keep(release, OWN_MANIFEST, place, manifest)


def _keep(release: Path, name: str, place: Path, manifest: str) -> None:
    document: dict[str, Any] = {
        "static_root": str(place),
        "manifest": manifest,
        "content": None,
        "mode": 0o644,
    }
    with contextlib.suppress(FileNotFoundError):
        handle = open_regular(place / manifest)
        with open(handle, encoding="utf-8") as stream:
            document.update(content=stream.read(), mode=stat.S_IMODE(os.fstat(handle).st_mode))
    with opened(release):
        write_json(release / name, document, 0o644)


def restore_manifest(release: Path, user: str | None = None) -> bool:
    """Put the manifest back that was there before *release* collected; return whether anything was to be done.

    :param user: the application's, who collects, and as whom it is written.
    :raises Problem: when what was saved cannot be read or written back.
    """
    return _put(release / SAVED_MANIFEST, user)


def put_manifest(release: Path, user: str | None = None) -> bool:
    """Put the manifest back that *release* had collected, as :func:`restore_manifest`.

    The processes of a release read the manifest when they start; collecting again would be another release's code.
    """
    return _put(release / OWN_MANIFEST, user)


def bring_manifest(layout: Layout, release: str | None, user: str | None) -> str:
    """Give *release*, or for None the adopted installation, the manifest that it had, before it is started again.

    :return: what is wrong, in a sentence: a release that starts without it is for its health checks to judge.
    """
    try:
        if release is not None:
            put_manifest(layout.release(release), user)
        else:
            # The first release that collected there found the adopted installation's.
            saved = list(layout.releases.glob(f"*/{SAVED_MANIFEST}"))
            if saved:
                restore_manifest(min(saved, key=lambda path: path.stat().st_mtime_ns).parent, user)
    except Problem as problem:
        return problem.message
    except OSError as error:
        return f"The manifest of the static files could not be put back: {error}."
    return ""


def _put(kept: Path, user: str | None) -> bool:
    try:
        saved = read_json(kept)
    except ValueError as error:
        raise Problem(
            f"{str(kept)!r} cannot be read ({error}): put the manifest of the static files back by "
            "running collectstatic of the release that is to serve."
        ) from error
    if not saved:
        return False
    path = Path(saved["static_root"]) / saved["manifest"]
    try:
        with acting_as(user):
            try:
                present = read_regular(path)
            except FileNotFoundError:
                present = None
            if present == saved["content"]:
                return False
            if saved["content"] is None:
                path.unlink()
            else:
                write_atomic(path, saved["content"], saved["mode"])
    except OSError as error:
        raise Problem(
            f"The manifest {str(path)!r} of the static files cannot be put back: {error.strerror}; see that the user of "
            "the application may write there."
        ) from error
    return True


@contextlib.contextmanager
def acting_as(user: str | None) -> Iterator[None]:
    """Let root open and write files with the rights of *user* only: its directories are in that user's hands."""
    found = identity(user)
    if not found:
        yield
        return
    uid, gid, groups = os.geteuid(), os.getegid(), os.getgroups()
    os.setgroups(found["extra_groups"])
    os.setegid(found["group"])
    os.seteuid(found["user"])
    try:
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)


# --- publish ---


def hashed_names(place: Path, manifest: str) -> set[str]:
    """Return the names that the manifest in *place* gives to files; none when there is no readable manifest."""
    if not manifest:
        return set()
    try:
        document = json.loads(read_regular(place / manifest, follow=True))
    except (OSError, ValueError):
        return set()
    paths = document.get("paths") if isinstance(document, dict) else None
    if not isinstance(paths, Mapping):
        return set()
    return {value for key, value in paths.items() if isinstance(value, str) and value != key}


def publish(place: Path, target: Path, *, hashed: Iterable[str] = (), link: bool = True) -> Published:
    """Bring every file below *place* to *target*, where the web server finds it; remove nothing there.

    A name that carries a hash is never given another content, because pages of other releases refer to it; any other
    name is replaced by rename. Only regular files count: a symbolic link might lead to what nobody should read.

    :param link: hard links where that is possible; otherwise copies, for a directory whose files change in place.
    :raises Problem: when a directory stands where a file is to be, or the other way round.
    """
    frozen = set(hashed)
    count = 0
    kept = []
    make_directory(target)
    for top, names, files in os.walk(place):
        relative = os.path.relpath(top, place)
        directory = target if relative == "." else target / relative
        names[:] = sorted(name for name in names if not os.path.islink(os.path.join(top, name)))
        make_directory(directory)
        for name in sorted(files):
            source = Path(top, name)
            found = source.lstat()
            if not stat.S_ISREG(found.st_mode):
                continue
            state = compare(source, found, directory / name)
            if state == "same":
                continue
            path = os.path.normpath(os.path.join(relative, name))
            if state == "different" and (path in frozen or HASHED.search(name)):
                kept.append(path)
                continue
            bring(source, directory / name, link)
            count += 1
    return Published(count, kept)


def make_directory(path: Path) -> None:
    """Make the directory *path*, readable by all; refuse anything else that has this name.

    :raises Problem: for a file or a symbolic link.
    """
    try:
        path.mkdir(mode=0o755)
        path.chmod(0o755)
    except FileExistsError as error:
        if path.is_symlink() or not path.is_dir():
            raise Problem(
                f"{str(path)!r} is no directory, but the release has static files in a directory of this name: remove "
                "it from shared/static."
            ) from error
    except FileNotFoundError as error:
        raise Problem(
            f"{str(path.parent)!r} does not exist on this host: run playbooks/setup.yml first."
        ) from error


def compare(source: Path, found: os.stat_result, target: Path) -> str:
    """Return ``missing``, ``same`` or ``different`` for the published file *target*.

    :param found: of *source*, as lstat gives it.
    :raises Problem: when *target* is a directory.
    """
    try:
        there = target.lstat()
    except FileNotFoundError:
        return "missing"
    if stat.S_ISDIR(there.st_mode):
        raise Problem(
            f"{str(target)!r} is a directory, but the release has a static file of this name: remove it from shared/static."
        )
    if not stat.S_ISREG(there.st_mode):
        return "different"
    if (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino):
        return "same"
    if there.st_size == found.st_size and filecmp.cmp(source, target, shallow=False):
        return "same"
    return "different"


def bring(source: Path, target: Path, link: bool) -> None:
    """Give *target* the content of *source* by one rename, so that no request sees half of it."""
    temporary = target.parent / f".{target.name}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    try:
        if link:
            try:
                os.link(source, temporary, follow_symlinks=False)
            except OSError as error:
                if error.errno not in NO_LINK:
                    raise
                link = False
        if not link:
            copy(source, temporary)
        os.rename(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def copy(source: Path, target: Path) -> None:
    """Copy the regular file *source* to the new file *target*, readable by all, with its time of change."""
    handle = open_regular(source)
    with open(handle, "rb") as reader:
        number, name = tempfile.mkstemp(prefix=".copy.", dir=target.parent)
        try:
            with os.fdopen(number, "wb") as writer:
                shutil.copyfileobj(reader, writer)
                found = os.fstat(handle)
                os.fchmod(number, 0o644)
                os.utime(number, ns=(found.st_atime_ns, found.st_mtime_ns))
                writer.flush()
            os.rename(name, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise


# --- the end ---


def complete(release: Path, document: Mapping[str, Any], *, read_only: bool) -> None:
    """Write ``.complete`` into *release*: from now on it can be switched to and gone back to."""
    with opened(release):
        with contextlib.suppress(FileNotFoundError):
            (release / COLLECTED).unlink()
        write_json(release / ".complete", document, 0o444 if read_only else 0o644)
