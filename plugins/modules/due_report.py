#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: due_report
short_description: Show the tasks that are due after a deployment
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Shows, on the controller, what M(runbook.deploy.due_task) answered, and writes what changed into the copy of the record.
  - Fails where that module failed.
attributes:
  check_mode:
    support: full
    description: The copy is left as it is.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: full
    description: The same answer gives the same lines and the same copy.
options:
  application:
    description: Name of the application.
    type: str
    required: true
  stage:
    description: Stage of the inventory.
    type: str
    required: true
  answer:
    description: What M(runbook.deploy.due_task) answered.
    type: dict
    required: true
  store:
    description: Directory of the controller with copies of records (C(app_report_store)); empty for none.
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: Show what is due
  runbook.deploy.due_report:
    application: shop
    stage: production
    answer: "{{ due }}"
"""

RETURN = r"""
text:
  description: What was shown.
  returned: when the tasks are known
  type: str
"""
