# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the end of what served before is not waited for: only where the settling, which waits for it, comes next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.runbook.deploy.plugins.filter.end_files import end_files
from ansible_collections.runbook.deploy.plugins.filter.step_files import step_files
from ansible_collections.runbook.deploy.plugins.module_utils._steps import steps_of
from jinja2 import Environment, StrictUndefined

ROOT = Path(__file__).parents[4]
OLD = "0123456789ab-00000000"


def evaluated(text: str, **variables: Any) -> bool:
    """The value of one expression in braces; the filters of Ansible among those that are used do what they do there."""
    environment = Environment(undefined=StrictUndefined)
    environment.filters["bool"] = bool
    inner = text.strip()
    assert inner.startswith("{{") and inner.endswith("}}")
    return environment.compile_expression(inner[2:-2].strip(), undefined_to_none=False)(**variables)


def loaded(*path: str) -> Any:
    return yaml.safe_load(ROOT.joinpath(*path).read_text(encoding="utf-8"))


def deployment_waits(**changes: Any) -> bool:
    plays = loaded("playbooks", "plays", "switch.yml")
    (switch,) = [play for play in plays if play["name"] == "Switch, batch after batch"]
    (restart,) = [task for task in switch["tasks"] if task["name"] == "Restart"]
    given = {
        "switch_resumed": False,
        "groups": {"deploy_hosts": ["web1"]},
        "app_load_balancer": {},
        "app_maintenance": {},
        "app_gates": [],
        "app_watch": {},
    }
    return evaluated(restart["vars"]["restart_stop_wait"], **given | changes)


def test_a_deployment_of_one_host_with_nothing_between_does_not_wait() -> None:
    assert deployment_waits() is False
    assert deployment_waits(app_watch={"duration": 0}) is False


@pytest.mark.parametrize(
    "changes",
    [
        {"switch_resumed": True},
        {"groups": {"deploy_hosts": ["web1", "web2"]}},
        {"app_load_balancer": {"kind": "nginx"}},
        {"app_maintenance": {"kind": "file"}},
        {"app_gates": [{"name": "memory"}]},
        {"app_watch": {"duration": 60}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_it_waits_where_something_between_may_find_it(changes) -> None:
    assert deployment_waits(**changes) is True


def rollback_waits(level: str = "code", hosts: tuple[str, ...] = ("web1",), **given: Any) -> bool:
    plan = {
        "level": level,
        "unknown": given.pop("unknown", []),
        "code_first": given.pop("code_first", False),
        "target": {"release": OLD, "deployment": "d"},
    }
    state = {"releases": [{"name": OLD}]}
    steps = steps_of(plan, dict.fromkeys(hosts, state), hosts[0], {}, beats_apart=given.pop("beats", False))[
        1
    ]
    ends = {name: given.pop(name) for name in ("proof", "end_page", "end_balanced") if name in given}
    files = step_files(steps, hosts, **given)
    closing = end_files(
        plan["unknown"],
        hosts,
        hosts[0],
        page=ends.get("end_page", False),
        proof=ends.get("proof", False),
        balanced=ends.get("end_balanced", False),
    )
    instance = loaded("roles", "rollback", "tasks", "instance.yml")[0]["runbook.deploy.app_service"]
    closes = evaluated(
        loaded("roles", "rollback", "vars", "main.yml")["__rollback_closes_next"],
        __rollback_files=files,
        __rollback_ends=closing,
    )
    return evaluated(instance["stop_wait"], __rollback_closes_next=closes)


def test_a_rollback_of_the_code_of_one_host_does_not_wait() -> None:
    assert rollback_waits() is False


@pytest.mark.parametrize(
    "given",
    [
        {"level": "migrations"},
        {"level": "migrations", "code_first": True},
        {"level": "restore"},
        {"page": True},
        {"end_page": True},
        {"proof": True},
        {"balanced": True},
        {"end_balanced": True},
        {"stopped": True},
        {"beats": True},
        {"hosts": ("web1", "web2")},
        {"unknown": ["web1"]},
    ],
    ids=str,
)
def test_it_waits_where_anything_comes_before_the_record_is_closed(given) -> None:
    assert rollback_waits(**given) is True


def test_a_role_alone_waits() -> None:
    assert loaded("roles", "restart", "defaults", "main.yml")["restart_stop_wait"] is True


def test_whoever_settles_knows_whose_units_to_wait_for() -> None:
    finish = loaded("roles", "rollback", "tasks", "finish_host.yml")[0]["runbook.deploy.deployment_record"]
    assert (finish["name"], finish["stage"]) == ("{{ rollback_application }}", "{{ rollback_stage }}")
