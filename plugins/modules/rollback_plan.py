#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rollback_plan
short_description: Decide how a deployment is taken back
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Chooses the least rollback that helps, from the record of the deployment and from what the hosts answered.
  - The levels are V(abandon) (nothing live was changed), V(flags) (all feature flags off, the release stays), V(code) (the release before
    runs with the new schema), V(migrations) (migrations are reversed with the new release's code, then the code), V(restore) (from the
    verified backup) and V(stop) (a person has to decide).
  - The old code runs with the new schema only where every applied migration is proved compatible; what is not proved is not.
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
  record:
    description: The record, on the primary, of the deployment to undo.
    type: dict
    default: {}
  states:
    description: What each host answered to M(runbook.deploy.deployment_state), by its name; null for a host that did not answer.
    type: dict
    default: {}
  primary:
    description: Name of the host that migrates.
    type: str
    default: ''
  failures:
    description: What failed. Empty for a rollback by hand.
    type: list
    elements: dict
    default: []
  level:
    description: A level asked for by the operator. It is refused, as V(stop) with the reason, where it would do harm.
    type: str
    default: ''
    choices: ['', abandon, code, migrations, restore, stop]
  consent:
    description: The operator accepts that writes since the backup are lost.
    type: bool
    default: false
  to:
    description:
      - Release, version, deployment or commit (seven digits at least) to go back to, instead of what O(record) had before it.
      - Everything since is undone as one; O(records) is needed.
    type: str
    default: ''
  records:
    description: For O(to), the records of the primary, newest first.
    type: list
    elements: dict
    default: []
  batch:
    description: How many hosts go back at a time, as C(app_batch); null for all of them.
    type: raw
  beats_apart:
    description: Whether beats are stopped before, and started after, the instances of all hosts.
    type: bool
    default: false
  by_hand:
    description:
      - Whether an operator asked for it.
      - It is refused where O(mode) is none, where a planned one has no O(reason), and where the primary, whose record says what to go back to, is silent.
    type: bool
    default: false
  mode:
    description: How an operator means it, V(planned) or V(emergency); empty for neither.
    type: str
    default: ''
  reason:
    description: Why, in the words of the operator.
    type: str
    default: ''
  policy:
    description:
      - Rows of C(name), C(when), C(level) and C(because); the first whose conditions all hold decides. Empty for the collection's own,
        which stands in the defaults of the role P(runbook.deploy.rollback#role).
      - A row that would do harm is refused, as V(stop) with the reason, whatever it says.
    type: list
    elements: dict
    default: []
  cures:
    description: Phases, and names of checks, whose failure is cured by switching all feature flags off (C(app_flags.cures)).
    type: list
    elements: str
    default: []
  watched:
    description: For O(forecast), whether the deployment watches after its smoke test.
    type: bool
    default: false
  forecast:
    description: Instead of deciding, say what would happen if each later phase failed.
    type: bool
    default: false
  plan:
    description: For O(forecast), the migrations that are pending.
    type: dict
    default: {}
  page:
    description: For O(forecast), why visitors will get the maintenance page; empty where they will not.
    type: str
    default: ''
  target:
    description: For O(forecast), the release to go back to.
    type: dict
    default: {}
  backup:
    description: For O(forecast), whether there will be a backup.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Decide how to go back
  runbook.deploy.rollback_plan:
    record: "{{ deploy_state.open_record }}"
    states: "{{ states }}"
    primary: web1
    failures: "{{ failures }}"
"""

RETURN = r"""
plan:
  description: The decision.
  returned: when O(forecast=false)
  type: dict
  contains:
    level:
      description: The level.
      type: str
      sample: code
    rule:
      description: The name of the row that chose it; empty for a level that was asked for.
      type: str
      sample: the old code runs with it
    facts:
      description: What the conditions were held against.
      type: dict
    reason:
      description: Why it is the least that helps.
      type: str
    revert:
      description: Hosts that go back to the release before.
      type: list
      elements: str
    unknown:
      description: Hosts that did not answer.
      type: list
      elements: str
    reverse:
      description: Migrations to undo, as lists of app and name.
      type: list
      elements: list
    code_first:
      description: Whether they are undone when the old code serves, which is proved to run with them, and not before.
      type: bool
    without_consent:
      description: The level that nothing but O(consent) stands against, V(restore), or empty.
      type: str
    target:
      description: The release to go back to, or null.
      type: dict
    commands:
      description: Commands for a person to go on with.
      type: list
      elements: str
    again:
      description: Commands for a person to go on with where going back failed itself.
      type: list
      elements: str
    batches:
      description: The hosts in the order in which they go back; those that serve the target already come first.
      type: list
      elements: list
    targets:
      description:
        - What each host goes back to, by its name, with C(release) and C(deployment); empty where it is left with nothing.
        - A host that never had the target goes back to what it served before. With the level V(flags) it is the release that stays.
      type: dict
    verdict:
      description: The verdict of the run where every step succeeds.
      type: str
      sample: rolled_back
    steps:
      description:
        - C(beats_stopped), C(migrations_first), C(restore), C(start), C(beats_started), C(stop) and C(migrations_after), in the order in which they
          are taken, with C(what), C(hosts), where each runs, and C(reason). A step without hosts is not taken. C(start) has C(batches), too.
      type: dict
undone:
  description: The record that is undone; with O(to), of everything since.
  returned: when O(forecast=false)
  type: dict
page:
  description: Why visitors will get the maintenance page, and how long the migrations are expected to take; empty where they will not.
  returned: when O(forecast=true)
  type: str
forecast:
  description: What would happen if each later phase failed.
  returned: when O(forecast=true)
  type: list
  elements: dict
  sample: [{phase: smoke_test, level: code, rule: no migration, reason: No migration was applied.}]
"""
