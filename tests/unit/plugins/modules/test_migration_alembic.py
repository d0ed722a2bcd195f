# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests for plugins/modules/migration.py with real projects that use Alembic, real SQLite files and real deaths."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.modules.migration import main
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.alembic_project import (
    ADD_NOTE,
    DROP_NOTE,
    ENV,
    MODELS,
    ORDERS,
    SECRET,
    AlembicProject,
)

DEPLOYMENT = "20261121T013700-ab12"
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def project(tmp_path: Path) -> AlembicProject:
    made = AlembicProject(tmp_path / "srv")
    made.fill()
    return made


@pytest.fixture
def run(project: AlembicProject, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the module; the answer has ``failed`` True when it failed."""

    def call(check_mode: bool = False, **options: Any) -> dict[str, Any]:
        arguments = {
            "root": str(project.root),
            "release": project.name,
            "framework": "alembic",
            "environment_path": str(project.environment),
            "environment": json.dumps(project.variables),
            "live_database": project.app_database,
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


@pytest.fixture
def deployed(project: AlembicProject, run: Run) -> AlembicProject:
    """A live database with the first revision and two orders."""
    assert not run(state="applied")["failed"]
    project.rows("insert into orders (number) values ('1'), ('2')")
    return project


def verified(project: AlembicProject, run: Run, **options: Any) -> dict[str, Any]:
    return run(state="verified", database=project.scratch(), **options)


def record(deployment: str = DEPLOYMENT) -> dict[str, Any]:
    return {"id": deployment, "token": "t" * 16, "host": "web1", "primary": False, "about": {}}


def journal(project: AlembicProject) -> dict[str, Any]:
    return json.loads((project.root / "deployments" / f"{DEPLOYMENT}.json").read_text())


def words(answer: dict[str, Any]) -> str:
    return answer["msg"] + " " + " ".join(answer.get("findings") or [])


# --- the good way ---


def test_forward_and_back_with_the_record(project: AlembicProject, run: Run) -> None:
    first = run(state="applied", record=None)
    assert first["applied"] == [["alembic", "r1"]] and first["heads"] == {"alembic": ["r1"]}
    project.rows("insert into orders (number) values ('1')")
    project.add_note()
    before = project.database.read_bytes()
    found = verified(project, run, record=record(), rehearse="auto")
    assert not found["failed"], found
    assert project.database.read_bytes() == before
    (entry,) = found["plan"]["migrations"]
    assert (entry["app"], entry["name"], entry["down"]) == ("alembic", "r2", ["r1"])
    assert (entry["reversible"], entry["compatible"], entry["destructive"]) == ("yes", "yes", "no")
    assert entry["sql"] == ["ALTER TABLE orders ADD COLUMN note VARCHAR(40)"]
    assert entry["rehearsed"]["schema"] == [] and entry["rehearsed"]["backward_seconds"] is not None
    assert found["current"] is False

    done = run(state="applied", plan=found["plan"]["migrations"], record=record())
    assert done["changed"] and done["applied"] == [["alembic", "r2"]]
    assert done["plan"]["migrations"] == found["plan"]["migrations"]
    assert [entry["name"] for entry in done["seconds"]] == ["r2"]
    assert project.columns() == ["id", "number", "note"]
    story = journal(project)
    assert story["applied_before"] == [["alembic", "r1"]]
    assert story["heads_after"] == {"alembic": ["r2"]}

    again = verified(project, run)
    assert (again["current"], again["plan"]["migrations"]) == (True, [])

    back = run(state="reversed", applied=story["applied_before"], record=record())
    assert back["changed"] and back["reversed"] == [["alembic", "r2"]] and back["lost"]["columns"] == {}
    assert project.columns() == ["id", "number"] and project.heads() == ["r1"]
    assert project.rows("select number from orders") == [("1",)]


def test_check_mode_changes_nothing(deployed: AlembicProject, run: Run) -> None:
    deployed.add_note()
    assert not verified(deployed, run, record=record())["failed"]
    assert run(True, state="applied")["changed"] is True
    assert deployed.heads() == ["r1"]
    run(state="applied")
    told = run(True, state="reversed", applied=[["alembic", "r1"]])
    assert told["changed"] and told["reversed"] == [["alembic", "r2"]]
    assert deployed.heads() == ["r2"]


def test_a_first_deployment_is_verified_on_an_empty_copy(project: AlembicProject, run: Run) -> None:
    project.database.touch()
    found = verified(project, run, rehearse="auto")
    assert not found["failed"], found
    assert found["applied"] == [] and [entry["name"] for entry in found["plan"]["migrations"]] == ["r1"]
    assert project.database.read_bytes() == b""


def test_branches_are_merged_and_taken_back_to_both_heads(deployed: AlembicProject, run: Run) -> None:
    deployed.revision("a", "r1", ADD_NOTE, DROP_NOTE)
    deployed.revision(
        "b",
        "r1",
        'op.create_table("b", sa.Column("id", sa.Integer(), primary_key=True))',
        'op.drop_table("b")',
    )
    deployed.revision("m", ("a", "b"), "pass", "pass")
    deployed.revision("c", "m", 'op.create_table("c", sa.Column("id", sa.Integer()))', 'op.drop_table("c")')
    found = verified(deployed, run, record=record())
    assert "note" in found["notes"][0] or not found["failed"], found
    done = run(state="applied", record=record(), plan=found["plan"]["migrations"])
    assert deployed.heads() == ["c"], done
    back = run(state="reversed", applied=[["alembic", "a"], ["alembic", "b"]])
    assert back["reversed"] == [["alembic", "c"], ["alembic", "m"]], back
    assert deployed.heads() == ["a", "b"]
    assert "note" in deployed.columns()
    back = run(state="reversed", applied=[["alembic", "a"]])
    assert deployed.heads() == ["a"] and back["reversed"] == [["alembic", "b"]]


# --- nothing live is touched by new code ---


@pytest.mark.parametrize(
    "code",
    [
        "engine.connect().exec_driver_sql('CREATE TABLE stray (id int)')",
        "import sqlite3; sqlite3.connect(os.environ['SHOP_URL'][10:]).execute('CREATE TABLE stray (id int)')",
    ],
)
def test_env_py_cannot_reach_the_live_file(deployed: AlembicProject, run: Run, code: str) -> None:
    deployed.write("alembic/env.py", ENV.replace("with engine", code + "\nwith engine", 1))
    before = deployed.database.read_bytes()
    verified(deployed, run)
    assert deployed.database.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        ('os.environ["SHOP_URL"]', '"sqlite:///" + os.environ["SHOP_OTHER"]'),
        (
            "with engine.connect() as connection:\n",
            "with engine.connect() as connection:\n"
            '    create_engine("sqlite:///" + os.environ["SHOP_OTHER"]).connect()\n',
        ),
        (
            'create_engine(os.environ["SHOP_URL"], ',
            'create_engine("sqlite://", creator=lambda: __import__("sqlite3").connect(os.environ["SHOP_OTHER"]), ',
        ),
    ],
)
def test_another_database_stops_the_process(
    deployed: AlembicProject, run: Run, tmp_path: Path, change: tuple[str, str]
) -> None:
    other = tmp_path / "other.sqlite3"
    deployed.write("alembic/env.py", ENV.replace(*change))
    environment = json.dumps({**deployed.variables, "SHOP_OTHER": str(other)})
    found = verified(deployed, run, environment=environment)
    assert found["failed"] and "instead of the scratch" in found["msg"], found
    assert not other.exists() or other.stat().st_size == 0


def test_writing_down_runs_no_statement(deployed: AlembicProject, run: Run) -> None:
    deployed.revision(
        "r2",
        "r1",
        "op.get_bind().execute(sa.text(\"UPDATE orders SET number = 'x'\"))",
        "op.execute('SELECT 1')",
    )
    scratch = deployed.scratch()
    found = run(state="verified", database=scratch)
    (entry,) = found["plan"]["migrations"]
    assert (entry["reversible"], entry["compatible"], entry["destructive"]) == ("unknown",) * 3
    assert entry["sql"] is None and "asks the database" in entry["why"]
    assert deployed.rows("select number from orders", Path(scratch["path"])) == [("1",), ("2",)]


def test_the_settings_must_name_the_database_that_is_backed_up(deployed: AlembicProject, run: Run) -> None:
    deployed.url = f"sqlite:///{deployed.root}/other.sqlite3"
    failed = run(state="applied")
    assert failed["failed"] and "another database would be migrated than is backed up" in failed["msg"]


# --- what verify finds ---


def test_several_heads(deployed: AlembicProject, run: Run) -> None:
    deployed.revision("a", "r1", "pass")
    deployed.revision("b", "r1", "pass")
    found = verified(deployed, run)
    assert found["failed"] and "several heads (a, b)" in words(found)


def test_a_database_newer_than_the_release(deployed: AlembicProject, run: Run) -> None:
    deployed.rows("update alembic_version set version_num = 'later'")
    found = verified(deployed, run)
    assert found["failed"] and "alembic.later" in words(found) and "older than the database" in words(found)
    failed = run(state="applied")
    assert failed["failed"] and deployed.heads() == ["later"]
    failed = run(state="reversed", applied=[["alembic", "r1"]])
    assert failed["failed"] and "no file of alembic.later" in failed["msg"]


@pytest.mark.parametrize("rehearse", ["auto", "never"])
def test_models_without_a_migration(deployed: AlembicProject, run: Run, rehearse: str) -> None:
    changed = MODELS.replace("\n)\n", '\n    sa.Column("colour", sa.String(9)),\n)\n')
    deployed.write("shop/models.py", changed)
    found = verified(deployed, run, rehearse=rehearse)
    assert found["failed"] and "add column orders.colour" in words(found)
    # With something pending it is seen after that was applied to the copy.
    deployed.add_note()
    deployed.write("shop/models.py", changed.replace('"colour"', '"note"'))
    found = verified(deployed, run, rehearse=rehearse)
    assert not found["failed"], found
    assert any("were not looked for" in note for note in found["notes"]) == (rehearse == "never")
    deployed.write("shop/models.py", changed)
    if rehearse == "auto":
        found = verified(deployed, run, rehearse=rehearse)
        assert found["failed"] and "add column orders.colour" in words(found)


def test_differences_that_the_new_code_does_not_meet_are_notes(deployed: AlembicProject, run: Run) -> None:
    deployed.rows("create table elsewhere (id integer)")
    found = verified(deployed, run)
    assert not found["failed"] and any("elsewhere" in note for note in found["notes"])


def test_a_module_that_cannot_be_imported(deployed: AlembicProject, run: Run) -> None:
    found = verified(deployed, run, import_modules=["shop.wsgi"])
    assert found["failed"] and "shop.wsgi cannot be imported" in words(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise RuntimeError('no settings')", "no settings"),
        ("pass", "without context.run_migrations()"),
        (ENV.replace("target_metadata=metadata", "version_table='versions'"), "'versions'"),
        (ENV + "\n" + ENV, "several databases"),
    ],
)
def test_an_env_py_that_does_not_migrate_one_database(
    project: AlembicProject, run: Run, text: str, said: str
) -> None:
    project.write("alembic/env.py", text)
    found = verified(project, run)
    assert found["failed"] and said in found["msg"], found["msg"]


def test_no_configuration(project: AlembicProject, run: Run) -> None:
    (project.release / "alembic.ini").unlink()
    found = verified(project, run)
    assert found["failed"] and "app_directory" in found["msg"]


def test_revisions_that_a_rollback_left_do_not_stop_older_code(deployed: AlembicProject, run: Run) -> None:
    deployed.add_note()
    found = verified(deployed, run, record=record())
    run(state="applied", plan=found["plan"]["migrations"], record=record())
    # The rollback of the code alone, and the release before.
    path = deployed.root / "deployments" / f"{DEPLOYMENT}.json"
    story = journal(deployed)
    path.write_text(json.dumps({**story, "verdict": "rolled_back", "decision": {"level": "code"}}))
    (deployed.release / "alembic/versions/r2.py").unlink()
    deployed.write("shop/models.py", MODELS)
    found = verified(deployed, run)
    assert not found["failed"], found
    assert found["plan"]["migrations"] == [] and "runs with it" in found["notes"][0]
    assert run(state="applied", plan=[])["changed"] is False
    # A revision of its own beside the one that stays cannot be applied.
    deployed.revision("x", "r1", "pass")
    found = verified(deployed, run)
    assert found["failed"] and "older than the database" in words(found)
    # Nothing else makes what is strange harmless.
    (deployed.release / "alembic/versions/x.py").unlink()
    path.write_text(json.dumps({**story, "verdict": "rolled_back", "decision": {"level": "migrations"}}))
    found = verified(deployed, run)
    assert found["failed"] and "older than the database" in words(found)


# --- failures ---


def test_a_revision_that_fails_half_way_leaves_nothing(deployed: AlembicProject, run: Run) -> None:
    deployed.revision("r2", "r1", ADD_NOTE, DROP_NOTE)
    deployed.revision(
        "r3",
        "r2",
        'op.add_column("orders", sa.Column("a", sa.Integer()))\nop.execute("UPDATE nothing SET a = 1")',
    )
    failed = run(state="applied", record=record())
    assert failed["failed"] and failed["failed_migration"] == ["alembic", "r3"]
    assert failed["done"] == [["alembic", "r2"]] and failed["live_changed"] is True
    assert "its transaction was rolled back" in failed["msg"]
    assert failed["applied"] == [["alembic", "r2"]] and deployed.heads() == ["r2"]
    assert deployed.columns() == ["id", "number", "note"]
    assert journal(deployed)["heads_after"] == {"alembic": ["r2"]}
    failed = run(state="applied")
    assert failed["live_changed"] is False and deployed.columns() == ["id", "number", "note"]


def test_what_remains_without_a_transaction_is_told(deployed: AlembicProject, run: Run) -> None:
    # PRAGMA foreign_keys does nothing within a transaction, so that none is begun around this.
    deployed.revision(
        "r2",
        "r1",
        'op.execute("PRAGMA foreign_keys=OFF")\n'
        'op.add_column("orders", sa.Column("a", sa.Integer()))\nop.execute("UPDATE nothing SET a = 1")',
    )
    failed = run(state="applied")
    assert failed["failed"] and failed["live_changed"] is True
    assert deployed.columns() == ["id", "number", "a"] and deployed.heads() == ["r1"]
    assert (
        failed["failed_operation"]["index"] == 3
        and "nothing SET" in failed["failed_operation"]["description"]
    )
    assert "it is not rolled back as a whole" in failed["msg"], failed["msg"]


def test_death_in_the_middle(deployed: AlembicProject, run: Run) -> None:
    deployed.revision("r2", "r1", ADD_NOTE, DROP_NOTE)
    deployed.revision("r3", "r2", 'op.drop_column("orders", "note")\nimport os\nos._exit(7)')
    failed = run(state="applied", record=record())
    assert failed["failed"] and "exit code 7" in failed["msg"]
    assert failed["applied"] == [["alembic", "r2"]] and failed["failed_migration"] == ["alembic", "r3"]
    assert deployed.heads() == ["r2"] and "note" in deployed.columns()


def test_an_env_py_that_does_not_commit(deployed: AlembicProject, run: Run) -> None:
    deployed.add_note()
    broken = ENV.replace("engine = create", "from sqlalchemy import event\nengine = create").replace(
        "    with context.begin_transaction():\n        context.run_migrations()",
        "    transaction = connection.begin()\n    context.configure(connection=connection)\n"
        "    context.run_migrations()\n    transaction.rollback()",
    )
    deployed.write("alembic/env.py", broken)
    failed = run(state="applied")
    assert failed["failed"] and "instead of alembic.r2" in failed["msg"], failed["msg"]
    assert deployed.heads() == ["r1"]


def test_another_plan_than_the_verified_one_is_refused(deployed: AlembicProject, run: Run) -> None:
    deployed.add_note()
    found = verified(deployed, run)
    deployed.revision("r3", "r2", "pass")
    failed = run(state="applied", plan=found["plan"]["migrations"])
    assert failed["failed"] and "alembic.r3" in failed["msg"] and deployed.heads() == ["r1"]


@pytest.mark.parametrize(
    ("back", "said"),
    [(None, "it has none"), ("raise NotImplementedError", "it raises"), ("pass", "it does nothing")],
)
def test_no_way_back_is_refused_before_the_first_step(
    deployed: AlembicProject, run: Run, back: str | None, said: str
) -> None:
    deployed.revision("r2", "r1", ADD_NOTE, back)
    deployed.revision("r3", "r2", 'op.create_table("c", sa.Column("id", sa.Integer()))', 'op.drop_table("c")')
    found = verified(deployed, run, record=record())
    judged = {entry["name"]: entry["reversible"] for entry in found["plan"]["migrations"]}
    assert judged == {"r2": "no", "r3": "yes"}
    run(state="applied")
    failed = run(state="reversed", applied=[["alembic", "r1"]])
    assert failed["failed"] and "alembic.r2 cannot be reversed" in failed["msg"] and said in failed["msg"]
    assert deployed.heads() == ["r3"] and deployed.rows("select count(*) from c") == [(0,)]


def test_what_was_written_is_not_lost_without_consent(deployed: AlembicProject, run: Run) -> None:
    deployed.revision(
        "r2",
        "r1",
        'op.add_column("orders", sa.Column("state", sa.String(9), nullable=False, server_default="n:w"))\n'
        'op.create_table("lines", sa.Column("id", sa.Integer()))',
        'op.drop_table("lines")\nop.drop_column("orders", "state")',
    )
    found = verified(deployed, run, record=record())
    run(state="applied", plan=found["plan"]["migrations"], record=record())
    assert run(True, state="reversed", applied=[["alembic", "r1"]])["lost"]["columns"] == {}
    deployed.rows("update orders set state = 'paid' where id = 2")
    deployed.rows("insert into lines values (1)")
    failed = run(state="reversed", applied=[["alembic", "r1"]])
    assert (
        failed["failed"]
        and "1 rows of lines" in failed["msg"]
        and "1 values of orders.state" in failed["msg"]
    )
    assert deployed.heads() == ["r2"]
    done = run(state="reversed", applied=[["alembic", "r1"]], consent=True)
    assert not done["failed"] and deployed.heads() == ["r1"]


def test_what_is_not_recorded_counts_as_a_loss(deployed: AlembicProject, run: Run) -> None:
    deployed.add_note()
    run(state="applied")
    failed = run(state="reversed", applied=[["alembic", "r1"]])
    assert failed["failed"] and "what alembic.r2 holds" in failed["msg"] and deployed.heads() == ["r2"]


def test_the_table_of_versions_is_all_that_base_leaves(deployed: AlembicProject, run: Run) -> None:
    assert "empty" in run(state="reversed", applied=[])["msg"]
    assert "orders" in {row[0] for row in deployed.rows("select name from sqlite_master")}
    assert ORDERS in (deployed.release / "alembic/versions/r1.py").read_text()
