# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a CI system says of a commit as a gate, as docs/gates.md writes it; a server answers as GitHub and GitLab do.

Sources: "REST API endpoints for commit statuses" and "for check runs" of GitHub's documentation, "Commits API" of GitLab's.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.runbook.deploy.plugins.module_utils import _gates
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from redis_server import free_port

DOCS = Path(__file__).resolve().parents[4] / "docs" / "gates.md"
TEXT = DOCS.read_text().partition("### Or what CI said")[2].partition("```yaml\n")[2].partition("```")[0]
GATES = {gate["name"]: gate for gate in yaml.safe_load(TEXT)["app_gates"]}
STATUS, CHECK, PIPELINE = "GitHub status", "GitHub check", "GitLab pipeline"
COMMIT, OTHER = "c0ffee" * 6 + "c0ff", "beef" * 10
TOKEN = "token-of-ci-5521"


class Ci(ThreadingHTTPServer):
    """Answers as both do; ``said`` is what CI has come to, None where it has not begun."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.said: str | None = None
        self.known = COMMIT
        self.of = COMMIT
        self.mode = ""
        self.over = threading.Event()

    def answer(self, path: str, token: str) -> tuple[int, Any]:
        """Return status and document."""
        if token != TOKEN:
            return 401, {"message": "Bad credentials"}
        where, _question, query = path.partition("?")
        said, known = self.said, f"/{self.known}" in where
        if where.startswith("/api/v4/projects/acme%2Fshop/repository/commits/"):
            if not known:
                return 404, {"message": "404 Commit Not Found"}
            pipeline = {"id": 7, "ref": "main", "sha": self.of, "status": said} if said else None
            return 200, {"id": self.of, "title": "Change", "status": said, "last_pipeline": pipeline}
        if where.startswith("/repos/acme/shop/commits/") and not known:
            return 422, {"message": f"No commit found for SHA: {where.split('/')[5]}"}
        if where.endswith("/status"):
            statuses = [{"context": "ci", "state": said}] if said else []
            count = len(statuses)
            return 200, {
                "state": said or "pending",
                "statuses": statuses,
                "sha": self.of,
                "total_count": count,
            }
        if where.endswith("/check-runs") and query == "check_name=tests":
            ended = said not in (None, "queued", "in_progress")
            run = {"name": "tests", "head_sha": self.of, "status": "completed" if ended else said}
            runs = [{**run, "conclusion": said if ended else None}] if said else []
            return 200, {"total_count": len(runs), "check_runs": runs}
        return 404, {"message": "Not Found"}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Ci

    def do_GET(self) -> None:
        if self.server.mode == "hangs":
            self.server.over.wait(60)
            return
        token = self.headers.get("PRIVATE-TOKEN") or self.headers.get("Authorization", "").removeprefix(
            "Bearer "
        )
        status, document = self.server.answer(self.path, token)
        body = json.dumps(document).encode()
        if self.server.mode == "page":
            body = b"<html>Sign in</html>"
        if self.server.mode == "down":
            status, body = 503, b"{}"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: Any) -> None:
        """Say nothing."""


@pytest.fixture
def ci() -> Iterator[Ci]:
    with Ci() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


def ask(ci: Ci, name: str, token: str = TOKEN, port: int = 0) -> dict[str, Any]:
    """Ask before a deployment of COMMIT; the gate, with ``told`` where it stops that."""
    gate = json.loads(json.dumps(GATES[name]))
    for host in ("https://api.github.com", "https://gitlab.example.org"):
        gate["url"] = gate["url"].replace(host, f"http://127.0.0.1:{port or ci.server_address[1]}")
    found = {key: spec.get("default") for key, spec in _gates.OPTIONS.items()}
    found.update(gates=[gate], moment="preflight", deadline=2.0 if ci.mode == "hangs" else 20.0, patience=0.0)
    found.update(placeholders={"commit": COMMIT}, secrets=json.dumps({"ci": token}))
    try:
        return _gates.perform(found, False, lambda text: None)
    except Problem as problem:
        return {**problem.results, "told": problem.message}


@pytest.mark.parametrize(
    ("name", "said", "verdict"),
    [
        *(
            (STATUS, said, verdict)
            for said, verdict in (("success", "pass"), ("pending", "fail"), ("failure", "fail"))
        ),
        *((STATUS, "error", "fail"), (STATUS, None, "fail")),
        *(
            (CHECK, said, "fail")
            for said in ("queued", "in_progress", "failure", "cancelled", "skipped", None)
        ),
        (CHECK, "success", "pass"),
        *((PIPELINE, said, "fail") for said in ("running", "failed", "canceled", "pending", "manual", None)),
        (PIPELINE, "success", "pass"),
    ],
)
def test_what_ci_says_decides(ci: Ci, name: str, said: str | None, verdict: str) -> None:
    ci.said = said
    found = ask(ci, name)
    (check,) = found["checks"]
    assert check["verdict"] == verdict, check
    if verdict == "pass":
        assert "told" not in found
        return
    assert f"Check {name!r} failed" in found["told"] and "curl" in check["repeat"]
    assert TOKEN not in json.dumps(found)


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        ("unknown commit", "fail"),
        ("other commit", "fail"),
        ("token", "fail"),
        ("down", "fail"),
        ("page", "fail"),
        ("hangs", "fail"),
        ("away", "fail"),
    ],
)
def test_nothing_but_an_answer_of_this_commit_passes(ci: Ci, name: str, fault: str, verdict: str) -> None:
    ci.said = "success"
    if fault == "unknown commit":
        ci.known = OTHER
    elif fault == "other commit":
        ci.of = OTHER
    elif fault in ("down", "page", "hangs"):
        ci.mode = fault
    found = ask(ci, name, "wrong" if fault == "token" else TOKEN, free_port() if fault == "away" else 0)
    (check,) = found["checks"]
    assert check["verdict"] == verdict and "told" in found, check
    assert TOKEN not in json.dumps(found)
