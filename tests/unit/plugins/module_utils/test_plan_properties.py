# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``_plan.py`` says of random migrations, beside what they do: it may say "unknown", but never what is not so.

RUNBOOK_CHAINS: how many chains of migrations for each engine; RUNBOOK_CHAINS_SEED: the first one's number, by which a
failure is found again. ``make test-properties`` runs many.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _agent_migrate, _plan
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_project import django_python
from ansible_collections.runbook.deploy.tests.unit.plugins.module_utils.django_servers import serving

CHAINS = int(os.environ.get("RUNBOOK_CHAINS", "3"))
SEED = int(os.environ.get("RUNBOOK_CHAINS_SEED", "1"))
LENGTH = 5
MEMORY = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}


def trials(database: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what ``plan_trials.py`` tells about the chains on *database*."""
    script = Path(__file__).with_name("plan_trials.py")
    agent = Path(_agent_migrate.__file__)
    done = subprocess.run(
        [django_python(), str(script), str(agent), json.dumps(database), str(SEED), str(CHAINS), str(LENGTH)],
        capture_output=True,
        text=True,
        # A chain is a second or two; a machine that does much else may take its time.
        timeout=300 + 60 * CHAINS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def contradictions(found: Mapping[str, Any]) -> list[str]:
    """Return what the plan says of a migration and what happened instead; empty when nothing was contradicted."""
    plan = _plan.judge_plan(found["state"])
    said = []
    if plan["reversible"] == "yes":
        said += [
            f"reversible, but {found[name]}" for name in ("back", "same_schema") if found[name] is not True
        ]
    if plan["compatible"] == "yes" and found["compatible"] is not True:
        said.append(f"compatible, but {found['compatible']}")
    if plan["destructive"] == "no" and found["same_rows"] is not True:
        said.append(f"not destructive, but {found['same_rows']}")
    return [f"{found['seed']}: {found['text']}: {text}" for text in said]


def check(found: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(found) > 2 * CHAINS
    assert [text for each in found for text in contradictions(each)] == []
    # The chains notice rules that say too much.
    with monkeypatch.context() as patch:
        patch.setattr(_plan, "_judge_add_field", lambda facts: ("yes", "yes", "no"))
        patch.setattr(_plan, "_judge_remove_field", lambda facts: ("yes", "yes", "no"))
        assert [text for each in found for text in contradictions(each)]
    # And the rules do say something: an "unknown" of everything would be right, and of no use.
    plans = [_plan.judge_plan(each["state"]) for each in found]
    assert sum(plan["reversible"] != "unknown" for plan in plans) > len(plans) / 2
    assert sum(plan["compatible"] != "unknown" for plan in plans) > len(plans) / 3


def test_random_migrations_on_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    check(trials(MEMORY), monkeypatch)


def test_random_migrations_on_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving("postgresql") as server:
        server.clean()
        check(trials(server.settings), monkeypatch)
