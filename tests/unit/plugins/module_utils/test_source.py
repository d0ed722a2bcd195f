# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import base64
import concurrent.futures
import functools
import hashlib
import http.server
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _git, _source
from ansible_collections.runbook.deploy.plugins.module_utils._git import sweep
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._source import (
    changed_files,
    commits_between,
    list_files,
    provide,
    read_file,
    resolve,
)
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.release_tools import (
    Repository,
    snapshot,
)


@pytest.fixture(name="repository")
def fixture_repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "shop")
    repository.commit("one", {"a": "1\n", "app/migrations/0001_initial.py": "x\n"}, tag="v1.0")
    repository.commit("two: a tab\there", {"a": "2\n", "ü name": "3\n"})
    repository.git("tag", "-a", "v1.1", "-m", "annotated")
    return repository


@pytest.fixture(name="layout")
def fixture_layout(tmp_path: Path) -> Layout:
    (tmp_path / "root").mkdir()
    return Layout(tmp_path / "root")


def source(repository: Repository) -> dict[str, object]:
    return {"repository": str(repository.path), "key": None, "known_hosts": None, "archive": None}


def commit_of(layout: Layout, repository: Repository, version: str, **options: bool) -> str:
    with resolve(layout, source(repository), version, **options) as found:
        assert found.version == version
        return found.commit


def test_tags_branches_and_commits_become_one_commit(layout: Layout, repository: Repository) -> None:
    one, two = repository.git("rev-parse", "v1.0"), repository.git("rev-parse", "HEAD")
    repository.git("tag", "-a", "of-a-tag", "v1.1", "-m", "a tag of a tag")
    for version in ("v1.1", "of-a-tag", "main", "refs/heads/main", two, two[:7]):
        assert commit_of(layout, repository, version) == two
    assert commit_of(layout, repository, "v1.0") == one


def test_a_moved_branch_and_a_moved_tag_are_followed(layout: Layout, repository: Repository) -> None:
    commit_of(layout, repository, "main")
    repository.git("checkout", "-q", "--orphan", "other")
    moved = repository.commit("rewritten", {"b": "1\n"})
    repository.git("branch", "-f", "main", moved)
    repository.git("tag", "-f", "v1.0", moved)
    assert commit_of(layout, repository, "main") == moved
    assert commit_of(layout, repository, "v1.0") == moved


def test_a_removed_branch_makes_way_for_a_directory_of_branches(
    layout: Layout, repository: Repository
) -> None:
    repository.git("branch", "feature")
    commit_of(layout, repository, "feature")
    repository.git("branch", "-D", "feature")
    repository.git("branch", "feature/login")
    commit_of(layout, repository, "feature/login")
    with pytest.raises(Problem, match="app_version 'feature' is no tag"):
        commit_of(layout, repository, "feature")


def test_a_tag_wins_over_a_branch_and_it_is_said(layout: Layout, repository: Repository) -> None:
    repository.git("branch", "v1.0", "main")
    with resolve(layout, source(repository), "v1.0") as found:
        assert found.commit == repository.git("rev-parse", "refs/tags/v1.0")
        assert "both a tag" in found.note and "refs/heads/v1.0" in found.note
    with resolve(layout, source(repository), "refs/heads/v1.0") as found:
        assert (found.commit, found.note) == (repository.git("rev-parse", "main"), "")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (
            "v1.2",
            r"app_version 'v1.2' is no tag, branch or commit of app_repository .*the nearest are v1\.\d, v1\.\d",
        ),
        ("zzzz", r"its last tags are v1\.1, v1\.0"),
        ("0" * 40, "is no commit of app_repository"),
        ("0123456", "is no tag, branch or commit"),
        ("", "app_version is empty"),
        ("--all", "is no tag, branch or commit"),
    ],
)
def test_a_version_that_does_not_exist(
    layout: Layout, repository: Repository, version: str, message: str
) -> None:
    with pytest.raises(Problem, match=message):
        commit_of(layout, repository, version)


def test_an_abbreviation_of_two_commits_is_refused(layout: Layout, repository: Repository) -> None:
    tree = repository.git("rev-parse", "HEAD^{tree}")
    person = "Ada <ada@example.org> 1700000000 +0000"
    seen: dict[str, str] = {}
    for number in itertools.count():
        text = f"tree {tree}\nauthor {person}\ncommitter {person}\n\n{number}\n"
        commit = hashlib.sha1(f"commit {len(text)}\0{text}".encode()).hexdigest()
        if commit[:4] in seen:
            break
        seen[commit[:4]] = text
    beginning, commits = commit[:4], []
    for number, content in enumerate((seen[commit[:4]], text)):
        (repository.path / "raw").write_text(content)
        commits.append(repository.git("hash-object", "-t", "commit", "-w", "raw"))
        repository.git("branch", f"b{number}", commits[-1])
    with pytest.raises(Problem, match="is the beginning of 2 commits") as caught:
        commit_of(layout, repository, beginning)
    assert sorted(caught.value.evidence.split()) == sorted(commits)


def test_a_tag_of_a_file_and_an_empty_repository(
    layout: Layout, repository: Repository, tmp_path: Path
) -> None:
    repository.git("tag", "file", "HEAD:a")
    with pytest.raises(Problem, match="names no commit"):
        commit_of(layout, repository, "file")
    empty = Repository(tmp_path / "empty")
    with pytest.raises(Problem, match="no branch and no tag"):
        commit_of(Layout(layout.root), empty, "v1")


def test_a_commit_without_a_branch_is_asked_for(layout: Layout, repository: Repository) -> None:
    lost = repository.commit("lost", {"a": "9\n"})
    repository.git("reset", "-q", "--hard", "v1.1")
    repository.git("config", "uploadpack.allowAnySHA1InWant", "true")
    assert commit_of(layout, repository, lost) == lost
    repository.git("reflog", "expire", "--expire=now", "--all")
    repository.git("gc", "-q", "--prune=now")
    # The mirror keeps it, although no branch and no tag leads to it.
    subprocess.run(["git", f"--git-dir={layout.mirror}", "gc", "-q", "--prune=now"], check=True)
    assert commit_of(layout, repository, lost) == lost


def test_check_mode_leaves_the_host_as_it_was(layout: Layout, repository: Repository) -> None:
    before = snapshot(layout.root)
    commit_of(layout, repository, "v1.0", check_mode=True)
    assert snapshot(layout.root) == before
    commit_of(layout, repository, "v1.0")
    new = repository.commit("three", {"c": "1\n"})
    before = snapshot(layout.root)
    with resolve(layout, source(repository), "main", check_mode=True) as found:
        assert found.commit == new
        assert [entry["subject"] for entry in commits_between(found.git_dir, found.commit + "^", new)] == [
            "three"
        ]
        temporary = found.git_dir
    assert not temporary.parent.exists()
    assert snapshot(layout.root) == before


def test_what_changed(layout: Layout, repository: Repository) -> None:
    with resolve(layout, source(repository), "v1.1") as found:
        old = repository.git("rev-parse", "v1.0")
        commits = commits_between(found.git_dir, old, found.commit)
        assert [(item["commit"], item["subject"], item["author"]) for item in commits] == [
            (found.commit, "two: a tab\there", "Ada")
        ]
        assert commits[0]["date"][:2] == "20"
        assert changed_files(found.git_dir, old, found.commit) == [
            {"status": "M", "path": "a"},
            {"status": "A", "path": "ü name"},
        ]
        assert list_files(found.git_dir, old) == ["a", "app/migrations/0001_initial.py"]
        assert read_file(found.git_dir, old, "a") == "1\n"
        assert read_file(found.git_dir, old, "no") is None
        for unknown in (None, "", "0" * 40):
            assert commits_between(found.git_dir, unknown, found.commit) == []
            assert changed_files(found.git_dir, unknown, found.commit) == []
    assert (list_files(None, old), read_file(None, old, "a"), commits_between(None, old, old)) == (
        [],
        None,
        [],
    )


def test_a_killed_fetch_leaves_a_usable_mirror(layout: Layout, repository: Repository) -> None:
    commit_of(layout, repository, "v1.0")
    wanted = repository.commit("big", {"big": os.urandom(3_000_000).hex()})
    script = (
        "import sys\n"
        "from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout\n"
        "from ansible_collections.runbook.deploy.plugins.module_utils._source import resolve\n"
        "with resolve(Layout(sys.argv[1]), {'repository': sys.argv[2]}, 'main'): pass\n"
    )
    for delay in (0.12, 0.2, 0.3):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(layout.root), str(repository.path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,
        )
        time.sleep(delay)
        for pid in (
            [process.pid, *_source.working_in(layout.mirror)] if layout.mirror.is_dir() else [process.pid]
        ):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()
    # What a killed git leaves behind when it is killed at the worst moment.
    for name in ("packed-refs.lock", "refs/heads/main.lock", "HEAD.lock", "config.lock"):
        (layout.mirror / name).touch()
    assert commit_of(layout, repository, "main") == wanted
    assert not (layout.mirror / "refs/heads/main.lock").exists()


def test_a_lock_of_a_git_that_works_is_respected(layout: Layout, repository: Repository) -> None:
    commit_of(layout, repository, "v1.0")
    lock = layout.mirror / "refs/heads/main.lock"
    lock.touch()
    with subprocess.Popen(["sleep", "30"], cwd=layout.mirror) as other:
        try:
            assert _source.remove_stale_locks(layout.mirror, 0.3) is False
            assert lock.exists()
        finally:
            other.kill()
    assert _source.remove_stale_locks(layout.mirror, 5) is True
    assert not lock.exists()


def test_two_fetches_wait_for_each_other(layout: Layout, repository: Repository) -> None:
    commit_of(layout, repository, "v1.0")
    with _source.fetching(layout.mirror, 1), pytest.raises(Problem, match="Another run has been fetching"):
        commit_of_short = functools.partial(resolve, layout, source(repository), "v1.0", timeout=0.2)
        with commit_of_short():
            pass


def test_many_at_once_make_one_mirror(layout: Layout, repository: Repository) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = [pool.submit(commit_of, layout, repository, "v1.0") for _number in range(8)]
    assert len({future.result() for future in found}) == 1


def test_a_half_made_and_a_broken_mirror_are_made_again(layout: Layout, repository: Repository) -> None:
    layout.mirror.mkdir()
    (layout.mirror / "config.lock").touch()
    (layout.mirror / "objects").mkdir()
    commit_of(layout, repository, "v1.0")
    shutil.rmtree(layout.mirror / "refs")
    commit_of(layout, repository, "v1.0")
    for entry in layout.mirror.glob("objects/??/*"):
        entry.chmod(0o644)
        entry.write_bytes(b"")
    wanted = repository.commit("three", {"c": "1\n"})
    assert commit_of(layout, repository, "main") == wanted


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("/nowhere/shop.git", "app_repository '/nowhere/shop.git' cannot be fetched .* does not exist"),
        ("http://ada:s3cr3t-pass@127.0.0.1:9/shop.git", "cannot be reached"),
        ("--upload-pack=/bin/false", "begins with '-'"),
        ("ext::sh -c false", "cannot be fetched"),
    ],
)
def test_a_repository_that_cannot_be_read(layout: Layout, address: str, message: str) -> None:
    with pytest.raises(Problem, match=message) as caught, resolve(layout, {"repository": address}, "v1"):
        pass
    assert "s3cr3t-pass" not in caught.value.message + caught.value.evidence


def test_where_the_code_comes_from_is_said_once(layout: Layout) -> None:
    for given in (
        {},
        {"repository": "/x", "archive": {"path": "/x", "sha256": "0"}},
        {"archive": {"path": None}},
    ):
        with (
            pytest.raises(Problem, match="Exactly one of app_repository and app_archive"),
            resolve(layout, given, "v"),
        ):
            pass


def test_another_user_may_own_the_repository(layout: Layout, repository: Repository) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files to another user")
    for parent, _names, files in os.walk(repository.path):
        for name in [".", *files]:
            os.chown(os.path.join(parent, name), 65534, 65534)
    assert commit_of(layout, repository, "v1.1")


class Guarded(http.server.SimpleHTTPRequestHandler):
    """A file server that wants to know who asks."""

    def do_GET(self) -> None:
        wanted = "Basic " + base64.b64encode(b"ada:s3cr3t/pass").decode()
        if self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *arguments: object) -> None:
        return None


def test_credentials_of_the_address_are_used_and_never_seen(
    layout: Layout, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.git("clone", "-q", "--bare", str(repository.path), str(tmp_path / "shop.git"))
    repository.git("update-server-info", cwd=tmp_path / "shop.git")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Guarded, directory=str(tmp_path))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    seen: list[str] = []
    original = _git.run

    def spy(argv: list[str], **options: object) -> object:
        seen.append(repr(argv) + repr(options.get("environment")))
        return original(argv, **options)

    monkeypatch.setattr(_git, "run", spy)
    try:
        address = f"http://ada:s3cr3t%2Fpass@127.0.0.1:{server.server_port}/shop.git"
        with resolve(layout, {"repository": address}, "v1.1") as found:
            assert found.commit == repository.git("rev-parse", "main")
        with (
            pytest.raises(Problem, match=r"refuses access") as caught,
            resolve(layout, {"repository": address.replace("s3cr3t", "wr0ng00")}, "v1.1"),
        ):
            pass
    finally:
        server.shutdown()
        server.server_close()
    assert seen and not any("s3cr3t" in line or "wr0ng00" in line for line in seen)
    assert "wr0ng00" not in caught.value.message + caught.value.evidence
    for path in layout.mirror.rglob("*"):
        assert not path.is_file() or b"s3cr3t" not in path.read_bytes()


def test_a_key_is_used_alone_and_only_with_known_hosts(tmp_path: Path) -> None:
    with (
        pytest.raises(Problem, match="app_repository_known_hosts is empty"),
        _git.Access.open({"repository": "git@example.org:shop.git", "key": "KEY"}),
    ):
        pass
    given = {
        "repository": "git@example.org:shop.git",
        "key": "KEY\r\nTEXT\n\n",
        "known_hosts": "example.org ssh-ed25519 A",
    }
    with _git.Access.open(given) as access:
        command = access.environment["GIT_SSH_COMMAND"].split()
        options = dict(word.split("=", 1) for word in command if "=" in word)
        assert options["IdentitiesOnly"] == options["StrictHostKeyChecking"] == "yes"
        key = Path(options["IdentityFile"])
        assert key.read_text() == "KEY\nTEXT\n"
        assert (key.stat().st_mode & 0o777, key.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert Path(options["UserKnownHostsFile"]).read_text() == "example.org ssh-ed25519 A\n"
        assert "KEY" not in " ".join(command)
    assert not key.exists()


def test_another_host_fetches_only_what_it_lacks(layout: Layout, repository: Repository) -> None:
    first = commit_of(layout, repository, "v1.1")
    gone = {"repository": "/nowhere"}
    with provide(layout, gone, "v1.1", first) as found:
        assert found == (layout.mirror, first, "v1.1", "")
    second = repository.commit("three", {"c": "1\n"})
    with pytest.raises(Problem, match="does not exist"), provide(layout, gone, "main", second):
        pass
    with provide(layout, source(repository), "main", second) as found:
        assert (found.commit, found.version) == (second, "main")


def test_the_key_of_a_killed_run_is_removed_by_a_later_one(tmp_path: Path) -> None:
    for name in ("runbook-git-old", "runbook-git-new", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "key").write_text("secret")
    for name in ("runbook-git-old", "other"):
        os.utime(tmp_path / name, (1000, 1000))
    sweep(tmp_path, before=2000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "runbook-git-new"]
