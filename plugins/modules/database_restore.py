#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: database_restore
short_description: Go back to a backup of the application's database, and keep the present one
version_added: 0.1.0
author: The runbook.deploy authors (@runbook-deploy)
description:
  - Restores a backup of M(runbook.deploy.database_backup) into a new database beside the live one, compares it with the
    backup's manifest, and exchanges the two by a rename. The former database is kept, and a full backup of it
    is taken first.
  - Inserted, changed and deleted rows since the backup are counted for each table. Where there are any, or where it
    cannot be known, nothing is changed without O(consent).
  - Processes of the application that still have the database open are stopped. Stop the services first, so that
    nothing starts these again. When another process has it open, nothing is changed.
attributes:
  check_mode:
    support: full
    description: Verifies the backup and counts what would be lost.
  diff_mode:
    support: none
    description: RV(lost) says what would be lost.
  idempotent:
    support: none
    description: Each run takes a safety backup and exchanges the database.
options:
  root:
    description: The directory of the application, C(app_root).
    type: path
    required: true
  user:
    description: The application's user, who gets the database where there is none whose owner could be taken over.
    type: str
  database:
    description: The database, C(app_database).
    type: dict
    required: true
    suboptions:
      engine:
        description: The engine, V(sqlite), V(postgresql) or V(mysql), which is also MariaDB; any other is refused.
        type: str
        required: true
      path:
        description: The absolute path of the file of an SQLite database. A link stays, the file it points to is exchanged.
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
        description: What a backup does with tables whose engine has no transactions, V(refuse) (default) or V(lock), which lets writers wait.
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
  database_admin:
    description:
      - The role that may make, rename and remove databases, C(app_database_admin), for engines with a server.
      - The role of O(database) when not given.
    type: dict
    suboptions:
      user:
        description: The role to log in as.
        type: str
      password:
        description: The password of the role.
        type: str
      os_user:
        description: The user of the operating system who may log in as that role through the local socket, such as C(postgres).
        type: str
  backup:
    description: The name of the backup, a directory in C(backups/).
    type: str
    required: true
  consent:
    description: Whether writes made since the backup may be lost.
    type: bool
    default: false
  stop_timeout:
    description: Seconds for the processes of the application to end before they are killed.
    type: float
    default: 10.0
  record:
    description: The deployment whose record this phase is written into, as returned by M(runbook.deploy.deployment_record).
    type: dict
"""

EXAMPLES = r"""
- name: Say what going back would lose
  runbook.deploy.database_restore:
    root: /srv/shop
    user: shop
    database:
      engine: sqlite
      path: /srv/shop/shared/db.sqlite3
    backup: 20261121T013700-ab12
    consent: true
  check_mode: true
  register: restore_preview

- name: Go back to the state before the deployment
  runbook.deploy.database_restore:
    root: /srv/shop
    user: shop
    database:
      engine: sqlite
      path: /srv/shop/shared/db.sqlite3
    backup: 20261121T013700-ab12
    consent: true
"""

RETURN = r"""
restored:
  description: The name of the backup that was restored.
  returned: success
  type: str
kept:
  description: Where the former database is kept; null when there was none, and in check mode.
  returned: success
  type: str
safety:
  description: The name of the backup of the former database; null when there was none, or it was damaged.
  returned: success
  type: str
lost:
  description:
    - For each table with changes since the backup the numbers of C(inserts), C(updates) and C(deletes), or C(unknown)
      with the reason. The tables of applied migrations do not count.
  returned: success, or when consent is missing
  type: dict
  sample: {"notes": {"inserts": 3, "updates": 1, "deletes": 0}}
stopped:
  description: The processes that were stopped because they had the database open.
  returned: success
  type: list
  elements: dict
  contains:
    pid:
      description: The process id.
      type: int
    started:
      description: When it was started, in clock ticks since boot.
      type: int
    command:
      description: Its command line.
      type: str
    ours:
      description: Whether it belonged to the application.
      type: bool
late:
  description: Processes that opened the former database while it was exchanged; what they wrote is in the kept one.
  returned: success
  type: list
  elements: dict
msg:
  description: What was done, or would be done, or why it failed, in one sentence.
  returned: always
  type: str
evidence:
  description: The differences that were found, at most 20 lines.
  returned: failure
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._backup import backups_locked
from ansible_collections.runbook.deploy.plugins.module_utils._database import (
    ADMIN_OPTION,
    DATABASE_OPTION,
    engine_of,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._losses import describe
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem, of_system
from ansible_collections.runbook.deploy.plugins.module_utils._record import open_journal
from ansible_collections.runbook.deploy.plugins.module_utils._restore import Order, preview, restore


def go_back(options: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Do what the module's *options* ask for; return its answer."""
    layout = Layout(options["root"])
    engine = engine_of(options["database"], options["database_admin"], options["user"])
    order = Order(
        backup=options["backup"],
        consent=options["consent"],
        user=options["user"],
        timeout=options["stop_timeout"],
        deployment=(options["record"] or {}).get("id"),
    )
    with (
        open_journal(layout.root, options["record"], check_mode) as journal,
        journal.phase("restore") as entry,
    ):
        if check_mode:
            answer = preview(layout, engine, order)
            done = "would be restored"
        else:
            with backups_locked(layout):
                answer = restore(layout, engine, order)
            done = "was restored"
        entry.update(answer)
    losses = describe(answer["lost"]) if answer["lost"] else "none"
    return {
        "changed": True,
        **answer,
        "msg": f"The backup {order.backup} {done} to {engine.place()}; writes lost: {losses}.",
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "user": {"type": "str"},
            "database": DATABASE_OPTION,
            "database_admin": ADMIN_OPTION,
            "backup": {"type": "str", "required": True},
            "consent": {"type": "bool", "default": False},
            "stop_timeout": {"type": "float", "default": 10.0},
            "record": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    try:
        answer = go_back(module.params, module.check_mode)
    except Problem as problem:
        module.fail_json(**problem.answer())
    except OSError as error:
        module.fail_json(**of_system(error, module.params["root"]).answer())
    for process in answer["late"]:
        module.warn(
            f"Process {process['pid']} ({process['command'][:80]}) opened the former database while it was exchanged: "
            f"restart it; what it wrote is in {answer['kept']}."
        )
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
