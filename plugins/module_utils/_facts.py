# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What on a host stands in the way of a deployment, as full sentences; found out without changing anything.

Each fact is ``{"code": …, "message": …}``; the message names the variable that is to be changed.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    SOCKET_PATH_LIMIT,
    Layout,
    read_regular,
)

# As long as every deployment id is.
EXAMPLE_ID = "20260101T000000-0000"
ENVIRONMENT_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
SETUP = "run playbooks/setup.yml first"

Fact = dict[str, str]


def fact(code: str, message: str) -> Fact:
    """Return one fact."""
    return {"code": code, "message": message}


def _below(path: str, directory: str | os.PathLike[str]) -> str | None:
    """Return what follows *directory* in *path*, None when *path* does not lie below it; both are absolute."""
    base = os.fspath(directory).rstrip("/")
    if path == base:
        return ""
    return path[len(base) + 1 :] if path.startswith(base + "/") else None


def _covered(path: str, shared: Iterable[str]) -> bool:
    """Return whether the relative *path* is one of the *shared* paths or lies below one."""
    return any(_below("/" + path, "/" + entry.strip("/")) is not None for entry in shared if entry.strip("/"))


def inside_release(layout: Layout, path: str, shared: Iterable[str] = (), directory: str = "") -> str | None:
    """Return where *path* resolves to when that is inside a release, else None.

    :param path: absolute, or relative to the application's *directory* in the release.
    :param shared: ``app_shared``: paths relative to the release which are links to ``shared/`` in each release, also in
        one that is not built yet.
    """
    listed = list(shared)
    root = os.path.normpath(layout.root)
    if not os.path.isabs(path):
        path = os.path.join(root, "current", directory, path)
    path = os.path.normpath(path)
    within = _below(path, os.path.join(root, "current"))
    if within is None:
        rest = _below(path, os.path.join(root, "releases"))
        within = None if rest is None else rest.partition("/")[2]
    if within is not None:
        return None if _covered(within, listed) else path
    real = os.path.realpath(path)
    rest = _below(real, os.path.realpath(layout.releases))
    return real if rest is not None else None


def check_database(
    layout: Layout, database: Mapping[str, Any] | None, shared: Iterable[str], directory: str
) -> list[Fact]:
    """Return the facts about the place of a database that is a file."""
    path = (database or {}).get("path")
    if not path:
        return []
    found = inside_release(layout, str(path), shared, directory)
    if found is None:
        return []
    return [
        fact(
            "database_inside_release",
            f"app_database.path {str(path)!r} lies inside a release ({found}), so the next release would start "
            f"with an empty database: move it to {layout.shared}/ and set app_database.path, and the "
            "application's settings, to it.",
        )
    ]


def check_shared(layout: Layout, shared: Iterable[str]) -> list[Fact]:
    """Return the facts about ``app_shared``: each must be a relative path whose data outlives the releases."""
    facts = []
    for entry in shared:
        parts = Path(entry).parts
        if not parts or os.path.isabs(entry) or ".." in parts:
            facts.append(
                fact(
                    "shared_path",
                    f"app_shared has {entry!r}, expected a path relative to the release and within it, such as 'media'.",
                )
            )
            continue
        real = os.path.realpath(layout.shared / entry)
        if _below(real, os.path.realpath(layout.releases)) is not None:
            facts.append(
                fact(
                    "shared_inside_release",
                    f"app_shared has {entry!r}, but {layout.shared / entry} leads into a release ({real}), which will be "
                    f"removed one day: move the data to {layout.shared / entry} itself.",
                )
            )
    return facts


def check_sockets(layout: Layout, services: Iterable[Mapping[str, Any]]) -> list[Fact]:
    """Return a fact for each service whose socket would have a path that the kernel does not take."""
    facts = []
    for service in services:
        if service.get("kind", "web") != "web" or service.get("bind") != "socket":
            continue
        path = os.fsencode(layout.socket(service["name"], EXAMPLE_ID))
        if len(path) > SOCKET_PATH_LIMIT:
            facts.append(
                fact(
                    "socket_path_too_long",
                    f"app_root {str(layout.root)!r} is too long: the socket of service {service['name']!r} would have a "
                    f"path of {len(path)} bytes, and the kernel takes {SOCKET_PATH_LIMIT}; choose a shorter app_root "
                    f"or a shorter name in app_services.",
                )
            )
    return facts


def check_user(user: str | None) -> list[Fact]:
    """Return a fact when the application's user does not exist."""
    if not user:
        return []
    try:
        pwd.getpwnam(user)
    except KeyError:
        return [fact("user_missing", f"app_user {user!r} does not exist on this host: {SETUP}.")]
    return []


def check_root(layout: Layout) -> list[Fact]:
    """Return the facts about ``app_root`` and ``current``."""
    root = str(layout.root)
    if not os.path.lexists(layout.root):
        return [fact("root_missing", f"app_root {root!r} does not exist on this host: {SETUP}.")]
    if not layout.root.is_dir():
        return [fact("root_not_a_directory", f"app_root {root!r} is no directory: choose another app_root.")]
    facts = []
    needed = (
        layout.root,
        layout.releases,
        layout.environments,
        layout.shared,
        layout.run,
        layout.deployments,
    )
    locked = [str(path) for path in needed if path.is_dir() and not os.access(path, os.W_OK | os.X_OK)]
    if locked:
        facts.append(
            fact(
                "root_not_writable",
                f"app_root {root!r} cannot be written by uid {os.geteuid()} ({', '.join(locked)}): set ansible_become "
                "to true, or give these directories to the user of the connection.",
            )
        )
    if layout.current.is_dir() and not layout.current.is_symlink():
        facts.append(
            fact(
                "current_is_directory",
                f"{str(layout.current)!r} below app_root is a directory, expected a link to a release: move the "
                "directory away (its installation can be taken over with app_adopt), or choose another app_root.",
            )
        )
    elif os.path.lexists(layout.current) and not layout.current.is_symlink():
        facts.append(
            fact(
                "current_is_no_link",
                f"{str(layout.current)!r} below app_root is a file, expected a link to a release: move it away.",
            )
        )
    elif layout.current.is_symlink() and not layout.current.is_dir():
        facts.append(
            fact(
                "current_dangling",
                f"{str(layout.current)!r} below app_root points to {os.readlink(layout.current)!r}, which does not exist: "
                "put the release back, or remove the link and deploy again.",
            )
        )
    return facts


def check_adopted(adopt: Mapping[str, Any] | None, active: bool | None, deployed: bool) -> list[Fact]:
    """Return the facts about ``app_adopt``.

    :param active: whether its unit is active, None when systemd does not know it.
    :param deployed: a release is current; the old installation then may be gone.
    """
    facts: list[Fact] = []
    if not adopt or deployed:
        return facts
    path, service = adopt.get("path"), adopt.get("service")
    if path and not os.path.isdir(path):
        facts.append(
            fact(
                "adopted_path_missing",
                f"app_adopt.path {path!r} is no directory on this host: set it to where the present installation "
                "lies, or empty app_adopt.",
            )
        )
    elif path and not holds_python(path):
        facts.append(
            fact(
                "adopted_path_empty",
                f"app_adopt.path {path!r} holds no Python code and no environment that can be read (looked for *.py, pyproject.toml and "
                "bin/python, there and one level below): set it to where the present installation lies.",
            )
        )
    if service and active is None:
        facts.append(
            fact(
                "adopted_service_unknown",
                f"app_adopt.service {service!r} is no unit that systemd knows on this host: set it to the unit of the "
                "present installation (systemctl list-units), or empty app_adopt.",
            )
        )
    file = adopt.get("environment_file")
    if file and not os.path.lexists(file):
        facts.append(
            fact(
                "adopted_environment_missing",
                f"app_adopt.environment_file {file!r} does not exist on this host: correct it or empty it.",
            )
        )
    elif file:
        wrong = environment_fault(file)
        if wrong:
            facts.append(
                fact(
                    "adopted_environment_unreadable",
                    f"app_adopt.environment_file {file!r} cannot be used ({wrong}), expected lines NAME=value as systemd reads them: "
                    "correct the file, or empty app_adopt.environment_file.",
                )
            )
    return facts


def holds_python(path: str) -> bool:
    """Return whether the directory *path*, or one in it, has Python code or an environment."""
    places = [path]
    try:
        places += sorted(entry.path for entry in os.scandir(path) if entry.is_dir())[:200]
    except OSError:
        return False
    for place in places:
        try:
            names = os.listdir(place)
        except OSError:
            continue
        if any(name.endswith(".py") or name == "pyproject.toml" for name in names):
            return True
        if os.access(os.path.join(place, "bin", "python"), os.X_OK):
            return True
    return False


def environment_fault(path: str) -> str:
    """Return what is wrong with an environment file of systemd, "" for nothing; no value is in it, it may be a secret.

    Source of the form: EnvironmentFile= in systemd.exec(5): comments begin with # or ;, a backslash at the end goes on in
    the next line, and a quoted value may go over several lines.
    """
    try:
        text = read_regular(path, follow=True)
    except OSError as error:
        return error.strerror or "it cannot be read"
    except UnicodeDecodeError:
        return "it is no UTF-8 text"
    quote, begun, continued = "", 0, False
    for number, line in enumerate(text.splitlines(), 1):
        rest = line
        if not quote and not continued:
            if not line.strip() or line.lstrip()[0] in "#;":
                continue
            name, equals, rest = line.partition("=")
            if not equals or not ENVIRONMENT_NAME.match(name.strip()):
                return f"line {number} is no NAME=value"
            rest = rest.strip()
            if rest[:1] in ("'", '"'):
                quote, begun, rest = rest[0], number, rest[1:]
        if quote:
            # In single quotes a backslash is a letter.
            plain = rest if quote == "'" else re.sub(r"\\.", "", rest)
            if quote in plain:
                quote = ""
        continued = not quote and rest.endswith("\\")
    return f"the quote in line {begun} has no end" if quote else ""
