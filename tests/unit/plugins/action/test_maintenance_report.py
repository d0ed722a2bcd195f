# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Monitoring is told of a maintenance by real requests, and the controller has to get past the page; all seen at the server."""

from __future__ import annotations

import calendar
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from action_tools import act
from ansible_collections.runbook.deploy.plugins.action.maintenance_report import ActionModule

BASE = {"application": "shop", "stage": "production"}


class Server(ThreadingHTTPServer):
    """Remembers what it was asked, and answers what the path says."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, str, dict[str, str]]] = []
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.server.asked.append((self.command, self.path, body, dict(self.headers)))
        word = self.path.strip("/").split("/")[-1]
        self.send_response(int(word) if word.isdigit() else 200)
        self.end_headers()

    do_POST = do_DELETE = do_GET

    def log_message(self, *_args: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def monitors(server: Server) -> list[dict]:
    return [
        {
            "name": "alerts",
            "headers": {"Authorization": "Bearer geheim-4711"},
            "begin": {
                "url": f"{server.address}/silence",
                "body": {"why": ["{reason}"], "who": "{operator}", "days": 3},
            },
            "end": {
                "url": f"{server.address}/silence/{{application}}",
                "method": "DELETE",
                "body": "{seconds}",
            },
        },
        {"name": "status page", "begin": {"url": f"{server.address}/page/{{id}}"}},
    ]


def test_everybody_is_told_of_what_he_wants_to_know(server):
    answer = act(
        ActionModule,
        {
            **BASE,
            "monitoring": monitors(server),
            "event": "begin",
            "reason": "disk",
            "operator": "ann",
            "deployment": "id7",
        },
    )
    assert sorted(answer["told"]["sent"]) == ["alerts", "status page"]
    asked = {path: (method, body, headers) for method, path, body, headers in server.asked}
    method, body, headers = asked["/silence"]
    assert (method, json.loads(body)) == ("POST", {"why": ["disk"], "who": "ann", "days": 3})
    assert (headers["Content-Type"], headers["Authorization"]) == ("application/json", "Bearer geheim-4711")
    assert asked["/page/id7"][0] == "POST"
    server.asked.clear()
    answers = {"web1": {"downtime": {"seconds": 4.5}}, "web2": {"downtime": {"seconds": 6.5}}, "web3": {}}
    answer = act(ActionModule, {**BASE, "monitoring": monitors(server), "event": "end", "answers": answers})
    assert answer["told"]["sent"] == ["alerts"]
    assert [(method, path, body) for method, path, body, _headers in server.asked] == [
        ("DELETE", "/silence/shop", "6.5")
    ]


def seconds_of(text: str) -> float:
    return calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S"))


@pytest.mark.parametrize(("expected", "said", "least"), [(0, "", 60), (600.5, "601", 2 * 601 + 475)])
def test_monitoring_is_told_how_long_it_is_expected_to_last(server, expected, said, least):
    items = [
        {
            "name": "alerts",
            "begin": {"url": f"{server.address}/x", "body": "{expected} {time} {until}"},
        }
    ]
    given = {"monitoring": items, "event": "begin", "expires": 60, "expected": expected, "afterwards": 475}
    act(ActionModule, {**BASE, **given})
    found, begin, end = server.asked[0][2].split(" ")
    assert found == said
    assert abs(seconds_of(end) - seconds_of(begin) - least) <= 1


def test_who_cannot_be_told_is_named_without_secrets_and_the_others_are(server):
    items = monitors(server)
    items[0]["begin"]["url"] = f"{server.address}/geheimer-pfad/500"
    items.append({"name": "gone", "begin": {"url": "http://127.0.0.1:9/x"}})
    answer = act(ActionModule, {**BASE, "monitoring": items, "event": "begin"})
    assert not answer.get("failed")
    assert answer["told"]["sent"] == ["status page"]
    said = {one["name"]: one["message"] for one in answer["told"]["unsent"]}
    assert "it answered 500" in said["alerts"]
    assert "refused" in said["gone"].lower()
    assert "geheim" not in json.dumps(answer["told"])


def test_in_check_mode_nobody_is_told(server):
    act(ActionModule, {**BASE, "monitoring": monitors(server), "event": "begin"}, check=True)
    assert server.asked == []


def test_a_controller_that_gets_the_page_is_told_before_anything_is_migrated(server):
    answer = act(ActionModule, {**BASE, "url": f"{server.address}/503", "reached": True})
    assert answer["failed"] is True
    assert "add the controller's address" in answer["msg"]
    assert not act(ActionModule, {**BASE, "url": f"{server.address}/200", "reached": True}).get("failed")
    # That nothing answers is for the smoke test to judge.
    assert not act(ActionModule, {**BASE, "url": "http://127.0.0.1:9/", "reached": True}).get("failed")


def test_every_host_is_shown(server):
    answers = {"web1": {"maintenance": {"on": True, "operator": "ann"}}, "web2": {}}
    answer = act(
        ActionModule,
        {
            **BASE,
            "answers": answers,
            "failures": {"web2": "It is full."},
            "url": f"{server.address}/",
            "show": True,
        },
    )
    assert answer["text"].splitlines() == [
        "maintenance of shop (production)",
        "  web1  on, by ann",
        "  web2  unknown",
        "  web2: It is full.",
        f"  from here {server.address}/ gives 200",
    ]
