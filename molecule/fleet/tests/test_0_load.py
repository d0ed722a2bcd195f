# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The load sees what it is there to see: a request that fails, a connection that is cut, an answer that takes long."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fleet_tools import Load, until


class Site(BaseHTTPRequestHandler):
    """A site of one page; `fault` says what is wrong with the next answer to a visitor."""

    protocol_version = "HTTP/1.1"
    fault = ""

    def do_GET(self) -> None:
        fault = "" if self.path == "/alive" else type(self).fault
        if fault:
            type(self).fault = ""
        if fault == "cut":
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(2.5)
        body = b'<link href="/static/site.css">'
        self.send_response(500 if fault == "error" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Goexplorer-Version", "v1")
        self.send_header("X-Answered-By", "web1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: object) -> None:
        pass


@pytest.fixture(scope="module")
def site():
    """Its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("fault", ["", "error", "cut", "slow"])
def test_what_visitors_got(site, tmp_path, fault):
    with Load(site, tmp_path / "load", before=2) as load:
        begun = time.time()
        Site.fault = fault
        until(lambda: not Site.fault, "a request")
        time.sleep(3)
        ended = time.time()
    print(load)
    assert len(load.failed) == (1 if fault in ("error", "cut") else 0)
    assert load.since(begun) == {"v1"} and list(load.versions) == (
        ["web1"] if fault != "cut" else ["web1", ""]
    )
    if fault == "slow":
        # Unless the machine was so slow itself that nobody can tell.
        slowest = sorted(row.seconds for row in load.answers)[-2]
        stalls = [row for row in load.rows if row.kind in ("balancer", "late") and row.seconds > 0.25]
        assert len(load.slow_by_switch(begun - 1, ended)) == 1 or slowest > 1 or stalls
    else:
        assert load.slow_by_switch(begun, ended) == []
