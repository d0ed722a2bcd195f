# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the modules that read the applied migrations, where there is a database."""

from __future__ import annotations


class ModuleDocFragment:
    """``OPTIONAL_DATABASE`` and ``ADMIN_OPTION`` of ``_database.py``, described."""

    DOCUMENTATION = r"""
options:
  database:
    description: The database, C(app_database). Empty, or not given, where the host has nothing to do with it.
    type: dict
    suboptions:
      engine:
        description: The engine.
        type: str
      path:
        description: The absolute path of the file of an SQLite database.
        type: path
      shared:
        description: Whether several hosts share the file of an SQLite database.
        type: bool
      name:
        description: The name of the database, for engines with a server.
        type: str
      host:
        description: The server's host; the local socket when empty.
        type: str
      port:
        description: The server's port.
        type: int
      user:
        description: The role to log in as.
        type: str
      password:
        description: The password of the role.
        type: str
      nontransactional:
        description: What a backup does with tables whose engine has no transactions, V(refuse) (default) or V(lock), which lets writers wait.
        type: str
        choices: [refuse, lock]
      scratch:
        description: The server on which copies are tried, where that is another one; what is not given is as for the live database.
        type: dict
        suboptions:
          host:
            description: The server's host.
            type: str
          port:
            description: The server's port.
            type: int
          user:
            description: The role to log in as, which may make databases.
            type: str
          password:
            description: The password of the role.
            type: str
  database_admin:
    description:
      - The role that may make, rename and remove databases, C(app_database_admin), for engines with a server.
      - The role of O(database) when not given.
    type: dict
    suboptions:
      user:
        description: The role to log in as.
        type: str
      password:
        description: The password of the role.
        type: str
      os_user:
        description: The user of the operating system who may log in as that role through the local socket, such as C(postgres).
        type: str
"""
