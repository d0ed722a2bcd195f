# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put the tables of a restored MySQL or MariaDB database in the place of the live ones, by RENAME TABLE.

A table with a trigger cannot be renamed into another database (error 1435), and views, routines and events do not move at all.
So these are read from both databases as scripts, dropped, and made again where they belong. Both scripts lie on the
disk before the first of them is dropped, so that a run that was killed is healed by the next one.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._backup import differences
from ansible_collections.runbook.deploy.plugins.module_utils._command import run
from ansible_collections.runbook.deploy.plugins.module_utils._layout import (
    read_json,
    write_atomic,
    write_json,
)
from ansible_collections.runbook.deploy.plugins.module_utils._mysql import Mysql
from ansible_collections.runbook.deploy.plugins.module_utils._mysql_client import identifier
from ansible_collections.runbook.deploy.plugins.module_utils._mysql_dump import awake, quiet
from ansible_collections.runbook.deploy.plugins.module_utils._mysql_losses import losses
from ansible_collections.runbook.deploy.plugins.module_utils._openers import Opener
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._restore import ServerRestorer

STAGED = re.compile(r"_restore_[0-9a-f]{8}$")
LONGEST_NAME = 64
# Beside the backups: the scripts of a swap that has begun.
NOTES = ".swap-mysql"


class MysqlRestorer(ServerRestorer):
    """The engine ``mysql``: the tables of a new database take the places of the live ones."""

    engine: Mysql

    def __init__(self, engine: Mysql) -> None:
        super().__init__(engine)
        self.live = engine.client.name
        self.staged: str | None = None
        self.silenced: set[bytes] = set()
        self.framework = "none"
        self.notes: Path | None = None

    def space(self, size: int) -> list[tuple[Path, int]]:
        """See :meth:`Restorer.space`: it lies with the server, whose disk cannot be looked at from here."""
        return []

    def names(self, kind: str) -> str:
        """Return a new name: made of the live database's for an administrator, else one of those the user may use."""
        ending = f"_restore_{secrets.token_hex(4)}"
        if kind == "broken":
            ending = f"_broken_{time.strftime('%Y%m%dt%H%M%S', time.gmtime())}"
        stem = self.live if self.engine.has_admin else f"runbook_{self.live}"
        return stem[: LONGEST_NAME - len(ending)] + ending

    def losses(self, backup: Path, present: Path | None, framework: str) -> dict[str, dict[str, Any]]:
        """See :meth:`Restorer.losses`: the backup is restored for it, and compared with the live database."""
        del present
        self.framework = framework
        self.notes = backup.parents[1] / NOTES
        return losses(self.engine.maker, self.live, self.stage(backup, None), framework)

    def tidy(self, backups: Path | None = None) -> None:
        """See :meth:`Restorer.tidy`: half-made databases go, and a swap that was cut short is undone or ended."""
        notes = (backups or Path("/nonexistent")) / NOTES
        swap = None
        with contextlib.suppress(ValueError, OSError):
            swap = read_json(notes / "swap.json")
        if isinstance(swap, dict):
            self._heal(notes, swap)
        shutil.rmtree(notes, ignore_errors=True)
        stem = STAGED.sub("", self.names("restore"))
        found = self.engine.maker.rows({"n": "SCHEMA_NAME"}, "FROM information_schema.SCHEMATA", "")
        for row in found:
            if STAGED.search(row["n"]) and STAGED.sub("", row["n"]) == stem:
                self.engine.drop(row["n"])

    def _heal(self, notes: Path, swap: Mapping[str, Any]) -> None:
        """Make again what the swap of *notes* had dropped, where the tables are now; half a swap is undone."""
        maker, kept = self.engine.maker, str(swap["kept"])
        former = self._exists(kept) and bool(self.engine.tables(kept, maker))
        if former and not self._is_exchanged(swap):
            strange = sorted(self.engine.tables(self.live, maker))
            if strange:
                raise Problem(
                    f"While a restore had moved the tables of {self.live} to {kept}, somebody made others in their place "
                    f"({', '.join(strange[:5])}): stop what makes tables when it starts, drop these, and start the restore again."
                )
            self._rename(kept, self.live)
            former = False
        scripts = [(self.live, "staged.sql"), (kept, "live.sql")] if former else [(self.live, "live.sql")]
        for place, script in scripts:
            self._drop_extras(place)
            self._run_script(notes / script, place)
        if not former and self._exists(kept):
            self.engine.drop(kept)

    def _is_exchanged(self, swap: Mapping[str, Any]) -> bool:
        """Return whether the live tables are those of the backup: it was noted, or the staged database has none left."""
        staged = str(swap["staged"])
        return bool(swap.get("exchanged")) or (
            self._exists(staged) and not self.engine.tables(staged, self.engine.maker)
        )

    def _run_script(self, script: Path, place: str) -> None:
        """Run *script* in the database *place*; events run in the live database only."""
        text = script.read_bytes()
        if place != self.live:
            text = b"".join(quiet(text.splitlines(keepends=True), set()))
        self.engine.run_sql(text, place)

    def _exists(self, name: str) -> bool:
        rows = self.engine.maker.rows({"n": "SCHEMA_NAME"}, "FROM information_schema.SCHEMATA", "")
        return name in {row["n"] for row in rows}

    def stage(self, dump: Path, user: str | None) -> str:
        """See :meth:`Restorer.stage`; the same database is answered when it was made before."""
        del user
        if self.staged is None:
            self.notes = dump.parents[1] / NOTES
            self.staged = self.names("restore")
            self.engine.create(self.staged)
            self.silenced = self.engine.load(dump, self.staged)
        return self.staged

    def staged_differences(self, staged: Any, manifest: Mapping[str, Any]) -> list[str]:
        """See :meth:`Restorer.staged_differences`."""
        contents = self.engine.database_contents(staged, manifest.get("framework", "none"))
        return differences(manifest, contents) + self.engine.catalog_differences(staged, manifest)

    def discard(self) -> None:
        """See :meth:`Restorer.discard`."""
        if self.staged is not None:
            with contextlib.suppress(Problem):
                self.engine.drop(self.staged)
            self.staged = None

    def swap(
        self, mark: Any, root: Path, timeout: float, *, lost: dict[str, Any], consent: bool
    ) -> tuple[bool, str | None, list[Opener]]:
        """See :meth:`Restorer.swap`.

        When the live tables have another name nobody can write to them any more, so that the count is final; without consent to
        what it finds they are renamed back.
        """
        del mark, root, timeout
        if self.staged is None or self.notes is None:
            raise Problem(
                "Nothing was staged, so nothing can be exchanged: this is an error of the collection, report it."
            )
        kept = self.names("broken")
        engine = self.engine
        self.notes.mkdir(mode=0o700, exist_ok=True)
        for script, name in (("live.sql", self.live), ("staged.sql", self.staged)):
            lines = self._extras(name).splitlines(keepends=True)
            text = b"".join(awake(lines, self.silenced if name == self.staged else set()))
            write_atomic(self.notes / script, text.decode("utf-8", "surrogateescape"), 0o600)
        engine.create(kept)
        note = {"kept": kept, "staged": self.staged}
        write_json(self.notes / "swap.json", note, 0o600)
        try:
            self._drop_extras(self.live)
            self._drop_extras(self.staged)
            # Two steps: between them nobody can write to either, so that the count is final. Whoever comes then is refused.
            self._rename(self.live, kept)
            again = losses(engine.maker, kept, self.staged, self.framework)
            if again and again != lost and not consent:
                self._heal(self.notes, note)
                self._run_script(self.notes / "staged.sql", self.staged)
                shutil.rmtree(self.notes, ignore_errors=True)
                return False, None, []
            self._rename(self.staged, self.live)
        except BaseException:
            # Without its tables the live database is of no use to anybody; what fails here as well, the next restore heals.
            with contextlib.suppress(Problem, OSError):
                if not self._is_exchanged(note):
                    self._heal(self.notes, note)
                    shutil.rmtree(self.notes, ignore_errors=True)
            raise
        write_json(self.notes / "swap.json", {**note, "exchanged": True}, 0o600)
        self._run_script(self.notes / "staged.sql", self.live)
        lost.clear()
        lost.update(again)
        self._run_script(self.notes / "live.sql", kept)
        shutil.rmtree(self.notes, ignore_errors=True)
        engine.drop(self.staged)
        self.staged = None
        return True, kept, []

    def _rename(self, source: str, target: str) -> None:
        """Move all ordinary tables of the database *source* to *target*, in one atomic statement."""
        maker = self.engine.maker
        parts = [
            f"{identifier(source)}.{identifier(table)} TO {identifier(target)}.{identifier(table)}"
            for table in [*self.engine.tables(source, maker), *self._sequences(source)]
        ]
        if parts:
            maker.statements(["SET SESSION foreign_key_checks = 0", f"RENAME TABLE {', '.join(parts)}"], "")

    def _sequences(self, name: str) -> list[str]:
        rows = self.engine.maker.rows(
            {"n": "TABLE_NAME"},
            "FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_TYPE = 'SEQUENCE'",
            name,
        )
        return [row["n"] for row in rows]

    def _views(self, name: str) -> list[str]:
        rows = self.engine.maker.rows(
            {"n": "TABLE_NAME"},
            "FROM information_schema.VIEWS WHERE TABLE_SCHEMA = DATABASE() ORDER BY 1",
            name,
        )
        return [row["n"] for row in rows]

    def _extras(self, name: str) -> bytes:
        """Return the script that makes the triggers, routines, events and views of the database *name* again."""
        engine = self.engine
        result = b""
        with engine.maker.options() as options:
            command = engine.dump_command(
                options, name, "--no-data", "--no-create-info", "--skip-lock-tables", "--add-drop-trigger"
            )
            scripts = [command]
            views = self._views(name)
            if views:
                scripts.append(
                    [engine.maker.program("dump"), options, "--no-data", "--skip-triggers", "--skip-lock-tables",
                     "--default-character-set=utf8mb4", "--no-tablespaces", *engine.dump_options(), name, *views]
                )  # fmt: skip
            for argv in scripts:
                done = run(
                    argv, cwd="/", user=engine.maker.login.os_user, timeout=600, secrets=engine.maker.secrets
                )
                if done.rc != 0:
                    raise engine.maker.problem(name, done.stderr, done.timed_out)
                result += done.stdout.encode()
        return result

    def _drop_extras(self, name: str) -> None:
        """Drop the triggers, views, routines and events of the database *name*."""
        maker = self.engine.maker
        statements = []
        for kind, column, table, where in (
            ("TRIGGER", "TRIGGER_NAME", "TRIGGERS", "TRIGGER_SCHEMA"),
            ("VIEW", "TABLE_NAME", "VIEWS", "TABLE_SCHEMA"),
            ("EVENT", "EVENT_NAME", "EVENTS", "EVENT_SCHEMA"),
        ):
            rows = maker.rows(
                {"n": column}, f"FROM information_schema.{table} WHERE {where} = DATABASE()", name
            )
            statements += [f"DROP {kind} IF EXISTS {identifier(row['n'])}" for row in rows]
        rows = maker.rows(
            {"n": "ROUTINE_NAME", "k": "ROUTINE_TYPE"},
            "FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = DATABASE()",
            name,
        )
        statements += [f"DROP {row['k']} IF EXISTS {identifier(row['n'])}" for row in rows]
        if statements:
            maker.statements(statements, name)
