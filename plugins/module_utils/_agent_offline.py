# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inside an application before its migrations are rehearsed: nothing leaves this process but to the database.

Runs in the application's Python (3.8 and up), loaded by ``_agent_runtime.py``; imports nothing but the standard
library, and Django and Celery only inside functions.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import Any

# sched.h
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
MAIL = "django.core.mail.backends.locmem.EmailBackend"
# Celery's settings, their old names, and variables, which win over both.
BROKER_SETTINGS = ("CELERY_BROKER_URL", "BROKER_URL")
BROKER_VARIABLES = ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL")
NO_BROKER = "memory://"
# Waiting for the result of a task that nobody runs fails at once with it, instead of never ending.
NO_RESULTS = "disabled"


def cut_off(context: Any, allowed: set[tuple[str, int]], *, by_socket: bool) -> str:
    """Let this process reach nothing but its database; return how that is kept.

    ``namespace``: the kernel gives it a network without any address, so that drivers in C, UDP and programs that it
    starts reach nothing either; only where the database has a Unix socket or is a file, and where the kernel lets an
    ordinary process do so. ``python``: connections and packets are refused where Python sends them.

    :param allowed: host and port of the database, for drivers that connect in Python.
    :param by_socket: whether the database is reached without any network.
    """
    _refuse_connections(context, allowed)
    return "namespace" if by_socket and _leave_network() else "python"


# --- the kernel's way ---


def _leave_network() -> bool:
    """Enter a network namespace of our own; return whether that succeeded. Connections that are open stay."""
    if not hasattr(os, "fork") or not sys.platform.startswith("linux"):
        return False
    # Tried in a child first: a process that gets half way has no user any more that it could name.
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        left = False
        with contextlib.suppress(BaseException):
            left = _unshare()
        os._exit(0 if left else 1)
    if os.waitpid(child, 0)[1] != 0:
        return False
    try:
        # Refused as a whole where the application has started threads.
        return _unshare()
    except (ImportError, OSError):
        return False


def _unshare() -> bool:
    import ctypes

    user, group = os.geteuid(), os.getegid()
    # Root may leave the network as it is; as root of a user namespace it could not read the files of others.
    flags = CLONE_NEWNET if user == 0 else CLONE_NEWNET | CLONE_NEWUSER
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(flags) != 0:
        return False
    if flags & CLONE_NEWUSER:
        # user_namespaces(7): a process may map itself, and its group only without setgroups().
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    return True


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


# --- Python's way ---


def _refuse_connections(context: Any, allowed: set[tuple[str, int]]) -> None:
    """Refuse connections and packets to anything but *allowed*, and tell the host where they should have gone."""

    def tell(address: Any) -> str:
        place = ":".join(str(part) for part in address[:2])
        context.emit(event="refused", address=place)
        return f"connections to {place} are off while migrations are rehearsed"

    def guarded(original: Any) -> Any:
        def send(self: Any, *arguments: Any) -> Any:
            # connect(address), connect_ex(address), sendto(data, [flags,] address)
            address = arguments[-1]
            if self.family != socket.AF_UNIX and tuple(address[:2]) not in allowed:
                raise ConnectionRefusedError(tell(address))
            return original(self, *arguments)

        return send

    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **more: Any) -> Any:
        try:
            return resolve(host, port, *arguments, **more)
        except socket.gaierror:
            # Without a network no name has an address, so that nothing would be said of a connection to it.
            tell((host.decode() if isinstance(host, bytes) else host, port))
            raise

    class Guarded(socket.socket):
        connect = guarded(socket.socket.connect)
        connect_ex = guarded(socket.socket.connect_ex)
        sendto = guarded(socket.socket.sendto)

    # socket.create_connection, http.client and the clients built on them look both up in the module.
    socket.socket = Guarded  # type: ignore[misc]
    socket.getaddrinfo = getaddrinfo
    ssl = sys.modules.get("ssl")
    if ssl is not None and hasattr(ssl, "SSLSocket"):
        ssl.SSLSocket.connect = guarded(ssl.SSLSocket.connect)


# --- what an application sends by a service of its own ---


def mail_off() -> bool:
    """Send Django's mail into memory; return whether it went elsewhere before."""
    from django.conf import settings

    if settings.EMAIL_BACKEND == MAIL:
        return False
    settings.EMAIL_BACKEND = MAIL
    return True


def broker_off() -> bool:
    """Send Celery's tasks into the memory of this process, where nobody runs them; return whether there is Celery.

    Running them at once (CELERY_TASK_ALWAYS_EAGER) would do for real what they are for.
    """
    from django.conf import settings

    found = "celery" in sys.modules
    for name in BROKER_SETTINGS:
        if getattr(settings, name, None):
            setattr(settings, name, NO_BROKER)
            found = True
    if not found:
        return False
    for name in BROKER_VARIABLES:
        if name in os.environ:
            os.environ[name] = NO_BROKER
    os.environ.pop("CELERY_RESULT_BACKEND", None)
    celery = sys.modules.get("celery")
    for application in celery._state._get_active_apps() if celery is not None else ():
        application.conf.broker_url = NO_BROKER
        application.conf.broker_read_url = application.conf.broker_write_url = NO_BROKER
        application.conf.result_backend = NO_RESULTS
    return True


OPERATIONS: dict[str, Any] = {}
