# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of a deployment: one at a time, released only by its own token, taken over only from the dead.

``deployment.lock/`` is made complete under a private name and then renamed, which fails where a lock with
content exists (rename(2)): there is no moment in which a lock has no owner, whenever its taker is killed.
Each change of the lock is made under flock(2) on ``app_root``, which the kernel gives back when its holder
dies, so that of two who take over from the same dead run one wins.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    Layout,
    fsync_directory,
    lock_within,
    read_json,
    write_json,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._processes import is_same, start_time

DOCUMENT = "lock.json"
# Longer than any phase leaves the lock unrenewed, bar builds and dumps; those are seen by their process.
LEASE = 900
# Seconds between two renewals while a phase works.
RENEW_EVERY = 60.0
TAKE_OVER = "-e deployment_take_over=true"
# The changes below take milliseconds each.
FLOCK_SECONDS = 10.0
# As the records: the group may read it.
MODE = 0o640


def timestamp(seconds: float | None = None) -> str:
    """Return *seconds* since the epoch, by default now, as ``2026-11-21T01:37:00Z``."""
    moment = datetime.fromtimestamp(time.time() if seconds is None else seconds, timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: Any) -> float | None:
    """Return the seconds since the epoch of what :func:`timestamp` wrote; None for anything else."""
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()
    except (TypeError, ValueError):
        return None


def boot_id() -> str:
    """Return what tells this boot of the host from all others, or "" where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def own_process(phase: str | None = None) -> dict[str, Any]:
    """Return what identifies the calling process: it is proof that the holder of the lock lives."""
    return {"pid": os.getpid(), "start_time": start_time(os.getpid()), "boot": boot_id(), "phase": phase}


def process_lives(process: Mapping[str, Any] | None) -> bool:
    """Return whether *process*, as :func:`own_process` wrote it, still runs on this host and is not the caller."""
    if not process or process.get("boot") != boot_id() or process.get("pid") == os.getpid():
        return False
    return isinstance(process.get("pid"), int) and is_same(process["pid"], process.get("start_time") or -1)


def read_lock(layout: Layout, now: float | None = None) -> dict[str, Any] | None:
    """Return the lock that lies on the host, or None.

    ``{token, owner, host, deployment, kind, since, renewed, lease, process}`` as written, and measured:
    ``readable``; ``expired`` (*now* is more than ``lease`` seconds after ``renewed``, or the run was cut off from what
    it left at work); ``alive`` (its process runs on this host). A lock without a readable document is ``{"readable": False, …}`` with all else unknown.
    """
    unknown = {
        **dict.fromkeys(("token", "owner", "host", "deployment", "kind", "since", "renewed", "process")),
        "lease": 0,
    }
    try:
        if layout.lock.is_dir():
            found = read_json(layout.lock / DOCUMENT)
        elif os.path.lexists(layout.lock):
            found = None
        else:
            return None
    except (ValueError, OSError):
        found = None
    if not isinstance(found, dict) or not found.get("token"):
        # A reader may meet the moment in which the lock is released.
        if not os.path.lexists(layout.lock):
            return None
        return {**unknown, "readable": False, "expired": False, "alive": False}
    renewed = parse_timestamp(found.get("renewed"))
    lease = found.get("lease") if isinstance(found.get("lease"), (int, float)) else LEASE
    moment = time.time() if now is None else now
    return {
        **unknown,
        **found,
        "lease": lease,
        "readable": True,
        "expired": renewed is None or moment > renewed + lease or bool(found.get("cut_off")),
        "alive": process_lives(found.get("process")),
    }


def public(lock: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return *lock* without its token: for answers, which are printed and stored."""
    return None if lock is None else {key: value for key, value in lock.items() if key != "token"}


def describe(lock: Mapping[str, Any]) -> str:
    """Return who holds *lock*, since when and for what, in words."""
    if not lock["readable"]:
        return "somebody unknown (its document cannot be read)"
    kind = lock["kind"] or "deployment"
    return f"{lock['owner'] or 'somebody'} on {lock['host'] or 'an unknown controller'} since {lock['since']} for {kind} {lock['deployment']}"


def held_message(layout: Layout, lock: Mapping[str, Any]) -> str:
    """Return the sentence for whoever wanted the lock that somebody else holds."""
    head = f"The deployment lock {str(layout.lock)!r} is held by {describe(lock)}"
    if lock["alive"]:
        process = lock["process"]
        return (
            f"{head}, and its process {process['pid']} still runs on this host"
            f" (phase {process.get('phase') or 'unknown'}): wait until it has ended; if that run is dead, playbooks/resume.yml "
            "waits for it and goes on from there."
        )
    if not lock["readable"]:
        return f"{head}: when no deployment is running, take it over with {TAKE_OVER}."
    state = "its lease is past" if lock["expired"] else f"its lease of {lock['lease']} s is not past"
    return f"{head}, and {state}: wait until it ends, or, when that run is dead, take over with {TAKE_OVER}."


def may_take(lock: Mapping[str, Any], *, force: bool, finished: Collection[str] = ()) -> bool:
    """Judge whether the present *lock* may be taken from its holder.

    Never while a process of that run works on this host: two would change the same database. Otherwise when it
    is forced, the lease is past, or the holder's deployment is among those *finished*.
    """
    if lock["alive"]:
        return False
    return force or lock["expired"] or (lock["readable"] and lock["deployment"] in finished)


@contextlib.contextmanager
def serialised(layout: Layout) -> Iterator[None]:
    """Let one process at a time change the lock; where the file system has no flock, the renames decide."""
    try:
        handle = os.open(layout.root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise Problem(
            f"app_root {str(layout.root)!r} cannot be opened on this host ({error.strerror}), so no lock can be "
            "taken there: run playbooks/setup.yml first."
        ) from error
    try:
        try:
            lock_within(handle, FLOCK_SECONDS, 0.02)
        except TimeoutError as error:
            raise Problem(
                f"Another process has kept {str(layout.root)!r} locked for {FLOCK_SECONDS:g} s, where "
                f"milliseconds are expected: see who has it open with fuser -v {layout.root}."
            ) from error
        except OSError:
            # Without such locks the renames decide.
            pass
        yield
    finally:
        os.close(handle)


def _install(layout: Layout, document: Mapping[str, Any]) -> bool:
    """Make *document* the lock; return False when there is one with content already."""
    prepared = layout.root / f".{layout.lock.name}.{document['token']}"
    os.mkdir(prepared, 0o750)
    try:
        write_json(prepared / DOCUMENT, document, MODE)
        os.rename(prepared, layout.lock)
    except OSError as error:
        shutil.rmtree(prepared, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    except BaseException:
        shutil.rmtree(prepared, ignore_errors=True)
        raise
    fsync_directory(layout.root)
    return True


def _remove(layout: Layout) -> None:
    """Take the lock away in one step, then delete it."""
    away = layout.root / f".{layout.lock.name}.{secrets.token_hex(8)}.old"
    with contextlib.suppress(FileNotFoundError):
        os.rename(layout.lock, away)
    for leftover in layout.root.glob(f".{layout.lock.name}.*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                leftover.unlink()
    fsync_directory(layout.root)


def acquire(
    layout: Layout,
    *,
    deployment: str,
    token: str,
    owner: str = "",
    host: str = "",
    kind: str = "deployment",
    lease: int = LEASE,
    force: bool = False,
    finished: Collection[str] = (),
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Take the lock; return (our lock, the lock that was taken over or None).

    :param lease: seconds for which the lock counts as alive after each renewal.
    :param force: take over although the lease is not past.
    :param finished: deployments whose records are finished: their locks were left by a kill.
    :raises Problem: saying who holds it, since when, for what, and what to do.
    """
    moment = timestamp()
    document = {
        "token": token,
        "owner": owner,
        "host": host,
        "deployment": deployment,
        "kind": kind,
        "since": moment,
        "renewed": moment,
        "lease": lease,
        "process": own_process("begin"),
    }
    with serialised(layout):
        present = read_lock(layout)
        if present is not None:
            if not may_take(present, force=force, finished=finished):
                raise Problem(held_message(layout, present), lock=public(present))
            _remove(layout)
        if not _install(layout, document):
            raise Problem(
                f"The deployment lock {str(layout.lock)!r} was taken by another run just now: try again."
            )
    return document, present


def renew(layout: Layout, token: str, phase: str | None = None) -> dict[str, Any]:
    """Prolong the lease of our lock by its full length, with the calling process as proof of life.

    :raises Problem: when the lock is gone or has another token: somebody took over, and this run must end.
    """
    with serialised(layout):
        present = read_lock(layout)
        if present is None:
            raise Problem(
                f"The deployment lock {str(layout.lock)!r} is gone, but this run holds it until it ends: somebody "
                "removed it, so this run stops here; see playbooks/status.yml before anything else."
            )
        if present["token"] != token:
            raise Problem(
                f"The deployment lock {str(layout.lock)!r} is held by {describe(present)}, no more by this run: "
                "it was taken over, so this run stops here; see playbooks/status.yml before anything else.",
                lock=public(present),
            )
        document = _written(present)
        document.update(renewed=timestamp(), process=own_process(phase))
        # Whoever renews it is heard.
        document.pop("cut_off", None)
        write_json(layout.lock / DOCUMENT, document, MODE)
    return document


def _written(lock: Mapping[str, Any]) -> dict[str, Any]:
    """Return *lock* without what is measured."""
    return {key: value for key, value in lock.items() if key not in ("readable", "expired", "alive")}


@contextlib.contextmanager
def kept_renewed(layout: Layout, token: str | None, phase: str | None) -> Iterator[None]:
    """Renew our lock every ``RENEW_EVERY`` seconds from a thread, for the time of the block; nothing without *token*.

    A renewal that fails ends the renewing, and nothing else: what works is not ended half way, and the next phase of
    a run whose lock was taken over stops by itself.
    """
    if token is None:
        yield
        return
    over = threading.Event()

    def work() -> None:
        while not over.wait(RENEW_EVERY):
            try:
                renew(layout, token, phase)
            except (Problem, OSError):
                return

    thread = threading.Thread(target=work, name="runbook-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def cut_off(layout: Layout, token: str) -> bool:
    """Say in our lock that nobody waits any more for the work that held it, so that its lease counts as past.

    The run itself, where it still lives, goes on with its token, unless somebody has taken the lock meanwhile.

    :return: whether it was our lock.
    """
    with serialised(layout):
        present = read_lock(layout)
        if present is None or present["token"] != token:
            return False
        write_json(layout.lock / DOCUMENT, {**_written(present), "cut_off": True}, MODE)
    return True


def release(layout: Layout, token: str) -> bool:
    """Give our lock back; return whether there was one.

    :raises Problem: when it has another token: a lock of somebody else is never removed.
    """
    with serialised(layout):
        present = read_lock(layout)
        if present is None:
            return False
        if present["token"] != token:
            raise Problem(
                f"The deployment lock {str(layout.lock)!r} is held by {describe(present)}, not by this run: "
                "it stays, and that run goes on.",
                lock=public(present),
            )
        _remove(layout)
    return True


def remove(layout: Layout, *, force: bool) -> dict[str, Any] | None:
    """Remove the lock of a dead run, whoever held it; return it, or None where there was none.

    :raises Problem: while its lease lasts (without *force*), or while its process runs.
    """
    with serialised(layout):
        present = read_lock(layout)
        if present is not None:
            if not may_take(present, force=force):
                raise Problem(held_message(layout, present), lock=public(present))
            _remove(layout)
    return present
