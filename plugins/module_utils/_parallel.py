# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask several things at the same time, and give up in time on what does not end.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._gate import INCONCLUSIVE, check_result

THREADS = 8
# After the limit, before a check that cannot be interrupted is abandoned; below the grace of _gate.until.
MARGIN = 0.25


def in_parallel(
    tasks: Sequence[Callable[[float], dict[str, Any]]],
    names: Sequence[tuple[str, str]],
    limit: float,
    threads: int = THREADS,
) -> list[dict[str, Any]]:
    """Run *tasks* in at most *threads* threads and return their results in order.

    :param tasks: each is called with *limit* and returns a ``check_result``.
    :param names: name and severity of each, for the result of one that is not done in time.
    :param limit: the reading of ``time.monotonic()`` at which all must be done.
    :raises Exception: the first that a task raised.
    """
    results: dict[int, dict[str, Any]] = {}
    errors: list[BaseException] = []
    waiting = list(enumerate(tasks))
    begun: set[int] = set()
    changed = threading.Condition()

    def work() -> None:
        while True:
            with changed:
                if not waiting or errors or time.monotonic() >= limit:
                    return
                index, task = waiting.pop(0)
                begun.add(index)
            try:
                result = task(limit)
            except BaseException as error:  # raised again by the caller's thread
                with changed:
                    errors.append(error)
                    changed.notify()
                return
            with changed:
                results[index] = result
                changed.notify()

    # Daemons: name resolution cannot be interrupted, and must not keep the module from ending.
    for _number in range(min(threads, len(tasks))):
        threading.Thread(target=work, daemon=True).start()
    with changed:
        changed.wait_for(
            lambda: bool(errors) or len(results) == len(tasks), max(0.0, limit - time.monotonic()) + MARGIN
        )
        if errors:
            raise errors[0]
        return [
            results[index] if index in results else _late(names[index], index in begun)
            for index in range(len(tasks))
        ]


def _late(name: tuple[str, str], begun: bool) -> dict[str, Any]:
    what = "did not end" if begun else "was not asked"
    return check_result(
        name[0],
        INCONCLUSIVE,
        name[1],
        f"{what} before the time was up",
        "an answer in time",
        f"Check {name[0]!r} {what} before the gate's time was up: raise the deadline.",
    )
