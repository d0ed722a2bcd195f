# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role that begins and ends a run tells people, by ansible-playbook itself, and never fails because of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
SECRET = "T0001-hidden-path"
PLAY = """
- hosts: localhost
  gather_facts: false
  vars:
    app_notifications: {notifications}
    app_root: {root}/srv/shop
    app_name: shop
    app_stage: production
    app_version: v2.7
    app_adopt: {{}}
    app_url: https://shop.example.org
    app_repository: /srv/shop.git
    app_release_tag: {{}}
    app_contacts: []
    app_report_store: {root}/reports
    deploy_operator: alice
    rollback_outcome: {{}}
  tasks:
    - name: Begin
      ansible.builtin.import_role:
        name: runbook.deploy.report
        tasks_from: begin.yml
        rolespec_validate: false
    - name: Close the record, as the role rollback does
      runbook.deploy.deployment_record:
        state: finished
        root: "{{{{ app_root }}}}"
        record: "{{{{ report_begun.record }}}}"
        verdict: abandoned
        notifications: "{{{{ [report_told_begin] if report_told_begin.event | default('', true) else [] }}}}"
      when: not ansible_check_mode
      register: closed
    - name: End
      block:
        - name: End
          ansible.builtin.include_role:
            name: runbook.deploy.report
            rolespec_validate: false
          vars:
            report_verdict: "{{{{ 'checked' if ansible_check_mode else 'abandoned' }}}}"
            report_record: "{{{{ closed.record | default({{}}) }}}}"
            report_failures: "{{{{ [] if ansible_check_mode else [{{'host': 'web1', 'phase': 'backup', 'reason': 'The disk is full.'}}] }}}}"
      rescue:
        - name: The verdict itself fails the run
          ansible.builtin.debug:
            msg: "{{{{ ansible_failed_task.name }}}}: {{{{ ansible_failed_result.msg }}}}"
    - name: It went on
      ansible.builtin.debug:
        msg: the end is reached
"""


class Hook(BaseHTTPRequestHandler):
    """Takes what is sent to /good/…, and nothing else."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, json.loads(body)))
        self.send_response(200 if self.path.startswith("/good/") else 500)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hook():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the play with these notifications and returns what the terminal shows."""

    def start(notifications, *options):
        (tmp_path / "srv/shop/deployments").mkdir(parents=True, exist_ok=True)
        (tmp_path / "play.yml").write_text(
            PLAY.format(notifications=json.dumps(notifications), root=tmp_path)
        )
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".ansible_dev"),
            "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"),
            "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
            "ANSIBLE_NOCOLOR": "1",
        }
        argv = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local"]
        argv += ["-e", f"ansible_python_interpreter={sys.executable}", "play.yml", *options]
        done = subprocess.run(
            argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=180
        )
        text = done.stdout + done.stderr
        assert done.returncode == 0, text
        assert "the end is reached" in text
        if "--check" not in options:
            assert "End the run with its verdict: deployment" in " ".join(text.split())
        return text

    return start


def stored(tmp_path):
    """Return the record on the host, the controller's copy of it, and the report."""
    (host,) = (tmp_path / "srv/shop/deployments").glob("*.json")
    copy = tmp_path / "reports/shop/production" / host.name
    return json.loads(host.read_text()), json.loads(copy.read_text()), copy.with_suffix(".md").read_text()


def test_begin_and_end_are_told_and_kept_and_a_server_that_fails_fails_nothing(hook, run, tmp_path):
    address = f"http://127.0.0.1:{hook.server_port}"
    text = run(
        [
            {"name": "ops", "kind": "webhook", "url": f"{address}/good/{SECRET}", "timeout": 60},
            {"name": "broken", "kind": "slack", "url": f"{address}/bad/{SECRET}", "timeout": 60},
        ],
        "-vvv",
    )
    good = [document for path, document in hook.seen if path.startswith("/good/")]
    assert [(one["event"], one["verdict"]) for one in good] == [
        ("start", ""),
        ("failure", "FAILED, NOTHING LIVE WAS CHANGED"),
    ]
    assert all((one["version"], one["operator"], one["id"] != "") == ("v2.7", "alice", True) for one in good)
    assert good[1]["reason"] == "backup on web1: The disk is full."
    record, copy, report = stored(tmp_path)
    assert Path(good[1]["report"]).read_text() == report
    assert Path(good[1]["record"]).exists()
    # The record on the host is closed when the end is told.
    assert [told["event"] for told in record["notifications"]] == ["start"]
    assert [(told["event"], told["sent"]) for told in copy["notifications"]] == [
        ("start", ["ops"]),
        ("failure", ["ops"]),
    ]
    assert [told["unsent"][0]["name"] for told in copy["notifications"]] == ["broken", "broken"]
    assert report.count("it answered 500") == 2
    assert "WARNING" in text
    assert "Notification 'broken' of the event failure was not sent" in " ".join(text.split())
    for shown in (text, json.dumps(record), json.dumps(copy), report):
        assert SECRET not in shown


def test_what_cannot_even_be_read_does_not_stop_a_deployment(run, tmp_path):
    run(["ops"])
    _record, copy, report = stored(tmp_path)
    assert "Nobody was told" in report
    assert [told["unsent"][0]["name"] for told in copy["notifications"]] == ["app_notifications"] * 2


def test_check_mode_and_an_empty_list_tell_nobody(hook, run, tmp_path):
    run([{"name": "ops", "kind": "webhook", "url": f"http://127.0.0.1:{hook.server_port}/good/x"}], "--check")
    assert hook.seen == []
    run([])
    assert [record["notifications"] for record in stored(tmp_path)[:2]] == [[], []]
