#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: load_balancer
short_description: Take a server out of a load balancer and put it back
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Runs on the host of the load balancer. V(drained) lets a server take nothing new, waits until what is at work there has ended, and takes it
    out. V(ready) puts it back, once it is seen to answer.
  - With HAProxy it speaks to the runtime API at O(socket). The server is set to C(drain), then to C(maint). On the way back it is checked
    in C(drain), where it gets nothing, until the checks are good; then it is set to C(ready), with the weight that it had.
  - With nginx, which has no such interface, it writes the parameter C(down) into a file that holds nothing but one upstream and whose first
    line is C(# Managed by runbook.deploy), tests with C(nginx -t), reloads, and waits until no old worker talks to that server.
  - A server that somebody else took out stays out, and RV(by_hand) says so.
  - When it fails, the server is left as it was before.
attributes:
  check_mode:
    support: full
    description: It only reads.
  diff_mode:
    support: full
    description: Shows the state of the server before and after.
  idempotent:
    support: full
    description: A server that is there already is waited for, and is no change.
options:
  state:
    description:
      - V(drained) takes the server out, V(ready) puts it back, V(facts) only tells what is there.
    type: str
    choices: [drained, ready, facts]
    required: true
  kind:
    description: What balances the load.
    type: str
    choices: [haproxy, nginx]
    required: true
  backend:
    description: HAProxy's backend, or nginx's upstream.
    type: str
    required: true
  server:
    description:
      - The server - HAProxy's name of it, the first word of the comment behind nginx's line, or its address, with or without port.
      - Required for V(drained) and V(ready).
    type: str
  socket:
    description: HAProxy's C(stats socket) with C(level admin), as an absolute path or C(host:port). Required for HAProxy.
    type: str
  upstream_file:
    description: The file that holds the upstream. Required for nginx.
    type: path
  pid_file:
    description: Where nginx writes the PID of its master process.
    type: path
    default: /run/nginx.pid
  nginx:
    description: How to call nginx, such as C([nginx, -c, /etc/nginx/other.conf]).
    type: list
    elements: str
    default: [nginx]
  notes:
    description: Directory that keeps which servers of HAProxy this module took out. It is made where it is missing.
    type: path
    default: /var/lib/runbook-balancer
  drain_timeout:
    description: Seconds that what is at work on the server may take to end.
    type: float
    default: 60
  on_deadline:
    description:
      - What happens when it has not ended by then. V(fail) puts the server back and fails; V(go_on) takes it out and names in RV(left) what
        was left, which ends when the application does.
    type: str
    choices: [fail, go_on]
    default: fail
  ready_timeout:
    description: Seconds until the server must be ready.
    type: float
    default: 60
  checked:
    description:
      - Seconds that the checks must be good before the server gets requests.
      - Make it longer than the interval of HAProxy's checks.
    type: float
    default: 3
  health_path:
    description:
      - A path such as V(/healthz/) that the server has to answer with 2xx over HTTP, asked from the load balancer.
      - Without it a server of nginx, and one of HAProxy without checks, has to accept a connection.
    type: str
  health_host:
    description: The Host header for O(health_path).
    type: str
  allow_last:
    description: Takes a server out even where no other gets requests.
    type: bool
    default: false
  force:
    description: Puts a server back that somebody else took out.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Take this host out of HAProxy
  runbook.deploy.load_balancer:
    state: drained
    kind: haproxy
    socket: /run/haproxy/admin.sock
    backend: shop
    server: "{{ inventory_hostname }}"
    drain_timeout: 120
  delegate_to: lb1

- name: Put this host back into nginx
  runbook.deploy.load_balancer:
    state: ready
    kind: nginx
    upstream_file: /etc/nginx/conf.d/shop-upstream.conf
    backend: shop
    server: "{{ inventory_hostname }}"
    health_path: /healthz/
  delegate_to: lb1

- name: What the balancer thinks
  runbook.deploy.load_balancer:
    state: facts
    kind: haproxy
    socket: 127.0.0.1:9999
    backend: shop
"""

RETURN = r"""
servers:
  description: The servers of the backend, afterwards.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its name.
      type: str
    address:
      description: Its address.
      type: str
    admin:
      description: V(ready), V(drain) or V(maint), as somebody wants it.
      type: str
    ours:
      description: Whether this module took it out.
      type: bool
    up:
      description: What HAProxy's checks say; null where there are none.
      type: bool
    check:
      description: What the last check said.
      type: str
    weight:
      description: Its weight.
      type: int
    effective:
      description: The weight that it has at the moment, less while it starts slowly.
      type: int
    backup:
      description: Whether it gets requests only when there is no other.
      type: bool
    sessions:
      description: How many requests are at work on it; null with nginx.
      type: int
    queue:
      description: How many requests wait for it; null with nginx.
      type: int
    usable:
      description: Whether it gets requests.
      type: bool
before:
  description: The server as it was found, with the keys of RV(servers).
  type: dict
  returned: success
after:
  description: The server as it is now.
  type: dict
  returned: success
by_hand:
  description: Whether somebody else had taken it out.
  type: bool
  returned: success
left:
  description: Sessions that had not ended when the time was over.
  type: list
  elements: str
  returned: success, and a failure of that kind
seconds:
  description: How long it took.
  type: float
  returned: success
evidence:
  description: The last lines of output that prove a failure.
  type: str
  returned: on failure
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._balancer import OPTIONS, RULES, perform
from ansible_collections.runbook.deploy.plugins.module_utils._balancer_haproxy import Haproxy
from ansible_collections.runbook.deploy.plugins.module_utils._balancer_nginx import NginxUpstream
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

DRIVERS = {"haproxy": Haproxy, "nginx": NginxUpstream}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True, **RULES)
    try:
        driver = DRIVERS[module.params["kind"]](module.params)
        answer = perform(module.params, module.check_mode, driver)
    except Problem as problem:
        module.fail_json(**problem.answer())
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
