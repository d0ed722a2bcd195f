# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs a release: the same variables for its services and for every command, and where its parts are.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._command import (
    DEFAULT_PATH,
    parse_environment,
    secret,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, read_json
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
    "RUNBOOK_SUPERVISOR",
)
# What a POSIX shell and EnvironmentFile= of systemd accept as a name (environ(7), systemd.exec(5)).
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
    variables = {
        "PATH": DEFAULT_PATH,
        "PYTHONDONTWRITEBYTECODE": "1",
        # setproctitle would overwrite /proc/<pid>/environ, by which a process is recognised as ours.
        "SPT_NOENV": "1",
        **environment,
    }
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


class Installed(NamedTuple):
    """A built release on this host, and what its commands need.

    ``path``: the release's directory; ``cwd``: where manage.py is; ``environment_path``: the Python environment, None
    where the release has none; ``variables``: as :func:`instance_variables`; ``secrets``: the values of
    app_environment that are not shown anyway.
    """

    layout: Layout
    path: Path
    cwd: Path
    environment_path: Path | None
    user: str | None
    variables: dict[str, str]
    secrets: list[str]

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return (self.environment_path or Path("/usr")) / "bin" / "python"

    def argv(self, words: Iterable[str]) -> list[str]:
        """Return the command *words* with its program found: a Python file is run by the environment's Python."""
        found = [str(word) for word in words]
        if not found or not found[0]:
            raise Problem("A command is empty: expected a list of words such as [manage.py, compress].")
        if found[0].endswith(".py"):
            return [str(self.python), *found]
        if "/" not in found[0]:
            # execve(2) is searched with the PATH of the caller, and the application has its own.
            found[0] = shutil.which(found[0], path=self.variables["PATH"]) or found[0]
        return found


# The options of the modules that run a release's own code; what a release says about itself is the default.
RELEASE_OPTIONS: dict[str, dict[str, Any]] = {
    "root": {"type": "path", "required": True},
    "name": {"type": "str", "default": ""},
    "stage": {"type": "str", "default": ""},
    "user": {"type": "str"},
    "environment": {"type": "str", "no_log": True},
    "release": {"type": "str", "required": True},
    "commit": {"type": "str", "default": ""},
    "version": {"type": "str", "default": ""},
    "deployment": {"type": "str", "default": ""},
    "environment_path": {"type": "str", "default": ""},
    "directory": {"type": "str", "default": ""},
    "framework": {"type": "str", "default": "django", "choices": ["django", "alembic", "command", "none"]},
    "settings_module": {"type": "str", "default": ""},
    "record": {"type": "dict"},
}


def installed(params: Mapping[str, Any], secrets: Iterable[str] = ()) -> Installed:
    """Return the release that the options *params* (``RELEASE_OPTIONS``) name.

    :param secrets: further texts to hide, besides the values of app_environment.
    :raises Problem: when it is not on this host, or not built to its end.
    """
    layout = Layout(params["root"])
    path = layout.release(params["release"])
    if not params["release"] or not (path / ".built").is_file():
        raise Problem(
            f"The release {params['release']!r} is not built in {str(layout.releases)!r} on this host: run the release "
            "phase first."
        )
    about = read_json(path / ".release.json") or {}
    environment_path: Path | None = None
    if params["environment_path"]:
        environment_path = Path(params["environment_path"])
    elif about.get("environment"):
        environment_path = layout.environment(about["environment"])
    environment = parse_environment(params["environment"], "app_environment")
    variables = instance_variables(
        root=layout.root,
        name=params["name"],
        stage=params["stage"],
        release=params["release"],
        commit=params["commit"] or about.get("commit"),
        version=params["version"] or about.get("version"),
        deployment=params["deployment"] or (params["record"] or {}).get("id"),
        environment_path=environment_path,
        settings_module=params["settings_module"],
        environment=environment,
    )
    directory = params["directory"] or about.get("directory") or ""
    cwd = path / directory
    if not cwd.is_dir():
        raise Problem(
            f"app_directory {directory!r} is no directory of the release {str(path)!r}: correct app_directory."
        )
    return Installed(
        layout,
        path,
        cwd,
        environment_path,
        params["user"],
        variables,
        secret([*environment.values(), *secrets], [str(layout.root)]),
    )
