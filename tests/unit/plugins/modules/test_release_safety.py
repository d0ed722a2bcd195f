# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._command import run
from ansible_collections.runbook.deploy.plugins.module_utils._layout import remove_tree, replace_link
from ansible_collections.runbook.deploy.plugins.modules import release as release_module
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.release_tools import (
    APPLICATION,
    PYTHON,
    World,
    find_uv,
    make_wheel,
    open_world,
)


@pytest.fixture(name="world")
def fixture_world(
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with open_world(capsys, tmp_path_factory) as world:
        yield world


def test_the_installers_last_lines_are_the_evidence_without_secrets(world: World) -> None:
    world.build = {
        "PIP_INDEX_URL": "http://ada:s3cr3t-t0ken@127.0.0.1:9/simple",
        "OTHER": "s3cr3t-value",
        "UV_HTTP_RETRIES": "0",
    }
    answer = world.run(world.commit({**APPLICATION, "requirements.txt": "delta==1.0\n"}))
    assert "the package index cannot be reached" in answer["msg"]
    assert "127.0.0.1:9" in answer["evidence"]
    assert "s3cr3t" not in json.dumps(answer)


def test_what_an_installer_prints_of_its_environment_is_hidden(world: World) -> None:
    talkative = world.base / "uv"
    talkative.write_text("#!/bin/sh\nenv >&2\necho asked ada-t0ken >&2\nexit 1\n")
    talkative.chmod(0o755)
    world.build = {"INDEX": "https://ada:ada-t0ken@example.org/simple", "OTHER": "s3cr3t-value"}
    answer = world.run(world.commit(APPLICATION), uv=str(talkative))
    assert "OTHER=****" in answer["evidence"]
    assert "s3cr3t-value" not in json.dumps(answer) and "ada-t0ken" not in json.dumps(answer)


def start(world: World, arguments: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start the module as Ansible does, in a process of its own."""
    file = world.base / "arguments.json"
    file.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
    return subprocess.Popen(
        [sys.executable, release_module.__file__, str(file)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Return the first true value of *condition*."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError("it did not happen in time")


def test_a_build_that_is_killed_is_made_again(world: World) -> None:
    """The module dies in the middle of the installation, and the installer lives on and would go on writing."""
    slow = world.base / "uv"
    slow.write_text(f'#!/bin/sh\n{find_uv()} "$@"\ncase "$*" in *install*) sleep 60;; esac\n')
    slow.chmod(0o755)
    commit = world.commit(APPLICATION)
    process = start(world, world.arguments(commit, uv=str(slow)))
    wait_for(lambda: list(world.layout.environments.glob("*/lib/python*/site-packages/alpha.py")))
    process.kill()
    process.wait()
    environment = next(world.layout.environments.iterdir())
    left = [
        entry
        for entry in os.listdir("/proc")
        if entry.isdigit()
        and f"{environment}/bin/python".encode() in command_line(entry)
        and b"install" in command_line(entry)
    ]
    assert left and (environment / ".building").exists() and not (environment / ".built").exists()
    (environment / "half").touch()
    answer = world.built(commit)
    assert answer["environment_built"] and answer["release"]["environment_path"] == str(environment)
    assert not (environment / "half").exists()
    assert not [entry for entry in left if command_line(entry)]
    python = answer["release"]["environment_path"] + "/bin/python"
    assert subprocess.check_output([python, "-c", "import alpha; print(alpha.VERSION)"], text=True) == "1.0\n"


def command_line(pid: str) -> bytes:
    """Return the argv of a process, b"" when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_killed_at_any_moment_the_next_run_succeeds(world: World) -> None:
    commit = world.commit({**APPLICATION, **{f"pages/{number}.html": "x" * 2000 for number in range(300)}})
    arguments = world.arguments(commit)
    path = world.layout.release(arguments["release"])
    for delay in (0.25, 0.4, 0.55):
        process = start(world, arguments)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if (path / ".built").exists():
            break
        assert not (path / ".complete").exists()
    assert world.run(commit).get("failed") is None
    assert len(list((path / "pages").iterdir())) == 300
    assert world.run(commit)["changed"] is False


def test_what_is_built_cannot_be_written_by_the_one_user_of_a_demo(world: World) -> None:
    """As in the demo: the application's user deploys. Root is no ordinary user, so it becomes one."""

    def build_and_try() -> None:
        answer = world.built(world.commit({**APPLICATION, "app/x.py": "1\n"}))
        release, environment = Path(answer["release"]["path"]), Path(answer["release"]["environment_path"])
        for top in (release, environment):
            for parent, _names, files in os.walk(top):
                for name in [".", *files]:
                    path = Path(parent, name)
                    assert path.is_symlink() or not path.stat().st_mode & 0o222, path
            with pytest.raises(PermissionError):
                (top / "new").touch()
        with pytest.raises(PermissionError):
            (release / "app/x.py").write_text("2\n")
        with pytest.raises(PermissionError):
            (release / "manage.py").unlink()
        remove_tree(release)
        remove_tree(environment)
        assert not release.exists() and not environment.exists()

    as_ordinary_user(world, build_and_try)


def as_ordinary_user(world: World, action: Callable[[], None]) -> None:
    """Run *action*; as root in a child that has become the user ``nobody``."""
    if os.geteuid() != 0:
        action()
        return
    del world.build["UV_CACHE_DIR"]
    for parent, _names, files in os.walk(world.base):
        for name in [".", *files]:
            os.chown(os.path.join(parent, name), 65534, 65534, follow_symlinks=False)
    try:
        # Asked as that user: root may pass through every directory on the way.
        subprocess.run(
            [world.options["uv"], "--version"], user=65534, cwd="/", capture_output=True, check=True
        )
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("the ordinary user may not run uv")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            action()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_root_builds_the_application_can_read_and_not_write(world: World) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can build for another user")
    commit = world.commit(APPLICATION)
    del world.build["UV_CACHE_DIR"]
    # A careless umask of the one who deploys must not lock the application out.
    before = os.umask(0o077)
    try:
        answer = world.built(commit, user="nobody", shared=["media"])
    finally:
        os.umask(before)
    release, environment = answer["release"]["path"], answer["release"]["environment_path"]
    done = run([f"{environment}/bin/python", f"{release}/manage.py"], user="nobody", cwd=release)
    assert (done.rc, done.stdout) == (0, "1.0\n"), done
    assert run(["touch", f"{release}/media/upload"], user="nobody", cwd="/").rc == 0
    for path in (
        release,
        f"{release}/manage.py",
        f"{release}/new",
        environment,
        f"{environment}/bin/activate",
    ):
        assert run(["touch", path], user="nobody", cwd="/").rc != 0, path
    for top in (release, environment):
        for parent, _names, files in os.walk(top):
            for name in [".", *files]:
                info = os.lstat(os.path.join(parent, name))
                assert info.st_uid == 0
                assert stat.S_ISLNK(info.st_mode) or not info.st_mode & 0o022


def test_an_interpreter_that_the_application_cannot_run_is_named(world: World) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can build for another user")
    private = world.base / "private"
    private.mkdir(mode=0o700)
    shutil.copy2(os.path.realpath(PYTHON), private / "python3")
    if run([str(private / "python3"), "-c", ""]).rc != 0:
        pytest.skip("a copy of the interpreter does not run")
    answer = world.run(world.commit(APPLICATION), user="nobody", python=str(private / "python3"))
    assert "cannot run" in answer["msg"] and "app_python" in answer["msg"], answer


def test_a_full_disk_is_named_and_what_was_begun_removed(world: World) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    if run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(world.layout.root)]).rc != 0:
        pytest.skip("no file system can be mounted here")
    try:
        big = world.commit({**APPLICATION, "big": os.urandom(700_000).hex()})
        answer = world.run(big)
        assert "full" in answer["msg"] or "does not fit on the disk" in answer["msg"], answer
        assert not list(world.layout.releases.iterdir())
        (world.wheels / "huge.py").write_bytes(os.urandom(3_000_000))
        wheel = make_wheel(world.wheels, "huge", "1.0")
        subprocess.run([PYTHON, "-m", "zipfile", "-l", str(wheel)], check=True, capture_output=True)
        import zipfile

        with zipfile.ZipFile(wheel, "a") as archive:
            archive.writestr("huge.bin", os.urandom(3_000_000))
        answer = world.run(world.commit({**APPLICATION, "big": None, "requirements.txt": "huge\n"}))
        assert "the disk is full" in answer["msg"], answer
        assert not list(world.layout.releases.iterdir()) and not list(world.layout.environments.iterdir())
    finally:
        subprocess.run(["umount", "-l", str(world.layout.root)], check=True)


def test_an_environment_that_was_lost_is_made_again(world: World) -> None:
    commit = world.commit(APPLICATION)
    first = world.built(commit)
    path = Path(first["release"]["environment_path"])
    remove_tree(path)
    assert world.built(commit, _ansible_check_mode=True)["environment_built"]
    again = world.built(commit)
    assert again["environment_built"] and again["release"]["environment_path"] == str(path)
    assert (path / ".built").exists()


def test_a_current_release_is_never_removed(world: World) -> None:
    commit = world.commit(APPLICATION)
    answer = world.built(commit)
    path = Path(answer["release"]["path"])
    replace_link(world.layout.current, f"releases/{path.name}")
    path.chmod(0o755)
    (path / ".built").unlink()
    failed = world.run(commit)
    assert "is current but not built" in failed["msg"]
    assert (path / "manage.py").exists()


def test_the_password_in_an_address_is_not_printed(world: World) -> None:
    answer = world.run(
        world.commit(APPLICATION), source={"repository": "http://ada:s3cr3t-t0ken@127.0.0.1:9/shop.git"}
    )
    assert answer["failed"] and "s3cr3t-t0ken" not in json.dumps(answer)


def test_two_builds_of_one_environment_wait_for_each_other(world: World) -> None:
    first = world.commit(APPLICATION)
    second = world.commit({"manage.py": "print(2)\n"})
    world.built(first, _ansible_check_mode=True)
    processes = []
    for number, commit in enumerate((first, second)):
        file = world.base / f"{number}.json"
        file.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": world.arguments(commit)}))
        processes.append(
            subprocess.Popen(
                [sys.executable, release_module.__file__, str(file)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                stdout=subprocess.PIPE,
            )
        )
    answers = [json.loads(process.communicate()[0]) for process in processes]
    assert not any(answer.get("failed") for answer in answers), answers
    assert sorted(answer["environment_built"] for answer in answers) == [False, True]
