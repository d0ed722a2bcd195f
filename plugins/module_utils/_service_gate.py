# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gate of services that stay up: the same main process, no worker replaced, and within bounds.

A master that listens while its workers die and come back looks healthy in every single look.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _proc_tree, _processes
from ansible_collections.runbook.deploy.plugins.module_utils._command import parse_environment
from ansible_collections.runbook.deploy.plugins.module_utils._gate import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    check_result,
)
from ansible_collections.runbook.deploy.plugins.module_utils._gating import GATE_OPTIONS, conduct, hidden
from ansible_collections.runbook.deploy.plugins.module_utils._parallel import in_parallel
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._service_spec import (
    DURATION,
    NEVER,
    Check,
    Sample,
    expected_of,
    judge,
    parse_check,
)
from ansible_collections.runbook.deploy.plugins.module_utils._service_target import (
    State,
    Target,
    Unseen,
    find,
)

__all__ = ["OPTIONS", "RULES", "parse_check", "perform", "prober"]

OPTIONS: dict[str, Any] = {
    **GATE_OPTIONS,
    "checks": {"type": "list", "elements": "dict", "required": True},
    "environment": {"type": "str", "no_log": True},
    "user": {"type": "str"},
    "duration": {"type": "float", "default": DURATION},
}
RULES: dict[str, Any] = {}
# Seconds between two looks at the processes, and between two questions to the manager, which takes a process each time.
LOOK = 0.2
ASK = 1.0
# CPU time is counted in ticks of 10 ms: over less than this it says nothing.
SHORTEST_CPU = 0.5
# Seconds that are kept for the last question and the log.
ENDING = 0.3


class Fault(Exception):
    """The service is not up; ``final``: it was seen to end, which asking again would not undo."""

    def __init__(self, text: str, final: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.final = final


class Memory:
    """What was seen of a service when it was looked at before: its main process, and how often it had been restarted."""

    def __init__(self) -> None:
        self.main: tuple[int, int] | None = None
        self.restarts: int | None = None

    def compare(self, state: State) -> None:
        """Take *state*, which is up.

        :raises Fault: when the main process is another one, or the manager had to restart it.
        """
        main, restarts = self.main, self.restarts
        self.main, self.restarts = (state.pid, state.started), state.restarts
        if main is not None and main != self.main:
            raise Fault(
                f"it does not stay up: its main process {main[0]} ended and {state.pid} has taken its place",
                True,
            )
        if restarts is not None and state.restarts is not None and state.restarts > restarts:
            raise Fault(
                f"it does not stay up: systemd has restarted it {state.restarts - restarts} times meanwhile",
                True,
            )


class Watcher:
    """Looks at one service for a while."""

    def __init__(self, check: Check, target: Target, memory: Memory, duration: float, limit: float) -> None:
        self.check = check
        self.target = target
        self.memory = memory
        self.duration = duration
        self.limit = limit
        self.workers = _proc_tree.Workers()
        self.samples: list[Sample] = []
        self.ticks: list[tuple[float, int]] = []

    def state(self) -> State:
        """Return the manager's word.

        :raises Fault: when it is not up, or not what it was; :raises Unseen: when nobody knows.
        """
        found = self.target.service.state(self.limit - time.monotonic())
        if found.wrong:
            if self.memory.main is not None and not _processes.is_same(*self.memory.main):
                self.memory.main = None
                raise Fault(f"it does not stay up: {found.wrong}", True)
            raise Fault(f"it is not up: {found.wrong}")
        self.memory.compare(found)
        if self.check.sub_state and found.sub not in self.check.sub_state:
            wanted = " or ".join(self.check.sub_state)
            raise Fault(f"its sub-state is {found.sub or 'unknown'!r}, expected {wanted}")
        return found

    def watch(self) -> None:
        """Look until the time is over.

        :raises Fault: at the first thing that is wrong; :raises Unseen: when it cannot be seen.
        """
        begun = time.monotonic()
        state = self.state()
        asked = 0.0
        while True:
            now = time.monotonic()
            over = now - begun >= self.duration
            if over or now - asked >= ASK:
                state = self.state()
                asked = now
            entries = _proc_tree.scan()
            tree = _proc_tree.descendants(entries, state.pid)
            if not tree or tree_main(tree, state) is None:
                # The manager tells it better, and knows who has taken its place.
                self.state()
                raise Fault(f"it does not stay up: its main process {state.pid} ended", True)
            self.workers.look(tree)
            self._require_workers()
            if asked == now:
                tree = _proc_tree.members(entries, state.pid, self.target.service.owns)
                self._measure(tree, state)
                self._require_addresses(tree)
            if over:
                return
            time.sleep(max(0.0, min(LOOK, begun + self.duration - time.monotonic())))

    def _require_workers(self) -> None:
        bound = self.check.figures.get("replaced", NEVER)
        count = self.workers.replaced
        if bound.operator in ("<", "<=", "==") and count > bound.value:
            raise Fault(
                f"it does not stay up: {count} of its workers ended and were replaced behind the living main process, "
                f"expected {bound.text}",
                True,
            )
        if self.workers.all_gone:
            raise Fault(
                "it does not stay up: all of its workers ended, although its main process lives", True
            )

    def _measure(self, tree: Sequence[_proc_tree.Entry], state: State) -> None:
        check = self.check
        self.ticks.append((time.monotonic(), sum(entry.ticks for entry in tree)))
        memory, exact = _proc_tree.memory(tree) if check.wants("memory") else (None, True)
        opened = _proc_tree.handles(tree) if check.wants("open_files", "connections") else None
        self.samples.append(
            Sample(
                len(tree),
                sum(entry.threads for entry in tree),
                self.workers.count,
                _proc_tree.age(state.started),
                memory,
                exact,
                None if opened is None else sum(map(len, opened.values())),
                None if opened is None else _proc_tree.fullest(opened),
                None if opened is None else _proc_tree.connections(state.pid, opened),
                state.restarts,
            )
        )
        wanted = self.target.release
        if wanted:
            self._require_release(tree, wanted)

    def _require_release(self, tree: Sequence[_proc_tree.Entry], wanted: str) -> None:
        told = False
        for entry in tree:
            runs = _proc_tree.is_release(
                wanted, _processes.variables(entry.pid), _proc_tree.runs_from(entry.pid)
            )
            if runs is False and _processes.is_same(entry.pid, entry.started):
                named = _processes.variables(entry.pid).get("RUNBOOK_RELEASE")
                seen = named or ", ".join(_proc_tree.runs_from(entry.pid) or []) or "another one"
                raise Fault(f"process {entry.pid} runs the release {seen}, expected {wanted}")
            told = told or bool(runs)
        if not told:
            raise Unseen(
                f"none of its processes tells uid {os.geteuid()} which release it runs; ask as root or as its own user"
            )

    def _require_addresses(self, tree: Sequence[_proc_tree.Entry]) -> None:
        for place in self.target.listens:
            holders = self._port(place, tree) if isinstance(place, int) else self._socket(place, tree)
            where = f"port {place}" if isinstance(place, int) else place
            if holders is None:
                continue
            strange = sorted(pid for pid in holders if _processes.start_time(pid) is not None)
            if not strange:
                raise Fault(f"nobody listens on {where}")
            who = f"process {strange[0]} ({_processes.command(strange[0])[:80]})"
            raise Fault(f"it does not listen on {where}, but {who} does, which is not its own")

    def _port(self, port: int, tree: Sequence[_proc_tree.Entry]) -> set[int] | None:
        """Return who else listens on *port*; None where it is one of *tree*.

        :raises Unseen: when somebody does, and it cannot be told who.
        """
        inodes = _processes.listener_inodes(port)
        if not inodes:
            return set()
        opened = _proc_tree.handles(tree)
        if opened is not None and _proc_tree.holds(opened, inodes):
            return None
        holders = set(_processes.listener_pids(port))
        if (opened is None or not holders) and _processes.listener_inodes(port):
            raise Unseen(
                f"whose process listens on port {port} is hidden from uid {os.geteuid()}; ask as root or as its own user"
            )
        return holders

    def _socket(self, path: str, tree: Sequence[_proc_tree.Entry]) -> set[int] | None:
        """Return who else listens on the Unix socket *path*; None where it is one of *tree*."""
        if not os.path.exists(path):
            return set()
        if not os.access(path, os.W_OK):
            raise Unseen(f"uid {os.geteuid()} may not connect to {path}")
        pid = _processes.peer_pid(path)
        if pid is None:
            return set()
        if pid in {entry.pid for entry in tree}:
            return None
        # systemd listens itself where the unit has a socket unit, and passes the socket on.
        opened = _proc_tree.handles(tree)
        if opened is None and pid == 1:
            raise Unseen(
                f"who serves {path} is hidden from uid {os.geteuid()}; ask as root or as its own user"
            )
        return None if pid == 1 and _proc_tree.holds(opened or {}, _proc_tree.unix_listeners(path)) else {pid}

    @property
    def cpu(self) -> float | None:
        """Percent of one core from the first to the last measurement; None where they are too near to each other."""
        if len(self.ticks) < 2 or self.ticks[-1][0] - self.ticks[0][0] < SHORTEST_CPU:
            return None
        (first, before), (last, after) = self.ticks[0], self.ticks[-1]
        return max(0.0, 100 * (after - before) / os.sysconf("SC_CLK_TCK") / (last - first))


def tree_main(tree: Sequence[_proc_tree.Entry], state: State) -> _proc_tree.Entry | None:
    """Return the main process in *tree*, if it still is the same."""
    return next((entry for entry in tree if entry.identity == (state.pid, state.started)), None)


def prober(options: Mapping[str, Any], check_mode: bool) -> Callable[[float], list[dict[str, Any]]]:
    """Return what looks at all services of *options* at the same time; it is given the seconds that are left. It only reads.

    :raises Problem: when a check is not well written.
    """
    del check_mode
    if not options["duration"] > 0:
        raise Problem(f"duration must be a number of seconds above 0, found {options['duration']}.")
    checks = [parse_check(item, f"checks[{index}]") for index, item in enumerate(options["checks"])]
    secrets = list(parse_environment(options["environment"], "environment").values())
    memories = [Memory() for _check in checks]

    def task(index: int) -> Callable[[float], dict[str, Any]]:
        return lambda limit: run_check(checks[index], options, memories[index], secrets, limit)

    def probe(left: float) -> list[dict[str, Any]]:
        names = [(check.name, check.common.severity) for check in checks]
        # All at once: each only waits most of the time.
        return in_parallel(
            [task(index) for index in range(len(checks))], names, time.monotonic() + left, len(checks) or 1
        )

    return probe


def run_check(
    check: Check, options: Mapping[str, Any], memory: Memory, secrets: Sequence[str], limit: float
) -> dict[str, Any]:
    """Look at one service for its time and judge it; *limit* is the reading of ``time.monotonic()`` at which that must end."""
    begun = time.monotonic()
    duration = check.duration or options["duration"]
    end = min(limit, begun + (check.common.timeout or limit - begun))
    target: Target | None = None
    observed = ""
    further: dict[str, Any] = {}
    try:
        if end - begun < duration + ENDING:
            raise Unseen(
                f"{end - begun:.1f} s are left, too little to look at it for {duration:g} s: raise the deadline or the timeout",
                late=end == limit,
            )
        target = find(check, options["root"], options["user"], secrets)
        watcher = Watcher(check, target, memory, duration, end - ENDING / 3)
        try:
            watcher.watch()
        finally:
            if watcher.samples:
                observed = judge(check, watcher.samples, watcher.cpu, watcher.workers.replaced, "").observed
        found = judge(check, watcher.samples, watcher.cpu, watcher.workers.replaced, target.service.manager)
        verdict = FAIL if found.wrong else INCONCLUSIVE if found.unknown else PASS
        text = "; ".join(found.wrong or found.unknown)
    except Fault as fault:
        verdict, text = FAIL, fault.text
        further = {"final": True} if fault.final else {}
    except Unseen as unseen:
        verdict, text = INCONCLUSIVE, unseen.text
        further = {"cut_short": True} if unseen.late else {}
    expected = expected_of(check, duration, *((target.release, target.listens) if target else ()))
    again = target.service.repeat if target else ""
    message = ""
    if verdict != PASS:
        log = target.last_lines(max(0.1, end - time.monotonic())) if target and verdict == FAIL else ""
        where = target.service.place if target else f"{check.subject} {check.value}"
        how = "failed" if verdict == FAIL else "could not be asked"
        message = f"Check {check.name!r} {how}: {where}: expected {expected}, but {text}."
        message += f" Repeat: {again}" if again else ""
        message += f" Its log ends: {log}" if log else ""
        observed = "\n".join(filter(None, [text, observed, log]))
    result = check_result(
        check.name,
        verdict,
        check.common.severity,
        observed,
        expected,
        message,
        time.monotonic() - begun,
        repeat=again,
        **further,
    )
    known = target.secrets if target else list(secrets)
    return hidden(result, known)


def perform(options: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    """Run the gate that *options* (see ``OPTIONS``) describe and return it.

    :raises Problem: when it does not pass, or an option is wrong.
    """
    secrets = parse_environment(options["environment"], "environment").values()
    return conduct(
        options,
        prober(options, check_mode),
        "services of this host",
        check_mode=check_mode,
        warn=warn,
        secrets=secrets,
    )
