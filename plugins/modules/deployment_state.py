#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: deployment_state
short_description: Measure what a host serves, and what a deployment would change
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Asks the host which release answers, which migrations are applied, who holds the lock and which deployment was begun and never ended.
  - Which release answers is told from the process at the other end of the socket or port.
  - What stands in the way of a deployment is returned as sentences in RV(state.problems); with O(refuse) it is a failure of this task, too.
  - With O(resolve), fetches the repository and resolves O(version) to one commit. Nothing else is ever changed.
attributes:
  check_mode:
    support: full
    description: The repository is fetched into a temporary directory, so that the host stays as it is.
  diff_mode:
    support: full
    description: With O(resolve), shows commits, migrations and files between what is live and what is wanted.
  idempotent:
    support: full
    description: It measures.
extends_documentation_fragment:
  - runbook.deploy.database
options:
  root:
    description: Directory on the host that holds everything (C(app_root)).
    type: path
    required: true
  name:
    description: Name of the application (C(app_name)).
    type: str
  stage:
    description: Stage of this inventory (C(app_stage)).
    type: str
  user:
    description: User that the application runs as; null for the present one.
    type: str
  services:
    description: Services of this host (C(app_services), complete).
    type: list
    elements: dict
    default: []
  framework:
    description: What migrates the database.
    type: str
    default: none
  shared:
    description: Paths that are linked into each release (C(app_shared)).
    type: list
    elements: str
    default: []
  adopt:
    description: Present installation to take over (C(app_adopt)).
    type: dict
    default: {}
  record:
    description: The deployment of the caller, which does not count as interrupted; null outside a deployment.
    type: dict
  resolve:
    description: Fetch, resolve O(version), and compare it with what is live.
    type: bool
    default: false
  refuse:
    description: Fail with what stands in the way of a deployment; what was measured is returned all the same.
    type: bool
    default: false
  source:
    description: Where the code comes from; needed with O(resolve).
    type: dict
    default: {}
    suboptions:
      repository:
        description: Git repository (C(app_repository)).
        type: str
      key:
        description: Text of the deploy key (C(app_repository_key)).
        type: str
      known_hosts:
        description: Lines of known_hosts for the repository (C(app_repository_known_hosts)).
        type: str
      archive:
        description: Instead of a repository, C(path) of an archive on this host and its C(sha256).
        type: dict
  version:
    description: Tag, branch or commit (C(app_version)).
    type: str
    default: ''
  directory:
    description: Where C(manage.py) is, inside the repository (C(app_directory)).
    type: str
    default: ''
  inputs8:
    description: Second half of the release's name, as M(runbook.deploy.contract) computes it; needed with O(resolve).
    type: str
    default: ''
  timeout:
    description: Seconds that the fetch may take.
    type: int
    default: 300
"""

EXAMPLES = r"""
- name: See what the host serves
  runbook.deploy.deployment_state:
    root: /srv/shop
    services: [{name: web, kind: web, bind: socket}]
    database: {engine: sqlite, path: /srv/shop/shared/db.sqlite3}
    framework: django

- name: See what the next version would bring
  runbook.deploy.deployment_state:
    root: /srv/shop
    source: {repository: https://git.example.org/shop.git}
    version: v2.7
    inputs8: "01234567"
    resolve: true
  check_mode: true
  diff: true
"""

RETURN = r"""
state:
  description: What is true on the host.
  returned: always
  type: dict
  contains:
    exists:
      description: Whether O(root) is a directory.
      type: bool
    current:
      description: What would serve after a reboot, as release, commit, deployment and version; null when nothing.
      type: dict
    releases:
      description: Releases on the host, the latest deployed first, as name, commit, version, environment, built and complete.
      type: list
      elements: dict
    services:
      description:
        - What is true of each service, as name, kind, deployment, release, running, pid, answers (null where nothing listens by its
          nature), foreign (the command of a stranger at its address) and instances (deployment, release and pid of each main process).
      type: list
      elements: dict
    applied:
      description: Applied migrations as lists of app and name; null where there is no database or no table of them.
      type: list
      elements: list
    heads:
      description: Last migration of each app.
      type: dict
    recorded_heads:
      description: The heads measured when the live instance last went live; null when that is not known.
      type: dict
    interrupted:
      description:
        - The newest deployment that began, has no verdict and holds no living lock, as id, phase, begun, host, kind and release; or null.
        - Hosts other than the primary have no lock, so that there a running deployment of somebody else shows as well.
      type: dict
    unfinished:
      description: The newest deployment or rollback that began and has no verdict, whether its run may live or not, in the same form; or null.
      type: dict
    working:
      description:
        - The migration that works on this host in a process of its own, as deployment, phase, pid and since; or null. Its run may be dead.
        - M(runbook.deploy.deployment_resume) waits for it.
      type: dict
    lock:
      description: The lock without its token, as M(runbook.deploy.deployment_lock) returns it, with a message in words; or null.
      type: dict
    target:
      description: What a rollback would go back to, as release, deployment, commit and version; or null.
      type: dict
    record:
      description: Record of the live deployment, or null.
      type: dict
    open_record:
      description: Record of the newest deployment that changed, or may have changed, what is live, and was not taken back; or null.
      type: dict
    adopted:
      description: The installation of O(adopt) as service, path and active (null when systemd does not know the unit); or null.
      type: dict
    python:
      description: Version and executable of the Python that ran this module.
      type: dict
    space:
      description: Free and total bytes and free inodes where O(root) lies; null where it does not exist.
      type: dict
    problems:
      description: What stands in the way of a deployment, as code and message.
      type: list
      elements: dict
      sample: [{code: root_missing, message: "app_root '/srv/shop' does not exist on this host: run playbooks/setup.yml first."}]
    warnings:
      description: What is not as it should be and stops nothing, as code and message. With O(resolve=true) each is a warning of the module, too.
      type: list
      elements: dict
    settled:
      description: Whether the live release is whole, its deployment succeeded, and every service answers from it.
      type: bool
wanted:
  description: What O(version) is and would bring.
  returned: when O(resolve=true) and O(root) exists, or in check mode
  type: dict
  contains:
    version:
      description: What was asked for.
      type: str
    commit:
      description: The one commit it is.
      type: str
    note:
      description: What the operator should know about how it was found, such as an ambiguity; or empty.
      type: str
    release:
      description: Name of its release.
      type: str
    built:
      description: Whether the release is built on this host.
      type: bool
    complete:
      description: Whether it is complete on this host.
      type: bool
    current:
      description: Whether nothing is to be done; the release is live, whole, its deployment succeeded, and every service answers from it.
      type: bool
    commits:
      description: Commits that are not live yet, newest first, as commit, subject, author and date.
      type: list
      elements: dict
    files:
      description: Files that differ, as status and path.
      type: list
      elements: dict
    pending_by_file:
      description: Migrations among the files of the commit that are not applied, as lists of app and name.
      type: list
      elements: list
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils import _state, _wanted
from ansible_collections.runbook.deploy.plugins.module_utils._database import (
    ADMIN_OPTION,
    OPTIONAL_DATABASE,
    named,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._measured import is_current
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._source import (
    changed_files,
    commits_between,
    list_files,
    resolve,
)


def compare(
    layout: Layout, state: dict[str, Any], params: dict[str, Any], check_mode: bool
) -> dict[str, Any]:
    """Fetch and resolve the version; return ``wanted``.

    :raises Problem: when the version or the repository is not there.
    """
    if not params["inputs8"]:
        raise Problem(
            "The option inputs8 is empty, but resolve needs it: pass what the contract action returned."
        )
    live = (state["current"] or {}).get("commit")
    with resolve(
        layout, params["source"], params["version"], check_mode=check_mode, timeout=params["timeout"]
    ) as found:
        release = _wanted.release_name(found.commit, params["inputs8"])
        known = next((entry for entry in state["releases"] if entry["name"] == release), None)
        wanted: dict[str, Any] = {
            "version": found.version,
            "commit": found.commit,
            "note": found.note,
            "release": release,
            "built": bool(known and known["built"]),
            "complete": bool(known and known["complete"]),
            "current": is_current(state, release),
            "commits": [],
            "files": [],
            "pending_by_file": [],
        }
        if not wanted["current"]:
            wanted["commits"] = commits_between(found.git_dir, live, found.commit)
            wanted["files"] = changed_files(found.git_dir, live, found.commit)
            wanted["pending_by_file"] = _wanted.pending_by_file(
                list_files(found.git_dir, found.commit),
                params["directory"],
                state["applied"],
                params["framework"],
                [entry["path"] for entry in wanted["files"]] if live else None,
            )
    return wanted


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "name": {"type": "str"},
            "stage": {"type": "str"},
            "user": {"type": "str"},
            "services": {"type": "list", "elements": "dict", "default": []},
            "database": OPTIONAL_DATABASE,
            "database_admin": ADMIN_OPTION,
            "framework": {"type": "str", "default": "none"},
            "shared": {"type": "list", "elements": "str", "default": []},
            "adopt": {"type": "dict", "default": {}},
            "record": {"type": "dict"},
            "resolve": {"type": "bool", "default": False},
            "refuse": {"type": "bool", "default": False},
            "source": {
                "type": "dict",
                "default": {},
                "options": {
                    "repository": {"type": "str"},
                    "key": {"type": "str", "no_log": True},
                    "known_hosts": {"type": "str"},
                    "archive": {"type": "dict"},
                },
            },
            "version": {"type": "str", "default": ""},
            "directory": {"type": "str", "default": ""},
            "inputs8": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    params = module.params
    layout = Layout(params["root"])
    result: dict[str, Any] = {"changed": False}
    try:
        result["state"] = state = _state.measure(
            layout,
            services=params["services"],
            user=params["user"],
            database=named(params["database"]),
            database_admin=params["database_admin"],
            framework=params["framework"],
            shared=params["shared"],
            directory=params["directory"],
            adopt=params["adopt"] or None,
            own=(params["record"] or {}).get("id"),
        )
        if params["resolve"] and (state["exists"] or module.check_mode):
            # Before a deployment they are told while there is time to do something about them.
            for warning in state["warnings"]:
                module.warn(warning["message"])
            result["wanted"] = wanted = compare(layout, state, params, module.check_mode)
            if wanted["note"]:
                module.warn(wanted["note"])
            # Ansible shows a diff only of what changed: in check mode that is what the deployment would do.
            result["changed"] = module.check_mode and not wanted["current"]
            result["diff"] = _wanted.diff(state["current"], wanted)
    except Problem as problem:
        # What was measured is true also where the version is not to be had.
        module.fail_json(**{**result, **problem.answer()})
    if params["refuse"] and state["problems"]:
        module.fail_json(msg="\n".join(problem["message"] for problem in state["problems"]), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
