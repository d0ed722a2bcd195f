#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: due_task
short_description: Show, do or mark the tasks that are due after a deployment
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Tasks that are due after a deployment, C(app_due_tasks), are kept in its record with their state.
  - Nothing is marked while a deployment runs. Writes of the record count as changes here.
attributes:
  check_mode:
    support: full
    description: Runs no command and writes nothing; the answer says what would be marked.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: partial
    description: A task that is in the wanted state already is left alone; V(run) always runs the command.
options:
  root:
    description: Directory on the host that holds everything (C(app_root)).
    type: path
    required: true
  deployment:
    description: Deployment whose tasks are meant; the newest that succeeded and was not taken back when empty.
    type: str
    default: ''
  task:
    description: Name of the task.
    type: str
    default: ''
  state:
    description:
      - V(shown) changes nothing.
      - V(done) marks O(task) as done, V(open) takes the mark back.
      - V(run) runs its command in the release that is live, as O(user) and with O(environment), and marks it by how the command ended.
    type: str
    choices: [shown, done, open, run]
    default: shown
  remark:
    description: What there is to say of it, for the record.
    type: str
    default: ''
  operator:
    description: Who, for the record.
    type: str
    default: ''
  timeout:
    description: Seconds that the command may take.
    type: int
    default: 3600
  user:
    description: User that the command runs as, C(app_user).
    type: str
  environment:
    description: The variables of C(app_environment), as one JSON object in a string. They are kept out of all output.
    type: str
  settings_module:
    description: C(app_settings_module).
    type: str
    default: ''
  name:
    description: The application's name, C(app_name).
    type: str
    default: ''
  stage:
    description: The stage of the inventory, C(app_stage).
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: What is due
  runbook.deploy.due_task:
    root: /srv/shop

- name: The report of the first day was looked at
  runbook.deploy.due_task:
    root: /srv/shop
    task: look at the metrics
    state: done
    operator: ann
"""

RETURN = r"""
deployment:
  description: Id of the deployment whose tasks these are.
  returned: always
  type: str
tasks:
  description:
    - The tasks, soonest first, as C(name), C(due), C(command), C(note), C(state) (C(open), C(done) or C(failed)), C(done_at), C(done_by)
      and C(remark), besides C(overdue) and C(words), the same in a line for people.
  returned: always
  type: list
  elements: dict
record:
  description: The record as it is now, without its token.
  returned: always
  type: dict
output:
  description: The last lines of the command's output; empty where none ran.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._due_task import OPTIONS, perform
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem, of_system


def main() -> None:
    module = AnsibleModule(
        argument_spec=OPTIONS,
        required_if=[("state", state, ["task"]) for state in ("done", "open", "run")],
        supports_check_mode=True,
    )
    try:
        answer = perform(module.params, module.check_mode)
    except Problem as problem:
        module.fail_json(**problem.answer())
    except OSError as error:
        module.fail_json(**of_system(error, module.params["root"]).answer())
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
