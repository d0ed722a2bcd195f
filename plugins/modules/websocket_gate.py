#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: websocket_gate
short_description: Require a WebSocket to open, and to answer as expected
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Opens WebSockets (RFC 6455) at the same time, sends messages, and judges what comes back.
  - A handshake alone proves little; without C(send) and C(expect) the server also has to answer a ping, and to stay.
  - The time limits hold whatever the server does. Of a message at most 1 MiB is read; a longer one is V(inconclusive).
  - What could not be asked is V(inconclusive), never a pass.
extends_documentation_fragment:
  - runbook.deploy.gate
attributes:
  check_mode:
    support: full
    description: Opens and pings only; checks that send messages are listed in RV(not_asked).
  diff_mode:
    support: none
    description: There is nothing to show.
  idempotent:
    support: full
    description: Never reports a change; messages do in the application what they do.
options:
  checks:
    description:
      - What to ask. Each item is a mapping with the key C(url), a path or an address with V(ws://) or V(wss://), and any of the keys below.
      - C(name); C(severity), V(critical) (default), V(degraded) or V(minor); C(timeout) in seconds; C(max_seconds), how long all of it may take.
      - C(headers); C(origin), by default that of the application itself, as from its own pages, V('') for none; C(cookies), a mapping;
        C(bearer), a token for C(Authorization); C(subprotocol), one or a list, of which the server must choose one.
      - C(status), by default 101; one or a list of HTTP statuses, such as 403, where the handshake must be refused.
      - C(send), a text, or a mapping or list that is sent as JSON. C(expect), what has to come then. C(steps), a list of mappings with
        C(send) and C(expect), instead.
      - C(expect) is a text that the message contains, or a mapping of some of C(text) (the whole), C(contains), C(matches), C(json) (paths and
        conditions as in M(runbook.deploy.http_gate)), C(absent) (in no message that comes until then), C(within) seconds, and C(skip), how
        many other messages may come first (20). Or of C(close), the code with which the server is to close.
      - C(ping), whether the server must answer a ping at the end; by default V(true) where nothing is sent or expected.
      - C(stays_open), for how many seconds more the server must not close; by default 0.25 where nothing is sent or expected, because some
        applications accept whoever comes and close at once on those who may not.
      - C(close_code), the code with which the server must answer our close, such as 1000.
      - C({commit}), C({release}), C({version}), C({deployment}) are replaced everywhere, and C({secret.name}) in what is sent.
    type: list
    elements: dict
    required: true
  address:
    description:
      - Where connections go, such as V(wss://shop.example.org) or V(127.0.0.1:8000).
      - Exactly one of O(address) and O(socket) must be given.
    type: str
  socket:
    description: Unix socket that connections go to instead, whatever their host.
    type: path
  host:
    description: The C(Host) header, and with TLS the name that the certificate must carry; by default that of O(address).
    type: str
  headers:
    description: Headers of every handshake, such as C(X-Forwarded-Proto).
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
    description: Seconds for each check, unless it has its own.
    type: float
    default: 10
"""

EXAMPLES = r"""
- name: The chat answers, and tells which release it is
  runbook.deploy.websocket_gate:
    address: wss://shop.example.org
    secrets: "{{ {'token': smoke_token} | to_json }}"
    placeholders:
      commit: "{{ commit }}"
    checks:
      - url: /ws/chat/
        bearer: "{secret.token}"
        send:
          type: hello
        expect:
          json:
            type: welcome
            commit: "{commit}"
          within: 2
        close_code: 1000
      - name: nobody gets in without a token
        url: /ws/chat/
        status: [401, 403]
  delegate_to: localhost

- name: The new instance opens WebSockets behind its socket
  runbook.deploy.websocket_gate:
    socket: /srv/shop/run/web.20261121T013700-ab12.sock
    host: shop.example.org
    headers:
      X-Forwarded-Proto: https
    checks:
      - url: /ws/status/
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
      description: What was seen, with the first 200 characters of messages.
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
    asked:
      description: Address and place of the connection.
      type: str
    status:
      description: The status of the handshake, null without an answer.
      type: int
    repeat:
      description: The command that opens the same by hand, with secrets left out.
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
from ansible_collections.runbook.deploy.plugins.module_utils._websocket_gate import OPTIONS, RULES, perform


def main() -> None:
    """Run the module."""
    run_module(OPTIONS, RULES, perform)


if __name__ == "__main__":
    main()
