# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What our own outputs share: without ``-v`` they are brief, with it they are the default one, and they keep secrets.

ansible-core 2.19 censors the answer of a task with ``no_log``, and shows its warnings and its exception as they are.

This plugin util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from ansible.plugins.callback.default import CallbackModule as Default
from ansible_collections.runbook.deploy.plugins.plugin_utils._forks import prepare

PHASE = "Phase "
META = ("meta", "ansible.builtin.meta")
# They have shown everything themselves.
SILENT = ("runbook.deploy.deployment_report",)


class Brief(Default):
    """What our own callbacks extend."""

    def __init__(self) -> None:
        super().__init__()
        # The phase whose task is next; one that has nothing to do is skipped, and includes nothing.
        self._pending = ""
        # The phase of the tasks that are part of the play, which is included by nobody.
        self._within = ""
        # Of what every play loads, callbacks alone are made in the process that forks, and before its first task.
        prepare()

    @property
    def _brief(self) -> bool:
        return self._display.verbosity == 0

    def _show(self, text: str, color: str | None = None) -> None:
        self._display.display(text, color=color)

    def _phase(self, name: str) -> None:
        """Show that the phase *name* begins."""
        raise NotImplementedError

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._play = play
        if not self._brief:
            super().v2_playbook_on_play_start(play)

    def _task_start(self, task: Any, prefix: str | None = None) -> None:
        name = task.get_name()
        self._pending = name[len(PHASE) :] if name.startswith(PHASE) else ""
        # What asks whether a phase has anything to do is part of it, too.
        if task.action not in META:
            within = str(task.get_vars().get("phase_name") or "")
            if self._brief and not self._pending and within not in ("", self._within):
                self._phase(within)
            self._within = within
        if self._brief:
            # The name is kept: the banner is printed only where a diff follows.
            self._task_type_cache[task._uuid] = prefix or "TASK"
            self._last_task_name = name
        else:
            super()._task_start(task, prefix)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        if not self._brief:
            super().v2_playbook_on_include(included_file)
        elif self._pending:
            self._phase(self._pending)
            self._within = self._pending
            self._pending = ""

    def v2_runner_on_skipped(self, result: Any) -> None:
        if not self._brief:
            super().v2_runner_on_skipped(result)

    def v2_runner_item_on_skipped(self, result: Any) -> None:
        if not self._brief:
            super().v2_runner_item_on_skipped(result)

    def _handle_warnings(self, res: MutableMapping[str, Any]) -> None:
        if "censored" in res:
            res.pop("warnings", None)
            res.pop("deprecations", None)
        super()._handle_warnings(res)

    def _handle_exception(self, result: MutableMapping[str, Any], use_stderr: bool = False) -> None:
        if "censored" in result:
            result.pop("exception", None)
        super()._handle_exception(result, use_stderr)
