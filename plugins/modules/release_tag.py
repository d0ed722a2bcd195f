#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_tag
short_description: Tag the commit that was deployed
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Makes an annotated tag of the commit of a deployment, and pushes it to the repository that it came from.
  - It is done on the controller, with its git and the operator's credentials. Nothing is asked for, and nothing is forced.
  - It never fails. What could not be done is a warning, and said in the answer.
attributes:
  check_mode:
    support: full
    description: Nothing is pushed.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: full
    description: A tag that names the commit already is left as it is.
options:
  tag:
    description:
      - What to make (C(app_release_tag)).
      - The keys are C(name), C(message) (both with the placeholders C({application}), C({environment}), C({version}), C({commit}),
        C({short}), C({date}), C({time}), C({id}) and C({operator})), C(repository) (where the controller reaches it by another address) and
        C(timeout) (seconds for all of it, V(60)).
    type: dict
    required: true
  repository:
    description: Address of the repository (C(app_repository)).
    type: str
    default: ''
  record:
    description: Record of the deployment.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Tag what is live
  runbook.deploy.release_tag:
    tag: {name: "deployed/{environment}/{version}-{date}"}
    repository: git@git.example.org:shop.git
    record: "{{ rollback_outcome.record }}"
"""

RETURN = r"""
tag:
  description:
    - C(name), C(state) and C(message) of the tag; empty in check mode.
    - The states are C(pushed), C(there) (it named this commit already) and C(failed), of which the message says why.
  returned: success
  type: dict
"""
