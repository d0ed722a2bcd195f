# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look from a second session which tables of a PostgreSQL database are locked, again and again.

For migrations in many transactions, which have no end at which they could be asked themselves. What is held for less than
the time between two looks may not be seen; on a copy of the data, what will be felt is held for longer.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import threading
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._agent_rehearse import SQL_LOCKS
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Seconds between two looks.
INTERVAL = 0.05
SQL = (
    f"{SQL_LOCKS} AND l.pid <> pg_backend_pid() "
    "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


class LockSampler:
    """A context in which the database *name* is looked at; ``seen`` holds the rows of ``SQL_LOCKS`` afterwards.

    :param client: as ``_postgresql_client.Client``. A session that cannot be had, or is lost, is no reason to end anything.
    """

    def __init__(self, client: Any, name: str) -> None:
        self.client = client
        self.name = name
        self.seen: set[tuple[str, ...]] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> LockSampler:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _look(self) -> None:
        try:
            with self.client.session(self.name) as session:
                while not self._over.is_set():
                    rows = session.rows(SQL)
                    self.seen |= {(row["place"], row["name"], row["mode"]) for row in rows}
                    self._over.wait(INTERVAL)
        except Problem:
            return
