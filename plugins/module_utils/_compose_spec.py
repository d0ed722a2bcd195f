# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the contract takes of a service under ``compose``, and what it refuses.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# https://docs.docker.com/compose/how-tos/project-name/
PROJECT = re.compile(r"^[a-z0-9][a-z0-9_-]*$")


def check(variable: str, service: Mapping[str, Any], full: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a service under ``compose``; *full* is it with its defaults."""
    errors = [
        f"{variable}.{key} is there, but the container of manager: compose has that from {where}: remove it."
        for key, where in (
            ("command", "its image or Compose file"),
            ("celery", "nobody: its workers are sent TERM and given stop_timeout"),
            ("drain_timeout", "stop_timeout"),
        )
        if service.get(key)
    ]
    if full["kind"] == "web" and (full["bind"] != "port" or not full["port"]):
        errors.append(
            f"{variable} has no port, and a container is reached by the port that it publishes: add port, and let the Compose file "
            'publish "127.0.0.1:${RUNBOOK_PORT}:<port in the container>".'
        )
    if service.get("strategy", "restart") != "restart":
        errors.append(
            f"{variable}.strategy is {service['strategy']!r}, but a container is made anew, after the new one was proved beside the old "
            "one: remove it."
        )
    file = full["compose_file"]
    if file.startswith("/") or ".." in file.split("/"):
        errors.append(
            f"{variable}.compose_file is {file!r}: it must be inside the release, relative to app_directory, so that it goes back with it."
        )
    project = full["compose_project"]
    if project and not PROJECT.match(project):
        errors.append(
            f"{variable}.compose_project is {project!r}: use lower-case letters, digits, dashes and underscores."
        )
    return errors
