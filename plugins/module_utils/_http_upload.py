# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that a check sends as a browser does (RFC 7578), written out or made of rows.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# A probe is no load generator; what it sends lies in memory, once per request under way.
ROWS_LIMIT = 100_000
KEYS = ("name", "type", "content", "header", "row", "rows")
# What may stand in a quoted parameter without being escaped differently by every server.
_FILE_NAME = re.compile(r"^[^\"\\\r\n]+$")


class Upload(NamedTuple):
    """One file: ``content``, or *rows* lines made of ``row`` below ``header``; ``{row}`` is the row's number."""

    name: str
    type: str
    content: str
    row: str
    rows: int

    def text(self, fill: Callable[[str], str]) -> str:
        """Return the file's text with its placeholders replaced by *fill*."""
        head = fill(self.content)
        if not self.rows:
            return head
        line = fill(self.row)
        # Every row is another one: an application that looks for duplicates must find none.
        return head + "".join(f"{line.replace('{row}', str(number))}\n" for number in range(1, self.rows + 1))


def parse_files(value: Any, where: str) -> dict[str, Upload]:
    """Return the files of a check by the names of their fields.

    :param value: a mapping of field to ``{name, type, content}`` or ``{name, type, header, row, rows}``, or None.
    :raises Problem: for anything else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not value:
        raise Problem(f"{where} must be a mapping of fields to files, found {value!r}.")
    return {str(field): _parse_file(item, f"{where}.{field}") for field, item in value.items()}


def _parse_file(item: Any, where: str) -> Upload:
    if not isinstance(item, Mapping):
        raise Problem(f"{where} must be a mapping such as {{name: a.csv, content: text}}, found {item!r}.")
    for key in item:
        if key not in KEYS:
            raise Problem(f"{where} has the unknown key {key!r}: known are {', '.join(KEYS)}.")
    name = str(item.get("name") or "upload.txt")
    if not _FILE_NAME.match(name):
        raise Problem(f"{where}.name must be a name without quotes and line breaks, found {name!r}.")
    rows = item.get("rows", 0)
    if isinstance(rows, bool) or not isinstance(rows, int) or not 0 <= rows <= ROWS_LIMIT:
        raise Problem(f"{where}.rows must be a whole number from 0 to {ROWS_LIMIT}, found {rows!r}.")
    if bool(rows) != bool(item.get("row")):
        raise Problem(f"{where} has only one of row and rows: row is the text of a line, rows their number.")
    if ("content" in item) == bool(rows):
        raise Problem(f"{where} must have either content, or row and rows.")
    head = str(item["content"]) if "content" in item else f"{item['header']}\n" if item.get("header") else ""
    return Upload(
        name, str(item.get("type") or "application/octet-stream"), head, str(item.get("row") or ""), rows
    )


def multipart(
    fields: Mapping[str, str], files: Mapping[str, Upload], fill: Callable[[str], str]
) -> tuple[bytes, str]:
    """Return the body that sends *fields* and *files*, and its content type.

    :param fill: replaces the placeholders of what is in the files.
    """
    boundary = f"runbook-{os.urandom(16).hex()}"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{_quoted(name)}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    parts += [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{_quoted(field)}"; filename="{file.name}"\r\n'
        f"Content-Type: {file.type}\r\n\r\n{file.text(fill)}\r\n"
        for field, file in files.items()
    ]
    return "".join([*parts, f"--{boundary}--\r\n"]).encode(), f"multipart/form-data; boundary={boundary}"


def _quoted(name: str) -> str:
    """Return a field's *name* escaped as the HTML standard has it (4.10.21.8, multipart form data)."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
