# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The test application for real: each version installs, migrates and serves, each broken tag breaks as its name says.

Needs its requirements: from ``uv`` beside the interpreter or on PATH, or in the interpreter that the variable
``GOEXPLORER_PYTHON`` names. Otherwise the tests are skipped.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "applications" / "make_repository.py"
PASSWORDS = {"GOEXPLORER_ADMIN_PASSWORD": "admin-of-a-test", "GOEXPLORER_OWNER_PASSWORD": "owner-of-a-test"}
# Several commands in one process: each start of Django costs up to a second on a busy machine.
TOGETHER = """
import json, os, sys
import django
os.environ["DJANGO_SETTINGS_MODULE"] = "goexplorer.settings"
django.setup()
from django.core.management import call_command
for command in json.loads(sys.argv[1]):
    call_command(*command.split())
"""
DASHBOARD = "/admin/owner-agreements/intelligence/"
BOOT_LIMIT = 20.0


def find_uv() -> str | None:
    """Return the command ``uv``, or None."""
    return shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


class Workshop:
    """A repository, an interpreter with the requirements, and a directory for installations."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.repository = base / "r.git"
        subprocess.run([sys.executable, str(SCRIPT), str(self.repository)], check=True, capture_output=True)
        self.python = os.environ.get("GOEXPLORER_PYTHON") or self.install()

    def install(self) -> str:
        """Return the interpreter of a new virtual environment; skip the test where none can be made."""
        uv = find_uv()
        if uv is None:
            pytest.skip("uv is not installed and GOEXPLORER_PYTHON names no interpreter with Django")
        requirements = self.base / "requirements.txt"
        requirements.write_text(self.show("v2.6", "requirements.txt"))
        python = str(self.base / "venv" / "bin" / "python")
        for command in (
            [uv, "venv", "--quiet", "--python", sys.executable, str(self.base / "venv")],
            [
                uv,
                "pip",
                "install",
                "--quiet",
                "--python",
                python,
                "-r",
                str(requirements),
            ],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"the requirements cannot be installed here: {done.stderr.strip()[-300:]}")
        return python

    def show(self, tag: str, path: str) -> str:
        """Return the text of *path* in the version *tag*."""
        command = ["git", "-c", "safe.directory=*", "-C", str(self.repository), "show", f"{tag}:{path}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Installation:
    """One version in a directory of its own; the database and media files lie outside."""

    def __init__(self, workshop: Workshop, tag: str, database: Path) -> None:
        self.workshop = workshop
        self.tag = tag
        self.path = Path(tempfile.mkdtemp(prefix="i", dir=workshop.base))
        archive = ["git", "-c", "safe.directory=*", "-C", str(workshop.repository), "archive", tag]
        packed = subprocess.run(archive, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(self.path)], input=packed, check=True)
        self.socket = self.path / "s"
        self.log = self.path / "log"
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("GOEXPLORER_", "PYTHON"))
            },
            "GOEXPLORER_SECRET_KEY": "only-for-tests",
            "GOEXPLORER_DATABASE": str(database),
            "GOEXPLORER_MEDIA": str(workshop.base / "media"),
            "RUNBOOK_RELEASE": f"release-{tag}",
            "RUNBOOK_COMMIT": "c" * 40,
            "RUNBOOK_VERSION": tag,
            "RUNBOOK_DEPLOYMENT": "20260101T000000-abcd",
            "HOME": str(workshop.base),
            **PASSWORDS,
        }

    def run(self, *arguments: str, ok: bool = True) -> str:
        """Run the interpreter with *arguments*, and return both outputs; fail when its exit code is not as *ok*."""
        done = subprocess.run(
            [self.workshop.python, *arguments],
            cwd=self.path,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode == 0) is ok, done.stdout
        return done.stdout

    def manage(self, *commands: str, ok: bool = True) -> str:
        """Run several commands of ``manage.py``, each one string, in one process."""
        return self.run("-c", TOGETHER, json.dumps(commands), ok=ok)

    @contextlib.contextmanager
    def serving(self, workers: int = 1) -> Iterator[subprocess.Popen]:
        """Start gunicorn, wait until it listens or ends, and stop it in the end."""
        command = [self.workshop.python, "-m", "gunicorn", "goexplorer.wsgi", "--bind", f"unix:{self.socket}"]
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [*command, "--workers", str(workers)],
                cwd=self.path,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + BOOT_LIMIT
            while process.poll() is None and not self.listens() and time.monotonic() < deadline:
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)

    def listens(self) -> bool:
        """Return whether something accepts connections, and a worker has loaded the application."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        return "Booting worker" in self.log.read_text()

    def request(self, method: str, path: str, body: str | None = None, headers: dict | None = None) -> tuple:
        """Return status, headers and text of one answer."""
        connection = http.client.HTTPConnection("localhost", timeout=15)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(15)
        connection.sock.connect(str(self.socket))
        try:
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()
        finally:
            connection.close()

    def status(self, path: str) -> int:
        """Return the status of a GET."""
        return self.request("GET", path)[0]


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    """Return the workshop; its path is short, because a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="gx") as base:
        yield Workshop(Path(base))


@pytest.fixture(scope="module")
def database(workshop: Workshop) -> Path:
    """Return a database that v2.6 made and v2.7 migrated; both versions are tested on the way."""
    path = workshop.base / "db.sqlite3"
    old = Installation(workshop, "v2.6", path)
    output = old.manage("migrate", "collectstatic --noinput", "create_demo_data")
    assert "Applying owner_agreements.0003_agreementrisksignal... OK" in output
    assert "static files copied" in output
    assert "3 agreements, 6 risk signals" in output
    assert "Phase 2.6: All 8 checks passing" in old.run("PHASE_2_6_VERIFY_OPERATIONAL.py")
    with old.serving():
        status, headers, page = old.request("GET", "/")
        assert (status, headers["X-Goexplorer-Release"]) == (200, "release-v2.6")
        assert "v2.6" in page
        style = page.split('stylesheet" href="')[1].split('"')[0]
        assert style != "/static/owner_agreements/site.css", "the name of a static file holds its hash"
        status, headers, _text = old.request("GET", style)
        assert (status, "immutable" in headers["Cache-Control"]) == (200, True)
        assert old.status(DASHBOARD) == 404
        assert report(old) == 201
    assert not (workshop.base / ".gunicorn").exists(), (
        "gunicorn made its control socket in the home directory"
    )
    new = Installation(workshop, "v2.7", path)
    assert new.manage("migrate owner_agreements").count("Applying ") == 1
    return path


def report(installation: Installation) -> int:
    """Store a risk signal from outside and return the status."""
    body = json.dumps({"risk_type": "EXPIRING", "severity": "INFO"})
    return installation.request("POST", "/signals/report/", body, {"Content-Type": "application/json"})[0]


def copied(workshop: Workshop, database: Path, tag: str) -> Path:
    """Return a copy of *database*, which nobody has open, for the version *tag* alone."""
    return Path(shutil.copyfile(database, workshop.base / f"{tag}.sqlite3"))


def prepared(workshop: Workshop, database: Path, tag: str, *commands: str) -> Installation:
    """Return an installation of *tag*, with a database of its own, that passed check, collectstatic and *commands*."""
    installation = Installation(workshop, tag, copied(workshop, database, tag))
    output = installation.manage("check", "collectstatic --noinput", *commands)
    assert "no issues" in output
    assert "static files copied" in output
    return installation


def rows(path: Path, query: str) -> list:
    """Return what *query* answers."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


@pytest.mark.long
def test_v27_serves_and_goes_back(workshop: Workshop, database: Path) -> None:
    """Health, dashboard, regression, and the migration reversed with the data intact."""
    new = prepared(workshop, database, "v2.7", "makemigrations --check --dry-run")
    copy = workshop.base / "v2.7.sqlite3"
    indexes = "SELECT count(*) FROM sqlite_master WHERE type = 'index' AND tbl_name = 'owner_agreements_admin_notes'"
    assert rows(copy, indexes) == [(5,)]
    with new.serving():
        status, headers, text = new.request("GET", "/healthz/")
        health = json.loads(text)
        assert (status, health["release"], health["database"]) == (200, "release-v2.7", "ok")
        assert health["migrations"] == rows(copy, "SELECT count(*) FROM django_migrations")[0][0]
        assert "no-store" in headers["Cache-Control"]
        status, headers, _text = new.request("GET", DASHBOARD)
        assert (status, headers["Location"]) == (302, f"/admin/login/?next={DASHBOARD}")
        assert "8 checks passing" in new.run("PHASE_2_6_VERIFY_OPERATIONAL.py")
    before = rows(copy, "SELECT count(*) FROM owner_agreements_agreementrisksignal")
    assert "Unapplying owner_agreements.0004_adminnote... OK" in new.manage("migrate owner_agreements 0003")
    assert rows(copy, "SELECT count(*) FROM owner_agreements_agreementrisksignal") == before == [(7,)]


def test_its_own_tests_pass(workshop: Workshop, database: Path) -> None:
    """In a plain checkout: no static files collected, no database made."""
    for tag, expected in (("v2.6", "Ran 10 tests"), ("v2.7", "Ran 19 tests")):
        checkout = Installation(workshop, tag, workshop.base / "missing.sqlite3")
        assert expected in checkout.run("manage.py", "test")
        assert "8 checks passing" in checkout.run("PHASE_2_6_VERIFY_OPERATIONAL.py", "--temporary")
    assert not (workshop.base / "missing.sqlite3").exists()


def test_health_says_that_the_database_is_gone(workshop: Workshop, database: Path) -> None:
    """503; and no command starts without its secret key."""
    broken = Installation(workshop, "v2.7", workshop.base / "no-such-directory" / "db.sqlite3")
    with broken.serving():
        status, _headers, text = broken.request("GET", "/healthz/")
        assert (status, json.loads(text)["database"]) == (503, "OperationalError")
    assert "GOEXPLORER_DATABASE" not in text
    del broken.environment["GOEXPLORER_SECRET_KEY"]
    assert "GOEXPLORER_SECRET_KEY is not set" in broken.manage("check", ok=False)


@pytest.mark.parametrize(("tag", "left"), [("broken-migration", 0), ("broken-migration-partial", 2)])
def test_broken_migration(workshop: Workshop, database: Path, tag: str, left: int) -> None:
    """0005 is applied, 0006 raises half way; what it inserted stays only outside a transaction."""
    copy = copied(workshop, database, tag)
    broken = Installation(workshop, tag, copy)
    output = broken.manage("check", "makemigrations --check --dry-run", "migrate", ok=False)
    assert "0005_agreementrisksignal_region... OK" in output
    assert "region east has no severity" in output
    applied = [
        name for (name,) in rows(copy, "SELECT name FROM django_migrations WHERE app = 'owner_agreements'")
    ]
    assert applied[-1] == "0005_agreementrisksignal_region"
    regional = "SELECT count(*) FROM owner_agreements_agreementrisksignal WHERE region IS NOT NULL"
    assert rows(copy, regional) == [(left,)]
    # The code that served before goes on writing: 0005 is additive.
    old = Installation(workshop, "v2.7", copy)
    with old.serving():
        assert report(old) == 201


def test_irreversible(workshop: Workshop, database: Path) -> None:
    """It applies and serves, and Django refuses the way back."""
    new = Installation(workshop, "irreversible", copied(workshop, database, "irreversible"))
    output = new.manage(
        "makemigrations --check --dry-run", "migrate", "migrate owner_agreements 0004", ok=False
    )
    assert "Applying owner_agreements.0005_agreementrisksignal_region... OK" in output
    assert "IrreversibleError" in output


def test_destructive(workshop: Workshop, database: Path) -> None:
    """It applies, serves, and claims a way back, after which the references are gone."""
    copy = copied(workshop, database, "destructive")
    references = "SELECT count(*) FROM owner_agreements_owneragreement WHERE reference <> ''"
    assert rows(copy, references) == [(3,)]
    new = Installation(workshop, "destructive", copy)
    output = new.manage(
        "makemigrations --check --dry-run",
        "migrate",
        "create_demo_data",
        "migrate owner_agreements 0004",
    )
    assert "Applying owner_agreements.0005_remove_owneragreement_reference... OK" in output
    assert "Unapplying owner_agreements.0005_remove_owneragreement_reference... OK" in output
    assert rows(copy, references) == [(0,)]


def test_broken_dependency(workshop: Workshop) -> None:
    """The installer finds no such distribution."""
    uv = find_uv()
    if uv is None:
        pytest.skip("uv is not installed: nothing here resolves requirements")
    requirements = workshop.base / "broken.txt"
    requirements.write_text(workshop.show("broken-dependency", "requirements.txt"))
    command = [uv, "pip", "install", "--dry-run", "--python", workshop.python, "-r", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "goexplorer-distribution-that-does-not-exist" in done.stderr


@pytest.mark.long
def test_servers_that_break(workshop: Workshop, database: Path) -> None:
    """All at once, because two of them take their time: boot, health, crash, slow, static, and the sound v2.8."""
    tags = ("broken-boot", "broken-health", "broken-static", "slow", "v2.8")
    made = {
        tag: Installation(workshop, tag, copied(workshop, database, tag)) for tag in ("slow", "crash-later")
    }
    for tag in ("broken-boot", "broken-health", "broken-static", "v2.8"):
        made[tag] = prepared(workshop, database, tag)
    with contextlib.ExitStack() as stack:
        begun = time.monotonic()
        processes = {"crash-later": stack.enter_context(made["crash-later"].serving(workers=2))}
        assert made["crash-later"].status("/healthz/") == 200
        processes.update({tag: stack.enter_context(made[tag].serving()) for tag in tags})

        assert processes["broken-boot"].wait(30) != 0
        assert "No module named 'goexplorer.telemetry'" in made["broken-boot"].log.read_text()

        assert [made["broken-health"].status(path) for path in ("/healthz/", "/")] == [500, 200]
        assert "GOEXPLORER_REGION_NAME" in made["broken-health"].log.read_text()

        pages = ("/healthz/", "/", "/login/", "/admin/login/", "/no-such-page/")
        assert [made["broken-static"].status(path) for path in pages] == [200, 500, 500, 500, 500]
        assert [made["v2.8"].status(path) for path in pages] == [200, 200, 200, 200, 404]
        assert report(made["v2.8"]) == 201

        asked = time.monotonic()
        assert made["slow"].status("/healthz/") == 200
        assert 3 <= time.monotonic() - asked < 10

        processes["crash-later"].wait(30)
        assert 3 <= time.monotonic() - begun < 40
        assert not made["crash-later"].listens()
        assert processes["v2.8"].poll() is None
