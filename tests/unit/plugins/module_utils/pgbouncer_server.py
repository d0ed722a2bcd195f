# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real PgBouncer before a private PostgreSQL server."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator

from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_servers import (
    PASSWORD,
    Server,
    free_port,
    ordinary_user,
    program,
)


@contextlib.contextmanager
def pooling(server: Server, mode: str, ignored: str = "extra_float_digits") -> Iterator[int]:
    """Run a pooler before *server* and give its port.

    :param mode: ``transaction`` or ``session``; :param ignored: start-up parameters that it takes and forgets.
    """
    binary, port = program("pgbouncer"), free_port()
    configuration, users = server.directory / "pool.ini", server.directory / "users.txt"
    users.write_text(f'"app" "{PASSWORD}"\n')
    configuration.write_text(
        f"[databases]\n* = host=127.0.0.1 port={server.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nunix_socket_dir =\nauth_type = plain\nauth_file = {users}\npool_mode = {mode}\n"
        f"ignore_startup_parameters = {ignored}\n"
    )
    with subprocess.Popen(
        [binary, str(configuration)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **ordinary_user(),
    ) as process:
        try:
            deadline = time.monotonic() + 30
            while True:
                assert process.poll() is None and time.monotonic() < deadline
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(("127.0.0.1", port), timeout=5),
                ):
                    break
                time.sleep(0.02)
            yield port
        finally:
            process.kill()
