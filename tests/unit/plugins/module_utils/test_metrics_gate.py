# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gate of measured values against real servers and processes: what each fault is taken for, and for how long it must hold."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils import _metrics_gate as gate
from ansible_collections.runbook.deploy.plugins.module_utils import _redis
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._usage import descendants, parse_stat, usage
from ansible_collections.runbook.deploy.plugins.modules import metrics_gate

TOKEN = "token-that-nobody-may-see"
PASSWORD = "password-that-nobody-may-see"


class Pages:
    """An HTTP server: what it answers is a function of how often it was asked, or a fault."""

    def __init__(self) -> None:
        self.answer: Callable[[int], tuple[int, str]] = lambda _count: (200, "up 1\n")
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.hang = threading.Event()
        self.hangs = False
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                if outer.hangs:
                    outer.hang.wait(20)
                status, text = outer.answer(len(outer.asked))
                body = text.encode()
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_words: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.hang.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def pages() -> Iterator[Pages]:
    server = Pages()
    yield server
    server.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def options(**given: Any) -> dict[str, Any]:
    return {**{name: spec.get("default") for name, spec in gate.OPTIONS.items()}, **given}


def ask(check: dict[str, Any], seconds: float = 10.0, **given: Any) -> dict[str, Any]:
    (found,) = gate.prober(options(checks=[check], **given), False)(seconds)
    return found


def page(pages: Pages, value: Any = "up", **given: Any) -> dict[str, Any]:
    source = {"kind": "prometheus_page", "url": f"{pages.url}/metrics", "values": {"x": value}}
    return {"source": source, "require": "x > 0", **given}


def query(pages: Pages, **given: Any) -> dict[str, Any]:
    return {
        "source": {"kind": "prometheus_query", "url": pages.url, "query": "up"},
        "require": "> 0",
        **given,
    }


def result(kind: str, value: str) -> tuple[int, str]:
    return 200, f'{{"status": "success", "data": {{"resultType": "{kind}", "result": {value}}}}}'


def of_page(answer: tuple[int, str]) -> Callable[[Pages], dict[str, Any]]:
    def build(pages: Pages) -> dict[str, Any]:
        pages.answer = lambda _count: answer
        return page(pages)

    return build


def of_query(answer: tuple[int, str]) -> Callable[[Pages], dict[str, Any]]:
    def build(pages: Pages) -> dict[str, Any]:
        pages.answer = lambda _count: answer
        return query(pages)

    return build


def command(*words: str, **given: Any) -> dict[str, Any]:
    return {"source": {"kind": "command", "command": list(words)}, "require": "< 5", **given}


PYTHON = [sys.executable, "-S", "-c"]
DIGEST = {"units": {"value": "ms"}, "require": "value < 5s"}


@pytest.mark.parametrize(
    ("build", "verdict", "said"),
    [
        (of_page((200, "up 1\n")), "pass", ""),
        (of_page((200, "up 0\n")), "fail", "x is 0, expected x > 0"),
        (of_page((200, "up NaN\n")), "inconclusive", "not a finite number"),
        (of_page((200, "up +Inf\n")), "inconclusive", "not a finite number"),
        (of_page((200, "upp 1\n")), "inconclusive", "there is no metric 'up' on the page; there are: upp"),
        (of_page((200, "up 1")), "inconclusive", "cut short"),
        (of_page((200, "")), "inconclusive", "empty"),
        (of_page((200, "<html></html>\n")), "inconclusive", "no metric"),
        (of_page((200, "#" * 1_100_000 + "\n")), "inconclusive", "more than 1048576 bytes"),
        (of_page((500, "up 1\n")), "inconclusive", "the status is 500"),
        (of_page((401, "who are you?")), "inconclusive", "the status is 401"),
        (of_query(result("vector", '[{"value": [1, "2"]}]')), "pass", ""),
        (of_query(result("vector", '[{"value": [1, "0"]}]')), "fail", "value is 0"),
        (of_query(result("vector", "[]")), "inconclusive", "the query returns nothing"),
        (of_query(result("scalar", '[1, "NaN"]')), "inconclusive", "not a finite number"),
        (of_query((422, '{"status": "error", "errorType": "execution", "error": "x"}')), "inconclusive", "execution: x"),
        (of_query((200, "up 1\n")), "inconclusive", "none of Prometheus"),
        (lambda pages: command("echo", "4.5"), "pass", ""),
        (lambda pages: command("echo", "5"), "fail", "value is 5, expected < 5"),
        (lambda pages: command("echo", "4 apples"), "inconclusive", "no finite number"),
        (lambda pages: command("echo", "nan"), "inconclusive", "no finite number"),
        (lambda pages: command("true"), "inconclusive", "no finite number"),
        (lambda pages: command("false"), "inconclusive", "exit code 1"),
        (lambda pages: command("/no/such/program"), "inconclusive", "is not found"),
        (lambda pages: command("sleep", "30", timeout=0.6), "inconclusive", "was killed"),
        (lambda pages: command(*PYTHON, "print('1' * 3000000)"), "inconclusive", "too many to be read"),
        (lambda pages: command("echo", "4000", **DIGEST), "pass", ""),
        (lambda pages: command("echo", "5000", **DIGEST), "fail", "value is 5 s, expected value < 5s"),
        (
            lambda pages: {
                "source": {"kind": "command", "command": ["echo", '{"a": {"b": 3}, "c": null}'], "json": {"b": "a.b", "c": "c", "d": "d"}},
                "require": ["b < 5", "c < 5", "d < 5"],
            },
            "inconclusive",
            "c is null",
        ),
        (
            lambda pages: {
                "source": {"kind": "command", "command": ["echo", "queue: 7 jobs"], "patterns": {"queue": r"queue: (\d+)"}},
                "require": "queue < 5",
            },
            "fail",
            "queue is 7",
        ),
        (
            lambda pages: {"source": {"kind": "process", "pid_file": "/no/such/file"}, "require": "memory < 5GB"},
            "inconclusive",
            "no such file",
        ),
        (
            lambda pages: {"source": {"kind": "redis", "address": f"127.0.0.1:{free_port()}"}, "require": "hit_rate > 1%"},
            "inconclusive",
            "nothing listens at",
        ),
        (
            lambda pages: {"source": {"kind": "redis", "address": pages.url[7:]}, "require": "hit_rate > 1%"},
            "inconclusive",
            "is no Redis: it says",
        ),
    ],
)  # fmt: skip
def test_each_answer_and_fault(pages, build, verdict, said):
    begun = time.monotonic()
    found = ask(build(pages), 8)
    assert found["verdict"] == verdict, found
    assert said in found["message"], found["message"]
    assert bool(found["message"]) == (verdict != "pass")
    assert found["repeat"] and (verdict == "pass" or found["repeat"] in found["message"])
    assert time.monotonic() - begun < 9


@pytest.mark.parametrize("build", [page, query])
def test_a_server_that_hangs_or_is_gone_is_no_answer_and_costs_no_more_than_its_time(pages, build):
    pages.hangs = True
    begun = time.monotonic()
    found = ask(build(pages, timeout=0.5), 10)
    assert (found["verdict"], "no complete answer in 0.5 s" in found["message"]) == ("inconclusive", True), (
        found
    )
    assert time.monotonic() - begun < 1
    # Nor more than the gate's.
    begun = time.monotonic()
    assert ask(build(pages, timeout=30), 0.7)["verdict"] == "inconclusive"
    assert time.monotonic() - begun < 1.7
    pages.close()
    pages.url = f"http://127.0.0.1:{free_port()}"
    found = ask(build(pages))
    assert (found["verdict"], "nothing listens" in found["message"]) == ("inconclusive", True), found


def series(pages: Pages, *values: Any) -> None:
    """Answer each of *values* in turn, the last one for ever; None: no such metric, an exception: status 500."""

    def answer(count: int) -> tuple[int, str]:
        value = values[min(count, len(values)) - 1]
        if value is Problem:
            return 500, "broken"
        return 200, f"other 1\n{'' if value is None else f'x {value}'}\n"

    pages.answer = answer


WINDOW = {"window": 0.5, "interval": 0.1}


@pytest.mark.parametrize(
    ("values", "given", "verdict", "said"),
    [
        ([1], {}, "pass", ""),
        ([1, 1, 0, 1], {}, "fail", "(1 of 3 samples failed, allowed are 0)"),
        ([1, 1, 0, 1], {"failure_limit": 1}, "pass", ""),
        ([1, 0, 0, 1], {"failure_limit": 1}, "fail", "(2 of 3 samples failed, allowed are 1)"),
        ([1, Problem, 1], {}, "inconclusive", "could not be asked, allowed are 0"),
        ([1, Problem, 1], {"error_limit": 1}, "pass", ""),
        # Each limit is for its own kind.
        ([1, Problem, 1], {"failure_limit": 9, "inconclusive_limit": 9}, "inconclusive", "status is 500"),
        ([1, None, 1], {"failure_limit": 9, "error_limit": 9}, "inconclusive", "no metric"),
        ([1, None, 1], {"inconclusive_limit": 1}, "pass", ""),
        ([1, None], {"inconclusive_limit": 1}, "inconclusive", "had no data, allowed are 1"),
        # Never a word about the application: never a pass.
        ([None], {"inconclusive_limit": 99}, "inconclusive", "only 0 of"),
        ([Problem], {"error_limit": 99}, "inconclusive", "only 0 of"),
        (
            [1, 1, None],
            {"inconclusive_limit": 99, "minimum_samples": 4},
            "inconclusive",
            "expected at least 4",
        ),
        # A failure that is proved is one, whatever else could not be asked.
        ([Problem, 0], {"error_limit": 0, "window": 0}, "inconclusive", "status is 500"),
        ([0, Problem], {"error_limit": 9}, "fail", "x is 0"),
        ([1, 9, 1], {"require": "mean(x) < 3"}, "pass", ""),
        ([1, 90], {"require": "p50(x) < 3"}, "fail", "p50 of x over 6 samples is 90"),
        ([1, 90], {"require": "min(x) == 1"}, "pass", ""),
        ([None, 1], {"require": "max(x) < 3", "inconclusive_limit": 1}, "pass", ""),
    ],
)
def test_each_outcome_has_its_own_limit(pages, values, given, verdict, said):
    series(pages, *values)
    found = ask(page(pages, "x", **{**WINDOW, **given}), 8)
    assert found["verdict"] == verdict, found
    assert said in found["message"], found["message"]
    if verdict == "pass":
        assert sum(found["samples"].values()) == 6, found


@pytest.mark.parametrize(
    ("values", "hold", "verdict", "said"),
    [
        ([9], "0.5s", "fail", "x is 9 and has been so for"),
        ([9, 9, 1, 9], "0.5s", "pass", ""),
        ([1, 9], "0.5s", "pass", ""),
        ([9], "0.3s", "fail", "x > 5 for 0.3s"),
        ([1, 9], None, "fail", "x is 9 (x > 5)"),
        # Unknown neither ends a row nor is it one.
        ([9, None, 9], "0.5s", "fail", "x is 9"),
        ([None], "0.5s", "inconclusive", "only 0 of"),
        ([9, None], "0.5s", "pass", ""),
    ],
)
def test_a_trigger_fails_when_it_has_held(pages, values, hold, verdict, said):
    series(pages, *values)
    trigger = f"x > 5 for {hold}" if hold else "x > 5"
    check = {
        **page(pages, "x", trigger=trigger, interval=0.1, window=0.5, inconclusive_limit=99),
        "require": None,
    }
    begun = time.monotonic()
    found = ask(check, 8)
    assert found["verdict"] == verdict, found
    assert said in found["message"], found["message"]
    if hold == "0.3s":
        # What has held does not wait for the end of the window.
        assert time.monotonic() - begun < 0.45 and found["final"]


def test_without_a_window_it_is_as_long_as_the_trigger(pages):
    series(pages, 9)
    check = {**page(pages, "x", trigger="x > 5 for 0.4s", interval=0.1), "require": None}
    assert ask(check)["verdict"] == "fail"
    with pytest.raises(Problem, match="the deadline is 60 s: raise the deadline"):
        gate.prober(options(checks=[{**check, "trigger": "x > 5 for 15m"}]), False)


def test_the_deadline_cuts_a_window_short_and_that_is_no_pass(pages):
    series(pages, 1)
    begun = time.monotonic()
    found = ask(page(pages, "x", window=5, interval=0.1), 0.8)
    assert (found["verdict"], "before the window of 5 s" in found["message"]) == ("inconclusive", True), found
    assert time.monotonic() - begun < 1.3
    series(pages, 0)
    assert ask(page(pages, "x", window=5, interval=0.1), 0.8)["verdict"] == "fail"


def test_the_first_sample_waits(pages):
    series(pages, 1)
    begun = time.monotonic()
    assert ask(page(pages, "x", initial_delay=0.4))["verdict"] == "pass"
    assert 0.4 <= time.monotonic() - begun < 1.5


def test_rates_take_a_second_sample_by_themselves_and_follow_a_restart(pages):
    counts = iter([100, 200, 20, 30])
    pages.answer = lambda _count: (200, f"c_total {next(counts)}\n")
    check = page(pages, {"increase": "c_total"}, require="x > 5", interval=0.05)
    probe = gate.prober(options(checks=[check]), False)
    assert [probe(5)[0]["measured"]["x"] for _number in range(3)] == [100, 20, 10]


@pytest.mark.parametrize(
    ("baseline", "require", "verdict", "said"),
    [
        ({"x": 10}, "x not below baseline by 20%", "pass", ""),
        (
            {"x": 10.5},
            "x not below baseline by 20%",
            "fail",
            "x is 8, expected x not below baseline by 20% (baseline 10.5)",
        ),
        ({"prometheus_page.x": 8.1}, "x within 2% of baseline", "pass", ""),
        ({"prometheus_page.x": 8.1, "x": 100}, "x within 2% of baseline", "pass", ""),
        ({}, "x within 2% of baseline", "inconclusive", "no baseline was measured for it"),
        ({"y": 8}, "x within 2% of baseline", "inconclusive", "no baseline was measured for it"),
    ],
)
def test_baselines(pages, baseline, require, verdict, said):
    series(pages, 8)
    found = ask(page(pages, "x", require=require), baseline=baseline)
    assert found["verdict"] == verdict, found
    assert said in found["message"]
    assert ("final" in found) == ("no baseline" in said)


def test_what_is_measured_is_a_baseline(pages, capsys):
    series(pages, 10)
    check = page(pages, "x", name="orders", require="orders not below baseline by 20%")
    before = run(capsys, checks=[check], measure=True)
    assert (before["measured"], before["passed"]) == ({"orders.x": 10.0}, True)
    assert run(capsys, checks=[check], baseline=before["measured"])["passed"]
    series(pages, 7)
    after = run(capsys, checks=[check], baseline=before["measured"], deadline=0.5)
    assert after["failed"] and "baseline 10" in after["msg"]
    # Nothing to be measured before the deployment is found out before it.
    series(pages, None)
    before = run(capsys, checks=[check], measure=True, deadline=0.5)
    assert before["failed"] and "no metric 'x'" in before["msg"]


def run(capsys: pytest.CaptureFixture[str], check_mode: bool = False, **given: Any) -> dict[str, Any]:
    with patch_module_args({**given, "_ansible_check_mode": check_mode}), pytest.raises(SystemExit):
        metrics_gate.main()
    return json.loads(capsys.readouterr().out)


def test_a_watch_asks_again_and_again_and_judges_over_all(pages):
    series(pages, 1, 9, 9, 9, 9, 1)
    check = {**page(pages, "x", trigger="x > 5 for 0.3s"), "require": None}
    probe = gate.prober(options(checks=[check], accumulate=True), False)
    verdicts = []
    for _number in range(6):
        begun = time.monotonic()
        verdicts.append(probe(2)[0]["verdict"])
        assert time.monotonic() - begun < 0.3
        time.sleep(0.16)
    assert verdicts == ["pass", "pass", "pass", "fail", "fail", "pass"]


def test_a_watch_forgets_what_is_older_than_the_window(pages):
    series(pages, 0, 1)
    probe = gate.prober(options(checks=[page(pages, "x", window=0.4)], accumulate=True), False)
    seen = []
    for _number in range(6):
        seen.append(probe(2)[0]["verdict"])
        time.sleep(0.15)
    assert seen[:2] == ["fail", "fail"] and seen[-2:] == ["pass", "pass"], seen
    series(pages, 1)
    probe = gate.prober(options(checks=[page(pages, "x")], accumulate=True), False)
    for _number in range(50):
        probe(2)
    # Nothing is kept that is not judged any more.
    assert len(pages.asked) >= 50


def test_secrets_are_sent_and_never_shown(pages, capsys):
    def answer(_count: int) -> tuple[int, str]:
        sent = pages.asked[-1][1].get("authorization")
        return (200, "up 0\n") if sent == f"Bearer {TOKEN}" else (401, f"no: {sent}")

    pages.answer = answer
    check = page(pages)
    check["source"]["secret"] = "metrics"
    found = run(capsys, checks=[check], secrets=json.dumps({"metrics": TOKEN}), deadline=0.5)
    assert (
        found["failed"]
        and "x is 0" in found["msg"]
        and TOKEN not in json.dumps(found["checks"]) + found["msg"]
    )
    # One that says too much.
    pages.answer = lambda _count: (500, f"you sent {TOKEN}")
    found = run(capsys, checks=[check], secrets=json.dumps({"metrics": TOKEN}), deadline=0.5)
    assert "you sent ********" in found["msg"] and TOKEN not in json.dumps({**found, "invocation": None})
    # A secret that was written where its name belongs.
    check["source"]["secret"] = TOKEN
    found = run(capsys, checks=[check], secrets=json.dumps({"metrics": "x"}))
    assert (
        "names no entry of the option secrets, which has: metrics" in found["msg"]
        and TOKEN not in found["msg"]
    )


def test_queries_are_asked_as_prometheus_wants_it(pages):
    pages.answer = lambda _count: result("scalar", '[1, "3"]')
    check = query(pages)
    check["source"] = {
        **check["source"],
        "url": f"{pages.url}/prometheus/",
        "query": None,
        "queries": {"a": 'sum(x{y="z"})', "b": "1"},
    }
    check["require"] = ["a == 3", "b == 3"]
    assert ask(check)["verdict"] == "pass"
    path, _question, asked = pages.asked[0][0].partition("?")
    assert path == "/prometheus/api/v1/query" and urllib.parse.parse_qs(asked)["query"] == ['sum(x{y="z"})']


def test_sql(tmp_path):
    path = tmp_path / "shop.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE orders (ms real)")
        connection.execute("INSERT INTO orders VALUES (100), (300)")
        connection.commit()

    def one(text: str, require: str, **given: Any) -> tuple[str, str]:
        check = {"source": {"kind": "sql", "query": text}, "require": require, **given}
        found = ask(check, database={"engine": "sqlite", "path": str(path)})
        return found["verdict"], found["message"]

    assert one("SELECT count(*) FROM orders", "> 1")[0] == "pass"
    assert (
        one("SELECT max(ms) AS slowest, 5 AS n FROM orders", "slowest < 200ms", units={"slowest": "ms"})[0]
        == "fail"
    )
    for text, said in (
        ("SELECT max(ms) AS value FROM orders WHERE ms > 999", "it is NULL"),
        ("SELECT ms AS value FROM orders WHERE ms > 999", "no row"),
        ("SELECT ms AS value FROM orders", "2 rows, expected one"),
        ("SELECT 'many' AS value", "no finite number"),
        ("SELECT 1e999 AS value", "no finite number"),
        ("SELECT 1 AS a, 2 AS b", "there is no value 'value', only: a, b"),
        ("SELECT nowhere FROM orders", "no such column"),
    ):
        verdict, message = one(text, "value < 5")
        assert (verdict, said in message) == ("inconclusive", True), message
    with pytest.raises(Problem, match="only reads"):
        one("DELETE FROM orders", "> 0")
    with pytest.raises(Problem, match="needs a database"):
        ask({"source": {"kind": "sql", "query": "SELECT 1"}, "require": "> 0"})
    shutil.rmtree(tmp_path)
    assert one("SELECT 1", "> 0")[0] == "inconclusive"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not shutil.which("redis-server"):
        pytest.skip("redis-server is not installed")
    port = free_port()
    directory = tmp_path_factory.mktemp("redis")
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--dir", str(directory),
         "--save", "", "--maxmemory", "100mb", "--unixsocket", str(directory / "r.sock")],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"127.0.0.1:{port}"
    for _number in range(100):
        try:
            _redis.info(address, PASSWORD, timeout=1)
            break
        except _redis.Unanswered:
            time.sleep(0.05)
    yield address
    process.kill()
    process.wait()


def test_redis(redis):
    def one(*require: str, **given: Any) -> dict[str, Any]:
        source = {"kind": "redis", "address": given.pop("address", redis), "secret": "redis", **given}
        return ask(
            {"source": source, "require": list(require), "interval": 0.05},
            secrets=json.dumps({"redis": PASSWORD, "wrong": "not-it"}),
        )

    def command(*words: str) -> Any:
        return _redis.command(redis, *words, password=PASSWORD)

    command("CONFIG", "RESETSTAT")
    assert "nothing has been read" in one("hit_rate > 80%")["message"]
    command("SET", "a", "1")
    for _number in range(9):
        command("GET", "a")
    command("GET", "b")
    assert (
        one("hit_rate > 80%", "used_memory < 500MB", "used_memory_percent < 80%", "connected_clients < 10")[
            "verdict"
        ]
        == "pass"
    )
    found = one("hit_rate > 95%")
    assert (found["verdict"], "hit_rate is 90 %, expected hit_rate > 95%" in found["message"]) == (
        "fail",
        True,
    ), found
    found = one("recent_hit_rate > 95%")
    assert "nothing was read from it since the sample before" in found["message"]
    assert "there is no value 'hit_rat'" in one("hit_rat > 5")["message"]
    command("CONFIG", "SET", "maxmemory", "0")
    assert "has no maxmemory" in one("used_memory_percent < 80%")["message"]
    found = one("hit_rate > 5%", secret="wrong")
    assert (found["verdict"], "WRONGPASS" in found["message"]) == ("inconclusive", True), found
    assert "NOAUTH" in one("hit_rate > 5%", secret=None)["message"]
    socket_path = command("CONFIG", "GET", "unixsocket")[1]
    assert one("connected_clients < 10", address=socket_path)["verdict"] == "pass"
    source = {"kind": "redis", "address": redis, "tls": True}
    assert ask({"source": source, "require": "hit_rate > 1%", "timeout": 0.5})["verdict"] == "inconclusive"
    assert PASSWORD not in json.dumps(found) and PASSWORD not in found["repeat"]
    command("CLIENT", "PAUSE", "1500", "ALL")
    begun = time.monotonic()
    found = ask({"source": {"kind": "redis", "address": redis}, "require": "hit_rate > 1%", "timeout": 0.3})
    assert found["verdict"] == "inconclusive" and time.monotonic() - begun < 1, found


def parents() -> list[tuple[int, int]]:
    """Every process and its parent; one that ends meanwhile is left out."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            found.append((int(name), parse_stat(Path(f"/proc/{name}/stat").read_text()).ppid))
    return found


def test_a_process_and_its_children(tmp_path):
    code = "import os, time\nb = b'x' * 40_000_000\nif os.fork() == 0:\n while True: pass\ntime.sleep(60)"
    process = subprocess.Popen([*PYTHON, code], start_new_session=True)
    try:
        time.sleep(0.5)
        pid_file = tmp_path / "pid"
        pid_file.write_text(f"{process.pid}\n")
        source = {"kind": "process", "pid_file": str(pid_file)}

        def one(*require: str) -> tuple[str, str]:
            found = ask({"source": source, "require": list(require), "interval": 0.4})
            return found["verdict"], found["message"]

        assert (
            one("memory < 90MB", "memory > 35MB", "processes == 2", "threads == 2", "open_files < 20")[0]
            == "pass"
        )
        assert one("memory < 1MB")[0] == "fail"
        # A worker that burns a processor is seen, though its master sleeps.
        verdict, message = one("cpu < 2%")
        assert verdict == "fail" and "cpu is" in message
        assert len(descendants(process.pid, parents())) == 2
    finally:
        # The child that burns a processor would outlive the test, whatever became of it.
        os.killpg(process.pid, 9)
        process.wait()
    assert usage(process.pid) is None
    assert one("memory < 1GB")[0] == "inconclusive"
    pid_file.write_text("x")
    assert "which is no process" in one("memory < 1GB")[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"require": None}, "expects nothing"),
        ({"requires": "x > 0"}, "did you mean 'require'"),
        ({"source": None}, "must be a mapping with a kind"),
        ({"source": {"kind": "prometheus"}}, "source.kind must be one of"),
        ({"require": "y > 0"}, "the values are x"),
        ({"require": "x > 0 for 5m"}, "is a trigger"),
        ({"trigger": "mean(x) > 0 for 5m"}, "has no mean()"),
        ({"trigger": "x > 0 for 5m", "window": "1m"}, "make the window as long"),
        ({"require": "x < 500ms"}, "say so in units"),
        ({"units": {"y": "s"}}, "units names 'y'"),
        ({"units": {"x": "fortnight"}}, "must be one of"),
        ({"failure_limit": -1}, "at least 0"),
        ({"minimum_samples": 0}, "at least 1"),
        ({"interval": 0}, "at least 0.01"),
        ({"window": "soon"}, "a duration"),
        ({"window": 59, "initial_delay": 2}, "raise the deadline"),
        ({"window": 59, "interval": 0.01}, "more than 5000 samples"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_what_is_not_well_written_is_refused(pages, change, said):
    with pytest.raises(Problem) as raised:
        gate.prober(options(checks=[{**page(pages), **change}]), False)
    assert said in raised.value.message, raised.value.message
    assert not pages.asked


def test_check_mode_runs_only_what_is_harmless(tmp_path):
    mark = tmp_path / "ran"
    writes = {
        "name": "writes",
        "source": {"kind": "command", "command": ["touch", str(mark)]},
        "require": "> 0",
    }
    reads = {
        "name": "reads",
        "source": {"kind": "command", "command": ["echo", "5"], "harmless": True},
        "require": "> 0",
    }
    probe = gate.prober(options(checks=[writes, reads]), True)
    assert [check["name"] for check in probe(5)] == ["reads"]
    assert probe.not_asked == ["writes"] and not mark.exists()
