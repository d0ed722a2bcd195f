# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold records against the published schema, docs/record.schema.json."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema

SCHEMA = Path(__file__).resolve().parents[4] / "docs" / "record.schema.json"


@functools.cache
def validator() -> jsonschema.Draft202012Validator:
    """Return the judge of the published schema."""
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def faults(record: Mapping[str, Any]) -> list[str]:
    """Return what the schema does not allow in *record*, a line each; a field that is new is named."""
    return [
        f"{'/'.join(str(part) for part in error.absolute_path) or 'record'}: {error.message[:300]}"
        for error in validator().iter_errors(record)
    ]
