# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations inside a Django application: state, apply, reverse.

Runs in the application's Python (3.8 and up, Django 3.2 and up), loaded by ``_agent_runtime.py`` after
``_agent_django.py``; imports nothing of the collection, and Django only inside functions. The facts about operations
that are collected here are judged on the host, in ``_plan.py``.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import sys
import time
from typing import Any

# Attributes of a field that no database knows, where Field.non_db_attrs (Django 4.1) is not there to say so; the
# list of DatabaseSchemaEditor._field_should_be_altered in Django 3.2. A changed db_column is seen by the column.
NON_DATABASE = (
    "blank",
    "choices",
    "db_column",
    "editable",
    "error_messages",
    "help_text",
    "limit_choices_to",
    "on_delete",
    "related_name",
    "related_query_name",
    "validators",
    "verbose_name",
)


class MigrationRefusal(Exception):
    """The request cannot be carried out, and nothing was done; its text is the sentence for the operator."""


# --- state ---


def _connection(context: Any) -> Any:
    from django.db import connections

    return connections[context.memory["alias"]]


def _executor(connection: Any, callback: Any = None) -> Any:
    from django.db.migrations.executor import MigrationExecutor

    return MigrationExecutor(connection, callback)


def _applied_rows(connection: Any) -> list[list[str]]:
    """Return the rows of django_migrations in the order in which they were written."""
    from django.db.migrations.recorder import MigrationRecorder

    recorder = MigrationRecorder(connection)
    if not recorder.has_table():
        return []
    return [[app, name] for app, name in recorder.migration_qs.order_by("id").values_list("app", "name")]


def applied(context: Any) -> dict[str, Any]:
    """Return the applied rows alone: ``{applied: [[app, name]]}``."""
    connection = _connection(context)
    # The connection may be the one on which a migration has just failed.
    connection.close()
    return {"applied": _applied_rows(connection)}


def state(context: Any) -> dict[str, Any]:
    """Return the applied rows and the pending migrations with the facts about their operations.

    ``unknown``: applied rows that no file of this release explains; ``conflicts``: applications with several last
    migrations; ``inconsistent``: the text of Django's complaint about an order that cannot be, else "".
    """
    from django.db.migrations.exceptions import InconsistentMigrationHistory

    connection = _connection(context)
    executor = _executor(connection)
    loader = executor.loader
    rows = _applied_rows(connection)
    inconsistent = ""
    try:
        loader.check_consistent_history(connection)
    except InconsistentMigrationHistory as error:
        inconsistent = str(error)
    plan = [] if inconsistent else executor.migration_plan(loader.graph.leaf_nodes())
    project_state = executor._create_project_state(with_applied_migrations=True)
    return {
        "applied": rows,
        "pending": [_describe_migration(migration, project_state) for migration, _backwards in plan],
        "unknown": [row for row in rows if not _is_known(loader, (row[0], row[1]))],
        "conflicts": {app: sorted(names) for app, names in loader.detect_conflicts().items()},
        "inconsistent": inconsistent,
        "vendor": connection.vendor,
        # Django 6.0 has the attribute no more: each SQLite that it takes can.
        "can_drop_column": bool(getattr(connection.features, "can_alter_table_drop_column", True)),
        "django": list(sys.modules["django"].VERSION[:2]),
    }


def _is_known(loader: Any, key: tuple[str, str]) -> bool:
    if key in loader.disk_migrations or key in loader.graph.nodes:
        return True
    return any(key in {tuple(old) for old in squash.replaces} for squash in loader.replacements.values())


def _describe_migration(migration: Any, project_state: Any) -> dict[str, Any]:
    """Return the facts about *migration* and move *project_state* past it."""
    return {
        "app": migration.app_label,
        "name": migration.name,
        "atomic": bool(migration.atomic),
        "replaces": [list(key) for key in migration.replaces],
        "operations": [
            _describe_operation(operation, migration.app_label, project_state)
            for operation in migration.operations
        ],
    }


def _describe_operation(operation: Any, app: str, project_state: Any) -> dict[str, Any]:
    """Return the facts about *operation* and move *project_state* past it.

    ``{class, module, description, reversible, noop, app, model, table, table_after, old, new, altered, operations}``:
    *old* and *new* are facts about the field that is touched, *altered* the attributes of it that differ and that
    the database knows; *operations* those that a SeparateDatabaseAndState runs on the database.
    """
    kind = type(operation)
    model = _model_name(operation)
    facts: dict[str, Any] = {
        "class": kind.__name__,
        "module": kind.__module__,
        "description": str(operation.describe()),
        "reversible": bool(operation.reversible),
        "noop": _is_noop(operation),
        "app": app,
        "model": model,
        "table": _table(project_state, app, model),
        "old": None,
        "new": None,
        "altered": None,
        "unique_added": None,
        "plain_constraint": True,
        "operations": [],
    }
    old_field = _field(
        project_state, app, model, getattr(operation, "old_name", getattr(operation, "name", None))
    )
    old_options = _options(project_state, app, model)
    database_operations = getattr(operation, "database_operations", None)
    if database_operations is not None:
        inner = project_state.clone()
        facts["operations"] = [_describe_operation(each, app, inner) for each in database_operations]
        facts["reversible"] = facts["reversible"] and all(each["reversible"] for each in facts["operations"])
    operation.state_forwards(app, project_state)
    renamed = getattr(operation, "new_name", None)
    after = renamed if kind.__name__ == "RenameModel" else model
    facts["table_after"] = _table(project_state, app, after)
    if model and kind.__name__ in ("AddField", "AlterField", "RemoveField", "RenameField"):
        new_field = _field(project_state, app, model, renamed or getattr(operation, "name", None))
        facts["old"] = _field_facts(old_field) if kind.__name__ != "AddField" else None
        facts["new"] = _field_facts(new_field) if kind.__name__ != "RemoveField" else None
        if old_field is not None and new_field is not None:
            facts["altered"] = _altered(old_field, new_field)
    if kind.__name__ == "AlterUniqueTogether":
        new_options = _options(project_state, app, model)
        old_sets = {tuple(entry) for entry in old_options.get("unique_together") or ()}
        new_sets = {tuple(entry) for entry in new_options.get("unique_together") or ()}
        facts["unique_added"] = len(new_sets - old_sets)
        facts["altered"] = [] if new_sets == old_sets else ["unique_together"]
    constraint = getattr(operation, "constraint", None)
    if constraint is None and kind.__name__ == "RemoveConstraint":
        named = [each for each in old_options.get("constraints") or () if each.name == operation.name]
        constraint = named[0] if named else None
    if constraint is not None:
        facts["plain_constraint"] = _is_plain(constraint)
    return facts


def _model_name(operation: Any) -> str | None:
    """Return the model's name as the operation has it before it runs; None for an operation without a model."""
    model_name = getattr(operation, "model_name", None)
    if isinstance(model_name, str):
        return model_name
    # Only ModelOperation has these properties; the name of a CreateExtension is no model's.
    if hasattr(type(operation), "old_name_lower"):
        return str(operation.old_name)
    return str(operation.name) if hasattr(type(operation), "name_lower") else None


def _options(project_state: Any, app: str, model: str | None) -> dict[str, Any]:
    found = project_state.models.get((app, (model or "").lower()))
    return dict(found.options) if found is not None else {}


def _table(project_state: Any, app: str, model: str | None) -> str | None:
    """Return the model's table in *project_state*; None for none and for what Django does not manage."""
    found = project_state.models.get((app, (model or "").lower()))
    if found is None or found.options.get("proxy") or found.options.get("managed") is False:
        return None
    return str(found.options.get("db_table") or f"{app}_{found.name.lower()}")


def _field(project_state: Any, app: str, model: str | None, name: Any) -> Any:
    found = project_state.models.get((app, (model or "").lower()))
    if found is None or not isinstance(name, str):
        return None
    fields = dict(found.fields)
    return fields.get(name) or {key.lower(): value for key, value in fields.items()}.get(name.lower())


def _field_facts(field: Any) -> dict[str, Any] | None:
    """Return what decides how a column is added, removed or altered; *field* is not bound to a model."""
    if field is None:
        return None
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor
    from django.db.models import NOT_PROVIDED

    try:
        default = BaseDatabaseSchemaEditor._effective_default(field) is not None
    except Exception:
        default = field.has_default()
    database_default = getattr(field, "db_default", NOT_PROVIDED)
    remote = getattr(field, "remote_field", None)
    return {
        "type": type(field).__name__,
        "null": bool(field.null),
        "default": default,
        "db_default": database_default is not NOT_PROVIDED,
        "db_default_constant": isinstance(database_default, (str, int, float, bool))
        or type(database_default).__name__ in ("Value", "DatabaseDefault"),
        "generated": bool(getattr(field, "generated", False)),
        "many_to_many": bool(getattr(field, "many_to_many", False)),
        "automatic_through": getattr(remote, "through", None) is None,
        "primary_key": bool(field.primary_key),
        "unique": bool(field.unique),
        "index": bool(field.db_index),
        "reference": bool(remote) and bool(getattr(field, "db_constraint", True)),
        "column": str(field.db_column or ""),
    }


def _altered(old_field: Any, new_field: Any) -> list[str]:
    """Return the attributes that the database knows and that differ, ``type`` for another class."""
    _name, old_path, old_args, old_kwargs = old_field.deconstruct()
    _name, new_path, new_args, new_kwargs = new_field.deconstruct()
    ignored = set(getattr(old_field, "non_db_attrs", NON_DATABASE)) - {"db_column"}
    found = {
        key
        for key in set(old_kwargs) | set(new_kwargs)
        if key not in ignored and old_kwargs.get(key, "absent") != new_kwargs.get(key, "absent")
    }
    if (old_path, old_args) != (new_path, new_args):
        found.add("type")
    return sorted(found)


def _is_noop(operation: Any) -> bool:
    code = getattr(operation, "code", None)
    if code is not None:
        return code is getattr(type(operation), "noop", object())
    sql = getattr(operation, "sql", None)
    return sql is not None and not sql


def _is_plain(constraint: Any) -> bool:
    """Return whether SQLite has *constraint* in the table's definition, not as an index of its own."""
    if type(constraint).__name__ != "UniqueConstraint":
        return True
    return not any(
        getattr(constraint, name, None)
        for name in ("condition", "contains_expressions", "expressions", "include", "deferrable")
    )


# --- apply ---


def _lists(keys: Any) -> list[list[str]]:
    return [[key[0], key[1]] for key in keys]


class _Progress:
    """Tells the host about each begin and end that Django's executor reports."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.begun = 0.0

    def __call__(self, action: str, migration: Any = None) -> None:
        if migration is None:
            return
        key = {"app": migration.app_label, "name": migration.name}
        if action in ("apply_start", "unapply_start"):
            self.begun = time.monotonic()
            self.context.emit(event=action, atomic=bool(migration.atomic), **key)
        elif action in ("apply_success", "unapply_success"):
            self.context.emit(event=action, seconds=round(time.monotonic() - self.begun, 3), **key)


def _lock(connection: Any) -> None:
    """Keep other migrations out. SQLite has one writer and one host: the deployment's own lock is enough."""
    if connection.vendor != "sqlite":
        raise MigrationRefusal(
            f"the engine {connection.vendor!r} needs an advisory lock while it migrates, which this version does not "
            "take yet"
        )


def apply(context: Any, expected: list[list[str]] | None = None) -> dict[str, Any]:
    """Run the project's own ``migrate``, its signals and overrides included.

    :param expected: the plan that was verified; nothing is applied when the present one differs. None: any plan.
    """
    from django.core.management import call_command, get_commands, load_command_class

    connection = _connection(context)
    _lock(connection)
    executor = _executor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    found = [[migration.app_label, migration.name] for migration, _backwards in plan]
    if expected is not None and found != _lists(expected):
        raise MigrationRefusal(
            f"the plan has changed: verified was {_names(expected)}, pending now is {_names(found)}; nothing was "
            "applied, so begin the deployment again"
        )
    before = _applied_rows(connection)
    provider = get_commands().get("migrate", "django.core")
    command = provider if not isinstance(provider, str) else load_command_class(provider, "migrate")
    progress = _Progress(context)
    own = getattr(command, "migration_progress_callback", None)

    def report(action: str, migration: Any = None, fake: bool = False) -> None:
        progress(action, migration)
        if own is not None:
            own(action, migration, fake)

    command.migration_progress_callback = report
    call_command(
        command,
        database=context.memory["alias"],
        interactive=False,
        verbosity=1,
        no_color=True,
        skip_checks=False,
    )
    after = _applied_rows(connection)
    return {"before": before, "applied": after, "plan": found}


def _names(keys: Any) -> str:
    return ", ".join(f"{app}.{name}" for app, name in keys) or "nothing"


# --- reverse ---


def reverse(context: Any, target: list[list[str]]) -> dict[str, Any]:
    """Unapply, one at a time, everything that is applied and not in *target*; apply nothing.

    Refuses before the first step when a migration cannot be reversed, is not a file of this release, or carries an
    applied one that would stay.
    """
    connection = _connection(context)
    _lock(connection)
    progress = _Progress(context)
    executor = _executor(connection, lambda action, migration=None, fake=False: progress(action, migration))
    before = _applied_rows(connection)
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
        raise MigrationRefusal(
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
        "applied": _applied_rows(connection),
        "plan": [list(_key(m)) for m, _backwards in plan],
    }


def _key(migration: Any) -> tuple[str, str]:
    return (migration.app_label, migration.name)


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
            raise MigrationRefusal(
                f"{_names([key])} replaces {_names(sorted(replaced))}, of which some would stay and some would go; "
                "nothing was done: restore the backup instead"
            )
    return unrecord, unapply


def _refuse_impossible(loader: Any, unapply: set[tuple[str, str]], stay: set[tuple[str, str]]) -> None:
    unknown = sorted(key for key in unapply if key not in loader.graph.nodes)
    if unknown:
        raise MigrationRefusal(
            f"{_names(unknown)} is applied, but this release has no such file and so cannot reverse it; nothing was "
            "done: use the release that brought it"
        )
    for key in sorted(unapply):
        for operation in loader.graph.nodes[key].operations:
            if not _can_reverse(operation):
                raise MigrationRefusal(
                    f"{_names([key])} cannot be reversed, because of its operation "
                    f"{str(operation.describe())!r}; nothing was done: restore the backup instead"
                )
    children = sorted(key for key in stay if key in loader.graph.nodes and unapply & _ancestors(loader, key))
    if children:
        raise MigrationRefusal(
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


OPERATIONS = {"applied": applied, "state": state, "apply": apply, "reverse": reverse}
