# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show a run as the list of a runbook: each step with a tick or a cross, its time, and what was observed."""

from __future__ import annotations

DOCUMENTATION = r"""
name: checklist
type: stdout
short_description: Show a run as the list of a runbook, with ticks, times and observed values
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Prints the time and name of each phase, and below it a line for each step and host - a tick or a cross, the step, the host, the seconds
    that it took, and what was observed.
  - Steps that were skipped, and those that only set variables or include others, are left out.
  - On a terminal, what is running and for how long stands in a last line that is written anew each second.
  - A run that fails ends with the reason, the decision that was made, and the next command.
  - What C(no_log) hides is hidden here, too. With C(-v) it is P(ansible.builtin.default#callback).
extends_documentation_fragment:
  - default_callback
  - result_format_callback
requirements:
  - It is set as C(stdout_callback) in the configuration.
"""

import atexit
import os
import shutil
import sys
import threading
import time
from typing import Any

from ansible import context
from ansible.playbook.task_include import TaskInclude
from ansible_collections.runbook.deploy.plugins.plugin_utils._brief import SILENT, Brief
from ansible_collections.runbook.deploy.plugins.plugin_utils._observed import (
    Run,
    observed,
    reason,
    seconds,
)
from ansible_collections.runbook.deploy.plugins.plugin_utils._typed import with_inventory, with_playbooks

MARKS = {"ok": "\u2714", "failed": "\u2718", "lost": "\u2718", "running": "\u2026"}
ASCII = {"ok": "[x]", "failed": "[!]", "lost": "[!]", "running": "..."}
# They show nothing that was done.
HOUSEKEEPING = ("set_fact", "add_host", "group_by", "include_vars", "meta", "debug")
# A person is asked at the terminal: nothing is written there meanwhile.
ASKING = ("pause", "contract")
# Erase the line, from its beginning (ECMA-48: CR, EL).
ERASE = "\r\x1b[K"
NEXT = "ansible-playbook playbooks/status.yml -i <inventory>"


def short(action: str) -> str:
    """Return the name of a module without its collection."""
    return action.rpartition(".")[2]


class Ticker:
    """The last line of a terminal, written anew each second by a thread, and out of the way before anything else is written.

    :param line: called each second, returns what is to be shown, or "".
    """

    def __init__(self, display: Any, line: Any) -> None:
        self._display = display
        self._line = line
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._shown = False
        self._process = os.getpid()
        self._thread: threading.Thread | None = None
        self._terminal = -1

    def start(self) -> None:
        """Begin, where the output is a terminal; a second time does nothing."""
        if self._thread or self._over.is_set() or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
            return
        self._terminal = sys.stdout.fileno()
        self._write = self._display.display
        # Warnings, and what actions show, come from elsewhere: everything that is written goes through here.
        self._display.display = self._displayed
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """End the thread and leave the line empty."""
        if not self._thread or os.getpid() != self._process:
            return
        self._over.set()
        self._thread.join(timeout=5)
        self._thread = None
        self._display.display = self._write
        self._erase()

    def _displayed(self, *args: Any, **kwargs: Any) -> Any:
        # A worker has a copy of the lock, which nobody may ever release there; what it shows is sent to us.
        if os.getpid() != self._process:
            return self._write(*args, **kwargs)
        with self._lock:
            self._erase()
            return self._write(*args, **kwargs)

    def _erase(self) -> None:
        with self._lock:
            if self._shown:
                self._put(ERASE)
                self._shown = False

    def _put(self, text: str) -> None:
        """Write without Python's buffer: a process that is forked meanwhile would have its lock as it is."""
        try:
            os.write(self._terminal, text.encode(sys.stdout.encoding or "ascii", "replace"))
        except OSError:
            # The terminal is gone; the run is not for it alone.
            self._over.set()

    def _run(self) -> None:
        while not self._over.wait(1.0):
            text = self._line()
            with self._lock:
                if self._over.is_set():
                    return
                if not text:
                    self._erase()
                    continue
                width = max(10, shutil.get_terminal_size().columns - 1)
                self._put(ERASE + text[:width])
                self._shown = True


class CallbackModule(Brief):
    """See the documentation above."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "runbook.deploy.checklist"

    def __init__(self) -> None:
        super().__init__()
        self._run = Run()
        self._heading = ""
        self._ticker = Ticker(self._display, self._now_running)
        try:
            "".join(MARKS.values()).encode(sys.stdout.encoding or "ascii")
            self._marks = MARKS
        except (UnicodeEncodeError, LookupError):
            self._marks = ASCII

    def _now_running(self) -> str:
        found = self._run.running()
        return f"      {self._marks['running']} {found}" if found else ""

    def _head(self) -> None:
        """Print the name of the play or phase that the next step belongs to, once."""
        if self._heading:
            self._show(f"{time.strftime('%H:%M:%S')}  {self._heading}")
            self._heading = ""

    def _step(
        self, result: Any, mark: str, text: str, color: str, item: str = "", took: float | None = None
    ) -> None:
        self._head()
        name = self._run.step_name(result.task.get_name()) + (f": {item}" if item else "")
        host = self.host_label(result)
        line = f"  {self._marks[mark]} {name:<52} {host:<12} {seconds(took):>8}  {text}"
        self._show(line.rstrip(), color)

    # What begins

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._heading = play.get_name().strip()
        super().v2_playbook_on_play_start(play)

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        if not self._brief:
            super().v2_runner_on_start(host, task)
            return
        shown = not isinstance(task, TaskInclude) and short(task.action) not in ASKING
        self._run.begin(host.get_name(), task._uuid, task.get_name() if shown else "")
        self._ticker.start()

    def _phase(self, name: str) -> None:
        self._heading = self._run.phase = name
        self._head()

    # What ends

    def v2_runner_on_ok(self, result: Any) -> None:
        if not self._brief:
            super().v2_runner_on_ok(result)
            return
        answer, action = result.result, short(result.task.action)
        took = self._run.end(result.host.get_name(), result.task._uuid)
        self._run.note(answer)
        if isinstance(result.task, TaskInclude):
            return
        if result.task.loop and "results" in answer:
            # Its items have been shown.
            return
        self._handle_warnings(answer)
        if action == "debug":
            self._head()
            # A text of several lines, such as a table, keeps its columns.
            self._show("\n".join(f"      {line}" for line in str(answer.get("msg", "")).splitlines()))
        elif action not in HOUSEKEEPING:
            self._done(result, took)

    def _done(self, result: Any, took: float | None, item: str = "") -> None:
        changed = bool(result.result.get("changed"))
        self._run.done += 1
        words = [word for word in ("changed" if changed else "", observed(result.result)) if word]
        self._step(result, "ok", ", ".join(words), "yellow" if changed else "green", item, took)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        if not self._brief:
            super().v2_runner_on_failed(result, ignore_errors)
            return
        took = self._run.end(result.host.get_name(), result.task._uuid)
        if result.task.loop and "results" in result.result:
            # Its items have been shown.
            return
        self._handle_warnings(result.result)
        if result.task.action not in SILENT:
            self._failed(result, took, ignore_errors)

    def _failed(self, result: Any, took: float | None, ignored: bool, item: str = "") -> None:
        first, *rest = [with_playbooks(line, self._typed) for line in reason(result.result)]
        words = f"ignored: {first}" if ignored else first
        self._step(result, "failed", words, "cyan" if ignored else "red", item, took)
        if ignored:
            return
        self._run.fail(self._run.step_name(result.task.get_name()), result.host.get_name(), first)
        for line in rest:
            self._show(f"      {line}", "red")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        if not self._brief:
            super().v2_runner_on_unreachable(result)
            return
        took = self._run.end(result.host.get_name(), result.task._uuid)
        text = f"no answer: {reason(result.result)[0]}"
        self._step(result, "lost", text, "bright red", took=took)
        self._run.fail(self._run.step_name(result.task.get_name()), result.host.get_name(), text)

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._run.end(result.host.get_name(), result.task._uuid)
        super().v2_runner_on_skipped(result)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        if not self._brief:
            super().v2_runner_item_on_ok(result)
        elif not isinstance(result.task, TaskInclude) and short(result.task.action) not in HOUSEKEEPING:
            self._handle_warnings(result.result)
            took = self._run.lap(result.host.get_name(), result.task._uuid)
            self._done(result, took, str(self._get_item_label(result.result)))

    def v2_runner_item_on_failed(self, result: Any) -> None:
        if not self._brief:
            super().v2_runner_item_on_failed(result)
            return
        self._handle_warnings(result.result)
        took = self._run.lap(result.host.get_name(), result.task._uuid)
        ignored = bool(result.task.ignore_errors)
        self._failed(result, took, ignored, str(self._get_item_label(result.result)))

    def v2_runner_retry(self, result: Any) -> None:
        if not self._brief:
            super().v2_runner_retry(result)
            return
        self._run.attempt(result.host.get_name(), result.task._uuid, result.result.get("attempts"))

    def v2_playbook_on_no_hosts_matched(self) -> None:
        self._heading = ""
        if not self._brief:
            super().v2_playbook_on_no_hosts_matched()

    def v2_playbook_on_no_hosts_remaining(self) -> None:
        if not self._brief:
            super().v2_playbook_on_no_hosts_remaining()

    # The end

    @property
    def _typed(self) -> Any:
        return context.CLIARGS.get("args") or ()

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._ticker.stop()
        if not self._brief:
            super().v2_playbook_on_stats(stats)
            return
        found = [stats.summarize(host) for host in stats.processed]
        failed = any(one["failures"] or one["unreachable"] for one in found)
        self._show("")
        self._show(self._run.summary(failed), "red" if failed else "green")
        if failed:
            for label, text in self._run.ending(NEXT):
                text = with_playbooks(
                    with_inventory(text, context.CLIARGS.get("inventory") or ()), self._typed
                )
                self._show(f"  {label:<9} {text}", "red")
