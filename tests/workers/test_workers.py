# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""app_service and Celery in more cases than the unit tests have time for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._layout import remove_tree
from ansible_collections.runbook.deploy.plugins.modules import app_beat, app_service
from celery_host import ONE, PASSWORD, R1, R2, THREE, TWO, Shop
from redis_server import RedisServer
from test_app_service_workers import deploy, first


def test_worker_by_another_name_is_not_taken_for_ours(shop):
    """A worker at the same broker, as another host's would be, neither proves ours nor is told to stop."""
    first(shop)
    stranger = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "shop", "worker", "-n", "other@here", "-c", "1", "-P", "solo"],
        cwd=shop.layout.release(R1),
        env={"PATH": os.environ["PATH"], **shop.variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        shop.release(R2)
        answer = deploy(shop, TWO, R2)
        assert not answer.get("failed"), answer
        stopped = shop.run(app_service, state="stopped", root=str(shop.root), drain_timeout=60)
        assert stopped["drained"][0]["drained"], stopped
        shop.send(("shop.note", "mine", 0))
        shop.until(shop.noted, "a task that the other worker takes")
        assert shop.noted() == [("mine", None)]
    finally:
        os.killpg(stranger.pid, signal.SIGKILL)
        stranger.wait()


def test_broker_that_is_gone_holds_nothing_up(shop):
    """The old worker is still ended warmly; it is the new one that must answer."""
    first(shop)
    instance = shop.layout.environment_file(ONE)
    instance.write_text(instance.read_text().replace(shop.broker, "redis://127.0.0.1:9/0"))
    shop.release(R2)
    answer = deploy(shop, TWO, R2)
    assert not answer.get("failed"), answer
    (drained,) = answer["drained"]
    assert "127.0.0.1:9" in drained["message"] and "TERM" in drained["message"] and not drained["killed"]


def test_stopping_everything_drains(shop):
    first(shop)
    shop.send(*(("shop.note", f"n{index}", 0.2) for index in range(8)))
    shop.until(shop.noted, "tasks that run")
    answer = shop.run(app_service, state="stopped", root=str(shop.root), drain_timeout=60)
    assert not answer.get("failed") and answer["drained"][0]["drained"], answer
    assert answer["stopped"] == [f"worker of deployment {ONE}"] and shop.running() == set()
    done = dict(shop.noted())
    answer = deploy(shop, THREE, R1)
    assert not answer.get("failed"), answer
    shop.until(lambda: len(shop.noted()) >= 8, "all tasks")
    assert Counter(key for key, _release in shop.noted()) == {f"n{index}": 1 for index in range(8)} and done


def test_task_that_was_acknowledged_early_is_named_as_lost(shop):
    shop.services = [shop.worker(stop_timeout=1, drain_timeout=1)]
    first(shop)
    shop.send(("shop.hold", "long", str(shop.root / "go")))
    shop.until(lambda: shop.noted("begun"), "a task that runs")
    shop.release(R2)
    answer = deploy(shop, TWO, R2)
    assert not answer.get("failed"), answer
    (drained,) = answer["drained"]
    assert drained["killed"] and drained["running"][0]["acknowledged"]
    assert "run again by nobody" in drained["message"]


def test_task_that_outlasts_the_drain_is_finished_after_term(shop):
    """TERM is warm: with time until KILL the task ends, and is named all the same."""
    shop.services = [shop.worker(drain_timeout=1)]
    first(shop)
    shop.send(("shop.hold", "long", str(shop.root / "go")))
    shop.until(lambda: shop.noted("begun"), "a task that runs")
    shop.release(R2)
    old = shop.main_pid("worker", ONE)
    thread = threading.Thread(
        target=lambda: (
            shop.until(lambda: "Warm shutdown" in shop.log(), f"TERM for {old}"),
            (shop.root / "go").touch(),
        )
    )
    thread.start()
    answer = deploy(shop, TWO, R2)
    thread.join()
    assert not answer.get("failed"), answer
    (drained,) = answer["drained"]
    assert not drained["drained"] and not drained["killed"] and "shop.hold" in drained["message"]
    assert shop.noted() == [("long", R1)]


def test_solo_worker_answers_late(shop):
    """Its only thread is at work, so that it answers nobody: what it has is waited for all the same."""
    shop.services = [shop.worker(options="-P solo")]
    first(shop)
    shop.send(("shop.hold", "long", str(shop.root / "go")), ("shop.note", "next", 0))
    shop.until(lambda: shop.noted("begun"), "a task that runs")
    shop.release(R2)
    timer = threading.Timer(4, (shop.root / "go").touch)
    timer.start()
    answer = deploy(shop, TWO, R2)
    timer.join()
    assert not answer.get("failed"), answer
    assert answer["drained"][0]["drained"], answer["drained"]
    shop.until(lambda: len(shop.noted()) == 2, "both tasks")


def test_beats_apart(shop):
    """On several hosts: stopped before everything, left alone by the restart, and started after it."""
    shop.services = [shop.worker(), shop.beat()]
    first(shop)
    shop.release(R2)
    place = {"root": str(shop.root), "stay_up": 0.3}
    preview = shop.run(app_beat, check=True, state="stopped", **place)
    assert preview["changed"] and shop.running() == {("worker", ONE), ("beat", ONE)}
    assert shop.run(app_beat, state="stopped", **place)["stopped"] == [f"beat of deployment {ONE}"]
    assert not shop.run(app_beat, state="stopped", **place)["changed"]
    answer = deploy(shop, TWO, R2, beats="apart")
    assert not answer.get("failed"), answer
    assert shop.running() == {("worker", TWO)}
    assert not deploy(shop, TWO, R2, beats="apart", services=None)["changed"]
    answer = shop.run(app_beat, state="started", **place)
    assert answer["changed"] and answer["beats"][0]["running"], answer
    assert shop.running() == {("worker", TWO), ("beat", TWO)}
    assert not shop.run(app_beat, state="started", **place)["changed"]


def test_broker_that_is_gone_holds_up_no_way_back(capsys, tmp_path_factory, monkeypatch):
    """A new release must be proved; one that was proved before is started again, with a warning."""
    warned: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _module, text, **_more: warned.append(text))
    root = Path(tempfile.mkdtemp(prefix="rb-"))
    server = RedisServer(tmp_path_factory.mktemp("redis"), requirepass=PASSWORD).start()
    shop = Shop(root / "a", f"redis://:p%40ss-word-5521@{server.address}/0", capsys)
    try:
        first(shop)
        shop.release(R2)
        assert not deploy(shop, TWO, R2).get("failed")
        server.stop()
        answer = deploy(shop, ONE, R1, services=None)
        assert not answer.get("failed"), answer
        assert shop.running() == {("worker", ONE)}
        assert any("not proved" in text and server.address in text for text in warned), warned
        answer = deploy(shop, THREE, R2, start_timeout=5)
        assert answer["failed"] and "cannot be reached" in answer["msg"], answer
        assert "5521" not in json.dumps(answer) and shop.running() == {("worker", ONE)}
    finally:
        shop.close()
        server.stop()
        remove_tree(root)
