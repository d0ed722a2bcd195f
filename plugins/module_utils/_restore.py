# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Going back to a backup without losing anything that nobody agreed to lose.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils import _former
from ansible_collections.runbook.deploy.plugins.module_utils._backup import (
    MANIFEST,
    Request,
    Taken,
    make_id,
    read_manifest,
    require_intact,
    require_space,
    take,
)
from ansible_collections.runbook.deploy.plugins.module_utils._database import Damaged, Engine
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._losses import describe
from ansible_collections.runbook.deploy.plugins.module_utils._openers import Opener
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# How often writes may come between the safety backup and the swap before this gives up. One is normal: stopping
# the application writes what it still had in its log.
ATTEMPTS = 3
# The table's name in `lost` for what concerns the whole database.
DATABASE = "(database)"


class Restorer:
    """What a restore asks of an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def space(self, size: int) -> list[tuple[Path, int]]:
        """Return where a new database of *size* bytes takes how much room on this host."""
        raise NotImplementedError

    def losses(self, backup: Path, present: Path | None, framework: str) -> dict[str, dict[str, Any]]:
        """Return what would be lost by going back from the dump *present* (None: the live database) to *backup*.

        :returns: for each table with losses ``{inserts, updates, deletes}`` or ``{"unknown": reason}``.
        """
        raise NotImplementedError

    def tidy(self, backups: Path | None = None) -> None:
        """Remove what a killed restore has left; *backups*: the directory of the backups, beside which notes may lie."""
        raise NotImplementedError

    def stage(self, dump: Path, user: str | None) -> Any:
        """Restore *dump* into a new database beside the live one, with its owner; return where it is."""
        raise NotImplementedError

    def staged_differences(self, staged: Any, manifest: Mapping[str, Any]) -> list[str]:
        """Return in words how what :meth:`stage` has made differs from the *manifest* of its backup."""
        raise NotImplementedError

    def discard(self) -> None:
        """Remove what :meth:`stage` has made."""
        raise NotImplementedError

    def settle(self) -> None:
        """Bring the live database into a state of rest, without changing what it holds."""
        raise NotImplementedError

    def mark(self) -> Any:
        """Return a value that every write to the live database changes."""
        raise NotImplementedError

    def stop(self, root: Path, timeout: float) -> list[Opener]:
        """Stop the processes of the application below *root* that use the live database; return them."""
        raise NotImplementedError

    def swap(
        self, mark: Any, root: Path, timeout: float, *, lost: dict[str, Any], consent: bool
    ) -> tuple[bool, str | None, list[Opener]]:
        """Put the staged database in the place of the live one, if that still has the *mark*.

        :param lost: what is known to be lost; a server, whose writers are only now kept out, counts again and writes it
            there. With more than that, nothing is done unless there is *consent*.

        :returns: whether it was done; where the former one is kept (None: there was none); the processes that
            opened the former one meanwhile.
        """
        raise NotImplementedError


class ServerRestorer(Restorer):
    """What the engines with a server have in common: two transactions at rest, nobody stopped, rows counted again instead of a mark."""

    def settle(self) -> None:
        """See :meth:`Restorer.settle`: a server is always at rest between two transactions."""

    def mark(self) -> Any:
        """See :meth:`Restorer.mark`: rows are counted again when nobody can write, which needs no mark."""
        return None

    def stop(self, root: Path, timeout: float) -> list[Opener]:
        """See :meth:`Restorer.stop`: the server keeps writers out, which needs no process to be found."""
        return []


class Order(NamedTuple):
    """What is to be restored: ``timeout`` in seconds for processes to end."""

    backup: str
    consent: bool
    user: str | None
    timeout: float
    deployment: str | None = None


def restorer_of(engine: Engine) -> Restorer:
    """Return what restores databases of *engine*; an engine that cannot be restored has no backup either."""
    # Imported here for the same reason as in engine_of.
    if engine.name == "mysql":
        from ansible_collections.runbook.deploy.plugins.module_utils._mysql_restore import MysqlRestorer

        return MysqlRestorer(engine)
    if engine.name == "postgresql":
        from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_restore import (
            PostgresqlRestorer,
        )

        if engine.may_make_databases():
            return PostgresqlRestorer(engine)
        from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_schemas import SchemaRestorer

        return SchemaRestorer(engine)
    from ansible_collections.runbook.deploy.plugins.module_utils._sqlite_restore import SqliteRestorer

    return SqliteRestorer(engine)


def require_consent(order: Order, lost: Mapping[str, Any], stopped: list[Opener]) -> None:
    """Refuse a restore that would lose writes nobody agreed to lose.

    :raises Problem: listing them.
    """
    if not lost or order.consent:
        return
    after = " after its processes were stopped (start the services again)" if stopped else ""
    raise Problem(
        f"Restoring the backup {order.backup} would lose writes made since it was taken: {describe(lost)}; the database "
        f"was not changed{after}; to restore all the same, accept that with -e rollback_consent=true: the present database is kept.",
        lost=dict(lost),
    )


def safety_backup(layout: Layout, engine: Engine, order: Order, framework: str) -> tuple[Taken | None, str]:
    """Take a full backup of the present database; return it, or None and why it cannot be trusted.

    A database that is damaged cannot be backed up, and is the best reason for a restore: it is kept as it is.
    """
    try:
        if not engine.exists():
            return None, ""
        request = Request(
            id=make_id(), kind="safety", framework=framework, verify="read", deployment=order.deployment
        )
        return take(layout, engine, request), ""
    except Damaged as error:
        return None, error.message


def remove_backup(taken: Taken | None) -> None:
    """Remove a safety backup that was not needed; without its manifest it is none, even if this is killed."""
    if taken is not None:
        os.unlink(taken.directory / MANIFEST)
        shutil.rmtree(taken.directory)


def present_losses(
    restorer: Restorer, dump: Path, present: Path | None, damage: str, framework: str
) -> dict[str, dict[str, Any]]:
    """Return the losses against the copy *present*; unknown for a database with *damage*, none for no database."""
    if damage:
        return {DATABASE: {"unknown": f"the present database is damaged ({damage})"}}
    return {} if present is None else restorer.losses(dump, present, framework)


def verify_staged(layout: Layout, restorer: Restorer, staged: Any, manifest: Mapping[str, Any]) -> None:
    """Compare the new database *staged* with the *manifest* of the backup it comes from.

    :raises Problem: naming the first difference.
    """
    found = restorer.staged_differences(staged, manifest)
    if found:
        raise Problem(
            f"The backup {manifest['id']} restored to {staged} differs from its manifest in {layout.backups}: {found[0]}; "
            "nothing was changed; check the disk, or choose another backup.",
            evidence="\n".join(found[:20]),
        )


def preview(layout: Layout, engine: Engine, order: Order) -> dict[str, Any]:
    """Return what :func:`restore` would do and lose; nothing is changed.

    :raises Problem: for a backup that is none or damaged, and for losses without consent.
    """
    manifest = read_manifest(layout, order.backup)
    dump = require_intact(layout, engine, manifest)
    restorer = restorer_of(engine)
    require_space([*restorer.space(manifest["size"]), (layout.backups, engine.size())])
    try:
        lost = restorer.losses(dump, None, manifest.get("framework", "none")) if engine.exists() else {}
    except Damaged as error:
        lost = present_losses(restorer, dump, None, error.message, "none")
    finally:
        restorer.discard()
    require_consent(order, lost, [])
    return {"restored": order.backup, "kept": None, "safety": None, "lost": lost, "stopped": [], "late": []}


def restore(layout: Layout, engine: Engine, order: Order) -> dict[str, Any]:
    """Put the backup of *order* in the place of the live database; call it under ``backups_locked``.

    What is lost is counted against a safety backup of the present database, and counted again when anything
    was written between that backup and the moment in which nobody can write any more.

    :returns: ``restored``, ``kept``, ``safety``, ``lost``, ``stopped`` and ``late`` of the module's answer.
    :raises Problem: at any step; the live database is the former one then.
    """
    manifest = read_manifest(layout, order.backup)
    framework = manifest.get("framework", "none")
    dump = require_intact(layout, engine, manifest)
    restorer = restorer_of(engine)
    restorer.tidy(layout.backups)
    stopped: list[Opener] = []
    is_staged = False
    try:
        for _attempt in range(ATTEMPTS):
            restorer.settle()
            mark = restorer.mark()
            needs = [] if is_staged else restorer.space(manifest["size"])
            require_space([*needs, (layout.backups, engine.size())])
            safety, damage = safety_backup(layout, engine, order, framework)
            try:
                present = None if safety is None else safety.directory / safety.manifest["file"]
                lost = present_losses(restorer, dump, present, damage, framework)
                require_consent(order, lost, stopped)
                if not is_staged:
                    staged = restorer.stage(dump, order.user)
                    verify_staged(layout, restorer, staged, manifest)
                    is_staged = True
                stopped += restorer.stop(layout.root, order.timeout)
                restorer.settle()
                done, kept, late = restorer.swap(
                    mark, layout.root, order.timeout, lost=lost, consent=order.consent
                )
            except Problem:
                remove_backup(safety)
                raise
            if done:
                if kept:
                    _former.note(layout, engine, kept, order.backup)
                return {
                    "restored": order.backup,
                    "kept": kept,
                    "safety": None if safety is None else safety.manifest["id"],
                    "lost": lost,
                    "stopped": [entry._asdict() for entry in stopped],
                    "late": [entry._asdict() for entry in late],
                }
            remove_backup(safety)
    except BaseException:
        restorer.discard()
        raise
    restorer.discard()
    raise Problem(
        f"The database {engine.place()} was written to {ATTEMPTS} times while the backup {order.backup} was being restored; "
        "nothing was restored; stop the services and whatever else writes to it, and try again."
    )
