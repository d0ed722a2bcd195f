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
  - Before it measures, finishing waits for services under systemd of other deployments that are ending, see
    O(runbook.deploy.app_service#module:stop_wait). No verdict that says what serves is written while one of them still runs or ends.
  - Lock and record writes, and the removal of old releases, never count as changes.
attributes:
  check_mode:
    support: full
    description: Writes nothing and removes nothing. No record is begun, so that the modules of the phases keep no journal.
  diff_mode:
    support: partial
    description: Shows which files of old records go, and nothing else.
  idempotent:
    support: partial
    description: Each O(state=begun) begins another deployment; O(state=finished) can be repeated with the same verdict.
extends_documentation_fragment:
  - runbook.deploy.database
options:
  root:
    description: Directory on the host that holds everything (C(app_root)).
    type: path
    required: true
  name:
    description: Name of the application; for O(state=finished), which waits for the end of what systemd still stops of it.
    type: str
    default: ''
  stage:
    description: Stage, such as production; see O(name).
    type: str
    default: ''
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
        C(controller), C(undoes) (the deployment that a rollback takes back), C(instance) (the deployment that serves after a rollback),
        C(approvals) (a list of C(role), C(name) and C(at)) and C(outside_window) (why it began outside of C(app_window)).
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
  resume:
    description:
      - Go on after an earlier deployment that has no verdict, as O(take_over), once its lock is free or its lease past. The lock of a
        run that may live is not taken.
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
      - C(nothing), when true, says instead that nothing is live on this host.
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
  gates:
    description: For O(state=finished), the checks of this host's gates by moment, kept in the record.
    type: dict
    default: {}
  notifications:
    description: For O(state=finished), what M(runbook.deploy.notification) answered until then, kept in the record.
    type: list
    elements: dict
    default: []
  due_tasks:
    description: For O(state=finished), C(app_due_tasks), copied into the primary's record of a deployment that succeeded, with the time each is due.
    type: list
    elements: dict
    default: []
  undone:
    description: Deployments that this one took back; their records are marked, and they are never a rollback target again.
    type: list
    elements: str
    default: []
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
  keep_backups_days:
    description: Days after which a backup goes, too; V(0) for none.
    type: int
    default: 0
  keep_backups_minimum:
    description: Of the newest backups so many stay however old they are.
    type: int
    default: 3
  keep_former_days:
    description:
      - Days after which what restores have put aside (databases, schemas, files) is removed; V(0) for never.
      - The newest stays, and what the newest records name, and all that no restore of this host has noted.
    type: int
    default: 0
  keep_records:
    description:
      - Records to keep; V(0) for all. The oldest go at the end of a run, up to the first that has to stay.
      - It has to stay where it has no verdict, its release or a backup that it names is kept, a way back leads to it or through it, or
        O(stored_records) lacks it.
      - What says that a rollback left migrations applied is kept longer than those after it, and is then no rollback target any more.
    type: int
    default: 100
  stored_records:
    description:
      - Deployments whose record the controller has in C(app_report_store); null where it keeps none.
      - Records of the primary that are not among them are returned as RV(unstored), and not removed.
    type: list
    elements: str
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
before:
  description: What the gates of the last success before this deployment saw, as id, version and gates (moment, check, observed); empty without one.
  returned: when O(state=finished) and it was not finished before
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
    former:
      description: Former databases, schemas and files, which restores had put aside; see O(keep_former_days).
      type: list
      elements: str
    records:
      description: Ids of deployments whose record went; see O(keep_records).
      type: list
      elements: str
    errors:
      description: What could not be removed, in sentences.
      type: list
      elements: str
unstored:
  description: Finished records that O(stored_records) lacks, without their tokens, the oldest first, at most 20 at a time; this run's is not among them.
  returned: when O(state=finished)
  type: list
  elements: dict
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
  description: Records that cannot be read, as id and message; C(flags) is the history of feature flags.
  returned: when O(state=read)
  type: list
  elements: dict
switches:
  description: The switches of feature flags on this host, oldest first, as RV(runbook.deploy.feature_flags#module:switches).
  returned: when O(state=read)
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._database import ADMIN_OPTION, OPTIONAL_DATABASE
from ansible_collections.runbook.deploy.plugins.module_utils._flags_history import read_switches
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem, of_system
from ansible_collections.runbook.deploy.plugins.module_utils._record import load_records, open_journal, public
from ansible_collections.runbook.deploy.plugins.module_utils._settle import NOTHING_REMOVED, begin, finish


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "name": {"type": "str", "default": ""},
            "stage": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["begun", "finished", "read"], "required": True},
            "about": {"type": "dict", "default": {}},
            "host": {"type": "str", "default": ""},
            "lease": {"type": "int", "default": 900},
            "take_over": {"type": "bool", "default": False},
            "resume": {"type": "bool", "default": False},
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
            "gates": {"type": "dict", "default": {}},
            "notifications": {"type": "list", "elements": "dict", "default": []},
            "due_tasks": {"type": "list", "elements": "dict", "default": []},
            "undone": {"type": "list", "elements": "str", "default": []},
            "remove_release": {"type": "str"},
            "services": {"type": "list", "elements": "dict", "default": []},
            "user": {"type": "str"},
            "database": OPTIONAL_DATABASE,
            "database_admin": ADMIN_OPTION,
            "framework": {"type": "str", "default": "none"},
            "keep": {"type": "int", "default": 5},
            "keep_backups": {"type": "int", "default": 10},
            "keep_backups_days": {"type": "int", "default": 0},
            "keep_backups_minimum": {"type": "int", "default": 3},
            "keep_former_days": {"type": "int", "default": 0},
            "keep_records": {"type": "int", "default": 100},
            "stored_records": {"type": "list", "elements": "str"},
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
            records, damaged = load_records(layout, params["limit"])
            result = {"records": [public(record) for record in records], "damaged": damaged, "switches": []}
            try:
                result["switches"] = read_switches(layout)
            except Problem as problem:
                damaged.append({"id": "flags", "message": problem.message})
        elif params["record"] is None:
            result = {"record": None, "state": None, "removed": NOTHING_REMOVED, "unstored": []}
        else:
            # Judges the option; the journal itself is not needed here.
            open_journal(params["root"], params["record"], False)
            result = finish(layout, params, module.check_mode)
            gone = "".join(f"{layout.record(name)}\n" for name in result["removed"]["records"])
            if gone and module._diff:
                result["diff"] = {
                    "before_header": "records",
                    "after_header": "records",
                    "before": gone,
                    "after": "",
                }
    except Problem as problem:
        module.fail_json(**problem.answer())
    except OSError as error:
        module.fail_json(**of_system(error, module.params["root"]).answer())
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
