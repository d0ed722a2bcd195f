# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gates of the code as docs/gates.md writes them: real scanners from PyPI, real repositories, one fault in each commit."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.runbook.deploy.plugins.module_utils import _command_gate
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

PROJECT = Path(__file__).resolve().parents[2]
# Blocks of docs/gates.md: what is proved here is what people copy.
BLOCKS = [
    yaml.safe_load(part.partition("```")[0])
    for part in (PROJECT / "docs" / "gates.md")
    .read_text()
    .partition("\n## The code")[2]
    .split("```yaml\n")[1:]
]
GATES, PACKAGES = BLOCKS[0]["app_code_gates"], BLOCKS[0]["app_gate_packages"]
OWN = BLOCKS[1]["app_code_gates"]
NAMES = [gate["name"] for gate in GATES]
FILES = {
    "shop/__init__.py": '"""A shop."""\n',
    "shop/prices.py": '"""Prices."""\n\n\ndef total(prices):\n    """Add them up."""\n    return sum(prices)\n',
    "tests/test_prices.py": "from shop.prices import total\n\n\ndef test_total():\n    if total([1, 2]) != 3:\n        raise ValueError\n",
    "requirements.txt": "itsdangerous==2.2.0\n",
    "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["."]\n',
}
UNTESTED = (
    "\n\ndef discount(price):\n"
    + "".join(f"    price -= {number}\n" for number in range(12))
    + "    return price\n"
)
# Not one that anybody has; pieces, so that this file holds none either.
SECRET = "AKIA" + "Q3EGRIX7ZLJ2PDMW"
FAULTS: dict[str, tuple[str, dict[str, str]]] = {
    "conflict": ("conflict markers", {"README.md": "<" * 7 + " HEAD\nours\n" + ">" * 7 + " theirs\n"}),
    "test": ("tests", {"shop/prices.py": FILES["shop/prices.py"].replace("sum(prices)", "max(prices)")}),
    "coverage": ("tests", {"shop/prices.py": FILES["shop/prices.py"] + UNTESTED}),
    "style": ("style", {"tests/test_prices.py": "import os\n" + FILES["tests/test_prices.py"]}),
    "insecure": (
        "insecure code",
        {"shop/prices.py": FILES["shop/prices.py"] + "\n\nlast = eval('total([1])')\n"},
    ),
    "secret": ("secrets", {"shop/__init__.py": f'"""A shop."""\n\nKEY = "{SECRET}"\n'}),
    "vulnerable": ("known vulnerabilities", {"requirements.txt": "itsdangerous==2.1.2\n"}),
}


def git(directory: Path, *words: str) -> str:
    named = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *named, *words], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout.strip()


class Vulnerabilities(BaseHTTPRequestHandler):
    """What api.osv.dev answers (https://google.github.io/osv.dev/post-v1-query/), with one entry."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = asked["package"]["name"] == "itsdangerous" and asked["version"] == "2.1.2"
        entry = {
            "id": "PYSEC-0000-1",
            "summary": "made up for a test",
            "details": "made up for a test",
            "aliases": [],
            "published": "2026-01-01T00:00:00Z",
            "affected": [
                {
                    "package": {"name": "itsdangerous", "ecosystem": "PyPI"},
                    "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.2.0"}]}],
                }
            ],
        }
        body = json.dumps({"vulns": [entry]} if known else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def osv() -> Iterator[str]:
    """The address of a service of vulnerabilities."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Vulnerabilities)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
    server.shutdown()
    thread.join()
    server.server_close()


class Site:
    """A host that is this one, the repository that it deploys from, and somebody's working copy."""

    def __init__(self, directory: Path, osv: str) -> None:
        self.directory = directory
        self.work = directory / "work"
        self.origin = directory / "origin.git"
        self.gates = directory / "gates"
        self.osv = osv
        self.work.mkdir()
        git(directory, "init", "-q", "--bare", str(self.origin))
        git(self.work, "init", "-q")
        git(self.work, "remote", "add", "origin", str(self.origin))
        self.commit(FILES, "main")
        (directory / "root").mkdir()

    def commit(self, files: dict[str, str], branch: str = "", push: bool = True) -> str:
        """Commit *files*, and push them to *branch*, or to one of their own beside main."""
        for name, text in files.items():
            path = self.work / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        git(self.work, "add", "-A")
        git(self.work, "commit", "-q", "-m", f"Change {', '.join(files)}")
        commit = git(self.work, "rev-parse", "HEAD")
        if push:
            git(self.work, "push", "-q", "origin", f"HEAD:refs/heads/{branch or commit[:12]}")
        return commit

    def preflight(self, version: str) -> tuple[int, str]:
        """Run the gates of a deployment's beginning as an operator does."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("PIP_", "UV_", "SSL_", "REQUESTS_"))
        }
        variables = {
            "app_name": "shop",
            "app_stage": "test",
            "app_root": str(self.directory / "root"),
            "app_repository": str(self.origin),
            "app_framework": "none",
            "app_user": getpass.getuser(),
            "app_python": sys.executable,
            "app_services": [
                {
                    "name": "web",
                    "manager": "process",
                    "bind": "port",
                    "port": 1,
                    "command": "shop --bind {port}",
                }
            ],
            "app_code_gates": GATES,
            "app_gate_packages": PACKAGES,
            "app_gate_root": str(self.gates),
            "app_gate_environment": {"PIP_AUDIT_OSV_URL": self.osv},
            "app_build_environment": kept,
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
        }
        inventory = self.directory / "hosts.json"
        inventory.write_text(json.dumps({"app": {"hosts": {"web1": {}}, "vars": variables}}))
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-i", str(inventory), "playbooks/pre_deploy.yml"]
            + ["-e", f"version={version}"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def judge(self, gates: list[dict[str, Any]], directory: Path, commit: str = "main") -> dict[str, Any]:
        """Run *gates* in *directory* with the environment that the role has built."""
        (environment,) = (self.gates / "environments").iterdir()
        options = {name: spec.get("default") for name, spec in _command_gate.OPTIONS.items()}
        known = {
            "HOME": str(self.directory),
            "PATH": f"{environment}/bin:/usr/local/bin:/usr/bin:/bin",
            "PIP_AUDIT_OSV_URL": self.osv,
            "RUNBOOK_COMMIT": commit,
            "RUNBOOK_REPOSITORY": str(self.origin),
        }
        options.update(checks=gates, chdir=str(directory), deadline=300.0, environment=json.dumps(known))
        try:
            return _command_gate.perform(options, False, lambda text: None)
        except Problem as problem:
            return problem.results


def wrong(gate: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["verdict"] for check in gate["checks"] if check["verdict"] != "pass"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, osv: str) -> Site:
    """Where the first commit, which is sound, has passed all gates."""
    tried = tmp_path_factory.mktemp("tried")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tried), "detect-secrets"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no package index gives detect-secrets to this machine")
    made = Site(tmp_path_factory.mktemp("code"), osv)
    code, text = made.preflight("main")
    assert code == 0, text[-6000:]
    return made


@pytest.fixture
def copy(site: Site, tmp_path: Path) -> Path:
    """The files of main."""
    shutil.copytree(site.work, tmp_path / "code", ignore=shutil.ignore_patterns(".git"))
    return tmp_path / "code"


def test_a_sound_commit_passes(site: Site, copy: Path) -> None:
    assert wrong(site.judge(GATES, copy)) == {}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_fails_exactly_its_gate(site: Site, copy: Path, fault: str) -> None:
    name, files = FAULTS[fault]
    for path, text in files.items():
        (copy / path).write_text(text)
    gate = site.judge(GATES, copy)
    assert wrong(gate) == {name: "fail"}, [check["message"] for check in gate["checks"]]
    (check,) = (check for check in gate["checks"] if check["name"] == name)
    words = {
        "coverage": ">= 95",
        "vulnerable": "PYSEC-0000-1",
        "secret": '"line_number": 3',
        "insecure": "eval",
    }
    assert words.get(fault, "") in check["message"] and check["repeat"]
    assert gate["passed"] is (check["severity"] != "critical")


def test_a_planted_secret_stops_a_deployment(site: Site) -> None:
    commit = site.commit(FAULTS["secret"][1])
    git(site.work, "push", "-q", "origin", "HEAD:refs/heads/main")
    try:
        code, text = site.preflight(commit)
    finally:
        git(site.work, "reset", "-q", "--hard", "HEAD~1")
        git(site.work, "push", "-q", "--force", "origin", "HEAD:refs/heads/main")
    assert code == 2 and "Check 'secrets' failed" in text, text[-4000:]
    assert not [name for name in NAMES if name != "secrets" and f"Check {name!r}" in text]
    assert '"line_number": 3' in text and SECRET not in text


def test_what_was_never_pushed_cannot_be_deployed(site: Site) -> None:
    commit = site.commit({"shop/more.py": '"""More."""\n'}, push=False)
    code, text = site.preflight(commit)
    # Of the working copy itself the two other commands say so; nothing else of it is looked at.
    gates = [{**gate, "chdir": str(site.work)} for gate in OWN]
    unpushed = wrong(site.judge(gates, site.work))
    git(site.work, "reset", "-q", "--hard", "HEAD~1")
    pushed = wrong(site.judge(gates, site.work))
    (site.work / "shop" / "notes.py").write_text("\n")
    dirty = wrong(site.judge(gates, site.work))
    (site.work / "shop" / "notes.py").unlink()
    assert code == 2 and commit in text and str(site.origin) in text, text[-3000:]
    assert (unpushed, pushed, dirty) == ({"pushed": "fail"}, {}, {"clean": "fail"})


def test_what_is_not_merged(site: Site, copy: Path) -> None:
    commit = site.commit({"shop/more.py": '"""More."""\n'})
    git(site.work, "reset", "-q", "--hard", "HEAD~1")
    assert wrong(site.judge(GATES, copy, commit)) == {"merged": "fail"}


@pytest.mark.parametrize("missing", ["service", "program"])
def test_no_scanner_passes_without_an_answer(site: Site, copy: Path, missing: str) -> None:
    if missing == "program":
        gates = [{"name": "secrets", "command": "detect-secretz scan", "json": {"results": "length == 0"}}]
        assert wrong(site.judge(gates, copy)) == {"secrets": "inconclusive"}
        return
    gates = [{**GATES[-1], "severity": "critical"}]
    closed, site.osv = site.osv, "http://127.0.0.1:9/v1/query"
    try:
        gate = site.judge(gates, copy)
    finally:
        site.osv = closed
    assert wrong(gate) == {"known vulnerabilities": "fail"}
    assert "NewConnectionError" in gate["checks"][0]["message"]
