# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that are shown can be typed where this operator is."""

from __future__ import annotations

import pytest
from ansible_collections.runbook.deploy.plugins.plugin_utils._typed import with_playbooks

TEXT = "take it back with playbooks/rollback.yml -e x=1, or see playbooks/status.yml."


@pytest.fixture()
def checkout(tmp_path, monkeypatch):
    for name in ("deploy", "rollback", "status"):
        path = tmp_path / "checkout" / "playbooks" / f"{name}.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "checkout"


def test_in_a_checkout_nothing_changes(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    assert with_playbooks(TEXT, ("playbooks/deploy.yml",)) == TEXT


def test_from_elsewhere_it_is_the_path_that_was_typed(checkout):
    found = with_playbooks(TEXT, ("checkout/playbooks/deploy.yml",))
    assert "with checkout/playbooks/rollback.yml -e x=1, or see checkout/playbooks/status.yml." in found


@pytest.mark.parametrize("typed", ["runbook.deploy.deploy", "site.yml"])
def test_an_installed_collection_is_named_as_such(checkout, typed):
    found = with_playbooks(TEXT, (typed,))
    assert found == "take it back with runbook.deploy.rollback -e x=1, or see runbook.deploy.status."


def test_other_playbooks_and_longer_paths_stay(checkout):
    text = "see /srv/playbooks/status.yml and playbooks/other.yml"
    assert with_playbooks(text, ("runbook.deploy.deploy",)) == text
    assert with_playbooks(TEXT, ()) == TEXT
