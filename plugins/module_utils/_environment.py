# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Python environments: built once for each set of dependencies, at the place where they stay.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from ansible_collections.runbook.deploy.plugins.module_utils._command import (
    DEFAULT_PATH,
    Finished,
    base_environment,
    identity,
    run,
)
from ansible_collections.runbook.deploy.plugins.module_utils._git import redact_url
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    Layout,
    held,
    opened,
    remove_tree,
    write_json,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._requirements import Requirements

# Asked of the interpreter itself; CS_GNU_LIBC_VERSION is glibc's, other C libraries have none.
QUESTION = """
import json, os, sys
try:
    libc = os.confstr("CS_GNU_LIBC_VERSION")
except (ValueError, OSError):
    libc = ""
base = getattr(sys, "_base_executable", None) or sys.executable
print(json.dumps([os.path.realpath(base), ".".join(map(str, sys.version_info)), sys.implementation.cache_tag,
                  sys.platform + "-" + os.uname().machine, libc or ""]))
"""
# How uv calls what pip reads from its environment (docs.astral.sh/uv/reference/environment); the separator is
# the one between several values.
PIP_TO_UV = {
    "PIP_INDEX_URL": ("UV_INDEX_URL", " "),
    "PIP_EXTRA_INDEX_URL": ("UV_EXTRA_INDEX_URL", " "),
    "PIP_FIND_LINKS": ("UV_FIND_LINKS", ","),
    "PIP_CERT": ("SSL_CERT_FILE", " "),
    "PIP_TRUSTED_HOST": ("UV_INSECURE_HOST", " "),
    "PIP_DEFAULT_TIMEOUT": ("UV_HTTP_TIMEOUT", " "),
    "PIP_CONSTRAINT": ("UV_CONSTRAINT", " "),
}
REASONS = (
    (r"No space left on device|Disk quota exceeded", "the disk is full", "make space in app_root"),
    (
        r"dns error|failed to lookup|Name or service not known|Temporary failure in name|Could not connect"
        r"|Connection refused|tcp connect error|operation timed out|Read timed out|Network is unreachable",
        "the package index cannot be reached",
        "correct the index or the proxy in app_build_environment",
    ),
    (
        r"certificate|UnknownIssuer|CERTIFICATE_VERIFY_FAILED",
        "the package index has a certificate that this host does not trust",
        "name the certificates as PIP_CERT in app_build_environment",
    ),
    (r"\b40[13]\b", "the package index refuses access", "give user and token in app_build_environment"),
    (
        r"DO NOT MATCH THE HASHES|[Hh]ash mismatch|Hash(es|-checking) (are|is) required|no trusted hash|to be pinned",
        "a package has not the hash that the requirement files name, or one has none",
        "make the files again with all hashes",
    ),
    (
        r"command '.*(gcc|cc|clang|cargo)|(gcc|cc|cargo): (command )?not found|No such file or directory: '.*cc'"
        r"|Failed to build|Failed building wheel|build backend returned an error",
        "a package cannot be compiled on this host",
        "install what it needs (compiler, headers), or pin a version that has a wheel",
    ),
    (
        r"No solution found|No matching distribution|not found in the package registry|ResolutionImpossible"
        r"|no versions of|was not found in",
        "a requirement does not exist, or contradicts another one",
        "correct app_requirements, app_constraints or app_packages",
    ),
)

FROM_REQUIREMENTS = "from app_requirements"
# What to do where the requirement is the collection's own.
ELSEWHERE = "name an index that has it in app_build_environment"


class Interpreter(NamedTuple):
    """A Python: its real path, full version, cache tag (``cpython-311``), platform and libc."""

    path: str
    version: str
    tag: str
    platform: str
    libc: str


def search_path() -> str:
    """Return where programs are looked for: the host's places, then those of the task."""
    return os.pathsep.join([DEFAULT_PATH, os.environ.get("PATH", "")])


def ask_interpreter(python: str) -> Interpreter:
    """Return what *python* (a name or a path) is; a virtual environment's is followed to the one it was made of.

    :raises Problem: naming app_python, when there is none or it does not answer.
    """
    found = shutil.which(python, path=search_path())
    if not found:
        others = sorted(
            {
                name
                for directory in DEFAULT_PATH.split(":")
                if os.path.isdir(directory)
                for name in os.listdir(directory)
                if re.match(r"^python3(\.\d+)?$", name)
            }
        )
        raise Problem(
            f"The interpreter {python!r} (app_python) is not on this host; found {', '.join(others) or 'none'}: "
            "install it, or name one that is there."
        )
    done = run([found, "-I", "-S", "-c", QUESTION], timeout=30)
    try:
        return Interpreter(*json.loads(done.stdout))
    except (ValueError, TypeError) as error:
        raise Problem(
            f"The interpreter {found!r} (app_python) does not answer as a Python 3 does: name another one.",
            done.tail(),
        ) from error


def is_built(path: Path) -> bool:
    """Return whether *path* is a finished environment whose interpreter is still on the host."""
    return (path / ".built").is_file() and os.access(path / "bin" / "python", os.X_OK)


def find_uv(layout: Layout, option: str | None) -> str | None:
    """Return the path of uv: *option*, the one in PATH, the one of setup; None where pip has to do.

    :raises Problem: when *option* names something that cannot be run.
    """
    if option:
        found = shutil.which(option, path=search_path())
        if not found:
            raise Problem(
                f"The option uv is {option!r}, which cannot be run on this host: correct it or leave it out."
            )
        return found
    found = shutil.which("uv", path=search_path())
    own = layout.tools / "venv" / "bin" / "uv"
    return found or (str(own) if os.access(own, os.X_OK) else None)


def installer_variables(layout: Layout, build: Mapping[str, str], with_uv: bool) -> dict[str, str]:
    """Return the environment of the installer: *build*, which wins, and what makes it ask and show nothing.

    For uv the names that pip knows are translated, where *build* does not have uv's own.
    """
    cache = layout.tools / "cache"
    if not with_uv:
        defaults = {
            "PIP_CACHE_DIR": str(cache / "pip"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
            "PIP_NO_COLOR": "1",
        }
        return {**defaults, **build}
    defaults = {
        "UV_CACHE_DIR": str(cache / "uv"),
        "UV_NO_PROGRESS": "1",
        "NO_COLOR": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        # As pip does since 24.2: the certificates that the host's administrator trusts.
        "UV_NATIVE_TLS": "1",
    }
    # The host's settings count, those of the project do not: the hash does not know them.
    home = Path(base_environment(None)["HOME"])
    settings = [path for path in (home / ".config/uv/uv.toml", Path("/etc/uv/uv.toml")) if path.is_file()]
    defaults.update({"UV_CONFIG_FILE": str(settings[0])} if settings else {"UV_NO_CONFIG": "1"})
    for name, (translated, separator) in PIP_TO_UV.items():
        if build.get(name):
            defaults[translated] = separator.join(build[name].split())
    if "UV_DEFAULT_INDEX" in build:
        defaults.pop("UV_INDEX_URL", None)
    return {**defaults, **build}


def secret_parts(build: Mapping[str, str]) -> list[str]:
    """Return the texts of *build* that may not be shown: its values, and the passwords of the addresses in them."""
    secrets = list(build.values())
    for value in build.values():
        for word in value.split():
            with contextlib.suppress(ValueError):
                parts = urlsplit(word)
                secrets += [text for text in (parts.password, unquote(parts.password or "")) if text]
    return secrets


def ensure_environment(
    layout: Layout,
    digest: str,
    interpreter: Interpreter,
    requirements: Requirements,
    *,
    release: Path,
    directory: str,
    build: Mapping[str, str],
    uv: str | None,
    user: str | None,
    read_only: bool,
    timeout: float,
    origin: str = FROM_REQUIREMENTS,
) -> bool:
    """Build ``environments/<digest>`` unless it is there, and return whether it was built.

    A half-built one, left by a kill, is removed first, with the installer that may still be writing into it.

    :param release: the exported release, in which the requirement files lie; *directory* is the application's in it.
    :param build: variables for the installer alone.
    :param uv: path of uv, None to use the ``venv`` and ``pip`` of the interpreter.
    :param user: the application's user, who must be able to run what was built.
    :param read_only: take the write bits away, because that user owns the files.
    :param timeout: seconds for each command.
    :param origin: what it is built from or for, in words for a failure.
    :raises Problem: when something cannot be installed; what was half built is removed.
    """
    path = layout.environment(digest)
    if is_built(path):
        return False
    layout.environments.mkdir(mode=0o755, exist_ok=True)
    (layout.tools / "cache").mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(layout.environments, timeout))
        except TimeoutError:
            raise Problem(
                f"Another run has been building in {str(layout.environments)!r} for more than {timeout:.0f} s: "
                "wait for it or end it."
            ) from None
        if is_built(path):
            return False
        end_installers(path)
        remove_tree(path)
        path.mkdir(mode=0o755)
        try:
            (path / ".building").touch(mode=0o644)
            began = time.monotonic()
            variables = installer_variables(layout, build, uv is not None)
            tool = Installer(
                path, interpreter, uv, variables, release / directory, timeout, secret_parts(build), origin
            )
            tool.create()
            tool.install(requirements, release)
            manifest = {
                "schema": 1,
                "python": interpreter._asdict(),
                "installer": "uv" if uv else "pip",
                "packages": tool.packages(),
                "seconds": round(time.monotonic() - began, 3),
            }
            must_run(path, user)
            settle_modes(path, read_only)
            with opened(path):
                (path / ".building").unlink()
                flush(path)
                write_json(path / ".built", manifest, 0o444 if read_only else 0o644)
        except BaseException:
            remove_tree(path)
            raise
    return True


class Installer:
    """uv, or venv and pip, for the environment at ``path``; every failure is a Problem."""

    def __init__(
        self,
        path: Path,
        interpreter: Interpreter,
        uv: str | None,
        variables: Mapping[str, str],
        cwd: Path,
        timeout: float,
        secrets: Sequence[str],
        origin: str,
    ) -> None:
        self.path = path
        self.python = str(path / "bin" / "python")
        self.interpreter = interpreter
        self.uv = uv
        self.variables = variables
        self.cwd = cwd
        self.timeout = timeout
        self.secrets = secrets
        self.origin = origin

    def run(self, argv: list[str]) -> Finished:
        """Run *argv* where the application lies: a relative path in a requirement file means that place."""
        done = run(
            argv,
            cwd=self.cwd,
            environment=self.variables,
            timeout=self.timeout,
            secrets=self.secrets,
            umask=0o022,
        )
        return done._replace(stdout=redact_url(done.stdout), stderr=redact_url(done.stderr))

    def create(self) -> None:
        """Make the empty environment."""
        if self.uv:
            argv = [
                self.uv,
                "venv",
                "--quiet",
                "--allow-existing",
                "--python",
                self.interpreter.path,
                str(self.path),
            ]
        else:
            argv = [self.interpreter.path, "-m", "venv", str(self.path)]
        done = self.run(argv)
        if done.rc != 0:
            package = f"python{'.'.join(self.interpreter.version.split('.')[:2])}-venv"
            raise Problem(
                f"{self.interpreter.path!r} (app_python) cannot make an environment in {str(self.path)!r}: "
                f"install uv, or the package {package}, on this host, or see the last lines in `evidence`.",
                done.tail(),
            )

    def install(self, requirements: Requirements, release: Path) -> None:
        """Install the files with their constraints, then the packages, and check that they agree.

        pip and uv compile the code: an environment that its user cannot write would else be compiled anew at every
        start (0.7 s for Django alone).
        """
        options = []
        for name in requirements.constraints:
            options += ["--constraint", str(release / name)]
        files = []
        for name in requirements.files:
            files += ["--requirement", str(release / name)]
        # Where the files have hashes every package must have one, except those given by name besides.
        if requirements.hashed and requirements.packages:
            steps = [[*files, "--require-hashes"], [*requirements.packages]]
        else:
            steps = [[*files, *requirements.packages, *(["--require-hashes"] if requirements.hashed else [])]]
        for step in steps:
            if not step:
                continue
            if self.uv:
                argv = [self.uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", self.python]
                # The one thing for which uv reads no variable.
                if self.variables.get("PIP_NO_INDEX", "").lower() in ("1", "true", "yes", "on", "t", "y"):
                    argv.append("--no-index")
            else:
                argv = [self.python, "-m", "pip", "install", "--quiet", "--no-warn-script-location"]
            done = self.run([*argv, *options, *step])
            if done.rc != 0:
                raise failure(done, self.timeout, self.origin)
        done = self.run(self.pip("check"))
        if done.rc != 0:
            raise Problem(
                "The installed packages contradict each other, so the environment was not kept: correct "
                "app_requirements, app_constraints or app_packages until `pip check` agrees.",
                done.tail(),
            )

    def packages(self) -> list[str]:
        """Return what is installed, as ``name==version``."""
        return sorted(line for line in self.run(self.pip("freeze")).stdout.splitlines() if line.strip())

    def pip(self, command: str) -> list[str]:
        """Return the argv of pip's *command* for this environment."""
        if self.uv:
            return [self.uv, "pip", command, "--python", self.python]
        return [self.python, "-m", "pip", command]


def failure(done: Finished, timeout: float, origin: str = FROM_REQUIREMENTS) -> Problem:
    """Return the Problem for an installation that failed, with the reason when its output tells."""
    reason, advice = "the installer gave an error", "see its last lines in `evidence`"
    if done.timed_out:
        reason, advice = f"it took longer than {timeout:.0f} s", "check the index, or raise the time limit"
    else:
        for pattern, known, remedy in REASONS:
            if re.search(pattern, done.stdout + done.stderr):
                reason, advice = known, remedy
                break
    if origin != FROM_REQUIREMENTS:
        advice = advice.replace("correct app_requirements, app_constraints or app_packages", ELSEWHERE)
    return Problem(
        f"The Python environment cannot be built {origin}, because {reason}; nothing live was "
        f"touched: {advice}.",
        done.tail(),
    )


def must_run(path: Path, user: str | None) -> None:
    """Raise a Problem unless *user* can run the environment's Python: it may lie in somebody's home."""
    if not identity(user):
        return
    python = path / "bin" / "python"
    try:
        done = run([str(python), "-I", "-S", "-c", ""], user=user, cwd="/", timeout=30)
        evidence = "" if done.rc == 0 else done.tail() or f"exit code {done.rc}"
    except Problem as problem:
        evidence = problem.message
    if evidence:
        raise Problem(
            f"The user {user!r} (app_user) cannot run {os.path.realpath(python)!r} through {str(path)!r}: name an "
            "interpreter in app_python, and an app_root, that this user may reach.",
            evidence,
        )


def end_installers(path: Path) -> list[int]:
    """Kill what a killed run left working on the half-built environment *path*, and return the process ids."""
    ended = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            # Not everything that names the directory: somebody may be reading it.
            ours = any(
                os.fsencode(f"{path}/bin/python") == word or os.fsencode(path) == word for word in words
            )
            if ours and any(word in (b"install", b"venv", b"ensurepip") for word in words):
                # It leads a session (see _command.run), in which its compilers are too.
                if os.getpgid(int(entry)) == int(entry):
                    os.killpg(int(entry), signal.SIGKILL)
                else:
                    os.kill(int(entry), signal.SIGKILL)
                ended.append(int(entry))
    return ended


def settle_modes(path: Path, read_only: bool) -> None:
    """Give every file and directory below *path* its mode: readable by all, writable by the owner or by nobody.

    Hard links into the installer's cache share their mode with it, which does it no harm.
    """
    for parent, _names, files in os.walk(path):
        set_mode(Path(parent), 0o555 if read_only else 0o755)
        for name in files:
            file = Path(parent, name)
            mode = file.lstat().st_mode
            if stat.S_ISREG(mode):
                wanted = (stat.S_IMODE(mode) | 0o444) & ~0o7022
                if mode & 0o100:
                    wanted |= 0o111
                set_mode(file, wanted & ~0o200 if read_only else wanted, mode)


def set_mode(path: Path, wanted: int, mode: int | None = None) -> None:
    """Change the mode of *path* to *wanted* where it is another one."""
    if stat.S_IMODE(path.stat().st_mode if mode is None else mode) != wanted:
        path.chmod(wanted)


def flush(path: Path) -> None:
    """Write what lies on the file system of *path* to the disk: the marker that follows must not outlive it."""
    with contextlib.suppress(Problem):
        run(["sync", "--file-system", str(path)], timeout=120)
