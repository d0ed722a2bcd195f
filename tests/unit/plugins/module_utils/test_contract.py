# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._contract import (
    check,
    complete_service,
    defaults,
    inputs_digest,
    services_of,
)
from ansible_collections.runbook.deploy.plugins.module_utils._contract_variables import VARIABLES

SECRET = "hunter2-hunter2"
DOCS = Path(__file__).resolve().parents[4] / "docs" / "variables.md"


def values(**changes) -> dict:
    result = {
        "app_name": "shop",
        "app_stage": "production",
        "app_repository": "https://git.example.org/shop.git",
        "app_version": "v1",
        "app_settings_module": "shop.settings",
        "app_environment": {"SECRET_KEY": SECRET},
        "app_database": {"engine": "sqlite", "path": "/srv/shop/shared/data/db.sqlite3"},
        "app_services": [{"name": "web", "command": "gunicorn shop.wsgi --bind unix:{socket}"}],
    }
    result.update(changes)
    return {name: value for name, value in result.items() if value != "absent"}


def web(**changes) -> list[dict]:
    return [{"name": "web", "command": "gunicorn --bind unix:{socket}", **changes}]


def test_a_complete_description_is_accepted() -> None:
    assert check(values(), "deployment") == []


@pytest.mark.parametrize(
    ("changes", "variable", "says"),
    [
        ({"app_name": "absent"}, "app_name", "missing"),
        ({"app_name": "My Shop"}, "app_name", "'My Shop'"),
        ({"app_stage": "absent"}, "app_stage", "missing"),
        ({"app_version": "absent"}, "app_version", "-e version="),
        ({"app_version": "--upload-pack=x"}, "app_version", "dash"),
        ({"app_repository": "absent"}, "app_repository", "missing"),
        ({"app_services": "absent"}, "app_services", "missing"),
        ({"app_services": []}, "app_services", "empty"),
        ({"app_services": ["gunicorn"]}, "app_services[0]", "'gunicorn'"),
        ({"app_services": [{"name": "web"}]}, "app_services[0]", "no command"),
        ({"app_services": web() + web()}, "app_services", "twice"),
        ({"app_services": web(command="gunicorn --bind :8000")}, "app_services[0].command", "{socket}"),
        ({"app_services": web(bind="port", command="x {port}")}, "app_services[0]", "names none"),
        (
            {"app_services": web(bind="port", port=8000, strategy="blue_green", command="x {port}")},
            "app_services[0]",
            "cannot share",
        ),
        ({"app_services": web(managr="systemd")}, "app_services[0].managr", "did you mean manager?"),
        ({"app_services": web(manager="upstart")}, "app_services[0].manager", "'upstart'"),
        ({"app_services": web(port="8000")}, "app_services[0].port", "whole number"),
        ({"app_databse": {}}, "app_databse", "did you mean app_database?"),
        ({"app_database": {"engine": "oracle", "path": "/x"}}, "app_database.engine", "'oracle'"),
        ({"app_database": {"engine": "sqlite", "path": "db.sqlite3"}}, "app_database.path", "absolute"),
        (
            {"app_database": {"engine": "sqlite", "path": "/srv/shop/current/db.sqlite3"}},
            "app_database.path",
            "inside a release",
        ),
        (
            {"app_database": {"engine": "sqlite", "path": "/srv/shop/releases/x/db"}},
            "app_database.path",
            "inside a release",
        ),
        ({"app_database": "absent"}, "app_database", "missing"),
        ({"app_settings_module": "absent"}, "app_settings_module", "missing"),
        ({"app_framework": "rails"}, "app_framework", "'rails'"),
        ({"app_root": "/"}, "app_root", "two levels"),
        ({"app_root": "/srv/" + "x" * 90}, "app_root", "107"),
        ({"app_shared": ["../etc"]}, "app_shared", "../etc"),
        ({"app_url": "shop.example.org"}, "app_url", "scheme"),
        ({"app_environment": {"A": ["b"]}}, "app_environment.A", "list"),
        ({"app_environment": SECRET}, "app_environment", "mapping"),
        ({"app_repository_key": SECRET}, "app_repository_known_hosts", "missing"),
        ({"app_archive": {"path": "/x.tar"}, "app_repository": "absent"}, "app_archive", "sha256"),
        ({"app_archive": {"path": "/x.tar", "sha256": "0" * 64}}, "app_repository and app_archive", "both"),
        ({"app_stay_up": "5"}, "app_stay_up", "whole number"),
        ({"app_stay_up": "5"}, "app_stay_up", """-e '{"app_stay_up": 5}'"""),
        ({"app_adopt": {"path": "/opt/old"}}, "app_adopt", "service"),
        (
            {"app_backup_store": {"endpoint": "https://s3.example.org"}},
            "app_backup_store.bucket",
            "name the bucket",
        ),
        ({"app_backup_store": {"buckt": "b"}}, "app_backup_store.buckt", "did you mean 'bucket'?"),
        ({"app_backup_store": {"bucket": "bbb", "secret_key": SECRET}}, "app_backup_store", "give both"),
        (
            {"app_backup_store": {"bucket": "bbb", "endpoint": f"https://a:{SECRET}@x"}},
            "app_backup_store",
            "alone",
        ),
        ({"app_backup_store": {"bucket": "bbb", "keep": "3"}}, "app_backup_store.keep", "whole number"),
        ({"app_backup_store": SECRET}, "app_backup_store", "mapping"),
    ],
)
def test_bad_input_is_one_sentence_that_names_the_variable(changes: dict, variable: str, says: str) -> None:
    errors = check(values(**changes), "deployment")
    assert len(errors) == 1, errors
    assert errors[0].startswith(variable) or variable in errors[0]
    assert says in errors[0]
    assert SECRET not in errors[0]


def test_all_errors_are_reported_at_once() -> None:
    assert len(check({"app_nmae": "shop"}, "deployment")) >= 4


def test_a_rollback_needs_no_version() -> None:
    assert check(values(app_version="absent"), "rollback") == []


def test_defaults_follow_the_name() -> None:
    filled = defaults(values())
    assert (filled["app_root"], filled["app_user"]) == ("/srv/shop", "shop")
    assert "app_name" not in filled


def test_a_web_service_on_a_socket_is_blue_green_and_on_a_port_restarts() -> None:
    assert complete_service(web()[0])["strategy"] == "blue_green"
    assert complete_service({"name": "web", "command": "x {port}", "port": 8000})["strategy"] == "restart"
    assert complete_service({"name": "w", "kind": "worker", "command": "x"})["bind"] == "none"


def test_services_go_to_the_hosts_of_their_groups() -> None:
    full = values(
        app_services=[*web(), {"name": "w", "kind": "worker", "command": "x", "groups": ["workers"]}]
    )
    assert [s["name"] for s in services_of(full, ["app"])] == ["web"]
    assert [s["name"] for s in services_of(full, ["app", "workers"])] == ["web", "w"]


@pytest.mark.parametrize(
    "changes",
    [
        {"app_environment": {"SECRET_KEY": "another"}},
        {"app_packages": ["gunicorn"]},
        {"app_services": web(command="x {socket}")},
    ],
)
def test_another_setting_is_another_release(changes: dict) -> None:
    plain, changed = values(), values(**changes)
    first = inputs_digest({**defaults(plain), **plain})
    assert re.fullmatch(r"[0-9a-f]{8}", first)
    assert first == inputs_digest({**defaults(plain), **dict(reversed(plain.items()))})
    assert first != inputs_digest({**defaults(changed), **changed})


def test_what_does_not_change_a_release_leaves_its_name() -> None:
    plain, changed = values(), values(app_health_checks=[{"url": "/other/"}], app_version="v2")
    assert inputs_digest({**defaults(plain), **plain}) == inputs_digest({**defaults(changed), **changed})


def test_every_variable_is_documented() -> None:
    documented = set(re.findall(r"`(app_\w+)`", DOCS.read_text(encoding="utf-8")))
    assert set(VARIABLES) <= documented
    assert documented <= set(VARIABLES)
