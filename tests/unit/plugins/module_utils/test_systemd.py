# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemctl says, and what it means."""

from __future__ import annotations

import os

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _systemd as systemd

ID = "20261121T013700-ab12"


def properties(active: str, sub: str, **more: str) -> dict[str, str]:
    """Return properties as ``systemctl show`` gives them."""
    base = {"LoadState": "loaded", "ActiveState": active, "SubState": sub, "MainPID": "0", "NRestarts": "0"}
    return {**base, "Result": "success", "ExecMainStatus": "0", **more}


def test_parse_show() -> None:
    """Values may hold equals signs; other lines are skipped."""
    text = "ActiveState=active\nExecStart={ argv[]=/bin/sh a=b }\n\nno property\nMainPID=12\n"
    found = systemd.parse_show(text)
    assert found == {"ActiveState": "active", "ExecStart": "{ argv[]=/bin/sh a=b }", "MainPID": "12"}


@pytest.mark.parametrize(
    ("found", "running", "failed", "words"),
    [
        (properties("active", "running", MainPID=str(os.getpid())), True, False, "active (running)"),
        (
            properties("active", "running", MainPID=str(os.getpid()), NRestarts="2"),
            True,
            False,
            "restarted 2 times",
        ),
        (properties("reloading", "reload", MainPID=str(os.getpid())), True, False, "reloading"),
        # systemd has not noticed yet that the process is gone.
        (properties("active", "running", MainPID="4194999"), False, False, "active"),
        (properties("active", "exited"), False, False, "exited"),
        (properties("activating", "start", MainPID=str(os.getpid())), False, False, "activating"),
        (
            properties("activating", "auto-restart", Result="exit-code", ExecMainStatus="3"),
            False,
            True,
            "activating (auto-restart), result exit-code, exit status 3",
        ),
        # systemd 254 and later.
        (properties("activating", "auto-restart-queued", Result="exit-code"), False, True, "auto-restart"),
        (properties("failed", "failed", Result="timeout"), False, True, "result timeout"),
        (properties("inactive", "dead"), False, False, "inactive (dead)"),
        (properties("deactivating", "stop-sigterm", MainPID=str(os.getpid())), False, False, "deactivating"),
        ({}, False, False, "unknown"),
    ],
)
def test_judge(found: dict[str, str], running: bool, failed: bool, words: str) -> None:
    """A unit runs only when it is active with a living main process."""
    status = systemd.judge(found)
    assert (status.running, status.failed) == (running, failed)
    assert words in status.detail


def test_parse_units() -> None:
    """Only instances of this application and stage; failed ones with a bullet too; trials."""
    lines = [
        f"shop-prod-web@{ID}.service loaded active running shop web",
        f"\u25cf shop-prod-worker@{ID}.service loaded failed failed shop worker",
        f"shop-prod-web@{ID}.trial.service loaded activating auto-restart shop web",
        f"shop-prod2-web@{ID}.service loaded active running another stage",
        "shop-prod.service loaded active exited boot",
        "",
    ]
    assert systemd.parse_units("\n".join(lines), "shop", "prod") == {
        ("web", ID): "active",
        ("worker", ID): "failed",
        ("web", ID + ".trial"): "activating",
    }


def test_unit_names() -> None:
    """As the setup role writes the templates; an adopted unit may be named without its suffix."""
    assert systemd.unit_name("shop", "prod", "web", ID) == f"shop-prod-web@{ID}.service"
    assert systemd.SystemdUnit("old-shop", "adopted").name == "old-shop.service"
    assert systemd.find_adopted({"service": "old-shop.service"}) is not None
    assert systemd.find_adopted({}) is None and systemd.find_adopted(None) is None
