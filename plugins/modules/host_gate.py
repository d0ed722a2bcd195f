#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_gate
short_description: Prove that a host can take a deployment
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Asks at the same time for free space, inodes, memory, load, the clock, the interpreter, environment variables, names in the
    DNS, ports and certificates, and holds what it finds against what is expected.
  - What could not be asked is V(inconclusive), never a pass.
extends_documentation_fragment:
  - runbook.deploy.gate
attributes:
  check_mode:
    support: full
    description: It only looks.
  diff_mode:
    support: none
    description: There is nothing to show.
  idempotent:
    support: full
    description: Never reports a change.
options:
  checks:
    description:
      - What to ask. Each item is a mapping with one of the subjects below, and C(name), C(severity) (V(critical) (default), V(degraded),
        V(minor)) and C(timeout) in seconds (10).
      - C(disk), a path, with C(free) (such as C(> 2GB); C(GiB) is binary), C(free_percent), C(inodes) or C(inodes_percent).
      - C(memory) (no value) with C(free) or C(free_percent) of what is available; C(load) with C(average) of the last minute.
      - C(clock), the difference to O(controller_time), such as C(< 5s). The seconds that a task needs to begin are forgiven.
      - C(python), an interpreter, with C(version), such as C(>= 3.11).
      - C(variables), names that O(environment) must have with a value; C(example), a file of O(commit) such as C(.env.example)
        that names them; C(optional), names that may be missing.
      - C(dns), a name, with C(addresses), all that it may lead to.
      - C(port), such as V(127.0.0.1:6379), must accept a connection.
      - C(tls), such as V(shop.example.org:443), with C(days) that the certificate must be valid, and C(host), the name that it must carry.
    type: list
    elements: dict
    required: true
  environment:
    description: The application's environment, a JSON object in one string. Values are never shown.
    type: str
  controller_time:
    description: Seconds since 1970 on the controller, read when the task begins.
    type: float
  ca_path:
    description: File with the certificates of the authorities to trust instead of the system's.
    type: path
  repository:
    description: Bare repository that C(example) is read from, with O(commit).
    type: path
  commit:
    description: Commit that C(example) is read from, with O(repository).
    type: str
"""

EXAMPLES = r"""
- name: The host can take a deployment
  runbook.deploy.host_gate:
    environment: "{{ app_environment | to_json }}"
    controller_time: "{{ now().timestamp() }}"
    checks:
      - disk: /srv/shop
        free: "> 2GB"
        inodes_percent: "> 5%"
      - clock: < 5s
      - python: python3
        version: ">= 3.11"
      - variables: [SECRET_KEY, DATABASE_URL]
      - dns: shop.example.org
        addresses: [192.0.2.10]
      - tls: shop.example.org:443
        days: 14
        severity: degraded
"""

RETURN = r"""
passed:
  description: Whether the gate passed.
  returned: always, except for wrong options
  type: bool
verdict:
  description: V(pass), V(fail) or V(inconclusive).
  returned: always, except for wrong options
  type: str
checks:
  description: Each check, of the last attempt.
  returned: always, except for wrong options
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
    verdict:
      description: V(pass), V(fail) or V(inconclusive).
      type: str
    severity:
      description: V(critical), V(degraded) or V(minor).
      type: str
    observed:
      description: What was found.
      type: str
    expected:
      description: What had to be found.
      type: str
    message:
      description: A sentence that says what was asked, found and expected, and what to do; empty for a check that passed.
      type: str
    seconds:
      description: How long it took.
      type: float
    repeat:
      description: The command that asks the same by hand; empty where there is none.
      type: str
    waived:
      description: Reason, approver and last day of the waiver; only where there is one and the check did not pass.
      type: dict
failing:
  description: Names of the critical checks that did not pass.
  returned: always, except for wrong options
  type: list
  elements: str
degraded:
  description: Names of those of lower severity that did not pass; they fail nothing.
  returned: always, except for wrong options
  type: list
  elements: str
attempts:
  description: How often the checks were asked.
  returned: always, except for wrong options
  type: int
streak:
  description: How often in a row they had passed at the end.
  returned: always, except for wrong options
  type: int
seconds:
  description: How long the gate took.
  returned: always, except for wrong options
  type: float
reason:
  description: Why the gate ended without passing, in a sentence.
  returned: always, except for wrong options
  type: str
evidence:
  description: What every check that did not pass has to say, one line each.
  returned: on failure
  type: str
"""

from ansible_collections.runbook.deploy.plugins.module_utils._entry import run_module
from ansible_collections.runbook.deploy.plugins.module_utils._host_gate import OPTIONS, RULES, perform


def main() -> None:
    """Run the module."""
    run_module(OPTIONS, RULES, perform)


if __name__ == "__main__":
    main()
