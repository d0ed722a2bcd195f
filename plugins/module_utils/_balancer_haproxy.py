# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HAProxy's runtime API: what its tables mean, and the order in which a server is taken out and put back.

Sources: HAProxy's management guide, 9.1 (CSV format of ``show stat``) and 9.3 (``show servers state``, ``set server``).

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._balancer import (
    ANSWER,
    Server,
    answers,
    chosen,
    deadline_problem,
    require_another,
    state_of,
    wait_quiet,
    wait_steady,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import held, read_json, write_json
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Bits of srv_admin_state: FMAINT, IMAINT, CMAINT, RMAINT, HMAINT; FDRAIN, IDRAIN.
MAINT = 0x01 | 0x02 | 0x04 | 0x20 | 0x40
DRAIN = 0x08 | 0x10
# srv_op_state: 0 stopped, 1 starting, 2 running, 3 stopping (running, and told to take nothing new).
RUNNING = "2"
GOOD_CHECKS = ("L4OK", "L6OK", "L7OK", "L7OKC")
# An answer longer than that is no table of servers.
LONGEST = 64 << 20
# What may be part of a command: one word, that does not end it.
WORD = re.compile(r"^[A-Za-z0-9_.:-]+$")
LOCK_TIMEOUT = 30.0


def parse_stat(text: str) -> list[dict[str, str]]:
    """Return the rows of ``show stat``, by column.

    :raises ValueError: when *text* is no such table.
    """
    if not text.startswith("# "):
        raise ValueError(text.strip()[:200])
    return [dict(row) for row in csv.DictReader(io.StringIO(text[2:])) if row.get("svname")]


def parse_state(text: str) -> list[dict[str, str]]:
    """Return the rows of ``show servers state`` (format 1), by column.

    :raises ValueError: when *text* is no such table.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2 or lines[0].strip() != "1" or not lines[1].startswith("# "):
        raise ValueError(text.strip()[:200])
    names = lines[1][2:].split()
    return [dict(zip(names, line.split())) for line in lines[2:]]


def parse_sessions(text: str, backend: str, server: str) -> list[str]:
    """Return what ``show sess`` says about the sessions of *server*: where from, how old, through which frontend."""
    found = []
    for line in text.splitlines():
        fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
        if fields.get("be") == backend and fields.get("srv") == server:
            found.append(
                f"from {fields.get('src', '?')} through {fields.get('fe', '?')}, {fields.get('age', '?')} old"
            )
    return found


def number(text: str | None) -> int | None:
    """Return *text* as a number, None where it is empty or none."""
    return int(text) if text and text.lstrip("-").isdigit() else None


def admin_of(bits: int) -> str:
    """Return what ``srv_admin_state`` means."""
    return "maint" if bits & MAINT else "drain" if bits & DRAIN else "ready"


def fully_checked(stat: Mapping[str, str], state: Mapping[str, str]) -> bool | None:
    """Say whether the last checks of a server were all good; None where it has no checks.

    A server that leaves maintenance counts as up at once, with ``rise`` points; each good check adds one, up to
    ``rise + fall - 1``. Only then has it been asked since.
    """
    status = stat.get("check_status", "").removeprefix("* ")
    if not status:
        return None
    health, rise, fall = (number(stat.get(f"check_{name}")) for name in ("health", "rise", "fall"))
    full = health is None or rise is None or fall is None or health >= rise + fall - 1
    return status in GOOD_CHECKS and state.get("srv_op_state") == RUNNING and full


def combine(stats: str, states: str, backend: str, noted: Mapping[str, Any]) -> list[Server]:
    """Return the servers of *backend* from both tables; *noted*: names that this tool took out.

    :raises ValueError: when a text is no table.
    """
    rows = {row["svname"]: row for row in parse_stat(stats) if row["pxname"] == backend}
    servers = []
    for state in parse_state(states):
        if state.get("be_name") != backend or state.get("srv_name") not in rows:
            continue
        stat = rows[state["srv_name"]]
        admin = admin_of(int(state["srv_admin_state"]))
        check = stat.get("check_status", "").removeprefix("* ")
        word = stat.get("status", "")
        servers.append(
            Server(
                name=state["srv_name"],
                address=stat.get("addr") or f"{state['srv_addr']}:{state.get('srv_port', '')}",
                admin=admin,
                ours=admin != "ready" and state["srv_name"] in noted,
                # In maintenance nothing is checked, and what was seen before says nothing.
                up=None if not check or admin == "maint" else not word.startswith(("DOWN", "NOLB")),
                check=" ".join(part for part in (check, stat.get("last_chk", "")) if part),
                weight=number(state.get("srv_uweight")),
                effective=number(stat.get("weight")),
                backup=stat.get("bck") == "1",
                sessions=number(stat.get("scur")),
                queue=number(stat.get("qcur")),
            )
        )
    return servers


class Haproxy:
    """One server of one backend, through the socket of the runtime API."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options
        self.socket = options["socket"]
        self.backend = options["backend"]
        self.name = options["server"] or ""
        self.place = f"haproxy backend {self.backend!r}"
        self.notes = Path(options["notes"])
        for option in ("backend", "server"):
            if options[option] and not WORD.match(options[option]):
                raise Problem(
                    f"The option {option} is {options[option]!r}, expected a name of HAProxy: letters, digits and any of '_.:-'."
                )

    # The API

    def ask(self, command: str) -> str:
        """Return the answer to *command*.

        :raises Problem: when the socket cannot be used, or the level of the socket does not allow it.
        """
        try:
            with self._connected() as stream:
                stream.sendall(f"{command}\n".encode())
                stream.shutdown(socket.SHUT_WR)
                parts, size = [], 0
                while True:
                    block = stream.recv(1 << 16)
                    size += len(block)
                    if not block or size > LONGEST:
                        break
                    parts.append(block)
        except OSError as error:
            raise self._unusable(error) from error
        answer = b"".join(parts).decode(errors="replace")
        if answer.lower().startswith("permission denied"):
            raise Problem(
                f"HAProxy's socket {self.socket} does not allow {command.split()[0]!r}: add 'level admin' to its 'stats socket' line and "
                "reload HAProxy."
            )
        if answer.startswith("Unknown command"):
            raise Problem(
                f"What answers at {self.socket} does not know the command {' '.join(command.split()[:2])!r}: give the socket of HAProxy 1.8 or "
                "later ('stats socket'), not that of its master process.",
                "\n".join(answer.splitlines()[:5]),
            )
        return answer

    def _connected(self) -> socket.socket:
        if self.socket.startswith("/"):
            stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            stream.settimeout(ANSWER)
            try:
                stream.connect(self.socket)
            except BaseException:
                stream.close()
                raise
            return stream
        host, colon, port = self.socket.rpartition(":")
        if not colon or not port.isdigit():
            raise Problem(
                f"The option socket is {self.socket!r}, expected the absolute path of HAProxy's socket, or host:port."
            )
        return socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER)

    def _unusable(self, error: OSError) -> Problem:
        where = f"HAProxy's socket {self.socket}"
        if error.errno == errno.ENOENT:
            return Problem(
                f"{where} does not exist: give the path of its 'stats socket ... level admin' line as socket, and see that HAProxy runs."
            )
        if error.errno in (errno.EACCES, errno.EPERM):
            return Problem(
                f"{where} may not be used by uid {os.geteuid()}: run this with become: true, or give the socket's line a user and mode."
            )
        if error.errno == errno.ECONNREFUSED:
            return Problem(f"Nothing listens at {where}: HAProxy does not run; start it and run again.")
        if isinstance(error, TimeoutError):
            return Problem(
                f"{where} did not answer within {ANSWER:g} s: see whether HAProxy hangs, then run again."
            )
        return Problem(f"{where} cannot be used ({error.strerror or error}): correct that and run again.")

    def servers(self) -> list[Server]:
        """Return the servers of the backend.

        :raises Problem: when there is no such backend.
        """
        states = self.ask(f"show servers state {self.backend}")
        if "can't find backend" in states.lower():
            known = sorted({row["pxname"] for row in self._table("show stat") if row["svname"] == "BACKEND"})
            raise Problem(
                f"HAProxy at {self.socket} has no backend {self.backend!r}, only {', '.join(known) or 'none'}: give one of these as backend."
            )
        try:
            return combine(self.ask("show stat"), states, self.backend, self._noted())
        except (ValueError, KeyError) as error:
            raise self._no_table(str(error)) from error

    def _table(self, command: str) -> list[dict[str, str]]:
        try:
            return parse_stat(self.ask(command))
        except ValueError as error:
            raise self._no_table(str(error)) from error

    def _no_table(self, found: str) -> Problem:
        return Problem(
            f"What answers at {self.socket} is no runtime API of HAProxy: expected its tables of servers; give the right socket.",
            found,
        )

    def server(self) -> Server:
        """Return the server that this is about."""
        return chosen(self.servers(), self.name, self.place)

    def order(self, command: str, expected: str = "") -> None:
        """Run a command that changes the server; anything it answers is a refusal."""
        answer = self.ask(f"{command.replace('{}', f'{self.backend}/{self.name}')}").strip()
        if answer and answer != expected:
            raise Problem(
                f"HAProxy refused to change {self.name} of {self.place}: {answer.splitlines()[0].rstrip('.')}; correct that and run again."
            )

    # Who took it out: HAProxy does not remember

    def _note(self, name: str) -> Path:
        return self.notes / f"haproxy-{self.backend}-{name}.json"

    def _noted(self) -> dict[str, Any]:
        """Return the notes of servers that this tool took out, by name."""
        prefix = f"haproxy-{self.backend}-"
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for path in self.notes.glob(f"{prefix}*.json"):
                with contextlib.suppress(OSError, ValueError):
                    note = read_json(path)
                    if isinstance(note, dict) and note.get("backend") == self.backend:
                        found[str(note.get("server"))] = note
        return found

    def _write_note(self, before: Server) -> None:
        try:
            write_json(
                self._note(before.name),
                {
                    "backend": self.backend,
                    "server": before.name,
                    "admin": before.admin,
                    "weight": before.weight,
                    "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                },
                0o644,
            )
        except OSError as error:
            raise Problem(
                f"It cannot be noted in {self.notes} that {before.name} of {self.place} is taken out ({error.strerror}), so nothing was changed: "
                "give a directory that this user may write as notes."
            ) from error

    def _drop_note(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._note(self.name).unlink()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep others from taking out another server at the same moment: each would believe that one is left."""
        try:
            self.notes.mkdir(mode=0o755, parents=True, exist_ok=True)
            with held(self.notes, LOCK_TIMEOUT):
                yield
        except TimeoutError as error:
            raise Problem(
                f"Somebody else has held {self.notes} for {LOCK_TIMEOUT:g} s: see who does with 'fuser -v {self.notes}', then run again."
            ) from error
        except OSError as error:
            raise Problem(
                f"{self.notes} cannot be used ({error.strerror}), so nothing was changed: give a directory that this user may write as notes."
            ) from error

    # The work

    def _busy(self) -> list[str]:
        server = self.server()
        at_work = (server.sessions or 0) + (server.queue or 0)
        if not at_work:
            return []
        known = parse_sessions(self.ask("show sess"), self.backend, self.name)
        return known or [f"{server.sessions or 0} at work and {server.queue or 0} waiting for it"]

    def drain(self, check_mode: bool) -> tuple[bool, list[str]]:
        """Take nothing new, wait for what is at work, then go into maintenance."""
        self.name = self.server().name
        if check_mode:
            server = self.server()
            if server.admin == "ready":
                require_another(self.servers(), server, self.options["allow_last"], self.place)
            return server.admin == "ready" or (server.ours and server.admin == "drain"), []
        with self._alone():
            before = self.server()
            took = before.admin == "ready"
            if took:
                require_another(self.servers(), before, self.options["allow_last"], self.place)
                self._write_note(before)
                try:
                    self.order("set server {} state drain")
                except Problem:
                    self._drop_note()
                    raise
        by_hand = not took and not before.ours
        deadline = time.monotonic() + self.options["drain_timeout"]
        try:
            left = wait_quiet(self._busy, deadline)
            if left and self.options["on_deadline"] == "fail":
                after = "it takes requests again" if took else f"it stays in {before.admin}, as it was"
                raise deadline_problem(self.name, self.place, left, self.options["drain_timeout"], after)
            if not by_hand and self.server().admin != "maint":
                self.order("set server {} state maint")
                if not left:
                    # A session bound to it by a cookie could still begin until now.
                    left = wait_quiet(self._busy, max(deadline, time.monotonic() + 1))
                    if left and self.options["on_deadline"] == "fail":
                        after = "it takes requests again" if took else "it stays out"
                        raise deadline_problem(
                            self.name, self.place, left, self.options["drain_timeout"], after
                        )
        except BaseException:
            if took:
                with contextlib.suppress(Problem):
                    self.order("set server {} state ready")
                    self._drop_note()
            raise
        return not by_hand and before.admin != "maint", left

    def _unchecked(self) -> str:
        """Return "" where the balancer's own checks, and the health path, are good; else what is wrong."""
        states = self.ask(f"show servers state {self.backend}")
        rows = [row for row in parse_state(states) if row.get("srv_name") == self.name]
        stats = [
            row
            for row in self._table("show stat")
            if row["pxname"] == self.backend and row["svname"] == self.name
        ]
        if not rows or not stats:
            return "HAProxy does not know it any more"
        good = fully_checked(stats[0], rows[0])
        if good is False:
            words = (stats[0].get("check_status", "").removeprefix("* "), stats[0].get("check_code", ""))
            status = " ".join(word for word in words if word)
            told = stats[0].get("last_chk", "")
            return (
                f"its check says {status}{f' ({told})' if told else ''}, {stats[0].get('status', '').lower()}"
            )
        if good is None or self.options["health_path"]:
            return answers(stats[0].get("addr", ""), self.options["health_path"], self.options["health_host"])
        return ""

    def _unlike(self, weight: int | None) -> str:
        server = self.server()
        if not server.usable:
            return f"it is {state_of(server)}"
        if weight is not None and server.effective is not None and server.effective != weight:
            return f"its weight is {server.effective}, expected {weight}"
        return ""

    def ready(self, check_mode: bool) -> bool:
        """Check it while it gets nothing, then let it take requests with the weight that it had."""
        before = self.server()
        self.name = before.name
        if check_mode:
            return before.admin != "ready"
        note = self._noted().get(self.name, {})
        weight = note.get("weight") if note and before.admin != "ready" else before.weight
        deadline = time.monotonic() + self.options["ready_timeout"]
        changed = before.admin != "ready"
        try:
            if changed:
                if before.admin == "maint":
                    # In maintenance nothing is checked; out of it, it counts as up before the first check.
                    self.order("set server {} state drain")
                wrong = wait_steady(self._unchecked, self.options["checked"], deadline)
                if wrong:
                    raise self._not_ready(wrong, f"it was left in {before.admin}, without requests")
                self.order("set server {} state ready")
                if weight is not None and weight != before.weight:
                    self.order(f"set server {{}} weight {weight}")
            wrong = wait_steady(lambda: self._unlike(weight), 0, deadline)
            if wrong:
                after = f"it was put into {before.admin} again" if changed else "nothing was changed"
                raise self._not_ready(wrong, after)
        except BaseException:
            if changed:
                with contextlib.suppress(Problem):
                    self.order(f"set server {{}} state {before.admin}")
            raise
        self._drop_note()
        return changed

    def _not_ready(self, wrong: str, after: str) -> Problem:
        return Problem(
            f"{self.name} of {self.place} is not ready after {self.options['ready_timeout']:g} s: {wrong}; {after}: see the application's log on "
            "that host, then run this again."
        )
