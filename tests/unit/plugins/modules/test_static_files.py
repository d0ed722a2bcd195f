# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests for plugins/modules/static_files.py with a real Django project."""

from __future__ import annotations

import json
import os
import pwd
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._static import (
    SAVED_MANIFEST,
    acting_as,
    bring_manifest,
    keep_manifest,
    restore_manifest,
)
from ansible_collections.runbook.deploy.plugins.modules.static_files import main
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_project import (
    SECRET,
    DjangoProject,
    django_python,
)

Run = Callable[..., dict[str, Any]]
OTHER_USER = "nobody"


@pytest.fixture
def project(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[DjangoProject]:
    """A project; for tests of another user in a directory of its own, as pytest keeps its own closed to others."""
    if getattr(request, "param", "") != OTHER_USER:
        yield DjangoProject(tmp_path / "srv")
        return
    if os.geteuid() != 0:
        pytest.skip("only root can run the application as another user")
    argv = [django_python(), "-c", "import django"]
    try:
        able = (
            subprocess.run(argv, user=OTHER_USER, cwd="/", capture_output=True, check=False).returncode == 0
        )
    except PermissionError:
        able = False
    if not able:
        pytest.skip(f"the user {OTHER_USER} may not run the interpreter of the tests")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)
        made = DjangoProject(Path(directory, "srv"))
        made.database.parent.chmod(0o777)
        yield made


@pytest.fixture
def run(project: DjangoProject, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the module; the answer has ``failed`` True when it failed."""

    def call(check_mode: bool = False, **options: Any) -> dict[str, Any]:
        arguments = {
            "root": str(project.root),
            "release": project.name,
            "environment_path": str(project.environment),
            "environment": json.dumps(project.variables),
            "_ansible_check_mode": check_mode,
            **options,
        }
        capsys.readouterr()
        with patch_module_args(arguments), pytest.raises(SystemExit):
            main()
        text = capsys.readouterr().out
        assert SECRET not in text
        return {"failed": False, **json.loads(text)}

    return call


def published(project: DjangoProject) -> set[str]:
    static = project.root / "shared" / "static"
    return {str(path.relative_to(static)) for path in static.rglob("*") if path.is_file()}


def manifest(directory: Path) -> dict[str, str]:
    return json.loads((directory / "staticfiles.json").read_text())["paths"]


def test_collected_published_completed_and_then_left_alone(project: DjangoProject, run: Run) -> None:
    assert run(check_mode=True)["changed"] is True
    assert not (project.release / "staticfiles").exists()
    found = run()
    assert not found["failed"], found
    own = project.release / "staticfiles"
    assert found["static_root"] == str(own)
    assert (found["copied"], found["unmodified"], found["kept"]) == (2, 0, [])
    assert found["published"] == len(published(project)) == 5
    hashed = manifest(own)["orders/site.css"]
    assert hashed in published(project)
    assert manifest(own)["orders/logo.svg"].split("/")[-1] in (own / hashed).read_text()
    assert (own / hashed).stat().st_ino == (project.root / "shared/static" / hashed).stat().st_ino
    assert (project.release / ".complete").is_file()

    again = run()
    assert (again["changed"], again["published"], again["static_root"]) == (False, 0, str(own))
    assert run(check_mode=True)["changed"] is False
    (project.root / "shared" / "static" / hashed).unlink()
    repaired = run()
    assert (repaired["changed"], repaired["published"]) == (True, 1)


def test_the_next_release_removes_nothing_and_has_its_own_manifest(project: DjangoProject, run: Run) -> None:
    run()
    first = published(project)
    old = manifest(project.release / "staticfiles")
    before = project.release
    project.release = project.root / "releases" / "ba9876543210-01234567"
    subprocess.run(["cp", "-a", str(before), str(project.release)], check=True)
    for path in (".complete", "staticfiles"):
        subprocess.run(["chmod", "-R", "u+w", str(project.release)], check=True)
        subprocess.run(["rm", "-r", str(project.release / path)], check=True)
    project.write("orders/static/orders/site.css", "body { color: red }\n")
    found = run(release=project.release.name)
    assert not found["failed"], found
    assert first < published(project)
    assert manifest(before / "staticfiles") == old
    assert manifest(project.release / "staticfiles")["orders/site.css"] != old["orders/site.css"]
    # A name without a hash has the newest content, through a name of its own: the first release keeps its file.
    assert "red" in (project.root / "shared/static/orders/site.css").read_text()
    assert "red" not in (before / "staticfiles/orders/site.css").read_text()


def test_an_attempt_that_was_killed_does_not_reach_what_is_published(
    project: DjangoProject, run: Run
) -> None:
    run()
    (project.release / ".complete").unlink()
    project.write("append.py", "open('staticfiles/orders/logo.svg', 'a').write('changed in place')\n")
    (project.root / "shared/static/orders/logo.svg").chmod(0o644)
    hold = (project.root / "shared/static/orders/logo.svg").open()
    found = run(commands_after=[["append.py"]])
    assert not found["failed"], found
    assert found["unmodified"] == 2
    # The file that was published, as somebody who is being served still has it open.
    assert "changed in place" not in hold.read()
    hold.close()
    assert "changed in place" in (project.root / "shared/static/orders/logo.svg").read_text()


def test_a_hashed_name_never_gets_another_content(project: DjangoProject, run: Run) -> None:
    run()
    hashed = manifest(project.release / "staticfiles")["orders/site.css"]
    target = project.root / "shared" / "static" / hashed
    target.unlink()
    target.write_text("what open pages were given")
    found = run()
    assert found["kept"] == [hashed]
    assert target.read_text() == "what open pages were given"


def test_modes_of_a_release_of_the_same_user(project: DjangoProject, run: Run) -> None:
    for directory, _names, files in os.walk(project.release):
        for name in files:
            os.chmod(os.path.join(directory, name), 0o444)
        os.chmod(directory, 0o555)
    found = run(commands_before=[["python", "-c", "open('orders/made.txt', 'w').write('x')"]])
    assert not found["failed"], found
    for directory, _names, files in os.walk(project.release):
        for path in (directory, *(os.path.join(directory, name) for name in files)):
            assert not os.stat(path).st_mode & 0o222, path
    assert (project.release / "orders/made.txt").exists()


def test_commands_run_in_order_around_it(project: DjangoProject, run: Run) -> None:
    project.write(
        "step.py", "import os, sys\nopen(os.environ['RUNBOOK_ROOT'] + '/steps', 'a').write(sys.argv[1])\n"
    )
    found = run(
        commands_before=[["step.py", "1"], ["step.py", "2"]],
        commands_after=[["python", "step.py", "3"]],
    )
    assert not found["failed"], found
    assert (project.root / "steps").read_text() == "123"


def test_a_command_that_fails_is_named(project: DjangoProject, run: Run) -> None:
    found = run(
        commands_after=[["python", "-c", "import os; print(os.environ['SHOP_SECRET']); raise SystemExit(3)"]]
    )
    assert found["failed"]
    assert "app_collectstatic_commands_after ended with exit code 3" in found["msg"]
    assert "********" in found["evidence"]
    assert not (project.release / ".complete").exists()


def test_collectstatic_that_fails(project: DjangoProject, run: Run) -> None:
    project.write("orders/static/orders/site.css", "body { background: url(missing.svg) }\n")
    found = run()
    assert found["failed"]
    assert "missing.svg" in found["msg"]
    assert not (project.release / ".complete").exists()
    assert published(project) == set()


def test_without_static_files(project: DjangoProject, run: Run) -> None:
    project.append_settings('INSTALLED_APPS.remove("django.contrib.staticfiles")\n')
    found = run()
    assert (found["failed"], found["static_root"]) == (False, "")
    assert (project.release / ".complete").is_file()


def test_without_a_framework(project: DjangoProject, run: Run) -> None:
    project.write("manage.py", "raise SystemExit(1)\n")
    assert run(framework="none")["changed"] is True
    assert (project.release / ".complete").is_file()
    assert run(framework="none")["changed"] is False


@pytest.mark.parametrize(
    ("root", "text"),
    [
        ("None", "no STATIC_ROOT"),
        ("BASE", "the release"),
        ("os.path.dirname(BASE)", "one above it"),
        ("os.path.join(os.path.dirname(BASE), 'ffffffffffff-00000000', 'static')", "inside another release"),
    ],
)
def test_a_static_root_where_it_must_not_be(project: DjangoProject, run: Run, root: str, text: str) -> None:
    project.append_settings(f"STATIC_ROOT = {root}\n")
    found = run()
    assert found["failed"]
    assert "STATIC_ROOT" in found["msg"]
    assert text in found["msg"]


def test_a_static_root_of_all_releases_gets_its_manifest_back(project: DjangoProject, run: Run) -> None:
    elsewhere = project.root.parent / "www"
    elsewhere.mkdir()
    old = '{"paths": {"old.css": "old.0123456789ab.css"}, "version": "1.1", "hash": "x"}'
    (elsewhere / "staticfiles.json").write_text(old)
    project.append_settings(f"STATIC_ROOT = {str(elsewhere)!r}\n")
    found = run()
    assert not found["failed"], found
    assert "orders/site.css" in manifest(elsewhere)
    assert "orders/site.css" in published(project)
    # A second attempt keeps what was there before the first.
    (project.release / ".complete").unlink()
    run()
    assert json.loads((project.release / SAVED_MANIFEST).read_text())["content"] == old
    own = (elsewhere / "staticfiles.json").read_text()
    assert restore_manifest(project.release) is True
    assert (elsewhere / "staticfiles.json").read_text() == old
    assert restore_manifest(project.release) is False
    # Deployed again, complete as it is: its own comes back, without collecting.
    again = run()
    assert (again["copied"], again["changed"]) == (0, True)
    assert (elsewhere / "staticfiles.json").read_text() == own
    assert run()["changed"] is False


def test_a_release_that_is_started_again_gets_its_manifest(
    project: DjangoProject, run: Run, tmp_path: Path
) -> None:
    elsewhere = project.root.parent / "www"
    elsewhere.mkdir()
    live = elsewhere / "staticfiles.json"
    adopted = '{"paths": {}, "version": "1.1", "hash": "adopted"}'
    live.write_text(adopted)
    project.append_settings(f"STATIC_ROOT = {str(elsewhere)!r}\n")
    assert not run()["failed"]
    layout, own = Layout(project.root), live.read_text()
    live.write_text("a later release's")
    assert bring_manifest(layout, project.name, None) == ""
    assert live.read_text() == own
    assert bring_manifest(layout, None, None) == ""
    assert live.read_text() == adopted
    assert bring_manifest(layout, "ffffffffffff-00000000", None) == "", "one that collected nowhere else"
    # In hands that are not ours: neither a link is followed nor a FIFO waited for.
    other = tmp_path / "other"
    other.write_text("not to be touched")
    live.unlink()
    live.symlink_to(other)
    bring_manifest(layout, project.name, None)
    assert other.read_text() == "not to be touched"
    live.unlink()
    os.mkfifo(live)
    assert "regular" in bring_manifest(layout, project.name, None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_root_writes_a_manifest_with_the_rights_of_the_application(tmp_path: Path) -> None:
    entry = pwd.getpwnam(OTHER_USER)
    with acting_as(OTHER_USER):
        assert (os.geteuid(), os.getegid()) == (entry.pw_uid, entry.pw_gid)
        assert 0 not in os.getgroups()
        with pytest.raises(PermissionError):
            Path("/etc/shadow").read_text()
    assert (os.geteuid(), os.getegid()) == (0, 0)
    # Where the user may go; pytest's own directories are closed to others.
    with tempfile.TemporaryDirectory() as name:
        place, layout = Path(name) / "www", Layout(Path(name) / "srv")
        release = layout.release("0123456789ab-01234567")
        for path in (place, release):
            path.mkdir(parents=True)
        os.chmod(name, 0o755)
        os.chown(place, entry.pw_uid, entry.pw_gid)
        (place / "staticfiles.json").write_text("{}")
        keep_manifest(release, place, "staticfiles.json")
        (place / "staticfiles.json").unlink()
        assert bring_manifest(layout, release.name, OTHER_USER) == ""
        assert (place / "staticfiles.json").stat().st_uid == entry.pw_uid
        # What is not the user's stays as it is, whatever the user has put into the way.
        (place / "staticfiles.json").unlink()
        place.rmdir()
        secret = Path(name) / "roots"
        secret.mkdir(0o700)
        place.symlink_to(secret)
        assert "cannot be put back" in bring_manifest(layout, release.name, OTHER_USER)
        assert os.listdir(secret) == []


def test_a_link_to_a_secret_is_not_published(project: DjangoProject, run: Run) -> None:
    secret = project.root / "shared" / "secret"
    secret.write_text("private")
    found = run(
        commands_after=[["python", "-c", f"import os; os.symlink({str(secret)!r}, 'staticfiles/leak.txt')"]]
    )
    assert not found["failed"], found
    assert "leak.txt" not in published(project)


# --- another user ---


@pytest.mark.parametrize("project", [OTHER_USER], indirect=True)
def test_what_was_lent_to_another_user_is_taken_back(project: DjangoProject, run: Run) -> None:
    (project.release / ".release.json").write_text("{}")
    code = (
        "import os\nopen('made', 'w').close()\nopen('orders/made', 'w').close()\n"
        "os.mkdir('orders/sub', 0o700)\nopen('orders/sub/x', 'w').close()\n"
        "for path in ('.release.json', '.built'):\n"
        "    try:\n        os.unlink(path)\n    except OSError:\n        pass\n"
    )
    found = run(user=OTHER_USER, commands_before=[["python", "-c", code]])
    assert not found["failed"], found
    for directory, _names, files in os.walk(project.release):
        for path in (directory, *(os.path.join(directory, name) for name in files)):
            state = os.stat(path)
            assert state.st_uid == 0, path
            assert not state.st_mode & 0o022, path
            assert state.st_mode & 0o044 == 0o044, path
            assert not state.st_mode & stat.S_ISVTX
    for name in (".built", ".release.json", "made", "orders/sub/x"):
        assert (project.release / name).exists(), name


@pytest.mark.parametrize("project", [OTHER_USER], indirect=True)
def test_a_failing_collect_as_another_user_takes_everything_back(project: DjangoProject, run: Run) -> None:
    project.write("orders/static/orders/site.css", "body { background: url(missing.svg) }\n")
    found = run(user=OTHER_USER)
    assert found["failed"]
    assert "missing.svg" in found["msg"]
    uid = pwd.getpwnam(OTHER_USER).pw_uid
    assert not [path for path in project.release.rglob("*") if path.lstat().st_uid == uid]
