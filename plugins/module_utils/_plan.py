# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge migrations: can they be reversed, does the old code run on the new schema, do they throw data away?

Pure: it gets the facts that ``_agent_migrate.py`` collects in the application, and returns ``yes``, ``no`` or
``unknown`` for each question. What is not proved is ``unknown``.

``reversible``: the schema can be taken back. ``compatible``: the code before the migration reads *and writes* on the
schema after it. ``destructive``: going forward loses data; reversing then restores the structure, not the data.

Sources of the rules: "Migration Operations" and "Writing database migrations" of Django's documentation (what each
operation does, and which can be reversed), and the SQLite schema editor of Django 4.2 to 5.2 (what copies a table).

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._locks import judge_locks, judge_transaction
from ansible_collections.runbook.deploy.plugins.module_utils._plan_fields import judge_alter_field

YES, NO, UNKNOWN = "yes", "no", "unknown"
# Best first: of several answers the last one in this order counts.
GOOD_IS_YES = (YES, UNKNOWN, NO)
GOOD_IS_NO = (NO, UNKNOWN, YES)
PROPERTIES = {"reversible": GOOD_IS_YES, "compatible": GOOD_IS_YES, "destructive": GOOD_IS_NO}

# Operations that are judged by their class alone: (reversible, compatible, destructive).
# A new table or index is not seen by code that does not know it; a lost index makes it slower, not wrong.
# A dropped table loses its rows. A renamed one is not found by the old code. Options and managers touch no schema.
BY_CLASS: dict[str, tuple[str, str, str]] = {
    "CreateModel": (YES, YES, NO),
    "DeleteModel": (YES, NO, YES),
    "RenameModel": (YES, NO, NO),
    "AddIndex": (YES, YES, NO),
    "RemoveIndex": (YES, YES, NO),
    "RenameIndex": (YES, YES, NO),
    "AlterIndexTogether": (YES, YES, NO),
    "AlterModelOptions": (YES, YES, NO),
    "AlterModelManagers": (YES, YES, NO),
    "AlterModelTableComment": (YES, YES, NO),
    # The old code may write rows that the constraint refuses.
    "AddConstraint": (YES, UNKNOWN, NO),
    "AlterConstraint": (YES, YES, NO),
    # Rows written without the constraint may not satisfy it when it comes back.
    "RemoveConstraint": (UNKNOWN, YES, NO),
    # Adds or drops a column _order that the old code does not fill.
    "AlterOrderWithRespectTo": (UNKNOWN, UNKNOWN, UNKNOWN),
}
# The operations of django.contrib.postgres, whose module is another.
POSTGRESQL: dict[str, tuple[str, str, str]] = {
    "AddIndexConcurrently": (YES, YES, NO),
    "RemoveIndexConcurrently": (YES, YES, NO),
    "AddConstraintNotValid": (YES, UNKNOWN, NO),
    "ValidateConstraint": (YES, YES, NO),
    "CreateExtension": (YES, YES, NO),
    "BloomExtension": (YES, YES, NO),
    "BtreeGinExtension": (YES, YES, NO),
    "BtreeGistExtension": (YES, YES, NO),
    "CITextExtension": (YES, YES, NO),
    "CryptoExtension": (YES, YES, NO),
    "HStoreExtension": (YES, YES, NO),
    "TrigramExtension": (YES, YES, NO),
    "UnaccentExtension": (YES, YES, NO),
    "CreateCollation": (YES, YES, NO),
    "RemoveCollation": (YES, UNKNOWN, NO),
}


def worst(answers: Iterable[str], order: Sequence[str]) -> str:
    """Return the worst of *answers*; the best of *order* when there are none."""
    return order[max((order.index(answer) for answer in answers), default=0)]


def overall(judged: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return ``{reversible, compatible, destructive}``, each the worst of *judged*."""
    return {name: worst((entry[name] for entry in judged), order) for name, order in PROPERTIES.items()}


def judge_operation(facts: Mapping[str, Any], vendor: str = "") -> dict[str, Any]:
    """Return ``{name, description, reversible, compatible, destructive}`` for an operation.

    :param facts: as ``_agent_migrate._describe_operation`` returns them.
    :param vendor: ``postgresql``, ``mysql`` or ``sqlite``; "" for what holds in all of them.
    """
    reversible, compatible, destructive = _judge(facts, vendor)
    if not facts["reversible"]:
        # Django itself refuses to go back.
        reversible = NO
    return {
        "name": facts["class"],
        "description": facts["description"],
        "reversible": reversible,
        "compatible": compatible,
        "destructive": destructive,
    }


def _judge(facts: Mapping[str, Any], vendor: str) -> tuple[str, str, str]:
    name, module = facts["class"], facts["module"]
    if module.startswith("django.contrib.postgres.operations"):
        return POSTGRESQL.get(name, (UNKNOWN, UNKNOWN, UNKNOWN))
    # A subclass of an application's own may do anything.
    if not module.startswith("django.db.migrations.operations"):
        return (UNKNOWN, UNKNOWN, UNKNOWN)
    if name == "SeparateDatabaseAndState":
        found = overall([judge_operation(inner, vendor) for inner in facts["operations"]])
        return (found["reversible"], found["compatible"], found["destructive"])
    if name in ("RunPython", "RunSQL"):
        # Reversible is what the author says by giving a reverse; what it does to rows nobody can know from here.
        return (YES, YES, NO) if facts["noop"] else (YES, UNKNOWN, UNKNOWN)
    if name == "AlterField":
        return judge_alter_field(facts, vendor)
    judge = {
        "AddField": _judge_add_field,
        "RemoveField": _judge_remove_field,
        "RenameField": _judge_rename_field,
        "AlterModelTable": _judge_alter_table,
        "AlterUniqueTogether": _judge_unique_together,
    }.get(name)
    if judge is not None:
        return judge(facts)
    return BY_CLASS.get(name, (UNKNOWN, UNKNOWN, UNKNOWN))


def _judge_add_field(facts: Mapping[str, Any]) -> tuple[str, str, str]:
    field = facts["new"]
    if field is None:
        return (YES, UNKNOWN, NO)
    # The old code's INSERT does not name the column. Django's own default is no default of the database.
    fills_itself = field["null"] or field["db_default"] or field["generated"] or field["many_to_many"]
    if not fills_itself:
        return (YES, NO, NO)
    # Two rows of the old code's get the same value; NULLs do not clash.
    clashes = (field["unique"] or field["primary_key"]) and (field["db_default"] or field["generated"])
    return (YES, NO if clashes else YES, NO)


def _judge_remove_field(facts: Mapping[str, Any]) -> tuple[str, str, str]:
    field = facts["old"]
    if field is None:
        return (UNKNOWN, NO, YES)
    # Going back adds the column again, which needs a value for the rows that are there.
    comes_back = any(field[key] for key in ("null", "default", "db_default", "generated", "many_to_many"))
    if field["unique"] and (field["default"] or field["db_default"]):
        # The rows that are there would all get the same value.
        comes_back = False
    return (YES if comes_back else UNKNOWN, NO, NO if field["generated"] else YES)


def _judge_rename_field(facts: Mapping[str, Any]) -> tuple[str, str, str]:
    old, new = facts["old"], facts["new"]
    same_column = bool(old and new and old["column"] and old["column"] == new["column"])
    return (YES, YES if same_column else NO, NO)


def _judge_alter_table(facts: Mapping[str, Any]) -> tuple[str, str, str]:
    return (YES, YES if facts["table"] == facts["table_after"] else NO, NO)


def _judge_unique_together(facts: Mapping[str, Any]) -> tuple[str, str, str]:
    if facts["altered"] == []:
        return (YES, YES, NO)
    # As with constraints: an added one may refuse what the old code writes, a removed one may not come back.
    return (UNKNOWN if facts["unique_removed"] else YES, UNKNOWN if facts["unique_added"] else YES, NO)


# --- SQLite copies the table ---


def rebuilt_tables(facts: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """Return the tables that SQLite copies for an operation: long for large ones, and writers have to wait.

    :param state: the agent's answer: ``vendor``, ``django``, ``can_drop_column``. Where versions of Django
        differ, the copy is assumed.
    """
    if state["vendor"] != "sqlite":
        return []
    name = facts["class"]
    if name == "SeparateDatabaseAndState":
        return sorted({table for inner in facts["operations"] for table in rebuilt_tables(inner, state)})
    copies = {
        "AddField": _add_copies,
        "RemoveField": _remove_copies,
        "AlterField": lambda facts, state: facts["altered"] != [],
        "RenameField": _rename_copies,
        "AlterUniqueTogether": lambda facts, state: facts["altered"] != [],
        "AlterOrderWithRespectTo": lambda facts, state: True,
        "AddConstraint": lambda facts, state: facts["plain_constraint"],
        "RemoveConstraint": lambda facts, state: facts["plain_constraint"],
    }.get(name)
    table = facts["table"]
    return [table] if copies is not None and table and copies(facts, state) else []


def _add_copies(facts: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    field = facts["new"]
    if field is None:
        return True
    if field["many_to_many"]:
        return False
    plain = (
        field["null"]
        and not field["default"]
        and not field["unique"]
        and not field["primary_key"]
        and (not field["db_default"] or field["db_default_constant"])
    )
    # Before Django 4.0 every added column copied the table.
    return not plain or state["django"] < [4, 0]


def _remove_copies(facts: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    field = facts["old"]
    if field is None:
        return True
    if field["many_to_many"]:
        return False
    constrained = any(field[key] for key in ("unique", "primary_key", "index", "reference"))
    return constrained or not state["can_drop_column"] or state["django"] < [4, 1]


def _rename_copies(facts: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    old, new = facts["old"], facts["new"]
    if not old or not new:
        return True
    if old["many_to_many"] or (old["column"] and old["column"] == new["column"]):
        return False
    # SQLite renames columns since 3.25.0; every Django from 4.2 requires a newer one.
    return bool(old["reference"] or new["reference"]) or state["django"] < [4, 2]


# --- the plan ---


def judge_plan(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan of the pending migrations, as the contract of the module ``migration`` has it.

    :param state: the answer of the agent's operation ``state``.
    :return: ``{migrations: [{app, name, operations, reversible, compatible, destructive, atomic, sql, transactional,
        locks}], reversible, compatible, destructive, rebuilds: [table], remaining: [[app, name]]}``.
    """
    migrations = []
    vendor = state["vendor"]
    rebuilds: set[str] = set()
    # Copying or locking a table that the same plan has just made costs nothing.
    created: set[str] = set()
    for migration in state["pending"]:
        operations = [judge_operation(facts, vendor) for facts in migration["operations"]]
        copied: set[str] = set()
        for facts in migration["operations"]:
            if facts["class"] == "CreateModel":
                created.add(facts["table_after"])
            copied.update(rebuilt_tables(facts, state))
        rebuilds |= copied
        migrations.append(
            {
                "app": migration["app"],
                "name": migration["name"],
                "operations": operations,
                "atomic": migration["atomic"],
                **overall(operations),
                "sql": migration.get("sql"),
                "transactional": judge_transaction(migration, state.get("can_rollback_ddl")),
                "locks": judge_locks(
                    vendor, migration, created, sorted(copied - created), bool(state.get("mariadb"))
                ),
            }
        )
    return {
        "migrations": migrations,
        **overall(migrations),
        "rebuilds": sorted(rebuilds - created),
        "remaining": [list(key) for key in state.get("remaining", ())],
    }


def empty_plan() -> dict[str, Any]:
    """Return the plan of an application with nothing to migrate."""
    return {"migrations": [], **overall([]), "rebuilds": [], "remaining": []}
