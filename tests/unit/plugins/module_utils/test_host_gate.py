# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of a host against real files, ports, certificates and clocks; waivers; gates of several kinds."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _gates, _host_gate, _watch
from ansible_collections.runbook.deploy.plugins.module_utils._comparison import parse_bound, version_holds
from ansible_collections.runbook.deploy.plugins.module_utils._gate import check_result
from ansible_collections.runbook.deploy.plugins.module_utils._host_gate import judge_skew, names_in_example
from ansible_collections.runbook.deploy.plugins.module_utils._host_spec import parse_check
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._waivers import parse_waivers, waive
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.faulty_server import (
    FaultyServer,
    make_certificate,
)

SECRET = "pa55-w0rd-of-ours"


def options(module: Any, **given: Any) -> dict[str, Any]:
    return {**{name: spec.get("default") for name, spec in module.OPTIONS.items()}, **given}


def ask(check: dict[str, Any], seconds: float = 5.0, **given: Any) -> dict[str, Any]:
    probe = _host_gate.prober(options(_host_gate, checks=[check], **given), False)
    (found,) = probe(seconds)
    return found


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("check", "verdict", "said"),
    [
        (
            {
                "disk": "/",
                "free": "> 1KB",
                "free_percent": "> 0%",
                "inodes": "> 1",
                "inodes_percent": ">= 0%",
            },
            "pass",
            "",
        ),
        ({"disk": "/", "free": "> 900000TB"}, "fail", "expected free > 900000TB, found free"),
        ({"disk": "/", "free_percent": "> 100%"}, "fail", "df -h /"),
        ({"disk": "/no/such/place/yet", "free": "> 1KB"}, "pass", ""),
        ({"memory": None, "free": "> 1MB"}, "pass", ""),
        ({"memory": None, "free_percent": "> 100"}, "fail", "free_percent"),
        ({"load": None, "average": "< 100000"}, "pass", ""),
        ({"load": None, "average": "< 0"}, "fail", "expected average < 0"),
        ({"python": sys.executable, "version": ">= 3.9"}, "pass", ""),
        ({"python": sys.executable, "version": "< 3.0"}, "fail", "found Python 3."),
        ({"python": "/no/such/python", "version": ">= 3.9"}, "fail", "correct app_python"),
        ({"python": "/bin/false", "version": ">= 3.9"}, "fail", "exit code 1"),
        ({"dns": "localhost"}, "pass", ""),
        ({"dns": "localhost", "addresses": ["127.0.0.1", "::1"]}, "pass", ""),
        ({"dns": "localhost", "addresses": ["192.0.2.1"]}, "fail", "the name leads elsewhere"),
        ({"port": "127.0.0.1:1"}, "fail", "connection refused"),
        ({"tls": "127.0.0.1:1", "days": 3}, "inconclusive", "nothing could be asked"),
    ],
)
def test_each_subject(check, verdict, said):
    found = ask(check)
    assert found["verdict"] == verdict, found
    assert said in found["message"]
    assert bool(found["message"]) == (verdict != "pass")
    assert found["repeat"] and (verdict == "pass" or found["repeat"] in found["message"])


def test_a_name_that_does_not_exist_is_no_pass():
    assert ask({"dns": "no-such-name.invalid"}, 4)["verdict"] in ("fail", "inconclusive")


def test_a_port_that_accepts_and_one_that_swallows(port):
    there = ask({"port": f"127.0.0.1:{port}"})
    assert (there["verdict"], subprocess.run(shlex.split(there["repeat"]), check=False).returncode) == (
        "pass",
        0,
    )
    gone = ask({"port": "127.0.0.1:1"})
    refused = subprocess.run(shlex.split(gone["repeat"]), check=False, capture_output=True, text=True)
    assert (gone["verdict"], "ConnectionRefusedError" in refused.stderr) == ("fail", True)
    begun = time.monotonic()
    # A full queue of a listener that never accepts: the connection hangs, and the check does not.
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        place = deaf.getsockname()
        waiting = [socket.socket() for _number in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(place)
        found = ask({"port": f"127.0.0.1:{place[1]}", "timeout": 0.5})
        for one in waiting:
            one.close()
    assert (found["verdict"], "no answer in time" in found["message"]) == ("fail", True), found
    assert time.monotonic() - begun < 1.6


def test_a_full_disk(tmp_path):
    if os.geteuid():
        pytest.skip("only root may mount a small file system")
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=20", "tmpfs", str(place)], check=False
    ).returncode:
        pytest.skip("this machine allows no mount")
    try:
        checks = [{"disk": str(place), "free": "> 500KiB"}, {"disk": str(place), "inodes_percent": "> 20%"}]
        assert [ask(check)["verdict"] for check in checks] == ["pass", "pass"]
        (place / "much").write_bytes(b"x" * 900_000)
        assert [ask(check)["verdict"] for check in checks] == ["fail", "pass"]
        (place / "much").unlink()
        for number in range(18):
            (place / str(number)).touch()
        assert [ask(check)["verdict"] for check in checks] == ["pass", "fail"]
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_certificates():
    with tempfile.TemporaryDirectory() as directory:
        made = make_certificate(directory, days=20)
        if made is None:
            pytest.skip("there is no openssl to make a certificate with")
        with FaultyServer(certificate=made) as server:
            place = f"127.0.0.1:{server.port}"
            named = {"tls": place, "host": "shop.example.org"}
            assert ask({**named, "days": 14}, ca_path=made)["verdict"] == "pass"
            late = ask({**named, "days": 30}, ca_path=made)
            assert (late["verdict"], "renew" in late["message"], place in late["repeat"]) == (
                "fail",
                True,
                True,
            )
            other = ask({"tls": place, "host": "bank.example.org"}, ca_path=made)
            assert (other["verdict"], "refused" in other["message"]) == ("fail", True)
            unknown = ask({**named, "days": 1})
            assert (unknown["verdict"], "refused" in unknown["message"]) == ("fail", True)
            assert ask(named, ca_path="/no/such/file")["verdict"] == "inconclusive"
        with FaultyServer() as plain:
            assert ask({"tls": f"127.0.0.1:{plain.port}", "timeout": 1})["verdict"] != "pass"


@pytest.mark.parametrize(
    ("given", "verdict", "said"),
    [
        ({"A": "1", "B": SECRET}, "pass", ""),
        ({"A": "1"}, "fail", "missing: B"),
        ({"A": " ", "B": SECRET}, "fail", "empty: A"),
        ({}, "fail", "missing: A, B"),
    ],
)
def test_required_variables(given, verdict, said):
    found = ask({"variables": ["A", "B"]}, environment=json.dumps(given))
    assert (found["verdict"], said in found["message"]) == (verdict, True), found
    assert SECRET not in json.dumps(found)


def test_variables_of_the_example_in_the_commit(tmp_path):
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(tmp_path), *words], check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    (tmp_path / ".env.example").write_text(
        "# what is needed\nSECRET_KEY=\nexport DATABASE_URL=x\n# DEBUG=1\n"
    )
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "x")
    around = {"repository": str(tmp_path / ".git"), "commit": git("rev-parse", "HEAD").strip()}
    check = {"variables": ["EXTRA"], "example": ".env.example"}
    found = ask(check, environment='{"EXTRA": "1", "SECRET_KEY": "x"}', **around)
    assert (found["verdict"], "missing: DATABASE_URL" in found["message"]) == ("fail", True)
    again = subprocess.run(shlex.split(found["repeat"]), check=True, capture_output=True, text=True)
    assert "DATABASE_URL" in again.stdout
    assert (
        ask(
            {**check, "optional": ["DATABASE_URL"]}, environment='{"EXTRA": "1", "SECRET_KEY": "x"}', **around
        )["verdict"]
        == "pass"
    )
    assert ask({**check, "example": "no.such"}, environment="{}", **around)["verdict"] == "inconclusive"
    assert ask(check, environment="{}")["verdict"] == "inconclusive"


def test_nothing_required_is_no_proof():
    assert ask({"variables": []}, environment="{}")["verdict"] == "inconclusive"


@pytest.mark.parametrize(
    ("host", "elapsed", "verdict"),
    [
        (0, 3, "pass"),
        (2.9, 3, "pass"),
        (7.9, 3, "pass"),
        (8.1, 3, "fail"),
        (-4.9, 3, "pass"),
        (-5.1, 3, "fail"),
        (-3600, 3, "fail"),
    ],
)
def test_the_difference_of_two_clocks(host, elapsed, verdict):
    bound = parse_bound("< 5s", "clock", {"S": 1})
    assert judge_skew(bound, 1_000_000 + host, 1_000_000, elapsed).verdict == verdict


def test_a_clock_is_held_against_the_controllers():
    assert ask({"clock": "< 5s"}, controller_time=time.time())["verdict"] == "pass"
    ahead = ask({"clock": "< 5s"}, controller_time=time.time() - 60)
    assert (ahead["verdict"], "ahead of the controller" in ahead["message"]) == ("fail", True)
    assert "behind the controller" in ask({"clock": "< 5s"}, controller_time=time.time() + 60)["message"]
    assert ask({"clock": "< 5s"})["verdict"] == "inconclusive"


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({"disc": "/", "free": "> 1"}, "did you mean 'disk'"),
        ({"disk": "/", "load": None}, "2 subjects"),
        ({"disk": "/"}, "expects nothing"),
        ({"disk": "srv", "free": "> 1"}, "absolute path"),
        ({"disk": "/", "free": "2GB"}, "comparison with a number"),
        ({"disk": "/", "free": "> 2XB"}, "one of the units"),
        ({"disk": "/", "fre": "> 2GB"}, "unknown key 'fre': did you mean 'free'"),
        ({"python": "python3", "version": "3.11"}, "comparison with a version"),
        ({"variables": ["A B"]}, "names of environment variables"),
        ({"port": "localhost"}, "like shop.example.org:443"),
        ({"tls": "a:b"}, "like shop.example.org:443"),
        ({"dns": ""}, "must be a text"),
        ({"dns": "a", "addresses": "b"}, "must be a list"),
        ({"dns": "a", "severity": "fatal"}, "severity must be one of"),
        ({"dns": "a", "timeout": 0}, "seconds above 0"),
        ("disk", "must be a mapping"),
    ],
)
def test_what_cannot_be_read_is_refused(check, said):
    with pytest.raises(Problem) as refused:
        parse_check(check, "checks[0]")
    assert said in refused.value.message


def test_versions_are_compared_as_far_as_they_are_named():
    assert version_holds("==", (3, 11), (3, 11, 7))
    assert not version_holds(">", (3, 11), (3, 11, 7))
    assert version_holds(">=", (3, 9), (3, 11, 0))
    assert not version_holds(">=", (3, 11, 8), (3, 11, 7))
    assert version_holds("==", (3, 11, 0, 0), (3, 11, 0))


def test_names_in_an_example():
    assert names_in_example("A=1\n#B=2\n export C = 3\nA=2\nnot a line\n") == ["A", "C"]


# Waivers

TODAY = datetime.date(2026, 11, 21)
WAIVER = {"check": "disk", "reason": "a bigger one is ordered", "approver": "Ada", "until": "2026-11-21"}


def failed(name: str = "disk", severity: str = "critical") -> dict[str, Any]:
    return check_result(name, "fail", severity, message="It failed.")


def test_a_waiver_lets_its_check_fail_and_says_so():
    (found,) = waive([failed()], parse_waivers([WAIVER]), TODAY)
    assert (found["severity"], found["verdict"]) == ("degraded", "fail")
    assert found["waived"] == {"reason": "a bigger one is ordered", "approver": "Ada", "until": "2026-11-21"}
    assert found["message"] == "It failed. Waived by Ada until 2026-11-21: a bigger one is ordered."


def test_a_waiver_ends_with_its_last_day():
    (found,) = waive([failed()], parse_waivers([WAIVER]), TODAY + datetime.timedelta(days=1))
    assert (found["severity"], "waived" in found) == ("critical", False)
    assert "Its waiver by Ada ended on 2026-11-21." in found["message"]


def test_a_waiver_is_for_its_check_alone_and_never_raises_a_severity():
    passed = check_result("disk", "pass")
    others = [failed("clock"), passed, failed("minor one", "minor")]
    assert waive(others[:2], parse_waivers([WAIVER]), TODAY) == others[:2]
    (minor,) = waive([others[2]], parse_waivers([{**WAIVER, "check": "minor one"}]), TODAY)
    assert minor["severity"] == "minor"


def test_of_two_waivers_the_longer_one_holds():
    longer = {**WAIVER, "approver": "Grace", "until": "2027-01-01"}
    for order in ([WAIVER, longer], [longer, WAIVER]):
        (found,) = waive([failed()], parse_waivers(order), TODAY)
        assert found["waived"]["approver"] == "Grace"


@pytest.mark.parametrize(
    ("waiver", "said"),
    [
        ({key: value for key, value in WAIVER.items() if key != "approver"}, "has no approver"),
        ({**WAIVER, "reason": " "}, "has no reason"),
        ({**WAIVER, "until": "soon"}, "must be a day"),
        ({**WAIVER, "gate": "x"}, "unknown key 'gate'"),
        ("disk", "must be a mapping"),
    ],
)
def test_a_waiver_that_nobody_answers_for_is_refused(waiver, said):
    with pytest.raises(Problem) as refused:
        parse_waivers([waiver])
    assert said in refused.value.message


# Gates of several kinds


def perform(gates: list[dict[str, Any]], moment: str = "preflight", **given: Any) -> dict[str, Any]:
    told: list[str] = []
    answer = _gates.perform(
        options(_gates, gates=gates, moment=moment, deadline=2.0, patience=0.0, **given), False, told.append
    )
    return {**answer, "told": told}


GOOD = {"disk": "/", "free": "> 1KB"}
BAD = {"name": "space", "disk": "/", "free": "> 900000TB"}


def test_gates_pass_and_fail_together():
    assert perform([GOOD])["passed"]
    with pytest.raises(Problem, match="space"):
        perform([GOOD, BAD])


def test_a_waived_gate_is_told_and_stops_nothing():
    until = (datetime.datetime.now(datetime.timezone.utc).date() + datetime.timedelta(days=1)).isoformat()
    found = perform([GOOD, BAD], waivers=[{**WAIVER, "check": "space", "until": until}])
    assert (found["passed"], found["degraded"]) == (True, ["space"])
    assert "Waived by Ada" in found["told"][0]
    with pytest.raises(Problem, match="ended on 2026-01-01"):
        perform([GOOD, BAD], waivers=[{**WAIVER, "check": "space", "until": "2026-01-01"}])


def test_gates_are_asked_at_their_moment_and_place():
    assert perform([BAD], "watch")["checks"] == []
    assert perform([{**BAD, "where": "primary"}], primary=False)["checks"] == []
    for given in ({"moments": "watch"}, {"moments": ["preflight", "watch"]}):
        with pytest.raises(Problem, match="space"):
            perform([{**BAD, **given}], "watch")


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ([{"kind": "hst", **GOOD}], "did you mean 'host'"),
        ([{**GOOD, "moments": ["later"]}], "moments must be some of"),
        ([{**GOOD, "moments": []}], "would never be asked"),
        ([{**GOOD, "where": "web"}], "where must be one of"),
        ([{**GOOD, "free": "lots"}], "gates[0].free"),
        ([BAD, {**GOOD, "name": "space"}], "a waiver could mean either"),
        (["disk"], "must be a mapping"),
    ],
)
def test_gates_that_cannot_be_read_are_refused_at_any_moment(gates, said):
    with pytest.raises(Problem) as refused:
        perform(gates, "watch")
    assert said in refused.value.message


def test_a_path_belongs_to_the_public_address_and_to_nothing_else():
    for kind, more in (("http", {}), ("websocket", {"status": 200})):
        gate = {"kind": kind, "name": "page", "url": "/ok", "moments": ["preflight"], **more}
        with pytest.raises(Problem, match="give app_url, or a whole address"):
            perform([gate])
        with FaultyServer() as server:
            (found,) = perform([gate], address=f"http://127.0.0.1:{server.port}")["checks"]
        assert found["verdict"] == "pass", found


def test_several_kinds_are_asked_at_once_and_a_slow_one_does_not_hold_up_the_end():
    def slow(left: float) -> list[dict[str, Any]]:
        time.sleep(3)
        return []

    begun = time.monotonic()
    found = _gates.together([slow, lambda left: [check_result("quick", "pass")]])(0.5)
    assert time.monotonic() - begun < 1.5
    assert [check["verdict"] for check in found] == ["inconclusive", "pass"]


def test_the_modules_run_as_programs(tmp_path):
    for module, arguments in (
        ("host_gate", {"checks": [GOOD]}),
        ("gates", {"gates": [GOOD], "moment": "preflight"}),
    ):
        file = tmp_path / f"{module}.json"
        file.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
        path = Path(_gates.__file__).parents[1] / "modules" / f"{module}.py"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
        done = subprocess.run(
            [sys.executable, str(path), str(file)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        answer = json.loads(done.stdout)
        assert (done.returncode, answer["passed"], answer["changed"]) == (0, True, False), done.stderr


def test_commands_run_in_the_current_release(tmp_path):
    gates = [
        {
            "kind": "command",
            "command": [
                "python",
                "-c",
                "import os; print(os.getcwd(), os.environ['RUNBOOK_RELEASE'], os.environ['A'])",
            ],
            "matches": "releases/0123456789ab-00000000 0123456789ab-00000000 given",
        }
    ]
    with pytest.raises(Problem, match="No release is current"):
        perform(gates, "smoke_test", root=str(tmp_path))
    release = tmp_path / "releases" / "0123456789ab-00000000"
    environment = tmp_path / "environments" / "e1"
    for place in (release, environment / "bin"):
        place.mkdir(parents=True)
    (release / ".built").touch()
    (release / ".release.json").write_text('{"environment": "e1"}')
    (environment / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "current").symlink_to("releases/0123456789ab-00000000")
    found = perform(gates, "smoke_test", root=str(tmp_path), environment='{"A": "given"}')
    assert found["passed"], found
    assert perform(gates, "preflight", root=str(tmp_path))["checks"] == []


def test_queries_are_asked_beside_the_host(tmp_path):
    path = tmp_path / "db.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (id integer)")
    gates = [
        GOOD,
        {"name": "notes", "kind": "sql", "table": "notes", "rows": "== 0", "moments": ["preflight"]},
    ]
    database = {"engine": "sqlite", "path": str(path)}
    assert [check["name"] for check in perform(gates, database=database)["checks"]] == ["disk /", "notes"]
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO notes VALUES (1)")
    with pytest.raises(Problem, match="notes"):
        perform(gates, database=database)


class Page(FaultyServer):
    """A page of metrics whose number of errors rises."""

    def do_metrics(self, connection: Any, request: Any) -> None:
        self.send(connection, 200, f"# TYPE errors gauge\nerrors {self.count}\n")


def test_figures_are_held_against_thresholds_and_watched_over_rounds():
    with Page() as server:
        check = {
            "name": "errors",
            "kind": "metrics",
            "source": {
                "kind": "prometheus_page",
                "url": f"{server.address}/metrics/",
                "values": {"errors": "errors"},
            },
        }
        once = {**check, "require": "< 1000", "moments": ["preflight"]}
        assert perform([once])["passed"]
        with pytest.raises(Problem, match="errors"):
            perform([{**once, "require": "< 0"}])
        watched = options(
            _watch,
            gates=[{**once, "require": "< 6", "moments": ["watch"]}],
            duration=20.0,
            interval=0.05,
            timeout=2.0,
            failures=1,
        )
        with pytest.raises(Problem, match="errors"):
            _watch.perform(watched, False, lambda message: None)
        assert server.count < 40
