# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manager ``supervisor``: one program section for each service of each instance, told through supervisorctl.

Programs are called ``<name>-<stage>-<service>-<deployment>`` and stand in files of their own in a directory that
supervisord includes. None of them is started by supervisord itself: one further program does that, once in
supervisord's life, for the instance of the current release alone (see ``_supervisor_boot``).

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from ansible_collections.runbook.deploy.plugins.module_utils._command import (
    DEFAULT_PATH,
    Finished,
    base_environment,
    last_words,
    redact,
    run,
)
from ansible_collections.runbook.deploy.plugins.module_utils._instance import (
    Instance,
    linked_deployment,
    make_directory,
    owner_group,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    Layout,
    current_release,
    open_regular,
    write_atomic,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._process import LINGER, ProcessUnit, Status
from ansible_collections.runbook.deploy.plugins.module_utils._supervisor_boot import (
    MARK,
    boot_script,
    boot_stamp,
    script_file,
    stamp_file,
)

# Debian's package, and what supervisor's documentation calls its defaults.
CONFIG = "/etc/supervisor/supervisord.conf"
INCLUDE = "/etc/supervisor/conf.d"
# supervisorctl answers at once; one whose supervisord hangs must not hang us.
ASK = 30.0
# How long it may stay STARTING: startsecs, and a machine that is busy.
START = 60.0
# stopwaitsecs and KILL are supervisord's; this much is allowed for its own work.
STOP_MARGIN = 30.0
POLL = 0.1
# What supervisord said of a program holds this long, unless its main process ended or something was done with it: each question
# takes a process.
FRESH = 1.0
# A process that ends earlier has not started (BACKOFF). Then it is tried again after 1, 2, 3 ... s: this many times are half a
# day, because a database that is away for minutes must not leave the application down for good.
START_SECONDS = 1
START_RETRIES = 300
# https://supervisord.org/subprocess.html, process states.
ENDED = ("STOPPED", "EXITED", "FATAL")
FAILED = ("BACKOFF", "FATAL", "EXITED", "UNKNOWN")
STATES = (*FAILED, "STARTING", "RUNNING", "STOPPING", "STOPPED")
_LINE = re.compile(rf"^(?P<name>\S+)\s+(?P<state>{'|'.join(STATES)})(?:\s+(?P<words>.*))?$")
_PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./%-]")
# The shell reads the environment file as systemd does: a value in double quotes, four characters escaped.
_ENTER = 'set -a; . "$0"; set +a; exec /bin/sh "$1"'


class Place(NamedTuple):
    """Where a supervisord is found: its ``config``, read by supervisorctl too, and the directory that it ``include``s."""

    config: str = CONFIG
    include: str = INCLUDE


class Word(NamedTuple):
    """What supervisorctl says of one program: its state, and further words such as "pid 12, uptime 0:00:05"."""

    state: str
    words: str

    @property
    def pid(self) -> int:
        """Its process; 0 where none is named."""
        found = re.match(r"pid (\d+)", self.words)
        return int(found.group(1)) if found else 0


def place_of(spec: Mapping[str, Any]) -> Place:
    """Return where the supervisord of the service *spec* is found."""
    return Place(spec.get("supervisor_config") or CONFIG, spec.get("supervisor_include") or INCLUDE)


def program_name(name: str, stage: str, service: str, deployment: str) -> str:
    """Return the name of the program of *service* in the instance *deployment*."""
    return f"{name}-{stage}-{service}-{deployment}"


def parse_programs(names: Sequence[str], name: str, stage: str) -> set[tuple[str, str]]:
    """Return (service, deployment) of those *names* that can be programs of this application.

    A name such as ``shop-eu`` makes that ambiguous (service ``eu-web`` of ``shop``?), so the caller looks further.
    """
    pattern = re.compile(
        rf"{re.escape(name)}-{re.escape(stage)}-(?P<service>.+)-(?P<deployment>\d{{8}}T\d{{6}}-[0-9a-f]{{4}}(?:\.trial)?)$"
    )
    matches = [pattern.match(entry) for entry in names]
    return {(found["service"], found["deployment"]) for found in matches if found}


def parse_status(text: str) -> dict[str, Word]:
    """Return what ``supervisorctl status`` printed, by program; other lines (of programs that are unknown) are left out."""
    found = [_LINE.match(line.rstrip()) for line in text.splitlines()]
    return {line["name"]: Word(line["state"], line["words"] or "") for line in found if line}


def judge(word: Word | None) -> Status:
    """Return the status that *word* means. Between two starts (BACKOFF) a program has failed; STARTING is not running yet."""
    if word is None:
        return Status(False, None, None, 0, False, "not known to supervisord")
    detail = f"{word.state} ({word.words})" if word.words else word.state
    started = _processes.start_time(word.pid) if word.state == "RUNNING" and word.pid else None
    if started is None:
        return Status(False, None, None, 0, word.state in FAILED, detail)
    return Status(True, word.pid, started, 0, False, detail)


def escape(word: str) -> str:
    """Return *word* as one word of ``command=``.

    supervisord takes ``%`` for an expansion and a ``;`` or ``#`` after a blank for a comment, then splits as shlex.split does.
    A backslash before every character that is not plain serves for both: what follows a backslash follows no blank.
    """
    return "".join(char if _PLAIN.match(char) else f"\\{char}" for char in word).replace("%", "%%")


def section_text(
    program: str,
    words: Sequence[str],
    log: str,
    user: str | None,
    options: Sequence[str],
) -> str:
    """Return a file with the section of *program*, which runs *words* and writes to *log*.

    :raises Problem: for a path that cannot be written in such a file.
    """
    if re.search(r"[\s:/]", program):
        raise Problem(
            f"supervisor takes no program called {program!r}: name, stage and services must have no blank, colon or slash."
        )
    for text in (*words, log):
        if re.search(r"[\0\r\n]", text) or (text == log and re.search(r"\s[;#]", text)):
            raise Problem(
                f"The path {text!r} cannot stand in a file of supervisor, which takes what follows ' ;' or ' #' for a comment: "
                "choose another app_root."
            )
    lines = [
        "; Written by runbook.deploy, which removes it again: do not change it.",
        f"[program:{program.replace('%', '%%')}]",
        "command=" + " ".join(escape(word) for word in words),
        *([f"user={user}"] if user else []),
        *options,
        "redirect_stderr=true",
        # Expanded twice, in _processes_from_section of supervisor 3.2 to 4.3.
        f"stdout_logfile={log.replace('%', '%%%%')}",
    ]
    return "\n".join(lines) + "\n"


def find_control() -> str:
    """Return the path of supervisorctl.

    :raises Problem: where supervisor is not installed.
    """
    path = shutil.which("supervisorctl", path=f"{os.environ.get('PATH', '')}:{DEFAULT_PATH}")
    if path is None:
        raise Problem(
            "There is no supervisorctl on this host, which manager: supervisor needs: install supervisor (setup_packages), or "
            "choose another manager in app_services."
        )
    return path


def ask(place: Place, *arguments: str, timeout: float = ASK) -> Finished:
    """Run supervisorctl with *arguments*; its exit code is the caller's matter, that supervisord answers is not.

    :raises Problem: when it is not there, or its supervisord does not answer.
    """
    if not os.path.isfile(place.config):
        raise Problem(
            f"supervisor has no configuration {place.config!r} on this host: install it, or correct supervisor_config of the "
            "service in app_services."
        )
    answer = run([find_control(), "-c", place.config, *arguments], timeout=timeout)
    said = f"{answer.stdout}\n{answer.stderr}"
    refused = re.search(
        r"refused connection|^\S+ no such file$|^error: <|Server requires authentication|Sorry, |^Error: ",
        said,
        re.MULTILINE,
    )
    if answer.timed_out or (refused and answer.rc != 0):
        raise Problem(
            f"supervisord ({place.config}) does not answer supervisorctl on this host, so it is unknown which instances run: "
            "start it (its socket and password stand in that file), then run again.",
            answer.tail(10),
        )
    return answer


def ask_status(place: Place, *programs: str, timeout: float = ASK) -> dict[str, Word]:
    """Return what supervisord says of *programs*, of all without any.

    :raises Problem: when it does not answer.
    """
    return parse_status(ask(place, "status", *programs, timeout=timeout).stdout)


def find_programs(
    layout: Layout, name: str, stage: str, place: Place
) -> dict[tuple[str, str], tuple[Word | None, bool]]:
    """Return (service, deployment) of the programs that can be ours -> (what supervisord says, whether their section says so).

    :raises Problem: when supervisord does not answer.
    """
    words = ask_status(place)
    found: dict[tuple[str, str], tuple[Word | None, bool]] = {}
    for key in parse_programs(list(words), name, stage):
        found[key] = words[program_name(name, stage, *key)], False
    with contextlib.suppress(OSError):
        for path in sorted(Path(place.include).glob("*.conf")):
            for key in parse_programs([path.stem], name, stage):
                with contextlib.suppress(OSError, ValueError):
                    ours = escape(f"{layout.instances}/") in path.read_text(encoding="utf-8")
                    found[key] = words.get(path.stem), ours
    return found


class SupervisorUnit:
    """One service of one instance under supervisord.

    :param stop_timeout: seconds from TERM to KILL.
    """

    manager = "supervisor"

    def __init__(
        self,
        layout: Layout,
        application: tuple[str, str],
        service: str,
        deployment: str,
        user: str | None,
        place: Place,
        stop_timeout: float = 30.0,
    ) -> None:
        self.layout = layout
        self.application = application
        self.service = service
        self.deployment = deployment
        self.user = user
        self.place = place
        self.stop_timeout = stop_timeout
        self.program = program_name(*application, service, deployment)
        self.section = Path(place.include) / f"{self.program}.conf"
        self.log = layout.log(service, deployment)
        self._first: tuple[int, int] | None = None
        self._said: tuple[float, Status] | None = None

    @property
    def name(self) -> str:
        """What an operator knows it by."""
        return self.program

    def _rest(self) -> ProcessUnit:
        """What finds and ends the service's processes by their environment, whoever is their parent."""
        return ProcessUnit(self.layout, self.service, self.deployment, self.user)

    def _word(self, timeout: float = ASK) -> Word | None:
        return ask_status(self.place, self.program, timeout=timeout).get(self.program)

    def hear(self, word: Word | None) -> Status:
        """Return the status that *word* of supervisord means for this service, and keep it for a moment."""
        found = judge(word)
        if found.running and self._first and (found.pid, found.started) != self._first:
            found = found._replace(restarts=1, detail=f"{found.detail}, restarted by supervisord")
        self._said = (time.monotonic(), found)
        return found

    def status(self, timeout: float = ASK) -> Status:
        """Return what supervisord says within *timeout* seconds; what it said a moment ago while the same main process lives."""
        if self._said is not None:
            when, said = self._said
            same = not said.running or _processes.is_same(said.pid or 0, said.started or 0)
            if time.monotonic() - when < FRESH and same:
                return said
        return self.hear(self._word(timeout))

    def _own(self) -> str:
        """Return the text of its section."""
        variables = {**base_environment(self.user), MARK: str(self.layout.root)}
        words = ["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in sorted(variables.items()))]
        words += ["/bin/sh", "-c", _ENTER, str(self.layout.environment_file(self.deployment))]
        words += [str(self.layout.launcher(self.deployment, self.service))]
        options = [
            "autostart=false",
            "autorestart=true",
            f"startsecs={START_SECONDS}",
            f"startretries={START_RETRIES}",
            "stopsignal=TERM",
            f"stopwaitsecs={self.stop_timeout:.0f}",
            # TERM goes to the main process alone, which lets its workers finish; KILL goes to all that is left.
            "stopasgroup=false",
            "killasgroup=true",
        ]
        return section_text(self.program, words, str(self.log), self.user, options)

    def _load(self, path: Path, program: str, text: str, known: bool) -> None:
        """Have supervisord know *program* as *text* in *path* says; no other program is touched.

        :param known: whether supervisord knows a program of this name; it does not run then.
        :raises Problem: when supervisord does not read that file; nothing is left of it then.
        """
        try:
            same = path.read_text(encoding="utf-8") == text
        except (OSError, ValueError):
            same = False
        if same and known:
            return
        if not path.parent.is_dir():
            raise Problem(
                f"The directory {str(path.parent)!r}, which supervisord should include, does not exist on this host: make it, or "
                "correct supervisor_include of the service in app_services."
            )
        write_atomic(path, text, 0o644)
        answer = ask(self.place, "reread")
        if answer.rc == 0 and "ERROR" not in answer.stdout:
            if known:
                ask(self.place, "remove", program)
            answer = ask(self.place, "add", program)
            if answer.rc == 0 and "ERROR" not in answer.stdout:
                return
            reason = f"does not know the group {program!r} although {str(path)!r} describes it: let [include] in {self.place.config} say "
            reason += f"'files = {path.parent}/*.conf', or correct supervisor_include in app_services"
        else:
            reason = (
                f"cannot read its configuration {self.place.config} again: correct what the evidence names"
            )
        with contextlib.suppress(OSError):
            path.unlink()
        raise Problem(f"supervisord {reason}.", answer.tail(10))

    def _load_boot(self, known: bool) -> None:
        """Have what starts the current release be there when supervisord starts the next time; it does nothing in this life."""
        program = "-".join(self.application)
        script = script_file(self.layout)
        text = boot_script(self.layout, self.application, find_control(), self.place.config)
        if not script.is_file() or script.read_text(encoding="utf-8") != text:
            write_atomic(script, text, 0o640, -1, owner_group(self.user))
        if not known:
            answer = ask(self.place, "pid").stdout.strip()
            write_atomic(stamp_file(self.layout), boot_stamp(int(answer) if answer.isdigit() else 0), 0o640)
        options = ["autostart=true", "autorestart=false", "startsecs=0", "startretries=0"]
        log = str(self.layout.logs / "supervisor.log")
        section = section_text(program, ["/bin/sh", str(script)], log, None, options)
        self._load(Path(self.place.include) / f"{program}.conf", program, section, known)

    def start(self, instance: Instance) -> None:
        """Start the service, and wait until supervisord calls it RUNNING, which is past its ``startsecs``.

        :raises Problem: when supervisord does not know it, or it does not get there.
        """
        make_directory(self.layout.logs, 0o750, self.user)
        # supervisord would make it for everybody to read.
        log = open_regular(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.fchown(log, -1, owner_group(self.user))
        finally:
            os.close(log)
        self._first = self._said = None
        boot = "-".join(self.application)
        words = ask_status(self.place, boot, self.program)
        self._load_boot(boot in words)
        self._load(self.section, self.program, self._own(), self.program in words)
        ask(self.place, "start", self.program, timeout=START)
        deadline = time.monotonic() + START
        found = self.hear(self._word())
        while not found.running:
            if found.failed or not found.detail.startswith("STARTING") or time.monotonic() > deadline:
                raise Problem(
                    f"Service {self.service!r} of the release {instance.release} does not stay up: supervisord says "
                    f"{found.detail}; its log ends as shown.",
                    last_words(self.tail(200)),
                )
            time.sleep(POLL)
            found = self.hear(self._word())
        self._first = (found.pid or 0, found.started or 0)

    def owns(self, pid: int) -> bool:
        """Return whether the process *pid* belongs to this service."""
        return _processes.carries(pid, self.service, self.deployment)

    def exists(self) -> bool:
        """Return whether anything of the service is left that :meth:`stop` would end."""
        found = self.status()
        # EXITED counts, because it ended by itself; STOPPED is what somebody wanted.
        left = found.running or found.failed or found.detail.startswith(("STARTING", "RUNNING", "STOPPING"))
        return left or self._rest().exists()

    def stop(self, timeout: float) -> bool:
        """Stop the service: TERM to its main process, *timeout* seconds, then KILL to all of its processes.

        The section of what is current stays, for the next start of supervisord; that of others is removed.

        :return: whether it had to be killed.
        :raises Problem: when supervisord could not stop it.
        """
        self._first = None
        begun = time.monotonic()
        answer = ask(self.place, "stop", self.program, timeout=max(timeout, self.stop_timeout) + STOP_MARGIN)
        # supervisord does not say how it ended.
        stopped = answer.stdout.startswith(f"{self.program}: stopped")
        killed = stopped and time.monotonic() - begun > self.stop_timeout + 1.0
        if not stopped:
            word = self._word()
            if word is not None and word.state not in ENDED:
                raise Problem(
                    f"supervisord could not stop {self.program} (it is {word.state}): stop it by hand with "
                    f"'supervisorctl -c {self.place.config} stop {self.program}', then run again.",
                    answer.tail(10),
                )
        self._said = None
        # What ignored its main process's end, or outlived an earlier supervisord.
        rest = self._rest()
        if rest.exists():
            killed = rest.stop(LINGER if stopped else timeout) or killed
        release = current_release(self.layout)
        if not release or linked_deployment(self.layout, release) != self.deployment:
            self.forget()
        return killed

    def forget(self) -> None:
        """Remove its section, and have supervisord forget the program; one that runs is left alone."""
        with contextlib.suppress(FileNotFoundError):
            self.section.unlink()
        # One that is not known, or runs, is refused.
        ask(self.place, "remove", self.program)
        self._said = None

    def tail(self, lines: int = 20, secrets: tuple[str, ...] = ()) -> str:
        """Return the last lines of the service's log."""
        return redact(self._rest().tail(lines), secrets)
