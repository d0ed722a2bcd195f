# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values from SQL, commands, Redis and processes.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _redis
from ansible_collections.runbook.deploy.plugins.module_utils._bounded import (
    KILL_GRACE,
    TERM_GRACE,
    Unrunnable,
    excerpt,
    run_bounded,
)
from ansible_collections.runbook.deploy.plugins.module_utils._command_spec import argv_of
from ansible_collections.runbook.deploy.plugins.module_utils._conditions import (
    compile_pattern,
    lookup,
    number,
    parse_path,
    shown,
)
from ansible_collections.runbook.deploy.plugins.module_utils._gate_spec import flag, keys, mapping
from ansible_collections.runbook.deploy.plugins.module_utils._metrics_source import (
    VALUE,
    Means,
    Source,
    Unsampled,
    reading,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._sql_session import (
    CLIENT_GRACE,
    Answer,
    Session,
    Unasked,
    require_one_reading,
    session_of,
)
from ansible_collections.runbook.deploy.plugins.module_utils._systemd import parse_show
from ansible_collections.runbook.deploy.plugins.module_utils._thresholds import Reading
from ansible_collections.runbook.deploy.plugins.module_utils._usage import Usage, usage

# Kept for a client to end after the time that it is given.
ENDING = TERM_GRACE + KILL_GRACE
SHORTEST = 0.05
# What is calculated from the fields of INFO; all others are taken as they are.
REDIS_FIGURES = ("hit_rate", "recent_hit_rate", "used_memory_percent")
PROCESS_FIGURES = {"memory": "B", "cpu": "%", "processes": "", "threads": "", "open_files": ""}


class SqlSource(Source):
    """One row of a query; its columns are the values."""

    kind = "sql"
    names = None

    def __init__(self, item: Mapping[str, Any], where: str) -> None:
        keys(item, ("kind", "query"), where, "{kind: sql, query: SELECT count(*) FROM orders}")
        if not isinstance(item.get("query"), str):
            raise Problem(f"{where}.query must be a statement, found {item.get('query')!r}.")
        self.query = require_one_reading(item["query"], None, f"{where}.query")
        self.where = where
        self._session: Session | None = None

    def open(self, means: Means) -> None:
        """See :meth:`Source.open`."""
        if means.database is None:
            raise Problem(f"{self.where} needs a database: give the option database, such as app_database.")
        self._session = session_of(means.database, means.user)
        self.query = require_one_reading(self.query, self._session.engine, f"{self.where}.query")

    def sample(self, timeout: float) -> dict[str, Reading]:
        """See :meth:`Source.sample`."""
        if self._session is None:
            raise ValueError("open() comes first")
        try:
            return read_row(self._session.ask(self.query, max(SHORTEST, timeout - CLIENT_GRACE - KILL_GRACE)))
        except Unasked as error:
            raise Unsampled(error.text.rstrip(".")) from error

    def place(self) -> str:
        """See :meth:`Source.place`."""
        return self._session.place() if self._session else "the database"

    def repeat(self) -> str:
        """See :meth:`Source.repeat`."""
        return self._session.repeat(self.query) if self._session else self.query


def read_row(answer: Answer) -> dict[str, Reading]:
    """Return the values of the only row of *answer*, by column; that of a single column is also called ``value``.

    :raises Unsampled: when there are several rows.
    """
    if len(answer.rows) > 1:
        raise Unsampled(
            f"the query returns {'more than ' if answer.more else ''}{len(answer.rows)} rows, expected one"
        )
    if not answer.rows:
        found = {name: Reading(None, "the query returns no row") for name in answer.columns}
        return found or {VALUE: Reading(None, "the query returns no row")}
    found = {}
    for name, value in zip(answer.columns, answer.rows[0]):
        why = "it is NULL" if value is None else f"it is {shown(value)}, which is no finite number"
        found[name] = reading(number(value), why)
    if len(found) == 1:
        found[VALUE] = next(iter(found.values()))
    return found


class CommandSource(Source):
    """What a command prints: a number, numbers found by patterns, or values in JSON."""

    kind = "command"

    def __init__(self, item: Mapping[str, Any], where: str) -> None:
        keys(
            item,
            ("kind", "command", "chdir", "json", "patterns", "harmless"),
            where,
            "{kind: command, command: [bin/figures]}",
        )
        self.argv = argv_of(item.get("command"), f"{where}.command")
        self.chdir = item.get("chdir")
        if self.chdir is not None and (not isinstance(self.chdir, str) or not os.path.isabs(self.chdir)):
            raise Problem(f"{where}.chdir must be an absolute path, found {self.chdir!r}.")
        self.paths = mapping(item.get("json"), f"{where}.json")
        for name, path in self.paths.items():
            parse_path(_text(path, f"{where}.json.{name}"))
        self.patterns = {
            name: compile_pattern(_text(pattern, f"{where}.patterns.{name}"), f"{where}.patterns.{name}")
            for name, pattern in mapping(item.get("patterns"), f"{where}.patterns").items()
        }
        self.harmless = flag(item.get("harmless", False), f"{where}.harmless")
        self.names = (*self.paths, *self.patterns) or (VALUE,)
        self._means: Means | None = None

    def open(self, means: Means) -> None:
        """See :meth:`Source.open`."""
        self._means = means

    def sample(self, timeout: float) -> dict[str, Reading]:
        """See :meth:`Source.sample`."""
        if self._means is None:
            raise ValueError("open() comes first")
        try:
            ended = run_bounded(
                self.argv,
                cwd=self.chdir or self._means.chdir or "/",
                environment=self._means.environment,
                user=self._means.user,
                timeout=max(SHORTEST, timeout - ENDING),
            )
        except Unrunnable as error:
            raise Unsampled(error.text) from error
        if ended.timed_out:
            raise Unsampled(f"it had not ended after {ended.seconds:.1f} s and was killed")
        if ended.rc != 0:
            said = excerpt(ended.stderr.text() or ended.stdout.text(), 2)
            raise Unsampled(f"it ended with exit code {ended.rc}{f': {said}' if said else ''}")
        if ended.stdout.cut and (self.paths or not self.patterns):
            raise Unsampled(f"it printed {ended.stdout.size} bytes, too many to be read whole")
        return self.read(ended.stdout.text())

    def read(self, output: str) -> dict[str, Reading]:
        """Return the values in *output*.

        :raises Unsampled: when it is no JSON where that is expected.
        """
        found: dict[str, Reading] = {}
        if self.paths:
            try:
                document = json.loads(output)
            except ValueError as error:
                raise Unsampled(f"it printed no JSON ({error}): {excerpt(output, 1)!r}") from error
            for name, path in self.paths.items():
                present, value = lookup(document, path)
                why = f"{path} is {shown(value)}, which is no finite number" if present else str(value)
                found[name] = reading(number(value) if present else None, why)
        for name, pattern in self.patterns.items():
            matches = list(pattern.finditer(output))
            # As in a gate of commands: of several matches the last counts, of a match its first group.
            text = (matches[-1].group(1) if pattern.groups else matches[-1].group(0)) if matches else None
            why = (
                f"{pattern.pattern!r} is not in what it printed"
                if text is None
                else f"{text!r} is no finite number"
            )
            found[name] = reading(number(text), why)
        if not found:
            found[VALUE] = reading(
                number(output.strip()), f"it printed {excerpt(output, 1)[:80]!r}, which is no finite number"
            )
        return found

    def place(self) -> str:
        """See :meth:`Source.place`."""
        return f"the command {shlex.join(self.argv)}"

    def repeat(self) -> str:
        """See :meth:`Source.repeat`."""
        chdir = self.chdir or (self._means.chdir if self._means else None) or "/"
        user = self._means.user if self._means else None
        words = ["sudo", "-u", user, "--", *self.argv] if user else self.argv
        return f"cd {shlex.quote(chdir)} && {shlex.join(words)}"


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise Problem(f"{where} must be a text, found {value!r}.")
    return value


class RedisSource(Source):
    """The fields of Redis' INFO, and what follows from them."""

    kind = "redis"
    names = None

    def __init__(self, item: Mapping[str, Any], where: str) -> None:
        keys(
            item,
            ("kind", "address", "secret", "username", "tls"),
            where,
            "{kind: redis, address: 127.0.0.1:6379}",
        )
        self.where = where
        self.address = item.get("address", f"127.0.0.1:{_redis.PORT}")
        if not isinstance(self.address, str):
            raise Problem(f"{where}.address must be a text such as 127.0.0.1:6379, found {self.address!r}.")
        _redis.parse_address(self.address)
        self.secret = None if item.get("secret") is None else str(item["secret"])
        self.username = None if item.get("username") is None else str(item["username"])
        self.tls = flag(item.get("tls", False), f"{where}.tls")
        self._password: str | None = None
        self._ca: str | None = None
        self._before: tuple[float, float] | None = None

    def unit(self, name: str) -> str:
        """See :meth:`Source.unit`."""
        if name in REDIS_FIGURES:
            return "share"
        sized = name.startswith(("used_memory", "maxmemory", "total_system_memory")) or name.endswith(
            "_bytes"
        )
        return "B" if sized and not name.endswith(("_human", "_perc", "_policy")) else ""

    def open(self, means: Means) -> None:
        """See :meth:`Source.open`."""
        self._password = means.secret(self.secret, f"{self.where}.secret")
        self._ca = means.ca_path

    def sample(self, timeout: float) -> dict[str, Reading]:
        """See :meth:`Source.sample`."""
        try:
            fields = _redis.info(self.address, self._password, self.username, self.tls, timeout, self._ca)
        except _redis.Unanswered as error:
            raise Unsampled(error.text) from error
        result, self._before = read_fields(fields, self._before)
        return result

    def place(self) -> str:
        """See :meth:`Source.place`."""
        return f"Redis at {_redis.parse_address(self.address, self.tls).place}"

    def repeat(self) -> str:
        """See :meth:`Source.repeat`."""
        place = _redis.parse_address(self.address, self.tls)
        words = ["-s", place.path] if place.path else ["-h", place.host, "-p", str(place.port)]
        words += ["--tls"] if place.tls else []
        words += ["--user", self.username] if self.username else []
        words += ["--askpass"] if self.secret else []
        return shlex.join(["redis-cli", *words, "INFO"])


def read_fields(
    fields: Mapping[str, Any], before: tuple[float, float] | None
) -> tuple[dict[str, Reading], tuple[float, float] | None]:
    """Return the values in the *fields* of INFO, and the hits and misses for the next sample.

    :param before: hits and misses of the sample before; None for the first one.
    """
    found = {
        name: reading(number(text), f"it is {text!r}, which is no finite number")
        for name, text in fields.items()
    }

    def value(name: str) -> float | None:
        return found[name].value if name in found else None

    hits, misses = value("keyspace_hits"), value("keyspace_misses")
    now = None
    if hits is None or misses is None:
        nothing = Reading(None, "INFO has no keyspace_hits and keyspace_misses: may this user see them?")
        found["hit_rate"] = found["recent_hit_rate"] = nothing
    else:
        now = (hits, misses)
        asked = hits + misses
        none = Reading(None, "nothing has been read from it since it was started")
        found["hit_rate"] = Reading(hits / asked) if asked > 0 else none
        if before is None:
            found["recent_hit_rate"] = Reading(None, "it takes two samples", pending=True)
        else:
            # Both begin again at 0 together, when the server is started or its figures are reset.
            again = hits < before[0] or misses < before[1]
            more, less = (hits, misses) if again else (hits - before[0], misses - before[1])
            none = Reading(None, "nothing was read from it since the sample before")
            found["recent_hit_rate"] = Reading(more / (more + less)) if more + less > 0 else none
    used, most = value("used_memory"), value("maxmemory")
    if used is not None and most is not None and most > 0:
        found["used_memory_percent"] = Reading(used / most)
    else:
        found["used_memory_percent"] = Reading(
            None, "the server has no maxmemory: set it, or judge used_memory"
        )
    return found, now


class ProcessSource(Source):
    """What a process and all that it has started use."""

    kind = "process"
    names = tuple(PROCESS_FIGURES)

    def __init__(self, item: Mapping[str, Any], where: str) -> None:
        keys(item, ("kind", "pid_file", "unit"), where, "{kind: process, unit: shop.service}")
        self.pid_file, self.unit_name = item.get("pid_file"), item.get("unit")
        if (self.pid_file is None) == (self.unit_name is None):
            raise Problem(f"{where} must have either pid_file or unit.")
        if self.pid_file is not None and (
            not isinstance(self.pid_file, str) or not os.path.isabs(self.pid_file)
        ):
            raise Problem(f"{where}.pid_file must be an absolute path, found {self.pid_file!r}.")
        if self.unit_name is not None and (
            not isinstance(self.unit_name, str) or not self.unit_name or self.unit_name.startswith("-")
        ):
            raise Problem(f"{where}.unit must be the name of a unit of systemd, found {self.unit_name!r}.")
        self._before: tuple[float, Usage] | None = None

    def unit(self, name: str) -> str:
        """See :meth:`Source.unit`."""
        return PROCESS_FIGURES.get(name, "")

    def sample(self, timeout: float) -> dict[str, Reading]:
        """See :meth:`Source.sample`."""
        pid = self._main_of_file() if self.pid_file is not None else self._main_of_unit(timeout)
        at = time.monotonic()
        found = usage(pid)
        if found is None:
            raise Unsampled(f"the process {pid} is not there")
        before, self._before = self._before, (at, found)
        files = Reading(None, f"the open files of the process {pid} may not be seen by uid {os.geteuid()}")
        return {
            "memory": Reading(float(found.memory)),
            "cpu": share_of_time(before, (at, found)),
            "processes": Reading(float(found.processes)),
            "threads": Reading(float(found.threads)),
            "open_files": files if found.files is None else Reading(float(found.files)),
        }

    def _main_of_file(self) -> int:
        try:
            with open(str(self.pid_file), encoding="ascii", errors="replace") as stream:
                text = stream.read(64).strip()
        except OSError as error:
            raise Unsampled(
                f"{self.pid_file} cannot be read: {(error.strerror or str(error)).lower()}"
            ) from error
        if not text.isdecimal() or int(text) < 1:
            raise Unsampled(f"{self.pid_file} holds {text!r}, which is no process")
        return int(text)

    def _main_of_unit(self, timeout: float) -> int:
        argv = [
            "systemctl",
            "--no-pager",
            "show",
            "-p",
            "LoadState,ActiveState,MainPID",
            "--",
            str(self.unit_name),
        ]
        try:
            ended = run_bounded(argv, timeout=max(SHORTEST, timeout - ENDING))
        except Unrunnable as error:
            raise Unsampled(error.text) from error
        if ended.timed_out or ended.rc != 0:
            said = excerpt(ended.stderr.text(), 1) or "no answer in time"
            raise Unsampled(f"systemd says nothing of {self.unit_name}: {said}")
        found = parse_show(ended.stdout.text())
        if found.get("LoadState") == "not-found":
            raise Unsampled(f"there is no unit {self.unit_name} on this host")
        pid = found.get("MainPID", "0")
        if not pid.isdecimal() or int(pid) == 0:
            raise Unsampled(
                f"the unit {self.unit_name} has no main process; it is {found.get('ActiveState', 'unknown')}"
            )
        return int(pid)

    def place(self) -> str:
        """See :meth:`Source.place`."""
        return f"the unit {self.unit_name}" if self.unit_name else f"the process of {self.pid_file}"

    def repeat(self) -> str:
        """See :meth:`Source.repeat`."""
        if self.unit_name:
            return shlex.join(["systemctl", "status", str(self.unit_name)])
        return f'ps -o pid,ppid,rss,pcpu,nlwp,args -p "$(cat {shlex.quote(str(self.pid_file))})"'


def share_of_time(before: tuple[float, Usage] | None, now: tuple[float, Usage]) -> Reading:
    """Return the percentage of one processor that was used between two moments; more than 100 for several processors."""
    if before is None or before[1].main != now[1].main or now[0] <= before[0]:
        # Another main process: what it has used is no difference to the one before.
        return Reading(None, "it takes two samples of the same process", pending=True)
    # A descendant that has ended and whose parent did not wait for it takes its time with it.
    return Reading(100 * max(0.0, now[1].cpu - before[1].cpu) / (now[0] - before[0]))
