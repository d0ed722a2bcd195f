#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: feature_flags
short_description: Show and switch feature flags
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Shows and switches the feature flags of an application without a deployment, wherever they are kept, in a file of variables,
    behind commands of the application, in a table of its database, or by a service over HTTP.
  - Every switch is proved by reading the flags back, and recorded in C(deployments/flags.jsonl) below O(root), before it begins and when it
    has ended. Two switches on one host wait for each other.
  - A switch that cannot be done as a whole is taken back. O(all_off) is the way out of trouble and goes on instead; what is off stays off,
    and the others are named.
  - A running deployment is named, and not waited for.
attributes:
  check_mode:
    support: full
    description: Reads the flags and says what would change.
  diff_mode:
    support: full
    description: Shows the values of the flags.
  idempotent:
    support: full
    description: Flags that are what they are to be are left alone, and nothing is recorded.
options:
  root:
    description: The application's directory on the host, C(app_root).
    type: path
    required: true
  flags:
    description:
      - The flags, C(app_flags), a mapping with C(store), C(flags), a list of their names, C(stages), a mapping of stages to mappings of flags
        to values (a flag that a stage does not name is off), and C(all_off), the value of off, by default V(false).
      - C(store) has C(kind). V(environment_file) has C(path), and C(reload), a service of the application that is sent SIGHUP.
        V(command) has C(show) and C(set), lists of words that are run in the release that is current, with C({name}) and C({value}) in them.
        V(sql) has C(table), C(name_column) and C(value_column) in O(database).
        V(http) has C(url), C(method), C(body), C(headers), C(show), C(read), a path in the answer's JSON, and C(ca_path).
      - All but the file may have C(values), a mapping of values to what is kept for them.
    type: dict
    required: true
  state:
    description:
      - V(shown) reads.
      - V(switched) makes the flags those of O(stage), those of O(values), or all off.
      - V(taken_back) makes what O(switch) changed what it was before, but for what somebody has switched since.
    type: str
    choices: [shown, switched, taken_back]
    default: shown
  stage:
    description: Stage of O(flags).
    type: str
  values:
    description: Flags with their new values; the others stay as they are.
    type: dict
  all_off:
    description: Whether all flags are switched off.
    type: bool
    default: false
  switch:
    description: Id of the switch to take back, as RV(switch).
    type: str
  reason:
    description: Why, for the history.
    type: str
    default: ""
  operator:
    description: Who, for the history.
    type: str
    default: ""
  host:
    description: Name of this host, for the history.
    type: str
    default: ""
  token:
    description: Token for the service of the flags, sent as C(Authorization) unless a header names C({token}).
    type: str
  user:
    description: User that the application's commands run as, C(app_user).
    type: str
  environment:
    description: The variables of C(app_environment), as one JSON object in a string. They are kept out of all output.
    type: str
  name:
    description: The application's name, C(app_name).
    type: str
    default: ""
  application_stage:
    description: The stage of the inventory, C(app_stage).
    type: str
    default: ""
  settings_module:
    description: C(app_settings_module), for commands.
    type: str
    default: ""
  database:
    description: The application's database, C(app_database), for flags in a table.
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
  timeout:
    description: Seconds for each command, request or transaction, and for another switch on this host to end.
    type: float
    default: 30
"""

EXAMPLES = r"""
- name: Show the flags
  runbook.deploy.feature_flags:
    root: /srv/shop
    flags: "{{ app_flags }}"

- name: Let the staff see the new search
  runbook.deploy.feature_flags:
    root: /srv/shop
    flags:
      store: {kind: environment_file, path: /srv/shop/shared/flags.env, reload: web}
      flags: [NEW_SEARCH, BULK_ORDERS]
      stages:
        dormant: {}
        internal: {NEW_SEARCH: staff}
        complete: {NEW_SEARCH: everybody, BULK_ORDERS: "true"}
    state: switched
    stage: internal
    operator: ann
    reason: first day

- name: Everything off
  runbook.deploy.feature_flags:
    root: /srv/shop
    flags: "{{ app_flags }}"
    database: "{{ app_database }}"
    state: switched
    all_off: true
"""

RETURN = r"""
flags:
  description: Value of each flag, read after the switch; null for one that is not there. In check mode what they would be.
  returned: always, except for wrong options
  type: dict
before:
  description: Value of each flag before.
  returned: O(state=switched) or O(state=taken_back)
  type: dict
changes:
  description: For each flag that was switched its value before and after.
  returned: O(state=switched) or O(state=taken_back)
  type: dict
stage:
  description: The stage that the values are, null where they are none.
  returned: success
  type: str
all_off:
  description: Whether every flag is off.
  returned: success
  type: bool
place:
  description: Where the flags are kept.
  returned: success
  type: str
shared:
  description: Whether all hosts see the same.
  returned: success
  type: bool
switch:
  description: Id of the switch in the history; null where nothing was switched.
  returned: O(state=switched) or O(state=taken_back)
  type: str
applied:
  description: What the application was told.
  returned: when something was switched
  type: str
running:
  description: The deployment that is running on this host, null where there is none.
  returned: success
  type: dict
history:
  description: File of the history on the host.
  returned: success
  type: str
switches:
  description: The newest switches on this host, oldest first, with C(id), C(begun), C(finished), C(operator), C(reason), C(action), C(changes) and C(verdict).
  returned: O(state=shown)
  type: list
  elements: dict
recorded:
  description: The same after a switch, or one that failed, that one included.
  returned: O(state=switched) and O(state=taken_back)
  type: list
  elements: dict
seconds:
  description: How long it took.
  returned: success
  type: float
evidence:
  description: Output that proves a failure.
  returned: failure
  type: str
"""

from ansible_collections.runbook.deploy.plugins.module_utils._entry import run_module
from ansible_collections.runbook.deploy.plugins.module_utils._flags import OPTIONS, RULES, perform


def main() -> None:
    """Run the module."""
    run_module(OPTIONS, RULES, perform)


if __name__ == "__main__":
    main()
