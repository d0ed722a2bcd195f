# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put the compiled form of its sources into the archive of a module.

A module runs once on a host and is gone, and Python keeps nothing of what it compiled out of an archive: measured, 0.2 s of
the 0.45 s that a module of this collection took were compiling, each time. A host whose Python has another bytecode than the
controller's ignores the compiled files and takes the sources, which stay (``zipimport``, "Valid .pyc files are used").

This is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import _imp
import ast
import base64
import importlib.util
import io
import marshal
import pickle
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

# PEP 552: hash-based, and not to be compared with the source, which is in the same archive and cannot change.
UNCHECKED_HASH = struct.pack("<I", 0b01)
HAS_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def without_docstrings(tree: ast.Module) -> ast.Module:
    """Return *tree* without its docstrings, which nobody reads on a host; line numbers stay as they are."""
    for node in ast.walk(tree):
        if isinstance(node, HAS_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            # Nothing may stand before an import from __future__, and nothing at all is no body.
            node.body[:1] = [] if len(node.body) > 1 else [ast.copy_location(ast.Pass(), node.body[0])]
    return tree


def compiled(source: bytes, path: str) -> bytes:
    """Return the content of a ``.pyc`` for *source*; *path* is what tracebacks say.

    :raises SyntaxError: for a source that this Python cannot read.
    """
    tree = without_docstrings(ast.parse(source, path))
    code = compile(tree, path, "exec", dont_inherit=True)
    digest = _imp.source_hash(importlib.util._RAW_MAGIC_NUMBER, source)
    return importlib.util.MAGIC_NUMBER + UNCHECKED_HASH + digest + marshal.dumps(code)


def with_bytecode(archive: bytes) -> bytes:
    """Return the zip *archive* with a ``.pyc`` beside each ``.py`` in it."""
    result = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as old,
        zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        names = set(old.namelist())
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry, content, compress_type=zipfile.ZIP_DEFLATED)
            if entry.filename.endswith(".py") and f"{entry.filename}c" not in names:
                twin = zipfile.ZipInfo(f"{entry.filename}c", entry.date_time)
                twin.external_attr = entry.external_attr
                new.writestr(twin, compiled(content, entry.filename), compress_type=zipfile.ZIP_DEFLATED)
    return result.getvalue()


def enrich(path: Path) -> bytes:
    """Return what the file *path*, an archive as ansible-core keeps it, holds, with bytecode in it.

    What is not as ansible-core 2.19 keeps it is returned as it is.
    """
    kept = path.read_bytes()
    try:
        module: Any = pickle.loads(kept)
        archive = base64.b64decode(module.zip_data, validate=True)
        return pickle.dumps(replace(module, zip_data=base64.b64encode(with_bytecode(archive))))
    except Exception:
        # Whatever another version of ansible-core keeps there works without.
        return kept
