# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gate of Celery: workers that answer, what they do, how long queues are, and exactly one beat.

The application's own Celery asks, in the application's environment: only it knows the broker, and how to speak to it.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets as random
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils import (
    _agent_celery,
    _beats,
    _celery_spec,
    _proc_tree,
    _processes,
)
from ansible_collections.runbook.deploy.plugins.module_utils._application import RELEASE_OPTIONS, installed
from ansible_collections.runbook.deploy.plugins.module_utils._bounded import (
    KILL_GRACE,
    TERM_GRACE,
    Unrunnable,
    excerpt,
    run_bounded,
)
from ansible_collections.runbook.deploy.plugins.module_utils._celery_spec import (
    QUESTIONS,
    Check,
    Judgement,
    expected_of,
    judge,
    parse_check,
)
from ansible_collections.runbook.deploy.plugins.module_utils._command import parse_environment
from ansible_collections.runbook.deploy.plugins.module_utils._gate import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    check_result,
)
from ansible_collections.runbook.deploy.plugins.module_utils._gating import GATE_OPTIONS, conduct, hidden
from ansible_collections.runbook.deploy.plugins.module_utils._instance import linked_deployment, read_instance
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, current_release
from ansible_collections.runbook.deploy.plugins.module_utils._parallel import in_parallel
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._workers import within

__all__ = ["OPTIONS", "RULES", "parse_check", "perform", "prober"]

OPTIONS: dict[str, Any] = {
    **GATE_OPTIONS,
    "checks": {"type": "list", "elements": "dict", "required": True},
    "app": {"type": "str"},
    "python": {"type": "path"},
    "chdir": {"type": "path"},
    "environment": {"type": "str", "no_log": True},
    "settings_module": {"type": "str", "default": ""},
    "user": {"type": "str"},
    "reply_timeout": {"type": "float", "default": 2.0},
    "timeout": {"type": "float", "default": 30.0},
}
RULES: dict[str, Any] = {"required_together": [("python", "chdir")]}
CURRENT = "current"
# Seconds that are kept at the end of a gate for ending the application's process.
ENDING = TERM_GRACE + KILL_GRACE
# Less is not enough for a Python to start.
SHORTEST = 0.3
# What an application waits for when it is ended, by the stage that it told last.
WAITED = {
    "": "the application's Python did not begin",
    "application": "the application was not loaded",
    "broker": "the broker did not let it in",
    "workers": "the workers' answers did not come through the broker",
    "queues": "the broker did not say how long its queues are",
}


class Unasked(Exception):
    """There is no answer, and nothing is known.

    :param text: why, as a part of a sentence; :param late: because the gate's time was up.
    """

    def __init__(self, text: str, late: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.late = late


class Place(NamedTuple):
    """How the application is run: its interpreter, directory, variables, and what is hidden of all that is shown; ``paths``
    are where its code and its environment are."""

    python: str
    cwd: str
    variables: dict[str, str]
    user: str | None
    secrets: list[str]
    paths: list[str]


def prober(options: Mapping[str, Any], check_mode: bool) -> Callable[[float], list[dict[str, Any]]]:
    """Return what asks all checks of *options*; it is given the seconds that are left. It changes nothing.

    :raises Problem: when a check is not well written, or it is not known what the application is called.
    """
    del check_mode
    for name in ("timeout", "reply_timeout"):
        if not options[name] > 0:
            raise Problem(f"{name} must be a number of seconds above 0, found {options[name]}.")
    if not options["root"] and not options["python"]:
        raise Problem(
            "A gate of Celery needs root, or python and chdir: it runs in the application's environment."
        )
    checks = [parse_check(item, f"checks[{index}]") for index, item in enumerate(options["checks"])]
    for index, check in enumerate(checks):
        if check.subject != "beat" and not app_of(check, options):
            raise Problem(
                f"checks[{index}] names no app, and neither do app and settings_module: set app to what celery -A takes, "
                "such as shop.celery:app."
            )
    parse_environment(options["environment"], "environment")

    def probe(left: float) -> list[dict[str, Any]]:
        limit = time.monotonic() + left
        asked: dict[str, Asked] = {}
        for check in checks:
            if check.subject != "beat":
                asked.setdefault(app_of(check, options), Asked(app_of(check, options), options, limit)).add(
                    check
                )

        def task(check: Check) -> Callable[[float], dict[str, Any]]:
            return lambda limit: run_check(check, options, asked.get(app_of(check, options)), limit)

        names = [(check.name, check.common.severity) for check in checks]
        return in_parallel([task(check) for check in checks], names, limit, len(checks) or 1)

    return probe


def app_of(check: Check, options: Mapping[str, Any]) -> str:
    """Return what ``celery -A`` would be given for *check*; by default the package of the settings."""
    return str(check.app or options["app"] or (options["settings_module"] or "").split(".")[0])


class Asked:
    """What one application's Celery says, asked once for all checks, by the first of them that needs it."""

    def __init__(self, app: str, options: Mapping[str, Any], limit: float) -> None:
        self.app = app
        self.options = options
        self.limit = limit
        self.questions: set[str] = set()
        self.queues: set[str] = set()
        self.timeout = 0.0
        self.repeat = ""
        self.broker = ""
        self.secrets: list[str] = []
        self._lock = threading.Lock()
        self._answers: dict[str, Any] | None = None
        self._error: Unasked | None = None

    def add(self, check: Check) -> None:
        """Ask for what *check* needs, too."""
        self.questions |= set(QUESTIONS.get(check.subject, ()))
        self.queues |= {check.value} if check.subject == "queue" else set()
        self.timeout = max(self.timeout, check.common.timeout or self.options["timeout"])

    def answers(self) -> dict[str, Any]:
        """Return the answers.

        :raises Unasked: when there are none.
        """
        with self._lock:
            if self._answers is None and self._error is None:
                try:
                    self._answers = self._ask()
                except Unasked as error:
                    self._error = error
        if self._error is not None:
            raise self._error
        return self._answers or {}

    def _ask(self) -> dict[str, Any]:
        place = place_of(self.options)
        self.secrets = place.secrets
        self.repeat = shlex.join([place.python, "-m", "celery", "-A", self.app, "status"])
        self.repeat = f"cd {shlex.quote(place.cwd)} && {self.repeat}"
        allowed = min(self.timeout, self.limit - time.monotonic() - ENDING)
        if allowed < SHORTEST:
            raise Unasked("no time was left to ask: raise the deadline", True)
        mark = random.token_hex(12) + " "
        request = {
            "app": self.app,
            "mark": mark,
            "reply": self.options["reply_timeout"],
            "connect": max(0.5, allowed / 2),
            "questions": sorted(self.questions),
            "queues": sorted(self.queues),
        }
        try:
            ended = run_bounded(
                [place.python, "-u", "-c", agent_source()],
                cwd=place.cwd,
                environment={**place.variables, _agent_celery.VARIABLE: json.dumps(request)},
                user=place.user,
                timeout=allowed,
            )
        except Unrunnable as error:
            raise Unasked(f"the application's Python cannot be run: {error.text}") from error
        said = parse_lines(ended.stdout.parts(), mark)
        self.broker = str(said.get("place") or "")
        if "answer" in said:
            return dict(said["answer"])
        if "error" in said:
            raise Unasked(self._why(said["error"]))
        stage = str(said.get("stage") or "")
        if ended.timed_out:
            cut = allowed < self.timeout
            advice = "raise the deadline" if cut else "see what it waits for, or raise the timeout"
            raise Unasked(f"{WAITED.get(stage, WAITED[''])} within {allowed:.1f} s: {advice}", cut)
        last = excerpt(ended.stderr.text() or ended.stdout.text(), 3).replace("\n", " ")
        raise Unasked(
            f"the application's process ended without an answer, with exit code {ended.rc}"
            + (f": {last}" if last else "")
        )

    def _why(self, error: Mapping[str, Any]) -> str:
        text = str(error.get("text") or "").rstrip(".")
        if error.get("kind") == "application":
            return f"the application {self.app!r} cannot be loaded: {text}: correct app, or see what it lacks"
        return f"the broker {self.broker} cannot be reached: {text}"


def agent_source() -> str:
    """Return the program that asks, by the loader: on a host it is inside the module's zip archive."""
    spec = importlib.util.find_spec(_agent_celery.__name__)
    return str(spec.loader.get_source(_agent_celery.__name__))


def parse_lines(parts: Iterable[str], mark: str) -> dict[str, Any]:
    """Return what the lines that begin with *mark* say, later ones over earlier ones; others are the application's own."""
    found: dict[str, Any] = {}
    for part in parts:
        for line in part.split("\n"):
            if line.startswith(mark):
                with contextlib.suppress(ValueError):
                    document = json.loads(line[len(mark) :])
                    found.update(document if isinstance(document, dict) else {})
    return found


def place_of(options: Mapping[str, Any]) -> Place:
    """Return how the application is run: as *options* say, else as the release that is current.

    :raises Unasked: when no release is current, or it is damaged.
    """
    environment = parse_environment(options["environment"], "environment")
    if options["python"]:
        variables = {"PYTHONDONTWRITEBYTECODE": "1", **environment}
        if options["settings_module"]:
            variables["DJANGO_SETTINGS_MODULE"] = options["settings_module"]
        secrets = [value for value in environment.values() if value != options["chdir"]]
        prefix = os.path.dirname(os.path.dirname(options["python"]))
        paths = [options["chdir"], *([prefix] if prefix not in ("/", "/usr", "/usr/local") else [])]
        return Place(options["python"], options["chdir"], variables, options["user"], within(secrets), paths)
    release = current_release(Layout(options["root"]))
    if not release:
        raise Unasked(f"no release is current in {options['root']}: ask it after the switch")
    own = {name: spec.get("default", "") for name, spec in RELEASE_OPTIONS.items()}
    given = {name: options[name] for name in ("root", "user", "environment", "settings_module")}
    try:
        found = installed({**own, "record": None, **given, "release": release})
    except Problem as problem:
        raise Unasked(problem.message.rstrip(".")) from problem
    return Place(
        str(found.python),
        str(found.cwd),
        found.variables,
        options["user"],
        within(found.secrets),
        [str(found.layout.root)],
    )


def run_check(check: Check, options: Mapping[str, Any], asked: Asked | None, limit: float) -> dict[str, Any]:
    """Ask one question and judge the answer; *limit* is the reading of ``time.monotonic()`` at which that must end."""
    del limit  # Asked has it
    begun = time.monotonic()
    observed = ""
    further: dict[str, Any] = {}
    repeat = "ps -eo pid,ppid,user,args | grep '[c]elery'"
    secrets: Sequence[str] = within(parse_environment(options["environment"], "environment").values())
    try:
        if check.subject == "beat":
            found = judge_beat(check, options)
        elif asked is None:
            raise Unasked("nobody was asked")
        else:
            try:
                answers = asked.answers()
            finally:
                repeat = asked.repeat
                secrets = [*secrets, *asked.secrets]
            release = check.subject == "release"
            found = judge_release(check, options, answers) if release else judge(check, answers, time.time())
        observed = found.observed
        verdict = FAIL if found.wrong else INCONCLUSIVE if found.unknown else PASS
        text = "; ".join(found.wrong or found.unknown)
    except Unasked as error:
        verdict, text = INCONCLUSIVE, error.text
        further = {"cut_short": True} if error.late else {}
    expected = expected_of(check)
    message = ""
    if verdict != PASS:
        how = "failed" if verdict == FAIL else "could not be asked" if not observed else "cannot be judged"
        where = (
            f"Celery of {asked.app!r}" + (f" at {asked.broker}" if asked.broker else "")
            if asked is not None
            else "the processes of this host"
        )
        message = f"Check {check.name!r} {how}: asked {where}: expected {expected}, but {text}."
        message += f" Repeat: {repeat}" if repeat else ""
    result = check_result(
        check.name,
        verdict,
        check.common.severity,
        observed or text,
        expected,
        message,
        time.monotonic() - begun,
        repeat=repeat,
        **further,
    )
    return hidden(result, secrets)


def judge_beat(check: Check, options: Mapping[str, Any]) -> Judgement:
    """Count the beats on this host, and look how long ago they wrote their file.

    :raises Unasked: when it is not known what belongs to the application.
    """
    place: Place | None = None
    try:
        place = place_of(options)
    except Unasked:
        if not options["root"]:
            raise
    paths = place.paths if place else [options["root"]]
    found = _beats.find(
        _beats.Application(options["root"], paths, beat_services(options["root"]), app_of(check, options))
    )
    count = len(found.beats)
    pids = f" (processes {', '.join(map(str, found.beats))})" if found.beats else ""
    seen = f"{count} beats run on this host{pids}"
    bound = check.value
    wrong, unknown = [], []
    if found.unknown:
        told = f"whose beat process {found.unknown[0]} is may not be seen by uid {os.geteuid()}; ask as root or as its own user"
        # More can only make too many more.
        too_many = bound.operator in ("<", "<=", "==") and count > bound.value
        (wrong if too_many else unknown).append(f"{seen}, and {told}")
    elif not bound.holds(count):
        wrong.append(seen)
    if check.file and check.max_age:
        try:
            age = time.time() - os.stat(check.file).st_mtime
        except OSError as error:
            unknown.append(f"{check.file} cannot be looked at ({error.strerror})")
        else:
            seen += f", {check.file} was changed {age:.0f} s ago"
            if not check.max_age.holds(age):
                wrong.append(f"{check.file} was changed {age:.0f} s ago")
    return Judgement(seen, wrong, unknown)


def beat_services(root: str | None) -> list[str]:
    """Return the names of the services of the live instance that are beats by definition."""
    if not root:
        return []
    layout = Layout(root)
    release = current_release(layout)
    deployment = linked_deployment(layout, release) if release else None
    with contextlib.suppress(Problem):
        instance = read_instance(layout, deployment) if deployment else None
        return [spec["name"] for spec in instance.services if spec["kind"] == "beat"] if instance else []
    return []


def judge_release(check: Check, options: Mapping[str, Any], answers: Mapping[str, Any]) -> Judgement:
    """Judge which release the workers run that answered and are processes of this host; others cannot be looked into."""
    workers = sorted(answers.get("ping") or {})
    if not workers:
        return Judgement("", [], ["no worker answered, so nobody knows what they run"])
    wanted = check.value
    if wanted == CURRENT:
        release = current_release(Layout(options["root"])) if options["root"] else None
        if not release:
            return Judgement("", [], [f"no release is current in {options['root']!r}"])
        wanted = str(Layout(options["root"]).release(release))
    wrong, hidden, here = [], [], []
    for worker in workers:
        pid = ((answers.get("stats") or {}).get(worker) or {}).get("pid")
        if not isinstance(pid, int) or not is_worker(worker, pid):
            continue
        variables, paths = _processes.variables(pid), _proc_tree.runs_from(pid)
        runs = _proc_tree.is_release(wanted, variables, paths)
        if runs is None:
            hidden.append(worker)
        elif not runs:
            seen = variables.get("RUNBOOK_RELEASE") or ", ".join(paths or []) or "another one"
            wrong.append(f"{worker} (process {pid}) runs the release {seen}")
        here.append(worker)
    elsewhere = [worker for worker in workers if worker not in here]
    seen = f"{len(here)} workers are processes of this host: {_celery_spec.shown(here)}" if here else ""
    if elsewhere:
        seen += f"; not of this host: {_celery_spec.shown(elsewhere)}"
    unknown = []
    if not here:
        unknown.append(
            f"none of the workers that answered is a process of this host ({_celery_spec.shown(workers)})"
        )
    if hidden:
        unknown.append(
            f"the processes of {_celery_spec.shown(hidden)} do not tell uid {os.geteuid()} what they run"
        )
    return Judgement(seen.strip("; "), wrong, unknown)


def is_worker(worker: str, pid: int) -> bool:
    """Return whether the process *pid* of this host is the *worker*: PIDs of other hosts exist here, too.

    Its command is Celery's, and the host in its name is this one, or was chosen with ``-n``.
    """
    words = _beats.words_of(pid)
    text = " ".join(words)
    if "celery" not in text or not ("worker" in text or text.startswith("[celeryd")):
        return False
    name, _at, host = worker.partition("@")
    ours = host in (os.uname().nodename, os.uname().nodename.split(".")[0])
    return ours or f"{name}@" in text or host in text


def perform(options: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    """Run the gate that *options* (see ``OPTIONS``) describe and return it.

    :raises Problem: when it does not pass, or an option is wrong.
    """
    secrets = within(parse_environment(options["environment"], "environment").values())
    return conduct(
        options,
        prober(options, check_mode),
        "Celery of this application",
        check_mode=check_mode,
        warn=warn,
        secrets=secrets,
    )
