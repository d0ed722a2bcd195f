# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many hosts restart at a time, and what takes them out meanwhile: what is accepted and what is said of the rest."""

from __future__ import annotations

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._balancer import OPTIONS
from ansible_collections.runbook.deploy.plugins.module_utils._contract import check
from ansible_collections.runbook.deploy.plugins.module_utils._contract_variables import VARIABLES
from ansible_collections.runbook.deploy.plugins.module_utils._rolling import (
    KINDS,
    ON_DEADLINE,
    check_balancer,
    check_balancer_hosts,
    check_batch,
)

HAPROXY = {"kind": "haproxy", "host": "lb1", "backend": "shop", "socket": "/run/haproxy/admin.sock"}
NGINX = {"kind": "nginx", "host": "lb1", "backend": "shop", "upstream_file": "/etc/nginx/conf.d/shop.conf"}
TASKS = {"kind": "tasks", "drain": "out.yml", "ready": "in.yml"}


@pytest.mark.parametrize("value", [1, 3, "25%", "100%", "2", [1, "25%"], [1, 5, "50%"]])
def test_batches(value):
    assert check_batch(value) == []


@pytest.mark.parametrize(
    "value", [0, -1, True, "0%", "101%", "a", "", "0", [], [1, 0], [[1]], [1.5], ["25 %"]]
)
def test_what_is_no_batch(value):
    errors = check_batch(value)
    assert len(errors) == 1
    assert "app_batch" in errors[0]


def test_the_default_is_one():
    assert check_batch(VARIABLES["app_batch"].default) == []


@pytest.mark.parametrize(
    "value",
    [
        {},
        HAPROXY,
        NGINX,
        TASKS,
        {**HAPROXY, "drain_timeout": 1.5, "on_deadline": "go_on", "notes": "/x", "allow_last": True},
        {**NGINX, "nginx": ["nginx", "-c", "/x"], "health_path": "/healthz/", "server": "web1"},
    ],
)
def test_balancers(value):
    assert check_balancer(value) == []


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"host": "lb1"}, "kind is None, expected one of haproxy, nginx, tasks"),
        ({**HAPROXY, "kind": "f5"}, "kind is 'f5'"),
        ({**HAPROXY, "sokcet": "/x"}, "did you mean socket?"),
        ({**HAPROXY, "upstream_file": "/x"}, "upstream_file is not known for kind haproxy"),
        ({**HAPROXY, "drain_timeout": "60"}, "drain_timeout must be a number of at least 0, found '60'"),
        ({**HAPROXY, "drain_timeout": -1}, "drain_timeout must be"),
        ({**HAPROXY, "drain_timeout": True}, "drain_timeout must be"),
        ({**HAPROXY, "allow_last": "yes"}, "allow_last must be true or false"),
        ({**HAPROXY, "on_deadline": "cut"}, "on_deadline is 'cut', expected one of fail, go_on"),
        ({**NGINX, "nginx": "nginx"}, "nginx must be a list of words"),
        ({**NGINX, "upstream_file": ""}, "no upstream_file"),
        ({"kind": "tasks", "drain": "x"}, "no ready"),
    ],
)
def test_what_is_wrong_with_a_balancer(value, says):
    errors = check_balancer(value)
    assert len(errors) == 1
    assert says in errors[0]


def test_each_key_is_an_option_of_the_module():
    for kind in ("haproxy", "nginx"):
        assert set(KINDS[kind]) - {"host"} <= set(OPTIONS)
        assert set(OPTIONS) - {"state", "kind", "force"} <= set(KINDS["haproxy"]) | set(KINDS["nginx"])
    assert tuple(OPTIONS["on_deadline"]["choices"]) == ON_DEADLINE


def test_its_host_is_one_of_the_inventory():
    groups = {"all": ["web1", "lb1"], "balancers": ["lb1"], "empty": []}
    for name in ("lb1", "balancers", "localhost"):
        assert check_balancer_hosts({**HAPROXY, "host": name}, groups["all"], groups) == []
    assert (
        "neither a host nor a group"
        in check_balancer_hosts({**HAPROXY, "host": "lb9"}, groups["all"], groups)[0]
    )
    assert "has no host" in check_balancer_hosts({**HAPROXY, "host": "empty"}, groups["all"], groups)[0]
    assert check_balancer_hosts(TASKS, groups["all"], groups) == []


def test_the_contract_asks_for_both():
    values = {
        "app_name": "shop",
        "app_stage": "production",
        "app_repository": "https://git.example.org/shop.git",
        "app_version": "v1",
        "app_settings_module": "shop.settings",
        "app_database": {"engine": "sqlite", "path": "/srv/shop/shared/data/db.sqlite3"},
        "app_services": [{"name": "web", "command": "gunicorn shop.wsgi --bind unix:{socket}"}],
    }
    assert check({**values, "app_batch": "25%", "app_load_balancer": HAPROXY}, "deployment") == []
    assert check({**values, "app_batch": 2}, "deployment") == []
    errors = check({**values, "app_batch": "many", "app_load_balancer": {"kind": "f5"}}, "deployment")
    assert len(errors) == 2
    assert "app_batch must be" in check({**values, "app_batch": {}}, "deployment")[0]
