# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests for plugins/modules/migration.py with a real Django project, real SQLite files and real deaths."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.modules.migration import main
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_project import (
    MODELS,
    NOTE,
    SECRET,
    DjangoProject,
)

DEPLOYMENT = "20261121T013700-ab12"
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def project(tmp_path: Path) -> DjangoProject:
    return DjangoProject(tmp_path / "srv")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the first migrations applied, made once: that takes longest."""
    made = DjangoProject(tmp_path_factory.mktemp("template") / "srv")
    made.manage("migrate", "--verbosity", "0")
    return made.database


@pytest.fixture
def before(project: DjangoProject, template: Path) -> list[list[str]]:
    """What is applied in a live database with the first migrations."""
    shutil.copy(template, project.database)
    return [list(row) for row in project.rows("select app, name from django_migrations order by id")]


@pytest.fixture
def run(project: DjangoProject, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the module; the answer has ``failed`` True when it failed."""

    def call(check_mode: bool = False, **options: Any) -> dict[str, Any]:
        arguments = {
            "root": str(project.root),
            "release": project.name,
            "environment_path": str(project.environment),
            "environment": json.dumps(project.variables),
            "live_database": {"engine": "sqlite", "path": str(project.database)},
            "_ansible_check_mode": check_mode,
            **options,
        }
        capsys.readouterr()
        with patch_module_args(arguments), pytest.raises(SystemExit):
            main()
        text = capsys.readouterr().out
        assert SECRET not in text
        return {"failed": False, **json.loads(text)}

    return call


def verified(project: DjangoProject, run: Run, **options: Any) -> dict[str, Any]:
    return run(state="verified", database={"engine": "sqlite", "path": str(project.scratch())}, **options)


def record(project: DjangoProject) -> dict[str, Any]:
    return {"id": DEPLOYMENT, "token": "t" * 16, "host": "web1", "primary": False, "about": {}}


def journal(project: DjangoProject) -> dict[str, Any]:
    return json.loads((project.root / "deployments" / f"{DEPLOYMENT}.json").read_text())


def tables(project: DjangoProject) -> set[str]:
    return {row[0] for row in project.rows("select name from sqlite_master where type = 'table'")}


# --- the good way ---


def test_forward_and_back_with_the_record(project: DjangoProject, run: Run, before: list[list[str]]) -> None:
    first = run(state="applied")
    assert first["changed"] is False
    assert first["applied"] == before
    assert first["heads"] == {"contenttypes": ["0002_remove_content_type_name"], "orders": ["0001_initial"]}

    project.note()
    found = verified(project, run, record=record(project))
    assert not found["failed"], found
    assert [entry["name"] for entry in found["plan"]["migrations"]] == ["0002_note"]
    assert (found["plan"]["reversible"], found["plan"]["compatible"], found["plan"]["destructive"]) == (
        "yes",
        "yes",
        "no",
    )
    assert project.applied() == ["0001_initial"]
    assert any("check --deploy" in text for text in found["notes"])

    done = run(state="applied", plan=found["plan"]["migrations"], record=record(project))
    assert done["changed"]
    assert [entry["name"] for entry in done["seconds"]] == ["0002_note"]
    assert "orders_note" in tables(project)
    # Sent by migrate itself, after the tables are there.
    assert project.rows("select count(*) from django_content_type where model = 'note'") == [(1,)]
    story = journal(project)
    assert story["applied_before"] == first["applied"]
    assert story["heads_before"]["orders"] == ["0001_initial"]
    assert story["heads_after"]["orders"] == ["0002_note"]
    assert [phase["phase"] for phase in story["phases"]] == ["verify", "migrate"]
    assert story["plan"]["migrations"][0]["name"] == "0002_note"

    back = run(state="reversed", applied=story["applied_before"], record=record(project))
    assert back["changed"]
    assert back["reversed"] == [["orders", "0002_note"]]
    assert back["applied"] == first["applied"]
    assert "orders_note" not in tables(project)
    assert journal(project)["heads_after"]["orders"] == ["0001_initial"]
    # The state before the first step is what the record keeps.
    assert journal(project)["applied_before"] == first["applied"]
    assert run(state="reversed", applied=story["applied_before"])["changed"] is False


def test_a_second_attempt_keeps_what_was_applied_before_the_first(
    project: DjangoProject, run: Run, before: list[list[str]]
) -> None:
    project.note()
    run(state="applied", record=record(project))
    run(state="applied", record=record(project))
    assert journal(project)["applied_before"] == before


def test_an_empty_database_and_its_initial_command(project: DjangoProject, run: Run) -> None:
    project.write(
        "first.py", "import os\nopen(os.environ['RUNBOOK_ROOT'] + '/shared/first', 'a').write('x')\n"
    )
    found = verified(project, run)
    assert not found["failed"]
    assert found["applied"] == []
    assert not project.database.exists()
    done = run(state="applied", plan=found["plan"]["migrations"], initial_command=["first.py"])
    assert done["initial_command"] is True
    assert run(state="applied", initial_command=["first.py"])["initial_command"] is False
    assert (project.root / "shared" / "first").read_text() == "x"


def test_an_initial_command_that_failed_is_run_again(project: DjangoProject, run: Run) -> None:
    project.write("first.py", "raise SystemExit('no fixtures')")
    failed = run(state="applied", initial_command=["first.py"])
    assert failed["failed"]
    assert "app_migrate_initial_command" in failed["msg"]
    assert "no fixtures" in failed["evidence"]
    assert failed["live_changed"] is True
    project.write("first.py", "")
    assert run(state="applied", initial_command=["first.py"])["initial_command"] is True
    assert run(state="applied", initial_command=["first.py"])["initial_command"] is False


# --- what verify finds ---


def test_verify_names_a_model_change_without_a_migration(project: DjangoProject, run: Run) -> None:
    project.write("orders/models.py", MODELS + "    paid = models.BooleanField(default=False)\n")
    found = verified(project, run)
    assert found["failed"]
    assert "orders has model changes without a migration" in found["msg"]
    assert "paid" in found["msg"]


def test_verify_names_conflicts_and_failed_checks(project: DjangoProject, run: Run) -> None:
    project.migration("0002_a", "0001_initial", "")
    project.migration("0002_b", "0001_initial", "")
    project.add_apps("django.contrib.admin", "django.contrib.auth")
    found = verified(project, run)
    assert found["failed"]
    text = "\n".join(found["findings"])
    assert "several last migrations (0002_a, 0002_b)" in text
    assert "admin.E403" in text
    assert not project.database.exists()


def test_verify_imports_what_it_is_told(project: DjangoProject, run: Run) -> None:
    project.write("shop/wsgi.py", "import not_there\n")
    assert not verified(project, run)["failed"]
    found = verified(project, run, import_modules=["shop.wsgi"])
    assert "the module shop.wsgi cannot be imported: ModuleNotFoundError" in found["msg"]


def test_verify_refuses_a_release_older_than_the_database(project: DjangoProject, run: Run) -> None:
    project.note()
    run(state="applied")
    (project.release / "orders/migrations/0002_note.py").unlink()
    project.write("orders/models.py", MODELS)
    found = verified(project, run)
    assert "orders.0002_note applied, of which this release has no file" in found["msg"]


def test_verify_accepts_what_a_rollback_left_applied(project: DjangoProject, run: Run) -> None:
    project.note()
    run(state="applied")
    (project.release / "orders/migrations/0002_note.py").unlink()
    project.write("orders/models.py", MODELS)
    plan = {"migrations": [{"app": "orders", "name": "0002_note", "compatible": "yes"}]}
    record = {
        "id": "20260101T000000-0000",
        "verdict": "rolled_back",
        "phases": [],
        "plan": plan,
        "decision": {"level": "code"},
    }
    (project.root / "deployments").mkdir(exist_ok=True)
    (project.root / "deployments/20260101T000000-0000.json").write_text(json.dumps(record))
    found = verified(project, run)
    assert not found["failed"], found["msg"]
    assert any("orders.0002_note" in note for note in found["notes"])


@pytest.mark.usefixtures("before")
def test_an_application_that_puts_its_own_database_back_is_stopped(project: DjangoProject, run: Run) -> None:
    project.write(
        "orders/apps.py",
        "from django.apps import AppConfig\nfrom django.conf import settings\nfrom django.db import connections\n\n\n"
        "class OrdersConfig(AppConfig):\n    name = 'orders'\n\n    def ready(self):\n"
        f"        connections['default'].settings_dict['NAME'] = {str(project.database)!r}\n"
        "        connections['default'].ensure_connection()\n",
    )
    live = project.database.read_bytes()
    found = verified(project, run)
    assert found["failed"]
    assert "without touching live data" in found["msg"]
    assert project.database.read_bytes() == live


def test_other_databases_are_switched_off_while_new_code_is_tried(project: DjangoProject, run: Run) -> None:
    other = project.root / "shared" / "other.sqlite3"
    project.append_settings(
        f"DATABASES['other'] = {{'ENGINE': 'django.db.backends.sqlite3', 'NAME': {str(other)!r}}}\n"
        "DATABASES['replica'] = dict(DATABASES['default'])\n"
    )
    found = verified(project, run)
    assert not found["failed"], found
    assert any("without the databases other" in text for text in found["notes"])
    assert not other.exists()
    assert not project.database.exists()


def test_new_code_that_uses_another_database_while_it_loads_is_stopped(
    project: DjangoProject, run: Run
) -> None:
    other = project.root / "shared" / "other.sqlite3"
    project.append_settings(
        f"DATABASES['other'] = {{'ENGINE': 'django.db.backends.sqlite3', 'NAME': {str(other)!r}}}\n"
    )
    project.write(
        "orders/apps.py",
        "from django.apps import AppConfig\nfrom django.db import connections\n\n\n"
        "class OrdersConfig(AppConfig):\n    name = 'orders'\n\n    def ready(self):\n"
        "        connections['other'].cursor().execute('create table touched (x)')\n",
    )
    found = verified(project, run)
    assert found["failed"]
    assert "ImproperlyConfigured" in found["msg"]
    assert not other.exists()


def test_another_database_than_the_one_that_is_backed_up(project: DjangoProject, run: Run) -> None:
    found = run(state="applied", live_database={"engine": "sqlite", "path": "/srv/elsewhere.sqlite3"})
    assert found["failed"]
    assert "app_database.path is '/srv/elsewhere.sqlite3'" in found["msg"]
    assert project.rows("select * from sqlite_master") == []


# --- applying that fails ---

FAILS = "def fail(apps, editor):\n    print('about to fail')\n    raise ValueError('the data is not as expected')\n\n\n"


@pytest.mark.usefixtures("before")
def test_a_migration_that_fails_half_way(project: DjangoProject, run: Run) -> None:
    project.note()
    project.migration("0003_fails", "0002_note", "migrations.RunPython(fail)", code=FAILS)
    found = run(state="applied", record=record(project))
    assert found["failed"]
    assert "The migration orders.0003_fails could not be applied" in found["msg"]
    assert "applied before that in this run: orders.0002_note" in found["msg"]
    assert "ValueError: the data is not as expected" in found["msg"]
    assert "about to fail" in found["evidence"]
    assert found["failed_migration"] == ["orders", "0003_fails"]
    assert found["heads"]["orders"] == ["0002_note"]
    assert found["live_changed"] is True
    story = journal(project)
    assert story["heads_after"]["orders"] == ["0002_note"]
    assert story["phases"][0]["state"] == "failed"
    assert run(state="reversed", applied=story["applied_before"])["reversed"] == [["orders", "0002_note"]]


@pytest.mark.usefixtures("before")
def test_a_process_that_dies_half_way(project: DjangoProject, run: Run) -> None:
    project.note()
    code = "import os, signal\n\n\ndef die(apps, editor):\n    print('the last words')\n    os.kill(os.getpid(), signal.SIGKILL)\n\n\n"
    project.migration("0003_dies", "0002_note", "migrations.RunPython(die)", code=code)
    found = run(state="applied", record=record(project))
    assert "The migration orders.0003_dies could not be applied" in found["msg"]
    assert "killed by SIGKILL" in found["msg"]
    assert "the last words" in found["evidence"]
    assert found["applied"][-1] == ["orders", "0002_note"]
    assert journal(project)["heads_after"]["orders"] == ["0002_note"]


@pytest.mark.usefixtures("before")
def test_a_migration_that_does_not_end(project: DjangoProject, run: Run) -> None:
    code = "import time\n\n\ndef wait(apps, editor):\n    time.sleep(60)\n\n\n"
    project.migration("0002_waits", "0001_initial", "migrations.RunPython(wait)", code=code)
    # In a process of its own, as in every deployment.
    found = run(state="applied", time_limit=8, record=record(project))
    assert "orders.0002_waits could not be applied" in found["msg"]
    assert "within 8 seconds" in found["msg"]
    assert found["live_changed"] is False


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.usefixtures("before")
def test_a_part_of_a_migration_may_remain(project: DjangoProject, run: Run) -> None:
    operations = 'migrations.RunSQL("create table half (x)", "drop table half"), migrations.RunPython(fail)'
    project.migration("0002_half", "0001_initial", operations, code=FAILS, atomic=False)
    found = run(state="applied")
    assert "stopped in its operation 2 of 2" in found["msg"]
    assert found["failed_operation"]["index"] == 2
    assert found["live_changed"] is True
    assert "half" in tables(project)


@pytest.mark.usefixtures("before")
def test_a_plan_that_has_changed_is_not_applied(project: DjangoProject, run: Run) -> None:
    project.note()
    found = run(state="applied", plan=[["orders", "0002_other"]])
    assert found["failed"]
    assert "verified was orders.0002_other, pending now is orders.0002_note" in found["msg"]
    assert found["live_changed"] is False
    assert project.applied() == ["0001_initial"]
    assert run(state="applied", plan=[])["failed"]


# --- going back ---


def test_an_irreversible_migration_refuses_before_the_first_step(
    project: DjangoProject, run: Run, before: list[list[str]]
) -> None:
    project.migration("0002_data", "0001_initial", 'migrations.RunSQL("select 1")')
    project.migration(
        "0003_more", "0002_data", 'migrations.RunSQL("create table more (x)", "drop table more")'
    )
    run(state="applied")
    found = run(state="reversed", applied=before)
    assert found["failed"]
    assert "orders.0002_data cannot be reversed" in found["msg"]
    assert project.applied() == ["0001_initial", "0002_data", "0003_more"]
    assert found["live_changed"] is False


def test_an_irreversible_operation_inside_another(
    project: DjangoProject, run: Run, before: list[list[str]]
) -> None:
    inner = 'migrations.SeparateDatabaseAndState(database_operations=[migrations.RunSQL("select 1")])'
    project.migration("0002_inner", "0001_initial", inner)
    found = verified(project, run)
    assert found["plan"]["reversible"] == "no"
    run(state="applied")
    assert "cannot be reversed" in run(state="reversed", applied=before)["msg"]


def test_a_migration_that_this_release_does_not_know(
    project: DjangoProject, run: Run, before: list[list[str]]
) -> None:
    project.note()
    run(state="applied")
    (project.release / "orders/migrations/0002_note.py").unlink()
    found = run(state="reversed", applied=before)
    assert "this release has no such file" in found["msg"]
    assert "orders_note" in tables(project)


@pytest.mark.usefixtures("before")
def test_a_target_that_cannot_have_been(project: DjangoProject, run: Run) -> None:
    project.note()
    project.migration(
        "0003_after", "0002_note", 'migrations.RunSQL("create table after (x)", "drop table after")'
    )
    applied = run(state="applied")["applied"]
    found = run(state="reversed", applied=[row for row in applied if row[1] != "0002_note"])
    assert "orders.0003_after would stay" in found["msg"]
    assert run(state="reversed", applied=[])["failed"]


def test_a_squash_of_what_is_applied_loses_only_its_row(project: DjangoProject, run: Run) -> None:
    project.note()
    before = run(state="applied")["applied"]
    project.rows("insert into orders_note (text) values ('kept')")
    code = (project.release / "orders/migrations/0001_initial.py").read_text()
    squash = code.replace(
        "    dependencies = []",
        '    replaces = [("orders", "0001_initial"), ("orders", "0002_note")]\n    dependencies = []',
    ).replace("    operations = [", "    operations = [" + NOTE + ",")
    project.write("orders/migrations/0001_squashed.py", squash)
    done = run(state="applied")
    assert ["orders", "0001_squashed"] in done["applied"]
    assert done["changed"]
    back = run(state="reversed", applied=before)
    assert not back["failed"], back
    assert back["applied"] == before
    assert project.rows("select text from orders_note") == [("kept",)]


# --- options ---


def test_check_mode_runs_no_new_code_on_the_live_database(project: DjangoProject, run: Run) -> None:
    project.write("manage.py", f"open({str(project.root / 'ran')!r}, 'w')\n")
    assert run(check_mode=True, state="applied")["changed"] is True
    assert run(check_mode=True, state="applied", plan=[])["changed"] is False
    assert run(check_mode=True, state="planned")["plan"] is None
    assert run(check_mode=True, state="verified", database={})["plan"] is None
    assert not (project.root / "ran").exists()


def test_nothing_to_migrate(run: Run) -> None:
    for state in ("planned", "verified", "applied", "reversed"):
        found = run(state=state, framework="none", live_database={})
        assert not found["failed"]
        assert found["changed"] is False


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"state": "verified"}, "without a scratch database"),
        ({"state": "applied", "database": {"engine": "sqlite", "path": "/x"}}, "leave it out"),
        ({"state": "planned", "release": "ffffffffffff-00000000"}, "is not built"),
        ({"state": "applied", "plan": ["x"]}, "expected [app, name]"),
        ({"state": "applied", "time_limit": 0}, "above 0"),
        ({"state": "verified", "database": {"path": "/x"}}, "expected engine and path or name"),
        ({"state": "planned", "environment": "[]"}, "app_environment"),
    ],
)
def test_bad_options(run: Run, options: dict[str, Any], text: str) -> None:
    found = run(**options)
    assert found["failed"]
    assert text in found["msg"]
