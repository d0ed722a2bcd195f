# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A RabbitMQ server of the tests' own: an ordinary process on free ports, with everything in one directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from redis_server import free_port

# Not the command of the same name in the path: Debian's becomes another user, who may not write to a directory of the tests.
PROGRAMS = Path("/usr/lib/rabbitmq/bin")
HAS_RABBITMQ = (PROGRAMS / "rabbitmq-server").exists() and shutil.which("epmd") is not None
STARTED_WITHIN = 120.0


class RabbitServer:
    """A broker with the user *user*; a context manager. The first start of an Erlang takes some seconds."""

    def __init__(self, directory: Path, user: str, password: str) -> None:
        self.directory = directory
        self.port = free_port()
        self.process: subprocess.Popen | None = None
        (directory / "plugins").write_text("[].\n")
        (directory / "rabbit.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\ndefault_user = {user}\ndefault_pass = {password}\n"
            "disk_free_limit.absolute = 1MB\nlog.console = false\n"
        )
        place = str(directory)
        self.variables = {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
            # The cookie, by which the server and its tools know each other, is made there.
            "HOME": place,
            # A daemon that tells nodes' ports: one of this server's own, that may be ended with it.
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_RELAXED_COMMAND_CHECK": "1",
            "RABBITMQ_NODENAME": f"tests{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": f"{place}/rabbit.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{place}/plugins",
            "RABBITMQ_MNESIA_BASE": f"{place}/data",
            "RABBITMQ_LOG_BASE": f"{place}/log",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +A 2",
        }

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> RabbitServer:
        with (self.directory / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [str(PROGRAMS / "rabbitmq-server")],
                env=self.variables,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        limit = time.monotonic() + STARTED_WITHIN
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5):
                return self
            if self.process.poll() is not None or time.monotonic() > limit:
                text = (self.directory / "output").read_text(errors="replace")
                self.stop()
                raise RuntimeError(text[-3000:])
            time.sleep(0.05)

    def signal(self, number: int) -> None:
        """Send a signal to the server and what it has started."""
        if self.process is not None:
            os.killpg(self.process.pid, number)

    def control(self, *words: str) -> str:
        """Ask the server's own tool."""
        done = subprocess.run(
            [str(PROGRAMS / "rabbitmqctl"), "--quiet", *words],
            env=self.variables,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return done.stdout

    def stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None
        subprocess.run(["epmd", "-kill"], env=self.variables, capture_output=True, check=False)

    def __enter__(self) -> RabbitServer:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()
