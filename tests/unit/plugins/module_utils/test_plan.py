# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests for plugins/module_utils/_plan.py, on facts as Django itself gives them."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _agent_migrate
from ansible_collections.runbook.deploy.plugins.module_utils._plan import (
    GOOD_IS_NO,
    GOOD_IS_YES,
    empty_plan,
    judge_operation,
    judge_plan,
    rebuilt_tables,
    worst,
)
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_project import django_python

PREPARED = """\
migrations.CreateModel(name="Other", fields=[("id", models.BigAutoField(primary_key=True))]),
migrations.AddField("order", "code", models.CharField(max_length=5, default="")),
migrations.AddField("order", "ordered", models.DateField()),
migrations.AddField("order", "link", models.ForeignKey("orders.Other", models.CASCADE, null=True)),
migrations.AddField("order", "fixed", models.IntegerField(db_column="f", null=True)),
migrations.AddConstraint("order", models.CheckConstraint(condition=models.Q(number="x"), name="there")),
migrations.AlterUniqueTogether("order", {("number", "code")}),
"""
# operation, reversible, compatible, destructive, tables that SQLite copies
CASES = [
    (
        'migrations.CreateModel(name="New", fields=[("id", models.AutoField(primary_key=True))])',
        "yes yes no",
        "",
    ),
    ('migrations.DeleteModel("Other")', "yes no yes", ""),
    ('migrations.RenameModel("Other", "Another")', "yes no no", ""),
    ('migrations.AlterModelTable("order", "bought")', "yes no no", ""),
    ('migrations.AlterModelTable("order", "orders_order")', "yes yes no", ""),
    ('migrations.AlterModelOptions("order", {"ordering": ["id"]})', "yes yes no", ""),
    ('migrations.AddField("order", "x", models.IntegerField(null=True))', "yes yes no", ""),
    (
        'migrations.AddField("order", "x", models.IntegerField(null=True, default=1))',
        "yes yes no",
        "orders_order",
    ),
    ('migrations.AddField("order", "x", models.IntegerField(default=1))', "yes no no", "orders_order"),
    ('migrations.AddField("order", "x", models.IntegerField(db_default=1))', "yes yes no", "orders_order"),
    (
        'migrations.AddField("order", "x", models.OneToOneField("orders.Other", models.CASCADE, null=True))',
        "yes yes no",
        "orders_order",
    ),
    ('migrations.AddField("order", "x", models.ManyToManyField("orders.Other"))', "yes yes no", ""),
    ('migrations.RemoveField("order", "number")', "unknown no yes", ""),
    ('migrations.RemoveField("order", "code")', "yes no yes", ""),
    ('migrations.RemoveField("order", "link")', "yes no yes", "orders_order"),
    ('migrations.RenameField("order", "number", "no")', "yes no no", ""),
    ('migrations.RenameField("order", "link", "other")', "yes no no", "orders_order"),
    ('migrations.RenameField("order", "fixed", "moved")', "yes yes no", ""),
    (
        'migrations.AlterField("order", "number", models.CharField("No.", max_length=20, help_text="x", blank=True))',
        "yes yes no",
        "",
    ),
    (
        'migrations.AlterField("order", "number", models.CharField(max_length=20, default="x"))',
        "yes yes no",
        "orders_order",
    ),
    (
        'migrations.AlterField("order", "number", models.CharField(max_length=10))',
        "yes yes no",
        "orders_order",
    ),
    (
        'migrations.AlterField("order", "number", models.TextField())',
        "yes yes no",
        "orders_order",
    ),
    ('migrations.AddIndex("order", models.Index(fields=["number"], name="by_number"))', "yes yes no", ""),
    (
        'migrations.AddConstraint("order", models.UniqueConstraint(fields=["number"], name="one"))',
        "yes unknown no",
        "orders_order",
    ),
    (
        'migrations.AddConstraint("order", models.UniqueConstraint(fields=["number"], name="one", '
        'condition=models.Q(code="")))',
        "yes unknown no",
        "",
    ),
    ('migrations.RemoveConstraint("order", "there")', "unknown yes no", "orders_order"),
    (
        'migrations.AlterUniqueTogether("order", {("number", "code"), ("code", "link")})',
        "yes unknown no",
        "orders_order",
    ),
    ('migrations.AlterUniqueTogether("order", set())', "unknown yes no", "orders_order"),
    ('migrations.AlterUniqueTogether("order", {("number", "code")})', "yes yes no", ""),
    ('migrations.AlterOrderWithRespectTo("order", "link")', "unknown unknown unknown", "orders_order"),
    ("migrations.RunPython(work)", "no unknown unknown", ""),
    ("migrations.RunPython(work, work)", "yes unknown unknown", ""),
    ("migrations.RunPython(migrations.RunPython.noop)", "no yes no", ""),
    ("migrations.RunPython(migrations.RunPython.noop, work)", "yes yes no", ""),
    ('migrations.RunSQL("drop table orders_other")', "no unknown unknown", ""),
    ('migrations.RunSQL("select 1", "")', "yes unknown unknown", ""),
    ('migrations.RunSQL("", "")', "yes yes no", ""),
    (
        'migrations.SeparateDatabaseAndState(state_operations=[migrations.DeleteModel("Other")])',
        "yes yes no",
        "",
    ),
    ("migrations.SeparateDatabaseAndState([migrations.RunPython(work)])", "no unknown unknown", ""),
    (
        'migrations.SeparateDatabaseAndState([migrations.AddField("order", "x", models.IntegerField(default=1))])',
        "yes no no",
        "orders_order",
    ),
    ("Own()", "unknown unknown unknown", ""),
]
# Runs in the interpreter that has Django: describes each operation on a state of its own.
SCRIPT = """\
import json, sys
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=[], DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
django.setup()
from django.db import connection, migrations, models
from django.db.migrations.state import ProjectState

def work(apps, editor):
    pass

class Own(migrations.CreateModel):
    def __init__(self):
        super().__init__("Own", [("id", models.AutoField(primary_key=True))])

source, initial, prepared, cases = json.load(sys.stdin)
agent = {}
exec(compile(source, "agent", "exec"), agent)
state = ProjectState()
for operation in [*eval(initial), *eval(prepared)]:
    operation.state_forwards("orders", state)
features = {"vendor": "sqlite", "django": list(django.VERSION[:2]),
            "can_drop_column": getattr(connection.features, "can_alter_table_drop_column", True)}
print(json.dumps([features, [agent["_describe_operation"](eval(case), "orders", state.clone()) for case in cases]]))
"""
ORDER = (
    '[migrations.CreateModel(name="Order", fields=[("id", models.BigAutoField(primary_key=True)), '
    '("number", models.CharField(max_length=20))])]'
)


@pytest.fixture(scope="module")
def described() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return (the features of the database, the facts about each operation of ``CASES``)."""
    source = Path(_agent_migrate.__file__).read_text(encoding="utf-8")
    given = json.dumps([source, ORDER, f"[{PREPARED}]", [case[0] for case in CASES]])
    done = subprocess.run(
        [django_python(), "-c", SCRIPT], input=given, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    features, facts = json.loads(done.stdout)
    return features, facts


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case[0] for case in CASES])
def test_every_kind_of_operation(described: tuple[dict[str, Any], list[dict[str, Any]]], number: int) -> None:
    features, facts = described
    _operation, answers, tables = CASES[number]
    found = judge_operation(facts[number], features["vendor"])
    assert " ".join(found[name] for name in ("reversible", "compatible", "destructive")) == answers
    assert rebuilt_tables(facts[number], features) == tables.split()
    assert rebuilt_tables(facts[number], {**features, "vendor": "postgresql"}) == []


def test_an_operation_of_postgresql_is_known_by_its_module(
    described: tuple[Any, list[dict[str, Any]]],
) -> None:
    facts = {
        **described[1][0],
        "class": "AddIndexConcurrently",
        "module": "django.contrib.postgres.operations",
    }
    assert judge_operation(facts, "sqlite")["compatible"] == "yes"
    assert judge_operation({**facts, "module": "somebody.elses"})["compatible"] == "unknown"


def test_the_worst_counts() -> None:
    assert worst([], GOOD_IS_YES) == "yes"
    assert worst([], GOOD_IS_NO) == "no"
    for answers in itertools.product(("yes", "no", "unknown"), repeat=3):
        expected = "no" if "no" in answers else "unknown" if "unknown" in answers else "yes"
        assert worst(answers, GOOD_IS_YES) == expected
        expected = "yes" if "yes" in answers else "unknown" if "unknown" in answers else "no"
        assert worst(answers, GOOD_IS_NO) == expected


def test_a_plan_is_as_good_as_its_worst_migration(
    described: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    features, facts = described
    numbers = {case[0]: number for number, case in enumerate(CASES)}
    drop = facts[numbers['migrations.DeleteModel("Other")']]
    rebuild = facts[numbers['migrations.RemoveField("order", "link")']]
    new = facts[0]
    pending = [
        {"app": "orders", "name": "0003", "atomic": True, "operations": [new]},
        {"app": "orders", "name": "0004", "atomic": False, "operations": [drop, rebuild]},
    ]
    plan = judge_plan({**features, "pending": pending})
    assert (plan["reversible"], plan["compatible"], plan["destructive"]) == ("yes", "no", "yes")
    assert plan["rebuilds"] == ["orders_order"]
    assert [entry["compatible"] for entry in plan["migrations"]] == ["yes", "no"]
    assert plan["migrations"][1]["atomic"] is False
    assert plan["migrations"][0]["operations"][0]["description"] == "Create model New"
    # A table that the plan has just made is empty.
    made = {**new, "table_after": "orders_order"}
    pending[0]["operations"] = [made]
    assert judge_plan({**features, "pending": pending})["rebuilds"] == []
    assert empty_plan()["migrations"] == []
