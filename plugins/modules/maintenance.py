#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: maintenance
short_description: Put a maintenance page on, and take it off again
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - V(on) answers every visitor with 503 and C(Retry-After), programs with JSON, and lets those in O(allow) reach the application. V(off) ends
    it, and says how long it was. V(prepared) only makes nginx know the page, so that V(on) needs no reload, unless O(expected) is
    longer than O(retry_after). V(facts) tells what is there. V(noted) writes into O(record) what web servers on other hosts showed.
  - With nginx the page is two files that it includes, O(http_file) in its C(http) block and O(server_file) in a C(server) block, and a flag
    that it tests at each request. The files are tested with C(nginx -t), and put back when nginx refuses them.
  - With V(file) a file is written, which the application or the web server looks for; with V(command) two commands of the application run.
  - It ends by itself after O(expires), whatever became of who put it on. nginx's flag holds the times at which it is up, so nothing has to
    run for that. For a file and commands a process of the host waits for the end, under systemd through a reboot, too.
  - When O(probe) is given, what a visitor gets is asked there before and after; a page that does not come is taken off again.
  - A maintenance that a person put on, without O(deployment), is left on by a deployment.
attributes:
  check_mode:
    support: full
    description: It only reads.
  diff_mode:
    support: full
    description: Shows whether it was on before and is after.
  idempotent:
    support: full
    description: What is on already gets a new end, which is no change.
options:
  state:
    description: What is wanted.
    type: str
    choices: ["on", "off", prepared, facts, noted]
    required: true
  kind:
    description: By what it is shown.
    type: str
    choices: [nginx, file, command]
    required: true
  root:
    description: Directory that holds everything of the application (C(app_root)).
    type: path
    required: true
  name:
    description: The application's name.
    type: str
    required: true
  stage:
    description: The stage.
    type: str
    required: true
  directory:
    description:
      - Directory of the flag, the page and the note who put it on. C(maintenance) below O(root) by default.
      - On a web server that is no host of the application, which has no O(root), another one has to be given; the one above it has to be there.
    type: path
  user:
    description: User that commands run as; the present one by default.
    type: str
  environment:
    description: The application's environment as JSON, for commands.
    type: str
  settings_module:
    description: C(DJANGO_SETTINGS_MODULE), for commands.
    type: str
    default: ""
  expires:
    description: Seconds after which it ends by itself, at most a day; later where O(expected) needs it.
    type: int
    default: 3600
  expected:
    description:
      - Seconds for which it is expected to last, such as what the migrations took on a copy; V(0) where nobody knows.
      - Then it ends after twice that and O(afterwards), where this is later than O(expires), and clients are told to come back not before.
    type: float
    default: 0
  afterwards:
    description: Seconds that what follows may take, such as the restart and the smoke test.
    type: int
    default: 0
  retry_after:
    description: Seconds after which clients are told to come back, at least; for longer where O(expected) is.
    type: int
    default: 120
  allow:
    description: Addresses and networks that reach the application meanwhile.
    type: list
    elements: str
    default: []
  trusted_proxies:
    description: Proxies in front, whose C(X-Forwarded-For) says where a request comes from.
    type: list
    elements: str
    default: []
  open:
    description: Paths that reach the application meanwhile, with all below them, such as V(/.well-known/acme-challenge/).
    type: list
    elements: str
    default: []
  json:
    description: Paths whose clients get JSON, whatever they accept.
    type: list
    elements: str
    default: []
  webhooks:
    description: Paths that are paused for everybody, O(allow) or not, so that what is sent there comes again later.
    type: list
    elements: str
    default: []
  page:
    description: The page as HTML; a plain one by default. It has to do without other files of the site.
    type: str
    default: ""
  http_file:
    description:
      - File for nginx's C(http) block, made with the line C(# Managed by runbook.deploy) first.
      - C(/etc/nginx/conf.d/NAME-STAGE-maintenance.conf) by default, which Debian's nginx includes.
    type: path
  server_file:
    description: File for C(server) blocks; C(/etc/nginx/snippets/NAME-STAGE-maintenance.conf) by default.
    type: path
  nginx:
    description: How to call nginx, such as C([nginx, -c, /etc/nginx/other.conf]).
    type: list
    elements: str
    default: [nginx]
  pid_file:
    description: Where nginx writes the PID of its master process.
    type: path
    default: /run/nginx.pid
  path:
    description: The file of V(file).
    type: path
  command_on:
    description: The words of the command that puts it on, run in the release that is current.
    type: list
    elements: str
    default: []
  command_off:
    description: The words of the command that takes it off.
    type: list
    elements: str
    default: []
  probe:
    description:
      - Address at which this host asks its own web server, such as V(http://127.0.0.1/). Empty asks nothing.
      - It is asked from an address of 127.0.0.0/8 that is not in O(allow), where it is one of these.
    type: str
    default: ""
  probe_host:
    description: The C(Host) header for O(probe).
    type: str
    default: ""
  verify_timeout:
    description: Seconds until a visitor has to get what is wanted.
    type: float
    default: 10
  deployment:
    description: Id of the deployment that it is for; empty where a person wants it.
    type: str
    default: ""
  reason:
    description: Why, for whoever finds it on.
    type: str
    default: ""
  operator:
    description: Who put it on.
    type: str
    default: ""
  downtime:
    description: For V(noted), RV(downtime) of the web server that showed it longest; none where it begins.
    type: dict
  record:
    description: The record of the deployment that this is a phase of.
    type: dict
"""

EXAMPLES = r"""
- name: Show the page for half an hour at most
  runbook.deploy.maintenance:
    state: "on"
    kind: nginx
    root: /srv/shop
    name: shop
    stage: production
    allow: [198.51.100.7, 10.0.0.0/8]
    json: [/api/]
    webhooks: [/hooks/]
    expires: 1800
    probe: http://127.0.0.1/
    probe_host: shop.example.org

- name: End it
  runbook.deploy.maintenance:
    state: "off"
    kind: nginx
    root: /srv/shop
    name: shop
    stage: production
"""

RETURN = r"""
maintenance:
  description: What is there afterwards.
  type: dict
  returned: success
  contains:
    "on":
      description: Whether it is shown.
      type: bool
    by:
      description: The deployment that put it on; empty for a person.
      type: str
    reason:
      description: Why.
      type: str
    operator:
      description: Who put it on.
      type: str
    since:
      description: Since when; null where it is not known.
      type: str
    expires:
      description: When it ends by itself; null where it is not known.
      type: str
    expected:
      description: Seconds for which it was expected to last when it was put on; 0 where nobody knew.
      type: int
    seconds_left:
      description: Seconds until it ends by itself.
      type: int
    over:
      description: Whether it ended by itself, and nobody has taken off what is left of it.
      type: bool
    unknown:
      description: Whether it is on without a note of this module.
      type: bool
by_hand:
  description: Whether a person's maintenance was left as it is.
  type: bool
  returned: success
downtime:
  description: How long it was on; null unless one was ended.
  type: dict
  returned: success
  contains:
    since:
      description: Since when.
      type: str
    until:
      description: Until when.
      type: str
    seconds:
      description: How many seconds.
      type: float
    expected:
      description: How many were expected; null where nobody knew.
      type: int
    by:
      description: The deployment that put it on; empty for a person.
      type: str
    expired:
      description: Whether it had ended by itself.
      type: bool
reloaded:
  description: Whether nginx was reloaded.
  type: bool
  returned: success
seen:
  description: What O(probe) answered to a C(visitor), a C(program) and one who is C(allowed), as far as each was asked.
  type: dict
  returned: success
evidence:
  description: The last lines of output that prove a failure.
  type: str
  returned: on failure
"""

from ansible_collections.runbook.deploy.plugins.module_utils._entry import run_module
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance import perform
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_options import OPTIONS, RULES


def main() -> None:
    """Run the module."""
    run_module(OPTIONS, RULES, perform)


if __name__ == "__main__":
    main()
