#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: application_root
short_description: Make the directories of an application, and the installer its environments are built with
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Makes every directory below O(root) with its owner and mode, so that the application can read its releases and cannot change them.
  - With O(uv=true), makes a virtual environment below C(tools) that holds uv, which builds the environments of releases.
attributes:
  check_mode:
    support: full
    description: Says which directories would be made or changed.
  diff_mode:
    support: full
    description: Shows owner, group and mode before and after.
  idempotent:
    support: full
    description: A second run changes nothing.
options:
  root:
    description: Directory on the host that holds everything.
    type: path
    required: true
  user:
    description: User that the application runs as; the present user by default.
    type: str
  data_directories:
    description: Directories below C(shared) that the application writes to, such as the one of a SQLite database.
    type: list
    elements: path
    default: []
  uv:
    description: Whether to install uv below C(tools) where no uv is found.
    type: bool
    default: false
  python:
    description: Interpreter that the environment of uv is made from.
    type: str
    default: python3
  build_environment:
    description: Variables for the installer (proxy, index, certificates), a JSON object in one string.
    type: str
  timeout:
    description: Seconds that the installation of uv may take.
    type: int
    default: 300
"""

EXAMPLES = r"""
- name: Make the directories
  runbook.deploy.application_root:
    root: /srv/shop
    user: shop
    data_directories: [/srv/shop/shared/data]
    uv: true
"""

RETURN = r"""
directories:
  description: Directories that were made or changed.
  returned: success
  type: list
  elements: str
  sample: [/srv/shop/releases]
uv_installed:
  description: Whether uv was installed now.
  returned: success
  type: bool
"""

import os
import pwd
import shutil
import stat
from pathlib import Path
from typing import NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._command import parse_environment, run
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Stands for the numbers of a user who does not exist yet.
NEW = -1


class Wanted(NamedTuple):
    """A directory as it has to be; owner and group are numeric."""

    path: Path
    mode: int
    owner: int
    group: int

    def text(self) -> str:
        """Return mode and owner for a diff."""
        owner, group = ("new" if number == NEW else number for number in (self.owner, self.group))
        return f"{self.path} {self.mode:04o} {owner}:{group}"


def wanted_directories(
    layout: Layout, user: str | None, data: list[str], check_mode: bool = False
) -> list[Wanted]:
    """Return the directories of *layout*, parents first.

    What the application reads belongs to whoever deploys; only run, logs and data belong to the application.

    :param check_mode: the task before this one would have made the user.
    :raises Problem: when the user does not exist, or a data directory lies outside C(shared).
    """
    me, my_group = os.geteuid(), os.getegid()
    app, group = me, my_group
    try:
        entry = pwd.getpwnam(user) if user else pwd.getpwuid(me)
        if me == 0:
            app, group = entry.pw_uid, entry.pw_gid
    except KeyError as error:
        if not check_mode:
            raise Problem(
                f"The user {user!r} (app_user) does not exist: make it, or set setup_manage_user to true."
            ) from error
        app, group = NEW, NEW
    result = [
        Wanted(layout.root, 0o755, me, my_group),
        Wanted(layout.releases, 0o755, me, my_group),
        Wanted(layout.environments, 0o755, me, my_group),
        Wanted(layout.shared, 0o755, me, my_group),
        Wanted(layout.static, 0o755, me, my_group),
        Wanted(layout.instances, 0o750, me, group),
        Wanted(layout.logs, 0o750, app, group),
        # The application makes its sockets here; sticky, so that it cannot replace a link or a PID file of ours.
        Wanted(layout.run, 0o1775, me, group),
        Wanted(layout.backups, 0o700, me, my_group),
        Wanted(layout.deployments, 0o750, me, my_group),
        # The application's user must reach its own scratch directory, and list no other.
        Wanted(layout.scratch, 0o711, me, my_group),
        Wanted(layout.tools, 0o755, me, my_group),
    ]
    for directory in data:
        path = Path(directory)
        if layout.shared not in path.parents:
            raise Problem(
                f"The data directory {directory!r} is not below {layout.shared}: make it yourself, writable by the application."
            )
        result.append(Wanted(path, 0o750, app, group))
    return result


def present(path: Path) -> Wanted | None:
    """Return what there is at *path*, or None.

    :raises Problem: when it is something else than a directory.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(found.st_mode):
        raise Problem(f"{path} is not a directory: move it away, then run setup again.")
    return Wanted(path, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)


def apply(wanted: Wanted) -> None:
    """Make the directory, or give it its mode and owner."""
    try:
        wanted.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(wanted.path, wanted.owner, wanted.group)
        os.chmod(wanted.path, wanted.mode)
    except OSError as error:
        raise Problem(
            f"Cannot make {wanted.path} ({error.strerror}): run as a user that may, with ansible_become, or choose another app_root."
        ) from error


def find_uv(layout: Layout) -> str | None:
    """Return the uv that releases would be built with, or None."""
    own = layout.tools / "venv" / "bin" / "uv"
    return str(own) if own.exists() else shutil.which("uv")


def install_uv(layout: Layout, python: str, environment: dict[str, str], timeout: int) -> None:
    """Install uv into its own virtual environment, whole or not at all.

    :raises Problem: with the installer's last lines as evidence.
    """
    target = layout.tools / "venv"
    steps = (
        [python, "-m", "venv", "--clear", str(target)],
        [str(target / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "-q", "uv"],
    )
    for argv in steps:
        done = run(argv, environment=environment, timeout=timeout, secrets=environment.values(), umask=0o022)
        if done.rc != 0:
            shutil.rmtree(target, ignore_errors=True)
            raise Problem(
                f"uv could not be installed ({' '.join(argv[:3])} ended with {done.rc}): see the installer's last lines; "
                "app_build_environment carries proxy, index and certificates, setup_uv: false builds with pip instead.",
                evidence=done.tail(),
            )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "user": {"type": "str"},
            "data_directories": {"type": "list", "elements": "path", "default": []},
            "uv": {"type": "bool", "default": False},
            "python": {"type": "str", "default": "python3"},
            "build_environment": {"type": "str", "no_log": True},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    layout = Layout(module.params["root"])
    try:
        environment = parse_environment(module.params["build_environment"], "build_environment")
        wanted = wanted_directories(
            layout, module.params["user"], module.params["data_directories"], module.check_mode
        )
        found = {item.path: present(item.path) for item in wanted}
        different = [item for item in wanted if found[item.path] != item]
        if not module.check_mode:
            for item in different:
                apply(item)
        install = module.params["uv"] and find_uv(layout) is None
        if install and not module.check_mode:
            install_uv(layout, module.params["python"], environment, module.params["timeout"])
    except Problem as problem:
        module.fail_json(**problem.answer())
    before = [
        state.text() if state else f"{item.path} absent"
        for item in different
        for state in (found[item.path],)
    ]
    module.exit_json(
        changed=bool(different) or install,
        directories=[str(item.path) for item in different],
        uv_installed=install,
        diff={
            "before": "".join(f"{line}\n" for line in before),
            "after": "".join(f"{i.text()}\n" for i in different),
        },
    )


if __name__ == "__main__":
    main()
