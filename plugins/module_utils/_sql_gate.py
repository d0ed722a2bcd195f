# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gate of questions to the application's database.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _sql_catalog as catalog
from ansible_collections.runbook.deploy.plugins.module_utils._database import OPTIONAL_DATABASE, named
from ansible_collections.runbook.deploy.plugins.module_utils._gate import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    check_result,
)
from ansible_collections.runbook.deploy.plugins.module_utils._gating import GATE_OPTIONS, conduct, hidden
from ansible_collections.runbook.deploy.plugins.module_utils._parallel import in_parallel
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._sql_session import (
    Session,
    Unasked,
    session_of,
)
from ansible_collections.runbook.deploy.plugins.module_utils._sql_spec import (
    SLOW,
    Check,
    Judgement,
    expected_of,
    judge_index,
    judge_measure,
    judge_query,
    judge_table,
    parse_check,
)

__all__ = ["OPTIONS", "RULES", "parse_check", "perform", "prober"]

OPTIONS: dict[str, Any] = {
    **GATE_OPTIONS,
    "checks": {"type": "list", "elements": "dict", "required": True},
    "database": OPTIONAL_DATABASE,
    "user": {"type": "str"},
    "timeout": {"type": "float", "default": 10.0},
}
RULES: dict[str, Any] = {}
# A gate is no load: so many connections at the same time.
CONNECTIONS = 3
# Seconds that a question ends before the gate does: its client gets a moment more, and must be gone before the check is
# abandoned (_parallel.MARGIN).
ENDING = 0.1
# Less is not enough for a client to start and a server to answer.
SHORTEST = 0.05


def prober(options: Mapping[str, Any], check_mode: bool) -> Callable[[float], list[dict[str, Any]]]:
    """Return what asks all questions of *options*; it is given the seconds that are left. It only reads.

    :raises Problem: when a check is not well written, or no database is named.
    """
    database = named(options["database"])
    if database is None:
        raise Problem("A gate of SQL needs a database: set app_database with engine and name (SQLite: path).")
    if not options["timeout"] > 0:
        raise Problem(f"timeout must be a number of seconds above 0, found {options['timeout']}.")
    session = session_of(database, options["user"])
    checks = [
        parse_check(item, f"checks[{index}]", session.engine) for index, item in enumerate(options["checks"])
    ]
    secrets = [str(database.get("password") or "")]
    # MySQL's number of connections cannot leave ours out, so that there must be one only.
    counted = session.engine == "mysql" and any(check.subject in ("connections", "pool") for check in checks)

    def task(check: Check) -> Callable[[float], dict[str, Any]]:
        def one(limit: float) -> dict[str, Any]:
            found = run_check(check, session, options["timeout"], limit)
            return hidden(found, secrets)

        return one

    def probe(left: float) -> list[dict[str, Any]]:
        names = [(check.name, check.common.severity) for check in checks]
        return in_parallel(
            [task(check) for check in checks],
            names,
            time.monotonic() + left,
            1 if counted else CONNECTIONS,
        )

    return probe


class Questions:
    """The statements of one check, within its time; the last one is kept for whoever repeats it."""

    def __init__(self, session: Session, limit: float) -> None:
        self.session = session
        self.limit = limit
        self.last = "SELECT 1"

    def ask(self, sql: str) -> Any:
        """Return the answer to *sql*; see :meth:`Session.ask`."""
        self.last = sql
        left = self.limit - time.monotonic()
        if left < SHORTEST:
            raise Unasked("no time was left to ask", "time")
        return self.session.ask(sql, left)

    def first(self, sql: str) -> list[Any]:
        """Return the only row of the answer to *sql*; one of None where there is none."""
        answer = self.ask(sql)
        return answer.rows[0] if answer.rows else [None] * 3


def run_check(check: Check, session: Session, timeout: float, limit: float) -> dict[str, Any]:
    """Ask one question and judge the answer.

    :param timeout: seconds, unless the check has its own; :param limit: the latest end (``time.monotonic()``).
    """
    begun = time.monotonic()
    own = check.common.timeout or timeout
    allowed = min(own, limit - begun - ENDING)
    questions = Questions(session, begun + allowed)
    observed = ""
    cut = False
    try:
        judgement = PROBES[check.subject](check, questions)
        taken = time.monotonic() - begun
        observed = judgement.observed
        wrong = list(judgement.wrong)
        if check.max_seconds is not None and taken > check.max_seconds:
            wrong.append(f"it took {taken:.2f} s, more than {check.max_seconds:g} s")
        verdict = FAIL if wrong else INCONCLUSIVE if judgement.unknown else PASS
        found = "; ".join(wrong or judgement.unknown)
    except Unasked as error:
        verdict, found = _unasked(check, error, allowed)
        cut = error.kind == "time" and verdict == INCONCLUSIVE and allowed < own
    expected = expected_of(check)
    again = session.repeat(questions.last)
    message = ""
    if verdict != PASS:
        end = "failed" if verdict == FAIL else "cannot be judged" if observed else "could not be asked"
        seen = f" Answer: {observed}." if observed and check.subject == "query" else ""
        message = f"Check {check.name!r} {end}: asked {session.place()}: expected {expected}, but {found}.{seen} Repeat: {again}"
    return check_result(
        check.name,
        verdict,
        check.common.severity,
        observed or found,
        expected,
        message,
        time.monotonic() - begun,
        repeat=again,
        **({"cut_short": True} if cut else {}),
    )


def _unasked(check: Check, error: Unasked, allowed: float) -> tuple[str, str]:
    """Return the verdict on a question without an answer: whether the database answers is itself asked by ``reachable``."""
    text = error.text.rstrip(".")
    if error.kind == "probe":
        return INCONCLUSIVE, f"it could not be asked from here: {text}"
    if error.kind == "time" and check.max_seconds is not None and allowed >= check.max_seconds:
        return FAIL, f"it took more than {check.max_seconds:g} s ({text})"
    if check.subject == "reachable":
        return FAIL, text
    words = {
        "time": text,
        "connection": f"the database was not reached: {text}",
        "statement": f"the database refused it: {text}",
        "size": f"{text}: ask for less",
    }
    return INCONCLUSIVE, words[error.kind]


def _query(check: Check, questions: Questions) -> Judgement:
    return judge_query(check, questions.ask(check.value), questions.session.engine)


def _table(check: Check, questions: Questions) -> Judgement:
    engine = questions.session.engine
    facts = questions.ask(catalog.table_facts(engine, check.value))
    called = next((row[2] for row in facts.rows if row[0] == "table"), None)
    count = None
    if called and "rows" in check.expects:
        count = int(questions.first(f"SELECT count(*) FROM {called}")[0])
    return judge_table(check, facts, count)


def _index(check: Check, questions: Questions) -> Judgement:
    return judge_index(questions.ask(catalog.index_facts(questions.session.engine, check.value)))


def _connected(questions: Questions) -> int:
    """Return how many sessions MySQL has besides ours."""
    return int(questions.first(catalog.CONNECTED)[1]) - 1


def _connections(check: Check, questions: Questions) -> Judgement:
    if questions.session.engine == "mysql":
        count = _connected(questions)
        return judge_measure(check, count, f"the server has {count} connections")
    count = int(questions.first(catalog.POSTGRESQL_CONNECTIONS)[0])
    return judge_measure(check, count, f"the database has {count} connections")


def _pool(check: Check, questions: Questions) -> Judgement:
    if questions.session.engine == "mysql":
        count, most = _connected(questions), int(questions.first(catalog.MOST_CONNECTIONS)[0])
    else:
        count, most = map(int, questions.first(catalog.POSTGRESQL_POOL)[:2])
    share = round(100 * count / most, 1) if most > 0 else None
    return judge_measure(check, share, f"{count} of {most} connections are in use ({share} %)")


def _slow(check: Check, questions: Questions) -> Judgement:
    engine = questions.session.engine
    longer = check.expects.get("longer_than") or SLOW
    count, sessions, seen = questions.first(catalog.slow_queries(engine, longer))[:3]
    told = f"{int(count)} queries have run longer than {longer:g} s{f' (sessions {sessions})' if sessions else ''}"
    # What PostgreSQL hides it counts; MySQL leaves it out, so that its own count of all tells.
    hidden = int(seen) if engine == "postgresql" else _connected(questions) + 1 - int(seen)
    return judge_measure(check, int(count), told, hidden)


def _reachable(check: Check, questions: Questions) -> Judgement:
    answer = questions.ask("SELECT 1")
    return Judgement(f"it answered in {answer.seconds:.2f} s", [], [])


PROBES: dict[str, Callable[[Check, Questions], Judgement]] = {
    "query": _query,
    "table": _table,
    "index": _index,
    "connections": _connections,
    "pool": _pool,
    "slow_queries": _slow,
    "reachable": _reachable,
}


def perform(options: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    """Run the gate that *options* (see ``OPTIONS``) describe and return it.

    :raises Problem: when it does not pass, or an option is wrong.
    """
    probe = prober(options, check_mode)
    database = named(options["database"]) or {}
    place = session_of(database, options["user"]).place()
    secrets = [str(database["password"])] if database.get("password") else []
    return conduct(options, probe, place, check_mode=check_mode, warn=warn, secrets=secrets)
