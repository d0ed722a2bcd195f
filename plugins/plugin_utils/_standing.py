# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep one Python standing on each host for the time of a run, and have it become each module.

For each module ansible-core logs in once more through ssh's shared connection, escalates privileges, starts a Python and imports
what all modules import: half of the time of most. What stands on the host (``_standing_host.py``) is asked by the processes of
the tasks through one that holds its connection (``_standing_holder.py``), and ends with the run. What is sent and what
comes back is what ansible-core sends and gets. Where anything is unusual, the module is run as ever: nothing depends on this.

This plugin util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.common.text.converters import to_text
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.plugin_utils import _standing_host
from ansible_collections.runbook.deploy.plugins.plugin_utils._standing_holder import (
    ANSWERED,
    LOST,
    REFUSED,
    REPLY,
    fork,
)
from ansible_collections.runbook.deploy.plugins.plugin_utils._standing_host import SIZE, exactly

# An interpreter alone: no environment of a task's before it, no arguments.
INTERPRETER = re.compile(r"/[A-Za-z0-9._/+-]+")
# What sudo says when it has escalated, another word each time (ansible-core, BecomeBase.build_become_command).
WORD = re.compile(r"BECOME-SUCCESS-[a-z]+")
# ssh's own exit code for a connection that it could not make (ssh(1)).
NO_CONNECTION = 255
# sockaddr_un.sun_path of Linux has 108 bytes, the last of which is 0 (unix(7)).
LONGEST_PATH = 107
# A verbose run shows how each module is sent.
VERBOSE = 3


class Life:
    """The pipe whose writing end the run's own process has, and those that it forks; what reads from it sees all of them end."""

    ends: tuple[int, int] | None = None

    @classmethod
    def begin(cls) -> None:
        """Begin a run, in the process that forks the others."""
        if cls.ends is None:
            cls.ends = os.pipe()


class Capture(Exception):
    """Carries the words of a command out of a connection that was about to run it."""

    def __init__(self, words: list[str]) -> None:
        super().__init__("captured")
        self.words = words


def usable(action: Any, command: str) -> bool:
    """Return whether *command*, to which a script is to be sent, is nothing but a Python that is reached by plain ssh."""
    connection = action._connection
    become = connection.become
    return (
        Life.ends is not None
        and connection.transport == "ssh"
        and type(connection).__module__ == "ansible.plugins.connection.ssh"
        and Display().verbosity < VERBOSE
        and INTERPRETER.fullmatch(command) is not None
        and not action._task.async_val
        and not constants.DEFAULT_KEEP_REMOTE_FILES
        # A password would have to be typed to what asks for it.
        and not (connection.get_option("password") or action._play_context.password)
        and not (become and (become.name != "sudo" or become.get_option("become_pass")))
    )


@contextlib.contextmanager
def captured(connection: Any) -> Iterator[None]:
    """Have *connection* raise what it would run."""

    def capture(words: list[bytes], *_arguments: Any, **_options: Any) -> None:
        raise Capture([os.fsdecode(word) for word in words])

    connection._run = capture
    try:
        yield
    finally:
        del connection._run


def words_of(action: Any, command: str, execute: Any) -> list[str]:
    """Return the words of ssh that start what stands, with the Python that *command* is.

    :param execute: what runs a command as ansible-core does.
    """
    size = Path(_standing_host.__file__).stat().st_size
    # Nothing is imported from the directory that the login happens to begin in.
    boot = (
        "import sys; sys.path = [path for path in sys.path if path not in ('', '.')]; "
        f"exec(compile(sys.stdin.buffer.read({size}), 'runbook.deploy', 'exec'))"
    )
    try:
        with captured(action._connection):
            execute(f"{command} -u -c {shlex.quote(boot)}", in_data=b"-")
    except Capture as found:
        return found.words
    raise RuntimeError("this version of ansible-core runs commands in another way")


def connect(words: list[str]) -> socket.socket | None:
    """Return a connection to the process that holds what *words* have started; the first who asks starts it."""
    name = hashlib.sha256(WORD.sub("", "\0".join(words)).encode()).hexdigest()[:16]
    path = os.path.join(constants.DEFAULT_LOCAL_TMP, name)
    if len(os.fsencode(path)) > LONGEST_PATH:
        return None
    client = socket.socket(socket.AF_UNIX)
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(path)
        except OSError:
            # Somebody has started it.
            pass
        else:
            listener.listen()
            fork(listener, Life.ends[0], words)
    try:
        client.connect(path)
    except OSError:
        client.close()
        return None
    return client


def asked(client: socket.socket, script: bytes) -> tuple[int, int, bytes, bytes] | None:
    """Return kind, exit code, output and error output of *script*; None where it ended without a reply."""
    try:
        client.sendall(SIZE.pack(len(script)) + script)
        head = exactly(client.fileno(), REPLY.size)
        if head is None:
            return None
        kind, code, *sizes = REPLY.unpack(head)
        parts = [exactly(client.fileno(), size) for size in sizes]
    except ConnectionError:
        return None
    return None if None in parts else (kind, code, *parts)


def reply(action: Any, words: list[str], script: bytes) -> tuple[int, bytes, bytes] | None:
    """Return exit code, output and error output of *script*; None where it was sent to nobody.

    :raises AnsibleConnectionFailure: when the host does not answer, or the connection was lost while the module worked.
    """
    client = connect(words)
    if client is None:
        return None
    busy = f"{client.getpeername()}.busy"
    try:
        os.close(os.open(busy, os.O_CREAT | os.O_EXCL, 0o600))
    except OSError:
        # Another task asks it, or one was ended by its time limit, whose module may still work.
        client.close()
        return None
    with client:
        found = asked(client, script)
    if found is None:
        kind, code, output, errors = LOST, NO_CONNECTION, b"", b"what held the connection has ended"
    else:
        # A task that is ended before leaves it: nobody asks then any more.
        with contextlib.suppress(OSError):
            os.unlink(busy)
        kind, code, output, errors = found
    if kind == ANSWERED:
        return code, output, errors
    unreachable = (
        kind == REFUSED
        and code == NO_CONNECTION
        and not action._connection.get_option("reconnection_retries")
    )
    if kind == LOST or (unreachable and b"mux_client" not in errors):
        host = action._connection.get_option("host") or action._play_context.remote_addr
        # As ansible-core says it.
        raise AnsibleConnectionFailure(
            f'Data could not be sent to remote host "{host}". Make sure this host can be reached over ssh: '
            f"{errors.decode(errors='replace').strip() or 'the connection was lost'}"
        )
    return None


def run(action: Any, command: str, script: bytes, execute: Any) -> dict[str, Any] | None:
    """Return what ``_low_level_execute_command`` of *action* returns for *script*; None where it has to run it itself.

    :param command: what *script* is to be sent to.
    :param execute: what runs a command as ansible-core does.
    :raises AnsibleConnectionFailure: see :func:`reply`.
    """
    try:
        words = words_of(action, command, execute) if usable(action, command) else None
    except Exception as error:
        # What another version of ansible-core has elsewhere.
        Display().debug(f"no Python stands on the host: {error}")
        return None
    found = reply(action, words, script) if words else None
    if found is None:
        return None
    code, *parts = found
    output, errors = (to_text(part, errors="surrogate_then_replace") for part in parts)
    return {
        "rc": code,
        "stdout": output,
        "stdout_lines": output.splitlines(),
        "stderr": errors,
        "stderr_lines": errors.splitlines(),
    }


def begin(action: Any, interpreter: Any) -> None:
    """Start what stands on the host of *action* without waiting for it: its first module finds it there.

    :param interpreter: the host's Python; where it is not known yet, nothing is started.
    """
    # Nothing depends on it: the first module starts it where this did not.
    with contextlib.suppress(Exception):
        if isinstance(interpreter, str) and usable(action, interpreter):
            client = connect(words_of(action, interpreter, action._low_level_execute_command))
            if client is not None:
                client.close()
