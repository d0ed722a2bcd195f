# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Feature flags in real files, commands, databases and services, looked at from outside: switched, proved, recorded, taken back,
by several at once, and killed in the middle."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils import (
    _flags,
    _flags_file,
    _flags_history,
    _flags_sql,
)
from ansible_collections.runbook.deploy.plugins.module_utils._application import RESERVED
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, write_json
from ansible_collections.runbook.deploy.plugins.module_utils._lock import acquire
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.modules import feature_flags
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.deployed_host import (
    D1,
    R1,
    deployed_host,
    python_path,
    wait_for,
)
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_servers import (
    PASSWORD,
    serving,
)

TOKEN = "token-that-nobody-may-see"
STAGES = {"dormant": {}, "internal": {"A": "staff"}, "complete": {"A": True, "B": True}}


def options(root: Path, store: dict[str, Any], **given: Any) -> dict[str, Any]:
    defaults = {name: spec.get("default") for name, spec in _flags.OPTIONS.items()}
    flags = {"store": store, "flags": ["A", "B"], "stages": given.pop("stages", STAGES)}
    return {
        **defaults,
        "root": str(root),
        "flags": flags,
        "operator": "ann",
        "host": "web1",
        "reason": "day 1",
        **given,
    }


def do(root: Path, store: dict[str, Any], *, check: bool = False, **given: Any) -> dict[str, Any]:
    warnings: list[str] = []
    answer = _flags.perform(options(root, store, **given), check, warnings.append)
    return {**answer, "warnings": warnings}


def switch(root: Path, store: dict[str, Any], stage: str, **given: Any) -> dict[str, Any]:
    return do(root, store, state="switched", stage=stage, **given)


def off(root: Path, store: dict[str, Any], **given: Any) -> dict[str, Any]:
    return do(root, store, state="switched", all_off=True, **given)


def history(root: Path) -> list[dict[str, Any]]:
    """The lines of the history, read without the code that wrote them."""
    text = (root / "deployments" / "flags.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = tmp_path / "srv"
    place.mkdir()
    return place


# Everywhere alike


class Place:
    """A place that keeps flags, and a look at it from outside."""

    def __init__(self, store: dict[str, Any], look: Any, **given: Any) -> None:
        self.store = store
        self.look = look
        self.given = given


def file_place(root: Path) -> Place:
    path = root / "flags.env"
    path.write_text("OTHER=1\nA=false\nB=false\n", encoding="utf-8")

    def look() -> dict[str, str]:
        lines = path.read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines if not line.startswith("OTHER"))

    return Place({"kind": "environment_file", "path": str(path)}, look)


SCRIPT = """
import json, os, sys
path = os.path.join(os.environ["FLAGS"], "flags.json")
flags = json.load(open(path))
fault = open(os.path.join(os.environ["FLAGS"], "fault")).read() if os.path.exists(os.path.join(os.environ["FLAGS"], "fault")) else ""
print("loading", os.environ["RUNBOOK_RELEASE"], file=sys.stderr)
if sys.argv[1] == "show":
    print(json.dumps(flags) if len(sys.argv) == 2 else flags.get(sys.argv[2], ""))
else:
    for pair in sys.argv[2:]:
        name, _, value = pair.partition("=")
        if fault == "fail " + name:
            sys.exit("it broke: " + os.environ["SECRET"])
        if fault != "ignore " + name:
            flags[name] = value
    json.dump(flags, open(path + ".new", "w"))
    os.rename(path + ".new", path)
"""


def command_place(root: Path, *, at_once: bool = False) -> Place:
    layout = Layout(root)
    release = layout.release(R1)
    release.mkdir(parents=True)
    write_json(release / ".release.json", {"name": R1, "commit": R1[0] * 40, "version": "v1"}, 0o644)
    (release / ".built").touch()
    layout.current.symlink_to(f"releases/{R1}")
    (release / "flags.py").write_text(SCRIPT, encoding="utf-8")
    path = root / "flags.json"
    path.write_text('{"A": "false", "B": "false"}', encoding="utf-8")
    python = [sys.executable, "-S", "flags.py"]
    store = {
        "kind": "command",
        "show": [*python, "show", "{name}"],
        "set": [*python, "set", "{name}={value}"],
    }
    if at_once:
        store.update(show=[*python, "show"], set=[*python, "set", "{pairs}"])
    environment = json.dumps({"FLAGS": str(root), "SECRET": TOKEN})
    return Place(store, lambda: json.loads(path.read_text()), environment=environment)


def sqlite_place(root: Path) -> Place:
    path = root / "db.sqlite3"

    def sql(statement: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(path)) as file:
            rows = file.execute(statement).fetchall()
            file.commit()
            return rows

    sql("CREATE TABLE switches (title text, setting text)")
    sql("INSERT INTO switches VALUES ('A', 'false'), ('B', 'false'), ('OTHER', 'x')")
    store = {"kind": "sql", "table": "switches", "name_column": "title", "value_column": "setting"}
    place = Place(
        store,
        lambda: dict(sql("SELECT title, setting FROM switches WHERE title <> 'OTHER'")),
        database={"engine": "sqlite", "path": str(path)},
    )
    place.sql = sql
    return place


class Service:
    """A service of flags over HTTP; ``fault`` is what it does wrong, for the flag that it names."""

    def __init__(self) -> None:
        self.flags: dict[str, Any] = {"A": False, "B": False}
        self.fault = ""
        self.asked: list[tuple[str, str]] = []
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def _send(self, status: int, document: Any, *headers: tuple[str, str]) -> None:
                data = json.dumps(document).encode()
                self.send_response(status)
                for name, value in (("Content-Length", str(len(data))), *headers):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                service.asked.append(("GET", self.path))
                if service.fault == "unreadable":
                    self._send(503, {})
                else:
                    self._send(200, {"features": {name: {"on": on} for name, on in service.flags.items()}})

            def do_PUT(self) -> None:
                service.asked.append(("PUT", self.path))
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = self.path.rpartition("/")[2]
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    self._send(401, {"sent": self.headers["Authorization"]})
                elif service.fault == f"error {name}" and service.flags[name] != body["on"]:
                    self._send(500, {"token": self.headers["Authorization"]})
                elif service.fault == f"redirect {name}":
                    self._send(302, {}, ("Location", "http://elsewhere.example/"))
                elif service.fault == f"late {name}":
                    threading.Timer(0.6, service.flags.__setitem__, (name, body["on"])).start()
                    self._send(200, {})
                else:
                    if service.fault != f"ignore {name}":
                        service.flags[name] = body["on"]
                    if service.fault == f"cut {name}":
                        self.close_connection = True
                        return
                    self._send(200, {})

            def log_message(self, *words: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def place(self) -> Place:
        store = {
            "kind": "http",
            "url": f"{self.address}/flags/{{name}}",
            "body": {"on": "{value}"},
            "show": f"{self.address}/flags",
            "read": "features.{name}.on",
            "values": {"staff": "staff"},
        }
        back = {True: "true", False: "false"}
        return Place(store, lambda: {k: back.get(v, v) for k, v in self.flags.items()}, token=TOKEN)


@pytest.fixture
def service() -> Iterator[Service]:
    found = Service()
    yield found
    found.close()


KINDS = ("file", "command", "commands at once", "sqlite", "http")


@pytest.fixture
def place(request: Any, root: Path, service: Service) -> Place:
    kind = request.param
    if kind == "http":
        return service.place()
    if kind == "commands at once":
        return command_place(root, at_once=True)
    return {"file": file_place, "command": command_place, "sqlite": sqlite_place}[kind](root)


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_flags_are_switched_proved_and_recorded(place, root):
    shown = do(root, place.store, **place.given)
    assert (shown["flags"], shown["stage"], shown["all_off"]) == (
        {"A": "false", "B": "false"},
        "dormant",
        True,
    )
    assert shown["switches"] == []
    assert not (root / "deployments").exists()

    planned = switch(root, place.store, "internal", check=True, **place.given)
    assert (planned["changed"], planned["flags"]["A"], planned["diff"]["after"]) == (
        True,
        "staff",
        "A=staff\nB=false\n",
    )
    assert place.look() == {"A": "false", "B": "false"}
    assert not (root / "deployments").exists()

    done = switch(root, place.store, "internal", **place.given)
    assert place.look() == {"A": "staff", "B": "false"}
    assert (done["changed"], done["changes"], done["stage"]) == (True, {"A": ["false", "staff"]}, "internal")
    begun, ended = history(root)
    assert (begun["id"], begun["operator"], begun["reason"], begun["host"]) == (
        done["switch"],
        "ann",
        "day 1",
        "web1",
    )
    assert (begun["action"], begun["changes"]) == ("stage internal", {"A": ["false", "staff"]})
    assert (ended["id"], ended["verdict"]) == (done["switch"], "switched")

    again = switch(root, place.store, "internal", **place.given)
    assert (again["changed"], again["switch"]) == (False, None)
    assert len(history(root)) == 2

    do(root, place.store, state="switched", values={"B": True}, **place.given)
    assert place.look() == {"A": "staff", "B": "true"}
    done = off(root, place.store, **place.given)
    assert place.look() == {"A": "false", "B": "false"}
    assert done["all_off"]
    back = do(root, place.store, state="taken_back", switch=done["switch"], **place.given)
    assert place.look() == {"A": "staff", "B": "true"}
    shown = do(root, place.store, **place.given)
    assert [one["action"] for one in shown["switches"]] == [
        "stage internal",
        "set",
        "all off",
        f"take back {done['switch']}",
    ]
    assert shown["switches"][-1]["id"] == back["switch"]
    assert TOKEN not in (root / "deployments" / "flags.jsonl").read_text()
    if place.store["kind"] == "environment_file":
        assert "OTHER=1\n" in Path(place.store["path"]).read_text()


@pytest.mark.parametrize("place", ["command", "commands at once", "sqlite", "http"], indirect=True)
def test_a_flag_that_is_not_there_is_not_made(place, root):
    given = {**place.given, "stages": {}}
    wrong = options(root, place.store, state="switched", values={"A": "x", "C": "y"}, **given)
    wrong["flags"]["flags"] = ["A", "C"]
    with pytest.raises(Problem, match="C are not in .* nothing was switched"):
        _flags.perform(wrong, False, [].append)
    assert place.look() == {"A": "false", "B": "false"}
    # The way out of trouble switches what there is.
    do(root, place.store, state="switched", values={"A": "x"}, **given)
    wrong.update(values=None, all_off=True)
    with pytest.raises(Problem, match="C is not in"):
        _flags.perform(wrong, False, [].append)
    assert place.look() == {"A": "false", "B": "false"}


@pytest.mark.parametrize("place", ["command", "http"], indirect=True)
@pytest.mark.parametrize("fault", ["fail B", "ignore B"])
def test_a_switch_by_half_is_taken_back_and_all_off_goes_on(place, root, service, fault):
    switch(root, place.store, "internal", **place.given)
    fault_now = fault.replace("fail", "error") if place.store["kind"] == "http" else fault
    service.fault = fault_now
    (root / "fault").write_text(fault_now)
    with pytest.raises(Problem, match="were not switched and are as they were") as caught:
        switch(root, place.store, "complete", **place.given)
    assert place.look() == {"A": "staff", "B": "false"}
    assert TOKEN not in caught.value.message + caught.value.evidence
    assert history(root)[-1]["verdict"] == "taken_back"

    service.fault = ""
    (root / "fault").write_text("")
    switch(root, place.store, "complete", **place.given)
    service.fault = fault_now.replace(" B", " A")
    (root / "fault").write_text(service.fault)
    with pytest.raises(Problem, match="Not every flag in .* is off: A is true; the others are and stay so"):
        off(root, place.store, **place.given)
    assert place.look() == {"A": "true", "B": "false"}
    assert history(root)[-1]["verdict"] == "partial"
    service.fault = ""
    (root / "fault").write_text("")
    off(root, place.store, **place.given)
    assert place.look() == {"A": "false", "B": "false"}


def test_what_cannot_be_taken_back_is_named(root):
    place = command_place(root)
    switch(root, place.store, "internal", **place.given)
    script = Layout(root).release(R1) / "flags.py"
    # From the third switch of a flag on nothing works: the first is done, the second fails, and the way back too.
    script.write_text(
        script.read_text().replace(
            "    json.dump(flags",
            "    if os.path.exists(path + '.once'):\n        sys.exit('no more')\n    open(path + '.once', 'w')\n    json.dump(flags",
        )
    )
    with pytest.raises(
        Problem, match=r"switched by half and could not be taken back: A is true \(was staff\)"
    ):
        switch(root, place.store, "complete", **place.given)
    assert place.look() == {"A": "true", "B": "false"}
    assert history(root)[-1]["verdict"] == "partial"


# HTTP


def test_a_change_that_is_seen_later_counts(service, root):
    service.fault = "late A"
    place = service.place()
    assert switch(root, place.store, "internal", **place.given)["flags"]["A"] == "staff"


def test_an_answer_that_is_cut_is_no_end(service, root):
    """The service has heard it, and nobody knows: what is read decides, and everything is taken back."""
    place = service.place()
    service.fault = "cut A"
    with pytest.raises(Problem, match="were not switched and are as they were"):
        switch(root, place.store, "complete", **place.given)
    assert place.look() == {"A": "false", "B": "false"}


@pytest.mark.parametrize(
    ("fault", "token", "said"),
    [
        ("redirect A", TOKEN, "redirects are not followed"),
        ("", "another", "set app_flags_token"),
        ("unreadable", TOKEN, "503"),
    ],
)
def test_a_service_that_refuses(service, root, fault, token, said):
    place = service.place()
    service.fault = fault
    with pytest.raises(Problem) as caught:
        switch(root, place.store, "internal", token=token)
    assert said in caught.value.message
    assert token not in caught.value.message + caught.value.evidence
    assert service.flags == {"A": False, "B": False}


def test_nobody_there(root, service):
    place = service.place()
    service.close()
    with pytest.raises(Problem, match="gave no answer to GET"):
        off(root, place.store, **place.given)


# SQL


@pytest.fixture(scope="module", params=["postgresql", "mysql"])
def server(request: Any) -> Iterator[Any]:
    with serving(request.param) as found:
        found.clean()
        yield found


def outside(server: Any, statement: str) -> list[Any]:
    connection = server.connect()
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            rows = list(cursor.fetchall()) if cursor.description else []
        connection.commit()
        return rows
    finally:
        connection.close()


def test_a_table_of_a_server(server, root, monkeypatch):
    outside(
        server,
        "CREATE TABLE flags (name varchar(50) PRIMARY KEY, setting varchar(60) NOT NULL, is_on boolean)",
    )
    outside(
        server, "INSERT INTO flags VALUES ('A', 'false', false), ('B', 'false', false), ('OTHER', 'x', true)"
    )
    given = {"database": {**server.database, "password": PASSWORD}}
    store = {"kind": "sql", "table": "flags", "name_column": "name", "value_column": "setting"}

    def look() -> dict[str, str]:
        return dict(outside(server, "SELECT name, setting FROM flags"))

    nasty = """'; DROP TABLE flags; -- \\' "x" é $1 ?"""
    do(root, store, state="switched", values={"A": nasty, "B": ""}, **given)
    assert look() == {"A": nasty, "B": "", "OTHER": "x"}
    assert do(root, store, **given)["flags"] == {"A": nasty, "B": ""}
    off(root, store, **given)
    assert look() == {"A": "false", "B": "false", "OTHER": "x"}

    # Of two flags one value is refused by the server: neither is switched.
    with pytest.raises(Problem, match="as they were") as caught:
        do(root, store, state="switched", values={"A": "true", "B": "x" * 61}, **given)
    assert look() == {"A": "false", "B": "false", "OTHER": "x"}
    assert PASSWORD not in caught.value.message + caught.value.evidence

    # Columns of truth values.
    store = {**store, "value_column": "is_on", "values": {True: 1, False: 0}}
    do(root, store, state="switched", values={"A": True}, **given)
    assert [bool(row[0]) for row in outside(server, "SELECT is_on FROM flags ORDER BY name")] == [
        True,
        False,
        True,
    ]
    assert do(root, store, **given)["flags"] == {"A": "true", "B": "false"}

    # Somebody else holds a row.
    monkeypatch.setattr(_flags_sql, "LOCK", 1)
    connection = server.connect()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT name FROM flags WHERE name = 'A' FOR UPDATE")
            with pytest.raises(Problem, match="as they were"):
                do(root, store, state="switched", values={"A": False}, **given)
        connection.rollback()
    finally:
        connection.close()
    assert do(root, store, **given)["flags"]["A"] == "true"

    with pytest.raises(Problem, match="cannot be read") as caught:
        do(root, {**store, "table": "flag"}, **given)
    assert PASSWORD not in caught.value.message
    outside(server, "DROP TABLE flags")


def test_all_rows_of_a_file_or_none(root):
    place = sqlite_place(root)
    place.sql(
        "CREATE TRIGGER no BEFORE UPDATE ON switches WHEN new.title = 'B' BEGIN SELECT raise(ABORT, 'not B'); END"
    )
    with pytest.raises(Problem, match="not B; nothing was changed"):
        switch(root, place.store, "complete", **place.given)
    assert place.look() == {"A": "false", "B": "false"}
    place.sql("DROP TRIGGER no")
    place.sql("INSERT INTO switches VALUES ('A', 'twice')")
    with pytest.raises(Problem, match="'A' has several rows"):
        switch(root, place.store, "complete", **place.given)


# Files


def test_a_file_keeps_its_owner_and_mode(root):
    path = root / "flags.env"
    store = {"kind": "environment_file", "path": str(path)}
    switch(root, store, "internal")
    assert path.read_text() == "A=staff\nB=false\n"
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    before = path.stat()
    off(root, store)
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    taken = history(root)[0]["id"]
    # Made by the first switch: what it found is that there was no such flag.
    with pytest.raises(Problem, match="somebody has switched since: A is false"):
        do(root, store, state="taken_back", switch=taken)
    assert path.read_text() == "A=false\n"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.symlink_to("/etc/hostname"), "symbolic link"),
        (os.mkfifo, "no regular file"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: path.write_bytes(b"A=\xff\n"), "no text in UTF-8"),
    ],
)
def test_what_is_no_file_of_flags_is_left_alone(root, make, said):
    path = root / "flags.env"
    make(path)
    before = path.lstat()
    with pytest.raises(Problem, match=said):
        switch(root, {"kind": "environment_file", "path": str(path)}, "internal")
    assert path.lstat() == before
    with pytest.raises(Problem, match="directory of .* does not exist"):
        switch(root, {"kind": "environment_file", "path": str(root / "none" / "flags.env")}, "internal")


CHILD = """
import json, os, signal, sys
from ansible_collections.runbook.deploy.plugins.module_utils import _flags, _layout
asked = json.loads(sys.argv[1])
point = sys.argv[2]
real = os.rename
def rename(*paths):
    if point == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    real(*paths)
    if point == "after":
        os.kill(os.getpid(), signal.SIGKILL)
os.rename = rename
print("ready", flush=True)
while True:
    for stage in ("complete", "dormant"):
        _flags.perform({**asked, "stage": stage}, False, print)
    if point != "forever":
        break
"""


def child(root: Path, store: dict[str, Any], point: str) -> subprocess.Popen[str]:
    asked = json.dumps(options(root, store, state="switched"))
    argv = [sys.executable, "-c", CHILD, asked, point]
    return subprocess.Popen(
        argv, env=python_path(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ballast() -> str:
    return "".join(f"SETTING_{number}='{'x' * 60}'\n" for number in range(4000))


def test_killed_in_the_middle_of_writing_the_file_is_old_or_new(root):
    path = root / "flags.env"
    store = {"kind": "environment_file", "path": str(path)}
    old, new = (f"{ballast()}A={value}\nB={value}\n" for value in ("false", "true"))
    path.write_text(old)
    for point, expected in (("before", old), ("after", new)):
        killed = child(root, store, point)
        killed.communicate(timeout=60)
        assert killed.returncode == -signal.SIGKILL
        assert path.read_text() == expected
        # What was meant is known, and that nobody saw its end.
        assert do(root, store)["switches"][-1]["verdict"] == "interrupted"
        assert history(root)[-1]["state"] == "begun"
    dice = random.Random(7)
    for _number in range(6):
        running = child(root, store, "forever")
        assert running.stdout.readline() == "ready\n"
        size = (root / "deployments" / "flags.jsonl").stat().st_size
        wait_for(lambda size=size: (root / "deployments" / "flags.jsonl").stat().st_size > size, 30)
        time.sleep(dice.random() * 0.05)
        running.kill()
        running.communicate(timeout=60)
        assert path.read_text() in (old, new)
    switch(root, store, "complete")
    assert path.read_text() == new


def test_switches_at_the_same_time_wait_for_each_other(root):
    place = file_place(root)
    several = [child(root, place.store, "none") for _number in range(4)]
    for one in several:
        _out, errors = one.communicate(timeout=120)
        assert one.returncode == 0, errors
    lines = history(root)
    # One after the other: each begin is followed by its own end, and found what the one before had left.
    assert [line["state"] for line in lines] == ["begun", "ended"] * (len(lines) // 2)
    found = {"A": "false", "B": "false"}
    for begun, ended in zip(lines[::2], lines[1::2]):
        assert begun["id"] == ended["id"]
        assert {name: pair[0] for name, pair in begun["changes"].items()} == found
        found = ended["flags"]
    assert place.look() == found
    assert len({line["id"] for line in lines}) == len(lines) // 2


def test_a_switch_does_not_wait_for_ever(root):
    place = file_place(root)
    with _flags_history.held_history(Layout(root), 1):
        begun = time.monotonic()
        with pytest.raises(Problem, match="Another switch of flags has held"):
            switch(root, place.store, "internal", timeout=0.3)
        assert time.monotonic() - begun < 20
    assert place.look() == {"A": "false", "B": "false"}


def test_no_switch_goes_unrecorded(root):
    place = file_place(root)
    switch(root, place.store, "internal")
    path = root / "deployments" / "flags.jsonl"
    size = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))
        with pytest.raises(Problem, match="cannot be written"):
            switch(root, place.store, "complete")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert place.look() == {"A": "staff", "B": "false"}
    assert path.stat().st_size == size
    # What a killed writer left is no entry, and does not hide the next.
    with path.open("a") as stream:
        stream.write('{"id": "half')
    done = switch(root, place.store, "complete")
    assert do(root, place.store)["switches"][-1]["id"] == done["switch"]


def test_a_running_deployment_is_named_and_not_waited_for(root):
    place = file_place(root)
    acquire(Layout(root), deployment=D1, token="t" * 32, owner="bob", host="controller")
    done = off(root, place.store)
    assert done["running"]["deployment"] == D1
    done = switch(root, place.store, "internal")
    assert f"The deployment {D1} of bob has been running" in done["warnings"][0]
    assert history(root)[0]["during"]["deployment"] == D1
    assert "t" * 32 not in json.dumps(done)
    assert "t" * 32 not in (root / "deployments" / "flags.jsonl").read_text()


# The application is told

READER = """
import os, signal, sys, time
def read(*_words):
    with open(sys.argv[2], "w") as stream:
        stream.write(open(sys.argv[1]).read())
if sys.argv[3] == "reads":
    signal.signal(signal.SIGHUP, read)
print("ready", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def service_that(how: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A live instance whose service reads its flags when it is told, or dies of it."""
    with deployed_host() as host:
        host.release(R1)
        host.switch(R1, D1)
        services = [{"name": "web", "kind": "web", "manager": "process", "bind": "none", "command": "x"}]
        about = {"deployment": D1, "release": R1, "services": services}
        write_json(host.layout.instance_file(D1), about, 0o640)
        host.layout.environment_file(D1).write_text("")
        store = {"kind": "environment_file", "path": str(host.root / "flags.env"), "reload": "web"}
        variables = dict.fromkeys(RESERVED, "x")
        variables.update(
            RUNBOOK_ROOT=str(host.root), RUNBOOK_SERVICE="web", RUNBOOK_DEPLOYMENT=D1, RUNBOOK_RELEASE=R1
        )
        running = subprocess.Popen(
            [sys.executable, "-S", "-c", READER, store["path"], str(host.root / "seen"), how],
            env={"PATH": os.environ["PATH"], **variables},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        host.children.append(running)
        assert running.stdout.readline() == "ready\n"
        # It is nobody's child here, as under its manager, and is taken away when it ends.
        threading.Thread(target=running.wait, daemon=True).start()
        yield host.root, store


def test_a_service_reads_its_flags_again():
    with service_that("reads") as (root, store):
        done = switch(root, store, "internal")
        wait_for(lambda: (root / "seen").exists() and "A=staff" in (root / "seen").read_text(), 20)
        assert "was told to read its settings again" in done["applied"]


def test_a_service_that_ends_of_it_is_named_and_the_flags_are_as_before(monkeypatch):
    # It ends the look at it; a loaded machine may take its time.
    monkeypatch.setattr(_flags_file, "HUP_SECONDS", 30)
    with service_that("dies") as (root, store):
        with pytest.raises(Problem, match="takes SIGHUP for an end"):
            switch(root, store, "internal")
        assert (root / "flags.env").read_text() == ""
        # All off stays off in the file, and the next one tries to tell again.
        (root / "flags.env").write_text("A=x\nB=x\n")
        for _time in range(2):
            with pytest.raises(Problem, match="does not run"):
                off(root, store)
            assert (root / "flags.env").read_text() == "A=false\nB=false\n"


# The module


def run_module(capsys: Any, check_mode: bool = False, **given: Any) -> dict[str, Any]:
    with patch_module_args({**given, "_ansible_check_mode": check_mode}), pytest.raises(SystemExit) as ended:
        feature_flags.main()
    answer = json.loads(capsys.readouterr().out)
    assert bool(ended.value.code) is bool(answer.get("failed"))
    return answer


def test_the_module(service, root, capsys):
    place = service.place()
    flags = {"store": place.store, "flags": ["A", "B"], "stages": STAGES}
    given = {"root": str(root), "flags": flags, "token": TOKEN}
    assert run_module(capsys, **given)["stage"] == "dormant"
    assert run_module(capsys, True, state="switched", stage="complete", **given)["changed"]
    assert service.flags == {"A": False, "B": False}
    assert run_module(capsys, state="switched", stage="complete", **given)["changed"]
    assert service.flags == {"A": True, "B": True}
    for wrong in ({"stage": "x"}, {"stage": "internal", "values": {"A": 1}}, {}):
        answer = run_module(capsys, state="switched", **wrong, **given)
        assert answer["failed"]
        assert TOKEN not in json.dumps(answer["msg"])
    service.fault = "error A"
    answer = run_module(capsys, state="switched", all_off=True, **given)
    assert "Not every flag" in answer["msg"]
    assert answer["flags"] == {"A": "true", "B": "false"}
    assert run_module(capsys, root=str(root), flags={})["msg"].startswith("app_flags is empty")
