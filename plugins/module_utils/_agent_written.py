# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Operation inside a Django application: written, what taking migrations back would throw away.

Reversing a CreateModel drops a table with its rows, reversing an AddField a column with its values. Counted are the
rows of such tables, and the values of such columns that are not what the migration itself filled in.

Runs in the application's Python (3.8 and up, Django 3.2 and up), loaded by ``_agent_runtime.py`` after
``_agent_apply.py``; imports nothing of the collection, and Django only inside functions.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import sys
from typing import Any


def _part(name: str) -> Any:
    """Return another part of the agent."""
    return sys.modules["_runbook_" + name]


def written(context: Any, target: list[list[str]]) -> dict[str, Any]:
    """Count what would go if everything that is applied and not in *target* were taken back.

    :return: ``{tables: {name: rows}, columns: {"table.column": values}, unknown: {name: why}}``, without zeros.
    """
    migrate = _part("migrate")
    connection = migrate.connection_of(context)
    loader = migrate.executor_of(connection).loader
    wanted = {tuple(row) for row in target}
    rows = [tuple(row) for row in migrate.applied_rows(connection)]
    # A squash whose replaced migrations stay loses only its own row; what cannot be reversed is refused as by reverse.
    _unrecord, unapply = _part("apply")._split_squashed(loader, set(rows) - wanted, wanted)
    gone = [row for row in rows if row in unapply]
    tables: list[str] = []
    columns: list[tuple[str, Any]] = []
    for key in gone:
        if key in loader.graph.nodes:
            state = loader.project_state(key, at_end=False)
            for operation in loader.graph.nodes[key].operations:
                _made_by(operation, key[0], state, tables, columns)
    answer: dict[str, Any] = {"tables": {}, "columns": {}, "unknown": {}}
    for table in dict.fromkeys(tables):
        _count(connection, answer, "tables", table, table, None)
    for table, field in columns:
        if table not in tables:
            _count(connection, answer, "columns", f"{table}.{field.column}", table, field)
    return answer


def _made_by(operation: Any, app: str, state: Any, tables: list[str], columns: list[tuple[str, Any]]) -> None:
    """Add the tables and columns that *operation* makes, and move *state* past it."""
    migrate = _part("migrate")
    inner = getattr(operation, "database_operations", None)
    if inner is not None:
        branch = state.clone()
        for each in inner:
            _made_by(each, app, branch, tables, columns)
    operation.state_forwards(app, state)
    kind = type(operation).__name__
    if kind not in ("CreateModel", "AddField") or inner is not None:
        return
    model = operation.name if kind == "CreateModel" else operation.model_name
    table = migrate._table(state, app, model)
    if table is None:
        return
    meta = state.apps.get_model(app, model)._meta
    if kind == "CreateModel":
        tables.append(table)
        fields = list(meta.local_many_to_many)
    else:
        field = meta.get_field(operation.name)
        fields = [field] if field.many_to_many else []
        # A GeneratedField follows from others, a ForeignObject has no column.
        if not fields and field.column and not getattr(field, "generated", False):
            columns.append((table, field))
    for field in fields:
        through = field.remote_field.through
        if through is not None and through._meta.auto_created:
            tables.append(through._meta.db_table)


def _count(connection: Any, answer: dict[str, Any], kind: str, name: str, table: str, field: Any) -> None:
    quote = connection.ops.quote_name
    statement = f"SELECT COUNT(*) FROM {quote(table)}"
    values: list[Any] = []
    try:
        if field is not None:
            column = quote(field.column)
            statement += f" WHERE {column} IS NOT NULL"
            for filled in _filled(connection, field):
                statement += f" AND {column} <> %s"
                values.append(filled)
        with connection.cursor() as cursor:
            cursor.execute(statement, values)
            number = cursor.fetchone()[0]
    except Exception as error:
        # A table that was renamed since, a type that cannot be compared: what is not known counts as a loss.
        answer["unknown"][name] = f"{type(error).__name__}: {str(error).strip()[:200]}"
        return
    if number:
        answer[kind][name] = int(number)


def _filled(connection: Any, field: Any) -> list[Any]:
    """Return what AddField gave the rows that were there, as parameters; nothing where each row got its own."""
    from django.db.models import NOT_PROVIDED

    database_default = getattr(field, "db_default", NOT_PROVIDED)
    if database_default is not NOT_PROVIDED:
        # Django wraps a plain value into an expression.
        plain = getattr(database_default, "value", database_default)
        if hasattr(plain, "resolve_expression"):
            return []
        return [field.get_db_prep_save(plain, connection)]
    default = getattr(field, "default", NOT_PROVIDED)
    if callable(default) or getattr(field, "auto_now", False) or getattr(field, "auto_now_add", False):
        return []
    filled = connection.SchemaEditorClass(connection).effective_default(field)
    return [] if filled is None else [filled]


OPERATIONS = {"written": written}
