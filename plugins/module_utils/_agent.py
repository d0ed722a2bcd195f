# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One process in the application's own Python, as its user, that answers one request after the other.

Booting an application costs more than asking it something, so the commands that follow each other share one process.
Requests and answers go through pipes of their own; what the application prints is kept as evidence, never parsed.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

# Imported so that they are sent to the host along with this file; their text is what is wanted.
from ansible_collections.runbook.deploy.plugins.module_utils import (
    _agent_alembic,
    _agent_alembic_apply,
    _agent_alembic_guard,
    _agent_alembic_record,
    _agent_alembic_session,
    _agent_apply,
    _agent_django,
    _agent_migrate,
    _agent_offline,
    _agent_rehearse,
    _agent_runtime,
    _agent_scratch,
    _agent_session,
    _agent_steps,
    _agent_written,
)
from ansible_collections.runbook.deploy.plugins.module_utils._command import (
    base_environment,
    identity,
    redact,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# How much of the application's output is kept, of each stream; 20 lines of it are ever shown.
KEPT_OUTPUT = 65536
EVIDENCE_LINES = 20
# Of these, how many show what the application printed, when there is a traceback to show as well.
EVIDENCE_OUTPUT = 6
# Seconds between two looks at a process that says nothing; its end is noticed at once, by the closed pipe.
LOOK_INTERVAL = 0.2
# Seconds for the application's own end (threads, exit handlers) after everything has been answered.
END_LIMIT = 5.0
# Seconds from SIGTERM to SIGKILL.
GRACE = 5.0
# An answer is one line; something else than the agent must be writing when it grows beyond this.
LONGEST_LINE = 64 * 1024 * 1024

# Arguments: the two descriptors of the channel, and how many bytes the agent's own text has.
BOOTSTRAP = (
    "import json,os,sys,types\n"
    "requests,answers,size=map(int,sys.argv[1:4])\n"
    "text=b''\n"
    "while len(text)<size:\n"
    "    part=os.read(requests,size-len(text))\n"
    "    if not part: sys.exit('nobody sends requests')\n"
    "    text+=part\n"
    "sources=json.loads(text.decode())\n"
    "runtime=types.ModuleType('_runbook_runtime')\n"
    "sys.modules['_runbook_runtime']=runtime\n"
    "exec(compile(sources.pop('_runbook_runtime'),'<_runbook_runtime>','exec'),runtime.__dict__)\n"
    "runtime.main(requests,answers,sources)\n"
)
AGENT_PARTS = (
    ("_runbook_runtime", _agent_runtime),
    ("_runbook_scratch", _agent_scratch),
    ("_runbook_session", _agent_session),
    ("_runbook_django", _agent_django),
    ("_runbook_migrate", _agent_migrate),
    ("_runbook_steps", _agent_steps),
    ("_runbook_apply", _agent_apply),
    ("_runbook_written", _agent_written),
    ("_runbook_offline", _agent_offline),
    ("_runbook_rehearse", _agent_rehearse),
)
# What Alembic needs instead; the later ones' operations hide those of the same name for Django.
ALEMBIC_PARTS = (
    ("_runbook_runtime", _agent_runtime),
    ("_runbook_scratch", _agent_scratch),
    ("_runbook_session", _agent_session),
    ("_runbook_steps", _agent_steps),
    ("_runbook_offline", _agent_offline),
    ("_runbook_rehearse", _agent_rehearse),
    ("_runbook_alembic", _agent_alembic),
    ("_runbook_alembic_guard", _agent_alembic_guard),
    ("_runbook_alembic_record", _agent_alembic_record),
    ("_runbook_alembic_session", _agent_alembic_session),
    ("_runbook_alembic_apply", _agent_alembic_apply),
)
# Raised by the agent itself: their text is a sentence, and no traceback helps.
REFUSALS = (
    "_runbook_scratch.ScratchRefusal",
    "_runbook_session.SessionRefusal",
    "_runbook_django.AgentRefusal",
    "_runbook_migrate.MigrationRefusal",
    "_runbook_alembic.AlembicRefusal",
)


class AgentProblem(Problem):
    """A request that was not answered.

    ``reason``: ``refused`` (by the agent, nothing was done), ``application`` (it raised, and the process still
    answers), ``died``, ``time`` or ``channel``; ``error``: ``{type, message, code, traceback}``, {} when it was lost.
    """

    def __init__(
        self, message: str, evidence: str, reason: str, error: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message, evidence)
        self.reason = reason
        self.error = dict(error or {})


def agent_sources(framework: str = "django", parts: Sequence[tuple[str, Any]] | None = None) -> bytes:
    """Return the agent's own text for *framework*, or of *parts*, as a JSON object of module names to sources."""
    texts = {}
    for name, module in parts or (ALEMBIC_PARTS if framework == "alembic" else AGENT_PARTS):
        # By the loader, because on a host the files are inside the module's zip archive.
        spec = importlib.util.find_spec(module.__name__)
        texts[name] = spec.loader.get_source(module.__name__)
    return json.dumps(texts).encode()


class Agent:
    """The process, as a context manager.

    :param python: the interpreter of the release's environment.
    :param cwd: where manage.py is: the release, or a directory of it.
    :param variables: the instance's variables, added to the base environment.
    :param user: the application's user; None for the present one.
    :param secrets: texts to hide in everything that is shown.
    :param limit: seconds for all requests together.
    :param framework: ``django`` or ``alembic``: which operations it has.
    :param parts: instead of those of a framework: (name, module) of the runtime and of what has the operations.
    :raises Problem: when the interpreter does not exist or *user* cannot be assumed.
    """

    def __init__(
        self,
        *,
        python: str | os.PathLike[str],
        cwd: str | os.PathLike[str],
        variables: Mapping[str, str],
        user: str | None = None,
        secrets: Iterable[str] = (),
        limit: float = 300.0,
        framework: str = "django",
        parts: Sequence[tuple[str, Any]] | None = None,
    ) -> None:
        self.secrets = list(secrets)
        self.limit = limit
        self.deadline = time.monotonic() + limit
        self.output = {"stdout": b"", "stderr": b""}
        self.buffer = b""
        self.answers_closed = False
        self.abandoned = False
        self.finished = False
        self.selector = selectors.DefaultSelector()
        sources = agent_sources(framework, parts)
        theirs_in, self.requests = os.pipe()
        self.answers, theirs_out = os.pipe()
        try:
            argv = [
                os.fspath(python),
                "-u",
                "-c",
                BOOTSTRAP,
                str(theirs_in),
                str(theirs_out),
                str(len(sources)),
            ]
            self.process = self._spawn(argv, cwd, variables, user, (theirs_in, theirs_out))
        except BaseException:
            os.close(self.requests)
            os.close(self.answers)
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        os.set_blocking(self.requests, False)
        self.selector.register(self.answers, selectors.EVENT_READ, "answers")
        self.selector.register(self.process.stdout, selectors.EVENT_READ, "stdout")
        self.selector.register(self.process.stderr, selectors.EVENT_READ, "stderr")
        self.outgoing = sources

    @staticmethod
    def _spawn(
        argv: list[str],
        cwd: str | os.PathLike[str],
        variables: Mapping[str, str],
        user: str | None,
        descriptors: tuple[int, int],
    ) -> subprocess.Popen[bytes]:
        try:
            # -u: unbuffered, so that the last line before a sudden death is there to be shown.
            return subprocess.Popen(
                argv,
                cwd=cwd,
                env={**base_environment(user), **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=descriptors,
                start_new_session=True,
                umask=0o027,
                **identity(user),
            )
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise Problem(
                f"Cannot start the application's Python {argv[0]!r} in {os.fspath(cwd)!r}: {error.strerror}; "
                "expected the release and its environment to be built and readable: run the release phase again."
            ) from error

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    # --- requests ---

    def call(
        self,
        operation: str,
        *,
        timeout: float | None = None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Return the answer to the request *operation*.

        :param timeout: seconds for this request; the limit of all requests holds besides.
        :param on_event: called with each event before the answer, at once.
        :raises AgentProblem: when there is no answer; the process is ended unless the application merely raised.
        """
        if self.finished:
            raise AgentProblem(
                f"The application's process has ended, so {operation!r} cannot be asked.", "", "died"
            )
        deadline = self.deadline if timeout is None else min(self.deadline, time.monotonic() + timeout)
        seconds = self.limit if timeout is None else min(self.limit, timeout)
        self.outgoing += json.dumps({"operation": operation, "arguments": arguments}).encode() + b"\n"
        while True:
            line = self._next_line(deadline)
            if line is None:
                self._lost(operation, deadline, seconds)
            document = self._parse(operation, line)
            if "event" in document:
                if on_event is not None:
                    on_event(document["event"])
            elif "error" in document:
                self._read_output()
                raise self._application_problem(operation, document["error"])
            else:
                return document["answer"]

    def _next_line(self, deadline: float) -> bytes | None:
        """Return the next line of the agent; None when it will not come: dead, closed or out of time."""
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0 or self.abandoned or self.answers_closed or len(self.buffer) > LONGEST_LINE:
                return None
            dead = self._is_dead()
            self._pump(0.0 if dead else min(left, LOOK_INTERVAL))
            # A forked child may keep the pipe open after the process itself is gone.
            if dead and b"\n" not in self.buffer:
                return None
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line

    def _pump(self, seconds: float) -> None:
        """Move what can be moved within *seconds*: requests out, answers and output in."""
        if self.outgoing:
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(self.requests)
            self.selector.register(self.requests, selectors.EVENT_WRITE, "requests")
        for key, _events in self.selector.select(seconds):
            if key.data == "requests":
                try:
                    sent = os.write(self.requests, self.outgoing)
                    self.outgoing = self.outgoing[sent:]
                except BlockingIOError:
                    pass
                except BrokenPipeError:
                    self.outgoing = b""
                if not self.outgoing:
                    self.selector.unregister(self.requests)
                continue
            chunk = os.read(key.fd, 65536)
            if not chunk:
                self.selector.unregister(key.fileobj)
                self.answers_closed = self.answers_closed or key.data == "answers"
            elif key.data == "answers":
                self.buffer += chunk
            else:
                self.output[key.data] = (self.output[key.data] + chunk)[-KEPT_OUTPUT:]

    def _is_dead(self) -> bool:
        """Return whether the process has ended; it is left as a zombie, so that its session's id stays taken."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _parse(self, operation: str, line: bytes) -> dict[str, Any]:
        try:
            document = json.loads(line)
        except ValueError:
            document = None
        if not isinstance(document, dict) or not {"event", "error", "answer"} & set(document):
            self._end()
            raise AgentProblem(
                f"The application wrote into a file descriptor that is not its own while it was asked for "
                f"{operation!r}, and the answer was lost: look for code that writes to descriptors by number.",
                self.tail(),
                "channel",
            )
        return document

    # --- failures ---

    def _lost(self, operation: str, deadline: float, seconds: float) -> None:
        """End the process and raise what is known about why it has not answered."""
        if not self._is_dead() and self.answers_closed:
            # The pipe is closed a moment before the process can be waited for.
            wait = time.monotonic() + 1.0
            while not self._is_dead() and time.monotonic() < wait:
                time.sleep(0.01)
        dead = self._is_dead()
        late = not dead and (self.abandoned or time.monotonic() >= deadline)
        self._end(grace=0.0 if dead else GRACE)
        code = self.process.returncode
        if late:
            raise AgentProblem(
                f"The application did not finish {operation!r} within {seconds:g} seconds and was ended: raise the "
                "time limit if it needs longer, or see what it waits for.",
                self.tail(),
                "time",
            )
        if not dead or code == _agent_runtime.CHANNEL_LOST:
            raise AgentProblem(
                f"The application closed file descriptors that are not its own while it was asked for {operation!r}, "
                "and the answer was lost: look for code that closes descriptors by number, such as os.closerange.",
                self.tail(),
                "channel",
            )
        raise AgentProblem(
            f"The application's process ended by itself during {operation!r}, {describe_exit(code)}, expected an "
            "answer: its last lines of output say why, or the kernel's log where the system killed it.",
            self.tail(),
            "died",
        )

    def _application_problem(self, operation: str, error: Mapping[str, Any]) -> AgentProblem:
        """Return the problem for an exception *error* of the application."""
        message = self.hide(str(error["message"]))
        if error["type"] in REFUSALS:
            return AgentProblem(f"The operation {operation!r} was refused: {message}.", "", "refused", error)
        # Without the lines that only underline the one above.
        trace = [self.hide(line) for line in error["traceback"] if line.strip(" ^~")]
        printed = self.tail().splitlines()[-EVIDENCE_OUTPUT:]
        lines = [*printed, *trace[-(EVIDENCE_LINES - len(printed)) :]]
        first = message.strip().splitlines()[0] if message.strip() else ""
        if error["type"] == "SystemExit":
            said = f"called sys.exit({error['code']!r})"
        elif error["type"] == "EOFError":
            said = "asked for an answer on standard input, which is closed (EOFError): make it run unattended"
        else:
            said = (
                f"raised {error['type']}: {first}" if first else f"raised {error['type']} without a message"
            )
        return AgentProblem(
            f"The application {said.rstrip('.')}, while it was asked for {operation!r}; the evidence shows where.",
            "\n".join(lines),
            "application",
            {**error, "message": message, "traceback": trace},
        )

    def hide(self, text: str) -> str:
        """Return *text* without the secrets."""
        return redact(text, self.secrets)

    def tail(self, lines: int = EVIDENCE_LINES) -> str:
        """Return the last *lines* lines of what the application printed, standard error last."""
        texts = [self.output[name].decode("utf-8", "replace").rstrip() for name in ("stdout", "stderr")]
        text = self.hide("\n".join(text for text in texts if text))
        return "\n".join(text.splitlines()[-lines:])

    # --- the end ---

    def abandon(self) -> None:
        """Let no request wait any longer, also one that another thread waits for: it is lost as if its time were up."""
        self.abandoned = True

    def close(self) -> None:
        """Let the process end by itself, and end what is left of it."""
        if self.finished:
            return
        self.outgoing += b'{"operation": "end"}\n'
        deadline = time.monotonic() + END_LIMIT
        while not self._is_dead() and time.monotonic() < deadline:
            self._pump(0.02)
            if not self.selector.get_map():
                time.sleep(0.01)
        self._end(grace=GRACE if not self._is_dead() else 0.0)

    def _read_output(self) -> None:
        """Take in what has already been printed: it may arrive after the answer."""
        for _round in range(3):
            self._pump(0.0)

    def _end(self, grace: float = GRACE) -> None:
        """End the whole session: TERM, *grace* seconds, KILL; then collect the process."""
        if self.finished:
            return
        self.finished = True
        if not self._is_dead():
            signal_session(self.process.pid, signal.SIGTERM)
            deadline = time.monotonic() + grace
            while not self._is_dead() and time.monotonic() < deadline:
                self._pump(0.02)
        # Everything that is left of the session: it belongs to a run that is over. The number cannot have been
        # given to another session, as the leader has not been waited for.
        signal_session(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        self._read_output()
        self.selector.close()
        self.process.stdout.close()
        self.process.stderr.close()
        os.close(self.requests)
        os.close(self.answers)


def describe_exit(code: int | None) -> str:
    """Return ``with exit code 3`` or ``killed by SIGKILL`` for a ``Popen.returncode``."""
    if code is None:
        return "and cannot be waited for"
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def signal_session(leader: int, number: int) -> None:
    """Send the signal *number* to every process of the session that *leader* leads, whatever its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stream:
                # proc(5): after the command in parentheses: state, parent, group, session.
                fields = stream.read().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] not in "ZX":
                os.kill(int(name), number)
        except (OSError, ValueError, IndexError):
            continue
