# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare each role's argument specification with its defaults and its README.

    check_specs.py [DIRECTORY WITH roles/]

For every role: an option of the entry point `main` is in defaults/main.yml, unless it is required, and the other way
round; where the specification states a default, it is the same; README.md names every option. Defaults exist twice
because Ansible takes the value from one file and validates and documents it from the other.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml

MISSING = object()


class Loader(yaml.SafeLoader):
    """Plain YAML; Ansible's own tags (!vault, !unsafe) are read as their text."""


def _untagged(loader: Loader, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)


Loader.add_multi_constructor("!", _untagged)


def load(path: Path) -> Any:
    """The content of a YAML file, None when it is empty or absent."""
    if not path.exists():
        return None
    return yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)  # noqa: S506 - a SafeLoader with two more tags


def named_in(text: str) -> set[str]:
    """The words of a text that can be names of variables."""
    return set(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", text))


def same(one: Any, other: Any) -> bool:
    """Equal in YAML's eyes: `1` and `true`, or `1` and `1.0`, are different values."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def compare(options: dict[str, Any], defaults: dict[str, Any], readme: str) -> list[str]:
    """What is wrong with one role, a sentence each: `options` of the specification, `defaults`, text of the README."""
    wrong = []
    described = named_in(readme)
    for name in sorted(set(options) | set(defaults)):
        option = options.get(name)
        if option is None:
            wrong.append(
                f"{name} is in defaults/main.yml and not in meta/argument_specs.yml; describe it there"
            )
            continue
        stated = option.get("default", MISSING)
        if name in defaults:
            if option.get("required"):
                wrong.append(f"{name} is required and has a default in defaults/main.yml; drop one of them")
            elif stated is not MISSING and not same(stated, defaults[name]):
                wrong.append(
                    f"{name} defaults to {defaults[name]!r} in defaults/main.yml and to {stated!r} in "
                    "meta/argument_specs.yml; make them the same"
                )
        elif not option.get("required"):
            wrong.append(
                f"{name} is optional in meta/argument_specs.yml and not in defaults/main.yml; give it a default"
            )
        if name not in described:
            wrong.append(f"{name} is not mentioned in README.md; describe it there")
    return wrong


def check_role(role: Path) -> list[str]:
    """What is wrong with the role in this directory."""
    specs = load(role / "meta" / "argument_specs.yml")
    if not isinstance(specs, dict) or "main" not in (specs.get("argument_specs") or {}):
        return [
            "meta/argument_specs.yml does not exist or has no entry point main; describe the role's variables in it"
        ]
    options = specs["argument_specs"]["main"].get("options") or {}
    defaults = load(role / "defaults" / "main.yml") or {}
    for where, found in (("meta/argument_specs.yml: options", options), ("defaults/main.yml", defaults)):
        if not isinstance(found, dict):
            return [f"{where} is a {type(found).__name__}; it must map names of variables to values"]
    readme = role / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    wrong = (
        [] if readme.exists() else ["README.md does not exist; write what the role does and its variables"]
    )
    return wrong + compare(options, defaults, text if readme.exists() else " ".join({*options, *defaults}))


def roles_of(project: Path) -> list[Path]:
    """The roles: directories of roles/ that hold anything."""
    return sorted(path for path in (project / "roles").glob("*") if path.is_dir() and any(path.iterdir()))


def main() -> int:
    project = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    roles = roles_of(project)
    wrong = [f"roles/{role.name}: {sentence}." for role in roles for sentence in check_role(role)]
    for line in wrong:
        print(line)
    print(f"{len(roles)} roles compared, {len(wrong)} differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
