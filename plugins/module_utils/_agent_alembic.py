# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations inside an application with Alembic: start, where, settings, verify, applied, inert, isolate, tell_locks.

The project's own env.py is run for each of them, as the ``alembic`` command does, because it alone knows how the
database is reached. With Flask-Migrate it runs inside the application's context.

Runs in the application's Python (3.8 and up, Alembic 1.5 and up, SQLAlchemy 1.4 and up), loaded by
``_agent_runtime.py``; imports nothing of the collection, and Alembic only inside functions.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Any, Callable

# The only table that the host reads what is applied from.
VERSION_TABLE = "alembic_version"
# The application name under which revisions are listed; Alembic has no apps.
ALEMBIC = "alembic"
# What of a model change without a migration keeps the new code from running: it asks for what is not there.
NEEDED = ("add_table", "add_column")


class AlembicRefusal(Exception):
    """The request cannot be carried out, and nothing was done; its text is the sentence for the operator."""


def part(name: str) -> Any:
    """Return another part of the agent."""
    return sys.modules["_runbook_" + name]


# --- start ---


def start(context: Any, argv: list[str], database: dict[str, Any] | None = None, live: Any = None) -> Any:
    """Find the project's configuration, and run its env.py once without changing anything.

    :param database: the scratch that replaces the database, as ``_agent_alembic_guard.guard`` takes it; None: live.
    :param live: ``app_database`` without a password.
    """
    sys.argv = list(argv)
    context.memory["place"] = {"name": "", "server": "", "oid": ""}
    part("alembic_guard").guard(context, database, live or {})
    config, flask = _configuration(context)
    if config.cmd_opts is None:
        # Some env.py look at the command line's options.
        config.cmd_opts = argparse.Namespace(x=[], sql=False, tag=None)
    from alembic.script import ScriptDirectory

    context.memory["config"] = config
    context.memory["script"] = ScriptDirectory.from_config(config)
    probe(context)
    import alembic
    import sqlalchemy

    facts = context.memory["facts"]
    return {
        "alembic": alembic.__version__,
        "sqlalchemy": sqlalchemy.__version__,
        "python": ".".join(str(number) for number in sys.version_info[:3]),
        "flask": flask,
        "database": facts["database"],
        "vendor": facts["vendor"],
        "disabled": [],
    }


def _configuration(context: Any) -> tuple[Any, bool]:
    """Return Alembic's configuration, and whether it is Flask-Migrate's: alembic.ini, pyproject.toml, or Flask.

    :raises AlembicRefusal: when there is none of them.
    """
    from alembic.config import Config

    if os.path.isfile("alembic.ini"):
        return Config("alembic.ini"), False
    if _has_table("pyproject.toml", "[tool.alembic]"):
        # Alembic 1.16 reads both; the ini file need not exist.
        return Config("alembic.ini", toml_file="pyproject.toml"), False
    try:
        from flask.cli import ScriptInfo, load_dotenv
    except ImportError:
        raise AlembicRefusal(
            f"neither alembic.ini nor [tool.alembic] of a pyproject.toml is in {os.getcwd()!r}, and Flask is not "
            "installed: set app_directory to where alembic.ini is"
        ) from None
    if not os.environ.get("FLASK_SKIP_DOTENV"):
        load_dotenv()
    named = os.environ.get("FLASK_APP")
    if not named and not any(os.path.isfile(name) for name in ("wsgi.py", "app.py")):
        raise AlembicRefusal(
            f"neither alembic.ini is in {os.getcwd()!r} nor is a Flask application named: set app_directory to where "
            "alembic.ini is, or FLASK_APP in app_environment"
        )
    application = ScriptInfo(app_import_path=named).load_app()
    migrate = application.extensions.get("migrate")
    if migrate is None:
        raise AlembicRefusal(
            f"the Flask application {application.name!r} has no Flask-Migrate and there is no alembic.ini in "
            f"{os.getcwd()!r}: set app_directory, or app_framework to command or none"
        )
    pushed = application.app_context()
    pushed.push()
    # For the whole life of the process: env.py and revisions ask for current_app.
    context.memory["app_context"] = pushed
    return migrate.migrate.get_config(), True


def _has_table(path: str, name: str) -> bool:
    try:
        with open(path, encoding="utf-8") as stream:
            return any(line.strip().startswith(name[:-1]) for line in stream)
    except OSError:
        return False


# --- env.py ---


def run_env(
    context: Any, function: Callable[[tuple[str, ...], Any], Any], mutate: bool = False, **options: Any
) -> None:
    """Run env.py, and *function* ``(applied heads, MigrationContext) -> steps or None`` where it migrates.

    :param mutate: whether the table of versions may be made.
    :raises AlembicRefusal: when env.py migrates more than one database, or none.
    """
    from alembic.runtime.environment import EnvironmentContext

    calls = []

    def steps(revisions: Any, migration_context: Any) -> Any:
        if calls:
            raise AlembicRefusal(
                "env.py migrates several databases in one run, of which one alone is backed up: only one is supported"
            )
        calls.append(True)
        if isinstance(revisions, str):
            revisions = (revisions,)
        return function(tuple(revisions or ()), migration_context) or []

    memory = context.memory
    more = {} if mutate else {"dont_mutate": True}
    with EnvironmentContext(memory["config"], memory["script"], fn=steps, as_sql=False, **more, **options):
        memory["script"].run_env()
    if not calls:
        raise AlembicRefusal("env.py ended without context.run_migrations(), so that nothing can be migrated")


def vendor_of(dialect: Any) -> str:
    """Return ``postgresql``, ``mysql`` (MariaDB, too), ``sqlite`` or the dialect's own name."""
    name = str(dialect.name)
    return "mysql" if name == "mariadb" else name


def probe(context: Any) -> tuple[str, ...]:
    """Read what is applied, and remember the facts about the connection that env.py makes."""
    found: list[tuple[str, ...]] = []

    def look(heads: tuple[str, ...], migration: Any) -> None:
        found.append(heads)
        context.memory["facts"] = _facts(migration)

    run_env(context, look)
    return found[0]


def _facts(migration: Any) -> dict[str, Any]:
    """Return ``{database, vendor, dialect, mariadb, can_rollback_ddl, metadata, render_as_batch}``.

    :raises AlembicRefusal: when what is applied is not in the table that the host can read.
    """
    connection, dialect = migration.connection, migration.dialect
    if migration.version_table != VERSION_TABLE or migration.version_table_schema:
        where = ".".join(name for name in (migration.version_table_schema, migration.version_table) if name)
        raise AlembicRefusal(
            f"env.py keeps what is applied in the table {where!r}, but backups and rollbacks read {VERSION_TABLE!r} in the "
            "default schema: remove version_table and version_table_schema from env.py after renaming the table"
        )
    url = connection.engine.url
    vendor = vendor_of(dialect)
    return {
        "database": {
            "engine": str(dialect.name),
            "name": str(url.database or ""),
            "host": str(
                url.host or (url.query or {}).get("host") or (url.query or {}).get("unix_socket") or ""
            ),
            "port": str(url.port or ""),
        },
        "vendor": vendor,
        "dialect": dialect,
        "mariadb": bool(getattr(dialect, "is_mariadb", False)),
        # SQLite can, when a transaction is begun at all; see _agent_alembic_guard.begin_sqlite.
        "can_rollback_ddl": vendor == "sqlite" or bool(migration.impl.transactional_ddl),
        "metadata": migration.opts.get("target_metadata"),
    }


def where(context: Any) -> dict[str, Any]:
    """Return ``{name, server, oid}`` of the connection that was opened, as its server says; "" where it does not say."""
    return dict(context.memory["place"])


def applied(context: Any) -> dict[str, Any]:
    """Return the applied heads: ``{applied: [["alembic", revision]]}``, sorted."""
    return {"applied": rows_of(probe(context))}


def rows_of(heads: Any) -> list[list[str]]:
    """Return the applied *heads* as the host reads them from the table."""
    return [[ALEMBIC, head] for head in sorted(heads)]


def inert(context: Any) -> dict[str, Any]:
    """Return ``{inert}``: ``alembic upgrade`` does nothing where nothing is pending, which is why it is asked."""
    del context
    return {"inert": True}


# --- verify ---


def verify(context: Any, import_modules: list[str], release: str) -> dict[str, Any]:
    """Return what cannot be imported; several heads are in ``state``, changes of models in ``missing``."""
    del context, release
    failures = []
    for name in import_modules:
        try:
            importlib.import_module(name)
        except BaseException as error:
            failures.append({"module": name, **part("runtime").describe_error(error)})
    return {"checks": [], "deploy": [], "missing": [], "imports": failures}


def missing(context: Any) -> dict[str, Any]:
    """Return the model changes without a migration, as ``alembic check`` finds them: ``{metadata, needed, other}``.

    Only true where nothing is pending. ``metadata``: whether env.py gives the models at all; ``needed``: tables and columns
    that the models have and the database has not; ``other``: all other differences, as texts.
    """
    answer: dict[str, Any] = {"metadata": False, "needed": [], "other": []}

    def compare(_heads: tuple[str, ...], migration: Any) -> None:
        from alembic.autogenerate import compare_metadata

        metadata = migration.opts.get("target_metadata")
        if metadata is None:
            return
        answer["metadata"] = True
        for entry in compare_metadata(migration, metadata):
            for difference in entry if isinstance(entry, list) else [entry]:
                kind = "needed" if difference[0] in NEEDED else "other"
                answer[kind].append(_difference(difference))

    run_env(context, compare)
    return answer


def _difference(entry: Any) -> str:
    words = str(entry[0]).replace("_", " ")
    names = []
    for member in entry[1:]:
        if isinstance(member, str):
            names.append(member)
        elif getattr(member, "name", None) and not isinstance(member, dict):
            names.append(str(member.name))
            table = getattr(member, "table", None)
            if table is not None and getattr(table, "name", None) and str(table.name) not in names:
                names.insert(0, str(table.name))
            break
    return f"{words} {'.'.join(names)}".strip()


# --- before a rehearsal ---


def isolate(context: Any) -> dict[str, Any]:
    """Let nobody connect to anything but the database, see ``_agent_offline.cut_off``."""
    import socket

    facts = context.memory["facts"]
    scratch = context.memory.get("scratch") or {}
    host = str(scratch.get("host") or facts["database"]["host"] or "localhost")
    port = scratch.get("port") or facts["database"]["port"]
    allowed = {(host, int(port))} if port else {(host, 3306), (host, 5432)}
    for name, number in list(allowed):
        try:
            allowed |= {entry[4][:2] for entry in socket.getaddrinfo(name, number, type=socket.SOCK_STREAM)}
        except OSError:
            continue
    # Without a host a driver may still take one from elsewhere, so only what is named as a socket counts.
    by_socket = facts["vendor"] == "sqlite" or host.startswith("/")
    network = part("offline").cut_off(context, allowed, by_socket=by_socket)
    return {"off": ["network"], "network": network}


def tell_locks(context: Any) -> dict[str, Any]:
    """Have each revision tell, before its transaction ends, which tables of PostgreSQL it has locked how."""
    context.memory["tell_locks"] = True
    return {}


OPERATIONS = {
    "start": start,
    "where": where,
    "verify": verify,
    "missing": missing,
    "applied": applied,
    "inert": inert,
    "isolate": isolate,
    "tell_locks": tell_locks,
}
