#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: staging_proof
short_description: Refuse a commit that staging has not proved
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Looks, on the controller, through the copies of staging's records in its C(app_report_store).
  - The newest deployment of the commit there has to be a success, not too old, and where that is asked for a rollback of such a
    deployment has to have succeeded. A file that is no record proves nothing; one that is newer than the success stands in the way.
  - The check is called C(staging_proof) and can be waived by that name.
attributes:
  check_mode:
    support: full
    description: Nothing is changed.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: full
    description: The same records give the same answer.
options:
  proof:
    description:
      - What is asked for (C(app_staging_proof)).
      - The keys are C(store) (directory of the controller, staging's C(app_report_store)), C(environment) (its C(app_stage), C(staging) by
        default), C(application) (its C(app_name), where it is another one), C(require) (C(success), the default, or
        C(success_and_rollback)) and C(max_age_days) (C(0), the default, for any age).
    type: dict
    required: true
  application:
    description: Name of the application.
    type: str
    required: true
  commit:
    description: The commit that is to be deployed.
    type: str
    required: true
  version:
    description: The version that was asked for, for messages.
    type: str
    default: ''
  waivers:
    description: Checks that may fail (C(app_gate_waivers)), as C(check), C(reason), C(approver) and C(until).
    type: list
    elements: dict
    default: []
"""

EXAMPLES = r"""
- name: Only what was deployed and rolled back on staging within two weeks
  runbook.deploy.staging_proof:
    proof: {store: reports, environment: staging, require: success_and_rollback, max_age_days: 14}
    application: shop
    commit: 0123456789abcdef0123456789abcdef01234567
"""

RETURN = r"""
passed:
  description: Whether the commit is proved, or nobody asks for it because of a waiver.
  returned: always
  type: bool
verdict:
  description: C(pass) or C(fail).
  returned: always
  type: str
checks:
  description: The one check, with what was observed and expected.
  returned: always
  type: list
  elements: dict
failing:
  description: Names of the critical checks that did not pass.
  returned: always
  type: list
  elements: str
degraded:
  description: Names of the others that did not.
  returned: always
  type: list
  elements: str
"""
