# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the application server loads."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "goexplorer.settings")

# Broken on purpose: so many seconds after a worker loaded this, it ends the whole service.
LIFETIME = 3.0


def is_gunicorn(pid: int) -> bool:
    """Return whether the process *pid* is gunicorn: nothing else must ever get the signal."""
    try:
        return b"gunicorn" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def crash(master: int) -> None:
    """Stop the master that started this worker, and this worker."""
    if os.getppid() == master and is_gunicorn(master):
        os.kill(master, signal.SIGTERM)
        os._exit(1)


application = get_wsgi_application()
if is_gunicorn(os.getppid()):
    timer = threading.Timer(LIFETIME, crash, [os.getppid()])
    timer.daemon = True
    timer.start()
