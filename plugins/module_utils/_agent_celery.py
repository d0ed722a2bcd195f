# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inside an application: what its Celery workers and its broker say, through its own Celery and kombu.

This text is the program of a process in the application's own Python (3.8 and up); it imports nothing of the
collection. What to ask is in the variable ``RUNBOOK_CELERY``, JSON: ``app`` as ``celery -A`` takes it, ``mark``, ``reply``
(seconds that workers have to answer), ``connect`` (seconds for the broker), ``questions`` and ``queues``.
Each line of the answer begins with ``mark``, because the application may print what it likes: ``{"stage": …}`` before each
step, so that whoever ends the process knows what it waited for, and ``{"answer": …}`` or ``{"error": …}`` in the end.

Sources: "Workers Guide: Inspecting workers" of Celery's documentation, ``kombu.pidbox``.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any
from urllib.parse import quote, unquote, urlsplit

VARIABLE = "RUNBOOK_CELERY"
# Longer texts of errors say nothing more.
LONGEST = 600
# As a part of an agent (_agent_workers.py) it only helps others.
OPERATIONS: dict[str, Any] = {}


class Said:
    """Where the answer goes: a copy of standard output that the application does not know."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.descriptor = os.dup(1)
        self.secrets: list[str] = []

    def line(self, **document: Any) -> None:
        """Write one line."""
        text = "\n" + self.mark + json.dumps(document, default=str) + "\n"
        data = text.encode("utf-8", "replace")
        while data:
            data = data[os.write(self.descriptor, data) :]

    def error(self, kind: str, error: BaseException | None, text: str = "") -> None:
        """Write why there is no answer; *kind*: ``application``, ``broker`` or ``workers``."""
        said = text or f"{type(error).__name__}: {error}"
        for secret in self.secrets:
            said = said.replace(secret, "********")
        self.line(error={"kind": kind, "text": " ".join(said.split())[:LONGEST]})


def find(name: str) -> Any:
    """Return the Celery application that ``celery -A name`` would use.

    :raises Exception: whatever the application raises when it is imported.
    """
    from celery.app.utils import find_app

    try:
        app = find_app(name)
    except ImportError as error:
        module, colon, attribute = name.partition(":")
        if colon and getattr(error, "name", None) == name:
            # Celery takes the whole of it for a module then, and says that there is none.
            raise AttributeError(f"the module {module!r} has no {attribute!r}") from error
        raise
    if not hasattr(app, "control") or not hasattr(app, "conf"):
        raise TypeError(f"{name!r} is {type(app).__name__}, no Celery application")
    # Read now, so that what is wrong with the settings is not taken for the broker's fault.
    str(app.conf.broker_url)
    return app


def passwords(app: Any, connection: Any) -> list[str]:
    """Return what must not be shown of the addresses."""
    found = []
    with contextlib.suppress(Exception):
        found.append(connection.password)
    with contextlib.suppress(Exception):
        # Further brokers to try are addresses as they are written.
        found += [unquote(urlsplit(str(url)).password or "") for url in connection.alt or []]
    texts = [text for text in found if isinstance(text, str) and text]
    return sorted({*texts, *(quote(text, safe="") for text in texts)}, key=len, reverse=True)


def ask_workers(app: Any, connection: Any, reply: float, questions: list[str], said: Said) -> dict[str, Any]:
    """Return the answers of the workers to *questions*, by question and worker.

    All that are there have *reply* seconds to say so; after that each question ends with the last answer of those.
    """
    said.line(stage="workers")
    answers: dict[str, Any] = {"ping": app.control.inspect(timeout=reply, connection=connection).ping() or {}}
    names = sorted(answers["ping"])
    for question in questions:
        answers[question] = {}
        if names:
            inspect = app.control.inspect(
                destination=names, timeout=reply, connection=connection, limit=len(names)
            )
            answers[question] = plain(question, getattr(inspect, question)() or {})
    return answers


def plain(question: str, answers: dict[str, Any]) -> dict[str, Any]:
    """Return *answers* without arguments of tasks and whatever else is not asked for: they may hold anything."""
    if question in ("active", "reserved"):
        keys = ("id", "name", "time_start", "worker_pid")
        return {
            worker: [{key: task.get(key) for key in keys} for task in tasks]
            for worker, tasks in answers.items()
            if isinstance(tasks, list)
        }
    if question == "registered":
        # Each may be followed by its settings: "shop.send [rate_limit=10/m]".
        return {
            worker: [str(task).partition(" [")[0] for task in tasks]
            for worker, tasks in answers.items()
            if isinstance(tasks, list)
        }
    if question == "active_queues":
        return {
            worker: [queue.get("name") for queue in queues]
            for worker, queues in answers.items()
            if isinstance(queues, list)
        }
    return {worker: {"pid": found.get("pid")} for worker, found in answers.items() if isinstance(found, dict)}


def refused(_reason: Any) -> None:
    """Be told by an AMQP server that it takes no messages.

    :raises ConnectionError: always.
    """
    raise ConnectionError("it takes no messages at present: see whether its memory or its disk is full")


def measure(connection: Any, name: str) -> Any:
    """Return ``{messages, consumers}`` of the queue *name*, or None where the broker has none of that name.

    ``consumers`` is None where the broker does not know them; AMQP servers do.
    """
    from kombu.transport import virtual

    with connection.channel() as channel:
        try:
            found = channel.queue_declare(queue=name, passive=True)
        except connection.channel_errors:
            # An empty list does not exist in Redis; a server that has queues says the truth.
            return {"messages": 0, "consumers": None} if isinstance(channel, virtual.Channel) else None
        counted = None if isinstance(channel, virtual.Channel) else found.consumer_count
        return {"messages": found.message_count, "consumers": counted}


def main() -> None:
    """Answer the one request in the environment."""
    request = json.loads(os.environ.pop(VARIABLE))
    said = Said(request["mark"])
    said.line(stage="application")
    sys.path[0] = os.getcwd()
    try:
        import celery
    except ImportError as error:
        said.error("application", error)
        return
    try:
        app = find(request["app"])
        connection = app.connection_for_write(connect_timeout=request["connect"])
        said.secrets = passwords(app, connection)
        place = connection.as_uri()
    except BaseException as error:
        # SystemExit too: settings that call sys.exit() must not end this without a word.
        said.error("application", error)
        return
    said.line(stage="broker", place=place)
    try:
        connection.ensure_connection(
            max_retries=1, interval_start=0.1, interval_step=0, timeout=request["connect"]
        )
        connection.default_channel  # noqa: B018 - opens it
    except BaseException as error:
        said.error("broker", error)
        return
    with contextlib.suppress(Exception):
        # AMQP servers tell whoever publishes that nobody may at present, and read no more. With a pool Celery would publish
        # through another connection than this, of which nobody reads what it is told.
        app.control.mailbox._producer_pool = None
        connection.connection.on_blocked = refused
    try:
        answers: dict[str, Any] = {"place": place, "celery": celery.__version__, "queues": {}}
        answers.update(ask_workers(app, connection, request["reply"], request["questions"], said))
        said.line(stage="queues")
        for name in request["queues"]:
            answers["queues"][name] = measure(connection, name)
        answers["declared"] = sorted(map(str, app.amqp.queues))
        said.line(answer=answers)
    except BaseException as error:
        said.error("broker", error)


if __name__ == "__main__":
    main()
    # Threads of the application's own must not hold up the end.
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(0)
