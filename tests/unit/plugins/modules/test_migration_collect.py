# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Static files that are collected while a release is verified, and published when their turn comes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.modules import migration, static_files
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.counted_project import CountedProject

DEPLOYMENT = "20261122T013700-ab12"
COLLECTED = ".collected.json"
STORAGE = """\
from django.contrib.staticfiles.storage import ManifestStaticFilesStorage


class Storage(ManifestStaticFilesStorage):
    manifest_strict = False
"""
# It could send it anywhere.
WRITES = STORAGE + "\n    def save_manifest(self):\n        super().save_manifest()\n"
COMMAND = "from django.contrib.staticfiles.management.commands.collectstatic import Command  # noqa: F401\n"
# Slow, and with its time in a file.
FINDER = """\
import os
import time
from django.contrib.staticfiles.finders import AppDirectoriesFinder


class Finder(AppDirectoriesFinder):
    def list(self, ignore_patterns):
        open(os.environ["SHOP_DATABASE"] + ".begun", "w").close()
        time.sleep({seconds})
        open(os.environ["SHOP_DATABASE"] + ".ended", "w").close()
        return super().list(ignore_patterns)
"""
SLOW = 'STATICFILES_FINDERS = ["shop.finders.Finder"]\n'
APPS = """\
from django.apps import AppConfig


class OrdersConfig(AppConfig):
    name = "orders"

    def ready(self):
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("insert into orders_order (number) values ('at every start')")
"""
NOTED = """\
def noted(apps, schema_editor):
    import os

    assert os.path.exists(os.environ["SHOP_DATABASE"] + ".ended"), "still collecting"


"""


class Host(CountedProject):
    """The modules ``migration`` and ``static_files`` in such a project."""

    def verify(self, **options: Any) -> dict[str, Any]:
        wanted = {"state": "verified", "collect": True, "deployment": DEPLOYMENT}
        wanted.update(database=self.scratch(), live_database=self.live)
        return self.run(migration, **{**wanted, **options})

    def publish(self, **options: Any) -> dict[str, Any]:
        return self.run(static_files, **{"deployment": DEPLOYMENT, **options})

    @property
    def collected(self) -> bool:
        return (self.project.release / COLLECTED).exists()


@pytest.fixture
def host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Host:
    return Host(tmp_path / "srv", capsys)


def files(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_what_was_collected_is_published_and_is_what_collectstatic_makes_alone(host: Host) -> None:
    assert not host.verify()["failed"]
    assert host.collected and not (host.project.root / "shared" / "static").exists()
    early = files(host.project.release / "staticfiles")
    done = host.publish()
    assert not done["failed"], done
    assert done["started"] == 0
    assert (done["copied"], done["post_processed"], done["published"]) == (2, 2, 5)
    assert done["seconds"]["collect"] > 0
    assert (host.project.release / ".complete").exists() and not host.collected

    (host.project.release / ".complete").unlink()
    alone = host.publish()
    assert alone["started"] == 1
    assert files(host.project.release / "staticfiles") == early
    assert alone["static_root"] == done["static_root"]


def test_another_run_collects_itself(host: Host) -> None:
    host.verify()
    assert host.collected
    done = host.publish(deployment="20261122T013800-ab12")
    assert (done["failed"], done["started"]) == (False, 1)


def test_a_process_with_other_variables_collects_itself(host: Host) -> None:
    host.verify()
    other = {**host.project.variables, "SHOP_THEME": "dark"}
    assert host.publish(environment=json.dumps(other))["started"] == 1


def test_nothing_is_made_with_the_variables_of_a_rehearsal(host: Host) -> None:
    lost = json.dumps({"SHOP_BROKER": "nowhere"})
    assert host.verify(rehearse="auto", rehearse_environment=lost)["started"] == 1
    assert not host.collected
    assert host.verify(rehearse="auto", rehearse_environment="{}")["started"] == 2
    assert host.collected


def test_commands_that_may_make_what_is_collected_are_followed_by_collectstatic(host: Host) -> None:
    host.verify()
    assert host.publish(commands_before=[["true"]])["started"] == 1


@pytest.mark.parametrize(
    ("options", "started"), [({"collect": False}, 1), ({"deployment": ""}, 1), ({}, 2)], ids=str
)
def test_only_where_it_is_wanted_and_there_is_a_run(
    host: Host, options: dict[str, Any], started: int
) -> None:
    assert host.verify(**options)["started"] == started


def test_a_complete_release_is_not_collected_again(host: Host) -> None:
    host.publish()
    assert host.verify()["started"] == 1


@pytest.mark.parametrize(
    ("case", "early"), [("derived", True), ("writes", False), ("command", False), ("elsewhere", False)]
)
def test_only_where_nothing_but_files_of_the_release_is_written(host: Host, case: str, early: bool) -> None:
    project = host.project
    if case in ("derived", "writes"):
        project.write("shop/storage.py", STORAGE if case == "derived" else WRITES)
        project.append_settings('STORAGES["staticfiles"] = {"BACKEND": "shop.storage.Storage"}\n')
    elif case == "command":
        project.write("orders/management/__init__.py", "")
        project.write("orders/management/commands/__init__.py", "")
        project.write("orders/management/commands/collectstatic.py", COMMAND)
        # The first application that has a command of this name is the one.
        project.append_settings("INSTALLED_APPS.sort(key=lambda name: name != 'orders')\n")
    else:
        project.append_settings(f"STATIC_ROOT = {str(project.root / 'shared' / 'collected')!r}\n")
    found = host.verify()
    assert not found["failed"], found
    assert host.collected == early
    assert any(project.root.rglob("site.*.css")) == early
    assert host.publish()["started"] == (0 if early else 1)


def test_a_failure_is_told_by_who_publishes(host: Host) -> None:
    host.project.write("orders/static/orders/site.css", "body { background: url(missing.svg) }\n")
    assert not host.verify()["failed"]
    assert not host.collected
    done = host.publish()
    assert done["failed"] and "missing.svg" in done["msg"]


def test_code_that_writes_when_it_starts_has_the_copy(host: Host) -> None:
    host.project.write("orders/apps.py", APPS)
    before = host.project.database.read_bytes()
    found = host.verify()
    assert found["started"] == 2
    assert host.project.database.read_bytes() == before


def test_a_release_that_fails_its_checks_does_not_wait_for_its_static_files(host: Host) -> None:
    host.project.write("shop/finders.py", FINDER.format(seconds=600))
    host.project.append_settings(SLOW)
    host.project.note()
    (host.project.release / "orders" / "migrations" / "0002_note.py").unlink()
    begun = time.monotonic()
    found = host.verify()
    assert found["failed"] and "model changes" in found["msg"], found
    assert Path(f"{host.project.database}.begun").exists()
    assert time.monotonic() - begun < 60
    assert not host.collected
    assert not Path(f"{host.project.database}.ended").exists()


def test_the_copy_is_rehearsed_on_when_nobody_else_has_it(host: Host) -> None:
    host.project.write("shop/finders.py", FINDER.format(seconds=3))
    host.project.append_settings(SLOW)
    host.project.migration(
        "0002_noted", "0001_initial", "migrations.RunPython(noted, migrations.RunPython.noop)", code=NOTED
    )
    found = host.verify(rehearse="always")
    assert not found["failed"], found
    assert found["plan"]["rehearsal"]["forward_seconds"] is not None
    assert host.collected


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be told from the application's user")
def test_nothing_of_it_stays_the_users(host: Host) -> None:
    host.verify()
    assert {path.stat().st_uid for path in host.project.release.rglob("*")} == {0}
    assert {path.stat().st_mode & 0o022 for path in (host.project.release / "staticfiles").rglob("*")} == {0}
