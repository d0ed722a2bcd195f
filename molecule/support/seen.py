# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host keeps, against what was acknowledged."""

from __future__ import annotations

import time

from machine import Machine
from traffic import Ledger

# Made by the application's initial command.
OWN = {f"Demonstration signal {number}" for number in range(1, 7)}


def backups(site: Machine) -> list[str]:
    """The backups on the host."""
    return site.run("ls", f"{site.root}/backups").split()


def stored(site: Machine, ledger: Ledger) -> list[str]:
    """Reports that were acknowledged and are not in the database as they were sent, or that nobody sent."""
    rows = site.database()["signals"]
    lost = [
        f"report {number} ({details!r}) is {rows.get(number)!r}"
        for number, details in ledger.acknowledged.items()
        if rows.get(number) != details
    ]
    known = ledger.sent | OWN
    return lost + [
        f"nobody sent row {number}: {details!r}" for number, details in rows.items() if details not in known
    ]


class Service:
    """The main process of what serves, and its workers, as the host sees them."""

    def __init__(self, site: Machine) -> None:
        units = ("systemctl", "show", "--property=MainPID", "--value", f"{site.unit}@*")
        (self.main,) = {pid for pid in site.run(*units).split() if pid != "0"}
        self.workers = set(site.run("cat", f"/proc/{self.main}/task/{self.main}/children").split())

    def replaced(self, site: Machine) -> Service:
        """What serves when these workers have answered what they were asked; 30 s at most."""
        limit = time.monotonic() + 30
        while (after := Service(site)).workers & self.workers and time.monotonic() < limit:
            time.sleep(0.2)
        return after
