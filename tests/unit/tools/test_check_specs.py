# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The comparison of specifications with defaults finds each kind of difference in real role directories."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "check_specs.py"

SPEC = """---
argument_specs:
  main:
    short_description: Example
    options:
      example_keep:
        type: int
        default: 5
        description: How many.
      example_name:
        type: str
        required: true
        description: Which.
      example_paths:
        type: list
        elements: str
        default: [media]
        description: Where.
"""
DEFAULTS = "---\nexample_keep: 5\nexample_paths: [media]\n"
README = "# example\n\n`example_keep`, `example_name` and `example_paths`.\n"


def check(
    tmp_path: Path, spec: str = SPEC, defaults: str = DEFAULTS, readme: str = README
) -> tuple[int, str]:
    """Exit code and output of the check on a project with one role."""
    role = tmp_path / "roles" / "example"
    for name, text in (
        ("meta/argument_specs.yml", spec),
        ("defaults/main.yml", defaults),
        ("README.md", readme),
    ):
        path = role / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text:
            path.write_text(text)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert not done.stderr
    return done.returncode, done.stdout


def test_a_project_without_roles_passes(tmp_path):
    (tmp_path / "roles").mkdir()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "0 roles" in done.stdout


def test_a_right_role_passes(tmp_path):
    assert check(tmp_path) == (0, "1 roles compared, 0 differences\n")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"defaults": DEFAULTS + "example_extra: 1\n"}, "example_extra is in defaults/main.yml and not in"),
        (
            {"defaults": "---\nexample_keep: 5\n"},
            "example_paths is optional in meta/argument_specs.yml and not in",
        ),
        (
            {"defaults": DEFAULTS.replace("5", "6")},
            "example_keep defaults to 6 in defaults/main.yml and to 5",
        ),
        ({"defaults": DEFAULTS.replace("5", "'5'")}, "example_keep defaults to '5'"),
        ({"defaults": DEFAULTS.replace("5", "5.0")}, "example_keep defaults to 5.0"),
        ({"defaults": DEFAULTS.replace("media", "media, static")}, "example_paths defaults to"),
        ({"defaults": DEFAULTS + "example_name: x\n"}, "example_name is required and has a default"),
        (
            {"readme": README.replace("example_name", "example_names")},
            "example_name is not mentioned in README.md",
        ),
        ({"readme": ""}, "README.md does not exist"),
        ({"spec": ""}, "meta/argument_specs.yml does not exist"),
        ({"spec": SPEC.replace("  main:", "  other:")}, "has no entry point main"),
        ({"defaults": "---\n[example_keep]\n"}, "defaults/main.yml is a list"),
    ],
)
def test_a_wrong_role_fails_and_is_named(tmp_path, changes, sentence):
    code, output = check(tmp_path, **changes)
    assert code == 1
    assert "roles/example: " in output
    assert sentence in output


def test_one_and_true_are_different_values(tmp_path):
    code, output = check(
        tmp_path, spec=SPEC.replace("default: 5", "default: true"), defaults=DEFAULTS.replace("5", "1")
    )
    assert code == 1
    assert "example_keep defaults to 1" in output


def test_ansible_tags_are_read(tmp_path):
    text = "---\nexample_keep: 5\nexample_paths: !unsafe [media]\n"
    assert check(tmp_path, defaults=text)[0] == 0
