# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what the callback ``phases`` prints, with ansible-playbook itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

OPTIONS = ("-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}")
ROOT = Path(__file__).resolve().parents[4]
PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - name: "Phase {{ wanted }}"
      ansible.builtin.include_tasks: inner.yml
      vars: {wanted: release}
    - name: Phase backup
      ansible.builtin.include_tasks: inner.yml
      when: false
    - name: Quiet
      ansible.builtin.command: "true"
      changed_when: false
    - name: Ignored
      ansible.builtin.fail: {msg: not shown}
      ignore_errors: true
    - name: Break
      ansible.builtin.fail: {msg: "The first line.\\nThe second."}
"""
INNER = """
- name: Change something
  ansible.builtin.command: "true"
  changed_when: true
"""


@pytest.fixture
def shown(tmp_path: Path):
    """Return a function that runs the play and returns what the terminal shows."""
    (tmp_path / "play.yml").write_text(PLAY)
    (tmp_path / "inner.yml").write_text(INNER)

    def run(*options: str) -> str:
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"),
            "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
            "ANSIBLE_NOCOLOR": "1",
        }
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", *OPTIONS, "play.yml", *options],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 2, done.stdout + done.stderr
        return done.stdout

    return run


def test_phases_changes_and_failures_are_shown_and_nothing_else(shown) -> None:
    lines = shown().partition("PLAY RECAP")[0].strip().splitlines()
    assert lines[0][2::3].startswith("::")
    assert [line[8:] for line in lines[:1]] == ["  release"]
    assert [line.strip() for line in lines[1:]] == [
        "changed on localhost: Change something",
        "failed on localhost: The first line.",
        "The second.",
    ]


def test_a_phase_whose_tasks_are_part_of_the_play_is_shown_by_the_first_that_runs(shown, tmp_path) -> None:
    tasks = tmp_path / "roles" / "inner" / "tasks"
    tasks.mkdir(parents=True)
    (tasks / "main.yml").write_text(
        """
- name: Asked of the phase before anything of it runs
  ansible.builtin.meta: end_role
  when: empty | default(false)
- name: First
  ansible.builtin.command: "true"
  changed_when: true
- name: Second
  ansible.builtin.fail: {msg: it fails}
  when: fails | default(false)
"""
    )
    (tmp_path / "play.yml").write_text(
        """
- hosts: localhost
  gather_facts: false
  tasks:
    - {name: One, ansible.builtin.import_role: {name: inner}, vars: {phase_name: one}}
    - {name: Two, ansible.builtin.import_role: {name: inner}, vars: {phase_name: two, empty: true}}
    - {name: Three, ansible.builtin.include_role: {name: inner}, vars: {phase_name: three}}
    - {name: Phase four, ansible.builtin.include_role: {name: inner}, vars: {phase_name: four}}
    - {name: Five, ansible.builtin.import_role: {name: inner}, vars: {phase_name: five, fails: true}}
"""
    )
    lines = shown().partition("PLAY RECAP")[0].strip().splitlines()
    assert [line.split("  ")[-1] for line in lines if line[2:3] == ":"] == ["one", "three", "four", "five"]
    assert [line.strip() for line in lines[-2:]] == [
        "changed on localhost: First",
        "failed on localhost: it fails",
    ]


def test_with_v_everything_is_shown(shown) -> None:
    text = shown("-v")
    for part in ("TASK [Quiet]", "TASK [Phase backup]", "skipping:", "not shown", "PLAY ["):
        assert part in text


@pytest.mark.parametrize("options", [(), ("-v",), ("-vvv",)])
def test_what_no_log_hides_is_hidden(shown, tmp_path, options) -> None:
    (tmp_path / "play.yml").write_text(
        """
- hosts: localhost
  gather_facts: false
  vars: {secret: "SEC{{ 'RET' }}"}
  tasks:
    - name: Hidden
      ansible.builtin.fail: {msg: "{{ secret }}"}
      no_log: true
"""
    )
    text = shown(*options)
    assert "SECRET" not in text
    assert "failed=1" in text
