#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_switch
short_description: Make a release the current one
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Points the link C(current) to a release by rename(2). At every moment there is a link, to the old or to the new release.
  - Running processes go on with what they have loaded. They are the business of M(runbook.deploy.app_service), which switches by itself;
    this module is for applications that no service belongs to, and for repairs.
attributes:
  check_mode:
    support: full
    description: Refuses what would be refused, and says what would change.
  diff_mode:
    support: full
    description: Shows where the link leads.
  idempotent:
    support: full
    description: A link that already leads to the release is left alone.
options:
  root:
    description: Directory on the host that holds everything (C(app_root)).
    type: path
    required: true
  release:
    description: Name of the release. It must have been built by M(runbook.deploy.release).
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Make the new release the current one
  runbook.deploy.release_switch:
    root: /srv/shop
    release: 215c2c4df24a-8f14e45f
"""

RETURN = r"""
previous:
  description: Name of the release that was current before. Null when there was none.
  returned: success
  type: str
  sample: 8c736521f1c2-8f14e45f
current:
  description: Name of the release that is current now, as read back from the link. In check mode the one that would be.
  returned: success
  type: str
  sample: 215c2c4df24a-8f14e45f
evidence:
  description: Output that proves a failure.
  returned: failure
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._switch import switch


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "release": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    layout = Layout(module.params["root"])
    try:
        previous, current, changed = switch(layout, module.params["release"], module.check_mode)
    except Problem as problem:
        module.fail_json(**problem.answer())
    results: dict[str, Any] = {"changed": changed, "previous": previous, "current": current}
    if changed:
        results["diff"] = {
            "before": f"{layout.current} -> {previous}\n" if previous else "",
            "after": f"{layout.current} -> {current}\n",
        }
    module.exit_json(**results)


if __name__ == "__main__":
    main()
