#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: deployment_lock
short_description: Hold, release, read or remove the lock that allows one deployment at a time
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Deployments take and release the lock by themselves, with M(runbook.deploy.deployment_record). This module is for operators and for
    other tasks that must not run beside a deployment.
  - A lock is released only by its own token. It is taken over, by one of several who try, when its lease is past or when that is forced,
    and never while a process of its holder works on the host.
  - Lock and record writes never count as changes.
attributes:
  check_mode:
    support: full
    description: Says what would be refused, and writes nothing.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: full
    description: Holding a lock that is held with the same token renews its lease.
options:
  root:
    description: Directory on the host that holds everything (C(app_root)).
    type: path
    required: true
  state:
    description:
      - V(held) takes the lock, or renews the one that has O(token).
      - V(released) gives back the lock that has O(token); where there is none that is no error.
      - V(absent) removes the lock of a dead run, whoever held it; while its lease lasts only with O(force).
      - V(read) says who holds it.
    type: str
    choices: [held, released, absent, read]
    default: read
  token:
    description: What proves that the lock is ours. For O(state=held) made here when it is not given; required for O(state=released).
    type: str
  deployment:
    description: What the lock is held for, a deployment id or a text of your own.
    type: str
    default: manual
  owner:
    description: Who holds it, for the message to others.
    type: str
    default: ''
  host:
    description: Where that run was started, for the message to others.
    type: str
    default: ''
  lease:
    description: Seconds after the last renewal for which the lock counts as alive.
    type: int
    default: 900
  force:
    description: Take over, or remove, a lock whose lease is not past.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: See who deploys
  runbook.deploy.deployment_lock:
    root: /srv/shop

- name: Keep deployments away during a repair
  runbook.deploy.deployment_lock:
    root: /srv/shop
    state: held
    deployment: repair of the orders table
    owner: alice
    lease: 7200
  register: repair

- name: Let them in again
  runbook.deploy.deployment_lock:
    root: /srv/shop
    state: released
    token: "{{ repair.lock.token }}"
"""

RETURN = r"""
lock:
  description:
    - The lock after the task, or null. The token is returned only with O(state=held).
    - With O(state=absent) and O(state=released), the lock that was removed.
  returned: always
  type: dict
  contains:
    token:
      description: What proves that the lock is ours.
      returned: when O(state=held)
      type: str
    owner:
      description: Who holds it.
      type: str
    host:
      description: Where that run was started.
      type: str
    deployment:
      description: What it is held for.
      type: str
    kind:
      description: Kind of run, such as V(deployment), V(rollback) or V(manual).
      type: str
    since:
      description: When it was taken, UTC.
      type: str
      sample: "2026-11-21T01:37:00Z"
    renewed:
      description: When its lease was renewed last, UTC.
      type: str
    lease:
      description: Seconds of its lease.
      type: int
    process:
      description: The process of the holder that renewed it last, as pid, start_time, boot and phase.
      type: dict
    readable:
      description: Whether its document can be read.
      type: bool
    expired:
      description: Whether its lease is past.
      type: bool
    alive:
      description: Whether that process, another one than the caller, runs on this host.
      type: bool
message:
  description: Who holds the lock and what can be done, in one sentence; empty when nobody does.
  returned: always
  type: str
taken_over:
  description: The lock that was taken over, or null.
  returned: when O(state=held)
  type: dict
"""

import secrets
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._lock import (
    acquire,
    held_message,
    may_take,
    public,
    read_lock,
    release,
    remove,
    renew,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem


def hold(layout: Layout, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Take or renew the lock; return the module's answer."""
    present = read_lock(layout)
    taken_over = None
    if present and params["token"] and present["token"] == params["token"]:
        if not check_mode:
            renew(layout, params["token"])
    elif check_mode:
        if present and not may_take(present, force=params["force"]):
            raise Problem(held_message(layout, present), lock=public(present))
        return {"lock": public(present), "message": "", "taken_over": public(present)}
    else:
        _own, taken_over = acquire(
            layout,
            deployment=params["deployment"],
            token=params["token"] or secrets.token_hex(16),
            owner=params["owner"],
            host=params["host"],
            kind="manual",
            lease=params["lease"],
            force=params["force"],
        )
    lock = read_lock(layout)
    message = held_message(layout, lock) if lock else ""
    return {"lock": lock, "message": message, "taken_over": public(taken_over)}


def answer(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Do what ``state`` asks for; return the module's answer.

    :raises Problem: when the lock is somebody else's.
    """
    layout = Layout(params["root"])
    state = params["state"]
    if state == "held":
        return hold(layout, params, check_mode)
    present = read_lock(layout)
    message = held_message(layout, present) if present else ""
    if state == "read" or present is None:
        return {"lock": public(present), "message": message}
    if state == "released":
        if check_mode and present["token"] != params["token"]:
            raise Problem(message, lock=public(present))
        if not check_mode:
            release(layout, params["token"])
    elif check_mode:
        if not may_take(present, force=params["force"]):
            raise Problem(message, lock=public(present))
    else:
        present = remove(layout, force=params["force"])
    return {"lock": public(present), "message": ""}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["held", "released", "absent", "read"], "default": "read"},
            "token": {"type": "str", "no_log": False},
            "deployment": {"type": "str", "default": "manual"},
            "owner": {"type": "str", "default": ""},
            "host": {"type": "str", "default": ""},
            "lease": {"type": "int", "default": 900},
            "force": {"type": "bool", "default": False},
        },
        required_if=[("state", "released", ["token"])],
        supports_check_mode=True,
    )
    try:
        result = answer(module.params, module.check_mode)
    except Problem as problem:
        module.fail_json(**problem.answer())
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
