#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: maintenance_report
short_description: Tell monitoring of a maintenance, and show what every host has
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Runs on the controller. Makes the calls of O(monitoring) for O(event), all at the same time; one that fails is a warning and stands in
    RV(told), and never fails the task.
  - With O(show) it prints what the hosts answered to M(runbook.deploy.maintenance), and what O(url) says from the controller.
attributes:
  check_mode:
    support: full
    description: Nobody is told.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: none
    description: Who is told twice is told twice.
options:
  application:
    description: Name of the application.
    type: str
    required: true
  stage:
    description: Stage of the inventory.
    type: str
    required: true
  monitoring:
    description:
      - Who is told, C(app_maintenance_monitoring). Each has a C(name), C(begin) and C(end) with C(url), C(method) (V(POST) by default) and
        C(body), and may have C(headers), C(timeout) (10 seconds) and C(ca_path).
      - In addresses and bodies are replaced C({event}), C({application}), C({stage}), C({id}), C({operator}), C({reason}), C({time}),
        C({until}), C({expected}) (seconds, empty where nobody knows) and C({seconds}).
    type: list
    elements: dict
    default: []
  event:
    description: What they are told; nothing by default.
    type: str
    choices: ['', begin, end]
    default: ''
  deployment:
    description: Id of the deployment, C({id}).
    type: str
    default: ''
  operator:
    description: Who does it.
    type: str
    default: ''
  reason:
    description: Why.
    type: str
    default: ''
  expires:
    description: Seconds from now to the end at the latest, for C({until}), as far as O(expected) does not need more.
    type: int
    default: 3600
  expected:
    description: Seconds for which it is expected to last, as M(runbook.deploy.maintenance) has it; V(0) where nobody knows.
    type: float
    default: 0
  afterwards:
    description: Seconds that what follows may take, as M(runbook.deploy.maintenance) has it.
    type: int
    default: 0
  answers:
    description: What each host answered, by its name.
    type: dict
    default: {}
  failures:
    description: Why it failed on a host, by its name.
    type: dict
    default: {}
  url:
    description: Public address of the application.
    type: str
    default: ''
  reached:
    description: Fails where the controller gets 503 at O(url).
    type: bool
    default: false
  show:
    description: Prints the table.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Tell monitoring that it begins
  runbook.deploy.maintenance_report:
    application: shop
    stage: production
    event: begin
    monitoring:
      - name: alerts
        begin: {url: "https://alerts.example.org/silence", body: {job: "{application}", until: "{until}"}}
        end: {url: "https://alerts.example.org/silence", method: DELETE}
"""

RETURN = r"""
told:
  description: The C(event), who was told (C(sent)), and who was not, with C(name) and C(message) (C(unsent)).
  returned: success
  type: dict
outside:
  description: What O(url) answered here, with C(status), C(retry_after), C(content_type) and C(error); empty where it was not asked.
  returned: success
  type: dict
text:
  description: What was shown.
  returned: with O(show)
  type: str
"""
