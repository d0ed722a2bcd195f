# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gates that compare with what was before the deployment: real logs, a real server, real commands."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _gates, _gating, _watch
from ansible_collections.runbook.deploy.plugins.module_utils._gate import check_result
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from faulty_server import FaultyServer

RELEASE = "0123456789ab-00000000"
PASSWORD = "pass-5521-word"


def options(module: Any, **given: Any) -> dict[str, Any]:
    return {**{name: spec.get("default") for name, spec in module.OPTIONS.items()}, **given}


def ask(gates: list[dict[str, Any]], moment: str, check_mode: bool = False, **given: Any) -> dict[str, Any]:
    """Return the gate; one that did not pass with ``told``, its sentence."""
    found = options(_gates, **{"gates": gates, "moment": moment, "deadline": 20.0, "patience": 0.0, **given})
    try:
        # What a module answers travels as JSON.
        return json.loads(json.dumps(_gates.perform(found, check_mode, lambda text: None)))
    except Problem as problem:
        return {**problem.results, "told": problem.message}


def before(gates: list[dict[str, Any]], **given: Any) -> dict[str, Any]:
    found = ask(gates, "preflight", **given)
    assert found["passed"], found
    return found["before"]


def verdicts(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(check["name"], check["verdict"]) for check in found["checks"]]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "web.log"
    path.write_text("2026-11-21 10:00:00 ERROR an old one\n")
    return path


def write(path: Path, text: str) -> None:
    with path.open("a") as stream:
        stream.write(text + "\n")


def logged(path: Path, **more: Any) -> dict[str, Any]:
    return {"kind": "log", "name": "web", "path": str(path), "errors": "< 1", **more}


def test_logs_are_judged_from_the_mark_on(log):
    gates = [logged(log)]
    mark = before(gates)
    assert mark["cursors"]["web"]["path"] == str(log) and "old one" not in json.dumps(mark)
    write(log, "2026-11-21 10:00:01 INFO begun")
    assert verdicts(ask(gates, "smoke_test", before=mark)) == [("web", "pass")]
    write(log, "2026-11-21 10:00:02 ERROR a new one")
    found = ask(gates, "smoke_test", before=mark)
    assert verdicts(found) == [("web", "fail")] and "a new one" in found["told"]


def test_a_log_that_was_not_marked_does_not_pass(log):
    found = ask([logged(log)], "smoke_test")
    assert verdicts(found) == [("web", "inconclusive")] and "told" in found


def test_a_log_that_cannot_be_marked_stops_the_deployment_before_it_begins(tmp_path):
    found = ask([logged(tmp_path / "none.log")], "preflight")
    assert found["attempts"] == 1
    assert verdicts(found) == [("web", "inconclusive")] and "absent: true" in found["told"]
    assert before([logged(tmp_path / "none.log", absent=True)])["cursors"]["web"]["absent"] is True
    assert ask([logged(tmp_path / "none.log"), {"disk": "/", "free": "> 1KB"}], "preflight", primary=False)[
        "passed"
    ]


def test_a_watch_goes_on_from_the_mark(log):
    gates = [logged(log, moments=["watch"])]
    mark = before(gates)
    write(log, "2026-11-21 10:00:02 ERROR while it was switched")
    given = {
        "duration": 0.2,
        "interval": 0.02,
        "failures": 2,
        "timeout": 10.0,
        "before": mark,
        "gates": gates,
    }
    with pytest.raises(Problem, match="while it was switched"):
        _watch.perform(options(_watch, **given), False, lambda text: None)
    # Without a mark it begins with the first round.
    found = _watch.perform(options(_watch, **{**given, "before": {}}), False, lambda text: None)
    assert found["passed"] and found["attempts"] > 1


def test_what_an_application_knows_is_not_shown_of_its_log(log):
    mark = before([logged(log)])
    write(log, "2026-11-21 10:00:02 ERROR connect with Tr0ub4dor failed in web-frontend")
    gates = [logged(log, forbidden="web-frontend")]
    environment = json.dumps({"KEY": "Tr0ub4dor", "ROLE": "web-frontend", "LOG": str(log)})
    found = ask(gates, "smoke_test", before=mark, environment=environment)
    assert "Tr0ub4dor" not in json.dumps(found) and "connect with" in json.dumps(found)
    # What stands in the gate is no secret.
    assert "web-frontend" in found["told"] and str(log) in found["told"]


def test_a_watch_leaves_out_what_nothing_can_be_compared_with(log, tmp_path):
    path = tmp_path / "orders"
    path.write_text("3")
    given = {"duration": 0.2, "interval": 0.02, "timeout": 10.0, "before": {"first": True}}
    watched = [logged(log, moments=["watch"]), orders(path, moments=["watch"])]
    told: list[str] = []
    found = _watch.perform(options(_watch, gates=watched, **given), False, told.append)
    assert found["passed"] and found["not_asked"] == ["orders"] and not told
    # With nothing else it says so, and takes nothing back.
    found = _watch.perform(options(_watch, gates=watched[1:], **given), False, told.append)
    assert (found["passed"], found["verdict"], found["attempts"]) == (False, "inconclusive", 0)
    assert "nothing to watch" in told[0] and "orders" in told[0]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a current release."""
    place = tmp_path / "root"
    release, environment = place / "releases" / RELEASE, place / "environments" / "e1"
    for directory in (release, environment / "bin"):
        directory.mkdir(parents=True)
    (release / ".built").touch()
    (release / ".release.json").write_text('{"environment": "e1"}')
    (environment / "bin" / "python").symlink_to(sys.executable)
    (place / "current").symlink_to(f"releases/{RELEASE}")
    return place


def orders(path: Path, require: Any = "orders not below baseline by 20%", **more: Any) -> dict[str, Any]:
    source = {"kind": "command", "command": ["cat", str(path)], "harmless": True}
    return {"kind": "metrics", "name": "orders", "source": source, "require": require, **more}


def test_values_are_compared_with_those_before(tmp_path, root):
    path = tmp_path / "orders"
    path.write_text("100")
    gates = [orders(path, ["orders not below baseline by 20%", "orders > 85"])]
    mark = before(gates, root=str(root))
    assert list(mark["measured"].values()) == [100.0] and mark["first"] is False
    for count, verdict in (("90", "pass"), ("79", "fail"), ("84", "fail")):
        path.write_text(count)
        assert verdicts(ask(gates, "smoke_test", root=str(root), before=mark)) == [("orders", verdict)], count
    path.write_text("90")
    found = ask(gates, "smoke_test", root=str(root))
    assert verdicts(found) == [("orders", "inconclusive")] and "no baseline" in found["told"]


def test_what_could_not_be_measured_stops_the_deployment_before_it_begins(tmp_path, root):
    found = ask([orders(tmp_path / "none")], "preflight", root=str(root), deadline=3.0)
    assert verdicts(found) == [("orders", "inconclusive")] and "told" in found


def test_a_limit_without_a_baseline_is_not_judged_before(tmp_path, root):
    """What is too much already must not keep its repair away."""
    path = tmp_path / "orders"
    path.write_text("1")
    assert ask([orders(path, "orders > 85")], "preflight", root=str(root))["checks"] == []
    assert before([orders(path, ["orders not below baseline by 20%", "orders > 85"])], root=str(root))[
        "measured"
    ]


def test_a_first_deployment_has_nothing_to_compare_with(tmp_path, log):
    path = tmp_path / "orders"
    path.write_text("3")
    gates = [
        logged(log),
        orders(path),
        {**orders(path, ["orders not below baseline by 20%", "orders > 2"]), "name": "both"},
    ]
    # The source has one value, by whatever name; "both" calls it that of its check.
    gates[2]["require"] = ["both not below baseline by 20%", "both > 2"]
    mark = before(gates, root=str(tmp_path / "new"))
    assert (mark["first"], list(mark["cursors"]), mark["measured"]) == (True, ["web"], {})
    found = ask(gates, "smoke_test", root=str(tmp_path / "new"), before=mark)
    assert found["passed"] and sorted(verdicts(found)) == [("both", "pass"), ("web", "pass")]
    assert found["not_asked"] == ["orders"]
    path.write_text("1")
    assert ("both", "fail") in verdicts(ask(gates, "smoke_test", root=str(tmp_path / "new"), before=mark))


class Site(FaultyServer):
    """A page whose status changes."""

    status = 200

    def do_page(self, connection: Any, request: Any) -> None:
        self.send(connection, self.status, "a page")


def test_an_old_fault_is_told_from_a_new_one():
    gates = [{"kind": "http", "name": "page", "url": "/page/", "compare": True}]
    with Site() as site:
        given = {"address": site.address}
        for was, now, passed in ((200, 200, True), (200, 500, False), (500, 500, True), (500, 200, True)):
            site.status = was
            mark = before(gates, **given)
            site.status = now
            found = ask(gates, "smoke_test", before=mark, **given)
            assert found["passed"] is passed, (was, now, found)
            assert verdicts(found) == [("page", "pass" if now == 200 else "fail")]
        # The same in a watch.
        site.status = 500
        window = {"duration": 0.05, "interval": 0.02, "failures": 1, "unknowns": 1, "timeout": 10.0, **given}
        watched = [{**gates[0], "moments": ["watch"]}]
        mark = before(watched, **given)
        assert _watch.perform(
            options(_watch, gates=watched, before=mark, **window), False, lambda text: None
        )["passed"]
        with pytest.raises(Problem, match="page"):
            _watch.perform(options(_watch, gates=watched, **window), False, lambda text: None)


def test_what_could_not_be_asked_before_excuses_nothing():
    gates = [
        {"kind": "http", "name": "page", "url": "/page/", "compare": True},
        {"disk": "/", "free": "> 1KB"},
    ]
    with Site() as site:
        mark = before(gates, address="http://name.invalid")
        assert mark["checks"][0]["verdict"] == "inconclusive"
        site.status = 500
        assert not ask(gates[:1], "smoke_test", before=mark, address=site.address)["passed"]


def test_nothing_is_remembered_on_other_hosts_or_at_other_moments(log):
    gates = [logged(log)]
    assert ask(gates, "preflight", primary=False)["before"]["cursors"] == {}
    mark = before(gates)
    assert ask(gates, "smoke_test", before=mark)["before"]["cursors"] == {}


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ({"kind": "log", "path": "/l", "errors": 0, "moments": ["preflight"]}, "use smoke_test or watch"),
        ({"kind": "log", "path": "/l", "required": "ready", "moments": ["watch"]}, "cannot be watched"),
        ({**orders(Path("/l")), "moments": ["preflight", "watch"]}, "use smoke_test or watch"),
        (
            {"kind": "http", "url": "/", "compare": True, "json": {"commit": "{commit}"}},
            "excuse every failure",
        ),
        ({"kind": "celery", "workers": 1}, "names no app"),
        ({"kind": "celery", "workers": 0}, "no worker at all"),
        ({"kind": "lgo", "path": "/l"}, "did you mean 'log'"),
    ],
)
def test_what_could_only_be_found_out_after_the_switch_is_refused_before(gate, said):
    for moment in ("preflight", "watch"):
        found = ask([gate], moment)
        assert said in found["told"], found


def test_two_that_are_compared_need_names_of_their_own(log):
    gates = [{"kind": "log", "path": str(log), "errors": 0}, {"kind": "log", "path": str(log), "warnings": 0}]
    assert "a name of its own" in ask(gates, "preflight")["told"]


@pytest.mark.parametrize("given", [{"cursors": []}, {"measured": 1}, {"checks": {}}, {"first": "x"}])
def test_before_must_be_what_was_remembered(log, given):
    assert "before must be" in ask([logged(log)], "smoke_test", before=given)["told"]


def test_celery_is_asked_with_the_options_of_the_application(tmp_path):
    root = str(tmp_path)
    gates = [
        {"kind": "celery", "beat": 0},
        {"kind": "celery", "name": "workers", "workers": 1, "severity": "degraded"},
    ]
    found = ask(gates, "smoke_test", root=root, settings_module="shop.settings")
    assert verdicts(found) == [("celery beat == 0", "pass"), ("workers", "inconclusive")]
    assert "Celery of 'shop'" in json.dumps(found) and "no release is current" in json.dumps(found)


def test_what_check_mode_leaves_out_is_named_whatever_is_asked_beside_it(root):
    touched = root / "touched"
    gates = [
        {"name": "writes", "kind": "command", "command": ["touch", str(touched)]},
        {"name": "posts", "kind": "http", "url": "http://127.0.0.1:9/", "method": "POST", "body": "x"},
        {"disk": "/", "free": "> 1KB", "moments": ["smoke_test"]},
    ]
    found = ask(gates, "smoke_test", check_mode=True, root=str(root))
    assert found["passed"] and sorted(found["not_asked"]) == ["posts", "writes"] and not touched.exists()
    # With nothing else the gate says that nothing was asked, and is no pass.
    found = ask(gates[:2], "smoke_test", check_mode=True, root=str(root))
    assert (found["passed"], found["verdict"], "told" in found) == (False, "inconclusive", False)
    assert sorted(found["not_asked"]) == ["posts", "writes"]


def test_probes_put_together_keep_what_they_leave_out():
    one = _gating.Probe(lambda left: [check_result("one", "pass")], ["a"])
    both = _gates.together([one, _gating.Probe(lambda left: [], ["b"], False)], ["c"])
    assert (both.not_asked, both.anything) == (["c", "a", "b"], True)
    assert [check["name"] for check in both(5.0)] == ["one"]
    assert not _gates.together([_gating.Probe(lambda left: [], ["b"], False)]).anything


@pytest.mark.parametrize("word", ["critical", "inconclusive", "degraded"])
def test_no_secret_hides_how_severe_a_check_is(root, word):
    """LOG_LEVEL: critical would otherwise make every check one that stops nothing."""
    gates = [{"name": word, "kind": "command", "command": ["false"]}]
    found = ask(gates, "smoke_test", root=str(root), environment=json.dumps({"LOG_LEVEL": word}))
    assert found["verdict"] == "fail" and found["failing"] == [word] and "told" in found
    assert os.path.exists("/bin/false") or os.path.exists("/usr/bin/false")


@pytest.mark.parametrize("word", ["critical", "inconclusive", "degraded", "failed"])
@pytest.mark.parametrize("verdict", ["fail", "inconclusive"])
def test_what_the_record_says_of_a_gate_hides_values_only(root, word, verdict):
    """The name of a check and its verdict are read by people; the value of the same word in what was seen is not."""
    record = {"id": "20261121T100000-ab12", "token": "a" * 32, "host": "web1", "primary": False}
    code = f"import os, sys; print('level', os.environ['LOG_LEVEL'], '{PASSWORD}'); sys.exit(1)"
    command = [sys.executable, "-c", code] if verdict == "fail" else ["/nowhere/at/all"]
    gates = [
        {"name": word, "kind": "command", "command": command},
        {"name": "other", "disk": "/", "free": "> 1"},
    ]
    known = {"LOG_LEVEL": word, "PASSWORD": PASSWORD}
    given = options(
        _gates,
        gates=gates,
        moment="smoke_test",
        deadline=20.0,
        patience=0.0,
        root=str(root),
        environment=json.dumps(known),
        record=record,
    )
    with pytest.raises(Problem, match="did not pass"):
        _gates.perform(given, False, lambda text: None)
    path = root / "deployments" / f"{record['id']}.json"
    assert PASSWORD not in path.read_text()
    phase = json.loads(path.read_text())["phases"][0]
    check = phase["result"]["gate"]["checks"][0]
    assert (check["name"], check["verdict"], check["severity"]) == (word, verdict, "critical")
    for text in (phase["message"], check["message"]):
        assert f"Check {word!r}" in text, text
    assert f"did not pass ({verdict})" in phase["message"]
    if verdict == "fail":
        assert "level ******** ********" in check["message"]
