#!/usr/bin/python

# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: migration
short_description: Plan, verify, apply and reverse the migrations of a release
version_added: 0.1.0
description:
  - Runs the release's own code in one process of its own environment, as the application's user, with standard input
    closed and within a time limit.
  - Says of each pending migration whether it can be reversed, whether the old code runs on the new schema, and whether
    it throws data away. What is not proved is V(unknown).
  - Applies exactly the migrations that were verified, by the project's own C(migrate) command, signals included, or by its
    own C(env.py) of Alembic, and writes each step into the record, so that the record is right after a kill, too.
  - Reverses to a recorded set of applied migrations, one migration at a time, and never applies anything on the way.
  - With O(record), applying and reversing run in a process of its own session, which outlives the connection, the module and the
    controller, and keeps the lock as long as it works; M(runbook.deploy.deployment_resume) waits for it.
author:
  - The runbook.deploy authors (@runbook-deploy)
attributes:
  check_mode:
    support: partial
    description: New code runs in check mode only on a scratch database.
    details:
      - Otherwise it is reported that migrations would be applied, without asking the new code which.
      - With O(state=reversed) the release that has applied them says what would be reversed and lost.
  diff_mode:
    support: none
    description: The plan is returned as V(plan).
  idempotent:
    support: full
    description: Nothing is changed when nothing is pending, or nothing is to be taken back.
extends_documentation_fragment:
  - runbook.deploy.release_code
options:
  state:
    description:
      - V(planned) reads which migrations are applied and pending.
      - V(verified) besides runs the checks of C(check), of C(check --deploy) as warnings, and of
        C(makemigrations --check), and looks for conflicts. It needs O(database), because new code may change a
        database already while it starts.
      - V(applied) applies the pending migrations to the live database.
      - V(reversed) takes back everything that is applied and not in O(applied), with this release's code.
    type: str
    choices: [planned, verified, applied, reversed]
    required: true
  database:
    description:
      - The scratch database that replaces the default one of the settings, as returned by
        M(runbook.deploy.database_backup). Other databases are switched off meanwhile.
      - Everything stops when the application has another file open in spite of it.
      - Only for O(state=planned) and O(state=verified).
    type: dict
  live_database:
    description: C(app_database). When given, the release's settings must use the same database.
    type: dict
    suboptions:
      engine:
        description: The engine.
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
  plan:
    description:
      - The migrations that O(state=applied) has to find pending, in their order. Each entry is a migration of a returned
        V(plan.migrations), or a pair of an app and a name.
      - When others are pending, nothing is applied. When not given, whatever is pending is applied.
    type: list
    elements: raw
  applied:
    description:
      - The applied migrations to go back to with O(state=reversed), each a pair of an app and a name, as the record has
        them in C(applied_before).
      - An empty list is refused, because it would remove every table.
    type: list
    elements: list
  consent:
    description:
      - Whether O(state=reversed) may throw away what was written to tables and columns that go. Without it rows of such tables, and
        values of such columns other than those that the migration filled in, are counted, and nothing is reversed when there are any.
    type: bool
    default: false
  import_modules:
    description: Modules that O(state=verified) imports besides, to see that they can be imported.
    type: list
    elements: str
    default: []
  initial_command:
    description:
      - A command, as a list of words, that O(state=applied) runs once, after the migrations of an empty database.
      - When it fails, the next run tries it again. While that is due, O(state=verified) does not answer V(current).
    type: list
    elements: str
    default: []
  lock_timeout:
    description:
      - Seconds that a statement of a migration may wait for a lock in PostgreSQL, MySQL and MariaDB, while the site queues behind it.
      - A migration that was rolled back as a whole for that is tried three times.
    type: float
    default: 5.0
  app:
    description:
      - The label of the only app of a Django project to plan, verify and apply, with the migrations of others that it depends on.
      - What stays pending is in V(plan.remaining) and V(notes).
    type: str
    default: ""
  target:
    description:
      - The migration to stop at, as C(app.name) or with the beginning of a name that no other has.
      - Going back to an earlier one is refused.
    type: str
    default: ""
  rehearse:
    description:
      - Whether O(state=verified) runs the pending migrations on O(database), forward and back, one at a time. V(auto) does not for
        the first deployment of an empty database, V(always) does then, too.
      - Schema and rows after going back are compared with those before. A difference means that a migration cannot be
        reversed, whatever it claims; none proves what was V(unknown).
      - Mail and Celery's tasks go into memory meanwhile, and connections that Python code makes to anything but the database are refused.
        Where the database is a file or has a Unix socket and the kernel allows it, the process has no network at all.
      - With V(auto) a migration that fails after it was refused a connection ends the rehearsal, with V(always) the deployment.
      - What else fails then, or takes longer than O(time_limit), ends the deployment before anything live is touched.
    type: str
    choices: [auto, always, never]
    default: never
  rehearse_environment:
    description: Variables that O(state=verified) sets besides O(environment) when it rehearses, as one JSON object in a string.
    type: str
  command:
    description:
      - The application's own command for its database, as a list of words, for O(framework=command).
      - It is one migration of which everything is V(unknown). When it changes nothing on O(database), and makes its tables in an empty
        database, nothing is pending; it runs all the same.
    type: list
    elements: str
    default: []
  command_environment:
    description:
      - Variables that point O(command) at another database, as one JSON object in a string, with the placeholders C({path}), C({name}),
        C({host}), C({port}) and C({user}). Without them it is not tried on O(database).
    type: str
  collect:
    description:
      - Whether O(state=verified) also collects the static files of a Django release, in a process of its own at the same time and like the
        verification on O(database), for M(runbook.deploy.static_files) to find. Needs O(deployment).
      - Only where nothing but files inside of the release is written, and not with variables of O(rehearse_environment); where it fails
        nothing is said, and M(runbook.deploy.static_files) collects.
    type: bool
    default: false
  collect_timeout:
    description: Seconds that O(collect) may take.
    type: int
    default: 300
  time_limit:
    description: Seconds for the whole work. The application's process is ended when they are over.
    type: int
    default: 300
  blocking_limit:
    description:
      - For O(state=verified) with a rehearsal, seconds that one migration may take while it holds a lock that readers or writers of
        the site wait for; one that takes longer ends the deployment before anything live is touched. V(0) for no such limit.
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: Run the new code against a copy of the database
  runbook.deploy.migration:
    state: verified
    root: /srv/shop
    user: shop
    release: 0f3c5a7d9e21-4b1d2c3e
    settings_module: shop.settings
    environment: "{{ app_environment | to_json }}"
    database: "{{ backup.scratch }}"
  register: verified

- name: Apply exactly what was verified
  runbook.deploy.migration:
    state: applied
    root: /srv/shop
    user: shop
    release: 0f3c5a7d9e21-4b1d2c3e
    settings_module: shop.settings
    environment: "{{ app_environment | to_json }}"
    plan: "{{ verified.plan.migrations }}"

- name: Take them back
  runbook.deploy.migration:
    state: reversed
    root: /srv/shop
    user: shop
    release: 0f3c5a7d9e21-4b1d2c3e
    settings_module: shop.settings
    environment: "{{ app_environment | to_json }}"
    applied: "{{ record.applied_before }}"
"""

RETURN = r"""
applied:
  description:
    - The applied migrations in the order in which they were written, each a pair of an app and a name.
    - On failure what is applied then. Not known (null) in check mode, or when it could not be read.
  type: list
  elements: list
  returned: always
  sample: [[shop, 0001_initial]]
heads:
  description: The last applied migration of each app.
  type: dict
  returned: always
  sample: {shop: [0001_initial]}
plan:
  description:
    - The pending migrations, before they were applied. V(reversible), V(compatible) (the old code reads and writes on the
      new schema) and V(destructive) are V(yes), V(no) or V(unknown), for each operation, each migration and all of them.
    - Null where it is not known in check mode.
  type: dict
  returned: when O(state) is not V(reversed)
  contains:
    migrations:
      description:
        - The migrations with C(app), C(name), C(atomic), C(operations) and the three answers.
        - Besides C(sql), the statements, null where only running it would tell; C(transactional), V(yes), V(no) or V(unknown);
          C(locks), each with C(table), C(lock) and C(reason).
      type: list
      elements: dict
    reversible:
      description: The worst answer of all.
      type: str
    compatible:
      description: The worst answer of all.
      type: str
    destructive:
      description: The worst answer of all.
      type: str
    rehearsal:
      description:
        - The rehearsal, with C(forward_seconds), C(backward_seconds), C(off) (what was switched off meanwhile) and C(network),
          V(namespace) for a process without any or V(python) for connections that were refused. Missing where none was held.
        - C(blocking) has the migrations during which visitors wait, the longest first, as C(migration), C(seconds) and C(tables).
      type: dict
    rebuilds:
      description: The tables that SQLite copies, while writers have to wait.
      type: list
      elements: str
    remaining:
      description: What stays pending because of O(app) or O(target), each a pair of an app and a name.
      type: list
      elements: list
notes:
  description: What was found that does not forbid a deployment.
  type: list
  elements: str
  returned: when O(state=verified) or O(state=applied)
current:
  description:
    - Whether O(state=applied) has nothing left to do. Nothing is pending, nothing but Django itself listens to the signals of C(migrate),
      and O(live_database) has exactly the migrations that the copy has. The phase C(migrate) is then in O(record).
    - Never in check mode, nor without O(live_database); always with O(framework=none), which has no such phase.
  type: bool
  returned: when O(state=verified)
seconds:
  description: How long each migration took, with C(app), C(name) and C(seconds).
  type: list
  elements: dict
  returned: when O(state=applied) or O(state=reversed)
initial_command:
  description: Whether O(initial_command) was run.
  type: bool
  returned: when O(state=applied)
reversed:
  description: The migrations that were taken back, in that order.
  type: list
  elements: list
  returned: when O(state=reversed)
lost:
  description: What the reversal throws away, or would in check mode. C(tables) with rows, C(columns) with values, C(unknown) with reasons.
  type: dict
  returned: when O(state=reversed), and on its refusal
failed_migration:
  description: The migration that failed, as a pair of an app and a name, or null when it was none.
  type: list
  elements: str
  returned: on failure of O(state=applied) and O(state=reversed)
failed_operation:
  description:
    - The operation in which it stopped, with C(index), C(of), C(description), C(statements) (those that were executed in it and
      were not rolled back) and C(deferred) (all operations were executed, and it stopped in what they put off). Null when not known.
  type: dict
  returned: on failure of O(state=applied) and O(state=reversed)
done:
  description: The migrations that were applied or reversed before the failure.
  type: list
  elements: list
  returned: on failure of O(state=applied) and O(state=reversed)
died:
  description: Whether the process that did the work ended without a word, as after a kill; what is applied is not known then.
  type: bool
  returned: on such a failure of O(state=applied) and O(state=reversed)
live_changed:
  description: Whether the live database is another one than before.
  type: bool
  returned: on failure of O(state=applied) and O(state=reversed)
findings:
  description: Everything that the checks found to be wrong.
  type: list
  elements: str
  returned: on failure of O(state=verified)
evidence:
  description: The last lines of output that prove a failure.
  type: str
  returned: on failure
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.parameters import remove_values
from ansible_collections.runbook.deploy.plugins.module_utils._application import (
    RELEASE_OPTIONS,
    installed,
)
from ansible_collections.runbook.deploy.plugins.module_utils._command import parse_environment
from ansible_collections.runbook.deploy.plugins.module_utils._database import DATABASE_OPTION
from ansible_collections.runbook.deploy.plugins.module_utils._detached import Place, run_detached
from ansible_collections.runbook.deploy.plugins.module_utils._migrating import (
    check_options,
    current,
    lasting,
    nothing_to_migrate,
    without_running,
    work,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem, of_system
from ansible_collections.runbook.deploy.plugins.module_utils._record import open_journal

# The names of the phases in the record.
PHASES = {"planned": "plan", "verified": "verify", "applied": "migrate", "reversed": "reverse"}


# As app_database, which may be empty for an application that has none.
LIVE_DATABASE = {
    "type": "dict",
    "options": {**DATABASE_OPTION["options"], "engine": {"type": "str"}},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **RELEASE_OPTIONS,
            "state": {
                "type": "str",
                "required": True,
                "choices": ["planned", "verified", "applied", "reversed"],
            },
            "database": {"type": "dict"},
            "live_database": LIVE_DATABASE,
            "plan": {"type": "list", "elements": "raw"},
            "applied": {"type": "list", "elements": "list"},
            "consent": {"type": "bool", "default": False},
            "import_modules": {"type": "list", "elements": "str", "default": []},
            "initial_command": {"type": "list", "elements": "str", "default": []},
            "lock_timeout": {"type": "float", "default": 5.0},
            "app": {"type": "str", "default": ""},
            "target": {"type": "str", "default": ""},
            "collect": {"type": "bool", "default": False},
            "collect_timeout": {"type": "int", "default": 300},
            "time_limit": {"type": "int", "default": 300},
            "blocking_limit": {"type": "int", "default": 0},
            "rehearse": {"type": "str", "choices": ["auto", "always", "never"], "default": "never"},
            "rehearse_environment": {"type": "str", "no_log": True},
            "command": {"type": "list", "elements": "str", "default": []},
            "command_environment": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        check_options(params, module.check_mode)
        if params["framework"] == "none":
            answer = nothing_to_migrate(params)
        elif module.check_mode and not params["database"] and params["state"] != "reversed":
            answer = without_running(params)
        else:
            live = params["live_database"] or {}
            passwords = [live.get("password"), (live.get("scratch") or {}).get("password")]
            target = installed(params, [text for text in passwords if text])
            if params["state"] == "verified" and params["rehearse"] != "never":
                more = parse_environment(params["rehearse_environment"], "rehearse_environment")
                target = target._replace(
                    variables={**target.variables, **more}, secrets=[*target.secrets, *more.values()]
                )
            phase = PHASES[params["state"]]

            def done() -> dict[str, Any]:
                record = params["record"] or None
                with open_journal(params["root"], record, module.check_mode, target.secrets) as journal:
                    with journal.phase(phase) as entry:
                        found = work(params, target, journal, entry, module.check_mode)
                    if params["state"] == "verified":
                        inert = found.pop("inert") and not module.check_mode
                        found["current"] = current(params, target, journal, found, inert)
                    return found

            if lasting(params, module.check_mode):
                # Judged before anything is begun.
                open_journal(params["root"], params["record"], False)
                # A lost connection must not end it half way.
                answer = run_detached(
                    Place(target.layout, params["record"]["id"], phase),
                    params["record"]["token"] if params["record"]["primary"] else "",
                    done,
                    lambda found: remove_values(found, module.no_log_values),
                )
                if answer.pop("failed"):
                    module.fail_json(**answer)
            else:
                answer = done()
    except Problem as problem:
        module.fail_json(**problem.answer())
    except OSError as error:
        module.fail_json(**of_system(error, module.params["root"]).answer())
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
