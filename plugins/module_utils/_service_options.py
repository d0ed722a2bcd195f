# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that describe services, as modules take them; described by the documentation fragment ``service``.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from typing import Any

SERVICE: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "kind": {"type": "str", "choices": ["web", "worker", "beat"], "default": "web"},
    "manager": {
        "type": "str",
        "choices": ["systemd", "supervisor", "compose", "process"],
        "default": "systemd",
    },
    "strategy": {"type": "str", "choices": ["blue_green", "restart", "reload"]},
    "bind": {"type": "str", "choices": ["socket", "port", "none"]},
    "port": {"type": "int", "default": 0},
    "command": {"type": "str", "default": ""},
    "trial": {"type": "bool", "default": True},
    "groups": {"type": "list", "elements": "str", "default": []},
    "stop_timeout": {"type": "int", "default": 30},
    "celery": {"type": "str"},
    "drain_timeout": {"type": "int"},
    "supervisor_config": {"type": "path", "default": "/etc/supervisor/supervisord.conf"},
    "supervisor_include": {"type": "path", "default": "/etc/supervisor/conf.d"},
    "compose_project": {"type": "str", "default": ""},
    "compose_file": {"type": "str", "default": "compose.yaml"},
    "compose_service": {"type": "str", "default": ""},
    "image": {"type": "str", "default": ""},
}
ADOPT: dict[str, Any] = {
    "path": {"type": "str"},
    "service": {"type": "str"},
    "environment_file": {"type": "str"},
    "socket": {"type": "str"},
}
