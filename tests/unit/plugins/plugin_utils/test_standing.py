# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands on a host for the time of a run: real processes, and in the place of ssh a shell that runs what ssh would be given."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.runbook.deploy.plugins.plugin_utils import (
    _standing,
    _standing_holder,
    _standing_host,
)

COLLECTION = Path(__file__).resolve().parents[4]
PATIENCE = 30


def wait(condition, what):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, f"in {PATIENCE} s it did not become true that {what}"
        time.sleep(0.02)


def gone(pid):
    """Whether no process *pid* works any more; nobody may have waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def words(source=None):
    """The command of what stands, as ssh would start it."""
    size = len(Path(_standing_host.__file__).read_bytes())
    boot = source or f"import sys; exec(compile(sys.stdin.buffer.read({size}), 'standing', 'exec'))"
    return [sys.executable, "-u", "-c", boot]


class Held:
    """What stands, held by a process of its own, and who asks it."""

    def __init__(self, directory, command=None):
        self.path = str(directory / "socket")
        self.life = os.pipe()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path)
            listener.listen()
            _standing_holder.fork(listener, self.life[0], command or words())

    def connect(self):
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.path)
        return client

    def ask(self, script):
        with self.connect() as client:
            return _standing.asked(client, script.encode())

    def end(self):
        for handle in self.life:
            os.close(handle)
        self.life = ()


@pytest.fixture
def held(tmp_path):
    """``held()`` begins one."""
    begun = []

    def begin(*arguments):
        begun.append(Held(tmp_path, *arguments))
        return begun[-1]

    yield begin
    for one in begun:
        if one.life:
            one.end()


def test_a_script_has_what_it_has_with_a_python_of_its_own(held):
    one = held()
    script = "import sys, json; print(json.dumps([sys.argv, __name__, sys.stdin.read()])); print('no', file=sys.stderr); sys.exit(3)"
    kind, code, output, errors = one.ask(script)
    assert (kind, code, errors) == (_standing.ANSWERED, 3, b"no\n")
    assert json.loads(output) == [[""], "__main__", ""]
    # What it leaves to its end is done.
    left = one.ask("import atexit; atexit.register(print, 'at the end')")
    assert left == (_standing.ANSWERED, 0, b"at the end\n", b"")
    kind, code, output, errors = one.ask("raise ValueError('as ever')")
    assert (kind, code, output) == (_standing.ANSWERED, 1, b"")
    assert errors.endswith(b"ValueError: as ever\n")


def test_no_script_sees_what_another_has_changed(held):
    one = held()
    one.ask(
        "import os, json, builtins; os.environ['LEFT'] = 'x'; json.left = 1; builtins.left = 1; os.umask(0); os.chdir('/')"
    )
    here = os.getcwd()
    seen = "import os, json; print(os.environ.get('LEFT'), hasattr(json, 'left'), 'left' in dir(__builtins__), os.umask(0) == 0, os.getcwd())"
    assert one.ask(seen)[2].decode() == f"None False False False {here}\n"


def test_output_of_any_size_and_a_script_of_any_size_arrive(held):
    kind, code, output, errors = held().ask(
        "text = 'x' * 3000000\nimport sys\nsys.stderr.write(text)\nprint(text)\n" + "#" * 2000000
    )
    assert (kind, code, len(output), len(errors)) == (_standing.ANSWERED, 0, 3000001, 3000000)


def test_a_script_that_is_killed_has_said_what_it_said(held):
    one = held()
    kind, code, output, _errors = one.ask("import os; os.write(1, b'before'); os.kill(os.getpid(), 9)")
    assert (kind, code, output) == (_standing.ANSWERED, -signal.SIGKILL, b"before")
    assert one.ask("print('on')")[2] == b"on\n"


def test_what_a_script_leaves_running_holds_nothing_up(held):
    one = held()
    script = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid)"
    begun = time.monotonic()
    _kind, _code, output, _errors = one.ask(script)
    os.kill(int(output), signal.SIGKILL)
    assert time.monotonic() - begun < 300


def test_everything_ends_with_the_run(held):
    one = held()
    standing = int(one.ask("import os; print(os.getppid())")[2])
    holding = int(Path(f"/proc/{standing}/stat").read_text().rpartition(")")[2].split()[1])
    one.end()
    wait(lambda: gone(standing) and gone(holding), "what stands, and what holds it, have ended")


def test_a_script_goes_on_when_the_connection_is_lost_and_finds_nobody_who_reads(held, tmp_path):
    # What stands is not ended by a signal: as with ssh, its input is closed.
    one = held(["/bin/sh", "-c", f"cat | {shlex.join(words())}"])
    script = (
        "import os, select, pathlib\n"
        f"pathlib.Path({str(tmp_path / 'pids')!r}).write_text(f'{{os.getppid()}}\\n')\n"
        "poll = select.poll(); poll.register(1, 0)\n"
        f"found = poll.poll({PATIENCE * 1000})\n"
        f"pathlib.Path({str(tmp_path / 'after')!r}).write_text(str(found[0][1] & select.POLLERR))\n"
    )
    client = one.connect()
    client.sendall(_standing.SIZE.pack(len(script)) + script.encode())
    wait((tmp_path / "pids").exists, "the script runs")
    one.end()
    wait((tmp_path / "after").exists, "the script has seen the end of the connection, and worked on")
    assert (tmp_path / "after").read_text() == "8"
    client.close()


def test_what_stands_is_killed_while_a_script_runs(held, tmp_path):
    one = held()
    script = f"import os, pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch(); os.kill(os.getppid(), 9)"
    kind, code, _output, _errors = one.ask(script)
    assert (kind, code) == (_standing.LOST, -signal.SIGKILL)
    assert (tmp_path / "ran").exists()
    # Nothing is sent to nobody, so that the next can go another way.
    assert one.ask("print(1)")[0] == _standing_holder.GONE


def test_a_connection_that_is_never_made_is_refused_with_its_reason(held):
    one = held(words("import sys; sys.stderr.write('No route to host'); sys.exit(255)"))
    found = one.ask("print(1)")
    assert found == (_standing.REFUSED, _standing.NO_CONNECTION, b"", b"No route to host")
    assert one.ask("print(1)") == found


# --- the task that asks


@pytest.fixture
def asking(tmp_path, monkeypatch):
    """``asking(command)``: ask what *command* starts, as a task does; returns what `reply` returns."""
    monkeypatch.setattr(_standing.constants, "DEFAULT_LOCAL_TMP", str(tmp_path))
    monkeypatch.setattr(_standing.Life, "ends", os.pipe())
    options = {"reconnection_retries": 0, "host": "web1"}
    action = SimpleNamespace(_connection=SimpleNamespace(get_option=options.get))
    yield lambda script, command=None: _standing.reply(action, command or words(), script.encode())
    for handle in _standing.Life.ends:
        os.close(handle)


def test_tasks_of_a_run_ask_the_same_one(asking):
    script = "import os; print(os.getppid())"
    first = asking(script)
    assert first[0] == 0
    assert asking(script) == first


def test_a_host_that_cannot_be_reached_is_said_as_ansible_core_says_it(asking):
    command = words("import sys; sys.stderr.write('No route to host'); sys.exit(255)")
    with pytest.raises(
        AnsibleConnectionFailure, match='remote host "web1".*reached over ssh: No route to host'
    ):
        asking("print(1)", command)


def test_where_nothing_can_stand_the_task_goes_another_way(asking):
    """As where sudo asks for a password."""
    assert asking("print(1)", words("raise SystemExit(1)")) is None


def test_a_connection_that_is_lost_meanwhile_is_no_reason_to_run_the_module_again(asking):
    with pytest.raises(AnsibleConnectionFailure, match="web1"):
        asking("import os; os.kill(os.getppid(), 9)")
    # Later tasks go another way, whatever becomes of them there.
    assert asking("print(1)") is None


def test_a_task_that_was_ended_leaves_the_others_another_way(asking, monkeypatch):
    """Its module may still work, and nobody is to wait for that."""

    def late(*_arguments):
        raise TimeoutError("the task's time is up")

    with monkeypatch.context() as patched:
        patched.setattr(_standing, "asked", late)
        with pytest.raises(TimeoutError):
            asking("print(1)")
    assert asking("print(1)") is None


def test_what_is_begun_early_is_what_tasks_find(asking, monkeypatch):
    begun = []
    monkeypatch.setattr(_standing, "usable", lambda _action, command: command == "/usr/bin/python3")
    monkeypatch.setattr(_standing, "words_of", lambda *_arguments: words())
    monkeypatch.setattr(
        _standing, "fork", lambda *arguments: begun.append(1) or _standing_holder.fork(*arguments)
    )
    action = SimpleNamespace(_low_level_execute_command=None)
    for interpreter in (None, "auto_silent", "/usr/bin/python3"):
        _standing.begin(action, interpreter)
    assert begun == [1]
    assert asking("print(1)") == (0, b"1\n", b"")
    assert begun == [1]


# --- the whole


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run a play of two tasks on a host whose ssh is a shell; returns what is known of it, by how it was run."""
    directory = tmp_path_factory.mktemp("standing")
    ssh = directory / "ssh"
    ssh.write_text(f'#!/bin/sh\nfor last; do :; done\necho $$ >> {directory}/logins\nexec sh -c "$last"\n')
    ssh.chmod(0o755)
    task = {
        "runbook.deploy.deployment_lock": {"root": str(directory / "none"), "state": "absent"},
        "register": "first",
    }
    again = {**task, "register": "second"}
    told = {
        "ansible.builtin.copy": {"content": "{{ [first, second] | to_json }}", "dest": f"{directory}/told"}
    }
    told.update(connection="local", vars={"ansible_connection": "local"})
    variables = {"ansible_ssh_executable": str(ssh), "ansible_python_interpreter": sys.executable}
    play = {"hosts": "all", "gather_facts": False, "vars": variables, "tasks": [task, again, told]}
    book = directory / "book.yml"
    book.write_text(json.dumps([play]))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
        "ANSIBLE_CONFIG": str(COLLECTION / "ansible.cfg"),
        "ANSIBLE_HOME": str(directory / "home"),
    }

    def run(*options):
        for name in ("logins", "told"):
            (directory / name).unlink(missing_ok=True)
        command = [sys.executable, "-m", "ansible", "playbook", "-i", "web1,", str(book), *options]
        done = subprocess.run(
            command,
            cwd=COLLECTION,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return SimpleNamespace(
            logins=[int(line) for line in (directory / "logins").read_text().split()],
            answers=json.loads((directory / "told").read_text()),
        )

    return run


def test_a_run_logs_in_once_and_leaves_nothing(runs):
    found = runs()
    assert len(found.logins) == 1
    wait(lambda: gone(found.logins[0]), "what stood has ended")
    # A verbose run shows how each module is sent; the answers are the same.
    other = runs("-vvv")
    assert len(other.logins) > 1
    for answer in other.answers:
        answer.pop("invocation", None)
    assert other.answers == found.answers
