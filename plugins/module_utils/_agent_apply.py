# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations inside a Django application: apply, reverse.

Runs in the application's Python (3.8 and up, Django 3.2 and up), loaded by ``_agent_runtime.py`` after
``_agent_migrate.py`` and ``_agent_session.py``; imports nothing of the collection, and Django only inside functions.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

# A migration that could not get a lock is tried so often, with so many seconds between, when nothing of it remains.
ATTEMPTS = 3
PAUSE = 2.0
# Statements of an operation that are told to the host, and how much of each.
TOLD_STATEMENTS = 40
LONGEST_STATEMENT = 300
# What is read does not change anything, and what is begun or ended is no statement of the migration's.
SILENT = re.compile(
    r"\s*(?:SELECT|SHOW|PRAGMA|SAVEPOINT|RELEASE|ROLLBACK|BEGIN|COMMIT|EXPLAIN)\b", re.IGNORECASE
)
LITERAL = re.compile(r"'(?:[^']|'')*'")
SPACE = re.compile(r"\s+")


# --- the session ---


def _part(name: str) -> Any:
    """Return another part of the agent."""
    return sys.modules["_runbook_" + name]


def _refusal(text: str) -> Exception:
    return _part("migrate").MigrationRefusal(text)


def _query(connection: Any) -> Any:
    """Return a query of ``_agent_session.py`` on the Django *connection*."""

    def query(statement: str, parameters: Any = ()) -> Any:
        with connection.cursor() as cursor:
            cursor.execute(statement, tuple(parameters) or None)
            return cursor.fetchall() if cursor.description else []

    return query


def _second(connection: Any) -> Any:
    """Return what opens another session with the settings of *connection*."""

    def second() -> Any:
        # A wrapper of its own: Django's are bound to the thread that made them.
        other = type(connection)(dict(connection.settings_dict), connection.alias)
        other.ensure_connection()
        return _query(other), other.close

    return second


class Session:
    """The migrating session, as a context manager: prepared, locked, watched.

    :param lock_timeout: seconds that a statement may wait for a lock.
    """

    def __init__(self, connection: Any, lock_timeout: float) -> None:
        self.connection = connection
        self.vendor = connection.vendor
        self.lock_timeout = lock_timeout
        self.query = _query(connection)
        self.parts = _part("session")
        self.watcher: Any = None
        self.invalid: list[str] = []

    def __enter__(self) -> Any:
        if self.vendor == "sqlite":
            # One writer and one host: the deployment's own lock is enough.
            return self
        if self.vendor not in ("postgresql", "mysql"):
            raise _refusal(f"migrations of the engine {self.vendor!r} are not supported")
        from django.db.backends.signals import connection_created

        self.connection.ensure_connection()
        if self.vendor == "postgresql":
            self.parts.refuse_pooler(self.query, _second(self.connection))
        self.parts.take_lock(self.vendor, self.query)
        self.parts.limit_waiting(self.vendor, self.query, self.lock_timeout)
        # A migration may close the connection; what is opened then must not wait for ever either.
        connection_created.connect(self._connected, weak=False, dispatch_uid="runbook")
        self.invalid = self.parts.invalid_indexes(self.vendor, self.query)
        if self.vendor == "postgresql":
            pid = self.query("SELECT pg_backend_pid()")[0][0]
            self.watcher = self.parts.Watcher(pid, _second(self.connection))
            self.watcher.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self.vendor == "sqlite":
            return
        from django.db.backends.signals import connection_created

        connection_created.disconnect(dispatch_uid="runbook")
        if self.watcher is not None:
            self.watcher.stop()
        # The end of the session gives the lock back where this does not reach the server any more.
        with contextlib.suppress(Exception):
            if self.connection.connection is not None and not self.connection.in_atomic_block:
                self.parts.release_lock(self.vendor, self.query)

    def _connected(self, connection: Any, **_facts: Any) -> None:
        if connection is self.connection:
            self.parts.limit_waiting(self.vendor, self.query, self.lock_timeout)

    def check(self) -> None:
        """See, before a migration begins, that the lock is still this session's."""
        if not self.parts.holds_lock(self.vendor, self.query):
            raise _refusal(
                "the session has lost the lock of the migrations, because the migration before it closed the "
                "connection or the server did: nothing further was done, so begin the deployment again"
            )

    def new_invalid(self) -> list[str]:
        """Return the invalid indexes that were not there at the begin."""
        try:
            found = self.parts.invalid_indexes(self.vendor, self.query)
        except Exception:
            return []
        return [text for text in found if text not in self.invalid]

    def blockers(self) -> list[str]:
        """Return who kept the session waiting, or else the oldest transactions of others."""
        if self.watcher is not None and self.watcher.blockers:
            return list(self.watcher.blockers)
        return self.parts.long_transactions(self.vendor, self.query)


# --- progress ---


class _Progress:
    """Tells the host about each begin and end: of migrations, of their operations, of statements that stay."""

    def __init__(self, context: Any, session: Session) -> None:
        self.context = context
        self.session = session
        self.connection = session.connection
        self.begun = 0.0
        self.key: dict[str, str] = {}
        self.running = False
        self.undone = False
        self.told = 0

    def __call__(self, action: str, migration: Any = None) -> None:
        if migration is None:
            return
        self.key = {"app": migration.app_label, "name": migration.name}
        if action in ("apply_start", "unapply_start"):
            self.session.check()
            # Whether nothing of it remains when it fails: MySQL cannot roll back changes of the schema.
            self.undone = bool(migration.atomic and self.connection.features.can_rollback_ddl)
            self.running = True
            self.context.emit(event=action, atomic=self.undone, **self.key)
            self.begun = time.monotonic()
        elif action in ("apply_success", "unapply_success"):
            self.running = False
            seconds = round(time.monotonic() - self.begun, 3)
            self.context.emit(event=action, seconds=seconds, **self.key)

    @contextlib.contextmanager
    def operations(self) -> Iterator[None]:
        """Report each operation of each migration, and the statements that cannot be rolled back."""
        from django.db.migrations.migration import Migration

        originals = {name: getattr(Migration, name) for name in ("apply", "unapply")}
        progress = self

        def wrap(name: str) -> Any:
            def run(migration: Any, project_state: Any, schema_editor: Any, collect_sql: bool = False) -> Any:
                if collect_sql or schema_editor.connection is not progress.connection:
                    return originals[name](migration, project_state, schema_editor, collect_sql)
                with progress._watched(migration, name):
                    return originals[name](migration, project_state, schema_editor, collect_sql)

            return run

        self.connection.execute_wrappers.append(self._statement)
        for name in originals:
            setattr(Migration, name, wrap(name))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(Migration, name, original)
            self.connection.execute_wrappers.remove(self._statement)

    @contextlib.contextmanager
    def _watched(self, migration: Any, name: str) -> Iterator[None]:
        """Wrap the operations of *migration* while it runs; an instance's attribute hides the method of its class."""
        method = "database_forwards" if name == "apply" else "database_backwards"
        operations = list(migration.operations)
        for position, operation in enumerate(operations, 1):
            self._announce(operation, method, position, len(operations))
        try:
            yield
            # What the schema editor has put off runs when it is closed, after this.
            self._begin(len(operations), len(operations), "the statements put off to the end", True)
        finally:
            for operation in operations:
                vars(operation).pop(method, None)

    def _announce(self, operation: Any, method: str, position: int, total: int) -> None:
        original = getattr(operation, method)

        def database(*arguments: Any, **named: Any) -> Any:
            self._begin(position, total, str(operation.describe()))
            return original(*arguments, **named)

        setattr(operation, method, database)

    def _begin(self, position: int, total: int, description: str, deferred: bool = False) -> None:
        self.told = 0
        self._tell(event="operation", index=position, of=total, description=description, deferred=deferred)

    def _tell(self, **event: Any) -> None:
        """Tell a detail. A host that is gone must not stop a migration in its middle, but before the next one."""
        with contextlib.suppress(OSError):
            self.context.emit(**event, **self.key)

    def _statement(self, execute: Any, sql: Any, parameters: Any, many: bool, context: Any) -> Any:
        result = execute(sql, parameters, many, context)
        if (
            self.running
            and not self.undone
            and "django_migrations" not in str(sql)
            and not SILENT.match(str(sql))
            and self.told < TOLD_STATEMENTS
        ):
            self.told += 1
            text = SPACE.sub(" ", LITERAL.sub("'…'", str(sql))).strip()[:LONGEST_STATEMENT]
            self._tell(event="statement", sql=text)
        return result


# --- apply ---


def _lists(keys: Any) -> list[list[str]]:
    return [[key[0], key[1]] for key in keys]


def _names(keys: Any) -> str:
    return ", ".join(f"{app}.{name}" for app, name in keys) or "nothing"


def _key(migration: Any) -> tuple[str, str]:
    return (migration.app_label, migration.name)


def apply(
    context: Any,
    expected: list[list[str]] | None = None,
    lock_timeout: float = 5.0,
    app: str = "",
    target: str = "",
) -> dict[str, Any]:
    """Run the project's own ``migrate``, its signals and overrides included.

    :param expected: the plan that was verified; nothing is applied when the present one differs. None: any plan.
    :param lock_timeout: seconds that a statement may wait for a lock.
    :param app: label of the only app to migrate, with what it depends on; :param target: ``app.name`` to stop at.
    """
    migrate = _part("migrate")
    connection = migrate.connection_of(context)
    with Session(connection, lock_timeout) as session:
        found, words = _pending(connection, app, target)
        if expected is not None and found != _lists(expected):
            raise _refusal(
                f"the plan has changed: verified was {_names(expected)}, pending now is {_names(found)}; nothing was "
                "applied, so begin the deployment again"
            )
        before = migrate.applied_rows(connection)
        progress = _Progress(context, session)
        with _explained(context, session, progress), progress.operations():
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    _call_migrate(context, progress, words)
                    break
                except Exception as error:
                    if not _may_retry(connection, session, progress, error) or attempt == ATTEMPTS:
                        raise
                    print(f"{_names([tuple(progress.key.values())])}: no lock in attempt {attempt}: {error}")
                    context.emit(event="retry", attempt=attempt, **progress.key)
                    time.sleep(PAUSE)
        after = migrate.applied_rows(connection)
        invalid = session.parts.invalid_indexes(session.vendor, session.query)
    return {"before": before, "applied": after, "plan": found, "invalid_indexes": invalid}


def _pending(connection: Any, app: str, target: str) -> tuple[list[list[str]], list[str]]:
    """Return what is pending, and the arguments of ``migrate`` for it."""
    migrate = _part("migrate")
    executor = migrate.executor_of(connection)
    plan = executor.migration_plan(migrate.targets_of(executor.loader, app, target))
    migrate.refuse_backwards(plan, target)
    words = migrate.command_words(executor.loader, app, target)
    return [list(_key(migration)) for migration, _backwards in plan], words


def _call_migrate(context: Any, progress: _Progress, words: list[str]) -> None:
    from django.core.management import call_command, get_commands, load_command_class

    provider = get_commands().get("migrate", "django.core")
    command = provider if not isinstance(provider, str) else load_command_class(provider, "migrate")
    own = getattr(command, "migration_progress_callback", None)

    def report(action: str, migration: Any = None, fake: bool = False) -> None:
        progress(action, migration)
        if own is not None:
            own(action, migration, fake)

    command.migration_progress_callback = report
    call_command(
        command,
        *words,
        database=context.memory["alias"],
        interactive=False,
        verbosity=1,
        no_color=True,
        skip_checks=False,
    )


def _may_retry(connection: Any, session: Session, progress: _Progress, error: Exception) -> bool:
    """Return whether the migration only waited in vain, and was rolled back to its last statement."""
    return (
        progress.running
        and progress.undone
        and session.parts.waited_for_lock(error)
        and connection.connection is not None
        and not connection.in_atomic_block
        and connection.is_usable()
    )


@contextlib.contextmanager
def _explained(context: Any, session: Session, progress: _Progress) -> Iterator[None]:
    """Tell the host, before the exception goes there, who was waited for and what a broken index build left."""
    try:
        yield
    except Exception as error:
        with contextlib.suppress(Exception):
            # A transaction that has failed answers nothing.
            if session.connection.in_atomic_block:
                session.connection.close()
        if session.parts.waited_for_lock(error):
            context.emit(event="blocked", by=session.blockers(), **progress.key)
        left = session.new_invalid()
        if left:
            context.emit(event="invalid_indexes", indexes=left, **progress.key)
        raise


# --- reverse ---


def reverse(context: Any, target: list[list[str]], lock_timeout: float = 5.0) -> dict[str, Any]:
    """Unapply, one at a time, everything that is applied and not in *target*; apply nothing.

    Refuses before the first step when a migration cannot be reversed, is not a file of this release, or carries an
    applied one that would stay.
    """
    connection = _part("migrate").connection_of(context)
    with Session(connection, lock_timeout) as session:
        progress = _Progress(context, session)
        with _explained(context, session, progress), progress.operations():
            return _reverse(context, connection, progress, target)


def _reverse(context: Any, connection: Any, progress: _Progress, target: list[list[str]]) -> dict[str, Any]:
    migrate = _part("migrate")
    executor = migrate.executor_of(
        connection, lambda action, migration=None, fake=False: progress(action, migration)
    )
    before = migrate.applied_rows(connection)
    wanted = {tuple(row) for row in target}
    present = {tuple(row) for row in before}
    remove = present - wanted
    unrecord, unapply = _split_squashed(executor.loader, remove, wanted)
    _refuse_impossible(executor.loader, unapply, present - remove)
    graph = executor.loader.graph
    order = executor.migration_plan(graph.leaf_nodes(), clean_start=True)
    plan = [(migration, True) for migration, _backwards in reversed(order) if _key(migration) in unapply]
    if len(plan) != len(unapply):
        left = unapply - {_key(migration) for migration, _backwards in plan}
        raise _refusal(
            f"{_names(sorted(left))} cannot be placed in the order of migrations; nothing was done"
        )
    if plan:
        _run_backwards(executor, connection, plan)
    for app, name in sorted(unrecord):
        # Recorded by check_replacements() of a later migrate, without any change to the schema.
        executor.recorder.record_unapplied(app, name)
        context.emit(event="unrecorded", app=app, name=name)
    return {
        "before": before,
        "applied": migrate.applied_rows(connection),
        "plan": [list(_key(m)) for m, _backwards in plan],
    }


def _split_squashed(
    loader: Any, remove: set[tuple[str, str]], wanted: set[tuple[str, str]]
) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Return ``(unrecord, unapply)``: a squash whose replaced migrations all stay loses only its own row."""
    unrecord: set[tuple[str, str]] = set()
    unapply = set(remove)
    for key, migration in loader.replacements.items():
        replaced = {tuple(old) for old in migration.replaces}
        if key in remove and replaced and replaced <= wanted:
            unrecord.add(key)
            unapply.discard(key)
        elif key in remove and not replaced & wanted and key in loader.graph.nodes:
            # Their rows go with the squash, as MigrationExecutor.unapply_migration does it.
            unapply -= replaced
        elif key in remove or (key in loader.graph.nodes and replaced & remove):
            raise _refusal(
                f"{_names([key])} replaces {_names(sorted(replaced))}, of which some would stay and some would go; "
                "nothing was done: restore the backup instead"
            )
    return unrecord, unapply


def _refuse_impossible(loader: Any, unapply: set[tuple[str, str]], stay: set[tuple[str, str]]) -> None:
    unknown = sorted(key for key in unapply if key not in loader.graph.nodes)
    if unknown:
        raise _refusal(
            f"{_names(unknown)} is applied, but this release has no such file and so cannot reverse it; nothing was "
            "done: use the release that brought it"
        )
    for key in sorted(unapply):
        for operation in loader.graph.nodes[key].operations:
            if not _can_reverse(operation):
                raise _refusal(
                    f"{_names([key])} cannot be reversed, because of its operation "
                    f"{str(operation.describe())!r}; nothing was done: restore the backup instead"
                )
    children = sorted(key for key in stay if key in loader.graph.nodes and unapply & _ancestors(loader, key))
    if children:
        raise _refusal(
            f"{_names(children)} would stay, but depends on a migration that would go; nothing was done: the target "
            "is not a state that this database can have had"
        )


def _ancestors(loader: Any, key: tuple[str, str]) -> set[tuple[str, str]]:
    return {ancestor for ancestor in loader.graph.forwards_plan(key) if ancestor != key}


def _can_reverse(operation: Any) -> bool:
    inner = getattr(operation, "database_operations", None) or ()
    return bool(operation.reversible) and all(_can_reverse(each) for each in inner)


def _run_backwards(executor: Any, connection: Any, plan: list[tuple[Any, bool]]) -> None:
    """Unapply *plan* with the signals around it, as the ``migrate`` command of Django does."""
    from importlib import import_module

    from django.apps import apps
    from django.core.management.sql import emit_post_migrate_signal, emit_pre_migrate_signal
    from django.db.migrations.state import ModelState
    from django.utils.module_loading import module_has_submodule

    for app_config in apps.get_app_configs():
        # Receivers of the signals are registered in these modules, too.
        if module_has_submodule(app_config.module, "management"):
            import_module(".management", app_config.name)
    state_before = executor._create_project_state(with_applied_migrations=True)
    shared = {"stdout": sys.stdout, "plan": plan}
    emit_pre_migrate_signal(1, False, connection.alias, apps=state_before.apps, **shared)
    state_after = executor.migrate(targets=None, plan=plan, state=state_before.clone())
    state_after.clear_delayed_apps_cache()
    apps_after = state_after.apps
    with apps_after.bulk_update():
        keys = []
        for model_state in apps_after.real_models:
            keys.append((model_state.app_label, model_state.name_lower))
            apps_after.unregister_model(*keys[-1])
    apps_after.render_multiple([ModelState.from_model(apps.get_model(*key)) for key in keys])
    emit_post_migrate_signal(1, False, connection.alias, apps=apps_after, **shared)


OPERATIONS = {"apply": apply, "reverse": reverse}
