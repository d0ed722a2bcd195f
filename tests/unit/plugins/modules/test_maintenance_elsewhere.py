# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The maintenance role by ansible-playbook, with a real nginx that is another host's, and real Celery workers and a beat."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._layout import remove_tree
from ansible_collections.runbook.deploy.plugins.module_utils._maintenance_spec import check, check_hosts
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.balanced_site import program
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.maintained_site import MaintainedSite
from celery_host import ONE, R1, Shop
from test_app_service_workers import first, redis

__all__ = ["redis"]
ROOT = Path(__file__).resolve().parents[4]
TIME = 300


class Front:
    """An application of a worker and a beat, and a web server on the host ``front``, which is none of the application's."""

    def __init__(self, site: MaintainedSite, shop: Shop, directory: Path) -> None:
        self.site, self.shop, self.directory = site, shop, directory
        self.page_directory = directory / "page"
        self.expected_workers = {("worker", ONE), ("beat", ONE)}

    def described(self, **changes: Any) -> dict[str, Any]:
        """Return ``app_maintenance``."""
        options = self.site.options()
        kept = ("kind", "http_file", "server_file", "pid_file", "nginx", "allow", "probe", "verify_timeout")
        return {
            **{name: options[name] for name in kept},
            "hosts": "fronts",
            "directory": str(self.page_directory),
            **changes,
        }

    def start(
        self, entry: str, described: dict[str, Any] | None = None, **variables: Any
    ) -> subprocess.Popen:
        """Start a playbook that enters the role at *entry*, in a session of its own."""
        common = {
            "app_maintenance": described or self.described(),
            "app_maintenance_monitoring": [],
            "app_root": str(self.shop.root),
            "app_name": "shop",
            "app_stage": "test",
            "app_user": "",
            "app_environment": {},
            "app_settings_module": "",
            "app_url": "",
            "app_web_server": {},
            "app_services": self.shop.services,
            "app_start_timeout": 90,
            "app_stay_up": 1,
            "app_gate_timeout": 20,
            "app_drain_timeout": 90,
            "app_smoke_timeout": 300,
            "app_gates_timeout": 60,
            "maintenance_deployment": ONE,
            "maintenance_record": {},
            **variables,
        }
        # Twice: as a run does that tries again at its end, where nothing says any more what another one left.
        steps = [("off", {}), ("off", {"maintenance_resume": False})] if entry == "twice" else [(entry, {})]
        play = [
            {
                "hosts": "app",
                "gather_facts": False,
                # As in the playbooks: the module's action makes a failure of a host that does not answer.
                "ignore_unreachable": True,
                "vars": common,
                "tasks": [
                    *(
                        {
                            "ansible.builtin.include_role": {
                                "name": "runbook.deploy.maintenance",
                                "tasks_from": f"{one}.yml",
                                "rolespec_validate": False,
                            },
                            "vars": settings,
                        }
                        for one, settings in steps
                    ),
                    {
                        "ansible.builtin.copy": {
                            "dest": str(self.directory / "facts"),
                            "content": "{{ {'left_on': maintenance_left_on | default({}), 'downtime': maintenance_downtime | default({}),"
                            " 'failures': maintenance_failures | default({})} | to_json }}",
                        },
                        "delegate_to": "localhost",
                    },
                ],
            }
        ]
        (self.directory / "play.json").write_text(json.dumps(play), encoding="utf-8")
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        inventory = {
            "app": {"hosts": {"here": local}},
            "fronts": {"hosts": {"front": local}},
            "gone": {
                "hosts": {
                    "nowhere": {
                        **local,
                        "ansible_connection": "ssh",
                        "ansible_host": "127.0.0.1",
                        "ansible_port": 1,
                    }
                }
            },
            "both": {"children": {"gone": {}, "fronts": {}}},
        }
        (self.directory / "hosts.json").write_text(
            json.dumps({"all": {"children": inventory}}), encoding="utf-8"
        )
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".ansible_dev"),
            "ANSIBLE_LOCAL_TEMP": str(self.directory / "local"),
            "ANSIBLE_REMOTE_TEMP": str(self.directory / "remote"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
            "ANSIBLE_NOCOLOR": "1",
        }
        argv = [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.json", "play.json"]
        output = (self.directory / "output").open("wb")
        with output:
            return subprocess.Popen(
                argv,
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, entry: str, described: dict[str, Any] | None = None, **variables: Any) -> dict[str, Any]:
        """Run it to its end; return what the host knows afterwards."""
        facts = self.directory / "facts"
        facts.unlink(missing_ok=True)
        code = self.start(entry, described, **variables).wait(TIME)
        assert code == 0, self.said()
        return json.loads(facts.read_text()) if facts.exists() else {}

    def said(self) -> str:
        return (self.directory / "output").read_text(errors="replace")[-6000:]

    def page(self) -> bool:
        """Whether a visitor of the web server gets the page."""
        answer = self.site.get()
        assert answer.status in (200, 503), answer
        return answer.status == 503 and answer.headers["x-runbook-maintenance"] == "shop-test"

    def standing_still(self) -> bool:
        """Whether nothing of the application takes or sends tasks."""
        return not self.shop.running()

    def works(self, key: str) -> None:
        """See that a task is taken, and that one beat sends."""
        assert self.shop.running() == self.expected_workers, self.shop.running()
        self.shop.send(("shop.note", key, 0))
        self.shop.until(lambda: (key, R1) in self.shop.noted(), f"the task {key}")
        before = self.shop.ticks()
        self.shop.until(lambda: self.shop.ticks() > before, "a task of the beat")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if not program("nginx"):
        pytest.skip("nginx is not installed")
    with MaintainedSite(tmp_path_factory.mktemp("front")) as made:
        yield made


@pytest.fixture
def front(site, redis, capsys):
    short = Path(tempfile.mkdtemp(prefix="rb-"))
    # nginx's workers are another user's where root tests.
    short.chmod(0o755)
    redis.used += 1
    shop = Shop(short / "a", f"redis://:p%40ss-word-5521@{redis.address}/{redis.used}", capsys)
    shop.services = [shop.worker(), shop.beat()]
    first(shop)
    yield Front(site, shop, short)
    shop.close()
    for path in (site.http_file, site.server_file):
        path.unlink(missing_ok=True)
    remove_tree(short)


def test_the_page_is_on_where_visitors_come_and_no_task_runs_meanwhile(front):
    assert not front.page()
    front.works("before")
    front.run("on")
    assert front.page() and front.standing_still()
    assert (front.page_directory / "state.json").exists() and not (front.shop.root / "maintenance").exists()
    ticks = front.shop.ticks()
    front.shop.send(("shop.note", "meanwhile", 0))
    # Nothing takes it until the end.
    assert front.shop.noted() == [("before", R1)] and front.shop.ticks() == ticks
    known = front.run("off", maintenance_resume=True)
    assert (
        not front.page()
        and known["downtime"]["seconds"] > 0
        and not known["left_on"]
        and not known["failures"]
    )
    front.works("after")
    assert sorted(key for key, _release in front.shop.noted()) == ["after", "before", "meanwhile"]


@pytest.mark.long
def test_a_run_that_is_killed_while_it_stops_them_is_made_good_by_another(front):
    go = front.shop.root / "go"
    front.shop.send(("shop.hold", "long", str(go)))
    front.shop.until(lambda: front.shop.noted("begun"), "a task that runs")
    running = front.start("on")
    # It waits for the task: the beat is stopped, the worker takes no more, the page is not on yet.
    front.shop.until(front.shop.layout.paused_file("worker", ONE).exists, "a worker that takes no more")
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not front.page()
    go.touch()
    front.shop.until(front.shop.noted, "the task that ran")
    # Another process, which knows nothing of that run.
    known = front.run("settle", maintenance_keep=False)
    assert not known["left_on"] and not front.page()
    front.works("after")
    assert [key for key, _release in front.shop.noted()] == ["long", "after"]


@pytest.mark.long
def test_the_page_of_a_run_that_was_killed_goes_and_one_that_needs_a_person_stays(front):
    front.run("on")
    # The run that put it on was killed; a way back that needs a person leaves both as they are.
    front.run("settle", maintenance_keep=True, maintenance_reason="a person is needed")
    assert front.page() and front.standing_still()
    note = json.loads((front.page_directory / "state.json").read_text())
    assert note["reason"] == "a person is needed"
    # The person, by playbooks/maintenance.yml.
    front.run("main", maintenance_wanted="off", maintenance_deployment="")
    assert not front.page()
    front.works("after")


@pytest.mark.long
def test_a_web_server_that_does_not_answer_keeps_no_page_elsewhere_and_is_told(front):
    front.run("on")
    described = front.described(hosts="both")
    known = front.run("off", described, maintenance_resume=True)
    assert not front.page() and front.shop.running() == front.expected_workers
    assert known["left_on"]["host"] == "nowhere" and "nowhere does not answer" in known["left_on"]["reason"]
    assert list(known["failures"]) == ["nowhere"] and known["downtime"]["seconds"] > 0


@pytest.mark.long
def test_workers_that_do_not_start_again_are_told_and_tried_again(front):
    front.run("on")
    launcher = front.shop.layout.root / "shared" / "env" / f"{ONE}.worker.sh"
    good = launcher.read_text()
    launcher.write_text("exit 3\n")
    # Twice in one run, as settle does: what the second attempt does not cure stays told.
    known = front.run("twice", maintenance_resume=True)
    assert not front.page() and "After the maintenance" in known["left_on"]["reason"], known
    launcher.write_text(good)
    assert not front.run("settle", maintenance_keep=False)["left_on"]
    front.works("after")


@pytest.mark.long
def test_workers_go_on_where_that_is_wanted(front):
    front.run("on", front.described(workers="keep"))
    assert front.page()
    front.works("meanwhile")
    front.run("off", front.described(workers="keep"))
    assert not front.page()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"probe": ""}, "has no probe"),
        ({"workers": "stop"}, "expected one of pause, keep"),
        ({"hosts": "", "directory": "/var/lib/x"}, "without hosts"),
        ({"directory": "var; lib"}, "expected an absolute path"),
        (
            {"kind": "command", "command_on": ["x"], "command_off": ["y"]},
            "hosts is not known for kind command",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, said):
    value = {"kind": "nginx", "hosts": "fronts", "probe": "http://127.0.0.1/", **changes}
    (wrong,) = check(value)
    assert said in wrong


def test_the_hosts_have_to_be_in_the_inventory():
    groups = {"fronts": ["a"], "empty": []}
    assert not check_hosts({"hosts": "fronts"}, ["a"], groups) and not check_hosts(
        {"hosts": "a"}, ["a"], groups
    )
    assert "which has no host" in check_hosts({"hosts": "empty"}, ["a"], groups)[0]
    assert "neither a host nor a group" in check_hosts({"hosts": "front"}, ["a"], groups)[0]
