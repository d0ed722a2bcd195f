# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The loop inside the application's own Python: requests in, events and answers out, one JSON document a line.

This text is sent to the application's process (see ``_agent.py``), so it must run on Python 3.8 and import nothing
of the collection. The application owns standard output, and may print to it, replace it or close it: the channel has
file descriptors of its own, with high numbers, not inherited by the programs that the application starts.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import sys
import threading
import traceback
import types
from typing import Any, Callable

# The exit code that says: the application closed or replaced our end of the channel.
CHANNEL_LOST = 97
# Below these numbers an application that closes "all" descriptors usually stops; the soft limit is often 1024.
HIGH_DESCRIPTORS = (900, 200)
# Enough to see where it happened; the host shows the last 20 lines.
TRACEBACK_LINES = 40

# Returned by an operation that has answered by itself.
ANSWERED = object()


class Channel:
    """Our end of the two pipes.

    :param requests: file descriptor to read from; :param answers: file descriptor to write to.
    """

    def __init__(self, requests: int, answers: int) -> None:
        self.requests = self._high(requests)
        self.answers = self._high(answers)
        self.identity = os.fstat(self.answers)
        self.lock = threading.Lock()
        self.buffer = b""

    @staticmethod
    def _high(descriptor: int) -> int:
        for lowest in HIGH_DESCRIPTORS:
            try:
                moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)
            except OSError:
                continue
            os.close(descriptor)
            return moved
        os.set_inheritable(descriptor, False)
        return descriptor

    def receive(self) -> Any:
        """Return the next request, or None when the host has closed its end."""
        while b"\n" not in self.buffer:
            try:
                chunk = os.read(self.requests, 65536)
            except OSError:
                os._exit(CHANNEL_LOST)
            if not chunk:
                return None
            self.buffer += chunk
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line.decode("utf-8"))

    def send(self, document: dict[str, Any]) -> None:
        """Write *document*; never into a file that has taken the number of our descriptor.

        A host that is gone raises BrokenPipeError, which stops a series of migrations between two of them.
        """
        data = json.dumps(document, default=str).encode("utf-8") + b"\n"
        with self.lock:
            try:
                now = os.fstat(self.answers)
            except OSError:
                os._exit(CHANNEL_LOST)
            if (now.st_dev, now.st_ino) != (self.identity.st_dev, self.identity.st_ino):
                os._exit(CHANNEL_LOST)
            while data:
                data = data[os.write(self.answers, data) :]


class Context:
    """What an operation gets as its first argument; ``memory`` is kept from one operation to the next."""

    def __init__(self, channel: Channel, operations: dict[str, Callable[..., Any]]) -> None:
        self.channel = channel
        self.operations = operations
        self.memory: dict[str, Any] = {}
        self.ended = False

    def emit(self, **event: Any) -> None:
        """Tell the host about something that has just happened, before the answer."""
        self.channel.send({"event": event})

    def reply(self, function: Callable[[], Any]) -> Any:
        """Call *function* and send what it returns or raises as the answer to the present request."""
        try:
            result = function()
        except BaseException as error:
            # SystemExit too: settings that call sys.exit() must not end the process without a word.
            self._flush()
            self.channel.send({"error": describe_error(error)})
        else:
            if result is not ANSWERED:
                self._flush()
                self.channel.send({"answer": result})
        return ANSWERED

    @staticmethod
    def _flush() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()

    def serve(self) -> None:
        """Answer requests until the host says ``end`` or is gone."""
        while not self.ended:
            request = self.channel.receive()
            if request is None or request["operation"] == "end":
                self.ended = True
                return
            operation = self.operations[request["operation"]]
            arguments = request.get("arguments") or {}
            self.reply(lambda call=operation, given=arguments: call(self, **given))


def describe_error(error: BaseException) -> dict[str, Any]:
    """Return ``{type, message, code, traceback}`` of *error*; ``code`` is that of a SystemExit, else None."""
    kind = type(error)
    name = kind.__name__ if kind.__module__ == "builtins" else kind.__module__ + "." + kind.__name__
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be read)"
    lines = "".join(traceback.format_exception(kind, error, error.__traceback__)).splitlines()
    code = error.code if isinstance(error, SystemExit) else None
    return {"type": name, "message": message, "code": code, "traceback": lines[-TRACEBACK_LINES:]}


def load(name: str, source: str) -> types.ModuleType:
    """Return the module called *name* made from the text *source*."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, f"<{name}>", "exec"), module.__dict__)
    return module


def main(requests: int, answers: int, sources: dict[str, str]) -> None:
    """Serve the operations of the modules in *sources* (name to text), each of which has ``OPERATIONS``."""
    channel = Channel(requests, answers)
    operations: dict[str, Callable[..., Any]] = {}
    for name, source in sources.items():
        operations.update(load(name, source).OPERATIONS)
    # As "python manage.py" does it, but by its whole name: the application may change its directory.
    sys.path[0] = os.getcwd()
    Context(channel, operations).serve()
    # What is left is the end of the process: without this, the interpreter first looks for garbage among all objects.
    gc.freeze()
