# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How gunicorn runs; read because it lies in the working directory. The address is given on the command line."""

from __future__ import annotations

# Its default is one path in the user's home directory, which two instances side by side would fight for.
control_socket_disable = True
