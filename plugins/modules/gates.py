#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: gates
short_description: Ask gates of several kinds at the same time
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Asks all checks that are for this moment and this host at the same time, whatever their kind, in one execution.
  - At the moment V(preflight) it remembers on the primary what later moments compare with, RV(before). Logs (M(runbook.deploy.log_gate)) are
    marked, conditions of M(runbook.deploy.metrics_gate) on a baseline are measured, and checks of the kind V(http) with C(compare) are asked;
    that those fail stops nothing. Where no release is current below O(root), only logs are marked, and later what compares is left out.
  - What could not be asked is V(inconclusive), never a pass. Where nothing is to be asked, the gate passes with no RV(checks).
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
  gates:
    description:
      - Checks of several kinds. Each is a mapping with the keys of a check of its kind, and besides them
      - C(kind), V(host) by default (M(runbook.deploy.host_gate)), or V(command) (M(runbook.deploy.command_gate)), which is
        run in the release that is current below O(root), in its environment and as O(user),
        V(http) (a check of M(runbook.deploy.http_gate), no flow), at its own whole address or at O(address),
        V(metrics) (M(runbook.deploy.metrics_gate)), V(websocket) (M(runbook.deploy.websocket_gate)) at O(address),
        V(log) (M(runbook.deploy.log_gate)), from the mark of V(preflight) on, V(celery) (M(runbook.deploy.celery_gate)) below O(root),
        V(service) (M(runbook.deploy.service_gate)), with the services that are live below O(root),
        or V(sql) (M(runbook.deploy.sql_gate)), which asks O(database).
      - C(moments), some of V(preflight), V(smoke_test), V(watch) and V(rollback); by default V(preflight) for the kind V(host), else V(smoke_test).
      - C(where), V(all) hosts or V(primary); by default V(all) for the kind V(host), else V(primary).
    type: list
    elements: dict
    required: true
  moment:
    description: When this is; checks for other moments are not asked.
    type: str
    choices: [preflight, smoke_test, watch, rollback]
    required: true
  primary:
    description: Whether this host is the primary; checks for the primary are asked there only.
    type: bool
    default: true
  before:
    description: RV(before) of the moment V(preflight) of the same deployment, for all later moments.
    type: dict
    default: {}
  environment:
    description: The application's environment, a JSON object in one string. Values are never shown.
    type: str
  controller_time:
    description: Seconds since 1970 on the controller, read when the task begins.
    type: float
  ca_path:
    description: File with the certificates of the authorities to trust instead of the system's.
    type: path
  user:
    description: User that the application runs as; commands run as this user.
    type: str
  database:
    description: The application's database, C(app_database), for the kind V(sql).
    type: dict
    suboptions:
      engine:
        description: The engine, V(sqlite), V(postgresql) or V(mysql), which is also MariaDB; any other is refused.
        type: str
      path:
        description: The absolute path of the file of an SQLite database.
        type: path
      shared:
        description: Whether all hosts see this one file. It says so to the contract, and changes nothing here.
        type: bool
      name:
        description: The name of the database, for engines with a server.
        type: str
      host:
        description: The server's host.
        type: str
      port:
        description: The server's port.
        type: int
      user:
        description: The role to log in as.
        type: str
      password:
        description: The password of the role.
        type: str
      nontransactional:
        description: What a backup does with tables whose engine has no transactions; it changes nothing here.
        type: str
        choices: [refuse, lock]
      scratch:
        description: The server on which copies are tried, where that is another one; what is not given is as for the live database.
        type: dict
        suboptions:
          host:
            description: The server's host.
            type: str
          port:
            description: The server's port.
            type: int
          user:
            description: The role to log in as, which may make databases.
            type: str
          password:
            description: The password of the role.
            type: str
  address:
    description: Public address of the application, for checks of the kind V(http) that name a path.
    type: str
  placeholders:
    description: Values of C(commit), C(release), C(version) and C(deployment), for the kind V(http).
    type: dict
    default: {}
  secrets:
    description: Values of C({secret.name}), a JSON object in one string, for the kind V(http). They are hidden in all that the module returns.
    type: str
  settings_module:
    description: C(app_settings_module), for commands.
    type: str
    default: ""
  repository:
    description: Bare repository that C(example) is read from, with O(commit).
    type: path
  commit:
    description: Commit that C(example) is read from, with O(repository).
    type: str
"""

EXAMPLES = r"""
- name: Everything that has to be true before a deployment begins
  runbook.deploy.gates:
    moment: preflight
    primary: "{{ inventory_hostname == 'web1' }}"
    environment: "{{ app_environment | to_json }}"
    controller_time: "{{ now().timestamp() }}"
    gates:
      - disk: /srv/shop
        free: "> 2GB"
      - name: settings
        variables: [SECRET_KEY]
        where: primary
    waivers:
      - check: settings
        reason: comes with the next release
        approver: Ada
        until: 2026-12-31
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
not_asked:
  description: Names of the checks that were left out, because of check mode or because a first deployment has nothing to compare with.
  returned: always, except for wrong options
  type: list
  elements: str
before:
  description: What was remembered for O(before) of later moments; empty at those.
  returned: success
  type: dict
  contains:
    cursors:
      description: Marks of logs by the names of their checks. They have nothing of the logs in them.
      type: dict
    measured:
      description: Values by C(check.value).
      type: dict
    checks:
      description: Name, verdict and what was observed of each check with C(compare).
      type: list
      elements: dict
    first:
      description: Whether no release was current.
      type: bool
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
from ansible_collections.runbook.deploy.plugins.module_utils._gates import OPTIONS, RULES, perform


def main() -> None:
    """Run the module."""
    run_module(OPTIONS, RULES, perform)


if __name__ == "__main__":
    main()
