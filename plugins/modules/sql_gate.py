#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sql_gate
short_description: Require a database to answer as expected
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Asks a PostgreSQL, MySQL, MariaDB or SQLite database, and judges what it answers.
  - It only reads. The server enforces it, in a transaction that is read-only, with one statement in it, within O(timeout);
    a SQLite file is opened read-only. At most 1000 rows and 512 KiB of an answer are read.
  - What could not be asked is V(inconclusive), never a pass. No row, and NULL, are no data, which is V(inconclusive) too,
    unless just that is expected.
extends_documentation_fragment:
  - runbook.deploy.gate
attributes:
  check_mode:
    support: full
    description: It only reads, then as always.
  diff_mode:
    support: none
    description: There is nothing to show.
  idempotent:
    support: full
    description: Never reports a change.
options:
  checks:
    description:
      - What to ask. Each item is a mapping with exactly one of the following subjects, and any of the keys
        C(name), C(severity) (V(critical) (default), V(degraded) or V(minor)), C(timeout) in seconds, and C(max_seconds), how long it may take.
      - C(query), one statement that reads. Expected are some of C(value), a value or a condition such as C(< 5), which must be true of
        C(column) (by default the first) in every row; C(value=absent) for NULL or no row; C(rows), a condition on their number;
        C(contains) and C(absent), a text or a list, in some value.
      - C(table), a name, with its schema or without. It must be there, and have C(rows) and C(indexes), conditions on their number,
        C(columns) and C(index), names. A primary key counts where the engine keeps an index for it, an invalid index does not.
      - C(index), a name. It must be there, and valid.
      - C(connections), a condition on the number of other sessions in the database (MySQL and MariaDB - on the server).
      - C(pool), a condition on the percentage of the connections that the server lets ordinary users have.
      - C(slow_queries), a condition on the number of statements that have run longer than C(longer_than) seconds, by default 5.
        V(inconclusive) where the user may not see what all sessions do.
      - C(reachable), V(true). The database must answer; it is the only subject that fails, rather than being V(inconclusive), when it does not.
    type: list
    elements: dict
    required: true
  database:
    description: The application's database, C(app_database).
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
  user:
    description: The application's user on the host, who logs in by the server's socket where neither C(host) nor C(password) is given.
    type: str
  timeout:
    description: Seconds for each check, unless it has its own.
    type: float
    default: 10
"""

EXAMPLES = r"""
- name: The database is as the runbook wants it
  runbook.deploy.sql_gate:
    database: "{{ app_database }}"
    user: shop
    checks:
      - reachable: true
        max_seconds: 1
      - table: shop_order
        rows: "> 0"
        columns: [id, created, state]
        indexes: 5
      - index: shop_order_created_idx
      - pool: "< 80%"
      - slow_queries: "< 1"
        longer_than: 30
        severity: degraded
      - name: nothing waits for payment since yesterday
        query: SELECT count(*) FROM shop_order WHERE state = 'waiting' AND created < now() - interval '1 day'
        value: 0
      - query: SELECT name FROM shop_order WHERE total < 0
        rows: 0
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
  description: Each check, of the last attempt, or of the last one that did not pass where the gate did not.
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
      description: What was answered, with the first rows.
      type: str
    expected:
      description: What was expected.
      type: str
    message:
      description: A sentence that says what was asked, found and expected; empty for a check that passed.
      type: str
    seconds:
      description: How long it took.
      type: float
    repeat:
      description: The command that asks the same by hand, without a password.
      type: str
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
from ansible_collections.runbook.deploy.plugins.module_utils._sql_gate import OPTIONS, RULES, perform


def main() -> None:
    """Run the module."""
    run_module(OPTIONS, RULES, perform)


if __name__ == "__main__":
    main()
