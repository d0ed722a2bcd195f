#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: database_backup
short_description: Take a backup of the application's database and prove it by restoring it
version_added: 0.1.0
author: The runbook.deploy authors (@runbook-deploy)
description:
  - Copies the database while it is used, into C(backups/<id>/) below O(root), with a manifest of its size, SHA-256,
    rows of each table and migration heads. The manifest is written last; a directory without one is no backup.
  - With O(verify=restore) the backup is restored into a scratch database, checked completely and compared with the
    manifest. The new code of a deployment runs against this scratch database first.
  - A database that does not exist yet is a state, not a fault. No backup is taken then, RV(backup.empty) is true, and
    the scratch database is one whose file does not exist yet.
  - Free bytes and inodes are checked before anything is written, and what a killed run has left is removed.
attributes:
  check_mode:
    support: full
    description: Says whether a backup would be taken, and how large it would be.
  diff_mode:
    support: none
    description: Nothing that exists is changed.
  idempotent:
    support: none
    description: Each run takes a new backup, unless O(when) says that none is needed.
options:
  root:
    description: The directory of the application, C(app_root).
    type: path
    required: true
  user:
    description: The application's user, who gets the scratch database. The present user when not given.
    type: str
  application:
    description: The application's name, for the manifest.
    type: str
    default: ""
  framework:
    description: What keeps the applied migrations. C(django) and C(alembic) refuse a database with tables and no rows.
    type: str
    choices: [django, alembic, command, none]
    default: django
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
  id:
    description:
      - The name of the backup. The deployment's id, or one made from the time, when not given.
      - When a backup of this name exists, C(-2) and so on is appended; no backup is ever overwritten.
    type: str
  when:
    description: Whether to take a backup V(always), only when there are pending V(migrations), or V(never).
    type: str
    choices: [always, migrations, never]
    default: always
  pending:
    description: Whether migrations are pending, for O(when=migrations).
    type: bool
    default: true
  verify:
    description:
      - V(restore) restores the backup into the scratch database and compares all of it with the manifest.
      - V(read) checks the whole backup without restoring it.
      - V(none) checks neither; the manifest says so.
    type: str
    choices: [restore, read, none]
    default: restore
  scratch:
    description:
      - The name of the directory below C(scratch/) for the scratch database, which is left there for later phases.
      - The deployment's id when not given. Without O(record) the scratch database is then removed after the comparison.
      - It is made also where O(when) or O(verify) ask for less, because the first run of new code needs a copy.
    type: str
  keep:
    description:
      - How many backups that belong to no deployment to keep; V(0) removes none.
      - The backups of deployments are kept and removed together with their records.
    type: int
    default: 0
  keep_days:
    description: With O(keep), days after which such a backup goes, too, except for the newest three; V(0) for none.
    type: int
    default: 0
  record:
    description: The deployment whose record this phase is written into, as returned by M(runbook.deploy.deployment_record).
    type: dict
"""

EXAMPLES = r"""
- name: Take a backup, and leave a scratch database for the new code
  runbook.deploy.database_backup:
    root: /srv/shop
    user: shop
    application: shop
    framework: django
    database:
      engine: sqlite
      path: /srv/shop/shared/db.sqlite3
    record: "{{ deploy_record }}"
  register: backup_result

- name: Take a backup by itself, and keep the newest seven of these
  runbook.deploy.database_backup:
    root: /srv/shop
    user: shop
    database:
      engine: sqlite
      path: /srv/shop/shared/db.sqlite3
    keep: 7
"""

RETURN = r"""
backup:
  description: The backup; null when O(when) asked for none.
  returned: success
  type: dict
  contains:
    id:
      description: Its name; null when the database is empty, and in check mode.
      type: str
    empty:
      description: Whether there was nothing to save, as before a first deployment.
      type: bool
    path:
      description: Its directory.
      type: str
    kind:
      description: V(deployment), V(manual) or V(safety), which is taken before a restore.
      type: str
    engine:
      description: The engine of the database.
      type: str
    size:
      description: The bytes of the dump; in check mode the bytes that it would need.
      type: int
    sha256:
      description: The checksum of the dump.
      type: str
    counts:
      description: The rows of each table, read from the backup.
      type: dict
    applied:
      description: The applied migrations as lists of application and name, in order; null when there is no table of them.
      type: list
      elements: list
    heads:
      description: The last migration of each application.
      type: dict
    verified:
      description: How it was verified, as O(verify).
      type: str
    integrity:
      description:
        - V(full), or V(partial) when indexes depend on functions or collations that only the application defines, or
          V(none) when it was not asked for.
      type: str
    foreign_key_violations:
      description: For each table the rows whose foreign key points nowhere; the live database has the same ones.
      type: dict
    created:
      description: When the backup was begun, in UTC.
      type: str
    seconds:
      description: How long it took with its verification.
      type: float
scratch:
  description: The scratch database, to be used instead of C(app_database); null when none was left.
  returned: success
  type: dict
  contains:
    engine:
      description: Its engine.
      type: str
    path:
      description: Its file.
      type: str
removed:
  description: The backups that O(keep) removed.
  returned: success
  type: list
  elements: str
msg:
  description: What was done, or would be done, or why it failed, in one sentence.
  returned: always
  type: str
evidence:
  description: The faults that were found, at most 20 lines.
  returned: failure
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._backup import (
    Request,
    backups_locked,
    copy_to_scratch,
    make_id,
    make_scratch,
    public,
    require_name,
    take,
)
from ansible_collections.runbook.deploy.plugins.module_utils._database import (
    ADMIN_OPTION,
    DATABASE_OPTION,
    Engine,
    engine_of,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem, of_system
from ansible_collections.runbook.deploy.plugins.module_utils._record import open_journal
from ansible_collections.runbook.deploy.plugins.module_utils._retention import prune_backups


def wanted(when: str, pending: bool) -> bool:
    """Return whether a backup is asked for: *pending* says whether there are migrations to apply."""
    return when == "always" or (when == "migrations" and pending)


def nothing_saved(engine: Engine, size: int, empty: bool) -> dict[str, Any]:
    """Return the value ``backup`` where none was taken: the database is *empty*, or this is check mode."""
    return {"id": None, "path": None, "empty": empty, "engine": engine.name, "size": size, "counts": {}, "applied": None, "heads": {}}  # fmt: skip


def back_up(options: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Do what the module's *options* ask for; return its answer."""
    layout = Layout(options["root"])
    engine = engine_of(options["database"], options["database_admin"], options["user"])
    deployment = (options["record"] or {}).get("id")
    backup_id = require_name(options["id"] or deployment or make_id(), "id")
    scratch = options["scratch"] or deployment or ""
    if scratch:
        require_name(scratch, "scratch")
    with (
        open_journal(layout.root, options["record"], check_mode) as journal,
        journal.phase("backup") as entry,
    ):
        if engine.exists() and not wanted(options["when"], options["pending"]):
            why = "never" if options["when"] == "never" else "migrations, and none is pending"
            answer = {
                "changed": False,
                "backup": None,
                "scratch": None,
                "removed": [],
                "msg": f"No backup was taken: it is asked for {why}.",
            }
            if scratch and not check_mode:
                with backups_locked(layout):
                    answer["scratch"] = copy_to_scratch(layout, engine, scratch, options["user"])
        elif not engine.exists():
            answer = {
                "changed": False,
                "backup": nothing_saved(engine, 0, True),
                "scratch": None,
                "removed": [],
                "msg": f"There is no database at {engine.place()} yet: this is a first deployment, nothing is to be saved.",
            }
            if scratch and not check_mode:
                with backups_locked(layout):
                    answer["scratch"] = make_scratch(layout, engine, None, scratch, options["user"])
        elif check_mode:
            size = engine.size()
            return {
                "changed": True,
                "backup": nothing_saved(engine, size, False),
                "scratch": None,
                "removed": [],
                "msg": f"A backup of {engine.place()} of at most {size} bytes would be taken into {layout.backups}.",
            }
        else:
            with backups_locked(layout):
                taken = take(
                    layout,
                    engine,
                    Request(
                        id=backup_id,
                        kind="deployment" if deployment else "manual",
                        framework=options["framework"],
                        verify=options["verify"],
                        scratch=scratch,
                        user=options["user"],
                        application=options["application"],
                        deployment=deployment,
                    ),
                )
                removed = []
                if options["keep"] > 0:
                    removed = prune_backups(layout, options["keep"], options["keep_days"])
            answer = {
                "changed": True,
                "backup": public(taken),
                "scratch": taken.scratch,
                "removed": removed,
                "msg": f"The backup {taken.manifest['id']} of {engine.place()} was taken: {taken.manifest['size']} bytes.",
            }
        entry["backup"] = answer["backup"]
        entry["scratch"] = answer["scratch"]
        journal.update(backup=answer["backup"] or {})
        return answer


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "user": {"type": "str"},
            "application": {"type": "str", "default": ""},
            "framework": {
                "type": "str",
                "choices": ["django", "alembic", "command", "none"],
                "default": "django",
            },
            "database": DATABASE_OPTION,
            "database_admin": ADMIN_OPTION,
            "id": {"type": "str"},
            "when": {"type": "str", "choices": ["always", "migrations", "never"], "default": "always"},
            "pending": {"type": "bool", "default": True},
            "verify": {"type": "str", "choices": ["restore", "read", "none"], "default": "restore"},
            "scratch": {"type": "str"},
            "keep": {"type": "int", "default": 0},
            "keep_days": {"type": "int", "default": 0},
            "record": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    try:
        answer = back_up(module.params, module.check_mode)
    except Problem as problem:
        module.fail_json(**problem.answer())
    except OSError as error:
        module.fail_json(**of_system(error, module.params["root"]).answer())
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
