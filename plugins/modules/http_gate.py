#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: http_gate
short_description: Prove over HTTP that an application works
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Sends requests at the same time and judges their answers by status, text, JSON, headers, redirect and time.
  - Passes when all critical checks passed O(successes) times in a row before O(deadline) is over.
  - Then does the flows, once, in which several requests share cookies and forms are found and sent with their CSRF token.
  - The time limits hold whatever the server does; the gate outlives O(deadline) by at most one second.
  - What could not be asked is V(inconclusive), never a pass.
attributes:
  check_mode:
    support: full
    description: Sends C(GET) and C(HEAD) only; what was left out is listed in RV(not_asked).
  diff_mode:
    support: none
    description: There is nothing to show.
  idempotent:
    support: full
    description: Never reports a change; flows and other methods than C(GET) and C(HEAD) do in the application what they do.
options:
  checks:
    description:
      - What to ask. Each item is a mapping with the key C(url), a path or a whole address, and any of the keys below.
        An item with C(steps) is a flow, see O(flows).
      - C(name), by default method and address; C(severity), V(critical) (default), V(degraded) or V(minor).
      - What is sent - C(method), C(headers), one of C(body), C(json_body) and C(form), C(follow) (redirects; default
        V(false)), C(bust_cache) (adds a random query), C(timeout) in seconds.
      - What is expected - C(status) (a number or a list, default 200), C(contains) and C(absent) (a text or a list),
        C(matches) (a regular expression), C(json) (a mapping of paths such as C(items[0].name) to a value or a condition
        such as C(< 500), C(length > 3), C(contains x), C(matches x), C(exists), C(absent)), C(header) (a mapping of names
        to a part of the value), C(redirect_to), C(max_seconds).
      - C(files), sent with the fields of C(form) as a browser does, maps a field to a mapping with C(name), C(type), and either
        C(content), or C(row) and C(rows) below an optional C(header); C({row}) in C(row) is the number of the row.
      - C(bearer), a token, is sent as C(Authorization).
      - C(cookies) maps a cookie that the answer must set to one or some of C(secure), C(httponly), C(partitioned), C(session),
        C(samesite=lax), C(path=/), C(domain=…), C(max_age <= 3600), or C(absent); C(tls_days) is how many days the
        certificate must be valid.
      - C(samples) asks many times and judges all together, a mapping with C(requests) (100), C(concurrency) (10), instead of
        C(requests) also C(duration) in seconds, and what is expected of C(p50), C(p90), C(p95), C(p99), C(mean), C(max)
        (such as C(< 500ms)), C(error_rate) (C(== 0%) by default) and C(throughput) (such as C(> 50/s)).
      - C(compare), V(true) makes a failure V(degraded) where the same check failed in O(before) too.
      - C({commit}), C({release}), C({version}), C({deployment}) are replaced everywhere, and C({secret.name}) in what is sent.
        C({commit}), C({release}) or C({deployment}) in an expectation proves which release answers.
    type: list
    elements: dict
    default: []
  flows:
    description:
      - Mappings with the keys C(name), C(steps) (a list of checks that share cookies), C(timeout) in seconds for all steps, C(severity).
      - A step can C(wait) so many seconds before it asks, for instance until a session has run out; it has no C(samples) and no C(compare).
      - In a step redirects are followed, unless it has C(redirect_to) or C(follow=false).
      - C(form) fills in the form of the page at C(url), or of the last page, that has these fields, and sends it as a browser does.
      - C(extract) maps a name to one of C(json) (a path), C(regex) (its first group) or C(header); later steps use it as C({name}).
      - A flow is done once and not tried again, because it may write; the first critical step that does not pass ends it.
    type: list
    elements: dict
    default: []
  address:
    description:
      - Where requests go, such as V(https://shop.example.org) or V(127.0.0.1:8000).
      - Exactly one of O(address) and O(socket) must be given.
    type: str
  socket:
    description: Unix socket that requests go to instead, whatever their host.
    type: path
  host:
    description: The C(Host) header, and with TLS the name that the certificate must carry; by default that of O(address).
    type: str
  headers:
    description: Headers of every request to the target, such as C(X-Forwarded-Proto).
    type: dict
    default: {}
  validate_certs:
    description: Whether certificates are verified.
    type: bool
    default: true
  ca_path:
    description: File with the certificates of the authorities to trust instead of the system's.
    type: path
  placeholders:
    description: Values of C(commit), C(release), C(version) and C(deployment).
    type: dict
    default: {}
  secrets:
    description: Values of C({secret.name}), a JSON object in one string. They are hidden in all that the module returns.
    type: str
  timeout:
    description: Seconds for each request with its redirects.
    type: float
    default: 10
  successes:
    description: How often in a row all checks must pass.
    type: int
    default: 2
  interval:
    description: Seconds between two attempts.
    type: float
    default: 0.5
  deadline:
    description: Seconds for everything.
    type: float
    default: 60
  patience:
    description:
      - Seconds during which a wrong answer is asked for again; by default O(deadline).
      - A release that answers wrong serves meanwhile. What could not be asked at all is asked again until O(deadline).
    type: float
  on_no_data:
    description:
      - What happens when the gate is inconclusive, because something could not be asked or there is nothing to ask.
      - V(fail) fails the task; V(inconclusive) returns RV(passed=false) and leaves it to the caller.
    type: str
    choices: [fail, inconclusive]
    default: fail
  before:
    description: The RV(checks) of this gate before the deployment, for checks with C(compare).
    type: list
    elements: dict
    default: []
  judge:
    description: V(false) returns what was found and fails for nothing, to measure what O(before) is later.
    type: bool
    default: true
  waivers:
    description:
      - Checks and flows that may fail, each with C(check) (its name), C(reason), C(approver) and C(until), the last day on which that holds.
      - They are asked all the same; what they answer is V(degraded) and has the waiver in it.
    type: list
    elements: dict
    default: []
  root:
    description: Directory on the host that holds everything; without it no journal is kept.
    type: path
  phase:
    description: Name of the phase in the journal.
    type: str
    default: smoke_test
  record:
    description: The deployment whose journal is kept, as returned by M(runbook.deploy.deployment_record).
    type: dict
"""

EXAMPLES = r"""
- name: The new release answers behind its socket
  runbook.deploy.http_gate:
    socket: /srv/shop/run/web.20261121T013700-ab12.sock
    host: shop.example.org
    headers:
      X-Forwarded-Proto: https
    placeholders:
      commit: "{{ commit }}"
    checks:
      - url: /healthz/
        json:
          status: ok
          commit: "{commit}"
          database.seconds: "< 0.5"

- name: A user can log in and write a note
  runbook.deploy.http_gate:
    address: https://shop.example.org
    secrets: "{{ {'password': smoke_password} | to_json }}"
    checks:
      - url: /
        contains: Welcome
        max_seconds: 2
        bust_cache: true
    flows:
      - name: admin writes a note
        steps:
          - url: /login/
            form:
              username: smoke
              password: "{secret.password}"
            contains: Log out
          - url: /signals/
            extract:
              signal:
                regex: 'href="/signals/(\d+)/"'
          - url: /signals/{signal}/
            form:
              note: Written by the deployment
            contains: Note added
  delegate_to: localhost

- name: A hundred visitors at once are served, by a certificate that lasts
  runbook.deploy.http_gate:
    address: https://shop.example.org
    successes: 1
    checks:
      - url: /
        samples:
          requests: 100
          concurrency: 10
          p95: < 500ms
          error_rate: < 1%
      - url: /login/
        tls_days: 14
        cookies:
          csrftoken: [secure, samesite=lax]
  delegate_to: localhost
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
  description: Each check and flow, of the last attempt, or of the last one that did not pass where the gate did not.
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
      description: What was seen, with the first 200 characters of the text.
      type: str
    expected:
      description: What had to be seen.
      type: str
    message:
      description: A sentence that says what was asked, seen and expected; empty for a check that passed.
      type: str
    seconds:
      description: How long it took.
      type: float
    asked:
      description: Method, address and place of the connection; checks only.
      type: str
    status:
      description: The status, null without an answer; checks only.
      type: int
    repeat:
      description: The command that asks the same by hand, with secrets left out; checks only.
      type: str
    old_fault:
      description: V(true) for a failure that O(before) had, too; only then there.
      type: bool
    figures:
      description: Of C(samples), seconds, the share of errors, and requests a second; only then there.
      type: dict
      sample: {p50: 0.041, p90: 0.06, p95: 0.071, p99: 0.12, mean: 0.044, max: 0.13, error_rate: 0.0, throughput: 208.1}
    requests:
      description: How many requests of C(samples) were answered or failed; only then there.
      type: int
    proves_release:
      description: Whether the answer named the release, its commit or the deployment.
      type: bool
    steps:
      description: The steps that were done, in the same form; flows only.
      type: list
      elements: dict
    degraded_steps:
      description: Names of the steps of lower severity that did not pass; flows only.
      type: list
      elements: str
failing:
  description: Names of the critical checks and flows that did not pass.
  returned: always, except for wrong options
  type: list
  elements: str
degraded:
  description: Names of those of lower severity that did not pass; they fail nothing.
  returned: always, except for wrong options
  type: list
  elements: str
not_asked:
  description: Names of what was left out, in check mode or because the checks before the flows did not pass.
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
from ansible_collections.runbook.deploy.plugins.module_utils._http_gate import OPTIONS, RULES, perform


def main() -> None:
    """Run the module."""
    run_module(OPTIONS, RULES, perform)


if __name__ == "__main__":
    main()
