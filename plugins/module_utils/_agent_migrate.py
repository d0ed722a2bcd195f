# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations inside a Django application: applied, state; the facts about its migrations.

Runs in the application's Python (3.8 and up, Django 3.2 and up), loaded by ``_agent_runtime.py`` after
``_agent_django.py``; imports nothing of the collection, and Django only inside functions. The facts about operations
that are collected here are judged on the host, in ``_plan.py``.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import sys
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
# Statements of a migration that are collected, and how much of each.
MOST_STATEMENTS = 100
LONGEST_STATEMENT = 1000


class MigrationRefusal(Exception):
    """The request cannot be carried out, and nothing was done; its text is the sentence for the operator."""


# --- state ---


def connection_of(context: Any) -> Any:
    """Return the connection that is migrated."""
    from django.db import connections

    return connections[context.memory["alias"]]


def executor_of(connection: Any, callback: Any = None) -> Any:
    """Return Django's executor of migrations, which has just read what is applied."""
    from django.db.migrations.executor import MigrationExecutor

    return MigrationExecutor(connection, callback)


def applied_rows(connection: Any) -> list[list[str]]:
    """Return the rows of django_migrations in the order in which they were written."""
    from django.db.migrations.recorder import MigrationRecorder

    recorder = MigrationRecorder(connection)
    if not recorder.has_table():
        return []
    return [[app, name] for app, name in recorder.migration_qs.order_by("id").values_list("app", "name")]


def applied(context: Any) -> dict[str, Any]:
    """Return the applied rows alone: ``{applied: [[app, name]]}``."""
    connection = connection_of(context)
    # The connection may be the one on which a migration has just failed.
    connection.close()
    return {"applied": applied_rows(connection)}


def targets_of(loader: Any, app: str, target: str) -> list[tuple[str, str]]:
    """Return the nodes to migrate to: the last ones of all apps or of *app*, or the migration *target*, ``app.name``.

    :raises MigrationRefusal: for an app without migrations, or a name that no migration has or begins with alone.
    """
    if not app and not target:
        return list(loader.graph.leaf_nodes())
    label, _dot, name = target.partition(".") if target else (app, "", "")
    if app and label != app:
        raise MigrationRefusal(
            f"the target {target!r} is not one of the app {app!r}: give one of them, or both alike"
        )
    if label not in loader.migrated_apps:
        known = ", ".join(sorted(loader.migrated_apps))
        raise MigrationRefusal(f"there is no app {label!r} with migrations, expected one of {known}")
    if not target:
        return [key for key in loader.graph.leaf_nodes() if key[0] == label]
    found = sorted(key for key in loader.graph.nodes if key[0] == label and key[1] == name)
    found = found or sorted(key for key in loader.graph.nodes if key[0] == label and key[1].startswith(name))
    if len(found) != 1 or not name:
        raise MigrationRefusal(
            f"the target {target!r} is {'no migration' if not found else 'more than one migration'} of the app "
            f"{label!r}, expected app.name as in {label}.0001_initial"
        )
    return [(found[0][0], found[0][1])]


def command_words(loader: Any, app: str, target: str) -> list[str]:
    """Return the arguments of ``migrate`` for *app* and *target*."""
    if target:
        return list(targets_of(loader, app, target)[0])
    return [app] if app else []


def refuse_backwards(plan: Any, target: str) -> None:
    """Raise when going to *target* would take migrations back, which is a rollback's business."""
    back = [f"{migration.app_label}.{migration.name}" for migration, backwards in plan if backwards]
    if back:
        raise MigrationRefusal(
            f"going to the target {target!r} would take {', '.join(back)} back: a deployment goes forward only, so "
            "use playbooks/rollback.yml"
        )


def state(context: Any, collect: bool = False, app: str = "", target: str = "") -> dict[str, Any]:
    """Return the applied rows and the pending migrations with the facts about their operations.

    ``unknown``: applied rows that no file of this release explains; ``conflicts``: applications with several last
    migrations; ``inconsistent``: the text of Django's complaint about an order that cannot be, else ""; ``remaining``:
    what stays pending because of *app* or *target*.

    :param collect: also collect the statements, which a scratch database alone is asked for: ``sql`` of each
        migration, None where only running it would tell.
    """
    from django.db.migrations.exceptions import InconsistentMigrationHistory

    connection = connection_of(context)
    executor = executor_of(connection)
    loader = executor.loader
    rows = applied_rows(connection)
    inconsistent = ""
    try:
        loader.check_consistent_history(connection)
    except InconsistentMigrationHistory as error:
        inconsistent = str(error)
    plan, everything = [], []
    if not inconsistent:
        plan = executor.migration_plan(targets_of(loader, app, target))
        refuse_backwards(plan, target)
        everything = executor.migration_plan(loader.graph.leaf_nodes()) if app or target else plan
    chosen = {migration for migration, _backwards in plan}
    project_state = executor._create_project_state(with_applied_migrations=True)
    statements = _collect_sql(connection, plan, project_state.clone()) if collect and plan else {}
    return {
        "applied": rows,
        "pending": [
            {**_describe_migration(migration, project_state), "sql": statements.get(migration)}
            for migration, _backwards in plan
        ],
        "remaining": [
            [migration.app_label, migration.name]
            for migration, _back in everything
            if migration not in chosen
        ],
        "unknown": [row for row in rows if not _is_known(loader, (row[0], row[1]))],
        "conflicts": {app: sorted(names) for app, names in loader.detect_conflicts().items()},
        "inconsistent": inconsistent,
        "vendor": connection.vendor,
        "mariadb": bool(getattr(connection, "mysql_is_mariadb", False)),
        "can_rollback_ddl": bool(connection.features.can_rollback_ddl),
        # Django 6.0 has the attribute no more: each SQLite that it takes can.
        "can_drop_column": bool(getattr(connection.features, "can_alter_table_drop_column", True)),
        "django": list(sys.modules["django"].VERSION[:2]),
    }


def _collect_sql(connection: Any, plan: Any, project_state: Any) -> dict[Any, list[str]]:
    """Return the statements of each migration of *plan*, as ``sqlmigrate`` collects them; without comments.

    Not of a migration with an operation of the application's own: it may run statements where it should tell them.
    """
    found = {}
    for migration, _backwards in plan:
        before = project_state.clone()
        try:
            if not all(_is_djangos(operation) for operation in migration.operations):
                raise LookupError("an operation of the application's own")
            with connection.schema_editor(collect_sql=True, atomic=migration.atomic) as editor:
                project_state = migration.apply(project_state, editor, collect_sql=True)
            lines = [str(text).strip() for text in editor.collected_sql]
            found[migration] = [
                text[:LONGEST_STATEMENT] for text in lines if text and not text.startswith("--")
            ][:MOST_STATEMENTS]
        except Exception:
            project_state = migration.mutate_state(before, preserve=False)
    return found


def _is_djangos(operation: Any) -> bool:
    inner = getattr(operation, "database_operations", None) or ()
    modules = ("django.db.migrations.operations", "django.contrib.postgres.operations")
    return type(operation).__module__.startswith(modules) and all(_is_djangos(each) for each in inner)


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
        "unique_removed": None,
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
        facts["unique_removed"] = len(old_sets - new_sets)
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
        "max_length": getattr(field, "max_length", None),
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


OPERATIONS = {"applied": applied, "state": state}
