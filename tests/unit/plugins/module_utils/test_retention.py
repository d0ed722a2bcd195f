# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _retention as retention
from ansible_collections.runbook.deploy.plugins.module_utils import _state as state
from ansible_collections.runbook.deploy.plugins.module_utils._layout import replace_link, write_json
from ansible_collections.runbook.deploy.plugins.module_utils._record import read_records
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.deployed_host import deployed_host

NAMES = [f"{number:012x}-{number:08x}" for number in range(1, 10)]
IDS = [f"202601{number:02}T000000-{number:04x}" for number in range(1, 10)]


@pytest.fixture
def host():
    with deployed_host() as made:
        yield made


def deploy(
    host, number: int, verdict: str | None = "success", complete: bool = True, **fields
) -> tuple[str, str]:
    """Make release and record *number* (from 1) with its instance's files, its environment and its backup."""
    name, deployment = NAMES[number - 1], IDS[number - 1]
    host.release(name, complete=complete, environment=f"env{number}")
    environment = host.layout.environment(f"env{number}")
    environment.mkdir(exist_ok=True)
    backup = host.layout.backup(f"b{number}")
    backup.mkdir(parents=True)
    write_json(backup / "manifest.json", {"created": f"2026-01-{number:02}T00:00:00Z"}, 0o600)
    host.record(deployment, name, verdict, backup={"id": f"b{number}"}, **fields)
    host.layout.environment_file(deployment).write_text("SECRET=1")
    host.layout.launcher(deployment, "web").write_text("#!/bin/sh")
    write_json(host.layout.instance_file(deployment), {"release": name}, 0o640)
    replace_link(host.layout.release_instance(name), deployment)
    return name, deployment


def apply(host, keep: int = 2, keep_backups: int = 2, **options) -> dict:
    return retention.apply(
        host.layout,
        state.measure(host.layout),
        read_records(host.layout),
        keep=keep,
        keep_backups=keep_backups,
        **options,
    )


def left(path) -> list[str]:
    return sorted(os.listdir(path))


def test_the_last_releases_stay_and_all_of_the_others_goes(host) -> None:
    for number in range(1, 6):
        deploy(host, number)
    host.switch(NAMES[4], IDS[4])
    host.layout.static.mkdir()
    (host.layout.static / "old.1234.css").touch()
    # Times lie: the oldest release was touched last.
    os.utime(host.layout.release(NAMES[0]), (4e9, 4e9))
    # The collection's own, which no release names.
    host.layout.environment("store-1").mkdir()
    before = host.tree()
    planned = apply(host, check_mode=True)
    assert host.tree() == before, "check mode removes nothing"
    removed = apply(host)
    assert planned == removed
    assert removed["errors"] == []
    assert left(host.layout.releases) == [NAMES[3], NAMES[4]]
    assert left(host.layout.environments) == ["env4", "env5", "store-1"]
    assert left(host.layout.backups) == ["b4", "b5"]
    assert {name.split(".")[0] for name in left(host.layout.instances)} == {
        NAMES[3],
        NAMES[4],
        IDS[3],
        IDS[4],
    }
    assert left(host.layout.static) == ["old.1234.css"]
    assert len(removed["instances"]) == 3 * 4
    assert len(left(host.layout.deployments)) == 5, "records are never removed"
    assert not any(apply(host).values())


def test_failed_deployments_never_displace_a_good_release(host) -> None:
    deploy(host, 1)
    deploy(host, 2)
    for number in range(3, 8):
        deploy(host, number, "rolled_back", complete=number % 2 == 0)
    host.switch(NAMES[1], IDS[1])
    apply(host, keep=2)
    kept = left(host.layout.releases)
    assert NAMES[0] in kept
    assert NAMES[1] in kept
    assert not set(kept) & {NAMES[2], NAMES[4], NAMES[6]}, "what is not complete goes"


def test_one_release_kept_still_leaves_the_way_back(host) -> None:
    for number in range(1, 4):
        deploy(host, number, previous={"release": NAMES[number - 2]} if number > 1 else None)
    host.switch(NAMES[2], IDS[2])
    apply(host, keep=1, keep_backups=0)
    assert left(host.layout.releases) == [NAMES[1], NAMES[2]]
    assert left(host.layout.backups) == ["b2", "b3"]


def test_after_a_rollback_the_live_release_is_the_older_one(host) -> None:
    for number in range(1, 4):
        deploy(host, number)
    host.switch(NAMES[0], IDS[0])
    host.record(
        IDS[3],
        NAMES[0],
        kind="rollback",
        instance=IDS[0],
        previous={"release": NAMES[2], "deployment": IDS[2]},
    )
    apply(host, keep=1)
    assert NAMES[0] in left(host.layout.releases)
    assert host.layout.environment_file(IDS[0]).exists()


@pytest.mark.parametrize("verdict", [None, "stopped"])
def test_what_somebody_will_still_act_on_stays(host, verdict: str | None) -> None:
    for number in range(1, 5):
        deploy(host, number)
    deploy(host, 5, verdict, complete=False, previous={"release": NAMES[0]})
    host.switch(NAMES[3], IDS[3])
    removed = apply(host, keep=1, keep_backups=0)
    assert removed["releases"] == [NAMES[1]]
    assert left(host.layout.releases) == [NAMES[0], NAMES[2], NAMES[3], NAMES[4]]
    assert left(host.layout.backups) == ["b3", "b4", "b5"]
    assert host.layout.environment_file(IDS[4]).exists()


def test_the_files_of_an_unfinished_deployment_stay_before_its_release_is_built(host) -> None:
    deploy(host, 1)
    host.switch(NAMES[0], IDS[0])
    host.record(IDS[4], NAMES[4], None)
    secret = host.layout.environment_file(IDS[4])
    secret.write_text("SECRET=1")
    apply(host)
    assert secret.exists()
    host.record(IDS[4], NAMES[4], "abandoned")
    apply(host)
    assert not secret.exists(), "a secret file of a deployment that failed does not lie about"


def test_the_copy_of_what_the_newest_restore_replaced_stays() -> None:
    def restored(name: str, safety: str) -> dict:
        phase = {"phase": "restore", "result": {"restored": "b", "safety": safety}}
        return {"id": name, "verdict": "success", "kind": "rollback", "phases": [phase], "backup": {}}

    records = [{"id": "3", "verdict": "success", "phases": []}, restored("2", "new"), restored("1", "old")]
    assert retention.pinned_backups(records, None, None) == {"new"}


def test_the_cache_of_uv_is_pruned_when_an_environment_goes(host) -> None:
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("uv is not installed beside this Python")
    own = host.layout.tools / "venv" / "bin"
    own.mkdir(parents=True)
    (own / "uv").symlink_to(uv)
    unused = host.layout.tools / "cache" / "uv" / "archive-v0" / "unused"
    unused.mkdir(parents=True)
    (unused / "file").touch()
    for number in range(1, 4):
        deploy(host, number)
    host.switch(NAMES[2], IDS[2])
    assert apply(host, keep=3)["environments"] == []
    assert unused.exists(), "nothing went, so nothing is looked at"
    removed = apply(host, keep=2)
    assert (removed["environments"], removed["errors"]) == (["env1"], [])
    assert not unused.exists()


def test_what_runs_stays(host) -> None:
    for number in range(1, 5):
        deploy(host, number)
    host.switch(NAMES[3], IDS[3])
    apply(host, keep=1, running=[(IDS[0], NAMES[0])])
    assert NAMES[0] in left(host.layout.releases)
    assert host.layout.launcher(IDS[0], "web").exists()


def test_no_environment_goes_when_a_kept_release_does_not_name_its_own(host) -> None:
    for number in range(1, 4):
        deploy(host, number)
    host.switch(NAMES[2], IDS[2])
    (host.layout.release(NAMES[2]) / ".release.json").write_text("{")
    assert apply(host, keep=1)["environments"] == []
    assert left(host.layout.environments) == ["env1", "env2", "env3"]


def test_read_only_trees_are_removed(host) -> None:
    for number in range(1, 4):
        deploy(host, number)
    host.switch(NAMES[2], IDS[2])
    deep = host.layout.release(NAMES[0]) / "app"
    deep.mkdir()
    (deep / "x.py").touch()
    deep.chmod(0o555)
    host.layout.release(NAMES[0]).chmod(0o555)
    assert apply(host, keep=2)["releases"] == [NAMES[0]]
    assert not host.layout.release(NAMES[0]).exists()


def test_what_cannot_be_removed_is_told_and_stops_nothing(host) -> None:
    if os.geteuid() == 0:
        pytest.skip("root removes everything: run the tests as an ordinary user to see this one")
    for number in range(1, 4):
        deploy(host, number)
    host.switch(NAMES[2], IDS[2])
    host.layout.releases.chmod(0o555)
    try:
        removed = apply(host, keep=2, keep_backups=2)
    finally:
        host.layout.releases.chmod(0o755)
    assert removed["releases"] == []
    assert NAMES[0] in removed["errors"][0]
    assert removed["backups"] == ["b1"]


def test_a_file_of_an_unknown_instance_and_other_files_stay(host) -> None:
    deploy(host, 1)
    host.switch(NAMES[0], IDS[0])
    unknown = host.layout.environment_file(IDS[7])
    unknown.write_text("")
    (host.layout.instances / "notes").write_text("")
    (host.layout.backups / "half").mkdir()
    apply(host, keep=1, keep_backups=0)
    assert unknown.exists()
    assert {"notes", unknown.name} <= set(left(host.layout.instances))
    assert left(host.layout.backups) == ["b1", "half"], "what has no manifest is another's business"


@pytest.mark.parametrize(
    ("verdict", "live", "running", "expected"),
    [
        ("rolled_back", False, False, "removed"),
        ("rolled_back", True, False, "kept"),
        ("success", False, False, "kept"),
        ("rolled_back", False, True, "incomplete"),
    ],
)
def test_a_failed_release_is_discarded(host, verdict: str, live: bool, running: bool, expected: str) -> None:
    name, _deployment = deploy(host, 1, verdict)
    path = host.layout.release(name)
    path.chmod(0o555)
    found = retention.discard_release(
        host.layout,
        name,
        live=name if live else None,
        records=read_records(host.layout),
        running=[name] if running else [],
    )
    assert found == expected
    assert path.exists() == (expected != "removed")
    assert (path / ".complete").exists() == (expected == "kept")
    assert retention.discard_release(host.layout, NAMES[8], live=None, records=[], running=[]) == "absent"


NOW = "2026-01-31T00:00:00Z"
# Newest first, a day apart.
DATED = [(f"b{number}", f"2026-01-{number:02}T00:00:00Z") for number in range(30, 20, -1)]


@pytest.mark.parametrize(
    ("pinned", "keep", "days", "minimum", "gone"),
    [
        ((), 10, 0, 3, []),
        ((), 8, 0, 3, ["b22", "b21"]),
        (("b21",), 8, 0, 3, ["b22"]),
        # Older than five days, except for the newest ones.
        ((), 10, 5, 3, ["b25", "b24", "b23", "b22", "b21"]),
        ((), 10, 5, 8, ["b22", "b21"]),
        (("b23", "b25"), 10, 5, 3, ["b24", "b22", "b21"]),
        ((), 10, 1, 3, ["b27", "b26", "b25", "b24", "b23", "b22", "b21"]),
        ((), 2, 5, 3, ["b28", "b27", "b26", "b25", "b24", "b23", "b22", "b21"]),
        ((), 0, 0, 3, [name for name, _created in DATED]),
    ],
)
def test_backups_go_by_number_and_by_age(pinned, keep, days, minimum, gone):
    assert retention.surplus_backups(DATED, pinned, keep, days, minimum, NOW) == gone


def test_old_backups_go_at_the_end_of_a_deployment(host):
    for number in range(1, 6):
        deploy(host, number)
    apply(host, keep=5, keep_backups=9, keep_backups_days=1, keep_backups_minimum=2)
    # The two newest by rule, and that of the rollback target; the live one has none of its own here.
    assert left(host.layout.backups) == ["b4", "b5"]
