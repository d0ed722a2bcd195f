#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: compose_image
short_description: Have the images of a release that is run by Docker Compose
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Builds, pulls or finds the image of each service under the manager C(compose), and writes down in the release, in C(.images.json),
    which it is by digest. From then on the release is run from that digest, whatever its tag comes to mean.
  - Where a service has an C(image) it is that one; else what the release's Compose file says, which is built where it says
    C(build).
  - An image that names its registry is pulled; where that fails, what the host has of it is taken, with a warning. One that names none is
    pulled only where the host does not have it.
  - A tag C(runbook/<name>-<stage>/<service>:<release>) keeps the image from being pruned. It goes when a later release is made and its own
    is not on the host any more.
  - Nothing that runs is touched.
requirements:
  - Docker with Compose 2 on the host, for O(services) under C(compose).
attributes:
  check_mode:
    support: full
    description: Says whether an image is missing; nothing is built or pulled.
  diff_mode:
    support: none
    description: What changed is in RV(images).
  idempotent:
    support: full
    description: An image that the release names and the host has is left alone, even when its tag means another one by now.
options:
  root:
    description: Directory on the host that holds everything (C(app_root)).
    type: path
    required: true
  name:
    description: Name of the application (C(app_name)).
    type: str
    default: ''
  stage:
    description: Name of the stage (C(app_stage)).
    type: str
    default: ''
  user:
    description: The application's user, whose ids a Compose file knows as C(RUNBOOK_UID) and C(RUNBOOK_GID); by default the present one.
    type: str
  release:
    description: Name of the release, which must be built.
    type: str
    required: true
  services:
    description: The services of this host (C(app_services)). Only those under the manager C(compose) are looked at.
    type: list
    elements: dict
    required: true
  environment:
    description: The application's variables (C(app_environment)) as JSON; a Compose file can use them as C(${NAME}).
    type: str
  settings_module:
    description: DJANGO_SETTINGS_MODULE, empty for other frameworks.
    type: str
    default: ''
  timeout:
    description: Seconds that building or pulling an image may take.
    type: int
    default: 900
  record:
    description: The journal to write to, as M(runbook.deploy.deployment_record) returns it.
    type: dict
"""

EXAMPLES = r"""
- name: Build the image of the release
  runbook.deploy.compose_image:
    root: /srv/shop
    name: shop
    stage: production
    user: shop
    release: 1f0c3a5b7d9e-0a1b2c3d
    services:
      - name: web
        manager: compose
        port: 8000
    environment: "{{ app_environment | to_json }}"
"""

RETURN = r"""
images:
  description:
    - The image of each service. Each has C(id), its digest on this host, C(reference), the name that it was found by, C(digests), its
      digests in registries, C(origin) (C(built), C(pulled) or C(local)), and C(tag), which keeps it.
  returned: success
  type: dict
  sample:
    web:
      id: sha256:26f03974a28d48eea91c99ef9ea526767593ef75d9ec619b073b954fd0d2f451
      reference: runbook/shop-production/web:1f0c3a5b7d9e-0a1b2c3d
      digests: []
      origin: built
      tag: runbook/shop-production/web:1f0c3a5b7d9e-0a1b2c3d
evidence:
  description: The last lines of the command that failed.
  returned: failure
  type: str
"""

import contextlib
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._application import installed
from ansible_collections.runbook.deploy.plugins.module_utils._compose import read_images
from ansible_collections.runbook.deploy.plugins.module_utils._compose_image import ensure, missing
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem, of_system
from ansible_collections.runbook.deploy.plugins.module_utils._record import open_journal


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "name": {"type": "str", "default": ""},
            "stage": {"type": "str", "default": ""},
            "user": {"type": "str"},
            "release": {"type": "str", "required": True},
            "services": {"type": "list", "elements": "dict", "required": True},
            "environment": {"type": "str", "no_log": True},
            "settings_module": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 900},
            "record": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    params = module.params
    further = {"commit": "", "version": "", "deployment": "", "environment_path": "", "directory": ""}
    wanted = [spec for spec in params["services"] if spec.get("manager") == "compose"]
    notes: list[str] = []
    try:
        target = installed({**params, **further})
        if module.check_mode or not wanted:
            changed = bool(wanted and missing(target.layout, params["release"], wanted))
            images = read_images(target.layout, params["release"])
        else:
            with contextlib.ExitStack() as stack:
                journal = stack.enter_context(
                    open_journal(target.layout.root, params["record"], False, target.secrets)
                )
                entry = stack.enter_context(journal.phase("image"))
                scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="runbook-image-"))
                images, changed, notes = ensure(
                    target, params["name"], params["stage"], wanted, float(params["timeout"]), Path(scratch)
                )
                entry["images"] = images
    except Problem as problem:
        module.fail_json(**problem.answer())
    except OSError as error:
        module.fail_json(**of_system(error, params["root"]).answer())
    for note in notes:
        module.warn(note)
    module.exit_json(changed=changed, images=images)


if __name__ == "__main__":
    main()
