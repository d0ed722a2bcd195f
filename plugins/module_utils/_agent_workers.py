# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inside an application: remote control of its Celery workers, through its own Celery, one request after the other.

A part of ``_agent.py``: it runs in the application's own Python (3.8 and up) and imports nothing of the collection; it
finds the application with ``_agent_celery.py``. It decides nothing, and no argument of a task leaves it.

Sources: "Workers Guide: Remote control" of Celery's documentation, ``celery.app.control``, ``kombu.pidbox``.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

# Longer texts of errors say nothing more.
LONGEST = 600


def _said(context: Any, error: BaseException) -> str:
    """Return what *error* says, without the broker's passwords."""
    text = f"{type(error).__name__}: {error}"
    for secret in context.memory.get("passwords", ()):
        text = text.replace(secret, "********")
    return " ".join(text.split())[:LONGEST]


def connect(context: Any, app: str, broker: str, seconds: float) -> dict[str, Any]:
    """Load the application and reach its broker within *seconds*; *broker*: "" for what the application's settings say.

    :return: ``place`` (without a password); and where it cannot be done ``kind``, application or broker, and ``error``.
    """
    celery = sys.modules["_runbook_celery"]
    try:
        found = celery.find(app)
        connection = found.connection_for_write(broker or None, connect_timeout=seconds)
        context.memory["passwords"] = celery.passwords(found, connection)
        place = connection.as_uri()
    except BaseException as error:
        # SystemExit too: settings that call sys.exit() must not end this without a word.
        return {"place": "", "kind": "application", "error": _said(context, error)}
    context.memory["celery"] = (found, connection, seconds)
    try:
        connection.ensure_connection(max_retries=1, interval_start=0.1, interval_step=0, timeout=seconds)
        connection.default_channel  # noqa: B018 - opens it
    except BaseException as error:
        return {"place": place, "kind": "broker", "error": _said(context, error)}
    return {"place": place}


def _broadcast(context: Any, command: str, nodes: Any, arguments: Any, reply: float) -> list[list[Any]]:
    """Return ``[node, answer]`` of each worker that answers within *reply* seconds; ends early when all *nodes* did."""
    app, connection, _seconds = context.memory["celery"]
    answers = app.control.broadcast(
        command,
        arguments=arguments,
        destination=nodes or None,
        connection=connection,
        reply=True,
        timeout=reply,
        limit=len(nodes) if nodes else None,
    )
    # Not by Celery's own inspect: it merges answers by name, and two workers may have the same one.
    return [[str(node), answer] for found in answers or () for node, answer in found.items()]


def ask(context: Any, command: str, nodes: Any, arguments: Any, reply: float) -> dict[str, Any]:
    """Send *command* to *nodes* (all, where there are none) and return ``answers``, or ``error`` where the broker fails.

    A broken connection is opened again once: a broker that was restarted says so at the next use.
    """
    _app, connection, seconds = context.memory["celery"]
    for attempt in (1, 2):
        try:
            found = _broadcast(context, command, nodes, arguments, reply)
        except Exception as error:
            if attempt == 2:
                return {"error": _said(context, error)}
            with contextlib.suppress(Exception):
                connection.close()
                connection.ensure_connection(
                    max_retries=1, interval_start=0.1, interval_step=0, timeout=seconds
                )
        else:
            return {"answers": [[node, plain(command, answer)] for node, answer in found]}
    return {"answers": []}


def plain(command: str, answer: Any) -> Any:
    """Return of *answer* what is needed: arguments of tasks and settings of workers may hold anything."""
    if command in ("active", "reserved"):
        return [_task(task) for task in answer] if isinstance(answer, list) else []
    if command == "scheduled":
        return len(answer) if isinstance(answer, list) else 0
    if command == "active_queues":
        return [str(queue.get("name")) for queue in answer] if isinstance(answer, list) else []
    if command == "stats":
        return {"pid": answer.get("pid")} if isinstance(answer, dict) else {}
    if isinstance(answer, dict):
        return {key: str(answer[key])[:LONGEST] for key in ("ok", "error") if key in answer}
    return {}


def _task(task: dict[str, Any]) -> dict[str, Any]:
    delivery = task.get("delivery_info") or {}
    return {
        "id": task.get("id"),
        "name": task.get("name") or task.get("type"),
        "started": task.get("time_start"),
        "acknowledged": bool(task.get("acknowledged")),
        "redelivered": bool(delivery.get("redelivered")),
    }


OPERATIONS = {"connect": connect, "ask": ask}
