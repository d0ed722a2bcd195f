# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inside an application: what a migration's session on a server needs, whatever the framework.

An advisory lock on the migrating session itself, so that it ends with it; limits for waiting on locks, so that the
site does not queue behind a migration that waits; who holds what it waits for; what a broken build of an index left.

Runs in the application's Python (3.8 and up), loaded by ``_agent_runtime.py``; imports nothing but the standard
library. A *query* is a callable ``(statement, parameters=()) -> list of rows`` outside any transaction, with ``%s``
for a parameter; *second* is one without arguments that opens another session and returns ``(query, close)``.

Sources: "Explicit Locking", "System Administration Functions" and "Routine Reindexing" of PostgreSQL's documentation,
"Locking Functions" and "Server System Variables" of MySQL's, "SQL feature map for pooling modes" of PgBouncer's.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from typing import Any, Callable

# The two numbers of the advisory lock: "runb", and which of our locks. Advisory locks of PostgreSQL are a database's.
LOCK_KEYS = (0x72756E62, 1)
# Seconds to wait for the advisory lock, between two tries, and between two looks at who blocks.
LOCK_WAIT = 10.0
LOCK_INTERVAL = 0.25
WATCH_INTERVAL = 0.5
# How often a pooler is asked for a session: it may give another client's one meanwhile.
POOLER_TRIES = 3
# SQLSTATE lock_not_available and deadlock_detected; ER_LOCK_WAIT_TIMEOUT and ER_LOCK_DEADLOCK.
LOCK_STATES = ("55P03", "40P01")
LOCK_NUMBERS = (1205, 1213)
# Milliseconds between two looks of PostgreSQL whether its client is still there.
CLIENT_CHECK = 1000
# Sessions that are named in a message.
SHOWN = 5

SQL_HOLDER = {
    "postgresql": (
        "SELECT a.pid, a.usename, a.application_name, a.client_addr::text, a.backend_start::text FROM pg_locks l "
        "JOIN pg_stat_activity a ON a.pid = l.pid WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 "
        "AND l.classid = %s AND l.objid = %s "
        "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    ),
    "mysql": (
        "SELECT id, user, host, command, time FROM information_schema.processlist WHERE id = IS_USED_LOCK(%s)"
    ),
}
# Never the text of a query: it may hold anything.
SQL_BLOCKERS = (
    "SELECT pid, usename, application_name, state, "
    "extract(epoch FROM clock_timestamp() - xact_start)::int FROM pg_stat_activity "
    "WHERE pid = ANY(pg_blocking_pids(%s))"
)
SQL_LONG = {
    "postgresql": (
        "SELECT pid, usename, application_name, state, "
        "extract(epoch FROM clock_timestamp() - xact_start)::int FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL "
        "AND backend_type = 'client backend' ORDER BY xact_start LIMIT 5"
    ),
    # information_schema.innodb_trx needs the right PROCESS.
    "mysql": (
        "SELECT t.trx_mysql_thread_id, p.user, p.host, p.command, "
        "TIMESTAMPDIFF(SECOND, t.trx_started, NOW()) FROM information_schema.innodb_trx t "
        "JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id "
        "WHERE t.trx_mysql_thread_id <> CONNECTION_ID() ORDER BY t.trx_started LIMIT 5"
    ),
}
SQL_INVALID = (
    "SELECT n.nspname || '.' || c.relname, t.oid::regclass::text FROM pg_index i "
    "JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid "
    "JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE NOT i.indisvalid AND left(n.nspname, 3) <> 'pg_' AND c.relkind = 'i' ORDER BY 1"
)

Query = Callable[..., Any]


class SessionRefusal(Exception):
    """The session cannot be used for migrations, and nothing was done; its text is the sentence for the operator."""


def lock_name(database: str) -> str:
    """Return the name of MySQL's lock for *database*: names are the whole server's, of at most 64 characters."""
    return "runbook.deploy." + hashlib.sha256(database.encode()).hexdigest()[:32]


def refuse_pooler(query: Query, second: Callable[[], Any]) -> None:
    """Raise when two statements of the session may reach two sessions of PostgreSQL.

    A pooler in transaction mode gives the server session of a client that is between two transactions to the next
    one that begins a transaction. So the second session begins one: it must not be in the first one's server session.

    :raises SessionRefusal: saying what to do.
    """
    other, close = second()
    try:
        for _attempt in range(POOLER_TRIES):
            mine = query("SELECT pg_backend_pid()")[0][0]
            other("BEGIN")
            theirs = other("SELECT pg_backend_pid()")[0][0]
            again = query("SELECT pg_backend_pid()")[0][0]
            other("ROLLBACK")
            if mine == theirs or mine != again:
                raise SessionRefusal(
                    "the connection goes through a pooler that gives each transaction another session of PostgreSQL "
                    "(PgBouncer's pool_mode = transaction or statement), which loses locks and time limits: give the "
                    "application a direct host and port for migrations in app_environment, or a pool in session mode"
                )
    finally:
        close()


def take_lock(vendor: str, query: Query, wait: float = LOCK_WAIT) -> None:
    """Take the advisory lock on this session within *wait* seconds.

    PostgreSQL is asked again and again: a session that waits in ``pg_advisory_lock`` holds a snapshot, for which a
    ``CREATE INDEX CONCURRENTLY`` of the holder would wait in turn.

    :raises SessionRefusal: naming the session that holds it.
    """
    if vendor == "postgresql":
        deadline = time.monotonic() + wait
        while not query("SELECT pg_try_advisory_lock(%s, %s)", LOCK_KEYS)[0][0]:
            if time.monotonic() >= deadline:
                raise SessionRefusal(_held(vendor, query(SQL_HOLDER[vendor], LOCK_KEYS), wait))
            time.sleep(LOCK_INTERVAL)
    elif vendor == "mysql":
        name = lock_name(_database(query))
        if query("SELECT GET_LOCK(%s, %s)", (name, int(wait)))[0][0] != 1:
            raise SessionRefusal(_held(vendor, query(SQL_HOLDER[vendor], (name,)), wait))


def _database(query: Query) -> str:
    return str(query("SELECT DATABASE()")[0][0])


def _held(vendor: str, rows: Any, wait: float) -> str:
    if not rows:
        holder = "a session that this role may not see"
    elif vendor == "postgresql":
        pid, user, name, address, since = rows[0]
        holder = (
            f"the session with pid {pid} (role {user}, application_name {name!r}, from {address or 'the host itself'}), "
            f"connected since {since}"
        )
    else:
        number, user, host, command, seconds = rows[0]
        holder = f"the connection {number} (user {user} from {host}, {command} for {seconds} s)"
    return (
        f"another migration holds the lock of this database for longer than {wait:g} s: {holder}; nothing was done, "
        "so let it end or end it, then deploy again"
    )


def holds_lock(vendor: str, query: Query) -> bool:
    """Return whether this session still has the advisory lock: a reconnected one has not."""
    if vendor == "postgresql":
        return bool(
            query(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2 "
                "AND classid = %s AND objid = %s AND pid = pg_backend_pid()",
                LOCK_KEYS,
            )[0][0]
        )
    if vendor == "mysql":
        return bool(query("SELECT IS_USED_LOCK(%s) = CONNECTION_ID()", (lock_name(_database(query)),))[0][0])
    return True


def release_lock(vendor: str, query: Query) -> None:
    """Give the advisory lock back."""
    if vendor == "postgresql":
        query("SELECT pg_advisory_unlock(%s, %s)", LOCK_KEYS)
    elif vendor == "mysql":
        query("SELECT RELEASE_LOCK(%s)", (lock_name(_database(query)),))


def limit_waiting(vendor: str, query: Query, seconds: float) -> None:
    """Let a statement wait at most *seconds* for a lock; how long it may run is not limited.

    MySQL counts in whole seconds, and waits for the lock of a table's definition a year unless told otherwise.
    """
    if vendor == "postgresql":
        query(f"SET lock_timeout = {max(1, round(seconds * 1000))}")
        # A server whose client was ended in a statement would finish it, and hold its locks meanwhile. Before version
        # 14 there is no such look, nor on systems other than Linux and its like.
        with contextlib.suppress(Exception):
            query(f"SET client_connection_check_interval = {CLIENT_CHECK}")
    elif vendor == "mysql":
        whole = max(1, round(seconds))
        query(f"SET SESSION lock_wait_timeout = {whole}")
        query(f"SET SESSION innodb_lock_wait_timeout = {whole}")


def waited_for_lock(error: BaseException | None) -> bool:
    """Return whether *error*, or what caused it, says that a lock was not given in time or that there was a deadlock."""
    seen = 0
    while error is not None and seen < 10:
        state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        number = error.args[0] if error.args else None
        if state in LOCK_STATES or (isinstance(number, int) and number in LOCK_NUMBERS):
            return True
        # SQLAlchemy has the driver's error as orig, Django as its cause.
        error = getattr(error, "orig", None) or error.__cause__
        seen += 1
    return False


def invalid_indexes(vendor: str, query: Query) -> list[str]:
    """Return ``index on table`` for each index that a failed ``CREATE INDEX CONCURRENTLY`` left; PostgreSQL alone."""
    if vendor != "postgresql":
        return []
    return [f"{index} on {table}" for index, table in query(SQL_INVALID)]


def session_text(row: Any) -> str:
    """Return one session of ``SQL_BLOCKERS`` or ``SQL_LONG`` as text."""
    number, user, name, state, seconds = row
    age = "" if seconds is None else f", its transaction is {seconds} s old"
    return f"session {number} (role {user}, {name or 'without a name'}, {state}{age})"


class Watcher(threading.Thread):
    """Looks, in a session of its own, for who keeps the session *pid* waiting; PostgreSQL alone.

    ``blockers``: the sessions of the last look that found any. Without a second session nothing is found.
    """

    def __init__(self, pid: int, second: Callable[[], Any]) -> None:
        super().__init__(name="runbook-watcher", daemon=True)
        self.pid = pid
        self.second = second
        self.blockers: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            query, close = self.second()
        except Exception:
            return
        try:
            while not self.ended.wait(WATCH_INTERVAL):
                rows = query(SQL_BLOCKERS, (self.pid,))
                if rows:
                    self.blockers = [session_text(row) for row in rows[:SHOWN]]
        except Exception:
            # The server may be gone, which the migration itself will notice.
            return
        finally:
            try:
                close()
            except Exception:
                self.ended.set()

    def stop(self) -> None:
        """End the looking."""
        self.ended.set()
        if self.is_alive():
            self.join(5.0)


def long_transactions(vendor: str, query: Query) -> list[str]:
    """Return the oldest transactions of other sessions, as text; nothing where the role may not see them."""
    if vendor not in SQL_LONG:
        return []
    try:
        return [session_text(row) for row in query(SQL_LONG[vendor])]
    except Exception:
        return []


OPERATIONS: dict[str, Any] = {}
