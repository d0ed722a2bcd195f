#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: app_service
short_description: Start a release, prove it, give it the traffic, and stop what served before
version_added: 0.1.0
author:
  - The runbook.deploy authors (@runbook-deploy)
description:
  - Decides what users reach. A new instance is started beside the one that serves, must listen with its own process, pass its health
    checks several times in a row and stay up; only then it gets the traffic, and what served before is drained and stopped.
  - When any of that fails everything is taken back, and what served before serves as before.
  - Workers are stopped after their beat and started before it, so that exactly one beat ever runs. A Celery worker is first told to take
    no more tasks, and has time to finish those that it has; only then it is sent TERM. A new one must answer ping and run its release.
  - Killed at any moment it leaves an instance serving; the next run brings exactly one and stops whatever was left.
  - An instance is described by its own files in C(shared/env), so that an earlier one is started again with its own settings.
extends_documentation_fragment:
  - runbook.deploy.service
attributes:
  check_mode:
    support: full
    description: Says what would change, and starts and stops nothing.
  diff_mode:
    support: full
    description: Shows which instance is live before and after.
  idempotent:
    support: full
    description: An instance that is live and whose services are all up is left alone.
options:
  root:
    description: Directory on the host that holds everything (C(app_root)).
    type: path
    required: true
  name:
    description: Name of the application. Units are called C(<name>-<stage>-<service>@<deployment>.service).
    type: str
    default: ''
  stage:
    description: Stage, such as production.
    type: str
    default: ''
  user:
    description: The user the services run as; the present one when it is not given.
    type: str
  state:
    description:
      - V(deployed) makes the instance O(deployment) the live one.
      - V(started) starts what is down of the live instance, and stops what is left of others.
      - V(reloaded) sends HUP to the services of the live instance with O(services[].strategy=reload), and proves that new workers answer
        under the same main process. What a release or its variables are made of is not read anew; with O(version) or O(inputs) it is refused
        where these are others than what serves.
      - V(stopped) stops all instances and the adopted installation; what is current stays current.
      - V(status) says what runs.
    type: str
    choices: [deployed, started, reloaded, stopped, status]
    default: status
  beats:
    description:
      - V(apart) leaves it to M(runbook.deploy.app_beat) to start the beats, when the workers of all hosts are up.
    type: str
    choices: [together, apart]
    default: together
  deployment:
    description:
      - Id of the instance, for O(state=deployed).
      - V(adopted) is the installation in O(adopt).
    type: str
    default: ''
  release:
    description: Name of the release that the instance runs. Without O(services) it is read from the instance's own files.
    type: str
    default: ''
  environment:
    description: The application's variables (C(app_environment)) as JSON.
    type: str
  commit:
    description: The commit of the release; by default what the release's C(.release.json) says.
    type: str
    default: ''
  version:
    description:
      - The version as people call it; by default what the release's C(.release.json) says.
      - For O(state=reloaded) the version, or the beginning of the commit, that has to serve; empty accepts any.
    type: str
    default: ''
  inputs:
    description: For O(state=reloaded) the digest of the settings that the live release has to be made of; empty accepts any.
    type: str
    default: ''
  directory:
    description: Directory inside the release in which services start; by default what the release's C(.release.json) says.
    type: str
    default: ''
  environment_path:
    description: Directory of the Python environment; by default the one that the release's C(.release.json) names.
    type: str
    default: ''
  settings_module:
    description: DJANGO_SETTINGS_MODULE, empty for other frameworks.
    type: str
    default: ''
  health_checks:
    description: What each web service must answer, see M(runbook.deploy.http_gate). Without any it must only listen and stay up.
    type: list
    elements: dict
    default: []
  host_header:
    description: The Host header of the checks.
    type: str
    default: ''
  headers:
    description: Further headers of the checks. By default V(X-Forwarded-Proto) says C(https), as a web server in front does.
    type: dict
  successes:
    description: How often in a row the checks must pass.
    type: int
    default: 2
  start_timeout:
    description: Seconds an instance may take until it is healthy.
    type: float
    default: 60
  gate_timeout:
    description: Seconds that an instance which answers may go on answering wrong, from its first answer; within O(start_timeout).
    type: float
    default: 20
  stay_up:
    description: Seconds that a healthy instance must stay up, with one main process and no worker replaced, before it gets traffic.
    type: float
    default: 5
  drain_timeout:
    description:
      - Seconds that connections to what served before may last, and that old workers may take to finish their tasks; at their end they are
        stopped all the same, with TERM.
    type: float
    default: 30
  stop_wait:
    description:
      - Whether the module waits for the end of web services under systemd of earlier instances, once nobody is connected to them any more.
      - V(false) only has them begin to end, and is for callers that end with M(runbook.deploy.deployment_record), which waits for them, and
        that need nothing before it for which they must be gone. All else that is stopped is waited for all the same.
    type: bool
    default: true
  boot:
    description: With O(state=stopped), whether what is live is started again at the next boot; V(false) makes nothing live.
    type: bool
    default: true
  record:
    description: The journal to write to, as M(runbook.deploy.deployment_record) returns it.
    type: dict
"""

EXAMPLES = r"""
- name: Make the new release live
  runbook.deploy.app_service:
    state: deployed
    root: /srv/shop
    name: shop
    stage: production
    user: shop
    deployment: 20261121T013700-ab12
    release: 1f0c3a5b7d9e-0a1b2c3d
    services:
      - name: web
        command: "gunicorn shop.wsgi --bind unix:{socket}"
      - name: worker
        kind: worker
        command: "celery -A shop worker"
    environment: "{{ app_environment | to_json }}"
    settings_module: shop.settings
    health_checks:
      - url: /healthz/
        status: [200]
    host_header: shop.example.org

- name: Start an earlier instance again, with the settings it had
  runbook.deploy.app_service:
    state: deployed
    root: /srv/shop
    name: shop
    stage: production
    user: shop
    deployment: 20261114T020000-12cd

- name: Stop everything
  runbook.deploy.app_service:
    state: stopped
    root: /srv/shop
    name: shop
    stage: production
    user: shop
"""

RETURN = r"""
live:
  description: The live instance, with its C(deployment) and C(release); values are null where nothing is live.
  returned: success
  type: dict
  sample: {deployment: 20261121T013700-ab12, release: 1f0c3a5b7d9e-0a1b2c3d}
previous:
  description: What was live before, likewise.
  returned: success
  type: dict
services:
  description:
    - The services that run or should run. Each has C(name), C(kind), C(manager), C(strategy), C(deployment), C(running), C(pid),
      C(detail) in words, C(seconds) from its start until it was healthy, and under C(compose) C(image), the digest of its image in short.
  returned: success
  type: list
  elements: dict
gate:
  description: All checks that the new instance passed, in the form of a gate. Empty where nothing had to be proved.
  returned: success
  type: dict
proof_seconds:
  description: Seconds spent on watching that the new instance stays up.
  returned: success
  type: float
traffic_taken:
  description: When the new release could first be reached (UTC), null where it never could.
  returned: when something was to be changed
  type: str
connections_cut:
  description: Connections to what served before that were still open when the time for draining was over.
  returned: success
  type: int
stopped:
  description: What was stopped, or is stopping with O(stop_wait=false), a text each.
  returned: success
  type: list
  elements: str
drained:
  description:
    - The Celery workers that were ended. Each has C(service), C(deployment), C(nodes), C(queues), C(drained) (whether it had no task any
      more), C(seconds), C(running) with C(id), C(name), C(seconds) and C(acknowledged) of each task that it still had when it was sent TERM,
      C(scheduled) (how many tasks for later it gave back), C(killed), and C(message) in words.
  returned: success
  type: list
  elements: dict
live_changed:
  description: On failure, whether something else serves now than before, or nothing.
  returned: failure
  type: bool
failed_checks:
  description: Names of the health checks that did not pass.
  returned: when health checks failed
  type: list
  elements: str
evidence:
  description: The last lines of the log of the service that failed, without secrets.
  returned: failure
  type: str
"""

from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._chosen import choose
from ansible_collections.runbook.deploy.plugins.module_utils._command import identity, parse_environment
from ansible_collections.runbook.deploy.plugins.module_utils._fleet import (
    adopted_member,
    discover,
    live_deployment,
)
from ansible_collections.runbook.deploy.plugins.module_utils._instance import read_instance
from ansible_collections.runbook.deploy.plugins.module_utils._layout import ADOPTED, Layout, current_release
from ansible_collections.runbook.deploy.plugins.module_utils._live import Switch, stop_everything
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._record import open_journal
from ansible_collections.runbook.deploy.plugins.module_utils._reload import reload_live
from ansible_collections.runbook.deploy.plugins.module_utils._service import Member, Settings
from ansible_collections.runbook.deploy.plugins.module_utils._service_options import ADOPT, SERVICE
from ansible_collections.runbook.deploy.plugins.module_utils._static import bring_manifest

# What of the answer the record keeps.
KEPT = ("live", "previous", "services", "proof_seconds", "stopped", "drained")


def settings_of(layout: Layout, options: Mapping[str, Any]) -> Settings:
    """Return what the options say about how instances are treated."""
    return Settings(
        layout=layout,
        name=options["name"],
        stage=options["stage"],
        user=options["user"],
        successes=options["successes"],
        start_timeout=options["start_timeout"],
        gate_timeout=options["gate_timeout"],
        stay_up=options["stay_up"],
        drain_timeout=options["drain_timeout"],
        adopt={key: value for key, value in (options["adopt"] or {}).items() if value},
    )


def bring_live(
    settings: Settings, options: Mapping[str, Any], environment: Mapping[str, str], check_mode: bool
) -> dict[str, Any]:
    """Bring an instance live and return the module's answer.

    :raises Problem: when it fails; everything is taken back then, as far as possible.
    """
    layout = settings.layout
    if not layout.run.is_dir():
        raise Problem(
            f"The directory {layout.run} does not exist on this host: run playbooks/setup.yml first."
        )
    # Whether we may be that user is known before anything is written.
    identity(settings.user)
    instance, fresh = choose(layout, options, environment)
    checks: list[Any] = []
    if instance is not None:
        checks = instance.document.get("health_checks") or []
        settings.host = instance.document.get("host_header") or None
        settings.headers = dict(instance.document.get("headers") or {})
    secrets = instance.secrets if instance else []
    wrong = ""
    if not check_mode and not fresh:
        wrong = bring_manifest(layout, instance.release if instance else None, settings.user)
    with open_journal(layout.root, options["record"] or None, check_mode, secrets) as journal:
        apart = options["beats"] == "apart"
        switch = Switch(settings, journal, instance, checks, fresh, apart, options["stop_wait"])
        before = f"{switch.live_release or 'nothing'} ({switch.live or 'no deployment'})\n"
        if switch.is_live():
            return {**switch.answer(), "changed": False, "warnings": [wrong] if wrong else []}
        answer: dict[str, Any]
        if check_mode:
            answer = switch.answer()
        else:
            with journal.phase("restart") as entry:
                switch.run()
                answer = switch.answer()
                entry.update({key: answer[key] for key in KEPT})
        live = answer["live"]
        after = f"{live['release'] or 'the adopted installation'} ({live['deployment']})\n"
        answer["warnings"] = ([wrong] if wrong else []) + switch.warnings
        answer["warnings"] += [entry["message"] for entry in answer["drained"] if entry["message"]]
        return {**answer, "changed": True, "diff": {"before": before, "after": after}}


def status(settings: Settings) -> dict[str, Any]:
    """Return what runs and what should."""
    layout = settings.layout
    live = live_deployment(layout)
    adopted = adopted_member(settings)
    members: list[Member] = discover(settings, None)
    instance = read_instance(layout, live) if live else None
    if instance is not None and live is not None:
        running = {(member.service, member.deployment) for member in members}
        members += [
            Member(settings, live, spec, instance)
            for spec in instance.services
            if (spec["name"], live) not in running
        ]
    if adopted is not None:
        members.append(adopted)
    found = {
        "deployment": live or (ADOPTED if adopted else None),
        "release": current_release(layout) if live else None,
    }
    return {
        "live": found,
        "previous": found,
        "services": [member.report() for member in members],
        "gate": {},
        "proof_seconds": 0.0,
        "connections_cut": 0,
        "stopped": [],
        "drained": [],
        "changed": False,
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "name": {"type": "str", "default": ""},
            "stage": {"type": "str", "default": ""},
            "user": {"type": "str"},
            "state": {
                "type": "str",
                "choices": ["deployed", "started", "reloaded", "stopped", "status"],
                "default": "status",
            },
            "beats": {"type": "str", "choices": ["together", "apart"], "default": "together"},
            "deployment": {"type": "str", "default": ""},
            "release": {"type": "str", "default": ""},
            "services": {"type": "list", "elements": "dict", "options": SERVICE},
            "environment": {"type": "str", "no_log": True},
            "commit": {"type": "str", "default": ""},
            "version": {"type": "str", "default": ""},
            "inputs": {"type": "str", "default": ""},
            "directory": {"type": "str", "default": ""},
            "environment_path": {"type": "str", "default": ""},
            "settings_module": {"type": "str", "default": ""},
            "health_checks": {"type": "list", "elements": "dict", "default": []},
            "host_header": {"type": "str", "default": ""},
            "headers": {"type": "dict"},
            "successes": {"type": "int", "default": 2},
            "start_timeout": {"type": "float", "default": 60},
            "gate_timeout": {"type": "float", "default": 20},
            "stay_up": {"type": "float", "default": 5},
            "drain_timeout": {"type": "float", "default": 30},
            "stop_wait": {"type": "bool", "default": True},
            "boot": {"type": "bool", "default": True},
            "adopt": {"type": "dict", "options": ADOPT},
            "record": {"type": "dict"},
        },
        supports_check_mode=True,
        required_if=[("state", "deployed", ["deployment"])],
    )
    options = module.params
    try:
        settings = settings_of(Layout(options["root"]), options)
        if options["state"] == "status":
            answer = status(settings)
        elif options["state"] == "stopped":
            answer = status(settings)
            running = [entry for entry in answer["services"] if entry["running"]]
            if module.check_mode:
                stopped = [f"{entry['name']} of deployment {entry['deployment']}" for entry in running]
            else:
                stopped, answer["drained"] = stop_everything(settings, options["boot"])
                answer["services"] = status(settings)["services"]
                answer["warnings"] = [entry["message"] for entry in answer["drained"] if entry["message"]]
            forgotten = not options["boot"] and answer["live"]["release"] is not None
            answer.update(stopped=stopped, changed=bool(running) or forgotten)
        elif options["state"] == "reloaded":
            answer = {
                **status(settings),
                **reload_live(settings, module.check_mode, options["version"], options["inputs"]),
            }
        else:
            environment = parse_environment(options["environment"], "app_environment")
            answer = bring_live(settings, options, environment, module.check_mode)
    except Problem as problem:
        module.fail_json(**{"live_changed": False, **problem.answer()})
    except OSError as error:
        module.fail_json(
            msg=f"app_service could not read or write {error.filename or 'a file'} in {options['root']}: {error.strerror}; "
            "correct that and run again.",
            live_changed=False,
            evidence="",
        )
    else:
        for warning in answer.pop("warnings", []):
            module.warn(warning)
        module.exit_json(**answer)


if __name__ == "__main__":
    main()
