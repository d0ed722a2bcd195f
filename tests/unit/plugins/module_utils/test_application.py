# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests for plugins/module_utils/_application.py."""

from __future__ import annotations

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils._application import RESERVED, instance_variables
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

INSTANCE = {
    "root": "/srv/shop",
    "name": "shop",
    "stage": "production",
    "release": "0123456789ab-01234567",
    "commit": "0123456789ab" + "0" * 28,
    "version": "v2.7",
    "deployment": "20261121T013700-ab12",
    "environment_path": "/srv/shop/environments/abc",
    "settings_module": "shop.settings",
}


def test_says_which_instance_and_puts_the_environment_first() -> None:
    found = instance_variables(**INSTANCE, environment={"SECRET_KEY": "s"})
    assert found["PATH"].startswith("/srv/shop/environments/abc/bin:/usr/")
    assert found["VIRTUAL_ENV"] == "/srv/shop/environments/abc"
    assert found["DJANGO_SETTINGS_MODULE"] == "shop.settings"
    assert found["SECRET_KEY"] == "s"
    assert {name: found[name] for name in found if name.startswith("RUNBOOK_")} == {
        "RUNBOOK_ROOT": "/srv/shop",
        "RUNBOOK_APPLICATION": "shop",
        "RUNBOOK_STAGE": "production",
        "RUNBOOK_RELEASE": "0123456789ab-01234567",
        "RUNBOOK_COMMIT": "0123456789ab" + "0" * 28,
        "RUNBOOK_VERSION": "v2.7",
        "RUNBOOK_DEPLOYMENT": "20261121T013700-ab12",
    }


def test_the_applications_own_path_follows_the_environments() -> None:
    found = instance_variables(**INSTANCE, environment={"PATH": "/opt/node/bin"})
    assert found["PATH"] == "/srv/shop/environments/abc/bin:/opt/node/bin"


def test_without_environment_and_settings() -> None:
    found = instance_variables(
        **{**INSTANCE, "environment_path": None, "settings_module": "", "version": None}, environment={}
    )
    assert "VIRTUAL_ENV" not in found
    assert "DJANGO_SETTINGS_MODULE" not in found
    assert found["RUNBOOK_VERSION"] == ""
    assert all(isinstance(value, str) for value in found.values())


@pytest.mark.parametrize("name", RESERVED)
def test_an_application_may_not_claim_to_be_another_instance(name: str) -> None:
    with pytest.raises(Problem, match=name):
        instance_variables(**INSTANCE, environment={name: "x"})


@pytest.mark.parametrize("environment", [{"A-B": "x"}, {"1A": "x"}, {"": "x"}, {"A B": "x"}, {"A": "a\0b"}])
def test_what_no_environment_can_hold_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(Problem, match="app_environment"):
        instance_variables(**INSTANCE, environment=environment)


def test_two_settings_modules_are_refused() -> None:
    with pytest.raises(Problem, match="set only one"):
        instance_variables(**INSTANCE, environment={"DJANGO_SETTINGS_MODULE": "shop.other"})
    same = instance_variables(**INSTANCE, environment={"DJANGO_SETTINGS_MODULE": "shop.settings"})
    assert same["DJANGO_SETTINGS_MODULE"] == "shop.settings"
