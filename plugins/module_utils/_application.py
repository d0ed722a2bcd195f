# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The environment variables of an instance: the same for its services and for every command of its release.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from ansible_collections.runbook.deploy.plugins.module_utils._command import DEFAULT_PATH
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# By these a running process is recognised as one of ours, so an application may not set them itself.
RESERVED = (
    "RUNBOOK_ROOT",
    "RUNBOOK_APPLICATION",
    "RUNBOOK_STAGE",
    "RUNBOOK_RELEASE",
    "RUNBOOK_COMMIT",
    "RUNBOOK_VERSION",
    "RUNBOOK_DEPLOYMENT",
    "RUNBOOK_SERVICE",
)
# What a POSIX shell and systemd's EnvironmentFile= accept as the name of a variable (environ(7), systemd.exec(5)).
VARIABLE_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


def instance_variables(
    *,
    root: str | os.PathLike[str],
    name: str | None,
    stage: str | None,
    release: str | None,
    commit: str | None,
    version: str | None,
    deployment: str | None,
    environment_path: str | os.PathLike[str] | None,
    settings_module: str | None,
    environment: Mapping[str, str],
) -> dict[str, str]:
    """Return the variables of the instance of *release* under *deployment*; values that are None become "".

    :param environment_path: directory of the Python environment; its ``bin`` comes first in PATH,
        before the PATH of *environment* where that has one. None: no Python environment.
    :param settings_module: DJANGO_SETTINGS_MODULE; empty for applications that are not Django.
    :param environment: ``app_environment``.
    :raises Problem: when *environment* has a reserved or impossible name, a NUL, or another settings module.
    """
    for key, value in environment.items():
        if key in RESERVED:
            raise Problem(
                f"app_environment.{key} is set, but this variable says which instance a process belongs to: "
                "remove it from app_environment."
            )
        if not VARIABLE_NAME.match(key):
            raise Problem(
                f"app_environment has the name {key!r}; expected letters, digits and underscores, "
                "not beginning with a digit: rename the variable."
            )
        if "\0" in value:
            raise Problem(
                f"app_environment.{key} contains a NUL byte, which no environment can hold: remove it."
            )
    found = environment.get("DJANGO_SETTINGS_MODULE")
    if settings_module and found and found != settings_module:
        raise Problem(
            f"app_environment.DJANGO_SETTINGS_MODULE is {found!r}, but app_settings_module is "
            f"{settings_module!r}: set only one of them."
        )
    variables = {"PATH": DEFAULT_PATH, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    if environment_path:
        variables["PATH"] = f"{os.fspath(environment_path)}/bin:{variables['PATH']}"
        variables["VIRTUAL_ENV"] = os.fspath(environment_path)
    if settings_module:
        variables["DJANGO_SETTINGS_MODULE"] = settings_module
    identity = {
        "RUNBOOK_ROOT": os.fspath(root),
        "RUNBOOK_APPLICATION": name,
        "RUNBOOK_STAGE": stage,
        "RUNBOOK_RELEASE": release,
        "RUNBOOK_COMMIT": commit,
        "RUNBOOK_VERSION": version,
        "RUNBOOK_DEPLOYMENT": deployment,
    }
    variables.update({key: value or "" for key, value in identity.items()})
    return variables
