#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: feature_flags_report
short_description: Show the feature flags of every host, in one table
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Shows, on the controller, what the hosts answered to M(runbook.deploy.feature_flags), and how long a switch took.
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
  flags:
    description: The flags, C(app_flags).
    type: dict
    required: true
  answers:
    description: What each host answered, by its name.
    type: dict
    required: true
  failures:
    description: Why it failed on a host, by its name.
    type: dict
    default: {}
  switched:
    description: What was asked for; empty where the flags are only shown.
    type: str
    default: ''
  left_out:
    description: Hosts of the application that took no part.
    type: list
    elements: str
    default: []
  begun:
    description: When it began, in seconds since 1970.
    type: float
  store:
    description: Directory of the controller that gets the history of the switches (C(app_report_store)), as C(flags.json); empty for none.
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: Show the table
  runbook.deploy.feature_flags_report:
    application: shop
    stage: production
    flags: "{{ app_flags }}"
    answers: "{{ {'web1': flags_answer} }}"
"""

RETURN = r"""
text:
  description: What was shown.
  returned: always
  type: str
seconds:
  description: How long it took since it began.
  returned: always
  type: float
"""
