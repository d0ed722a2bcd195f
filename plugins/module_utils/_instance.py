# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that make an instance: its environment, its description, one launcher for each service.

Whatever starts an instance (this collection, systemd after a crash, the boot unit) reads these files and nothing
else, so that settings go back together with the release when an earlier instance is started again.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._command import secret
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    SOCKET_PATH_LIMIT,
    Layout,
    read_json,
    replace_link,
    write_atomic,
    write_json,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

SCHEMA = 1
# An instance that proves a release beside one whose address cannot be shared; never public, never kept.
TRIAL = ".trial"
# Beats last: they are started after the workers and stopped before them, so that exactly one ever runs.
START_ORDER = {"web": 0, "worker": 1, "beat": 2}
# Variables that are no secrets, although they stand in the environment file.
PLAIN = re.compile(r"^(RUNBOOK_[A-Z]+|PATH|VIRTUAL_ENV|DJANGO_SETTINGS_MODULE|PYTHONDONTWRITEBYTECODE)$")
# systemd.exec(5), EnvironmentFile=: inside double quotes a backslash keeps these characters as they are.
_ESCAPED = re.compile(r'(["\\`$])')
# systemd drops a variable whose value is not made of Unicode scalar values other than these (systemd.exec(5)).
_REFUSED = re.compile("[\0\ud800-\udfff\ufdd0-\ufdef\ufeff\ufffe\uffff]")


def environment_text(variables: Mapping[str, str]) -> str:
    """Return *variables* in the syntax of systemd's ``EnvironmentFile=``, one double-quoted value each.

    Newlines stand as they are inside the quotes; nothing in such a file is ever expanded.

    :raises Problem: for a value that systemd would drop, which would start the service without it.
    """
    lines = []
    for name in sorted(variables):
        value = variables[name]
        refused = _REFUSED.search(value)
        if refused:
            raise Problem(
                f"app_environment.{name} contains the character U+{ord(refused.group()):04X}, which systemd does "
                "not accept in an environment file: encode the value, for example as base64."
            )
        lines.append(f'{name}="' + _ESCAPED.sub(r"\\\1", value) + '"\n')
    return "".join(lines)


def parse_environment_text(text: str) -> dict[str, str]:
    """Return the variables in *text*, which :func:`environment_text` wrote.

    :raises ValueError: when *text* was not written by it.
    """
    result = {}
    position = 0
    entry = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\["\\`$])*)"\n')
    while position < len(text):
        found = entry.match(text, position)
        if not found:
            raise ValueError(f"not an environment file of this collection, at character {position}")
        result[found.group(1)] = re.sub(r'\\(["\\`$])', r"\1", found.group(2))
        position = found.end()
    return result


def command_words(command: str, placeholders: Mapping[str, str], binaries: Path | None) -> list[str]:
    """Return *command* as an argument list, its first word looked up in *binaries*, the environment's ``bin``.

    Words are split before placeholders are replaced, so that a value with a space stays one word; braces that
    name no placeholder (JSON, for example) are left as they are. No shell is involved.

    :raises Problem: when *command* is empty or its quotes do not match, or it asks for an address it has not.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise Problem(
            f"app_services: the command {command!r} cannot be split into words ({error}): correct its quotes."
        ) from error
    if not words:
        raise Problem("app_services: a service has an empty command: say what to run.")
    for name in ("socket", "port"):
        if name not in placeholders and any("{" + name + "}" in word for word in words):
            raise Problem(
                f"app_services: the command {command!r} uses {{{name}}}, but this service has none: "
                f"set bind to {name}, or remove the placeholder."
            )
    result = []
    for word in words:
        for name, value in placeholders.items():
            word = word.replace("{" + name + "}", value)
        result.append(word)
    if "/" not in result[0] and binaries is not None and os.access(binaries / result[0], os.X_OK):
        result[0] = str(binaries / result[0])
    return result


def launcher_text(
    service: str,
    deployment: str,
    directory: Path,
    words: Sequence[str],
    variables: Mapping[str, str],
    socket: str,
) -> str:
    """Return the script that becomes the process of *service* by exec, so that its PID stays the same.

    :param variables: exported besides the environment file: RUNBOOK_SERVICE and the address.
    :param socket: path of the socket the service will make; "" for none. A stale one is removed; the new one
        is made connectable for the web server's user by a helper that ends when that is done, because servers
        differ in the mode they give, and because systemd restarts a crashed service with nobody watching. It
        runs as the application's user: root changes no mode in a directory that the application can write.
    """
    lines = [
        "#!/bin/sh",
        f"# Becomes the service {service} of deployment {deployment}. Written by runbook.deploy.",
        "set -e",
        "umask 0022",
        f"cd {shlex.quote(str(directory))}",
    ]
    if socket:
        quoted = shlex.quote(socket)
        lines += [
            f"rm -f -- {quoted}",
            # Forked twice: a server must not find a child that it never started.
            "( (n=0",
            f"  while [ ! -S {quoted} ] && [ $n -lt 6000 ] && kill -0 $$ 2>/dev/null; do n=$((n+1)); sleep 0.05; done",
            f"  [ ! -S {quoted} ] || chmod 0666 {quoted}",
            ") </dev/null >/dev/null 2>&1 &)",
        ]
    # After the helper, which therefore is not taken for a process of the service.
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items())]
    lines.append("exec " + " ".join(shlex.quote(word) for word in words))
    return "\n".join(lines) + "\n"


def boot_text(services: Iterable[Mapping[str, Any]], manager: str = "systemd") -> str:
    """Return what the boot script reads, a line ``<service> <socket|->`` for each service under *manager*."""
    listed = sorted(services, key=lambda entry: START_ORDER[entry["kind"]])
    return "".join(
        f"{entry['name']} {'socket' if has_socket(entry) else '-'}\n"
        for entry in listed
        if entry["manager"] == manager
    )


def has_socket(service: Mapping[str, Any]) -> bool:
    """Return whether *service* answers on a Unix socket."""
    return service["kind"] == "web" and service["bind"] == "socket"


def boot_file(layout: Layout, deployment: str) -> Path:
    """Return the list of the instance's systemd services, for the boot script, which has no JSON parser."""
    return layout.instances / f"{deployment}.boot"


def supervisor_file(layout: Layout, deployment: str) -> Path:
    """Return the list of the instance's services under supervisord, for what starts them there."""
    return layout.instances / f"{deployment}.supervisor"


def overlay_file(layout: Layout, deployment: str, service: str) -> Path:
    """Return the file that is laid over the release's Compose file for *service* of an instance (0600, secret)."""
    return layout.instances / f"{deployment}.{service}.compose.yaml"


def owner_group(user: str | None) -> int:
    """Return the group that may read the instance's files: that of *user*; -1 (as it is) without a user."""
    return pwd.getpwnam(user).pw_gid if user else -1


class Instance:
    """One release under one deployment id.

    :param deployment: its id, with ``TRIAL`` at the end for a trial.
    :param document: what ``instance_file`` holds, see :func:`describe`.
    :param variables: the content of the environment file.
    """

    def __init__(
        self, layout: Layout, deployment: str, document: Mapping[str, Any], variables: Mapping[str, str]
    ) -> None:
        self.layout = layout
        self.deployment = deployment
        self.document = dict(document)
        self.variables = {**variables, "RUNBOOK_DEPLOYMENT": deployment}

    @property
    def release(self) -> str:
        """The release's name."""
        return str(self.document["release"])

    @property
    def services(self) -> list[dict[str, Any]]:
        """The services of this host, in the order they are started."""
        return sorted(self.document["services"], key=lambda entry: START_ORDER[entry["kind"]])

    @property
    def secrets(self) -> list[str]:
        """The values that may not be shown; what every message and visitor sees is none."""
        public = [str(self.layout.root), self.document.get("host_header") or ""]
        return secret(secret_values(self.variables), public)

    def placeholders(self, service: Mapping[str, Any]) -> dict[str, str]:
        """Return what the placeholders of the command of *service* stand for."""
        known = {
            "release": self.release,
            "environment": str(self.document.get("environment_path") or ""),
            "deployment": self.deployment,
            "commit": str(self.document.get("commit") or ""),
            "root": str(self.layout.root),
        }
        if has_socket(service):
            known["socket"] = str(self.layout.socket(service["name"], self.deployment))
        if service["kind"] == "web" and service.get("port"):
            known["port"] = str(service["port"])
        return known

    def write(self, user: str | None) -> None:
        """Write every file of the instance but the link that makes it the one started at boot.

        :raises Problem: when a socket's path is too long or a command cannot be understood.
        """
        named = {
            name: service for name, service in self._named().items() if service.get("manager") != "compose"
        }
        texts = {name: self.launcher(service) for name, service in named.items()}
        make_directory(self.layout.instances, 0o750, user)
        group = owner_group(user)
        write_atomic(
            self.layout.environment_file(self.deployment), environment_text(self.variables), 0o640, -1, group
        )
        for name, text in texts.items():
            write_atomic(self.layout.launcher(self.deployment, name), text, 0o640, -1, group)
        if not self.deployment.endswith(TRIAL):
            write_atomic(boot_file(self.layout, self.deployment), boot_text(self.services), 0o640, -1, group)
            supervised = boot_text(self.services, "supervisor")
            if supervised:
                write_atomic(supervisor_file(self.layout, self.deployment), supervised, 0o640, -1, group)
            # Last: an instance that has its description has all its files.
            write_json(self.layout.instance_file(self.deployment), self.document, 0o640, -1, group)

    def _named(self) -> dict[str, dict[str, Any]]:
        return {service["name"]: service for service in self.services}

    def words(self, service: Mapping[str, Any]) -> list[str]:
        """Return the command of *service* as it is run; nothing of a container, which has its own."""
        if service.get("manager") == "compose":
            return []
        environment = self.document.get("environment_path")
        binaries = Path(environment) / "bin" if environment else None
        return command_words(service["command"], self.placeholders(service), binaries)

    def launcher(self, service: Mapping[str, Any]) -> str:
        """Return the text of the launcher of *service*."""
        known = self.placeholders(service)
        socket = known.get("socket", "")
        if len(os.fsencode(socket)) > SOCKET_PATH_LIMIT:
            raise Problem(
                f"The socket {socket} of service {service['name']!r} has a path of {len(os.fsencode(socket))} bytes, "
                f"but a socket's path may have {SOCKET_PATH_LIMIT}: choose a shorter app_root or service name."
            )
        words = self.words(service)
        variables = {"RUNBOOK_SERVICE": service["name"]}
        for name in ("socket", "port"):
            if name in known:
                variables[f"RUNBOOK_{name.upper()}"] = known[name]
        directory = self.layout.release(self.release) / str(self.document.get("directory") or "")
        return launcher_text(service["name"], self.deployment, directory, words, variables, socket)

    def trial(self, service: Mapping[str, Any], port: int) -> Instance:
        """Return an instance of *service* alone at a private address: its own socket, or the free *port*."""
        private = dict(service)
        if service["bind"] == "port":
            private.update(port=port, public_port=service["port"])
        return Instance(
            self.layout,
            self.deployment + TRIAL,
            {**self.document, "deployment": self.deployment + TRIAL, "services": [private]},
            self.variables,
        )

    def remove(self) -> None:
        """Remove the instance's files, the description first: without it the instance does not exist."""
        paths = [self.layout.instance_file(self.deployment), boot_file(self.layout, self.deployment)]
        paths.append(supervisor_file(self.layout, self.deployment))
        paths += [self.layout.launcher(self.deployment, name) for name in self._named()]
        paths += [overlay_file(self.layout, self.deployment, name) for name in self._named()]
        paths.append(self.layout.environment_file(self.deployment))
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def serve_at_boot(self) -> str | None:
        """Name this instance as the one of its release, and return the one named before."""
        link = self.layout.release_instance(self.release)
        before = linked_deployment(self.layout, self.release)
        if before != self.deployment:
            replace_link(link, self.deployment)
        return before


def describe(
    deployment: str,
    release: Mapping[str, Any],
    services: Sequence[Mapping[str, Any]],
    **further: Any,
) -> dict[str, Any]:
    """Return the description of an instance, the content of ``instance_file``.

    :param release: what ``.release.json`` says: name, commit, version, environment, directory.
    :param services: complete service definitions (see the options of ``app_service``).
    :param further: environment_path, health_checks, host_header, headers, name, stage.
    """
    return {
        "schema": SCHEMA,
        "deployment": deployment,
        "release": release["name"],
        "commit": release.get("commit") or "",
        "version": release.get("version") or "",
        "environment": release.get("environment") or "",
        "directory": release.get("directory") or "",
        "services": [dict(service) for service in services],
        **further,
    }


def secret_values(variables: Mapping[str, str]) -> list[str]:
    """Return the values of *variables* that came from app_environment."""
    return [value for name, value in variables.items() if not PLAIN.match(name)]


def read_instance(layout: Layout, deployment: str) -> Instance | None:
    """Return the instance *deployment* as its files describe it; None where it has no description.

    :raises Problem: when a file is missing or damaged.
    """
    path = layout.instance_file(deployment)
    try:
        document = read_json(path)
        if document is None:
            return None
        variables = parse_environment_text(layout.environment_file(deployment).read_text(encoding="utf-8"))
        return Instance(layout, deployment, document, variables)
    except (OSError, ValueError, KeyError) as error:
        raise Problem(
            f"The files of the instance {deployment} in {layout.instances} cannot be used ({error}): "
            "deploy its version again instead of starting it."
        ) from error


def linked_deployment(layout: Layout, release: str) -> str | None:
    """Return the deployment that ``<release>.deployment`` names, None where there is no such link."""
    try:
        return os.readlink(layout.release_instance(release))
    except OSError:
        return None


def make_directory(path: Path, mode: int, user: str | None) -> None:
    """Make the directory *path* with *mode* for the group of *user* where it does not exist yet."""
    if path.is_dir():
        return
    path.mkdir(parents=True, exist_ok=True)
    if user:
        os.chown(path, -1, owner_group(user))
    path.chmod(mode)
