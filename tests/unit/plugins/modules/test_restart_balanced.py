# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role ``restart`` behind a real HAProxy: hosts go out and come back around their restart, whatever becomes of it.

The roles, the balancer, the load and the application's processes are real; what would start a release is a module of the test's own
that kills the process and starts another one.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.tests.unit.plugins.modules.balanced_site import (
    BACKEND,
    HaproxySite,
    Load,
    listens,
    program,
    wait_until,
)

PROJECT = Path(__file__).resolve().parents[4]
pytestmark = pytest.mark.skipif(not program("haproxy"), reason="haproxy is not installed")

APP_SERVICE = r"""#!/usr/bin/python
import json, os, signal, socket, subprocess, sys, time
from ansible.module_utils.basic import AnsibleModule
names = ("state root name stage user services environment release commit version directory deployment environment_path "
         "settings_module health_checks host_header successes start_timeout gate_timeout stay_up drain_timeout stop_wait adopt record beats")
module = AnsibleModule(argument_spec={name: {"type": "raw"} for name in names.split()})
root = module.params["root"]
about = json.load(open(root + "/about.json"))
os.kill(int(open(root + "/pid").read()), signal.SIGKILL)
if about["fault"] == "dead":
    module.fail_json(msg="The release does not start.", evidence="its last line")
server = subprocess.Popen([about["python"], "-c", about["backend"], about["name"], str(about["port"]), "1"],
    start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=True)
open(root + "/pid", "w").write(str(server.pid))
while socket.socket().connect_ex(("127.0.0.1", about["port"])):
    time.sleep(0.05)
if about["fault"] == "taken back":
    module.fail_json(msg="The release is not healthy.", evidence="its last line")
module.exit_json(changed=True)
"""
DEPLOYMENT_STATE = r"""#!/usr/bin/python
import json, socket
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule(argument_spec={name: {"type": "raw"} for name in "root name stage user services adopt".split()})
about = json.load(open(module.params["root"] + "/about.json"))
answers = not socket.socket().connect_ex(("127.0.0.1", about["port"]))
module.exit_json(state={"services": [{"name": "web", "answers": answers}, {"name": "worker", "answers": None}]})
"""
PLAYBOOK = """
- hosts: app
  gather_facts: false
  ignore_unreachable: true
  serial: 1
  tasks:
    - ansible.builtin.import_role:
        name: runbook.deploy.phase
        rolespec_validate: false
      vars:
        phase_name: restart
        phase_role: runbook.deploy.restart
- hosts: app
  gather_facts: false
  ignore_unreachable: true
  tasks:
    - ansible.builtin.include_role:
        name: runbook.deploy.restart
        tasks_from: back.yml
        rolespec_validate: false
      when: restart_left_out | default({}) | length > 0
    - ansible.builtin.copy:
        dest: "{{ restart_root }}/outcome.json"
        mode: "0600"
        content: "{{ {'failure': phase_failure | default({}), 'left_out': restart_left_out | default({})} | to_json }}"
"""


class Fleet:
    """Two inventory hosts, each with a directory and one process, behind one HAProxy."""

    def __init__(self, directory: Path, site: HaproxySite) -> None:
        self.directory, self.site = directory, site
        collection = directory / "collections" / "ansible_collections" / "runbook" / "deploy"
        (collection / "plugins").mkdir(parents=True)
        for name in ("roles", "meta", "galaxy.yml"):
            (collection / name).symlink_to(PROJECT / name)
        for path in (PROJECT / "plugins").iterdir():
            if path.name != "modules":
                (collection / "plugins" / path.name).symlink_to(path)
        modules = collection / "plugins" / "modules"
        modules.mkdir()
        (modules / "load_balancer.py").symlink_to(PROJECT / "plugins/modules/load_balancer.py")
        (modules / "app_service.py").write_text(APP_SERVICE, encoding="utf-8")
        (modules / "deployment_state.py").write_text(DEPLOYMENT_STATE, encoding="utf-8")
        for backend in (site.one, site.two):
            root = directory / backend.name
            root.mkdir()
            (root / "pid").write_text(str(backend.process.pid), encoding="utf-8")
            self.fault(backend.name, "")
        (directory / "play.yml").write_text(PLAYBOOK, encoding="utf-8")
        self.balancer = {key: value for key, value in site.options().items() if key not in ("server",)}
        self.balancer["host"] = "balancers"
        self.lb1: dict = {}
        # Further variables of one of the two.
        self.own: dict[str, dict] = {}

    def fault(self, name: str, fault: str) -> None:
        backend = self.site.one if name == "one" else self.site.two
        about = {
            "name": name,
            "port": backend.port,
            "backend": BACKEND,
            "python": sys.executable,
            "fault": fault,
        }
        (self.directory / name / "about.json").write_text(json.dumps(about), encoding="utf-8")

    def run(self, **variables) -> dict:
        """Restart both; return what the play says of each host."""
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        hosts = {
            name: {"restart_root": str(self.directory / name), **self.own.get(name, {})}
            for name in ("one", "two")
        }
        inventory = {
            "all": {
                "vars": {
                    **local,
                    "app_load_balancer": self.balancer,
                    "restart_application": "shop",
                    "restart_stage": "test",
                    "restart_user": "",
                    "restart_services": [{"name": "web", "kind": "web"}],
                    "restart_environment": {},
                    "restart_directory": "",
                    "restart_version": "v1",
                    "restart_settings_module": "",
                    "restart_health_checks": [],
                    "restart_health_successes": 1,
                    "restart_start_timeout": 1,
                    "restart_gate_timeout": 1,
                    "restart_stay_up": 1,
                    "restart_drain_timeout": 1,
                    "restart_adopt": {},
                    **variables,
                },
                "children": {"app": {"hosts": hosts}, "balancers": {"hosts": {"lb1": self.lb1}}},
            }
        }
        (self.directory / "ansible.cfg").write_text("[ssh_connection]\npipelining = True\n", encoding="utf-8")
        (self.directory / "hosts.json").write_text(json.dumps(inventory), encoding="utf-8")
        environment = {
            **os.environ,
            # Archives of modules are kept there from run to run: those of this test are for nobody else.
            "ANSIBLE_HOME": str(self.directory / "home"),
            "ANSIBLE_COLLECTIONS_PATH": str(self.directory / "collections"),
            "ANSIBLE_CONFIG": str(self.directory / "ansible.cfg"),
            "ANSIBLE_LOCALHOST_WARNING": "0",
        }
        argv = [Path(sys.executable).parent / "ansible-playbook", "-i", "hosts.json", "play.yml"]
        done = subprocess.run(
            argv,
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        self.output = done.stdout + done.stderr
        assert (self.directory / "one" / "outcome.json").exists(), self.output
        return {
            name: json.loads((self.directory / name / "outcome.json").read_text(encoding="utf-8"))
            for name in ("one", "two")
        }

    def end(self) -> None:
        for name in ("one", "two"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((self.directory / name / "pid").read_text(encoding="utf-8")), 9)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    (tmp_path / "balancer").mkdir()
    with HaproxySite(tmp_path / "balancer", slow=1.0) as site:
        running = Fleet(tmp_path, site)
        try:
            yield running
        finally:
            running.end()


def test_both_restart_and_no_request_fails(fleet):
    site = fleet.site
    with Load(site.port) as load:
        outcome = fleet.run()
        load.more()
    assert outcome == {name: {"failure": {}, "left_out": {}} for name in ("one", "two")}, fleet.output
    assert load.failures == []
    assert site.seen() == {"one", "two"}
    # Both were restarted: the processes of the beginning are gone.
    assert site.one.process.wait() == site.two.process.wait() == -9


@pytest.mark.long
def test_a_host_that_answers_after_a_failure_is_put_back(fleet):
    fleet.fault("one", "taken back")
    with Load(fleet.site.port) as load:
        outcome = fleet.run()
        load.more()
    failure = outcome["one"]["failure"]
    assert failure["reason"] == "The release is not healthy.", fleet.output
    assert failure["evidence"] == "its last line"
    assert failure["task"].startswith("Start the new instance")
    assert outcome["one"]["left_out"] == {}
    assert fleet.site.status("one").startswith("UP")
    assert load.failures == []
    # The other one stood aside.
    assert fleet.site.two.process.poll() is None


@pytest.mark.long
def test_a_host_that_does_not_answer_is_left_out(fleet):
    fleet.fault("one", "dead")
    with Load(fleet.site.port) as load:
        outcome = fleet.run()
    failure = outcome["one"]["failure"]
    assert failure["reason"] == "The release does not start.", fleet.output
    assert failure["evidence"] == "its last line"
    assert "stays out of the load balancer: nothing answers for web" in outcome["one"]["left_out"]["reason"]
    assert fleet.site.status("one") == "MAINT"
    assert load.failures == []


def test_a_drain_that_fails_stops_the_restart(fleet):
    fleet.site.command("set server shop/two state maint")
    outcome = fleet.run()
    assert "one is the last server" in outcome["one"]["failure"]["reason"], fleet.output
    assert fleet.site.one.process.poll() is None
    assert fleet.site.status("one").startswith("UP")
    # Who took it out by hand finds it so.
    assert fleet.site.status("two") == "MAINT"


@pytest.mark.long
def test_a_balancer_that_does_not_answer_is_no_lost_host(fleet):
    fleet.lb1 = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    outcome = fleet.run()
    failure = outcome["one"]["failure"]
    assert failure["reason"].startswith("The load balancer lb1 does not answer: "), fleet.output
    assert failure["unreachable"] is False
    assert fleet.site.one.process.poll() is None


@pytest.mark.long
def test_own_tasks_run_around_the_restart(fleet):
    for name in ("drain", "ready"):
        (fleet.directory / f"{name}.yml").write_text(
            f"""- name: Set it
  ansible.builtin.shell:
    cmd: echo {name} >> {fleet.directory}/{{{{ inventory_hostname }}}}/told
  delegate_to: lb1
""",
            encoding="utf-8",
        )
    fleet.balancer = {"kind": "tasks", "drain": "drain.yml", "ready": str(fleet.directory / "ready.yml")}
    outcome = fleet.run()
    assert outcome["one"]["failure"] == {}, fleet.output
    assert (fleet.directory / "one" / "told").read_text(encoding="utf-8") == "drain\nready\n"


@pytest.mark.long
def test_worker_hosts_are_in_no_load_balancer(fleet):
    outcome = fleet.run(
        restart_services=[{"name": "worker", "kind": "worker"}],
        app_load_balancer={"kind": "haproxy", "host": "no", "socket": "/no", "backend": "no"},
    )
    assert outcome["one"]["failure"] == {}, fleet.output
    wait_until(lambda: listens(fleet.site.one.port), "it runs")
