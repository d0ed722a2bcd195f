# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real nginx, as an ordinary process, before a small application, with room for the maintenance page."""

from __future__ import annotations

import http.client
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

from ansible_collections.runbook.deploy.tests.unit.plugins.modules.balanced_site import (
    PATIENCE,
    Backend,
    free_port,
    listens,
    program,
    wait_until,
)


class Answer(NamedTuple):
    """What somebody outside got."""

    status: int
    headers: dict[str, str]
    body: str


class MaintainedSite:
    """nginx on 127.0.0.1 before one backend."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "srv"
        self.port = free_port()
        self.backend = Backend("application")
        self.pid_file = directory / "nginx.pid"
        self.config = directory / "nginx.conf"
        self.http_file = directory / "maintenance-http.conf"
        self.server_file = directory / "maintenance-server.conf"
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> MaintainedSite:
        self.root.mkdir()
        self.write()
        try:
            self.backend.start()
            self.process = subprocess.Popen(self.argv, stderr=subprocess.DEVNULL)
            wait_until(
                lambda: self.pid_file.exists() and self.pid_file.read_text().strip(), "nginx has begun"
            )
            wait_until(lambda: listens(self.port), "nginx listens")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.backend.kill()

    def write(self, included: bool = True, broken: str = "") -> None:
        """nginx's configuration; by patterns, as files that are not there yet must not be missed."""
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
events {{ worker_connections 256; }}
http {{
    access_log off;
{paths}
    {broken}
    include {self.http_file}*;
    server {{
        listen 127.0.0.1:{self.port};
        error_page 503 /of-the-site.html;
        client_max_body_size 1k;
        # Of the whole site, so that our own places have it, too, unless they say otherwise.
        auth_basic closed;
        auth_basic_user_file {self.directory}/passwords;
        {f"include {self.server_file}*;" if included else ""}
        location / {{ auth_basic off; proxy_pass http://127.0.0.1:{self.backend.port}; }}
        location /locked/ {{ proxy_pass http://127.0.0.1:{self.backend.port}; }}
        location /own/ {{ return 503; }}
        location = /of-the-site.html {{ internal; return 503 "the site's own"; }}
        location ~ \\.php$ {{ return 404; }}
    }}
}}
""",
            encoding="utf-8",
        )
        (self.directory / "passwords").write_text("", encoding="utf-8")

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

    def test(self) -> bool:
        """Whether nginx takes what its configuration is now."""
        return (
            subprocess.run([*self.argv, "-t", "-q"], stderr=subprocess.DEVNULL, check=False).returncode == 0
        )

    def options(self, **changes) -> dict:
        return {
            "kind": "nginx",
            "root": str(self.root),
            "name": "my-shop",
            "stage": "prod",
            "http_file": str(self.http_file),
            "server_file": str(self.server_file),
            "pid_file": str(self.pid_file),
            "nginx": self.argv,
            "allow": ["127.9.0.0/16"],
            "json": ["/api/"],
            "webhooks": ["/hooks/"],
            "open": ["/.well-known/"],
            "probe": f"http://127.0.0.1:{self.port}/",
            "verify_timeout": 20,
            **changes,
        }

    def get(
        self,
        path: str = "/",
        method: str = "GET",
        accept: str = "text/html",
        source: str = "127.0.0.1",
        body: bytes | None = None,
        **headers: str,
    ) -> Answer:
        """What somebody at *source* gets."""
        client = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=PATIENCE, source_address=(source, 0)
        )
        try:
            client.request(method, path, body, headers={"Accept": accept, "Connection": "close", **headers})
            answer = client.getresponse()
            return Answer(
                answer.status,
                {k.lower(): v for k, v in answer.getheaders()},
                answer.read().decode(),
            )
        finally:
            client.close()
