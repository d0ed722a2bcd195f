# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gate of Celery with a real RabbitMQ: what it says of workers and queues, and of a broker that does not answer."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from celery_shop import PASSWORD, Shop
from rabbitmq_server import HAS_RABBITMQ, RabbitServer
from redis_server import free_port

QUEUES = ("list_queues", "name")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A broker and one worker, w1."""
    if importlib.util.find_spec("celery") is None:
        pytest.skip("celery is not installed for this Python")
    if not HAS_RABBITMQ:
        pytest.skip("rabbitmq-server is not installed")
    with RabbitServer(tmp_path_factory.mktemp("rabbit"), "shop", PASSWORD) as rabbit:
        shop = Shop(tmp_path_factory.mktemp("shop"), rabbit, "amqp")
        try:
            shop.worker("w1")
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


def in_application(shop: Shop, code: str) -> None:
    """Run *code* with the application's own Celery."""
    environment = {"PATH": os.environ["PATH"], **shop.variables}
    command = [sys.executable, "-c", f"import shop; {code}"]
    subprocess.run(command, cwd=shop.directory, env=environment, check=True, capture_output=True)


def test_everything_is_as_it_should_be(shop):
    found = shop.until(
        "p" * 6,
        {"workers": ["w1@here"]},
        {"active": 0},
        {"reserved": 0},
        {"tasks": ["shop.quick"]},
        {"queue": "shop", "length": 0, "consumers": 1},
        {"queue": "shop", "consumers": ">= 1"},
    )
    assert found[4]["observed"] == "0 messages wait in 'shop'; 1 consumers"
    assert "5521" not in json.dumps(found)


def test_what_is_otherwise_fails(shop):
    found = shop.until(
        "ffff",
        {"workers": 2},
        {"tasks": ["shop.gone"]},
        {"queue": "shop", "length": "> 5"},
        {"queue": "shop", "consumers": 2},
    )
    assert "0 messages wait in 'shop'; 1 consumers" in found[3]["message"]
    assert f"amqp://shop:**@{shop.server.address}//" in found[0]["message"]
    assert "5521" not in json.dumps(found)


def test_depth_and_consumers_of_a_queue(shop):
    """The broker counts: messages that nobody fetches, consumers that come and go, a queue that is not there, an empty one that is."""
    empty = shop.one({"queue": "later", "length": 0})
    assert empty["verdict"] == "inconclusive" and "the broker has no queue 'later'" in empty["message"]
    in_application(shop, "[shop.quick.apply_async(queue='later') for _ in range(7)]")
    words = "7 messages wait in 'later', which no worker that answered consumes; 0 consumers"
    shop.until(
        "ffp",
        {"queue": "later", "length": "< 5", "consumers": 0},
        {"queue": "later", "length": 7, "consumers": ">= 1"},
        {"queue": "later", "length": 7},
        words=words,
    )
    worker = shop.worker("w2", "-Q", "later")
    shop.wait({"queue": "later", "length": 0, "consumers": 1})
    shop.kill(worker)
    # It is there still, and empty: RabbitMQ knows the difference.
    shop.until("pf", {"queue": "later", "length": 0}, {"queue": "later", "consumers": 1})


def test_a_worker_that_hangs_consumes_and_does_not_answer(shop):
    worker = shop.children[0]
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        found = shop.until(
            "ffip",
            *({"workers": 1}, {"tasks": ["shop.quick"]}, {"active": 0}, {"queue": "shop", "consumers": 1}),
        )
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    assert "no worker answered" in found[0]["message"]
    shop.wait({"workers": 1})


def test_nothing_is_left_in_the_broker(shop):
    def kept() -> list[str]:
        return sorted(shop.server.control(*QUEUES).split())

    before = kept()
    assert "shop" in before
    shop.ask({"workers": 1}, {"active": 0}, {"queue": "shop", "length": 0}, {"queue": "nobody", "length": 0})
    limit = time.monotonic() + 60
    while kept() != before and time.monotonic() < limit:
        time.sleep(0.2)
    assert kept() == before


@pytest.mark.parametrize("fault", ["away", "password", "host", "no-amqp", "hangs", "blocked"])
def test_broker_that_cannot_be_asked(shop, fault):
    """Celery itself would try, or wait, for ever."""
    place, left, broker = shop.server.address, 30.0, shop.broker
    listener = socket.create_server(("127.0.0.1", 0))
    if fault == "away":
        place, words = f"127.0.0.1:{free_port()}", "cannot be reached: "
    elif fault == "password":
        broker, words = broker.replace("5521", "wrong-77"), "ACCESS_REFUSED"
    elif fault == "host":
        broker, words = f"{broker}elsewhere", "elsewhere"
    elif fault == "no-amqp":
        place, words, left = f"127.0.0.1:{listener.getsockname()[1]}", "broker", 5.0
    elif fault == "blocked":
        words = "it takes no messages at present"
    else:
        words, left = "broker", 5.0
    broker = broker.replace(shop.server.address, place)
    if fault == "hangs":
        shop.server.signal(signal.SIGSTOP)
    elif fault == "blocked":
        # As on a full disk: whoever publishes has to wait.
        shop.server.control("eval", "rabbit_alarm:set_alarm({{resource_limit, disk, node()}, []}).")
    begun = time.monotonic()
    try:
        found = shop.ask(
            *({"workers": 1}, {"queue": "shop", "length": 0}),
            environment=json.dumps({**shop.variables, "BROKER": broker}),
            left=left,
        )
        took = time.monotonic() - begun
    finally:
        listener.close()
        if fault == "hangs":
            shop.server.signal(signal.SIGCONT)
        elif fault == "blocked":
            shop.server.control("eval", "rabbit_alarm:clear_alarm({resource_limit, disk, node()}).")
    assert [item["verdict"] for item in found] == ["inconclusive"] * 2, found
    assert words in found[0]["message"], found[0]["message"]
    assert place in found[0]["message"]
    assert "5521" not in json.dumps(found) and "wrong-77" not in json.dumps(found)
    assert took < left + 20
    shop.wait({"workers": 1})


def test_broker_that_dies(shop):
    """The last one: nothing runs any more afterwards."""
    shop.wait({"workers": 1})
    shop.server.stop()
    found = shop.ask(*({"workers": 1}, {"queue": "shop", "consumers": ">= 1"}))
    assert [item["verdict"] for item in found] == ["inconclusive"] * 2
    assert f"the broker amqp://shop:**@{shop.server.address}// cannot be reached" in found[0]["message"]
