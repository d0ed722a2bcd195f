# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tiny Django project on PostgreSQL and on MariaDB: private servers of the tests' own, and the project's settings."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_project import DjangoProject

# Names the directory of the patterns of new servers (tests/unit/conftest.py).
PATTERNS = "RUNBOOK_TEST_SERVERS"
PASSWORD = "word-that-nobody-may-see"
POSTGRESQL_PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program(*names: str) -> str:
    """Return the path of the first of *names* that is installed, else skip the test and say so."""
    path = os.pathsep.join([*map(str, POSTGRESQL_PLACES), os.environ.get("PATH", ""), "/usr/sbin"])
    for name in names:
        found = shutil.which(name, path=path)
        if found:
            return found
    pytest.skip(f"{' and '.join(names)} not installed: apt-get install postgresql mariadb-server pgbouncer")
    raise AssertionError


def ordinary_user() -> dict[str, Any]:
    """Return what makes a child no root, which no server starts as; nothing where we are not root."""
    if os.geteuid():
        return {}
    entry = pwd.getpwnam("nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


class Server:
    """A private server in a short temporary directory, with the role ``app`` and the databases ``shop`` and a scratch.

    ``settings``: the members of DATABASES["default"] that name it; ``database``: the same as ``app_database``.
    """

    engine = ""
    backend = ""
    scratch = "runbook_scratch_0a1b2c3d"
    driver = ""

    def __init__(self, fresh: bool = False) -> None:
        self.fresh = fresh
        self.kept: dict[str, Any] = {}
        if importlib.util.find_spec(self.driver) is None:
            pytest.skip(
                f"the driver {self.driver} is not installed beside pytest; install requirements-dev.txt"
            )
        self.port = free_port()
        # Not pytest's: a socket's path may have 107 bytes, and others than us must get there.
        self.directory = Path(tempfile.mkdtemp(prefix="rb-", dir="/tmp"))
        if not os.geteuid():
            shutil.chown(self.directory, "nobody")
        self.process: subprocess.Popen[bytes] | None = None
        self.as_user = ordinary_user()

    def install(self, target: Path, make: Callable[[Path], None]) -> None:
        """Give *target* the files of a new server, as *make* writes them; made once for all tests, and copied."""
        place = os.environ.get(PATTERNS)
        if self.fresh or not place:
            make(target)
            return
        pattern = Path(place, self.engine)
        with Path(place, f"{self.engine}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not pattern.exists():
                made = Path(place, f"{self.engine}.{os.getpid()}")
                make(made)
                made.rename(pattern)
        self.run("cp", "-a", str(pattern), str(target))

    def spawn(self, *argv: str) -> None:
        """Start the server and wait until it answers."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **self.as_user
            )
        deadline = time.monotonic() + 60
        while not self.answers():
            assert self.process.poll() is None and time.monotonic() < deadline, (
                self.directory / "log"
            ).read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """End the server as a power cut does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """End the server and remove what it has."""
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def run(self, *argv: str) -> str:
        """Run a client and return what it printed."""
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
            **self.as_user,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def answers(self) -> bool:
        """Return whether the server takes connections."""
        with contextlib.suppress(AssertionError):
            self.sql("SELECT 1", database=None)
            return True
        return False

    def start(self) -> None:
        """Start the server on what is there."""
        raise NotImplementedError

    def sql(self, statement: str, database: str | None = "shop") -> list[list[str]]:
        """Run *statement* as the administrator; return the rows as texts."""
        raise NotImplementedError

    def connect(self, database: str = "shop") -> Any:
        """Return a driver's connection of the role ``app``."""
        raise NotImplementedError

    def clean(self) -> None:
        """Empty the databases."""
        raise NotImplementedError

    def keep(self, name: str, value: Any = True) -> None:
        """Keep a copy of the live database and *value* below *name*."""
        raise NotImplementedError

    def put_back(self, name: str) -> Any:
        """Make the live database what was kept below *name*, empty the scratch, return the value; None: nothing was kept."""
        raise NotImplementedError

    @property
    def settings(self) -> dict[str, Any]:
        """DATABASES["default"]."""
        return {
            "ENGINE": self.backend,
            "NAME": "shop",
            "USER": "app",
            "PASSWORD": PASSWORD,
            "HOST": "127.0.0.1",
            "PORT": self.port,
        }

    @property
    def database(self) -> dict[str, Any]:
        """``app_database``."""
        return {"engine": self.engine, "name": "shop", "host": "127.0.0.1", "port": self.port, "user": "app"}


class Postgresql(Server):
    """PostgreSQL."""

    engine = "postgresql"
    backend = "django.db.backends.postgresql"
    driver = "psycopg"

    def __init__(self, fresh: bool = False) -> None:
        initdb = program("initdb")
        super().__init__(fresh)
        self.data = self.directory / "data"
        options = ("-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C")
        self.install(self.data, lambda data: self.run(initdb, "-D", str(data), *options))
        self.start()
        self.sql(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'", "postgres")

    def start(self) -> None:
        options = {
            "port": self.port,
            "unix_socket_directories": self.directory,
            "listen_addresses": "127.0.0.1",
            "fsync": "off",
        }
        arguments = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
        self.spawn(program("postgres"), "-D", str(self.data), *arguments)

    def sql(self, statement: str, database: str | None = "shop") -> list[list[str]]:
        return self.script(database or "postgres", statement)

    def script(self, database: str, *statements: str) -> list[list[str]]:
        """Run each of *statements* in a transaction of its own; return the rows of all."""
        out = self.run(
            *(program("psql"), "-X", "-A", "-t", "-F", "\t", "-h", str(self.directory), "-p", str(self.port)),
            *("-U", "postgres", "-v", "ON_ERROR_STOP=1", "-d", database),
            *(word for statement in statements for word in ("-c", statement)),
        )
        return [line.split("\t") for line in out.splitlines()]

    def connect(self, database: str = "shop") -> Any:
        import psycopg

        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="app",
            password=PASSWORD,
            dbname=database,
            application_name="somebody",
            autocommit=False,
        )

    def clean(self, pattern: str = "template1") -> None:
        self.script(
            "postgres",
            *(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)" for name in ("shop", self.scratch)),
            f"CREATE DATABASE shop TEMPLATE {pattern} OWNER app",
            f"CREATE DATABASE {self.scratch} OWNER app",
        )

    def keep(self, name: str, value: Any = True) -> None:
        self.sql(f"CREATE DATABASE kept_{name} TEMPLATE shop OWNER app", "postgres")
        self.kept[name] = value

    def put_back(self, name: str) -> Any:
        if name in self.kept:
            self.clean(f"kept_{name}")
        return self.kept.get(name)


class Mariadb(Server):
    """MariaDB."""

    engine = "mysql"
    backend = "django.db.backends.mysql"
    driver = "pymysql"

    def __init__(self, fresh: bool = False) -> None:
        self.require()
        super().__init__(fresh)
        self.data = self.directory / "data"
        self.socket = self.directory / "s"
        self.initialise()
        self.start()
        self.sql(f"CREATE USER app@'%' IDENTIFIED BY '{PASSWORD}'", None)
        self.sql(f"CREATE USER app@localhost IDENTIFIED BY '{PASSWORD}'", None)

    def require(self) -> None:
        """Skip where the server is not installed."""
        program("mariadb-install-db")

    def initialise(self) -> None:
        """Make the files of an empty server."""
        # Two of them at the same time would meet in /tmp.
        options = ("--skip-test-db", "--auth-root-authentication-method=normal", f"--tmpdir={self.directory}")
        install = program("mariadb-install-db")
        self.install(
            self.data, lambda data: self.run(install, "--no-defaults", f"--datadir={data}", *options)
        )

    def start(self) -> None:
        self.spawn(
            program("mariadbd"),
            *("--no-defaults", f"--datadir={self.data}", f"--socket={self.socket}", f"--port={self.port}"),
            *(
                "--bind-address=127.0.0.1",
                f"--tmpdir={self.directory}",
                "--innodb-flush-log-at-trx-commit=2",
                f"--pid-file={self.directory}/pid",
            ),
        )

    def sql(self, statement: str, database: str | None = "shop") -> list[list[str]]:
        out = self.run(
            *(
                program("mariadb", "mysql"),
                "--no-defaults",
                f"--socket={self.socket}",
                "-u",
                "root",
                "-N",
                "-B",
            ),
            *("-e", statement, *([database] if database else [])),
        )
        return [line.split("\t") for line in out.splitlines()]

    def connect(self, database: str = "shop") -> Any:
        import pymysql

        return pymysql.connect(
            host="127.0.0.1",
            port=self.port,
            user="app",
            password=PASSWORD,
            database=database,
            autocommit=False,
        )

    def clean(self, more: str = "") -> None:
        statements = [
            statement
            for name in ("shop", self.scratch)
            for statement in (
                f"DROP DATABASE IF EXISTS {name}",
                f"CREATE DATABASE {name}",
                *(f"GRANT ALL ON {name}.* TO app@'{host}'" for host in ("%", "localhost")),
            )
        ]
        self.sql("; ".join(statements) + more, None)

    def keep(self, name: str, value: Any = True) -> None:
        self.kept[name] = (self.dump(), value)

    def put_back(self, name: str) -> Any:
        if name not in self.kept:
            return None
        dump, value = self.kept[name]
        self.clean(f"; USE shop; {dump}")
        return value

    def dump(self) -> str:
        """Return the live database as statements."""
        arguments = (f"--socket={self.socket}", "-u", "root", "shop")
        if os.environ.get("MYSQL_BIN"):
            text = self.run(program("mysqldump"), "--no-defaults", "--set-gtid-purged=OFF", *arguments)
        else:
            text = self.run(program("mariadb-dump", "mysqldump"), "--no-defaults", *arguments)
        # Newer ones begin with a word to the client, which it knows on a line of its own only.
        return text.replace("/*M!999999\\- enable the sandbox mode */", "")


SERVERS = {"postgresql": Postgresql, "mysql": Mariadb}


@contextlib.contextmanager
def serving(engine: str, fresh: bool = False) -> Iterator[Server]:
    """Start a server of *engine*, and end it; *fresh*: it does not have the identity of all others that were copied."""
    if engine == "mysql" and os.environ.get("MYSQL_BIN"):
        # MySQL's own server instead of MariaDB's, always made anew: see there.
        from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.mysql_server import Mysql

        server: Server = Mysql()
    else:
        server = SERVERS[engine](fresh)
    try:
        yield server
    finally:
        server.close()


class ServerProject(DjangoProject):
    """The project with its default database on *server*."""

    def __init__(self, root: Path, server: Server) -> None:
        super().__init__(root)
        self.server = server
        if server.engine == "mysql":
            # Django asks for a version of mysqlclient, whose interface PyMySQL has.
            self.append_settings(
                "import pymysql\npymysql.version_info = (2, 2, 7, 'final', 0)\npymysql.install_as_MySQLdb()\n"
            )
        self.configure()

    def fill(self, *numbers: str) -> None:
        if self.server.put_back("filled") == numbers:
            return
        self.server.clean()
        self.manage("migrate", "--verbosity", "0")
        role = "SET ROLE app; " if self.server.engine == "postgresql" else ""
        self.server.sql(f"{role}{self.insert(*numbers)}")
        self.server.keep("filled", numbers)

    def configure(self, **changes: Any) -> None:
        """Write the settings of the database, with *changes*."""
        self.append_settings(f"DATABASES = {{'default': { ({**self.server.settings, **changes})!r}}}\n")

    def rows(self, statement: str, database: Any = None) -> list[Any]:
        return [tuple(row) for row in self.server.sql(statement, database or "shop")]

    @property
    def scratch_database(self) -> dict[str, Any]:
        """What database_backup returns as ``scratch``."""
        return {**self.server.database, "name": self.server.scratch}
