# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gate of Celery with a real Redis and real workers and beats, broken in turn."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.runbook.deploy.plugins.module_utils import _beats as beats
from ansible_collections.runbook.deploy.plugins.module_utils import _celery_gate as gate
from ansible_collections.runbook.deploy.plugins.module_utils import _gates
from ansible_collections.runbook.deploy.plugins.module_utils._celery_spec import judge, parse_check
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._proc_tree import Entry
from ansible_collections.runbook.deploy.plugins.module_utils._redis import Connection
from ansible_collections.runbook.deploy.plugins.modules import celery_gate
from celery_shop import APP, PASSWORD, Shop
from redis_server import PROGRAM, RedisServer, free_port

HAS_CELERY = all(importlib.util.find_spec(name) for name in ("celery", "redis"))
R1, R2 = "1111aaaa1111-11111111", "2222bbbb2222-22222222"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A broker and one worker, w1."""
    if not HAS_CELERY:
        pytest.skip("celery[redis] is not installed for this Python")
    if PROGRAM is None:
        pytest.skip("redis-server is not installed")
    with RedisServer(tmp_path_factory.mktemp("redis"), requirepass=PASSWORD) as redis:
        shop = Shop(tmp_path_factory.mktemp("shop"), redis, "redis")
        try:
            shop.worker("w1", RUNBOOK_RELEASE=R1)
            shop.wait({"workers": 1})
            yield shop
        finally:
            shop.close()


@pytest.fixture
def shop(running):
    """The broker and the worker, with nothing else afterwards."""
    before = list(running.children)
    yield running
    for child in list(running.children):
        if child not in before:
            running.kill(child)
    with Connection(running.redis.address, PASSWORD, timeout=300) as redis:
        redis.ask("DEL", "shop", "unacked", "unacked_index", "forgotten")


def test_everything_is_as_it_should_be(shop):
    found = shop.until(
        "p" * 10,
        {"workers": 1},
        {"workers": "w1@here"},
        {"workers": ["w?@here"]},
        {"active": 0},
        {"active": "< 5", "longer_than": 60},
        {"reserved": "< 10"},
        {"queue": "shop", "length": "< 5"},
        {"tasks": ["shop.quick", "shop.slow"]},
        {"release": R1},
        {"beat": 0},
    )
    assert "1 workers answered: w1@here" in found[0]["observed"]


def test_all_checks_are_asked_by_one_process(shop, monkeypatch):
    asked = []
    run = gate.run_bounded
    monkeypatch.setattr(
        gate, "run_bounded", lambda *words, **more: asked.append(words) or run(*words, **more)
    )
    shop.ask({"workers": 1}, {"active": 0}, {"queue": "shop", "length": 0}, {"tasks": ["shop.quick"]})
    assert len(asked) == 1


def test_what_is_otherwise_fails(shop):
    found = shop.until(
        "f" * 7,
        {"workers": 2},
        {"workers": ["w1@here", "w2@here"]},
        {"active": ">= 1"},
        {"queue": "shop", "length": "> 5"},
        {"tasks": ["shop.quick", "shop.gone"]},
        {"release": R2},
        {"beat": 1},
        words="w2@here did not answer (1 workers",
    )
    words = [
        "w1@here",
        "w2@here did not answer",
        "0 tasks running",
        "0 messages wait",
        "does not know shop.gone",
    ]
    words += [f"runs the release {R1}", "0 beats run"]
    for item, text in zip(found, words):
        assert text in item["message"], item["message"]
        assert "p@ss" not in json.dumps(item) and "p%40ss" not in json.dumps(item)
    assert "celery -A shop status" in found[0]["repeat"] and shop.redis.address in found[0]["message"]


def test_nothing_is_left_in_the_broker(shop):
    with Connection(shop.redis.address, PASSWORD, timeout=300) as redis:

        def kept() -> tuple[list[Any], list[Any]]:
            bound = redis.ask("SMEMBERS", "_kombu.binding.reply.celery.pidbox")
            return sorted(redis.ask("KEYS", "*")), sorted(bound or [])

        before = kept()
        shop.ask({"workers": 1}, {"active": 0}, {"queue": "shop", "length": 0})
        os.kill(shop.children[0].pid, signal.SIGSTOP)
        try:
            shop.ask({"workers": 1}, {"active": 0})
        finally:
            os.kill(shop.children[0].pid, signal.SIGCONT)
        # The answer of a worker that is late may come and go.
        limit = time.monotonic() + 30
        while kept() != before and time.monotonic() < limit:
            time.sleep(0.1)
        assert kept() == before


def test_queue_that_fills(shop):
    with Connection(shop.redis.address, PASSWORD, timeout=300) as redis:
        redis.ask("RPUSH", "forgotten", *["x"] * 7)
        words = "7 messages wait in 'forgotten', which no worker that answered consumes"
        shop.until(
            "fp", {"queue": "forgotten", "length": "< 5"}, {"queue": "forgotten", "length": 7}, words=words
        )
        shop.until("ff", {"queue": "forgotten", "consumers": 1}, {"queue": "shop", "consumers": "> 1"})
        shop.wait({"queue": "shop", "length": "< 5", "consumers": 1})
        redis.ask("DEL", "forgotten")
    # A queue that nobody knows is no empty one.
    found = shop.one({"queue": "shpo", "length": "< 5"})
    assert found["verdict"] == "inconclusive" and "only: shop" in found["message"]


def test_long_task(shop):
    done = shop.directory / "done"
    text = f"import shop; shop.slow.apply_async(({str(done)!r}, 'argument-secret'))"
    environment = {"PATH": os.environ["PATH"], **shop.variables}
    subprocess.run(
        [sys.executable, "-c", text], cwd=shop.directory, env=environment, check=True, capture_output=True
    )
    try:
        found = shop.until(
            "ffpp",
            {"active": 0},
            {"active": 0, "longer_than": 0.2},
            {"active": 0, "longer_than": 600},
            {"active": "< 5"},
        )
    finally:
        done.touch()
    assert "1 tasks running: shop.slow on w1@here" in found[0]["message"]
    assert "argument-secret" not in json.dumps(found)
    shop.wait({"active": 0})


def test_worker_that_is_killed_and_one_that_hangs(shop):
    child = shop.worker("w2")
    shop.wait({"workers": 2})
    os.kill(child.pid, signal.SIGSTOP)
    shop.until("f", {"workers": 2}, words="1 workers answered: w1@here")
    os.kill(child.pid, signal.SIGCONT)
    shop.wait({"workers": 2})
    shop.kill(child)
    shop.until("ffp", {"workers": 2}, {"workers": ["w2@here"]}, {"tasks": ["shop.quick"]})


def test_no_worker_although_the_broker_is_there(shop):
    worker = shop.children[0]
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        found = shop.ask(
            *({"workers": ">= 1"}, {"tasks": ["shop.quick"]}, {"active": 0}, {"release": R1}),
            {"queue": "shop", "length": "< 5"},
        )
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    assert [item["verdict"] for item in found] == ["fail", "fail", "inconclusive", "inconclusive", "pass"]
    assert "no worker answered" in found[0]["message"]
    shop.wait({"workers": 1})


def test_second_beat(shop):
    shop.beat()
    shop.wait({"beat": 1})
    shop.beat()
    shop.wait({"beat": 2})
    found = shop.ask({"beat": 1}, {"beat": "<= 2"})
    assert [item["verdict"] for item in found] == ["fail", "pass"]
    assert "2 beats run on this host (processes " in found[0]["message"]


def test_beat_in_a_worker_and_age_of_the_schedule(shop):
    path = shop.directory / "own-schedule"
    shop.worker("w3", "-B", "-s", str(path))
    shop.wait({"beat": 1})
    path.touch()
    assert shop.one({"beat": 1, "file": str(path), "max_age": "< 1m"})["verdict"] == "pass"
    os.utime(path, (1, 1))
    found = shop.one({"beat": 1, "file": str(path), "max_age": "< 1m"})
    assert found["verdict"] == "fail" and "was changed" in found["message"]
    found = shop.one({"beat": 1, "file": f"{path}-gone", "max_age": "< 1m"})
    assert found["verdict"] == "inconclusive"


def test_beats_of_other_applications_do_not_count(shop, tmp_path):
    shop.beat()
    shop.wait({"beat": 1})
    other = shop.options({"beat": 0}, chdir=str(tmp_path), python=str(tmp_path / "bin" / "python"))
    assert gate.prober(other, False)(5.0)[0]["verdict"] == "pass"


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("shpo", "ModuleNotFoundError: No module named 'shpo'"),
        ("shop:celery_app", "the module 'shop' has no 'celery_app'"),
        ("plain", "cannot be loaded"),
        ("broken", "RuntimeError: "),
        ("leaves", "SystemExit: no settings"),
    ],
)
def test_wrong_application(shop, app, words):
    found = shop.one({"workers": 1, "app": app})
    assert found["verdict"] == "inconclusive" and words in found["message"], found["message"]
    assert "p%40ss" not in json.dumps(found) and "5521" not in json.dumps(found)


def test_application_that_does_not_end_to_load(shop):
    begun = time.monotonic()
    found = shop.one({"workers": 1, "app": "slow"}, left=4.0)
    assert found["verdict"] == "inconclusive" and "the application was not loaded within" in found["message"]
    # It sleeps for 60.
    assert time.monotonic() - begun < 30


def test_unusable_python(shop):
    found = shop.one({"workers": 1}, python="/nowhere/bin/python")
    assert found["verdict"] == "inconclusive" and "is not found" in found["message"]
    found = shop.one({"workers": 1}, root="/nowhere", python=None, chdir=None)
    assert found["verdict"] == "inconclusive" and "no release is current" in found["message"]


@pytest.mark.parametrize("fault", ["away", "hangs", "password", "no-redis"])
def test_broker_that_cannot_be_reached(shop, tmp_path, fault):
    """Celery itself would try for ever."""
    if fault == "away":
        address, sentence = f"127.0.0.1:{free_port()}", "cannot be reached"
    elif fault == "password":
        address, sentence = shop.redis.address, "cannot be reached"
    elif fault == "no-redis":
        import socket

        listener = socket.create_server(("127.0.0.1", 0))
        address, sentence = f"127.0.0.1:{listener.getsockname()[1]}", "did not let it in within"
    else:
        address, sentence = shop.redis.address, "within"
        os.kill(shop.redis.process.pid, signal.SIGSTOP)
    broker = (
        f"redis://:wrong-one-77@{address}/0"
        if fault == "password"
        else f"redis://:p%40ss%2Fword-5521@{address}/0"
    )
    begun = time.monotonic()
    try:
        found = shop.ask(
            *({"workers": 1}, {"queue": "shop", "length": 0}),
            environment=json.dumps({"BROKER": broker}),
            left=15.0 if fault in ("away", "password") else 4.0,
        )
    finally:
        if fault == "hangs":
            os.kill(shop.redis.process.pid, signal.SIGCONT)
    assert [item["verdict"] for item in found] == ["inconclusive"] * 2
    assert sentence in found[0]["message"], found[0]["message"]
    assert (
        address in found[0]["message"]
        and "5521" not in json.dumps(found)
        and "wrong-one" not in json.dumps(found)
    )
    assert time.monotonic() - begun < 25
    shop.wait({"workers": 1})


@pytest.mark.parametrize("check_mode", [False, True])
def test_module(shop, capsys, check_mode):
    given = {
        "python": sys.executable,
        "chdir": str(shop.directory),
        "app": "shop",
        "reply_timeout": 0.8,
        "environment": json.dumps(shop.variables),
        "deadline": 30,
        "_ansible_check_mode": check_mode,
    }
    with patch_module_args({**given, "checks": [{"workers": 1}]}), pytest.raises(SystemExit):
        celery_gate.main()
    answer = json.loads(capsys.readouterr().out)
    assert answer["passed"] and not answer["changed"]
    if check_mode:
        return
    with (
        patch_module_args({**given, "deadline": 30, "patience": 0.1, "checks": [{"workers": 5}]}),
        pytest.raises(SystemExit),
    ):
        celery_gate.main()
    answer = json.loads(capsys.readouterr().out)
    assert answer["failed"] and answer["verdict"] == "fail" and "5521" not in json.dumps(answer)


BAD = [
    ({}, "0 subjects"),
    ("workers", "must be a mapping"),
    ({"workers": 1, "active": 0}, "2 subjects"),
    ({"wokers": 1}, "did you mean 'workers'"),
    ({"workers": 1, "length": 5}, "unknown key"),
    ({"workers": 0}, "no worker at all"),
    ({"workers": "< 5"}, "no worker at all"),
    ({"workers": True}, "must be a comparison"),
    ({"workers": []}, "empty list"),
    ({"workers": None}, "must be a number"),
    ({"queue": "shop"}, "expects nothing"),
    ({"queue": "shop", "consumers": "some"}, "must be a comparison"),
    ({"workers": 1, "consumers": 1}, "unknown key"),
    ({"queue": "shop", "length": "many"}, "must be a comparison"),
    ({"beat": 1, "file": "/a"}, "both file and max_age"),
    ({"beat": 1, "file": "a", "max_age": "< 5m"}, "absolute path"),
    ({"beat": 1, "file": "/a", "max_age": "> 5m"}, "upper limit"),
    ({"tasks": []}, "empty list"),
    ({"release": ""}, "must be a text"),
    ({"workers": 1, "app": "-x"}, "celery -A"),
]


@pytest.mark.parametrize(("item", "words"), BAD)
def test_bad_checks(tmp_path, item, words):
    with pytest.raises(Problem, match="checks") as found:
        parse_check(item, "checks[0]")
    assert words in found.value.message


def test_bad_options(tmp_path):
    base = {name: spec.get("default") for name, spec in gate.OPTIONS.items()}
    for more, words in (
        ({"checks": [{"workers": 1}]}, "root, or python"),
        ({"checks": [{"workers": 1}], "root": "/srv/shop"}, "names no app"),
        ({"checks": [{"workers": 1}], "root": "/srv/shop", "timeout": 0}, "timeout"),
        ({"checks": [{"workers": 1}], "root": "/srv/shop", "app": "a", "environment": "{"}, "environment"),
    ):
        with pytest.raises(Problem, match=words):
            gate.prober({**base, **more}, False)
    # The package of the settings is what Django projects call their application.
    gate.prober(
        {**base, "root": "/srv/shop", "settings_module": "shop.settings", "checks": [{"workers": 1}]}, False
    )


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("/srv/e/bin/python /srv/e/bin/celery -A shop beat -l info", True),
        ("/srv/e/bin/python -m celery --app=shop beat", True),
        ("/srv/e/bin/celery -A shop worker -B", True),
        ("/srv/e/bin/celery -A shop worker --beat -c 2", True),
        ("/srv/e/bin/celery -A shop worker -lB", True),
        ("/srv/e/bin/celery -A shop worker -Q beat", False),
        ("/srv/e/bin/celery -A beat worker", False),
        ("/srv/e/bin/celery -A shop inspect ping", False),
        ("/srv/e/bin/gunicorn shop.wsgi", False),
        ("vim celery.txt", False),
        ("", False),
    ],
)
def test_which_command_is_a_beat(command, found):
    assert beats.is_beat(command.split()) is found


def test_titles_that_celery_gives_itself():
    assert beats.is_beat(["[celery beat] -A shop beat"])
    assert beats.is_beat(["[celeryd: w1@host:MainProcess] -active- (-A shop worker -B)"])
    assert not beats.is_beat(["[celeryd: w1@host:MainProcess] -active- (-A shop worker)"])
    assert beats.named(["[celery beat] -A shop beat"]) == "shop"
    assert beats.named(["celery", "--app=shop.celery:app", "beat"]) == "shop.celery:app"
    assert beats.named(["celery", "beat"]) is None


def test_whose_beat_it_is():
    application = beats.Application("/srv/shop", ["/srv/shop"], (), "shop")
    words = ["python", "-m", "celery", "-A", "shop", "beat"]
    own = beats.belongs
    assert own(application, words, {"RUNBOOK_ROOT": "/srv/shop/"}, None) is True
    assert own(application, words, {"RUNBOOK_ROOT": "/srv/other"}, ["/srv/shop/x"]) is False
    assert own(application, words, {"PATH": "x"}, ["/srv/shop/releases/r1"]) is True
    assert own(application, words, {"PATH": "x", "VIRTUAL_ENV": "/srv/shop/environments/e"}, ["/"]) is True
    assert own(application, words, {"PATH": "x"}, ["/srv/shop2"]) is False
    assert own(application, ["/srv/shop/environments/e/bin/celery", "beat"], {}, None) is True
    # It may be ours: who cannot look does not know.
    assert own(application, words, {}, None) is None
    assert own(application, ["celery", "-A", "other", "beat"], {}, None) is False


def test_wrapper_and_children_of_a_beat_count_once():
    entries = {
        pid: Entry(pid, parent, 1, 1, 0, 1, 1, "x") for pid, parent in ((5, 1), (6, 5), (7, 6), (9, 1))
    }
    commands = {
        pid: f"/srv/shop/bin/celery -A shop {'beat' if pid != 9 else 'worker'}".split() for pid in entries
    }
    application = beats.Application(None, ["/srv/shop"], (), "shop")
    assert beats.find(application, entries, lambda pid: commands[pid]) == beats.Found([5], [])


def test_what_nobody_said_is_not_known():
    answers = {
        "ping": {"a@x": {}, "b@x": {}},
        "active": {"a@x": [{"name": "t", "time_start": 90.0}]},
        "registered": {},
    }
    for item, verdict in (
        ({"active": "< 5"}, "unknown"),
        ({"active": 0}, "wrong"),
        ({"active": "> 5"}, "unknown"),
        ({"active": 3}, "unknown"),
        ({"active": "< 1", "longer_than": 5}, "wrong"),
        ({"active": "< 1", "longer_than": 20}, "unknown"),
        ({"tasks": "t"}, "unknown"),
    ):
        found = judge(parse_check(item, "checks[0]"), answers, 100.0)
        assert (verdict == "wrong") is bool(found.wrong) and (verdict == "unknown") is bool(found.unknown), (
            item
        )


def test_who_consumes_a_queue_without_a_broker_that_counts():
    """Each worker that did not say so may be one more."""
    answers = {
        "ping": {"a@x": {}, "b@x": {}},
        "queues": {"q": {"messages": 3, "consumers": None}},
        "active_queues": {"a@x": ["q"]},
    }
    for bound, verdict in (
        *((">= 1", "pass"), (">= 2", "unknown"), (">= 3", "wrong"), ("< 1", "wrong"), ("< 2", "unknown")),
        *(("< 3", "pass"), (1, "unknown"), (2, "unknown"), (0, "wrong"), (3, "wrong")),
    ):
        found = judge(parse_check({"queue": "q", "consumers": bound}, "checks[0]"), answers, 100.0)
        assert (bool(found.wrong), bool(found.unknown)) == (verdict == "wrong", verdict == "unknown"), bound
    both = {"queue": "q", "length": "< 2", "consumers": ">= 2"}
    assert judge(parse_check(both, "checks[0]"), answers, 100.0).wrong
    answers["queues"] = {"q": {"messages": 3, "consumers": 2}}
    assert not any(judge(parse_check({**both, "length": 3}, "checks[0]"), answers, 100.0)[1:])


def test_lines_of_the_application_are_not_taken_for_ours():
    text = 'mark {"stage": "broker"}\n{"answer": 1}\nmark broken\n mark {"answer": 2}\nmark {"answer": {"a": 1}}\n'
    assert gate.parse_lines([text], "mark ") == {"stage": "broker", "answer": {"a": 1}}


def test_among_the_gates_of_a_deployment(shop, tmp_path):
    """The application's environment and its current release reach it as they reach its services."""
    release, environment = tmp_path / "releases" / R1, tmp_path / "environments" / "e1"
    (environment / "bin").mkdir(parents=True)
    release.mkdir(parents=True)
    (release / "shop.py").write_text(APP)
    (release / ".built").touch()
    (release / ".release.json").write_text('{"environment": "e1"}')
    python = environment / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "current").symlink_to(f"releases/{R1}")
    check = {"kind": "celery", "name": "workers", "workers": 1}
    given = {name: spec.get("default") for name, spec in _gates.OPTIONS.items()}
    given.update(gates=[check], moment="smoke_test", root=str(tmp_path), settings_module="shop.settings")
    given.update(deadline=60.0, environment=json.dumps(shop.variables))
    found = _gates.perform(given, False, pytest.fail)
    assert found["passed"] and found["checks"][0]["observed"] == "1 workers answered: w1@here"
    given["gates"] = [{**check, "workers": ">= 5"}]
    with pytest.raises(Problem, match="1 workers answered") as refused:
        _gates.perform({**given, "patience": 0.1}, False, pytest.fail)
    assert "5521" not in json.dumps(refused.value.answer())
