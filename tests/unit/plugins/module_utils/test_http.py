# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _http_transport as transport
from ansible_collections.runbook.deploy.plugins.module_utils._gate import gate_result, until
from ansible_collections.runbook.deploy.plugins.module_utils._http import run_checks
from ansible_collections.runbook.deploy.plugins.module_utils._http_spec import (
    Values,
    parse_checks,
    parse_flows,
)
from ansible_collections.runbook.deploy.plugins.module_utils._http_transport import Target
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.faulty_server import (
    FaultyServer,
    make_certificate,
)

COMMIT = "0123456789abcdef"
KNOWN = {"commit": COMMIT, "release": "0123456789ab-00000000", "version": "v2.7", "deployment": ""}


@pytest.fixture(scope="module")
def directory():
    # Not tmp_path: a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="http") as path:
        yield path


@pytest.fixture(scope="module")
def server():
    with FaultyServer() as running:
        yield running


@pytest.fixture(scope="module")
def unix(directory):
    with FaultyServer(path=f"{directory}/web.sock") as running:
        running.path = f"{directory}/web.sock"
        yield running


@pytest.fixture(scope="module")
def certificate(directory):
    made = make_certificate(directory)
    if made is None:
        pytest.skip("there is no openssl to make a certificate with")
    return made


def ask(target, check, **options):
    return run_checks([check], target, placeholders=KNOWN, **{"timeout": 2.0, "deadline": 5.0, **options})[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# Check, verdict, a part of the message (or of what was observed, for a pass).
TABLE = [
    ({"url": "/ok"}, "pass", "status 200"),
    ({"url": "/ok", "status": 200}, "pass", ""),
    ({"url": "/ok", "status": [500, 200]}, "pass", ""),
    ({"url": "/ok", "contains": "well"}, "pass", "all is well"),
    ({"url": "/ok", "contains": ["all", "well"]}, "pass", ""),
    ({"url": "/ok", "contains": ["all", "bad"]}, "fail", "'bad'"),
    ({"url": "/ok", "absent": "Traceback"}, "pass", ""),
    ({"url": "/ok", "absent": ["well"]}, "fail", "it is there"),
    ({"url": "/ok", "matches": "^all .* well$"}, "pass", ""),
    ({"url": "/ok", "matches": "^well"}, "fail", "there is none"),
    ({"url": "/ok", "header": {"x-release": "{release}"}}, "pass", ""),
    ({"url": "/ok", "header": {"X-Release": "other"}}, "fail", "X-Release"),
    ({"url": "/ok", "header": {"X-None": "a"}}, "fail", "absent"),
    ({"url": "/ok", "max_seconds": 2}, "pass", ""),
    ({"url": "/slow", "max_seconds": 0.1}, "fail", "it took 0.4"),
    ({"url": "/missing"}, "fail", "it was 404"),
    ({"url": "/missing", "status": 404}, "pass", ""),
    ({"url": "/error"}, "fail", "Traceback: it broke"),
    ({"url": "/json", "json": {"status": "ok", "commit": "{commit}", "took.ms": "< 500"}}, "pass", ""),
    ({"url": "/json", "json": {"items": "length > 1", "items[1].name": "b"}}, "pass", ""),
    ({"url": "/json", "json": {"took.ms": "< 400"}}, "fail", "took.ms is 480"),
    ({"url": "/json", "json": {"commit": "{release}"}}, "fail", "0123456789abcdef"),
    ({"url": "/json", "json": {"gone": "exists"}}, "fail", "missing"),
    ({"url": "/ok", "json": {"status": "ok"}}, "fail", "no JSON"),
    ({"url": "/badjson", "json": {"status": "!= bad"}}, "fail", "no JSON"),
    ({"url": "/moved"}, "fail", "it was 302"),
    ({"url": "/moved", "redirect_to": "/ok"}, "pass", ""),
    ({"url": "/moved", "redirect_to": "/ok?next=1"}, "pass", ""),
    ({"url": "/moved", "redirect_to": "/login/"}, "fail", "it led to /ok"),
    ({"url": "/ok", "redirect_to": "/ok"}, "fail", "it was 200"),
    ({"url": "/moved", "follow": True, "contains": "well"}, "pass", "1 redirects"),
    ({"url": "/loop", "follow": True}, "fail", "more than 10 redirects"),
    ({"url": "/secure"}, "fail", "X-Forwarded-Proto"),
    ({"url": "/echo", "json": {"cache-control": "no-store"}}, "pass", ""),
    ({"url": "/secure", "headers": {"X-Forwarded-Proto": "https"}}, "pass", ""),
    ({"url": "/reset"}, "fail", "reset"),
    ({"url": "/closed"}, "fail", "no valid HTTP answer"),
    ({"url": "/garbage"}, "fail", "no valid HTTP answer"),
    ({"url": "/short", "contains": "well"}, "fail", "no valid HTTP answer"),
    ({"url": "/chunk-short", "contains": "well"}, "fail", "no valid HTTP answer"),
    ({"url": "/huge", "contains": "start"}, "pass", "the rest was not read"),
    ({"url": "/huge", "contains": " end"}, "inconclusive", "in the part that was read"),
    ({"url": "/huge", "absent": "bad"}, "inconclusive", "cannot be judged"),
    ({"url": "/huge", "absent": "start"}, "fail", "it is there"),
    ({"url": "/huge", "json": {"a": 1}}, "inconclusive", "too long"),
    ({"url": "/endless", "contains": "start"}, "pass", "the rest was not read"),
    ({"url": "/latin", "contains": "grün"}, "pass", ""),
    ({"url": "/ok", "method": "HEAD"}, "pass", ""),
    ({"url": "http://elsewhere.invalid/"}, "inconclusive", "is not known here"),
    ({"url": "/away", "follow": True}, "inconclusive", "is not known here"),
]


@pytest.mark.parametrize(("check", "verdict", "text"), TABLE)
def test_an_answer_is_judged(server, check, verdict, text):
    found = ask(Target(server.address), check)
    assert found["verdict"] == verdict, found
    assert text in (found["observed"] if verdict == "pass" else found["message"])
    assert bool(found["message"]) is (verdict != "pass")


@pytest.mark.parametrize("path", ["/hang", "/dribble-head", "/dribble-body", "/continue"])
@pytest.mark.parametrize("check", [{}, {"follow": True}, {"method": "POST", "body": "x" * 100}])
def test_no_server_holds_a_check_longer_than_its_timeout(server, path, check):
    begun = time.monotonic()
    found = ask(Target(server.address), {"url": path, **check}, timeout=0.3)
    assert time.monotonic() - begun < 0.3 + 0.5
    assert found["verdict"] == "fail"
    assert "no complete answer in 0.3 s" in found["message"]


def test_the_deadline_bounds_all_checks_together(server):
    begun = time.monotonic()
    found = run_checks(
        [{"url": "/hang"}] * 20 + [{"url": "/ok"}], Target(server.address), timeout=5, deadline=0.5
    )
    assert time.monotonic() - begun < 1.5
    assert len(found) == 21
    assert all(check["verdict"] != "pass" for check in found)
    assert "was not asked" in found[-1]["message"]


def test_checks_are_asked_in_parallel(server):
    begun = time.monotonic()
    found = run_checks([{"url": "/slow"}] * 8, Target(server.address))
    assert time.monotonic() - begun < 1.6, "one after the other they take 3.2 s"
    assert {check["verdict"] for check in found} == {"pass"}


@pytest.mark.parametrize(
    ("path", "successes", "verdict"),
    [
        ("/ok", 3, "pass"),
        ("/late", 2, "pass"),
        ("/flaky", 2, "pass"),
        ("/flaky", 3, "fail"),
        ("/flapping", 2, "fail"),
        ("/error", 1, "fail"),
        ("/hang", 1, "fail"),
        ("/dribble-body", 1, "fail"),
        ("/reset", 1, "fail"),
    ],
)
def test_a_gate_over_faults_keeps_its_deadline(path, successes, verdict):
    with FaultyServer() as server:
        target = Target(server.address)
        begun = time.monotonic()
        found = until(
            lambda left: run_checks([{"url": path}], target, timeout=5, deadline=left),
            successes=successes,
            interval=0.02,
            deadline=0.6,
        )
        assert time.monotonic() - begun < 1.6
    assert found["verdict"] == verdict, found


def test_no_gate_passes_on_a_dead_probe(directory):
    dead = [
        Target(f"127.0.0.1:{free_port()}"),
        Target(socket=f"{directory}/none.sock"),
        Target("http://no-such-name.invalid"),
        Target(f"https://127.0.0.1:{free_port()}"),
    ]
    with socket.socket(socket.AF_UNIX) as bound:
        # A file that nobody listens on any more, as a killed process leaves it.
        bound.bind(f"{directory}/left.sock")
    dead.append(Target(socket=f"{directory}/left.sock"))
    for target in dead:
        for check in ({"url": "/", "absent": "x"}, {"url": "/", "status": list(range(100, 600))}):
            found = ask(target, check)
            assert found["verdict"] in ("fail", "inconclusive"), found
            assert not gate_result([found])["passed"]
            assert found["status"] is None


def test_a_socket_that_may_not_be_opened_is_inconclusive(unix):
    if os.geteuid() == 0:
        pytest.skip("root may open every socket")
    os.chmod(unix.path, 0)
    try:
        assert ask(Target(socket=unix.path), {"url": "/ok"})["verdict"] == "inconclusive"
    finally:
        os.chmod(unix.path, 0o666)


def test_a_socket_is_asked_with_the_host_of_the_site(unix):
    target = Target(socket=unix.path, host="shop.example.org", headers={"X-Forwarded-Proto": "https"})
    check = {"url": "/echo?a=1", "json": {"host": "shop.example.org", "x-forwarded-proto": "https"}}
    found = ask(target, {**check, "bust_cache": True})
    assert found["verdict"] == "pass", found
    sent = unix.requests[-1]
    assert sent.headers["cache-control"] == "no-store"
    assert sent.headers["accept-encoding"] == "identity"
    assert sent.query.startswith("a=1&_=")
    first = sent.query
    ask(target, {**check, "bust_cache": True})
    assert unix.requests[-1].query != first, "a constant query does not get past a cache"
    ask(target, check)
    assert unix.requests[-1].query == "a=1"


def test_what_is_asked_in_plain_text_has_to_lead_to_tls(server):
    target = Target(server.address, host="shop.example.org")
    check = {"url": "/secure", "redirect_to": "https://shop.example.org/secure", "status": 301}
    assert ask(target, check)["verdict"] == "pass"
    assert ask(target, {**check, "url": "/ok"})["verdict"] == "fail"
    assert ask(target, {**check, "url": "/moved", "status": 302})["verdict"] == "fail"


def test_an_address_with_the_name_of_the_site_is_asked_at_the_instance(unix):
    target = Target(socket=unix.path, host="shop.example.org")
    before = len(unix.requests)
    assert ask(target, {"url": "https://shop.example.org/ok"})["verdict"] == "pass"
    assert len(unix.requests) == before + 1


def test_a_way_that_leads_away_from_a_socket_is_no_proof(unix):
    found = ask(Target(socket=unix.path, host="shop.example.org"), {"url": "/away", "follow": True})
    assert found["verdict"] == "fail"
    assert "away from socket" in found["message"]
    endless = ask(Target(socket=unix.path, host="shop.example.org"), {"url": "/secure", "follow": True})
    assert endless["verdict"] == "fail"


def test_headers_do_not_go_where_a_redirect_leads():
    with FaultyServer() as other, FaultyServer() as server:
        server.do_out = lambda connection, request: server.send(
            connection, 302, "", f"Location: {other.address}/echo"
        )
        server.do_keep = lambda connection, request: server.send(
            connection, 307, "", f"Location: {other.address}/echo"
        )
        target = Target(server.address, headers={"Authorization": "Bearer abc"})
        assert ask(target, {"url": "/out", "follow": True, "headers": {"X-Key": "k"}})["verdict"] == "pass"
        assert not {"authorization", "x-key"} & set(other.requests[-1].headers)
        assert server.requests[-1].headers["authorization"] == "Bearer abc"
        count = len(other.requests)
        found = ask(target, {"url": "/keep", "method": "POST", "body": "secret", "follow": True})
        assert (found["verdict"], len(other.requests)) == ("fail", count)


@pytest.mark.parametrize(
    ("check", "sent"),
    [
        ({"json_body": {"a": [1, "{version}"]}}, '{"a": [1, "v2.7"]}'),
        ({"body": "raw {commit}"}, f"raw {COMMIT}"),
        ({"form": {"a": "1&2", "b": "{version}"}}, "a=1%262&b=v2.7"),
    ],
)
def test_bodies(server, check, sent):
    found = ask(Target(server.address), {"url": "/echo", "json": {"method": "POST"}, **check})
    assert found["verdict"] == "pass", found
    assert server.requests[-1].body == sent


def test_which_release_answers_is_proved_or_not(server):
    def proved(check):
        found = ask(Target(server.address), check)
        return found["verdict"], found.get("proves_release")

    assert proved({"url": "/json", "json": {"commit": "{commit}"}}) == ("pass", True)
    assert proved({"url": "/ok", "header": {"X-Release": "{release}"}}) == ("pass", True)
    assert proved({"url": "/json", "contains": "{commit}"}) == ("pass", True)
    assert proved({"url": "/json", "json": {"status": "ok"}}) == ("pass", False)
    assert proved({"url": "/json", "json": {"status": "!= {commit}"}}) == ("pass", False)
    assert proved({"url": "/json", "absent": "{release}"}) == ("pass", False)
    assert proved({"url": "/ok", "contains": "{commit}"}) == ("fail", None)


@pytest.mark.parametrize("key", ["contains", "absent", "matches", "url", "body"])
def test_a_placeholder_without_a_value_is_refused(server, key):
    """An empty deployment would be found in every answer."""
    with pytest.raises(Problem, match=r"no deployment was given"):
        ask(Target(server.address), {"url": "/ok", key: "/{deployment}"})


def test_a_value_in_a_pattern_is_taken_literally(server):
    found = run_checks(
        [{"url": "/ok", "matches": "^{version}$"}], Target(server.address), placeholders={"version": ".*"}
    )
    assert found[0]["verdict"] == "fail"


SECRET = 'p&w"<5>'


def test_secrets_are_sent_and_never_shown(server):
    target = Target(server.address, headers={"X-Api": "{secret.api}"})
    checks = [
        {"url": "/echo", "json_body": {"pw": "{secret.pw}"}, "contains": "never there"},
        {"url": "/echo", "form": {"pw": "{secret.pw}"}, "contains": "never there"},
        {"url": "/echo?pw={secret.pw}", "headers": {"Authorization": "{secret.pw}"}, "json": {"query": "no"}},
        {"url": "/moved", "method": "POST", "form": {"pw": "{secret.pw}"}, "redirect_to": "/x"},
        {"url": "/echo", "headers": {"X-Literal-Token": "literal-token"}, "status": 500, "method": "HEAD"},
    ]
    found = run_checks(checks, target, secrets={"pw": SECRET, "api": "s3"})
    sent = [request for request in server.requests if request.headers.get("x-api") == "s3"]
    assert any(json.loads(request.body)["pw"] == SECRET for request in sent if request.body.startswith("{"))
    assert any(request.form.get("pw") == SECRET for request in sent)
    assert any(request.headers.get("authorization") == SECRET for request in sent)
    shown = json.dumps(found)
    assert [check["verdict"] for check in found] == ["fail"] * 5
    for text in (SECRET, json.dumps(SECRET)[1:-1], "p%26w", "p&amp;w", '"s3', "literal-token"):
        assert text not in shown
    assert "{secret.pw}" in found[0]["repeat"]


def test_a_secret_in_an_expectation_is_refused(server):
    """It is not replaced there, so that absent would always be true."""
    with pytest.raises(Problem, match="only for what is sent"):
        run_checks([{"url": "/ok", "absent": "{secret.pw}"}], Target(server.address), secrets={"pw": "x"})
    with pytest.raises(Problem, match="secrets has only: pw"):
        run_checks([{"url": "/{secret.pv}"}], Target(server.address), secrets={"pw": "x"})


def test_what_is_put_in_is_not_replaced_again():
    values = Values({"version": "{secret.pw}"}, {"pw": "x"})
    assert values.fill("{version}", "here", secret=True) == "{secret.pw}"


@pytest.mark.parametrize("kind", ["tcp", "host", "unix", "tls"])
def test_the_command_repeats_the_check(server, unix, kind, request):
    if not shutil.which("curl"):
        pytest.skip("there is no curl")
    check = {"url": "/echo?a=b c'd", "headers": {"X-Odd": "it's $HOME"}, "form": {"k": "v 1"}, "status": 500}
    if kind == "tls":
        certificate = request.getfixturevalue("certificate")
        with FaultyServer(certificate=certificate) as tls:
            found = ask(Target(tls.address, host="shop.example.org", ca=certificate), check)
            done = subprocess.run(shlex.split(found["repeat"]), capture_output=True, text=True, check=False)
            sent = tls.requests
    else:
        place = unix if kind == "unix" else server
        # "host": the Host header names the right machine, but not the port.
        target = {
            "tcp": lambda: Target(server.address, host="shop.example.org"),
            "host": lambda: Target(server.address, host="127.0.0.1"),
            "unix": lambda: Target(socket=unix.path, host="shop.example.org"),
        }[kind]()
        found = ask(target, check)
        done = subprocess.run(shlex.split(found["repeat"]), capture_output=True, text=True, check=False)
        sent = place.requests
    assert found["status"] == 200, found
    assert "HTTP/1.1 200" in done.stdout, (found["repeat"], done.stderr)
    ours, curls = sent[-2:]
    assert (ours.method, ours.path, ours.query) == (curls.method, curls.path, curls.query)
    assert ours.form == curls.form
    for name in ("host", "x-odd"):
        assert ours.headers[name] == curls.headers[name]


def test_tls_is_verified(certificate, directory):
    expired = make_certificate(directory, names="DNS:other.example.org")
    with FaultyServer(certificate=certificate) as good, FaultyServer(certificate=expired) as wrong:
        assert ask(Target(good.address, ca=certificate), {"url": "/ok"})["verdict"] == "pass"
        named = Target(good.address, ca=certificate, host="shop.example.org")
        assert ask(named, {"url": "/ok"})["verdict"] == "pass"
        unknown = ask(Target(good.address), {"url": "/ok"})
        assert (unknown["verdict"], "certificate is refused" in unknown["message"]) == ("fail", True)
        mismatch = ask(Target(wrong.address, ca=expired), {"url": "/ok"})
        assert (mismatch["verdict"], "certificate is refused" in mismatch["message"]) == ("fail", True)
        other = Target(good.address, ca=certificate, host="bank.example.org")
        assert ask(other, {"url": "/ok"})["verdict"] == "fail"
        assert ask(Target(wrong.address, verify=False), {"url": "/ok"})["verdict"] == "pass"
        plain = ask(Target(f"http://127.0.0.1:{good.port}"), {"url": "/ok"})
        assert plain["verdict"] == "fail"
        nothing = ask(Target(good.address, ca=f"{directory}/none.pem"), {"url": "/ok"})
        assert nothing["verdict"] == "inconclusive"
        begun = time.monotonic()
        slow = ask(Target(good.address, ca=certificate), {"url": "/dribble-body"}, timeout=0.3)
        assert (slow["verdict"], time.monotonic() - begun < 0.8) == ("fail", True)


def test_tls_that_never_answers_ends_in_time():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        begun = time.monotonic()
        found = ask(Target(f"https://127.0.0.1:{silent.getsockname()[1]}"), {"url": "/"}, timeout=0.3)
    assert (found["verdict"], time.monotonic() - begun < 0.8) == ("fail", True)


def test_a_name_that_takes_for_ever_to_resolve_ends_in_time(server, monkeypatch):
    monkeypatch.setattr(transport.sockets, "getaddrinfo", lambda *_a, **_k: time.sleep(4))
    begun = time.monotonic()
    found = ask(Target(server.address), {"url": "/ok"}, deadline=0.3)
    assert time.monotonic() - begun < 1.3
    assert found["verdict"] == "inconclusive"


@pytest.mark.parametrize(
    ("check", "text"),
    [
        ("/healthz/", "must be a mapping"),
        ({}, "url is missing"),
        ({"url": "healthz"}, "must begin with /"),
        ({"url": "/", "statu": 200}, "did you mean 'status'?"),
        ({"url": "/", "contain": "x"}, "did you mean 'contains'?"),
        ({"url": "/", "xyz": 1}, "known are"),
        ({"url": "/", "extract": {}}, "unknown key 'extract'"),
        ({"url": "/", "status": "ok"}, "status codes"),
        ({"url": "/", "status": []}, "empty list"),
        ({"url": "/", "status": True}, "status codes"),
        ({"url": "/", "contains": ""}, "not empty"),
        ({"url": "/", "contains": [""]}, "not empty"),
        ({"url": "/", "matches": "("}, "no regular expression"),
        ({"url": "/", "json": {"a": "< fast"}}, "expected a number"),
        ({"url": "/", "json": {"a..b": 1}}, "JSON path"),
        ({"url": "/", "json": [1]}, "must be a mapping"),
        ({"url": "/", "severity": "high"}, "critical, degraded, minor"),
        ({"url": "/", "method": "FETCH"}, "method must be one of"),
        ({"url": "/", "method": "GET", "body": "x"}, "sends body with GET"),
        ({"url": "/", "body": "x", "form": {}}, "only one of"),
        ({"url": "/", "timeout": 0}, "above 0"),
        ({"url": "/", "timeout": "soon"}, "above 0"),
        ({"url": "/", "follow": "yes"}, "true or false"),
        ({"url": "/", "follow": True, "redirect_to": "/"}, "either followed or judged"),
        ({"url": "/", "headers": {"A": None}}, "must be a text"),
        ({"url": "/", "headers": {"A": "x\r\nB: y"}}, "cannot be sent"),
        ({"url": "ftp://example.org/"}, "must be like https://"),
        ({"url": "http://user:word@example.org/"}, "carries a password"),
        ({"url": "http://example.org:port/"}, "cannot be read"),
    ],
)
def test_a_check_that_is_not_well_written_is_a_problem(server, check, text):
    with pytest.raises(Problem) as caught:
        ask(Target(server.address), check)
    assert text in caught.value.message
    assert "word@" not in caught.value.message


def test_the_place_of_a_typing_error_is_named():
    with pytest.raises(Problem, match=r"app_health_checks\[1\] has the unknown key"):
        parse_checks([{"url": "/"}, {"url": "/", "x": 1}], "app_health_checks")
    with pytest.raises(Problem, match=r"flows\[0\].steps\[0\].url is missing"):
        parse_flows([{"steps": [{}]}])


@pytest.mark.parametrize("given", [{}, {"address": "a:1", "socket": "/s"}, {"address": "ftp://x"}])
def test_a_target_is_one_place(given):
    with pytest.raises(Problem):
        Target(**given)
