# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of an instance: what systemd and a shell make of them."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _instance as instance
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

ID = "20261121T013700-ab12"
AWKWARD = [
    "",
    " leading and trailing ",
    "two  spaces",
    'double " quote',
    "single ' quote",
    "back\\slash",
    "ends in backslash\\",
    "$HOME ${HOME} $$ %h %%",
    "`command`",
    "two\nlines",
    "# no comment",
    "; neither",
    "a=b",
    "tab\there",
    "carriage\rreturn",
    "grüße 漢字 🐍",
    '\\"$`\\\\',
    "\\n",
    "line\\\ncontinued?",
    "\x1b[0m",
]


def systemd_reads(text: str) -> dict[str, str]:
    """Read *text* as systemd.exec(5) says that EnvironmentFile= is read, written down from there alone.

    A value in double quotes may span lines; a backslash keeps one of ``"\\`$``, a backslash before a newline
    joins lines, any other backslash stays; nothing is expanded.
    """
    result = {}
    position = 0
    while position < len(text):
        end = text.index("=", position)
        name = text[position:end]
        assert name.isidentifier() and text[end + 1] == '"'
        position = end + 2
        value = ""
        while text[position] != '"':
            if text[position] == "\\":
                following = text[position + 1]
                value += following if following in '"\\`$' else "" if following == "\n" else "\\" + following
                position += 2
            else:
                value += text[position]
                position += 1
        assert text[position + 1] == "\n"
        position += 2
        result[name] = value
    return result


def test_environment_text_is_read_back_whole() -> None:
    """By the manual's rules, and by our own reader."""
    variables = {f"V{number}": value for number, value in enumerate(AWKWARD)}
    text = instance.environment_text(variables)
    assert systemd_reads(text) == variables
    assert instance.parse_environment_text(text) == variables


def test_environment_text_at_random() -> None:
    """Any text of awkward characters survives."""
    chance = random.Random(2)
    for _round in range(300):
        value = "".join(chance.choice("\"'\\$`\n\r\t =#;aé%{}") for _place in range(chance.randrange(12)))
        text = instance.environment_text({"A": value, "B": "next"})
        assert systemd_reads(text) == {"A": value, "B": "next"} == instance.parse_environment_text(text)


@pytest.mark.parametrize("value", ["nul\0", "bom\ufeff", "surrogate\udc80", "noncharacter\uffff"])
def test_values_that_systemd_drops_are_refused(value: str) -> None:
    """The service would otherwise start without the variable."""
    with pytest.raises(Problem, match=r"app_environment\.KEY"):
        instance.environment_text({"KEY": value})


@pytest.mark.parametrize("text", ["A=b\n", 'A="b', 'A="b" \n', 'A="\\x"\n', "no"])
def test_a_damaged_environment_file_is_noticed(text: str) -> None:
    """Half a file never becomes half an environment."""
    with pytest.raises(ValueError, match="environment file"):
        instance.parse_environment_text(text)


def test_command_words(tmp_path: Path) -> None:
    """Words first, then placeholders; other braces stay; the environment's programs come first."""
    program = tmp_path / "serve"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    known = {"socket": "/a b/web.sock", "release": "r1"}
    words = instance.command_words(
        "serve --bind unix:{socket} --json '{\"a\": {release}}' {x}", known, tmp_path
    )
    assert words == [str(program), "--bind", "unix:/a b/web.sock", "--json", '{"a": r1}', "{x}"]
    assert instance.command_words("sh -c true", {}, tmp_path)[0] == "sh"
    assert instance.command_words("./serve", {}, tmp_path)[0] == "./serve"
    with pytest.raises(Problem, match=r"uses \{port\}"):
        instance.command_words("serve {port}", known, None)
    with pytest.raises(Problem, match="empty"):
        instance.command_words("  ", known, None)


def test_launcher_becomes_the_process(tmp_path: Path) -> None:
    """Same PID, its directory, its variables, awkward arguments as they are; no child that it did not start."""
    awkward = ["it's", '$HOME `id` "q" \\ *', "new\nline"]
    show = "import os,sys; print(os.getpid(), os.getcwd(), os.environ['RUNBOOK_SERVICE'], oct(os.umask(0)), sys.argv[1:])"
    directory = tmp_path / "with space"
    directory.mkdir()
    words = ["python3", "-c", show, *awkward]
    text = instance.launcher_text("web", ID, directory, words, {"RUNBOOK_SERVICE": "web"}, "")
    script = tmp_path / "launch.sh"
    script.write_text(text)
    run = subprocess.Popen(["/bin/sh", str(script)], stdout=subprocess.PIPE, text=True)
    out, _err = run.communicate(timeout=10)
    assert out == f"{run.pid} {directory} web 0o22 {awkward}\n"


def test_launcher_makes_the_socket_connectable(tmp_path: Path) -> None:
    """Whatever mode the server gives it; a stale one is removed; the helper is nobody's child."""
    place = tmp_path / "web.sock"
    place.write_text("stale")
    serve = (
        "import os,socket,subprocess,sys,time\n"
        "time.sleep(0.2)\n"
        "os.umask(0o177)\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
        "time.sleep(0.5)\n"
        "print(oct(os.stat(sys.argv[1]).st_mode & 0o777))\n"
        "try: print(os.waitpid(-1, os.WNOHANG))\n"
        "except ChildProcessError: print('no child')\n"
    )
    words = ["python3", "-c", serve, str(place)]
    script = tmp_path / "launch.sh"
    script.write_text(instance.launcher_text("web", ID, tmp_path, words, {}, str(place)))
    done = subprocess.run(["/bin/sh", str(script)], capture_output=True, text=True, timeout=10, check=True)
    assert done.stdout == "0o666\nno child\n"


def test_the_helper_ends_with_the_service(tmp_path: Path) -> None:
    """A service that never listens leaves no helper behind."""
    place = tmp_path / f"never-{os.getpid()}.sock"
    script = tmp_path / "launch.sh"
    script.write_text(instance.launcher_text("web", ID, tmp_path, ["true"], {}, str(place)))
    subprocess.run(["/bin/sh", str(script)], timeout=10, check=True)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        found = [
            path
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if _read(path).startswith(b"/bin/sh") and str(script).encode() in _read(path)
        ]
        if not found:
            return
        time.sleep(0.05)
    pytest.fail("the helper still runs")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def service(**changes: Any) -> dict[str, Any]:
    """Return the complete definition of a service."""
    base = {
        "name": "web",
        "kind": "web",
        "manager": "systemd",
        "bind": "socket",
        "port": 0,
        "strategy": "blue_green",
    }
    return {**base, "command": "serve {socket}", "stop_timeout": 30, **changes}


def made(layout: Layout, services: list[dict[str, Any]]) -> instance.Instance:
    """Return an instance of *services*."""
    document = instance.describe(ID, {"name": "r1", "commit": "c"}, services, environment_path="")
    return instance.Instance(layout, ID, document, {"KEY": "secret value", "RUNBOOK_RELEASE": "r1"})


def test_what_is_shown_anyway_is_no_secret() -> None:
    """A database that is named like the application, and the site's own name, are in every message."""
    layout = Layout("/srv/goexplorer")
    document = {"host_header": "www.goexplorer.example", "release": "r1"}
    variables = {
        "DB_USER": "goexplorer",
        "HOSTS": "www.goexplorer.example",
        "KEY": "goexplorer-7f0c",
        "PASS": "pw",
    }
    found = instance.Instance(layout, ID, document, variables)
    assert found.secrets == ["goexplorer-7f0c", "pw"]


def test_instance_files(tmp_path: Path) -> None:
    """Written, read back, and removed to the last; nobody else may read them."""
    layout = Layout(tmp_path)
    beat = service(name="beat", kind="beat", bind="none", command="beat")
    other = service(name="old", kind="worker", bind="none", manager="process", command="work")
    whole = made(layout, [beat, other, service()])
    whole.write(None)
    assert {path.stat().st_mode & 0o777 for path in layout.instances.iterdir()} == {0o640}
    # The beat last; what another manager starts is not for the boot unit.
    assert instance.boot_file(layout, ID).read_text() == "web socket\nbeat -\n"
    found = instance.read_instance(layout, ID)
    assert found is not None
    assert found.document == whole.document and found.variables == whole.variables
    assert found.secrets == ["secret value"]
    assert whole.serve_at_boot() is None and whole.serve_at_boot() == ID
    layout.release_instance("r1").unlink()
    whole.remove()
    assert list(layout.instances.iterdir()) == []
    assert instance.read_instance(layout, ID) is None


def test_a_broken_instance_is_a_problem(tmp_path: Path) -> None:
    """A missing environment file is said, not taken for an empty environment."""
    layout = Layout(tmp_path)
    made(layout, [service()]).write(None)
    layout.environment_file(ID).unlink()
    with pytest.raises(Problem, match="cannot be used"):
        instance.read_instance(layout, ID)


def test_trial_has_an_address_of_its_own(tmp_path: Path) -> None:
    """Its processes are not taken for the instance's; it leaves no description."""
    layout = Layout(tmp_path)
    whole = made(layout, [service(bind="port", port=8000, strategy="restart", command="serve {port}")])
    trial = whole.trial(whole.services[0], 41234)
    assert trial.deployment == ID + ".trial" == trial.variables["RUNBOOK_DEPLOYMENT"]
    assert "serve 41234" in trial.launcher(trial.services[0])
    trial.write(None)
    assert not layout.instance_file(trial.deployment).exists()
    trial.remove()
    assert list(layout.instances.iterdir()) == []
