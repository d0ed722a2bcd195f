# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host in a temporary directory, with real processes: for the tests of what is measured."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    Layout,
    remove_tree,
    replace_link,
    write_json,
)
from ansible_collections.runbook.deploy.plugins.module_utils._record import new_record, write_record

R1, R2, R3, R4 = (f"{digit * 12}-{digit * 8}" for digit in "1234")
D0, D1, D2, D3, D4 = (f"2026010{day}T000000-000{day}" for day in range(5))

# Listens on a socket or a port (argv[1], "-" for none), says so, and answers nothing.
SERVICE = """
import socket, sys, time
address = sys.argv[1]
if address != "-":
    if address.isdigit():
        listener = socket.socket()
        listener.bind(("127.0.0.1", int(address)))
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
    listener.listen(8)
print("ready", flush=True)
time.sleep(60)
"""


def python_path() -> dict[str, str]:
    """Return the environment in which a child finds what this process imports."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class Host:
    """``app_root`` in a directory whose path is short enough for sockets."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="rb-"))
        self.layout = Layout(self.root)
        self.children: list[subprocess.Popen[str]] = []
        for path in (self.layout.releases, self.layout.environments, self.layout.instances, self.layout.run):
            path.mkdir(parents=True)

    def close(self) -> None:
        for child in self.children:
            self.kill(child)
        remove_tree(self.root)

    def kill(self, child: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
        child.send_signal(number)
        child.wait(10)
        child.stdout.close()
        self.children = [entry for entry in self.children if entry is not child]

    def release(
        self, name: str, *, complete: bool = True, environment: str = "env1", version: str = "v1"
    ) -> Path:
        path = self.layout.release(name)
        path.mkdir()
        document = {"name": name, "commit": name[0] * 40, "version": version, "environment": environment}
        write_json(path / ".release.json", document, 0o644)
        (path / ".built").touch()
        if complete:
            (path / ".complete").touch()
        return path

    def switch(self, release: str, deployment: str) -> None:
        replace_link(self.layout.current, f"releases/{release}")
        replace_link(self.layout.release_instance(release), deployment)

    def start(
        self, service: str, deployment: str, release: str, *, address: str = "", root: str | None = None
    ) -> subprocess.Popen[str]:
        """Start a service; without *address* on the instance's socket, to which the public link then leads."""
        if not address:
            path = self.layout.socket(service, deployment)
            address = str(path)
            replace_link(self.layout.socket(service), path.name)
        child = subprocess.Popen(
            [sys.executable, "-c", SERVICE, address],
            env={
                "PATH": os.environ["PATH"],
                "RUNBOOK_ROOT": str(self.root) if root is None else root,
                "RUNBOOK_SERVICE": service,
                "RUNBOOK_DEPLOYMENT": deployment,
                "RUNBOOK_RELEASE": release,
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        self.children.append(child)
        assert child.stdout.readline() == "ready\n"
        return child

    def record(
        self, deployment: str, release: str | None, verdict: str | None = "success", **fields: Any
    ) -> dict:
        about = {key: fields.pop(key) for key in ("kind", "undoes", "instance", "version") if key in fields}
        document = new_record(
            deployment=deployment,
            token="t" * 32,
            host="web1",
            primary=True,
            about={"release": release, "commit": (release or "0")[0] * 40, **about},
        )
        document.update(verdict=verdict, **fields)
        write_record(self.layout, document)
        return document

    def tree(self) -> dict[str, Any]:
        """Return everything below the root: path → (mode, content or target of the link)."""
        found = {}
        for directory, names, files in os.walk(self.root):
            for name in [*names, *files]:
                path = Path(directory, name)
                details = path.lstat()
                content: Any = os.readlink(path) if path.is_symlink() else None
                if path.is_file() and not path.is_symlink():
                    content = path.read_bytes()
                found[str(path)] = (details.st_mode, details.st_mtime_ns if path.is_file() else 0, content)
        return found


@contextlib.contextmanager
def deployed_host():
    """Yield a :class:`Host`, whose processes and files are gone afterwards."""
    host = Host()
    try:
        yield host
    finally:
        host.close()


def run_module(module: Any, capsys: pytest.CaptureFixture[str], **params: Any) -> dict[str, Any]:
    """Run *module*'s main() in this process and return its answer."""
    capsys.readouterr()
    with patch_module_args(params), pytest.raises(SystemExit):
        module.main()
    return json.loads(capsys.readouterr().out)


def wait_for(condition: Any, seconds: float = 5.0) -> None:
    """Wait until *condition()* is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
