# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real HAProxy or nginx, as an ordinary process, with two small backends behind it and a client that counts what fails."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

# Answers /healthz/, /slow (argv[3] seconds) and everything else with its name; on TERM it dies at once, as a server does that is killed.
BACKEND = r"""
import sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
name, port, slow = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            time.sleep(slow)
        body = name.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_args):
        pass
class Server(ThreadingHTTPServer):
    request_queue_size = 256
Server(("127.0.0.1", port), Handler).serve_forever()
"""
PATIENCE = 40.0


def program(name: str) -> str | None:
    """The path of a program that packages put into sbin, None where it is not installed."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def wait_until(condition, what: str) -> None:
    """Wait for a condition; a loaded machine takes its time."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE:g} s: {what}")
        time.sleep(0.02)


def listens(port: int) -> bool:
    with socket.socket() as stream:
        return stream.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as stream:
        stream.bind(("127.0.0.1", 0))
        return stream.getsockname()[1]


def ask(port: int, path: str = "/", timeout: float = PATIENCE) -> str:
    """The body of an answer with 200; anything else raises."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        client.request("GET", path, headers={"Connection": "close"})
        answer = client.getresponse()
        body = answer.read().decode()
    finally:
        client.close()
    if answer.status != 200:
        raise OSError(f"{answer.status} {body[:80]}")
    return body


class Backend:
    """One server of the application, which can be killed and started again on its port."""

    def __init__(self, name: str, slow: float = 3.0) -> None:
        self.name, self.slow, self.port = name, slow, free_port()
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        argv = [sys.executable, "-c", BACKEND, self.name, str(self.port), str(self.slow)]
        self.process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        wait_until(lambda: listens(self.port), f"{self.name} listens")

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


class Load:
    """A constant load through the balancer: each request has a connection of its own, and begins when it is due."""

    def __init__(self, port: int, rate: float = 60.0, path: str = "/") -> None:
        self.port, self.rate, self.path = port, rate, path
        self.answers: list[str] = []
        self.failures: list[str] = []
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []
        self._next = time.monotonic()
        self._lock = threading.Lock()

    def _work(self) -> None:
        while not self._end.is_set():
            with self._lock:
                due = self._next = max(self._next + 1 / self.rate, time.monotonic() - 1)
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                self.answers.append(ask(self.port, self.path))
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{type(error).__name__} {error}")

    def __enter__(self) -> Load:
        self.begun = time.monotonic()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _number in range(6)]
        for thread in self._threads:
            thread.start()
        wait_until(lambda: len(self.answers) > 20, "the load begins")
        return self

    def __exit__(self, *_exception) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        self.per_second = (len(self.answers) + len(self.failures)) / (time.monotonic() - self.begun)

    def more(self, number: int = 60) -> None:
        """Let some more requests pass."""
        wanted = len(self.answers) + len(self.failures) + number
        wait_until(lambda: len(self.answers) + len(self.failures) >= wanted, f"{number} more requests")


class Site:
    """Two backends and what balances between them; a subclass starts it."""

    def __init__(self, directory: Path, slow: float = 3.0) -> None:
        self.directory, self.port = directory, free_port()
        self.one, self.two = Backend("one", slow), Backend("two", slow)
        self.process: subprocess.Popen | None = None

    def __enter__(self):
        try:
            self.one.start()
            self.two.start()
            self.start()
            wait_until(lambda: listens(self.port), "the balancer listens")
            wait_until(lambda: {self._name() for _number in range(6)} == {"one", "two"}, "both answer")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _name(self) -> str:
        try:
            return ask(self.port)
        except (OSError, http.client.HTTPException) as error:
            return str(error)

    def __exit__(self, *_exception) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.one.kill()
        self.two.kill()

    def seen(self, number: int = 12) -> set[str]:
        """Who answers now."""
        return {ask(self.port) for _number in range(number)}


class HaproxySite(Site):
    """HAProxy with a socket of its own; *extra* is added to each server's line."""

    def __init__(
        self, directory: Path, slow: float = 3.0, check: str = "check inter 500ms", level: str = "admin"
    ) -> None:
        super().__init__(directory, slow)
        self.check, self.level = check, level
        self.socket = directory / "admin.sock"

    def start(self) -> None:
        config = self.directory / "haproxy.cfg"
        config.write_text(
            f"""global
    stats socket {self.socket} mode 600 level {self.level}
defaults
    mode http
    retries 0
    timeout connect 20s
    timeout check 20s
    timeout client 60s
    timeout server 60s
frontend public
    bind 127.0.0.1:{self.port}
    default_backend shop
backend shop
    balance roundrobin
    option httpchk GET /healthz/
    server one 127.0.0.1:{self.one.port} weight 100 {self.check}
    server two 127.0.0.1:{self.two.port} weight 100 {self.check}
""",
            encoding="utf-8",
        )
        self.process = subprocess.Popen(
            [program("haproxy"), "-db", "-f", str(config)], stderr=subprocess.DEVNULL
        )

    def command(self, text: str) -> str:
        """What the socket answers, asked without the collection."""
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(10)
            stream.connect(str(self.socket))
            stream.sendall(f"{text}\n".encode())
            parts = []
            while block := stream.recv(65536):
                parts.append(block)
        return b"".join(parts).decode()

    def status(self, name: str) -> str:
        rows = [line.split(",") for line in self.command("show stat").splitlines()]
        return next(row[17] for row in rows if row[:2] == ["shop", name])

    def options(self, **changes) -> dict:
        return {
            "kind": "haproxy",
            "socket": str(self.socket),
            "backend": "shop",
            "server": "one",
            "notes": str(self.directory / "notes"),
            "drain_timeout": 30,
            "ready_timeout": 30,
            "checked": 0.5,
            **changes,
        }


class NginxSite(Site):
    """nginx with the upstream in a file of its own."""

    def start(self) -> None:
        self.pid_file = self.directory / "nginx.pid"
        self.config = self.directory / "nginx.conf"
        self.upstream = self.directory / "upstream.conf"
        user = "user root;\n" if os.geteuid() == 0 else ""
        paths = "\n".join(
            f"    {name}_temp_path {self.directory}/{name};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        self.config.write_text(
            f"""{user}daemon off;
worker_processes 2;
pid {self.pid_file};
error_log {self.directory}/error.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
{paths}
    include {self.upstream};
    server {{
        listen 127.0.0.1:{self.port};
        location / {{
            proxy_next_upstream off;
            proxy_pass http://shop;
        }}
    }}
}}
""",
            encoding="utf-8",
        )
        self.upstream.write_text(
            f"""# Managed by runbook.deploy
upstream shop {{
    # Both count.
    server 127.0.0.1:{self.one.port} max_fails=0; # one in the first rack
    server 127.0.0.1:{self.two.port} max_fails=0; # two
}}
""",
            encoding="utf-8",
        )
        self.process = subprocess.Popen(self.argv, stderr=subprocess.DEVNULL)
        wait_until(lambda: self.pid_file.exists() and self.pid_file.read_text().strip(), "nginx has begun")

    @property
    def argv(self) -> list[str]:
        return [
            program("nginx"),
            "-p",
            str(self.directory),
            "-e",
            str(self.directory / "start.log"),
            "-c",
            str(self.config),
        ]

    def options(self, **changes) -> dict:
        return {
            "kind": "nginx",
            "upstream_file": str(self.upstream),
            "pid_file": str(self.pid_file),
            "nginx": self.argv,
            "backend": "shop",
            "server": "one",
            "drain_timeout": 30,
            "ready_timeout": 30,
            "checked": 0.3,
            **changes,
        }
