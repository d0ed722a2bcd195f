# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a command for a gate: bounded in time to a fraction of a second, and in memory whatever it prints.

``_command.run`` keeps the whole output and gives a command seconds to end. A gate may outlive its deadline by one
second, and asks commands that nobody has tried before.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets as random
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._command import base_environment, identity
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._processes import PROC, pids, variables

# Bytes that are kept of the beginning, and of the end, of each stream.
KEPT = 512 * 1024
# Seconds between SIGTERM and SIGKILL, and for the dead to go; together below the grace of _gate.until.
TERM_GRACE = 0.15
KILL_GRACE = 0.25
# Seconds between two looks whether the command has ended, and for what lies in the pipes when it has.
LOOK = 0.02
DRAIN = 0.1
# Inherited by whatever the command starts, so that it is found in a session of its own, too.
MARK = "RUNBOOK_GATE_RUN"
# Control characters and terminal sequences (ECMA-48, 5.4) are nothing for a log.
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Unrunnable(Exception):
    """The command could not even be started; ``text`` says why, as a part of a sentence."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Output:
    """What came out of one stream: its first and its last ``KEPT`` bytes; ``size`` is how many there were."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self.size = 0

    def add(self, data: bytes) -> None:
        """Take *data*."""
        self.size += len(data)
        room = KEPT - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > 2 * KEPT:
            del self._tail[:-KEPT]

    @property
    def cut(self) -> bool:
        """Whether there was more than is kept."""
        return self.size > 2 * KEPT

    def parts(self) -> list[str]:
        """Return what is kept: the whole, or the beginning and the end."""
        if not self.cut:
            return [(self._head + self._tail).decode("utf-8", "replace")]
        return [bytes(part).decode("utf-8", "replace") for part in (self._head, self._tail[-KEPT:])]

    def text(self) -> str:
        """Return what is kept, to be shown; a line in brackets stands for what is not."""
        left_out = self.size - 2 * KEPT
        return f"\n[… {left_out} bytes left out …]\n".join(self.parts())


class Ended(NamedTuple):
    """A command that has ended: ``rc`` is negative for a signal, ``seconds`` is wall time; ``timed_out``: we killed it
    for its time, ``flooded``: for its output."""

    rc: int
    stdout: Output
    stderr: Output
    seconds: float
    timed_out: bool
    flooded: bool


def plain(text: str) -> str:
    """Return *text* without control characters, except for tabs and ends of lines."""
    return _ESCAPE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def excerpt(text: str, lines: int = 8, width: int = 200) -> str:
    """Return the first and the last *lines* lines of *text* that are not empty, each of at most *width* characters."""
    found = [line.rstrip() for line in plain(text).splitlines() if line.strip()]
    if len(found) > 2 * lines:
        found = [*found[:lines], f"[… {len(found) - 2 * lines} lines …]", *found[-lines:]]
    return "\n".join(line if len(line) <= width else f"{line[: width - 1]}…" for line in found)


def run_bounded(
    argv: Sequence[str],
    *,
    cwd: str | os.PathLike[str] = "/",
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    timeout: float,
    most: int | None = None,
) -> Ended:
    """Run *argv* to its end with standard input closed, and leave nothing of it.

    What is still in the command's session when it has ended is killed; a daemon that made a session of its own stays.
    A command that is killed for its time or output goes with everything that it started.

    :param environment: added to ``base_environment``; :param user: whom to run as, None for the present user.
    :param timeout: seconds; outlived by at most ``TERM_GRACE + KILL_GRACE``.
    :param most: bytes of standard output after which the command is killed; None: never.
    :raises Unrunnable: when it cannot be started.
    """
    token = random.token_hex(8)
    begun = time.monotonic()
    try:
        variables_ = {**base_environment(user), **(environment or {}), MARK: token}
        process = subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=variables_,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            umask=0o027,
            **identity(user),
        )
    except KeyError as error:
        raise Unrunnable(f"the user {user!r} does not exist on this host") from error
    except Problem as problem:
        raise Unrunnable(problem.message.rstrip(".")) from problem
    except ValueError as error:
        raise Unrunnable(f"its words cannot be passed on ({error})") from error
    except OSError as error:
        raise Unrunnable(_why(error, argv[0], cwd)) from error
    outputs = {process.stdout: Output(), process.stderr: Output()}
    timed_out = flooded = False
    limit = begun + timeout
    try:
        with selectors.DefaultSelector() as selector:
            for stream in outputs:
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ)
            while process.poll() is None:
                left = limit - time.monotonic()
                timed_out = left <= 0
                flooded = most is not None and outputs[process.stdout].size > most
                if timed_out or flooded:
                    break
                _read(selector, outputs, min(LOOK, left))
            ended = time.monotonic()
            # Nobody is left to fill the pipes, except for daemons, which are not waited for.
            _kill(process, token, everything=timed_out or flooded)
            drained = time.monotonic() + DRAIN
            while _read(selector, outputs, 0) and time.monotonic() < drained:
                pass
    finally:
        if process.poll() is None:
            _kill(process, token, everything=True)
        for stream in outputs:
            stream.close()
    rc = process.returncode
    return Ended(
        -signal.SIGKILL if rc is None else rc,
        outputs[process.stdout],
        outputs[process.stderr],
        ended - begun,
        timed_out,
        flooded,
    )


def _why(error: OSError, program: str, cwd: str | os.PathLike[str]) -> str:
    """Return why a program could not be started; the kernel does not say whether it is the program or its directory."""
    if (
        error.filename is not None
        and os.fspath(error.filename) == os.fspath(cwd)
        and program != os.fspath(cwd)
    ):
        return f"the directory {os.fspath(cwd)!r} cannot be entered: {(error.strerror or str(error)).lower()}"
    if isinstance(error, FileNotFoundError) and os.path.isfile(program):
        return f"the interpreter that {program!r} names in its first line is not there"
    if isinstance(error, FileNotFoundError):
        return f"the program {program!r} is not found"
    if isinstance(error, PermissionError):
        return f"the program {program!r} may not be executed"
    return f"the program {program!r} cannot be started: {(error.strerror or str(error)).lower()}"


def _read(selector: selectors.BaseSelector, outputs: Mapping[Any, Output], wait: float) -> bool:
    """Take what the streams hold, waiting at most *wait* seconds for something; return whether there was any."""
    if not selector.get_map():
        time.sleep(max(0.0, wait))
        return False
    found = False
    for key, _events in selector.select(max(0.0, wait)):
        try:
            data = os.read(key.fd, 1 << 16)
        except (BlockingIOError, InterruptedError):
            continue
        if not data:
            selector.unregister(key.fileobj)
            continue
        outputs[key.fileobj].add(data)
        found = True
    return found


def _family(process: subprocess.Popen[bytes], token: str, everything: bool) -> set[int]:
    """Return the living processes of the command *process*: those of its session and group.

    :param everything: also their descendants, and whoever carries the mark *token*: daemons of the command's own.
    """
    leader = process.pid
    parents: dict[int, int] = {}
    found: set[int] = set()
    for pid in pids():
        try:
            with open(f"{PROC}/{pid}/stat", encoding="utf-8", errors="replace") as stream:
                rest = stream.read().rpartition(")")[2].split()
        except OSError:
            continue
        # proc_pid_stat(5): state, ppid, pgrp, session.
        if len(rest) < 4 or rest[0] in "ZX":
            continue
        parents[pid] = int(rest[1])
        if leader in (int(rest[2]), int(rest[3])) or (everything and variables(pid).get(MARK) == token):
            found.add(pid)
    grew = everything
    while grew:
        children = {pid for pid, parent in parents.items() if parent in found or parent == leader} - found
        grew = bool(children)
        found |= children
    return found - {os.getpid()}


def _kill(process: subprocess.Popen[bytes], token: str, everything: bool) -> None:
    """End what is left of *process*: TERM for those that do more than sleep, then KILL until nobody is left."""
    family = _family(process, token, everything)
    if not family and process.poll() is not None:
        return
    _signal(family, signal.SIGTERM)
    term = time.monotonic() + TERM_GRACE
    while time.monotonic() < term and (family := _family(process, token, everything)):
        process.poll()
        time.sleep(LOOK)
    limit = time.monotonic() + KILL_GRACE
    # Again, because a process may have forked while the others were looked at.
    while family and time.monotonic() < limit:
        _signal(family, signal.SIGKILL)
        process.poll()
        time.sleep(LOOK / 4)
        family = _family(process, token, everything)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.05)


def _signal(family: set[int], number: int) -> None:
    for pid in family:
        # Gone meanwhile, or of another user, whom only root may end.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
