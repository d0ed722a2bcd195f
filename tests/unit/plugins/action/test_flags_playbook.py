# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/flags.yml as an operator runs it, on two hosts that are directories of this one."""

from __future__ import annotations

import getpass
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._flags_report import report
from ansible_collections.runbook.deploy.plugins.module_utils._flags_spec import check_flags, parse_flags

PROJECT = Path(__file__).resolve().parents[4]
FLAGS = {
    "store": {"kind": "environment_file", "path": "{{ app_root }}/flags.env"},
    "flags": ["SEARCH", "BULK"],
    "stages": {"dormant": {}, "internal": {"SEARCH": "staff"}, "complete": {"SEARCH": True, "BULK": True}},
}


class Site:
    """An inventory of two hosts, and what lies on them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hosts = {}
        for name in ("web1", "web2"):
            (directory / name).mkdir()
            self.hosts[name] = {
                "app_root": str(directory / name),
                "ansible_connection": "local",
                "ansible_python_interpreter": sys.executable,
            }
        self.variables: dict[str, Any] = {
            "app_name": "shop",
            "app_stage": "production",
            "app_repository": "https://git.example.org/shop.git",
            "app_framework": "none",
            "app_url": "https://shop.example.org",
            "app_user": getpass.getuser(),
            "app_services": [{"name": "web", "command": "gunicorn --bind unix:{socket} shop"}],
            "app_flags": FLAGS,
            "app_report_store": str(directory / "reports"),
        }

    def file(self, host: str) -> Path:
        return self.directory / host / "flags.env"

    def values(self) -> list[str]:
        return [self.file(host).read_text() if self.file(host).is_file() else "" for host in self.hosts]

    def history(self, host: str) -> list[dict[str, Any]]:
        path = self.directory / host / "deployments" / "flags.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def run(self, *words: str, playbook: str = "flags") -> tuple[int, str]:
        inventory = self.directory / "hosts.json"
        inventory.write_text(json.dumps({"app": {"hosts": self.hosts, "vars": self.variables}}))
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "ansible",
                "playbook",
                "-i",
                str(inventory),
                f"playbooks/{playbook}.yml",
                *words,
            ],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            stdin=subprocess.DEVNULL,
            env={
                **os.environ,
                "ANSIBLE_LOCAL_TEMP": str(self.directory / "local"),
                "ANSIBLE_REMOTE_TEMP": str(self.directory / "remote"),
                "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
                "ANSIBLE_NOCOLOR": "1",
                "NO_COLOR": "1",
            },
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def site(short_path: Path) -> Site:
    return Site(short_path)


def test_shown_switched_and_all_off(site):
    code, said = site.run("-e", "flags_stage=internal", "-e", "flags_reason='day 1'", "--check", "--diff")
    assert code == 0, said
    assert "+SEARCH=staff" in said
    assert site.values() == ["", ""]
    code, said = site.run("-e", "flags_stage=internal", "-e", "flags_reason='day 1'")
    assert code == 0, said
    assert site.values() == ["SEARCH=staff\nBULK=false\n"] * 2
    kept = json.loads((site.directory / "reports" / "shop" / "production" / "flags.json").read_text())
    assert [(switch["reason"], switch["verdict"]) for switch in kept["web2"]] == [("day 1", "switched")]
    (begun, ended) = site.history("web2")
    assert (begun["host"], begun["reason"], ended["verdict"]) == ("web2", "day 1", "switched")
    assert begun["operator"]
    site.file("web2").write_text("SEARCH=true\n")
    code, said = site.run()
    assert code == 0, said
    assert re.search(r"SEARCH +staff +true\n +BULK +false +-\n", said)
    assert "the hosts differ" in said
    assert "web1: last switch" in said
    code, said = site.run("--tags", "off")
    assert code == 0, said
    assert site.values() == ["SEARCH=false\nBULK=false\n"] * 2
    assert re.search(r"all off: done on 2 hosts in \d+\.\d s", said)
    kept = json.loads((site.directory / "reports" / "shop" / "production" / "flags.json").read_text())
    assert [switch["action"] for switch in kept["web1"]] == ["stage internal", "all off"]
    site.file("web2").write_text("SEARCH=true\n")
    code, said = site.run("--tags", "flags", playbook="rollback")
    assert code == 0, said
    assert site.values() == ["SEARCH=false\nBULK=false\n"] * 2
    # Nothing else of a rollback was begun or looked at: neither a lock, nor a record, nor a word about releases.
    for host in site.hosts:
        assert [path.name for path in (site.directory / host).rglob("*.json*")] == ["flags.jsonl"]
    assert "rollback of" not in said
    # The same by another name, and of two levels none.
    site.file("web1").write_text("SEARCH=staff\nBULK=true\n")
    code, said = site.run("-e", "rollback_level=flags", "--tags", "code", playbook="rollback")
    assert code == 2
    assert "name several levels" in said
    assert site.values()[0] == "SEARCH=staff\nBULK=true\n"
    code, said = site.run("-e", "rollback_level=flags", playbook="rollback")
    assert code == 0, said
    assert site.values() == ["SEARCH=false\nBULK=false\n"] * 2
    assert "rollback of" not in said
    code, said = site.run("--tags", "of")
    assert code == 2
    assert "nothing was switched" in said


@pytest.mark.long
def test_a_host_that_fails_takes_the_others_back_but_not_from_off(site):
    site.file("web1").write_text("SEARCH=staff\nBULK=false\n")
    site.file("web2").symlink_to("elsewhere")
    code, said = site.run("-e", "flags_stage=complete")
    assert code == 2
    assert "FAILED on web2" in said
    assert site.values()[0] == "SEARCH=staff\nBULK=false\n"
    assert site.history("web1")[0]["action"] == "stage complete"
    assert site.history("web1")[-1]["verdict"] == "switched"
    code, said = site.run("--tags", "flags", playbook="rollback")
    assert code == 2
    assert "all off: FAILED on web2" in said
    assert site.values()[0] == "SEARCH=false\nBULK=false\n"
    # With another tag it goes on.
    site.file("web1").write_text("SEARCH=staff\nBULK=false\n")
    code, said = site.run("--tags", "flags,verify", playbook="rollback")
    assert code == 2
    assert said.index("all off: FAILED on web2") < said.index("not as its last good deployment left it")
    assert site.values()[0] == "SEARCH=false\nBULK=false\n"
    # Nothing of a rollback of code was begun.
    assert [path.name for path in (site.directory / "web1" / "deployments").iterdir()] == ["flags.jsonl"]


@pytest.mark.long
def test_a_host_that_is_gone_is_named(site):
    site.file("web1").write_text("SEARCH=staff\nBULK=false\n")
    site.hosts["web2"].update(ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=1)
    code, said = site.run("--tags", "off")
    assert code == 2
    assert "FAILED on web2: web2 does not answer" in said
    assert site.values()[0] == "SEARCH=false\nBULK=false\n"
    del site.hosts["web2"]["ansible_port"]
    code, said = site.run("-e", "flags_stage=internal", "--limit", "web1")
    assert code == 0, said
    assert "left out by --limit, with flags of their own: web2" in said


def test_nothing_to_switch(site):
    site.variables["app_flags"] = {}
    code, said = site.run("--tags", "off")
    assert code == 2
    assert "app_flags is empty" in said


# The table and the contract


def shown(**answer: Any) -> str:
    flags = parse_flags({**FLAGS, "store": {**FLAGS["store"], "path": "/x"}})
    answers = {
        "web1": {"flags": {"SEARCH": "false", "BULK": "false"}, "shared": True, "place": "table x", **answer}
    }
    return "\n".join(report(flags, "shop (production)", answers, {}, "all off", 2.34, False))


def test_what_all_hosts_share_is_one_column():
    text = shown(changed=True)
    assert re.search(r"flag +all hosts\n", text)
    assert "stage   dormant (all off)" in text
    assert "all off: done once for all hosts in 2.3 s" in text
    assert "as it was already" in shown(changed=False)


def test_a_switch_that_was_interrupted_and_a_deployment_are_named():
    switch = {
        "begun": "2026-11-21T12:00:00Z",
        "operator": "ann",
        "action": "set",
        "reason": "",
        "verdict": "interrupted",
    }
    running = {
        "kind": "deployment",
        "deployment": "20261121T013700-ab12",
        "owner": "bob",
        "since": "2026-11-21T12:00:00Z",
    }
    text = shown(switches=[switch], running=running)
    assert "by ann: set: it was interrupted" in text
    assert "deployment 20261121T013700-ab12 of bob has been running" in text


def test_the_contract_knows_the_services():
    store = {"kind": "environment_file", "path": "/x", "reload": "wep"}
    assert check_flags({**FLAGS, "store": store}, ["web", "beat"]) == [
        "app_flags.store.reload is 'wep', which is no service of app_services: did you mean 'web'?"
    ]
    assert check_flags({**FLAGS, "store": {**store, "reload": "none"}}, ["web"]) == []
    assert check_flags({}, []) == []
    assert len(check_flags({"store": store}, [])) == 1
