#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: app_beat
short_description: Stop the beats of a host before the workers of any host, and start them after all
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Where an application has several hosts, its beat is stopped before a worker of any of them is stopped, and started when the workers of
    all are up, so that exactly one beat ever runs and nothing is sent that nobody takes. M(runbook.deploy.app_service) with
    O(runbook.deploy.app_service#module:beats=apart) leaves that to this module.
  - On a single host M(runbook.deploy.app_service) alone keeps that order.
  - With O(workers) the workers of the host stand still, too, as they have to while the database is changed under a maintenance page.
attributes:
  check_mode:
    support: full
    description: Says what would change, and starts and stops nothing.
  diff_mode:
    support: none
    description: What was stopped is in the answer.
  idempotent:
    support: full
    description: Beats that are as they should be are left alone.
options:
  root:
    description: Directory on the host that holds everything (C(app_root)).
    type: path
    required: true
  name:
    description: Name of the application. Units are called C(<name>-<stage>-<service>@<deployment>.service).
    type: str
    default: ''
  stage:
    description: Stage, such as production.
    type: str
    default: ''
  user:
    description: The user the services run as; the present one when it is not given.
    type: str
  state:
    description:
      - V(stopped) stops the beats of all instances on this host, and fails where another one of the application is left.
      - V(started) starts the beats of the live instance, stops those of others, and fails where one does not stay up.
      - Where nothing of ours is live, V(started) starts nothing.
    type: str
    choices: [started, stopped]
    required: true
  workers:
    description:
      - Also the workers. They are stopped after the beats, those of Celery when they have finished the tasks that they have, and started before
        them, and have to answer.
    type: bool
    default: false
  start_timeout:
    description: Seconds a beat or worker may take until it runs.
    type: float
    default: 60
  stay_up:
    description: Seconds that what was started must stay up.
    type: float
    default: 5
  drain_timeout:
    description: Seconds that a worker may take to finish its tasks, where its service has no C(drain_timeout); then it is sent TERM.
    type: float
    default: 30
  record:
    description: The journal to write to, as M(runbook.deploy.deployment_record) returns it.
    type: dict
"""

EXAMPLES = r"""
- name: Stop the beats before the workers of any host
  runbook.deploy.app_beat:
    state: stopped
    root: /srv/shop
    name: shop
    stage: production
    user: shop

- name: Let nothing of the host touch the database
  runbook.deploy.app_beat:
    state: stopped
    workers: true
    drain_timeout: 300
    root: /srv/shop
    name: shop
    stage: production
    user: shop

- name: Start them when all workers are up
  runbook.deploy.app_beat:
    state: started
    root: /srv/shop
    name: shop
    stage: production
    user: shop
"""

RETURN = r"""
drained:
  description: What became of the Celery workers that were stopped, as M(runbook.deploy.app_service) returns it.
  returned: success
  type: list
  elements: dict
workers:
  description: The workers that run, or should run, on this host, as RV(beats); none without O(workers) or with O(state=stopped).
  returned: success
  type: list
  elements: dict
stopped:
  description: What was stopped, a text each.
  returned: success
  type: list
  elements: str
beats:
  description: The beats that run, or should run, on this host, with C(name), C(deployment), C(running), C(pid) and C(detail).
  returned: success
  type: list
  elements: dict
evidence:
  description: The last lines of the log of the beat that failed, without secrets.
  returned: failure
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import open_journal
from ansible_collections.runbook.deploy.plugins.module_utils._replace import start_beats, stop_beats
from ansible_collections.runbook.deploy.plugins.module_utils._service import Settings


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "name": {"type": "str", "default": ""},
            "stage": {"type": "str", "default": ""},
            "user": {"type": "str"},
            "state": {"type": "str", "choices": ["started", "stopped"], "required": True},
            "workers": {"type": "bool", "default": False},
            "start_timeout": {"type": "float", "default": 60},
            "stay_up": {"type": "float", "default": 5},
            "drain_timeout": {"type": "float", "default": 30},
            "record": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    options = module.params
    layout = Layout(options["root"])
    settings = Settings(
        layout=layout,
        name=options["name"],
        stage=options["stage"],
        user=options["user"],
        start_timeout=options["start_timeout"],
        stay_up=options["stay_up"],
        drain_timeout=options["drain_timeout"],
    )
    change = stop_beats if options["state"] == "stopped" else start_beats
    try:
        with open_journal(layout.root, options["record"] or None, module.check_mode, []) as journal:
            if module.check_mode:
                answer = change(settings, True, options["workers"])
            else:
                what = "workers and beats" if options["workers"] else "beats"
                with journal.phase(f"{what} {options['state']}") as entry:
                    answer = change(settings, False, options["workers"])
                    entry.update(stopped=answer["stopped"], beats=answer["beats"])
                    if options["workers"]:
                        entry.update(workers=answer["workers"], drained=answer["drained"])
    except Problem as problem:
        module.fail_json(**problem.answer())
    except OSError as error:
        module.fail_json(
            msg=f"app_beat could not read or write {error.filename or 'a file'} in {options['root']}: {error.strerror}; "
            "correct that and run again.",
            evidence="",
        )
    else:
        for text in [*answer.pop("warnings"), *(one["message"] for one in answer["drained"])]:
            if text:
                module.warn(text)
        module.exit_json(**answer)


if __name__ == "__main__":
    main()
