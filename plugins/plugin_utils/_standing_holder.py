# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold the connection to what stands on a host, from one task's process to the next; see ``_standing.py``.

A process of its own that ends when the run has ended, however it did, and with it the connection.

This plugin util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
from pathlib import Path
from typing import NoReturn

from ansible_collections.runbook.deploy.plugins.plugin_utils import _standing_host
from ansible_collections.runbook.deploy.plugins.plugin_utils._standing_host import (
    ANSWER,
    READY,
    SIZE,
    exactly,
)

# Kind, see below; exit code, and how many bytes of standard output and of error output follow.
REPLY = struct.Struct(">BiQQ")
# ANSWERED: the module has ended. REFUSED: nothing was sent, and the connection was never made. GONE: nothing was
# sent, and the connection that was there is lost. LOST: the connection was lost while the module worked.
ANSWERED, REFUSED, GONE, LOST = range(4)
# Bytes of what ssh says that are kept.
TOLD = 1 << 16


class Holder:
    """The connection that *words* make."""

    def __init__(self, words: list[str], source: bytes) -> None:
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.told = bytearray()
        self.source = source
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while part := os.read(self.process.stderr.fileno(), 4096):
            self.told += part
            del self.told[:-TOLD]

    def _send(self, content: bytes) -> bool:
        try:
            self.process.stdin.write(content)
            self.process.stdin.flush()
        except OSError:
            return False
        return True

    def ready(self) -> bool:
        """Return whether the other end stands, after it has said so."""
        if not self._send(self.source):
            return False
        said = b""
        while READY not in said:
            part = os.read(self.process.stdout.fileno(), 4096)
            if not part:
                return False
            said = said[-len(READY) :] + part
        return True

    def ask(self, script: bytes) -> tuple[int, int, bytes, bytes]:
        """Return kind, exit code, output and error output of *script*."""
        if self.process.poll() is not None:
            return self.failed(GONE)
        output = self.process.stdout.fileno()
        head = exactly(output, ANSWER.size) if self._send(SIZE.pack(len(script)) + script) else None
        if head is None:
            return self.failed(LOST)
        code, *sizes = ANSWER.unpack(head)
        parts = [exactly(output, size) for size in sizes]
        return (ANSWERED, code, *parts) if None not in parts else self.failed(LOST)

    def failed(self, kind: int) -> tuple[int, int, bytes, bytes]:
        """Return what is replied of a connection that is not there."""
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            code = self.process.wait()
        return kind, code, b"", bytes(self.told)


def serve(listener: socket.socket, holder: Holder) -> NoReturn:
    """Reply to one after the other who connects, for ever."""
    stands = holder.ready()
    while True:
        client, _address = listener.accept()
        with client:
            size = exactly(client.fileno(), SIZE.size)
            script = size and exactly(client.fileno(), SIZE.unpack(size)[0])
            if not script:
                continue
            kind, code, output, errors = holder.ask(script) if stands else holder.failed(REFUSED)
            try:
                client.sendall(REPLY.pack(kind, code, len(output), len(errors)) + output + errors)
            except OSError:
                # Its task was ended. What the module did is done.
                continue


def end_with(life: int, holder: Holder) -> NoReturn:
    """End this process, and the connection, when nobody has the other end of *life* any more."""
    os.read(life, 1)
    holder.process.terminate()
    os._exit(0)


def keep_only(handles: set[int]) -> None:
    """Close every open file but *handles* and the standard ones, which are made empty."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in handles:
            # That of the directory itself is closed already.
            with contextlib.suppress(OSError):
                os.close(int(name))


def fork(listener: socket.socket, life: int, words: list[str]) -> None:
    """Begin to hold the connection that *words* make, in a process of its own.

    :param listener: where is asked.
    :param life: the reading end of a pipe whose writing end all processes of the run have, and nobody else.
    """
    if os.fork():
        return
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(0)
        keep_only({listener.fileno(), life})
        holder = Holder(words, Path(_standing_host.__file__).read_bytes())
        threading.Thread(target=end_with, args=(life, holder), daemon=True).start()
        serve(listener, holder)
    finally:
        # Nothing of the task's process goes on here.
        os._exit(0)
