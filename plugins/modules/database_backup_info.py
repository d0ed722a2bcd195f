#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: database_backup_info
short_description: List the backups of the application's database, and see whether they can be restored
version_added: 0.1.0
author: The runbook.deploy authors (@runbook-deploy)
description:
  - Lists what M(runbook.deploy.database_backup) has made, with the versions whose deployments named each backup.
  - With O(database) also what restores have put aside beside it, with sizes, and what of that the next deployment removes.
  - With O(verify) the bytes of backups are compared with their manifests, or they are restored into a scratch database, compared
    completely, and the scratch database is removed.
extends_documentation_fragment:
  - runbook.deploy.database
attributes:
  check_mode:
    support: full
    description: Nothing is restored; V(restore) is V(checksum) then.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: full
    description: Nothing that exists is changed.
options:
  root:
    description: The directory of the application, C(app_root).
    type: path
    required: true
  user:
    description: The application's user, who gets the scratch database. The present user when not given.
    type: str
  verify:
    description: What to do with the backups of O(ids), V(none) only lists.
    type: str
    choices: [none, checksum, restore]
    default: none
  ids:
    description: The backups to verify. The newest one when not given; V(all) stands for every one.
    type: list
    elements: str
    default: []
  keep_former_days:
    description: Days after which what restores have put aside is removed by a deployment; V(0) for never.
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: List the backups
  runbook.deploy.database_backup_info:
    root: /srv/shop

- name: Restore the newest one for a trial
  runbook.deploy.database_backup_info:
    root: /srv/shop
    user: shop
    database:
      engine: sqlite
      path: /srv/shop/shared/db.sqlite3
    verify: restore
"""

RETURN = r"""
backups:
  description: The backups, newest first.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Its name.
      type: str
    kind:
      description: V(deployment), V(manual) or V(safety).
      type: str
    engine:
      description: The engine of the database.
      type: str
    size:
      description: The bytes of the dump.
      type: int
    created:
      description: When it was begun, in UTC.
      type: str
    deployment:
      description: The deployment that took it.
      type: str
    verified:
      description: How it was verified when it was taken.
      type: str
    heads:
      description: The last migration of each application.
      type: dict
    sha256:
      description: The checksum of the dump.
      type: str
    versions:
      description: The versions whose deployments named it.
      type: list
      elements: str
states:
  description: What was found of each backup that was verified, V(intact), V(restored) or V(FAILED).
  returned: always
  type: dict
former:
  description: What restores have put aside beside the database, newest first; asked for with O(database) and O(verify=none).
  returned: always
  type: list
  elements: dict
  contains:
    kind:
      description: V(file), V(database) or V(schema).
      type: str
    name:
      description: Its name, or where the file is.
      type: str
    made:
      description: When it was put aside, in UTC.
      type: str
    size:
      description: Its bytes; null where the server does not say.
      type: int
    state:
      description:
        - V(newest) and V(pinned) (a recent record names it) stay, V(kept) is not old enough or nothing is ever removed.
        - V(surplus) is removed by the next deployment. No restore of this host has noted V(foreign), which is never touched.
      type: str
text:
  description: The same as a table for people.
  returned: always
  type: str
failures:
  description: A sentence for each backup that is not what it should be.
  returned: always
  type: list
  elements: str
evidence:
  description: The same, one line each.
  returned: failure
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._backup import backups_locked
from ansible_collections.runbook.deploy.plugins.module_utils._database import (
    ADMIN_OPTION,
    OPTIONAL_DATABASE,
    engine_of,
    named,
)
from ansible_collections.runbook.deploy.plugins.module_utils._inventory import former, survey
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem, of_system
from ansible_collections.runbook.deploy.plugins.module_utils._retention import list_backups


def look(options: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Do what the module's *options* ask for; return its answer."""
    layout = Layout(options["root"])
    database = named(options["database"])
    how = options["verify"]
    if how == "none":
        answer = {**survey(layout, None, [], how, None), "former": []}
        if database is not None:
            engine = engine_of(database, options["database_admin"], options["user"])
            answer["former"], text = former(layout, engine, options["keep_former_days"])
            answer["text"] = "\n".join([answer["text"], *text])
        return answer
    if database is None:
        raise Problem(
            "The option database is missing: what is restored for a trial needs the engine of app_database."
        )
    engine = engine_of(database, options["database_admin"], options["user"])
    there = [name for name, _created in list_backups(layout)]
    wanted = there if options["ids"] == ["all"] else options["ids"] or there[:1]
    if check_mode:
        return {**survey(layout, engine, wanted, "checksum", options["user"]), "former": []}
    with backups_locked(layout):
        return {**survey(layout, engine, wanted, how, options["user"]), "former": []}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "user": {"type": "str"},
            "database": OPTIONAL_DATABASE,
            "database_admin": ADMIN_OPTION,
            "verify": {"type": "str", "choices": ["none", "checksum", "restore"], "default": "none"},
            "ids": {"type": "list", "elements": "str", "default": []},
            "keep_former_days": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    try:
        answer = look(module.params, module.check_mode)
    except Problem as problem:
        module.fail_json(**problem.answer())
    except OSError as error:
        module.fail_json(**of_system(error, module.params["root"]).answer())
    if answer["failures"]:
        module.fail_json(msg=" ".join(answer["failures"]), evidence="\n".join(answer["failures"]), **answer)
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
