# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random chains of migrations, run for real: what they do to old code, to rows and to the schema, beside Django's facts.

A script for an interpreter that has Django. Arguments: the path of ``_agent_migrate.py``, a JSON document of the default
database's settings, the first seed, the number of chains. Writes one JSON document a line for each migration:
``{seed, text, state, compatible, back, same_schema, same_rows}``; *state* is what the plan is judged from, the others say
what happened, true or a text of what went wrong: the old code wrote and read on the new schema; the migration was
taken back with no rows written meanwhile, with the old code's and with the new code's; the schema was then as
before; the rows were, with none written.

One process for all chains, and no file of migrations: the operations are made in memory against the state before.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import sys
import types
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import django
from django.conf import settings
from plan_chains import APP, Author

LONG = "y" * 200
# How rows are made up; see `values`.
MODES = ("distinct", "extreme", "equal")


def configure(database: dict[str, Any]) -> None:
    """Set Django up without a project."""
    settings.configure(
        INSTALLED_APPS=[],
        DATABASES={"default": database},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
    )
    django.setup()


# --- rows ---


def value(field: Any, number: int, extreme: bool) -> Any:
    """Return a value for *field*; *number* makes it differ from others, *extreme* goes to what the field allows."""
    kind = type(field).__name__
    if kind in ("CharField", "TextField"):
        length = field.max_length if kind == "CharField" else 200
        return (f"{number}" + (LONG if extreme else ""))[:length]
    if kind == "BigIntegerField" and extreme:
        return 2**60 + number
    if kind == "IntegerField" and extreme:
        return 2**30 + number
    if "Integer" in kind or kind == "DecimalField":
        return number
    if kind == "BooleanField":
        return number % 2 == 0
    if kind == "DateTimeField":
        return datetime(2026, 1, 1, number % 24, tzinfo=timezone.utc)
    return None


def values(model: Any, number: int, mode: str) -> dict[str, Any]:
    """Return what a new row of *model* gets.

    *mode*: ``distinct``; ``extreme``, as long and large as the fields allow; ``equal``, where nothing forbids it the
    same as in other rows, NULL or the database's own default.
    """
    from django.db.models import NOT_PROVIDED

    apart = {name for entry in model._meta.unique_together for name in entry}
    for constraint in model._meta.constraints:
        apart.update(getattr(constraint, "fields", ()))
    found: dict[str, Any] = {}
    for field in model._meta.concrete_fields:
        single = field.unique or field.name in apart
        if field.primary_key:
            continue
        if field.is_relation:
            row = field.related_model._default_manager.order_by("pk").last()
            found[field.name] = None if single or mode == "equal" else row
        elif mode != "equal" or single:
            found[field.name] = value(field, number, mode == "extreme")
        elif getattr(field, "db_default", NOT_PROVIDED) is NOT_PROVIDED:
            found[field.name] = None if field.null else value(field, 1, False)
    return found


def write(apps: Any, start: int, mode: str) -> None:
    """Insert two rows into every model, update every row and read all of it back, as an application does.

    Raises what the database raises, and AssertionError when it has not kept what was written.
    """
    from django.db import connection

    for model in apps.get_models():
        if model._meta.app_label != APP or model._meta.auto_created:
            continue
        list(model.objects.all())
        for number in (start, start + 1):
            given = values(model, number, mode)
            row = model.objects.create(**given)
            again = model.objects.get(pk=row.pk)
            for name, wanted in given.items():
                stored = getattr(again, name)
                assert stored == wanted, f"{name} holds {stored!r} instead of {wanted!r}"
            for field in model._meta.many_to_many:
                target = field.related_model._default_manager.order_by("pk").last()
                if target is not None:
                    getattr(row, field.name).add(target)
        for row in model.objects.all():
            row.save()
    connection.check_constraints()


# --- what is there ---


def tables() -> list[str]:
    """Return the names of the chain's tables."""
    from django.db import connection

    return sorted(connection.introspection.table_names())


def rows() -> dict[str, list[str]]:
    """Return the rows of all tables, each as text with its columns in the order of their names."""
    from django.db import connection

    found = {}
    with connection.cursor() as cursor:
        for table in tables():
            cursor.execute(f'SELECT * FROM "{table}"')
            columns = [column[0] for column in cursor.description]
            found[table] = sorted(
                json.dumps(dict(zip(columns, map(str, row))), sort_keys=True) for row in cursor.fetchall()
            )
    return found


SQL_COLUMNS = (
    "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, "
    "pg_get_expr(d.adbin, d.adrelid) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
    "LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum "
    "WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped"
)
SQL_CONSTRAINTS = (
    "SELECT c.relname, pg_get_constraintdef(k.oid) FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid "
    "WHERE c.relnamespace = 'public'::regnamespace"
)
SQL_INDEXES = "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'"


def schema() -> list[str]:
    """Return the schema as sorted lines: columns, constraints and indexes without their names and their order."""
    from django.db import connection

    found = []
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(SQL_COLUMNS)
            # The type that a default is cast to follows the column's, or stays what it was: it is the same default.
            found += [
                f"column {row[:-1]} {re.sub('::[a-z ]+', '', row[-1] or '')}" for row in cursor.fetchall()
            ]
            cursor.execute(SQL_CONSTRAINTS)
            found += [f"constraint {row}" for row in cursor.fetchall()]
            cursor.execute(SQL_INDEXES)
            found += [
                f"index {table} {re.sub(r'INDEX .* ON', 'INDEX ON', text)}"
                for table, text in cursor.fetchall()
            ]
            return sorted(found)
        for table in tables():
            cursor.execute(f'PRAGMA table_info("{table}")')
            found += [f"column {table} {row[1:]}" for row in cursor.fetchall()]
            cursor.execute(f'PRAGMA foreign_key_list("{table}")')
            found += [f"reference {table} {row[2:]}" for row in cursor.fetchall()]
            cursor.execute(f'PRAGMA index_list("{table}")')
            for row in cursor.fetchall():
                cursor.execute(f'PRAGMA index_info("{row[1]}")')
                columns = [entry[2] for entry in cursor.fetchall()]
                found.append(f"index {table} unique={row[2]} partial={row[4]} {columns}")
            cursor.execute("SELECT sql FROM sqlite_master WHERE name = %s", [table])
            found += [
                f"check {table} {text}" for text in re.findall(r"CHECK \((.*?)\)", cursor.fetchone()[0])
            ]
    return sorted(found)


# --- trying ---


@contextlib.contextmanager
def trial() -> Iterator[None]:
    """Undo everything that happens inside."""
    from django.db import connection, transaction

    if connection.vendor == "postgresql":
        mark = transaction.savepoint()
        try:
            yield
        finally:
            transaction.savepoint_rollback(mark)
            connection.needs_rollback = False
        return
    kept = sqlite3.connect(":memory:")
    connection.connection.backup(kept)
    try:
        yield
    finally:
        renew(kept)
        kept.close()


def renew(kept: sqlite3.Connection) -> None:
    """Continue with a copy of *kept*, in a new connection: a statement that failed may keep the old one busy."""
    from django.db import connection

    connection.connection.close()
    connection.connect()
    kept.backup(connection.connection)


def outcome(function: Any) -> Any:
    """Return True, or a text of what *function* raised; a failed part is taken back."""
    from django.db import connection, transaction

    try:
        if connection.vendor == "postgresql":
            with transaction.atomic():
                function()
        else:
            function()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    return True


def run(migration: Any, state: Any, backwards: bool = False) -> Any:
    """Run *migration* from *state*, which stays as it is; return the state after it."""
    from django.db import connection

    with connection.schema_editor(atomic=True) as editor:
        after = (migration.unapply if backwards else migration.apply)(state.clone(), editor)
    # Each migration has a transaction of its own in life, and here all share one: what is put off to its end is done.
    connection.check_constraints()
    return after


def examine(agent: Any, migration: Any, state: Any) -> dict[str, Any] | None:
    """Return what *migration* does from *state*; None where it cannot be applied to the rows that are there."""
    from django.db import connection

    old = state.clone()
    facts = agent._describe_migration(migration, state.clone())
    result: dict[str, Any] = {
        "compatible": True,
        "back": True,
        "same_schema": True,
        "same_rows": True,
        "state": {
            "pending": [facts],
            "vendor": connection.vendor,
            "can_drop_column": True,
            "django": list(django.VERSION[:2]),
        },
    }
    before_schema, before_rows = schema(), rows()
    usable = {}
    for mode in MODES:
        with trial():
            usable[mode] = outcome(lambda mode=mode: write(old.clone().apps, 500, mode)) is True
    for code, mode in (("nobody", ""), *((code, mode) for code in ("old", "new") for mode in MODES)):
        # What the old code cannot write on its own schema says nothing about the new one.
        if code == "old" and not usable[mode]:
            continue
        with trial():
            after: list[Any] = []
            if outcome(lambda after=after: after.append(run(migration, state))) is not True:
                return None
            if code == "old":
                written = outcome(lambda mode=mode: write(old.clone().apps, 500, mode))
                if written is not True:
                    result["compatible"] = f"{mode}: {written}"
            elif code == "new":
                outcome(lambda after=after, mode=mode: write(after[0].clone().apps, 700, mode))
                # The old code comes back, and finds the new one's rows.
                written = outcome(lambda: write(old.clone().apps, 900, "distinct"))
                if written is not True and usable["distinct"]:
                    result["compatible"] = f"after the new code's {mode}: {written}"
            back = outcome(lambda: run(migration, state, backwards=True))
            if back is not True:
                result["back"] = f"{code} {mode}: {back}"
            elif schema() != before_schema:
                result["same_schema"] = f"{code}: {sorted(set(schema()) ^ set(before_schema))[:4]}"
            if back is True and code == "nobody":
                result["same_rows"] = True if rows() == before_rows else "other rows"
    return result


def chain(agent: Any, seed: int, length: int) -> Iterator[dict[str, Any]]:
    """Run a chain of *length* migrations and yield what each of them does."""
    from django.db import migrations, models
    from django.db.migrations.state import ProjectState

    author = Author(seed)
    state = ProjectState()
    first = migrations.Migration("0001", APP)
    first.operations = [
        migrations.CreateModel(
            "Place",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("label", models.CharField(max_length=10)),
                ("kind", models.CharField(max_length=10)),
                ("size", models.IntegerField(db_default=1, null=True)),
            ],
        ),
        migrations.CreateModel(
            "Item",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("label", models.CharField(max_length=20)),
                ("note", models.TextField(null=True)),
                ("number", models.IntegerField(unique=True)),
                ("place", models.ForeignKey(f"{APP}.Place", models.CASCADE, null=True)),
            ],
        ),
    ]
    state = run(first, state)
    # Some chains have empty tables, where more can be done.
    filled = seed % 3 != 0
    if filled:
        write(state.clone().apps, 1, "extreme")
        write(state.clone().apps, 3, "equal")
    for number in range(length):
        migration = migrations.Migration(f"{number + 2:04}", APP)
        migration.operations = author.operations(state)
        found = examine(agent, migration, state)
        if found is None:
            continue
        text = "; ".join(_text(operation) for operation in migration.operations)
        yield {"seed": seed, "text": text, **found}
        state = run(migration, state)
        if filled:
            outcome(
                lambda state=state, number=number: write(
                    state.clone().apps, 10 * (number + 1), MODES[number % 3]
                )
            )


def _text(operation: Any) -> str:
    field = getattr(operation, "field", None)
    more = f" {type(field).__name__} {field.deconstruct()[3]}" if field is not None else ""
    return f"{type(operation).__name__}: {operation.describe()}{more}"


def main() -> None:
    """Run the chains that the arguments ask for."""
    path, database, first, count, length = sys.argv[1:6]
    configure(json.loads(database))
    from django.db import connection, transaction

    agent = types.ModuleType("agent")
    with open(path, encoding="utf-8") as stream:
        exec(compile(stream.read(), path, "exec"), agent.__dict__)
    for seed in range(int(first), int(first) + int(count)):
        if connection.vendor == "postgresql":
            with transaction.atomic():
                for found in chain(agent, seed, int(length)):
                    print(json.dumps(found, default=str))
                transaction.set_rollback(True)
        else:
            for found in chain(agent, seed, int(length)):
                print(json.dumps(found, default=str))
            with contextlib.closing(sqlite3.connect(":memory:")) as empty:
                renew(empty)


if __name__ == "__main__":
    main()
