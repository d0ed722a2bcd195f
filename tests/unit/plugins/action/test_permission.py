# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/deploy.yml itself refuses what nobody may deploy now, and leaves nothing on the host."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def deploy(short_path):
    """Return a function that runs a playbook for an application of this host, and returns its exit code and its text."""
    repository = short_path / "repository"
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "init", "-q", "-b", "main", str(repository)], check=True)
    (repository / "requirements.txt").write_text("")
    for words in (["add", "."], ["commit", "-qm", "First"], ["tag", "v1"]):
        subprocess.run([*git, *words], check=True)
    root = short_path / "srv" / "shop"
    for name in ("releases", "deployments", "shared", "scratch", "run", "environments", "backups"):
        (root / name).mkdir(parents=True)
    variables = {
        "app_name": "shop",
        "app_stage": "production",
        "app_root": str(root),
        "app_user": "",
        "app_repository": f"file://{repository}",
        "app_version": "v1",
        "app_framework": "none",
        "app_services": [{"name": "web", "manager": "process", "command": "false {socket}"}],
        # The release cannot be built: it ends soon after it has begun.
        "app_python": "/nonexistent/python3",
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
    }
    inventory = {"app": {"hosts": {"web1": None}, "vars": variables}}
    (short_path / "hosts.json").write_text(json.dumps(inventory))

    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".ansible_dev"),
        "ANSIBLE_LOCAL_TEMP": str(short_path / "local"),
        "ANSIBLE_REMOTE_TEMP": str(short_path / "remote"),
        "ANSIBLE_NOCOLOR": "1",
        "GIT_ALLOW_PROTOCOL": "file",
    }

    def argv(playbook):
        path = str(ROOT / "playbooks" / f"{playbook}.yml")
        return [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.json", path]

    def run(*options, playbook="deploy"):
        done = subprocess.run(
            [*argv(playbook), *options],
            cwd=short_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    def on_terminal(options, answer):
        """Run the playbook on a terminal at which somebody answers its question; return its text."""
        parent, child = pty.openpty()
        process = subprocess.Popen(
            [*argv("deploy"), *options],
            cwd=short_path,
            env={**environment, "ANSIBLE_STDOUT_CALLBACK": "runbook.deploy.checklist", "TERM": "xterm"},
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
            # It is asked only in the foreground of its own terminal.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(child)
        text, end = "", time.monotonic() + 240
        while time.monotonic() < end:
            ready, _writable, _broken = select.select([parent], [], [], 2.0)
            if ready:
                try:
                    text += os.read(parent, 65536).decode("utf-8", "replace")
                except OSError:
                    break
            elif "Name:" in text and "Check the contract" not in text:
                # What is typed before it is listened to is thrown away, so it is typed until somebody did.
                os.write(parent, f"{answer}\r".encode())
        process.kill()
        process.wait(timeout=60)
        os.close(parent)
        return text

    run.root = root
    run.on_terminal = on_terminal
    return run


def option(**values):
    return ["-e", json.dumps(values)]


def test_a_missing_approval_and_a_shut_window_stop_it_before_anything_is_begun(deploy):
    day = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=2)
    window = [{"days": [day.strftime("%a").lower()], "from": "12:00", "to": "13:00"}]
    rules = option(app_window=window, app_approvals=["tech_lead", "dba"])
    code, text = deploy(*rules, *option(deployment_approvals={"tech_lead": "ann"}))
    assert code != 0
    assert "REFUSED, NOTHING WAS CHANGED" in text, text
    assert "the approval of dba, which is missing" in text
    assert "app_window opens next on" in text
    assert list((deploy.root / "deployments").iterdir()) == []
    assert list((deploy.root / "releases").iterdir()) == []
    assert not (deploy.root / "deployment.lock").exists()

    code, text = deploy(*rules, playbook="pre_deploy")
    assert code == 0, text
    assert "A deployment would be refused now." in text

    given = option(
        deployment_approvals={"tech_lead": "ann", "dba": "bob"}, deployment_outside_window="the shop is down"
    )
    deploy(*rules, *given)
    # What counts is that it was begun, with who answers for it.
    (path,) = (deploy.root / "deployments").glob("*.json")
    record = json.loads(path.read_text())
    assert [(one["role"], one["name"]) for one in record["approvals"]] == [
        ("tech_lead", "ann"),
        ("dba", "bob"),
    ]
    assert record["outside_window"] == "the shop is down"


@pytest.mark.long
def test_a_person_at_the_terminal_approves_and_another_one_does_not(deploy):
    asked = option(app_approvals=["tech_lead", "dba"], deployment_approvals={"tech_lead": "ann"})
    asked += ["-e", "deployment_ask_approvals=true"]
    text = deploy.on_terminal(asked, "")
    assert "Who approves v1 of shop to production as dba? Name:" in text, text
    assert "as tech_lead?" not in text
    assert "the approval of dba, which is missing" in text
    assert list((deploy.root / "deployments").iterdir()) == []
    deploy.on_terminal(asked, "bob b")
    (path,) = (deploy.root / "deployments").glob("*.json")
    assert [(one["role"], one["name"]) for one in json.loads(path.read_text())["approvals"]] == [
        ("tech_lead", "ann"),
        ("dba", "bob b"),
    ]


def test_where_there_is_no_terminal_nobody_is_asked(deploy):
    code, text = deploy(*option(app_approvals=["dba"]), "-e", "deployment_ask_approvals=true")
    assert code != 0
    assert "the approval of dba, which is missing" in text
