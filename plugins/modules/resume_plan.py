#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: resume_plan
short_description: Decide whether a deployment that was cut off is finished or undone
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - By itself, a deployment is finished only where its migrations ended well and every host serves it, as after a reboot. Then only
    later steps are open, such as the smoke test.
  - Where hosts are still to be restarted, it is finished when that is asked for. It is undone otherwise.
  - Runs on the controller and contacts no host.
attributes:
  check_mode:
    support: full
    description: It decides and changes nothing.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: full
    description: The same records and hosts give the same decision, in another process too.
options:
  states:
    description: What each host answered to M(runbook.deploy.deployment_state), by its name; null for a host that did not answer.
    type: dict
    required: true
  primary:
    description: Name of the host that migrates.
    type: str
    required: true
  asked:
    description:
      - V(finish) or V(undo), where somebody asks for it. To finish is refused where a part of it was not proved, or is not there.
    type: str
    default: ''
    choices: ['', finish, undo]
  inputs:
    description: The digest of the settings now (C(deploy_inputs)), by host. Those of the deployment are part of its release's name.
    type: dict
    default: {}
  framework:
    description: What migrates the database.
    type: str
    default: django
"""

EXAMPLES = r"""
- name: Decide
  runbook.deploy.resume_plan:
    states: {web1: "{{ measured.state }}"}
    primary: web1
  register: decided
"""

RETURN = r"""
plan:
  description: The decision.
  returned: always
  type: dict
  contains:
    way:
      description: V(nothing), V(finish), V(undo), or V(refuse) where it cannot be finished as was asked for.
      type: str
      sample: finish
    rule:
      description: The row of the table that chose it.
      type: str
      sample: every host serves it
    reason:
      description: Why.
      type: str
    facts:
      description: What the rows were held against.
      type: dict
    deployment:
      description: The deployment or rollback that was cut off.
      type: str
    kind:
      description: V(deployment) or V(rollback).
      type: str
    open:
      description: Hosts that do not serve it.
      type: list
      elements: str
    record:
      description: Its record on the primary; empty where that is not known.
      type: dict
sentence:
  description: The decision as a line.
  returned: always
  type: str
"""
