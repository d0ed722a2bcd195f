# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files, tokens, cookies, certificates, samples, and faults that were there before."""

from __future__ import annotations

import email.parser
import email.policy
import json
import math
import tempfile
import threading
import time
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _http_gate
from ansible_collections.runbook.deploy.plugins.module_utils._http import run_checks
from ansible_collections.runbook.deploy.plugins.module_utils._http_flow import run_flow
from ansible_collections.runbook.deploy.plugins.module_utils._http_judge import (
    judge_certificate,
    judge_cookies,
)
from ansible_collections.runbook.deploy.plugins.module_utils._http_samples import figures, percentile
from ansible_collections.runbook.deploy.plugins.module_utils._http_spec import Values, parse_check, parse_flow
from ansible_collections.runbook.deploy.plugins.module_utils._http_transport import Target
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.faulty_server import (
    FaultyServer,
    Request,
    make_certificate,
)
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = 1_800_000_000.0


class Application(FaultyServer):
    """A server whose behaviour depends on what was asked before."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self.files: list[dict[str, tuple[str | None, str]]] = []
        self.lock = threading.Lock()
        self.active = self.most = self.number = 0
        super().__init__(*given, **named)

    def parts(self, request: Request) -> dict[str, tuple[str | None, str]]:
        """Return the parts of a multipart body: file name and text by field, as a stranger's parser reads them."""
        text = f"Content-Type: {request.headers['content-type']}\r\n\r\n{request.body}"
        message = email.parser.Parser(policy=email.policy.HTTP).parsestr(text)
        return {
            part.get_param("name", header="content-disposition"): (part.get_filename(), part.get_payload())
            for part in message.iter_parts()
        }

    def do_upload(self, connection: Any, request: Request) -> None:
        if request.method == "GET":
            page = (
                '<form method="post" enctype="multipart/form-data"><input type="hidden" name="csrf" value="t&amp;k">'
                '<input name="title" value="x"><input type="file" name="csv"></form>'
            )
            self.send(connection, 200, page, "Content-Type: text/html")
            return
        self.files.append(self.parts(request))
        rows = len(self.files[-1]["csv"][1].splitlines()) - 1
        self.send(connection, 200, f"{rows} rows taken")

    def do_cookies(self, connection: Any, request: Request) -> None:
        self.send(
            connection,
            200,
            "in",
            "Set-Cookie: sessionid=abc; Path=/; HttpOnly; Secure; SameSite=Lax; Max-Age=1800",
            "Set-Cookie: plain=1",
        )

    def do_private(self, connection: Any, request: Request) -> None:
        good = request.headers.get("authorization") == "Bearer t0k3n-of-ours"
        self.send(connection, 200 if good else 401, "private" if good else "who are you?")

    def do_session(self, connection: Any, request: Request) -> None:
        fresh = float(request.cookies.get("at", 0)) > time.time() - 0.5
        if "login" in request.query:
            self.send(connection, 200, "signed in", f"Set-Cookie: at={time.time()}")
        else:
            self.send(connection, 200 if fresh else 401, "your page" if fresh else "sign in again")

    def do_busy(self, connection: Any, request: Request) -> None:
        with self.lock:
            self.active += 1
            self.most = max(self.most, self.active)
        time.sleep(0.03)
        with self.lock:
            self.active -= 1
        self.send(connection, 200, "served")

    def do_tenth(self, connection: Any, request: Request) -> None:
        with self.lock:
            self.number += 1
            wrong = self.number % 10 == 0
        self.send(connection, 500 if wrong else 200, "wrong" if wrong else "right")

    def do_after(self, connection: Any, request: Request) -> None:
        with self.lock:
            self.number += 1
            wrong = self.number > 50
        self.send(connection, 500 if wrong else 200, "text")


@pytest.fixture
def server():
    with Application() as running:
        yield running


def ask(server: FaultyServer, check: dict[str, Any], **more: Any) -> dict[str, Any]:
    (found,) = run_checks([check], Target(server.address), **{"timeout": 3, "deadline": 10, **more})
    return found


ROWS = {
    "name": "orders.csv",
    "type": "text/csv",
    "header": "id,name",
    "row": "{row},order {row}",
    "rows": 1000,
}


def test_a_thousand_rows_are_uploaded_in_time(server):
    found = ask(
        server,
        {
            "url": "/upload/",
            "files": {"csv": ROWS},
            "form": {"title": "a"},
            "contains": "1000 rows",
            "max_seconds": 30,
        },
    )
    assert found["verdict"] == "pass", found
    (parts,) = server.files
    assert parts["title"] == (None, "a")
    name, text = parts["csv"]
    lines = text.splitlines()
    assert (name, lines[0], lines[1], lines[-1]) == ("orders.csv", "id,name", "1,order 1", "1000,order 1000")
    assert "-F 'csv=@orders.csv;type=text/csv'" in found["repeat"]


def test_a_file_goes_with_the_form_of_the_page_and_its_token(server):
    steps = [
        {
            "url": "/upload/",
            "files": {"csv": {"name": "a.csv", "content": "id\n{secret.key}\n"}},
            "contains": "1 rows",
        }
    ]
    flow = parse_flow({"name": "upload", "steps": steps}, "flows[0]")
    found = run_flow(flow, Target(server.address), Values({}, {"key": "s3cr3t"}), 3, time.monotonic() + 5)
    assert found["verdict"] == "pass", found
    (parts,) = server.files
    # The hidden field and the default are sent as a browser would; the browser's own file field is ours.
    assert (parts["csrf"][1], parts["title"][1], parts["csv"]) == ("t&k", "x", ("a.csv", "id\ns3cr3t\n"))
    assert "s3cr3t" not in json.dumps(found)


def test_a_page_whose_form_lacks_the_file_field_is_not_sent_to(server):
    flow = parse_flow({"steps": [{"url": "/upload/", "files": {"photo": {"content": "x"}}}]}, "flows[0]")
    found = run_flow(flow, Target(server.address), Values(), 3, time.monotonic() + 5)
    assert (found["verdict"], server.files) == ("fail", [])
    assert "expected a form with the fields photo" in found["message"]


def test_a_token_is_sent_and_not_shown(server):
    check = {"url": "/private/", "bearer": "{secret.token}"}
    found = ask(server, check, secrets={"token": "t0k3n-of-ours"})
    assert found["verdict"] == "pass"
    assert "Authorization: Bearer {secret.token}" in found["repeat"]
    assert "t0k3n-of-ours" not in json.dumps(found)
    assert ask(server, check, secrets={"token": "stale"})["status"] == 401


@pytest.mark.parametrize(
    ("cookies", "verdict", "said"),
    [
        ({"sessionid": ["secure", "httponly", "samesite=lax", "path=/", "max_age <= 3600"]}, "pass", ""),
        ({"sessionid": "max_age < 1800"}, "fail", "max-age=1800"),
        ({"sessionid": "samesite=strict"}, "fail", "samesite=Lax"),
        ({"sessionid": "session"}, "fail", "max-age=1800"),
        ({"plain": "session"}, "pass", ""),
        ({"plain": "secure"}, "fail", "no attribute"),
        ({"plain": "max_age < 60"}, "fail", "ends with the browser"),
        ({"plain": "absent"}, "fail", "it is set"),
        ({"csrftoken": "secure"}, "fail", "set are: plain, sessionid"),
        ({"csrftoken": "absent"}, "pass", ""),
    ],
)
def test_the_flags_of_cookies(server, cookies, verdict, said):
    found = ask(server, {"url": "/cookies/", "cookies": cookies})
    assert found["verdict"] == verdict, found
    assert said in found["message"]


def test_a_cookie_that_is_deleted_is_not_set():
    gone = judge_cookies({"a": ["secure"]}, "a=; Secure; Expires=Thu, 01 Jan 1970 00:00:00 GMT", NOW)
    assert [finding.true for finding in gone] == [False]
    (kept,) = judge_cookies({"a": ["max_age > 100"]}, "a=1; Expires=Fri, 15 Jan 2027 08:10:00 GMT", NOW)
    assert kept.true, kept


def test_a_session_that_runs_out(server):
    def run(wait: float) -> dict[str, Any]:
        steps = [
            {"url": "/session/?login"},
            {"url": "/session/", "wait": wait, "status": 401, "contains": "sign in again"},
        ]
        flow = parse_flow({"steps": steps}, "flows[0]")
        return run_flow(flow, Target(server.address), Values(), 3, time.monotonic() + 5)

    assert run(0.7)["verdict"] == "pass"
    assert run(0.05)["verdict"] == "fail"


def test_a_wait_longer_than_what_is_left_ends_in_time(server):
    flow = parse_flow({"steps": [{"url": "/ok/", "wait": 60}]}, "flows[0]")
    begun = time.monotonic()
    found = run_flow(flow, Target(server.address), Values(), 3, begun + 0.3)
    assert (found["verdict"], server.requests) == ("inconclusive", [])
    assert time.monotonic() - begun < 1.3


def test_days_until_the_certificate_ends():
    with tempfile.TemporaryDirectory() as directory:
        made = make_certificate(directory, days=20)
        if made is None:
            pytest.skip("there is no openssl to make a certificate with")
        with FaultyServer(certificate=made) as server:
            safe = Target(server.address, ca=made)
            for days, verdict in ((14, "pass"), (21, "fail")):
                (found,) = run_checks([{"url": "/ok", "tls_days": days}], safe)
                assert found["verdict"] == verdict, found
            assert "it ends in 20" in found["message"] or "it ends in 19" in found["message"]
            # Not verified is not read: nothing is known of it, and nothing passes.
            (blind,) = run_checks([{"url": "/ok", "tls_days": 1}], Target(server.address, verify=False))
            assert blind["verdict"] == "inconclusive"
        with FaultyServer() as plain:
            (open_,) = run_checks([{"url": "/ok", "tls_days": 1}], Target(plain.address))
            assert (open_["verdict"], "without TLS" in open_["message"]) == ("fail", True)


def test_an_end_that_cannot_be_read_is_no_pass():
    assert judge_certificate(1, {}, True, True, NOW).true is None
    assert judge_certificate(1, {"notAfter": "soon"}, True, True, NOW).true is None


def sample(server: FaultyServer, path: str, **samples: Any) -> dict[str, Any]:
    return ask(server, {"url": path, "samples": samples, "name": "load"}, timeout=1, deadline=6)


def test_a_hundred_requests_ten_at_a_time(server):
    found = sample(
        server, "/busy/", requests=100, concurrency=10, p95="< 1s", error_rate="< 1%", throughput="> 5/s"
    )
    assert found["verdict"] == "pass", found
    assert (found["requests"], len(server.requests)) == (100, 100)
    assert 2 <= server.most <= 10
    assert 0.03 <= found["figures"]["p50"] <= found["figures"]["p95"] <= found["figures"]["max"]


def test_a_hundred_at_once_without_an_error_of_the_probe(server):
    found = sample(server, "/busy/", requests=100, concurrency=100)
    assert (found["verdict"], found["figures"]["error_rate"]) == ("pass", 0), found


@pytest.mark.parametrize(
    ("path", "samples", "verdict", "said"),
    [
        ("/ok/", {"requests": 20, "p95": "< 1s"}, "pass", ""),
        ("/tenth/", {"requests": 100}, "fail", "found error_rate 10.00 %"),
        ("/tenth/", {"requests": 100, "error_rate": "<= 10%"}, "pass", ""),
        ("/tenth/", {"requests": 100, "error_rate": "< 10%"}, "fail", "expected error_rate < 10%"),
        ("/after/", {"requests": 60, "concurrency": 1, "error_rate": "< 1%"}, "fail", "error_rate 16.67 %"),
        ("/busy/", {"requests": 20, "p50": "< 10ms"}, "fail", "expected p50 < 10ms"),
        ("/busy/", {"requests": 5, "throughput": "> 100000/s"}, "fail", "expected throughput > 100000/s"),
        ("/reset/", {"requests": 5}, "fail", "error_rate 100.00 %"),
        ("/hang/", {"requests": 4, "concurrency": 4}, "fail", "error_rate 100.00 %"),
        ("/error/", {"requests": 3}, "fail", "it was 50"),
    ],
)
def test_samples_of_faults(server, path, samples, verdict, said):
    begun = time.monotonic()
    found = sample(server, path, **samples)
    assert found["verdict"] == verdict, found
    assert said in found["message"], found["message"]
    assert time.monotonic() - begun < 7


def test_samples_for_a_time(server):
    begun = time.monotonic()
    found = sample(server, "/busy/", duration=0.5, concurrency=4)
    assert found["verdict"] == "pass", found
    assert 0.4 < time.monotonic() - begun < 2
    assert found["requests"] > 4


def test_samples_that_did_not_end_in_time_are_no_pass(server):
    (found,) = run_checks(
        [{"url": "/busy/", "samples": {"requests": 5000, "concurrency": 2}}],
        Target(server.address),
        deadline=0.6,
    )
    assert found["verdict"] == "inconclusive", found
    assert "had not ended" in found["message"] or "time was up" in found["message"]


def test_samples_of_nobody_are_no_pass():
    checks = [{"url": "/", "samples": {"requests": 3}}]
    (found,) = run_checks(checks, Target("http://no-such-name.invalid"), deadline=8)
    assert found["verdict"] == "inconclusive", found


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({"samples": {"p95": "500ms"}}, "samples.p95 must be a comparison"),
        ({"samples": {"p95": "< 5%"}}, "units ms, s"),
        ({"samples": {"request": 5}}, "unknown key 'request'"),
        ({"samples": {"requests": 0}}, "from 1 to"),
        ({"samples": {"concurrency": 100000}}, "from 1 to 200"),
        ({"cookies": {"a": "secured"}}, "has 'secured'"),
        ({"cookies": {"a": ["absent", "secure"]}}, "has 'absent'"),
        ({"tls_days": -1}, "number of days above 0"),
        ({"files": {"a": {"rows": 5}}}, "only one of row and rows"),
        ({"files": {"a": {"name": 'x"y', "content": ""}}}, "without quotes"),
        ({"files": {"a": {"content": "x", "row": "a", "rows": 5}}}, "either content, or row and rows"),
        ({"files": {"a": {"content": "x"}}, "json_body": {}}, "has files and json_body"),
        ({"bearer": "x", "headers": {"authorization": "y"}}, "the only Authorization"),
        ({"wait": 5}, "unknown key 'wait'"),
    ],
)
def test_what_cannot_be_read_is_refused(check, said):
    with pytest.raises(Problem) as refused:
        parse_check({"url": "/", **check}, "checks[0]")
    assert said in refused.value.message


def test_a_step_has_no_samples():
    with pytest.raises(Problem, match="unknown key 'samples'"):
        parse_flow({"steps": [{"url": "/", "samples": {}}]}, "flows[0]")


def gate(server: FaultyServer, **options: Any) -> dict[str, Any]:
    given = {name: spec.get("default") for name, spec in _http_gate.OPTIONS.items()}
    given.update(address=server.address, successes=1, deadline=3.0, patience=0.1, interval=0.1, **options)
    return _http_gate.perform(given, False, lambda message: None)


FAULT = [{"name": "old page", "url": "/error/", "compare": True}, {"name": "home", "url": "/ok/"}]


def test_an_old_fault_is_told_from_a_new_one(server):
    before = gate(server, checks=FAULT, judge=False)
    assert (before["passed"], before["failing"]) == (False, ["old page"])
    after = gate(server, checks=FAULT, before=before["checks"])
    assert (after["passed"], after["degraded"]) == (True, ["old page"])
    told = after["checks"][0]
    assert told["old_fault"] and "It failed before the deployment, too: status 500" in told["message"]


@pytest.mark.parametrize(
    "earlier",
    [
        [],
        [{"name": "old page", "verdict": "pass"}],
        # What could not be asked is no fault: it excuses nothing.
        [{"name": "old page", "verdict": "inconclusive"}],
        [{"name": "another page", "verdict": "fail"}],
    ],
)
def test_a_new_fault_is_no_old_one(server, earlier):
    with pytest.raises(Problem, match="old page"):
        gate(server, checks=FAULT, before=earlier)


def test_an_old_fault_counts_where_nobody_asked_for_a_comparison(server):
    with pytest.raises(Problem, match="old page"):
        gate(
            server, checks=[{**FAULT[0], "compare": False}], before=[{"name": "old page", "verdict": "fail"}]
        )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.sampled_from([0.0, 0.5, 0.9, 0.95, 0.99, 1.0])
)
def test_percentiles_against_a_plain_reference(values, share):
    ordered = sorted(values)
    place = (len(ordered) - 1) * share
    # The weighted mean of the two neighbours, written out.
    low, high = ordered[int(place)], ordered[math.ceil(place)]
    reference = low * (1 - (place - int(place))) + high * (place - int(place))
    assert math.isclose(percentile(values, share), reference, rel_tol=1e-9, abs_tol=1e-9)


def test_percentiles_of_nothing():
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)
    found = figures([0.1, 0.3], 1, 0.2)
    assert (found["mean"], found["error_rate"], found["throughput"]) == (
        pytest.approx(0.2),
        0.5,
        pytest.approx(10),
    )
