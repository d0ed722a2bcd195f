#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: notification
short_description: Tell people by webhook and mail how a deployment begins and ends
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Sends a message to each of O(notifications) that wants to know of the event, from the controller, to all of them at the same time.
  - The event follows from O(kind) and O(verdict), V(start) without a verdict. Of V(no_change) and V(checked) nobody is told.
  - A message that is not taken, or not in time, is a warning and is returned in RV(unsent). It never fails the task.
  - No answer and no warning has a password or the path of a webhook.
attributes:
  check_mode:
    support: full
    description: Nothing is sent.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: none
    description: Each time the messages are sent again.
options:
  notifications:
    description:
      - Who is told, C(app_notifications). Each is a mapping with C(name) and C(kind), which is V(webhook), V(slack) or V(mail).
      - C(events) (all by default), some of V(start), V(success), V(failure) and V(rollback).
      - C(timeout), seconds for everything, 10 by default, and C(ca_path), a file with the certificates of the authorities to trust instead
        of the system's.
      - C(templates), a mapping of events to mappings with C(subject), C(body) or both. C({application}), C({stage}), C({kind}), C({event}),
        C({verdict}), C({id}), C({version}), C({commit}), C({host}), C({operator}), C({controller}), C({reason}), C({maintenance}),
        C({url}), C({report}), C({record}) and C({time}) are replaced. A line of which all are empty is left out.
      - V(webhook) and V(slack) have C(url) and C(headers), both secret. A V(webhook) gets a JSON object with all of these values, C(subject) and
        C(text) (subject and body), V(slack) gets C(text) alone. Any status from 200 to 299 is good, redirects are not followed, and the
        proxies of the controller's environment are used.
      - V(mail) has C(host), C(from), C(to) (a list), C(tls) (V(starttls) by default, V(implicit) or V(none)), C(port) (587, 465 or 25 by
        default), C(user) and C(password) (secret). Nothing is sent unencrypted because a server offers nothing better.
    type: list
    elements: dict
    required: true
  application:
    description: Name of the application.
    type: str
    required: true
  stage:
    description: Stage of the inventory.
    type: str
    required: true
  kind:
    description: What the run is.
    type: str
    default: deployment
    choices: [deployment, rollback]
  verdict:
    description: How it ended; empty where it begins.
    type: str
    default: ''
    choices: ['', success, no_change, checked, rolled_back, flags_off, abandoned, stopped, failed, refused]
  record:
    description: Record of the deployment, from the primary, or its header.
    type: dict
    default: {}
  failures:
    description: What failed, with C(host), C(phase) and C(reason) each.
    type: list
    elements: dict
    default: []
  plan:
    description: The decision of M(runbook.deploy.rollback_plan).
    type: dict
    default: {}
  primary:
    description: Name of the host that keeps the record.
    type: str
    default: ''
  root:
    description: Directory on the hosts that holds everything.
    type: path
    default: ''
  url:
    description: Public address of the application.
    type: str
    default: ''
  store:
    description: Directory of the controller that gets the report; empty where there is none.
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: Tell the operators that it begins
  runbook.deploy.notification:
    notifications:
      - name: operators
        kind: slack
        url: "{{ vault_slack_url }}"
      - name: on call
        kind: mail
        events: [failure, rollback]
        host: mail.example.org
        user: deploy
        password: "{{ vault_mail_password }}"
        from: deploy@example.org
        to: [oncall@example.org]
        templates:
          failure:
            subject: "{application} on {stage}: {reason}"
    application: shop
    stage: production
    record: {version: v2.7, operator: alice}
"""

RETURN = r"""
event:
  description: Of what was told, or null where there was nothing to tell.
  returned: always
  type: str
  sample: start
sent:
  description: Names of those whose message was taken.
  returned: always
  type: list
  elements: str
unsent:
  description: Those who could not be told.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The name.
      type: str
    message:
      description: Why, in a sentence.
      type: str
"""
