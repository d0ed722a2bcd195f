#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: metrics_gate
short_description: Require measured values to stay within limits
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Takes values from pages of metrics, Prometheus servers, SQL, commands, Redis, processes and logs, once or for a time, and
    holds them against limits or against what was measured before the deployment.
  - A sample is good, has failed, could not be asked, or had no data. Each has a limit of its own. What could not be asked and what had no data is
    V(inconclusive), never a pass; NaN, infinity, NULL and a query that returns nothing are no data, and never 0.
extends_documentation_fragment:
  - runbook.deploy.gate
attributes:
  check_mode:
    support: full
    description: Only reads. Commands that are not declared C(harmless) are left out and listed in RV(not_asked).
  diff_mode:
    support: none
    description: There is nothing to show.
  idempotent:
    support: full
    description: Never reports a change.
options:
  checks:
    description:
      - What to measure. Each item is a mapping with the keys C(source), C(require) and C(trigger), and any of the keys below.
      - C(name), by default the kind of the source; C(severity), V(critical) (default), V(degraded) or V(minor);
        C(timeout) in seconds for each sample, by default O(timeout).
      - C(require), one or a list of conditions that each sample must meet, such as C(p95 < 500ms), C(hit_rate > 80%),
        C(approved between 70% and 80%), C(orders within 20% of baseline), C(orders not below baseline by 20%) or C(orders >= baseline).
        C(mean(value) < 2s) is judged on all samples together; there are C(mean), C(min), C(max) and C(p50) to C(p99.9).
      - C(trigger), one or a list of conditions that must not hold, such as C(error_rate > 5% for 15m). It fails when it has held for that long,
        or at once where no time is given.
      - A condition begins with the name of the value, which may be left out where there is one only. Units are C(%); C(us), C(ms), C(s), C(m), C(h), C(d);
        C(B), C(KB) to C(TB), C(KiB) to C(TiB); and C(k), C(M), C(G) for plain numbers.
      - C(units), a mapping of values to the units that they are measured in, C(share) for 0 to 1. What has a unit is only compared with a number that has one.
      - C(initial_delay) before the first sample, C(interval) between two (by default 5 seconds) and C(window), during which samples are taken; by default
        the longest time of a trigger, or one sample. Numbers of seconds, or C(15m).
      - C(failure_limit), C(error_limit) and C(inconclusive_limit), how many samples may have failed, may not have been asked, and may have had no data
        (by default 0); C(minimum_samples), how many must have been judged (by default 1).
      - C(source) is a mapping with C(kind) and what this kind needs. A C(secret) is the name of an entry in O(secrets).
      - "C(kind: prometheus_page): C(url) (with C(socket): a path), C(host), C(secret) (a bearer token), and C(values), a mapping of names to a series
        such as C(http_requests_total{status=~\"5..\"}), whose value is taken (C(aggregate): V(sum), V(min), V(max) or V(mean)), or to a mapping with
        C(rate) or C(increase) of a counter, C(ratio) of one counter C(to) another, or C(quantile) (such as 0.95) C(of) a histogram.
        They are taken since the sample before, or since C(range), or C(total), since the application was started. A counter that begins anew is understood."
      - "C(kind: prometheus_query): C(url) of the server, C(query) or C(queries) (a mapping), each of which returns one number; C(secret) (a bearer token)."
      - "C(kind: sql): C(query), whose only row has the values in its columns. It is asked of O(database) and can only read."
      - "C(kind: command): C(command), C(chdir), and C(json) (names to paths) or C(patterns) (names to regular expressions); without these it prints a number.
        C(harmless) runs it in check mode."
      - "C(kind: redis): C(address) (host and port, or a socket), C(secret) (the password), C(username), C(tls). Values are C(hit_rate),
        C(recent_hit_rate) (since the sample before), C(used_memory_percent) (of maxmemory), and every field of INFO,
        such as C(used_memory) and C(connected_clients)."
      - "C(kind: process): C(pid_file) or C(unit). Values are C(memory), C(cpu) (percent of one processor, since the sample before), C(processes),
        C(threads) and C(open_files) of the process and all that it has started."
      - "C(kind: log): C(path) of a file, or C(unit), a unit of systemd or a list of them, whose journal is read (C(directory), where it lies elsewhere);
        C(patterns), a mapping of names to regular expressions, and C(levels), any of V(critical), V(errors) and V(warnings). Values are C(entries) and
        each of these names, in entries per minute since the sample before, and C(<name>_share), their share of all entries, such as C(errors_share > 5%).
        Where nothing was written, the numbers are 0 and the shares have no data. Entries of several lines, levels, rotations, C(begins) and C(allow) are
        those of M(runbook.deploy.log_gate); what is allowed counts in C(entries) only. A last line counts when it has its end. A log that
        is not there, or has lost lines, counts as not asked."
    type: list
    elements: dict
    required: true
  measure:
    description: V(true) returns RV(measured) without judging them, to be the O(baseline) later. A value that is not there leaves the gate inconclusive.
    type: bool
    default: false
  baseline:
    description:
      - What was measured before the deployment, RV(measured) of this module with O(measure), or a mapping of names of values (or C(check.value)) to numbers.
      - A condition on a baseline that is not there is V(inconclusive).
    type: dict
    default: {}
  accumulate:
    description:
      - V(true) takes one sample in each attempt and judges it with those before. For callers that ask again and again, such as a watch.
    type: bool
    default: false
  secrets:
    description: Tokens and passwords by name, a JSON object in one string. Values are never shown.
    type: str
  database:
    description: The database that C(sql) asks, C(app_database).
    type: dict
    suboptions:
      engine:
        description: The engine.
        type: str
      path:
        description: The absolute path of the file of an SQLite database.
        type: path
      shared:
        description: Whether several hosts share the file of an SQLite database.
        type: bool
      name:
        description: The name of the database, for engines with a server.
        type: str
      host:
        description: The server's host; the local socket when empty.
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
        description: Of no meaning here.
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
    description: User of the operating system for commands, and for logins by a database's socket; by default the present one.
    type: str
  chdir:
    description: Directory that commands run in; by default C(/).
    type: path
  environment:
    description: Variables for commands, a JSON object in one string. Values are never shown.
    type: str
  ca_path:
    description: File with the authorities to trust instead of the system's.
    type: path
  timeout:
    description: Seconds for each sample.
    type: float
    default: 10
"""

EXAMPLES = r"""
- name: Keep what the figures are before the deployment
  runbook.deploy.metrics_gate:
    measure: true
    database: "{{ app_database }}"
    checks: "{{ shop_figures }}"
  register: before

- name: The figures are as good as before
  runbook.deploy.metrics_gate:
    deadline: 1000
    database: "{{ app_database }}"
    secrets: "{{ {'redis': redis_password} | to_json }}"
    baseline: "{{ before.measured }}"
    checks:
      - name: traffic
        source:
          kind: prometheus_page
          url: http://127.0.0.1:8000/metrics
          values:
            error_rate: {ratio: 'http_requests_total{status=~"5.."}', to: http_requests_total}
            p95: {quantile: 0.95, of: http_request_duration_seconds}
        trigger: error_rate > 5% for 15m
        require: p95 < 500ms
        failure_limit: 2
        inconclusive_limit: 10
      - name: orders
        source: {kind: sql, query: "SELECT count(*) FROM orders WHERE made > now() - interval '15 minutes'"}
        require: orders not below baseline by 20%
        severity: degraded
      - name: cache
        source: {kind: redis, address: "127.0.0.1:6379", secret: redis}
        require: [hit_rate > 80%, used_memory < 500MB, used_memory_percent < 80%]
      - name: log
        source: {kind: log, path: /var/log/shop/web.log, levels: [errors], patterns: {timeouts: upstream timed out}}
        interval: 30
        trigger: [errors_share > 5% for 15m, timeouts > 10 for 5m]
        inconclusive_limit: 10  # half minutes without any entry
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
measured:
  description: The median of each value over the samples of the last attempt, by C(check.value), in the unit that it is measured in.
  returned: success
  type: dict
  sample: {"traffic.p95": 0.231, "cache.hit_rate": 0.97}
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
      description: The last values, and how many samples had which outcome.
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
    measured:
      description: The median of each value.
      type: dict
    samples:
      description: How many samples had which outcome, C(good), C(failed), C(error) and C(no data).
      type: dict
    repeat:
      description: The command that asks the same by hand, without secrets.
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

from ansible_collections.runbook.deploy.plugins.module_utils._entry import run_module
from ansible_collections.runbook.deploy.plugins.module_utils._metrics_gate import OPTIONS, RULES, perform


def main() -> None:
    """Run the module."""
    run_module(OPTIONS, RULES, perform)


if __name__ == "__main__":
    main()
