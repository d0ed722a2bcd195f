# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tag of a release, in real repositories: looked at there, not in the answer."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time

import pytest
from action_tools import act
from ansible.utils.display import Display
from ansible_collections.runbook.deploy.plugins.action import release_tag
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._release_tag import fields_of, parse_tag

SPEC = {"name": "deployed/{environment}/{version}-{date}"}
NAME = "deployed/production/v2-2026-11-21"


def git(path, *arguments):
    """Run git in *path* as somebody; return what it printed."""
    variables = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    for role in ("AUTHOR", "COMMITTER"):
        variables.update({f"GIT_{role}_NAME": "dev", f"GIT_{role}_EMAIL": "dev@example.org"})
    done = subprocess.run(
        ["git", "-C", str(path), *arguments], env=variables, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A bare repository with three commits on main."""
    place = tmp_path_factory.mktemp("origin")
    git(place, "init", "-q", "--bare", "shop.git")
    git(place, "init", "-q", "-b", "main", "work")
    for number in range(3):
        (place / "work" / "file").write_text(str(number))
        git(place / "work", "add", "file")
        git(place / "work", "commit", "-qm", f"commit {number}")
    git(place / "work", "push", "-q", str(place / "shop.git"), "main")
    return place / "shop.git"


@pytest.fixture
def bare(origin, tmp_path):
    """A copy of it for one test."""
    return shutil.copytree(origin, tmp_path / "shop.git")


@pytest.fixture(autouse=True)
def warned(monkeypatch, tmp_path):
    lines = []
    monkeypatch.setattr(Display, "warning", lambda self, text, **options: lines.append(text))
    return lines


def commit(bare, back=1):
    return git(bare, "rev-parse", f"main~{back}")


def push(bare, check=False, spec=None, repository=None, **changes):
    record = {
        "id": "20261121T020000-bbbb",
        "application": "shop",
        "stage": "production",
        "version": "v2",
        "commit": commit(bare),
        "finished": "2026-11-21T02:03:04Z",
        "operator": "ann",
    }
    facts = {
        "tag": {**SPEC, **(spec or {})},
        "repository": repository or str(bare),
        "record": {**record, **changes},
    }
    answer = act(release_tag.ActionModule, facts, check=check)
    assert not answer.get("failed"), answer
    return answer


def tags(bare):
    """The tags in the repository: name → (kind, commit)."""
    form = "--format=%(refname:short) %(objecttype) %(*objectname) %(objectname)"
    rows = [line.split(" ") for line in git(bare, "for-each-ref", form, "refs/tags").splitlines()]
    return {name: (kind, peeled or own) for name, kind, peeled, own in rows}


def test_the_commit_is_tagged_with_a_message(bare, warned):
    answer = push(bare)
    assert answer["changed"]
    assert answer["tag"] == {"name": NAME, "state": "pushed", "message": ""}
    assert tags(bare) == {NAME: ("tag", commit(bare))}
    assert (
        git(bare, "tag", "-l", "--format=%(contents:subject)")
        == "v2 of shop deployed to production by ann (20261121T020000-bbbb)"
    )
    assert git(bare, "fsck", "--strict") == ""
    assert not (bare / "shallow").exists()
    assert not warned


def test_a_tag_of_the_same_commit_is_fine(bare):
    push(bare)
    before = git(bare, "rev-parse", NAME)
    answer = push(bare)
    assert (answer["changed"], answer["tag"]["state"]) == (False, "there")
    assert git(bare, "rev-parse", NAME) == before


def test_a_light_tag_of_the_same_commit_is_fine_too(bare):
    git(bare, "tag", NAME, commit(bare))
    assert push(bare)["tag"]["state"] == "there"


def test_a_tag_of_another_commit_is_left_and_reported(bare, warned):
    git(bare, "tag", "-a", "-m", "by hand", NAME, commit(bare, 0))
    answer = push(bare)
    assert answer["tag"]["state"] == "failed"
    assert (
        f"names the commit {commit(bare, 0)[:12]} instead of {commit(bare)[:12]}" in answer["tag"]["message"]
    )
    assert warned == [answer["tag"]["message"]]
    assert tags(bare)[NAME][1] == commit(bare, 0)


def test_a_hook_that_refuses_is_reported_with_its_words(bare):
    hook = bare / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'tags are made by the release team' >&2\nexit 1\n")
    hook.chmod(0o755)
    answer = push(bare)
    assert answer["tag"]["state"] == "failed"
    assert "tags are made by the release team" in answer["tag"]["message"]
    assert tags(bare) == {}


def test_who_is_overtaken_by_the_same_tag_is_content(bare):
    """Between the look and the push somebody else makes it: here, the server's own hook does."""
    hook = bare / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    other = git(bare, "commit-tree", "-m", "other", f"{commit(bare)}^{{tree}}")
    for target, state in ((commit(bare), "there"), (other, "failed")):
        lines = [
            "#!/bin/sh",
            "unset GIT_QUARANTINE_PATH GIT_OBJECT_DIRECTORY",
            f"mkdir -p $(dirname refs/tags/{NAME})",
        ]
        hook.write_text("\n".join([*lines, f"echo {target} > refs/tags/{NAME}", "exit 1", ""]))
        hook.chmod(0o755)
        assert push(bare)["tag"]["state"] == state
        assert tags(bare)[NAME][1] == target
        git(bare, "update-ref", "-d", f"refs/tags/{NAME}")


@pytest.fixture(scope="module")
def read_only(origin):
    """A server that gives and takes nothing (git daemon without receive-pack)."""
    for _attempt in range(5):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        words = [
            "git",
            "daemon",
            "--export-all",
            "--listen=127.0.0.1",
            f"--port={port}",
            f"--base-path={origin.parent}",
            "--reuseaddr",
        ]
        server = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 20
        while server.poll() is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        if server.poll() is None:
            break
    else:
        pytest.skip("git daemon does not start on this machine")
    yield f"git://127.0.0.1:{port}/shop.git"
    os.killpg(server.pid, 15)
    server.wait(20)


def test_a_server_that_takes_nothing_is_reported(origin, read_only):
    answer = push(origin, repository=read_only)
    assert answer["tag"]["state"] == "failed"
    assert "git push at git://127.0.0.1" in answer["tag"]["message"]
    assert tags(origin) == {}


def test_a_server_that_says_nothing_is_given_up(bare):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"git://127.0.0.1:{silent.getsockname()[1]}/shop.git"
        answer = push(bare, spec={"timeout": 1}, repository=address)
    assert "git ls-remote took longer than 1 s" in answer["tag"]["message"]


def test_a_password_in_the_address_is_not_shown(bare, warned):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://bob:hush-hush@127.0.0.1:{closed.getsockname()[1]}/shop.git"
        answer = push(bare, repository=address)
    assert answer["tag"]["state"] == "failed"
    assert "hush-hush" not in str(answer) + str(warned)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"commit": "a" * 40}, "has no commit aaaaaaaaaaaa"),
        ({"commit": "sha256:1"}, "is no commit that a repository could have"),
        ({"commit": None}, "is no commit that a repository could have"),
        ({"version": "v 2"}, "git can make no tag of that name"),
        ({"version": "../x"}, "git can make no tag of that name"),
    ],
)
def test_what_cannot_be_tagged_is_reported(bare, changes, said):
    answer = push(bare, **changes)
    assert answer["tag"]["state"] == "failed"
    assert said in answer["tag"]["message"]
    assert tags(bare) == {}


def test_a_repository_that_is_not_there_is_reported(bare, tmp_path):
    assert "git ls-remote at" in push(bare, repository=str(tmp_path / "nowhere.git"))["tag"]["message"]
    shutil.move(bare, tmp_path / "moved.git")
    assert push(tmp_path / "moved.git", repository="-x")["tag"]["state"] == "failed"


def test_another_address_for_the_controller(bare, tmp_path):
    assert push(bare, repository="/nowhere", spec={"repository": str(bare)})["tag"]["state"] == "pushed"
    assert NAME in tags(bare)


def test_check_mode_pushes_nothing(bare):
    assert push(bare, check=True)["tag"] == {}
    assert tags(bare) == {}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"message": "x"}, "name must be a text"),
        ({"name": "x", "massage": "y"}, "unknown key 'massage'"),
        ({"name": "{env}"}, "names {env}, which is unknown"),
        ({"name": "{version"}, "is no template"),
        ({"name": "a b"}, "git can make no tag"),
        ({"name": "a..b"}, "git can make no tag"),
        ({"name": "-x"}, "git can make no tag"),
        ({"name": "x.lock"}, "git can make no tag"),
        ({"name": "x", "timeout": 0}, "number of seconds"),
        ({"name": "x", "message": "{0}"}, "unknown"),
    ],
)
def test_what_is_no_tag_is_refused(value, said):
    with pytest.raises(Problem, match=said):
        parse_tag(value)
    assert parse_tag({}) is None


def test_the_placeholders():
    found = fields_of({"commit": "c" * 40, "finished": "2026-11-21T02:03:04Z", "stage": "staging"})
    assert (found["version"], found["date"], found["time"], found["environment"]) == (
        "c" * 12,
        "2026-11-21",
        "020304",
        "staging",
    )
