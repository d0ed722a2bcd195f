# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host on which a migration is under way, in a module of its own process: for the tests of what dies in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils import _detached, _lock, _record
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout

DEPLOYMENT = "20261121T013700-ab12"
TOKEN = "t" * 32
# Everything here takes a moment; a busy machine may need long for it.
PATIENCE = 60.0
SCRIPT = (
    "import sys, json\nfrom ansible.module_utils.testing import patch_module_args\n"
    "from ansible_collections.runbook.deploy.plugins.module_utils import _lock\n"
    "from ansible_collections.runbook.deploy.plugins.modules.migration import main\n"
    "_lock.RENEW_EVERY = 0.2\n"
    "with patch_module_args(json.loads(sys.argv[1])):\n    main()\n"
)


def wait_for(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


class Migrating:
    """A host with a release whose migration counts its runs, begins, and goes on when it is told to."""

    def __init__(self, project: Any, directory: Path, live: dict[str, Any]) -> None:
        self.project, self.live = project, live
        self.layout = Layout(project.root)
        self.started, self.go_on = directory / "started", directory / "go-on"
        self.children: list[subprocess.Popen[str]] = []
        code = (
            "import pathlib, time\n\n\ndef wait(apps, editor):\n"
            "    editor.execute('create table counted (pid integer)')\n"
            "    editor.execute('insert into counted values (1)')\n"
            f"    pathlib.Path({str(self.started)!r}).touch()\n"
            f"    while not pathlib.Path({str(self.go_on)!r}).exists():\n        time.sleep(0.02)\n\n\n"
        )
        back = "migrations.RunPython(wait, migrations.RunPython.noop)"
        project.migration("0002_waits", "0001_initial", back, code=code)
        project.migration(
            "0003_more", "0002_waits", 'migrations.RunSQL("create table more (x integer)", "drop table more")'
        )
        about = {"kind": "deployment", "release": project.name}
        document = _record.new_record(
            deployment=DEPLOYMENT, token=TOKEN, host="web1", primary=True, about=about
        )
        _record.write_record(self.layout, document)
        _lock.acquire(self.layout, deployment=DEPLOYMENT, token=TOKEN, owner="alice", host="ci1")

    def start(self, **options: Any) -> subprocess.Popen[str]:
        """Start the module as a host does, and wait until its migration is under way."""
        arguments = {
            "root": str(self.project.root),
            "release": self.project.name,
            "environment_path": str(self.project.environment),
            "environment": json.dumps(self.project.variables),
            "live_database": self.live,
            "state": "applied",
            "record": {"id": DEPLOYMENT, "token": TOKEN, "host": "web1", "primary": True, "about": {}},
            **options,
        }
        child = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps(arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.children.append(child)
        wait_for(self.started.exists, "the migration to begin")
        return child

    def worker(self) -> int:
        found = _detached.working(self.layout)
        assert found is not None
        return found["pid"]

    def ended(self) -> bool:
        return not list(_detached._still(self.layout, DEPLOYMENT))

    def record(self) -> dict[str, Any]:
        return json.loads(self.layout.record(DEPLOYMENT).read_text())

    def lock(self) -> dict[str, Any]:
        found = _lock.read_lock(self.layout)
        assert found is not None
        return found

    def close(self) -> None:
        self.go_on.touch()
        for child in self.children:
            child.kill()
            child.wait()
            child.stdout.close()
        wait_for(self.ended, "the worker to end")
