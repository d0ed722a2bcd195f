# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Migrations rehearsed on a copy by a real Django project: on SQLite, and on real PostgreSQL and MariaDB servers."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._rehearse import (
    blocking,
    judge,
    merge,
    require_short,
    wanted,
)
from ansible_collections.runbook.deploy.plugins.modules.migration import main
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_project import (
    MODELS,
    NOTE,
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
def postgresql() -> Iterator[Server]:
    with serving("postgresql") as running:
        yield running


@pytest.fixture(scope="module")
def mysql() -> Iterator[Server]:
    with serving("mysql") as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> DjangoProject:
    """A project with its first migrations and two orders in the live database."""
    if request.param == "sqlite":
        made: DjangoProject = DjangoProject(tmp_path / "srv")
    else:
        made = ServerProject(tmp_path / "srv", request.getfixturevalue(request.param))
    made.fill("one", "two")
    return made


def copy(running: Server) -> None:
    """Make the scratch database a copy of the live one."""
    if running.engine == "postgresql":
        running.sql(f"DROP DATABASE {running.scratch} WITH (FORCE)", "postgres")
        running.sql(f"CREATE DATABASE {running.scratch} TEMPLATE shop OWNER app", "postgres")
        return
    running.sql(f"DROP DATABASE {running.scratch}; CREATE DATABASE {running.scratch}", None)
    running.sql(running.dump(), running.scratch)  # type: ignore[attr-defined]


@pytest.fixture
def rehearse(project: DjangoProject, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Verify with a rehearsal on a fresh copy; the answer has ``failed`` True when it failed."""

    def call(**options: Any) -> dict[str, Any]:
        if isinstance(project, ServerProject):
            running = project.server
            copy(running)
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
    if isinstance(project, ServerProject) and project.server.engine == "postgresql":
        assert {"table": "orders_order", "lock": "AccessExclusiveLock"} in found["rehearsed"]["locks"]
    phases = [entry for entry in journal(project)["phases"] if entry["phase"] == "rehearse"]
    assert [entry["state"] for entry in phases] == ["done"]
    assert phases[0]["result"]["forward_seconds"] == answer["plan"]["rehearsal"]["forward_seconds"]


@pytest.mark.parametrize("project", ["postgresql"], indirect=True)
def test_a_migration_in_many_transactions_is_watched_from_outside(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]]
) -> None:
    held = "BEGIN; LOCK TABLE orders_order IN {mode} MODE; SELECT pg_sleep(1); COMMIT"
    steps = [
        f"migrations.RunSQL([{word!r}], migrations.RunSQL.noop)"
        for mode in ("SHARE", "ACCESS EXCLUSIVE", "ROW EXCLUSIVE")
        for word in held.format(mode=mode).split("; ")
    ]
    project.migration("0002_extra", "0001_initial", ", ".join(steps), atomic=False)
    answer = rehearse()
    assert not answer["failed"], answer["msg"]
    (found,) = answer["plan"]["migrations"]
    # The strongest of each table; what is weaker than that came before and after.
    assert found["rehearsed"]["locks"] == [{"table": "orders_order", "lock": "AccessExclusiveLock"}]


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


def test_rows_that_are_gone_are_not_laid_to_migrations_before(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]]
) -> None:
    project.migration("0002_extra", "0001_initial", FIELD)
    models(project, "extra = models.CharField(max_length=9, null=True)")
    code = (
        "def there(apps, editor):\n    apps.get_model('orders', 'Order').objects.filter(number='one').delete()\n"
        "def back(apps, editor):\n    pass\n"
    )
    project.migration("0003_data", "0002_extra", "migrations.RunPython(there, back)", code=code)
    first, second = rehearse()["plan"]["migrations"]
    assert (second["reversible"], second["destructive"]) == ("no", "yes")
    assert (first["reversible"], first["destructive"]) == ("yes", "no")
    assert first["rehearsed"]["backward_seconds"] is None


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


@pytest.mark.long
def test_what_takes_too_long_ends_it_too(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]]
) -> None:
    code = "import time\ndef there(apps, editor):\n    time.sleep(60)\n"
    project.migration("0002_data", "0001_initial", "migrations.RunPython(there)", code=code)
    answer = rehearse(time_limit=4)
    assert answer["failed"]
    assert "app_migrate_time_limit" in answer["msg"] and "nothing live was touched" in answer["msg"]


@contextlib.contextmanager
def listening() -> Iterator[tuple[int, list[Any]]]:
    """A port that takes connections and packets, and a list that gets each of them."""
    seen: list[Any] = []
    stop = threading.Event()
    with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as packets:
        stream.bind(("127.0.0.1", 0))
        packets.bind(stream.getsockname())
        stream.listen()

        def look(listener: socket.socket, take: Callable[[], Any]) -> None:
            listener.settimeout(0.1)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    seen.append(take())

        threads = [
            threading.Thread(target=look, args=(stream, stream.accept)),
            threading.Thread(target=look, args=(packets, lambda: packets.recvfrom(99))),
        ]
        for thread in threads:
            thread.start()
        try:
            yield stream.getsockname()[1], seen
        finally:
            stop.set()
            for thread in threads:
                thread.join()


WAYS = """\
def there(apps, editor):
    import contextlib, socket, urllib.request
    from django.core.mail import send_mail
    send_mail('s', 'b', 'a@example.org', ['b@example.org'])
    ways = [
        lambda: socket.create_connection(('127.0.0.1', {port}), 2),
        lambda: urllib.request.urlopen('http://127.0.0.1:{port}/', timeout=2),
        lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port})),
    ]
    for way in ways:
        with contextlib.suppress(OSError):
            way()
"""
PROGRAM = """\
    import subprocess, sys
    program = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))"
    subprocess.run([sys.executable, '-c', program], stderr=subprocess.DEVNULL)
"""


def test_mail_and_connections_go_nowhere(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]]
) -> None:
    with listening() as (port, seen):
        project.append_settings(SETTINGS.replace("25", str(port)))
        code = WAYS.format(port=port)
        project.migration("0002_data", "0001_initial", "migrations.RunPython(there)", code=code)
        answer = rehearse()
    assert not answer["failed"], answer
    assert seen == []
    assert f"connections to 127.0.0.1:{port} were refused while migrations were rehearsed" in answer["notes"]
    assert answer["plan"]["rehearsal"]["off"] == ["mail", "network"]


@pytest.mark.parametrize("project", ["sqlite", "postgresql"], indirect=True)
def test_without_a_network_a_program_gets_nowhere_either(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]]
) -> None:
    if isinstance(project, ServerProject):
        project.configure(HOST=str(project.server.directory))
    with listening() as (port, seen):
        code = (WAYS + PROGRAM).format(port=port)
        project.migration("0002_data", "0001_initial", f"{FIELD}, migrations.RunPython(there)", code=code)
        models(project, "extra = models.CharField(max_length=9, null=True)")
        answer = rehearse()
    assert not answer["failed"], answer
    if answer["plan"]["rehearsal"]["network"] != "namespace":
        pytest.skip("this system gives no process a network namespace of its own")
    assert seen == []
    # Nothing but the network is missing: it went back, too, as far as it can.
    assert answer["plan"]["migrations"][0]["rehearsed"]["forward_seconds"] > 0


NEEDS = "def there(apps, editor):\n    import socket\n    socket.create_connection(('{host}', 9), 2)\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
@pytest.mark.parametrize("project", ["sqlite", "mysql"], indirect=True)
def test_a_migration_that_needs_a_service_is_judged_by_its_operations(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]], host: str
) -> None:
    project.migration("0002_extra", "0001_initial", FIELD)
    models(project, "extra = models.CharField(max_length=9, null=True)")
    code = NEEDS.format(host=host) + "def back(apps, editor):\n    pass\n"
    project.migration("0003_data", "0002_extra", "migrations.RunPython(there, back)", code=code)
    answer = rehearse()
    assert not answer["failed"], answer
    first, second = answer["plan"]["migrations"]
    assert first["rehearsed"]["backward_seconds"] is None and "rehearsed" not in second
    assert (second["reversible"], second["destructive"]) == ("yes", "unknown")
    assert any(
        f"ended at orders.0003_data, which failed without a connection to {host}:9" in n
        for n in answer["notes"]
    )
    demanded = rehearse(rehearse="always")
    assert demanded["failed"]
    assert f"it tried {host}:9" in demanded["msg"] and "app_migrate_rehearse_environment" in demanded["msg"]


CELERY = """\
from celery import Celery
app = Celery("shop", broker="redis://127.0.0.1:{port}/0", backend="redis://127.0.0.1:{port}/1")
@app.task
def told(number):
    open({path!r}, "w").write(number)
"""


@pytest.mark.parametrize("project", ["sqlite"], indirect=True)
def test_tasks_go_nowhere_and_nobody_runs_them(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    if importlib.util.find_spec("celery") is None:
        pytest.skip("Celery is not installed beside pytest; install requirements-dev.txt")
    with listening() as (port, seen):
        project.write("shop/celery.py", CELERY.format(port=port, path=str(tmp_path / "run")))
        project.write("shop/__init__.py", "from .celery import app\n")
        project.append_settings(f"CELERY_BROKER_URL = 'redis://127.0.0.1:{port}/0'\n")
        code = "def there(apps, editor):\n    from shop.celery import told\n    told.delay('one')\n"
        project.migration("0002_data", "0001_initial", "migrations.RunPython(there)", code=code)
        answer = rehearse(rehearse="always")
    assert not answer["failed"], answer
    assert seen == [] and not (tmp_path / "run").exists()
    assert "broker" in answer["plan"]["rehearsal"]["off"]


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


def test_what_would_keep_visitors_waiting_is_measured_and_held_against_the_limit(
    project: DjangoProject, rehearse: Callable[..., dict[str, Any]]
) -> None:
    # A table is locked by the first operation until the slow second one has ended; MySQL copies it for the new type.
    code = "import time\ndef there(apps, editor):\n    time.sleep(1.1)\n"
    operations = (
        "migrations.AlterField('order', 'number', models.TextField()), migrations.RunPython(there, there)"
    )
    project.migration("0002_slow", "0001_initial", operations, code=code)
    project.migration("0003_note", "0002_slow", NOTE)
    longer = MODELS.replace("models.CharField(max_length=20)", "models.TextField()")
    project.write(
        "orders/models.py", longer + "\n\nclass Note(models.Model):\n    text = models.TextField()\n"
    )
    answer = rehearse()
    found = answer["plan"]["rehearsal"]["blocking"]
    assert [(entry["migration"], entry["tables"]) for entry in found] == [
        ("orders.0002_slow", ["orders_order"])
    ]
    assert found[0]["seconds"] >= 1.1
    assert any("visitors wait for orders_order" in note for note in answer["notes"])
    refused = rehearse(blocking_limit=1)
    assert refused["failed"] and "app_migrate_blocking_limit of 1 s" in refused["msg"]
    assert "orders.0002_slow" in refused["msg"] and "nothing live was touched" in refused["msg"]


def test_only_locks_that_somebody_waits_for_count_and_the_longest_is_named() -> None:
    def migration(name: str, seconds: float, locks: list[str], known: list[str]) -> dict[str, Any]:
        told = {"forward_seconds": seconds, "locks": [{"table": "t", "lock": lock} for lock in locks]}
        return {
            "app": "a",
            "name": name,
            "locks": [{"table": "t", "lock": k} for k in known],
            "rehearsed": told,
        }

    plan = [
        migration("short", 2.0, ["ShareLock"], []),
        migration("long", 9.0, ["AccessExclusiveLock"], ["ACCESS EXCLUSIVE"]),
        migration("copied", 3.0, [], ["COPY"]),
        migration("beside", 99.0, ["ShareUpdateExclusiveLock"], ["INPLACE", "INSTANT", "ROW"]),
        {"app": "a", "name": "unseen", "locks": [{"table": "t", "lock": "COPY"}]},
    ]
    found = blocking(plan)
    assert [entry["migration"] for entry in found] == ["a.long", "a.copied", "a.short"]
    seen = {"rehearsal": {"blocking": found}}
    require_short(seen, 9.0)
    require_short(seen, 0)
    require_short({}, 1.0)
    with pytest.raises(
        Problem, match=r"a\.long took 9\.0 s .* keeps t locked .* app_migrate_blocking_limit of 8 s"
    ):
        require_short(seen, 8.0)
