# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a command of the application: as its user, with its environment, bounded in time, without input.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Shorter values ("0", "true", "prod") are no secrets, and hiding them would make every message unreadable.
SHORTEST_SECRET = 6
HIDDEN = "********"


class Finished(NamedTuple):
    """A command that has ended: ``seconds`` is wall time, ``timed_out`` says that it was killed."""

    argv: list[str]
    rc: int
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool

    def tail(self, lines: int = 20) -> str:
        """Return the last *lines* lines of the output, standard error last."""
        text = "\n".join(part.rstrip() for part in (self.stdout, self.stderr) if part.strip())
        return "\n".join(text.splitlines()[-lines:])


def last_words(text: str, lines: int = 20) -> str:
    """Return the last *lines* lines of a log, each Python traceback cut down to its last frame and its exception.

    A server's own traceback, with its many frames, often follows the one of the application that says why.
    """
    kept: list[str] = []
    frames: list[str] | None = None
    for line in text.splitlines():
        if frames is not None and (line[:1].isspace() or not line):
            frames.append(line)
            continue
        kept += _last_frame(frames or [])
        kept.append(line)
        frames = [] if line.endswith("Traceback (most recent call last):") else None
    kept += _last_frame(frames or [])
    return "\n".join(kept[-lines:])


def _last_frame(frames: list[str]) -> list[str]:
    starts = [number for number, line in enumerate(frames) if line.lstrip().startswith('File "')]
    return frames[starts[-1] :] if starts else frames


def parse_environment(text: str | None, option: str) -> dict[str, str]:
    """Return the variables in *text*, a JSON object of strings and numbers.

    Such objects reach a module as one JSON string: Ansible hides each *value* of a ``no_log`` dictionary
    wherever it occurs in the answer, so that a variable ``DEBUG: 0`` would blank every zero in it.

    :raises Problem: when *text* is no JSON object of plain values.
    """
    if not text:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Problem(f"{option} is not JSON: pass it as '{{{{ variable | to_json }}}}'.") from error
    if not isinstance(found, dict):
        raise Problem(f"{option} must be a mapping of names to values, found {type(found).__name__}.")
    result = {}
    for name, value in found.items():
        if isinstance(value, (dict, list)) or value is None:
            raise Problem(f"{option}.{name} must be a string or a number, found {type(value).__name__}.")
        # YAML's true and false reach a shell as words, as they were written.
        result[str(name)] = str(value).lower() if isinstance(value, bool) else str(value)
    return result


def redact(text: str, secrets: Iterable[str], keep: Iterable[str] = ()) -> str:
    """Return *text* with every one of *secrets* of at least ``SHORTEST_SECRET`` characters hidden.

    :param keep: parts of *text* that are said of the structure, such as the name of a check: in them nothing is hidden.
        A secret that reaches beyond such a part is.
    """
    whole = [found.span() for part in set(keep) if part for found in re.finditer(re.escape(part), text)]
    spans = sorted(
        found.span()
        for secret in set(secrets)
        if len(secret) >= SHORTEST_SECRET
        for found in re.finditer(re.escape(secret), text)
        if not any(start <= found.start() and found.end() <= end for start, end in whole)
    )
    shown, done = [], 0
    for start, end in spans:
        if start >= done:
            shown += [text[done:start], HIDDEN]
        done = max(done, end)
    return "".join([*shown, text[done:]])


def secret(values: Iterable[str], public: Iterable[str]) -> list[str]:
    """Return those of *values* that are not part of a text of *public*, which is shown anyway.

    A database and its role are often named like the application: hiding that name would hide each path of it.
    """
    texts = [str(text) for text in public if text]
    return [value for value in values if not any(value in text for text in texts)]


def identity(user: str | None) -> dict[str, Any]:
    """Return the arguments that make ``subprocess.Popen`` run as *user*; none when we already are.

    :raises Problem: when the user does not exist, or we may not become it.
    """
    if not user:
        return {}
    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        raise Problem(
            f"The user {user!r} does not exist on this host: run playbooks/setup.yml first."
        ) from error
    if entry.pw_uid == os.geteuid():
        return {}
    if os.geteuid() != 0:
        raise Problem(
            f"Commands must run as {user!r}, but this task runs as uid {os.geteuid()}: "
            "set ansible_become to true, or app_user to the user of the connection."
        )
    return {
        "user": entry.pw_uid,
        "group": entry.pw_gid,
        "extra_groups": os.getgrouplist(user, entry.pw_gid),
    }


def base_environment(user: str | None) -> dict[str, str]:
    """Return the small environment every command starts from; nothing is inherited by accident."""
    entry = pwd.getpwnam(user) if user else pwd.getpwuid(os.geteuid())
    return {
        "PATH": DEFAULT_PATH,
        "LANG": "C.UTF-8",
        "HOME": entry.pw_dir,
        "USER": entry.pw_name,
        "LOGNAME": entry.pw_name,
    }


def end_group(process: subprocess.Popen[Any], grace: float = 5.0) -> None:
    """End *process* and all its children (it leads a session): TERM, *grace* seconds, KILL."""
    for number, wait in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(wait)
            return
        except subprocess.TimeoutExpired:
            continue


def run(
    argv: Sequence[str],
    *,
    cwd: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    timeout: float = 600.0,
    secrets: Iterable[str] = (),
    umask: int = 0o027,
) -> Finished:
    """Run *argv* to its end, with standard input closed and at most *timeout* seconds.

    :param environment: added to :func:`base_environment`.
    :param user: the user to run as; None for the present one.
    :param secrets: texts to hide in the output: the values of app_environment, passwords.
    :raises Problem: when the program does not exist or *user* cannot be assumed; never for its exit code.
    """
    variables = {**base_environment(user), **(environment or {})}
    hidden = list(secrets)
    begun = time.monotonic()
    try:
        process = subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            umask=umask,
            **identity(user),
        )
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise Problem(f"Cannot run {argv[0]!r} in {str(cwd or os.getcwd())!r}: {error.strerror}.") from error
    timed_out = False
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        timed_out = True
        end_group(process)
        stdout, stderr = process.communicate()
    return Finished(
        list(argv),
        process.returncode,
        redact(stdout, hidden),
        redact(stderr, hidden),
        time.monotonic() - begun,
        timed_out,
    )
