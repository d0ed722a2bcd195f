#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_gate
short_description: Require Celery workers, queues and beats to be as expected
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Asks the workers of an application through its own Celery, in its own environment and as its own user, and its broker how many
    messages wait. All checks of one application are answered by one process of it, which leaves nothing in the broker.
  - A broker that cannot be reached, and an application that cannot be loaded, are V(inconclusive), never a pass, within O(timeout). No
    answer of any worker although the broker is there fails what is expected of workers.
extends_documentation_fragment:
  - runbook.deploy.gate
attributes:
  check_mode:
    support: full
    description: It only asks, then as always.
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
        C(name), C(severity) (V(critical) (default), V(degraded) or V(minor)), C(timeout) in seconds, and C(app), instead of O(app).
      - C(workers), how many must answer, such as V(2) or C(>= 1), or their names, which may be patterns such as C(mail@*).
      - C(active), a condition on the number of tasks that run; with C(longer_than), of those that have run for more seconds.
      - C(reserved), a condition on the number of tasks that workers have fetched and not begun.
      - C(queue), the name of a queue, and C(length), a condition on the number of messages that wait in it, or C(consumers), one on
        the number of those who consume it, or both. An AMQP broker counts them itself; elsewhere the workers that answer are counted.
      - C(tasks), names that every worker must know.
      - C(release), the name of a release, an absolute path, or V(current); the workers that are processes of this host must run it.
      - C(beat), how many beats may run on this host, most often V(1); beats in workers count too. With C(file) and C(max_age), such as
        C(< 10m), the schedule's file must have been changed since.
    type: list
    elements: dict
    required: true
  app:
    description: What C(celery -A) takes, such as V(shop.celery:app); by default the package of O(settings_module).
    type: str
  python:
    description: The Python of the application's environment; by default that of the release that is current below O(root).
    type: path
  chdir:
    description: Directory that the application is imported from; by default that of the release that is current below O(root).
    type: path
  environment:
    description: The application's variables, a JSON object in one string. Values are never shown.
    type: str
  settings_module:
    description: The application's C(DJANGO_SETTINGS_MODULE), where it has one.
    type: str
    default: ""
  user:
    description: The application's user; by default the present one.
    type: str
  reply_timeout:
    description: Seconds that workers have to answer. All of them are waited for, because nobody knows how many there are.
    type: float
    default: 2
  timeout:
    description: Seconds for everything that one application is asked, with its start, unless a check has its own.
    type: float
    default: 30
"""

EXAMPLES = r"""
- name: Celery is as the runbook wants it
  runbook.deploy.celery_gate:
    root: /srv/shop
    user: shop
    app: shop.celery:app
    environment: "{{ app_environment | to_json }}"
    checks:
      - workers: ">= 2"
      - release: current
      - beat: 1
      - queue: default
        length: "< 1000"
        consumers: ">= 1"
        severity: degraded
      - tasks: [shop.tasks.send_mail, shop.tasks.bill]

- name: Nothing that runs would be cut off
  runbook.deploy.celery_gate:
    root: /srv/shop
    settings_module: shop.settings
    checks:
      - active: 0
        longer_than: 300
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
      description: What was answered, or seen.
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
      description: The command that shows it by hand; the environment of the application is needed besides.
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

from ansible_collections.runbook.deploy.plugins.module_utils._celery_gate import OPTIONS, RULES, perform
from ansible_collections.runbook.deploy.plugins.module_utils._entry import run_module


def main() -> None:
    """Run the module."""
    run_module(OPTIONS, RULES, perform)


if __name__ == "__main__":
    main()
