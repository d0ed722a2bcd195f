#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: deployment_status
short_description: Show what every host serves, in one table
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Shows, on the controller, what the hosts answered to M(runbook.deploy.deployment_state), and what needs attention.
attributes:
  check_mode:
    support: full
    description: Nothing is changed.
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
  root:
    description: Directory on the hosts that holds everything.
    type: path
    required: true
  states:
    description: What each host answered, by its name; null for a host that did not answer.
    type: dict
    required: true
  primary:
    description: Name of the host that keeps the record.
    type: str
    required: true
  url:
    description: Public address of the application.
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: Show the table
  runbook.deploy.deployment_status:
    application: shop
    stage: production
    root: /srv/shop
    states: "{{ states }}"
    primary: web1
"""

RETURN = r"""
text:
  description: What was shown.
  returned: always
  type: str
"""
