# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what the processes of tasks find loaded, in a process that has loaded nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

COLLECTIONS = Path(__file__).resolve().parents[4] / ".ansible_dev"
PROGRAM = """
import json, os, sys
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template

init_plugin_loader([sys.argv[1]])
from ansible_collections.runbook.deploy.plugins.plugin_utils import _forks

def loaded_by_a_task():
    reading, writing = os.pipe()
    if os.fork() == 0:
        before = set(sys.modules)
        condition = "{{ ['/x'] | runbook.deploy.must_be_gone | selectattr('status', 'defined') | list | length == 1 }}"
        assert Templar(loader=None, variables={}).template(trust_as_template(condition)) is True
        names = [name for name in set(sys.modules) - before if "ansible" in name]
        os.write(writing, json.dumps(sorted(names)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        return json.load(answer)

first = loaded_by_a_task()
_forks.prepare()
then = loaded_by_a_task()
evaluated = Templar(loader=None, variables={}).template(trust_as_template(_forks.EXPRESSION))
print(json.dumps([first, then, evaluated]))
"""


def test_a_task_finds_filters_and_tests_loaded():
    command = [sys.executable, "-c", PROGRAM, str(COLLECTIONS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    without, after, evaluated = json.loads(done.stdout)
    assert "ansible_collections.runbook.deploy.plugins.filter.must_be_gone" in without
    assert after == []
    assert evaluated is False, "this ansible-core does not evaluate the expression: nothing is loaded by it"
