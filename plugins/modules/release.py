#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release
short_description: Build a release and its Python environment beside what runs
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Exports one commit into C(releases/<release>), builds C(environments/<hash>) where no release with the same dependencies has done so,
    and links the shared paths. Nothing that runs is touched, and none of the new code is executed, except by packages that have to be built.
  - The file C(.built) ends it. What a killed run left half built is removed and made again; what fails now is removed.
  - The environment is named by a hash of the interpreter with its full version, the platform, and all requirement and constraint files
    with those that they name. A requirement that is a path, or editable, puts the release into the hash. Requirements without a version
    are therefore looked up again only when something in the files changes.
  - Releases and environments belong to the user of the task and carry no write bits for anybody else; where that user is O(user) itself, for
    nobody. They are compiled, because the application could not keep compiled code.
attributes:
  check_mode:
    support: full
    description: The commit is looked up in a temporary directory, and what would be built is returned.
  diff_mode:
    support: full
    description: Shows release, commit and environment, of the current release and of the new one.
  idempotent:
    support: full
    description: A release that was built with its environment is left alone.
options:
  root:
    description: Directory on the host that holds everything (C(app_root)). It must exist.
    type: path
    required: true
  user:
    description:
      - The application's user (C(app_user)), to which new directories in C(shared/) are given.
      - The present user when not given.
    type: str
  source:
    description: Where the code comes from. One of O(source.repository) and O(source.archive) is required.
    type: dict
    required: true
    suboptions:
      repository:
        description: Address or path of the git repository.
        type: str
      key:
        description: Text of the private key with which the repository may be read. It is on the disk only while git runs.
        type: str
      known_hosts:
        description: Lines of C(known_hosts) for the repository's server. Required with O(source.key).
        type: str
      archive:
        description: An archive on the host, instead of a repository.
        type: dict
        suboptions:
          path:
            description:
              - Path of a tar file, compressed with gzip, bzip2 or xz or not at all, or of a zip file.
              - A single directory at its top is left out, unless O(directory) begins with it.
            type: path
          sha256:
            description: The sha256 that the archive must have. Required with O(source.archive.path).
            type: str
  version:
    description: What the operator called the version, for people to read. O(commit) decides.
    type: str
    default: ""
  commit:
    description:
      - The 40 digits of the commit, as M(runbook.deploy.deployment_state) has resolved them once for all hosts.
      - It is fetched only where the mirror does not have it.
    type: str
    required: true
  release:
    description: Name of the release, C(<first 12 digits of the commit>-<hash of the inputs>).
    type: str
    required: true
  directory:
    description: Where the application is, inside the repository (C(app_directory)).
    type: str
    default: ""
  python:
    description: Name or path of the interpreter that the environment is made from.
    type: str
    default: python3
  requirements:
    description:
      - Requirement files, relative to O(directory).
      - When one of them has hashes, every package in the files must have one.
    type: list
    elements: str
    default: [requirements.txt]
  constraints:
    description: Constraint files, relative to O(directory).
    type: list
    elements: str
    default: []
  packages:
    description: Packages to install besides the requirement files, such as V(gunicorn>=23).
    type: list
    elements: str
    default: []
  shared:
    description:
      - Paths relative to O(directory) that outlive releases. Each becomes a link to C(shared/<path>).
      - A name with an ending, such as V(db.sqlite3), is a file, which is only linked. Any other is a directory, which is made where it is missing,
        with what the release ships as its first content.
    type: list
    elements: str
    default: []
  build_environment:
    description:
      - Variables for the installer alone, as a JSON object, such as an index, a proxy or certificates.
      - The names that pip reads (C(PIP_INDEX_URL), C(PIP_EXTRA_INDEX_URL), C(PIP_FIND_LINKS), C(PIP_NO_INDEX), C(PIP_CERT)) work for uv as well.
    type: str
  uv:
    description:
      - Path of uv. When not given, the one in C(PATH) or in C(tools/venv/bin) of O(root) is used.
      - Where there is none, C(venv) and C(pip) of the interpreter are used, which take longer.
    type: str
  timeout:
    description: Seconds that the fetch, and each command of the installer, may take.
    type: int
    default: 900
  record:
    description: The deployment whose record this phase is written into, as returned by M(runbook.deploy.deployment_record).
    type: dict
"""

EXAMPLES = r"""
- name: Build the release
  runbook.deploy.release:
    root: /srv/shop
    user: shop
    source:
      repository: https://git.example.org/shop.git
    version: v2.7
    commit: 215c2c4df24a627f438f5dd9bba81f0beabba325
    release: 215c2c4df24a-8f14e45f
    requirements: [requirements/production.txt]
    packages: [gunicorn]
    shared: [media]
    build_environment: "{{ app_build_environment | to_json }}"
  register: release_result

- name: Build the release from an archive, on a host without git
  runbook.deploy.release:
    root: /srv/shop
    user: shop
    source:
      archive:
        path: /srv/shop/scratch/shop-2.7.tar.gz
        sha256: 2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824
    commit: 215c2c4df24a627f438f5dd9bba81f0beabba325
    release: 215c2c4df24a-8f14e45f
"""

RETURN = r"""
release:
  description: The release.
  returned: success
  type: dict
  contains:
    name:
      description: Its name.
      type: str
      returned: always
    path:
      description: Its directory.
      type: str
      returned: always
    commit:
      description: Its commit.
      type: str
      returned: always
    directory:
      description: Where the application is, inside RV(release.path).
      type: str
      returned: always
    environment:
      description: Name of its environment. Null in check mode where only the exported release could tell it.
      type: str
      returned: always
    environment_path:
      description: Directory of its environment. Null where RV(release.environment) is.
      type: str
      returned: always
    built:
      description: Whether it was built by this run, or would be in check mode.
      type: bool
      returned: always
  sample:
    name: 215c2c4df24a-8f14e45f
    path: /srv/shop/releases/215c2c4df24a-8f14e45f
    commit: 215c2c4df24a627f438f5dd9bba81f0beabba325
    directory: ""
    environment: b0987d81cf6969da
    environment_path: /srv/shop/environments/b0987d81cf6969da
    built: true
environment_built:
  description: Whether the environment was built by this run, or would be in check mode.
  returned: success
  type: bool
dependencies_changed:
  description: Whether the environment is another one than the current release's. True when there is no current release.
  returned: success
  type: bool
notes:
  description: What the operator should know, such as a file of the repository that is hidden by a shared path.
  returned: success
  type: list
  elements: str
seconds:
  description: Seconds that C(fetch), C(export) and C(environment) took.
  returned: success
  type: dict
  sample: {fetch: 0.06, export: 0.2, environment: 2.1}
evidence:
  description: The last lines of the command that failed.
  returned: failure
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._command import parse_environment
from ansible_collections.runbook.deploy.plugins.module_utils._environment import secret_parts
from ansible_collections.runbook.deploy.plugins.module_utils._git import address_secrets
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, current_release
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem, of_system
from ansible_collections.runbook.deploy.plugins.module_utils._record import open_journal
from ansible_collections.runbook.deploy.plugins.module_utils._release import (
    Outcome,
    Wanted,
    build,
    dependencies_changed,
    describe,
    foresee,
)


def argument_spec() -> dict[str, Any]:
    """Return the options."""
    return {
        "root": {"type": "path", "required": True},
        "user": {"type": "str"},
        "source": {
            "type": "dict",
            "required": True,
            "options": {
                "repository": {"type": "str"},
                "key": {"type": "str", "no_log": True},
                "known_hosts": {"type": "str"},
                "archive": {
                    "type": "dict",
                    "options": {"path": {"type": "path"}, "sha256": {"type": "str"}},
                },
            },
        },
        "version": {"type": "str", "default": ""},
        "commit": {"type": "str", "required": True},
        "release": {"type": "str", "required": True},
        "directory": {"type": "str", "default": ""},
        "python": {"type": "str", "default": "python3"},
        "requirements": {"type": "list", "elements": "str", "default": ["requirements.txt"]},
        "constraints": {"type": "list", "elements": "str", "default": []},
        "packages": {"type": "list", "elements": "str", "default": []},
        "shared": {"type": "list", "elements": "str", "default": []},
        "build_environment": {"type": "str", "no_log": True},
        "uv": {"type": "str"},
        "timeout": {"type": "int", "default": 900},
        "record": {"type": "dict"},
    }


def wanted_from(params: dict[str, Any], variables: dict[str, str]) -> Wanted:
    """Return what the options ask for; *variables* are the installer's."""
    names = (
        "release",
        "commit",
        "source",
        "python",
        "requirements",
        "constraints",
        "packages",
        "shared",
        "uv",
    )
    return Wanted(
        **{name: params[name] for name in names},
        user=params["user"] or None,
        version=params["version"] or params["commit"],
        directory=params["directory"].strip("/"),
        build=variables,
        timeout=float(params["timeout"]),
    )


def answer(layout: Layout, wanted: Wanted, outcome: Outcome) -> dict[str, Any]:
    """Return the module's results."""
    environment = outcome.environment
    return {
        "changed": outcome.changed,
        "release": {
            "name": wanted.release,
            "path": str(layout.release(wanted.release)),
            "commit": wanted.commit,
            "directory": wanted.directory,
            "environment": environment,
            "environment_path": str(layout.environment(environment)) if environment else None,
            "built": outcome.changed,
        },
        "environment_built": outcome.environment_built,
        "dependencies_changed": dependencies_changed(layout, environment),
        "notes": outcome.notes,
        "seconds": outcome.seconds,
    }


def difference(layout: Layout, wanted: Wanted, outcome: Outcome) -> dict[str, str]:
    """Return the diff between the current release and the one built."""
    current = current_release(layout)
    before = describe(layout.release(current)) if current else {}
    after = {
        "name": wanted.release,
        "commit": wanted.commit,
        "version": wanted.version,
        "environment": outcome.environment or "known after the export",
    }
    keys = ("name", "commit", "version", "environment")
    return {
        "before_header": "current release",
        "after_header": "built beside it",
        "before": "".join(f"{key}: {before[key]}\n" for key in keys if key in before),
        "after": "".join(f"{key}: {after[key]}\n" for key in keys),
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    layout = Layout(module.params["root"])
    try:
        variables = parse_environment(module.params["build_environment"], "build_environment")
        secrets = [*secret_parts(variables), *address_secrets(module.params["source"]["repository"] or "")]
        # Ansible prints the options: what is secret inside an address is known only now.
        module.no_log_values.update(address_secrets(module.params["source"]["repository"] or ""))
        wanted = wanted_from(module.params, variables)
        with open_journal(layout.root, module.params["record"], module.check_mode, secrets) as journal:
            if module.check_mode:
                outcome = foresee(layout, wanted)
            else:
                with journal.phase("release") as entry:
                    outcome = build(layout, wanted)
                    entry.update(answer(layout, wanted, outcome))
        results = answer(layout, wanted, outcome)
        if outcome.changed:
            results["diff"] = difference(layout, wanted, outcome)
    except Problem as problem:
        module.fail_json(**problem.answer())
    except OSError as error:
        module.fail_json(**of_system(error, module.params["root"]).answer())
    for note in outcome.notes:
        module.warn(note)
    module.exit_json(**results)


if __name__ == "__main__":
    main()
