# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations inside an application with Alembic: apply, reverse, written.

Each revision is a run of env.py of its own, as ``alembic upgrade +1`` is, so that it is a transaction of its own where
the engine has such, whatever ``transaction_per_migration`` says, and its end is known before the next begins.

Runs in the application's Python (3.8 and up, Alembic 1.5 and up, SQLAlchemy 1.4 and up), loaded by
``_agent_runtime.py``; imports nothing of the collection, and Alembic only inside functions.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

# A revision that could not get a lock is tried so often, with so many seconds between, when nothing of it remains.
ATTEMPTS = 3
PAUSE = 2.0


def _part(name: str) -> Any:
    """Return another part of the agent."""
    return sys.modules["_runbook_" + name]


def _refusal(text: str) -> Exception:
    return _part("alembic").AlembicRefusal(text)


def _names(revisions: Any) -> str:
    return ", ".join(f"alembic.{revision}" for revision in revisions) or "nothing"


# --- progress ---


class Progress:
    """Tells the host about a revision's directives, and about statements that stay when it fails."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.key: dict[str, str] = {}
        self.running = False
        self.undone = False
        self.count = self.told = 0

    def begin(self, word: str, revision: Any, undone: bool) -> None:
        """Tell that *revision* begins; stops the series when the host is gone."""
        self.key = {"app": "alembic", "name": str(revision)}
        self.running, self.undone, self.count, self.told = True, undone, 0, 0
        self.context.emit(event=f"{word}_start", atomic=undone, **self.key)

    def tell(self, **event: Any) -> None:
        """Tell a detail. A host that is gone must not stop a revision in its middle, but before the next one."""
        with contextlib.suppress(OSError):
            self.context.emit(**event, **self.key)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Report each directive of the running revision, and each statement that cannot be rolled back."""
        from alembic.operations import Operations
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        record = _part("alembic_record")
        holder = record.holder_of_invoke(Operations)
        original = holder.invoke

        def invoke(operations: Any, operation: Any) -> Any:
            if self.running:
                self.count, self.told = self.count + 1, 0
                with contextlib.suppress(Exception):
                    text = record.facts_of(operation, operations)["description"]
                    self.tell(event="operation", index=self.count, of=0, description=text, deferred=False)
            return original(operations, operation)

        holder.invoke = invoke
        event.listen(Engine, "after_cursor_execute", self._statement)
        event.listen(Engine, "begin", self._begun)
        try:
            yield
        finally:
            holder.invoke = original
            event.remove(Engine, "after_cursor_execute", self._statement)
            event.remove(Engine, "begin", self._begun)

    def _begun(self, connection: Any) -> None:
        if self.context.memory.get("whole"):
            _part("alembic_guard").begin_sqlite(connection)

    def _statement(
        self, _connection: Any, _cursor: Any, sql: Any, _parameters: Any, _context: Any, _many: Any
    ) -> None:
        steps = _part("steps")
        text = str(sql)
        if not self.running or self.undone or self.told >= steps.TOLD_STATEMENTS:
            return
        if _part("alembic").VERSION_TABLE in text or steps.SILENT.match(text):
            return
        self.told += 1
        short = steps.SPACE.sub(" ", steps.LITERAL.sub("'…'", text)).strip()[: steps.LONGEST_STATEMENT]
        self.tell(event="statement", sql=short)


# --- one revision ---


def _run(
    context: Any,
    progress: Progress,
    word: str,
    revision: Any,
    expected: Any,
    after: Any,
    lock_timeout: float,
    first: bool,
) -> list[str]:
    """Run one revision forward or back, and return the invalid indexes that are there afterwards.

    :param word: ``apply`` or ``unapply``; :param expected: the heads that must be applied before; :param after: afterwards.
    :raises AlembicRefusal: when something else is applied, before anything is done.
    """
    from alembic.runtime.migration import MigrationStep

    forward = word == "apply"
    record = _part("alembic_record")
    function = record.direction(revision, "upgrade" if forward else "downgrade")
    whole = record.is_whole(context, function)
    context.memory["whole"] = whole and context.memory["facts"]["vendor"] == "sqlite"
    sessions: list[Any] = []
    begun = [0.0]

    def steps(_heads: Any, migration: Any) -> Any:
        session = _part("alembic_session").Session(migration, lock_timeout, first)
        sessions.append(session)
        session.begin()
        present = set(migration.get_current_heads())
        if present != set(expected):
            raise _refusal(
                f"applied is {_names(sorted(present))} where {_names(sorted(expected))} was expected, so something else "
                "migrates this database: nothing further was done, so begin the deployment again"
            )
        script = context.memory["script"]
        if forward:
            found = [MigrationStep.upgrade_from_script(script.revision_map, revision)]
        else:
            found = [MigrationStep.downgrade_from_script(script.revision_map, revision)]
        # What is not so much as begun cannot be rolled back.
        undone = whole and (
            session.vendor != "sqlite"
            or bool(
                getattr(_part("alembic_guard").driver_connection(session.connection), "in_transaction", False)
            )
        )
        progress.begin(word, revision.revision, undone)
        begun[0] = time.monotonic()
        if context.memory.get("tell_locks") and session.vendor == "postgresql":
            _tell_locks(context, found[0], session)
        return found

    try:
        _part("alembic").run_env(context, steps, mutate=True)
    except Exception as error:
        _explain(context, sessions, progress, error)
        raise
    finally:
        context.memory["whole"] = False
        for session in sessions:
            session.end()
    seconds = round(time.monotonic() - begun[0], 3)
    # Read in a run of its own, and so in another transaction: env.py may have forgotten to commit.
    now = _part("alembic").probe(context)
    if set(now) != set(after):
        raise RuntimeError(
            f"env.py ended without an error, but applied is {_names(sorted(now))} instead of {_names(sorted(after))}: does "
            "it run the migrations within context.begin_transaction()?"
        )
    progress.running = False
    context.emit(event=f"{word}_success", seconds=seconds, rows=_part("alembic").rows_of(now), **progress.key)
    return sessions[0].new_invalid() if sessions else []


def _tell_locks(context: Any, step: Any, session: Any) -> None:
    original = step.migration_fn

    def migrate(**named: Any) -> None:
        original(**named)
        rehearse = _part("rehearse")
        locks = rehearse.strongest(session.query(f"{rehearse.SQL_LOCKS} AND l.pid = pg_backend_pid()"))
        context.emit(event="locks", locks=locks)

    step.migration_fn = migrate


def _explain(context: Any, sessions: Any, progress: Progress, error: BaseException) -> None:
    """Tell the host, before the exception goes there, who was waited for and what a broken index build left."""
    if not sessions or not progress.running:
        return
    session = sessions[0]
    with contextlib.suppress(OSError):
        if session.parts.waited_for_lock(error):
            context.emit(event="blocked", by=session.blockers(), **progress.key)
        left = session.new_invalid()
        if left:
            context.emit(event="invalid_indexes", indexes=left, **progress.key)


def _persist(context: Any, progress: Progress, run: Any) -> Any:
    """Call *run*, and again when the revision could not get a lock and nothing of it remains."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return run()
        except Exception as error:
            tried = progress.running and progress.undone and _part("session").waited_for_lock(error)
            if not tried or attempt == ATTEMPTS:
                raise
            sys.stdout.write(f"alembic.{progress.key.get('name')}: no lock in attempt {attempt}: {error}\n")
            progress.tell(event="retry", attempt=attempt)
            time.sleep(PAUSE)
    return []


# --- apply ---


def apply(
    context: Any,
    expected: list[list[str]] | None = None,
    lock_timeout: float = 5.0,
    app: str = "",
    target: str = "",
) -> dict[str, Any]:
    """Apply the pending revisions one at a time; arguments and answer as the operation of the same name for Django."""
    del app
    record = _part("alembic_record")
    before = _part("alembic").probe(context)
    known, unknown = record.split(context, before)
    if unknown:
        raise _refusal(
            f"the database has {_names(unknown)} applied, of which this release has no file; nothing was applied"
        )
    pending = [step.revision for step in record.upgrades(context, record.target_of(context, target), known)]
    found = [["alembic", str(revision.revision)] for revision in pending]
    if expected is not None and found != [list(row) for row in expected]:
        raise _refusal(
            f"the plan has changed: verified was {_names([row[1] for row in expected])}, pending now is "
            f"{_names([row[1] for row in found])}; nothing was applied, so begin the deployment again"
        )
    progress = Progress(context)
    heads = set(known)
    invalid: list[str] = []
    with progress.listening():
        for position, revision in enumerate(pending):
            after = _after(context, heads, revision)
            arguments = ("apply", revision, set(heads), after, lock_timeout, position == 0)
            invalid += _persist(context, progress, lambda given=arguments: _run(context, progress, *given))
            heads = after
    rows = _part("alembic").rows_of
    return {"before": rows(before), "applied": rows(heads), "plan": found, "invalid_indexes": invalid}


def _after(context: Any, heads: Any, revision: Any) -> set[str]:
    """Return the heads after *revision*, which follows some of *heads*."""
    gone = {str(name) for name in revision._all_down_revisions}
    script = context.memory["script"]
    for name in list(gone):
        # What a merge or a dependency brings in need not be a head itself.
        gone |= set(ancestors(script, [name]))
    return (set(heads) - gone) | {str(revision.revision)}


def ancestors(script: Any, heads: Any) -> list[str]:
    """Return the revisions that *heads* rest on, and *heads*, dependencies included, the newest first."""
    found: dict[str, None] = {}
    waiting = [str(head) for head in heads]
    while waiting:
        name = waiting.pop(0)
        if name not in found:
            found[name] = None
            waiting += [str(each) for each in script.get_revision(name)._all_down_revisions]
    return list(found)


# --- reverse ---


def _to_reverse(context: Any, target: list[list[str]]) -> tuple[tuple[str, ...], list[Any], set[str]]:
    """Return what is applied, the revisions that would go, in that order, and the heads that stay.

    :param target: rows of what stays; revisions on which others of them rest may be among them.
    :raises AlembicRefusal: when that cannot be reached, or a revision has no way back.
    """
    record = _part("alembic_record")
    script = context.memory["script"]
    before = _part("alembic").probe(context)
    known, unknown = record.split(context, before)
    wanted, strange = record.split(context, [row[1] for row in target])
    if unknown or strange:
        raise _refusal(
            f"this release has no file of {_names(sorted({*unknown, *strange}))} and so cannot reverse to or from it; nothing "
            "was done: use the release that brought it"
        )
    present = set(ancestors(script, known))
    stay = set(ancestors(script, wanted))
    if not stay <= present:
        raise _refusal(
            f"{_names(sorted(stay - present))} is to stay, but is not applied; nothing was done: the target is not a state "
            "that this database was in"
        )
    gone = present - stay
    order = [name for name in _newest_first(script, present) if name in gone]
    heads = stay - {str(down) for name in stay for down in script.get_revision(name)._all_down_revisions}
    for name in order:
        revision = script.get_revision(name)
        back = record.body_of(record.direction(revision, "downgrade"))
        forward = record.body_of(record.direction(revision, "upgrade"))
        if back in ("missing", "raises") or (back == "empty" and forward != "empty"):
            said = {"missing": "it has none", "raises": "it raises an error", "empty": "it does nothing"}[
                back
            ]
            raise _refusal(
                f"alembic.{name} cannot be reversed, because of its downgrade(): {said}; nothing was done: restore the "
                "backup instead"
            )
    return before, [script.get_revision(name) for name in order], heads


def _newest_first(script: Any, names: set[str]) -> list[str]:
    """Return *names* so that none comes after one that it rests on."""
    left = set(names)
    order = []
    while left:
        below = {str(down) for name in left for down in script.get_revision(name)._all_down_revisions}
        tops = sorted(left - below)
        order += tops
        left -= set(tops)
    return order


def reverse(context: Any, target: list[list[str]], lock_timeout: float = 5.0) -> dict[str, Any]:
    """Take back, one at a time, everything that is applied and not in *target*; apply nothing.

    Refuses before the first step when a revision has no way back or is not a file of this release.
    """
    before, gone, _heads = _to_reverse(context, target)
    script = context.memory["script"]
    progress = Progress(context)
    present = set(ancestors(script, before))
    heads = set(before)
    with progress.listening():
        for position, revision in enumerate(gone):
            present -= {str(revision.revision)}
            after = present - {
                str(down) for name in present for down in script.get_revision(name)._all_down_revisions
            }
            arguments = ("unapply", revision, set(heads), after, lock_timeout, position == 0)
            _persist(context, progress, lambda given=arguments: _run(context, progress, *given))
            heads = after
    rows = _part("alembic").rows_of
    return {
        "before": rows(before),
        "applied": rows(heads),
        "plan": [["alembic", str(revision.revision)] for revision in gone],
    }


# --- what going back would throw away ---


def written(context: Any, target: list[list[str]], made: dict[str, Any]) -> dict[str, Any]:
    """Count what would go if everything that is applied and not in *target* were taken back.

    :param made: of each revision what it makes, ``{tables: [name], columns: [[table, column, filled]]}``, *filled* being what
        the rows that were there got, as SQL; None where it is not known.
    :return: ``{gone: [["alembic", revision]], tables: {name: rows}, columns: {"table.column": values}, unknown: {name: why}}``,
        without zeros.
    """
    _before, gone, _heads = _to_reverse(context, target)
    names = [str(revision.revision) for revision in gone]
    answer: dict[str, Any] = {"tables": {}, "columns": {}, "unknown": {}}
    answer["gone"] = [["alembic", name] for name in names]
    for name in names:
        if made.get(name) is None:
            answer["unknown"][f"alembic.{name}"] = "what it made is not recorded"
    known = [made[name] for name in names if made.get(name) is not None]
    if not known:
        return answer

    def count(_heads: Any, migration: Any) -> None:
        tables = {table for entry in known for table in entry["tables"]}
        for table in sorted(tables):
            _count(migration, answer, "tables", table, table, None, None)
        for table, column, filled in (row for entry in known for row in entry["columns"]):
            if table not in tables:
                _count(migration, answer, "columns", f"{table}.{column}", table, column, filled)

    _part("alembic").run_env(context, count)
    return answer


def _count(
    migration: Any, answer: Any, kind: str, name: str, table: str, column: str | None, filled: str | None
) -> None:
    from sqlalchemy import text as sql

    quote = migration.dialect.identifier_preparer.quote
    statement = f"SELECT COUNT(*) FROM {'.'.join(quote(each) for each in table.split('.'))}"
    if column is not None:
        statement += f" WHERE {quote(column)} IS NOT NULL"
        if filled is not None:
            statement += f" AND NOT ({quote(column)} = {filled})"
    connection = migration.connection
    try:
        # A failed statement of PostgreSQL spoils its transaction, so that each has one within it.
        nested = getattr(connection, "begin_nested", None)
        with nested() if nested else contextlib.nullcontext():
            number = connection.execute(sql(statement.replace(":", "\\:"))).scalar()
    except Exception as error:
        answer["unknown"][name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        return
    if number:
        answer[kind][name] = int(number)


OPERATIONS = {"apply": apply, "reverse": reverse, "written": written}
