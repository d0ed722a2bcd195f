# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A PostgreSQL dump made ready for pg_restore: unpacked, listed, and its extensions made beforehand.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._command import run
from ansible_collections.runbook.deploy.plugins.module_utils._database import Damaged
from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_client import (
    Client,
    Stage,
    exit_words,
    failure_advice,
    first_error,
    identifier,
    pipeline,
    tool,
)

# Seconds for a dump or a restore; an operator sees it as a task of its own.
LONGEST = 6 * 3600.0
COMPRESSED, PLAIN = "database.pgdump.zst", "database.pgdump"
# A line of `pg_restore --list`: number; catalog and oid; what it is; its schema ("-" for none), name and owner.
ENTRY = re.compile(r"^\d+; \d+ \d+ ")
EXTENSION = re.compile(r"^\d+; \d+ \d+ EXTENSION ")
NOT_LISTED = re.compile(r"^\d+; \d+ \d+ (EXTENSION|COMMENT - EXTENSION) ")
CREATE_EXTENSION = re.compile(r"^CREATE EXTENSION IF NOT EXISTS (.+?)(?: WITH SCHEMA (.+))?;$", re.MULTILINE)
# What has no schema: it belongs to the database, or is one.
OF_DATABASE = re.compile(r"^\d+; \d+ \d+ ([A-Z ]+?) - (.*)$")
OF_PUBLICATION = re.compile(r"^\d+; \d+ \d+ (?:PUBLICATION|SUBSCRIPTION) ")
# There in every database.
BUILT_IN = ("pg_catalog", "public")


class Extension(NamedTuple):
    """An extension as the dump has it; ``name`` and ``schema`` (None: its own choice) are quoted for SQL where needed."""

    name: str
    schema: str | None


def unpack(dump: Path, directory: Path) -> Path:
    """Return a plain copy of *dump* in *directory*: several jobs of pg_restore must seek in it.

    :raises Damaged: when it cannot be decompressed.
    """
    target = directory / PLAIN
    with open(dump, "rb") as source, open(target, "wb") as writer:
        os.fchmod(writer.fileno(), 0o600)
        if dump.name.endswith(".zst"):
            stages = [Stage([tool("zstd", "zstd"), "--quiet", "--decompress", "--stdout"], {})]
            code, errors = pipeline(stages, source=source, target=writer, timeout=LONGEST)[0]
            if code != 0:
                said = first_error(errors)
                raise Damaged(
                    f"The dump {dump} cannot be decompressed: zstd ended with {exit_words(code)}: {said.rstrip('.')}; "
                    f"{failure_advice(said, target)}.",
                    "\n".join(errors.splitlines()[-20:]),
                )
        else:
            shutil.copyfileobj(source, writer, 1 << 20)
    return target


def _pg_restore(path: Path, *arguments: str) -> str:
    done = run(
        [tool("pg_restore", "postgresql-client"), *arguments, str(path)],
        cwd="/",
        environment={},
        timeout=LONGEST,
    )
    if done.rc != 0:
        raise Damaged(
            f"The dump {path.name} cannot be listed: {first_error(done.stderr)}; take the backup again."
        )
    return done.stdout


def extensions(path: Path, lines: Sequence[str]) -> list[Extension]:
    """Return the extensions of the plain dump *path*, whose list *lines* is, in the order in which they are made."""
    own = [line for line in lines if EXTENSION.match(line)]
    if not own:
        return []
    listing = path.with_name(f"{path.name}.extensions")
    listing.write_text("\n".join(own) + "\n")
    script = _pg_restore(path, f"--use-list={listing}", "--file=-")
    return [Extension(*found) for found in CREATE_EXTENSION.findall(script)]


def schema_line(extension: Extension, lines: Sequence[str]) -> str | None:
    """Return the line of *lines* that makes the schema of *extension*; None where every database has it.

    >>> schema_line(Extension("citext", "words"), ["6; 2615 16385 SCHEMA - words app"])
    '6; 2615 16385 SCHEMA - words app'
    """
    if not extension.schema or extension.schema in BUILT_IN:
        return None
    plain = extension.schema.strip('"').replace('""', '"')
    return next(
        (line for line in lines if ENTRY.match(line) and f" SCHEMA - {plain} " in f"{line} "),
        None,
    )


def in_schemas(lines: Sequence[str], staying: Sequence[str] = ()) -> list[str]:
    """Return those of *lines* that belong to schemas: what belongs to the whole database is there already, and so is ``public``.

    :param staying: further schemas that are there already.

    >>> in_schemas(["6; 2615 16385 SCHEMA - side app", "5; 2615 2200 SCHEMA - public x", "9; 3079 1 EXTENSION - citext "])
    ['6; 2615 16385 SCHEMA - side app']
    """
    kept = []
    for line in lines:
        if not ENTRY.match(line) or OF_PUBLICATION.match(line):
            continue
        found = OF_DATABASE.match(line)
        if found:
            kind, rest = found.groups()
            # "SCHEMA - side app", "ACL - SCHEMA side app"
            name = f"SCHEMA {rest} " if kind == "SCHEMA" else f"{rest} "
            there = tuple(f"SCHEMA {each} " for each in ("public", *staying))
            if not name.startswith("SCHEMA ") or name.startswith(there):
                continue
        kept.append(line)
    return kept


def write_script(path: Path, choose: Callable[[Sequence[str]], list[str]]) -> Path:
    """Write what of the plain dump *path* is chosen to an SQL script beside it, without owners; return its path."""
    listing = path.with_name(f"{path.name}.list")
    listing.write_text("\n".join(choose(_pg_restore(path, "--list").splitlines())) + "\n")
    script = path.with_name(f"{path.name}.sql")
    _pg_restore(path, f"--use-list={listing}", "--no-owner", f"--file={script}")
    script.chmod(0o600)
    return script


def prepare(path: Path, name: str, maker: Client, owner: str | None) -> Path:
    """Make the extensions of the plain dump *path* in the database *name*; return the list of what is left to restore.

    Many can be made by an administrator only, and a schema that one lies in has to be there before.

    :param maker: who makes them. :param owner: to whom such a schema is given; None: to whom it belonged.
    :raises Problem: with the server's words, where *maker* may not.
    """
    lines = _pg_restore(path, "--list").splitlines()
    made: set[str] = set()
    for extension in extensions(path, lines):
        if extension.name == "plpgsql":
            continue
        where = f" SCHEMA {extension.schema}" if extension.schema else ""
        line = schema_line(extension, lines)
        if line and line not in made:
            plain = extension.schema.strip('"').replace('""', '"')
            belonged = line.split(f" SCHEMA - {plain} ", 1)[1]
            maker.statements(
                [f"CREATE SCHEMA {extension.schema} AUTHORIZATION {identifier(owner or belonged)}"], name
            )
            made.add(line)
        maker.statements([f"CREATE EXTENSION IF NOT EXISTS {extension.name}{where}"], name)
    kept = [line for line in lines if not NOT_LISTED.match(line) and line not in made]
    listing = path.with_name(f"{path.name}.list")
    listing.write_text("\n".join(kept) + "\n")
    listing.chmod(0o644)
    return listing
