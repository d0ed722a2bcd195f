# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests for plugins/module_utils/_alembic_plan.py: directives by table, and real revisions in one real process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._agent import Agent
from ansible_collections.runbook.deploy.plugins.module_utils._alembic_plan import (
    OWN,
    copied_tables,
    judge_forward,
    judge_plan,
    wider,
)
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.alembic_project import (
    ADD_NOTE,
    DROP_NOTE,
    ORDERS,
    AlembicProject,
)

COLUMN = {
    "name": "c",
    "type": "String",
    "length": 9,
    "nullable": False,
    "server_default": False,
    "computed": False,
    "identity": False,
    "primary_key": False,
    "unique": False,
    "index": False,
    "reference": False,
    "filled": None,
}
STRING = {"type": "String", "length": 20}


def directive(kind: str, **facts: Any) -> dict[str, Any]:
    return {
        "class": kind,
        "module": OWN,
        "table": "t",
        "schema": None,
        "batch": False,
        "recreated": False,
        "name": "c",
        "column": None,
        "new_table": None,
        "unique": False,
        "concurrently": False,
        "altered": None,
        "columns": [],
        "nothing": False,
        "description": kind,
        **facts,
    }


@pytest.mark.parametrize(
    ("facts", "answer"),
    [
        (directive("CreateTableOp"), ("yes", "no")),
        (directive("DropTableOp"), ("no", "yes")),
        (directive("RenameTableOp"), ("no", "no")),
        (directive("AddColumnOp", column={**COLUMN, "nullable": True}), ("yes", "no")),
        (directive("AddColumnOp", column={**COLUMN, "server_default": True}), ("yes", "no")),
        (directive("AddColumnOp", column={**COLUMN, "computed": True}), ("yes", "no")),
        # The old code's INSERT does not name it.
        (directive("AddColumnOp", column=COLUMN), ("no", "no")),
        (directive("AddColumnOp", column={**COLUMN, "server_default": True, "unique": True}), ("no", "no")),
        (directive("AddColumnOp", column={**COLUMN, "nullable": True, "unique": True}), ("yes", "no")),
        (directive("AddColumnOp", column={**COLUMN, "nullable": True, "primary_key": True}), ("no", "no")),
        (directive("DropColumnOp"), ("no", "yes")),
        (directive("AlterColumnOp", altered={"nullable": [True, False]}), ("no", "no")),
        (directive("AlterColumnOp", altered={"nullable": [None, False]}), ("no", "no")),
        (directive("AlterColumnOp", altered={"nullable": [False, True]}), ("yes", "no")),
        (directive("AlterColumnOp", altered={"name": ["c", "d"]}), ("no", "no")),
        (directive("AlterColumnOp", altered={"server_default": [False, True]}), ("yes", "no")),
        (directive("AlterColumnOp", altered={"server_default": [True, False]}), ("unknown", "no")),
        (directive("AlterColumnOp", altered={"comment": [None, None]}), ("yes", "no")),
        (directive("AlterColumnOp", altered={"type": [STRING, {**STRING, "length": 40}]}), ("yes", "no")),
        (
            directive("AlterColumnOp", altered={"type": [STRING, {**STRING, "length": 9}]}),
            ("unknown", "unknown"),
        ),
        (directive("AlterColumnOp", altered={"others": [None, "postgresql_using"]}), ("unknown", "unknown")),
        (directive("CreateIndexOp"), ("yes", "no")),
        (directive("CreateIndexOp", unique=True), ("unknown", "no")),
        (directive("DropIndexOp"), ("yes", "no")),
        (directive("CreateUniqueConstraintOp"), ("unknown", "no")),
        (directive("DropConstraintOp"), ("yes", "no")),
        (directive("ExecuteSQLOp", table=None), ("unknown", "unknown")),
        (directive("ExecuteSQLOp", table=None, nothing=True), ("yes", "no")),
        (directive("BulkInsertOp"), ("unknown", "no")),
        (directive("SomethingNewOp"), ("unknown", "unknown")),
        # A directive of the project's own may do anything, whatever it is called.
        (directive("CreateTableOp", module="shop.operations"), ("unknown", "unknown")),
    ],
)
def test_a_directive(facts: dict[str, Any], answer: tuple[str, str]) -> None:
    assert judge_forward(facts, set()) == answer


def test_nobody_knows_a_table_that_was_not_there() -> None:
    assert judge_forward(directive("AddColumnOp", column=COLUMN), {"t"}) == ("yes", "no")
    assert judge_forward(directive("BulkInsertOp"), {"t"}) == ("yes", "no")
    assert judge_forward(directive("ExecuteSQLOp", table=None), {"t"}) == ("unknown", "unknown")


@pytest.mark.parametrize(
    ("before", "after", "answer"),
    [
        (None, STRING, False),
        (STRING, STRING, True),
        (STRING, {"type": "Text", "length": None}, True),
        ({"type": "Text", "length": None}, STRING, False),
        ({"type": "String", "length": None}, STRING, False),
        ({"type": "Integer", "length": None}, {"type": "BigInteger", "length": None}, True),
        ({"type": "BigInteger", "length": None}, {"type": "Integer", "length": None}, False),
        (
            {"type": "Numeric", "length": None, "text": "1"},
            {"type": "Numeric", "length": None, "text": "2"},
            False,
        ),
    ],
)
def test_wider(before: Any, after: Any, answer: bool) -> None:
    assert wider(before, after) is answer


TABLE = 'op.create_table("t", sa.Column("id", sa.Integer(), primary_key=True))'
INDEX = 'op.create_index("ix", "orders", ["number"])'
NULLABLE = (
    'op.alter_column("orders", "number", nullable={}, existing_type=sa.String(20), existing_nullable={})'
)
# Upgrade, downgrade, and (reversible, compatible, destructive).
REVISIONS = [
    (ADD_NOTE, DROP_NOTE, ("yes", "yes", "no")),
    (TABLE + '\nop.create_index("it", "t", ["id"])', 'op.drop_table("t")', ("yes", "yes", "no")),
    (INDEX + "\n" + ADD_NOTE, DROP_NOTE + '\nop.drop_index("ix", "orders")', ("yes", "yes", "no")),
    # It does less.
    (INDEX + "\n" + ADD_NOTE, DROP_NOTE, ("no", "yes", "no")),
    (ADD_NOTE, "pass", ("no", "yes", "no")),
    (ADD_NOTE, '"""Words."""\nreturn', ("no", "yes", "no")),
    (ADD_NOTE, "raise NotImplementedError()", ("no", "yes", "no")),
    (ADD_NOTE, None, ("no", "yes", "no")),
    (ADD_NOTE, 'op.drop_column("orders", "other")', ("no", "yes", "no")),
    # It does more.
    (ADD_NOTE, DROP_NOTE + '\nop.drop_table("orders")', ("unknown", "yes", "no")),
    (ADD_NOTE, DROP_NOTE + '\nop.execute("DELETE FROM orders")', ("unknown", "yes", "no")),
    (ADD_NOTE, 'op.execute("ALTER TABLE orders DROP COLUMN note")', ("unknown", "yes", "no")),
    # What is dropped comes back empty.
    (
        'op.drop_column("orders", "number")',
        'op.add_column("orders", sa.Column("number", sa.String(20)))',
        ("unknown", "no", "yes"),
    ),
    ('op.drop_table("orders")', ORDERS, ("unknown", "no", "yes")),
    ('op.drop_index("ix", "orders")', INDEX, ("unknown", "yes", "no")),
    ('op.rename_table("orders", "t")', 'op.rename_table("t", "orders")', ("yes", "no", "no")),
    ('op.rename_table("orders", "t")', 'op.rename_table("t", "order")', ("no", "no", "no")),
    (
        'op.alter_column("orders", "number", new_column_name="n")',
        'op.alter_column("orders", "n", new_column_name="number")',
        ("yes", "no", "no"),
    ),
    # NULLs that were written meanwhile, and values that were not known before, do not fit any more.
    (NULLABLE.format(True, False), NULLABLE.format(False, True), ("unknown", "yes", "no")),
    (NULLABLE.format(False, True), NULLABLE.format(True, False), ("yes", "no", "no")),
    (NULLABLE.format(False, True), NULLABLE.format(False, True), ("no", "no", "no")),
    ("op.execute(\"UPDATE orders SET number = '1'\")", "pass", ("no", "unknown", "unknown")),
    ("op.execute(\"UPDATE orders SET number = '1'\")", "op.execute('SELECT 1')", ("unknown",) * 3),
    ("op.get_bind().execute(sa.text('SELECT 1'))\n" + ADD_NOTE, DROP_NOTE, ("unknown",) * 3),
    (
        "try:\n    op.get_bind().execute(sa.text('SELECT 1'))\nexcept Exception:\n    pass\n" + ADD_NOTE,
        DROP_NOTE,
        ("unknown",) * 3,
    ),
    ("sa.inspect(op.get_bind())\n" + ADD_NOTE, DROP_NOTE, ("unknown",) * 3),
    (f'if op.get_bind().dialect.name == "sqlite":\n    {ADD_NOTE}', DROP_NOTE, ("yes", "yes", "no")),
    ("pass", "pass", ("yes", "yes", "no")),
    (
        'with op.batch_alter_table("orders") as batch:\n    batch.add_column(sa.Column("n", sa.Integer()))',
        'with op.batch_alter_table("orders") as batch:\n    batch.drop_column("n")',
        ("yes", "yes", "no"),
    ),
    (
        'with op.batch_alter_table("orders") as batch:\n    batch.drop_column("number")',
        'with op.batch_alter_table("orders") as batch:\n    batch.add_column(sa.Column("number", sa.String(20)))',
        ("unknown", "no", "yes"),
    ),
]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The judgement of all revisions, written down in one process; nothing of them is ever run."""
    project = AlembicProject(tmp_path_factory.mktemp("plan") / "srv")
    project.fill()
    after = "r1"
    for number, (upgrade, downgrade, _answer) in enumerate(REVISIONS):
        name = f"n{number:03}"
        project.revision(name, after, upgrade, downgrade)
        after = name
    project.database.touch()
    scratch = project.scratch()
    agent = Agent(
        python=project.environment / "bin" / "python",
        cwd=project.release,
        variables=project.variables,
        framework="alembic",
    )
    with agent:
        agent.call("start", argv=["alembic"], database=scratch, live=project.app_database)
        state = agent.call("state", collect=True)
    assert Path(scratch["path"]).stat().st_size == 0
    shutil.rmtree(project.root)
    plan = judge_plan(state)
    # A batch that drops a column copies its table; here it was just made, so that nobody waits.
    assert [copied_tables(entry["operations"], "sqlite") for entry in state["pending"][-2:]] == [
        set(),
        {"orders"},
    ]
    assert plan["rebuilds"] == []
    return {entry["name"]: entry for entry in plan["migrations"]}


@pytest.mark.parametrize("number", range(len(REVISIONS)))
def test_a_revision(judged: dict[str, dict[str, Any]], number: int) -> None:
    entry = judged[f"n{number:03}"]
    found = (entry["reversible"], entry["compatible"], entry["destructive"])
    assert found == REVISIONS[number][2], (REVISIONS[number], entry["why"], entry["operations"])


def test_what_a_revision_makes(judged: dict[str, dict[str, Any]]) -> None:
    assert judged["n000"]["makes"] == {"tables": [], "columns": [["orders", "note", None]]}
    assert judged["n001"]["makes"] == {"tables": ["t"], "columns": []}
    by_text = {REVISIONS[int(name[1:])][0]: entry["makes"] for name, entry in judged.items() if name != "r1"}
    assert by_text["sa.inspect(op.get_bind())\n" + ADD_NOTE] is None
