#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: watch
short_description: Ask again and again for a while whether an application still works
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Asks its checks every O(interval) seconds for O(duration) seconds.
  - Triggers, and fails, when a critical check failed O(failures) times in a row, or could not be asked O(unknowns) times in a row.
  - Fails at the end, too, when a critical check did not pass then; the window must not close over a failure that just began.
attributes:
  check_mode:
    support: full
    description: It only reads.
  diff_mode:
    support: none
    description: There is nothing to show.
  idempotent:
    support: full
    description: Never reports a change.
options:
  duration:
    description: Seconds to watch. They are outlived by at most one round of checks.
    type: float
    default: 1800
  interval:
    description: Seconds from the beginning of one round to the next.
    type: float
    default: 30
  initial_delay:
    description: Seconds before the first round, besides O(duration).
    type: float
    default: 0
  failures:
    description: So many failures of a check in a row trigger.
    type: int
    default: 3
  unknowns:
    description: So many rounds in a row in which a check could not be asked trigger.
    type: int
    default: 5
  timeout:
    description: Seconds for each round of checks.
    type: float
    default: 10
  checks:
    description: Checks of M(runbook.deploy.http_gate) at O(address) that only read.
    type: list
    elements: dict
    default: []
  address:
    description: Public address of the application; required with O(checks).
    type: str
  headers:
    description: Headers of every request to the address.
    type: dict
    default: {}
  placeholders:
    description: Values of C(commit), C(release), C(version) and C(deployment) in O(checks).
    type: dict
    default: {}
  secrets:
    description: Values of C({secret.name}), a JSON object in one string. They are hidden in all that the module returns.
    type: str
  gates:
    description: Checks of M(runbook.deploy.gates); those of the moment V(watch) are asked.
    type: list
    elements: dict
    default: []
  waivers:
    description: Checks that may fail, as for M(runbook.deploy.gates).
    type: list
    elements: dict
    default: []
  root:
    description: The application's directory on the host, C(app_root); without it no journal is kept.
    type: path
  phase:
    description: Name of the phase in the journal.
    type: str
    default: watch
  record:
    description: The deployment whose journal is kept, as returned by M(runbook.deploy.deployment_record).
    type: dict
  before:
    description: What M(runbook.deploy.gates) returned as RV(runbook.deploy.gates#module:before) before the deployment, to compare with.
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
  settings_module:
    description: C(app_settings_module), for commands.
    type: str
    default: ""
  repository:
    description: Bare repository of the application.
    type: path
  commit:
    description: Commit that is live.
    type: str
"""

EXAMPLES = r"""
- name: Half an hour in which the site has to stay well
  runbook.deploy.watch:
    address: https://shop.example.org
    checks:
      - url: /healthz/
        max_seconds: 2
    gates:
      - name: space
        disk: /srv/shop
        free: "> 1GB"
        moments: [watch]
  delegate_to: localhost
"""

RETURN = r"""
passed:
  description: Whether nothing triggered and all critical checks passed at the end.
  returned: always, except for wrong options
  type: bool
verdict:
  description: V(pass), V(fail) or V(inconclusive).
  returned: always, except for wrong options
  type: str
checks:
  description: Each check at the end, or those that triggered, as M(runbook.deploy.gates) returns them.
  returned: always, except for wrong options
  type: list
  elements: dict
rows:
  description: What was seen of each check over the whole time.
  returned: always, except for wrong options
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
    asked:
      description: How often it was asked.
      type: int
    failed:
      description: How often it failed.
      type: int
    inconclusive:
      description: How often it could not be asked.
      type: int
    longest_failure:
      description: The longest row of failures.
      type: int
    share:
      description: The share of answers that passed, 0 to 1; null when it could never be asked.
      type: float
not_asked:
  description: Names of the checks that were left out, because of check mode or because there is nothing to compare with.
  returned: always, except for wrong options
  type: list
  elements: str
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
seconds:
  description: How long it watched.
  returned: always, except for wrong options
  type: float
reason:
  description: When it triggered; empty where nothing did.
  returned: always, except for wrong options
  type: str
evidence:
  description: What every check that did not pass has to say, one line each.
  returned: on failure
  type: str
"""

from ansible_collections.runbook.deploy.plugins.module_utils._entry import run_module
from ansible_collections.runbook.deploy.plugins.module_utils._watch import OPTIONS, RULES, perform


def main() -> None:
    """Run the module."""
    run_module(OPTIONS, RULES, perform)


if __name__ == "__main__":
    main()
