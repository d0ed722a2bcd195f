# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A journal of systemd's own making, without a systemd that runs."""

from __future__ import annotations

import subprocess
import time
import uuid
from pathlib import Path

REMOTE = "/lib/systemd/systemd-journal-remote"


class Journals:
    """Journals of real files; what is written to one goes into a file of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self.boot, self.machine = uuid.uuid4().hex, uuid.uuid4().hex
        self.at = int(time.time() * 1_000_000)

    def write(self, *entries: tuple[str, bytes, int] | tuple[str, bytes, int, int]) -> Path:
        """Write entries of unit, message, priority and process."""
        data = b""
        for unit, message, priority, *pid in entries:
            self.at += 1000
            data += (
                f"__REALTIME_TIMESTAMP={self.at}\n__MONOTONIC_TIMESTAMP={self.at}\n_BOOT_ID={self.boot}\n"
                f"_MACHINE_ID={self.machine}\nPRIORITY={priority}\n_SYSTEMD_UNIT={unit}\n_PID={pid[0] if pid else 7}\n"
            ).encode()
            data += b"MESSAGE\n" + len(message).to_bytes(8, "little") + message + b"\n\n"
        path = self.directory / f"system@{self.at}.journal"
        subprocess.run([REMOTE, "-o", str(path), "-"], input=data, check=True, capture_output=True)
        return path
