# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The records of whole runs, held against the published schema."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
from machine import Machine
from runs import PROJECT

SCHEMA = PROJECT / "docs" / "record.schema.json"


@functools.cache
def judge() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def on_host(site: Machine) -> dict[str, dict[str, Any]]:
    """The records on the host by the names of their files, as they lie there."""
    text = site.run(
        "sh", "-c", f'for f in {site.root}/deployments/2*.json; do echo; echo "== $f"; cat "$f"; done'
    )
    found = {}
    for part in text.split("\n== ")[1:]:
        name, _end, document = part.partition("\n")
        found[name] = json.loads(document)
    return found


def in_store(directory: Path) -> dict[str, dict[str, Any]]:
    """The controller's copies by the names of their files."""
    found = sorted(directory.rglob("2*.json"))
    return {str(path): json.loads(path.read_text(encoding="utf-8")) for path in found}


def unlike_schema(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the schema does not allow in *records*, a line each."""
    return [
        f"{name}: {'/'.join(str(part) for part in error.absolute_path) or 'record'}: {error.message[:300]}"
        for name, record in records.items()
        for error in judge().iter_errors(record)
    ]
