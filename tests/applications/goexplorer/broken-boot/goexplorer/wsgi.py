# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the application server loads."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

# Broken on purpose: this module was never committed. `manage.py check` does not load this file, the server does.
from goexplorer.telemetry import instrument

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "goexplorer.settings")

application = instrument(get_wsgi_application())
