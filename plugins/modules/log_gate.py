#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: log_gate
short_description: Require logs to be free of errors since they were marked
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Marks where log files and journals end before a deployment, and judges afterwards what was written since.
  - A file may be rotated meanwhile, by renaming or by copying and truncating it, and be compressed by gzip. Nothing before the mark is read.
  - Lines that are indented, and tracebacks of Python, belong to the entry before. Lines may be of any length, and need not be text.
  - What could not be read, or not to its end, is V(inconclusive), never a pass; what was found all the same fails.
  - What looks like a password, a token or a cookie is left out of what is shown.
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
      - The logs. Each item is a mapping with C(path), a file, or C(journal), one or a list of units of systemd (patterns such as C(shop-*) too),
        and any of the keys below.
      - C(name), by default the path or the units, which the cursor goes by; C(severity), V(critical) (default), V(degraded) or V(minor);
        C(timeout) in seconds, by default O(timeout).
      - C(errors) (levels error and above, and tracebacks), C(critical), C(warnings) and C(entries) (of any level), conditions on their number
        such as C(< 1).
      - C(forbidden), a regular expression, a list of them, or a mapping of them to conditions on the number of entries, by default C(== 0);
        C(required), the same, by default C(>= 1). They are looked for in each line of an entry.
      - C(allow), a regular expression or a list; entries with one of them do not count, except for C(required).
      - C(begins), a regular expression that the first line of each entry has, where indentation does not tell.
      - C(absent), V(true) where a file may not be there when it is marked; all of it is read then.
      - C(directory), where a journal's files are, if not this host's own.
    type: list
    elements: dict
    required: true
  state:
    description:
      - V(mark) returns RV(cursors), to be taken before what is to be judged.
      - V(judge) reads from O(cursors) on.
    type: str
    choices: [mark, judge]
    default: judge
  cursors:
    description: RV(cursors) of this module with O(state=mark).
    type: dict
    default: {}
  duration:
    description: Seconds for which the logs are followed. Without a cursor that begins at the end of the log.
    type: float
    default: 0
  accumulate:
    description:
      - V(true) reads in each attempt what was written since the one before, and judges all of it. For callers that ask again and again, such as a watch.
    type: bool
    default: false
  secrets:
    description: Texts that are never shown, a JSON object in one string.
    type: str
  timeout:
    description: Seconds for reading each log, besides O(duration).
    type: float
    default: 30
"""

EXAMPLES = r"""
- name: Note where the logs end
  runbook.deploy.log_gate:
    state: mark
    checks: "{{ shop_logs }}"
  register: before

- name: Nothing unexpected was logged since
  runbook.deploy.log_gate:
    cursors: "{{ before.cursors }}"
    checks:
      - name: web
        journal: shop-production-web@*.service
        errors: "< 1"
        allow: Invalid HTTP_HOST header
      - name: worker
        path: /var/log/shop/worker.log
        forbidden: [Traceback, OutOfMemory]
        required: celery@\S+ ready
      - name: proxy
        path: /var/log/nginx/error.log
        forbidden:
          upstream timed out: "< 3"
        severity: degraded

- name: No error within five minutes
  runbook.deploy.log_gate:
    duration: 300
    deadline: 330
    checks:
      - path: /var/log/shop/web.log
        errors: "< 1"
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
cursors:
  description: Where each log ends, by the name of the check. There is nothing of the logs in it.
  returned: success
  type: dict
  sample: {"web": {"kind": "journal", "cursor": "s=…;i=4", "at": 1763712000.0}}
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
      description: What was counted, with the first lines of the entries that should not be there.
      type: str
    expected:
      description: What was expected.
      type: str
    message:
      description: A sentence that says what was read, found and expected; empty for a check that passed.
      type: str
    seconds:
      description: How long it took.
      type: float
    counts:
      description: How many entries there were of each kind that is asked for; with O(state=judge).
      type: dict
    cursor:
      description: Where the log ends; with O(state=mark).
      type: dict
    repeat:
      description: The command that shows by hand what was read.
      type: str
    final:
      description: V(true) for what did not pass and is not asked again; only then there.
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
from ansible_collections.runbook.deploy.plugins.module_utils._log_gate import OPTIONS, RULES, perform


def main() -> None:
    """Run the module."""
    run_module(OPTIONS, RULES, perform)


if __name__ == "__main__":
    main()
