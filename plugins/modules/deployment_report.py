#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: deployment_report
short_description: End a run with its verdict
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Shows what a person needs to know at the end of a run, the verdict first.
  - Stores the record and a report in Markdown in a directory of the controller.
  - Fails when the deployment failed, after a successful rollback too.
attributes:
  check_mode:
    support: full
    description: Nothing is stored.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: full
    description: The same record gives the same report.
options:
  verdict:
    description: The verdict.
    type: str
    required: true
    choices: [success, no_change, checked, rolled_back, flags_off, abandoned, stopped, failed, refused]
  kind:
    description: What the run was.
    type: str
    default: deployment
    choices: [deployment, rollback]
  application:
    description: Name of the application.
    type: str
    required: true
  stage:
    description: Stage of the inventory.
    type: str
    required: true
  root:
    description: Directory on the hosts that holds everything.
    type: path
    required: true
  record:
    description: Record of the deployment, from the primary.
    type: dict
    default: {}
  states:
    description: What each host answered to M(runbook.deploy.deployment_state), by its name; null for a host that did not answer.
    type: dict
    default: {}
  primary:
    description: Name of the host that keeps the record.
    type: str
    default: ''
  failures:
    description: What failed, with C(host), C(phase), C(reason) and C(evidence) each.
    type: list
    elements: dict
    default: []
  plan:
    description: The decision of M(runbook.deploy.rollback_plan).
    type: dict
    default: {}
  forecast:
    description: What was decided before the start for each phase that could fail.
    type: list
    elements: dict
    default: []
  url:
    description: Public address of the application.
    type: str
    default: ''
  store:
    description: Directory of the controller; empty stores nothing.
    type: str
    default: ''
  notifications:
    description: What M(runbook.deploy.notification) answered in this run; kept in the stored record and shown in the report.
    type: list
    elements: dict
    default: []
  release_tag:
    description: What M(runbook.deploy.release_tag) answered as RV(runbook.deploy.release_tag#module:tag).
    type: dict
    default: {}
  before:
    description: The deployment before, as C(id), C(version) and C(gates), the values by moment and check, to be shown beside those of this one.
    type: dict
    default: {}
  unstored:
    description: Records of earlier runs that O(store) lacks (RV(runbook.deploy.deployment_record#module:unstored)); they are stored, too.
    type: list
    elements: dict
    default: []
  contacts:
    description: Whom to call when something went wrong, first to last, as C(role), C(name) and C(contact).
    type: list
    elements: dict
    default: []
  incident:
    description: Class of the incident, for the report after a rollback; empty where the report is to suggest one.
    type: str
    default: ''
    choices: ['', security, data_integrity, performance, system_failure]
"""

EXAMPLES = r"""
- name: End the run
  runbook.deploy.deployment_report:
    verdict: success
    application: shop
    stage: production
    root: /srv/shop
    store: reports
"""

RETURN = r"""
text:
  description: What was shown.
  returned: success
  type: str
report:
  description: Path of the report on the controller, or null.
  returned: success
  type: str
"""
