# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what the callback ``checklist`` prints, with ansible-playbook itself, into a pipe and on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
# Put together only when it runs: with -v the lines of a play are shown.
SECRET = "SEC" + "RET"
TICK, CROSS = "\u2714", "\u2718"
PLAY = """
- name: Deploy the shop
  hosts: web1
  gather_facts: false
  vars: {secret: "SEC{{ 'RET' }}"}
  tasks:
    - name: Phase release
      ansible.builtin.include_tasks: inner.yml
    - name: Phase backup
      ansible.builtin.include_tasks: inner.yml
      when: false
    - name: Remember
      ansible.builtin.set_fact: {nothing: "{{ 1 }}"}
    - name: Skipped
      ansible.builtin.command: "true"
      when: false
    - name: Ignored
      ansible.builtin.fail: {msg: may fail}
      ignore_errors: true
    - name: Each
      ansible.builtin.command: "test {{ item }} != two"
      loop: [one, two, three]
      changed_when: false
      ignore_errors: true
    - name: Hidden
      ansible.builtin.command: "echo {{ item }}"
      no_log: true
      loop: ["{{ secret }}"]
    - name: Hidden failure
      ansible.builtin.fail: {msg: "{{ secret }}"}
      no_log: true
      ignore_errors: true
    - name: Hidden fact
      ansible.builtin.set_fact: {rollback_outcome: "{{ secret }}"}
      no_log: true
    - name: Table
      ansible.builtin.debug: {msg: "one\\n  two"}
    - name: Away
      ansible.builtin.ping:
      delegate_to: nowhere
      ignore_unreachable: true
    - name: Break
      ansible.builtin.fail: {msg: "The first line.\\nThe second, see playbooks/status.yml."}
"""
INNER = """
- name: Change something
  ansible.builtin.command: "true"
  changed_when: true
- name: Look at something
  ansible.builtin.assert: {that: true, success_msg: web1 serves v2}
"""
INVENTORY = f"""
web1 ansible_connection=local ansible_python_interpreter={sys.executable}
nowhere ansible_connection=ssh ansible_host=127.0.0.1 ansible_port=1
"""
GOOD = """
- hosts: web1
  gather_facts: false
  tasks:
    - name: Sleep
      ansible.builtin.command: sleep 8
      changed_when: false
    - name: Warn
      ansible.builtin.assert: {that: true, success_msg: awake}
"""


@pytest.fixture
def site(tmp_path: Path):
    """A directory with plays, and what runs them: the words of a command and its environment."""
    (tmp_path / "play.yml").write_text(PLAY)
    (tmp_path / "inner.yml").write_text(INNER)
    (tmp_path / "good.yml").write_text(GOOD)
    (tmp_path / "hosts").write_text(INVENTORY)
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".ansible_dev"),
        "ANSIBLE_STDOUT_CALLBACK": "runbook.deploy.checklist",
        "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"),
        "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
        "PYTHONIOENCODING": "utf-8",
        "TERM": "xterm",
        "COLUMNS": "100",
    }
    environment.pop("NO_COLOR", None)
    environment["ANSIBLE_NOCOLOR"] = "1"

    def command(play, *options):
        return [sys.executable, "-m", "ansible", "playbook", "-i", "hosts", play, *options]

    return tmp_path, command, environment


def piped(site, play="play.yml", *options, **changes):
    directory, command, environment = site
    done = subprocess.run(
        command(play, *options),
        cwd=directory,
        env={**environment, **changes},
        capture_output=True,
        check=False,
        timeout=180,
    )
    return done.returncode, done.stdout.decode("utf-8", "replace") + done.stderr.decode()


class Terminal:
    """A run whose standard streams are a terminal of our own."""

    def __init__(self, site, play, **changes):
        directory, command, environment = site
        self.parent, child = pty.openpty()
        self.process = subprocess.Popen(
            command(play),
            cwd=directory,
            env={**environment, **changes},
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
        )
        os.close(child)
        self.text = ""

    def read(self, until=None, limit=120.0):
        """Read until the text is there, or the end."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if until and re.search(until, self.text):
                return True
            ready, _w, _x = select.select([self.parent], [], [], 1.0)
            if not ready:
                continue
            try:
                data = os.read(self.parent, 65536)
            except OSError:
                # EIO: nobody has the terminal open any more.
                return False
            self.text += data.decode("utf-8", "replace")
        return False

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=60)
        os.close(self.parent)


@pytest.fixture
def terminal(site):
    opened = []

    def start(play, **changes):
        opened.append(Terminal(site, play, **changes))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_the_list_of_a_run(site) -> None:
    code, text = piped(site)
    assert code == 2, text
    body, _empty, end = text.partition("\nFAILED after ")
    lines = [line for line in body.splitlines() if not line.startswith("[")]
    # What was done, with a mark, the host, the seconds and what was seen.
    steps = [re.split(r"  +", line.strip()) for line in lines if line.strip()[:1] in (TICK, CROSS)]
    assert [(step[0], step[1]) for step in steps] == [
        (f"{TICK} Change something", "web1"),
        (f"{TICK} Look at something", "web1"),
        (f"{CROSS} Ignored", "web1"),
        (f"{TICK} Each: one", "web1"),
        (f"{CROSS} Each: two", "web1"),
        (f"{TICK} Each: three", "web1"),
        (f"{TICK} Hidden: (censored due to no_log)", "web1"),
        (f"{CROSS} Hidden failure", "web1"),
        (f"{CROSS} Away", "web1 -> nowhere"),
        (f"{CROSS} Break", "web1"),
    ], text
    assert all(re.fullmatch(r"\d+\.\d s", step[2]) for step in steps), steps
    seen = [step[3] if len(step) > 3 else "" for step in steps]
    assert seen[0].startswith("changed")
    assert seen[1] == "web1 serves v2"
    assert seen[2] == "ignored: may fail"
    assert seen[4].startswith("ignored: ")
    assert "hidden by no_log" in seen[6]
    assert "hidden by no_log" in seen[7]
    assert seen[8].startswith("no answer: ")
    assert seen[9] == "The first line."
    # The phase that ran is there, the one that was skipped is not, and neither is what shows nothing.
    assert re.search(r"(?m)^\d\d:\d\d:\d\d  release$", body)
    for absent in ("backup", "Skipped", "Remember", "skipping", "PLAY", "TASK", SECRET, "\x1b", "\r"):
        assert absent not in text, absent
    assert "      one\n        two\n" in body
    assert "      The second, see " in body
    # It ends with the reason, the decision and the next command.
    ending = end.splitlines()
    assert re.fullmatch(r"[\d.]+ s: 5 steps done, 2 failed\.", ending[0]), ending
    assert [line.split()[0] for line in ending[1:]] == ["reason", "decision", "next"]
    assert "  reason    Break on web1: The first line." in end
    assert "decision  none: the run ended before one was made" in end
    assert re.search(r"next      ansible-playbook \S*status\S* -i hosts", end)


def test_with_v_everything_is_shown_and_still_no_secret(site) -> None:
    _code, text = piped(site, "play.yml", "-vvv")
    for part in ("TASK [Ignored]", "skipping:", "PLAY [Deploy the shop]", "PLAY RECAP"):
        assert part in text
    assert SECRET not in text
    assert "Hidden failure" in text


@pytest.mark.long
def test_without_utf_8_the_marks_are_ascii(site) -> None:
    _code, text = piped(site, PYTHONIOENCODING="ascii")
    assert "  [x] Look at something" in text
    assert "  [!] Break" in text
    assert TICK not in text


def test_the_decision_of_a_rollback_is_the_end(site) -> None:
    directory, *_rest = site
    (directory / "decided.yml").write_text(
        """
- hosts: web1
  gather_facts: false
  tasks:
    - name: Say how it ended
      ansible.builtin.set_fact:
        rollback_outcome:
          verdict: stopped
          failures: [{host: web2, phase: restart, reason: It answers 500.}]
          plan:
            level: stop
            reason: Nothing is safe.
            commands: [ansible-playbook playbooks/rollback.yml -i <inventory> -e rollback_level=code]
    - name: End
      ansible.builtin.fail: {msg: It answers 500.}
"""
    )
    code, text = piped(site, "decided.yml")
    assert code == 2
    end = text.partition("\nFAILED after ")[2]
    assert "  reason    restart on web2: It answers 500." in end
    assert "  decision  stop: Nothing is safe." in end
    assert re.search(r"  next      ansible-playbook \S*rollback\S* -i hosts -e rollback_level=code", end)


def test_what_was_rescued_does_not_fail_the_run(site) -> None:
    directory, *_rest = site
    (directory / "rescued.yml").write_text(
        """
- hosts: web1
  gather_facts: false
  tasks:
    - block:
        - name: Try
          ansible.builtin.fail: {msg: not yet}
      rescue:
        - name: Recover
          ansible.builtin.assert: {that: true, success_msg: well again}
"""
    )
    code, text = piped(site, "rescued.yml")
    assert code == 0
    assert "\nDONE after " in text
    assert "next  " not in text


def test_on_a_terminal_what_runs_is_shown_and_taken_away(terminal) -> None:
    run = terminal("good.yml")
    assert run.read(r"\r\x1b\[K +\u2026 \d+ s  Sleep on web1")
    first = run.text
    # It is written anew, with more seconds.
    number = int(re.findall(r"\u2026 (\d+) s  Sleep", first)[-1])
    assert run.read(rf"\u2026 ({'|'.join(str(number + n) for n in range(1, 9))}) s  Sleep on web1"), run.text
    run.read()
    assert run.process.wait(timeout=60) == 0
    # What a terminal is left with: each line without what was erased of it.
    shown = [line.rpartition("\x1b[K")[2].strip("\r") for line in run.text.split("\n")]
    assert any(line.startswith(f"  {TICK} Sleep") for line in shown), shown
    assert any(line.startswith(f"  {TICK} Warn") and line.endswith("awake") for line in shown), shown
    assert not any("\u2026" in line for line in shown), shown
    assert any(line.startswith("DONE after") for line in shown)


def test_an_interrupted_run_leaves_the_terminal_clean_and_no_thread(terminal) -> None:
    run = terminal("good.yml")
    assert run.read(r"\u2026 \d+ s  Sleep on web1")
    os.killpg(run.process.pid, signal.SIGINT)
    run.read()
    assert run.process.wait(timeout=60) != 0
    shown = [line.rpartition("\x1b[K")[2].strip("\r") for line in run.text.split("\n")]
    assert not any("\u2026" in line for line in shown), shown


@pytest.mark.long
def test_a_terminal_that_cannot_erase_gets_plain_lines(terminal) -> None:
    run = terminal("good.yml", TERM="dumb")
    run.read()
    assert run.process.wait(timeout=60) == 0
    assert "\x1b" not in run.text
    assert f"  {TICK} Sleep" in run.text
