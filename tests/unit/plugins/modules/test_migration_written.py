# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking migrations back never throws away what somebody wrote, unless that was accepted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.modules.migration import main
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_project import DjangoProject

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def project(tmp_path: Path) -> DjangoProject:
    found = DjangoProject(tmp_path / "srv")
    found.manage("migrate", "--verbosity", "0")
    found.rows("insert into orders_order (number) values ('1'), ('2')")
    return found


@pytest.fixture
def run(project: DjangoProject, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(**options: Any) -> dict[str, Any]:
        arguments = {
            "root": str(project.root),
            "release": project.name,
            "environment_path": str(project.environment),
            "environment": json.dumps(project.variables),
            "live_database": {"engine": "sqlite", "path": str(project.database)},
            **options,
        }
        capsys.readouterr()
        with patch_module_args(arguments), pytest.raises(SystemExit):
            main()
        return {"failed": False, **json.loads(capsys.readouterr().out)}

    return call


def applied(project: DjangoProject, run: Run, operation: str) -> list[list[str]]:
    """Apply a migration with *operation*; return what was applied before."""
    before = run(state="applied")["applied"]
    project.migration("0002_more", "0001_initial", operation)
    assert run(state="applied")["changed"]
    return before


def assert_refused(project: DjangoProject, run: Run, before: list[list[str]], *says: str) -> None:
    """Refused in check mode and without, with one sentence, and nothing was changed."""
    dump = project.database.read_bytes()
    for check_mode in (True, False):
        found = run(state="reversed", applied=before, _ansible_check_mode=check_mode)
        assert found["failed"], found
        assert all(text in found["msg"] for text in (*says, "rollback_consent=true")), found["msg"]
    assert project.database.read_bytes() == dump
    assert project.applied() == ["0001_initial", "0002_more"]


def test_rows_of_a_table_that_goes(project: DjangoProject, run: Run) -> None:
    before = run(state="applied")["applied"]
    project.note("0002_more")
    run(state="applied")
    quiet = run(state="reversed", applied=before, _ansible_check_mode=True)
    assert (quiet["changed"], quiet["reversed"]) == (True, [["orders", "0002_more"]])
    assert not any(quiet["lost"].values())
    project.rows("insert into orders_note (text) values ('a'), ('b')")
    assert_refused(project, run, before, "2 rows of orders_note")
    done = run(state="reversed", applied=before, consent=True)
    assert not done["failed"], done
    assert done["lost"] == {"tables": {"orders_note": 2}, "columns": {}, "unknown": {}}
    assert project.applied() == ["0001_initial"]


@pytest.mark.parametrize(
    ("field", "plain", "written"),
    [
        ("models.CharField(max_length=9, default='new')", "'new'", "'other'"),
        ("models.IntegerField(null=True)", "NULL", "0"),
        ("models.BooleanField(default=True)", "1", "0"),
        ("models.TextField(blank=True, default='')", "''", "'x'"),
        ("models.IntegerField(db_default=7)", "7", "8"),
    ],
)
def test_values_of_a_column_that_goes(
    project: DjangoProject, run: Run, field: str, plain: str, written: str
) -> None:
    """What the migration filled in is nobody's work."""
    if "db_default" in field:
        pytest.importorskip("django", minversion="5.0")
    before = applied(project, run, f'migrations.AddField(model_name="order", name="more", field={field})')
    assert project.rows(f"select count(*) from orders_order where more is {plain}") == [(2,)]
    quiet = run(state="reversed", applied=before, _ansible_check_mode=True)
    assert not any(quiet["lost"].values()), quiet
    project.rows(f"update orders_order set more = {written} where number = '2'")
    assert_refused(project, run, before, "1 values of orders_order.more")
    assert not run(state="reversed", applied=before, consent=True)["failed"]
    assert project.rows("select number from orders_order order by 1") == [("1",), ("2",)]


def test_a_default_that_is_another_for_each_row_counts_as_written(project: DjangoProject, run: Run) -> None:
    operation = (
        'migrations.AddField(model_name="order", name="more", '
        "field=models.DateTimeField(default=__import__('datetime').datetime.now))"
    )
    before = applied(project, run, operation)
    assert_refused(project, run, before, "2 values of orders_order.more")


def test_pairs_of_a_many_to_many_field_that_goes(project: DjangoProject, run: Run) -> None:
    operation = 'migrations.AddField(model_name="order", name="more", field=models.ManyToManyField(to="orders.order"))'
    before = applied(project, run, operation)
    project.rows("insert into orders_order_more (from_order_id, to_order_id) values (1, 2)")
    assert_refused(project, run, before, "1 rows of orders_order_more")


def test_what_cannot_be_counted_counts_as_written(project: DjangoProject, run: Run) -> None:
    before = run(state="applied")["applied"]
    project.note("0002_more")
    run(state="applied")
    project.rows("alter table orders_note rename to somewhere_else")
    assert_refused(project, run, before, "orders_note", "cannot be counted")
