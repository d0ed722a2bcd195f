# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Redis server of the tests' own, on a free port or a socket, that keeps nothing on disk."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")
needs_redis = pytest.mark.skipif(PROGRAM is None, reason="there is no redis-server on this machine")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """A server with the further *options*, such as ``requirepass=…``; a context manager."""

    def __init__(self, directory: Path, port: int | None = None, **options: str) -> None:
        self.directory = directory
        self.port = free_port() if port is None else port
        self.socket = directory / "redis.sock"
        self.options = options
        self.process: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> RedisServer:
        words = [PROGRAM, "--port", str(self.port), "--unixsocket", str(self.socket), "--save", ""]
        words += ["--bind", "127.0.0.1", "--dir", str(self.directory), "--appendonly", "no"]
        for name, value in self.options.items():
            words += [f"--{name.replace('_', '-')}", value]
        with (self.directory / "redis.log").open("wb") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        limit = time.monotonic() + 10
        while not self.socket.exists():
            if self.process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError((self.directory / "redis.log").read_text())
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.socket.unlink(missing_ok=True)

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()
