# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Django project for tests of modules that must not start the application more often than they need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_project import DjangoProject


class CountedProject:
    """A project whose settings count how often the application is started; its database has the first migrations."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.project = DjangoProject(root)
        self.capsys = capsys
        self.project.fill("1")
        self.counter = root / "shared" / "starts"
        self.project.append_settings(f"open({str(self.counter)!r}, 'a').write('x')\n")
        self.live = {"engine": "sqlite", "path": str(self.project.database)}

    def run(self, module: Any, **options: Any) -> dict[str, Any]:
        """Run *module*; the answer gets ``started``, how often it started the application."""
        before = self.starts()
        arguments = {
            "root": str(self.project.root),
            "release": self.project.name,
            "environment_path": str(self.project.environment),
            "environment": json.dumps(self.project.variables),
            **options,
        }
        self.capsys.readouterr()
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        answer = json.loads(self.capsys.readouterr().out)
        return {"failed": False, **answer, "started": self.starts() - before}

    def starts(self) -> int:
        """Return how often the application was started."""
        return len(self.counter.read_text()) if self.counter.exists() else 0

    def scratch(self) -> dict[str, str]:
        """Return a copy of the live database, as ``database`` takes it."""
        return {"engine": "sqlite", "path": str(self.project.scratch())}
