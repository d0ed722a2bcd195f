# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cannot work is refused with one sentence, before anything is changed; a check changes nothing either."""

from __future__ import annotations

import hashlib
import subprocess
from typing import Any, NamedTuple

import pytest
from site_tools import PROJECT, REPOSITORY, ROOT, Site

ARCHIVE = "/nowhere/goexplorer.tar"


class Case(NamedTuple):
    """Bad input: what differs from application.yml, the command line, and what the sentence has to say."""

    name: str
    says: tuple[str, ...]
    changes: dict[str, Any] = {}
    words: tuple[str, ...] = ()
    extra: dict[str, Any] = {"version": "v2.7"}


CASES = (
    Case("version", ("app_version 'v9.9'", "v2.8", "correct app_version"), extra={"version": "v9.9"}),
    Case("no version", ("app_version is missing", "-e version=v2.7"), extra={}),
    Case(
        "repository",
        ("app_repository '/repositories/nowhere.git'", "does not exist", "correct the address"),
        {"app_repository": "/repositories/nowhere.git"},
    ),
    Case("missing variable", ("app_services is missing", "group_vars"), {"app_services": None}),
    Case(
        "unknown variable",
        ("app_setting_module", "did you mean app_settings_module?"),
        {"app_setting_module": "goexplorer.settings"},
    ),
    Case(
        "database inside a release",
        ("app_database.path", f"{ROOT}/current/db.sqlite3", "move it below"),
        {"app_database": {"engine": "sqlite", "path": f"{ROOT}/current/db.sqlite3"}},
    ),
    Case(
        "a file for each host",
        ("app_database", "guard1, guard2", "app_database.shared: true"),
        {"app_database": {"engine": "sqlite", "path": "/data/goexplorer.sqlite3"}},
    ),
    Case(
        "socket path",
        ("app_root", "bytes", "107", "choose a shorter app_root"),
        {"app_root": "/srv/" + "x" * 80},
    ),
    Case(
        "stage",
        ("env is 'production'", "'guards'", "inventory"),
        extra={"version": "v2.7", "env": "production"},
    ),
    Case("limit", ("primary host guard1", "--limit", "app_primary"), words=("--limit", "guard2")),
    Case(
        "archive that is not there",
        ("app_archive.path", ARCHIVE, "give the path"),
        {"app_repository": None, "app_archive": {"path": ARCHIVE, "sha256": "0" * 64}},
    ),
    Case("user", ("app_user 'nobody-here'", "does not exist", "setup.yml"), {"app_user": "nobody-here"}),
    Case("root", ("app_root '/srv/never'", "does not exist", "setup.yml"), {"app_root": "/srv/never"}),
)


def without_mirror(tree: dict[str, list]) -> dict[str, list]:
    """The tree without the mirror of the repository, which a refused deployment may have fetched into."""
    return {path: entry for path, entry in tree.items() if not path.startswith(f"{ROOT}/repository.git")}


def trees(site: Site) -> list[dict[str, list]]:
    return [without_mirror(tree) for tree in site.trees()]


def assert_refused(site: Site, run, before, says) -> None:
    """One sentence, one line, and every host as it was."""
    assert run.rc != 0
    said = set(run.messages)
    assert len(said) == 1, run.output[-3000:]
    sentence = said.pop()
    assert "\n" not in sentence
    assert all(part in sentence for part in says), sentence
    assert trees(site) == before
    assert all("unknown" not in line for line in run.end.splitlines()), run.end


# Two that are seen on the controller, one that is seen on a host.
IN_SHORT = ("version", "limit", "a file for each host")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.short] if case.name in IN_SHORT else [])
        for case in CASES
    ],
)
def test_bad_input_is_refused(site, tmp_path, case):
    before = trees(site)
    run = Site(tmp_path, **case.changes).play("deploy", *case.words, **case.extra)
    assert_refused(site, run, before, case.says)
    assert site.answer() == ["v2.6", "v2.6"]


def test_an_inventory_with_no_host_in_group_app(site, tmp_path):
    wrong = Site(tmp_path)
    (tmp_path / "hosts.yml").write_text("all: {children: {app: {hosts: {}}}}\n")
    before = trees(site)
    assert_refused(site, wrong.deploy("v2.7"), before, ("no host in group app", "hosts.yml"))


def test_an_archive_that_is_another_one(site, tmp_path):
    path = tmp_path / "goexplorer.tar"
    subprocess.run(["git", "-C", REPOSITORY, "archive", "-o", path, "v2.7"], check=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    wrong = Site(tmp_path, app_repository=None, app_archive={"path": str(path), "sha256": "0" * 64})
    before = trees(site)
    assert_refused(site, wrong.play("deploy"), before, ("app_archive.sha256 is 000", found))


def test_current_is_a_directory(site):
    """What an installation by hand often looks like: nothing of it is touched."""
    primary = site.members[0]
    primary.sh(f"cd {ROOT} && mv current .current && mkdir current && echo mine > current/file")
    try:
        before = trees(site)
        run = site.deploy("v2.7")
        assert_refused(site, run, before, (f"'{ROOT}/current'", "is a directory", "move the directory away"))
        assert primary.sh(f"cat {ROOT}/current/file") == "mine"
    finally:
        primary.sh(f"cd {ROOT} && rm -r current && mv .current current")
    assert site.answer() == ["v2.6", "v2.6"]


def test_a_check_of_an_upgrade_shows_commits_migrations_and_files(site):
    before = site.trees()
    run = site.good("deploy", "--check", "--diff", version="v2.7")
    assert site.trees() == before
    assert "-version: v2.6" in run.output
    assert "+version: v2.7" in run.output
    subject = subprocess.run(
        ["git", "-C", REPOSITORY, "log", "-1", "--format=%s", "v2.7"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert subject.stdout.strip() in run.output
    assert "owner_agreements.0004_adminnote" in run.output
    assert "A owner_agreements/intelligence_views.py" in run.output
    assert site.answer() == ["v2.6", "v2.6"]


def test_a_check_of_what_is_there_already_has_nothing_to_do(site):
    before = site.trees()
    run = site.good("deploy", "--check", "--diff", version="v2.6")
    assert site.trees() == before
    assert "changed=0" in run.output
    assert "changed=1" not in run.output


def test_a_check_of_a_rollback_shows_the_decision_and_changes_nothing(site):
    site.good("deploy", version="v2.7")
    before = site.trees()
    run = site.good("rollback", "--check")
    assert site.trees() == before
    assert "decision  code" in run.end
    assert "owner_agreements.0004_adminnote" in run.end
    assert site.answer() == ["v2.7", "v2.7"]


@pytest.mark.short
def test_module_executions_are_what_a_deployment_costs(site, tmp_path):
    """At most 10 on the primary and 6 on another host; with nothing to do at most 4 on each."""
    counted = tmp_path / "executions"
    environment = {
        "ANSIBLE_CALLBACK_PLUGINS": str(PROJECT / "tests" / "callbacks"),
        "ANSIBLE_CALLBACKS_ENABLED": "executions",
        "RUNBOOK_EXECUTIONS": str(counted),
    }
    for most in ({"guard1": 10, "guard2": 6}, {"guard1": 4, "guard2": 4}):
        counted.write_text("")
        run = site.run(site.command("deploy", version="v2.8"), **environment)
        assert run.rc == 0, run.output[-4000:]
        assert site.answer() == ["v2.8", "v2.8"]
        lines = [line.split() for line in counted.read_text().splitlines()]
        found = {name: [module for where, module in lines if where == name] for name in most}
        print(found)
        for name, modules in found.items():
            # None at all would be a callback that sees nothing.
            assert 1 <= len(modules) <= most[name], found
