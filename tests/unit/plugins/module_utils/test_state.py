# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import socket
import sqlite3
import sys

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _facts as facts
from ansible_collections.runbook.deploy.plugins.module_utils import _state as state
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    ADOPTED,
    SOCKET_PATH_LIMIT,
    Layout,
    replace_link,
)
from ansible_collections.runbook.deploy.plugins.module_utils._measured import is_current, mismatches
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.deployed_host import (
    D1,
    D2,
    R1,
    R2,
    deployed_host,
)

WEB = {"name": "web", "kind": "web", "bind": "socket"}
WORKER = {"name": "worker", "kind": "worker", "bind": "none"}


@pytest.fixture
def host():
    with deployed_host() as made:
        yield made


@pytest.fixture
def live(host):
    """A host on which the deployment D1 of R1 succeeded, with a web service and a worker."""
    host.release(R1)
    host.record(D1, R1, version="v1")
    host.switch(R1, D1)
    host.web = host.start("web", D1, R1)
    host.worker = host.start("worker", D1, R1, address="-")
    return host


def measure(host, **options) -> dict:
    return state.measure(host.layout, services=options.pop("services", [WEB, WORKER]), **options)


def codes(found: dict) -> list[str]:
    return [problem["code"] for problem in found["problems"]]


def expected(release: str = R1, deployment: str = D1) -> dict:
    return {"release": release, "deployment": deployment}


# What is measured


def test_a_live_host(live) -> None:
    before = live.tree()
    found = measure(live)
    assert found["current"] == {"release": R1, "commit": "1" * 40, "deployment": D1, "version": "v1"}
    web, worker = found["services"]
    assert (web["deployment"], web["release"], web["pid"], web["answers"]) == (D1, R1, live.web.pid, True)
    assert (worker["deployment"], worker["running"], worker["answers"]) == (D1, True, None)
    assert found["record"]["id"] == D1
    assert found["open_record"]["id"] == D1
    assert "token" not in found["record"]
    assert found["space"]["free"] > 0
    assert found["problems"] == found["warnings"] == []
    assert mismatches(found, expected()) == []
    assert is_current(found, R1)
    assert found["settled"] is True
    assert not is_current(found, R2)
    assert live.tree() == before


def test_an_empty_host_is_a_first_deployment(host) -> None:
    found = measure(host)
    assert (found["exists"], found["current"], found["target"], found["record"]) == (True, None, None, None)
    assert [service["running"] for service in found["services"]] == [False, False]
    assert codes(found) == []
    assert not is_current(found, R1)


def test_the_old_release_that_still_answers_is_seen_whatever_current_says(live) -> None:
    live.release(R2, version="v2")
    live.record(D2, R2)
    live.switch(R2, D2)
    found = measure(live)
    assert found["current"]["release"] == R2
    assert found["services"][0]["release"] == R1
    wrong = mismatches(found, expected(R2, D2))
    assert wrong == [f"web answers from {R1}", f"worker answers from {R1}"]
    assert not is_current(found, R2)


def test_a_dead_service_leaves_its_socket_and_does_not_answer(live) -> None:
    live.kill(live.web)
    live.kill(live.worker)
    found = measure(live)
    assert [service["running"] for service in found["services"]] == [False, False]
    assert mismatches(found, expected()) == ["web does not answer", "worker does not run"]
    assert not is_current(found, R1)


def test_a_host_where_nothing_shall_be_live(live) -> None:
    assert mismatches(measure(live), {"nothing": True}) == [
        "web still runs",
        "worker still runs",
        f"current is {R1}",
    ]
    live.kill(live.web)
    live.kill(live.worker)
    live.layout.current.unlink()
    assert mismatches(measure(live), {"nothing": True, "release": ""}) == []


def test_a_leftover_instance_is_seen(live) -> None:
    live.start("web", D2, R1, address=str(live.layout.socket("web", D2)))
    wrong = mismatches(measure(live), expected())
    assert wrong == [f"web of {D2} still runs"]


@pytest.mark.parametrize("ours", [True, False])
def test_who_has_the_port(host, ours: bool) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child = host.start("web", D1, R1, address=str(port), root=None if ours else "/srv/another")
    found = measure(host, services=[{"name": "web", "kind": "web", "bind": "port", "port": port}])
    service = found["services"][0]
    assert service["answers"] is True
    if ours:
        assert (service["deployment"], service["pid"], service["foreign"]) == (D1, child.pid, None)
        assert codes(found) == []
    else:
        assert service["deployment"] is None
        assert f"pid {child.pid}" in service["foreign"]
        assert codes(found) == ["address_taken"]
        assert mismatches(found, {"release": R1})[-1].startswith("the address of web is held by")


@pytest.mark.parametrize("owner", ["ours", "another's"])
def test_a_port_held_by_a_process_that_cannot_be_looked_into(host, monkeypatch, owner: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert state.processes.listener_owners(port) == {os.geteuid()}
        # Without root the processes of others have no readable list of files.
        monkeypatch.setattr(state.processes, "listener_pids", lambda port: [])
        if owner != "ours":
            monkeypatch.setattr(state.processes, "listener_owners", lambda port: {os.geteuid() + 4000})
        found = measure(host, services=[{"name": "web", "kind": "web", "bind": "port", "port": port}])
    if owner == "ours":
        assert found["services"][0]["foreign"] is None
        assert codes(found) == []
    else:
        assert "another user" in found["services"][0]["foreign"]
        assert codes(found) == ["address_taken"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda host: (host.layout.release(R1) / ".complete").unlink(),
        lambda host: host.record(D1, R1, "rolled_back"),
        lambda host: host.record(D1, R1, undone_by=D2),
        lambda host: host.record(D2, R2, None),
        lambda host: host.layout.record(D1).unlink(),
        lambda host: host.layout.release_instance(R1).unlink(),
        lambda host: host.record(D1, R1, measured={"heads": {"shop": ["0002"]}}),
    ],
)
def test_something_is_left_to_do(live, spoil) -> None:
    assert is_current(measure(live), R1)
    spoil(live)
    found = measure(live)
    assert not is_current(found, R1)
    assert found["settled"] is False


def test_migrations_are_compared_with_those_at_the_end_of_the_deployment(live) -> None:
    path = live.layout.shared / "db.sqlite3"
    database = {"engine": "sqlite", "path": str(path)}
    assert measure(live, database=database, framework="django")["applied"] is None
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE django_migrations (id INTEGER PRIMARY KEY, app, name, applied)")
    connection.execute("INSERT INTO django_migrations VALUES (1, 'shop', '0001_a', '')")
    connection.commit()
    live.record(D1, R1, measured={"heads": {"shop": ["0001_a"]}})
    found = measure(live, database=database, framework="django")
    assert found["applied"] == [["shop", "0001_a"]]
    assert found["heads"] == {"shop": ["0001_a"]}
    assert is_current(found, R1)
    connection.execute("INSERT INTO django_migrations VALUES (2, 'shop', '0002_b', '')")
    connection.commit()
    connection.close()
    assert not is_current(measure(live, database=database, framework="django"), R1)


def test_a_damaged_database_and_a_damaged_record_are_told(live) -> None:
    path = live.layout.shared / "db.sqlite3"
    path.write_bytes(b"no database at all" * 100)
    live.layout.record(D2).write_text("{")
    found = measure(live, database={"engine": "sqlite", "path": str(path)}, framework="django")
    assert codes(found) == ["database_unreadable"]
    assert [warning["code"] for warning in found["warnings"]] == ["record_damaged"]
    assert found["record"]["id"] == D1


def test_the_open_record_is_what_a_rollback_would_undo(host) -> None:
    assert measure(host)["open_record"] is None
    host.record(D1, R1)
    host.record(D2, R2, "abandoned")
    assert measure(host)["open_record"]["id"] == D1
    host.record(D2, R2, None)
    assert measure(host)["open_record"]["id"] == D2
    assert measure(host)["interrupted"]["id"] == D2
    assert measure(host, own=D2)["interrupted"] is None


def test_releases_are_ordered_by_the_records(host) -> None:
    for name in (R1, R2):
        host.release(name, complete=name == R1)
    os.utime(host.layout.release(R1), (4e9, 4e9))
    (host.layout.releases / "notes").mkdir()
    host.record(D1, R1)
    host.record(D2, R2)
    listed = measure(host)["releases"]
    assert [(entry["name"], entry["built"], entry["complete"]) for entry in listed] == [
        (R2, True, False),
        (R1, True, True),
    ]


def test_an_adopted_installation_expects_its_unit_and_nothing_of_ours(live) -> None:
    found = measure(live)
    wrong = mismatches({**found, "adopted": {"active": False}}, {"release": None, "deployment": ADOPTED})
    assert wrong == [f"web of {R1} runs", f"worker of {R1} runs", "the adopted service is not active"]
    quiet = {**found, "services": [], "adopted": {"active": True}}
    assert mismatches(quiet, {"release": None, "deployment": ADOPTED}) == []


# What stands in the way


def test_a_missing_root_and_user_name_setup(host) -> None:
    found = state.measure(Layout(host.root / "none"), user="nobody-has-this-name")
    assert codes(found) == ["root_missing", "user_missing"]
    assert found["exists"] is False
    for problem, variable in zip(found["problems"], ("app_root", "app_user")):
        assert variable in problem["message"]
        assert "playbooks/setup.yml" in problem["message"]


def test_current_being_a_directory_a_file_or_nowhere(host) -> None:
    host.layout.current.mkdir()
    assert codes(measure(host)) == ["current_is_directory"]
    assert measure(host)["current"] is None
    host.layout.current.rmdir()
    host.layout.current.write_text("")
    assert codes(measure(host)) == ["current_is_no_link"]
    host.layout.current.unlink()
    replace_link(host.layout.current, f"releases/{R1}")
    assert codes(measure(host)) == ["current_dangling"]


def test_a_root_that_cannot_be_written(host) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere: run the tests as an ordinary user to see this one")
    host.layout.releases.chmod(0o500)
    try:
        found = measure(host)
    finally:
        host.layout.releases.chmod(0o755)
    assert codes(found) == ["root_not_writable"]
    assert str(host.layout.releases) in found["problems"][0]["message"]


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("{root}/shared/db.sqlite3", False),
        ("/var/lib/shop/db.sqlite3", False),
        ("{root}/current/db.sqlite3", True),
        ("{root}/current/data/db.sqlite3", False),
        ("{root}/releases/anything/db.sqlite3", True),
        ("{root}/releases/anything/data/db.sqlite3", False),
        ("{root}/shared/../releases/x/db.sqlite3", True),
        ("{root}/currently/db.sqlite3", False),
        ("{root}/trap.sqlite3", True),
        ("db.sqlite3", True),
        ("data/db.sqlite3", False),
        ("database/db.sqlite3", True),
    ],
)
def test_a_database_inside_a_release(host, path: str, inside: bool) -> None:
    release = host.release(R1)
    (release / "db.sqlite3").touch()
    os.symlink(release / "db.sqlite3", host.root / "trap.sqlite3")
    database = {"engine": "sqlite", "path": path.format(root=host.root)}
    found = facts.check_database(host.layout, database, ["data"], "")
    assert [problem["code"] for problem in found] == (["database_inside_release"] if inside else [])
    if inside:
        assert "app_database.path" in found[0]["message"]


@pytest.mark.parametrize("entry", ["/media", "../media", "a/../../b", ""])
def test_a_shared_path_must_stay_in_the_release(host, entry: str) -> None:
    assert [problem["code"] for problem in facts.check_shared(host.layout, [entry])] == ["shared_path"]


def test_a_shared_path_that_leads_into_a_release(host) -> None:
    release = host.release(R1)
    (release / "media").mkdir()
    assert facts.check_shared(host.layout, ["media", "data/db.sqlite3"]) == []
    os.symlink(release / "media", host.layout.shared / "media")
    found = facts.check_shared(host.layout, ["media"])
    assert [problem["code"] for problem in found] == ["shared_inside_release"]
    assert "app_shared" in found[0]["message"]


def test_the_longest_socket_path_that_the_kernel_takes(host) -> None:
    fixed = len(os.fsencode(Layout("/").socket("web", facts.EXAMPLE_ID)))
    fits = Layout("/" + "x" * (SOCKET_PATH_LIMIT - fixed - 1))
    longer = Layout("/" + "x" * (SOCKET_PATH_LIMIT - fixed))
    assert len(os.fsencode(fits.socket("web", D1))) == SOCKET_PATH_LIMIT
    assert facts.check_sockets(fits, [WEB, WORKER]) == []
    assert [problem["code"] for problem in facts.check_sockets(longer, [WEB, WORKER])] == [
        "socket_path_too_long"
    ]
    assert facts.check_sockets(longer, [{**WEB, "bind": "port"}, WORKER]) == []
    with socket.socket(socket.AF_UNIX) as listener:
        path = str(host.root / "s")
        padded = path + "x" * (SOCKET_PATH_LIMIT - len(path))
        listener.bind(padded)
        os.unlink(padded)
    with socket.socket(socket.AF_UNIX) as listener, pytest.raises(OSError, match="too long"):
        listener.bind(padded + "x")


def test_what_is_adopted_must_exist_until_a_release_is_current(host) -> None:
    adopt = {"path": str(host.root / "none"), "service": "shop", "environment_file": "/none"}
    found = [problem["code"] for problem in facts.check_adopted(adopt, None, False)]
    assert found == ["adopted_path_missing", "adopted_service_unknown", "adopted_environment_missing"]
    assert facts.check_adopted(adopt, None, True) == []
    (host.root / "manage.py").touch()
    assert facts.check_adopted({"path": str(host.root), "service": "shop"}, False, False) == []
    assert facts.check_adopted({}, None, False) == []


def test_what_is_adopted_must_be_an_installation(host) -> None:
    place = host.root / "opt"
    (place / "shop" / "venv" / "bin").mkdir(parents=True)

    def found(**adopt) -> list[str]:
        return [entry["code"] for entry in facts.check_adopted({"service": "shop", **adopt}, True, False)]

    assert found(path=str(place / "shop")) == ["adopted_path_empty"]
    (place / "shop" / "venv" / "bin" / "python").symlink_to(sys.executable)
    assert found(path=str(place / "shop")) == []
    assert found(path=str(place)) == ["adopted_path_empty"], "no more than one level below"
    assert found(environment_file=str(place)) == ["adopted_environment_unreadable"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", ""),
        ("# text\n; too\n\nA=1\n B = 'two words'\nC=\n", ""),
        ("A=first \\\nsecond line\nB=1\n", ""),
        ('A=\'several\nlines = ok\n\'\nB="a \\" b"\n', ""),
        ("A=1\nsecret-value\n", "line 2 is no NAME=value"),
        ("export A=secret-value\n", "line 1 is no NAME=value"),
        ("A=1\nB='secret-value\nC=2\n", "the quote in line 2 has no end"),
    ],
)
def test_an_environment_file_is_read_as_systemd_does(tmp_path, text: str, fault: str) -> None:
    path = tmp_path / "environment"
    path.write_text(text)
    assert facts.environment_fault(str(path)) == fault


def test_a_disk_that_is_almost_full_is_a_warning_and_no_refusal(live, monkeypatch) -> None:
    assert "space_low" not in [warning["code"] for warning in measure(live)["warnings"]]
    monkeypatch.setattr(state, "measure_space", lambda path: {"free": 5 << 20, "total": 1 << 30, "inodes": 9})
    found = measure(live)
    assert "has 5 MiB left" in "".join(warning["message"] for warning in found["warnings"])
    assert codes(found) == []
