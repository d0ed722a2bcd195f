#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: deployment_resume
short_description: Wait for what a dead run left at work, and go on with its deployment
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - A migration outlives the connection it was started by. This module waits for it, and returns what it answered.
  - A deployment that was cut off can be gone on with under its own id. Its lock and its records then belong to the new run; what still
    comes from the old one stops.
  - Lock and record writes never count as changes.
attributes:
  check_mode:
    support: full
    description: Waits all the same, and takes nothing.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: partial
    description: Each O(state=taken) makes another token on the primary.
options:
  root:
    description: Directory on the host that holds everything (C(app_root)).
    type: path
    required: true
  state:
    description:
      - V(awaited) waits until no process that O(deployment) left at work lives on this host.
      - V(taken), on the primary first, takes the lock and the record of O(deployment), which must have no verdict.
    type: str
    choices: [awaited, taken]
    required: true
  deployment:
    description: Id of the deployment or rollback that was cut off.
    type: str
    required: true
  time_limit:
    description: For O(state=awaited), seconds to wait.
    type: int
    default: 3600
  host:
    description: For O(state=taken), the name of this host in the inventory.
    type: str
    default: ''
  primary:
    description: For O(state=taken), whether this is the host with the lock.
    type: bool
    default: true
  token:
    description: For O(state=taken) on other hosts than the primary, the token that the primary returned in RV(record).
    type: str
    default: ''
  about:
    description: For O(state=taken), who goes on and why, as C(operator), C(controller), C(rule) and C(reason); kept in the record.
    type: dict
    default: {}
  take_over:
    description:
      - For O(state=taken), go on although the lease of the lock is not past, because its run is dead.
      - Refused while one of its processes works on the host.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Wait for the migration that still runs
  runbook.deploy.deployment_resume:
    root: /srv/shop
    state: awaited
    deployment: 20261121T013700-ab12
  register: awaited

- name: Go on with the deployment
  runbook.deploy.deployment_resume:
    root: /srv/shop
    state: taken
    deployment: 20261121T013700-ab12
    host: web1
    about: {operator: alice, controller: ci1, rule: live, reason: Only later steps are open.}
  register: taken
"""

RETURN = r"""
phase:
  description: The phase that was detached last on this host, V(migrate) or V(reverse); empty where none was.
  returned: when O(state=awaited)
  type: str
waited:
  description: How many seconds it was waited.
  returned: when O(state=awaited)
  type: float
answer:
  description: What the module of that phase would have answered, with C(failed); C(died) where its process ended without a word.
  returned: when O(state=awaited)
  type: dict
sentence:
  description: How it ended, in words.
  returned: when O(state=awaited)
  type: str
evidence:
  description: The last lines of its log, where it failed.
  returned: when O(state=awaited)
  type: str
record:
  description: What the modules of the phases take as O(runbook.deploy.migration#module:record).
  returned: when O(state=taken)
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._detached import attach, said
from ansible_collections.runbook.deploy.plugins.module_utils._layout import DEPLOYMENT_ID, Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem, of_system
from ansible_collections.runbook.deploy.plugins.module_utils._taking import take


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["awaited", "taken"], "required": True},
            "deployment": {"type": "str", "required": True},
            "time_limit": {"type": "int", "default": 3600},
            "host": {"type": "str", "default": ""},
            "primary": {"type": "bool", "default": True},
            "token": {"type": "str", "no_log": False, "default": ""},
            "about": {"type": "dict", "default": {}},
            "take_over": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    layout = Layout(params["root"])
    try:
        if not DEPLOYMENT_ID.match(params["deployment"]):
            raise Problem(
                f"The option deployment is {params['deployment']!r}, expected an id like 20261121T013700-ab12."
            )
        if params["state"] == "awaited":
            result = attach(layout, params["deployment"], params["time_limit"])
            failed = result["answer"].get("failed", False)
            result["sentence"] = said(params["deployment"], result)
            result["evidence"] = str(result["answer"].get("evidence") or "") if failed else ""
        else:
            if not params["primary"] and not params["token"]:
                raise Problem(
                    "The option token is empty, but only the primary makes one: pass on that of its record."
                )
            result = {
                "record": take(
                    layout,
                    params["deployment"],
                    host=params["host"],
                    primary=params["primary"],
                    token=params["token"],
                    about=params["about"],
                    take_over=params["take_over"],
                    check_mode=module.check_mode,
                )
            }
    except Problem as problem:
        module.fail_json(**problem.answer())
    except OSError as error:
        module.fail_json(**of_system(error, params["root"]).answer())
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
