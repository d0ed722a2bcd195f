# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the collection's playbooks as an operator does: the real command line, from the checkout, nothing prepared in memory."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
CALLBACKS = (PROJECT / "tests" / "callbacks", Path(__file__).with_name("callbacks"))
# Seconds that a playbook may take; more on a machine that does much else.
LIMIT = float(os.environ.get("RUNBOOK_RUN_SECONDS", "300"))


@dataclass
class Run:
    """What a run of a playbook left: exit code, output, recap, the module executions and what gates found."""

    command: str
    code: int
    output: str
    seconds: float
    hosts: dict[str, dict[str, int]] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    executions: list[tuple[str, str]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def report(self) -> str:
        """The block that a person reads at the end, without the output of the tasks before it."""
        lines = self.output.splitlines()
        starts = [
            number
            for number, line in enumerate(lines)
            if line.startswith(("deployment ", "rollback ")) and " of " in line
        ]
        if not starts:
            return ""
        block = [lines[starts[-1]]]
        for line in lines[starts[-1] + 1 :]:
            if not line.startswith("  "):
                break
            block.append(line)
        return "\n".join(block)

    def line(self, pattern: str) -> str:
        """The line of the report that has what `pattern` matches; there has to be one."""
        for line in self.report.splitlines():
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no line with {pattern!r} in the report of {self}")

    def count(self, host: str) -> int:
        """Module executions on `host`."""
        return sum(1 for where, _module in self.executions if where == host)

    def __str__(self) -> str:
        tail = "\n".join(self.output.splitlines()[-60:])
        return f"{self.command}\nexit code {self.code} after {self.seconds:.1f} s\n{tail}"


def environment(recap: Path, executions: Path, verbosity: int) -> dict[str, str]:
    """The operator's environment: nothing of molecule's own configuration, and the callbacks that count."""
    # With -vvv Ansible's own output shows most: whole answers and invocations.
    shown = {"ANSIBLE_STDOUT_CALLBACK": "default"} if verbosity >= 3 else {}
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "MOLECULE_"))
    }
    return {
        **kept,
        **shown,
        "ANSIBLE_CALLBACK_PLUGINS": os.pathsep.join(str(path) for path in CALLBACKS),
        "ANSIBLE_CALLBACKS_ENABLED": "recap,executions",
        "ANSIBLE_FORCE_COLOR": "0",
        "RUNBOOK_RECAP": str(recap),
        "RUNBOOK_EXECUTIONS": str(executions),
    }


def program() -> str:
    """`ansible-playbook` of the environment that runs the tests."""
    beside = Path(sys.executable).with_name("ansible-playbook")
    found = str(beside) if beside.exists() else shutil.which("ansible-playbook")
    if found is None:
        raise SystemExit("runs: there is no ansible-playbook beside this Python, nor on the path.")
    return found


def run_playbook(
    name: str, *words: str, inventories: tuple[Path, ...], verbosity: int = 0, limit: float = LIMIT
) -> Run:
    """Run ``playbooks/<name>.yml`` with further `words` and return what it left; a run beyond `limit` seconds is ended."""
    command = [program(), f"playbooks/{name}.yml"]
    for inventory in inventories:
        command += ["-i", str(inventory)]
    command += words
    if verbosity:
        command.append("-" + "v" * verbosity)
    with tempfile.TemporaryDirectory(prefix="runbook-run-") as directory:
        recap, executions = Path(directory, "recap.json"), Path(directory, "executions")
        begun = time.monotonic()
        # To a file, not a pipe: ssh's shared connection inherits the output and outlives the run.
        with Path(directory, "output").open("w+", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(
                command,
                cwd=PROJECT,
                env=environment(recap, executions, verbosity),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
            seconds = time.monotonic() - begun
            output.seek(0)
            text = output.read()
        answer: dict[str, Any] = json.loads(recap.read_text()) if recap.exists() else {}
        lines = executions.read_text().splitlines() if executions.exists() else []
    return Run(
        command=shlex.join(command),
        code=code,
        output=text,
        seconds=seconds,
        hosts=answer.get("hosts", {}),
        changed=answer.get("changed", []),
        checks=answer.get("checks", []),
        executions=[(line.split()[0], line.split()[1]) for line in lines],
    )
