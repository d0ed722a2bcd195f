# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the modules that run a release's own code."""

from __future__ import annotations


class ModuleDocFragment:
    """``RELEASE_OPTIONS`` of ``_application.py``, described."""

    DOCUMENTATION = r"""
options:
  root:
    description: The application's directory on the host, C(app_root).
    type: path
    required: true
  name:
    description: The application's name, C(app_name); only for the variable E(RUNBOOK_APPLICATION) of its commands.
    type: str
    default: ""
  stage:
    description: The stage, C(app_stage); only for the variable E(RUNBOOK_STAGE) of its commands.
    type: str
    default: ""
  user:
    description: The user to run the application's code as. The present user when not given.
    type: str
  environment:
    description: The variables of C(app_environment), as one JSON object in a string. They are kept out of all output.
    type: str
  release:
    description: Name of the release whose code runs. It must be built.
    type: str
    required: true
  commit:
    description: The release's commit. What the release says about itself when empty.
    type: str
    default: ""
  version:
    description: The version that was asked for. What the release says about itself when empty.
    type: str
    default: ""
  deployment:
    description: Id of the deployment. That of O(record) when empty.
    type: str
    default: ""
  environment_path:
    description: Directory of the Python environment. The one that the release was built with when empty.
    type: str
    default: ""
  directory:
    description: Directory of C(manage.py) or C(alembic.ini) inside the release. What the release was built with when empty.
    type: str
    default: ""
  framework:
    description:
      - What kind of application it is.
      - V(alembic) is any application with Alembic, by its C(alembic.ini) or by Flask-Migrate.
      - V(command) is one that initialises its database by a command of its own.
      - Static files are collected with V(django) alone; with V(none) there is nothing to migrate either.
    type: str
    default: django
    choices: [django, alembic, command, none]
  settings_module:
    description: The settings module of a Django application. When empty, C(manage.py) or O(environment) names it.
    type: str
    default: ""
  record:
    description:
      - The deployment whose record this phase is written into, as returned by M(runbook.deploy.deployment_record).
      - Nothing is recorded when it is empty or not given.
    type: dict
"""
