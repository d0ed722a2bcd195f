# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The repository of the test application: the same in each run, with every tag, each breaking only what it names."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "applications" / "make_repository.py"
SPECIFICATION = importlib.util.spec_from_file_location("make_repository", SCRIPT)
make_repository = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(make_repository)

REGION = {
    "owner_agreements/models/signals.py",
    "owner_agreements/migrations/0005_agreementrisksignal_region.py",
}
WITHOUT_REFERENCE = {
    "owner_agreements/admin.py",
    "owner_agreements/management/commands/create_demo_data.py",
    "owner_agreements/migrations/0005_remove_owneragreement_reference.py",
    "owner_agreements/models/agreements.py",
    "owner_agreements/templates/owner_agreements/owners.html",
}
HEALTH = {"owner_agreements/health.py"}
# Those that are not built on v2.7.
PARENTS = {"v2.7": "v2.6", "irreversible-broken": "irreversible", "destructive-broken": "destructive"}
# What each tag changes against its parent, besides VERSION: a broken tag breaks one thing.
CHANGES = {
    "v2.8": {"goexplorer/templates/404.html", "owner_agreements/static/owner_agreements/site.css"},
    "broken-migration": REGION | {"owner_agreements/migrations/0006_regional_review.py"},
    "broken-migration-partial": REGION | {"owner_agreements/migrations/0006_regional_review.py"},
    "irreversible": REGION,
    "destructive": WITHOUT_REFERENCE,
    "irreversible-broken": HEALTH,
    "destructive-broken": HEALTH,
    "broken-boot": {"goexplorer/wsgi.py"},
    "broken-health": HEALTH,
    "crash-later": {"goexplorer/wsgi.py"},
    "slow": {"goexplorer/middleware.py"},
    "broken-dependency": {"requirements.txt"},
    "broken-static": {"goexplorer/storage.py", "static_manifest.json"},
}


def git(repository: Path, *arguments: str) -> str:
    """Return what git prints in *repository*."""
    command = ["git", "-c", "safe.directory=*", "-C", str(repository), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bare repository, made once."""
    destination = tmp_path_factory.mktemp("repository") / "goexplorer.git"
    make_repository.build(destination)
    return destination


def references(repository: Path) -> str:
    """Return all references with the objects that they name, tag objects included."""
    return git(repository, "for-each-ref", "--format=%(objectname) %(refname)")


def test_second_run_elsewhere_and_under_another_configuration_gives_the_same_ids(
    repository: Path, tmp_path: Path
) -> None:
    """Neither the clock, nor the user's git configuration, nor the kind of repository is in an id."""
    (tmp_path / "gitconfig").write_text(
        "[user]\nname = Somebody\nemail = x@example.org\n[core]\nautocrlf = true\n[init]\ndefaultBranch = trunk\n"
    )
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig"), "TZ": "Asia/Tokyo"}
    environment.update(GIT_AUTHOR_NAME="Somebody", GIT_DIR=str(tmp_path / "elsewhere"))
    command = [sys.executable, str(SCRIPT), "--work-tree", str(tmp_path / "tree")]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert references(tmp_path / "tree") == references(repository)
    assert (tmp_path / "tree" / "VERSION").read_text() == "v2.7\n"
    assert git(tmp_path / "tree", "status", "--porcelain") == ""
    assert f"{git(repository, 'rev-parse', 'slow').strip()} slow\n" in printed


def test_tags_dates_and_parents(repository: Path) -> None:
    """Every tag is there, one commit after its parent, and HEAD is v2.7."""
    tags = set(git(repository, "tag", "--list").split())
    assert tags == set(CHANGES) | {"v2.6", "v2.7"}
    for tag in tags - {"v2.6"}:
        parent = PARENTS.get(tag, "v2.7")
        assert git(repository, "rev-parse", f"{tag}^") == git(repository, "rev-parse", f"{parent}^{{commit}}")
    assert git(repository, "rev-parse", "HEAD") == git(repository, "rev-parse", "v2.7^{commit}")
    assert git(repository, "cat-file", "-t", "v2.7").strip() == "tag"
    assert git(repository, "cat-file", "-t", "slow").strip() == "commit"
    assert git(repository, "log", "-1", "--format=%at|%ct|%an", "v2.6").strip() == (
        "1767690000|1767690000|GoExplorer"
    )


@pytest.mark.parametrize("tag", sorted(CHANGES))
def test_a_tag_changes_what_it_names_and_nothing_else(repository: Path, tag: str) -> None:
    """So that a deployment of it fails for one reason."""
    changed = set(git(repository, "diff", "--name-only", PARENTS.get(tag, "v2.7"), tag).split())
    assert changed == CHANGES[tag] | {"VERSION"}
    assert git(repository, "show", f"{tag}:VERSION") == f"{tag}\n"


def test_v27_adds_and_needs_no_new_dependency(repository: Path) -> None:
    """Nothing is removed; the requirements are the same file; the dashboard is new."""
    changes = [
        line.split("\t") for line in git(repository, "diff", "--name-status", "v2.6", "v2.7").splitlines()
    ]
    assert {state for state, _path in changes} == {"A", "M"}
    paths = {path for _state, path in changes}
    assert "owner_agreements/migrations/0004_adminnote.py" in paths
    assert "requirements.txt" not in paths


def test_every_file_of_every_tag_compiles_and_commands_are_executable(repository: Path) -> None:
    """The broken tags break when they run, not when they are read."""
    seen = set()
    for tag in (*CHANGES, "v2.6", "v2.7"):
        for line in git(repository, "ls-tree", "-r", tag).splitlines():
            (mode, _kind, blob), path = line.split("\t")[0].split(), line.split("\t")[1]
            assert not path.endswith(".pyc")
            if path.endswith(".py") and (blob, path) not in seen:
                seen.add((blob, path))
                source = git(repository, "cat-file", "blob", blob)
                compile(source, path, "exec")
                assert (mode == "100755") == source.startswith("#!"), path
    assert len(seen) > 40


def test_run_again_repairs_and_removes_what_others_added(repository: Path, tmp_path: Path) -> None:
    """A repository that was played with is as new; so is its work tree."""
    destination = tmp_path / "again"
    make_repository.build(destination, bare=False)
    git(destination, "tag", "--force", "v2.8", "v2.6^{commit}")
    git(destination, "branch", "experiment", "slow")
    (destination / "VERSION").write_text("edited\n")
    (destination / "leftover").write_text("x\n")
    make_repository.build(destination, bare=False)
    assert references(destination) == references(repository)
    assert git(destination, "status", "--porcelain") == ""


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    """A repository, or a directory, that the script did not make stays as it is."""
    foreign = tmp_path / "foreign"
    subprocess.run(["git", "init", "--quiet", "--bare", str(foreign)], check=True)
    with pytest.raises(SystemExit, match="did not make"):
        make_repository.build(foreign)
    assert references(foreign) == ""
    used = tmp_path / "used"
    used.mkdir()
    (used / "file").write_text("x")
    for bare in (True, False):
        with pytest.raises(SystemExit, match="not empty"):
            make_repository.build(used, bare=bare)
    assert [path.name for path in used.iterdir()] == ["file"]


def test_what_running_the_application_leaves_is_not_in_the_repository(tmp_path: Path) -> None:
    """A developer who ran manage.py in the sources gets the same ids."""
    (tmp_path / "app" / "__pycache__").mkdir(parents=True)
    for name in ("app/__pycache__/x.pyc", "app/code.py", "db.sqlite3", "db.sqlite3-wal", "VERSION"):
        (tmp_path / name).write_text("x")
    assert set(make_repository.files_of(tmp_path)) == {"app/code.py"}
