#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: contract
short_description: Check the application's variables and prepare the run
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Reads every variable of the host that starts with C(app_), on the controller and before any host is contacted.
  - Unknown names, wrong types and values that cannot work are reported all at once, each in one sentence.
  - Gives the variables that are not set their defaults, for the rest of the run.
  - Adds the host to the groups C(deploy_hosts) and C(deploy_primary) or C(deploy_others), which the later plays name.
attributes:
  check_mode:
    support: full
    description: Nothing on a host is read or changed.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: full
    description: The same variables give the same answer.
options:
  purpose:
    description: What the run is for; only V(deployment) needs a version.
    type: str
    default: deployment
    choices: [deployment, rollback, status, setup]
"""

EXAMPLES = r"""
- name: Check the contract
  runbook.deploy.contract:
    purpose: deployment
  changed_when: false
"""

RETURN = r"""
errors:
  description: What is wrong, one sentence each; only when the task fails.
  returned: failure
  type: list
  elements: str
  sample: ["app_databse is not a variable of the contract: did you mean app_database?"]
"""
