# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The default output, without what a task with ``no_log`` says in its warnings and its exception.

ansible-core 2.19 censors the answer of such a task and shows these two as they are.

This plugin util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from ansible.plugins.callback.default import CallbackModule as Default


class Discreet(Default):
    """What our own callbacks extend."""

    def _handle_warnings(self, res: MutableMapping[str, Any]) -> None:
        if "censored" in res:
            res.pop("warnings", None)
            res.pop("deprecations", None)
        super()._handle_warnings(res)

    def _handle_exception(self, result: MutableMapping[str, Any], use_stderr: bool = False) -> None:
        if "censored" in result:
            result.pop("exception", None)
        super()._handle_exception(result, use_stderr)
