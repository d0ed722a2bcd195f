#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: deployment_history
short_description: Show past deployments from the records of every host
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Shows, on the controller, what the hosts answered to M(runbook.deploy.deployment_record) with C(state=read), as one table.
  - Where hosts disagree, do not answer, or have records that cannot be read or are another application's, it is said below the table.
attributes:
  check_mode:
    support: full
    description: Nothing is changed; O(path) is not written.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: full
    description: The same answers give the same table.
options:
  application:
    description: Name of the application.
    type: str
    required: true
  stage:
    description: Stage of the inventory.
    type: str
    required: true
  answers:
    description: What each host answered, by its name; null for a host that did not.
    type: dict
    required: true
  primary:
    description: Name of the host whose record is the whole story.
    type: str
    required: true
  deployment:
    description: Id of the only deployment to show, whole or its beginning; all of them when empty.
    type: str
    default: ''
  limit:
    description: How many deployments to show, the newest first.
    type: int
    default: 20
  format:
    description: V(table) for people, V(json) for programs.
    type: str
    choices: [table, json]
    default: table
  path:
    description: File of the controller that gets the same.
    type: path
"""

EXAMPLES = r"""
- name: Show the last ten deployments
  runbook.deploy.deployment_history:
    application: shop
    stage: production
    primary: web1
    limit: 10
    answers:
      web1: "{{ records_of_web1 }}"
"""

RETURN = r"""
text:
  description: What was shown.
  returned: success
  type: str
history:
  description:
    - C(deployments), the records, newest first, with C(hosts) (the verdict that each host has) and C(differs) (in what the hosts
      disagree); and C(problems), what could not be read.
  returned: success
  type: dict
"""
