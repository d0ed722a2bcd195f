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
import sys
import time
from collections.abc import Iterator
from typing import Any

# A migration that could not get a lock is tried so often, with so many seconds between, when nothing of it remains.
ATTEMPTS = 3
PAUSE = 2.0


def _part(name: str) -> Any:
    """Return another part of the agent."""
    return sys.modules["_runbook_" + name]


def _refusal(text: str) -> Exception:
    return _part("migrate").MigrationRefusal(text)


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
    with _part("steps").Session(connection, lock_timeout) as session:
        found, words = _pending(connection, app, target)
        if expected is not None and found != _lists(expected):
            raise _refusal(
                f"the plan has changed: verified was {_names(expected)}, pending now is {_names(found)}; nothing was "
                "applied, so begin the deployment again"
            )
        before = migrate.applied_rows(connection)
        progress = _part("steps").Progress(context, session)
        with _explained(context, session, progress), progress.operations():
            _persist(session, progress, lambda: _call_migrate(context, progress, words))
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


def _call_migrate(context: Any, progress: Any, words: list[str]) -> None:
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


def _persist(session: Any, progress: Any, work: Any) -> None:
    """Do *work*, and do what is left of it again when a migration could not get a lock and nothing of it remains."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            work()
            return
        except Exception as error:
            if not _may_retry(session, progress, error) or attempt == ATTEMPTS:
                raise
            sys.stdout.write(
                f"{_names([tuple(progress.key.values())])}: no lock in attempt {attempt}: {error}\n"
            )
            progress.tell(event="retry", attempt=attempt)
            time.sleep(PAUSE)


def _may_retry(session: Any, progress: Any, error: Exception) -> bool:
    """Return whether the migration only waited in vain, and was rolled back to its last statement."""
    connection = session.connection
    return (
        progress.running
        and progress.undone
        and session.parts.waited_for_lock(error)
        and connection.connection is not None
        and not connection.in_atomic_block
        and connection.is_usable()
    )


@contextlib.contextmanager
def _explained(context: Any, session: Any, progress: Any) -> Iterator[None]:
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
    with _part("steps").Session(connection, lock_timeout) as session:
        progress = _part("steps").Progress(context, session)
        with _explained(context, session, progress), progress.operations():
            before = _part("migrate").applied_rows(connection)
            plan: list[list[str]] = []
            _persist(session, progress, lambda: _reverse(context, connection, progress, target, plan))
            return {"before": before, "applied": _part("migrate").applied_rows(connection), "plan": plan}


def _reverse(
    context: Any, connection: Any, progress: Any, target: list[list[str]], told: list[list[str]]
) -> None:
    """Unapply what is not in *target*; *told* gets the plan, of which a second attempt has the rest."""
    migrate = _part("migrate")
    executor = migrate.executor_of(
        connection, lambda action, migration=None, fake=False: progress(action, migration)
    )
    wanted = {tuple(row) for row in target}
    present = {tuple(row) for row in migrate.applied_rows(connection)}
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
    told += [list(_key(migration)) for migration, _backwards in plan if list(_key(migration)) not in told]
    if plan:
        _run_backwards(executor, connection, plan)
    for app, name in sorted(unrecord):
        # Recorded by check_replacements() of a later migrate, without any change to the schema.
        executor.recorder.record_unapplied(app, name)
        context.emit(event="unrecorded", app=app, name=name)


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
