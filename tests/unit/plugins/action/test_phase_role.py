# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role ``phase``, with ansible-playbook: who begins a phase, who goes on with it, and what becomes of a failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[4]
HOSTS = ("one", "two")
WAYS = ("main.yml", "chosen.yml")
# The phase of each test: three steps, of which some fail on some hosts.
STEPS = """
- name: First
  ansible.builtin.set_fact: {first: true}
- name: Second
  ansible.builtin.fail: {msg: it fails here}
  when: inventory_hostname in fails
- name: Third
  ansible.builtin.set_fact: {third: true}
"""
PLAY = """
- hosts: all
  gather_facts: false
  vars:
    ansible_connection: local
    fails: %(fails)s
  tasks:
    - name: Before
      ansible.builtin.set_fact:
        phase_failure: {host: "{{ inventory_hostname }}"}
      when: inventory_hostname in %(failed)s
    - name: The phase
      ansible.builtin.import_role:
        name: runbook.deploy.phase
        tasks_from: %(way)s
        rolespec_validate: false
      vars:
        phase_name: example
        phase_role: steps
        phase_wanted: %(wanted)s
    - name: After
      ansible.builtin.copy:
        content: "{{ {'first': first | default(false), 'third': third | default(false), 'failure': phase_failure | default({})} | to_json }}"
        dest: "%(directory)s/{{ inventory_hostname }}.json"
        mode: "0600"
"""


def run(directory: Path, *options: str) -> None:
    """Run the play in *directory* on ``HOSTS``."""
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
        "ANSIBLE_LOCAL_TEMP": str(directory / "local"),
        "ANSIBLE_REMOTE_TEMP": str(directory / "remote"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
    }
    argv = [sys.executable, "-m", "ansible", "playbook", "-i", ",".join(HOSTS), "play.yml", *options]
    argv += ["-e", f"ansible_python_interpreter={sys.executable}"]
    done = subprocess.run(
        argv, cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def played(directory: Path, way: str, **given: Any) -> dict[str, dict[str, Any]]:
    """Run the phase; return what each host has done of it, and ``phase_failure``."""
    tasks = directory / "roles" / "steps" / "tasks"
    tasks.mkdir(parents=True)
    (tasks / "main.yml").write_text(STEPS)
    facts = {"fails": [], "failed": [], "wanted": True, **given}
    texts = {name: json.dumps(value) for name, value in facts.items()}
    (directory / "play.yml").write_text(PLAY % {**texts, "way": way, "directory": directory})
    run(directory)
    return {host: json.loads((directory / f"{host}.json").read_text()) for host in HOSTS}


@pytest.mark.parametrize("way", WAYS)
def test_a_phase_is_done_on_every_host(tmp_path: Path, way: str) -> None:
    found = played(tmp_path, way)
    assert found == {host: {"first": True, "third": True, "failure": {}} for host in HOSTS}


@pytest.mark.parametrize("way", WAYS)
def test_it_does_not_begin_where_anything_has_failed_before_or_nothing_is_to_be_done(
    tmp_path: Path, way: str
) -> None:
    for number, given in enumerate(({"failed": ["one"]}, {"wanted": False})):
        place = tmp_path / str(number)
        place.mkdir()
        found = played(place, way, **given)
        assert [(entry["first"], entry["third"]) for entry in found.values()] == [(False, False)] * 2


@pytest.mark.parametrize("way", WAYS)
def test_what_fails_on_one_host_is_remembered_and_does_not_keep_another_from_ending_it(
    tmp_path: Path, way: str
) -> None:
    found = played(tmp_path, way, fails=["one"])
    assert (found["one"]["first"], found["one"]["third"]) == (True, False)
    failure = found["one"]["failure"]
    assert (failure["host"], failure["phase"], failure["reason"]) == ("one", "example", "it fails here")
    assert found["two"] == {"first": True, "third": True, "failure": {}}


def test_the_archive_is_sent_by_its_tag_alone(tmp_path: Path) -> None:
    """Its tasks have no tag of their own: it is that of the import above what includes them."""
    (play,) = [play for play in loaded("playbooks/pre_deploy.yml") if play["name"] == "Archive"]
    archive = tmp_path / "shop.tar"
    archive.write_text("the archive")
    (tmp_path / "scratch").mkdir()
    facts = {
        "ansible_connection": "local",
        "deploy_primary_host": "one",
        "app_archive": {"path": str(archive), "sha256": "abc"},
        "preflight_root": str(tmp_path),
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([{**play, "hosts": "all", "vars": facts}]))
    run(tmp_path, "--tags", "preflight", "-e", json.dumps(facts))
    assert (tmp_path / "scratch" / "abc.archive").read_text() == "the archive"


def loaded(path: str) -> Any:
    return yaml.safe_load((PROJECT / path).read_text(encoding="utf-8"))


def tasks_of(path: Path) -> Iterator[dict[str, Any]]:
    """Every task that importing the file *path* of a role makes part of a play."""
    waiting = list(yaml.safe_load(path.read_text(encoding="utf-8")))
    while waiting:
        task = waiting.pop(0)
        yield task
        waiting += [inner for part in ("block", "rescue", "always") for inner in task.get(part, [])]
        imported = task.get("ansible.builtin.import_tasks")
        if imported:
            waiting += yaml.safe_load((path.parent / imported["file"]).read_text(encoding="utf-8"))


def test_no_phase_that_is_part_of_the_play_imports_a_role() -> None:
    """``end_role`` goes on after the first role that is complete, which would be that one."""
    looked = 0
    for path in sorted(PROJECT.glob("playbooks/**/*.yml")):
        for play in loaded(str(path)):
            for task in play.get("tasks", []):
                role = task.get("ansible.builtin.import_role") or {}
                if role.get("name") != "runbook.deploy.phase" or role.get("tasks_from"):
                    continue
                looked += 1
                name = task["vars"]["phase_role"].removeprefix("runbook.deploy.")
                file = PROJECT / "roles" / name / "tasks" / task["vars"].get("phase_tasks", "main.yml")
                for inner in tasks_of(file):
                    assert "ansible.builtin.import_role" not in inner, f"{file}: {inner['name']}"
    assert looked > 5
