# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be true of a host before a deployment: space, clock, interpreter, variables, names, ports, certificates.

What is asked for is read by ``_host_spec``.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._command import parse_environment, run
from ansible_collections.runbook.deploy.plugins.module_utils._comparison import SIZES, Bound, version_holds
from ansible_collections.runbook.deploy.plugins.module_utils._gate import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    check_result,
)
from ansible_collections.runbook.deploy.plugins.module_utils._gating import GATE_OPTIONS, conduct
from ansible_collections.runbook.deploy.plugins.module_utils._host_spec import Check, parse_check, place_of
from ansible_collections.runbook.deploy.plugins.module_utils._http_judge import judge_certificate
from ansible_collections.runbook.deploy.plugins.module_utils._parallel import in_parallel
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

OPTIONS: dict[str, Any] = {
    **GATE_OPTIONS,
    "checks": {"type": "list", "elements": "dict", "required": True},
    "environment": {"type": "str", "no_log": True},
    "controller_time": {"type": "float"},
    "ca_path": {"type": "path"},
    "repository": {"type": "path"},
    "commit": {"type": "str"},
}
RULES: dict[str, Any] = {"required_together": [("repository", "commit")]}
# A line that sets a variable in a .env file; what is commented out is a choice, not a demand.
_EXAMPLE = re.compile(r"^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=")


class Outcome(NamedTuple):
    """What one probe found: verdict, what was seen and expected, what to do next, the command that asks by hand."""

    verdict: str
    observed: str
    expected: str
    advice: str = ""
    repeat: str = ""


class Surroundings(NamedTuple):
    """What the probes know beside their check: the application's variables, the controller's time and when it was given
    (``time.time()`` both), the authorities, the repository and the commit."""

    variables: dict[str, str]
    controller_time: float | None
    asked_at: float
    ca_path: str | None
    repository: str | None
    commit: str | None


def names_in_example(text: str) -> list[str]:
    """Return the variables that the text of a ``.env.example`` sets, in its order."""
    found = [_EXAMPLE.match(line) for line in text.splitlines()]
    return list(dict.fromkeys(match.group(1) for match in found if match))


def judge_variables(required: Sequence[str], given: Mapping[str, str]) -> Outcome:
    """Say which of *required* are missing from the variables *given*, or empty; their values are never shown."""
    missing = [name for name in required if name not in given]
    empty = [name for name in required if name in given and not str(given[name]).strip()]
    expected = f"{len(required)} variables with a value"
    if not required:
        return Outcome(
            INCONCLUSIVE,
            "no variable is required",
            "at least one required variable",
            "name some, or an example.",
        )
    if not missing and not empty:
        return Outcome(PASS, f"all {len(required)} are set", expected)
    said = [f"missing: {', '.join(missing)}"] if missing else []
    said += [f"empty: {', '.join(empty)}"] if empty else []
    return Outcome(FAIL, "; ".join(said), expected, "add them to app_environment.")


def judge_skew(bound: Bound, host: float, controller: float, elapsed: float) -> Outcome:
    """Hold the difference of the clocks against *bound*, both in seconds since the epoch.

    :param elapsed: seconds that may have passed since *controller* was read; they excuse that much of being ahead.
    """
    ahead = host - controller
    skew = 0.0 if 0 <= ahead <= elapsed else ahead - elapsed if ahead > elapsed else ahead
    seen = (
        f"{abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the controller"
        if skew
        else "as the controller's"
    )
    good = bound.holds(abs(skew))
    advice = "" if good else "set the clock of the one that is wrong (timedatectl set-ntp true)."
    return Outcome(PASS if good else FAIL, seen, f"a difference of {bound.text}", advice, "date -u")


def written_size(value: float) -> str:
    """Return a number of bytes as a person would write it."""
    for unit in ("TB", "GB", "MB", "KB"):
        if value >= SIZES[unit]:
            return f"{value / SIZES[unit]:.1f} {unit}"
    return f"{value:.0f} B"


def judge_figures(
    bounds: Mapping[str, Bound], found: Mapping[str, float | None], advice: str, repeat: str
) -> Outcome:
    """Hold each of *found* against its bound; a figure that is None could not be measured.

    :param bounds: by the keys of a check, such as ``free_percent``; *found* has all of them, in base units.
    """

    def shown(key: str, value: float | None) -> str:
        if value is None:
            return f"{key} unknown"
        if key.endswith("percent"):
            return f"{key} {value:.1f} %"
        return f"{key} {written_size(value) if key == 'free' else f'{value:g}'}"

    observed = ", ".join(shown(key, found[key]) for key in bounds)
    expected = ", ".join(f"{key} {bound.text}" for key, bound in bounds.items())
    values = {key: found[key] for key in bounds}
    if any(value is not None and not bounds[key].holds(value) for key, value in values.items()):
        return Outcome(FAIL, observed, expected, advice, repeat)
    if any(value is None for value in values.values()):
        return Outcome(INCONCLUSIVE, observed, expected, "", repeat)
    return Outcome(PASS, observed, expected, "", repeat)


def _disk(check: Check, around: Surroundings, left: float) -> Outcome:
    path = check.value
    # What is not there yet will lie where its nearest parent lies.
    while not os.path.exists(path):
        path = os.path.dirname(path)
    found = os.statvfs(path)
    # Some file systems (btrfs) have no fixed number of inodes and answer 0.
    inodes = found.f_files > 0
    figures: dict[str, float | None] = {
        "free": float(found.f_bavail * found.f_frsize),
        "free_percent": 100.0 * found.f_bavail / found.f_blocks if found.f_blocks else None,
        "inodes": float(found.f_favail) if inodes else float("inf"),
        "inodes_percent": 100.0 * found.f_favail / found.f_files if inodes else 100.0,
    }
    return judge_figures(
        check.keys, figures, f"free space on the file system of {path}.", f"df -h {path}; df -i {path}"
    )


def _memory(check: Check, around: Surroundings, left: float) -> Outcome:
    with open("/proc/meminfo", encoding="ascii") as stream:
        lines = dict(line.split(":", 1) for line in stream)
    kilobytes = {name: float(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable")}
    figures: dict[str, float | None] = {
        "free": kilobytes["MemAvailable"] * 1024,
        "free_percent": 100.0 * kilobytes["MemAvailable"] / kilobytes["MemTotal"],
    }
    return judge_figures(check.keys, figures, "look at what uses the memory.", "free -m")


def _load(check: Check, around: Surroundings, left: float) -> Outcome:
    return judge_figures(
        check.keys, {"average": os.getloadavg()[0]}, "look at what keeps the host busy.", "uptime"
    )


def _clock(check: Check, around: Surroundings, left: float) -> Outcome:
    if around.controller_time is None:
        return Outcome(
            INCONCLUSIVE, "the controller's time was not given", f"a difference of {check.value.text}"
        )
    # Templating, connecting and starting take this long at most, where nobody waits for a password.
    return judge_skew(check.value, around.asked_at, around.controller_time, 3.0)


def _python(check: Check, around: Surroundings, left: float) -> Outcome:
    operator, wanted = check.keys["version"]
    text = ".".join(map(str, wanted))
    expected = f"Python {operator} {text}"
    repeat = f"{shlex.quote(check.value)} --version"
    try:
        done = run([check.value, "-c", "import sys; print(*sys.version_info[:3])"], timeout=left)
    except Problem as problem:
        return Outcome(FAIL, problem.message, expected, "install it, or correct app_python.", repeat)
    words = done.stdout.split()
    if done.rc != 0 or len(words) != 3:
        seen = done.tail().strip().splitlines()[-1:] or [f"exit code {done.rc}"]
        advice = "install it, or correct app_python."
        return Outcome(FAIL, f"{check.value}: {seen[0]}", expected, advice, repeat)
    found = [int(word) for word in words]
    good = version_holds(operator, wanted, found)
    advice = "" if good else "install that version, or name another interpreter in app_python."
    return Outcome(PASS if good else FAIL, f"Python {'.'.join(words)}", expected, advice, repeat)


def _variables(check: Check, around: Surroundings, left: float) -> Outcome:
    required = list(check.value)
    repeat = ""
    if "example" in check.keys:
        path = str(check.keys["example"])
        if not around.repository:
            return Outcome(
                INCONCLUSIVE, f"there is no repository to read {path} from", "the example to be read"
            )
        argv = ["git", "--git-dir", around.repository, "show", f"{around.commit}:{path}"]
        repeat = shlex.join(argv)
        done = run(argv, timeout=left)
        if done.rc != 0:
            return Outcome(
                INCONCLUSIVE,
                f"{path} is not in commit {around.commit}",
                "the example to be read",
                done.tail(),
                repeat,
            )
        required += [name for name in names_in_example(done.stdout) if name not in required]
    optional = set(map(str, check.keys.get("optional", [])))
    names = [name for name in required if name not in optional]
    return judge_variables(names, around.variables)._replace(repeat=repeat)


def _dns(check: Check, around: Surroundings, left: float) -> Outcome:
    wanted = sorted(map(str, check.keys.get("addresses", [])))
    expected = ", ".join(wanted) or "an address"
    repeat = f"getent ahosts {check.value}"
    try:
        found = sorted({str(item[4][0]) for item in socket.getaddrinfo(check.value, None)})
    except (OSError, UnicodeError) as error:
        temporary = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        advice = "ask the resolver of this host again." if temporary else "correct the name, or its records."
        return Outcome(INCONCLUSIVE if temporary else FAIL, str(error), expected, advice, repeat)
    good = not wanted or set(found) <= set(wanted)
    advice = (
        "" if good else "the name leads elsewhere: correct its records, or wait until they are old enough."
    )
    return Outcome(PASS if good else FAIL, ", ".join(found), expected, advice, repeat)


def _port(check: Check, around: Surroundings, left: float) -> Outcome:
    host, port = place_of(check.value, check.where)
    expected = f"{check.value} to accept a connection"
    code = f"import socket; socket.create_connection(({host!r}, {port}), 5)"
    repeat = f"python3 -c {shlex.quote(code)}"
    try:
        socket.create_connection((host, port), timeout=left).close()
    except socket.gaierror as error:
        return Outcome(INCONCLUSIVE, str(error), expected, "", repeat)
    except OSError as error:
        seen = (
            "no answer in time"
            if isinstance(error, (TimeoutError, socket.timeout))
            else str(error.strerror or error).lower()
        )
        advice = "start what should listen there, or open the way to it."
        return Outcome(FAIL, seen, expected, advice, repeat)
    return Outcome(PASS, "it does", expected, "", repeat)


def _tls(check: Check, around: Surroundings, left: float) -> Outcome:
    host, port = place_of(check.value, check.where, 443)
    name = str(check.keys.get("host") or host)
    days = float(check.keys.get("days", 0.0))
    expected = f"a certificate for {name} that is valid for {days:g} more days"
    repeat = f"openssl s_client -connect {host}:{port} -servername {name} </dev/null | openssl x509 -noout -dates -subject"
    try:
        context = ssl.create_default_context(cafile=around.ca_path)
    except OSError as error:
        return Outcome(
            INCONCLUSIVE, f"the authorities in {around.ca_path!r} cannot be read: {error}", expected
        )
    try:
        with (
            socket.create_connection((host, port), timeout=left) as plain,
            context.wrap_socket(plain, server_hostname=name) as connection,
        ):
            certificate = connection.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return Outcome(
            FAIL, f"refused: {error.verify_message}", expected, "renew or correct the certificate.", repeat
        )
    except ssl.SSLError as error:
        return Outcome(
            FAIL,
            f"TLS failed: {error.reason or error}",
            expected,
            "look at the server's TLS settings.",
            repeat,
        )
    except OSError as error:
        return Outcome(INCONCLUSIVE, f"nothing could be asked: {error}", expected, "", repeat)
    found = judge_certificate(days, certificate, True, True, time.time())
    verdict = INCONCLUSIVE if found.true is None else PASS if found.true else FAIL
    return Outcome(verdict, found.fact, expected, "" if found.true else "renew the certificate.", repeat)


PROBES: dict[str, Callable[[Check, Surroundings, float], Outcome]] = {
    "disk": _disk,
    "memory": _memory,
    "load": _load,
    "clock": _clock,
    "python": _python,
    "variables": _variables,
    "dns": _dns,
    "port": _port,
    "tls": _tls,
}


def run_check(check: Check, around: Surroundings, limit: float) -> dict[str, Any]:
    """Ask one check and return its ``check_result``.

    :param limit: the latest end (``time.monotonic()``).
    """
    begun = time.monotonic()
    left = max(0.01, min(check.timeout, limit - begun))
    try:
        found = PROBES[check.subject](check, around, left)
    except OSError as error:
        found = Outcome(INCONCLUSIVE, f"{(error.strerror or str(error)).lower()}", "to be asked at all")
    end = {PASS: "", FAIL: "failed", INCONCLUSIVE: "could not be asked"}[found.verdict]
    message = f"Check {check.name!r} {end}: expected {found.expected}, found {found.observed}" if end else ""
    if message:
        message += f"; {found.advice}" if found.advice else "."
        message += f" Repeat: {found.repeat}" if found.repeat else ""
    return check_result(
        check.name,
        found.verdict,
        check.severity,
        found.observed,
        found.expected,
        message,
        time.monotonic() - begun,
        repeat=found.repeat,
    )


def prober(options: Mapping[str, Any], check_mode: bool) -> Callable[[float], list[dict[str, Any]]]:
    """Return what asks all checks of *options* at the same time; it is given the seconds that are left.

    :raises Problem: when a check is not well written.
    """
    around = Surroundings(
        parse_environment(options["environment"], "environment"),
        options["controller_time"],
        time.time(),
        options["ca_path"],
        options["repository"],
        options["commit"],
    )
    checks = [parse_check(item, f"checks[{index}]") for index, item in enumerate(options["checks"])]

    def task(check: Check) -> Callable[[float], dict[str, Any]]:
        return lambda limit: run_check(check, around, limit)

    def probe(left: float) -> list[dict[str, Any]]:
        names = [(check.name, check.severity) for check in checks]
        return in_parallel([task(check) for check in checks], names, time.monotonic() + left)

    return probe


def perform(options: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    """Run the gate that *options* (see ``OPTIONS``) describe and return it.

    :raises Problem: when it does not pass, or an option is wrong.
    """
    secrets = parse_environment(options["environment"], "environment").values()
    return conduct(
        options, prober(options, check_mode), "the host", check_mode=check_mode, warn=warn, secrets=secrets
    )
