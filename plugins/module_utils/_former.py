# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What restores have put aside: former databases, schemas and files; which of them may go, and when.

They are the last copy of what a restore took away, so that nothing goes unless somebody has said after how many days. Two witnesses
are needed that one is ours: its name, and a note that the restore has written on this host. The note names what the engine tells
apart when names are the same: the number of a PostgreSQL database or schema, the inode and last change of a file; MySQL has its
server's only.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import calendar
import contextlib
import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils._database import Engine
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, read_json, write_json
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

# Beside the backups: one entry for each database that a restore of this host has put aside.
NOTES = ".former.json"
# How the restores name what they put aside: `<name>_broken_<time>`, and `<file>.broken-<time>` for SQLite.
SERVER = re.compile(r"^(?P<stem>.+)_broken_(?P<time>\d{8}t\d{6})$")
FILE = re.compile(r"^\.broken-(?P<time>\d{8}T\d{6})(?:-\d+)?$")
COMPANIONS = ("", "-wal", "-shm", "-journal")
# What the newest records name is still under watch, or the last thing that somebody did.
PINNING = 3
FORM = "%Y-%m-%dT%H:%M:%SZ"

_SIZE_OF_DATABASE = "CASE WHEN has_database_privilege(oid, 'CONNECT') THEN pg_database_size(oid) END"
_SIZE_OF_SCHEMA = "(SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'm'))::bigint"
# What other schemas have: when it becomes less by dropping one, something of theirs would have gone with it.
_ELSEWHERE = """SELECT json_build_array(
 (SELECT count(*) FROM pg_class WHERE relnamespace <> {oid} AND relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_')),
 (SELECT count(*) FROM pg_constraint WHERE connamespace <> {oid}), (SELECT count(*) FROM pg_proc WHERE pronamespace <> {oid}),
 (SELECT count(*) FROM pg_type WHERE typnamespace <> {oid} AND typnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_')),
 (SELECT count(*) FROM pg_attrdef d JOIN pg_class c ON c.oid = d.adrelid WHERE c.relnamespace <> {oid}),
 (SELECT count(*) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE c.relnamespace <> {oid} AND NOT a.attisdropped AND c.relkind <> 't'
  AND c.relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_')),
 (SELECT count(*) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE c.relnamespace <> {oid}),
 (SELECT count(*) FROM pg_extension))"""


class Former(NamedTuple):
    """Something that a restore has put aside: ``kind`` is ``file``, ``database`` or ``schema``; ``made`` in UTC, ``size`` in
    bytes (None: the server does not say); ``mark`` is what tells it from another of that name."""

    kind: str
    name: str
    made: str
    size: int | None
    mark: str


def moment(stamp: str) -> str:
    """Return the time in a name, ``20261121T101010`` in either case, as manifests have it; "" when it is none."""
    try:
        return time.strftime(FORM, time.strptime(stamp.upper(), "%Y%m%dT%H%M%S"))
    except ValueError:
        return ""


def find(engine: Engine) -> list[Former]:
    """Return what bears the name of something put aside beside the database of *engine*, newest first.

    :raises Problem: when a server does not answer.
    """
    found = {"sqlite": _files, "postgresql": _postgresql, "mysql": _mysql}[engine.name](engine)
    return sorted(
        (entry for entry in found if entry.made), key=lambda entry: (entry.made, entry.name), reverse=True
    )


def _files(engine: Any) -> list[Former]:
    # A restore exchanges what a link points to.
    live = Path(os.path.realpath(engine.database["path"]))
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(live.parent):
            match = FILE.match(name[len(live.name) :]) if name.startswith(live.name) else None
            if not match:
                continue
            path = live.parent / name
            with contextlib.suppress(FileNotFoundError):
                state = path.lstat()
                size = sum(
                    os.path.getsize(f"{path}{end}") for end in COMPANIONS if os.path.isfile(f"{path}{end}")
                )
                # Inodes are given again at once; and what somebody has written to since is his.
                mark = f"{state.st_dev}/{state.st_ino}/{state.st_mtime_ns}"
                found.append(Former("file", str(path), moment(match["time"]), size, mark))
    return found


def _named_like(live: str, name: str, longest: int) -> str:
    """Return when the database *name* was put aside, "" when that was no restore of *live*: long names are cut to *longest* bytes."""
    match = SERVER.match(name)
    if not match:
        return ""
    stem = live.encode()[: longest - len(name.encode()) + len(match["stem"].encode())].decode(errors="ignore")
    return moment(match["time"]) if match["stem"] == stem else ""


def _postgresql(engine: Any) -> list[Former]:
    server, live = engine.identity()["server"], engine.client.name
    rows = engine.maker.rows(
        f"SELECT datname AS name, oid::text AS oid, {_SIZE_OF_DATABASE} AS size FROM pg_database WHERE datname LIKE '%\\_broken\\_%'",
        engine.lobby(),
    )
    found = [
        Former(
            "database", row["name"], _named_like(live, row["name"], 63), row["size"], f"{server}/{row['oid']}"
        )
        for row in rows
        if row["name"] != live
    ]
    rows = engine.client.rows(
        f"SELECT n.nspname AS name, n.oid::text AS oid, {_SIZE_OF_SCHEMA} AS size FROM pg_namespace n WHERE n.nspname LIKE '%\\_broken\\_%'"
    )
    for row in rows:
        match = SERVER.match(row["name"])
        made = moment(match["time"]) if match else ""
        found.append(Former("schema", row["name"], made, row["size"] or 0, f"{server}/{row['oid']}"))
    return found


def _mysql(engine: Any) -> list[Former]:
    server, live = engine.identity().get("server", ""), engine.client.name
    # Made by an administrator, or of the names that the application's user may use.
    rows = engine.maker.rows(
        {"n": "s.SCHEMA_NAME", "b": "(SELECT CAST(COALESCE(SUM(t.DATA_LENGTH + t.INDEX_LENGTH), 0) AS UNSIGNED) "
         "FROM information_schema.TABLES t WHERE t.TABLE_SCHEMA = s.SCHEMA_NAME)"},
        "FROM information_schema.SCHEMATA s WHERE s.SCHEMA_NAME LIKE '%\\_broken\\_%'",
        "",
    )  # fmt: skip
    found = []
    for row in rows:
        made = _named_like(live, row["n"], 64) or _named_like(f"runbook_{live}", row["n"], 64)
        if row["n"] != live:
            found.append(Former("database", row["n"], made, int(row["b"]), server))
    return found


# What the restores of this host have noted


def split(kept: str) -> list[str]:
    """Return the names in *kept*, ``schema a, schema b`` as the restore of schemas answers."""
    return [part.removeprefix("schema ") for part in kept.split(", ")]


def read_notes(layout: Layout) -> list[dict[str, Any]]:
    """Return the notes; none that can be read is none that lets anything go."""
    with contextlib.suppress(ValueError, OSError):
        found = read_json(layout.backups / NOTES)
        if isinstance(found, list):
            return [entry for entry in found if isinstance(entry, dict)]
    return []


def note(layout: Layout, engine: Engine, kept: str, backup: str) -> None:
    """Note that a restore of *backup* has put aside *kept*, as :meth:`Restorer.swap` names it; call it under ``backups_locked``.

    Whatever is wrong here stops nothing: what is not noted is never removed.
    """
    names = {kept, *split(kept)}
    with contextlib.suppress(Problem, OSError):
        there = find(engine)
        new = [entry for entry in there if entry.name in names]
        marks = {(entry.name, entry.mark) for entry in there}
        old = [entry for entry in read_notes(layout) if (entry.get("name"), entry.get("mark")) in marks]
        notes = old + [{**entry._asdict(), "engine": engine.name, "backup": backup} for entry in new]
        write_json(layout.backups / NOTES, notes, 0o600)


# What may go


def pinned(records: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the names that the newest *records*, and those without a verdict, have put aside."""
    result: set[str] = set()
    for position, record in enumerate(records):
        if position >= PINNING and record.get("verdict") is not None:
            continue
        for phase in record.get("phases") or []:
            kept = (phase.get("result") or {}).get("kept") if phase.get("phase") == "restore" else None
            result |= {kept, *split(kept)} if isinstance(kept, str) else set()
    return result - {""}


def judge(
    found: Sequence[Former],
    notes: Sequence[Mapping[str, Any]],
    named: Collection[str],
    days: int,
    now: str,
) -> list[dict[str, Any]]:
    """Return ``{kind, name, made, size, state}`` of each of *found*.

    The state: ``foreign``: no note of this host says that a restore has put it aside; ``newest``: nothing was put aside later;
    ``pinned``: *named* by a record; ``kept``: nobody has said that it may go, or it is not *days* old; ``surplus``: it may go.

    :param now: the present time in UTC, as manifests have it.
    """
    known = {(entry.get("kind"), entry.get("name"), entry.get("mark")) for entry in notes}
    ours = [entry for entry in found if (entry.kind, entry.name, entry.mark) in known]
    newest = max((entry.made for entry in ours), default="")
    oldest = ""
    if days > 0:
        oldest = time.strftime(FORM, time.gmtime(calendar.timegm(time.strptime(now, FORM)) - days * 86400))
    result = []
    for entry in found:
        if entry not in ours:
            state = "foreign"
        elif entry.made == newest:
            state = "newest"
        elif entry.name in named:
            state = "pinned"
        else:
            state = "surplus" if entry.made < oldest else "kept"
        result.append(
            {"kind": entry.kind, "name": entry.name, "made": entry.made, "size": entry.size, "state": state}
        )
    return result


def survey(
    layout: Layout, engine: Engine, records: Sequence[Mapping[str, Any]], days: int
) -> list[dict[str, Any]]:
    """Return :func:`judge` of what there is."""
    now = time.strftime(FORM, time.gmtime())
    return judge(find(engine), read_notes(layout), pinned(records), days, now)


def prune(
    layout: Layout,
    engine: Engine,
    records: Sequence[Mapping[str, Any]],
    days: int,
    *,
    check_mode: bool = False,
) -> tuple[list[str], list[str]]:
    """Remove what :func:`survey` calls surplus; return the names, and in sentences what could not be removed.

    Somebody who is connected to one, or something elsewhere that needs it, keeps it.
    """
    gone: list[str] = []
    errors: list[str] = []
    if days <= 0:
        return gone, errors
    try:
        surplus = [entry for entry in survey(layout, engine, records, days) if entry["state"] == "surplus"]
    except (Problem, OSError) as error:
        return gone, [f"What restores have put aside could not be looked for: {error}"]
    remove = {"sqlite": _remove_file, "postgresql": _drop_postgresql, "mysql": _drop_mysql}[engine.name]
    for entry in surplus:
        try:
            if not check_mode:
                remove(engine, entry)
            gone.append(entry["name"])
        except Problem as problem:
            errors.append(
                f"The {entry['kind']} {entry['name']}, put aside at {entry['made']}, stays: {problem.message}"
            )
        except OSError as error:
            errors.append(
                f"{entry['name']} could not be removed ({error.strerror or error}): remove it by hand."
            )
    return gone, errors


def _remove_file(engine: Engine, entry: Mapping[str, Any]) -> None:
    """Remove a former file with what SQLite kept beside it, and the file itself last: without it nobody finds the others."""
    del engine
    for end in (*COMPANIONS[1:], ""):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{entry['name']}{end}")


def _drop_postgresql(engine: Any, entry: Mapping[str, Any]) -> None:
    from ansible_collections.runbook.deploy.plugins.module_utils._postgresql_client import identifier, literal

    name = identifier(entry["name"])
    if entry["kind"] == "database":
        # Not as a scratch is dropped: whoever is connected has a reason, and the server refuses then.
        engine.maker.statements([f"DROP DATABASE {name}"], engine.lobby())
        return
    with engine.client.session() as session:
        session.ask("BEGIN; SET LOCAL lock_timeout = '5s'")
        query = _ELSEWHERE.format(oid=f"{literal(entry['name'])}::regnamespace")
        oid = session.query(f"SELECT to_json({literal(entry['name'])}::regnamespace::oid::text)")
        query = _ELSEWHERE.format(oid=int(oid))
        before = session.query(query)
        session.ask(f"DROP SCHEMA {name} CASCADE")
        if session.query(query) != before:
            session.ask("ROLLBACK")
            raise Problem(
                "something in another schema needs it (a view, a default, a foreign key) and would be dropped with it: "
                "see what DROP SCHEMA without CASCADE names, and drop it by hand."
            )
        session.ask("COMMIT")


def _drop_mysql(engine: Any, entry: Mapping[str, Any]) -> None:
    from ansible_collections.runbook.deploy.plugins.module_utils._mysql_client import literal

    name = literal(entry["name"])
    like = literal("%" + re.sub(r"([\\%_])", r"\\\1", entry["name"]) + "%")
    used = engine.maker.rows(
        {"w": "w"},
        f"FROM (SELECT CONCAT('session ', ID) w FROM information_schema.PROCESSLIST WHERE DB = {name}"
        f" UNION ALL SELECT CONCAT('view ', TABLE_SCHEMA, '.', TABLE_NAME) FROM information_schema.VIEWS"
        f" WHERE TABLE_SCHEMA <> {name} AND VIEW_DEFINITION LIKE {like}"
        f" UNION ALL SELECT CONCAT('routine ', ROUTINE_SCHEMA, '.', ROUTINE_NAME) FROM information_schema.ROUTINES"
        f" WHERE ROUTINE_SCHEMA <> {name} AND ROUTINE_DEFINITION LIKE {like}"
        f" UNION ALL SELECT CONCAT('trigger ', TRIGGER_SCHEMA, '.', TRIGGER_NAME) FROM information_schema.TRIGGERS"
        f" WHERE TRIGGER_SCHEMA <> {name} AND ACTION_STATEMENT LIKE {like}"
        f" UNION ALL SELECT CONCAT('foreign key of ', TABLE_SCHEMA, '.', TABLE_NAME) FROM information_schema.KEY_COLUMN_USAGE"
        f" WHERE TABLE_SCHEMA <> {name} AND REFERENCED_TABLE_SCHEMA = {name}) AS found LIMIT 5",
        "",
    )
    if used:
        raise Problem(f"it is in use by {', '.join(row['w'] for row in used)}: end that, or drop it by hand.")
    engine.drop(entry["name"])
