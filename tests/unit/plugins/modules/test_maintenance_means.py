# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Maintenance by a file and by commands: on, off, over by itself with real watchmen, in the record; all looked at from outside."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils import _maintenance_expiry
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_expiry import Watchman, unit_text
from ansible_collections.runbook.deploy.plugins.modules import maintenance

PATIENCE = 40.0
RELEASE = "1" * 12 + "-" + "1" * 8
DEPLOYMENT = "20261121T013700-ab12"


def wait_until(condition, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE:g} s: {what}")
        time.sleep(0.05)


def watchmen(root: Path) -> list[int]:
    """The processes that wait for an end below *root*, seen by the kernel; those that have ended are not among them."""
    found = []
    for name in os.listdir("/proc"):
        try:
            words = Path("/proc", name, "cmdline").read_bytes().split(b"\0") if name.isdigit() else []
        except OSError:
            continue
        if str(root / "maintenance").encode() in words and any(
            word.endswith(b"watchman.py") for word in words
        ):
            found.append(int(name))
    return found


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    release = tmp_path / "srv" / "releases" / RELEASE
    release.mkdir(parents=True)
    (release / ".built").touch()
    (release / ".release.json").write_text(json.dumps({"commit": "1" * 40, "version": "v1"}))
    (tmp_path / "srv" / "current").symlink_to(f"releases/{RELEASE}")
    yield tmp_path / "srv"
    for pid in watchmen(tmp_path / "srv"):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(autouse=True)
def no_systemd(monkeypatch):
    # A host of systemd runs the tests as well, and gets no unit from them.
    monkeypatch.setattr(_maintenance_expiry, "BOOTED", Path("/nowhere"))


def options(root: Path, kind: str) -> dict:
    """Both kinds leave the same file: the one by itself, the other by commands of the application."""
    common = {"root": str(root), "name": "shop", "stage": "prod", "kind": kind}
    flag = str(root.parent / "flag")
    if kind == "file":
        return {**common, "path": flag}
    log = str(root.parent / "log")
    return {
        **common,
        "environment": json.dumps({"SHOP_PASSWORD": "geheim-4711"}),
        "command_on": ["sh", "-c", f"echo on $SHOP_PASSWORD $PWD >>{log}; touch {flag}"],
        "command_off": ["sh", "-c", f"echo off $SHOP_PASSWORD $PWD >>{log}; rm -f {flag}"],
    }


def run(capsys, given: dict, state: str, check_mode: bool = False, **changes) -> dict:
    capsys.readouterr()
    with (
        patch_module_args({**given, "state": state, **changes, "_ansible_check_mode": check_mode}),
        pytest.raises(SystemExit),
    ):
        maintenance.main()
    return json.loads(capsys.readouterr().out)


KINDS = pytest.mark.parametrize("kind", ["file", "command"])


@KINDS
def test_on_and_off_and_nothing_a_second_time(root, capsys, kind):
    given, flag = options(root, kind), root.parent / "flag"
    assert run(capsys, given, "facts")["maintenance"]["on"] is False
    assert run(capsys, given, "on", check_mode=True)["changed"] is True
    assert not flag.exists()
    assert run(capsys, given, "on", reason="disk")["changed"] is True
    assert flag.exists()
    wait_until(lambda: watchmen(root), "a watchman waits")
    found = run(capsys, given, "facts")["maintenance"]
    assert (found["on"], found["reason"], found["unknown"]) == (True, "disk", False)
    assert run(capsys, given, "on")["changed"] is False
    answer = run(capsys, given, "off")
    assert (answer["changed"], answer["downtime"]["expired"]) == (True, False)
    assert not flag.exists()
    assert run(capsys, given, "off")["changed"] is False
    assert list((root / "maintenance").iterdir()) == []
    wait_until(lambda: not watchmen(root), "no watchman is left")
    if kind == "command":
        here = f"geheim-4711 {root / 'releases' / RELEASE}"
        assert (root.parent / "log").read_text().splitlines() == [f"on {here}", f"on {here}", f"off {here}"]


@KINDS
def test_it_is_over_when_its_time_is_and_nobody_else_does_anything(root, capsys, kind):
    given, flag = options(root, kind), root.parent / "flag"
    run(capsys, given, "on", expires=1)
    wait_until(lambda: not flag.exists(), "the watchman ends it")
    wait_until(lambda: not watchmen(root), "the watchman goes")
    found = run(capsys, given, "facts")["maintenance"]
    assert (found["on"], found["over"]) == (False, True)
    answer = run(capsys, given, "off")
    assert answer["downtime"]["expired"] is True
    assert answer["downtime"]["seconds"] == 1.0
    assert list((root / "maintenance").iterdir()) == []


@KINDS
def test_a_later_end_replaces_the_earlier_one(root, capsys, kind):
    given, flag = options(root, kind), root.parent / "flag"
    run(capsys, given, "on", expires=2)
    wait_until(lambda: watchmen(root), "the first watchman waits")
    first = watchmen(root)
    run(capsys, given, "on", expires=3600)
    # At its time it sees that the maintenance is another's.
    wait_until(lambda: not set(first) & set(watchmen(root)), "the first watchman goes")
    assert flag.exists()
    assert len(watchmen(root)) == 1
    assert run(capsys, given, "facts")["maintenance"]["seconds_left"] > 3000


@KINDS
def test_secrets_lie_in_a_file_of_the_owner_alone_and_in_no_answer(root, capsys, kind):
    given = options(root, kind)
    answer = run(capsys, given, "on")
    order = root / "maintenance" / "watchman.json"
    assert order.stat().st_mode & 0o777 == 0o600
    assert "geheim" not in json.dumps({key: value for key, value in answer.items() if key != "invocation"})
    for name in ("state.json", "watchman.py"):
        assert "geheim" not in (root / "maintenance" / name).read_text()


def test_a_command_that_fails_is_told_and_what_it_did_is_taken_back(root, capsys):
    given = options(root, "command")
    flag = root.parent / "flag"
    answer = run(capsys, given, "on", command_on=["sh", "-c", f"touch {flag}; echo no room >&2; exit 3"])
    assert answer["failed"] is True
    assert "ended with exit code 3, expected 0" in answer["msg"]
    assert "no room" in answer["evidence"]
    assert not flag.exists()
    assert run(capsys, given, "facts")["maintenance"]["on"] is False


def test_an_end_that_fails_stays_known_and_is_tried_again(root, capsys):
    given = options(root, "command")
    run(capsys, given, "on")
    answer = run(capsys, given, "off", command_off=["sh", "-c", "exit 4"])
    assert answer["failed"] is True
    assert run(capsys, given, "facts")["maintenance"]["on"] is True
    assert run(capsys, given, "off")["downtime"]["seconds"] >= 0
    assert not (root.parent / "flag").exists()


def test_a_command_needs_a_release(root, capsys):
    (root / "current").unlink()
    answer = run(capsys, options(root, "command"), "on")
    assert answer["failed"] is True
    assert "No release is current" in answer["msg"]


def test_a_file_made_by_hand_is_a_persons(root, capsys):
    given, flag = options(root, "file"), root.parent / "flag"
    flag.write_text("mine")
    assert run(capsys, given, "facts")["maintenance"]["unknown"] is True
    answer = run(capsys, given, "off", deployment=DEPLOYMENT)
    assert (answer["by_hand"], answer["changed"]) == (True, False)
    assert flag.read_text() == "mine"
    assert run(capsys, given, "off")["changed"] is True
    assert not flag.exists()


@pytest.mark.parametrize("there", ["directory", "link", "fifo"])
def test_what_is_no_file_is_left_alone(root, capsys, there):
    given, flag = options(root, "file"), root.parent / "flag"
    {
        "directory": flag.mkdir,
        "link": lambda: flag.symlink_to("/nowhere"),
        "fifo": lambda: os.mkfifo(flag),
    }[there]()
    answer = run(capsys, given, "on")
    assert answer["failed"] is True
    assert "is no regular file" in answer["msg"]
    assert os.path.lexists(flag)


def test_a_directory_that_is_missing_is_named(root, capsys):
    answer = run(capsys, {**options(root, "file"), "path": str(root / "none" / "flag")}, "on")
    assert answer["failed"] is True
    assert "The directory of" in answer["msg"]


def test_another_kind_does_not_forget_what_is_on(root, capsys):
    run(capsys, options(root, "file"), "on")
    answer = run(capsys, options(root, "command"), "off")
    assert answer["failed"] is True
    assert "was put on by kind file, but app_maintenance.kind is command" in answer["msg"]
    assert (root.parent / "flag").exists()


def test_a_page_that_the_application_does_not_show_is_taken_off(root, capsys, tmp_path):
    answer = run(capsys, options(root, "file"), "on", probe="http://127.0.0.1:9/", verify_timeout=0.2)
    assert answer["failed"] is True
    assert "a visitor gets no answer" in answer["msg"]
    assert not (root.parent / "flag").exists()


def test_begin_end_and_downtime_are_in_the_record(root, capsys):
    given = options(root, "file")
    record = {"id": DEPLOYMENT, "token": "t", "host": "web2", "primary": False, "about": {"release": RELEASE}}
    nothing = run(capsys, given, "off", record=record, deployment=DEPLOYMENT)
    assert nothing["changed"] is False
    assert not (root / "deployments").exists()
    run(capsys, given, "on", record=record, deployment=DEPLOYMENT, expected=12.5)
    answer = run(capsys, given, "off", record=record, deployment=DEPLOYMENT)
    found = json.loads((root / "deployments" / f"{DEPLOYMENT}.json").read_text())
    assert [(p["phase"], p["state"], p["result"]["maintenance"]["on"]) for p in found["phases"]] == [
        ("maintenance", "done", True),
        ("maintenance off", "done", False),
    ]
    assert found["downtime"] == answer["downtime"]
    assert found["downtime"]["by"] == DEPLOYMENT
    assert found["downtime"]["expected"] == found["phases"][0]["result"]["maintenance"]["expected"] == 13
    schema = json.loads((Path(__file__).resolve().parents[4] / "docs/record.schema.json").read_text())
    assert set(found["downtime"]) == set(schema["properties"]["downtime"]["properties"])


def test_what_a_web_server_on_another_host_showed_is_in_the_record_of_the_primary(root, capsys, tmp_path):
    given = options(root, "file")
    record = {"id": DEPLOYMENT, "token": "t", "host": "web2", "primary": False, "about": {"release": RELEASE}}
    # There it has a directory of its own, and neither the application's nor a record.
    front = {**given, "root": str(tmp_path / "nothing"), "directory": str(tmp_path / "front")}
    assert run(capsys, front, "on", deployment=DEPLOYMENT, expected=12.5)["maintenance"]["on"]
    run(capsys, given, "noted", record=record, deployment=DEPLOYMENT, expected=12.5)
    downtime = run(capsys, front, "off", deployment=DEPLOYMENT)["downtime"]
    assert not (tmp_path / "nothing").exists()
    preview = run(capsys, given, "noted", True, record=record, downtime=downtime)
    assert preview["changed"] is False
    answer = run(capsys, given, "noted", record=record, deployment=DEPLOYMENT, downtime=downtime)
    assert answer["changed"] is False and answer["downtime"] == downtime
    found = json.loads((root / "deployments" / f"{DEPLOYMENT}.json").read_text())
    assert [(p["phase"], p["state"], p["result"]["maintenance"]) for p in found["phases"]] == [
        ("maintenance", "done", {"on": True, "by_hand": False, "expected": 13}),
        ("maintenance off", "done", {"on": False, "by_hand": False}),
    ]
    assert found["downtime"] == downtime and downtime["seconds"] >= 0 and downtime["expected"] == 13


def test_under_systemd_a_unit_that_a_reboot_starts_again_waits(root, tmp_path, monkeypatch):
    called = []

    def systemctl(words, timeout):
        called.append(words[1:])
        return type("Done", (), {"rc": 0})()

    monkeypatch.setattr(_maintenance_expiry, "run", systemctl)
    monkeypatch.setattr(_maintenance_expiry, "UNITS", tmp_path)
    (root / "maintenance").mkdir()
    watchman = Watchman("shop", "prod", root / "maintenance", systemd=True)
    watchman.start("abcd")
    unit = tmp_path / "runbook-maintenance-shop-prod.service"
    assert "WantedBy=multi-user.target" in unit.read_text()
    assert called == [["daemon-reload"], ["enable", "--quiet", unit.name], ["restart", unit.name]]
    watchman.stop()
    assert not unit.exists()
    assert called[3:] == [["disable", "--quiet", "--now", unit.name], ["daemon-reload"]]


def test_the_words_of_the_unit_are_those_that_are_meant():
    text = unit_text("shop", "prod", Path('/srv/a b%c"d$e'), "abcd")
    assert r'"/srv/a b%%c\"d$$e/watchman.py" "/srv/a b%%c\"d$$e" "abcd"' in text
