#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: command_gate
short_description: Require commands to succeed
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Runs tests, linters, smoke scripts and management commands, several at the same time, and judges how they end.
  - A command is run without a shell, with its standard input closed, and is killed with all that it has started when its time is up.
    What it leaves behind in its own session is killed when it ends; a process that has made a session of its own stays then.
  - A command runs once, because it may write; what has C(retry) is run again until it passes or O(deadline) is over.
  - What could not be run is V(inconclusive), never a pass; what was killed for its time has failed.
extends_documentation_fragment:
  - runbook.deploy.gate
attributes:
  check_mode:
    support: full
    description: Runs only what is declared C(harmless); what was left out is listed in RV(not_asked).
  diff_mode:
    support: none
    description: There is nothing to show.
  idempotent:
    support: full
    description: Never reports a change; the commands do what they do.
options:
  checks:
    description:
      - What to run. Each item is a mapping with the key C(command), a list of words or a text that is divided as a shell does it,
        and any of the keys below. A text with a shell's operators or variables is refused.
      - C(name), by default the command; C(severity), V(critical) (default), V(degraded) or V(minor); C(timeout) in seconds.
      - C(chdir), a directory instead of O(chdir).
      - C(exit_code), one or a list, by default 0.
      - C(contains) and C(absent) (a text or a list) and C(matches) (a regular expression) in C(stream), V(stdout), V(stderr) or
        V(both) (default).
      - C(json), a mapping of paths in the standard output's JSON to values or conditions, as in M(runbook.deploy.http_gate).
      - C(number), a condition such as C(< 100) on the whole output, or a mapping of regular expressions to conditions such as
        C(>= 80%). Of several matches the last counts, of a match its first group.
        No number is no data, which makes the check V(inconclusive).
      - C(max_seconds), how long it may take.
      - C(harmless), V(true) for what changes nothing, so that it is run in check mode too.
      - C(retry), V(true) for what is run again until it passes.
    type: list
    elements: dict
    required: true
  chdir:
    description: Directory that the commands run in; by default C(/).
    type: path
  environment:
    description: Variables for the commands, a JSON object in one string. Values are never shown.
    type: str
  user:
    description: User of the operating system to run the commands as; by default the present one.
    type: str
  parallel:
    description: How many commands run at the same time.
    type: int
    default: 4
  timeout:
    description: Seconds for each command, unless it has its own; by default O(deadline).
    type: float
"""

EXAMPLES = r"""
- name: The code is fit to be deployed
  runbook.deploy.command_gate:
    chdir: /srv/checkout
    deadline: 900
    environment: "{{ {'DJANGO_SETTINGS_MODULE': 'shop.settings.test'} | to_json }}"
    checks:
      - command: .venv/bin/python manage.py check --deploy
        harmless: true
      - name: tests
        command: [.venv/bin/pytest, -q, --cov=shop]
        number:
          'TOTAL.*?(\d+)%': ">= 80%"
        timeout: 600
      - name: no secrets in the code
        command: .venv/bin/detect-secrets scan
        json:
          results: length == 0
        severity: degraded

- name: The smoke script passes, and quickly enough
  runbook.deploy.command_gate:
    user: shop
    environment: "{{ app_environment | to_json }}"
    checks:
      - command: [/srv/shop/current/bin/smoke, --base, http://127.0.0.1:8000]
        contains: all good
        number:
          'average: ([0-9.]+) ms': "< 100"
        max_seconds: 20
        retry: true
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
  description: Each command, of the last attempt, or of the last one that did not pass where the gate did not.
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
      description: How it ended, with the first and last lines of what it printed.
      type: str
    expected:
      description: What was expected.
      type: str
    message:
      description: A sentence that says what was run, found and expected; empty for a check that passed.
      type: str
    seconds:
      description: How long it took.
      type: float
    exit_code:
      description: The exit code, negative for a signal; null where it was killed for its time or could not be run.
      type: int
    repeat:
      description: The command that does the same by hand, without the environment.
      type: str
    final:
      description: V(true) for what did not pass and is not run again; only then there.
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
not_asked:
  description: Names of what was left out in check mode.
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

from ansible_collections.runbook.deploy.plugins.module_utils._command_gate import OPTIONS, RULES, perform
from ansible_collections.runbook.deploy.plugins.module_utils._entry import run_module


def main() -> None:
    """Run the module."""
    run_module(OPTIONS, RULES, perform)


if __name__ == "__main__":
    main()
