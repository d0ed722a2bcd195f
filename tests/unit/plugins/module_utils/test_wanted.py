# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.runbook.deploy.plugins.module_utils import _wanted as wanted

FILES = [
    "shop/migrations/0001_initial.py",
    "shop/migrations/0002_more.py",
    "shop/migrations/__init__.py",
    "shop/migrations/0003_data.sql",
    "shop/tests/0001_x.py",
    "src/apps/stock/migrations/0001_initial.py",
    "migrations/0001_of_nobody.py",
]


@pytest.mark.parametrize(
    ("directory", "applied", "framework", "expected"),
    [
        ("", None, "django", ["shop.0001_initial", "shop.0002_more", "stock.0001_initial"]),
        ("", [["shop", "0001_initial"]], "django", ["shop.0002_more", "stock.0001_initial"]),
        ("src", None, "django", ["stock.0001_initial"]),
        ("./", [["stock", "0001_initial"]], "django", ["shop.0001_initial", "shop.0002_more"]),
        ("", None, "none", []),
    ],
)
def test_pending_migrations_by_file(
    directory: str, applied: list | None, framework: str, expected: list
) -> None:
    found = wanted.pending_by_file(FILES, directory, applied, framework)
    assert [".".join(entry) for entry in found] == expected


REVISIONS = [
    "migrations/versions/0001_leads.py",
    "migrations/versions/2026/0002_score.py",
    "migrations/versions/__init__.py",
]


@pytest.mark.parametrize(
    ("changed", "applied", "expected"),
    [
        (None, None, ["0001_leads", "0002_score"]),
        (["migrations/versions/2026/0002_score.py", "app.py"], [["alembic", "x"]], ["0002_score"]),
        (["app.py"], [["alembic", "x"]], []),
        # Code is live, but its table is not there.
        (["app.py"], None, ["0001_leads", "0002_score"]),
    ],
)
def test_revisions_of_alembic_are_pending_where_files_differ(
    changed: list | None, applied: list | None, expected: list
) -> None:
    found = wanted.pending_by_file(REVISIONS, "", applied, "alembic", changed)
    assert found == [["alembic", name] for name in expected]


def test_a_command_is_always_pending() -> None:
    assert len(wanted.pending_by_file([], "", None, "command", [])) == 1


def test_the_release_is_named_by_commit_and_inputs() -> None:
    assert wanted.release_name("ab" * 20, "01234567") == "abababababab-01234567"


def test_a_long_diff_is_cut_and_counted() -> None:
    new = {
        "release": "r2",
        "version": "v2",
        "commit": "b" * 40,
        "current": False,
        "commits": [{"commit": f"{number:040x}", "subject": f"change {number}"} for number in range(51)],
        "files": [{"status": "M", "path": f"f{number}"} for number in range(50)],
        "pending_by_file": [["shop", "0002_more"]],
    }
    shown = wanted.diff({"release": "r1", "version": "v1", "commit": "a" * 40}, new)
    assert shown["before"] == f"release: r1\nversion: v1\ncommit: {'a' * 40}\n"
    lines = shown["after"].splitlines()
    assert "commits (51):" in lines
    assert "  … and 1 more" in lines
    assert "  shop.0002_more" in lines
    assert "  M f49" in lines
    assert len([line for line in lines if "change" in line]) == 50


def test_nothing_to_do_shows_no_difference() -> None:
    same = {"release": "r1", "version": "v1", "commit": "a" * 40, "current": True}
    shown = wanted.diff(same, {**same, "commits": [], "files": [], "pending_by_file": []})
    assert shown["before"] == shown["after"]
