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
from collections.abc import Iterable
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._agent_rehearse import MODES, ORDINARY
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Seconds between two looks.
INTERVAL = 0.05
SQL = (
    "SELECT CASE n.nspname WHEN 'public' THEN c.relname ELSE n.nspname || '.' || c.relname END AS name, l.mode AS mode "
    "FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE l.pid <> pg_backend_pid() AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
)


def strongest(known: Iterable[dict[str, str]], seen: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Return the strongest lock of each table in *known* and *seen*, both ``[{table, lock}]``, without those that keep nobody waiting.

    >>> strongest([{"table": "a", "lock": "ShareLock"}], [{"table": "a", "lock": "AccessExclusiveLock"}])
    [{'table': 'a', 'lock': 'AccessExclusiveLock'}]
    """
    found: dict[str, str] = {}
    for entry in [*known, *seen]:
        table, mode = entry["table"], entry["lock"]
        if mode in MODES and mode not in ORDINARY:
            found[table] = max(found.get(table, mode), mode, key=MODES.index)
    return [{"table": table, "lock": mode} for table, mode in sorted(found.items())]


class LockSampler:
    """A context in which the database *name* is looked at; ``seen`` holds ``[{table, lock}]`` afterwards.

    :param client: as ``_postgresql_client.Client``. A session that cannot be had, or is lost, is no reason to end anything.
    """

    def __init__(self, client: Any, name: str) -> None:
        self.client = client
        self.name = name
        self.seen: list[dict[str, str]] = []
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
                    self.seen = strongest(
                        self.seen, [{"table": row["name"], "lock": row["mode"]} for row in rows]
                    )
                    self._over.wait(INTERVAL)
        except Problem:
            return
