# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""app_service with real Celery workers and beats: no task is lost, none runs twice, and a dead release is taken back."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils import _processes
from ansible_collections.runbook.deploy.plugins.module_utils._layout import remove_tree
from ansible_collections.runbook.deploy.plugins.module_utils._state import measure_service
from ansible_collections.runbook.deploy.plugins.modules import app_beat, app_service
from celery_host import ONE, PASSWORD, R1, R2, TWO, Shop
from redis_server import PROGRAM, RedisServer

HAS_CELERY = all(importlib.util.find_spec(name) for name in ("celery", "redis"))


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    if not HAS_CELERY:
        pytest.skip("celery[redis] is not installed for this Python")
    if PROGRAM is None:
        pytest.skip("redis-server is not installed")
    with RedisServer(tmp_path_factory.mktemp("redis"), requirepass=PASSWORD, databases="64") as server:
        server.used = 0
        yield server


@pytest.fixture
def shop(redis, capsys):
    """A host with a database of the broker to itself, with nothing that runs afterwards."""
    short = Path(tempfile.mkdtemp(prefix="rb-"))
    redis.used += 1
    made = Shop(short / "a", f"redis://:p%40ss-word-5521@{redis.address}/{redis.used}", capsys)
    yield made
    made.close()
    remove_tree(short)


def deploy(shop: Shop, deployment: str, release: str, **changes: Any) -> dict[str, Any]:
    return shop.run(app_service, **shop.options(deployment, release, **changes))


def first(shop: Shop) -> None:
    """Deploy the first release."""
    shop.release(R1)
    answer = deploy(shop, ONE, R1)
    assert not answer.get("failed"), answer


def test_nothing_is_lost_or_done_twice(shop):
    """Two tasks run and many wait when the deployment begins, and more come in; tests/workers has the long form."""
    shop.services = [shop.beat(), shop.worker()]
    first(shop)
    shop.send(*(("shop.hold", f"h{index}", str(shop.root / "go")) for index in range(2)))
    shop.send(*(("shop.note", f"n{index}", 0) for index in range(30)))
    shop.until(lambda: len(shop.noted("begun")) == 2, "two tasks that run")
    shop.release(R2)
    old = shop.main_pid("worker", ONE)

    def let_go() -> None:
        # Not before the drain has begun: the tasks must still run then.
        shop.until(shop.layout.paused_file("worker", ONE).exists, "a worker that takes no more")
        assert _processes.start_time(old)
        shop.send(*(("shop.note", f"m{index}", 0) for index in range(30)))
        (shop.root / "go").touch()

    thread = threading.Thread(target=let_go)
    thread.start()
    answer = deploy(shop, TWO, R2)
    thread.join()
    assert not answer.get("failed"), answer
    (drained,) = answer["drained"]
    assert (
        drained["drained"] and not drained["killed"] and drained["running"] == [] and not drained["message"]
    )
    assert drained["queues"] == ["shop"]
    shop.until(lambda: len(shop.noted()) >= 62, "all tasks")
    found = Counter(key for key, _release in shop.noted())
    assert set(found.values()) == {1} and len(found) == 62
    # What ran was not begun anew elsewhere.
    assert sorted(shop.noted("begun")) == [("h0", R1), ("h1", R1)]
    assert shop.running() == {("worker", TWO), ("beat", TWO)} and not list(shop.layout.run.glob("*.paused"))
    # The new worker was asked by its name, and its process looked at.
    check = next(check for check in answer["gate"]["checks"] if check["name"] == "worker answers ping")
    assert check["nodes"] == [f"worker@{os.uname().nodename}"] and R2 in check["expected"]
    assert str(shop.main_pid("worker", TWO)) in check["observed"] and "5521" not in json.dumps(answer)
    # The beat ended first and began last.
    assert answer["stopped"] == [f"beat of deployment {ONE}", f"worker of deployment {ONE}"]
    names = [check["name"] for check in answer["gate"]["checks"]]
    assert names.index("worker answers ping") < names.index("beat listens")
    started = {service: _processes.start_time(shop.main_pid(service, TWO)) for service in ("worker", "beat")}
    assert started["worker"] < started["beat"]


@pytest.mark.long
def test_task_that_lasts_too_long_is_named_and_comes_again(shop, monkeypatch):
    warned: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _module, text, **_more: warned.append(text))
    shop.variables["WAY"] = "late visible"
    shop.services = [shop.worker(stop_timeout=1, drain_timeout=1)]
    first(shop)
    shop.send(("shop.hold", "long", str(shop.root / "go")))
    shop.until(lambda: shop.noted("begun"), "a task that runs")
    shop.release(R2)
    answer = deploy(shop, TWO, R2)
    assert not answer.get("failed"), answer
    (drained,) = answer["drained"]
    assert not drained["drained"] and drained["killed"]
    (task,) = drained["running"]
    assert task["name"] == "shop.hold" and not task["acknowledged"] and task["seconds"] >= 0
    assert task["id"] in drained["message"] and drained["message"] in warned
    assert "visibility" in drained["message"]
    (shop.root / "go").touch()
    # A worker looks for such tasks as it starts, and then every 100 s (kombu.transport.redis, QoS.restore_visible).
    shop.until(shop.noted, "the task once more", patience=240.0)
    assert shop.noted() == [("long", R2)]


def test_worker_that_does_not_answer_is_taken_back(shop):
    shop.services = [shop.worker(), shop.beat()]
    first(shop)
    shop.release(R2, "elsewhere")
    answer = deploy(shop, TWO, R2, start_timeout=8)
    assert answer["failed"] and not answer["live_changed"], answer
    assert "127.0.0.1:9" in answer["msg"] and "serves as before" in answer["msg"]
    assert shop.running() == {("worker", ONE), ("beat", ONE)}
    before = shop.ticks()
    shop.until(lambda: shop.ticks() > before, "a beat that sends, and a worker that works")


@pytest.mark.long
def test_killed_between_pause_and_term(shop):
    """What lives on but takes no tasks is seen as such, and cured by the next run."""
    first(shop)
    shop.send(("shop.hold", "h", str(shop.root / "go")))
    shop.until(lambda: shop.noted("begun"), "a task that runs")
    shop.release(R2)
    text = (
        "import json, sys\nfrom ansible.module_utils.testing import patch_module_args\n"
        "from ansible_collections.runbook.deploy.plugins.modules import app_service\n"
        "with patch_module_args(json.load(sys.stdin)): app_service.main()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    child.stdin.write(json.dumps(shop.options(TWO, R2)).encode())
    child.stdin.close()
    shop.until(shop.layout.paused_file("worker", ONE).exists, "a worker that takes no more")
    child.kill()
    child.wait()
    found = _processes.application_processes(shop.root)
    assert measure_service(shop.layout, shop.services[0], found)["answers"] is False
    (shop.root / "go").touch()
    answer = deploy(shop, ONE, R1, services=None)
    assert not answer.get("failed") and answer["changed"], answer
    assert shop.running() == {("worker", ONE)}
    found = _processes.application_processes(shop.root)
    assert measure_service(shop.layout, shop.services[0], found)["answers"] is None
    shop.send(("shop.note", "after", 0))
    shop.until(lambda: "after" in dict(shop.noted()), "a task of the worker that was started anew")
    assert shop.noted() == [("h", R1), ("after", R1)]


def test_second_beat_is_refused(shop):
    shop.services = [shop.beat()]
    shop.release(R1)
    stray = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "shop", "beat", "-s", str(shop.root / "stray"), "--pidfile="],
        cwd=shop.layout.release(R1),
        env={"PATH": os.environ["PATH"], **shop.variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        answer = deploy(shop, ONE, R1)
        assert answer["failed"] and f"process {stray.pid}" in answer["msg"] and "twice" in answer["msg"]
        assert shop.running() == set()
    finally:
        os.killpg(stray.pid, signal.SIGKILL)
        stray.wait()


def test_workers_stand_still_and_work_again(shop):
    """As around a change of the database: nothing is lost meanwhile, and a second time nothing changes."""
    shop.services = [shop.worker(), shop.beat()]
    place = {"root": str(shop.root), "name": "shop", "stage": "test", "workers": True, "stay_up": 0.3}
    # Before anything is live there is nothing to do.
    assert not shop.run(app_beat, state="started", **place)["changed"]
    first(shop)
    preview = shop.run(app_beat, check=True, state="stopped", **place)
    assert preview["changed"] and shop.running() == {("worker", ONE), ("beat", ONE)}
    answer = shop.run(app_beat, state="stopped", **place)
    assert answer["stopped"] == [f"beat of deployment {ONE}", f"worker of deployment {ONE}"], answer
    assert answer["drained"][0]["drained"] and shop.running() == set()
    assert not shop.run(app_beat, state="stopped", **place)["changed"]
    shop.send(("shop.note", "meanwhile", 0))
    answer = shop.run(app_beat, state="started", start_timeout=60, **place)
    assert answer["changed"] and answer["workers"][0]["name"] == "worker", answer
    assert shop.running() == {("worker", ONE), ("beat", ONE)}
    shop.until(lambda: shop.noted() == [("meanwhile", R1)], "the task that waited")
    assert not shop.run(app_beat, state="started", **place)["changed"]
