# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Talk to a MySQL or MariaDB server through its own clients.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._backup import owner_of
from ansible_collections.runbook.deploy.plugins.module_utils._command import redact, run
from ansible_collections.runbook.deploy.plugins.module_utils._database import place_for
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Seconds for a connection, a statement of ours, and a lock that another session holds.
CONNECT = 10
PORT = 3306
STATEMENT = 600.0
LOCK_SECONDS = 30


class Login(NamedTuple):
    """Who logs in: a user of the server, its password, and the operating system's user for a login by the socket."""

    user: str
    password: str
    os_user: str | None


def identifier(name: str) -> str:
    """Return *name* quoted as an identifier."""
    return "`" + name.replace("`", "``") + "`"


def literal(text: str) -> str:
    """Return *text* quoted as a string, for every SQL mode that keeps the backslash."""
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def tool(*names: str) -> str:
    """Return the path of the first client of *names* that is installed.

    :raises Problem: when none is.
    """
    for name in names:
        found = shutil.which(name) or shutil.which(name, path="/usr/local/bin:/usr/bin:/bin")
        if found:
            return found
    raise Problem(
        f"The program {names[0]} is not installed on this host: install it (apt-get install mariadb-client)."
    )


# The rights on databases of these names that making, filling, exchanging and dropping them takes.
NEEDED = frozenset(
    [
        "SELECT",
        "INSERT",
        "UPDATE",
        "DELETE",
        "CREATE",
        "DROP",
        "REFERENCES",
        "INDEX",
        "ALTER",
        "LOCK TABLES",
        "EXECUTE",
        "CREATE VIEW",
        "SHOW VIEW",
        "CREATE ROUTINE",
        "ALTER ROUTINE",
        "EVENT",
        "TRIGGER",
    ]
)
# What Debian calls the programs, MariaDB's name first; MySQL's have the second one only, and MariaDB's have it too.
PROGRAMS = {"client": ("mariadb", "mysql"), "dump": ("mariadb-dump", "mysqldump")}
PLACES = ("/usr/local/bin", "/usr/bin", "/bin")


@functools.lru_cache(maxsize=64)
def said_version(path: str) -> str:
    """Return the answer of the program at *path* to ``--version``."""
    return run([path, "--version"], cwd="/", timeout=30).stdout.strip()


def installed(kind: str) -> dict[str, str]:
    """Return the path of the first installed program of *kind* (of :data:`PROGRAMS`) of each maker, ``mariadb`` and ``mysql``."""
    found: dict[str, str] = {}
    for place in [*os.environ.get("PATH", "").split(os.pathsep), *PLACES]:
        for name in PROGRAMS[kind]:
            path = shutil.which(name, path=place) if place else None
            if path:
                found.setdefault("mariadb" if "MariaDB" in said_version(path) else "mysql", path)
    return found


def option(text: str) -> str:
    """Return *text* as a value in an option file: quoted, so that a '#' or a space is part of it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class Client:
    """The server of ``app_database``, seen as one of its users.

    :param database: ``app_database``; :param login: who logs in.
    """

    def __init__(self, database: Mapping[str, Any], login: Login) -> None:
        self.name = str(database["name"])
        # The socket that clients find by themselves is that of the server with the usual port; another server has its
        # own, which host has to name.
        usual = database.get("port") in (None, PORT)
        place = place_for(database, login.password, login.os_user) if usual else database
        self.host = str(place.get("host") or "")
        self.port = place.get("port") if self.host else None
        self.login = login
        self.secrets = [login.password] if login.password else []

    def address(self) -> str:
        """Return where the server is, in words."""
        return f"{self.host or 'the local socket'}{f':{self.port}' if self.port else ''}"

    @contextlib.contextmanager
    def options(self) -> Iterator[str]:
        """Yield the argument that names a file (0600) with host, user and password; it is gone afterwards."""
        lines = ["[client]"]
        if self.login.user:
            lines.append(f"user={option(self.login.user)}")
        if self.login.password:
            lines.append(f"password={option(self.login.password)}")
        if self.host.startswith("/"):
            lines.append(f"socket={option(self.host)}")
        elif self.host:
            lines.append(f"host={option(self.host)}")
            # "localhost" means the socket to these clients, unless a port says otherwise.
            lines += ["protocol=tcp"] if self.port else []
        if self.port and not self.host.startswith("/"):
            lines.append(f"port={self.port}")
        handle, path = tempfile.mkstemp(prefix="runbook-", suffix=".cnf")
        try:
            with os.fdopen(handle, "w") as stream:
                stream.write("\n".join(lines) + "\n")
            os.chown(path, *owner_of(self.login.os_user))
            yield f"--defaults-extra-file={path}"
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    @functools.cached_property
    def maker(self) -> str:
        """Return who made the server, ``mariadb`` or ``mysql``, as the first client says that gets an answer.

        MySQL's clients and MariaDB's differ in what they take for granted of a certificate, and in what a dump begins with.
        """
        problems = []
        for path in installed("client").values():
            try:
                words = self.statements(["SELECT VERSION()"], "", program=path)
            except Problem as problem:
                problems.append(problem)
            else:
                return "mariadb" if "MariaDB" in words else "mysql"
        if problems:
            raise problems[0]
        tool(*PROGRAMS["client"])
        return "mariadb"

    def program(self, kind: str) -> str:
        """Return the path of the client of *kind* (of :data:`PROGRAMS`): of the server's maker where two are installed.

        :raises Problem: when none is installed.
        """
        found = installed(kind)
        if len(found) > 1:
            return found[self.maker]
        return next(iter(found.values()), "") or tool(*PROGRAMS[kind])

    def mysql(self, options: str, program: str | None = None) -> list[str]:
        """Return the beginning of a command of the client; *options* must come first."""
        return [
            program or self.program("client"), options, f"--connect-timeout={CONNECT}", "--default-character-set=utf8mb4", "--batch",
            "--raw", "--skip-column-names", "--quick",
            f"--init-command=SET SESSION lock_wait_timeout={LOCK_SECONDS}, time_zone='+00:00', group_concat_max_len=1048576",
        ]  # fmt: skip

    def statements(
        self,
        statements: Sequence[str],
        database: str | None = None,
        timeout: float = STATEMENT,
        program: str | None = None,
    ) -> str:
        """Run *statements* in one session, *database* "" for none, by the client *program*; return their output.

        :raises Problem: with the server's words.
        """
        chosen = self.name if database is None else database
        with self.options() as options:
            argv = [
                *self.mysql(options, program),
                "-e",
                ";\n".join(statements),
                *([chosen] if chosen else []),
            ]
            done = run(argv, cwd="/", user=self.login.os_user, timeout=timeout, secrets=self.secrets)
        if done.rc != 0:
            raise self.problem(chosen, done.stderr, done.timed_out, timeout)
        return done.stdout

    def rows(
        self, columns: Mapping[str, str], rest: str, database: str | None = None
    ) -> list[dict[str, Any]]:
        """Return the rows of ``SELECT columns rest`` as mappings.

        :param columns: name to expression. JSON carries the values, as the client's own output hides what is in them.
        """
        pairs = ", ".join(f"{literal(name)}, {expression}" for name, expression in columns.items())
        out = self.statements([f"SELECT JSON_OBJECT({pairs}) {rest}"], database)
        return [json.loads(line, strict=False) for line in out.split("\n") if line.strip()]

    def value(self, sql: str, database: str | None = None) -> str:
        """Return the only value that *sql* answers with."""
        return self.statements([sql], database).strip()

    def problem(
        self, database: str, stderr: str, timed_out: bool = False, timeout: float = STATEMENT
    ) -> Problem:
        """Return the Problem for a client that failed."""
        said = f"no answer within {timeout:g} s" if timed_out else first_error(stderr)
        return Problem(
            f"MySQL at {self.address()} refused what was asked of the database {database!r} as user "
            f"{self.login.user or self.login.os_user or 'of the system'}: {said.rstrip('.')}; {advice(said)}.",
            "\n".join(redact(stderr, self.secrets).splitlines()[-20:]),
        )


def first_error(stderr: str) -> str:
    """Return the first line of *stderr* that says what is wrong."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    wrong = [line for line in lines if "ERROR" in line or "error" in line.lower()]
    text = (wrong or lines or ["no reason was given"])[0]
    return re.sub(r"^.*?ERROR (\d+)(?: \(\w+\))?(?: at line \d+)?: ", r"error \1: ", text)


def advice(said: str) -> str:
    """Return what to do about the server's words *said* (error numbers: the server's reference manual)."""
    if "1049" in said:
        return "create it, or correct app_database.name"
    if "1045" in said or "1698" in said:
        return "correct the user and password of app_database (or app_database_admin)"
    if "1419" in said:
        return (
            "with a binary log triggers and functions are an administrator's: name one in app_database_admin, or have the server set "
            "log_bin_trust_function_creators"
        )
    # The dump's own words for routines that another account has defined have no number.
    if any(words in said for words in ("1044", "1142", "1227", "1370", "insufficient privileges")):
        return "grant that right, or name a user that has it in app_database_admin"
    if "2002" in said or "2003" in said or "2013" in said or "2006" in said or "no answer" in said:
        return "start the server, or correct app_database.host and app_database.port"
    if "ended by signal" in said:
        return "find who ended it (journalctl -k: the kernel does when memory runs out) and try again"
    if "1205" in said:
        return "another session holds a lock: end its transaction (SHOW PROCESSLIST) and try again"
    return "see the server's log, correct that and try again"


def may_create(grants: str) -> bool:
    """Return whether the text of ``SHOW GRANTS`` lets databases of our names be made and filled."""
    for given in re.finditer(r"GRANT (.+?) ON (?:\*\.\*|`(?:%|runbook\\+_%)`\.\*) TO ", grants):
        # MySQL has words for each right that a user has on everything, MariaDB says ALL PRIVILEGES.
        if given.group(1) == "ALL PRIVILEGES" or set(given.group(1).split(", ")) >= NEEDED:
            return True
    return False


def version(text: str) -> tuple[int, ...]:
    """Return the version in *text*: the server's own, or of ``--version``, where MariaDB's own number follows ``Distrib``."""
    found = re.search(
        r"(?:Distrib |Ver |from )?(\d+)\.(\d+)\.(\d+)",
        re.sub(r"Ver \d+\.\d+ +(?:Distrib|for)", "Distrib", text),
    )
    return tuple(int(part) for part in found.groups()) if found else ()
