#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: deployment_record
short_description: Begin, finish or read the record of a deployment
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - The record says what a deployment did, phase by phase, and is what a rollback or a later run goes on from.
  - Beginning takes the lock; finishing measures the host, writes the verdict, removes what is surplus and releases the lock.
  - Lock and record writes, and the removal of old releases, never count as changes.
attributes:
  check_mode:
    support: full
    description: Writes nothing and removes nothing. No record is begun, so that the modules of the phases keep no journal.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: partial
    description: Each O(state=begun) begins another deployment; O(state=finished) can be repeated with the same verdict.
options:
  root:
    description: Directory on the host that holds everything (C(app_root)).
    type: path
    required: true
  state:
    description:
      - V(begun), on the primary host, takes the lock, makes the id and the token, and writes the record.
      - V(finished), on every host, writes the verdict and ends the deployment there. The primary comes last, because it gives the lock
        back; until then, other hosts can still be taken back, and get another verdict.
      - V(read) returns the records on the host.
    type: str
    choices: [begun, finished, read]
    required: true
  about:
    description:
      - For O(state=begun), the header of the record.
      - The members are C(kind) (C(deployment) or C(rollback)), C(application), C(stage), C(version), C(commit), C(release), C(operator),
        C(controller), C(undoes) (the deployment that a rollback takes back) and C(instance) (the deployment that serves after a rollback).
    type: dict
    default: {}
  host:
    description: Name of this host in the inventory.
    type: str
    default: ''
  lease:
    description: Seconds for which the lock counts as alive after each phase's begin.
    type: int
    default: 900
  take_over:
    description:
      - Go on although an earlier deployment began and has no verdict, or still holds the lock. Its record gets the verdict C(stopped).
      - Refused while one of its processes works on the host.
    type: bool
    default: false
  adopt:
    description: C(app_adopt). Where no release is current, what was live before is this installation.
    type: dict
    default: {}
  record:
    description: For O(state=finished), what O(state=begun) returned; null, as in check mode, does nothing.
    type: dict
  verdict:
    description:
      - For O(state=finished), how it ended.
      - V(success); V(rolled_back), failed and the release before serves; V(abandoned), failed before anything was live; V(stopped),
        a person is needed; V(failed), a rollback that did not reach its target.
    type: str
    choices: [success, rolled_back, abandoned, stopped, failed]
  expect:
    description:
      - What must be measured before O(verdict=success) or O(verdict=rolled_back) is believed, as C(release) and C(deployment) (the instance).
      - Where it is not, the module fails, nothing is finished and the lock is kept.
    type: dict
    default: {}
  failures:
    description: What failed, as C(host), C(phase), C(task), C(reason), C(evidence) and C(unreachable).
    type: list
    elements: dict
    default: []
  decision:
    description: How the failure was answered, as C(level) and C(reason).
    type: dict
    default: {}
  health:
    description: Result of the last gate, kept with what is measured.
    type: dict
    default: {}
  undone:
    description: Deployment that this one took back; its record is marked, and it is never a rollback target again.
    type: str
  remove_release:
    description: Failed release to remove, unless it is live or an earlier deployment of it succeeded.
    type: str
  services:
    description: Services of this host (C(app_services), complete), to be measured.
    type: list
    elements: dict
    default: []
  user:
    description: User that the application runs as.
    type: str
  database:
    description: The database (C(app_database)), to read the applied migrations from; empty where the host has nothing to do with it.
    type: dict
    default: {}
  framework:
    description: What migrates the database.
    type: str
    default: none
  keep:
    description: Releases with a successful deployment to keep, the live one included.
    type: int
    default: 5
  keep_backups:
    description: Backups to keep, besides those that records of the live and the target deployment name.
    type: int
    default: 10
  limit:
    description: For O(state=read), how many records to return.
    type: int
    default: 20
"""

EXAMPLES = r"""
- name: Begin
  runbook.deploy.deployment_record:
    root: /srv/shop
    state: begun
    host: web1
    about: {kind: deployment, application: shop, stage: production, version: v2.7, operator: alice}
  register: begun

- name: Finish
  runbook.deploy.deployment_record:
    root: /srv/shop
    state: finished
    record: "{{ begun.record }}"
    verdict: success
    expect: {release: 0123456789ab-01234567, deployment: "{{ begun.record.id }}"}
    services: [{name: web, kind: web, bind: socket}]

- name: Read the last ten records
  runbook.deploy.deployment_record:
    root: /srv/shop
    state: read
    limit: 10
"""

RETURN = r"""
record:
  description:
    - With O(state=begun), what the modules of the phases take as O(record); null in check mode. On other hosts, C(primary) is to be false
      and C(host) that host's name.
    - With O(state=finished), the record as it was written, without its token.
  returned: when O(state=begun) or O(state=finished)
  type: dict
  contains:
    id:
      description: The deployment id.
      type: str
      sample: 20261121T013700-ab12
    token:
      description: What proves that a module belongs to this deployment.
      returned: when O(state=begun)
      type: str
    host:
      description: Name of the host in the inventory.
      type: str
    primary:
      description: Whether this is the host with the lock.
      type: bool
    about:
      description: The header for hosts that have no record yet.
      returned: when O(state=begun)
      type: dict
previous:
  description: What was live when the deployment began, as release, deployment, commit and version; null when nothing was.
  returned: when O(state=begun)
  type: dict
interrupted:
  description: The deployment that was taken over, as id, phase, begun, host, kind and release; null when there was none.
  returned: when O(state=begun)
  type: dict
lock:
  description: The lock, without its token; null in check mode.
  returned: when O(state=begun)
  type: dict
state:
  description: The measured state of the host, as M(runbook.deploy.deployment_state) returns it.
  returned: when O(state=finished)
  type: dict
removed:
  description: What retention removed, or would remove in check mode.
  returned: when O(state=finished)
  type: dict
  contains:
    releases:
      description: Names of releases.
      type: list
      elements: str
    environments:
      description: Names of Python environments.
      type: list
      elements: str
    instances:
      description: Names of files of instances whose release is gone.
      type: list
      elements: str
    backups:
      description: Ids of backups.
      type: list
      elements: str
    errors:
      description: What could not be removed, in sentences.
      type: list
      elements: str
failed_release:
  description: What became of O(remove_release), one of V(removed), V(incomplete) (it is still in use), V(kept) and V(absent).
  returned: when O(remove_release) is given
  type: str
records:
  description: The records, newest first, without their tokens.
  returned: when O(state=read)
  type: list
  elements: dict
damaged:
  description: Records that cannot be read, as id and message.
  returned: when O(state=read)
  type: list
  elements: dict
"""

import os
import secrets
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils import (
    _installed,
    _lock,
    _record,
    _retention,
    _state,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    ADOPTED,
    Layout,
    read_json,
    remove_tree,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._processes import application_processes

NOTHING_REMOVED: dict[str, list[str]] = {
    "releases": [],
    "environments": [],
    "instances": [],
    "backups": [],
    "errors": [],
}


def begin(layout: Layout, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Take the lock and write the record; return the module's answer.

    :raises Problem: when another run holds the lock, or one was interrupted and is not taken over.
    """
    about = {key: value for key, value in params["about"].items() if key in _record.ABOUT}
    unknown = sorted(set(params["about"]) - set(_record.ABOUT))
    if unknown:
        raise Problem(
            f"The option about has {', '.join(unknown)}, expected only {', '.join(_record.ABOUT)}: remove the rest."
        )
    if about.setdefault("kind", "deployment") not in _record.KINDS:
        raise Problem(
            f"The option about.kind is {about['kind']!r}, expected one of {', '.join(_record.KINDS)}: correct it."
        )
    records = _record.read_records(layout)
    lock = _lock.read_lock(layout)
    finished = {record["id"] for record in records if record["verdict"] is not None}
    stopped = _record.interrupted(records, lock)
    if lock and not _lock.may_take(lock, force=params["take_over"], finished=finished):
        raise Problem(_lock.held_message(layout, lock), lock=_lock.public(lock), interrupted=stopped)
    if stopped and not params["take_over"]:
        raise Problem(
            f"The {stopped['kind']} {stopped['id']} began at {stopped['begun']} and ended in phase {stopped['phase']} "
            f"without a verdict: take it back with playbooks/rollback.yml {_lock.TAKE_OVER}, or deploy over it with "
            f"playbooks/deploy.yml {_lock.TAKE_OVER}.",
            interrupted=stopped,
        )
    previous = _installed.measure_current(layout)
    if previous is None and params["adopt"].get("service"):
        previous = {"release": None, "deployment": ADOPTED, "commit": None, "version": None}
    if check_mode:
        return {"record": None, "previous": previous, "interrupted": stopped, "lock": None}
    deployment = _record.make_id(newest_id(layout))
    token = secrets.token_hex(16)
    taken, _before = _lock.acquire(
        layout,
        deployment=deployment,
        token=token,
        owner=str(about.get("operator") or ""),
        host=str(about.get("controller") or ""),
        kind=about["kind"],
        lease=params["lease"],
        force=params["take_over"],
        finished=finished,
    )
    try:
        # Measured again: between the first look and the lock another run may have come and gone.
        records = _record.read_records(layout)
        stopped = _record.interrupted(records, None)
        if stopped and not params["take_over"]:
            raise Problem(f"The deployment {stopped['id']} was interrupted just now: try again.")
        previous = _installed.measure_current(layout) or previous
        _record.write_record(
            layout,
            _record.new_record(
                deployment=deployment,
                token=token,
                host=params["host"],
                primary=True,
                about=about,
                previous=previous,
                begun=taken["since"],
            ),
        )
        _record.close_unfinished(layout, deployment)
    except BaseException:
        # Nothing has begun: the lock of a record that does not exist would only be in the way.
        _lock.release(layout, token)
        raise
    return {
        "record": {
            "id": deployment,
            "token": token,
            "host": params["host"],
            "primary": True,
            "about": about,
        },
        "previous": previous,
        "interrupted": stopped,
        "lock": _lock.public(taken),
    }


def newest_id(layout: Layout) -> str | None:
    """Return the newest deployment id that a file is named after, readable or not."""
    try:
        names = [name[: -len(".json")] for name in os.listdir(layout.deployments) if name.endswith(".json")]
    except OSError:
        return None
    return max((name for name in names if _record.DEPLOYMENT_ID.match(name)), default=None)


def finish(layout: Layout, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Measure, write the verdict, remove what is surplus, release the lock; return the module's answer.

    :raises Problem: when what is measured is not what the verdict says, or the record is another run's.
    """
    given = params["record"]
    deployment = given["id"]
    record = load(layout, given, params["verdict"])
    lock = _lock.read_lock(layout)
    if given["primary"] and record["verdict"] and (lock is None or lock["token"] != given["token"]):
        # Finished and unlocked before; what may be removed is now the business of later deployments.
        return {"record": _record.public(record), "state": None, "removed": NOTHING_REMOVED}
    if given["primary"] and not check_mode:
        _lock.renew(layout, given["token"], "finish")
    state = _state.measure(
        layout,
        services=params["services"],
        user=params["user"],
        database=params["database"] or None,
        framework=params["framework"],
        adopt=params["adopt"] or None,
        own=deployment,
    )
    if params["expect"] and params["verdict"] in ("success", "rolled_back"):
        wrong = _state.mismatches(state, params["expect"])
        if wrong:
            raise Problem(
                f"The verdict {params['verdict']} of {deployment} on {given['host'] or 'this host'} is not what is "
                f"measured: expected release {params['expect'].get('release')} of deployment "
                f"{params['expect'].get('deployment')}, found that {'; '.join(wrong)}: nothing was finished and the "
                "lock is kept; see playbooks/status.yml, then roll back or deploy again.",
                state=state,
            )
    record.update(
        verdict=params["verdict"],
        finished=_lock.timestamp(),
        failures=params["failures"],
        decision=params["decision"],
        measured={
            "current": state["current"],
            "services": state["services"],
            "heads": state["heads"] if params["database"] else None,
            "health": params["health"],
            "at": _lock.timestamp(),
        },
    )
    result: dict[str, Any] = {"record": _record.public(_record.plain(record)), "state": state}
    if not check_mode:
        _record.write_record(layout, record)
        mark_undone(layout, params["undone"], deployment)
    records = _record.read_records(layout)
    runs = [(entry.deployment, entry.release) for entry in application_processes(layout.root)]
    live = (state["current"] or {}).get("release")
    if params["remove_release"]:
        result["failed_release"] = _retention.discard_release(
            layout,
            params["remove_release"],
            live=live,
            records=records,
            running=[release for _id, release in runs],
            check_mode=check_mode,
        )
    # The target and the releases are others now that the verdict is written.
    after = {**state, **targets(layout, records, live, state["adopted"] is not None)}
    result["removed"] = _retention.apply(
        layout,
        after,
        records,
        running=runs,
        keep=params["keep"],
        keep_backups=params["keep_backups"],
        check_mode=check_mode,
    )
    result["state"] = {**state, **targets(layout, records, live, state["adopted"] is not None)}
    if not check_mode:
        try:
            remove_tree(layout.scratch / deployment)
        except OSError as error:
            result["removed"]["errors"].append(
                f"{layout.scratch / deployment} could not be removed ({error.strerror}): remove it by hand."
            )
        if given["primary"]:
            _lock.release(layout, given["token"])
            result["state"]["lock"] = None
    return result


def targets(layout: Layout, records: list[dict[str, Any]], live: str | None, adopted: bool) -> dict[str, Any]:
    """Return the members ``releases`` and ``target`` of the state, from the disk as it is now."""
    releases = _installed.list_releases(layout, [record.get("release") or "" for record in records])
    complete = {entry["name"] for entry in releases if entry["complete"]}
    return {"releases": releases, "target": _record.rollback_target(records, live, complete, adopted)}


def load(layout: Layout, given: dict[str, Any], verdict: str) -> dict[str, Any]:
    """Return the record of *given*, made now on a host where no phase began.

    :raises Problem: when it is damaged, another run's, or on the primary finished with another verdict.
    """
    path = layout.record(given["id"])
    try:
        found = read_json(path)
    except (ValueError, OSError) as error:
        raise Problem(
            f"The record {str(path)!r} cannot be read ({error}): move it away and finish again."
        ) from error
    if found is None:
        found = _record.new_record(
            deployment=given["id"],
            token=given["token"],
            host=given["host"],
            primary=bool(given["primary"]),
            about=given.get("about") or {},
            previous=_installed.measure_current(layout),
        )
    if found.get("token") != given["token"]:
        raise Problem(f"The record {str(path)!r} belongs to another run: it is left as it is.")
    if found["verdict"] not in (None, verdict) and found["primary"]:
        # Other hosts follow the primary, which finishes last: their success ends when it takes the fleet back.
        raise Problem(
            f"The deployment {given['id']} is finished already with the verdict {found['verdict']}, not {verdict}: "
            "a verdict of the primary is never changed."
        )
    return found


def mark_undone(layout: Layout, undone: str | None, by: str) -> None:
    """Write into the record of the deployment *undone*, where there is one, that *by* took it back."""
    if not undone:
        return
    for record in _record.read_records(layout):
        if record["id"] == undone and undone != by:
            _record.write_record(layout, {**record, "undone_by": by})


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["begun", "finished", "read"], "required": True},
            "about": {"type": "dict", "default": {}},
            "host": {"type": "str", "default": ""},
            "lease": {"type": "int", "default": 900},
            "take_over": {"type": "bool", "default": False},
            "adopt": {"type": "dict", "default": {}},
            "record": {"type": "dict"},
            "verdict": {
                "type": "str",
                "choices": ["success", "rolled_back", "abandoned", "stopped", "failed"],
            },
            "expect": {"type": "dict", "default": {}},
            "failures": {"type": "list", "elements": "dict", "default": []},
            "decision": {"type": "dict", "default": {}},
            "health": {"type": "dict", "default": {}},
            "undone": {"type": "str"},
            "remove_release": {"type": "str"},
            "services": {"type": "list", "elements": "dict", "default": []},
            "user": {"type": "str"},
            "database": {"type": "dict", "default": {}},
            "framework": {"type": "str", "default": "none"},
            "keep": {"type": "int", "default": 5},
            "keep_backups": {"type": "int", "default": 10},
            "limit": {"type": "int", "default": 20},
        },
        required_if=[("state", "finished", ["verdict"])],
        supports_check_mode=True,
    )
    params = module.params
    layout = Layout(params["root"])
    try:
        if params["state"] == "begun":
            result = begin(layout, params, module.check_mode)
        elif params["state"] == "read":
            records, damaged = _record.load_records(layout, params["limit"])
            result = {"records": [_record.public(record) for record in records], "damaged": damaged}
        elif params["record"] is None:
            result = {"record": None, "state": None, "removed": NOTHING_REMOVED}
        else:
            _record.open_journal(params["root"], params["record"], False)
            result = finish(layout, params, module.check_mode)
    except Problem as problem:
        module.fail_json(**problem.answer())
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
