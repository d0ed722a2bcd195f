# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Talk to a PostgreSQL server through its own clients: statements, sessions, streams.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._command import (
    base_environment,
    end_group,
    identity,
    redact,
    run,
)
from ansible_collections.runbook.deploy.plugins.module_utils._database import place_for
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Seconds for a connection, for a statement of ours, and for a lock that another session holds.
CONNECT = 10
STATEMENT = 600.0
LOCK_SECONDS = 30
# What every session begins with: a pooler that drops it is known by it.
SEARCH_PATH = "pg_catalog"
APPLICATION = "runbook.deploy"
# Sessions of others. The server's own workers (autovacuum), which have no user, are not counted: only a superuser may end them,
# and whatever needs a database for itself ends them anyway.
SESSIONS = "pg_stat_activity WHERE usesysid IS NOT NULL AND pid <> pg_backend_pid()"
# A role's limits are meant for the application's own statements: a dump, its snapshot and a count take as long as they take.
# Those of the first line every server knows; the others are set where there are such.
LIMITS = "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0"
MORE_LIMITS = (
    "SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN ('idle_session_timeout', 'transaction_timeout') "
    "\\g /dev/null\n"
)
# The sentinel that ends an answer in a session; psql's \echo prints it on a line of its own.
END = "--runbook-end--"
# The longest name of PostgreSQL (NAMEDATALEN).
LONGEST_NAME = 63


class Login(NamedTuple):
    """Who logs in: a role, its password, and the operating system's user for a login by the socket's peer."""

    user: str
    password: str
    os_user: str | None


def identifier(name: str) -> str:
    """Return *name* quoted as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def named(stem: str, ending: str) -> str:
    """Return *stem* with *ending*, cut to what a name may have.

    >>> named("public", "_restore_0a1b2c3d")
    'public_restore_0a1b2c3d'
    """
    return stem.encode()[: LONGEST_NAME - len(ending)].decode(errors="ignore") + ending


def grants(place: str, rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the statements that give *rows*, each ``(role or None for PUBLIC, right, with the option to grant it)``, on *place*.

    >>> grants("SCHEMA public", [(None, "USAGE", False)])
    ['GRANT USAGE ON SCHEMA public TO PUBLIC']
    """
    return [
        f"GRANT {right} ON {place} TO {identifier(grantee) if grantee else 'PUBLIC'}{' WITH GRANT OPTION' if grantable else ''}"
        for grantee, right, grantable in rows
    ]


def literal(text: str) -> str:
    """Return *text* quoted as an SQL string, whatever standard_conforming_strings says."""
    if "\\" in text:
        return " E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
    return "'" + text.replace("'", "''") + "'"


def tool(name: str, package: str) -> str:
    """Return the path of the client *name*.

    :raises Problem: when it is not installed.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/local/bin:/usr/bin:/bin")
    if not found:
        raise Problem(
            f"The program {name} is not installed on this host: install it (apt-get install {package})."
        )
    return found


def version(text: str) -> tuple[int, ...]:
    """Return the version in the output of ``--version`` or ``SHOW server_version``: ``(15, 18)``."""
    found = re.search(r"(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in found.groups() if part) if found else ()


class Client:
    """The server of ``app_database``, seen as one role.

    :param database: ``app_database``; :param login: who logs in.
    """

    def __init__(self, database: Mapping[str, Any], login: Login) -> None:
        self.name = str(database["name"])
        place = place_for(database, login.password, login.os_user)
        self.host = str(place.get("host") or "")
        self.port = place.get("port")
        self.login = login
        self.secrets = [login.password] if login.password else []

    def arguments(self, database: str | None = None) -> list[str]:
        """Return the arguments that every client of PostgreSQL has in common; no password is among them."""
        found = ["--no-password"]
        if self.host:
            found += ["--host", self.host]
        if self.port:
            found += ["--port", str(self.port)]
        if self.login.user:
            found += ["--username", self.login.user]
        return [*found, "--dbname", database or self.name]

    def environment(self) -> dict[str, str]:
        """Return the variables of the clients: the password travels here, which only the same user can read."""
        found = {
            "PGAPPNAME": APPLICATION,
            "PGCONNECT_TIMEOUT": str(CONNECT),
            "PGCLIENTENCODING": "UTF8",
            "PGOPTIONS": f"{LIMITS} -c lock_timeout={LOCK_SECONDS}s -c search_path={SEARCH_PATH} -c timezone=UTC -c datestyle=ISO",
        }
        if self.login.password:
            found["PGPASSWORD"] = self.login.password
        return found

    def psql(self) -> list[str]:
        """Return the beginning of a command of psql."""
        return [tool("psql", "postgresql-client"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]

    def statements(
        self, statements: Sequence[str], database: str | None = None, timeout: float = STATEMENT
    ) -> str:
        """Run *statements* one after the other, each in its own transaction; return the output of all.

        :raises Problem: with the server's words.
        """
        argv = [*self.psql(), *self.arguments(database)]
        for statement in statements:
            argv += ["-c", statement]
        done = run(
            argv,
            cwd="/",
            environment=self.environment(),
            user=self.login.os_user,
            timeout=timeout,
            secrets=self.secrets,
        )
        if done.rc != 0:
            raise self.problem(database or self.name, done.stderr, done.timed_out, timeout)
        return done.stdout

    def query(self, sql: str, database: str | None = None) -> Any:
        """Return the JSON value that the query *sql* answers with."""
        return _json(self.statements([sql], database))

    def rows(self, sql: str, database: str | None = None) -> list[dict[str, Any]]:
        """Return the rows of the query *sql*, each a mapping of its columns."""
        return self.query(f"SELECT coalesce(json_agg(found), '[]') FROM ({sql}) AS found", database) or []

    def problem(
        self, database: str, stderr: str, timed_out: bool = False, timeout: float = STATEMENT
    ) -> Problem:
        """Return the Problem for a client that failed."""
        said = first_error(stderr)
        if timed_out:
            said = f"no answer within {timeout:g} s"
        return Problem(
            f"PostgreSQL at {self.address()} refused what was asked of the database {database!r} as role "
            f"{self.login.user or self.login.os_user or 'of the user'}: {said.rstrip('.')}; {advice(said)}.",
            "\n".join(redact(stderr, self.secrets).splitlines()[-20:]),
        )

    def address(self) -> str:
        """Return where the server is, in words."""
        return f"{self.host or 'the local socket'}{f':{self.port}' if self.port else ''}"

    @contextlib.contextmanager
    def session(self, database: str | None = None) -> Iterator[Session]:
        """Open a session that stays open from one statement to the next."""
        with Session(self, database or self.name) as opened:
            yield opened


def _json(text: str) -> Any:
    text = text.strip()
    return json.loads(text) if text else None


def first_error(stderr: str) -> str:
    """Return the first line of *stderr* that says what is wrong, without psql's own prefix."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    for line in lines:
        if "ERROR:" in line or "FATAL:" in line or "error:" in line:
            return re.sub(r"^.*(?:ERROR|FATAL):\s+|^.*?error:\s+", "", line)
    return lines[-1] if lines else "no reason was given"


def advice(said: str) -> str:
    """Return what to do about the server's words *said*."""
    if "does not exist" in said and "database" in said:
        return "create it with its owner, or correct app_database.name"
    if "password" in said or "authentication" in said or "role" in said:
        return "correct the user and password of app_database (or app_database_admin)"
    if "unsupported startup parameter" in said:
        return "this is a pooler: name the server itself in app_database.host and app_database.port"
    if "permission denied" in said or "must be" in said:
        return "grant that right, or name a role that has it in app_database_admin"
    if "not currently accepting connections" in said:
        return (
            "a restore was cut short: run playbooks/rollback.yml --tags restore again, or allow connections by hand "
            "(ALTER DATABASE … ALLOW_CONNECTIONS true)"
        )
    if "connect" in said or "could not" in said or "server closed" in said or "no answer" in said:
        return "start the server, or correct app_database.host and app_database.port"
    if "No space left" in said:
        return "make room on the server's disk"
    return "correct that and run again"


def exit_words(code: int) -> str:
    """Return the exit code *code* of a program in words."""
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def failure_advice(said: str, target: Path | None = None, free: int | None = None) -> str:
    """Return what to do when a dump to *target*, or a restore on the server (None), ended with the words *said*."""
    if re.search(r"No space|write error|could not write|Disk quota|fsync", said):
        place = f" of {target.parent}" if target else " of the server"
        return f"make room on the disk{place}{f' ({free} bytes are free)' if free is not None else ''} and try again"
    if "permission denied" in said or "must be" in said:
        return "grant that right, or name a role that has it in app_database_admin"
    if "unrecognized configuration parameter" in said:
        return (
            "pg_restore is newer than the server: install the postgresql-client of the server's own version"
        )
    if "canceling statement due to lock timeout" in said or "lock" in said:
        return "another session holds a lock: end its transaction (see pg_stat_activity) and try again"
    return "see the server's log, correct that and try again"


class Session:
    """One psql process and its connection; statements go in one after the other, within a transaction of their own."""

    def __init__(self, client: Client, database: str) -> None:
        self.client = client
        self.database = database
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the session
        self.process = subprocess.Popen(
            [*client.psql(), *client.arguments(database)],
            cwd="/",
            env={**base_environment(client.login.os_user), **client.environment()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            start_new_session=True,
            **identity(client.login.os_user),
        )
        with contextlib.suppress(OSError):
            self.process.stdin.write(MORE_LIMITS.encode())
            self.process.stdin.flush()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session; an open transaction is rolled back."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            end_group(self.process)
        self.process.stdout.close()
        self.errors.close()

    def ask(self, sql: str, timeout: float = STATEMENT) -> str:
        """Return the output of *sql*.

        :raises Problem: with the server's words; the session is over then.
        """
        try:
            self.process.stdin.write(f"{sql};\n\\echo {END}\n".encode())
            self.process.stdin.flush()
        except OSError:
            pass
        deadline = time.monotonic() + timeout
        answer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while END.encode() not in answer:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise self._lost(True, timeout)
                chunk = os.read(self.process.stdout.fileno(), 1 << 20)
                if not chunk:
                    raise self._lost(False, timeout)
                answer += chunk
        return answer.decode("utf-8", "surrogateescape").replace(END, "").strip("\n")

    def query(self, sql: str) -> Any:
        """Return the JSON value that *sql* answers with."""
        return _json(self.ask(sql))

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows of *sql*, each a mapping of its columns."""
        return self.query(f"SELECT coalesce(json_agg(found), '[]') FROM ({sql}) AS found") or []

    def _lost(self, timed_out: bool, timeout: float) -> Problem:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        self.errors.seek(0)
        return self.client.problem(
            self.database, self.errors.read().decode(errors="replace"), timed_out, timeout
        )


class Stage(NamedTuple):
    """One program of a pipeline."""

    argv: list[str]
    environment: dict[str, str]
    os_user: str | None = None


def pipeline(
    stages: Sequence[Stage],
    *,
    source: Any = subprocess.DEVNULL,
    target: Any = subprocess.DEVNULL,
    timeout: float,
    secrets: Sequence[str] = (),
) -> list[tuple[int, str]]:
    """Run *stages* with each one's output as the next one's input; return (exit code, errors) of each.

    :param source: what the first one reads; :param target: what the last one writes to.
    :param timeout: seconds for all; a stage that is killed for it has a negative exit code.
    """
    processes: list[subprocess.Popen[bytes]] = []
    errors = []
    try:
        given = source
        for number, stage in enumerate(stages):
            last = number == len(stages) - 1
            errors.append(tempfile.TemporaryFile())  # noqa: SIM115 - closed below
            process = subprocess.Popen(
                stage.argv,
                cwd="/",
                env={**base_environment(stage.os_user), **stage.environment},
                stdin=given,
                stdout=target if last else subprocess.PIPE,
                stderr=errors[-1],
                start_new_session=True,
                **identity(stage.os_user),
            )
            if processes:
                # Only the next stage may hold this end: the one before must see when nobody reads any more.
                processes[-1].stdout.close()
            processes.append(process)
            given = process.stdout
        deadline = time.monotonic() + timeout
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            if process.poll() is None:
                end_group(process)
    result = []
    for process, stream in zip(processes, errors):
        stream.seek(0)
        result.append((process.returncode, redact(stream.read().decode(errors="replace"), secrets)))
        stream.close()
    return result
