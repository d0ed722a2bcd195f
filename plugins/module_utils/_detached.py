# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work that outlives the connection it was started by: in a process of its own session, its result in a file.

The module that starts it waits for it. When the module, its connection or the controller dies, the work goes on to
its end, and a later run waits for it here. ``deployments/<id>.work/<phase>.json`` says which process works, since when,
and who waits; ``<phase>.log`` has its own words; ``<phase>.result`` its answer, once it has ended by itself. All are
0600 and are gone when the deployment has a verdict.

The worker is a fork and no new program: what it needs, secrets included, it has in its memory, and nothing is passed on.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    Layout,
    open_regular,
    read_json,
    write_json,
)
from ansible_collections.runbook.deploy.plugins.module_utils._lock import (
    cut_off,
    own_process,
    process_lives,
    timestamp,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem, of_system
from ansible_collections.runbook.deploy.plugins.module_utils._processes import (
    Process,
    application_processes,
    is_same,
    start_time,
)

MODE = 0o600
# Seconds between two looks at a process that is nobody's child here.
LOOK_INTERVAL = 0.2
# Milliseconds between two looks at our own; its end is noticed at once, by the closed pipe.
WAIT_MILLISECONDS = 1000
# Lines of the log that are shown.
SHOWN = 20
# The descriptors that a program starts with.
STANDARD = (0, 1, 2)

Work = Callable[[], dict[str, Any]]
Clean = Callable[[dict[str, Any]], dict[str, Any]]


class Place:
    """The files of the detached *phase* of *deployment*."""

    def __init__(self, layout: Layout, deployment: str, phase: str) -> None:
        self.layout = layout
        self.deployment = deployment
        self.phase = phase
        self.directory = directory_of(layout, deployment)
        self.about = self.directory / f"{phase}.json"
        self.log = self.directory / f"{phase}.log"
        self.result = self.directory / f"{phase}.result"

    def prepare(self) -> None:
        """Make the directory, without what an earlier attempt left.

        :raises Problem: when the earlier attempt still works.
        """
        found = self.read()
        if found and process_lives(found.get("process")):
            raise Problem(
                f"The phase {self.phase} of {self.deployment} already runs as process {found['process']['pid']} since "
                f"{found['since']}: wait until it has ended."
            )
        self.layout.deployments.mkdir(mode=0o750, exist_ok=True)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        for path in (self.result, self.about, self.log):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def read(self) -> dict[str, Any] | None:
        """Return ``{deployment, phase, since, process, waiter}`` as the worker wrote it; None where it never began."""
        with contextlib.suppress(ValueError, OSError):
            found = read_json(self.about)
            return found if isinstance(found, dict) else None
        return None

    def last_words(self) -> str:
        """Return the last lines of the log, "" where there are none."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN:])
        return ""


def directory_of(layout: Layout, deployment: str) -> Path:
    """Return the directory of what *deployment* has detached."""
    return layout.deployments / f"{deployment}.work"


def note(text: str) -> None:
    """Write a line into the log, where this process is a detached one; no secret may be in it."""
    if _worker:
        sys.stderr.write(f"{timestamp()} {text}\n")
        sys.stderr.flush()


# Whether this process is a worker: one entry when it is.
_worker: list[Place] = []


# --- the run that starts it


def run_detached(place: Place, token: str, work: Work, clean: Clean) -> dict[str, Any]:
    """Do *work* in a process of its own and return its answer, ``{failed, …}``; see :func:`answer_of`.

    :param token: of the deployment's lock, "" where this host has none.
    :param clean: takes what must not be shown out of an answer, before that is written down.
    """
    place.prepare()
    waiter = {"pid": os.getpid(), "start_time": start_time(os.getpid())}
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _become_worker(place, waiter, token, lambda: clean(answer_of(work, place)))
    os.close(theirs)
    try:
        if not _wait(child, ours):
            # Nobody hears us. What the worker imports later lies in the archive that a proper exit removes.
            os._exit(1)
    except KeyboardInterrupt:
        os._exit(130)
    finally:
        os.close(ours)
    return ended(place)


def _wait(child: int, pipe: int) -> bool:
    """Wait for *child*, which holds the other end of *pipe*; return False when nobody reads our output any more.

    ssh without a terminal sends no signal when the connection is lost: the server closes its end of our output.
    """
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    with contextlib.suppress(OSError):
        os.fstat(1)
        poll.register(1, 0)
    while True:
        for handle, events in poll.poll(WAIT_MILLISECONDS):
            if handle == 1 and events & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
                return False
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return True


def _become_worker(place: Place, waiter: dict[str, Any], token: str, work: Work) -> None:
    """Be the worker, to the end of this process; nothing of the caller's goes on."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _own_output(place)
        _worker.append(place)
        about = {"deployment": place.deployment, "phase": place.phase, "since": timestamp()}
        write_json(place.about, {**about, "process": own_process(place.phase), "waiter": waiter}, MODE)
        note(f"{place.phase} of {place.deployment} begins as process {os.getpid()}")
        answer = work()
        write_json(place.result, answer, MODE)
        note(f"{place.phase} ended{': ' + str(answer.get('msg')) if answer['failed'] else ''}")
        code = 0
        if not is_same(waiter["pid"], waiter["start_time"] or -1):
            note("nobody waits for it any more")
            if token:
                cut_off(place.layout, token)
            forget_archive()
    except BaseException:
        with contextlib.suppress(Exception):
            sys.stderr.write(traceback.format_exc())
            sys.stderr.flush()
    finally:
        os._exit(code)


def _own_output(place: Place) -> None:
    """Give this process its log as output, and no input: the caller's belong to a connection that may end."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    handle = open_regular(place.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.fchmod(handle, MODE)
    for source, number in zip((nothing, handle, handle), STANDARD):
        os.dup2(source, number)
    for number in (nothing, handle):
        if number not in STANDARD:
            os.close(number)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def answer_of(work: Work, place: Place) -> dict[str, Any]:
    """Return what *work* answers, with ``failed``; a failure has ``msg`` and ``evidence`` as a module's answer has."""
    try:
        return {"failed": False, **work()}
    except Problem as problem:
        return {"failed": True, **problem.answer()}
    except OSError as error:
        return {"failed": True, **of_system(error, str(place.layout.root)).answer()}
    except Exception as error:
        return {
            "failed": True,
            "msg": f"The phase {place.phase} of {place.deployment} ended with a fault of the collection itself, "
            f"{type(error).__name__}: please report it with the evidence.",
            "evidence": "\n".join(traceback.format_exc().splitlines()[-SHOWN:]),
        }


def forget_archive() -> None:
    """Remove the directory with the module's archive, which its own process was not there to remove."""
    for entry in sys.path:
        top = Path(entry).parent
        if entry.endswith("_payload.zip") and top.name.startswith("ansible_"):
            shutil.rmtree(top, ignore_errors=True)


# --- whoever comes after it


def ended(place: Place) -> dict[str, Any]:
    """Return the answer of a worker that has ended: its result, or that it died without one."""
    with contextlib.suppress(ValueError, OSError):
        found = read_json(place.result)
        if isinstance(found, dict) and "failed" in found:
            return found
    return {
        "failed": True,
        "died": True,
        "msg": f"The process of the phase {place.phase} of {place.deployment} ended without a result, expected one in "
        f"{str(place.result)!r}: it was killed, or the host went down; only the database says what is applied now.",
        "evidence": place.last_words(),
    }


def places(layout: Layout, deployment: str) -> list[Place]:
    """Return every phase that *deployment* has detached on this host, in the order in which they began."""
    found = []
    with contextlib.suppress(OSError):
        for path in directory_of(layout, deployment).iterdir():
            if path.suffix == ".json" and not path.name.startswith("."):
                found.append(Place(layout, deployment, path.stem))
    return sorted(found, key=lambda place: (str((place.read() or {}).get("since")), place.phase))


def working(layout: Layout) -> dict[str, Any] | None:
    """Return ``{deployment, phase, pid, since}`` of a detached worker that lives on this host; None: there is none."""
    with contextlib.suppress(OSError):
        for directory in sorted(layout.deployments.glob("*.work")):
            for place in places(layout, directory.stem):
                about = place.read() or {}
                if process_lives(about.get("process")):
                    return {
                        "deployment": place.deployment,
                        "phase": place.phase,
                        "pid": about["process"]["pid"],
                        "since": about.get("since"),
                    }
    return None


def left_at_work(layout: Layout, deployment: str) -> list[Process]:
    """Return the application's processes of *deployment* that are no services: commands of a phase.

    A worker that was killed leaves its migration behind, which ends by itself; it is known by its variables.
    """
    return [
        entry
        for entry in application_processes(layout.root)
        if entry.deployment == deployment and not entry.service
    ]


def _still(layout: Layout, deployment: str) -> Iterator[str]:
    for place in places(layout, deployment):
        process = (place.read() or {}).get("process")
        if process_lives(process):
            yield f"process {process['pid']} (phase {place.phase}, since {(place.read() or {}).get('since')})"
    for entry in left_at_work(layout, deployment):
        yield f"process {entry.pid} of the application ({' '.join(entry.command.split())[:80]})"


def attach(layout: Layout, deployment: str, limit: float) -> dict[str, Any]:
    """Wait until nothing that *deployment* left at work on this host works any more.

    :param limit: seconds to wait.
    :return: ``{phase, waited, answer}``: what was detached last, and its answer; ``phase`` is "" and ``answer`` {} where
        nothing was. ``waited``: seconds.
    :raises Problem: when the time is over.
    """
    begun = time.monotonic()
    while True:
        still = next(_still(layout, deployment), "")
        seconds = time.monotonic() - begun
        if not still:
            break
        if seconds >= limit:
            raise Problem(
                f"What the deployment {deployment} left at work on this host has not ended within {limit:g} s: {still} still "
                f"runs; wait for it, or see what it waits for, then run this again. Nothing was changed."
            )
        time.sleep(LOOK_INTERVAL)
    found = places(layout, deployment)
    if not found:
        return {"phase": "", "waited": round(seconds, 1), "answer": {}}
    return {"phase": found[-1].phase, "waited": round(seconds, 1), "answer": ended(found[-1])}


def said(deployment: str, found: dict[str, Any]) -> str:
    """Return in words what :func:`attach` returned for *deployment*."""
    if not found["phase"]:
        return f"Nothing of {deployment} works any more on this host, after {found['waited']:g} s."
    head = f"The phase {found['phase']} of {deployment} has ended, after {found['waited']:g} s of waiting"
    return f"{head}. {found['answer'].get('msg')}" if found["answer"].get("failed") else f"{head}, and well."


def forget(layout: Layout) -> None:
    """Remove what is left of detached work, except where a worker lives; for whoever holds the lock."""
    for directory in layout.deployments.glob("*.work"):
        if not any(process_lives((p.read() or {}).get("process")) for p in places(layout, directory.stem)):
            shutil.rmtree(directory, ignore_errors=True)
