# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import json
import tempfile
import time
import urllib.parse

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._http_flow import find_forms, run_flow
from ansible_collections.runbook.deploy.plugins.module_utils._http_gate import run_gate
from ansible_collections.runbook.deploy.plugins.module_utils._http_spec import Values, parse_flow
from ansible_collections.runbook.deploy.plugins.module_utils._http_transport import Target
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.faulty_server import FaultyServer

PASSWORD = "pa&ss <w>"
LOGIN = {
    "url": "/login/",
    "form": {"username": "admin", "password": "{secret.password}"},
    "contains": "Log out",
}
OPEN = {"url": "/signals/", "extract": {"signal": {"regex": r'href="/signals/(\d+)/"'}}}
NOTE = {
    "url": "/signals/{signal}/",
    "form": {"note": "from the deployment"},
    "contains": "Internal note added",
}
HEADERS = {"X-Forwarded-Proto": "https"}


@pytest.fixture
def server():
    with FaultyServer() as running:
        yield running


@pytest.fixture
def target(server):
    return Target(server.address, host="shop.example.org", headers=HEADERS)


def run(target, steps, password=PASSWORD, timeout=3.0, seconds=8.0, **more):
    flow = parse_flow({"name": "admin writes a note", "steps": steps, **more}, "flows[0]")
    return run_flow(flow, target, Values({}, {"password": password}), timeout, time.monotonic() + seconds)


def test_the_admin_logs_in_opens_a_signal_and_posts_a_note(server, target):
    found = run(target, [LOGIN, OPEN, NOTE])
    assert found["verdict"] == "pass", found
    assert [step["verdict"] for step in found["steps"]] == ["pass"] * 3
    (note,) = server.notes
    sent = dict(urllib.parse.parse_qsl(note, keep_blank_values=True))
    # Hidden fields, defaults and ticked boxes as a browser sends them; no unticked box.
    assert sent == {
        "csrfmiddlewaretoken": "tok&en",
        "note": "from the deployment",
        "kind": "b",
        "urgent": "on",
    }


def test_the_same_over_a_socket():
    with tempfile.TemporaryDirectory(prefix="flow") as directory, FaultyServer(f"{directory}/s") as server:
        assert run(Target(socket=f"{directory}/s", headers=HEADERS), [LOGIN, OPEN, NOTE])["verdict"] == "pass"
        assert len(server.notes) == 1


@pytest.mark.parametrize("careless", [False, True])
def test_an_ordinary_user_is_refused_where_an_administrator_is_let_in(server, careless):
    """Three flows of one gate, each with a session of its own: that one of them is logged in lets no other one in."""
    server.careless = careless
    ada = {**LOGIN, "form": {"username": "ada", "password": "{secret.ada}"}}
    flows = [
        {"name": "administrator", "steps": [LOGIN, {"url": "/staff/", "contains": "Everything"}]},
        {"name": "ordinary user", "steps": [ada, {"url": "/staff/", "status": 403, "absent": "Everything"}]},
        {
            "name": "nobody",
            "steps": [{"url": "/staff/", "follow": False, "redirect_to": "/login/?next=/staff/"}],
        },
    ]
    gate = run_gate(
        [],
        [parse_flow(flow, "flows[0]") for flow in flows],
        Target(server.address, host="shop.example.org", headers=HEADERS),
        secrets={"password": PASSWORD, "ada": "ada's"},
        deadline=20.0,
    )
    found = {check["name"]: check["verdict"] for check in gate["checks"]}
    assert found == {
        "administrator": "pass",
        "ordinary user": "fail" if careless else "pass",
        "nobody": "pass",
    }, gate


def test_a_wrong_password_ends_the_flow_and_is_not_shown(server, target):
    found = run(target, [LOGIN, OPEN, NOTE], password="wrong-1")
    assert (found["verdict"], len(found["steps"]), server.notes) == ("fail", 1, [])
    assert "step 1 of 3" in found["message"]
    assert "2 further steps were not done" in found["message"]
    assert "wrong password ********" in found["message"]
    assert "wrong-1" not in json.dumps(found)


def test_without_a_login_the_note_cannot_be_written(server, target):
    found = run(target, [{"url": "/signals/3/", "form": {"note": "x"}}])
    assert (found["verdict"], server.notes) == ("fail", [])
    assert "expected a form with the fields note" in found["message"]
    assert "password, username" in found["message"]


@pytest.mark.parametrize("broken", ["cookie", "token", "referer"])
def test_csrf_is_really_checked_by_the_test_server(server, target, broken, monkeypatch):
    """Or the test above would prove nothing."""
    from ansible_collections.runbook.deploy.plugins.module_utils import _http_flow

    real = _http_flow.CookieJar.headers
    if broken == "token":
        monkeypatch.setattr(
            _http_flow,
            "find_forms",
            lambda text: [form._replace(fields={}) for form in find_forms(text)],
        )
    else:
        name = {"cookie": "Cookie", "referer": "Referer"}[broken]
        monkeypatch.setattr(
            _http_flow.CookieJar,
            "headers",
            lambda self, route: {k: v for k, v in real(self, route).items() if k != name},
        )
    found = run(target, [LOGIN])
    assert found["verdict"] == "fail"
    assert "403" in found["message"]


def test_a_json_request_carries_the_token_of_the_cookie(server, target):
    post = {"url": "/signals/3/notes/", "json_body": {"note": "x"}}
    assert run(target, [LOGIN, post])["verdict"] == "pass"
    assert server.notes == ['{"note": "x"}']


def test_the_form_of_the_last_page_is_used_by_its_action(server, target):
    to_action = {"url": "/signals/3/notes/", "form": {"note": "by action"}}
    found = run(target, [LOGIN, {"url": "/signals/3/"}, to_action])
    assert found["verdict"] == "pass", found
    assert len(server.notes) == 1


def test_secure_cookies_do_not_travel_in_plain_text(server):
    found = run(Target(server.address), [LOGIN])
    assert found["verdict"] == "fail"
    assert not any("cookie" in request.headers for request in server.requests)


def test_cookies_follow_path_and_deletion(server, target):
    def give(connection, request):
        server.send(
            connection,
            200,
            "ok",
            "Set-Cookie: all=1; Path=/",
            "Set-Cookie: only=2; Path=/signals",
            "Set-Cookie: gone=3; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/",
            "Set-Cookie: own=4",
            "Set-Cookie: later=5; Max-Age=100; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/",
        )

    def take(connection, request):
        server.send(connection, 200, "ok", "Set-Cookie: all=; Max-Age=0; Path=/")

    server.do_a_give, server.do_take = give, take
    assert (
        run(
            target,
            [{"url": "/a/give"}, {"url": "/take"}, {"url": "/take"}, {"url": "/signals/x", "status": 404}],
        )["verdict"]
        == "pass"
    )
    sent = [request.cookies for request in server.requests]
    assert sent == [{}, {"all": "1", "later": "5"}, {"later": "5"}, {"only": "2", "later": "5"}]


@pytest.mark.parametrize(
    ("url", "source", "value"),
    [
        ("/json", {"json": "items[1].name"}, "b"),
        ("/json", {"json": "took"}, '{"ms": 480}'),
        ("/ok", {"header": "X-Release"}, "0123456789ab-00000000"),
        ("/ok", {"regex": r"all (\w+)"}, "is"),
        ("/ok", {"regex": r"we.."}, "well"),
    ],
)
def test_what_is_extracted_is_used_later(server, target, url, source, value):
    steps = [{"url": url, "extract": {"it": source}}, {"url": "/echo", "method": "POST", "body": "{it}"}]
    assert run(target, steps)["verdict"] == "pass"
    assert server.requests[-1].body == value


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("/json", {"json": "gone"}),
        ("/ok", {"json": "a"}),
        ("/ok", {"header": "X-No"}),
        ("/ok", {"regex": "zzz"}),
    ],
)
def test_what_cannot_be_extracted_fails_the_step(server, target, url, source):
    found = run(target, [{"url": url, "extract": {"it": source}}, {"url": "/ok"}])
    assert (found["verdict"], len(found["steps"])) == ("fail", 1)
    assert "'it' was to be taken from" in found["message"]


def test_an_extracted_secret_is_not_replaced(server, target):
    """A page must not be able to have a secret sent where it likes."""
    server.do_trap = lambda connection, request: server.send(connection, 200, "{secret.password}")
    steps = [
        {"url": "/trap", "extract": {"it": {"regex": ".+"}}},
        {"url": "/echo", "method": "POST", "body": "{it}"},
    ]
    assert run(target, steps)["verdict"] == "pass"
    assert server.requests[-1].body == "{secret.password}"


def test_a_lesser_step_does_not_end_the_flow(server, target):
    found = run(target, [{"url": "/error", "name": "nice", "severity": "minor"}, {"url": "/ok"}])
    assert (found["verdict"], len(found["steps"]), found["degraded_steps"]) == ("pass", 2, ["nice"])


@pytest.mark.parametrize("path", ["/hang", "/dribble-body", "/dribble-head"])
def test_a_flow_keeps_its_time(server, target, path):
    begun = time.monotonic()
    found = run(target, [{"url": path}, {"url": "/ok"}], timeout=5, seconds=0.3)
    assert (found["verdict"], time.monotonic() - begun < 0.8) == ("fail", True)


def test_the_timeout_of_the_flow_is_for_all_steps(server, target):
    flow = parse_flow({"steps": [{"url": "/slow"}] * 4, "timeout": 0.6}, "flows[0]")
    begun = time.monotonic()
    found = run_flow(flow, target, Values(), 5.0, begun + 8)
    assert (found["verdict"] != "pass", time.monotonic() - begun < 1.2) == (True, True)


def test_in_a_step_redirects_are_followed_unless_it_says_otherwise(server, target):
    steps = [
        {"url": "/moved", "contains": "well"},
        {"url": "/moved", "redirect_to": "/ok"},
        {"url": "/moved", "follow": False, "status": 302},
    ]
    assert run(target, steps)["verdict"] == "pass"


@pytest.mark.parametrize(
    ("flow", "text"),
    [
        ({"steps": []}, "at least one step"),
        ({}, "at least one step"),
        ({"steps": {"url": "/"}}, "must be a list"),
        ({"step": []}, "did you mean 'steps'?"),
        ({"steps": [{"url": "/", "extract": {"commit": {"json": "a"}}}]}, "no placeholder of ours"),
        ({"steps": [{"url": "/", "extract": {"a": {"jsn": "a"}}}]}, "did you mean 'json'?"),
        ({"steps": [{"url": "/", "extract": {"a": {"json": "a", "regex": "b"}}}]}, "exactly one"),
        ({"steps": [{"url": "/", "extract": {"a": {"regex": "("}}}]}, "no regular expression"),
    ],
)
def test_a_flow_that_is_not_well_written_is_a_problem(flow, text):
    with pytest.raises(Problem) as caught:
        parse_flow(copy.deepcopy(flow), "flows[0]")
    assert text in caught.value.message
