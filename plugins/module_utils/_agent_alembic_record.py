# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Operation inside an application with Alembic: state; the facts about pending revisions, by a run that touches no database.

A revision is Python. Its upgrade() and downgrade() are called while every ``op.`` directive is written down and turned
into SQL as ``alembic upgrade --sql`` does, and while no statement reaches a database. What asks the database ends that
run, and what comes after is not known. Only a process whose connections go to a scratch does this.

Runs in the application's Python (3.8 and up, Alembic 1.5 and up, SQLAlchemy 1.4 and up), loaded by
``_agent_runtime.py``; imports nothing of the collection, and Alembic only inside functions.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

# Statements of a revision that are collected, and how much of each.
MOST_STATEMENTS = 100
LONGEST_STATEMENT = 1000
FRAME = ("BEGIN", "COMMIT", "ROLLBACK")


def part(name: str) -> Any:
    """Return another part of the agent."""
    return sys.modules["_runbook_" + name]


class Asked(Exception):
    """A revision asks the database while its operations are written down."""


# --- what a revision's text says, without running it ---


def body_of(function: Any) -> str:
    """Return ``missing``, ``empty`` (nothing but pass), ``raises`` (the first thing it does) or ``code``."""
    if function is None:
        return "missing"
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return "code"
    statements = [
        node
        for node in tree.body[0].body
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not isinstance(node, (ast.Pass, ast.Import, ast.ImportFrom, ast.Global))
    ]
    if not statements or (isinstance(statements[0], ast.Return)):
        return "empty"
    return "raises" if isinstance(statements[0], ast.Raise) else "code"


def text_of(function: Any) -> str:
    """Return the source of the module of *function*; "" where it cannot be read."""
    try:
        return inspect.getsource(sys.modules.get(function.__module__) or inspect.getmodule(function))
    except (OSError, TypeError, AttributeError):
        try:
            with open(function.__code__.co_filename, encoding="utf-8") as stream:
                return stream.read()
        except (OSError, AttributeError, UnicodeDecodeError):
            return ""


def direction(script: Any, name: str) -> Any:
    """Return the function ``upgrade`` or ``downgrade`` of the revision *script*; None where it has none."""
    return getattr(script.module, name, None)


# --- state ---


def split(context: Any, applied: Any) -> tuple[list[str], list[str]]:
    """Return the applied heads that are revisions of this release, and those that are not."""
    known, unknown = [], []
    script = context.memory["script"]
    for head in applied:
        try:
            found = script.get_revision(head)
        except Exception:
            found = None
        (known if found is not None else unknown).append(head)
    return known, unknown


def target_of(context: Any, target: str) -> str:
    """Return the revision that *target* (``alembic.<revision>``, or its beginning) means; ``heads`` for none.

    :raises AlembicRefusal: for a revision that is not there or not the only one.
    """
    if not target:
        return "heads"
    name = target[len("alembic.") :] if target.startswith("alembic.") else target
    try:
        found = context.memory["script"].get_revision(name)
    except Exception:
        found = None
    if found is None:
        raise part("alembic").AlembicRefusal(
            f"the target {target!r} is no revision of this release, or the beginning of several: expected "
            "alembic.<revision>"
        )
    return str(found.revision)


def upgrades(context: Any, target: str, applied: Any) -> list[Any]:
    """Return the steps of Alembic from the *applied* heads to *target*, in their order."""
    return list(context.memory["script"]._upgrade_revs(target, tuple(applied)))


def state(context: Any, collect: bool = False, app: str = "", target: str = "") -> dict[str, Any]:
    """Return the applied heads and the pending revisions, as the operation of the same name for Django.

    :param collect: also write down the operations, which a process on the scratch alone does. Otherwise ``operations`` is None.
    """
    if app not in ("", part("alembic").ALEMBIC):
        raise part("alembic").AlembicRefusal(
            f"there is no app {app!r}: Alembic has none, so leave migrate_app out"
        )
    heads = part("alembic").probe(context)
    script = context.memory["script"]
    facts = context.memory["facts"]
    known, unknown = split(context, heads)
    leaves = sorted(script.get_heads())
    chosen: list[Any] = []
    everything: list[Any] = []
    if not unknown and (len(leaves) < 2 or target):
        chosen = [step.revision for step in upgrades(context, target_of(context, target), known)]
        everything = [step.revision for step in upgrades(context, "heads", known)] if target else chosen
    names = {revision.revision for revision in chosen}
    return {
        "applied": part("alembic").rows_of(heads),
        "pending": [describe(context, revision, collect) for revision in chosen],
        "remaining": [["alembic", one.revision] for one in everything if one.revision not in names],
        "unknown": part("alembic").rows_of(unknown),
        "conflicts": {"alembic": leaves} if len(leaves) > 1 else {},
        "leaves": leaves,
        "inconsistent": "",
        "vendor": facts["vendor"],
        "mariadb": facts["mariadb"],
        "can_rollback_ddl": facts["can_rollback_ddl"],
    }


def describe(context: Any, revision: Any, collect: bool) -> dict[str, Any]:
    """Return the facts about a revision.

    ``{app, name, description, down, atomic, upgrade, downgrade, operations, undo, sql, why}``: *down* what it follows,
    *upgrade* and *downgrade* as :func:`body_of`, *operations* and *undo* the facts of what each does, None where it was not
    written down to its end, and *why*.
    """
    forward, backward = direction(revision, "upgrade"), direction(revision, "downgrade")
    facts: dict[str, Any] = {
        "app": "alembic",
        "name": str(revision.revision),
        "description": str(revision.doc or ""),
        "down": [str(name) for name in revision._all_down_revisions],
        "atomic": is_whole(context, forward),
        "upgrade": body_of(forward),
        "downgrade": body_of(backward),
        "operations": None,
        "undo": None,
        "sql": None,
        "why": "",
        "why_undo": "",
    }
    if collect:
        done = written_down(context, forward)
        facts.update(operations=done["operations"], sql=done["sql"], why=done["why"])
        if facts["downgrade"] == "code":
            undo = written_down(context, backward)
            facts.update(undo=undo["operations"], why_undo=undo["why"])
    return facts


def is_whole(context: Any, function: Any) -> bool:
    """Return whether nothing of the revision is to remain when it fails, as far as its text and env.py say."""
    if not context.memory["facts"]["can_rollback_ddl"]:
        return False
    text = text_of(function)
    return "autocommit_block" not in text and not leaves_transactions_alone(context, text)


def leaves_transactions_alone(context: Any, text: str) -> bool:
    """Return whether a transaction around SQLite's changes of the schema would change what they do.

    ``PRAGMA foreign_keys`` does nothing inside one, and a table that is copied would then take the rows that refer to it with it.
    """
    if context.memory["facts"]["vendor"] != "sqlite":
        return False
    try:
        with open(context.memory["script"].env_py_location, encoding="utf-8") as stream:
            text += stream.read()
    except (OSError, AttributeError, UnicodeDecodeError):
        return True
    return "pragma" in text.lower()


# --- writing down ---


class Bind:
    """What ``op.get_bind()`` returns meanwhile: it knows the dialect; anything that would ask the database ends the run."""

    def __init__(self, dialect: Any) -> None:
        self.dialect = dialect
        self.name = dialect.name
        self.engine = self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _Recorder.present.asked = True
        raise Asked(f"it asks the database ({name})")


def written_down(context: Any, function: Any) -> dict[str, Any]:
    """Call *function* (upgrade or downgrade) and return ``{operations, sql, why}``; no statement reaches a database.

    *operations*: the facts of what it did; with *why* not empty, only what it did before it could not be followed any
    more. *sql*: None where a statement could not be made without a database.
    """
    from alembic.operations import Operations
    from alembic.runtime.environment import EnvironmentContext
    from alembic.runtime.migration import MigrationContext

    facts = context.memory["facts"]
    text = io.StringIO()
    recorder = _Recorder(text)
    options = {"as_sql": True, "output_buffer": text, "target_metadata": facts["metadata"]}
    if function is None:
        return {"operations": [], "sql": [], "why": ""}
    with EnvironmentContext(context.memory["config"], context.memory["script"]) as environment:
        migration = MigrationContext.configure(
            dialect=facts["dialect"], environment_context=environment, opts=options
        )
        environment._migration_context = migration
        bind = Bind(facts["dialect"])
        with _no_statements(), recorder.listening(bind), Operations.context(migration):
            try:
                function()
            except Asked as error:
                recorder.why = str(error)
            except Exception as error:
                first = str(error).strip().splitlines()[:1]
                recorder.why = f"it cannot be followed: {type(error).__name__}: {(first or [''])[0][:200]}"
            if recorder.asked and not recorder.why:
                # The exception was caught by the revision itself.
                recorder.why = "it asks the database"
    return {"operations": recorder.operations, "sql": recorder.statements(), "why": recorder.why}


@contextlib.contextmanager
def _no_statements() -> Iterator[None]:
    """Let no statement reach a database, and no connection be opened."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def refuse(*_arguments: Any, **_named: Any) -> None:
        _Recorder.present.asked = True
        raise Asked("it asks the database")

    for name in ("before_cursor_execute", "do_connect"):
        event.listen(Engine, name, refuse)
    try:
        yield
    finally:
        for name in ("before_cursor_execute", "do_connect"):
            event.remove(Engine, name, refuse)


class _Recorder:
    """Takes the operations of one function."""

    present: Any = None

    def __init__(self, text: io.StringIO) -> None:
        self.text = text
        self.operations: list[dict[str, Any]] = []
        self.why = ""
        self.asked = False
        self.partial = False

    @contextlib.contextmanager
    def listening(self, bind: Any) -> Iterator[None]:
        from alembic.operations import Operations
        from alembic.operations.batch import BatchOperationsImpl

        holder = holder_of_invoke(Operations)
        originals = [
            (holder, "invoke", holder.invoke),
            (holder_of(Operations, "get_bind"), "get_bind", holder_of(Operations, "get_bind").get_bind),
            (BatchOperationsImpl, "flush", BatchOperationsImpl.flush),
        ]
        recorder = self
        invoke = holder.invoke
        flush = BatchOperationsImpl.flush

        def invoked(operations: Any, operation: Any) -> Any:
            recorder.operations.append(facts_of(operation, operations))
            try:
                return invoke(operations, operation)
            except Exception:
                # Some statements need the table as it is; the operation itself is known.
                recorder.partial = True
                return None

        def flushed(implementation: Any) -> None:
            try:
                flush(implementation)
            except Exception:
                recorder.partial = True

        def get_bind(_operations: Any) -> Any:
            return bind

        _Recorder.present = self
        holder.invoke = invoked
        originals[1][0].get_bind = get_bind
        BatchOperationsImpl.flush = flushed
        try:
            yield
        finally:
            for owner, name, original in originals:
                setattr(owner, name, original)

    def statements(self) -> list[str] | None:
        """Return the SQL that was made; None where some of it could not be made."""
        if self.partial or self.why:
            return None
        found = []
        for text in self.text.getvalue().split(";\n"):
            lines = [line for line in text.splitlines() if not line.strip().startswith("--")]
            statement = "\n".join(lines).strip().rstrip(";")
            if statement and statement.upper() not in FRAME:
                found.append(statement[:LONGEST_STATEMENT])
        return found[:MOST_STATEMENTS]


def holder_of(kind: Any, name: str) -> Any:
    """Return the class in the hierarchy of *kind* that defines *name*."""
    return next(each for each in kind.__mro__ if name in vars(each))


def holder_of_invoke(kind: Any) -> Any:
    """Return the class that defines what every ``op.`` directive goes through."""
    return holder_of(kind, "invoke")


# --- facts ---


def facts_of(operation: Any, operations: Any = None) -> dict[str, Any]:
    """Return ``{class, module, description, table, batch, column, constraint, altered, columns, sql}`` of a directive."""
    kind = type(operation)
    table = getattr(operation, "table_name", None) or getattr(operation, "source_table", None)
    column = getattr(operation, "column", None)
    facts: dict[str, Any] = {
        "class": kind.__name__,
        "module": kind.__module__,
        "table": None if table is None else str(table),
        "schema": getattr(operation, "schema", None) or getattr(operation, "source_schema", None),
        "batch": type(operations).__name__ == "BatchOperations",
        "recreated": _is_copied(operations),
        "name": None,
        "column": None if column is None else column_facts(column, operations),
        "new_table": getattr(operation, "new_table_name", None),
        "unique": bool(getattr(operation, "unique", False)),
        "concurrently": bool(dict(getattr(operation, "kw", None) or {}).get("postgresql_concurrently")),
        "altered": None,
        "columns": [],
        "nothing": False,
    }
    if kind.__name__ in ("CreateIndexOp", "DropIndexOp"):
        facts["name"] = str(operation.index_name) if operation.index_name else None
        facts["columns"] = [
            str(getattr(each, "name", each)) for each in getattr(operation, "columns", ()) or ()
        ]
    elif "constraint_name" in vars(operation):
        facts["name"] = None if operation.constraint_name is None else str(operation.constraint_name)
        facts["columns"] = [str(each) for each in getattr(operation, "columns", ()) or ()]
    elif kind.__name__ == "DropColumnOp":
        facts["name"] = str(operation.column_name)
    elif kind.__name__ == "AddColumnOp":
        facts["name"] = str(column.name)
    elif kind.__name__ == "CreateTableOp":
        facts["columns"] = [str(each.name) for each in operation.columns if hasattr(each, "type")]
    elif kind.__name__ == "AlterColumnOp":
        facts["name"] = str(operation.column_name)
        facts["altered"] = altered_facts(operation)
    elif kind.__name__ == "ExecuteSQLOp":
        facts["nothing"] = not str(operation.sqltext).strip()
    elif kind.__name__ == "BulkInsertOp":
        facts["table"] = str(operation.table.name)
    facts["description"] = description_of(facts, operation)
    return facts


def _is_copied(operations: Any) -> bool:
    """Return whether SQLite copies the table of a batch, which is what one is for."""
    implementation = getattr(operations, "impl", None)
    return type(implementation).__name__ == "BatchOperationsImpl" and implementation.recreate != "never"


def description_of(facts: Any, operation: Any) -> str:
    """Return one line about the directive, without values."""
    words = "".join(
        " " + letter.lower() if letter.isupper() else letter for letter in facts["class"].replace("Op", "")
    )
    place = ".".join(str(name) for name in (facts["table"], facts["name"]) if name)
    if facts["class"] == "ExecuteSQLOp":
        first = " ".join(str(operation.sqltext).split())[:80]
        return f"execute {part('steps').LITERAL.sub('…', first)}"
    return f"{words.strip().replace('execute s q l', 'execute')} {place}".strip()


def column_facts(column: Any, operations: Any = None) -> dict[str, Any]:
    """Return what decides how a column is added: ``{name, type, length, nullable, filled, …}``.

    *filled*: what the rows that are there get, as SQL; None where nothing or each its own.
    """
    default = column.server_default
    return {
        "name": str(column.name),
        **type_facts(column.type),
        "nullable": bool(column.nullable),
        "server_default": default is not None,
        "computed": column.computed is not None if hasattr(column, "computed") else False,
        "identity": getattr(column, "identity", None) is not None,
        "primary_key": bool(column.primary_key),
        "unique": bool(column.unique),
        "index": bool(column.index),
        "reference": bool(column.foreign_keys),
        "filled": _literal(column, operations),
    }


def type_facts(kind: Any) -> dict[str, Any]:
    """Return ``{type, length}`` of a column's type."""
    if kind is None:
        return {"type": None, "length": None}
    if isinstance(kind, type):
        return {"type": kind.__name__, "length": None}
    return {"type": type(kind).__name__, "length": getattr(kind, "length", None), "text": repr(kind)}


def _literal(column: Any, operations: Any) -> str | None:
    """Return the server's default as SQL where it is one plain value, else None."""
    import re

    if column.server_default is None or operations is None:
        return None
    try:
        compiler = operations.migration_context.dialect.ddl_compiler(
            operations.migration_context.dialect, None
        )
        text = str(compiler.get_column_default_string(column))
    except Exception:
        return None
    plain = re.fullmatch(r"-?[0-9]+(?:\.[0-9]+)?|'(?:[^']|'')*'|true|false", text, re.IGNORECASE)
    return text if plain else None


def altered_facts(operation: Any) -> dict[str, Any]:
    """Return what an ALTER of a column changes, each ``[before, after]``; before is None where the revision does not say."""
    found: dict[str, Any] = {}
    if operation.modify_name is not None:
        found["name"] = [str(operation.column_name), str(operation.modify_name)]
    if operation.modify_type is not None:
        before = type_facts(operation.existing_type) if operation.existing_type is not None else None
        found["type"] = [before, type_facts(operation.modify_type)]
    if operation.modify_nullable is not None:
        found["nullable"] = [operation.existing_nullable, bool(operation.modify_nullable)]
    if operation.modify_server_default is not False:
        existing = operation.existing_server_default
        after = operation.modify_server_default
        found["server_default"] = [
            None if existing is False else existing is not None,
            after is not None,
        ]
    if getattr(operation, "modify_comment", False) is not False:
        found["comment"] = [None, None]
    others = set(dict(getattr(operation, "kw", None) or {})) - {"existing_comment", "existing_autoincrement"}
    if others:
        found["others"] = [None, ", ".join(sorted(others))]
    return found


OPERATIONS = {"state": state}
