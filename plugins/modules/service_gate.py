#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: service_gate
short_description: Require services to stay up
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Looks at systemd units, at processes with a PID file and at the application's own services for a while. The main process must stay
    the same, and no worker may end and be replaced; memory, CPU time, open files, connections, threads, addresses and the release that
    runs can be held against what is expected.
  - What cannot be seen is V(inconclusive), never a pass - a unit that systemd does not know, a missing PID file, no systemd, processes of
    another user that may not be looked into.
  - What was seen to end while it was looked at fails the gate at once; what is only not up yet is looked at again until O(deadline).
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
      - What to look at. Each item is a mapping with exactly one of C(service), a name of C(app_services) in what is live below O(root),
        C(unit), a systemd unit, and C(pid_file), an absolute path; and any of the keys C(name), C(severity) (V(critical) (default),
        V(degraded) or V(minor)), C(timeout) in seconds, and those below.
      - C(duration), seconds that it must stay up, instead of O(duration).
      - C(memory), such as C(< 512MB), of all its processes together. What they share counts once where that may be read, as root and as
        their own user; elsewhere it is an upper limit, which can pass and never fail a check.
      - C(cpu), such as C(< 50%), of one core, over the whole time, of all its processes.
      - C(open_files), how many descriptors all its processes have; in percent, such as C(< 80%), of the limit of the one that is nearest to it.
      - C(connections), TCP connections in both directions and those accepted on Unix sockets; C(threads); C(processes); C(workers),
        the processes that execute the same program as their parent.
      - C(replaced), how many workers may end and be replaced meanwhile, by default 0; C(<= 1) for a server that renews its workers.
      - C(restarts), how often systemd has restarted it in its life; while it is looked at, it may not at all.
      - C(uptime), how long the main process has been running, such as C(> 1m).
      - C(sub_state), of the unit, one or a list.
      - C(listens), ports and paths of Unix sockets that its own processes must listen on; for a C(service) its address always counts.
      - C(release), the name of a release, an absolute path, or V(current) for what C(current) below O(root) leads to. It is told from
        C(RUNBOOK_RELEASE) in the environment of its processes, from their directories, programs and commands.
        A C(service) must run the release that is live, unless another one is given.
      - C(log), a file whose last lines are shown in a failure; by default the journal of a unit, and the log of a C(service).
    type: list
    elements: dict
    required: true
  environment:
    description: The application's variables, a JSON object in one string. Their values are left out of what is shown of logs.
    type: str
  user:
    description: The application's user, whose processes a C(service) under the manager C(process) consists of.
    type: str
  duration:
    description: Seconds that each service is looked at, unless it has its own.
    type: float
    default: 5
"""

EXAMPLES = r"""
- name: The application and what it needs stay up
  runbook.deploy.service_gate:
    root: /srv/shop
    user: shop
    duration: 20
    checks:
      - service: web
        workers: 4
        memory: "< 1GB"
        cpu: "< 80%"
        open_files: "< 50%"
      - service: worker
      - unit: nginx.service
        listens: [80, 443]
        restarts: "< 1"
        severity: degraded
      - pid_file: /run/celery/beat.pid
        log: /var/log/celery/beat.log
        release: current
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
      description: What was seen; the last lines of the log where it failed.
      type: str
    expected:
      description: What was expected.
      type: str
    message:
      description: A sentence that says what was looked at, found and expected, with the last lines of the log; empty for a check that passed.
      type: str
    seconds:
      description: How long it took.
      type: float
    repeat:
      description: The command that shows it by hand.
      type: str
    final:
      description: V(true) where it was seen to end, so that it is not looked at again; only then there.
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
from ansible_collections.runbook.deploy.plugins.module_utils._service_gate import OPTIONS, RULES, perform


def main() -> None:
    """Run the module."""
    run_module(OPTIONS, RULES, perform)


if __name__ == "__main__":
    main()
