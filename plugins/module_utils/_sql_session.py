# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a database one question that cannot change it, and take a bounded answer.

The server enforces what matters, because it alone reads the statement as it will run it: one statement
only, in a transaction that is READ ONLY, within a time.

PostgreSQL: the text travels as hexadecimal digits and is opened as a cursor by PL/pgSQL, which takes one statement
that returns rows ("cannot open multi-query plan as cursor"); FETCH bounds the rows
(https://www.postgresql.org/docs/current/plpgsql-cursors.html, 41.7.2.2).
MySQL and MariaDB: it travels the same way and is prepared by the server, which takes one statement, in a session that is READ ONLY
(https://dev.mysql.com/doc/refman/8.4/en/sql-prepared-statements.html).
SQLite: the file is opened read-only, query_only is set, and an authorizer refuses all but reading.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils import _mysql_client, _postgresql_client
from ansible_collections.runbook.deploy.plugins.module_utils._bounded import (
    Ended,
    Unrunnable,
    run_bounded,
)
from ansible_collections.runbook.deploy.plugins.module_utils._command import redact
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Rows and bytes of an answer; more is never needed to judge it.
ROWS = 1000
BYTES = 512 * 1024
# Characters of one value.
WIDTH = 4096
# Seconds that a client gets, after the server's own limit, to tell what the server said.
CLIENT_GRACE = 0.2
READING = ("select", "with", "values", "table", "show", "explain")
# Of each engine, what besides begins a statement that only reads.
ALSO = {"postgresql": (), "mysql": ("describe", "desc"), "sqlite": ("pragma",)}
# Reads, and yet writes files on the server, which a READ ONLY transaction allows.
_INTO_FILE = re.compile(r"\binto(?:\s|/\*.*?\*/)+(?:outfile|dumpfile)\b", re.IGNORECASE | re.DOTALL)
_LEADING = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|/\*(?![!M]).*?\*/|\()*", re.DOTALL)


class Answer(NamedTuple):
    """What a question was answered with: names of the columns, rows of texts, numbers or None, whether there were more than
    ``ROWS``, and the seconds that it took."""

    columns: list[str]
    rows: list[list[Any]]
    more: bool
    seconds: float


class Unasked(Exception):
    """A question without a usable answer.

    :param text: what was seen, a part of a sentence; :param kind: ``probe`` when it could not even be asked here,
        ``time`` when there was no answer in time, ``connection`` when the database could not be reached, ``statement`` when
        it refused the statement, ``size`` when the answer was too large.
    """

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.text = text
        self.kind = kind


def require_one_reading(sql: str, engine: str | None, where: str) -> str:
    """Return *sql* without the semicolon at its end.

    The server has the last word; this finds early what it would refuse, and what no READ ONLY transaction keeps off: a word
    in front such as KILL, and files written by the server.

    :param engine: None where it is not known yet.
    :raises Problem: when it does not begin like a statement that only reads.
    """
    text = sql.strip()
    while text.endswith(";"):
        text = text[:-1].rstrip()
    begin = text[_LEADING.match(text).end() :]  # type: ignore[union-attr]
    word = re.match(r"[A-Za-z]*", begin).group(0).lower()  # type: ignore[union-attr]
    also = ALSO[engine] if engine else tuple(word for words in ALSO.values() for word in words)
    known = (*READING, *also)
    if word not in known or "\0" in text:
        raise Problem(
            f"{where} must be one statement that only reads and begins with {', '.join(known).upper()}, found {text[:60]!r}."
        )
    if _INTO_FILE.search(text):
        raise Problem(f"{where} writes a file on the server: a gate only reads.")
    return text


class Session:
    """A database that can be asked; each question has a connection of its own.

    :param database: ``app_database``; :param user: the application's user, who logs in by a socket's peer where neither host
        nor password is given.
    """

    engine = ""

    def place(self) -> str:
        """Return where the database is, for messages."""
        raise NotImplementedError

    def ask(self, sql: str, timeout: float) -> Answer:
        """Return the answer to *sql*, one statement that reads, within *timeout* seconds.

        :raises Unasked: when there is none.
        """
        raise NotImplementedError

    def repeat(self, sql: str) -> str:
        """Return the command that asks the same by hand, without a password."""
        raise NotImplementedError


def session_of(database: Mapping[str, Any], user: str | None) -> Session:
    """Return the session for ``database["engine"]``.

    :raises Problem: for an engine that is not known, or a database without a name.
    """
    engine = database.get("engine")
    if engine == "sqlite":
        # A host that asks for another engine may have a Python without sqlite3.
        from ansible_collections.runbook.deploy.plugins.module_utils._sql_sqlite import SqliteSession

        if not database.get("path"):
            raise Problem("database.path is missing: name the file of the SQLite database.")
        return SqliteSession(str(database["path"]))
    if engine not in ("postgresql", "mysql"):
        raise Problem(f"database.engine must be postgresql, mysql or sqlite, found {engine!r}.")
    if not database.get("name"):
        raise Problem("database.name is missing: name the database of the application.")
    return (
        PostgresqlSession(database, user)
        if database["engine"] == "postgresql"
        else MysqlSession(database, user)
    )


class _ServerSession(Session):
    """What both servers have in common: a client program is run for each question."""

    def _run(
        self, argv: list[str], environment: Mapping[str, str], os_user: str | None, timeout: float
    ) -> Ended:
        try:
            ended = run_bounded(
                argv,
                environment=environment,
                user=os_user,
                timeout=timeout + CLIENT_GRACE,
                most=BYTES,
            )
        except Unrunnable as error:
            raise Unasked(error.text, "probe") from error
        if ended.flooded or ended.stdout.cut:
            raise Unasked(f"the answer has more than {BYTES} bytes", "size")
        return ended


class PostgresqlSession(_ServerSession):
    """PostgreSQL, by psql."""

    engine = "postgresql"

    def __init__(self, database: Mapping[str, Any], user: str | None) -> None:
        from ansible_collections.runbook.deploy.plugins.module_utils._postgresql import logins

        self.client = _postgresql_client.Client(database, logins(database, None, user)[0])

    def place(self) -> str:
        """See :meth:`Session.place`."""
        return f"PostgreSQL database {self.client.name!r} at {self.client.address()}"

    def ask(self, sql: str, timeout: float) -> Answer:
        """See :meth:`Session.ask`; no start-up options, which poolers refuse."""
        try:
            program = _postgresql_client.tool("psql", "postgresql-client")
        except Problem as problem:
            raise Unasked(problem.message.rstrip("."), "probe") from problem
        # NULL must not be taken for a text, whatever the text.
        null = f"null-{os.urandom(8).hex()}"
        limit = max(1, int(timeout * 1000))
        argv = [
            program, "-X", "-q", "--csv", "-v", "ON_ERROR_STOP=1", "-P", f"null={null}", *self.client.arguments(),
            "-c", "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY",
            "-c", f"SET LOCAL statement_timeout = {limit}",
            "-c", f"SET LOCAL lock_timeout = {limit}",
            "-c", "DO $runbook$ DECLARE asked refcursor := 'runbook_gate'; BEGIN OPEN asked FOR EXECUTE "
            f"pg_catalog.convert_from(pg_catalog.decode('{sql.encode().hex()}', 'hex'), 'UTF8'); END $runbook$",
            "-c", f"FETCH {ROWS + 1} FROM runbook_gate",
            "-c", "ROLLBACK",
        ]  # fmt: skip
        environment = {
            "PGAPPNAME": _postgresql_client.APPLICATION,
            # libpq takes whole seconds, and 1 as 2.
            "PGCONNECT_TIMEOUT": str(max(2, int(timeout))),
            "PGCLIENTENCODING": "UTF8",
        }
        if self.client.login.password:
            environment["PGPASSWORD"] = self.client.login.password
        ended = self._run(argv, environment, self.client.login.os_user, timeout)
        if ended.timed_out:
            raise Unasked(f"no answer within {timeout:.1f} s", "time")
        if ended.rc != 0:
            stderr = redact(ended.stderr.text(), self.client.secrets)
            raise Unasked(_postgresql_client.first_error(stderr), _postgresql_kind(stderr, ended.rc))
        table = list(csv.reader(io.StringIO(ended.stdout.text(), newline="")))
        # psql writes a row of one empty text as an empty line, which is no row to csv.
        rows = [[None if cell == null else cell[:WIDTH] for cell in row or [""]] for row in table[1:]]
        return Answer(table[0] if table else [], rows[:ROWS], len(rows) > ROWS, ended.seconds)

    def repeat(self, sql: str) -> str:
        """See :meth:`Session.repeat`."""
        words = ["psql", *(word for word in self.client.arguments() if word != "--no-password")]
        words += ["-c", "BEGIN READ ONLY", "-c", sql]
        return shlex.join([*_as(self.client.login.os_user), *words])


def _postgresql_kind(stderr: str, rc: int) -> str:
    """Return what kind of failure psql's words are; its exit code is 2 for a connection that went bad."""
    if "canceling statement due to" in stderr:
        return "time"
    if "could not translate host name" in stderr:
        return "probe"
    return "connection" if rc == 2 else "statement"


class MysqlSession(_ServerSession):
    """MySQL and MariaDB, by their client."""

    engine = "mysql"

    def __init__(self, database: Mapping[str, Any], user: str | None) -> None:
        from ansible_collections.runbook.deploy.plugins.module_utils._mysql import logins

        self.client = _mysql_client.Client(database, logins(database, None, user)[0])

    def place(self) -> str:
        """See :meth:`Session.place`."""
        return f"MySQL database {self.client.name!r} at {self.client.address()}"

    def ask(self, sql: str, timeout: float) -> Answer:
        """See :meth:`Session.ask`; the client's XML tells NULL from a text."""
        try:
            program = _mysql_client.tool("mariadb", "mysql")
        except Problem as problem:
            raise Unasked(problem.message.rstrip("."), "probe") from problem
        seconds = max(1, int(timeout))
        statements = [
            # Of the session, not only of a transaction: MariaDB ends that one silently before it drops a table.
            "SET SESSION TRANSACTION READ ONLY",
            # Each server reads the limit of its own, and takes the other's for a comment.
            f"SET SESSION lock_wait_timeout = {seconds}, time_zone = '+00:00', sql_select_limit = {ROWS + 1}"
            f"/*!50708 , max_execution_time = {max(1, int(timeout * 1000))} *//*M!100101 , max_statement_time = {timeout:.3f} */",
            f"SET @runbook_gate = CONVERT(0x{sql.encode().hex()} USING utf8mb4)",
            "START TRANSACTION READ ONLY",
            "PREPARE runbook_gate FROM @runbook_gate",
            "EXECUTE runbook_gate",
            "ROLLBACK",
        ]
        try:
            with self.client.options() as options:
                argv = [
                    program, options, f"--connect-timeout={max(1, int(timeout))}", "--default-character-set=utf8mb4",
                    "--xml", "--quick", "--skip-reconnect", "-e", ";\n".join(statements), self.client.name,
                ]  # fmt: skip
                ended = self._run(argv, {}, self.client.login.os_user, timeout)
        except Problem as problem:
            raise Unasked(problem.message.rstrip("."), "probe") from problem
        if ended.timed_out:
            raise Unasked(f"no answer within {timeout:.1f} s", "time")
        if ended.rc != 0:
            stderr = redact(ended.stderr.text(), self.client.secrets)
            raise Unasked(_mysql_client.first_error(stderr), mysql_kind(stderr))
        columns, rows = read_xml(ended.stdout.text())
        return Answer(columns, rows[:ROWS], len(rows) > ROWS, ended.seconds)

    def repeat(self, sql: str) -> str:
        """See :meth:`Session.repeat`."""
        words = ["mysql"]
        words += [f"--user={self.client.login.user}"] if self.client.login.user else []
        if self.client.host.startswith("/"):
            words.append(f"--socket={self.client.host}")
        elif self.client.host:
            words.append(f"--host={self.client.host}")
            words += [f"--port={self.client.port}", "--protocol=tcp"] if self.client.port else []
        words += ["-p"] if self.client.login.password else []
        words += ["-e", f"START TRANSACTION READ ONLY; {sql}", self.client.name]
        return shlex.join([*_as(self.client.login.os_user), *words])


def mysql_kind(stderr: str) -> str:
    """Return what kind of failure the client's words are (numbers: the server's error reference)."""
    found = re.search(r"ERROR (\d+)", stderr)
    number = int(found.group(1)) if found else 0
    # Interrupted by max_statement_time, max_execution_time, lock_wait_timeout.
    if number in (1969, 3024, 1205):
        return "time"
    if number == 2005:
        return "probe"
    # Client errors, and what a server says to who may not come in.
    return (
        "connection"
        if number >= 2000
        and number < 3000
        or number in (1040, 1044, 1045, 1049, 1129, 1130, 1203, 1226, 1698)
        else "statement"
    )


def read_xml(text: str) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of the last result in *text*, the output of the client with ``--xml``; pure.

    :raises Unasked: when it cannot be read.
    """
    import xml.etree.ElementTree as etree  # only for this engine

    columns: list[str] = []
    rows: list[list[Any]] = []
    if not text.strip():
        return columns, rows
    # XML 1.0 has no way to write most control characters, and the client writes them as they are.
    clean = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "�", text)
    found = clean[clean.rfind("<?xml") :]
    try:
        document = etree.fromstring(found.encode())
    except etree.ParseError as error:
        raise Unasked(f"the client's answer cannot be read ({error})", "size") from error
    nil = "{http://www.w3.org/2001/XMLSchema-instance}nil"
    for row in document.iter("row"):
        fields = row.findall("field")
        columns = [field.get("name", "") for field in fields]
        rows.append([None if field.get(nil) == "true" else (field.text or "")[:WIDTH] for field in fields])
    return columns, rows


def _as(user: str | None) -> list[str]:
    return ["sudo", "-u", user, "--"] if user else []
