# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take a server out of an upstream of nginx and put it back: write the file, test, reload, wait for the old workers.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._balancer import (
    Server,
    answers,
    chosen,
    deadline_problem,
    host_of,
    port_of,
    require_another,
    wait_quiet,
    wait_steady,
)
from ansible_collections.runbook.deploy.plugins.module_utils._balancer_upstream import Line, parse, render
from ansible_collections.runbook.deploy.plugins.module_utils._layout import held, read_regular, write_atomic
from ansible_collections.runbook.deploy.plugins.module_utils._nginx import Nginx
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._processes import PROC

LOCK_TIMEOUT = 30.0
# Column `st` of /proc/net/tcp, the kernel's tcp_states.h: ESTABLISHED, SYN_SENT, FIN_WAIT1 (asked, half closed), CLOSE_WAIT.
TALKING = {"01", "02", "04", "08"}
SOCKET = re.compile(r"^socket:\[(\d+)\]$")


def remote(field: str) -> tuple[str, int]:
    """Return address and port of a field of /proc/net/tcp or tcp6 (proc_pid_net(5): words of the host's byte order)."""
    address, _colon, port = field.partition(":")
    raw = b"".join(bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8))
    if len(raw) == 4:
        return socket.inet_ntop(socket.AF_INET, raw), int(port, 16)
    if raw[:12] == bytes(10) + b"\xff\xff":
        return socket.inet_ntop(socket.AF_INET, raw[12:]), int(port, 16)
    return socket.inet_ntop(socket.AF_INET6, raw), int(port, 16)


def parse_talking(text: str, targets: Iterable[tuple[str, int]], inodes: Iterable[str]) -> list[str]:
    """Return the local ports of connections with *targets* that belong to the sockets *inodes*, from the text of /proc/net/tcp."""
    wanted, mine = set(targets), set(inodes)
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] in TALKING and fields[9] in mine and remote(fields[2]) in wanted:
            found.append(str(remote(fields[1])[1]))
    return found


def socket_inodes(pid: int) -> set[str]:
    """Return the inodes of the sockets that *pid* has open; none when it is gone.

    :raises PermissionError: when it belongs to somebody else.
    """
    found = set()
    try:
        for handle in os.listdir(f"{PROC}/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                match = SOCKET.match(os.readlink(f"{PROC}/{pid}/fd/{handle}"))
                if match:
                    found.add(match[1])
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return found


class NginxUpstream(Nginx):
    """One server of the upstream in one file."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self.path = Path(options["upstream_file"])
        self.upstream = options["backend"]
        self.name = options["server"] or ""
        self.place = f"nginx backend {self.upstream!r}"

    # The file

    def _read(self) -> tuple[str, list[Line]]:
        try:
            text = read_regular(self.path)
        except FileNotFoundError as error:
            raise Problem(
                f"The upstream file {self.path} does not exist: write it, with the line '# Managed by runbook.deploy' first, and include it in "
                "nginx's http block."
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise Problem(
                f"The upstream file {self.path} cannot be read ({getattr(error, 'strerror', None) or error}); expected a regular file: give its own "
                "path, and run this with become: true."
            ) from error
        return text, parse(text, str(self.path), self.upstream)

    def _write(self, text: str) -> None:
        """Put *text* in the place of the file, with the same owner and mode."""
        try:
            present = self.path.stat()
            write_atomic(self.path, text, stat.S_IMODE(present.st_mode), present.st_uid, present.st_gid)
        except OSError as error:
            raise Problem(
                f"The upstream file {self.path} cannot be written ({error.strerror}), and is as it was: run this with become: true, and see that "
                "there is space."
            ) from error

    def servers(self) -> list[Server]:
        """Return the servers of the upstream, as the file has them."""
        return [line.server for line in self._read()[1]]

    def _line(self) -> tuple[str, Line, list[Server]]:
        text, lines = self._read()
        servers = [line.server for line in lines]
        target = chosen(servers, self.name, self.place)
        return text, next(line for line in lines if line.name == target.name), servers

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            with held(self.path.parent, LOCK_TIMEOUT):
                yield
        except TimeoutError as error:
            raise Problem(
                f"Somebody else has held {self.path.parent} for {LOCK_TIMEOUT:g} s: see who does with 'fuser -v {self.path.parent}', then run again."
            ) from error

    # nginx

    def _apply(self, text: str, before: str) -> None:
        """Write *text*, test it, make nginx read it; whatever goes wrong, the text *before* is put back.

        :raises Problem: when nginx refuses it, or does not start workers with it.
        """
        master = self._master()
        if text != before:
            self._write(text)
        reloaded = False
        try:
            tested = self._nginx("-t", "-q")
            if tested.rc != 0:
                raise Problem(self._refused(before), tested.tail())
            reloaded = True
            self._reload(master, f"; {self.path} is as it was before")
        except BaseException:
            if text != before:
                self._write(before)
                if reloaded:
                    with contextlib.suppress(Problem):
                        self._nginx("-s", "reload")
            raise

    def _refused(self, before: str) -> str:
        """Return the sentence about a failed test, after the file was put back: it says whose fault it is."""
        self._write(before)
        own = self._nginx("-t", "-q").rc == 0
        return (
            f"nginx -t refuses the configuration {'with the change of' if own else 'even without any change of'} {self.path}, which is as it was before, "
            "and nothing was reloaded: correct what the evidence names, then run again."
        )

    def _addresses(self, address: str) -> set[tuple[str, int]]:
        """Return the addresses that a server of the upstream has; none for a Unix socket, whose connections carry no name."""
        host = host_of(address)
        if not host:
            return set()
        try:
            found = socket.getaddrinfo(host, port_of(address), type=socket.SOCK_STREAM)
        except OSError as error:
            raise Problem(
                f"The address {address!r} of {self.name} in {self.path} cannot be resolved ({error.strerror or error}): correct it, or the resolver."
            ) from error
        return {(str(item[4][0]), int(item[4][1])) for item in found}

    def _busy(self, master: int, targets: set[tuple[str, int]]) -> list[str]:
        """Return the connections that workers on their way out have with the server."""
        found = []
        for entry in self._workers(master)[1]:
            if not targets:
                found.append(f"worker {entry.pid} is not gone")
                continue
            try:
                inodes = socket_inodes(entry.pid)
            except PermissionError as error:
                raise Problem(
                    f"The connections of nginx's worker {entry.pid} cannot be seen by uid {os.geteuid()}: run this with become: true."
                ) from error
            for name in ("tcp", "tcp6"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    with open(f"{PROC}/{entry.pid}/net/{name}", encoding="ascii", errors="replace") as stream:
                        ports = parse_talking(stream.read(), targets, inodes)
                    found += [f"worker {entry.pid} from port {port}" for port in ports]
        return found

    # The work

    def drain(self, check_mode: bool) -> tuple[bool, list[str]]:
        """Mark it as down, reload, and wait until no old worker talks to it."""
        _text, line, servers = self._line()
        self.name = line.name
        if check_mode:
            require_another(servers, line.server, self.options["allow_last"], self.place)
            return line.server.admin == "ready", []
        master = self._master()
        targets = self._addresses(line.address)
        with self._alone():
            text, line, servers = self._line()
            took = line.server.admin == "ready"
            if took:
                require_another(servers, line.server, self.options["allow_last"], self.place)
            new = render(text, line, True) if took else text
            stale = self._behind(master, [self.path])
            if took or stale:
                self._apply(new, text)
        try:
            left = wait_quiet(
                lambda: self._busy(master, targets), time.monotonic() + self.options["drain_timeout"]
            )
            if left and self.options["on_deadline"] == "fail":
                after = "it gets requests again" if took else "it stays out"
                raise deadline_problem(self.name, self.place, left, self.options["drain_timeout"], after)
        except BaseException:
            if took:
                with contextlib.suppress(Problem):
                    self._put_in()
            raise
        return took or stale, left

    def _put_in(self) -> bool:
        """Take the mark away and reload; say whether there was anything to do."""
        with self._alone():
            text, line, _servers = self._line()
            new = render(text, line, False) if line.server.admin != "ready" else text
            stale = self._behind(self._master(), [self.path])
            if new != text or stale:
                self._apply(new, text)
            return new != text or stale

    def ready(self, check_mode: bool) -> bool:
        """See that it answers, as nginx does not ask before it sends requests; then take the mark away and reload."""
        _text, line, _servers = self._line()
        self.name = line.name
        if check_mode:
            return line.server.admin != "ready"
        if line.server.admin != "ready":
            wrong = wait_steady(
                lambda: answers(line.address, self.options["health_path"], self.options["health_host"]),
                self.options["checked"],
                time.monotonic() + self.options["ready_timeout"],
            )
            if wrong:
                raise Problem(
                    f"{self.name} of {self.place} is not ready after {self.options['ready_timeout']:g} s: {wrong}; it stays out, as it was: see the "
                    "application's log on that host, then run this again."
                )
        return self._put_in()
