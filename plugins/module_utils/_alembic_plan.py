# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge revisions of Alembic, as ``_plan.py`` judges migrations of Django; the answer has the same form.

Pure: it gets the facts that ``_agent_alembic_record.py`` has written down. A revision's way back is what its author wrote,
so it is held against what the way forward did: ``reversible`` is ``yes`` only where each step has its counterpart, in the
opposite order, and nothing else is done. What is not proved is ``unknown``.

Sources of the rules: "Operation Reference" and "Running Batch Migrations for SQLite" of Alembic's documentation;
PostgreSQL, "ALTER TABLE", and MySQL, "CREATE TABLE ... Implicit Default Handling" (what a column needs so that an INSERT
that does not name it succeeds).

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._locks import judge_locks, judge_transaction
from ansible_collections.runbook.deploy.plugins.module_utils._plan import NO, UNKNOWN, YES, overall

# The module of Alembic's own directives: those that a project registers itself may do anything.
OWN = "alembic.operations.ops"
# (compatible, destructive) by class alone. As with Django: a new table is not seen by code that does not know it, a dropped
# one loses its rows, a constraint may refuse what the old code writes, and without one the old code runs on.
BY_CLASS: dict[str, tuple[str, str]] = {
    "CreateTableOp": (YES, NO),
    "DropTableOp": (NO, YES),
    "RenameTableOp": (NO, NO),
    "DropColumnOp": (NO, YES),
    "DropIndexOp": (YES, NO),
    "CreateUniqueConstraintOp": (UNKNOWN, NO),
    "CreateCheckConstraintOp": (UNKNOWN, NO),
    "CreateForeignKeyOp": (UNKNOWN, NO),
    "CreatePrimaryKeyOp": (UNKNOWN, NO),
    "DropConstraintOp": (YES, NO),
    "CreateTableCommentOp": (YES, NO),
    "DropTableCommentOp": (YES, NO),
    "ExecuteSQLOp": (UNKNOWN, UNKNOWN),
    # New rows; whether the old code expects them nobody can know from here.
    "BulkInsertOp": (UNKNOWN, NO),
}
# What a directive is undone by; for those not named here no counterpart is known.
COUNTERPARTS = {
    "CreateTableOp": "DropTableOp",
    "DropTableOp": "CreateTableOp",
    "RenameTableOp": "RenameTableOp",
    "AddColumnOp": "DropColumnOp",
    "DropColumnOp": "AddColumnOp",
    "CreateIndexOp": "DropIndexOp",
    "DropIndexOp": "CreateIndexOp",
    "CreateUniqueConstraintOp": "DropConstraintOp",
    "CreateCheckConstraintOp": "DropConstraintOp",
    "CreateForeignKeyOp": "DropConstraintOp",
    "CreatePrimaryKeyOp": "DropConstraintOp",
    "AlterColumnOp": "AlterColumnOp",
}
# Undone by a definition that the revision repeats, or by rows that must satisfy what comes back: nothing proves it.
RESTORES = ("DropTableOp", "DropColumnOp", "DropConstraintOp")
# Types by name, from one to those that hold every value of it.
WIDER = {
    "SmallInteger": ("Integer", "BigInteger"),
    "SMALLINT": ("INTEGER", "BIGINT"),
    "Integer": ("BigInteger",),
    "INTEGER": ("BIGINT",),
    "String": ("Text",),
    "VARCHAR": ("TEXT", "Text"),
}
UNFOLLOWED = "UnfollowedOp"


# --- forward ---


def judge_forward(facts: Mapping[str, Any], created: set[str]) -> tuple[str, str]:
    """Return (compatible, destructive) of a directive.

    :param facts: as ``_agent_alembic_record.facts_of``; :param created: tables that the same revision has made before.
    """
    name = facts["class"]
    if facts["module"] != OWN:
        return (UNKNOWN, UNKNOWN)
    if facts["table"] in created and name in (*COUNTERPARTS, "BulkInsertOp"):
        # Nobody knows a table that was not there.
        return (YES, NO)
    if name == "ExecuteSQLOp" and facts["nothing"]:
        return (YES, NO)
    if name == "AddColumnOp":
        return (_added(facts["column"]), NO)
    if name == "AlterColumnOp":
        return _altered(facts["altered"])
    if name == "CreateIndexOp":
        return (UNKNOWN if facts["unique"] else YES, NO)
    return BY_CLASS.get(name, (UNKNOWN, UNKNOWN))


def _added(column: Mapping[str, Any]) -> str:
    """Return whether an INSERT of the old code, which does not name the column, goes on as before."""
    fills_itself = (
        column["nullable"] or column["server_default"] or column["computed"] or column["identity"]
    ) and not column["primary_key"]
    if not fills_itself:
        return NO
    # Two rows of the old code's get the same value; NULLs do not clash.
    return NO if column["unique"] and (column["server_default"] or column["computed"]) else YES


def _altered(altered: Mapping[str, Any]) -> tuple[str, str]:
    answers: list[tuple[str, str]] = [(YES, NO)]
    for name, (before, after) in altered.items():
        if name == "comment":
            continue
        if name == "name":
            answers.append((NO, NO) if before != after else (YES, NO))
        elif name == "nullable":
            # The old code may write NULL where that is forbidden now.
            answers.append((YES, NO) if after or before == after else (NO, NO))
        elif name == "server_default":
            # Without it an INSERT that does not name the column may fail.
            answers.append((YES, NO) if after else (UNKNOWN, NO))
        elif name == "type":
            answers.append((YES, NO) if wider(before, after) else (UNKNOWN, UNKNOWN))
        else:
            answers.append((UNKNOWN, UNKNOWN))
    return (
        max((one for one, _other in answers), key=(YES, UNKNOWN, NO).index),
        max((other for _one, other in answers), key=(NO, UNKNOWN, YES).index),
    )


def wider(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> bool:
    """Return whether the type *after* holds every value of *before*, each ``{type, length}``; None for not known."""
    if before is None:
        return False
    if before == after:
        return True
    if before["type"] == after["type"]:
        if before["type"] not in ("String", "VARCHAR", "Unicode"):
            return False
        return after["length"] is None or (
            before["length"] is not None and before["length"] <= after["length"]
        )
    return after["type"] in WIDER.get(str(before["type"]), ())


# --- back ---


def judge_back(revision: Mapping[str, Any]) -> tuple[str, str]:
    """Return whether a revision can be taken back, and why not.

    :param revision: as ``_agent_alembic_record.describe`` returns it.
    """
    forward, back = revision["operations"], revision["undo"]
    if revision["upgrade"] == "empty" or (forward == [] and not revision["why"]):
        # A merge of branches changes nothing.
        return (YES, "") if revision["downgrade"] != "raises" else (NO, "downgrade() raises an error")
    said = {
        "missing": "there is no downgrade()",
        "raises": "downgrade() raises an error",
        "empty": "downgrade() does nothing",
    }.get(revision["downgrade"])
    if said:
        return (NO, said)
    if forward is None or back is None:
        return (UNKNOWN, "what it does was not written down")
    if revision["why"] or revision["why_undo"]:
        return (UNKNOWN, revision["why"] or f"downgrade(): {revision['why_undo']}")
    return compare(forward, back)


def compare(forward: Sequence[Mapping[str, Any]], back: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return whether the directives *back* undo *forward*, and what speaks against it.

    A table that is dropped takes its indexes and constraints along, whether or not they are dropped before.
    """
    created = {facts["table"] for facts in forward if facts["class"] == "CreateTableOp"}
    needed = [
        facts for facts in forward if facts["class"] == "CreateTableOp" or facts["table"] not in created
    ]
    given = [facts for facts in back if facts["class"] == "DropTableOp" or facts["table"] not in created]
    opaque = [facts for facts in (*needed, *given) if not _is_known(facts)]
    left = list(given)
    order: list[int] = []
    answer, why = YES, ""
    for facts in needed:
        if not _is_known(facts):
            continue
        found = next((each for each in left if undoes(each, facts)), None)
        if found is None:
            if opaque:
                return (UNKNOWN, f"nothing is known to undo: {facts['description']}")
            return (NO, f"downgrade() does not undo: {facts['description']}")
        order.append(next(number for number, each in enumerate(given) if each is found))
        left = [each for each in left if each is not found]
        if facts["class"] in RESTORES or not _is_exact(found, facts):
            answer, why = (
                UNKNOWN,
                f"downgrade() makes anew what is not proved to be the same: {facts['description']}",
            )
    if opaque:
        return (UNKNOWN, f"what this does nobody knows: {opaque[0]['description']}")
    if left:
        return (UNKNOWN, f"downgrade() does more: {left[0]['description']}")
    if order != sorted(order, reverse=True) and _order_matters(needed):
        return (UNKNOWN, "downgrade() goes back in another order")
    return (answer, why)


def _is_known(facts: Mapping[str, Any]) -> bool:
    return facts["module"] == OWN and (
        facts["class"] in COUNTERPARTS or (facts["class"] == "ExecuteSQLOp" and facts["nothing"])
    )


def _order_matters(forward: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether two directives touch the same thing, so that their order counts: renaming, changing, replacing."""
    touched = [(facts["table"], facts["name"]) for facts in forward]
    renames = any(facts["class"] == "RenameTableOp" for facts in forward)
    renames = renames or any("name" in (facts["altered"] or {}) for facts in forward)
    return renames or len(set(touched)) < len(touched)


def undoes(back: Mapping[str, Any], forward: Mapping[str, Any]) -> bool:
    """Return whether the directive *back* is the counterpart of *forward*."""
    if COUNTERPARTS.get(forward["class"]) != back["class"] and not (
        forward["class"] == "DropConstraintOp"
        and back["class"].startswith("Create")
        and COUNTERPARTS.get(back["class"]) == "DropConstraintOp"
    ):
        return False
    if back["schema"] != forward["schema"]:
        return False
    if forward["class"] == "RenameTableOp":
        return back["table"] == forward["new_table"] and back["new_table"] == forward["table"]
    if forward["class"] in ("CreateIndexOp", "DropIndexOp") and None in (back["table"], forward["table"]):
        # PostgreSQL and SQLite know an index by its name alone.
        return back["name"] == forward["name"]
    if back["table"] != forward["table"]:
        return False
    if forward["class"] == "AlterColumnOp":
        return _altered_back(back, forward)
    return back["name"] == forward["name"]


def _altered_back(back: Mapping[str, Any], forward: Mapping[str, Any]) -> bool:
    there, again = forward["altered"], back["altered"]
    after = there["name"][1] if "name" in there else forward["name"]
    before = again["name"][1] if "name" in again else back["name"]
    if back["name"] != after or before != forward["name"] or set(there) != set(again):
        return False
    # What it was before, where the revision says it, must be what comes back.
    return all(
        there[key][0] is None or key in ("name", "others") or again[key][1] == there[key][0] for key in there
    )


def _is_exact(back: Mapping[str, Any], forward: Mapping[str, Any]) -> bool:
    """Return whether nothing but the names had to be believed."""
    if forward["class"] == "DropIndexOp":
        # The definition that comes back is the author's word.
        return False
    if forward["class"] != "AlterColumnOp":
        return True
    altered = forward["altered"]
    if "others" in altered or any(
        pair[0] is None for key, pair in altered.items() if key not in ("name", "comment")
    ):
        return False
    if "nullable" in altered and altered["nullable"][1] and not altered["nullable"][0]:
        # NULLs that were written meanwhile do not fit any more.
        return False
    # Longer values neither.
    return "type" not in altered


# --- the plan ---


def makes(operations: Sequence[Mapping[str, Any]] | None, why: str) -> dict[str, Any] | None:
    """Return what would go with a revision: ``{tables: [name], columns: [[table, column, filled]]}``; None: not known.

    :param why: why it was not written down to its end, else "".
    """
    if (
        operations is None
        or why
        or not all(
            facts["module"] == OWN
            and facts["class"] in BY_CLASS | {"AddColumnOp": 0, "AlterColumnOp": 0, "CreateIndexOp": 0}
            for facts in operations
        )
    ):
        return None
    tables = [_full(facts) for facts in operations if facts["class"] == "CreateTableOp"]
    columns = [
        [_full(facts), facts["name"], facts["column"]["filled"]]
        for facts in operations
        # A computed column follows from others.
        if facts["class"] == "AddColumnOp" and not facts["column"]["computed"] and _full(facts) not in tables
    ]
    return {"tables": tables, "columns": columns}


def _full(facts: Mapping[str, Any]) -> str:
    return f"{facts['schema']}.{facts['table']}" if facts["schema"] else str(facts["table"])


def copied_tables(operations: Sequence[Mapping[str, Any]], vendor: str) -> set[str]:
    """Return the tables that SQLite copies: those of a batch, but for columns and indexes that are merely added."""
    if vendor != "sqlite":
        return set()
    plain = ("AddColumnOp", "CreateIndexOp", "DropIndexOp")
    return {str(facts["table"]) for facts in operations if facts["recreated"] and facts["class"] not in plain}


def judge_revision(revision: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return ``{name, description, reversible, compatible, destructive}`` for each directive of a revision, and for its end.

    Whether it can be taken back is one answer for the whole revision, given with each directive.
    """
    reversible, why = judge_back(revision)
    judged = []
    created: set[str] = set()
    for facts in revision["operations"] or ():
        compatible, destructive = judge_forward(facts, created)
        if facts["class"] == "CreateTableOp":
            created.add(facts["table"])
        judged.append(_judged(facts["class"], facts["description"], reversible, compatible, destructive))
    if revision["operations"] is None or revision["why"]:
        reason = revision["why"] or "what it does was not written down"
        judged.append(_judged(UNFOLLOWED, reason, reversible, UNKNOWN, UNKNOWN))
    elif why and not judged:
        judged.append(_judged(UNFOLLOWED, why, reversible, YES, NO))
    return judged


def _judged(
    name: str, description: str, reversible: str, compatible: str, destructive: str
) -> dict[str, Any]:
    return {
        "name": name,
        "description": description,
        "reversible": reversible,
        "compatible": compatible,
        "destructive": destructive,
    }


def judge_plan(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan of the pending revisions, as :func:`_plan.judge_plan` does.

    Each migration has besides ``down`` (the revisions that it follows), ``makes`` (as :func:`makes`) and ``why`` (what
    speaks against a way back).

    :param state: the answer of the agent's operation ``state``.
    """
    migrations = []
    vendor = state["vendor"]
    rebuilds: set[str] = set()
    created: set[str] = set()
    for revision in state["pending"]:
        operations = judge_revision(revision)
        known = revision["operations"] or []
        copied = copied_tables(known, vendor)
        created |= {str(facts["table"]) for facts in known if facts["class"] == "CreateTableOp"}
        rebuilds |= copied
        facts = {"sql": revision["sql"], "atomic": revision["atomic"], "operations": []}
        migrations.append(
            {
                "app": revision["app"],
                "name": revision["name"],
                "description": revision["description"],
                "down": list(revision["down"]),
                "operations": operations,
                "atomic": revision["atomic"],
                **overall(operations),
                "why": judge_back(revision)[1],
                "sql": revision["sql"],
                "transactional": _transactional(facts, state),
                "locks": judge_locks(
                    vendor, facts, created, sorted(copied - created), bool(state.get("mariadb"))
                ),
                "makes": makes(revision["operations"], revision["why"]),
            }
        )
    return {
        "migrations": migrations,
        **overall(migrations),
        "rebuilds": sorted(rebuilds - created),
        "remaining": [list(key) for key in state.get("remaining", ())],
    }


def _transactional(facts: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    judge: Callable[..., str] = judge_transaction
    if not state["can_rollback_ddl"] and facts["sql"] is None:
        return NO
    return judge(
        {**facts, "atomic": facts["atomic"] or not state["can_rollback_ddl"]}, state["can_rollback_ddl"]
    )
