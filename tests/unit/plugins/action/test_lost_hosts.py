# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays go on where a host is lost. The collection's own modules make that a failure of their task (their action,
``on_host``); any other task that reaches a host is followed by one that does."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[4]
# Setup runs in a play that ends with a lost host.
FILES = [path for path in sorted(PROJECT.glob("roles/*/tasks/*.yml")) if "setup" not in path.parts]
ANSWER = "A host that does not answer"
# Of Ansible's own tasks, those that stay on the controller.
LOCAL = ("set_fact", "fail", "debug", "meta", "include_tasks", "include_role", "import_tasks", "import_role")


def lists(tasks: list[dict]):
    """Every list of tasks of a file: its own, and those of its blocks."""
    yield tasks
    for task in tasks:
        for part in ("block", "rescue", "always"):
            yield from lists(task.get(part, []))


def reaches(task: dict) -> bool:
    """Whether a task of Ansible's own is executed on the host."""
    modules = [key.rpartition(".")[2] for key in task if key.startswith("ansible.builtin.")]
    return any(module not in LOCAL for module in modules)


@pytest.mark.parametrize("path", FILES, ids=[f"{path.parts[-3]}-{path.stem}" for path in FILES])
def test_every_task_that_reaches_a_host_is_followed_by_one_that_sees_its_loss(path):
    for tasks in lists(yaml.safe_load(path.read_text(encoding="utf-8")) or []):
        for position, task in enumerate(tasks):
            if not reaches(task):
                continue
            follower = tasks[position + 1] if position + 1 < len(tasks) else {}
            assert str(follower.get("name")).startswith(ANSWER), f"after {task['name']!r}"
            assert f"{task['register']}.unreachable | default(false)" in str(follower["when"]), task["name"]


def test_one_does():
    assert any(reaches(t) for path in FILES for part in lists(yaml.safe_load(path.read_text())) for t in part)


def test_no_task_has_another_collections_module():
    for path in FILES:
        for part in lists(yaml.safe_load(path.read_text(encoding="utf-8")) or []):
            for task in part:
                modules = [key for key in task if "." in key]
                assert all(key.startswith(("runbook.deploy.", "ansible.builtin.")) for key in modules), task


@pytest.mark.parametrize(
    "name",
    ["pre_deploy", "deploy", "plays/switch", "resume", "rollback", "status", "flags", "maintenance"],
)
def test_every_play_that_reaches_hosts_goes_on_without_them(name):
    path = PROJECT / "playbooks" / f"{name}.yml"
    plays = [play for play in yaml.safe_load(path.read_text(encoding="utf-8")) if "hosts" in play]
    reaching = [play for play in plays if play["tasks"][0]["name"] != "Check the contract"]
    assert reaching
    for play in reaching:
        assert play.get("ignore_unreachable") is True, play["name"]


def test_the_wrapper_knows_the_loss_by_the_answer_or_by_that_name():
    text = (PROJECT / "roles/phase/tasks/failed.yml").read_text(encoding="utf-8")
    assert f"ansible_failed_result.unreachable_host | default('{ANSWER}' in ansible_failed_task.name" in text
