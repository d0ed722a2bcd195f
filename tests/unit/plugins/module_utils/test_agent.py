# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests for plugins/module_utils/_agent.py: what applications do while they load must not confuse it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._agent import Agent, AgentProblem, describe_exit
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_project import (
    SECRET,
    DjangoProject,
)


@pytest.fixture
def project(tmp_path: Path) -> DjangoProject:
    made = DjangoProject(tmp_path / "srv")
    # The fastest application there is.
    made.append_settings("INSTALLED_APPS = []\n")
    return made


def agent_of(project: DjangoProject, limit: float = 30.0, **options: Any) -> Agent:
    arguments = {
        "python": project.environment / "bin" / "python",
        "cwd": project.release,
        "variables": project.variables,
        "secrets": [SECRET],
        "limit": limit,
        **options,
    }
    return Agent(**arguments)


def start(agent: Agent) -> dict[str, Any]:
    return agent.call("start", argv=["manage.py", "check"])


def failure(project: DjangoProject, **options: Any) -> AgentProblem:
    with agent_of(project, **options) as agent, pytest.raises(AgentProblem) as caught:
        start(agent)
    assert agent.process.returncode is not None
    return caught.value


@pytest.mark.parametrize(
    "code",
    [
        "print('noise' * 100000, flush=True)",
        "import sys, io; sys.stdout = io.StringIO(); sys.stderr = None",
        "import os; os.close(1); os.close(2); os.closerange(3, 100)",
        "import os\nif os.fork() == 0:\n    import time; time.sleep(30); os._exit(0)",
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "import os; os.chdir('/')",
    ],
)
def test_what_an_application_may_do(project: DjangoProject, code: str) -> None:
    project.append_settings(code + "\n")
    begun = time.monotonic()
    with agent_of(project) as agent:
        assert start(agent)["settings"] == "shop.settings"
        assert agent.call("settings")["staticfiles"] is False
        session = agent.process.pid
    assert time.monotonic() - begun < 15
    assert session_of(session) == []


def session_of(leader: int) -> list[str]:
    """Return the commands of the living processes of a session."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] not in "ZX":
                found.append(Path("/proc", name, "cmdline").read_text())
        except (OSError, IndexError):
            continue
    return found


@pytest.mark.parametrize(
    ("code", "reason", "texts"),
    [
        ("import sys; sys.exit(7)", "application", ["called sys.exit(7)"]),
        ("import sys; sys.exit('no licence')", "application", ["sys.exit('no licence')"]),
        ("input('name? ')", "application", ["standard input, which is closed"]),
        ("import nowhere", "application", ["ModuleNotFoundError", "nowhere"]),
        ("raise RuntimeError(SECRET_KEY)", "application", ["RuntimeError: ********"]),
        (
            "class E(Exception):\n    def __str__(self): raise ValueError\nraise E",
            "application",
            ["cannot be read"],
        ),
        ("import os; print('good bye'); os._exit(5)", "died", ["by itself", "with exit code 5"]),
        ("import os; os.kill(os.getpid(), 9)", "died", ["killed by SIGKILL"]),
        ("import os; os.closerange(3, 65536)", "channel", ["closed file descriptors"]),
    ],
)
def test_what_ends_it_is_said(project: DjangoProject, code: str, reason: str, texts: list[str]) -> None:
    project.append_settings(code + "\n")
    problem = failure(project)
    assert problem.reason == reason
    for text in texts:
        assert text in problem.message
    assert SECRET not in problem.message + problem.evidence + str(problem.error)


def test_the_last_words_are_kept(project: DjangoProject) -> None:
    project.append_settings("import os; print('good bye', SECRET_KEY); os._exit(5)\n")
    assert failure(project).evidence == "good bye ********"


def test_a_descriptor_that_was_taken_over_is_not_written_to(project: DjangoProject) -> None:
    taken = project.root / "taken"
    project.append_settings(
        "import os\nos.closerange(3, 65536)\n"
        f"f = os.open({str(taken)!r}, os.O_RDWR | os.O_CREAT)\nfor n in range(3, 1000): os.dup2(f, n)\n"
    )
    assert failure(project).reason == "channel"
    assert taken.read_bytes() == b""


def test_the_time_limit_ends_the_whole_session(project: DjangoProject) -> None:
    project.append_settings(
        "import signal, subprocess, time\nsignal.signal(signal.SIGTERM, lambda *_: None)\nprint('waiting')\n"
        "subprocess.Popen(['sleep', '40'], preexec_fn=lambda: __import__('os').setpgid(0, 0))\n"
        "while True: time.sleep(1)\n"
    )
    begun = time.monotonic()
    with agent_of(project, limit=2.0) as agent, pytest.raises(AgentProblem) as caught:
        start(agent)
    assert caught.value.reason == "time"
    assert "within 2 seconds" in caught.value.message
    assert caught.value.evidence == "waiting"
    assert time.monotonic() - begun < 12
    assert session_of(agent.process.pid) == []


def test_it_still_answers_after_an_error(project: DjangoProject) -> None:
    with agent_of(project) as agent:
        start(agent)
        with pytest.raises(AgentProblem) as caught:
            agent.call("collectstatic")
        assert caught.value.reason == "application"
        assert agent.call("settings")["static_url"] == "/static/"


def test_nothing_can_be_asked_after_the_end(project: DjangoProject) -> None:
    agent = agent_of(project)
    agent.close()
    with pytest.raises(AgentProblem):
        start(agent)


def test_what_manage_py_does_counts(project: DjangoProject) -> None:
    text = (project.release / "manage.py").read_text()
    project.write(
        "manage.py", text.replace("import sys\n", "import sys\nos.environ['SHOP_SECRET'] = 'from-manage'\n")
    )
    project.append_settings(
        "import sys\nSTATIC_URL = '/' + os.environ['SHOP_SECRET'] + '/' + sys.argv[1] + '/'\n"
    )
    with agent_of(project) as agent:
        start(agent)
        assert agent.call("settings")["static_url"] == "/from-manage/check/"


def test_manage_py_that_runs_nothing(project: DjangoProject) -> None:
    project.write("manage.py", "print('not this way')\n")
    assert "manage.py ended without" in failure(project).message


def test_without_manage_py_the_settings_must_be_named(project: DjangoProject) -> None:
    (project.release / "manage.py").unlink()
    assert "set app_settings_module" in failure(project).message
    variables = {**project.variables, "DJANGO_SETTINGS_MODULE": "shop.settings"}
    with agent_of(project, variables=variables) as agent:
        assert start(agent)["settings"] == "shop.settings"


def test_an_interpreter_that_is_not_there(project: DjangoProject) -> None:
    with pytest.raises(Problem, match="run the release phase again"):
        agent_of(project, python=project.root / "nowhere")


def test_exits_are_described() -> None:
    assert describe_exit(3) == "with exit code 3"
    assert describe_exit(-signal.SIGTERM) == "killed by SIGTERM"
    assert describe_exit(None) == "and cannot be waited for"
