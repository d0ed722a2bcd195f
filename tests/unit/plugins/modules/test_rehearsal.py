# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Migrations rehearsed on a copy by a real Django project: on SQLite, and on a real PostgreSQL server."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils._rehearse import judge, merge, wanted
from ansible_collections.runbook.deploy.plugins.modules.migration import main
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_project import (
    MODELS,
    DjangoProject,
)
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_servers import (
    PASSWORD,
    Server,
    ServerProject,
    serving,
)

DEPLOYMENT = "20261121T013700-ab12"
FIELD = 'migrations.AddField("order", "extra", models.CharField(max_length=9, null=True))'
SETTINGS = 'EMAIL_HOST = "127.0.0.1"\nEMAIL_PORT = 25\nEMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"\n'


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("postgresql") as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> DjangoProject:
    """A project with its first migrations and two orders in the live database."""
    if request.param == "sqlite":
        made: DjangoProject = DjangoProject(tmp_path / "srv")
    else:
        running = request.getfixturevalue("server")
        running.clean()
        made = ServerProject(tmp_path / "srv", running)
    made.manage("migrate", "--verbosity", "0")
    statement = "insert into orders_order (number) values ('one'), ('two')"
    if isinstance(made, ServerProject):
        made.server.sql(f"SET ROLE app; {statement}")
    else:
        made.rows(statement)
    return made


@pytest.fixture
def rehearse(project: DjangoProject, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Verify with a rehearsal on a fresh copy; the answer has ``failed`` True when it failed."""

    def call(**options: Any) -> dict[str, Any]:
        if isinstance(project, ServerProject):
            running = project.server
            running.sql(f"DROP DATABASE {running.scratch} WITH (FORCE)", "postgres")
            running.sql(f"CREATE DATABASE {running.scratch} TEMPLATE shop OWNER app", "postgres")
            scratch: dict[str, Any] = project.scratch_database
            live = {**running.database, "password": PASSWORD}
        else:
            scratch = {"engine": "sqlite", "path": str(project.scratch())}
            live = {"engine": "sqlite", "path": str(project.database)}
        arguments = {
            "state": "verified",
            "root": str(project.root),
            "release": project.name,
            "environment_path": str(project.environment),
            "environment": json.dumps(project.variables),
            "database": scratch,
            "live_database": live,
            "rehearse": "auto",
            "record": {"id": DEPLOYMENT, "token": "t" * 16, "host": "web1", "primary": False, "about": {}},
            **options,
        }
        before = project.rows("select app, name from django_migrations order by id")
        capsys.readouterr()
        with patch_module_args(arguments), pytest.raises(SystemExit):
            main()
        answer = {"failed": False, **json.loads(capsys.readouterr().out)}
        # Whatever happened, the live database is as it was.
        assert project.rows("select app, name from django_migrations order by id") == before
        assert [row[0] for row in project.rows("select number from orders_order order by id")] == [
            "one",
            "two",
        ]
        return answer

    return call


def models(project: DjangoProject, fields: str) -> None:
    """The models that go with the migrations, so that nothing is missing."""
    project.write("orders/models.py", MODELS + "".join(f"    {line}\n" for line in fields.splitlines()))


def journal(project: DjangoProject) -> dict[str, Any]:
    return json.loads((project.root / "deployments" / f"{DEPLOYMENT}.json").read_text())


def test_an_addition_goes_and_comes_back(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]]
) -> None:
    project.migration("0002_extra", "0001_initial", FIELD)
    models(project, "extra = models.CharField(max_length=9, null=True)")
    answer = rehearse()
    assert not answer["failed"], answer
    (found,) = answer["plan"]["migrations"]
    assert (found["reversible"], found["destructive"]) == ("yes", "no")
    assert found["rehearsed"]["schema"] == found["rehearsed"]["rows"] == []
    assert found["rehearsed"]["forward_seconds"] > 0 and found["rehearsed"]["backward_seconds"] > 0
    if isinstance(project, ServerProject):
        assert {"table": "orders_order", "lock": "AccessExclusiveLock"} in found["rehearsed"]["locks"]
    phases = [entry for entry in journal(project)["phases"] if entry["phase"] == "rehearse"]
    assert [entry["state"] for entry in phases] == ["done"]
    assert phases[0]["result"]["forward_seconds"] == answer["plan"]["rehearsal"]["forward_seconds"]


def test_a_data_migration_that_puts_everything_back_is_proved(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]]
) -> None:
    code = (
        "def there(apps, editor):\n    apps.get_model('orders', 'Order').objects.filter(number='one').update(number='1')\n"
        "def back(apps, editor):\n    apps.get_model('orders', 'Order').objects.filter(number='1').update(number='one')\n"
    )
    project.migration("0002_data", "0001_initial", "migrations.RunPython(there, back)", code=code)
    assert rehearse(rehearse="never")["plan"]["destructive"] == "unknown"
    answer = rehearse()
    assert not answer["failed"], answer
    assert (answer["plan"]["reversible"], answer["plan"]["destructive"]) == ("yes", "no")
    # What the old code makes of it is another question, which no rehearsal answers.
    assert answer["plan"]["compatible"] == "unknown"


def test_a_reversal_that_exits_zero_and_has_thrown_rows_away(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]]
) -> None:
    code = (
        "def there(apps, editor):\n    apps.get_model('orders', 'Order').objects.filter(number='one').delete()\n"
        "def back(apps, editor):\n    pass\n"
    )
    project.migration("0002_data", "0001_initial", "migrations.RunPython(there, back)", code=code)
    (found,) = rehearse()["plan"]["migrations"]
    assert (found["reversible"], found["destructive"]) == ("no", "yes")
    assert found["rehearsed"]["rows"] == ["table orders_order: 1 rows, was 2 rows"]


def test_a_reversal_that_leaves_another_schema(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]]
) -> None:
    sql = '"create table orders_left (id integer)", "select 1"'
    project.migration("0002_sql", "0001_initial", f"migrations.RunSQL({sql})")
    (found,) = rehearse()["plan"]["migrations"]
    assert found["reversible"] == "no"
    assert any("orders_left was not there" in text for text in found["rehearsed"]["schema"])


def test_a_dropped_column_cannot_bring_its_values_back(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]]
) -> None:
    project.migration("0002_gone", "0001_initial", 'migrations.RemoveField("order", "number")')
    project.write(
        "orders/models.py", MODELS.replace("    number = models.CharField(max_length=20)", "    pass")
    )
    (found,) = rehearse()["plan"]["migrations"]
    assert (found["reversible"], found["destructive"]) == ("no", "yes")


def test_of_three_the_first_cannot_be_reversed(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]]
) -> None:
    project.migration(
        "0002_data",
        "0001_initial",
        "migrations.RunPython(there)",
        code="def there(apps, editor):\n    pass\n",
    )
    project.migration("0003_extra", "0002_data", FIELD)
    project.migration("0004_more", "0003_extra", FIELD.replace("extra", "more"))
    models(
        project,
        "extra = models.CharField(max_length=9, null=True)\nmore = models.CharField(max_length=9, null=True)",
    )
    answer = rehearse()
    assert not answer["failed"], answer
    assert [entry["reversible"] for entry in answer["plan"]["migrations"]] == ["no", "yes", "yes"]
    assert [entry["rehearsed"]["backward_seconds"] is None for entry in answer["plan"]["migrations"]] == [
        True,
        False,
        False,
    ]
    assert answer["plan"]["reversible"] == "no"


def test_a_reversal_that_fails_is_no_way_back(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]]
) -> None:
    code = (
        "def there(apps, editor):\n    pass\ndef back(apps, editor):\n    raise ValueError('no way back')\n"
    )
    project.migration("0002_data", "0001_initial", "migrations.RunPython(there, back)", code=code)
    answer = rehearse()
    assert not answer["failed"], answer
    (found,) = answer["plan"]["migrations"]
    assert found["reversible"] == "no"
    assert "no way back" in found["rehearsed"]["failed"]


def test_a_migration_that_fails_ends_the_deployment_before_anything_live(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]]
) -> None:
    code = "def there(apps, editor):\n    raise ValueError('half way')\n"
    project.migration("0002_data", "0001_initial", f"{FIELD}, migrations.RunPython(there)", code=code)
    models(project, "extra = models.CharField(max_length=9, null=True)")
    answer = rehearse()
    assert answer["failed"]
    assert (
        "orders.0002_data failed in the rehearsal" in answer["msg"]
        and "nothing live was touched" in answer["msg"]
    )
    assert "half way" in answer["msg"] + answer["evidence"]
    assert [e["state"] for e in journal(project)["phases"] if e["phase"] == "rehearse"] == ["failed"]


def test_what_takes_too_long_ends_it_too(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]]
) -> None:
    code = "import time\ndef there(apps, editor):\n    time.sleep(60)\n"
    project.migration("0002_data", "0001_initial", "migrations.RunPython(there)", code=code)
    answer = rehearse(time_limit=4)
    assert answer["failed"]
    assert "app_migrate_time_limit" in answer["msg"] and "nothing live was touched" in answer["msg"]


def test_mail_and_connections_go_nowhere(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]]
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        seen: list[Any] = []
        stop = threading.Event()

        def accept() -> None:
            while not stop.is_set():
                try:
                    seen.append(listener.accept())
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        project.append_settings(SETTINGS.replace("25", str(port)))
        code = (
            "def there(apps, editor):\n    import socket, urllib.request\n    from django.core.mail import send_mail\n"
            "    send_mail('s', 'b', 'a@example.org', ['b@example.org'])\n"
            f"    for way in (lambda: socket.create_connection(('127.0.0.1', {port}), 2),\n"
            f"                lambda: urllib.request.urlopen('http://127.0.0.1:{port}/', timeout=2)):\n"
            "        try:\n            way()\n        except OSError:\n            pass\n"
        )
        project.migration("0002_data", "0001_initial", "migrations.RunPython(there)", code=code)
        answer = rehearse()
        stop.set()
        thread.join()
    assert not answer["failed"], answer
    assert seen == []
    assert f"connections to 127.0.0.1:{port} were refused while migrations were rehearsed" in answer["notes"]
    assert answer["plan"]["rehearsal"]["off"] == ["mail", "network"]


def test_a_variable_of_the_rehearsal_reaches_it_and_is_no_part_of_the_answer(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]]
) -> None:
    code = "import os\ndef there(apps, editor):\n    assert os.environ['BROKER'] == 'nowhere-at-all'\n"
    project.migration("0002_data", "0001_initial", "migrations.RunPython(there)", code=code)
    answer = rehearse(rehearse_environment=json.dumps({"BROKER": "nowhere-at-all"}))
    assert not answer["failed"], answer
    assert "nowhere-at-all" not in json.dumps(
        {key: value for key, value in answer.items() if key != "invocation"}
    )


def test_when_a_rehearsal_is_held() -> None:
    assert wanted("auto", [1], [["a", "b"]])
    assert not wanted("auto", [1], [])
    assert wanted("always", [1], [])
    assert not wanted("always", [], [["a", "b"]])
    assert not wanted("never", [1], [["a", "b"]])


@pytest.mark.parametrize(
    ("judged", "found", "after"),
    [
        (("unknown", "unknown"), (1.0, [], []), ("yes", "no")),
        (("yes", "no"), (1.0, [], []), ("yes", "no")),
        # What was judged bad stays so: other rows may be there when it counts.
        (("yes", "yes"), (1.0, [], []), ("yes", "yes")),
        (("no", "unknown"), (None, [], []), ("no", "unknown")),
        (("yes", "no"), (1.0, ["x"], []), ("no", "no")),
        (("yes", "no"), (1.0, [], ["x"]), ("no", "yes")),
        (("unknown", "unknown"), (None, [], []), ("unknown", "unknown")),
    ],
)
def test_what_a_rehearsal_proves(judged: Any, found: Any, after: Any) -> None:
    migration = {
        "app": "a",
        "name": "b",
        "compatible": "yes",
        "reversible": judged[0],
        "destructive": judged[1],
    }
    seen = {"backward_seconds": found[0], "schema": found[1], "rows": found[2]}
    answer = judge(migration, seen)
    assert (answer["reversible"], answer["destructive"]) == after
    plan = merge({"migrations": [migration]}, {("a", "b"): seen})
    assert (plan["reversible"], plan["destructive"]) == after
    assert plan["migrations"][0]["rehearsed"]["reversible"] == after[0]
    assert merge({"migrations": [migration]}, {})["migrations"] == [migration]
