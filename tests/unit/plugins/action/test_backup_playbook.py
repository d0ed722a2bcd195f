# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/backup.yml on this machine, with SQLite and a real server that speaks S3: taken, copied, lost, fetched, restored for a trial."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _store_session
from ansible_collections.runbook.deploy.plugins.module_utils._environment import ask_interpreter
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.object_store import KEYS, s3_server

pytest.importorskip("boto3", reason="boto3 is not installed here: make venv")
pytest.importorskip("moto.server", reason="moto[server] is not installed here: make venv")

PROJECT = Path(__file__).resolve().parents[4]
BUCKET = "backups"


@pytest.fixture(scope="module")
def moto() -> Iterator[int]:
    with s3_server() as port:
        yield port


class Site:
    """An application with a database, and an inventory that names it and the store at *port*."""

    def __init__(self, directory: Path, port: int) -> None:
        import boto3

        self.directory, self.root = directory, directory / "app"
        for name in ("shared", "environments", "backups", "deployments"):
            (self.root / name).mkdir(parents=True)
        self.database = self.root / "shared" / "db.sqlite3"
        self.write(
            "CREATE TABLE note (id integer PRIMARY KEY, body text)",
            "INSERT INTO note VALUES (1, 'x'), (2, 'y')",
        )
        # boto3 is beside pytest, so that no package index is needed.
        own = _store_session.environment_of(Layout(self.root), ask_interpreter(sys.executable))
        (own / "bin").mkdir(parents=True)
        (own / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (own / "bin" / "python").chmod(0o755)
        (own / ".built").touch()
        names = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"}
        self.client = boto3.session.Session().client(
            "s3", aws_access_key_id=KEYS["access_key"], aws_secret_access_key=KEYS["secret_key"], **names
        )
        self.client.create_bucket(Bucket=BUCKET)
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "app_name": "shop",
            "app_stage": "production",
            "app_root": str(self.root),
            "app_user": "",
            "app_python": sys.executable,
            "app_repository": str(directory / "none.git"),
            "app_framework": "none",
            "app_database": {"engine": "sqlite", "path": str(self.database)},
            "app_services": [
                {"name": "web", "manager": "process", "bind": "port", "port": 1, "command": "x {port}"}
            ],
            "app_backup_store": {"endpoint": names["endpoint_url"], "bucket": BUCKET, **KEYS},
        }
        inventory = {"all": {"children": {"app": {"hosts": {"here": variables}}}}}
        (directory / "hosts.json").write_text(json.dumps(inventory))

    def write(self, *statements: str) -> None:
        connection = sqlite3.connect(self.database)
        with connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()

    def play(self, *arguments: str, playbook: Path = PROJECT / "playbooks" / "backup.yml") -> str:
        """Run the *playbook* and return what it said."""
        collections = PROJECT.parents[2] if PROJECT.parent.name == "runbook" else PROJECT / ".ansible_dev"
        environment = {
            **os.environ,
            "ANSIBLE_HOME": str(self.directory / "home"),
            "ANSIBLE_COLLECTIONS_PATH": str(collections),
            "ANSIBLE_LOCALHOST_WARNING": "0",
        }
        done = subprocess.run(
            [Path(sys.executable).parent / "ansible-playbook", "-i", "hosts.json", playbook, *arguments],
            cwd=self.directory, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert KEYS["secret_key"] not in said
        return said

    def kept(self) -> list[str]:
        return sorted(path.name for path in (self.root / "backups").glob("[!.]*"))


@pytest.fixture
def site(tmp_path: Path, moto: int) -> Site:
    return Site(tmp_path, moto)


def test_a_backup_that_the_host_has_lost_comes_back_from_the_store_and_can_be_restored(site: Site) -> None:
    site.play()
    (name,) = site.kept()
    manifest = json.loads((site.root / "backups" / name / "manifest.json").read_text())
    stored = [entry["Key"] for entry in site.client.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert {Path(key).name for key in stored} == {manifest["file"], "manifest.json"}
    dump = (site.root / "backups" / name / manifest["file"]).read_bytes()
    # The disk of the host is gone, and with it every backup.
    shutil.rmtree(site.root / "backups")
    (site.root / "backups").mkdir(mode=0o700)
    site.write("DELETE FROM note")
    site.play("--tags", "fetch", "-e", f"backup_id={name}")
    assert site.kept() == [name]
    assert (site.root / "backups" / name / manifest["file"]).read_bytes() == dump
    said = site.play("--tags", "verify", "-e", f"backup_id={name}")
    assert "restored" in said and name in said
    assert not list((site.root / "scratch").glob("2*"))
    # The fetched file holds the rows that the live database has lost; the trial has not touched that one.
    copy = sqlite3.connect(site.root / "backups" / name / manifest["file"])
    assert copy.execute("SELECT count(*) FROM note").fetchone() == (2,)
    copy.close()
    live = sqlite3.connect(site.database)
    assert live.execute("SELECT count(*) FROM note").fetchone() == (0,)
    live.close()


@pytest.mark.long
def test_a_rollback_asks_the_store_only_for_what_the_host_has_lost(site: Site) -> None:
    """The part of the role that both its plan and its restore begin with."""
    site.play()
    (name,) = site.kept()
    dump = next((site.root / "backups" / name).glob("database.*"))
    data = dump.read_bytes()
    record = {"backup": {"id": name}}
    part = {"name": "runbook.deploy.rollback", "tasks_from": "fetch.yml"}
    variables = {
        "__rollback_undone": record,
        "rollback_application": "shop",
        "rollback_stage": "production",
        "rollback_python": sys.executable,
        "rollback_build_environment": {},
        "rollback_timeout": 300,
    }
    play = [
        {
            "hosts": "app",
            "gather_facts": False,
            "tasks": [
                {"ansible.builtin.import_role": part, "vars": {**variables, "rollback_root": str(site.root)}}
            ],
        }
    ]
    playbook = site.directory / "fetch.json"
    playbook.write_text(json.dumps(play))
    away = [
        "-e",
        json.dumps({"rollback_backup_store": {"endpoint": "http://127.0.0.1:9", "bucket": BUCKET, **KEYS}}),
    ]
    # It is whole, so that nobody is asked, and a store that is away is no matter.
    site.play(*away, playbook=playbook)
    shutil.rmtree(dump.parent)
    site.play(playbook=playbook)
    assert site.kept() == [name]
    assert dump.read_bytes() == data
