# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gate of commands against real processes: what each fault is taken for, and that nothing of a command stays."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils import _bounded
from ansible_collections.runbook.deploy.plugins.module_utils import _command_gate as gate
from ansible_collections.runbook.deploy.plugins.module_utils._bounded import Output, excerpt, run_bounded
from ansible_collections.runbook.deploy.plugins.module_utils._command_spec import parse_check, shell_operator
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._processes import command, pids
from ansible_collections.runbook.deploy.plugins.modules import command_gate

SECRET = "word-that-nobody-may-see"


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def options(**given: Any) -> dict[str, Any]:
    return {**{name: spec.get("default") for name, spec in gate.OPTIONS.items()}, **given}


def ask(check: dict[str, Any], seconds: float = 10.0, **given: Any) -> dict[str, Any]:
    (found,) = gate.prober(options(checks=[check], **given), False)(seconds)
    return found


def living(word: str) -> list[int]:
    """The processes that have *word* in their command line, this one apart."""
    return [pid for pid in pids() if pid != os.getpid() and word in command(pid)]


def gone(word: str, within: float = 1.0) -> bool:
    end = time.monotonic() + within
    while living(word) and time.monotonic() < end:
        time.sleep(0.02)
    return not living(word)


PRINTS_JSON = python('print(\'{"failed": 0, "coverage": 87.5, "name": "a", "empty": null}\')')
FLOOD = "import sys\nfor _ in range(400): sys.stdout.write('x' * 65536)"


@pytest.mark.parametrize(
    ("check", "verdict", "said"),
    [
        ({"command": "true"}, "pass", ""),
        ({"command": "false"}, "fail", "exit code 1"),
        ({"command": python("raise SystemExit(3)"), "exit_code": [0, 3]}, "pass", ""),
        ({"command": "true", "exit_code": 1}, "fail", "exit code 0"),
        ({"command": python("import os; os.kill(os.getpid(), 9)")}, "fail", "killed by signal 9"),
        ({"command": "no-such-program-here --x"}, "inconclusive", "is not found"),
        ({"command": ["/etc/passwd"]}, "inconclusive", "may not be executed"),
        ({"command": ["/etc"]}, "inconclusive", "may not be executed"),
        ({"command": "true", "chdir": "/no/such/place"}, "inconclusive", "directory '/no/such/place'"),
        ({"command": ["sh", "-c", "no-such-program-here"]}, "inconclusive", "could not start a program"),
        ({"command": ["sh", "-c", "exit 127"], "exit_code": 127}, "pass", ""),
        ({"command": "echo all good", "contains": "all good"}, "pass", ""),
        ({"command": "echo all bad", "contains": "all good"}, "fail", "no 'all good'"),
        ({"command": "echo all good", "contains": "good", "stream": "stderr"}, "fail", "no 'good'"),
        ({"command": "echo ERROR: x", "absent": ["WARN", "ERROR"]}, "fail", "'ERROR' is in it"),
        ({"command": ["sh", "-c", "echo ERROR >&2"], "absent": "ERROR"}, "fail", "'ERROR' is in it"),
        ({"command": ["sh", "-c", "echo ERROR >&2"], "absent": "ERROR", "stream": "stdout"}, "pass", ""),
        ({"command": "echo build 12", "matches": r"^build \d+$"}, "pass", ""),
        ({"command": "echo build x", "matches": r"^build \d+$"}, "fail", "no match"),
        ({"command": PRINTS_JSON, "json": {"failed": 0, "coverage": ">= 80"}}, "pass", ""),
        ({"command": PRINTS_JSON, "json": {"coverage": ">= 90"}}, "fail", "coverage is 87.5"),
        ({"command": PRINTS_JSON, "json": {"missing": "< 1"}}, "fail", "missing is missing"),
        ({"command": PRINTS_JSON, "json": {"empty": "< 1"}}, "inconclusive", "empty is null"),
        ({"command": "echo no json", "json": {"a": 1}}, "fail", "no JSON"),
        ({"command": python("print('[' * 100000)"), "json": {"a": 1}}, "fail", "no JSON"),
        ({"command": "echo TOTAL 87%", "number": {r"TOTAL (\d+)%": ">= 80%"}}, "pass", ""),
        ({"command": "echo TOTAL 87%", "number": {r"\d+%": ">= 90%"}}, "fail", "87 is not >= 90"),
        ({"command": "printf 'avg 5\\navg 500\\n'", "number": {r"avg (\d+)": "< 100"}}, "fail", "500"),
        ({"command": "echo 42", "number": "< 100"}, "pass", ""),
        ({"command": "echo nothing", "number": "< 100"}, "inconclusive", "no number"),
        ({"command": "echo nothing", "number": {r"avg (\d+)": "< 100"}}, "inconclusive", "no number"),
        ({"command": "echo avg nan", "number": {r"avg (\w+)": "< 100"}}, "inconclusive", "no number"),
        ({"command": "sleep 0.4", "max_seconds": 0.2}, "fail", "more than 0.2 s"),
        ({"command": "sleep 60", "timeout": 0.3}, "fail", "was killed"),
        ({"command": python(FLOOD)}, "pass", ""),
        ({"command": python(FLOOD), "contains": "y"}, "inconclusive", "long output"),
        ({"command": python(FLOOD), "contains": "xx"}, "pass", ""),
        ({"command": python(FLOOD), "absent": "y"}, "inconclusive", "too long"),
        ({"command": python(FLOOD), "absent": "xx"}, "fail", "is in it"),
        ({"command": python(FLOOD), "json": {"a": 1}}, "inconclusive", "too long"),
        ({"command": python("import os; os.write(1, bytes(range(256)) * 4)")}, "pass", ""),
        ({"command": python("import sys; sys.exit(bool(sys.stdin.read()))")}, "pass", ""),
    ],
)
def test_each_fault_has_its_verdict(check, verdict, said):
    found = ask({"name": "it", **check})
    assert found["verdict"] == verdict, found
    assert said in found["message"]
    assert bool(found["message"]) is (verdict != "pass")
    assert "\x00" not in found["observed"]


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({}, "command must be a command"),
        ({"command": []}, "command must be a command"),
        ({"command": ""}, "command must be a command"),
        ({"command": ["x", None]}, "list of words"),
        ({"command": ["x", True]}, "list of words"),
        ({"command": "true && false"}, "'&&', but no shell"),
        ({"command": "true;false"}, "';', but no shell"),
        ({"command": "true\nfalse"}, "no shell"),
        ({"command": "echo $HOME"}, "no shell"),
        ({"command": 'echo "$(id)"'}, "no shell"),
        ({"command": "echo 'open"}, "divided into words"),
        ({"command": "true", "contain": "x"}, "did you mean 'contains'"),
        ({"command": "true", "exit_code": "0"}, "exit codes"),
        ({"command": "true", "exit_code": []}, "empty list"),
        ({"command": "true", "matches": "("}, "regular expression"),
        ({"command": "true", "number": {"(": "< 1"}}, "regular expression"),
        ({"command": "true", "number": "< x"}, "expected a number"),
        ({"command": "true", "json": {"a..b": 1}}, "JSON path"),
        ({"command": "true", "chdir": "here"}, "absolute"),
        ({"command": "true", "severity": "high"}, "severity"),
        ({"command": "true", "timeout": 0}, "above 0"),
        ({"command": "true", "harmless": "yes"}, "true or false"),
    ],
)
def test_a_typing_error_is_found_before_anything_runs(check, said):
    with pytest.raises(Problem, match=r"^checks\[0\]") as raised:
        gate.prober(options(checks=[check]), False)
    assert said in raised.value.message


@pytest.mark.parametrize(
    "text", ["grep 'a|b' x", r"grep a\|b x", 'say "a; b"', "say 'it costs $HOME'", "grep foo$ x", "a ''"]
)
def test_what_is_quoted_needs_no_shell(text):
    assert shell_operator(text) == ""
    assert parse_check({"command": text}, "it").argv


# Nothing of a command stays


@pytest.mark.parametrize("asked", ["group", "session", "bare", "deaf", "stopped", "orphan"])
def test_a_killed_command_goes_with_all_that_it_started(asked, tmp_path):
    word = f"rb-{os.getpid()}-{asked}-{time.monotonic_ns()}"
    sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(60)", word]
    code = {
        "group": f"import subprocess; subprocess.Popen({sleeper!r}).wait()",
        "session": f"import subprocess; subprocess.Popen({sleeper!r}, start_new_session=True).wait()",
        "bare": f"import subprocess; subprocess.Popen({sleeper!r}, start_new_session=True, env={{}}).wait()",
        "deaf": "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"import subprocess; subprocess.Popen({sleeper!r}); time.sleep(60)",
        "stopped": f"import os, signal, subprocess; p = subprocess.Popen({sleeper!r}); os.kill(p.pid, signal.SIGSTOP); p.wait()",
        # Its parent is gone and its session is its own: only the mark in its environment tells whose it is.
        "orphan": "import os, subprocess, time\nif os.fork() == 0:\n    os.setsid()\n    "
        f"subprocess.Popen({sleeper!r}, start_new_session=True)\n    os._exit(0)\ntime.sleep(60)",
    }[asked]
    begun = time.monotonic()
    found = ask({"command": [*python(code), word], "timeout": 0.7})
    assert time.monotonic() - begun < 0.7 + 1.0
    assert found["verdict"] == "fail"
    assert "was killed with all that it had started" in found["message"]
    assert gone(word)


def test_what_a_command_leaves_behind_is_not_waited_for_and_goes_too():
    word = f"rb-{os.getpid()}-behind-{time.monotonic_ns()}"
    sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(60)", word]
    begun = time.monotonic()
    found = ask({"command": python(f"import subprocess; subprocess.Popen({sleeper!r}); print('done')")})
    assert found["verdict"] == "pass"
    assert "done" in found["observed"]
    assert time.monotonic() - begun < 5
    assert gone(word)


def test_a_daemon_with_a_session_of_its_own_survives_a_command_that_ended_by_itself():
    word = f"rb-{os.getpid()}-daemon-{time.monotonic_ns()}"
    sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(20)", word]
    code = f"import subprocess, time; subprocess.Popen({sleeper!r}, start_new_session=True); time.sleep(0.2)"
    begun = time.monotonic()
    assert ask({"command": python(code)})["verdict"] == "pass"
    assert time.monotonic() - begun < 5
    try:
        assert len(living(word)) == 1
    finally:
        for pid in living(word):
            os.kill(pid, 9)


def test_endless_output_is_bounded_in_memory_and_ends_in_time():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = ask({"command": ["yes", "y" * 1000], "timeout": 1.5})
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert found["verdict"] == "fail"
    assert grown < 64 * 1024, f"{grown} KiB more"
    assert len(found["observed"]) < 8000
    assert gone("y" * 1000)


def test_the_first_and_the_last_lines_are_told():
    found = ask({"command": ["sh", "-c", "seq 1 200000; exit 4"]})
    lines = found["observed"].splitlines()
    assert lines[0].startswith("exit code 4 after")
    assert lines[2] == "1"
    assert lines[-1] == "200000"
    assert len(lines) < 25
    assert "exit code 4" in found["message"]


def test_output_keeps_both_ends(monkeypatch):
    monkeypatch.setattr(_bounded, "KEPT", 10)
    output = Output()
    for letter in "abcdefghijklmnopqrstuvwxyz0123456789":
        output.add(letter.encode())
    assert output.cut
    assert output.text() == "abcdefghij\n[… 16 bytes left out …]\n0123456789"
    whole = Output()
    whole.add(b"a" * 20)
    assert (whole.cut, whole.text()) == (False, "a" * 20)


def test_an_excerpt_is_plain_and_short():
    text = excerpt("\x1b[31mred\x1b[0m\r\n\n\tx\x07\n" + "w" * 900)
    assert text.splitlines()[:2] == ["red", "\tx"]
    assert len(text.splitlines()[2]) == 200


# The gate


def test_a_gate_does_not_outlive_its_deadline():
    checks = [{"name": str(n), "command": "sleep 60"} for n in range(6)]
    given = options(checks=checks, parallel=2, deadline=1.0, waivers=[])
    begun = time.monotonic()
    with pytest.raises(Problem) as raised:
        gate.perform(given, False, print)
    assert time.monotonic() - begun < 20  # each would take 60
    verdicts = [check["verdict"] for check in raised.value.results["checks"]]
    # Those that had the whole time have failed; those that had none were not asked.
    assert verdicts == ["fail", "fail", *["inconclusive"] * 4]


def test_a_command_that_the_gate_cut_short_is_no_failure():
    found = ask({"command": "sleep 60", "timeout": 30}, seconds=0.6)
    assert (found["verdict"], found["exit_code"]) == ("inconclusive", None)
    assert "raise the deadline" in found["message"]


def test_commands_run_at_the_same_time_and_no_more_than_allowed(tmp_path):
    code = (
        "import os, sys, time; place = sys.argv[1]; open(f'{place}/{os.getpid()}', 'w').close(); "
        "print(len(os.listdir(place))); time.sleep(0.5); os.unlink(f'{place}/{os.getpid()}')"
    )
    checks = [{"name": str(n), "command": [*python(code), str(tmp_path)], "number": "<= 2"} for n in range(4)]
    begun = time.monotonic()
    found = gate.prober(options(checks=checks, parallel=2), False)(20)
    assert [check["verdict"] for check in found] == ["pass"] * 4
    assert 0.9 < time.monotonic() - begun < 1.9


def run_module(capsys: Any, check_mode: bool = False, **given: Any) -> dict[str, Any]:
    arguments = {"interval": 0.02, "deadline": 10, **given, "_ansible_check_mode": check_mode}
    with patch_module_args(arguments), pytest.raises(SystemExit) as ended:
        command_gate.main()
    answer = json.loads(capsys.readouterr().out)
    assert bool(ended.value.code) is bool(answer.get("failed"))
    return answer


def counting(place: Path, passes_at: int) -> list[str]:
    """A command that notes each of its runs, and succeeds from the *passes_at*-th on."""
    return python(
        f"import sys; f = open({str(place)!r}, 'a'); f.write('x'); f.close(); sys.exit(len(open({str(place)!r}).read()) < {passes_at})"
    )


def runs(place: Path) -> int:
    return len(place.read_text()) if place.exists() else 0


def test_a_command_runs_once_unless_it_says_otherwise(tmp_path, capsys):
    once, again, writes = tmp_path / "once", tmp_path / "again", tmp_path / "writes"
    answer = run_module(capsys, checks=[{"command": counting(once, 3)}])
    assert (answer["failed"], runs(once), answer["attempts"]) == (True, 1, 1)
    checks = [{"command": counting(again, 3), "retry": True}, {"command": counting(writes, 1)}]
    answer = run_module(capsys, checks=checks)
    assert (answer["passed"], answer["attempts"], runs(again), runs(writes)) == (True, 3, 3, 1)
    # A lesser one is not run over and over either.
    lesser = tmp_path / "lesser"
    answer = run_module(
        capsys, deadline=0.5, checks=[{"command": counting(lesser, 9), "severity": "minor"}, *checks]
    )
    assert (answer["passed"], answer["degraded"], runs(lesser)) == (True, answer["degraded"], 1)
    assert len(answer["degraded"]) == 1
    # Two successes in a row are two runs.
    answer = run_module(capsys, successes=2, checks=[{"command": counting(tmp_path / "two", 1)}])
    assert (answer["passed"], runs(tmp_path / "two")) == (True, 2)


def test_what_cannot_run_ends_the_gate_at_once(capsys):
    begun = time.monotonic()
    for severity in ("critical", "minor"):
        checks = [{"command": "no-such-program-here", "severity": severity}]
        answer = run_module(capsys, checks=checks)
        assert (answer["failed"], answer["verdict"], answer["passed"]) == (True, "inconclusive", False)
        assert not run_module(capsys, checks=checks, on_no_data="inconclusive").get("failed")
    assert time.monotonic() - begun < 5


def test_check_mode_runs_what_is_harmless_only(tmp_path, capsys):
    writes, reads = tmp_path / "writes", tmp_path / "reads"
    checks = [
        {"name": "writes", "command": counting(writes, 1)},
        {"name": "reads", "command": counting(reads, 1), "harmless": True},
    ]
    answer = run_module(capsys, check_mode=True, checks=checks)
    assert (answer["passed"], answer["not_asked"]) == (True, ["writes"])
    assert (runs(writes), runs(reads)) == (0, 1)
    answer = run_module(capsys, check_mode=True, checks=checks[:1])
    assert (answer["passed"], answer["verdict"], answer.get("failed", False)) == (
        False,
        "inconclusive",
        False,
    )
    assert runs(writes) == 0


def test_the_environment_reaches_the_command_and_nothing_else(capsys):
    environment = json.dumps({"PASSWORD_OF_OURS": SECRET, "DEBUG": "0"})
    code = "import os; print(os.environ['PASSWORD_OF_OURS']); raise SystemExit(1)"
    answer = run_module(capsys, environment=environment, checks=[{"name": "it", "command": python(code)}])
    assert answer["failed"] is True
    assert SECRET not in json.dumps(answer)
    assert "********" in answer["checks"][0]["observed"]
    seen = ask({"command": ["env"]}, environment=environment)["observed"]
    assert "DEBUG=0" in seen
    assert "ANSIBLE" not in seen.upper().replace("RUNBOOK", "")


def test_a_command_runs_as_the_user_that_is_named():
    if os.geteuid():
        found = ask({"command": "id -un"}, user="root")
        assert found["verdict"] == "inconclusive"
        return
    found = ask({"command": "id -un", "contains": "nobody"}, user="nobody", chdir="/")
    assert found["verdict"] == "pass", found
    assert found["repeat"] == "cd / && sudo -u nobody -- id -un"
    found = ask({"command": "true"}, user="no-such-user-here")
    assert (found["verdict"], "does not exist" in found["message"]) == ("inconclusive", True)


def test_a_command_ends_in_time_when_nobody_reads_and_it_closes_its_output():
    begun = time.monotonic()
    ended = run_bounded(python("import os, time; os.close(1); os.close(2); time.sleep(60)"), timeout=0.5)
    assert ended.timed_out
    assert time.monotonic() - begun < 1.4
