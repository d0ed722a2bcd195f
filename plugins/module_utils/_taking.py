# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Go on with a deployment whose run is dead, under its own id: its record gets a new token, and the primary's lock is ours.

Modules of the dead run that still come, from a controller that was only cut off, have the old token and stop.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _detached, _lock, _record
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, read_json
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Members of an entry of the record's `resumed`.
WHO = ("operator", "controller", "rule", "reason")


def take(
    layout: Layout,
    deployment: str,
    *,
    host: str,
    primary: bool,
    token: str,
    about: Mapping[str, Any],
    take_over: bool,
    check_mode: bool,
) -> dict[str, Any]:
    """Make the unfinished *deployment* ours on this host; return the option ``record`` for the modules of its phases.

    :param token: on hosts other than the primary, the one that the primary answered; made anew there.
    :param about: ``{operator, controller, rule, reason}``: who goes on, and why; kept in the record.
    :param take_over: the run is dead, although the lease of its lock is not past.
    :raises Problem: when the record is finished, damaged, not the newest, or the lock is a living run's.
    """
    record = unfinished(layout, deployment, primary)
    lock = _lock.read_lock(layout) if primary else None
    at_work = _detached.working(layout)
    if at_work:
        raise Problem(
            f"The phase {at_work['phase']} of {at_work['deployment']} still runs as process {at_work['pid']} since "
            f"{at_work['since']}: wait until it has ended; nothing was changed."
        )
    left = _detached.left_at_work(layout, deployment)
    if left:
        raise Problem(
            f"The process {left[0].pid} of the application still works for {deployment}: wait until it has ended; nothing was changed."
        )
    if lock and lock["deployment"] != deployment:
        raise Problem(_lock.held_message(layout, lock), lock=_lock.public(lock))
    if lock and not _lock.may_take(lock, force=take_over):
        raise Problem(_lock.held_message(layout, lock), lock=_lock.public(lock))
    header = {key: record.get(key) for key in _record.ABOUT}
    if primary:
        token = secrets.token_hex(16)
        if not check_mode:
            _lock.acquire(
                layout,
                deployment=deployment,
                token=token,
                owner=str(about.get("operator") or ""),
                host=str(about.get("controller") or ""),
                kind=str(record.get("kind") or "deployment"),
                force=take_over,
            )
            # Between the look and the lock another run may have come and gone.
            record = unfinished(layout, deployment, primary)
    if not check_mode:
        entry = {"at": _lock.timestamp(), **{key: str(about.get(key) or "") for key in WHO}}
        _record.write_record(
            layout, {**record, "token": token, "resumed": [*record.get("resumed", []), entry]}
        )
    return {"id": deployment, "token": token, "host": host, "primary": primary, "about": header}


def unfinished(layout: Layout, deployment: str, primary: bool) -> dict[str, Any]:
    """Return the record of *deployment*, which has to be open and the newest of this host.

    :raises Problem: otherwise. On other hosts than the primary a verdict may have been written already.
    """
    _record.must_be_newest(layout, deployment)
    path = layout.record(deployment)
    try:
        found = read_json(path)
    except (ValueError, OSError) as error:
        raise Problem(
            f"The record {str(path)!r} cannot be read ({error}): take the deployment back with playbooks/rollback.yml."
        ) from error
    if not isinstance(found, dict) or found.get("id") != deployment:
        raise Problem(
            f"The host has no record {str(path)!r}, expected that of the deployment to go on with: nothing was changed."
        )
    if found.get("verdict") is not None and primary:
        raise Problem(
            f"The deployment {deployment} is finished (verdict {found['verdict']}): there is nothing to go on with."
        )
    return found
